"""Round-robin: policies of several runs answer the same prompts, and a preference function compares all with all.

Where preferences go in circles no number orders policies, and a mean win rate depends on who takes part. So what is
told is the whole table, and of each policy the opponent against which it does worst: one that no other beats has a
worst win rate of 1/2 (arXiv:2407.00617, 2312.00886).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from polyrl.api import open_to_judge
from polyrl.errors import UserError
from polyrl.report.runs import load_comparison
from polyrl.rollout.language import Sampling
from polyrl.run_state.language_evaluation import EVALUATION_SEED
from polyrl.run_state.language_run_state import LanguageRunState
from polyrl.runtime.seeding import generator
from polyrl.tasks.language.base import LanguageTask, Row
from polyrl.tasks.language.columns import told_columns
from polyrl.tasks.language.judge import compared


@dataclass(frozen=True)
class RoundRobin:
    """Win rates of all against all.

    Attributes:
        names: of the policies.
        rates: `[seeds, n, n]` float64, the mean probability that a row beats a column; 1/2 on the diagonal.
        preference: the name of the function that compared.
        prompts: how many were answered.
    """

    names: tuple[str, ...]
    rates: Tensor
    preference: str
    prompts: int

    @property
    def table(self) -> Tensor:
        """Mean over seeds, `[n, n]`."""
        return self.rates.mean(0)

    def against_others(self) -> list[float]:
        """The mean win rate of each against all others."""
        n = len(self.names)
        return [(float(row.sum()) - 0.5) / (n - 1) for row in self.table]

    def worst(self) -> list[tuple[str, float]]:
        """Of each the opponent against which it wins least, and how often it wins."""
        found = []
        for i, row in enumerate(self.table):
            others = [(float(rate), name) for j, (rate, name) in enumerate(zip(row, self.names, strict=True)) if j != i]
            rate, name = min(others)
            found.append((name, rate))
        return found


@dataclass(frozen=True)
class Answers:
    """What one policy answered to the test prompts."""

    task: LanguageTask
    rows: list[Row]
    texts: list[str]


def answered(run: Path, prompts: int, trust_code: bool = False) -> Answers:
    """One sampled answer of a run's policy to each test prompt, by the same random numbers for every run.

    Raises:
        UserError: it is no run of a language model, or its task has no preference function.
    """
    state = open_to_judge(run, prompts=prompts, greedy=False, trust_code=trust_code)
    if not isinstance(state, LanguageRunState):
        raise UserError(f"{run} is a run whose policy writes no answers; a round-robin compares those of language.")
    task = state.task
    if task.preference is None:
        raise UserError(
            f"The task '{task.name}' of {run} has no preference function that could compare answers; train with "
            "--preference file.py:function, or take sort-pairs."
        )
    size = task.size("test")
    rows = task.rows("test", EVALUATION_SEED, 0, prompts if size is None else min(prompts, size))
    sampling = Sampling(max_tokens=task.max_tokens, stop=tuple(task.stop))
    with torch.no_grad():
        batch = state.sample(
            rows, sampling, completions_per_prompt=1, generator=generator(EVALUATION_SEED, "round-robin")
        )
    return Answers(task, rows, batch.columns["completion"])


def win_rates(answers: Sequence[Answers]) -> Tensor:
    """`[n, n]` float64 mean probability that a row's answers beat a column's; each two are compared once."""
    rates = torch.full((len(answers), len(answers)), 0.5, dtype=torch.float64)
    for i, j in combinations(range(len(answers)), 2):
        a, b = answers[i], answers[j]
        assert a.task.preference is not None
        prompts = [row["prompt"] for row in a.rows]
        found = compared(a.task.preference, prompts, a.texts, b.texts, told_columns(a.rows, {}), a.task.calls)
        rates[i, j] = fmean(found)
        rates[j, i] = 1 - rates[i, j]
    return rates


def contestants(folders: Sequence[Path]) -> list[dict[str, Path]]:
    """Name -> run folder, one mapping a seed: the finished runs of one comparison, or the runs that are named.

    Raises:
        UserError: there are fewer than two policies, or two bear one name.
    """
    if len(folders) == 1:
        made = load_comparison(folders[0])
        seeds = [
            {run.label: run.path for run in made.runs if run.seed == seed and run.status == "finished"}
            for seed in made.seeds
        ]
        whole = [one for one in seeds if len(one) == len(made.methods)]
        if len(made.methods) < 2 or not whole:
            raise UserError(f"{folders[0]} holds no two policies with a finished run of one seed; name several runs.")
        return whole
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        raise UserError(f"Two of the runs are called alike ({', '.join(names)}); rename a folder.")
    return [dict(zip(names, folders, strict=True))]


def round_robin(folders: Sequence[str | Path], *, prompts: int = 500, trust_code: bool = False) -> RoundRobin:
    """Compare the policies of several runs, or those of a comparison seed by seed.

    Args:
        folders: run folders, or one comparison's.
        prompts: test prompts that each policy answers once, sampled.
        trust_code: run the files that a folder names though you have not run them before.

    Raises:
        UserError: see `contestants` and `answered`, or the runs were not asked the same prompts by one judge.
    """
    if prompts < 1:
        raise UserError(f"--prompts is {prompts}; a round-robin takes at least 1.")
    tables, judge, count = list[Tensor](), "", 0
    names: tuple[str, ...] = ()
    for seed in contestants([Path(folder) for folder in folders]):
        found = [answered(folder, prompts, trust_code) for folder in seed.values()]
        first = found[0]
        assert first.task.preference is not None
        for name, one in zip(seed, found, strict=True):
            assert one.task.preference is not None
            asked = [row["prompt"] for row in one.rows] == [row["prompt"] for row in first.rows]
            if not asked or one.task.preference.name != first.task.preference.name:
                raise UserError(f"{name} was not asked the same prompts, or by another judge, as {next(iter(seed))}.")
        tables.append(win_rates(found))
        names, judge, count = tuple(seed), first.task.preference.name, len(first.rows)
    return RoundRobin(names, torch.stack(tables), judge, count)
