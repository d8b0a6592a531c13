"""Runs reward functions and survives them: what raises, hangs or returns nonsense is named, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.base import Reward, content
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.calling import Answer, Caller, read_number, row_by_row
from polyrl.tasks.language.phrases import quoted, shortened
from polyrl.tasks.language.rewards import check_signature
from polyrl.tasks.language.run_facts import Logged, RunFacts


class RewardError(UserError):
    """A reward function failed on a sample, and the policy is to stop."""


@dataclass(frozen=True)
class RewardFailure:
    """One sample that could not be scored."""

    row: int
    """Number of the sample in the batch, from 0."""
    reward: str
    """Name of the reward; empty if no reward applied."""
    reason: str
    """What went wrong, in a phrase."""


@dataclass
class Scores:
    """What a batch of completions was worth."""

    total: list[float]
    """Weighted sum over the rewards that apply; NaN marks a dropped sample."""
    parts: dict[str, list[float]]
    """Each reward before its weight; NaN where it does not apply or failed."""
    calls: int
    """Samples scored: what a budget of reward calls is charged."""
    failures: list[RewardFailure] = field(default_factory=list)
    """Samples that a reward failed on."""
    logged: Logged = field(default_factory=Logged)
    """What the user's rewards logged."""

    def plain(self) -> dict[str, Any]:
        """All but the failures in plain values, which `read` takes."""
        return {"total": self.total, "parts": self.parts, "calls": self.calls, "logged": vars(self.logged)}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Scores:
        """Scores of what `plain` gave."""
        return cls(plain["total"], plain["parts"], plain["calls"], logged=Logged(**plain["logged"]))


class RewardRunner:
    """Calls reward functions on batches and finds the samples that they fail on.

    A function that raises or hangs on a batch is called again on one sample at a time. After three samples that run
    out of time the rest of the batch is given up, so that a dead service costs four time limits and not one a sample.
    Functions of the user's run in processes of their own (`polyrl.tasks.language.calling`).

    Under the policy "stop" the first failing sample raises `RewardError`, under "drop" it gets a total of NaN, which
    the loop leaves out, and under "zero" a total of 0.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        policy: CallPolicy | None = None,
    ):
        """Check the rewards; raise `UserError` for one that cannot be called as a reward is."""
        if not rewards:
            raise UserError("There is no reward: name at least one, like numeric or rewards.py:function.")
        policy = policy or CallPolicy()
        names = [reward.name for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"There are two rewards named {quoted(twice)}; each needs its own name.")
        for reward in rewards:
            check_signature(reward.name, reward.function)
        self.rewards = list(rewards)
        self.on_error = policy.on_error
        self._callers = {
            r.name: Caller("reward", r.name, r.function, read_number, policy, "completion") for r in rewards
        }
        self._checked: frozenset[str] | None = None

    def start(self) -> None:
        """Start the processes of the user's functions."""
        for caller in self._callers.values():
            caller.start()

    def close(self) -> None:
        """End them."""
        for caller in self._callers.values():
            caller.close()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], facts: RunFacts | None = None, /, **columns: Any
    ) -> Scores:
        """Score `completions`, plain texts, one for each of `prompts`; `columns` are the data's other columns.

        Rewards of the user's own are told `facts` too. Coroutines are waited for at once, each in a thread of its own.

        Raises `RewardError` when a sample fails and `on_error` is "stop", and `UserError` when a reward needs a column
        that is not there.
        """
        size = len(completions)
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != size:
                raise ValueError(f"'{name}' has {len(values)} values for {size} completions")
        if self._checked != frozenset(columns):
            for reward in self.rewards:
                check_signature(reward.name, reward.function, list(columns))
            self._checked = frozenset(columns)
        given = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        failures: list[RewardFailure] = []
        scored: dict[str, list[float | None]] = {}
        logged = Logged()
        together = [reward for reward in self.rewards if self._callers[reward.name].waits]
        with ThreadPoolExecutor(max(len(together), 1)) as threads:
            begun = {
                reward.name: threads.submit(self._run, reward, list(prompts), given, columns, facts)
                for reward in (together if len(together) > 1 else ())
            }
            for reward in self.rewards:
                if reward.name in begun:
                    found = begun[reward.name].result()
                else:
                    found = self._run(reward, list(prompts), given, columns, facts)
                scored[reward.name], failed, said = found
                failures += failed
                logged.merge(said, reward.name)
        broken = {failure.row for failure in failures}
        for row in range(size):
            if row not in broken and all(part[row] is None for part in scored.values()):
                failures.append(RewardFailure(row, "", "no reward applied"))
                self._stop_at(failures[-1], prompts)
        failures.sort(key=lambda failure: failure.row)
        total = [
            math.fsum(r.weight * part for r in self.rewards if (part := scored[r.name][row]) is not None)
            for row in range(size)
        ]
        for failure in failures:
            total[failure.row] = math.nan if self.on_error == "drop" else 0.0
        parts = {name: [math.nan if v is None else v for v in part] for name, part in scored.items()}
        return Scores(total, parts, size, failures, logged)

    def _run(
        self,
        reward: Reward,
        prompts: list[Any],
        completions: list[Any],
        columns: Mapping[str, Sequence[Any]],
        facts: RunFacts | None,
    ) -> tuple[list[float | None], list[RewardFailure], Logged]:
        """Return the reward of each sample, None where it failed, the failures, and what it logged."""
        caller = self._callers[reward.name]
        logged = Logged()
        facts = facts or RunFacts()

        def call(rows: slice) -> list[Answer]:
            some = {name: list(values[rows]) for name, values in columns.items()}
            # Fresh lists: a function that changes its arguments must not change what the next one sees.
            given: dict[str, Any] = {"prompts": list(prompts[rows]), "completions": list(completions[rows]), **some}
            size = len(given["prompts"])
            if caller.logs:
                ids = facts.completion_ids
                given["completion_ids"] = [None] * size if ids is None else [list(row) for row in ids[rows]]
                given["trainer_state"] = facts.state
            answers = caller(size, given)
            logged.take(caller.logged, rows, len(completions))
            return answers

        def stop(row: int, reason: str) -> None:
            self._stop_at(RewardFailure(row, reward.name, reason), prompts)

        answers = row_by_row(caller, call, len(completions), stop)
        failures = [RewardFailure(row, reward.name, said) for row, said in enumerate(answers) if isinstance(said, str)]
        return [None if isinstance(answer, str) else answer for answer in answers], failures, logged

    def _stop_at(self, failure: RewardFailure, prompts: Sequence[Any]) -> None:
        if self.on_error == "stop":
            who = f"The reward '{failure.reward}'" if failure.reward else "Scoring"
            prompt = prompts[failure.row]
            text = shortened(prompt if isinstance(prompt, str) else content(prompt[-1:]))
            place = f"row {failure.row + 1} of {len(prompts)} in the batch"
            raise RewardError(f"{who} failed on {place} (prompt {text}): {failure.reason}.")
