"""Diffusion-PPO: the card's numbers, PPO to the bit as its limit, proposals and pulls in plain loops, whose gradient is
whose, stage I, adapters, a start by imitation, resuming, refusals.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue, kernels
from polyrl.core.experience import Experience
from polyrl.core.update import Draws, Epochs, See
from polyrl.errors import UserError
from polyrl.methods.control.diffusion_ppo import (
    NextValueTarget,
    PriorDivergence,
    ProposalLikelihood,
    Proposals,
    annealed,
    gaussian_divergence,
    guidance_step,
)
from polyrl.methods.control.diffusion_ppo.prior import ActionPrior, AdaptedLinear, BridgePolicy, executed
from polyrl.models.base import Interface
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.control import task as named_task

torch.set_num_threads(1)

PPO_LIST = Path(__file__).parent / "drafts" / "ppo_list.py"
SIZES = {"environments": "3", "steps_per_environment": "16", "epochs.epochs": "2", "epochs.minibatches": "4"}
SMALL = {
    **{**SIZES, "hidden": "8", "width": "8", "pretrain.gradient_steps": "10", "batch_size": "16"},
    **{"candidates": "4", "levels": "3", "fit_q.epochs": "1", "fit_q.minibatches": "2"},
}
GAUSSIAN = "diffusion-ppo(adapter_rate=0,guidance=0)+imitating-gaussian"


def config_of(method: str, sizes: dict[str, str], task: str = "wall-point", budget: str = "iterations=4") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(method: str = "diffusion-ppo", task: str = "wall-point", **settings: str) -> Any:
    return make_loop(config_of(method, {**SMALL, **settings}, task))[0]


def weights_of(loop: Any) -> dict[str, Tensor]:
    return {name: flat.vector.detach().clone() for name, flat in loop.run_state.flat.items()}


def factors_of(loop: Any) -> list[Tensor]:
    return [x.clone() for x in loop.run_state.models["prior"].network.factors()]


def see_of(loop: Any) -> See:
    loop.context.iteration = max(loop.context.iteration, 1)
    return See(loop.run_state.models, loop.context, "x")


# ------------------------------------------------------------------------------------------------- the card's numbers


def test_guidance_of_the_card() -> None:
    rate = 0.3 * (1 - 0.5 / 2)
    assert rate == pytest.approx(0.225)
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.1, 0.0]])
    assert (rate * gradient[0]).tolist() == pytest.approx([0.675, 0.9])
    found = guidance_step(gradient, rate, 0.1)
    assert found[0].tolist() == pytest.approx([0.06, 0.08])
    assert found[1].tolist() == [0, 0] and found[2].tolist() == pytest.approx([0.0225, 0])  # shorter than the cap
    assert guidance_step(gradient, 0.0, 0.1).abs().max() == 0


def bridge(levels: list[float], said: Tensor | None = None) -> BridgePolicy:
    class Exact(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert said is not None
            return said.expand(*x.shape[:-1], 1, 2)

    return BridgePolicy(Exact(), named_task("wall-point").actions.space, torch.tensor(levels))  # type: ignore[arg-type]


def test_a_step_of_the_card_is_a_bridge() -> None:
    policy, noisy, clean = bridge([0.5, 1.0]), torch.tensor([2.0]), torch.tensor([1.0])
    mean, deviation = policy.back(noisy, clean, 1)
    assert float(mean) == 1.25 and float(deviation**2) == pytest.approx(0.1875)
    mean, deviation = policy.back(noisy, clean, 0)
    assert float(mean) == 1 and float(deviation) == 0
    assert bridge([0.5, 2.0]).begun(torch.ones(2)).tolist() == [2, 2]


def test_bridges_lead_from_one_level_of_noise_to_the_next() -> None:
    """a_t = a + sigma_t eps, and after a step with the right a it is a + sigma_p eps' in law."""
    clean, stream = torch.tensor([0.3, -0.8]), torch.Generator().manual_seed(0)
    policy, noise = bridge([0.1, 0.4, 1.0], clean), torch.randn(3, 20_000, 2, generator=stream)
    noisy = clean + noise[0]
    for step, level in ((2, 0.4), (1, 0.1)):
        mean, deviation = policy.back(noisy, clean, step)
        noisy = mean + deviation * noise[step]
        assert noisy.mean(0).tolist() == pytest.approx(clean.tolist(), abs=0.02)
        assert noisy.std(0).tolist() == pytest.approx([level] * 2, rel=0.03)
    chain = policy.chain(torch.zeros(20_000, 2), noise.movedim(0, 1))
    assert chain[0].std(0).tolist() == pytest.approx([1.0] * 2, rel=0.03)
    torch.testing.assert_close(chain[3], clean.expand(20_000, 2))


