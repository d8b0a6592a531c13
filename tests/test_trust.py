"""Code that a run folder names: none runs that the user has not chosen, and one's own runs are no nuisance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import polyrl as library
from conftest import Command
from polyrl import trust
from polyrl.errors import UserError
from polyrl.runtime.config import RunConfig
from tiny_models import save_model

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
MARK = "open({mark!r}, 'a').write('ran ')\n"
REWARD = "def paid(prompts, completions, **columns):\n    return [1.0] * len(completions)\n"
PREFER = "def prefer(prompts, completions_a, completions_b, **columns):\n    return [0.5] * len(prompts)\n"
MAKE = "import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n"
METHOD = "from polyrl.methods.language.grpo import recipe\n"
SMALL = ("--prompts-per-step", 2, "--completions-per-prompt", 2, "--budget", "iterations=1", "--max-tokens", 4)
QUICK = ("--eval-prompts", 2, "--evaluations", 1, "--no-tensorboard", "--quiet")
CONTROL = ("--budget", "steps=64", "--environments", 2, "--steps-per-environment", 16, "--eval-episodes", 1)


@pytest.fixture(autouse=True)
def nothing_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has run nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_here", set())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs that name no code: `language` and `control`."""
    from polyrl.cli.main import polyrl as cli

    root = tmp_path_factory.mktemp("made")
    model, data = save_model(root / "model", "qwen3"), root / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    language = ["train", "grpo", "--dataset", data, "--model", model, "--out", root / "language", *SMALL, *QUICK]
    control = ["train", "ppo", "--task", "CartPole-v1", *CONTROL, "--evaluations", 1, "--no-tensorboard", "--quiet"]
    cli.main([*map(str, language)], standalone_mode=False)
    cli.main([*map(str, [*control, "--out", root / "control"])], standalone_mode=False)
    return root


def foreign(made: Path, tmp_path: Path, kind: str, place: str = "evil.py") -> tuple[Path, Path]:
    """A run folder from somebody else whose config names code in it; the code leaves a mark when it runs."""
    text, name = {
        "reward": (REWARD, "paid"),
        "preference": (PREFER, "prefer"),
        "task": (MAKE, "make"),
        "method": (METHOD, ""),
    }[kind]
    run, mark = tmp_path / "foreign", tmp_path / "mark"
    shutil.copytree(made / ("control" if kind == "task" else "language"), run)
    (run / place).write_text(MARK.format(mark=str(mark)) + text, encoding="utf-8")
    spec = f"{run / place}:{name}" if name else str(run / place)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["run"]["rewards" if kind == "reward" else kind] = [spec] if kind == "reward" else spec
    config["run"]["budget"] = "iterations=2" if kind != "task" else "steps=96"
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return run, mark


ASKED = [
    ("resume", "reward"),
    ("resume", "preference"),
    ("resume", "method"),
    ("resume", "task"),
    ("eval", "reward"),
    ("eval", "task"),
    ("play", "task"),
]


@pytest.mark.parametrize("command, kind", ASKED)
def test_code_from_somebody_else_runs_only_when_told(
    made: Path, tmp_path: Path, polyrl: Command, command: str, kind: str
) -> None:
    run, mark = foreign(made, tmp_path, kind)
    judged = ["--episodes" if kind == "task" else "--prompts", 2]
    few = {"eval": judged, "play": [], "resume": ["--quiet"]}[command]
    told = polyrl(command, run, *few)
    assert told.code == 2 and not mark.exists()
    assert told.err.count("\n") == 1 and f"names the {kind} " in told.err and "--trust-code" in told.err
    told = polyrl(command, run, *few, "--trust-code")
    assert mark.exists() or kind == "method", told.err  # a method's file may be read and not run once it is imported
    if kind != "method":
        assert told.code == 0, told.err
        assert polyrl("eval", run, *judged).code == 0  # chosen now: nobody is asked twice


@pytest.mark.parametrize(
    "command, kind", [("play", "reward"), ("play", "preference"), ("play", "method"), ("eval", "method")]
)
def test_commands_run_no_code_that_they_do_not_need(
    made: Path, tmp_path: Path, polyrl: Command, command: str, kind: str
) -> None:
    run, mark = foreign(made, tmp_path, kind)
    told = polyrl(command, run, "--prompts", 2)
    assert told.code == 0, told.err
    assert not mark.exists()


def test_reports_run_nothing(made: Path, tmp_path: Path, polyrl: Command) -> None:
    run, mark = foreign(made, tmp_path, "reward")
    assert polyrl("report", run).code == 0
    assert not mark.exists()


