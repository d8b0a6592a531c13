"""Options of a run, each stated once: the command line, Python's keywords and a recipe file all read this table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from polyrl.runtime.config import RunConfig
from polyrl.settings import parse_value


@dataclass(frozen=True)
class Option:
    """An option of a run.

    Attributes:
        name: as it is typed on the command line, without hyphens in front.
        help: one line; the default stands in brackets.
        field: of `RunConfig`; empty is the name with underscores.
        metavar: what stands for its value in a usage line.
        choices: its values, where the field's type does not say them.
        opposite: a flag that says the opposite of its field.
        many: given once for each value.
    """

    name: str
    help: str
    field: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    opposite: bool = False
    many: bool = False

    @property
    def of(self) -> str:
        """The field of `RunConfig`."""
        return self.field or self.keyword

    @property
    def keyword(self) -> str:
        """The name in Python: with underscores."""
        return self.name.replace("-", "_")

    @property
    def kind(self) -> Any:
        """The type of one value: that of its field, which may be none where nobody says."""
        kind = hints()[self.of]
        if get_origin(kind) in (Union, UnionType):
            kind = next(one for one in get_args(kind) if one is not type(None))
        return get_args(kind)[0] if self.many else kind

    @property
    def values(self) -> tuple[str, ...]:
        """The texts that it may be; empty where it may be others."""
        return self.choices or (get_args(self.kind) if get_origin(self.kind) is Literal else ())

    def read(self, text: str) -> Any:
        """The field's value of a text.

        Raises:
            UserError: it is of another type, or none of its choices.
        """
        kind = Literal[self.values] if self.values else self.kind
        value = parse_value("", self.name, kind, text)
        return not value if self.opposite else value


WHAT = (
    Option("task", "built-in task, or Gymnasium environment; `polyrl list tasks`  [the method's own]"),
    Option("difficulty", "how hard the built-in task is"),
    Option("dataset", "your prompts: jsonl, json, csv, parquet, or a hub id; control: your transitions"),
    Option("test-dataset", "prompts to judge on; else a share of --dataset is held out"),
    Option(
        "checker",
        "how the data's answers are compared  [each number as a number, else the reward, else as text]",
        choices=("auto", "numeric", "exact", "contains", "math"),
    ),
    Option("prompt-column", "column of --dataset with the prompt  [prompt]", metavar="NAME"),
    Option("answer-column", "column of --dataset with the right answer  [answer]", metavar="NAME"),
    Option("system-prompt", "first message of prompts that have no system message", metavar="TEXT"),
    Option("no-chat-template", "leave plain prompts as they are", field="chat_template", opposite=True),
    Option("max-prompt-tokens", "leave out rows of --dataset with longer prompts, and say how many"),
    Option("skip-bad-rows", "leave out rows that cannot be used, and say how many"),
    Option(
        "reward",
        "module:function, file.py:function or a reward model's folder; =WEIGHT behind",
        field="rewards",
        many=True,
    ),
    Option("preference", "file.py:function that says which of two responses is better"),
    Option("model", "model folder or Hugging Face hub id; else the task's tiny model"),
    Option("start", "the tiny model: one for all seeds, or each seed its own  [compare: own; else shared]"),
)
"""What is asked."""
HOW = (
    Option("budget", "what ends a run: samples=, tokens=, steps=, reward_calls=, queries=, seconds=, updates="),
    Option("lora", "train LoRA adapters of this rank", metavar="RANK"),
    Option("device", "auto, cpu, cuda, ...  [auto]"),
    Option("precision", "of forward passes  [float32; cuda: bfloat16]"),
    Option("force", "run in bfloat16 though the processor is slow at it"),
    Option("threads", "CPU threads of one run  [1]"),
    Option("engine", "generation servers that sample, such as http://127.0.0.1:8600  [the run itself]"),
    Option("micro-batch-tokens", "padded tokens at a time: memory, never meaning  [1024; cuda: 32768]"),
    Option("max-tokens", "longest response"),
    Option("eval-prompts", "test prompts of an evaluation  [200]"),
    Option("eval-episodes", "episodes or scenarios of an evaluation, outside language"),
    Option("eval-sampled", "evaluate with sampled instead of greedy responses", field="eval_greedy", opposite=True),
    Option("evaluations", "evaluations spread over the budget  [10]"),
    Option("checkpoint-every", "iterations between checkpoints  [25]"),
    Option("on-reward-error", "what to do  [stop]"),
    Option("reward-timeout", "limit of one reward call  [60]", metavar="SECONDS"),
    Option("reward-process", "where your functions run  [auto]"),
    Option("no-tensorboard", "write no TensorBoard events", field="tensorboard", opposite=True),
)
"""How it is run."""
SEED = Option("seed", "of everything random  [0]")
OPTIONS = (*WHAT, *HOW, SEED)
NOT_ASKED = frozenset({"method", "label", "hyperparameters", "from_python"})
"""Fields of a config that nobody sets by their name."""


@cache
def hints() -> dict[str, Any]:
    """The type of each field of a config."""
    return get_type_hints(RunConfig)


@cache
def by_name() -> dict[str, Option]:
    """Options by their names with underscores: those of the table, and fields of a config that have none there."""
    rest = [Option(name.replace("_", "-"), "") for name in hints() if name not in NOT_ASKED]
    found = {option.name.replace("-", "_"): option for option in (*rest, *OPTIONS)}
    return found | {"rewards": found["reward"]}


def opposites() -> Iterator[Option]:
    """Flags that say the opposite of their field."""
    return (option for option in OPTIONS if option.opposite)
