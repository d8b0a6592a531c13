"""Health: watches what a reward curve does not show, and says what to try (PPO-max, arXiv:2307.04964, section 5).

The signature of collapse of a language model is: reward up, KL up faster, length up, perplexity or entropy down. In
the other domains a falling entropy and a longer episode are what is wanted, so each check states where it holds. No run
is blamed for not improving: whether it does is what the comparison is there to tell.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

RUN_OPTIONS = frozenset({"difficulty", "precision", "max_tokens"})
"""Options that runs have beside the hyperparameters of their recipe."""


@dataclass(frozen=True)
class Finding:
    """What is wrong, and what may help; advice that names an option is for runs that have it."""

    said: str
    advice: tuple[str, ...] = ()
    lead: str = "try"

    def text(self, options: Collection[str] | None) -> str:
        """One sentence with the advice that a run with these options can follow; None knows no limit."""
        known = [a for a in self.advice if options is None or _wanted(a) <= {*options, *RUN_OPTIONS}]
        if not known:
            return f"{self.said}."
        *others, last = known
        return f"{self.said}; {self.lead} {', '.join(others)}{' or ' if others else ''}{last}."


def _wanted(advice: str) -> set[str]:
    return {option.replace("-", "_") for option in re.findall(r"--([a-z][a-z-]*)", advice)}


class Numbers:
    """Means of some iterations' records, each computed where a check asks for it; records without it are left out."""

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        self.records = records

    @overload
    def get(self, key: str) -> float | None: ...
    @overload
    def get(self, key: str, default: float) -> float: ...
    def get(self, key: str, default: float | None = None) -> float | None:
        """The mean, or `default` where no record has it."""
        values = [float(r[key]) for r in self.records if isinstance(r.get(key), int | float)]
        return statistics.fmean(values) if values else default


@dataclass(frozen=True)
class Check:
    """One thing to watch.

    Attributes:
        judge: the finding of present and first means, the domain's own words given, or None.
        domains: where it means something.
        patience: how many iterations in a row it must hold before it is said.
    """

    judge: Callable[[Numbers, Numbers, str], Finding | None]
    domains: frozenset[str] = frozenset({"language"})
    patience: int = 1


def _kl(now: Numbers, start: Numbers, step: str) -> Finding | None:
    kl = now.get("kl", 0.0)
    if kl > 15.0:
        advice = ("a larger --kl-coef", "+reference-kl", "a lower --learning-rate", "to stop at the best evaluation")
        return Finding(f"KL to the start is {kl:.1f} nats a sequence", advice)
    return None


def _entropy(now: Numbers, start: Numbers, step: str) -> Finding | None:
    first, value = start.get("entropy"), now.get("entropy")
    if first and value is not None and value < 0.15 * first:
        said = f"Entropy fell to {100 * value / first:.0f}% of its start ({value:.3f} nats a {step})"
        advice = ("+entropy-bonus", "--clip-range-high 0.28", "a lower --learning-rate")
        return Finding(f"{said}, so the policy stops exploring", advice)
    return None


def _perplexity(now: Numbers, start: Numbers, step: str) -> Finding | None:
    first, value = start.get("perplexity"), now.get("perplexity")
    if first and value and value > 3 * first and value > 1.5:
        said = f"Perplexity of sampled responses rose from {first:.2f} to {value:.2f}: the policy is coming apart"
        return Finding(said, ("a lower --learning-rate", "fewer --epochs", "a smaller --max-grad-norm"))
    return None


def _length(now: Numbers, start: Numbers, step: str) -> Finding | None:
    first, value = start.get("completions/mean_length"), now.get("completions/mean_length")
    if first and value and value > 1.5 * first:
        said = f"Responses grew from {first:.0f} to {value:.0f} tokens"
        return Finding(said, ("+overlong-penalty", "--aggregation constant"), "if the reward does not ask for it, try")
    if first and value and value < 0.5 * first:
        said = (
            f"Responses shrank from {first:.0f} to {value:.0f} tokens; look at samples.jsonl whether the reward can be"
        )
        return Finding(f"{said} had without the work")
    return None