def test_levels_grow_geometrically_and_the_network_sees_them() -> None:
    policy = loop_of(levels="3", sigma_min="0.04", sigma_max="1").run_state.models["prior"]
    assert policy.level.tolist() == pytest.approx([0.04, 0.2, 1.0])
    assert policy.place(torch.tensor([[2], [0]])).flatten().tolist() == pytest.approx([1.0, 0.04])
    noisy, wanted = policy.spoiled(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -2.0]), torch.tensor([1]))
    assert noisy.tolist() == pytest.approx([0.7, 0.1]) and wanted.tolist() == [0.5, 0.5]
    assert loop_of(levels="1", sigma_max="2").run_state.models["prior"].level.tolist() == pytest.approx([2.0])


def test_beta_rises_as_on_the_card() -> None:
    assert [annealed(k, 10, 0.3) for k in range(5)] == [0, 0.5, 1, 1, 1]
    assert annealed(15, 100, 0.3) == pytest.approx(0.517241, abs=1e-6)
    assert annealed(0, math.inf, 0.3) == 0 and annealed(0, 10, 0) == annealed(0, 3, 0.3) == 1
    loop, seen = loop_of(beta="2"), []  # 4 iterations: the first 0.5 of them are two
    loop = loop_of(beta="2", beta_share="0.5")
    for _ in range(4):
        loop.iterate()
        seen.append(loop.context.metrics["prior/beta"])
    assert seen == [0, 2, 2, 2]


def test_divergence_of_the_card() -> None:
    found = gaussian_divergence(torch.tensor(-1.0), torch.tensor(0.0), torch.tensor(2.0).log())
    assert float(found) == pytest.approx(0.443147, abs=1e-6)
    stream = torch.Generator().manual_seed(0)
    m, n, a, b = torch.randn(4, 50, generator=stream)
    laws = [torch.distributions.Normal(x, s.exp()) for x, s in ((m, a), (n, b))]
    torch.testing.assert_close(gaussian_divergence(m - n, a, b), torch.distributions.kl_divergence(*laws))


def test_factors_begin_where_the_prior_is_and_are_not_stuck() -> None:
    """B = 0 alone: both being 0, neither would have a gradient (the older implementation)."""
    layer, x = AdaptedLinear(3, 2, 2, torch.Generator().manual_seed(0)), torch.randn(5, 3)
    torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)
    assert layer.down.abs().min() > 0 and layer.up.abs().max() == 0
    layer.up.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.up.grad is not None and layer.up.grad.abs().max() > 0
    layer.up.data.fill_(0.5)
    torch.testing.assert_close(layer(x), x @ (layer.weight + layer.down @ layer.up) + layer.bias)


def test_steps_of_the_factors_are_due_as_on_the_card() -> None:
    """A tenth of 4 updates of the policy an iteration: none, none, one, and the rest is kept."""
    loop, moved = loop_of(**{"epochs.epochs": "1"}), list[int]()
    loop.iterate()  # 4 updates
    for _ in range(4):
        moved.append(loop.context.memory("adapt-prior").get("steps", 0))
        if len(moved) < 4:
            loop.iterate()
    assert moved == [0, 0, 1, 1]
    loop = loop_of(**{"epochs.epochs": "1"}, adapter_share="0.5")
    loop.iterate()
    assert loop.context.memory("adapt-prior")["steps"] == 2


# ---------------------------------------------------------------------------------------------------------- proposals


def plain_chain(loop: Any, shown: Tensor, noise: Tensor, guidance: float, cap: float) -> Tensor:
    """One proposal, step by step; `noise` is `[levels, A]`."""
    models = loop.run_state.models
    prior, q = models["prior"], models["q"]
    sigma = [0.0, *prior.level.tolist()]
    a = sigma[-1] * noise[0]
    for t in range(len(sigma) - 1, 0, -1):
        with torch.no_grad():
            clean = prior.network(torch.cat([shown, a, torch.tensor([sigma[t]])]))[0]
        rho = sigma[t - 1] ** 2 / sigma[t] ** 2
        following = rho * a + (1 - rho) * clean
        if t > 1:
            following = following + math.sqrt(sigma[t - 1] ** 2 * (1 - rho)) * noise[t - 1]
        leaf = a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(q(shown, leaf).mean(), leaf)
        step = guidance * (1 - sigma[t] / sigma[-1]) * gradient
        length = float(step.norm())
        a = following + (step * cap / length if length > cap else step)
    return a.clamp(-1, 1)


