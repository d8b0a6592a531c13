"""Preference pairs that are made for a task: two sampled answers of the starting model to a prompt, labelled.

They are labelled by the task's preference function or its rewards, and kept as JSONL beside the starting model.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.files import fingerprint
from polyrl.runtime.seeding import generator, stream_seed
from polyrl.tasks.language.base import LanguageTask, Row, Split, digest, reports, sessions
from polyrl.tasks.language.columns import told_columns
from polyrl.tasks.language.judge import compared
from polyrl.tasks.language.reward_runner import RewardRunner
from polyrl.tasks.language.run_facts import RunFacts
from polyrl.tasks.language.wanted import PairsWanted

Say = Callable[[str], None]

PAIRS_VERSION = 1
"""Raised when the way of making pairs changes."""
PROMPTS_AT_A_TIME = 500
MOST_PROMPTS_PER_PAIR = 8
"""Prompts that are answered for one pair at most: where answers are nearly always equally good, there are no pairs."""


def give_pairs(task: LanguageTask, model: str, wanted: PairsWanted | None = None, say: Say = lambda _: None) -> None:
    """Set the task's `fixed_pairs` to pairs sampled from `model`, made first where they are not in the cache.

    Labels come from the task's `preference` (a winner is drawn with its probability), or else from its rewards (the
    better answer wins; equally good ones make no pair). Pairs labelled by functions of the user are made anew each
    time, since what such a function would say now cannot be known from its name.

    Raises:
        UserError: the task has neither rewards nor a preference, or the answers are hardly ever told apart.
    """
    wanted = wanted or PairsWanted()
    if not task.rewards and task.preference is None:
        raise UserError(
            f"The task '{task.name}' has no preference pairs, and neither rewards nor a preference function that could "
            "label any; give data with the columns prompt, chosen and rejected, or --reward."
        )
    judges = [r.function for r in task.rewards] + ([task.preference.function] if task.preference else [])
    if not all(str(f.__module__).startswith("polyrl.") for f in judges):
        task.fixed_pairs = make_pairs(task, model, wanted, say)
        return
    names = [*(f"{r.name}={r.weight}" for r in task.rewards), task.preference.name if task.preference else ""]
    key = digest([PAIRS_VERSION, task.fingerprint(), fingerprint(model), names, wanted.train, wanted.test, wanted.seed])

    def make(folder: Path) -> dict[str, Any]:
        pairs = make_pairs(task, model, wanted, say)
        for split, rows in pairs.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        return {"task": task.name, "kind": "preference pairs", **{split: len(rows) for split, rows in pairs.items()}}

    folder = cached(cache_folder() / "pairs" / f"{task.name}-{task.difficulty}-{key}", make)
    task.fixed_pairs = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test")
    }


def make_pairs(
    task: LanguageTask, model: str, wanted: PairsWanted, say: Say = lambda _: None
) -> dict[Split, list[Row]]:
    """Sample two answers of `model` to each of many prompts and label them; a pure function of its arguments.

    Returns rows with `prompt`, `chosen`, `rejected`, whether each ended by itself (`chosen_ended`, `rejected_ended`)
    and, where rewards are known, their scores (`score_chosen`, `score_rejected`).
    """
    policy = LanguagePolicy.load(model)
    policy.ask_as(task.chat)
    pairs: dict[Split, list[Row]] = {}
    counts: dict[Split, int] = {"train": wanted.train, "test": wanted.test}
    for split, count in counts.items():
        say(f"sampling {count} {split} pairs for {task.name} from the starting model")
        made: list[Row] = []
        at, most = 0, MOST_PROMPTS_PER_PAIR * count
        while len(made) < count and at < most:
            size = min(PROMPTS_AT_A_TIME, most - at)
            # the seed of rows is far from those of training runs (small) and of pretraining (1000003 and up)
            rows = task.rows(split, 3_000_003 + wanted.seed, at, size)
            made += _labelled(task, policy, rows, f"{split}-{wanted.seed}-{at}")
            at += size
        if len(made) < min(count, 32):
            raise UserError(
                f"Of {2 * at} answers of the starting model to '{task.name}' only {len(made)} pairs could be made: "
                "the others were equally good; take an easier task, another reward, or another model."
            )
        pairs[split] = made[:count]
    return pairs


def _ahead(a: float, b: float) -> float:
    """1 where a is the better score, 0 where b is, 1/2 where they are equal, NaN where one of them is not known."""
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return 0.5 if a == b else float(a > b)


def _labelled(task: LanguageTask, policy: LanguagePolicy, rows: list[Row], name: str) -> list[Row]:
    """One pair for each row whose two answers differ and are not judged equal."""
    tools = sessions(task, rows, 2)
    batch = TransformersEngine(policy).generate(
        [policy.encode_row(row) for row in rows],
        Sampling(max_tokens=task.max_tokens, stop=tuple(task.stop)),
        completions_per_prompt=2,
        generator=generator(0, "pairs", task.name, name),
        tools=tools,
    )
    texts, ended = batch.columns["completion"], batch["ended"].tolist()
    prompts = [row["prompt"] for row in rows]
    dice = random.Random(stream_seed(0, "labels", task.name, name))
    scores: list[list[float]] | None = None
    if task.rewards:
        runner = RewardRunner(task.rewards, task.calls)
        told = [{name: values[side::2] for name, values in reports(tools).items()} for side in (0, 1)]
        ids = [row[:n] for row, n in zip(batch["action"].tolist(), batch["present"].sum(1).tolist(), strict=True)]
        scores = [
            runner(prompts, texts[side::2], RunFacts(ids[side::2]), **told_columns(rows, told[side])).total
            for side in (0, 1)
        ]
    if task.preference is not None:
        wins = compared(task.preference, prompts, texts[0::2], texts[1::2], told_columns(rows, {}), task.calls)
    else:
        assert scores is not None
        wins = [_ahead(a, b) for a, b in zip(*scores, strict=True)]
    made = []
    for i, (prompt, probability) in enumerate(zip(prompts, wins, strict=True)):
        drawn = dice.random() < probability  # one number a prompt, whatever the labels say
        tie = task.preference is None and probability == 0.5
        answers = [texts[2 * i], texts[2 * i + 1]]
        if math.isnan(probability):
            continue  # what should have judged it failed
        if tie or answers[0] == answers[1] or not all(text.strip() for text in answers):
            continue
        best = 0 if drawn else 1
        row: Row = {"prompt": prompt, "chosen": answers[best], "rejected": answers[1 - best]}
        row |= {"chosen_ended": ended[2 * i + best], "rejected_ended": ended[2 * i + 1 - best]}
        if scores is not None:
            row |= {"score_chosen": scores[best][i], "score_rejected": scores[1 - best][i]}
        made.append(row)
    return made
