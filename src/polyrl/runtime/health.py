"""Health: watches what a reward curve does not show, and says what to try (PPO-max, arXiv:2307.04964, section 5).

The signature of collapse is: reward up, KL up faster, length up, perplexity or entropy down.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[dict[str, float], dict[str, float]], str | None]


def _kl(now: dict[str, float], start: dict[str, float]) -> str | None:
    if now.get("kl", 0.0) > 15.0:
        return (
            f"KL to the start is {now['kl']:.1f} nats a sequence; try a larger --kl-coef (or +reference-kl), "
            "a lower --learning-rate, or stop at the best evaluation."
        )
    return None


def _entropy(now: dict[str, float], start: dict[str, float]) -> str | None:
    first, value = start.get("entropy"), now.get("entropy")
    if first and value is not None and value < 0.15 * first:
        return (
            f"Entropy fell to {100 * value / first:.0f}% of its start ({value:.3f} nats a token); the policy stops "
            "exploring: try +entropy-bonus, --clip-range-high 0.28, or a lower --learning-rate."
        )
    return None


def _perplexity(now: dict[str, float], start: dict[str, float]) -> str | None:
    first, value = start.get("perplexity"), now.get("perplexity")
    if first and value and value > 3 * first and value > 1.5:
        return (
            f"Perplexity of sampled responses rose from {first:.2f} to {value:.2f}: the policy is coming apart; try a "
            "lower --learning-rate, fewer --epochs, or a smaller --max-grad-norm."
        )
    return None


def _length(now: dict[str, float], start: dict[str, float]) -> str | None:
    first, value = start.get("completions/mean_length"), now.get("completions/mean_length")
    if first and value and value > 1.5 * first:
        return (
            f"Responses grew from {first:.0f} to {value:.0f} tokens; if the reward does not ask for it, try "
            "+overlong-penalty or --aggregation constant."
        )
    if first and value and value < 0.5 * first:
        return (
            f"Responses shrank from {first:.0f} to {value:.0f} tokens; look at samples.jsonl whether the reward can be "
            "had without the work."
        )
    return None


def _limit(now: dict[str, float], start: dict[str, float]) -> str | None:
    share = now.get("completions/clipped_ratio", 0.0)
    if share > 0.5:
        return f"{100 * share:.0f}% of responses hit the length limit; raise --max-tokens or use +drop-unended."
    return None


def _groups(now: dict[str, float], start: dict[str, float]) -> str | None:
    share = now.get("frac_reward_zero_std", 0.0)
    if share > 0.9:
        return (
            f"{100 * share:.0f}% of groups have equal rewards and teach nothing; choose another --difficulty, more "
            "--completions-per-prompt, or a reward with partial credit."
        )
    return None


def _gap(now: dict[str, float], start: dict[str, float]) -> str | None:
    if now.get("logprob_gap", 0.0) > 0.05:
        return (
            f"Sampler and trainer disagree on a log-probability by {now['logprob_gap']:.3f} nats before the first "
            "update; try --precision float32."
        )
    return None


def _step_size(now: dict[str, float], start: dict[str, float]) -> str | None:
    if now.get("approx_kl", 0.0) > 0.1:
        return (
            f"One iteration moved the policy by {now['approx_kl']:.2f} nats a token; try a lower --learning-rate, "
            "fewer --epochs, or --target-kl 0.05."
        )
    return None


CHECKS: dict[str, Check] = {
    "kl": _kl,
    "entropy": _entropy,
    "perplexity": _perplexity,
    "length": _length,
    "length-limit": _limit,
    "equal-groups": _groups,
    "logprob-gap": _gap,
    "step-size": _step_size,
}


@dataclass
class Health:
    """Judges the mean of the last few iterations against the mean of the first few."""

    window: int = 5
    pause: int = 20
    """Iterations before the same warning may come again."""
    first: list[dict[str, float]] = field(default_factory=list)
    recent: list[dict[str, float]] = field(default_factory=list)
    said: dict[str, int] = field(default_factory=dict)

    def observe(self, record: dict[str, Any]) -> list[str]:
        """Take one iteration's record; return the warnings that are new."""
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float)}
        if len(self.first) < self.window:
            self.first.append(numbers)
        self.recent = [*self.recent[-(self.window - 1) :], numbers]
        if len(self.recent) < self.window:
            return []
        now, start, iteration = _means(self.recent), _means(self.first), int(record["iteration"])
        warnings = []
        for name, check in CHECKS.items():
            text = check(now, start)
            if text and iteration - self.said.get(name, -self.pause) >= self.pause:
                self.said[name] = iteration
                warnings.append(text)
        return warnings


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    keys = {k for r in records for k in r}
    return {k: statistics.fmean(r[k] for r in records if k in r) for k in keys}
