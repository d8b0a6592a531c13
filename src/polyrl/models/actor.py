"""What turns observations into actions: an actor, with one face for acting and one for training.

Acting is a loop over steps that must cost no more than it computes, so it goes by a **player**: a function over arrays
that is made once a rollout, from the weights as they are then. Training asks the same actor for differentiable
**outputs** of the steps that were stored. Wrappers (advice, masks, a guide that goes first) are actors that take
another as `inner`; what they record at each step becomes fields of the experience, by which `outputs` finds again what
was done.

An actor draws nothing itself: it says what noise it wants, and gets it in one block a rollout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import Diverged, UserError
from polyrl.models.control import ControlPolicy
from polyrl.models.distributions import Distribution
from polyrl.models.graph import Node
from polyrl.models.normalization import Floats


class ActionNotFinite(Diverged):
    """What a network says in some state is not finite, so there is no action; the collector says where."""


@dataclass
class Moment:
    """One step as a player sees it; one object a rollout, whose arrays are changed at every step.

    Attributes:
        seen: float32 `[B, D]`, the observations as models read them.
        shown: float64 `[B, D]`, the same as the environments show them.
        starts: bool `[B]`, whose episode begins with this step.
        mask: bool `[B, A]`, the actions that are allowed; None where all are.
        noise: `[B, ...]`, this step's part of the block that `Actor.noise` made; None while nothing is explored.
        records: where the actor writes what it says that it records, `[B, ...]` each; empty while nothing is stored.
        memory: what the actor wrote there at the step before, `[B, ...]` each, and 0 where an episode begins.
    """

    seen: Floats
    shown: NDArray[np.float64]
    starts: NDArray[np.bool_]
    noise: NDArray[Any] | None = None
    mask: NDArray[np.bool_] | None = None
    records: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    memory: Mapping[str, NDArray[Any]] = field(default_factory=dict)


Player = Callable[[Moment], NDArray[Any]]
"""Gives actions `[B, *action_shape]` for a moment.

Raises:
    ActionNotFinite: what the network says is not finite.
