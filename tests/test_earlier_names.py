"""What versions before 0.2 wrote is still understood: options, run folders, checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from conftest import Command, read_records, timeless
from polyrl import catalogue
from polyrl.report.runs import load_run
from polyrl.runs import resume_run
from polyrl.runtime import checkpoint
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
