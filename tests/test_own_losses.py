"""A new loss, density or network is what trains: nothing that was written for another one is taken in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyrl.catalogue import build
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.loop import Loop
from polyrl.errors import UserError
from polyrl.kernels.flat import FlatParameters
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.models.closed_form import ActorCriticPasses, Layers
from polyrl.models.control import ControlCritic, ControlPolicy, numpy_forward
from polyrl.models.distributions import Backward, Categorical, DiagonalGaussian, Distribution
from polyrl.models.normalization import Floats
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, PolicyGradient, ValueLoss
from polyrl.parts.pairs import LogRatioLoss
from polyrl.recipe import Recipe, Term
from polyrl.run_state.control import ControlRunState, make_run_state, make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import PythonObjects, RunConfig
from run_states import TableRunState, credited, make_context, token_batch


def control_loop(
    change: Callable[[Recipe], Recipe],
    alter: Callable[[ControlRunState], None] = lambda run_state: None,
    task: str = "CartPole-v1",
) -> Loop:
    config = RunConfig(method="ppo", task=task, budget="iterations=3")
    settings = {"environments": 2, "steps_per_environment": 32, "epochs": 2, "minibatches": 2}
    recipe = change(build("ppo", {k: str(v) for k, v in settings.items()}, domain="control"))
    run_state = make_run_state(config, make_task(config, PythonObjects()), recipe)
    alter(run_state)
    return Loop(recipe, run_state, Context(run_state=run_state, seed=0, budget=Budget.parse("iterations=3")))


def in_place_of(term: Term, **more: Any) -> Callable[[Recipe], Recipe]:
    """The recipe with this term alone."""
    return lambda recipe: replace(recipe, terms=(term,), **more)


def policy_of(run_state: Any) -> Tensor:
    vector: Tensor = run_state.flat["policy"].vector.detach().clone()
    return vector


# ------------------------------------------------------------------------------------------------------------- terms


class ZeroSurrogate(ClippedSurrogate):
    """A loss that is 0 everywhere: nothing may be learned."""

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return 0.0 * outputs["logprob"]


class ZeroValue(ValueLoss):
    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return 0.0 * outputs["value"]


class ZeroEntropy(EntropyBonus):
    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return 0.0 * outputs["entropy"]


class ZeroGradient(PolicyGradient):
    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return 0.0 * outputs["logprob"]


class Loss0:
    """The same from beside the term's classes."""

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return 0.0 * outputs["logprob"]


class MixedIn(Loss0, ClippedSurrogate):
    pass


class Grandchild(ZeroSurrogate):
    pass


@pytest.mark.parametrize("kind", [ZeroSurrogate, ZeroGradient, MixedIn, Grandchild, ZeroEntropy])
def test_the_loss_of_a_subclass_is_what_trains(kind: type[Term]) -> None:
    loop = control_loop(in_place_of(kind()))
    before = policy_of(loop.run_state)
    loop.iterate()
    assert torch.equal(policy_of(loop.run_state), before)
    parent = control_loop(in_place_of(ClippedSurrogate()))
    parent.iterate()
    assert not torch.equal(policy_of(parent.run_state), before)  # the same start, and its own loss moves it


def test_so_is_a_critic_s() -> None:
    loop = control_loop(lambda recipe: replace(recipe, terms=(ClippedSurrogate(), ZeroValue())))
    before = loop.run_state.flat["critic"].vector.detach().clone()  # type: ignore[attr-defined]
    loop.iterate()
    assert torch.equal(loop.run_state.flat["critic"].vector.detach(), before)  # type: ignore[attr-defined]


class Helped(ClippedSurrogate):
    """A loss by way of a method that subclasses may change, with derivatives written for this one."""

    def gain(self, ratio: Tensor) -> Tensor:
        return ratio

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        return -self.gain(ratio) * experience["advantage"]

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        grad_output = -ratio * experience["advantage"] * weights
        return grad_output.sum(), {"logprob": grad_output}

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        return {"gain": self.gain(outputs["logprob"])}


class NoGain(Helped):
    def gain(self, ratio: Tensor) -> Tensor:
        return 0.0 * ratio


def test_derivatives_go_with_the_class_that_wrote_them() -> None:
    loop = control_loop(in_place_of(NoGain()))
    before = policy_of(loop.run_state)
    loop.iterate()
    assert torch.equal(policy_of(loop.run_state), before) and "gain" not in loop.context.metrics
    parent = control_loop(in_place_of(Helped()))
    parent.iterate()
    assert not torch.equal(policy_of(parent.run_state), before) and "gain" in parent.context.metrics

    class TakenOn(ClippedSurrogate):
        grad_outputs = ClippedSurrogate.grad_outputs

    assert TakenOn.grad_outputs is ClippedSurrogate.grad_outputs and NoGain.grad_outputs is Term.grad_outputs


@dataclass(frozen=True, kw_only=True)
class Renamed(ClippedSurrogate):
    """Nothing but a default and a name is another's: the statistics are still true."""

    clip_range: float = 0.3

    @property
    def name(self) -> str:
        return "renamed"


