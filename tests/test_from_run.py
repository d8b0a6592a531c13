"""Models of other runs: the same numbers as in their own run, never changed, and told by a fingerprint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import SEED, made_once, read_records
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.update import Fresh, Move, Update
from polyrl.errors import UserError
from polyrl.models.from_run import FromRun
from polyrl.parts.control import StepEnvironments
from polyrl.parts.replayed import SquaredTD
from polyrl.recipe import Judged, Recipe
from polyrl.runs import make_loop, open_run_state, resume_run, start_run
from polyrl.runtime.config import RunConfig

torch.set_num_threads(1)
PPO = {"environments": "2", "steps_per_environment": "40", "hidden": "8", "epochs": "2", "minibatches": "2"}
SAC = {"turns": "20", "random_steps": "5", "learning_starts": "10", "hidden": "16x16", "batch_size": "8"}
RAW = {"normalize_observation": "false"}
PPO_LIST = str(Path(__file__).parent / "drafts" / "ppo_list.py")
RUNS: dict[str, tuple[str, str, dict[str, str]]] = {
    "ppo": ("ppo", "Pendulum-v1", PPO),
    "raw": ("ppo", "Pendulum-v1", {**PPO, **RAW}),
    "list": (PPO_LIST, "Pendulum-v1", PPO),
    "sac": ("sac", "Pendulum-v1", SAC),
    "cart": ("ppo", "CartPole-v1", PPO),
}


def config_of(method: str, task: str, sizes: dict[str, str], budget: str = "iterations=2") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 2, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        for name, (method, task, sizes) in RUNS.items():
            start_run(config_of(method, task, sizes), folder / name).run()

    return made_once(tmp_path_factory, "given-runs", make)


def with_guide(run: Path | str, model: str = "policy", base: str = "sac") -> Recipe:
    recipe = catalogue.build(base, SAC)
    models = {**recipe.models, "guide": FromRun(model=model)}
    judged = {"guide": Judged(model="guide")} if model == "policy" else {}
    found = dataclasses.replace(recipe, models=models, also_judged=judged)
    return found.set("guide.run", str(run)).check()


def state_of(recipe: Recipe, task: str = "Pendulum-v1") -> Any:
    return make_loop(config_of("sac", task, SAC), recipe=recipe)[0].run_state


@pytest.mark.parametrize("name", ["ppo", "list", "sac"])
def test_it_is_judged_as_in_its_own_run(runs: Path, name: str) -> None:
    own = [r["eval/return"] for r in read_records(runs / name) if "eval/return" in r]
    assert state_of(with_guide(runs / name)).evaluate()[0]["eval/guide/return"] == own[-1] != own[0]


@pytest.mark.parametrize("name", ["ppo", "list"])
def test_its_likelihoods_are_those_of_its_own_run(runs: Path, name: str) -> None:
    guide = state_of(with_guide(runs / name)).models["guide"]
    facts = yaml.safe_load((runs / name / "config.yaml").read_text(encoding="utf-8"))
    own = open_run_state(runs / name, RunConfig.from_dict(facts["run"], runs / name / "config.yaml"), trust_code=True)
    policy: Any = own.policy if own.models is None else own.models["policy"].policy  # type: ignore[attr-defined]
    raw = torch.randn(3, 4, 3)
    action = torch.randn(3, 4, 1)
    seen = torch.from_numpy(policy.normalize(raw.double().numpy()))
    assert not torch.allclose(seen, raw, atol=0.05)  # there is something to normalize
    expected = policy.outputs(seen, action)
    batch = Experience({"observation": raw, "action": action, "present": torch.ones(3, 4, dtype=torch.bool)})
    found = guide.outputs(batch, {"logprob", "entropy"}, None)
    assert torch.equal(found["logprob"], expected["logprob"]) and torch.equal(found["entropy"], expected["entropy"])


def test_critics_and_action_values_are_read_too(runs: Path) -> None:
    assert with_guide(runs / "raw", "critic").models["guide"].outputs == {"value"}
    critic = state_of(with_guide(runs / "raw", "critic")).models["guide"]
    facts = yaml.safe_load((runs / "raw" / "config.yaml").read_text(encoding="utf-8"))
    own: Any = open_run_state(runs / "raw", RunConfig.from_dict(facts["run"], runs / "raw" / "config.yaml"))
    raw = torch.randn(5, 3)
    assert torch.equal(critic.values(raw), own.critic.values(raw))
    q = state_of(with_guide(runs / "sac", "q_target")).models["guide"]
    weights = {name: x.clone() for name, x in q.state_dict().items()}
    from safetensors.torch import load_file

    stored = load_file(runs / "sac" / "model" / "q_target.safetensors")
    assert weights.keys() == stored.keys() and all(torch.equal(weights[name], stored[name]) for name in stored)
    assert "reads observations as the policy of that run normalized them" in refused(runs / "ppo", "critic")


def test_it_stays_as_it_is_even_where_it_acts(runs: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(with_guide(runs / "ppo"), acts="guide", judged="policy")
    recipe = dataclasses.replace(recipe, collect=dataclasses.replace(recipe.collect, random_steps=0)).check()  # type: ignore[type-var]
    assert isinstance(recipe.collect, StepEnvironments)
    loop = start_run(config_of("sac", "Pendulum-v1", SAC), tmp_path / "run", recipe=recipe)
    before = {name: x.clone() for name, x in loop.run_state.models["guide"].state_dict().items()}  # type: ignore[index]
    loop.run()
    after = loop.run_state.models["guide"].state_dict()  # type: ignore[index]
    assert any("moments" in name for name in before)
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert "guide" not in loop.run_state.parameters()
    with pytest.raises(UserError, match="would change 'guide', which is of another run"):
        dataclasses.replace(recipe, updates=(*recipe.updates, Update("guide", (SquaredTD(),), Fresh()))).check()
    with pytest.raises(UserError, match="would change 'guide', which is of another run"):
        dataclasses.replace(recipe, updates=(*recipe.updates, Move("guide", "policy", tau=0.5))).check()


def test_one_model_more_changes_no_other_number(runs: Path, tmp_path: Path) -> None:
    def weights(recipe: Recipe, name: str) -> dict[str, bytes]:
        start_run(config_of("sac", "Pendulum-v1", SAC), tmp_path / name, recipe=recipe).run()
        return {f.name: f.read_bytes() for f in (tmp_path / name / "model").glob("*.safetensors")}

    plain, more = weights(catalogue.build("sac", SAC), "plain"), weights(with_guide(runs / "ppo"), "more")
    assert more.pop("guide.safetensors") and more == plain


def refused(run: Path | str, model: str = "policy", task: str = "Pendulum-v1") -> str:
    with pytest.raises(UserError) as error:
        state_of(with_guide(run, model), task)
    return str(error.value)


def test_what_does_not_fit_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    assert "There is no folder nowhere" in refused("nowhere")
    assert "none is named; give the folder of a finished run" in refused("")
    (tmp_path / "empty").mkdir()
    assert "has no model/policy.json that can be read" in refused(tmp_path / "empty")
    assert "was on CartPole-v1, which has observations of size 4, and Pendulum-v1 has" in refused(runs / "cart")
    assert "has no model 'nobody'; it has policy, q, q_target, temperature." in refused(runs / "sac", "nobody")
    (tmp_path / "tours" / "model").mkdir(parents=True)
    (tmp_path / "tours" / "model" / "policy.json").write_text('{"task": "tsp", "models": {}}', encoding="utf-8")
    assert "was on tsp, which is no task of control; name a run of one." in refused(tmp_path / "tours")
    shutil.copytree(runs / "sac", tmp_path / "sac")
    (tmp_path / "sac" / "model" / "policy.safetensors").write_bytes(b"nothing")
    assert "has no readable policy.safetensors" in refused(tmp_path / "sac")
    shutil.copytree(runs / "cart", tmp_path / "cart")
    about = tmp_path / "cart" / "model" / "policy.json"
    said = json.loads(about.read_text(encoding="utf-8"))
    about.write_text(json.dumps({**said, "observation_size": 3}), encoding="utf-8")
    assert "which has actions in Discrete(2), and Pendulum-v1 has actions in Box" in refused(tmp_path / "cart")
    earlier = {key: value for key, value in said.items() if key != "observation_size"}  # it was not stated always
    about.write_text(json.dumps({**earlier, "action": "Box(-2.0, 2.0, (1,), float32)"}), encoding="utf-8")
    assert "do not fit observations of size 3" in refused(tmp_path / "cart")


def test_a_folder_runs_no_code_of_its_own(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "sac", tmp_path / "sac")
    about = tmp_path / "sac" / "model" / "policy.json"
    said = json.loads(about.read_text(encoding="utf-8"))
    said["models"]["policy"]["name"] = "own-network"
    about.write_text(json.dumps(said), encoding="utf-8")
    (tmp_path / "sac" / "own_network.py").write_text("raise SystemExit('it was run')\n", encoding="utf-8")
    assert "is a 'own-network', which no code that is loaded here makes" in refused(tmp_path / "sac")
    said["models"]["policy"] = {"name": "squashed-gaussian", "width": 3}
    about.write_text(json.dumps(said), encoding="utf-8")
    assert "states 'squashed-gaussian' with other settings than" in refused(tmp_path / "sac")
    said["models"]["policy"] = {"name": "from-run", "run": "x", "model": "policy"}
    about.write_text(json.dumps(said), encoding="utf-8")
    assert "of another run again; name that one" in refused(tmp_path / "sac")


def test_what_reads_it_gets_raw_observations_or_is_refused(runs: Path) -> None:
    class Reads(SquaredTD):
        models = frozenset({"guide"})

    recipe = catalogue.build(PPO_LIST, PPO)
    recipe = dataclasses.replace(recipe, models={**recipe.models, "guide": FromRun(run=str(runs / "ppo"))})
    recipe.check()
    recipe = dataclasses.replace(recipe, updates=(*recipe.updates, Update("critic", (Reads(),), Fresh())))
    with pytest.raises(UserError, match="on observations that the policy of this run has normalized"):
        recipe.models["guide"].check_within(recipe)


def test_its_fingerprint_is_stated_and_another_model_is_told(runs: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    shutil.copytree(runs / "sac", given)
    draft = tmp_path / "guided.py"
    draft.write_text(
        "import dataclasses\nfrom polyrl import catalogue\nfrom polyrl.models.from_run import FromRun\n"
        "from polyrl.recipe import Recipe\n"
        'SLUG, TITLE, PAPER, YEAR, FORMULA, TASK = "guided", "A title", "none", 2020, "none", "Pendulum-v1"\n'
        'def recipe() -> Recipe:\n    """With a guide."""\n    sac = catalogue.build("sac")\n'
        '    return dataclasses.replace(sac, name=SLUG, models={**sac.models, "guide": FromRun()})\n',
        encoding="utf-8",
    )
    config = config_of(str(draft), "Pendulum-v1", {**SAC, "guide.run": str(given)}, "iterations=3")
    loop = start_run(config, tmp_path / "run")
    iterate, count = loop.iterate, iter(range(9))

    def stops(*arguments: Any) -> Any:
        if next(count) == 1:
            raise KeyboardInterrupt
        return iterate(*arguments)

    loop.iterate = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    facts = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    stated = facts["given_models"]["guide"]
    assert stated == {"run": str(given), "model": "policy", "fingerprint": FromRun(run=str(given)).fingerprint}
    assert facts["start"] == f"guide={stated['fingerprint']}"
    assert (
        FromRun(run=str(runs / "sac")).fingerprint
        == stated["fingerprint"]
        != FromRun(run=str(runs / "ppo")).fingerprint
    )
    shutil.copy(runs / "sac" / "model" / "q.safetensors", given / "model" / "policy.safetensors")
    with pytest.raises(UserError):
        resume_run(tmp_path / "run", trust_code=True)
    shutil.copy(runs / "sac" / "model" / "policy.safetensors", given / "model" / "policy.safetensors")
    from safetensors.torch import load_file, save_file

    file = given / "model" / "policy.safetensors"
    save_file({name: x + np.float32(0.5) for name, x in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"The starting model of .* has changed"):
        resume_run(tmp_path / "run", trust_code=True)


def test_the_folder_is_found_again_from_elsewhere(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyrl.runs import located

    monkeypatch.chdir(runs)
    found = located(config_of("sac", "Pendulum-v1", {"guide.run": "sac", "hidden": "8"})).hyperparameters
    assert found == {"guide.run": str(runs / "sac"), "hidden": "8"}


@pytest.mark.parametrize("method", ["grpo", "nash-mp"])
def test_other_domains_refuse_it_in_a_sentence(method: str) -> None:
    recipe = catalogue.build(method)
    recipe = dataclasses.replace(recipe, models={**recipe.models, "guide": FromRun()})
    with pytest.raises(UserError, match="its part 'from-run' works on tasks of control"):
        make_loop(config_of(method, catalogue.describe(method).task, {}), recipe=recipe)
