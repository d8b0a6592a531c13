"""Passes and gradients that are written out give what autograd gives, and are what control's updates use."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyrl.catalogue import build
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.update import On, OwnRows
from polyrl.kernels.flat import FlatParameters, VectorAdamW
from polyrl.models.closed_form import ActorCriticPasses, Layers
from polyrl.models.control import ControlCritic, ControlPolicy
from polyrl.models.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical
from polyrl.models.mlp import mlp
from polyrl.parts.improve import Averaged, ClippedSurrogate, EntropyBonus, PolicyGradient, ReferenceKL, ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Term
from polyrl.run_state.base import RunState
from polyrl.run_state.control import make_run_state, make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import PythonObjects, RunConfig

N = 37


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------- terms


TERMS: list[Term] = [
    ClippedSurrogate(clip_range=0.1),
    ClippedSurrogate(clip_range=0.1, clip_range_high=0.3),
    ClippedSurrogate(clip_range=0.2, dual_clip=1.2),
    PolicyGradient(),
    ValueLoss(value_coef=0.7),
    ValueLoss(value_coef=0.7, value_clip_range=0.2),
    EntropyBonus(entropy_coef=0.1),
    EntropyBonus(entropy_coef=0.0),
    ReferenceKL(kl_loss_coef=0.3),
]


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.name)
def test_grad_outputs_are_those_of_autograd(term: Term) -> None:
    generator = stream()
    draw = [torch.randn(N, 3, generator=generator, dtype=torch.float64) * 0.5 for _ in range(8)]
    outputs = {"logprob": draw[0], "entropy": draw[1], "value": draw[2]}
    experience = Experience(
        {
            "behaviour_logprob": draw[0] + 0.3 * draw[3],
            "ref_logprob": draw[0] + 0.3 * draw[7],
            "advantage": draw[4],
            "value": draw[5],
            "value_target": draw[6],
        }
    )
    weights = torch.rand(N, 3, generator=generator, dtype=torch.float64)
    total, found = term.grad_outputs(outputs, experience, weights)
    expected_total, expected = Term.grad_outputs(term, outputs, experience, weights)
    torch.testing.assert_close(total, expected_total, rtol=1e-12, atol=1e-12, check_dtype=False)
    expected = {name: grad_output for name, grad_output in expected.items() if bool(grad_output.any())}
    assert set(found) == set(expected)
    for name, grad_output in found.items():
        torch.testing.assert_close(grad_output, expected[name], rtol=1e-12, atol=1e-12)
    if isinstance(term, ClippedSurrogate):  # the batch reaches both sides of the clip
        assert 0.1 < float((found["logprob"] == 0).double().mean()) < 0.9


# --------------------------------------------------------------------------------------------------- distributions


def a_case(kind: str) -> tuple[Distribution, Tensor, Tensor]:
    """A distribution, its params `[N, size]` and actions."""
    generator = stream(1)
    if kind == "categorical":
        return Categorical(5), torch.randn(N, 5, generator=generator), torch.randint(5, (N,), generator=generator)
    if kind == "multi-categorical":
        actions = torch.stack([torch.randint(n, (N,), generator=generator) for n in (2, 3)], 1)
        return MultiCategorical([2, 3]), torch.randn(N, 5, generator=generator), actions
    if kind == "bernoulli":
        return Bernoulli(4), torch.randn(N, 4, generator=generator), torch.randint(2, (N, 4), generator=generator)
    gaussian = DiagonalGaussian(3)
    gaussian.log_std.data = torch.tensor([-1.0, 0.2, 0.5])
    return gaussian, torch.randn(N, 3, generator=generator), torch.randn(N, 3, generator=generator)


@pytest.mark.parametrize("kind", ["categorical", "multi-categorical", "bernoulli", "gaussian"])
def test_distributions_are_differentiated_as_by_autograd(kind: str) -> None:
    distribution, params, action = a_case(kind)
    by_logprob, by_entropy = torch.randn(2, N, generator=stream(2))
    leaf = params.clone().requires_grad_()
    logprob, entropy = distribution.log_prob(leaf, action), distribution.entropy(leaf)
    ((logprob * by_logprob).sum() + (entropy * by_entropy).sum()).backward()
    own = {name: p.grad.clone() for name, p in distribution.named_parameters() if p.grad is not None}
    for p in distribution.parameters():
        p.grad = torch.full_like(p, 123.0)  # what stood there before must not stay
    found = distribution.differentiable(params.numpy(), action.numpy())
    torch.testing.assert_close(torch.from_numpy(found[0]), logprob.detach())
    torch.testing.assert_close(torch.from_numpy(found[1]), entropy.detach())
    grad_output = torch.from_numpy(np.ascontiguousarray(found[2](by_logprob.numpy(), by_entropy.numpy())))
    torch.testing.assert_close(grad_output, leaf.grad)
    assert set(own) == {name for name, _ in distribution.named_parameters()}
    for name, p in distribution.named_parameters():
        torch.testing.assert_close(p.grad, own[name])


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("hidden", [(), (8,), (16, 8, 5)])
def test_layers_are_those_of_autograd(activation: Any, hidden: tuple[int, ...]) -> None:
    network = mlp(6, hidden, 3, activation, generator=stream(3))
    other = copy.deepcopy(network)
    FlatParameters(network)
    layers = Layers.of(network)
    assert layers is not None
    for size in (N, 5, N):  # buffers follow the size
        x, grad_output = torch.randn(size, 6, generator=stream(size)), torch.randn(size, 3, generator=stream(4))
        other.zero_grad()
        expected = other(x)
        (expected * grad_output).sum().backward()
        torch.testing.assert_close(torch.from_numpy(layers.forward(x.numpy())), expected.detach())
        layers.backward(grad_output.numpy().copy())
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.GELU()),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        nn.Sequential(),
    ],
)
def test_networks_of_other_layers_have_no_closed_form(network: nn.Module) -> None:
    FlatParameters(network)
    assert Layers.of(network) is None
    policy = ControlPolicy(network, Categorical(2), np.ones(2, dtype=bool), normalize=False)
    assert ActorCriticPasses.of(policy, None) is None


def test_one_network_of_unknown_layers_leaves_both_to_autograd() -> None:
    policy = ControlPolicy(mlp(2, (4,), 2), Categorical(2), np.ones(2, dtype=bool), normalize=False)
    critic = ControlCritic(nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 1)))
    FlatParameters(policy), FlatParameters(critic)
    assert ActorCriticPasses.of(policy, critic) is None
    assert ActorCriticPasses.of(policy, None) is not None


# --------------------------------------------------------------------------------------------------- flat parameters


def test_flat_parameters_stay_one_with_the_module() -> None:
    network = mlp(3, (5,), 2, generator=stream(5))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    flat = FlatParameters(network)
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name])
    network(torch.randn(4, 3)).sum().backward()
    assert flat.vector.grad is not None
    squares = sum(float(p.grad.square().sum()) for p in network.parameters())
    assert float(flat.vector.grad.square().sum()) == pytest.approx(squares) and squares > 0
    torch.optim.SGD([flat.vector], lr=0.1).step()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * p.grad)
    network.load_state_dict(before)
    flat.vector.data *= 2
    for name, p in network.named_parameters():
        assert torch.equal(p, 2 * before[name])
    assert float(flat.vector.detach().abs().sum()) == pytest.approx(
        2 * sum(float(x.abs().sum()) for x in before.values())
    )


def test_adam_on_one_vector_is_torchs() -> None:
    start, found = torch.randn(7, generator=stream()), []
    how: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-5, "betas": (0.9, 0.99)}
    for kind in (VectorAdamW, lambda p, **k: torch.optim.AdamW([p], fused=True, **k)):
        vector = nn.Parameter(start.clone())
        optimizer = kind(vector, **how)
        for k in range(4):
            vector.grad = torch.randn(7, generator=stream(k))
            optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
            optimizer.step()
        found.append({"vector": vector.detach(), **optimizer.state[vector]})
    optimizer = VectorAdamW(nn.Parameter(start.clone()), **how)
    optimizer.step()  # no gradient, no step: as torch's
    assert torch.equal(optimizer.vector, start)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert float((found[0]["vector"] - start).abs().min()) > 0.01


# ---------------------------------------------------------------------------------------------------------- updates


class Doubt(Averaged):
    """A term that knows no gradients: autograd finds them, from the same outputs."""

    wants = frozenset({"logprob", "value"})
    needs = frozenset({"weight"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """A coupling of policy and critic."""
        return 0.1 * outputs["logprob"].exp() * outputs["value"].square()


class Doubled(Doubt):
    """The same, with weights of its own."""

    def step_weights(self, experience: Experience) -> Tensor:
        """Twice those of its aggregation."""
        return 2 * super().step_weights(experience)


@dataclass(frozen=True)
class Seen(OwnRows):
    """Two states that no rollout has seen."""

    def rows(self, context: Context) -> Experience:
        """Single steps `[2, 1]`."""
        observation = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[-0.4, 0.3, -0.2, 0.1]]])
        return Experience({"observation": observation, "weight": torch.ones(2, 1), "action": torch.tensor([[0], [1]])})


@dataclass(frozen=True, kw_only=True)
class Guessed(Averaged):
    """Raise the likelihood of these steps."""

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Their negative log-likelihood."""
        return -outputs["logprob"]