class OtherPairLoss(LogRatioLoss):
    scale = 2.0  # type: ignore[assignment]

    def pair_loss(self, h: Tensor) -> Tensor:
        return -h


class OtherMargin(DPOLoss):
    def margin(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return super().margin(outputs, experience) - 1


def test_statistics_of_another_loss_are_not_told() -> None:
    kept, gone = [Renamed, OtherPairLoss, DPOLoss], [ZeroSurrogate, MixedIn, Grandchild, NoGain, OtherMargin]
    assert all(kind.statistics is not Term.statistics for kind in kept)
    assert all(kind.statistics is Term.statistics for kind in gone)


class WrongGradients(ClippedSurrogate):
    """A sign is wrong, as may happen."""

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, found = ClippedSurrogate.grad_outputs(self, outputs, experience, weights)
        return total, {name: -grad_output for name, grad_output in found.items()}


class UnclippedGradients(ClippedSurrogate):
    """Right where ratios are 1, wrong where the clip stops them."""

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        gain = torch.exp(outputs["logprob"] - experience["behaviour_logprob"]) * experience["advantage"]
        return -(gain * weights).sum(), {"logprob": -gain * weights}


class WrongTotal(ClippedSurrogate):
    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, found = ClippedSurrogate.grad_outputs(self, outputs, experience, weights)
        return total + 1, found


@pytest.mark.parametrize("kind", [WrongGradients, UnclippedGradients, WrongTotal])
def test_wrong_derivatives_are_refused_before_the_first_step(kind: type[Term]) -> None:
    term = kind()
    loop = control_loop(in_place_of(term))
    before = policy_of(loop.run_state)
    with pytest.raises(UserError, match=rf"'{term.name}'.*nothing was trained"):
        loop.iterate()
    assert torch.equal(policy_of(loop.run_state), before)


def test_a_loss_that_was_replaced_in_a_running_program_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClippedSurrogate, "loss", ZeroSurrogate.loss)
    with pytest.raises(UserError, match=r"'clipped-surrogate'.*is not that of its loss"):
        control_loop(in_place_of(ClippedSurrogate())).iterate()


class HalfOfTheSteps(EntropyBonus):
    """Counts every second step only."""

    def weights(self, experience: Experience) -> Tensor:
        return experience["weight"] * 0

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return 1e3 * outputs["entropy"]


def test_a_term_s_own_weights_are_used_beside_others() -> None:
    loops = [
        control_loop(lambda recipe, more=more: replace(recipe, terms=(*recipe.terms, *more)))
        for more in ((), (HalfOfTheSteps(),))
    ]
    for loop in loops:
        loop.iterate()
    assert torch.equal(*(policy_of(loop.run_state) for loop in loops))  # counts nothing, so changes nothing
    assert loops[1].context.metrics["loss/half-of-the-steps"] == 0


# --------------------------------------------------------------------------------------------------- distributions


class Flat(Categorical):
    """A density that says the same of every action."""

    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        return numbers.sum(-1) * 0 - 1


class Sharper(DiagonalGaussian):
    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        return 3 * super().log_prob(numbers, action)


class NoEntropy(Categorical):
    def entropy(self, numbers: Tensor) -> Tensor:
        return torch.zeros(numbers.shape[:-1])


class WrongWay(Categorical):
    """Derivatives of its own, and wrong ones."""

    def differentiable(self, numbers: Floats, action: Any) -> tuple[Floats, Floats, Backward]:
        logprob, entropy, back = Categorical.differentiable(self, numbers, action)
        return logprob, entropy, lambda *grad_outputs: 2 * back(*grad_outputs)


def acts_by(distribution: Distribution) -> Callable[[ControlRunState], None]:
    def alter(run_state: ControlRunState) -> None:
        run_state.policy.distribution = distribution
        run_state.flat = {name: FlatParameters(module) for name, module in run_state.modules.items()}
        run_state._passes = ActorCriticPasses.of(run_state.policy, run_state.critic)

    return alter


def test_the_density_of_a_subclass_is_what_trains() -> None:
    loop = control_loop(in_place_of(ClippedSurrogate()), acts_by(Flat(2)))
    before = policy_of(loop.run_state)
    loop.iterate()
    assert torch.equal(policy_of(loop.run_state), before) and loop.context.metrics["logprob_gap"] == 0
    for kind, made in ((Sharper, Sharper(1)), (NoEntropy, NoEntropy(3))):
        assert kind.differentiable is Distribution.differentiable
        numbers = np.random.default_rng(0).normal(size=(5, made.size)).astype(np.float32)
        action = np.zeros((5, *made.action_shape), dtype=made.dtype)
        found = made.differentiable(numbers, action)
        torch.testing.assert_close(
            torch.from_numpy(found[0]), made.log_prob(*map(torch.from_numpy, (numbers, action))).detach()
        )
        torch.testing.assert_close(torch.from_numpy(found[1]), made.entropy(torch.from_numpy(numbers)).detach())


