"""What versions before 0.2 wrote is still understood: options, run folders, checkpoints."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import Command, child_environment, read_records, timeless
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.part import RENAMED
from polyrl.errors import UserError
from polyrl.moved import MODULES
from polyrl.recipe import Term
from polyrl.report.runs import load_run
from polyrl.runs import resume_run
from polyrl.runtime import checkpoint
from polyrl.runtime.budget import Budget
from polyrl.runtime.run_folder import RunFolder
from polyrl.settings import american

# spelled in pieces, so that nobody who changes a spelling everywhere changes it here
S, WING, OPTIMISER = "s", "w" + "ing", "optimi" + "ser"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (f"normali{S}e_score", "normalize_score"),
        (f"optimi{S}e.normali{S}e_advantage", "optimize.normalize_advantage"),
        (f"regulari{S}ed-softmax", "regularized-softmax"),
        ("prioritised", "prioritised"),
        ("optimism", "optimism"),
        ("raise", "raise"),
    ],
)
def test_names_in_british_spelling(before: str, now: str) -> None:
    assert american(before) == now


def test_options_and_parts_in_british_spelling(tmp_path: Path, polyrl: Command) -> None:
    recipe = catalogue.build(f"ppo(normali{S}e_advantage=true)+normali{S}e-score", {"score_form": f"normali{S}e"})
    values = recipe.hyperparameters()
    assert values["optimize.normalize_advantage"] is True and values["normalize-score.score_form"] == "normalize"
    line = ["--task", "CartPole-v1", "--budget", "iterations=1", "--evaluations", 1, "--eval-episodes", 1, "--quiet"]
    told = polyrl("train", "ppo", *line, f"--normali{S}e-observation", "true", "--out", tmp_path / "run")
    assert told.code == 0, told.err
    found = RunFolder(tmp_path / "run").read_config()["hyperparameters"]
    assert found["mlp-actor-critic.normalize_observation"] is True


def test_a_run_folder_of_before_is_read_and_goes_on(tmp_path: Path, polyrl: Command) -> None:
    line = ["--task", "CartPole-v1", "--evaluations", 1, "--eval-episodes", 1, "--checkpoint-every", 2, "--quiet"]
    line += ["--environments", 2, "--steps-per-environment", 16, "--budget", "iterations=4"]
    assert polyrl("train", "ppo", *line, "--out", tmp_path / "whole").code == 0
    old = shutil.copytree(tmp_path / "whole", tmp_path / "old")
    shutil.rmtree(old / "model")
    shutil.rmtree(old / "checkpoints" / "iteration-000004")
    config = yaml.safe_load((old / "config.yaml").read_text())
    config[WING] = config.pop("domain")
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    folder = old / "checkpoints" / "iteration-000002"
    state = json.loads((folder / "state.json").read_text())
    for model in ("policy", "critic"):
        now, before = f"optimizer-{model}.safetensors", f"{OPTIMISER}-{model}.safetensors"
        (folder / now).rename(folder / before)
        state["files"][before] = state["files"].pop(now)
    facts = json.loads((folder / "environments.json").read_text())
    facts["paid"] = facts.pop("return_so_far")
    (folder / "environments.json").write_text(json.dumps(facts))
    state["files"]["environments.json"] = checkpoint._digest(folder / "environments.json")
    state["digest"] = checkpoint._state_digest(state)
    (folder / "state.json").write_text(json.dumps(state))

    assert RunFolder(old).read_config()["domain"] == load_run(old).config["domain"] == "control"
    resume_run(old, trust_code=True).run()
    assert timeless(read_records(old)) == timeless(read_records(tmp_path / "whole"))
    assert not (tmp_path / "old" / "checkpoints" / "iteration-000002" / "kept").exists()


# ----------------------------------------------------------------------------------------------- code of users


def test_modules_of_before_are_found_and_say_where_they_are() -> None:
    """Every one of the table is there, and hands on the very same objects."""
    for before, now in MODULES.items():
        with pytest.warns(DeprecationWarning, match=f"polyrl.{before} is called polyrl.{now} since polyrl 0.2"):
            sys.modules.pop(f"polyrl.{before}", None)
            found = importlib.import_module(f"polyrl.{before}")
        target = importlib.import_module(f"polyrl.{now}")
        public = [name for name in vars(target) if not name.startswith("_")]
        assert all(getattr(found, name) is getattr(target, name) for name in public), before
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("polyrl.policies.nothing")
    policy = importlib.import_module("polyrl.policies.language")
    with pytest.warns(DeprecationWarning, match="Reader is called Backbone"):
        assert policy.Reader is policy.Backbone
    with pytest.raises(AttributeError, match="has no attribute 'Writer'"):
        _ = policy.Writer


def test_names_of_before_in_what_is_public() -> None:
    for module in ("polyrl", "polyrl.recipe"):
        home = importlib.import_module(module)
        with pytest.warns(DeprecationWarning, match=f"{module}.knob is called hyperparameter"):
            assert home.knob is home.hyperparameter
        with pytest.raises(AttributeError, match="has no attribute 'knobs'"):
            _ = home.knobs


@pytest.mark.parametrize(("before", "now"), RENAMED.items())
def test_a_term_that_would_not_be_heard_is_refused(before: str, now: str) -> None:
    with pytest.raises(UserError, match=f"Mine.{before} is called {now} since polyrl 0.2"):
        type("Mine", (Term,), {before: "pair"})


def test_a_part_that_sets_what_is_called_otherwise_is_stopped() -> None:
    context = Context(run_state=None, seed=0, budget=Budget(samples=1))
    with pytest.raises(AttributeError):
        context.touched = True  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"is called context\.run_state"):
        _ = context.world


def test_importing_polyrl_stays_instant() -> None:
    code = "import sys, polyrl; print('polyrl.moved' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_environment()
    )
    assert done.stdout.split() == ["False", "False"]
