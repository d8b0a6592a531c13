"""Supervised pretraining of the tiny model on a task's worked completions: the start that reinforcement learning needs.

It stops at the task's `start_accuracy`, so that there is room to learn, and says what it reached.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from polyrl.policies.language import LanguagePolicy
from polyrl.policies.supervised import supervised
from polyrl.policies.tiny import build_tiny
from polyrl.runtime.seeding import generator
from polyrl.sampling.language import Sampling, TransformersEngine
from polyrl.tasks.language.base import LanguageTask, Row

EXAMPLES = 20_000
STEPS = 1_500
BATCH = 64
LEARNING_RATE = 2e-3
CHECK_EVERY = 50
CHECKED_PROMPTS = 100


def pretrain(
    task: LanguageTask, folder: Path, *, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Write the pretrained tiny model of `task` to `folder`; return its facts (parameters, steps, accuracies).

    The accuracy that stops the training is measured greedily on problems of the train split that were not trained on;
    the test split is only looked at once, at the end. All cores are used.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return _pretrain(task, folder, seed, say)
    finally:
        torch.set_num_threads(threads)


def _pretrain(task: LanguageTask, folder: Path, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    began = time.perf_counter()
    build_tiny(folder, seed)
    policy = LanguagePolicy.load(folder)
    end = policy.tokenizer.eos_token_id
    rows = task.rows("train", 1_000_003 + seed, 0, EXAMPLES + CHECKED_PROMPTS)
    held, rows = rows[:CHECKED_PROMPTS], rows[CHECKED_PROMPTS:]
    examples = [(policy.encode_prompt(r["prompt"]), [*policy.encode(task.worked(r)), end]) for r in rows]
    goal = task.start_accuracy
    say(f"making the starting model of {task.name} (difficulty {task.difficulty}): supervised training, about a minute")
    reached = 0.0

    def check(step: int, loss: float) -> bool:
        nonlocal reached
        reached = greedy_accuracy(policy, task, held)
        say(
            f"step {step}: loss {loss:.3f}, accuracy {reached:.2f}"
            + (f" (stops at {goal:.2f})" if goal is not None else "")
        )
        return goal is not None and reached >= goal

    losses = supervised(
        policy,
        examples,
        steps=STEPS,
        batch_size=BATCH,
        lr=LEARNING_RATE,
        generator=generator(seed, "pretraining"),
        every=CHECK_EVERY,
        callback=check,
    )
    policy.save(folder)
    return {
        "task": task.name,
        "difficulty": task.difficulty,
        "seed": seed,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "steps": len(losses),
        "stopped_at": reached,
        "test_accuracy": greedy_accuracy(policy, task, task.rows("test", 1234, 0, 200)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def greedy_accuracy(policy: LanguagePolicy, task: LanguageTask, rows: list[Row]) -> float:
    """Share of the rows that the policy answers rightly, decoding greedily."""
    batch = TransformersEngine(policy).generate(
        [policy.encode_prompt(r["prompt"]) for r in rows],
        Sampling(max_tokens=task.max_tokens, stop=tuple(task.stop), greedy=True),
        completions_per_prompt=1,
        generator=torch.Generator(),
        tools=task.tool,
    )
    right = [task.correct(row, text) for row, text in zip(rows, batch.columns["completion"], strict=True)]
    return sum(right) / len(right)