def test_wrong_derivatives_of_a_density_are_refused() -> None:
    loop = control_loop(in_place_of(ClippedSurrogate()), acts_by(WrongWay(2)))
    before = policy_of(loop.run_state)
    with pytest.raises(UserError, match=r"derivative by its params that WrongWay\.differentiable gives"):
        loop.iterate()
    assert torch.equal(policy_of(loop.run_state), before)


# -------------------------------------------------------------------------------------------------------- networks


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def hooked() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 3))
    network[0].register_forward_hook(lambda module, given, result: result / 2)
    return network


def twice() -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


UNKNOWN: list[Callable[[], nn.Module]] = [
    lambda: nn.Sequential(Halved(3, 3)),
    lambda: Residual(nn.Linear(3, 3)),
    lambda: nn.Sequential(nn.Linear(3, 3), nn.ELU(alpha=0.5), nn.Linear(3, 3)),
    hooked,
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
]


@pytest.mark.parametrize("make", UNKNOWN)
def test_layers_that_only_look_known_are_left_to_torch(make: Callable[[], nn.Module]) -> None:
    network = make()
    FlatParameters(network)
    assert Layers.of(network) is None and numpy_forward(network) is None


def test_a_layer_that_is_used_twice_has_the_sum_of_its_gradients() -> None:
    network = twice()
    FlatParameters(network)
    assert Layers.of(network) is None


def test_networks_that_compute_in_their_own_way_are_left_to_autograd() -> None:
    class Masked(ControlPolicy):
        def outputs(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
            return {name: x / 2 for name, x in super().outputs(observation, action).items()}

    class Doubled(ControlCritic):
        def forward(self, observation: Tensor) -> Tensor:
            return 2 * super().forward(observation)

    def parts(policy: type[ControlPolicy], critic: type[ControlCritic]) -> tuple[ControlPolicy, ControlCritic]:
        made = policy(nn.Sequential(nn.Linear(3, 2)), Categorical(2), np.ones(3, dtype=bool), normalize=True)
        judge = critic(nn.Sequential(nn.Linear(3, 1)))
        for module in (made, judge):
            FlatParameters(module)
        return made, judge

    assert ActorCriticPasses.of(*parts(ControlPolicy, ControlCritic)) is not None
    assert ActorCriticPasses.of(*parts(Masked, ControlCritic)) is None
    assert ActorCriticPasses.of(*parts(ControlPolicy, Doubled)) is None


# ------------------------------------------------------------------------------------------- sampler and trainer


def updated(
    noise: float, run_state: TableRunState | None = None, *, stale: bool = False, **hyperparameters: Any
) -> tuple[bool, float]:
    """Whether an update on responses, `noise` off in their log-probabilities, moved the policy, and the gap."""
    run_state = run_state or TableRunState(micro=5)
    recipe = build("grpo", {"max_logprob_gap": "none", **{k: str(v) for k, v in hyperparameters.items()}})
    context = make_context(run_state, recipe)
    batch = credited(recipe, token_batch(run_state, noise=noise), context)
    if stale:
        off = (batch["behaviour_logprob"] - run_state.outputs(batch, {"logprob"})["logprob"]).abs() > 0.1
        batch = batch.with_fields(policy_version=torch.where(off, 0, 1))
    before = run_state.weights()
    try:
        recipe.optimize.run(recipe.terms, batch, context)
    finally:
        moved = not torch.equal(run_state.weights(), before)
        assert moved or context.spent.updates == 0
    return moved, context.metrics["logprob_gap"]


def test_a_large_gap_between_sampler_and_trainer_stops_the_run() -> None:
    assert updated(0.3) == (True, pytest.approx(0.15, abs=0.01))
    run_state = TableRunState(micro=5)
    before = run_state.weights()
    with pytest.raises(UserError, match=r"disagree on the log-probability.*0\.4.*nothing was trained"):
        updated(1.0, run_state)
    assert torch.equal(run_state.weights(), before)
    assert updated(1.0, max_logprob_gap=0.6)[0]  # whoever means it says so
    with pytest.raises(UserError, match=r"more than 0\.01"):
        updated(0.3, max_logprob_gap=0.01)
    run_state.precision = "bfloat16"
    assert updated(1.0, run_state)[0]
    with pytest.raises(UserError, match="more than 2 "):
        updated(9.0, run_state)


def test_what_an_earlier_policy_said_is_no_gap() -> None:
    moved, gap = updated(1.0, stale=True)
    assert moved and gap < 0.1


def test_the_gap_stops_control_too() -> None:
    def alter(run_state: ControlRunState) -> None:
        collect = run_state.collect

        def elsewhere(*given: Any, **named: Any) -> Any:
            batch, returns, lengths = collect(*given, **named)
            return batch.with_fields(behaviour_logprob=batch["behaviour_logprob"] - 0.3), returns, lengths

        run_state.collect = elsewhere  # type: ignore[method-assign]

    loop = control_loop(lambda recipe: recipe, alter)
    before = policy_of(loop.run_state)
    with pytest.raises(UserError, match=r"disagree on the log-probability of an action by 0\.3"):
        loop.iterate()
    assert torch.equal(policy_of(loop.run_state), before) and not loop.context.params_updated
