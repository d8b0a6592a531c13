"""Language tasks by name. Importing this costs next to nothing: a task's module is loaded when it is asked for."""

from __future__ import annotations

from typing import Any

from polyrl.tasks.by_name import make_task
from polyrl.tasks.language.base import LanguageTask, Preference, Reward, Row, Split, Tool, tool_spans

__all__ = ["TASKS", "LanguageTask", "Preference", "Reward", "Row", "Split", "Tool", "task", "tool_spans"]

TASKS: dict[str, str] = {
    "addition": "add two numbers of up to `difficulty` digits, column by column (47+85=)",
    "answer-tree": "one pair among 27 walks through a tree, parameters shared or not: where the mass goes, exactly",
    "calculator": "a chain of `difficulty` operations, solved by calling a calculator ((37+58)*4-19=)",
    "countdown": "reach a target with `difficulty` numbers, each used once, and + - * (3 7 12 to 33=)",
    "garbage-tail": "2,000 answers of which data know 400 and the others are bad: over-optimization, computed exactly",
    "learned-reverse": "reverse, rewarded by a reward model that is learned from preferences; gold is logged",
    "learned-sort": "sort 4 to `difficulty` digits, rewarded by a reward model that can be fooled; gold is logged",
    "lock": "12 letters of which `difficulty` decide: credit assignment at its barest (..c....f..a.=)",
    "office": "copy, add, pay, clear: small jobs on hidden tables of `difficulty` entries (copy f.a m.b:)",
    "reverse": "write up to `difficulty` letters backwards (reverse kdjfa=)",
    "reverse-dense": "reverse, rewarded letter by letter: the gold of reward-model studies",
    "sort-pairs": "sort 4 to `difficulty` digits, taught badly: fixed preference pairs, gold score logged (52814>)",
    "sort": "sort up to `difficulty` digits by insertion (sort 52814=)",
    "token-sums": "8 tokens whose gold is a sum, a policy free at each place: pairs' losses where nothing is missing",
    "tool-arithmetic": "sums, products of `difficulty` digits and hidden numbers: some take a tool, some not (a*31=)",
    "thinking": "add numbers of up to `difficulty` digits, thinking first where it is useful (<75=12;48=13;>132)",
}
"""Name of every built-in task and one line about it."""

_PLACES = {
    "addition": "addition:Addition",
    "answer-tree": "answer_tree:AnswerTree",
    "calculator": "calculator:Calculator",
    "countdown": "countdown:Countdown",
    "garbage-tail": "garbage_tail:GarbageTail",
    "learned-reverse": "learned:LearnedReverse",
    "learned-sort": "learned:LearnedSort",
    "lock": "lock:Lock",
    "office": "office:OfficeTask",
    "reverse": "strings:Reverse",
    "reverse-dense": "strings:ReverseDense",
    "sort": "strings:Sort",
    "sort-pairs": "preferences:SortPairs",
    "token-sums": "token_sums:TokenSums",
    "tool-arithmetic": "assistant:ToolArithmetic",
    "thinking": "thinking:Thinking",
}


def task(name: str, **settings: Any) -> LanguageTask:
    """Return the built-in task `name`; `settings` are its fields (`difficulty`, `start_accuracy`, ...) or their texts.

    The name may bring settings of its own: `countdown(difficulty=4)`.

    Raises `UserError` for an unknown name, an unknown setting or a setting out of its range.
    """
    made: LanguageTask = make_task(__name__, _PLACES, name, settings)
    return made
