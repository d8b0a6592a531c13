"""PA-RL: the card's numbers, its operators against plain loops, its base policy as its limit, resuming, learning."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.means import Means
from polyrl.core.update import Mix, Phase, Repeat, See, Update
from polyrl.errors import UserError
from polyrl.methods.control.pa_rl import (
    CalibratedPenalty,
    ImprovedAction,
    ImprovedTarget,
    Operator,
    calibrated_gap,
    climbed,
)
from polyrl.models.critics import ActionCritics
from polyrl.parts.imitating import OwnImitation
from polyrl.parts.replayed import StepAndKeep
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
SMALL = {
    **{"turns": "20", "learning_starts": "10", "hidden": "16x16", "batch_size": "8", "critics": "3"},
    **{"optimizer_steps": "20", "denoising_steps": "3", "candidates": "5", "kept": "3", "local_steps": "2"},
    **{"step_size": "0.05"},
}
ALONE = {"candidates": "1", "kept": "1", "local_steps": "0"}


def config_of(method: str, sizes: dict[str, str], budget: str = "iterations=4") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task="wall-point", budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(method: str = "pa-rl", **settings: str) -> Any:
    return make_loop(config_of(method, {**SMALL, **settings}))[0]


class Known(ActionCritics):
    """Two critics whose mean is a function of the action that is written down."""

    def __init__(self, value: Any):
        torch.nn.Module.__init__(self)
        self.value = value

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        found: Tensor = self.value(action)
        return torch.stack([found + 1, found - 1], -1)

    def way_back(self, observation: Tensor, action: Tensor, members: int | None = None) -> Any:
        with torch.enable_grad():
            leaf = action.detach().requires_grad_()
            values = self(observation, leaf)
        return values.detach(), lambda grad: torch.autograd.grad(values, leaf, grad)[0]


NOTHING = torch.zeros(1, 1)


# --------------------------------------------------------------------------------------------------- the card's numbers


def test_check_1_a_linear_critic_is_climbed_at_a_steady_pace() -> None:
    critics = Known(lambda a: a @ torch.tensor([0.02, -0.01]))
    found = climbed(critics, NOTHING, torch.zeros(1, 2), 10, 0.1)[0]
    torch.testing.assert_close(found, torch.tensor([[0.02, -0.01]]))
    far = climbed(Known(lambda a: a @ torch.tensor([2.0, -1.0])), NOTHING, torch.zeros(1, 2), 10, 0.1)[0]
    assert far.tolist() == [[1, -1]]  # (2, -1) would lie beyond what actions may be


def test_check_2_local_steps_are_tiny() -> None:
    critics = Known(lambda a: -(a[..., 0] - 0.5).square())
    assert float(climbed(critics, NOTHING, torch.zeros(1, 1), 10, 3e-4)[0]) == pytest.approx(0.0029919, abs=1e-6)


def test_check_3_a_step_never_makes_an_action_worse() -> None:
    def from_zero(size: float, peak: float) -> float:
        return float(climbed(Known(lambda a: -(a[..., 0] - peak).square()), NOTHING, torch.zeros(1, 1), 1, size)[0])

    assert from_zero(2, 0.4) == 0  # it would come to 1, where it is worth -0.36 and not -0.16
    assert from_zero(2, 0.5) == 0  # as good as the start
    assert from_zero(0.5, 0.4) == pytest.approx(0.4)
    both = climbed(
        Known(lambda a: -(a[..., 0] - 0.4).square()), torch.zeros(2, 1), torch.tensor([[0.0], [0.3]]), 1, 1.2
    )
    torch.testing.assert_close(both[0], torch.tensor([[0.0], [0.3]]))  # each for itself


def test_check_4_values_are_logits() -> None:
    share = torch.tensor([1.0, 0.0]).softmax(-1)
    torch.testing.assert_close(share, torch.tensor([0.731059, 0.268941]), rtol=0, atol=1e-6)


def test_check_6_what_was_earned_bounds_the_policys_values() -> None:
    random, policy, data = torch.tensor([-30.0]), torch.tensor([-5.0, -20.0]), torch.tensor(-40.0)
    found = calibrated_gap(random, policy, data, torch.tensor(-10.0))
    assert float(found) == pytest.approx(-4.993285 - math.log(4) + 40, abs=1e-5)
    free = calibrated_gap(random, policy, data, torch.tensor(-math.inf))
    assert float(free) == pytest.approx(math.log(sum(map(math.exp, (-30, -5, -20, -40)))) - math.log(4) + 40, abs=1e-5)
    twice = calibrated_gap(torch.tensor([-5.0, -6.0]), torch.tensor([-7.0]), torch.tensor(-8.0), torch.tensor(-9.0))
    plain = sum(map(math.exp, (-5, -6, -7, -7, -8)))  # the policy's action counts as often as the random ones
    assert float(twice) == pytest.approx(math.log(plain / 5) + 8, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ operators


def operator_of(loop: Any, **settings: Any) -> tuple[Operator, Any, Tensor, Tensor]:
    """The operator of its target, the models, observations `[6, 2]`, and noise of five proposals."""
    models, stream = loop.run_state.models, torch.Generator().manual_seed(1)
    operator = dataclasses.replace(ImprovedTarget(candidates=5, kept=3, local_steps=2, step_size=0.05), **settings)
    noise = torch.randn(6, 5, models["base"].proposal_size, generator=stream)
    return operator, models, torch.rand(6, 2, generator=stream), noise


@torch.no_grad()
def test_the_best_are_kept_and_climb_each_for_itself() -> None:
    loop = loop_of()
    operator, models, shown, noise = operator_of(loop)
    chosen = operator.best(models, shown, noise)
    for row in range(6):
        proposed = models["base"].propose(shown[row].expand(5, 2), noise[row])
        value = models["q"](shown[row].expand(5, 2), proposed).mean(-1)
        best = [proposed[i] for i in sorted(range(5), key=lambda i: -float(value[i]))[:3]]
        ends = []
        for action in best:
            way = [action]
            for _ in range(2):
                with torch.enable_grad():
                    leaf = way[-1].clone().requires_grad_()
                    models["q"](shown[row], leaf).mean().backward()
                assert leaf.grad is not None
                way.append((way[-1] + 0.05 * leaf.grad).clamp(-1, 1))
            ends.append(max(way, key=lambda a: float(models["q"](shown[row], a).mean())))
        wanted = max(ends, key=lambda a: float(models["q"](shown[row], a).mean()))
        torch.testing.assert_close(chosen[row], wanted, rtol=1e-4, atol=1e-5)
        assert float(models["q"](shown[row], chosen[row]).mean()) >= float(value.max()) - 1e-6  # check 5


@torch.no_grad()
def test_without_operators_it_is_what_the_policy_proposes() -> None:
    operator, models, shown, noise = operator_of(loop_of(), candidates=1, kept=1, local_steps=0)
    found = operator.best(models, shown, noise[:, :1])
    assert torch.equal(found, models["base"].propose(shown, noise[:, 0]))


@torch.no_grad()
@pytest.mark.parametrize("imitates", ["softmax", "best"])
def test_the_datas_action_is_among_those_that_are_imitated(imitates: Any) -> None:
    loop = loop_of()
    models, context = loop.run_state.models, loop.context
    context.iteration, context.means = 1, Means()
    stream = torch.Generator().manual_seed(2)
    rows = 400
    batch = Experience(
        {
            "observation": torch.rand(1, 1, 2, generator=stream).expand(rows, 1, 2),
            "action": torch.tensor([0.25, -0.5]).expand(rows, 1, 2),
            "weight": torch.ones(rows, 1),
        }
    )
    part = ImprovedAction(candidates=4, kept=3, local_steps=0, imitates=imitates)
    found = part.apply(batch, See(models, context, "x"))["action"][:, 0]
    noise = torch.randn(rows, 1, 4, models["base"].proposal_size, generator=context.generator("x"))
    shown, own = batch["observation"][0, 0], batch["action"][0, 0]
    shares, drawn = torch.zeros(3), torch.zeros(3)
    for row in range(rows):
        proposed = models["base"].propose(shown.expand(4, 2), noise[row, 0])
        order = models["q"](shown.expand(4, 2), proposed).mean(-1).argsort(descending=True)
        among = torch.cat([proposed[order[:2]], own[None]])
        value = models["q"](shown.expand(3, 2), among).mean(-1)
        which = [torch.allclose(found[row], action, atol=1e-6) for action in among].index(True)
        assert imitates == "softmax" or which == int(value.argmax())
        shares += value.softmax(-1) / rows
        drawn[which] += 1 / rows
    if imitates == "softmax":
        torch.testing.assert_close(drawn, shares, rtol=0, atol=0.08)
        assert float(shares.min()) > 0.1


def test_targets_and_the_penalty_look_at_improved_actions() -> None:
    loop = loop_of()
    models, context = loop.run_state.models, loop.context
    context.iteration = 1
    models["q_target"].network.biases[-1].data.add_(1)
    stream = torch.Generator().manual_seed(3)
    batch = Experience(
        {
            "observation": torch.rand(4, 1, 2, generator=stream),
            "next_observation": torch.rand(4, 1, 2, generator=stream),
            "action": torch.rand(4, 1, 2, generator=stream),
            "reward": torch.rand(4, 1, generator=stream),
            "discount": torch.tensor([[0.99], [0.0], [0.99], [0.99]]),
            "return_to_go": torch.tensor([[9.0], [7.0], [-9.0], [0.0]]),
            "return_known": torch.tensor([[True], [False], [True], [True]]),
            "weight": torch.ones(4, 1),
        }
    )
    part = ImprovedTarget(candidates=5, kept=3, local_steps=2, step_size=0.05, subset=3)
    with torch.no_grad():
        batch = part.apply(batch, See(models, context, "x"))
    noise = torch.randn(4, 1, 2, 5, models["base"].proposal_size, generator=context.generator("x"))
    penalty = CalibratedPenalty(conservative_weight=0.5, sampled_actions=2)
    q = models["q"](batch["observation"], batch["action"])
    found = penalty.summand({"q": q}, batch, See(models, context, "y"))
    random = 2 * torch.rand(4, 1, 2, 2, generator=context.generator("y")) - 1
    with torch.no_grad():
        for row in range(4):
            now, after = batch["observation"][row, 0], batch["next_observation"][row, 0]
            next_action = part.best(models, after, noise[row, 0, 0])
            actions = [next_action, part.best(models, now, noise[row, 0, 1])]
            torch.testing.assert_close(batch["policy_action"][row, 0], torch.stack(actions))
            target = batch["reward"][row, 0] + batch["discount"][row, 0] * models["q_target"](after, next_action).min()
            torch.testing.assert_close(batch["value_target"][row, 0], target)
            total = 0.0
            for critic in range(3):
                known, bound = bool(batch["return_known"][row, 0]), float(batch["return_to_go"][row, 0])
                terms = [float(models["q"](now, a)[critic]) for a in random[row, 0]]
                policy = [float(models["q"](now, a)[critic]) for a in actions for _ in range(2)]
                terms += [max(x, bound) if known else x for x in policy]
                data = float(q[row, 0, critic])
                total += math.log(sum(math.exp(x) for x in [*terms, data]) / 7) - data
            assert float(found[row, 0]) == pytest.approx(0.5 * total, abs=1e-4)


# --------------------------------------------------------------------------------------------------------------- limits


def test_without_operators_a_run_is_its_base_policys() -> None:
    """It acts as the base policy by itself, which imitates rows as they are, bit by bit."""
    settings = {**SMALL, **ALONE}
    recipe = catalogue.build("pa-rl", settings)
    mixed = Mix("data", "replay", batch_size=8)
    (first, second, third) = recipe.updates
    assert isinstance(third, Phase) and isinstance(third.of[0], Repeat)
    _, *critics = third.of[0].of
    alone = Phase((Update("base", (OwnImitation(),), mixed), *critics), reset=("base", "q"))
    plain = dataclasses.replace(recipe, collect=StepAndKeep(), updates=(first, second, alone))
    loops = [
        make_loop(config_of("pa-rl", settings))[0],
        make_loop(config_of("pa-rl", {}), given=PythonObjects(recipe=plain))[0],
    ]
    for loop in loops:
        for _ in range(4):
            loop.iterate()
        assert loop.context.spent.steps == 40
    for name, flat in loops[0].run_state.flat.items():
        assert torch.equal(flat.vector, loops[1].run_state.flat[name].vector), name
    other = loop_of(**{**ALONE, "local_steps": "1"})
    for _ in range(4):
        other.iterate()
    assert not torch.equal(other.run_state.flat["base"].vector, loops[0].run_state.flat["base"].vector)


def test_the_policy_stands_still_while_critics_learn_from_data() -> None:
    loop = loop_of()
    moved, before = [], {n: f.vector.detach().clone() for n, f in loop.run_state.flat.items()}
    for _ in range(3):
        loop.iterate()
        now = {n: f.vector.detach().clone() for n, f in loop.run_state.flat.items()}
        moved.append({n for n in now if not torch.equal(now[n], before[n])})
        before = now
    assert moved == [{"base"}, {"q"}, {"base", "q"}]
    still = loop_of(imitates="nothing")
    for _ in range(2):
        still.iterate()
    base = still.run_state.flat["base"].vector.detach().clone()
    still.iterate()
    assert still.context.spent.steps and torch.equal(base, still.run_state.flat["base"].vector)


@pytest.mark.parametrize("kind", ["binned-policy", "imitating-gaussian"])
def test_any_class_of_policies_is_improved(kind: str) -> None:
    loop = make_loop(config_of(f"pa-rl+{kind}", {k: v for k, v in SMALL.items() if k != "denoising_steps"}))[0]
    recipe = loop.recipe
    assert recipe.models["base"].name == kind and [*recipe.models] == ["base", "q", "q_target"]
    for _ in range(4):
        loop.iterate()
    assert math.isfinite(loop.context.metrics["loss/own-imitation"])


def test_more_cannot_be_kept_than_there_are() -> None:
    with pytest.raises(UserError, match="keeps 4 of 2 proposals; set kept to at most candidates"):
        catalogue.build("pa-rl", {"candidates": "2"})


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of("pa-rl", SMALL), tmp_path / "whole").run()
    stopped_after(start_run(config_of("pa-rl", SMALL), tmp_path / "half"), 3)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


def test_improved_actions_get_beyond_what_the_data_show() -> None:
    """0.32 is earned at the nearest mode, by the best step of the data 0.80; steps of the gradient lead to 1."""
    sizes = {"turns": "100", "optimizer_steps": "200", "batch_size": "32", "hidden": "32x32", "learning_rate": "1e-3"}
    sizes |= {"learning_starts": "50", "base.learning_rate": "3e-3", "local_steps": "3", "step_size": "0.02"}
    sizes |= {"candidates": "6", "kept": "2", "critics": "2"}
    config = config_of("pa-rl+binned-policy", sizes, "steps=200")
    config = dataclasses.replace(config, task="eight-modes", eval_episodes=40)
    reached(make_loop(config)[0].run()["eval/return"], 0.5)
