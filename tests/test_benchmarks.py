"""The benchmarks' own machinery: what is timed counts once, turns alternate, work is equal, numbers come from files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import control_work  # noqa: E402
import language  # noqa: E402
import language_work  # noqa: E402
import learning  # noqa: E402
import off_policy_learning  # noqa: E402
import off_policy_work  # noqa: E402
import offline_mixtures  # noqa: E402
import results  # noqa: E402
import turns  # noqa: E402


def busy(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_every_second_counts_once_for_the_innermost_part() -> None:
    def outer() -> None:
        busy(0.02)
        thing.inner()

    thing = SimpleNamespace(inner=lambda: busy(0.03), outer=outer)
    clock = turns.Clock()
    clock.wrap(thing, "inner", "inner")
    clock.wrap(thing, "outer", "outer")
    clock.take()
    began = time.process_time()
    thing.outer()
    busy(0.01)
    parts = clock.take()
    assert sum(parts.values()) == pytest.approx(time.process_time() - began, abs=0.003)
    assert parts == pytest.approx({"outer": 0.02, "inner": 0.03, turns.REST: 0.01}, abs=0.004)
    assert sum(clock.take().values()) < 0.003  # taken is taken


def test_a_whole_part_keeps_what_it_calls() -> None:
    thing = SimpleNamespace(inner=lambda: busy(0.02), outer=lambda: thing.inner())
    clock = turns.Clock()
    clock.wrap(thing, "inner", "inner")
    clock.wrap(thing, "outer", "outer", whole=True)
    thing.outer()
    thing.inner()
    parts = clock.take()
    assert parts["outer"] == pytest.approx(0.02, abs=0.004) and parts["inner"] == pytest.approx(0.02, abs=0.004)


SIDE = """
import sys, time
sys.path.insert(0, {folder!r})
from turns import Side
side = Side()
print("noise that must not reach the results")
side.begin(name={name!r})
n = 0
while True:
    n += 1
    with open({log!r}, "a") as log:
        log.write({name!r})
    side.step(number=n)
