"""A new method in one file, from outside the package: it trains, is listed, shown, traced and compared as it is."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conftest import DIFFICULTY, SEED, TASK, Command, child_environment, reached, read_records, search_path, timeless

METHOD = '''"""Best-of-group: only the answers that are better than their group's mean are imitated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polyrl import Experience, Part, Recipe, hyperparameter
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import group_statistics
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward

SLUG = "best-of-group"
TITLE = "Imitate the better half"
PAPER = "arXiv:0000.00000"
YEAR = 2026
FORMULA = "A_i = 1 if R_i > mean R + margin, else 0"


@dataclass(frozen=True, kw_only=True)
class AboveTheMean(Part):
    """One for the answers above their group's mean, zero for the others."""

    stage: ClassVar[str] = "credit"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "group", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})

    margin: float = hyperparameter(0.0, "how much better than the mean", low=0)

    def __call__(self, experience: Experience, context) -> Experience:
        mean, _, _ = group_statistics(experience["score"], experience["group"])
        better = (experience["score"] > mean + self.margin).float()
        context.log(better=better.mean())
        memory = context.memory(self.name)
        memory["seen"] = memory.get("seen", 0) + int(better.sum())
        context.log(better_so_far=memory["seen"])
        return experience.with_fields(advantage=better[:, None] * experience["mask"])


def recipe() -> Recipe:
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=8, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(AboveTheMean(),),
        terms=(PolicyGradient(),),
        optimize=Optimize(learning_rate=1e-3),
        adds=("above-the-mean",),
        notes={"credit": "what the better half did is worth doing again"},
    )
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The method as a file in a folder of its own."""
    folder = tmp_path / "my methods (new)+more"  # signs that mean something in compositions
    folder.mkdir()
    path = folder / "best_of_group.py"
    path.write_text(METHOD, encoding="utf-8")
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The method as an installed package that names it in the group of entry points `polyrl.methods`."""
    site = tmp_path / "site"
    package = site / "my_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "best.py").write_text(METHOD, encoding="utf-8")
    info = site / "my_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[polyrl.methods]\nbest-of-group = my_lab.best\n")
    from polyrl import catalogue, method_files

    def forget() -> None:
        for cached in (catalogue.methods, catalogue.variants, catalogue.parts, method_files.read_source):
            cached.cache_clear()
        for name in [n for n in sys.modules if n.partition(".")[0] == "my_lab"]:
            del sys.modules[name]

    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    forget()
    yield site
    forget()


@pytest.fixture(scope="module")
def words(small_model: Path) -> list[str]:
    """The task and model of every command here."""
    more = ["--eval-prompts", "100", "--evaluations", "1", "--no-tensorboard"]
    return ["--task", TASK, "--difficulty", str(DIFFICULTY), "--model", str(small_model), *more]