def test_a_comparison_from_somebody_else_runs_no_code(made: Path, tmp_path: Path, polyrl: Command) -> None:
    run, mark = foreign(made, tmp_path, "reward")
    base = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["run"]
    question = {"methods": ["grpo"], "seeds": [0], "base": {**base, "method": ""}}
    place = tmp_path / "compared"
    place.mkdir()
    (place / "compare.yaml").write_text(yaml.safe_dump({"question": question}), encoding="utf-8")
    told = polyrl("resume", place)
    assert told.code == 2 and "names the reward" in told.err and not mark.exists()


def test_python_asks_too(made: Path, tmp_path: Path) -> None:
    run, mark = foreign(made, tmp_path, "reward")
    with pytest.raises(UserError, match="trust_code=True"):
        library.evaluate(run, prompts=2)
    with pytest.raises(UserError, match="trust_code=True"):
        library.resume(run, quiet=True)
    assert not mark.exists()
    library.evaluate(run, prompts=2, trust_code=True)
    assert mark.exists()


def test_ones_own_runs_go_on_with_code_that_was_mended(made: Path, tmp_path: Path, polyrl: Command) -> None:
    own = tmp_path / "mine.py"
    own.write_text(REWARD, encoding="utf-8")
    data = ("--dataset", made / "data.jsonl", "--model", made / "model", "--reward", f"{own}:paid")
    assert polyrl("train", "grpo", *data, "--out", tmp_path / "run", *SMALL, *QUICK).code == 0
    trust._here.clear()  # as in a new process
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert polyrl("eval", moved, "--prompts", 2).code == 0
    assert polyrl("resume", moved, "--quiet").code == 0
    own.write_text(REWARD.replace("1.0", "2.0"), encoding="utf-8")
    assert polyrl("eval", moved, "--prompts", 2).code == 0  # mended where the user keeps it


def test_code_that_lies_in_a_run_folder_must_be_what_was_chosen(tmp_path: Path) -> None:
    inside, beside = tmp_path / "run" / "mine.py", tmp_path / "mine.py"
    inside.parent.mkdir()
    for own in (inside, beside):
        own.write_text(REWARD, encoding="utf-8")
        config = RunConfig(method="grpo", rewards=(f"{own}:paid",))
        trust.choose(config)
        trust._here.clear()
        trust.check_code(config, tmp_path / "run")
        own.write_text(REWARD.replace("1.0", "2.0"), encoding="utf-8")
        if own == beside:
            trust.check_code(config, tmp_path / "run")
        else:
            with pytest.raises(UserError, match="it has changed since"):
                trust.check_code(config, tmp_path / "run")


def test_a_home_that_cannot_be_written_to_keeps_nobody_from_training(
    made: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    own = tmp_path / "mine.py"
    own.write_text(REWARD, encoding="utf-8")
    trust.choose(RunConfig(method="grpo", rewards=(f"{own}:paid",)))
    trust.check_code(RunConfig(method="grpo", rewards=(f"{own}:paid",)), tmp_path)  # in the process that chose it
    trust._here.clear()
    with pytest.raises(UserError, match="--trust-code"):
        trust.check_code(RunConfig(method="grpo", rewards=(f"{own}:paid",)), tmp_path)


@pytest.mark.parametrize(
    "config, kinds",
    [
        ({"rewards": ("exact", "numeric=2")}, []),
        ({"rewards": ("evil:f",)}, ["reward"]),
        ({"rewards": ("evil.py:f=0.5",)}, ["reward"]),
        ({"rewards": ("pack.evil:f",)}, ["reward"]),
        ({"preference": "evil.py:f"}, ["preference"]),
        ({"task": "evil.py:make(size=3)"}, ["task"]),
        ({"task": "evil:Thing-v0"}, ["task"]),
        ({"task": "CartPole-v1"}, []),
        ({"task": "lost-sales(lead_time=3)"}, []),
        ({"method": "grpo+./evil.py(a=1)"}, ["method"]),
        ({"method": "grpo+drop-equal-groups"}, []),
    ],
)
def test_all_code_that_a_config_can_name_is_seen(
    config: dict[str, Any], kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    for file in ("evil.py", "pack/__init__.py", "pack/evil.py"):
        (tmp_path / file).write_text("raise SystemExit('ran')\n", encoding="utf-8")
    named = trust.named_code(RunConfig(**{"method": "grpo", **config}))
    assert [code.kind for code in named] == kinds
    assert all(code.digest and Path(code.place).name == "evil.py" for code in named)
