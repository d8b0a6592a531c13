"""What docs/coming-from.md and docs/control.md say of names and commands: each is a hyperparameter, option or part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SEED, read_records
from polyrl import catalogue
from polyrl.catalogue import build
from polyrl.cli.main import polyrl
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from test_docs import logged, text, titled

torch.set_num_threads(1)
CONTROL = ("ppo", "sac", "td3", "dqn", "rlpd")
THEIRS = {"clip_coef", "train_freq", "q_lr", "DQN", "TD3", "vf_coef", "none"}
"""Names of theirs that stand in our column, to be compared with."""


def section(page: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text(page), re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def said(rows: str) -> list[str]:
    """What stands in backticks in the last column of tables."""
    lines = [line for line in rows.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [word for line in lines for word in re.findall(r"`([^`]+)`", line.split(" | ")[-1])]


@pytest.fixture(scope="module")
def known() -> set[str]:
    recipes = [build(method, domain="control") for method in CONTROL]
    names = {key for recipe in recipes for key in recipe.hyperparameters()}
    return {*names, *(key.rpartition(".")[2] for key in names)}


@pytest.mark.parametrize("heading", ["Stable-Baselines3", "CleanRL"])
def test_names_of_ours_beside_theirs_exist(heading: str, known: set[str]) -> None:
    options = {o for c in polyrl.commands.values() for p in c.params for o in p.opts}
    metrics = logged() | {f"loss/{name}" for name in catalogue.parts()}
    words = [word for word in said(section("coming-from.md", heading)) if word.partition("=")[0] not in THEIRS]
    assert len(words) > 30
    for word in words:
        if word.startswith("polyrl "):
            assert word.split()[1] in polyrl.commands, word
        elif word.startswith("--"):
            given = [w for w in word.split() if w.startswith("--")]
            assert all(o in options or plain(o[2:]) in map(plain, known) for o in given), word
        elif word not in metrics and word not in CONTROL and word.removeprefix("+") not in catalogue.parts():
            assert word.partition("=")[0] in known, word


def plain(name: str) -> str:
    """A name with underscores for hyphens: options are spelled with these."""
    return name.replace("-", "_")


def commands(page: str) -> list[str]:
    """Every `polyrl train`, `compare`, `show` and `trace` of a page's blocks."""
    found = re.findall(r"^(?:\$ )?polyrl ((?:train|compare|show|trace) .*)$", text(page), re.MULTILINE)
    return [line.partition("#")[0].strip() for line in found]


@pytest.mark.parametrize("line", [c for page in ("control.md", "writing-a-method.md") for c in commands(page)])
def test_commands_of_the_pages_build(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods are built for the task's domain, with the hyperparameters that the command sets."""
    for name, code in titled("writing-a-method.md").items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    verb, *words = re.findall(r"'[^']*'|\S+", line)
    options = {o: p for p in polyrl.commands[verb].params for o in p.opts}
    settings, methods, chosen = dict[str, str](), list[str](), dict[str, str]()
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            value = "" if word in options and getattr(options[word], "is_flag", False) else words.pop(0)
            (chosen if word in options else settings)[word[2:]] = value
        else:
            methods.append(word.strip("'"))
    task = chosen.get("task", "").strip("'")
    domain = "control" if task else None
    for method in methods:
        recipe = build(method, settings, domain=domain)
        values = recipe.hyperparameters()
        for name, value in settings.items():
            full = plain(name)
            found = [v for k, v in values.items() if full in (plain(k), k.rpartition(".")[2])]
            assert found and all(str(v) == value or float(v) == float(value) for v in found), name


def loop_of(method: str, task: str, **settings: str) -> Any:
    small = {"hidden": "16x16", "batch_size": "16", "learning_starts": "10", **settings}
    config = RunConfig(
        method=method, task=task, budget="iterations=9", seed=SEED, tensorboard=False, hyperparameters=small
    )
    return make_loop(config)[0]


def test_a_temperature_without_a_step_size_is_fixed() -> None:
    fixed = {"temperature.initial": "0.2", "temperature.learning-rate": "0"}
    loop = loop_of("sac", "Pendulum-v1", turns="30", random_steps="10", **fixed)
    loop.iterate()
    assert loop.context.metrics["temperature"] == pytest.approx(0.2) and loop.context.spent.updates == 3 * 21
    assert float(loop.run_state.models["temperature"]()) == pytest.approx(0.2)


def test_a_turn_is_steps_then_updates_and_moves_count_turns() -> None:
    settings = {
        "turns": "8",
        "steps_per_environment": "4",
        "environments": "2",
        "gradient_steps": "1",
        "double": "false",
    }
    loop = loop_of("dqn", "CartPole-v1", **settings, **{"q-target-move.every": "4"})
    moves: list[int] = []
    loop.run_state.models.move = lambda *given: moves.append(loop.context.turn)
    loop.iterate()
    assert loop.context.spent.steps == 8 * 4 * 2 and loop.context.spent.updates == 7 and moves == [3, 7]


def test_a_step_in_a_checkpoint_takes_what_the_page_says(tmp_path: Path) -> None:
    from polyrl.runs import start_run

    config = RunConfig(
        method="sac",
        task="Pendulum-v1",
        budget="iterations=1",
        seed=SEED,
        evaluations=1,
        eval_episodes=1,
        tensorboard=False,
        hyperparameters={"turns": "2000", "random_steps": "2000", "learning_starts": "9999", "hidden": "4"},
    )
    start_run(config, tmp_path / "run").run()
    (file,) = (tmp_path / "run" / "checkpoints").glob("*1/source-replay-*.safetensors")
    assert 4 * (2 * 3 + 1 + 1) <= file.stat().st_size / 2000 < 4 * (2 * 3 + 1 + 1) + 8
    assert read_records(tmp_path / "run")[-1]["replay/steps"] == 2000
