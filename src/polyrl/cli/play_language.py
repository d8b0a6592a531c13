"""`polyrl play` for language runs: watch the policy answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from polyrl.api import open_policy
from polyrl.errors import UserError
from polyrl.rollout.language import Sampling
from polyrl.run_state.language_evaluation import seen_rows
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.language.base import LanguageTask, Row
from polyrl.tasks.language.chat import transcript
from polyrl.tasks.language.formats import template_columns
from polyrl.tasks.language.rewards import NotLoaded

COMPARED = 50
"""Test prompts that are looked at to lay out a question as they are."""


def play(
    folder: Path,
    *,
    prompt: str | None = None,
    prompts: int = 5,
    temperature: float = 0.0,
    trust_code: bool = False,
) -> None:
    """Print what the policy answers to `prompt`, or to test prompts of the run's task.

    Rewards of the user's own are not called: where they alone could say what is right, only the answer is shown.
    """
    if temperature < 0:
        raise UserError(f"--temperature is {temperature:g} but must be at least 0.")
    run_state: Any = open_policy(folder, judged=False, trust_code=trust_code)
    rows = [asked(run_state.task, prompt)] if prompt is not None else run_state.task.rows("test", 7, 0, prompts)
    sampling = Sampling(
        max_tokens=run_state.task.max_tokens,
        stop=tuple(run_state.task.stop),
        greedy=temperature == 0,
        temperature=temperature or 1.0,
    )
    batch = run_state.sample(rows, sampling, completions_per_prompt=1, generator=torch.Generator().manual_seed(0))
    console = Terminal()
    # with what sessions of tools report, which checkers read as in training
    for row, text in zip(seen_rows(batch), batch.columns["completion"], strict=True):
        line = conversation(run_state.policy.asked(row["prompt"]), text)
        if prompt is None and run_state.rewards is not None:
            line.append_text(_judged(run_state.task, row, text))
        console.print(line, soft_wrap=True)
        if not isinstance(row["prompt"], str) or "\n" in line.plain:
            console.print()  # a paragraph each


def conversation(prompt: Any, answer: str) -> Text:
    """What was asked and answered: a text that goes on, or messages with their roles, a turn a paragraph."""
    if isinstance(prompt, str):
        return Text(prompt, style="bold").append(answer, style="cyan")
    line = Text()
    goes_on = prompt[-1].get("role") == "assistant"
    for message in prompt:
        line.append(f"{message.get('role')}\n", style="dim").append(
            transcript([message]).partition(": ")[2], style="bold"
        )
        line.append("" if goes_on and message is prompt[-1] else "\n\n")
    if not goes_on:
        line.append("assistant\n", style="dim")
    return line.append(answer or "(empty)", style="cyan")


def asked(task: LanguageTask, prompt: str) -> Row:
    """A question of the user's as a row of the task: where its prompts are conversations, a message of the user.

    A system message and columns of the chat template that all prompts have in common stand there too, so that the
    policy reads what it was trained to read.
    """
    some = task.rows("test", 7, 0, COMPARED)
    if any(isinstance(row["prompt"], str) for row in some):
        return {"prompt": prompt}
    begins = [row["prompt"][:1] if row["prompt"][0]["role"] == "system" else [] for row in some]
    columns = [template_columns(row) for row in some]
    system = begins[0] if all(b == begins[0] for b in begins) else []
    shared = columns[0] if all(c == columns[0] for c in columns) else {}
    return {"prompt": [*system, {"role": "user", "content": prompt}], **shared}


def _judged(task: LanguageTask, row: Row, text: str) -> Text:
    """Whether the response is right, in a word; nothing where only a reward that was not loaded could say it."""
    expected = task.expected(row)
    try:
        right = task.correct(row, text)
    except NotLoaded:
        return Text("" if expected is None else f"  expected {expected}", "dim")
    return Text("  right" if right else f"  wrong, expected {expected}", "green" if right else "red")