def proposed(loop: Any, part: Proposals, rows: int = 5) -> tuple[Experience, Tensor, Any]:
    """A batch with proposals, the noise that they took `[rows, 1, K, P]`, and the stream behind it."""
    batch = Experience({"observation": torch.rand(rows, 1, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1})
    see = see_of(loop)
    found = part.apply(batch, see)
    stream = loop.context.generator("x")
    size = loop.run_state.models["prior"].proposal_size
    return found, torch.randn(rows, 1, part.candidates, size, generator=stream), stream


@pytest.mark.parametrize("cap", [0.02, 0.5])
def test_proposals_are_those_of_a_plain_loop(cap: float) -> None:
    """Guided in the chain, drawn by their value, around raw ones of the same noise."""
    loop = loop_of()
    loop.iterate()
    q = loop.run_state.models["q"]
    q.network.weights[-1].data *= 20
    loop.run_state.models["prior"].network.layers[-1].weight.data *= 3
    loop.context.began.iterations = 3  # beta is at its end
    loop.context.budget = dataclasses.replace(loop.context.budget, iterations=4)
    part = Proposals(candidates=6, imitated=400, guidance=0.4, guidance_cap=cap, beta=3.0, std_floor=0.05)
    found, noise, _ = proposed(loop, part)
    assert loop.context.metrics["prior/beta"] == 3
    for row in range(5):
        shown = found["observation"][row, 0]
        pieces = [x.reshape(3, 2) for x in noise[row, 0]]
        guided = torch.stack([plain_chain(loop, shown, x, 0.4, cap) for x in pieces])
        raw = torch.stack([plain_chain(loop, shown, x, 0.0, cap) for x in pieces])
        assert float((guided - raw).abs().max()) > 1e-3
        mean, std = raw.mean(0), (raw - raw.mean(0)).square().mean(0).sqrt()  # of the population
        torch.testing.assert_close(found["proposal_mean"][row, 0], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["proposal_std"][row, 0], std.clamp(min=0.05), rtol=1e-4, atol=1e-5)
        nearest = (found["proposal"][row, 0].unsqueeze(1) - guided).norm(dim=-1)
        assert float(nearest.amin(1).max()) < 1e-5
        wanted = (3.0 * q(shown.expand(6, 2), guided).mean(-1)).softmax(0).detach()
        shares = nearest.argmin(1).bincount(minlength=6) / 400
        assert float((shares - wanted).abs().max()) < 0.11  # four deviations of a share of 400


def test_without_beta_each_proposal_is_as_likely() -> None:
    loop = loop_of()
    loop.run_state.models["q"].network.weights[-1].data *= 50
    part = Proposals(candidates=4, imitated=2_000, guidance=0.0, beta=0.0)
    found, _, _ = proposed(loop, part, rows=2)
    counts = [torch.unique(x, dim=0, return_counts=True)[1] for x in found["proposal"][:, 0]]
    for count in counts:
        assert len(count) == 4 and float((count / 2_000 - 0.25).abs().max()) < 0.04


def test_the_deviation_is_that_of_the_population() -> None:
    assert torch.tensor([0.0, 1, 2, 1]).std(correction=0) == pytest.approx(0.707107, abs=1e-6)

    class Fixed:
        proposal_size, numbers, space = 1, 1, named_task("two-peaks").actions.space

        def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
            return torch.tensor([[0.0], [0.5], [1.0], [0.5]]).expand(*observation.shape[:-1], 1)

    loop = loop_of()
    see = see_of(loop)
    see.models = {"prior": Fixed(), "q": lambda shown, action: torch.zeros(*action.shape[:-1], 1)}  # type: ignore[assignment]
    batch = Experience({"observation": torch.zeros(3, 1, 1)})
    found = Proposals(candidates=4, guidance=0.0, std_floor=0.01).apply(batch, see)
    assert found["proposal_mean"].flatten().tolist() == pytest.approx([0.5] * 3)
    assert found["proposal_std"].flatten().tolist() == pytest.approx([0.353553] * 3, abs=1e-6)
    found = Proposals(candidates=4, guidance=0.0, std_floor=0.4).apply(batch, see)
    assert found["proposal_std"].flatten().tolist() == pytest.approx([0.4] * 3)


def test_proposals_are_in_the_tasks_own_units() -> None:
    """A Pendulum's torque is within 2; what the policy did beyond is what the environment makes of it."""
    loop = loop_of(task="wall-point")
    wide = named_task("Pendulum-v1").actions.space
    prior = loop.run_state.models["prior"]
    found, *_ = proposed(loop, Proposals(candidates=4, guidance=0.0))
    prior.space = type(wide)(-2.0, 6.0, (2,))
    twice, *_ = proposed(loop, Proposals(candidates=4, guidance=0.0))
    torch.testing.assert_close(twice["proposal"], 2 + 4 * found["proposal"])
    torch.testing.assert_close(twice["proposal_mean"], 2 + 4 * found["proposal_mean"])
    torch.testing.assert_close(twice["proposal_std"], 4 * found["proposal_std"])
    batch = Experience({"action": torch.tensor([[[2.0, 6.0]], [[-9.0, 4.0]]])})
    assert executed(batch, see_of(loop)).tolist() == [[[0, 1]], [[-1, 0.5]]]
    # a number that the task leaves no choice of is no 0 / 0
    prior.space = type(wide)(np.float32([-2.0, 3.0]), np.float32([6.0, 3.0]))
    found, *_ = proposed(loop, Proposals(candidates=4, guidance=0.0))
    assert all(bool(found[name].isfinite().all()) for name in ("proposal", "proposal_mean", "proposal_std"))
    assert float(found["proposal_std"].min()) > 0
    batch = Experience({"action": torch.tensor([[[2.0, 3.0]], [[-9.0, 3.5]]])})
    assert executed(batch, see_of(loop)).tolist() == [[[0, 0]], [[-1, 0.5]]]


# --------------------------------------------------------------------------------------------------------- the pulls


def test_pulls_are_those_of_plain_laws() -> None:
    loop = loop_of()
    loop.iterate()
    see, stream = see_of(loop), torch.Generator().manual_seed(3)
    policy = loop.run_state.models["policy"].policy
    policy.distribution.log_std.data = torch.tensor([-0.3, 0.4])
    batch = Experience(
        {
            "observation": torch.rand(4, 1, 2, generator=stream),
            "proposal": torch.randn(4, 1, 3, 2, generator=stream),
            "proposal_mean": torch.randn(4, 1, 2, generator=stream),
            "proposal_std": torch.rand(4, 1, 2, generator=stream) + 0.1,
        }
    )
    likelihood = ProposalLikelihood(aux_coef=0.5).summand({}, batch, see).detach()
    divergence = PriorDivergence(prior_kl_coef=0.25).summand({}, batch, see).detach()
    for row in range(4):
        law = torch.distributions.Normal(
            policy.network(batch["observation"][row, 0]).detach(), policy.distribution.log_std.detach().exp()
        )
        proxy = torch.distributions.Normal(batch["proposal_mean"][row, 0], batch["proposal_std"][row, 0])
        each = [float(law.log_prob(a).sum()) for a in batch["proposal"][row, 0]]
        assert float(likelihood[row, 0]) == pytest.approx(-0.5 * sum(each) / 3, rel=1e-5)
        apart = torch.distributions.kl_divergence(law, proxy).sum()
        assert float(divergence[row, 0]) == pytest.approx(0.25 * float(apart), rel=1e-5)


def test_targets_of_q_are_one_step() -> None:
    batch = Experience(
        {
            "action": torch.zeros(1, 5, 2),
            "reward": torch.tensor([[1.0, 2, 3, 4, 5]]),
            "value": torch.tensor([[10.0, 20, 30, 40, 50]]),
            "final_value": torch.tensor([[0.0, 0, 7, 0, 60]]),
            "terminated": torch.tensor([[False, True, False, False, False]]),
            "truncated": torch.tensor([[False, False, True, False, True]]),
        }
    )
    found = NextValueTarget(gamma=0.5).apply(batch, see_of(loop_of()))["value_target"]
    assert found.tolist() == [[1 + 10, 2, 3 + 3.5, 4 + 25, 5 + 30]]


# ---------------------------------------------------------------------------------------------------------- the limits


@pytest.mark.parametrize("fast", [True, False])
def test_with_weights_of_0_it_is_ppo_to_the_bit(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ENABLED", fast)
    off = {"aux_coef": "0", "prior_kl_coef": "0", "schedule": "linear"}
    own = {"policy.adam_epsilon": "1e-5", "critic.adam_epsilon": "1e-5"}
    found = loop_of(**off, **own, learning_rate="1e-3")
    same = {**SIZES, "hidden": "8", "normalize_observation": "false"}
    plain = make_loop(config_of(str(PPO_LIST), same))[0]
    for _ in range(3):
        found.iterate()
        plain.iterate()
    for name in ("policy", "critic"):
        assert torch.equal(weights_of(found)[name], weights_of(plain)[name]), name
    pulled = loop_of(**own, schedule="linear", learning_rate="1e-3")
    for _ in range(3):
        pulled.iterate()
    assert not torch.equal(weights_of(pulled)["policy"], weights_of(plain)["policy"])
    assert torch.equal(
        weights_of(loop_of())["critic"], weights_of(make_loop(config_of(str(PPO_LIST), same))[0])["critic"]
    )


def test_with_weights_of_0_its_terms_ask_for_nothing() -> None:
    for term in (ProposalLikelihood(aux_coef=0.0), PriorDivergence(prior_kl_coef=0.0)):
        assert term.required() == {"weight"} and term.is_written
    assert ProposalLikelihood().required() >= {"proposal", "observation"} and not ProposalLikelihood().is_written
    assert PriorDivergence().required() >= {"proposal_mean", "proposal_std", "observation"}


# ------------------------------------------------------------------------------------------------------ who is trained


def test_the_gradient_of_each_loss_belongs_to_its_model() -> None:
    rates = {f"{n}.learning_rate": "0" for n in ("policy", "critic", "q", "prior")}
    for name in ("policy", "critic", "q", "prior"):
        still = loop_of(**{n: x for n, x in rates.items() if not n.startswith(f"{name}.")}, adapter_rate="0")
        before, factors = weights_of(still), factors_of(still)
        still.iterate()
        moved = {n for n, now in weights_of(still).items() if not torch.equal(before[n], now)}
        assert moved == {name}
        assert all(map(torch.equal, factors, factors_of(still)))


def test_the_prior_learns_the_data_at_first_and_its_factors_the_policy_afterwards() -> None:
    loop = loop_of(adapter_share="1", adapter_rate="0.01")
    before, factors = weights_of(loop)["prior"], factors_of(loop)
    loop.iterate()
    steps = 10 + 2 * 8 + 2 + 1  # stage I; policy and critic; Q; the factors
    assert loop.context.spent.updates == steps and loop.context.spent.steps == 48
    first, adapted = weights_of(loop)["prior"], factors_of(loop)
    assert not torch.equal(first, before)
    loop.iterate()
    assert loop.context.spent.updates == 2 * steps - 10
    assert torch.equal(weights_of(loop)["prior"], first)
    moved = [not torch.equal(a, b) for a, b in zip(factors, adapted, strict=True)]
    again = [not torch.equal(a, b) for a, b in zip(adapted, factors_of(loop), strict=True)]
    assert any(moved) and all(again)
    assert not any(p.requires_grad for p in [*loop.run_state.models["prior"].parameters(), *factors_of(loop)])


def test_a_step_of_the_factors_is_plain_gradient_descent() -> None:
    loop = loop_of()
    loop.iterate()
    prior, stream = loop.run_state.models["prior"], torch.Generator().manual_seed(0)
    shown, action = torch.rand(2, 9, 1, 2, generator=stream)
    rows = Experience({"observation": shown, "action": action})
    factors = prior.network.factors()
    factors[1].fill_(0.1)
    before = [x.clone() for x in factors]

    def loss() -> float:
        with torch.no_grad():
            draw = Draws(torch.Generator().manual_seed(5))
            return float(prior.outputs(rows, {"imitation"}, draw)["imitation"].mean())

    slope = []
    for which, place in ((0, (0, 1)), (1, (1, 0))):
        factors[which][place] += 1e-2
        high = loss()
        factors[which][place] -= 2e-2
        slope.append((high - loss()) / 2e-2)
        factors[which][place] += 1e-2
    was = loss()
    assert prior.adapt(rows, Draws(torch.Generator().manual_seed(5)), 0.5) == pytest.approx(was, rel=1e-5)
    after = prior.network.factors()
    for (which, place), wanted in zip(((0, (0, 1)), (1, (1, 0))), slope, strict=True):
        assert float(before[which][place] - after[which][place]) == pytest.approx(0.5 * wanted, rel=0.05, abs=1e-4)


def test_frozen_factors_stand_still() -> None:
    loop = loop_of(adapter_rate="0", adapter_share="1")
    factors = factors_of(loop)
    loop.iterate()
    assert all(map(torch.equal, factors, factors_of(loop)))
    assert "prior/adapter_loss" not in loop.context.metrics


# -------------------------------------------------------------------------------------------------------- other priors


def test_a_gaussian_may_stand_for_the_diffusion_model() -> None:
    loop = make_loop(config_of(GAUSSIAN, {n: x for n, x in SMALL.items() if n not in ("width", "levels")}))[0]
    before = weights_of(loop)
    loop.iterate()
    assert not torch.equal(before["prior"], weights_of(loop)["prior"])
    for which in ("guidance", "adapter_rate"):
        settings = {"guidance": "0", "adapter_rate": "0"} | {which: "0.1"}
        with pytest.raises(UserError, match=f"set --{which.replace('_', '-')} 0"):
            catalogue.build("diffusion-ppo+imitating-gaussian", settings)


def test_a_start_by_imitation_comes_before_anything_is_collected() -> None:
    loop = loop_of("diffusion-ppo+bc-start", **{"imitate.gradient_steps": "200", "policy.learning_rate": "1e-2"})
    before = weights_of(loop)
    shown = torch.tensor([[0.5, 0.9], [-0.4, -0.6]])  # beyond the wall, and under it
    loop.iterate()
    assert (loop.context.spent.updates, loop.context.spent.steps) == (210, 0)
    moved = {n for n, now in weights_of(loop).items() if not torch.equal(before[n], now)}
    assert moved == {"policy", "prior"}
    means = loop.run_state.models["policy"].policy.network(shown)
    assert means[0, 1] < -0.3 and means[1, 0] > 0.3
    assert loop.context.optimizer["policy"].moments["step"] == 200
    loop.iterate()
    assert loop.context.spent.steps == 48 and loop.context.optimizer["policy"].moments["step"] == 8
    with pytest.raises(UserError, match="pretrains no prior on data, beside which 'bc-start' could imitate"):
        catalogue.build("props+bc-start", {})


# ------------------------------------------------------------------------------------------------- resuming, refusals


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    sizes = {**SMALL, "adapter_share": "0.3", "adapter_rate": "0.01"}
    start_run(config_of("diffusion-ppo", sizes), tmp_path / "whole").run()
    stopped_after(start_run(config_of("diffusion-ppo", sizes), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
    ends = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "checkpoints").glob("*4/**/*.safetensors")}
        for name in ("half", "whole")
    ]
    assert ends[0].keys() >= {"policy.safetensors", "critic.safetensors", "q.safetensors", "prior.safetensors"}
    assert ends[0] == ends[1]


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="a prior of data that no running statistics have changed"):
        loop_of(normalize_observation="true")
    with pytest.raises(UserError, match=r"--sigma-min 1 is to be below --sigma-max 0\.5"):
        loop_of(sigma_min="1", sigma_max="0.5")
    with pytest.raises(UserError, match="diffusion-ppo learns from recorded transitions; name their file"):
        loop_of(task="Pendulum-v1")
    interface = dataclasses.replace(
        Interface.of(named_task("wall-point")), action_space=named_task("CartPole-v1").actions.space
    )
    with pytest.raises(UserError, match="An action prior acts by continuous numbers between bounds"):
        ActionPrior().make(interface, torch.Generator())


