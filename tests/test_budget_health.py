"""Budgets that are read, refused and spent; warnings that come when they should and only then."""

from __future__ import annotations

from typing import Any

import pytest

from polyrl.errors import UserError
from polyrl.runtime.budget import Budget, Spent
from polyrl.runtime.health import CHECKS, Health
from polyrl.runtime.seeding import generator, stream_seed

# ---------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("samples=4000", {"samples": 4000}),
        ("samples=20k,seconds=90s", {"samples": 20_000, "seconds": 90.0}),
        (" tokens = 1.5M , seconds=3m ", {"tokens": 1_500_000, "seconds": 180.0}),
        ("seconds=1.5h", {"seconds": 5400.0}),
        ("seconds=0.5", {"seconds": 0.5}),
        ("reward-calls=3m", {"reward_calls": 3_000_000}),
        ("steps=2g,updates=10,iterations=1e3", {"steps": 2_000_000_000, "updates": 10, "iterations": 1000}),
    ],
)
def test_budgets_are_read(text: str, limits: dict[str, float]) -> None:
    budget = Budget.parse(text)
    assert budget.limits() == limits
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "budget is empty"),
        ("samples=0", "samples=0 is impossible"),
        ("samples=0.5", "samples=0 is impossible"),
        ("samples=-5", "samples=-5 is impossible"),
        ("seconds=-1m", "seconds=-60 is impossible"),
        ("seconds=nan", "seconds=nan is impossible"),
        ("samples=inf", "samples=inf is impossible"),
        ("samples=1e999", "is impossible"),
        ("samples", "'samples' has no number"),
        ("samples=", "has no number"),
        ("samples=k", "has no number"),
        ("samples=many", "'samples=many' has no number"),
        ("samples=90s", "has no number"),
        ("sample=4", "Unknown budget unit 'sample' .* Did you mean 'samples'"),
        ("=4", "Unknown budget unit ''"),
    ],
)
def test_impossible_budgets_are_told(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Budget.parse(text)


def test_progress_is_that_of_the_limit_reached_first() -> None:
    budget = Budget(samples=100, seconds=10.0)
    assert budget.progress(Spent()) == 0
    assert budget.progress(Spent(samples=50, seconds=2)) == 0.5
    assert budget.progress(Spent(samples=10, seconds=9)) == 0.9
    assert budget.progress(Spent(samples=250)) == 1.0
    assert budget.progress(Spent(samples=1, tokens=10**9)) == 0.01  # no limit on tokens


def test_streams_differ_by_every_name_and_repeat() -> None:
    seeds = {stream_seed(0, "collect", 1), stream_seed(0, "collect", 2), stream_seed(1, "collect", 1)}
    seeds |= {stream_seed(0, "minibatches", 0, 1), stream_seed(0, "minibatches", 1, 0), stream_seed(0, "collect", 11)}
    assert len(seeds) == 6 and all(0 <= s < 2**63 for s in seeds)
    assert generator(3, "x").initial_seed() == generator(3, "x").initial_seed() == stream_seed(3, "x")


# ------------------------------------------------------------------------------------------------------ health

HEALTHY: dict[str, float] = {
    "kl": 2.0,
    "entropy": 1.0,
    "perplexity": 3.0,
    "completions/mean_length": 20.0,
    "completions/clipped_ratio": 0.1,
    "frac_reward_zero_std": 0.4,
    "logprob_gap": 1e-5,
    "approx_kl": 0.01,
}


def history(changes: dict[str, Any], iterations: int = 30, since: int = 10) -> list[tuple[int, str]]:
    """Warnings of a healthy run that takes on `changes` in iteration `since`."""
    health, said = Health(), []
    for i in range(1, iterations + 1):
        record = {"iteration": i, "method": "grpo", **HEALTHY, **(changes if i >= since else {})}
        said += [(i, text) for text in health.observe(record)]
    return said


def test_a_healthy_run_hears_nothing() -> None:
    assert history({}) == []
    drift = {"kl": 10.0, "entropy": 0.3, "perplexity": 2.0, "completions/mean_length": 28.0, "approx_kl": 0.05}
    assert history(drift) == []


@pytest.mark.parametrize(
    ("check", "changes", "words"),
    [
        ("kl", {"kl": 40.0}, "KL to the start is"),
        ("entropy", {"entropy": 0.01}, "Entropy fell to"),
        ("perplexity", {"perplexity": 30.0}, "Perplexity of sampled responses rose from 3.00"),
        ("length", {"completions/mean_length": 60.0}, "Responses grew from 20"),
        ("length", {"completions/mean_length": 2.0}, "Responses shrank from 20"),
        ("length-limit", {"completions/clipped_ratio": 0.9}, "of responses hit the length limit"),
        ("equal-groups", {"frac_reward_zero_std": 1.0}, "groups have equal rewards"),
        ("logprob-gap", {"logprob_gap": 0.5}, "Sampler and trainer disagree"),
        ("step-size", {"approx_kl": 0.5}, "moved the policy by"),
    ],
)
def test_each_warning_comes_once_within_the_pause(check: str, changes: dict[str, float], words: str) -> None:
    assert check in CHECKS
    said = history(changes, iterations=60)
    assert all(words in text for _, text in said)
    when = [i for i, _ in said]
    assert 10 <= when[0] <= 15
    assert when == list(range(when[0], 61, 20))


def test_one_bad_iteration_among_good_ones_is_no_warning() -> None:
    health = Health()
    spikes = [{**HEALTHY, "iteration": i, "kl": 60.0 if i == 12 else 2.0} for i in range(1, 30)]
    assert [text for record in spikes for text in health.observe(record)] == []


def test_nothing_is_said_before_the_window_is_full_or_without_numbers() -> None:
    health = Health()
    assert [health.observe({"iteration": i, "kl": 99.0}) for i in range(1, 5)] == [[]] * 4
    assert len(health.observe({"iteration": 5, "kl": 99.0})) == 1
    bare = Health()
    assert all(bare.observe({"iteration": i, "note": "x", "kl": None}) == [] for i in range(1, 20))
    odd = Health()
    assert all(odd.observe({"iteration": i, **dict.fromkeys(HEALTHY, float("nan"))}) == [] for i in range(1, 20))


def test_a_quantity_measured_now_and_then_is_judged_where_it_was_measured() -> None:
    health, said = Health(), []
    for i in range(1, 31):
        said += health.observe({"iteration": i, **({"kl": 40.0} if i % 5 == 1 else {})})
    assert len(said) == 2 and "40.0 nats" in said[0]


def test_warnings_do_not_hush_each_other() -> None:
    said = [text for _, text in history({"kl": 40.0, "approx_kl": 0.5}, iterations=16)]
    assert sorted(text[:4] for text in said) == ["KL t", "One "]


def test_names_given_as_advice_exist() -> None:
    """A warning that advises an option nobody has would be worse than none."""
    import re

    from polyrl import catalogue

    parts = set(catalogue.parts())
    knobs = {k.rpartition(".")[2] for m in catalogue.methods() for k in catalogue.build(m).hyperparameters()}
    runs = {"difficulty", "precision", "max_tokens"}
    sick = {"kl": 40.0, "entropy": 0.01, "perplexity": 30.0, "completions/clipped_ratio": 1.0, "logprob_gap": 1.0}
    sick |= {"frac_reward_zero_std": 1.0, "approx_kl": 1.0}
    said = [t for length in (60.0, 2.0) for _, t in history({**sick, "completions/mean_length": length})]
    for text in said:
        for option in re.findall(r"--([a-z-]+)", text):
            assert option.replace("-", "_") in knobs | runs, text
        for part in re.findall(r"\+([a-z][a-z-]+)", text):
            assert part in parts, text
