"""PMOE: the card's numbers, one expert is SAC, who learns from what, two peaks, composition, resuming, bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.recipe import Recipe
from polyrl.core.update import Draws, See
from polyrl.errors import UserError
from polyrl.methods.control.pmoe import BestExpert, FrequencyLoss, Mixture, ScoreRouter, apart
from polyrl.models.base import Interface
from polyrl.models.mixtures import GaussianMixture, MixturePolicy
from polyrl.models.squashed import squashed_logprob
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.two_peaks import reward_of

torch.set_num_threads(1)
SMALL = {"turns": "120", "random_steps": "30", "learning_starts": "40", "hidden": "16x16", "batch_size": "16"}


def config_of(method: str, task: str = "Pendulum-v1", budget: str = "iterations=2", **settings: Any) -> RunConfig:
    values = {**SMALL, **{k: str(v) for k, v in settings.items()}}
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=values, **options)


def loop_of(method: str, **settings: Any) -> Any:
    return make_loop(config_of(method, **settings))[0]


def policy_of(experts: int, numbers: int = 1) -> MixturePolicy:
    interface = Interface("mine", 3, np.ones(3, dtype=bool), spaces.Box(-1, 1, (numbers,), np.float32))
    policy = GaussianMixture(experts=experts, hidden="8").make(interface, torch.Generator().manual_seed(1))
    if experts > 1:
        policy.router_weight.data.copy_(torch.randn(3, experts, generator=torch.Generator().manual_seed(2)))
    return policy


# ------------------------------------------------------------------------------------------------- numbers by hand


def frequency(logits: Tensor, expert: list[int]) -> Tensor:
    weights = logits.softmax(-1).expand(1, len(expert), -1)
    return FrequencyLoss().loss({"expert_weights": weights}, Experience({"expert": torch.tensor([expert])}))


def test_the_routers_loss_and_its_gradient_are_those_of_the_card() -> None:
    logits = torch.zeros(2, requires_grad=True)
    loss = frequency(logits, [0]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.25)
    assert logits.grad is not None and logits.grad.tolist() == pytest.approx([-0.25, 0.25])


def test_the_routers_loss_is_least_at_the_frequency_of_being_best() -> None:
    best = [0] * 3 + [1] * 7
    found = {p: float(frequency(torch.tensor([math.log(p), math.log(1 - p)]), best).mean()) for p in (0.25, 0.3, 0.35)}
    assert found[0.3] == pytest.approx(0.21)
    assert min(found, key=lambda p: found[p]) == 0.3


def test_a_mixtures_density_is_the_weighted_sum_of_its_experts() -> None:
    policy = policy_of(2)
    wanted = {0.0: -1.418939, 1.0: -1.485158}  # of 0.5 N(-1, 1) + 0.5 N(1, 1), before the tanh
    for bias, weight in zip(policy.network.biases, policy.network.weights, strict=True):
        bias.data.zero_(), weight.data.zero_()
    policy.network.biases[-1].data[0, :2] = torch.tensor([-1.0, 1.0])
    policy.router_weight.data.zero_()
    for before, density in wanted.items():
        action = torch.tanh(torch.tensor([[before]]))
        shrinks = math.log1p(-(float(action) ** 2))
        assert float(policy.logprob(torch.zeros(1, 3), action)) == pytest.approx(density - shrinks, abs=1e-5)
    edges = torch.linspace(-1, 1, 20_001)
    middle = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    assert float(policy_of(3).logprob(torch.randn(1, 3).expand(20_000, 3), middle).exp().sum() * 1e-4) == pytest.approx(
        1, abs=2e-3
    )


def test_how_far_experts_are_apart() -> None:
    mode, even = torch.tensor([[0.7], [-0.7]]), torch.tensor([0.5, 0.5])
    assert float(apart(mode, even)) == pytest.approx(0.7)
    assert float(apart(mode, torch.tensor([1.0, 0.0]))) == 0 == float(apart(mode[:1].expand(2, 1), even))


# ------------------------------------------------------------------------------------------------------ the limits


@pytest.mark.parametrize("method", ["pmoe", "sac+mixture", "sac+gumbel-mixture", "sac+score-mixture"])
def test_one_expert_is_sac_to_the_bit(method: str) -> None:
    sac, mixed = loop_of("sac"), loop_of(method, experts=1)
    for _ in range(2):
        sac.iterate(), mixed.iterate()
    assert sac.context.spent.updates > 0
    for name, flat in sac.run_state.models.flat.items():
        assert torch.equal(flat.vector, mixed.run_state.models.flat[name].vector), name
    assert sac.context.metrics["episode/return"] == mixed.context.metrics["episode/return"]


@pytest.mark.parametrize("base", ["rlpd", "cql"])
def test_one_expert_draws_and_counts_nothing_more(base: str) -> None:
    recipe = catalogue.build(f"{base}+mixture", {"experts": "1"}, domain="control")
    plain = catalogue.build(base, domain="control")
    assert [type(t) for t in recipe.parts() if t.slot == "policy-objective"] == [
        type(t) for t in plain.parts() if t.slot == "policy-objective"
    ]
    one, other = policy_of(1), policy_of(3)
    assert (one.numbers, other.numbers, other.actions) == (1, 2, 1)
    assert not [name for name, _ in one.named_parameters() if "router" in name]


# ------------------------------------------------------------------------------------------------- who learns what


def test_acting_and_training_draw_the_same_experts_and_actions() -> None:
    policy = policy_of(3, numbers=2)
    stream = torch.Generator().manual_seed(3)
    shown, noise = torch.randn(64, 3, generator=stream), torch.randn(64, policy.numbers, generator=stream)
    play = policy.actor()._forward(shown.numpy())  # type: ignore[attr-defined]
    action, logprob = policy.sample(shown, noise)
    np.testing.assert_allclose(policy.explore(play, noise.numpy()), action.detach(), atol=1e-6)
    mode = policy.outputs(Experience({"observation": shown}), {"mode"}, Draws(stream))["mode"]
    np.testing.assert_allclose(policy.mode(play), mode.detach(), atol=1e-6)
    expert = policy.drawn(shown, noise[:, -1])
    assert len(set(expert.tolist())) == 3
    mean, log_std = policy.distributions(shown)
    for row, k in enumerate(expert.tolist()):  # the density is that of the chosen expert, not of the mixture
        before = mean[row, k] + log_std[row, k].exp() * noise[row, :2]
        torch.testing.assert_close(action[row], before.tanh())
        torch.testing.assert_close(logprob[row], squashed_logprob(before, noise[row, :2], log_std[row, k]))


def test_experts_are_drawn_as_often_as_the_router_says() -> None:
    policy, shown = policy_of(3), torch.tensor([[0.3, -1.0, 0.2]])
    drawn = policy.drawn(shown.expand(60_000, 3), torch.randn(60_000, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(drawn, minlength=3) / 60_000
    torch.testing.assert_close(share, policy.log_weights(shown).exp()[0].detach(), atol=8e-3, rtol=0)


def step_of(method: str = "pmoe") -> tuple[Any, Experience, dict[str, Tensor]]:
    """A policy update's batch after its credit, and the outputs that its terms want."""
    loop = loop_of(method, experts=3)
    loop.iterate()
    updates = loop.run_state, loop.context
    batch = loop.context.sources["replay"].sample(8, torch.Generator().manual_seed(0))
    see = See(updates[0].models, updates[1], "policy-update")
    policy = updates[0].models["policy"].requires_grad_(True)
    part = next(p for p in loop.recipe.parts() if p.slot == "expert")
    batch = part.apply(batch, see)
    wants = {"sampled_action", "sampled_logprob", "expert_weights"}
    return see, batch, policy.outputs(batch, wants, see.draw)


