"""The report without a browser: statistics by hand and against scipy, run folders, sentences, the page's text."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from polyrl.errors import UserError
from polyrl.report import json_lines, statistics
from polyrl.report.findings import cautions, pairs, verdict
from polyrl.report.json_lines import read_lines
from polyrl.report.page import embed_json, render_page, write_report
from polyrl.report.payload import MOST_CELLS, build_payload
from polyrl.report.runs import Comparison, load_comparison, load_folders, load_run
from polyrl.report.settings import ABSENT, compare_settings
from polyrl.report.task_charts import last_decade_slope
from polyrl.runtime.chart import Chart
from polyrl.runtime.figures import format_factor, format_value
from polyrl.runtime.metric import Metric
from run_folders import DOMAINS, write_comparison, write_domain, write_run

# ---- statistics ------------------------------------------------------------------------------------------------------


def test_mean_interval_by_hand() -> None:
    # 1..5: mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445
    found = statistics.mean_interval([1, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert found.value == 3 and found.n == 5
    assert [found.low, found.high] == pytest.approx([3 - half, 3 + half], abs=1e-6)


def test_mean_interval_needs_three_seeds_and_finite_values() -> None:
    assert statistics.mean_interval([1.0, 2.0]).low is None
    assert statistics.mean_interval([1.0, 2.0, 3.0]).low is not None
    assert statistics.mean_interval([1.0, 2.0, 3.0, 4.0], least=5).low is None
    with pytest.raises(ValueError, match="finite"):
        statistics.mean_interval([1.0, math.nan, 2.0])
    with pytest.raises(ValueError, match="one value a seed"):
        statistics.mean_interval([])


def test_paired_difference_agrees_with_scipy_and_uses_the_pairing() -> None:
    x, y = [0.50, 0.61, 0.72, 0.80, 0.41], [0.45, 0.55, 0.70, 0.72, 0.37]
    found = statistics.paired_difference(x, y)
    known = stats.ttest_rel(x, y).confidence_interval(0.95)
    assert [found.low, found.high] == pytest.approx([known.low, known.high])
    assert found.excludes(0) and not statistics.paired_difference(x, y[::-1]).excludes(0)
    assert statistics.paired_p_value(x, y) == pytest.approx(stats.ttest_rel(x, y).pvalue)
    with pytest.raises(ValueError, match="same seeds"):
        statistics.paired_difference(x, y[:4])


def test_paired_p_value_of_differences_without_noise() -> None:
    assert statistics.paired_p_value([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0
    assert statistics.paired_p_value([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == 0.0
    assert statistics.paired_p_value([2.0, 3.0], [1.0, 2.0]) is None


def test_t_interval_covers_95_percent_at_three_and_five_seeds() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(1500, 5))
    for n in (3, 5):
        inside = [not statistics.mean_interval(row[:n]).excludes(1.0) for row in draws]
        assert 0.935 < np.mean(inside) < 0.965


def test_holm_by_hand() -> None:
    # sorted 0.01 * 3, 0.02 * 2, 0.04 * 1; an adjusted value never falls below the one before it
    assert statistics.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.03, 0.025]) == pytest.approx([0.05, 0.05])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_probability_of_improvement_is_mann_whitney_with_ties_half() -> None:
    x, y = [1.0, 2.0, 3.0], [2.0, 2.0, 0.0]
    # 1>0; 2=2, 2=2, 2>0; 3>2, 3>2, 3>0: (1 + 0.5 + 0.5 + 1 + 3) / 9
    found = statistics.probability_of_improvement(x, y)
    assert found.value == pytest.approx(6 / 9)
    assert found.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / 9)
    assert statistics.probability_of_improvement(y, x).value == pytest.approx(1 - 6 / 9)


def test_interval_of_probability_of_improvement() -> None:
    sure = statistics.probability_of_improvement([6, 7, 8, 9, 10], [1, 2, 3, 4, 5])
    never = statistics.probability_of_improvement([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])
    assert sure.value == 1 and sure.high == 1 and sure.low is not None and 0.5 < sure.low < 0.8
    assert never.low == 0 and never.high == pytest.approx(1 - sure.low)
    assert statistics.probability_of_improvement([1, 2], [0, 0]).low is None
    # The bounds solve Newcombe's equation: the estimate lies z standard errors of the bound away from the bound.
    even = statistics.probability_of_improvement([1, 4, 5, 8, 9], [2, 3, 6, 7, 10])
    assert even.low is not None and even.high is not None
    for bound in (even.low, even.high):
        inner = 1 + 4 * (1 - bound) / (2 - bound) + 4 * bound / (1 + bound)
        assert abs(even.value - bound) == pytest.approx(
            1.959964 * math.sqrt(bound * (1 - bound) * inner / 25), rel=1e-5
        )


def test_interval_of_probability_of_improvement_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    drawn = [statistics.probability_of_improvement(rng.normal(1, 1, 5), rng.normal(0, 1, 5)) for _ in range(400)]
    assert np.mean([not estimate.excludes(truth) for estimate in drawn]) > 0.92


def test_interquartile_mean() -> None:
    assert statistics.interquartile_mean([[-90.0], [1.0], [3.0], [90.0]]) == 2.0
    scores = np.random.default_rng(2).normal(size=(5, 7))
    assert statistics.interquartile_mean(scores) == pytest.approx(np.sort(scores.ravel())[8:27].mean())


def test_stratified_bootstrap_keeps_to_its_task_and_its_seed() -> None:
    # Seeds of one task are all equal: drawing inside a task changes nothing, drawing across tasks would.
    constant = np.tile([0.0, 10.0, 20.0], (5, 1))
    assert statistics.suite_interquartile_mean(constant) == statistics.Estimate(10.0, 10.0, 10.0, 5)
    scores = np.random.default_rng(3).normal(size=(10, 6))
    first, again = statistics.suite_interquartile_mean(scores), statistics.suite_interquartile_mean(scores)
    assert first == again != statistics.suite_interquartile_mean(scores, seed=1)
    assert first.low is not None and first.high is not None and first.low < first.value < first.high


def test_stratified_bootstrap_draws_the_seeds_of_each_task_by_themselves() -> None:
    # One task is the other's mirror image: drawn with the same seeds, their mean would be 0 in every resample.
    x = np.random.default_rng(4).normal(size=20)
    found = statistics.stratified_bootstrap([np.stack([x, -x], 1)], lambda drawn: drawn.mean((1, 2)))
    half = 1.96 * x.std() / math.sqrt(2 * len(x))  # of the mean of two independent means
    assert found == pytest.approx((-half, half), rel=0.15)


def test_suite_probability_of_improvement_is_the_mean_over_tasks() -> None:
    x = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
    y = np.array([[0.0, 9.0], [0.5, 9.0]])
    found = statistics.suite_probability_of_improvement(x, y)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same tasks"):
        statistics.suite_probability_of_improvement(x, y[:, :1])


# ---- run folders -----------------------------------------------------------------------------------------------------


def test_truncated_last_line_is_dropped_and_a_broken_middle_line_is_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", iterations=10, status="running", stop=7)
    log = run / "metrics.jsonl"
    log.write_text(log.read_text().rstrip("\n")[:-40])
    read = load_run(run)
    assert [row["iteration"] for row in read.metrics] == [0, 1, 2, 3, 4, 5, 6]
    assert read.skipped_lines == 0 and read.status == "unfinished" and read.final("eval/accuracy") is None
    lines = log.read_text().split("\n")
    log.write_text("\n".join([lines[0], "{broken", *lines[2:]]))
    assert load_run(run).skipped_lines == 1
    assert any("1 unreadable line" in caution for caution in cautions(load_comparison(run)))


def test_killed_in_the_middle_of_a_character(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", iterations=4)
    with (run / "samples.jsonl").open("ab") as file:
        file.write('{"iteration": 4, "completion": "é'.encode()[:-1])
    (run / "summary.json").write_text('{"status": "fin')
    read = load_run(run)
    assert len(read.samples) == 12 and read.status == "unfinished"


def test_resumed_run_replaces_what_it_did_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", iterations=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "reward": 7}\n')
    assert [row["iteration"] for row in load_run(run).metrics] == [0, 1, 2, 3]
    assert load_run(run).metrics[-1]["reward"] == 7


def test_numbers_that_are_none_are_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", iterations=2)
    (run / "metrics.jsonl").write_text(
        '{"iteration": 0, "kl": NaN, "reward": Infinity, "entropy": null, "note": "x"}\n'
    )
    assert load_run(run).metrics == [{"iteration": 0.0}]
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "final": {"eval/accuracy": math.nan}}))
    comparison = load_comparison(run)
    assert comparison.finals == {"grpo": {}}
    assert any("logged no finite accuracy" in sentence for sentence in verdict(comparison))
    assert "NaN" not in render_page(comparison)


@pytest.mark.parametrize("make", ["missing", "empty", "file", "broken", "list"])
def test_what_is_no_run_is_one_sentence(tmp_path: Path, make: str) -> None:
    place = tmp_path / "thing"
    if make == "file":
        place.write_text("x")
    elif make != "missing":
        place.mkdir()
    if make == "broken":
        (place / "config.yaml").write_text("a: [1")
    if make == "list":
        (place / "config.yaml").write_text("- 1")
    with pytest.raises(UserError, match="thing") as caught:
        load_comparison(place)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        write_report([place], tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()


def test_runs_of_a_method_file_are_found_by_what_was_typed_and_by_its_name(tmp_path: Path) -> None:
    for typed, label in (("there/mine.py", "there/mine.py"), ("there/mine.py", "mine")):
        folder = write_comparison(tmp_path / label, ["grpo", "mine"], seeds=2, iterations=5)
        for file in folder.glob("mine-seed*/config.yaml"):
            stated = yaml.safe_load(file.read_text(encoding="utf-8"))
            file.write_text(yaml.safe_dump({**stated, "method": "/there/mine.py", "label": label}), encoding="utf-8")
        asked = yaml.safe_load((folder / "compare.yaml").read_text(encoding="utf-8"))
        (folder / "compare.yaml").write_text(yaml.safe_dump({**asked, "methods": [typed, "grpo"]}), encoding="utf-8")
        comparison = load_comparison(folder)
        assert "No run folder" not in " ".join(cautions(comparison))
        assert comparison.methods == [label, "grpo"]


def test_one_broken_run_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", ["grpo", "ppo"], seeds=2, iterations=5)
    (folder / "ppo-seed1" / "config.yaml").write_text("{")
    comparison = load_comparison(folder)
    assert len(comparison.runs) == 3
    said = " ".join(cautions(comparison))
    assert "ppo-seed1" in said and "No run folder for ppo seed 1" in said
    (folder / "ppo-seed1" / "config.yaml").unlink()
    (folder / "ppo-seed1" / "summary.json").write_text('{"status": "failed", "error": "no such model"}')
    assert "ppo-seed1 failed before it began: no such model" in " ".join(cautions(load_comparison(folder)))


def test_settings_split_into_equal_and_differing(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", ["grpo", "remax"], seeds=2, iterations=5)
    config = yaml.safe_load((folder / "grpo-seed1" / "config.yaml").read_text())
    (folder / "grpo-seed1" / "config.yaml").write_text(yaml.safe_dump({**config, "threads": 2}))
    settings = compare_settings(load_comparison(folder).runs)
    assert settings.equal["optimize.lr"] == 0.0003 and settings.equal["budget.samples"] == 5 * 64
    assert settings.differing["clipped-surrogate.clip_range"] == {"grpo": 0.2, "remax": ABSENT}
    assert next(iter(settings.differing)) == "threads"
    assert settings.differing["threads"] == {"grpo": "1 / 2", "remax": 1}
    assert "seed" not in settings.equal and "command" not in settings.differing


def test_two_single_runs_of_one_label_are_told_apart(tmp_path: Path) -> None:
    first = write_run(tmp_path / "low-lr-seed0", iterations=5)
    second = write_run(tmp_path / "high-lr-seed0", iterations=5)
    assert load_folders([first, second]).methods == ["grpo (low-lr)", "grpo (high-lr)"]
    other = write_run(tmp_path / "b", "grpo", seed=1, iterations=5)
    assert load_folders([first, other]).methods == ["grpo"]
    with pytest.raises(UserError, match="No run folder"):
        load_folders([])


# ---- sentences -------------------------------------------------------------------------------------------------------


def _finals(folder: Path, values: dict[str, list[float]], stated: dict[str, Any] | None = None) -> Path:
    """Write a comparison whose final values are these, with a start of 0.2 everywhere."""
    key = (stated or {}).get("metric", "eval/accuracy")
    seeds = len(next(iter(values.values())))
    write_comparison(folder, list(values), seeds=seeds, iterations=4, every=4, stated=stated)
    for method, finals in values.items():
        for seed, final in enumerate(finals):
            path = folder / f"{method}-seed{seed}" / "summary.json"
            path.write_text(json.dumps({"status": "finished", "start": {key: 0.2}, "final": {key: final}}))
    return folder


def test_a_clear_winner_and_its_numbers(tmp_path: Path) -> None:
    values = {"ppo": [0.50, 0.52, 0.49, 0.51, 0.53], "remax": [0.60, 0.58, 0.59, 0.61, 0.60]}
    said = verdict(load_comparison(_finals(tmp_path / "c", values)))
    gap = statistics.paired_difference(values["remax"], values["ppo"])
    assert said[0] == f"remax beats ppo: accuracy +0.086 [{gap.low:.3f}, {gap.high:.3f}], 5 paired seeds."
    assert said[1].startswith("ppo improved on its start: accuracy 0.200 -> 0.510, +0.310 [")


def test_no_difference_is_said_as_such(tmp_path: Path) -> None:
    values = {"grpo": [0.50, 0.52, 0.49, 0.51, 0.53], "rloo": [0.51, 0.50, 0.50, 0.53, 0.50]}
    said = verdict(load_comparison(_finals(tmp_path / "c", values)))[0]
    assert said.startswith("This budget shows no difference between grpo and rloo: +0.002 [-0.02")


def test_lower_is_better_turns_the_winner_round(tmp_path: Path) -> None:
    stated = {"metric": "eval/cost", "metric_label": "cost", "unit": "euro", "higher_is_better": False}
    values = {"ppo": [500.0, 520, 490, 510, 530], "hdpo": [400.0, 410, 405, 395, 400]}
    comparison = load_comparison(_finals(tmp_path / "c", values, stated))
    said = verdict(comparison)
    assert said[0].startswith("hdpo beats ppo: cost -108.0 [-12") and " euro, 5 paired seeds" in said[0]
    assert "got worse than its start" in said[1]
    assert pairs(comparison)[0].improvement.value == 1


def test_one_win_among_many_pairs_must_survive_the_correction(tmp_path: Path) -> None:
    a = [0.50, 0.52, 0.49, 0.51, 0.53]
    b = [v - d for v, d in zip(a, [0.010, 0.030, 0.012, 0.034, 0.002], strict=True)]
    assert statistics.paired_difference(a, b).excludes(0)
    two = verdict(load_comparison(_finals(tmp_path / "two", {"a": a, "b": b})))
    assert two[0].startswith("a beats b")
    many = {"a": a, "b": b, "c": [0.50, 0.50, 0.51, 0.50, 0.50], "d": [0.51, 0.49, 0.50, 0.52, 0.50]}
    said = verdict(load_comparison(_finals(tmp_path / "many", many)))
    assert said[0].startswith("a looks better than b") and "after correcting for 6 comparisons" in said[0]
    assert said[1].startswith("This budget shows no difference in 5 of 6 pairs: a and d; a and c; d and c; ")


def test_few_seeds_failed_seeds_and_uneven_budgets_are_said(tmp_path: Path) -> None:
    two = verdict(load_comparison(_finals(tmp_path / "two", {"a": [0.5, 0.6], "b": [0.4, 0.5]})))
    assert two[0] == (
        "a and b differ in accuracy by +0.100 over 2 paired seeds: too few for a verdict, which takes 3 or more."
    )
    three = {"a": [0.5, 0.6], "b": [0.4, 0.5], "c": [0.3, 0.3], "d": [0.2, 0.2]}
    said = verdict(load_comparison(_finals(tmp_path / "three", three)))
    assert said[0] == "No verdict on any pair: it takes 3 paired seeds or more."
    folder = write_comparison(tmp_path / "c", ["grpo", "ppo"], failed=[("ppo", 3)], killed=[("grpo", 1)])
    said = verdict(load_comparison(folder))
    assert "3 paired seeds" in said[0]
    assert "1 of 5 seeds of ppo failed, left out of every final number: seed 3." in said
    assert "1 of 5 seeds of grpo did not finish, left out of every final number: seed 1." in said
    stated = {"budget": {"samples": 4400}}
    uneven = verdict(load_comparison(write_comparison(tmp_path / "u", ["grpo", "ppo"], seeds=1, stated=stated)))
    assert "grpo spent 3,840 samples of a budget of 4,400." in uneven


def test_a_run_with_a_budget_of_another_unit_owes_nothing_of_it(tmp_path: Path) -> None:
    """As beside a clone, which takes updates and no steps."""
    folders = [write_run(tmp_path / "a", "grpo", config={"budget": {"samples": 9000}}, iterations=4)]
    folders += [write_run(tmp_path / "b", "ppo", config={"budget": {"updates": 4}}, iterations=4)]
    said = " ".join(verdict(load_folders(folders)))
    assert (
        "grpo spent" in said
        and "ppo spent" not in said
        and "Equal in" not in said
        and "budget.samples and budget.updates differ" in said
    )


def test_unequal_starts_and_evaluations_are_said(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "grpo", config={"start": "sha256:aa", "evaluation": {"prompts": 100}}, iterations=4)
    b = write_run(tmp_path / "b", "ppo", config={"start": "sha256:bb", "evaluation": {"prompts": 200}}, iterations=4)
    comparison = load_folders([a, b])
    assert any("did not start from the same model" in s for s in cautions(comparison))
    assert any("They differ in prompts (100; 200)." in s for s in verdict(comparison))
    c = write_run(tmp_path / "c", "ppo", config={"budget": {"samples": 1}}, iterations=4)
    assert any("not judged alike: budget.samples differs" in s for s in cautions(load_folders([a, c])))


def test_pairs_are_ordered_from_the_best_method_down(tmp_path: Path) -> None:
    values = {"low": [0.1, 0.2, 0.1], "high": [0.8, 0.9, 0.8], "middle": [0.5, 0.6, 0.4]}
    found = pairs(load_comparison(_finals(tmp_path / "c", values)))
    assert [(p.first, p.second) for p in found] == [("high", "middle"), ("high", "low"), ("middle", "low")]
    assert all(p.difference.value > 0 and p.improvement.value == 1 for p in found)
    raw = [statistics.paired_p_value(values[p.first], values[p.second]) or 0 for p in found]
    assert [p.p_value for p in found] == pytest.approx(statistics.holm(raw))


# ---- the page's text -------------------------------------------------------------------------------------------------

HOSTILE = '</script><img src=x onerror="alert(1)"><!--<script>&\u2028\ud800'


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    config = {"label": "<b>grpo</b>", "model": "<img onerror=alert(2)>", "hyperparameters": {"<i>": "</dd><script>"}}
    run = write_run(tmp_path / "run", completion=HOSTILE, config=config, iterations=4)
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == page.count("<b>") == page.count("<i>") == 0
    assert page.count("</script>") == 2 and page.count("<script") == 2
    block = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    assert block and not set("<>&\u2028") & set(block[1])
    answers = [a["text"] for p in json.loads(block[1])["samples"]["prompts"] for a in p["answers"]]
    assert HOSTILE in answers


def test_embedded_json_comes_back_as_it_was() -> None:
    data = {"a<b>&": [HOSTILE, 1.5, None, "é"]}
    assert json.loads(str(embed_json(data))) == data
    with pytest.raises(ValueError, match="JSON"):
        embed_json([math.nan])


def test_page_names_no_host_and_is_small(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", iterations=400, every=10)
    out = write_report([folder], tmp_path / "out" / "report.html")
    page = out.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|www\.", page)
    assert len(page.encode()) < 300_000
    assert sorted(p.name for p in out.parent.iterdir()) == ["report.csv", "report.html"]


def test_thinned_curves_keep_their_ends_and_their_mean(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", iterations=4000, every=500)
    payload = build_payload(load_comparison(run))
    block = next(b for b in payload["runs"][0]["curves"] if "reward" in b["y"])
    rewards = load_run(run).series("reward")
    assert len(block["y"]["reward"]) * (len(block["x"]) + len(block["y"])) < MOST_CELLS
    assert block["x"]["iteration"][-1] == 4000
    size = math.ceil(4000 / len(block["y"]["reward"]))
    assert block["y"]["reward"][-1] == pytest.approx(np.mean(rewards[-size:]), rel=1e-4)
    evaluations = next(b for b in payload["runs"][0]["curves"] if "eval/accuracy" in b["y"])
    assert evaluations["x"]["iteration"] == [0, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000]


def test_csv_beside_the_page_holds_every_line(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", ["grpo", "ppo"], seeds=2, iterations=7)
    run = write_run(tmp_path / "formula", config={"label": "=1+1"}, iterations=3)
    write_report([folder, run], tmp_path / "r.html")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 8 + 4
    assert float(rows[-1]["eval/accuracy"]) == load_run(run).final("eval/accuracy")
    assert rows[-1]["method"] == "'=1+1"


def test_report_says_where_it_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", iterations=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        write_report([run], tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match=r"ends in \.html"):
        write_report([run], tmp_path / "report.csv")


def test_equal_runs_give_equal_pages(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", ["grpo", "ppo"], iterations=5)
    assert render_page(load_comparison(folder)) == render_page(load_comparison(folder))


def test_the_report_needs_no_torch() -> None:
    code = "import sys, polyrl.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_equal_budget_does_not_hide_unequal_time(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison")
    method = load_comparison(folder).methods[0]
    for file in folder.glob(f"{method}-seed*/summary.json"):
        summary = json.loads(file.read_text())
        summary["spent"]["seconds"] *= 40
        file.write_text(json.dumps(summary))
    said = [s for s in cautions(load_comparison(folder)) if s.startswith("Equal in samples, not in time")]
    assert len(said) == 1 and f"the median run of {method} trained for" in said[0]


# ---- every domain ----------------------------------------------------------------------------------------------------


def test_the_metric_is_read_from_the_comparison_or_from_its_runs(tmp_path: Path) -> None:
    folder = write_domain(tmp_path / "c", "operations", seeds=1, iterations=8)
    stated = load_comparison(folder).metric
    assert stated == DOMAINS["operations"].metric
    assert load_run(folder / "hdpo-seed0").domain == load_comparison(folder).domain == "operations"
    alone = load_comparison(folder / "hdpo-seed0").metric  # config.yaml alone
    assert alone == stated
    two = load_folders([folder / "hdpo-seed0", folder / "reinforce-seed0"])
    assert two.metric == stated and "the optimum" in " ".join(verdict(two))
    (folder / "compare.yaml").unlink()
    assert load_comparison(folder).metric == stated


def test_malformed_metrics_and_folders_of_before_still_load(tmp_path: Path) -> None:
    run = write_run(tmp_path / "old", iterations=4)
    metric = load_comparison(run).metric
    assert (metric.key, metric.label, metric.scale, metric.lines, metric.target) == (
        "eval/accuracy",
        "accuracy",
        "linear",
        {},
        "",
    )
    assert load_run(run).domain == "language"
    odd = {"key": "eval/accuracy", "scale": 3, "lines": {"a": "high", "b": 0.5}, "target": "a", "unit": None}
    bad = write_run(tmp_path / "odd", iterations=4, config={"metric": odd, "domain": ["x"]})
    metric = load_comparison(bad).metric
    assert (metric.scale, metric.lines, metric.target, metric.unit) == ("linear", {"b": 0.5}, "", "")
    assert load_run(bad).domain == "language" and "0.5" in render_page(load_comparison(bad))
    text = write_run(tmp_path / "text", iterations=4, config={"metric": "eval/accuracy"})
    assert load_comparison(text).metric.key == "eval/accuracy"


def _results(folder: Path, domain: str, finals: dict[str, list[float]], start: float, **metric: Any) -> Comparison:
    """A comparison of a domain whose runs start at `start` and end at these values."""
    write_domain(folder, domain, seeds=len(next(iter(finals.values()))), iterations=4, **metric)
    key = DOMAINS[domain].metric.key
    for method, values in finals.items():
        for seed, value in enumerate(values):
            path = folder / f"{method}-seed{seed}" / "summary.json"
            path.write_text(json.dumps({"status": "finished", "start": {key: start}, "final": {key: value}}))
    return load_comparison(folder)


def test_cost_is_told_against_the_optimum(tmp_path: Path) -> None:
    finals = {"hdpo": [6.10, 6.12, 6.11], "reinforce": [6.30, 6.31, 6.29]}
    comparison = _results(tmp_path / "c", "operations", finals, start=31.5)
    said = verdict(comparison)
    assert said[0].startswith("hdpo beats reinforce: cost -0.190 [-0.2") and said[0].endswith(
        "per period, 3 paired seeds."
    )
    percent = statistics.mean_interval([100 * (v / 6.0936 - 1) for v in finals["hdpo"]])
    low, high = f"{percent.low:.1f}".replace("-0.0", "0.0"), f"{percent.high:.1f}"
    assert said[1] == f"hdpo's cost is 0.3% above the optimum (6.094 per period) [{low}, {high}], 3 seeds."
    assert said[2].startswith("reinforce's cost is 3.4% above the optimum")
    assert said[3].startswith("hdpo improved on its start: cost 31.500 -> 6.110 per period, -25.39")
    table = {row["method"]: row["lines"] for row in build_payload(comparison)["gaps"]}
    assert table["hdpo"]["best base stock"]["text"] == "3.2% below"
    assert table["hdpo"]["best base stock"]["interval"] == "[2.9, 3.6]"  # in the direction of the words
    assert build_payload(comparison)["metric"]["lines"][0]["name"] == "optimum"
    assert pairs(comparison)[0].improvement.value == 1


def test_a_threshold_counts_the_seeds_that_got_there(tmp_path: Path) -> None:
    finals = {"ppo": [500.0, 498.0, 470.0], "ppo+no-clip": [500.0, 120.0, 300.0]}
    said = verdict(_results(tmp_path / "c", "control", finals, start=20.0))
    assert any(s.startswith("ppo reached return 489.3 [4") and "of 475 for solved: 2 of 3 seeds" in s for s in said)
    assert any("ppo+no-clip reached return 306.7" in s and "1 of 3 seeds got there." in s for s in said)
    one = _results(tmp_path / "one", "control", {"ppo": [500.0], "ppo+no-clip": [120.0]}, start=20.0)
    assert "ppo reached return 500.0 of 475 for solved: 1 of 1 seed got there." in verdict(one)
    alone = load_comparison(tmp_path / "one" / "ppo-seed0")
    assert verdict(alone)[0].startswith("ppo reached return 500.0 of 475")
    assert (
        verdict(alone)[1]
        == "ppo went from start to end: return 20.0 -> 500.0, +480.0, 1 seed, too few for an interval."
    )


def test_a_line_at_zero_has_no_percent(tmp_path: Path) -> None:
    finals = {"hdpo": [0.2, 0.3, 0.4], "reinforce": [1.0, 1.0, 1.0]}
    comparison = _results(tmp_path / "c", "operations", finals, start=2.0, lines={"optimum": 0.0})
    said = " ".join(verdict(comparison))
    assert "hdpo's cost is 0.300 above the optimum (0 per period)" in said and "%" not in said


def test_a_line_between_results_on_both_sides_of_0_has_no_percent(tmp_path: Path) -> None:
    """A start of -0.1 and an end of 1.9 are 2 apart, and no percent; where all have one sign, percent it is."""
    finals = {"hdpo": [-0.3, 0.3, 1.2], "reinforce": [-1.0, -1.0, -1.0]}
    comparison = _results(tmp_path / "c", "operations", finals, start=2.0, lines={"optimum": -0.1})
    said = " ".join(verdict(comparison))
    assert "hdpo's cost is 0.500 above the optimum (-0.1" in said
    assert "reinforce's cost is 900% below the optimum" in said


def test_log_metrics_speak_of_factors(tmp_path: Path) -> None:
    md = [1e-3, 2e-3, 4e-3]
    mp = [1e-8, 4e-8, 2e-8]
    comparison = _results(tmp_path / "c", "theory", {"nash-mp": mp, "nash-md": md}, start=0.05)
    said = verdict(comparison)
    ratio = statistics.paired_difference(np.log10(md), np.log10(mp))
    assert ratio.low is not None and ratio.high is not None
    assert said[0].startswith("nash-mp beats nash-md: KL to the Nash policy 100,000 times smaller [")
    low, high = re.findall(r"\[([\d,.e]+?), ([\d,.e]+)\], 3 paired", said[0])[0]
    assert float(low.replace(",", "")) == pytest.approx(10**ratio.low, rel=0.01)
    assert float(high.replace(",", "")) == pytest.approx(10**ratio.high, rel=0.06)  # 2 figures from a million on
    assert said[1].startswith("nash-mp improved on its start: KL to the Nash policy 0.0500 -> 2.0e-8 nats, fell 2.5e6-")
    assert said[2].startswith("nash-md improved on its start: KL to the Nash policy 0.0500 -> 0.00200 nats, fell 25.0-")
    payload = build_payload(comparison)
    assert payload["final"]["nash-mp"]["value"] == pytest.approx(2e-8)  # the geometric mean
    assert payload["pairs"][0]["difference"]["value"] == pytest.approx(1e-5)
    assert payload["metric"]["log"] and payload["metrics"][0]["log"]
    assert "geometric" in render_page(comparison)


def test_log_metrics_bear_exact_zeros_and_lines(tmp_path: Path) -> None:
    finals = {"nash-mp": [0.0, -1e-18, 1e-17], "nash-md": [1e-3, 2e-3, 4e-3]}
    lines = {"bound": 1e-3}
    comparison = _results(tmp_path / "c", "theory", finals, start=0.05, lines=lines, target="bound")
    said = " ".join(verdict(comparison))
    assert "nash-mp's KL to the Nash policy is 1.0e13 times below the bound (0.00100 nats)" in said
    assert "nash-md's KL to the Nash policy is 2.00 times above the bound" in said
    assert "NaN" not in render_page(comparison) and "inf" not in said


def test_budgets_and_metrics_are_called_as_their_domain_calls_them(tmp_path: Path) -> None:
    control = load_comparison(write_domain(tmp_path / "control", "control", seeds=1, iterations=8))
    payload = build_payload(control)
    assert payload["axes"][0] == {"key": "steps", "label": "Environment steps", "unit": ""}
    assert "16.4k environment steps" in render_page(control)
    units = {m["key"]: (m["label"], m["unit"]) for m in payload["metrics"]}
    assert units["eval/return"] == ("Return", "") and units["entropy"] == ("Entropy", "nats per step")
    assert units["loss/value-loss"] == ("Loss: value-loss", "")
    assert payload["panels"][0] == "episode/return" and "eval/return" not in payload["panels"]
    theory = load_comparison(write_domain(tmp_path / "theory", "theory", seeds=1, iterations=8))
    assert build_payload(theory)["axes"][0]["label"] == "Preference queries"
    language = load_comparison(write_comparison(tmp_path / "language", ["grpo"], seeds=1, iterations=4))
    assert build_payload(language)["axes"][0] == {"key": "samples", "label": "Samples", "unit": "completions"}
    assert dict((m["key"], m["unit"]) for m in build_payload(language)["metrics"])["entropy"] == "nats per token"
    own = write_run(tmp_path / "own", iterations=3)
    log = own / "metrics.jsonl"
    log.write_text(log.read_text().replace('"kl"', '"my/thing"'))
    assert {"key": "my/thing", "label": "my/thing", "unit": "", "group": "Other", "log": False} in build_payload(
        load_comparison(own)
    )["metrics"]


def test_budget_in_updates_or_iterations_is_an_axis(tmp_path: Path) -> None:
    folder = write_domain(tmp_path / "c", "operations", seeds=1, iterations=8)
    for unit, key in (("updates", "updates"), ("iterations", "iteration")):
        stated = yaml.safe_load((folder / "compare.yaml").read_text())
        (folder / "compare.yaml").write_text(yaml.safe_dump({**stated, "budget": {unit: 80}}))
        assert build_payload(load_comparison(folder))["axes"][0]["key"] == key


def test_samples_of_any_shape_are_rows_and_stay_text(tmp_path: Path) -> None:
    folder = write_domain(tmp_path / "c", "control", seeds=2, iterations=4)
    rows = [{"iteration": 4, "return": 1 / 3, "<i>": HOSTILE, "path": list(range(200)), "nan": math.nan}] * 20
    (folder / "ppo-seed0" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    comparison = load_comparison(folder)
    tables = build_payload(comparison)["samples"]["tables"]
    assert [t["method"] for t in tables] == ["ppo", "ppo+no-clip"] and {t["seed"] for t in tables} == {0}
    assert tables[0]["columns"] == ["return", "<i>", "path", "nan"] and len(tables[0]["rows"]) == 8
    assert tables[0]["rows"][0][0] == "0.3333" and tables[0]["rows"][0][3] == "–" and tables[0]["more"] == 12
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == page.count("<i>") == 0 and page.count("</script>") == 2
    assert "&lt;i&gt;" in page


def test_hostile_names_of_lines_and_metrics_stay_text(tmp_path: Path) -> None:
    lines = {"<b>optimum</b>": 6.0, HOSTILE: 7.0}
    bad: dict[str, Any] = {"label": "<b>cost", "unit": '"><b>', "lines": lines, "target": "<b>optimum</b>"}
    folder = write_domain(tmp_path / "c", "operations", seeds=3, iterations=4, **bad)
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<b>") == page.count("<img") == 0
    assert page.count("</script>") == 2


def test_lines_that_folders_do_not_share_are_left_out(tmp_path: Path) -> None:
    first = write_domain(tmp_path / "a", "operations", seeds=1, iterations=4)
    second = write_domain(tmp_path / "b", "operations", seeds=1, iterations=4, lines={"optimum": 5.0})
    assert load_folders([first, second]).metric.lines == {}
    third = write_domain(tmp_path / "d", "control", seeds=1, iterations=4)
    with pytest.raises(UserError, match="different metrics"):
        load_folders([first, third])


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [
        ("linear", 0.5, "0.500"),
        ("linear", 6.0936, "6.094"),
        ("linear", 498.34, "498.3"),
        ("linear", 3452.7, "3453"),
        ("linear", -0.00001, "-0.00001000"),
        ("linear", 0.0, "0.000"),
        ("log", 1.62e-8, "1.6e-8"),
        ("log", 0.0123, "0.0123"),
        ("log", 1234.5, "1,234"),
        ("log", 0.0, "0"),
        ("log", math.nan, "-"),
    ],
)
def test_values_are_written_with_figures_that_suit_them(scale: str, value: float, text: str) -> None:
    assert format_value(Metric("eval/x", "x", scale=scale), value) == text  # type: ignore[arg-type]


def test_accuracy_takes_three_digits_and_factors_three_figures() -> None:
    assert format_value(Metric(), 0.05) == "0.050" and format_value(Metric(), 0.05, 1) == "0.1"
    factors = (1.254, 12.34, 1933.0, 2.5e7, 0.0012, 0.5)
    assert [format_factor(x) for x in factors] == ["1.25", "12.3", "1,930", "2.5e7", "1.2e-3", "0.50"]


def test_runs_without_chance_are_named(tmp_path: Path) -> None:
    folder = write_domain(tmp_path / "c", "theory", seeds=3, iterations=8)
    assert not any("chance" in s for s in cautions(load_comparison(folder)))
    for seed in (1, 2):
        for name in ("metrics.jsonl", "summary.json"):
            shutil.copy(folder / "nash-mp-seed0" / name, folder / f"nash-mp-seed{seed}" / name)
    said = [s for s in cautions(load_comparison(folder)) if "chance" in s]
    assert said == ["Every seed of nash-mp went the same way: chance has no part in it, so intervals have no width."]
    log = folder / "nash-mp-seed1" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        row |= {"seconds": 1e9, "seconds/collect": 1e9, "steps_per_second": 1e-9, "updates_per_second": 1e-9}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert any("chance has no part in it" in s for s in cautions(load_comparison(folder)))
    log.write_text("".join(json.dumps({**row, "cumulative_regret": 5.0}) + "\n" for row in rows))
    (said,) = (s for s in cautions(load_comparison(folder)) if "Every seed" in s)
    assert said.startswith("Every seed of nash-mp was judged by the same ") and "it has no interval" in said
    assert verdict(load_comparison(folder))[0].startswith("nash-mp beats nash-md")


def test_an_optimum_keeps_its_digits_beside_a_bad_method(tmp_path: Path) -> None:
    finals = {"hdpo": [6.11, 6.11, 6.12], "reinforce": [2400.0, 1800.0, 2700.0]}
    said = " ".join(verdict(_results(tmp_path / "c", "operations", finals, start=3600.0)))
    assert "(6.094 per period)" in said and "-> 6.113 per period" in said


ODD_LINES = {
    "nothing": b"",
    "whole": b'{"a": 1}\n{"b": {"c": [2, {"d": 3}]}}\n',
    "a blank line": b'{"a": 1}\n\n{"b": 2}\n',
    "a cut end": b'{"a": 1}\n{"b": 2',
    "an end without its newline": b'{"a": 1}\n{"b": 2}',
    "no object": b'{"a": 1}\n[1, 2]\n{"b": 2}\n',
    "two on one line": b'{"a": 1}, {"b": 2}\n{"c": 3}\n',
    "one over two lines": b'{"a": [{"b": 1}\n{"c": 2}]}\n',
    "both": b'{"a": [{"b": 1}\n{"c": 2}]}, {"d": 3}\n',
    "Windows": b'{"a": 1}\r\n{"b": 2}\r\n',
    "no UTF-8": b'{"a": "\xff"}\n{"b": 2}\n',
    "numbers that are none": b'{"a": NaN, "b": Infinity}\n{"b": 1e999}\n',
    "the same name twice": b'{"a": 1, "a": 2}\n',
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_lines_that_are_read_at_once_are_those_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(ODD_LINES[name])
    at_once = read_lines(file)
    monkeypatch.setattr(json_lines, "_read_whole", lambda data: None)
    assert repr(at_once) == repr(read_lines(file))


def test_the_middle_half_is_what_scipy_trims() -> None:
    drawn = np.random.default_rng(1)
    for size in range(1, 30):
        values = drawn.normal(size=(5, size))
        assert statistics.interquartile_mean(values) == stats.trim_mean(values, 0.25, axis=None)
    for n in (2, 3, 10, 50):
        assert statistics.t_factor(n) == stats.t.ppf(0.975, n - 1)


def test_the_slope_of_the_last_decade_is_the_power_there(tmp_path: Path) -> None:
    """Steep at first and a square root from 100 on; what is 0 or missing has no logarithm and is left out."""
    folder = write_run(tmp_path / "run", iterations=3)
    rows = [
        {"iteration": i, "steps": x, "regret": x**2 / 1000 if x < 100 else x**0.5} for i, x in enumerate(range(1, 1001))
    ]
    rows[500]["regret"] = 0.0
    del rows[600]["regret"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = load_run(folder)
    assert last_decade_slope(run, "steps", "regret") == pytest.approx(0.5, abs=1e-9)
    assert last_decade_slope(run, "steps", "nothing") is None and last_decade_slope(run, "nothing", "regret") is None


def test_a_chart_is_what_was_stated_and_scales_are_known() -> None:
    chart = Chart(title="Regret", x="steps", y=("regret",), x_scale="log", y_scale="log")
    assert Chart.read(chart.stated()) == chart and chart.powers
    assert not Chart.read({"title": "t", "x": "a", "y": ["b"], "x_scale": "log"}).powers
    for name in ("x_scale", "y_scale"):
        with pytest.raises(ValueError, match="not a chart"):
            Chart.read({"title": "t", "x": "a", "y": ["b"], name: "cubic"})