"""


def test_sides_work_only_in_their_turns(tmp_path: Path) -> None:
    log = tmp_path / "order.txt"
    commands = {
        name: [sys.executable, "-c", SIDE.format(folder=str(BENCHMARKS), name=name, log=str(log))] for name in "ab"
    }
    with turns.started(commands, lambda name: tmp_path / f"{name}.log") as sides:
        assert sides["a"].facts == {"name": "a"}
        found = turns.alternate(sides, repeats=2, steps=3, warm_up=1)
    assert log.read_text() == "ab" + "aaabbb" * 2
    assert [[row["number"] for row in turn["rows"]] for turn in found["b"]] == [[2, 3, 4], [5, 6, 7]]
    assert all(turn["peak_mib"] > 1 for turn in found["a"])
    assert "noise" in (tmp_path / "a.log").read_text()


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        turns.Process([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log.txt")


def test_results_keep_what_was_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.write("language", {"polyrl": sys.executable}, {"one": {"ratio": 1}}, rounds=3)
    results.write("language", {"polyrl": sys.executable}, {"two": {"ratio": 2}})
    cases = json.loads((tmp_path / "language.json").read_text())["cases"]
    assert cases["one"]["ratio"] == 1 and cases["two"]["ratio"] == 2
    facts = cases["one"]["measured"]
    assert facts["rounds"] == 3 and facts["versions"]["polyrl"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert {"commit", "dirty", "date", "machine", "versions"} <= facts.keys() and facts["machine"]["cores"] >= 1
    assert results.shown(results.spread([1.0, 3.0, 2.0])) == "2.00 (1.00-3.00)"


def test_the_work_is_the_same_every_time_and_test_rows_are_apart() -> None:
    for case in language_work.WORK.values():
        train, test = language_work.data(case, "train"), language_work.data(case, "test")
        assert train == language_work.data(case, "train") and len(train) > 3000 and len(test) == 8
        assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert language_work.echo(["777", "78"], target=["777", "7777"]) == [1.0, 0.25]
    assert language_work.digits(["12ab", ""]) == [0.5, 0.0]


def test_the_models_have_the_stated_size(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = language_work.build_model(language_work.SIZES["tiny"], tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 1_058_176


def test_settings_of_control_mean_the_same_in_polyrl() -> None:
    from polyrl.catalogue import build

    for case in control_work.CASES.values():
        known = build(
            "ppo", {k: str(v) for k, v in case.setting.for_polyrl().items()}, domain="control"
        ).hyperparameters()
        assert (
            known["optimize.minibatches"] * case.setting.batch_size == case.setting.environments * case.setting.n_steps
        )
        assert known["gae.gamma"] == case.setting.gamma and known["optimize.epochs"] == case.setting.n_epochs


def test_settings_of_off_policy_mean_the_same_in_polyrl() -> None:
    from polyrl.catalogue import build

    for case in (*off_policy_work.CASES.values(), *off_policy_work.LEARNING.values()):
        setting, peer = case.setting, case.setting.for_peer()
        known = build(setting.method, {k: str(v) for k, v in setting.for_polyrl().items()}).hyperparameters()
        assert known["q.learning_rate"] == peer["learning_rate"]
        assert known["q.hidden"] == "x".join(map(str, peer["policy_kwargs"]["net_arch"]))
        assert known["sample.batch_size"] == peer["batch_size"]
        replay = {name: known[f"replay.{name}"] for name in ("capacity", "gamma", "learning_starts")}
        assert [*replay.values()] == [peer["buffer_size"], peer["gamma"], peer["learning_starts"]]
        if setting.method == "dqn":
            collect = "explore-environments"
            assert known[f"{collect}.steps_per_environment"] == peer["train_freq"]
            assert known[f"{collect}.exploration_fraction"] == peer["exploration_fraction"]
            assert known[f"{collect}.exploration_final"] == peer["exploration_final_eps"]
            assert known["repeat.gradient_steps"] == peer["gradient_steps"] and not known["greedy-target.double"]
        else:
            collect = "step-and-keep"
            assert known["policy.learning_rate"] == peer["learning_rate"] and known["q-target-move.tau"] == 0.005
        assert known[f"{collect}.random_steps"] == peer["learning_starts"]


def test_curves_of_off_policy_are_of_seeds_that_both_sides_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(off_policy_learning, "KEPT", tmp_path)
    assert off_policy_learning.summarize("sac-pendulum", 9) == {}
    returns = {("polyrl", 0): -1.0, ("polyrl", 1): -2.0, ("polyrl", 2): -9.0, ("sb3", 1): -3.0, ("sb3", 0): -5.0}
    for (library, seed), value in returns.items():
        run = {"seed": seed, "curve": [[4, -10.0], [9, value]], "cpu_seconds": 1.0}
        (tmp_path / f"{library}-sac-pendulum-seed{seed}-steps9.json").write_text(json.dumps(run))
    found = off_policy_learning.summarize("sac-pendulum", 9)
    assert found["seeds"] == [0, 1]
    ends = {library: side["curve"][-1] for library, side in found["sides"].items()}
    assert ends["polyrl"]["by_seed"] == [-1, -2] and ends["sb3"]["by_seed"] == [-5, -3]
    assert ends["sb3"]["steps"] == 9 and ends["sb3"]["interquartile_mean"] == -4


def test_the_medium_policy_is_the_nearest_to_the_middle_of_first_and_last() -> None:
    assert offline_mixtures.halfway({500: -1000.0, 1000: -1400.0, 1500: -500.0, 2000: -650.0, 2500: -200.0}) == 2000


def test_a_table_of_data_is_of_seeds_that_all_methods_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(offline_mixtures.SETTINGS["pendulum"], kept=tmp_path)
    monkeypatch.setattr(
        offline_mixtures, "returns_of", lambda folder: [-30.0, -10.0] if folder.name == "medium" else []
    )
    assert offline_mixtures.summarize(setting, "medium", 9) == {}
    ends = {"bc": {0: -5.0, 1: -7.0}, "iql": {0: -4.0, 1: -2.0, 2: 0.0}, "cql": {1: -9.0, 0: -8.0}}
    for method, by_seed in ends.items():
        for seed, end in by_seed.items():
            run = {"return": end, "curve": [[3, end]], "cpu_seconds": 2.0, "commit": "c"}
            (tmp_path / f"{method}-medium-seed{seed}-batches9.json").write_text(json.dumps(run))
    found = offline_mixtures.summarize(setting, "medium", 9)
    assert found["seeds"] == [0, 1] and found["data"] == {"mean": -20, "best": -10, "episodes": 2}
    assert {name: side["by_seed"] for name, side in found["methods"].items()} == {
        "bc": [-5, -7],
        "iql": [-4, -2],
        "cql": [-8, -9],
    }
    assert offline_mixtures.row("medium", found) == [
        "medium",
        "-20",
        "-10",
        "-6 (-5, -7)",
        "-3 (-4, -2)",
        "-8 (-8, -9)",
    ]


def test_sides_that_do_other_work_are_refused() -> None:
    def side(tokens: list[int], updates: float = 1.0) -> dict[str, object]:
        return {"tokens": {"by_step": tokens}, "updates": updates}

    ours = side([100, 102, 98, 100])
    assert language.same_work({"trl": side([101, 99, 103, 101]), "polyrl": ours}, "polyrl")["trl"] == pytest.approx(
        -1 / math.sqrt(2 * (8 / 3) / 4)
    )
    for other in (side([150, 152, 151, 149]), side([100, 102, 98, 100], updates=2.0)):
        with pytest.raises(RuntimeError, match="do not do the same work"):
            language.same_work({"trl": other, "polyrl": ours}, "polyrl")


def test_learning_curves_agree_where_their_intervals_overlap() -> None:
    near = {"polyrl": [[0.1, 0.2], [0.2, 0.3]], "trl": [[0.15, 0.9], [0.1, 0.9]]}
    found = learning.compare(near, pieces=2)
    assert [piece["steps"] for piece in found] == [[1, 1], [2, 2]]
    low, high = learning.interval([0.1, 0.2])
    assert found[0]["sides"]["polyrl"]["interval"] == (low, high) and (low + high) / 2 == pytest.approx(0.15)
    assert high - low == pytest.approx(2 * 12.706 * 0.05, rel=1e-3)  # two seeds: one degree of freedom
    apart = {"polyrl": [[0.1], [0.1001]], "trl": [[0.9], [0.9001]]}
    assert not learning.compare(apart, pieces=1)[0]["agree"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    told = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, check=False)
    assert told.returncode == 2 and told.stdout == "There is no GPU here, so there is nothing to measure.\n"


def test_the_work_of_the_gpu_table() -> None:
    import gpu

    work = gpu.Work(layers=2, heads=2, kv_heads=1, head_dim=4, prompts=3, prompt=8, group=2, length=10)
    # 24 prompt tokens that attend to 4 on average, 60 others to 8 + 5
    assert work.update_flops(100) == 3 * (24 * (200 + 4 * 16 * 4) + 60 * (200 + 4 * 16 * 13))
    # ten times the weights and six rows' keys and values of 13 tokens, 2 bytes each
    assert work.decoding_bytes(100) == 10 * 2 * (100 + 6 * 13 * 2 * 2 * 4)