def gradients(see: Any, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last layer, by expert `[H + 1, 2, K, A]`, and of the router."""
    policy = see["policy"]
    policy.zero_grad()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    weight, bias = policy.network.weights[-1].grad, policy.network.biases[-1].grad
    found = [torch.zeros(1) if x is None else x.reshape(-1, 2, policy.experts, policy.actions) for x in (weight, bias)]
    router = policy.router_weight.grad
    return (torch.cat(found) if found[0].dim() > 1 else found[0]), torch.zeros(1) if router is None else router


def test_the_best_expert_alone_learns_from_the_critics_and_the_router_from_frequencies() -> None:
    see, batch, outputs = step_of()
    policy = see["policy"]
    action, _, _ = policy.every(batch["observation"], batch["expert_noise"])
    value = torch.stack([see["q"](batch["observation"], action[..., k, :]).amin(-1) for k in range(3)], -1)
    assert torch.equal(batch["expert"], value.argmax(-1))  # by a plain loop over the experts
    row = batch["expert"][0, 0].item()
    lone = see["q"](batch["observation"][:1], outputs["sampled_action"][:1]).amin()
    experts, router = gradients(see, -lone + outputs["sampled_logprob"][0, 0])
    assert bool((experts[:, :, row] != 0).any()) and float(router.abs().sum()) == 0
    assert not bool((experts[:, :, [k for k in range(3) if k != row]] != 0).any())
    experts, router = gradients(see, FrequencyLoss().loss(outputs, batch).sum())
    assert float(experts.abs().sum()) == 0 and bool((router != 0).any())


def test_a_gumbel_softmax_sends_the_critics_gradient_to_the_router() -> None:
    see, batch, outputs = step_of("sac+gumbel-mixture")
    at = batch["expert"][..., None, None].expand(*batch["expert"].shape, 1, 1)
    action, _, _ = see["policy"].every(batch["observation"], batch["expert_noise"])
    torch.testing.assert_close(outputs["sampled_action"], action.gather(-2, at).squeeze(-2))
    _, router = gradients(see, see["q"](batch["observation"], outputs["sampled_action"]).sum())
    assert bool((router != 0).any())


def test_the_score_function_raises_what_costs_less() -> None:
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    batch = Experience({"expert": torch.tensor([[0, 1]]), "expert_cost": torch.tensor([[-1.0, 1.0]])})
    ScoreRouter().loss({"expert_weights": logits.softmax(-1)}, batch).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.sum((0, 1)).tolist() == pytest.approx([-1.0, 1.0])  # -(1 - w) + -(1 - w), and the other way
    _, batch, _ = step_of("sac+score-mixture")
    assert float(batch["expert_cost"].mean()) == pytest.approx(0, abs=1e-5)


def test_ties_fall_at_random() -> None:
    see, batch, _ = step_of()
    for parameter in see["q"].parameters():
        parameter.data.zero_()  # every action is worth the same
    many = Experience({k: x[:1].expand(3000, *x.shape[1:]) for k, x in batch.data.items() if k == "observation"})
    share = torch.bincount(BestExpert().apply(many, see)["expert"].flatten(), minlength=3) / 3000
    assert float((share - 1 / 3).abs().max()) < 0.04


# ----------------------------------------------------------------------------------------------------------- the task


def test_two_peaks_pays_as_it_says() -> None:
    assert reward_of(0.7, 1.0) == pytest.approx(1) and reward_of(-0.7, 0.5) == pytest.approx(0.5)
    assert reward_of(0.8, 1.0) == pytest.approx(math.exp(-0.5))
    task = named_task("two-peaks(second=0.5)")
    grid = np.linspace(-1, 1, 200_001)
    mean = np.mean([reward_of(a, 0.5) for a in grid[::20]])
    assert task.metric.lines["uniform"] == pytest.approx(mean, abs=2e-3)  # the tails beyond the bounds are cut
    assert task.metric.lines["optimum"] == 1
    with pytest.raises(UserError, match="a number from 0 to 1, not 2"):
        named_task("two-peaks(second=2)").metric  # noqa: B018


def test_lines_that_are_none_are_refused() -> None:
    class Odd(gymnasium.Env[Any, Any]):
        metadata: dict[str, Any] = {"lines": ["optimum"]}  # noqa: RUF012
        observation_space = action_space = spaces.Box(0, 1, (1,), np.float32)

    odd = dataclasses.replace(named_task("two-peaks"), make=Odd)
    with pytest.raises(UserError, match="declares the lines"):
        odd.metric  # noqa: B018


# ----------------------------------------------------------------------------------------------- composing, resuming


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of("pmoe", budget="iterations=3"), tmp_path / "whole").run()
    stopped_after(start_run(config_of("pmoe", budget="iterations=3"), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("method", ["iql+mixture", "bc+mixture", "cql+mixture", "rlpd+mixture", "rlpd+pmoe"])
def test_other_methods_take_a_mixture(method: str) -> None:
    recipe = catalogue.build(method, {"experts": "2"}, domain="control")
    assert isinstance(recipe.models["policy"], GaussianMixture)
    routed = {p.slot for p in recipe.parts()} >= {"expert", "router-objective"}
    assert routed == method.startswith(("cql", "rlpd"))  # elsewhere the mixture's likelihood trains both


def test_estimators_take_one_anothers_place() -> None:
    both = catalogue.build("pmoe+score-mixture", domain="control")
    assert [p.name for p in both.parts() if p.slot in ("expert", "router-objective")] == [
        "drawn-expert",
        "score-router",
    ]
    gumbel = catalogue.build("pmoe+gumbel-mixture", domain="control")
    assert [p.name for p in gumbel.parts() if p.slot in ("expert", "router-objective")] == ["gumbel-expert"]
    assert catalogue.build("cql+pmoe+score-mixture", domain="control").models["policy"].experts == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["td3+mixture", "dqn+mixture", "ppo+mixture"])
def test_who_acts_by_no_gaussian_between_bounds_is_told(method: str) -> None:
    with pytest.raises(UserError, match="no Gaussian between bounds"):
        catalogue.build(method, domain="control")


def test_a_router_that_nothing_would_train_is_refused() -> None:
    recipe: Recipe = catalogue.build("sac", domain="control")
    models = {**recipe.models, "policy": GaussianMixture(experts=2)}
    with pytest.raises(UserError, match="nothing would teach the router"):
        dataclasses.replace(recipe, models=models).check()
    with pytest.raises(UserError):
        Mixture(experts=0)


# ----------------------------------------------------------------------------------------------------------- learning


def test_two_experts_come_to_a_peak() -> None:
    settings = {"turns": 500, "hidden": "32x32", "batch_size": 64, "learning_rate": 1e-2, "random_steps": 500}
    loop = make_loop(
        config_of("pmoe", "two-peaks", "iterations=3", experts=2, learning_starts=500, initial=0.05, **settings)
    )[0]
    for _ in range(3):
        loop.iterate()
    reached(loop.context.metrics["episode/return"], 0.5)  # 0.70 to 0.76; uniform actions get 0.25