"""


@dataclass(frozen=True)
class Making:
    """What a wrapper may be made of.

    Attributes:
        task: what is solved.
        models: the recipe's models by name; empty where it states none.
        seed: of the run.
        say: for what takes long.
    """

    task: Any
    models: Mapping[str, Any]
    seed: int
    say: Callable[[str], None] = lambda _: None


class Actor(ABC):
    """Turns observations into actions.

    Attributes:
        action_shape: shape of one action, `()` or `(A,)`.
        action_dtype: NumPy dtype of actions.
        recorded: name -> (shape, dtype) of what a player writes at every step, beside the action.
        memory: name -> (shape, dtype) of what a player keeps from one step to the next, such as momentum or how far the
            episode is: it writes into `Moment.memory`, which checkpoints hold. A wrapper's has its inner actor's in it.
        judged_as: where it is not the policy itself that acts, the name under which evaluations also tell its return;
            empty: only the policy is judged.
        is_policy: whether evaluations judge this actor, with no noise, in the place of the policy that it wraps.
        fields_read: fields of the experience that `outputs` needs beside observation and action.
        execute: what environments are given for actions `[B, ...]`, where that is not the action itself.
        executed_shape: shape of what they are given for one action, where that is not the action's; it is float32.
    """

    action_shape: tuple[int, ...]
    action_dtype: Any
    recorded: Mapping[str, tuple[tuple[int, ...], Any]]
    memory: Mapping[str, tuple[tuple[int, ...], Any]] = {}
    judged_as: str = ""
    is_policy: bool = False
    fields_read: frozenset[str] = frozenset()
    execute: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    executed_shape: tuple[int, ...] | None = None

    @abstractmethod
    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """What a rollout of `steps` in `count` environments draws, `[steps, count, ...]`."""

    @abstractmethod
    def player(self) -> Player:
        """Acting with the weights as they are now: at random by a moment's noise, or greedily where it has none."""

    @abstractmethod
    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """Fields `[B, T, ...]` that the rollout's records `[B, T, ...]` and its actions make, `behaviour_logprob` too
        where the actor has one.
        """

    @abstractmethod
    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable outputs of stored steps, `[B, T]` each, those that are wanted: "logprob", "entropy"."""

    def writes_likelihoods(self) -> bool:
        """Whether `allowed` or `logprob_by_models` stand beside `outputs`, in the class that says what outputs are.

        Without them nobody has written how its likelihoods follow from what the model's network says, and autograd
        finds them: `outputs` may be of another action, or of another model.
        """
        writer = vars(next(c for c in type(self).__mro__ if "outputs" in vars(c)))
        return "allowed" in writer or "logprob_by_models" in writer

    def allowed(self, params: Floats, batch: Experience) -> Floats:
        """What the model's network says `[N, size]`, changed by what was known of stored steps, such as a mask."""
        return params

    def logprob_by_models(self, logprob: Floats, batch: Experience) -> tuple[Floats, Floats] | None:
        """The actor's log-probabilities `[N]` where its model's are `logprob`, and their derivative by those `[N]`.

        None where they are the same, which is so unless a wrapper says otherwise.
        """
        return None

    # ------------------------------------------------------------------------------- what observations pass through

    def observe(self, shown: NDArray[np.float64]) -> None:  # noqa: B027 - nothing by default
        """Take raw observations `[N, D]` into running statistics, where the actor keeps some."""

    def normalize(self, shown: NDArray[np.float64]) -> Floats:
        """Raw observations `[..., D]` as its models read them, float32."""
        return shown.astype(np.float32)

    def observed(self) -> Callable[[NDArray[np.float64] | None, NDArray[np.float64], Floats], None] | None:
        """A fast form of the two above for the loop over steps, `(new, all, into)`; None where nothing is normalized.

        It takes the rows `new` into the statistics and writes all rows, normalized, to `into`.
        """
        return None

    def statistics(self) -> list[Tensor]:
        """Tensors that acting changes, which a rollout that does not count must bring back."""
        return []

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether every parameter that it acts by is finite."""

    def greedy(self, masked: bool) -> list[Node]:
        """What it does without noise, for `polyrl export`: from observations `[N, D]` float64 to what `player` gives.

        `masked`: whether the environment tells which actions are allowed.

        Raises:
            UserError: it has no form that leaves the house.
        """
        raise UserError(
            f"A {type(self).__name__} has no form that can be exported; polyrl.load(RUN).act(observation) acts by any."
        )


class Wrapper(Actor):
    """Another actor with something changed: whatever a subclass does not write is the inner actor's.

    Attributes:
        inner: the actor that is changed.
    """

    def __init__(self, inner: Actor):
        self.inner = inner
        self.action_shape, self.action_dtype = inner.action_shape, inner.action_dtype
        self.recorded, self.memory, self.fields_read = inner.recorded, inner.memory, inner.fields_read
        self.execute, self.executed_shape = inner.execute, inner.executed_shape

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """The inner actor's."""
        return self.inner.noise(steps, count, generator)

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """The inner actor's."""
        return self.inner.fields(records, action)

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The inner actor's."""
        return self.inner.outputs(batch, wants)

    def writes_likelihoods(self) -> bool:
        """As of the inner actor, where outputs are its own."""
        own = super().writes_likelihoods()
        says = next(c for c in type(self).__mro__ if "outputs" in vars(c))
        return self.inner.writes_likelihoods() if says is Wrapper else own

    def allowed(self, params: Floats, batch: Experience) -> Floats:
        """By what the inner actor knew of stored steps."""
        return self.inner.allowed(params, batch)

    def logprob_by_models(self, logprob: Floats, batch: Experience) -> tuple[Floats, Floats] | None:
        """The inner actor's."""
        return self.inner.logprob_by_models(logprob, batch)

    def observe(self, shown: NDArray[np.float64]) -> None:
        """Into the inner actor's statistics."""
        self.inner.observe(shown)

    def normalize(self, shown: NDArray[np.float64]) -> Floats:
        """By the inner actor's statistics."""
        return self.inner.normalize(shown)

    def observed(self) -> Callable[[NDArray[np.float64] | None, NDArray[np.float64], Floats], None] | None:
        """The inner actor's."""
        return self.inner.observed()

    def statistics(self) -> list[Tensor]:
        """The inner actor's."""
        return self.inner.statistics()

    def is_finite(self) -> bool:
        """Whether the inner actor's parameters are."""
        return self.inner.is_finite()


BLOCKED = np.float32(-1e8)
"""Logit of an action that is not allowed: its probability is exactly 0, and its share of the entropy too."""
ALLOWED = (Node("allow", settings={"blocked": float(BLOCKED)}),)
"""For export: very low values of the actions that a mask forbids."""