def _limit(now: Numbers, start: Numbers, step: str) -> Finding | None:
    share = now.get("completions/clipped_ratio", 0.0)
    if share > 0.5:
        return Finding(
            f"{100 * share:.0f}% of responses hit the length limit", ("a larger --max-tokens", "+drop-unended")
        )
    return None


def _groups(now: Numbers, start: Numbers, step: str) -> Finding | None:
    share = now.get("frac_reward_zero_std", 0.0)
    if share > 0.9:
        advice = ("another --difficulty", "more --completions-per-prompt", "a reward with partial credit")
        return Finding(f"{100 * share:.0f}% of groups have equal rewards and teach nothing", advice)
    return None


def _gap(now: Numbers, start: Numbers, step: str) -> Finding | None:
    gap = now.get("logprob_gap", 0.0)
    if gap > 0.05:
        said = f"Sampler and trainer disagree on a log-probability by {gap:.3f} nats before the first update"
        if step == "token":
            return Finding(said, ("--precision float32",))
        return Finding(f"{said}: something that the policy reads changed between acting and learning")
    return None


def _step_size(now: Numbers, start: Numbers, step: str) -> Finding | None:
    moved = now.get("approx_kl", 0.0)
    if moved > 0.1:
        said = f"One iteration moved the policy by {moved:.2f} nats a {step}"
        return Finding(said, ("a lower --learning-rate", "fewer --epochs", "--target-kl 0.05"))
    return None


def _critic(now: Numbers, start: Numbers, step: str) -> Finding | None:
    value = now.get("value/explained_variance")
    # where every return is nearly the same, there is no variance to explain and nothing wrong
    small = now.get("value/error", 1.0) < 0.1 * abs(now.get("value/mean", 0.0))
    if value is not None and value < 0 and not small:
        said = f"The critic has long told returns worse than their mean would (explained variance {value:.2f})"
        return Finding(said, ("a higher --critic-learning-rate", "more --epochs", "rewards on a smaller scale"))
    return None


CHECKS: dict[str, Check] = {
    "kl": Check(_kl),
    "entropy": Check(_entropy),
    "perplexity": Check(_perplexity),
    "length": Check(_length),
    "length-limit": Check(_limit),
    "equal-groups": Check(_groups),
    "logprob-gap": Check(_gap, frozenset({"language", "control"})),
    "step-size": Check(_step_size, frozenset({"language", "control", "operations"})),
    "critic": Check(_critic, frozenset({"control"}), patience=20),
}


@dataclass
class Health:
    """Judges the mean of the last few iterations against the mean of the first few."""

    domain: str = "language"
    """The kind of run: a check that means nothing there is left out."""
    options: frozenset[str] | None = None
    """Names of the recipe's hyperparameters, so that no advice names one that the run has not; None names all."""
    window: int = 5
    pause: int = 20
    """Iterations before the same warning may come again."""
    first: list[dict[str, Any]] = field(default_factory=list)
    recent: list[dict[str, Any]] = field(default_factory=list)
    said: dict[str, int] = field(default_factory=dict)
    lasted: dict[str, int] = field(default_factory=dict)
    """Iterations in a row that a check has held."""

    def observe(self, record: dict[str, Any]) -> list[str]:
        """Take one iteration's record; return the warnings that are new."""
        if len(self.first) < self.window:
            self.first.append(record)
        self.recent = [*self.recent[-(self.window - 1) :], record]
        if len(self.recent) < self.window:
            return []
        now, start, iteration = Numbers(self.recent), Numbers(self.first), int(record["iteration"])
        step = "token" if self.domain == "language" else "step"
        warnings = []
        for name, check in CHECKS.items():
            if self.domain not in check.domains:
                continue
            found = check.judge(now, start, step)
            self.lasted[name] = self.lasted.get(name, 0) + 1 if found else 0
            waited = iteration - self.said.get(name, -self.pause) >= self.pause
            if found and waited and self.lasted[name] >= check.patience:
                self.said[name] = iteration
                warnings.append(found.text(self.options))
        return warnings
