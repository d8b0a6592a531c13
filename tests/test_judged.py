"""What evaluations judge beside a recipe's policy: under names of their own, without a number of training changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conftest import SEED, read_records
from polyrl import catalogue
from polyrl.cli.explain import show_method
from polyrl.errors import UserError
from polyrl.models.actor import Actor, Making, Moment, Player
from polyrl.models.base import Copy
from polyrl.models.policies import NetworkActor
from polyrl.recipe import Judged, Recipe, hyperparameter
from polyrl.report.labels import metric_label
from polyrl.runs import make_loop, start_run
from polyrl.runtime.config import RunConfig

torch.set_num_threads(1)
SIZES = {
    "ppo": {"environments": "2", "steps_per_environment": "16", "hidden": "8", "epochs": "2", "minibatches": "2"},
    "sac": {"turns": "20", "random_steps": "5", "learning_starts": "10", "hidden": "16x16", "batch_size": "8"},
}
OTHER = "Pendulum-v1(g=2.0)"


class Constant(NetworkActor):
    """Does the same in every state."""

    def __init__(self, inner: Actor, action: float):
        assert isinstance(inner, NetworkActor)
        super().__init__(inner.policy)
        self.execute, self.action = inner.execute, action

    def player(self) -> Player:
        """The one action."""

        def play(moment: Moment) -> NDArray[Any]:
            return np.full((len(moment.starts), *self.action_shape), self.action, np.float32)

        return play


@dataclass(frozen=True, kw_only=True)
class Still(Judged):
    """One action in the place of the policy's."""

    action: float = hyperparameter(0.0, "what is done", low=-1, high=1)

    def actor(self, inner: Actor, making: Making) -> Actor:
        """Told the task that it is judged on."""
        assert making.task.name == (self.task or "Pendulum-v1")
        return Constant(inner, self.action)


def config_of(method: str, task: str = "Pendulum-v1", **more: Any) -> RunConfig:
    options: dict[str, Any] = {"evaluations": 2, "eval_episodes": 2, "tensorboard": False, "checkpoint_every": 1}
    sizes = SIZES.get(method, {})
    return RunConfig(
        method=method, task=task, budget="iterations=2", seed=SEED, hyperparameters=sizes, **options, **more
    )


def with_judged(method: str, judged: Mapping[str, Judged], **more: Any) -> Recipe:
    recipe = catalogue.build(method, SIZES.get(method, {}), domain="control" if method in SIZES else None)
    return dataclasses.replace(recipe, also_judged=judged, **more).check()


def ran(recipe: Recipe, folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    start_run(config_of(recipe.name), folder, recipe=recipe).run()
    return read_records(folder), {f.name: f.read_bytes() for f in (folder / "model").glob("*.safetensors")}


@pytest.mark.parametrize("method", ["ppo", "sac"])
def test_judging_more_changes_no_number_of_training(tmp_path: Path, method: str) -> None:
    plain, weights = ran(with_judged(method, {}), tmp_path / "plain")
    also = {"again": Judged(), "acting": Judged(acting=True), "light": Judged(model="policy", task=OTHER)}
    records, same = ran(with_judged(method, also), tmp_path / "more")
    assert same == weights and len(weights) >= 2
    told = {f"eval/{name}/{what}" for name in also for what in ("return", "return_std", "length")}
    for before, after in zip(plain, records, strict=True):
        timed = ("seconds", "steps_per_second", "updates_per_second")
        assert after.keys() - before.keys() == (told if "eval/return" in before else set())
        assert {k: v for k, v in before.items() if not k.startswith(timed)}.items() <= after.items()
        if "eval/return" in after:
            assert after["eval/again/return"] == after["eval/return"] == after["eval/acting/return"]
            assert after["eval/light/return"] != after["eval/return"]


def test_a_wrapper_is_judged_by_its_own_return_on_its_own_task_and_is_set_by_name() -> None:
    recipe = with_judged("sac", {"still": Still(), "push": Still(action=0.5), "light": Still(action=0.5, task=OTHER)})
    loop = make_loop(config_of("sac"), recipe=recipe.set("push.action", "0.0"))[0]
    found = loop.run_state.evaluate()[0]
    assert found["eval/still/return"] == found["eval/push/return"] != found["eval/return"]

    def by_hand(gravity: float, torque: float) -> float:
        import gymnasium

        from polyrl.rollout.environments import episode_seed
        from polyrl.run_state.control_judging import EVALUATION_SEED

        made, totals = gymnasium.make("Pendulum-v1", g=gravity), []
        for k in range(2):
            made.reset(seed=episode_seed(EVALUATION_SEED, 0, k))
            steps = [made.step(np.array([torque], np.float32)) for _ in range(200)]
            totals.append(sum(float(s[1]) for s in steps))
        return sum(totals) / 2

    assert found["eval/still/return"] == pytest.approx(by_hand(10.0, 0.0))
    assert found["eval/light/return"] == pytest.approx(by_hand(2.0, 1.0))


def test_another_model_is_judged_under_its_name(tmp_path: Path) -> None:
    models = {**catalogue.build("sac", SIZES["sac"]).models, "first": Copy("policy")}
    recipe = with_judged("sac", {"first": Judged(model="first")}, models=models)
    records = [r for r in ran(recipe, tmp_path / "run")[0] if "eval/return" in r]
    assert len({r["eval/first/return"] for r in records}) == 1 < len({r["eval/return"] for r in records})
    assert records[0]["eval/first/return"] == records[0]["eval/return"]


def test_it_is_shown_and_labelled_like_other_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    recipe = with_judged("sac", {"light": Still(task=OTHER)})
    monkeypatch.setattr(catalogue, "build", lambda *given, **named: recipe)
    out = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show_method("sac", "control", out)
    said = out.export_text()
    assert "what do evaluations judge" in said and "eval/light/return" in said and "--light.action 0" in said
    assert f"on {OTHER}" in said
    assert metric_label("control", "eval/light/return") == ("Evaluation return: light", "", "Evaluation")
    assert metric_label("control", "eval/rewards/return")[2] == "Evaluation"


def refused(method: str, judged: Mapping[str, Judged], task: str = "Pendulum-v1") -> str:
    with pytest.raises(UserError) as error:
        make_loop(config_of(method, task), recipe=with_judged(method, judged))
    return str(error.value)


def test_what_cannot_be_judged_is_refused_in_a_sentence() -> None:
    assert "judges the model 'nobody', which the recipe does not state; it has policy, q," in refused(
        "sac", {"x": Judged(model="nobody")}
    )
    assert "'x' is to judge the model 'q', which is no policy" in refused("sac", {"x": Judged(model="q")})
    assert "cannot name what is judged" in refused("sac", {"a b": Judged()})
    assert "as it acts in training, where it does not" in refused("sac", {"x": Judged(model="q", acting=True)})
    other = refused("ppo", {"x": Judged(task="CartPole-v1")})
    assert "'x' is to be judged on CartPole-v1, which has observations of size 4" in other
    assert "actions in Box" in refused("ppo", {"x": Judged(task="MountainCarContinuous-v0")}, "MountainCar-v0")


@pytest.mark.parametrize(("method", "task"), [("grpo", ""), ("hdpo", ""), ("nash-mp", "")])
def test_other_domains_refuse_it_in_a_sentence(method: str, task: str) -> None:
    said = refused(method, {"guided": Judged()}, task or catalogue.describe(method).task)
    assert "its part 'judged' works on tasks of control, and this is one of" in said
