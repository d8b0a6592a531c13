"""Supervised pretraining of the tiny model on a task's worked completions: the start that reinforcement learning needs.

It stops at the task's `start_accuracy`, so that there is room to learn, and says what it reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from polyrl.core.experience import Experience
from polyrl.models.language.policy import Backbone, LanguagePolicy
from polyrl.pretrain.supervised import Example, demonstrations, supervised
from polyrl.pretrain.tiny import build_tiny
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.runtime.seeding import generator
from polyrl.tasks.language.base import LanguageTask, Row, has_ended, reports, sessions, table_rows, tool_spans
from polyrl.tasks.language.columns import told_columns
from polyrl.tasks.language.formats import template_columns

DEMONSTRATIONS = 1_000_003
"""Seed of the rows that models are taught with (plus the model's own): far from those of training runs."""
EXAMPLES = 20_000
STEPS = 1_500
BATCH = 32
LEARNING_RATE = 2e-3
CHECK_EVERY = 20
"""Steps between looks at the accuracy. Some tasks go from nothing to two thirds within 10: then it steps back."""
CHECKED_PROMPTS = 200
GLANCED_PROMPTS = 50
"""Prompts of a look; it takes all `CHECKED_PROMPTS`, those included, to stop."""
OVERSHOOT = 0.2
"""How far above its goal the accuracy may be; further, and the weights go back towards those of the look before."""


def pretrain(
    task: LanguageTask,
    folder: Path,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    **size: int,
) -> dict[str, Any]:
    """Write the pretrained tiny model of `task` to `folder`; return its facts (parameters, steps, accuracies).

    The accuracy that stops the training is measured greedily on problems of the train split that were not trained on;
    the test split is only looked at once, at the end. A tool's words are read and not learned, as in reinforcement
    learning.

    Args:
        task: gives prompts and worked completions.
        folder: where the model is written, an ordinary model folder.
        seed: of weights, examples and their order.
        say: told what is going on.
        size: of the model, arguments of `polyrl.pretrain.tiny.tiny_config`.
    """
    began = time.perf_counter()
    build_tiny(folder, seed, **size)
    policy = LanguagePolicy.load(folder)
    rows = task.rows("train", DEMONSTRATIONS + seed, 0, EXAMPLES + CHECKED_PROMPTS)
    held, rows = rows[:CHECKED_PROMPTS], rows[CHECKED_PROMPTS:]
    examples = [demonstration(policy, task, row) for row in rows]
    goal = task.start_accuracy
    say(f"making the starting model of {task.name} (difficulty {task.difficulty}): supervised training, about a minute")
    reached = 0.0
    before = parameters_to_vector(policy.parameters()).detach().clone()

    def check(step: int, loss: float) -> bool:
        nonlocal reached, before
        reached = greedy_accuracy(policy, task, held[:GLANCED_PROMPTS])
        done = False
        if goal is not None and reached >= goal:
            reached = greedy_accuracy(policy, task, held)
            done = reached >= goal
        if done and goal is not None and reached > goal + OVERSHOOT:
            reached = _step_back(policy, before, lambda: greedy_accuracy(policy, task, held), goal, reached)
        before = parameters_to_vector(policy.parameters()).detach().clone()
        if done or step % (5 * CHECK_EVERY) == 0:
            stops = "" if goal is None else f" (stops at {goal:.2f})"
            say(f"step {step}: loss {loss:.3f}, accuracy {reached:.2f}{stops}")
        return done

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


def _step_back(
    policy: LanguagePolicy, before: Tensor, measure: Callable[[], float], goal: float, reached: float
) -> float:
    """Set the weights between `before`, which missed the goal, and the present ones, which overshot it: by bisection.

    Some tasks are learned within a few steps; the straight line between two looks passes through what lies between.
    Returns the accuracy of the weights that are left in the policy: `goal` at least, and `goal + OVERSHOOT` at most
    unless five halvings do not find that.
    """
    after = parameters_to_vector(policy.parameters()).detach().clone()
    low, high = 0.0, 1.0
    for _ in range(5):
        middle = (low + high) / 2
        vector_to_parameters(torch.lerp(before, after, middle), policy.parameters())
        accuracy = measure()
        if accuracy < goal:
            low = middle
            continue
        high, reached = middle, accuracy
        if accuracy <= goal + OVERSHOOT:
            break
    vector_to_parameters(torch.lerp(before, after, high), policy.parameters())
    return reached


def demonstration(policy: Backbone, task: LanguageTask, row: Row, text: str | None = None) -> Example:
    """Token ids of a row's prompt and demonstration with its end token, and which of the latter are learned.

    `text` is another demonstration than the one that starting models are taught with.

    A tool's words are encoded by themselves, as the sampler inserts them, and are not learned. Where a call ends the
    response there is no end token. After a conversation the chat template closes the turn.
    """
    text, session = task.demonstrated(row) if text is None else text, task.session(row)
    if session is None and not isinstance(row["prompt"], str):
        answer = policy.encode_response(row["prompt"], text, **template_columns(row))
        return policy.encode_row(row), answer, [True] * len(answer)
    ids: list[int] = []
    learned: list[bool] = []
    at = 0
    for start, end in [*(tool_spans(session, text) if session else []), (len(text), len(text))]:
        for piece, ours in ((text[at:start], True), (text[start:end], False)):
            tokens = policy.encode(piece) if piece else []
            ids += tokens
            learned += [ours] * len(tokens)
        at = end
    if not (session and has_ended(session)):
        ids, learned = [*ids, policy.tokenizer.eos_token_id], [*learned, True]
    return policy.encode_row(row), ids, learned


def worked_batch(policy: LanguagePolicy, task: LanguageTask, start: int, count: int) -> Experience:
    """`count` demonstrations, rows `start` on of those that the task's starting model was made of, as a batch `[n, T]`.

    Its `mask` is true on the learned tokens only.
    """
    rows = task.rows("train", DEMONSTRATIONS, start, count)
    return demonstrations([demonstration(policy, task, row) for row in rows], pad_id=policy.pad_id)


def greedy_accuracy(policy: LanguagePolicy, task: LanguageTask, rows: Sequence[Row]) -> float:
    """Share of the rows that the policy answers rightly, decoding greedily."""
    tools = sessions(task, rows)
    batch = TransformersEngine(policy).generate(
        [policy.encode_row(r) for r in rows],
        Sampling(max_tokens=task.max_tokens, stop=tuple(task.stop), greedy=True),
        completions_per_prompt=1,
        generator=torch.Generator(),
        tools=tools,
    )
    seen = table_rows([r["prompt"] for r in rows], told_columns(rows, reports(tools)))
    right = [task.correct(row, text) for row, text in zip(seen, batch.columns["completion"], strict=True)]
    return sum(right) / len(right)