def test_a_file_trains_and_learns(file: Path, words: list[str], tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "run"
    told = polyrl(
        "train", file, "--margin", "0.1", *words, "--budget", "samples=1024", "--out", out, "--quiet", "--seed", SEED
    )
    assert (told.code, told.err) == (0, "")
    records = read_records(out)
    reached(records[-1]["eval/accuracy"] - records[0]["eval/accuracy"], 0.2)  # 0.39 to 0.55 with three seeds
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["hyperparameters"]["above-the-mean.margin"] == 0.1
    assert all(0 <= r["better"] <= 1 for r in records[1:])


def test_its_runs_resume_with_what_its_parts_remember(
    file: Path, words: list[str], tmp_path: Path, polyrl: Command
) -> None:
    straight, half = tmp_path / "straight", tmp_path / "half"
    more = [*words, "--prompts-per-step", "2", "--checkpoint-every", "1", "--quiet"]
    assert polyrl("train", file, *more, "--budget", "iterations=4", "--out", straight).code == 0
    assert polyrl("train", file, *more, "--budget", "iterations=2", "--out", half).code == 0
    config = (half / "config.yaml").read_text()
    (half / "config.yaml").write_text(config.replace("iterations=2", "iterations=4"))
    assert polyrl("resume", half, "--quiet").code == 0
    mine, other = timeless(read_records(half)), timeless(read_records(straight))
    strip = [{k: v for k, v in r.items() if not k.startswith("eval/")} for r in mine]
    assert strip == [{k: v for k, v in r.items() if not k.startswith("eval/")} for r in other]
    assert mine[-1]["better_so_far"] == sum(round(r["better"] * 16) for r in mine[1:])


def test_it_composes_both_ways(file: Path, words: list[str], tmp_path: Path, polyrl: Command) -> None:
    for i, spec in enumerate((f"{file}(margin=0.2)+drop-equal-groups", f"grpo+{file}(margin=0.2)")):
        out = tmp_path / str(i)
        told = polyrl("train", spec, *words, "--budget", "iterations=1", "--out", out, "--quiet")
        assert (told.code, told.err) == (0, "")
        hyperparameters = yaml.safe_load((out / "config.yaml").read_text())["hyperparameters"]
        assert hyperparameters["above-the-mean.margin"] == 0.2
        assert ("clipped-surrogate.clip_range" in hyperparameters) == (
            i == 1
        ) and "group-advantage.scale" not in hyperparameters


def test_a_file_is_shown_and_traced(
    file: Path, words: list[str], polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = polyrl("show", file)
    assert (shown.code, shown.err) == (0, "")
    for text in ("above-the-mean", "--margin", "how much better than the mean", "what the better half did"):
        assert text in shown.out, text
    traced = polyrl("trace", file, *words[:-1])
    assert (traced.code, traced.err) == (0, "")
    for text in ("above-the-mean", "advantage", "reads group, mask, score"):
        assert text in traced.out, text
    wrong = polyrl("trace", file, "--margin", "-1")
    assert wrong.code == 2 and "above-the-mean.margin" in wrong.err


def test_a_package_is_listed_shown_traced_and_trained(
    installed: Path, words: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    listed = polyrl("list").out
    for text in ("best-of-group", "Imitate the better half", "arXiv:0000.00000 (2026)", "above-the-mean"):
        assert text in listed, text
    assert "my_lab.best" not in sys.modules  # listed without being run
    shown = polyrl("show", "best-of-group").out
    assert "Imitate the better half" in shown and "A_i = 1 if" in shown
    assert polyrl("trace", "best-of-group", *words[:-1]).code == 0
    run = ["--budget", "iterations=1", "--quiet"]
    assert polyrl("train", "best-of-group+drop-unended", *words, *run, "--out", tmp_path / "run").code == 0
    # its part is one more word for compositions
    assert polyrl("train", "grpo+above-the-mean", *words, *run, "--out", tmp_path / "other").code == 0
    assert "'best-of-group'" in polyrl("train", "best-of-grup", *words).err


def test_both_are_compared_with_a_method_of_the_package(
    file: Path, installed: Path, words: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker processes find them too."""
    monkeypatch.setenv("PYTHONPATH", search_path(installed))
    out = tmp_path / "comparison"
    more = [*words, "--budget", "samples=64", "--seeds", "1", "--workers", "1", "--out", out, "--quiet"]
    told = polyrl("compare", "grpo", file, "best-of-group", *more)
    assert (told.code, told.err) == (0, "")
    runs = {p.name: p for p in out.iterdir() if p.is_dir()}
    assert len(runs) == 3
    assert all(json.loads((p / "summary.json").read_text())["status"] == "finished" for p in runs.values())
    mine = next(p for name, p in runs.items() if name.endswith("best-of-group.py-seed0"))
    assert timeless(read_records(mine)) == timeless(read_records(out / "best-of-group-seed0"))
    assert (out / "report.html").is_file()


def test_an_installed_method_in_a_real_shell(installed: Path) -> None:
    environment = child_environment(installed, COLUMNS="160")
    done = subprocess.run(
        [sys.executable, "-m", "polyrl", "list"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0 and "best-of-group" in done.stdout


NO_RECIPE = {
    "recipe = 3": "has a 'recipe' that is no function; let it define recipe",
    "slug = 3": "defines no function recipe",
    "def recipe():\n    return 3": r"recipe\(\) of the method file .* returned a int",
    "def recipe(x):\n    return x": r"failed, called without arguments: TypeError: recipe\(\) missing 1 required",
    "def recipe():\n    return {}['a']": "failed, called without arguments: KeyError: 'a'",
}


@pytest.mark.parametrize("source", NO_RECIPE)
def test_a_file_without_a_recipe_is_one_sentence(source: str, tmp_path: Path, polyrl: Command) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f'"""Mine: it does nothing."""\n\n{source}\n')
    for words in (["show", path], ["train", path, "--task", TASK, "--out", tmp_path / "run"]):
        told = polyrl(*words)
        assert told.code == 2 and told.err.count("\n") == 1, told
        assert re.search(NO_RECIPE[source], told.err) and "mine.py" in told.err, told.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", ["sac", "iql", "ppo"])
def test_a_file_of_control_on_a_task_of_language_is_one_sentence(base: str, tmp_path: Path, polyrl: Command) -> None:
    """Also where the file names no task, since the usual one is of language."""
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Mine: another name."""\n\nfrom polyrl.catalogue import build\n\n\n'
        f'def recipe():\n    return build("{base}", domain="control")\n'
    )
    assert polyrl("show", path).code == 0
    for task in ([], ["--task", TASK]):
        told = polyrl("train", path, *task, "--budget", "iterations=1", "--out", tmp_path / "run")
        assert told.code == 2 and told.err.count("\n") == 1, told
        assert "no responses of a language model" in told.err and "TASK in the file or with --task" in told.err
    assert not (tmp_path / "run").exists()