def test_its_list_is_ppos_with_q_and_factors_behind() -> None:
    recipe = catalogue.build("diffusion-ppo", {})
    passes = [step for step in recipe.update_steps() if isinstance(step, Epochs)]
    assert [step.name for step in passes] == ["epochs", "fit-q"]
    values = recipe.hyperparameters()
    assert values["proposal-likelihood.aux_coef"] == 0.01 and values["prior-divergence.prior_kl_coef"] == 0.005


def test_it_learns_to_go_beyond_the_data() -> None:
    """Of eight modes; the one nearest to the best action pays 0.32, and the data's mean, in their middle, nothing."""
    rates = {"policy.learning_rate": "1e-3", "critic.learning_rate": "1e-3"}
    sizes = {"steps_per_environment": "32", "epochs.epochs": "4", "epochs.minibatches": "4", **rates}
    config = config_of("diffusion-ppo", {**sizes, "pretrain.gradient_steps": "600"}, "eight-modes", "steps=7680")
    loop, returns = make_loop(config)[0], list[float]()
    for _ in range(30):
        loop.iterate()
        returns.append(loop.run_state.evaluate()[0]["eval/return"])
    assert returns[0] < 0.1
    reached(sum(returns[-10:]) / 10, 0.4)  # seeds 0 to 3: 0.56 to 0.92; PPO alone: 0.39 to 0.52