class Added(Optimize):
    """Learns from rows that no rollout has collected."""

    @property
    def also(self) -> tuple[On, ...]:
        """One term on them."""
        return (On(Seen(), (Guessed(),)),)


def an_update(
    task: str,
    closed: bool,
    monkeypatch: pytest.MonkeyPatch,
    improver: type[Optimize] = Optimize,
    **settings: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Weights and metrics after two iterations of PPO with a term of its own."""
    settings = {"environments": 2, "steps_per_environment": 24, "epochs": 3, "minibatches": 4, **settings}
    config = RunConfig(method="ppo", task=task, budget="steps=96")
    recipe = build("ppo", settings, domain="control") + Doubt() + Doubled()
    recipe = replace(recipe, optimize=improver(**vars(recipe.optimize)))
    run_state = make_run_state(config, make_task(config, PythonObjects()), recipe)
    if not closed:
        run_state.closed_form = lambda wants: None  # type: ignore[method-assign]
    else:
        monkeypatch.setattr(RunState, "updating", None)  # autograd's way would fail
    context = Context(run_state=run_state, seed=0, budget=Budget.parse("steps=96"))
    context.optimizer = recipe.optimize.optimizers(run_state)
    for _ in range(2):
        context.iteration += 1
        context.params_updated = False
        experience: Any = None
        for stage, parts in recipe.stages():
            for part in parts:
                if stage != "improve":
                    experience = part(experience, context)
        recipe.optimize.run(recipe.terms, experience, context)
    weights = torch.cat([p.detach().clone() for ps in run_state.parameters().values() for _, p in ps])
    monkeypatch.undo()
    return weights, context.metrics


@pytest.mark.parametrize(
    "settings",
    [
        {"entropy_coef": 0.05},
        {"minibatches": 1, "value_clip_range": 0.2},
        {"activation": "relu", "joint_clip": False, "normalize_advantage": False},
        {"activation": "elu", "target_kl": 1e-9},
    ],
    ids=["entropy", "one-minibatch", "relu", "stopped-early"],
)
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_updates_in_closed_form_are_those_of_autograd(
    task: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, fast_metrics = an_update(task, True, monkeypatch, **settings)
    plain, plain_metrics = an_update(task, False, monkeypatch, **settings)
    assert float((fast - plain).norm() / plain.norm()) < 1e-5
    assert fast_metrics.keys() == plain_metrics.keys()
    assert {k: pytest.approx(v, rel=1e-3, abs=2e-4) for k, v in plain_metrics.items()} == fast_metrics


def test_terms_on_rows_of_their_own_are_stepped_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = an_update("CartPole-v1", False, monkeypatch)
    added, metrics = an_update("CartPole-v1", False, monkeypatch, Added)
    assert metrics["loss/seen"] > 0 and bool((added != plain).any())
    with pytest.raises(TypeError, match="NoneType"):  # autograd's way is asked for, though there is a closed form
        an_update("CartPole-v1", True, monkeypatch, Added)
