"""PROPS and its grid: the card's numbers, the buffer, PPO as its limit, a fit in plain PyTorch, resuming, refusals."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue, kernels
from polyrl.core.experience import Experience
from polyrl.core.update import Epochs
from polyrl.errors import UserError
from polyrl.methods.control.props import PolicyLikelihoods, UnderSampling, sampling_error
from polyrl.models.base import Models
from polyrl.models.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical
from polyrl.parts.control import joined_rollouts
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.corner_grid import CornerGrid

torch.set_num_threads(1)

PPO_LIST = Path(__file__).parent / "drafts" / "ppo_list.py"
SIZES = {"environments": "3", "hidden": "8", "epochs.epochs": "2"}
SMALL = {**SIZES, "turns": "4", "refit.epochs": "2"}
ONE_TURN = {**SIZES, "turns": "1", "steps_per_environment": "16"}


def config_of(method: str, sizes: dict[str, str], budget: str = "iterations=4", task: str = "corner-grid") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(task: str = "corner-grid", **settings: str) -> Any:
    return make_loop(config_of("props", {**SMALL, **settings}, task=task))[0]


def weights_of(loop: Any) -> dict[str, Tensor]:
    return {name: flat.vector.detach().clone() for name, flat in loop.run_state.flat.items()}


# ------------------------------------------------------------------------------------------------------------ the grid


def test_the_grid_pays_as_the_authors_one() -> None:
    grid = CornerGrid()

    def played(actions: str) -> list[tuple[int, float, bool, bool]]:
        grid.reset(seed=0)
        steps = [grid.step("udlr".index(letter))[:4] for letter in actions]
        return [(int(cell), paid, ended, cut) for cell, paid, ended, cut in steps]

    assert played("u") == [(7, -0.01, False, False)]
    assert [cell for cell, *_ in played("uuulrrrr")] == [7, 2, 2, 1, 2, 3, 4, 4]  # walls
    assert played("uull")[-1] == (0, 0.5, True, False) and played("ddrr")[-1] == (24, 1.0, True, False)
    assert played("ud" * 50)[-1] == (12, -0.01, False, True) and not played("ud" * 50)[-2][3]
    assert sum(paid for _, paid, *_ in played("drdr")) == pytest.approx(
        named_task("corner-grid").metric.lines["optimum"]
    )


# ------------------------------------------------------------------------------------------------- the card's numbers


def test_sampling_error_of_the_card_and_by_counting() -> None:
    state, half = torch.zeros(3, 1), torch.full((3,), 0.5).log()
    assert sampling_error(state, torch.tensor([0, 0, 1]), half) == pytest.approx(0.056633, abs=1e-6)
    assert sampling_error(state[:2], torch.tensor([0, 1]), half[:2]) == pytest.approx(0, abs=1e-7)
    stream = torch.Generator().manual_seed(0)
    cell, action = torch.randint(0, 5, (200,), generator=stream), torch.randint(0, 3, (200,), generator=stream)
    law = torch.rand(5, 3, generator=stream)
    law /= law.sum(1, keepdim=True)
    cells, pairs = Counter(cell.tolist()), Counter(zip(cell.tolist(), action.tolist(), strict=True))
    expected = 0.0
    for s, n in cells.items():
        for a in range(3):
            share = pairs[s, a] / n
            expected += n / 200 * share * float(np.log(share / law[s, a])) if share else 0.0
    found = sampling_error(torch.eye(5)[cell], action, law[cell, action].log())
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_first_step_is_that_of_ros() -> None:
    logits = torch.zeros(2, requires_grad=True)

    def gradient(action: Tensor, *, ros: bool = False) -> Tensor:
        log = logits.log_softmax(-1)[action]
        steps = Experience({"behaviour_logprob": log.detach()})
        mean = log.mean() if ros else -under_sampling(log, steps).mean()
        return torch.autograd.grad(mean, logits)[0]

    counts = torch.tensor([0, 0, 1])
    assert gradient(counts).tolist() == pytest.approx([-1 / 6, 1 / 6])
    assert torch.allclose(gradient(counts), -gradient(counts, ros=True))
    moved = gradient(counts)
    assert moved.softmax(-1).tolist() == pytest.approx([0.41743, 0.58257], abs=1e-5)
    same = Categorical(2)
    assert float(same.divergence(torch.zeros(1, 2), same, moved[None])) == pytest.approx(0.013825, abs=1e-6)
    assert gradient(torch.tensor([0, 1])).tolist() == [0, 0]  # counts that match leave it where it is


def under_sampling(logprob: Tensor, steps: Experience) -> Tensor:
    return UnderSampling().summand({"logprob": logprob}, steps, None)  # type: ignore[arg-type]


def test_only_low_ratios_are_clipped() -> None:
    ratio = torch.tensor([[0.5, 1.0, 2.0]], requires_grad=True)
    steps = Experience({"behaviour_logprob": torch.zeros(1, 3)})
    loss = under_sampling(ratio.log(), steps)
    assert loss[0].tolist() == pytest.approx([0.7, 1.0, 2.0])  # J is minus that
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert ratio.grad is not None and ratio.grad[0].tolist() == pytest.approx([0, 1, 1])
    weights, outputs = torch.tensor([[1.0, 2.0, 3.0]]), {"logprob": ratio.detach().log()}
    total, by = UnderSampling().grad_summand(outputs, steps, None, weights)  # type: ignore[arg-type]
    assert float(total) == pytest.approx(0.7 + 2 + 6) and by["logprob"][0].tolist() == pytest.approx([0, 2, 6])


def test_divergences_are_those_of_torch() -> None:
    one, other = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))

    def torchs(kind: Any, *params: Any) -> Tensor:
        laws = [kind(*x) if isinstance(x, tuple) else kind(logits=x) for x in params]
        return torch.distributions.kl_divergence(*laws)

    law = torch.distributions
    pieces = zip(one.split([2, 4], -1), other.split([2, 4], -1), strict=True)
    narrow, wide = DiagonalGaussian(6, -0.5), DiagonalGaussian(6, 0.3)
    std = [x.log_std.detach().exp() for x in (narrow, wide)]
    cases: list[tuple[Distribution, Distribution, Tensor]] = [
        (Categorical(6), Categorical(6), torchs(law.Categorical, one, other)),
        (MultiCategorical([2, 4]), MultiCategorical([2, 4]), sum(torchs(law.Categorical, *x) for x in pieces)),  # type: ignore[list-item]
        (Bernoulli(6), Bernoulli(6), torchs(law.Bernoulli, one, other).sum(-1)),
        (narrow, wide, torchs(law.Normal, (one, std[0]), (other, std[1])).sum(-1)),
    ]
    for family, another, expected in cases:
        torch.testing.assert_close(family.divergence(one, another, other).detach(), expected)
        assert family.divergence(one, family, one).detach().abs().max() < 1e-6

    class Unknown(Categorical):
        divergence = Distribution.divergence

    with pytest.raises(UserError, match="how far two distributions of Unknown are apart"):
        Unknown(2).divergence(one, Unknown(2), other)


# ---------------------------------------------------------------------------------------------------------- the buffer


def test_pieces_of_a_rollout_are_the_rollout() -> None:
    loop = loop_of("Pendulum-v1(max_episode_steps=11)")
    whole, *_ = loop.run_state.collect(3, 30, torch.Generator().manual_seed(1))
    loop = loop_of("Pendulum-v1(max_episode_steps=11)")
    state, noise = loop.run_state, torch.randn(30, 3, 1, generator=torch.Generator().manual_seed(1)).numpy()
    kept: dict[str, Tensor] = {}
    for k in range(5):
        state.actor.noise = lambda steps, *_, k=k: noise[6 * k : 6 * k + steps]  # type: ignore[misc]
        kept = joined_rollouts(kept, state.collect(3, 6, torch.Generator())[0].data, 30)
    assert kept.keys() == whole.data.keys() and bool(kept["truncated"].any())
    for name, x in kept.items():
        torch.testing.assert_close(x, whole[name], rtol=1e-6, atol=1e-6, msg=name)
    last = joined_rollouts(kept, state.collect(3, 6, torch.Generator())[0].data, 14)  # the 22nd step ends an episode
    assert last["reward"].shape == (3, 14) and torch.equal(last["reward"][:, :8], kept["reward"][:, 22:])
    assert bool(last["starts_episode"].all()) and bool((kept["terminated"] | kept["truncated"])[:, 21].all())
    new = {**whole.data, "starts_episode": torch.ones(3, dtype=torch.bool)}  # environments that were started anew
    assert bool(joined_rollouts(whole.data, new, 60)["rollout_end"][:, 29].any())


def test_an_iteration_gives_the_last_batches_and_counts_new_steps_alone() -> None:
    loop = loop_of()
    batches = [loop.iterate() for _ in range(3)]
    assert [batch["reward"].shape[1] for batch in batches] == [16, 32, 32]
    assert torch.equal(batches[2]["action"][:, :16], batches[1]["action"][:, 16:])
    assert loop.context.spent.steps == 3 * 3 * 16
    assert bool(batches[2]["rollout_end"][:, :-1].any()) is False
    assert bool(batches[0]["stays"].all())
    assert batches[1]["stays"].sum(1).tolist() == [28] * 3 and not bool(batches[1]["stays"][:, :4].any())
    counted = UnderSampling().weights(batches[1])
    assert torch.equal(counted != 0, batches[1]["stays"] & batches[1]["mask"])


# ---------------------------------------------------------------------------------------------------------- the limits


def run(recipe: Any, iterations: int = 3) -> Any:
    loop = make_loop(config_of("mine", {}), given=PythonObjects(recipe=recipe.check()))[0]
    for _ in range(iterations):
        loop.iterate()
    return weights_of(loop)


@pytest.mark.parametrize("fit", [{"behaviour.learning_rate": "0"}, {"refit.epochs": "0"}])
@pytest.mark.parametrize("fast", [True, False])
def test_with_one_batch_and_rate_0_it_is_ppo(fit: dict[str, str], fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit where PPO computes its old likelihoods again too; the sampler's own differ by rounding."""
    monkeypatch.setattr(kernels, "ENABLED", fast)
    props = catalogue.build("props", {**ONE_TURN, **fit, "batches": "1", "epochs.target_kl": "none"})
    same = {"environments": "3", "steps_per_environment": "16", "hidden": "8", "epochs": "2"}
    others = {"learning_rate": "1e-3", "schedule": "constant", "adam_epsilon": "1e-8", "entropy_coef": "0.01"}
    ppo = catalogue.build(str(PPO_LIST), {**same, **others, "normalize_observation": "false"})
    ppo = dataclasses.replace(ppo, score=())
    passes = ppo.updates[0]
    assert isinstance(passes, Epochs)
    again = dataclasses.replace(passes, credit=(PolicyLikelihoods(), *passes.credit))
    found, plain = run(props), run(ppo)
    equal = run(dataclasses.replace(ppo, updates=(again,)))
    for name in ("policy", "critic"):
        assert torch.equal(found[name], equal[name]), name
        torch.testing.assert_close(found[name], plain[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_a_fit_is_that_of_the_paper_in_plain_pytorch(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last turn, in whose buffer the oldest 8 of 16 steps are about to go."""
    monkeypatch.setattr(kernels, "ENABLED", fast)
    turns = {"turns": "2", "steps_per_environment": "8", "batches": "1"}
    kl_coef = "0" if fast else "0.3"
    fit = {"refit.epochs": "3", "refit.minibatches": "1", "refit.target_kl": "0.5", "kl_coef": kl_coef}
    loop = loop_of("Pendulum-v1", **SIZES, **turns, **fit)
    models = loop.run_state.models
    assert (models.closed_form_of_steps("behaviour", {"logprob", "entropy"}) is not None) == fast
    first, found = [], Models.move

    def move(models: Models, *names: Any) -> None:
        found(models, *names)
        if len(first) == 1:  # the second turn: Adam begins again, so that it can be followed
            loop.context.optimizer["behaviour"] = models.optimizers()["behaviour"]
            loop.context.optimizer["behaviour"].param_groups[0]["lr"] = 1e-2
        first.append(copy.deepcopy(models["behaviour"]).policy)

    monkeypatch.setattr(Models, "move", move)
    batch = loop.iterate()
    policy, phi = models["policy"].policy, first[1].requires_grad_(True)
    for one, other in zip(policy.parameters(), phi.parameters(), strict=True):
        assert torch.equal(one, other)
    shown, action = batch["observation"][:, 8:].flatten(0, 1), batch["action"][:, 8:].flatten(0, 1)
    adam = torch.optim.Adam(phi.parameters(), lr=1e-2)
    for _ in range(3):
        law = [torch.distributions.Normal(p.network(shown), p.distribution.log_std.exp()) for p in (policy, phi)]
        old, new = (each.log_prob(action).sum(-1) for each in law)
        ratio = (new - old.detach()).exp()
        loss = torch.maximum(ratio, ratio.clamp(0.7, 1.3)).mean()
        loss = loss + float(kl_coef) * torch.distributions.kl_divergence(*law).sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(phi.parameters(), 0.5)
        adam.step()
    for own, plain in zip(models["behaviour"].policy.parameters(), phi.parameters(), strict=True):
        torch.testing.assert_close(own, plain.detach(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(models["behaviour"].policy.network[0].weight, policy.network[0].weight)


def test_a_fit_ends_before_the_step_of_a_minibatch_that_is_too_far() -> None:
    def steps_of(target: str) -> int:
        loop = loop_of(**{"refit.target_kl": target, "refit.epochs": "8", "epochs.epochs": "1"})
        loop.iterate()
        return int(loop.context.spent.updates) - 2 * 8  # those of policy and critic

    assert steps_of("100") == 4 * 8 * 4
    assert steps_of("1e-12") == 4  # the first minibatch of each fit is that of equal policies


def test_the_policy_learns_in_the_last_turn_and_is_fitted_to_then(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, seen, found = loop_of(), list[Tensor](), Models.move

    def move(models: Models, *names: Any) -> None:
        found(models, *names)
        seen.append(models.flat["behaviour"].vector.detach().clone())

    monkeypatch.setattr(Models, "move", move)
    before = weights_of(loop)["policy"]
    loop.iterate()
    assert [torch.equal(weights, before) for weights in seen] == [True, True, True, False]
    assert torch.equal(seen[-1], weights_of(loop)["policy"])


def test_masks_are_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fits too, whose divergence is that of the allowed actions."""
    loop = make_loop(
        config_of("mine", {}), given=PythonObjects(recipe=catalogue.build("props", SMALL), environment=TwoOfThree)
    )[0]
    for _ in range(3):
        batch = loop.iterate()
    assert bool((batch["action"] != batch["observation"].argmax(-1)).all())
    assert torch.isfinite(weights_of(loop)["behaviour"]).all()
    term, models = UnderSampling(kl_coef=0.5), loop.run_state.models
    models["behaviour"].policy.network[-1].bias.data += torch.tensor([1.0, -1.0, 0.5])
    steps = batch.with_fields(behaviour_logprob=torch.zeros_like(batch["behaviour_logprob"]))
    outputs = {"logprob": torch.zeros_like(steps["behaviour_logprob"])}
    apart = (term.summand(outputs, steps, models) - 1) / 0.5
    laws = []
    for name in ("policy", "behaviour"):
        logits = models[name].policy.network(batch["observation"]).detach()
        logits[~batch["action_mask"]] = -torch.inf
        laws.append(logits.log_softmax(-1))
    expected = (laws[0].exp() * (laws[0] - laws[1])).nan_to_num(0).sum(-1)
    torch.testing.assert_close(apart.detach(), expected, rtol=1e-4, atol=1e-6)


def test_fits_make_the_buffer_more_on_policy() -> None:
    """With a policy that stands still, over the states of the grid."""

    def error(epochs: str) -> float:
        turns = {"turns": "32", "epochs.epochs": "1", "hidden": "16"}
        loop = loop_of(
            **turns, **{"policy.learning_rate": "0", "behaviour.learning_rate": "1e-2", "refit.epochs": epochs}
        )
        errors = []
        for _ in range(3):
            loop.iterate()
            errors.append(float(loop.context.metrics["props/sampling_error"]))
        return sum(errors[1:]) / 2

    assert error("4") < error("0") / 1.5


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of("props", SMALL), tmp_path / "whole").run()
    stopped_after(start_run(config_of("props", SMALL), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
    ends = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "checkpoints").glob("*4/**/*.safetensors")}
        for name in ("half", "whole")
    ]
    assert ends[0].keys() >= {"policy.safetensors", "behaviour.safetensors", "critic.safetensors"}
    assert ends[0] == ends[1]


class TwoOfThree(gymnasium.Env[Any, Any]):
    """Three places, in each of which one action is not allowed: the one of its number."""

    observation_space, action_space = spaces.Box(0, 1, (3,)), spaces.Discrete(3)

    def told(self) -> tuple[Any, dict[str, Any]]:
        seen = np.eye(3, dtype=np.float32)[self.taken % 3]
        return seen, {"action_mask": (1 - seen).astype(np.int8)}

    def reset(self, **_: Any) -> Any:
        self.taken = 0
        return self.told()

    def step(self, action: Any) -> Any:
        self.taken += 1
        seen, told = self.told()
        return seen, float(action), False, self.taken >= 7, told


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="running statistics of policy would"):
        loop_of(**{"policy.normalize_observation": "true"})
    with pytest.raises(UserError, match="running statistics of scale-reward would"):
        catalogue.build("props+scale-reward", SMALL)


def test_it_learns_the_way_to_the_better_corner() -> None:
    sizes = {"turns": "16", "hidden": "16", "learning_rate": "1e-2", "refit.epochs": "2", "epochs.minibatches": "4"}
    loop, returns = loop_of(**sizes), []
    for _ in range(9):
        loop.iterate()
        returns.append(float(loop.context.metrics["episode/return"]))
    reached(returns[-1], 0.75)
    assert loop.run_state.evaluate()[0]["eval/return"] == pytest.approx(0.97)