class DistributionActor(Actor):
    """Samples from the distribution that a policy's network describes in each state.

    Attributes:
        policy: network, distribution and statistics.
    """

    def __init__(self, policy: ControlPolicy):
        self.policy = policy
        self.action_shape, self.action_dtype = self.distribution.action_shape, self.distribution.dtype
        self.recorded = {"params": ((self.distribution.size,), np.float32)}

    @property
    def distribution(self) -> Distribution:
        """The policy's family."""
        return self.policy.distribution

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """The family's own noise, `[steps, count, size]`."""
        return self.distribution.noise((steps, count), generator)

    def describer(self) -> Callable[[Moment], Floats]:
        """What the network says in a moment's states `[B, size]`, also written to the record `params`."""
        forward = self.policy.snapshot()
        finite = np.empty((0, 0), dtype=bool)

        def describe(moment: Moment) -> Floats:
            nonlocal finite
            params = forward(moment.seen, moment.records.get("params"))
            if finite.shape != params.shape:
                finite = np.empty(params.shape, dtype=bool)
            if np.count_nonzero(np.isfinite(params, out=finite)) != finite.size:
                raise ActionNotFinite
            return params

        return describe

    def player(self) -> Player:
        """Sample, or take the most probable action where there is no noise."""
        return self.chooser(self.describer())

    def chooser(self, describe: Callable[[Moment], Floats]) -> Player:
        """Choose actions of the distributions that `describe` gives the params of."""
        mode, sample = self.distribution.mode, self.distribution.sample

        def play(moment: Moment) -> NDArray[Any]:
            params = describe(moment)
            return mode(params) if moment.noise is None else sample(params, moment.noise)

        return play

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """`behaviour_logprob` of the whole rollout at once."""
        with torch.no_grad():
            logprob = self.distribution.log_prob(torch.from_numpy(records["params"]), action)
        return {"behaviour_logprob": logprob}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The policy's own."""
        found = self.policy.outputs(batch["observation"], batch["action"])
        return {name: x for name, x in found.items() if name in wants}

    def allowed(self, params: Floats, batch: Experience) -> Floats:
        """As the network says."""
        return params

    def observe(self, shown: NDArray[np.float64]) -> None:
        """The policy's statistics."""
        self.policy.update_statistics(shown)

    def normalize(self, shown: NDArray[np.float64]) -> Floats:
        """By the policy's statistics."""
        return self.policy.normalize(shown)

    def observed(self) -> Callable[[NDArray[np.float64] | None, NDArray[np.float64], Floats], None] | None:
        """On the memory of the policy's statistics."""
        if self.policy.observation_moments is None:
            return None
        moments = self.policy.observation_moments.arrays()

        def observe(new: NDArray[np.float64] | None, shown: NDArray[np.float64], into: Floats) -> None:
            moments.update(shown if new is None else new)
            moments.normalize(shown, into)

        return observe

    def statistics(self) -> list[Tensor]:
        """The policy's buffers."""
        return [*self.policy.buffers()]

    def is_finite(self) -> bool:
        """The policy's."""
        return all(bool(torch.isfinite(p).all()) for p in self.policy.parameters())

    def greedy(self, masked: bool) -> list[Node]:
        """Statistics, layers, and the most probable action."""
        return [*self.policy.nodes(), *(ALLOWED if masked else ()), *self.distribution.greedy()]


class MaskedActor(DistributionActor):
    """Samples from the allowed ones of a few actions, where the environment says which they are."""

    fields_read = frozenset({"action_mask"})

    def describer(self) -> Callable[[Moment], Floats]:
        """The network's logits, and a very low one for what is not allowed."""
        describe = super().describer()

        def masked(moment: Moment) -> Floats:
            params = describe(moment)
            if moment.mask is not None:
                params[~moment.mask] = BLOCKED
            return params

        return masked

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Log-probability and entropy among the allowed actions."""
        params = self.policy.network(batch["observation"])
        params = torch.where(batch["action_mask"], params, torch.full_like(params, float(BLOCKED)))
        found = {
            "logprob": self.distribution.log_prob(params, batch["action"]),
            "entropy": self.distribution.entropy(params),
        }
        return {name: x for name, x in found.items() if name in wants}

    def allowed(self, params: Floats, batch: Experience) -> Floats:
        """The same for arrays."""
        return np.where(batch["action_mask"].squeeze(1).numpy(), params, BLOCKED)
