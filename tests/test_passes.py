"""Passes and derivatives that are written out: beside autograd's, network by network and term by term."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyrl import kernels
from polyrl.core.agreement import compare_written
from polyrl.core.experience import Experience
from polyrl.core.update import Again, Draws, Move, On, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.kernels.flat import FlatParameters
from polyrl.methods.control.dqn import HuberTD
from polyrl.methods.control.td3 import FirstCriticValue
from polyrl.models.base import Copy, Interface, Model, Models, Network
from polyrl.models.critics import DiscreteQNetwork, QNetwork, StateCritic, ValueNetwork
from polyrl.models.networks import StackedMlp
from polyrl.models.policies import DeterministicPolicy, SquashedGaussian
from polyrl.models.scalar import PositiveScalar
from polyrl.parts.replayed import EntropyTarget, SoftTarget, SoftValue, SquaredTD, StepAndKeep
from polyrl.recipe import Recipe, Term
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

pytestmark = pytest.mark.kernels
torch.set_num_threads(1)
ROWS, OBSERVED, ACTIONS = 9, 4, 2


def interface(space: spaces.Space[Any]) -> Interface:
    return Interface("a task", OBSERVED, np.ones(OBSERVED, dtype=bool), space)


BOX = interface(spaces.Box(-2, 2, (ACTIONS,), np.float32))
FEW = interface(spaces.Discrete(3))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(few: bool = False) -> Experience:
    draws = stream(5)
    action = torch.randint(3, (ROWS, 1), generator=draws) if few else torch.rand(ROWS, 1, ACTIONS, generator=draws)
    weight = torch.rand(ROWS, 1, generator=draws)
    weight[3] = 0
    return Experience(
        {
            "observation": torch.randn(ROWS, 1, OBSERVED, generator=draws),
            "action": action,
            "weight": weight,
            "value_target": torch.randn(ROWS, 1, generator=draws),
            "sampled_logprob": torch.randn(ROWS, 1, generator=draws),
        }
    )


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 3, 20])
@pytest.mark.parametrize(("members", "hidden"), [(1, (8, 6)), (2, (20, 40)), (5, (8, 6))])
@pytest.mark.parametrize("without", [[], [0, 2, 3, 5, 6], [1]])
def test_passes_are_those_of_separate_networks(
    monkeypatch: pytest.MonkeyPatch,
    activation: Any,
    outputs: int,
    members: int,
    hidden: tuple[int, ...],
    without: list[int],
) -> None:
    draws = stream(2)
    network = StackedMlp(4, hidden, outputs, members=members, activation=activation, generator=draws)
    flat = FlatParameters(network)
    x, grad = torch.randn(7, 4, generator=draws), torch.randn(members, 7, outputs, generator=draws)
    grad[-1, without] = 0  # rows in which the last member has no gradient
    passes = network.passes_to_train()
    assert passes is not None
    told = passes.forward(x)
    by_input = passes.to_input(grad)
    passes.to_parameters(grad)
    gradient, kept = flat.vector.grad.clone(), passes.outputs(x)
    monkeypatch.setattr(kernels, "ENABLED", False)
    flat.vector.grad.zero_()
    leaf = x.clone().requires_grad_()
    out = network(leaf).transpose(0, 1)
    out.backward(grad)
    close(told, out.detach())
    close(kept, out.detach())
    close(by_input, leaf.grad)
    close(gradient, flat.vector.grad)
    assert torch.equal(told, kept)


def test_the_first_members_alone() -> None:
    network = StackedMlp(4, (20, 20), 1, members=3, generator=stream())
    passes, x = network.passes(torch.zeros(2, 4)), torch.randn(2, 4, generator=stream(1))
    assert passes is not None
    assert torch.equal(passes.forward(x, 2), passes.outputs(x)[:2])


def test_what_was_put_out_stays_when_the_next_pass_is_made() -> None:
    network = StackedMlp(4, (20, 20), 3, generator=stream())
    passes = network.passes(torch.zeros(2, 4))
    assert passes is not None
    for give in (passes.outputs, passes.forward):
        first = give(torch.ones(5, 4))
        before = first.clone()
        give(-torch.ones(5, 4))
        give(torch.zeros(3, 4))
        assert torch.equal(first, before)


def test_passes_follow_parameters_that_move_and_copies_have_their_own() -> None:
    network = StackedMlp(4, (20,), 1, generator=stream())
    x = torch.randn(5, 4, generator=stream(1))
    with torch.no_grad():
        before = network(x)
        other = copy.deepcopy(network)
        for p in other.parameters():
            p.add_(1)
        assert torch.equal(network(x), before)
        assert not torch.equal(other(x), before)
        for p in network.parameters():
            p.data = p.data * 2  # elsewhere
        moved = network(x)
    assert not torch.equal(moved, before)
    assert network.passes_to_train() is None  # which has no gradients
    flat = FlatParameters(network)
    passes = network.passes_to_train()
    assert passes is not None
    assert torch.equal(passes.forward(x)[0][:, None], moved)
    passes.to_parameters(torch.ones(1, 5, 1))
    assert float(flat.vector.grad.norm()) > 0


@pytest.mark.parametrize("other", [{"activation": "elu"}, {"layer_norm": True}])
def test_layers_of_another_kind_have_no_passes(other: dict[str, Any]) -> None:
    network = StackedMlp(4, (20,), 1, generator=stream(), **other)
    FlatParameters(network)
    assert network.passes_to_train() is None


# --------------------------------------------------------------------------------------------------------- models

MODELS: dict[str, tuple[Model, Interface, tuple[str, ...]]] = {
    "critics": (QNetwork(critics=3, hidden="20x20"), BOX, ("q",)),
    "values": (DiscreteQNetwork(hidden="20x20"), FEW, ("q",)),
    "all values": (DiscreteQNetwork(hidden="20x20"), FEW, ("q", "action_values")),
    "state": (ValueNetwork(hidden="20x20"), BOX, ("value",)),
    "squashed": (SquashedGaussian(hidden="20x20"), BOX, ("sampled_action", "sampled_logprob")),
    "squashed, its actions": (SquashedGaussian(hidden="20x20"), BOX, ("sampled_action",)),
    "squashed, its log-densities": (SquashedGaussian(hidden="20x20"), BOX, ("sampled_logprob",)),
    "deterministic": (DeterministicPolicy(hidden="20x20"), BOX, ("mode",)),
    "number": (PositiveScalar(initial=0.3), BOX, ("log_number",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_without_autograd_are_those_with_it(name: str) -> None:
    entry, task, given = MODELS[name]
    models = Models({"m": entry}, task, 3)
    gradient = models.flat["m"].vector.grad
    assert gradient is not None
    batch, wants = rows(few=task is FEW), frozenset(given)
    if name.startswith("squashed"):  # some deviations at their bounds, which let no gradient through
        with torch.no_grad():
            models["m"].network.biases[-1][0, -1] = 2.0
    closed = models.closed_form("m", wants)
    assert closed is not None
    found = closed.forward(batch, wants, Draws(stream(7)))
    models.ask_gradients("m", True)
    wanted = models["m"].outputs(batch, wants, Draws(stream(7)))
    by = {n: torch.randn(wanted[n].shape, generator=stream(8)) for n in given}
    total = torch.stack([(wanted[n] * by[n]).sum() for n in given]).sum()
    for n in given:
        close(found[n], wanted[n].detach())
        assert not found[n].requires_grad
    models.zero_gradients("m")
    total.backward()
    models.ask_gradients("m", False)
    right = [p.grad.clone() for p in models["m"].parameters()]
    gradient.fill_(7)  # what stood there before is written over
    closed.backward(by)
    for p, one in zip(models["m"].parameters(), right, strict=True):
        close(p.grad, one)
        assert float(one.norm()) > 0


def test_what_a_subclass_computes_otherwise_is_left_to_autograd() -> None:
    class Doubled(StateCritic):
        def forward(self, observation: Tensor) -> Tensor:
            return 2 * super().forward(observation)

    network = StackedMlp(OBSERVED, (20,), 1, generator=stream())
    FlatParameters(network)
    assert StateCritic(network).closed_form({"value"}) is not None
    assert Doubled(network).closed_form({"value"}) is None


def test_a_dueling_network_and_stored_actions_are_left_to_autograd() -> None:
    models = Models({"d": DiscreteQNetwork(dueling=True, hidden="8")}, FEW, 3)
    assert models.closed_form("d", {"q"}) is None
    models = Models({"p": SquashedGaussian(hidden="8")}, BOX, 3)
    assert models.closed_form("p", {"sampled_action", "logprob"}) is None
    assert models.closed_form("p", {"sampled_action"}) is not None


# ---------------------------------------------------------------------------------------------------------- terms


class Seen(See):
    """What a term sees, with a stream of its own."""

    def __init__(self, models: Models):
        super().__init__(models, None, "update")  # type: ignore[arg-type]
        self.__dict__["generator"] = stream(11)


def beside(models: Models) -> tuple[Seen, dict[str, dict[str, Tensor]]]:
    draws = stream(13)
    action = torch.rand(ROWS, 1, ACTIONS, generator=draws) * 2 - 1
    return Seen(models), {
        "sampled": {"sampled_action": action, "sampled_logprob": torch.randn(ROWS, 1, generator=draws)},
        "mode": {"mode": action},
        "critics": {"q": torch.randn(ROWS, 1, 2, generator=draws)},
        "value": {"q": 3 * torch.randn(ROWS, 1, generator=draws)},
        "number": {"log_number": torch.tensor([-0.4])},
    }


TERMS: list[tuple[Term, str]] = [
    (SoftValue(), "sampled"),
    (FirstCriticValue(), "mode"),
    (SquaredTD(), "critics"),
    (HuberTD(), "value"),
    (EntropyTarget(), "number"),
]


@pytest.mark.parametrize(("term", "outputs"), TERMS, ids=[term.name for term, _ in TERMS])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_written_derivatives_are_autograds(term: Term, outputs: str, layer_norm: bool) -> None:
    models = Models(
        {"q": QNetwork(hidden="20x20", layer_norm=layer_norm), "temperature": PositiveScalar(initial=0.7)}, BOX, 3
    )
    see, given = beside(models)
    batch = rows()
    assert term.is_written
    weights = term.step_weights(batch)
    told = term.grad_summand(given[outputs], batch, see, weights)
    assert told is not None
    leaves = {name: x.clone().requires_grad_() for name, x in given[outputs].items()}
    total = (term.summand(leaves, batch, see) * weights).sum()
    total.backward()
    close(told[0], total.detach())
    for name, leaf in leaves.items():
        close(told[1][name], leaf.grad)
        assert float(leaf.grad.norm()) > 0
    assert not models.flat["q"].vector.grad.any()


def test_critics_that_are_equally_low_share_the_gradient() -> None:
    models = Models({"q": QNetwork(hidden="20x20"), "temperature": PositiveScalar()}, BOX, 3)
    with torch.no_grad():
        for p in models["q"].parameters():
            p[1] = p[0]
    see, given = beside(models)
    batch, term = rows(), SoftValue()
    weights = term.step_weights(batch)
    told = term.grad_summand(given["sampled"], batch, see, weights)
    leaf = given["sampled"]["sampled_action"].clone().requires_grad_()
    (-models["q"](batch["observation"], leaf)[..., 0] * weights).sum().backward()
    close(told[1]["sampled_action"], leaf.grad)


@dataclass(frozen=True, kw_only=True)
class Wrong(SquaredTD):
    """Derivatives that are twice as large."""

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, by = SquaredTD.grad_outputs(self, outputs, experience, weights)
        return total, {"q": 2 * by["q"]}


@dataclass(frozen=True, kw_only=True)
class Inherits(SoftValue):
    """Another value, of which nobody has written the derivative."""

    def value(self, q: Tensor) -> Tensor:
        return q.mean(-1)


def test_a_derivative_that_is_none_is_refused_before_anything_is_trained() -> None:
    see, given = beside(Models({"q": QNetwork(hidden="8")}, BOX, 3))
    batch, term = rows(), Wrong()
    before = see.generator.get_state()
    with pytest.raises(UserError, match=r"derivative by q that the term 'wrong' of the model 'q'"):
        compare_written(term, given["critics"], batch, see, term.step_weights(batch), "q")
    compare_written(SquaredTD(), given["critics"], batch, see, term.step_weights(batch), "q")
    assert torch.equal(see.generator.get_state(), before)


def test_written_derivatives_are_not_inherited() -> None:
    see, given = beside(Models({"q": QNetwork(hidden="8"), "temperature": PositiveScalar()}, BOX, 3))
    term = Inherits()
    assert not term.is_written
    assert term.grad_summand(given["sampled"], rows(), see, torch.ones(ROWS, 1)) is None


def test_a_module_says_by_itself_whether_it_has_passes() -> None:
    assert Network.closed_form(torch.nn.Module(), {"q"}) is None  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- a list


def beside_another_batch() -> Recipe:
    """Critics that learn from two batches in one step, and a policy after them."""
    credit = (SoftTarget(),)
    return Recipe(
        name="mine",
        models={
            "policy": SquashedGaussian(hidden="20x20"),
            "q": QNetwork(hidden="20x20"),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(),
        },
        collect=StepAndKeep(random_steps=10),
        sources={"replay": Replay(learning_starts=20)},
        updates=(
            Update(
                "q",
                (SquaredTD(),),
                Sample("replay", batch_size=8),
                credit,
                (On(Sample("replay", batch_size=24), (SquaredTD(),), credit),),
            ),
            Update("policy", (SoftValue(),), Again()),
            Move("q_target", "q", tau=0.05),
        ),
        turns=40,
    )


def test_a_list_trains_as_with_autograd_where_one_step_has_a_batch_beside_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for fast in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", fast)
        config = RunConfig(method="mine", task="Pendulum-v1", budget="iterations=2", tensorboard=False, seed=3)
        loop = make_loop(config, given=PythonObjects(recipe=beside_another_batch().check()))[0]
        loop.iterate()
        found.append({name: flat.vector.detach().clone() for name, flat in loop.run_state.models.flat.items()})
        assert loop.context.written == ({SoftValue} if fast else set())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)
