"""Budgets that are read, refused and spent; warnings that come when they should; progress of any metric."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from polyrl.errors import UserError
from polyrl.runtime.budget import Budget, Spent
from polyrl.runtime.health import CHECKS, RUN_OPTIONS, Health
from polyrl.runtime.metric import Metric
from polyrl.runtime.progress import Progress, sparkline
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


def history(changes: dict[str, Any], iterations: int = 30, since: int = 10, **kind: Any) -> list[tuple[int, str]]:
    """Warnings of a healthy run that takes on `changes` in iteration `since`; `kind` goes to `Health`."""
    health, said = Health(**kind), []
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
    hyperparameters = {k.rpartition(".")[2] for m in catalogue.methods() for k in catalogue.build(m).hyperparameters()}
    runs = set(RUN_OPTIONS)
    sick = {"kl": 40.0, "entropy": 0.01, "perplexity": 30.0, "completions/clipped_ratio": 1.0, "logprob_gap": 1.0}
    sick |= {"frac_reward_zero_std": 1.0, "approx_kl": 1.0}
    said = [t for length in (60.0, 2.0) for _, t in history({**sick, "completions/mean_length": length})]
    for text in said:
        for option in re.findall(r"--([a-z-]+)", text):
            assert option.replace("-", "_") in hyperparameters | runs, text
        for part in re.findall(r"\+([a-z][a-z-]+)", text):
            assert part in parts, text


# what is trouble for a language model and none elsewhere: the signature of a solved CartPole among it
SOLVED = {
    "entropy": 0.01,
    "kl": 40.0,
    "perplexity": 30.0,
    "completions/mean_length": 200.0,
    "frac_reward_zero_std": 1.0,
}


@pytest.mark.parametrize("domain", ["control", "operations", "theory"])
def test_checks_of_language_do_not_misfire_elsewhere(domain: str) -> None:
    assert history(SOLVED, domain=domain) == []
    assert len({text[:4] for _, text in history(SOLVED)}) == 5
    standing = {"episode/return": 20.0, "reward": 0.0, "eval/return": 20.0}
    assert history(standing, iterations=100, domain=domain) == []  # a run that does not improve is no unhealthy one


def test_control_speaks_of_steps_and_names_no_option_of_language() -> None:
    said = [text for _, text in history({"approx_kl": 0.5, "logprob_gap": 0.5}, iterations=16, domain="control")]
    assert any("nats a step;" in text for text in said)
    assert not any("token" in text or "--precision" in text for text in said) and len(said) == 2


def test_a_critic_of_equal_returns_has_nothing_to_explain() -> None:
    """On a solved task all returns are the same: the explained variance is noise, and the critic's error is small."""
    solved = {"value/explained_variance": -0.3, "value/mean": 10.0, "value/error": 0.2}
    assert not history(solved, iterations=60, since=1, domain="control")
    assert history({**solved, "value/error": 2.0}, iterations=60, since=1, domain="control")


def test_a_critic_that_knows_nothing_is_told_of_after_a_while() -> None:
    bad = {"value/explained_variance": -0.3}
    when = [
        i for i, text in history(bad, iterations=60, since=1, domain="control") if "explained variance -0.30" in text
    ]
    assert when == [24, 44]  # the window is full at 5, and it must have lasted for 20
    start = [i for i, _ in history({"value/explained_variance": 0.5}, iterations=60, since=15, domain="control")]
    assert start == []
    health, said = Health(domain="control"), []
    for i in range(1, 100):  # now and then is not long
        said += health.observe({"iteration": i, "value/explained_variance": 0.9 if i % 15 == 0 else -0.05})
    assert said == []
    assert history(bad, iterations=60, since=1) == []


def test_advice_is_left_out_where_the_run_has_no_such_option() -> None:
    sick = {"approx_kl": 0.5}
    assert history(sick, iterations=15, options=frozenset())[0][1].endswith("nats a token.")
    only = history(sick, iterations=15, options=frozenset({"learning_rate"}))[0][1]
    assert only.endswith("; try a lower --learning-rate.")
    whole = history(sick, iterations=15)[0][1]
    assert whole.endswith("try a lower --learning-rate, fewer --epochs or --target-kl 0.05.")


# ---------------------------------------------------------------------------------------------------- progress


def test_sparklines_take_the_range_of_what_is_not_a_share() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([20.0, 260.0, 500.0]) == "▁▅█" and sparkline([-1200.0, -150.0]) == "▁█"
    assert sparkline([31.0, 6.2, 6.1]) == "█▁▁"  # costs fall
    log = Metric("eval/gap", "gap", scale="log")
    assert sparkline([1e-1, 1e-3, 1e-5, 0.0], log) == "█▇▆▁"
    assert sparkline([]) == "" and sparkline([7.0, 7.0]) == "▄▄" and sparkline([float("nan"), 0.0]) == "▁"


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        (Metric(), 0.5, "accuracy 0.500"),
        (Metric("eval/return", "return"), 498.34, "return 498.3"),
        (Metric("eval/cost", "cost", higher_is_better=False), 6.10234, "cost 6.102"),
        (Metric("eval/gap", "gap", scale="log"), 1.62e-8, "gap 1.6e-8"),
    ],
)
def test_progress_speaks_of_the_task_s_metric(metric: Metric, value: float, shown: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = Progress("ppo", "steps=100", metric, console=console)
    progress.update({"iteration": 0, metric.key: value, "eval/other": 0.123}, 0.0)
    progress.update({"iteration": 1, "entropy": 0.69, "steps_per_second": 9000.0}, 0.5)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"  {shown}  " in said and "0.123" not in said
    assert ("accuracy" in said) == (metric.label == "accuracy")


def test_a_panel_shows_where_the_metric_stands_to_its_target() -> None:
    metric = Metric("eval/return", "return", lines={"solved": 475.0}, target="solved")
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Progress("ppo", "steps=100", metric, console=console) as progress:
        for i, value in enumerate((20.0, 300.0, 490.0)):
            progress.update({"iteration": i, metric.key: value, "episode/return": value, "loss": 1e-5}, i / 2)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "20.00 -> 490.0" in said and "(solved 475)" in said and "return in training" in said and "1.0e-5" in said
