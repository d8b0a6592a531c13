"""dfPO: learn what states cost, and move along its gradient by a law of motion; no values, no policy gradient.

What is decided is the velocity a of the state, ds/dt = a, and the Lagrangian |a|^2 / 2 - F(s) is discounted by
exp(-rate t), which is gamma = exp(-rate step) a step. Pontryagin's principle turns that into a motion of s and a, whose
Hamiltonian has F for its only unknown. A network C learns F from costs that the policy's own rollouts tell. Stage k
rolls k + 1 steps from new starts, and what was learned of the early steps is kept: those are labelled by the network
itself.

The score of the text is of state and adjoint; this, as its code (mpnguyen2/dpo), learns the state's part and writes the
kinetic part down. The code pairs the cost after a step with the state before it; here the state after it is labelled,
and `label_pairing=before` has the code's. Its batches hold no sample twice, its iterations grow by 5 percent a stage,
and it clips each number of the gradient at 100, which an absolute error does not come to here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnRows, OwnUpdate, Repeat, See, Update
from polyrl.errors import UserError
from polyrl.methods.control.dfpo.motion import CostActor, CostNetwork
from polyrl.models.actor import Actor, Making
from polyrl.models.base import Interface, Trained
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import Activation, StackedMlp
from polyrl.models.normalization import Floats
from polyrl.models.policies import RandomActor
from polyrl.parts.control import StepEnvironments
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "dfpo"
TITLE = "DPO: A Differential and Pointwise Control Approach to Reinforcement Learning"
PAPER = "arXiv:2404.15617"
YEAR = 2024
FORMULA = "a += step (rate a - grad C(s)), s += step a; C: min |C(s) - F(s)|"
TASK = "surface-shape(bound=10000)"

# ---------------------------------------------------------------------------------------------------- the law of motion


@dataclass(frozen=True, kw_only=True)
class CostPolicy(Trained):
    """A network of what states cost, by whose gradient they are moved."""

    outputs: ClassVar[frozenset[str]] = frozenset({"value"})
    slot: ClassVar[str] = "cost-policy"

    learning_rate: float = hyperparameter(1e-3, "Adam step size", low=0, high=1e37)
    hidden: str = hyperparameter("64x64", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")

    def make(self, interface: Interface, stream: torch.Generator) -> CostNetwork:
        """A network of the task's states.

        Raises:
            UserError: what is chosen is not one number for each that is shown.
        """
        box, shown = interface.box(f"'{self.name}'"), interface.observation_size
        if box.shape != (shown,):
            raise UserError(
                f"'{self.name}' chooses a velocity for each of the {shown} numbers that {interface.task} shows, and "
                f"its actions are {box}; take a task whose state moves so, such as surface-shape or grid-shape."
            )
        sizes = layer_sizes(self.hidden)
        network = StackedMlp(shown, sizes, 1, activation=self.activation, generator=stream)
        return CostNetwork(network, self, self.velocity, box)

    @abstractmethod
    def velocity(self, before: Floats, gradient: Floats) -> Floats:
        """Velocities `[B, n]`, of those of the step before and of grad C."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class HamiltonianPolicy(CostPolicy):
    """The paper's law of motion: velocities grow by the rate and are driven against the gradient."""

    rate: float = hyperparameter(0.9, "of the discount exp(-rate t); the paper's: surface 0.9, grid 20, molecule 50")
    step_size: float = hyperparameter(0.01, "Delta, time of a step; the task's", above=0)

    def velocity(self, before: Floats, gradient: Floats) -> Floats:
        """The velocity before, and Delta (rate a - grad C) more."""
        return before + np.float32(self.step_size) * (np.float32(self.rate) * before - gradient)


@dataclass(frozen=True, kw_only=True)
class DescentPolicy(CostPolicy):
    """Plain descent of the same network, as a control: velocities are the gradient's."""

    gain: float = hyperparameter(1.0, "velocity at a gradient of 1", above=0)

    def velocity(self, before: Floats, gradient: Floats) -> Floats:
        """-gain grad C."""
        return -np.float32(self.gain) * gradient


@dataclass(frozen=True, kw_only=True)
class SignPolicy(CostPolicy):
    """Descent by signs of the same network's gradient, as a control: all velocities are of one size."""

    speed: float = hyperparameter(1.0, "size of every velocity", above=0)

    def velocity(self, before: Floats, gradient: Floats) -> Floats:
        """-speed sign(grad C)."""
        return -np.float32(self.speed) * np.sign(gradient)


# -------------------------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True, kw_only=True)
class StageRollouts(StepEnvironments):
    """Stage k, an iteration: k + 1 steps from new starts, with the policy as it is; the last stage ends the run."""

    anew: ClassVar[bool] = True

    environments: int = hyperparameter(128, "N_k, rollouts of a stage", low=1)
    steps_per_environment: int = hyperparameter(20, "longest rollout, steps: an episode of the task", low=1)
    stages: int = hyperparameter(21, "H, stages", low=1)
    rolls: Literal["policy", "random"] = hyperparameter(
        "policy", "who acts: policy, or random for uniform actions, as a control"
    )

    def actor(self, inner: Actor, making: Making) -> Actor:
        """The policy's own, which must know how the task moves.

        Raises:
            UserError: the task does not move its state by velocities, or by steps of another size.
        """
        told = making.task.probe.metadata
        if "step_size" not in told:
            raise UserError(
                f"{SLUG} moves the state itself, s += step_size a, and {making.task.spec} does not say that it does; "
                "take surface-shape or grid-shape, or let its metadata have 'step_size'."
            )
        if isinstance(inner, CostActor) and isinstance(law := inner.network.entry, HamiltonianPolicy):
            if law.step_size != told["step_size"]:
                raise UserError(
                    f"{making.task.spec} moves by steps of {told['step_size']:g} and the policy by {law.step_size:g}; "
                    f"set --step-size {told['step_size']:g}."
                )
            if law.rate != told.get("rate", law.rate):
                making.say(
                    f"the rate of {making.task.spec} is {told['rate']:g}, and the policy's {law.rate:g} (--rate)"
                )
        return inner

    def acting(self, context: Context) -> Actor | None:
        """The policy, or nobody."""
        return RandomActor(context.run_state.task.actions.space) if self.rolls == "random" else None

    def steps(self, context: Context) -> int:
        """Those of stage k: k + 1, and at most an episode's."""
        return min(context.iteration, self.steps_per_environment)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Rollouts `[N_k, k + 1]`."""
        if context.iteration >= self.stages:
            context.finish("every stage is done")
        return super().__call__(experience, context)


@dataclass(frozen=True, kw_only=True)
class PointwiseLabels(Part):
    """Label each state with its cost: as it was told, and of early steps, once learned, as the network has it."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "cost"})
    gives: ClassVar[frozenset[str]] = frozenset({"labelled_state", "cost_label", "own_label"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "labelled_state": Field("[B, T, D]", "float32", "task's own", "state whose cost is learned (dfpo)"),
        "cost_label": Field("[B, T]", "float32", "cost", "what is learned of it (dfpo)"),
        "own_label": Field("[B, T]", "bool", "-", "the label is what the network says already (dfpo)"),
    }
    told: ClassVar[frozenset[str]] = frozenset({"cost"})
    models: ClassVar[frozenset[str]] = frozenset({"policy"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    warm_stages: int = hyperparameter(15, "stages at first in which no label is the network's own", low=0)
    label_pairing: Literal["after", "before"] = hyperparameter(
        "after", "whose label the cost after a step is: of the state after it; before: of the one before it"
    )

    def own_steps(self, stage: int) -> int:
        """How many steps at first have the network's own labels in a stage, from 0."""
        return 0 if stage < self.warm_stages else max(min(stage // 2, stage - 1), 0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add states `[B, T, D]` with their labels `[B, T]`."""
        state = experience["next_observation" if self.label_pairing == "after" else "observation"]
        own = torch.zeros_like(experience["cost"], dtype=torch.bool)
        own[:, : self.own_steps(context.iteration - 1)] = True
        label = experience["cost"]
        if bool(own.any()):
            label = torch.where(own, context.run_state.models["policy"].values(state), label)
        return experience.with_fields(labelled_state=state, cost_label=label, own_label=own)


@dataclass(frozen=True, kw_only=True)
class RememberLabels(Part):
    """Keep the last labels of a stage, as many told ones as own ones, with those of all stages before.

    Of a rollout only the episode that it begins with counts.
    """

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"labelled_state", "cost_label", "own_label", "mask", "starts_episode", "terminated", "truncated"}
    )
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    labels_per_stage: int | None = hyperparameter(
        256, "labels of each kind that a stage adds to the memory, its last rollouts'; none: all", low=1
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `weight` [B, T], 1 where a label is kept; the memory is `[N, D]` states and `[N]` labels."""
        over = (experience["terminated"] | experience["truncated"]).int()
        mask = experience["mask"] & experience["starts_episode"][:, None] & (over.cumsum(1) - over == 0)
        own, kept = experience["own_label"], torch.zeros_like(mask)
        for kind in (own & mask, ~own & mask):
            rows = kind.reshape(-1).nonzero()[:, 0]  # rollout by rollout
            kept.view(-1)[rows if self.labels_per_stage is None else rows[-self.labels_per_stage :]] = True
        memory = context.tensors(self.name)
        for name in ("labelled_state", "cost_label"):
            new = experience[name][kept]
            memory[name] = torch.cat([memory[name], new]) if name in memory else new
        context.log(labels=len(memory["cost_label"]))
        return experience.with_fields(weight=kept.float())


# ------------------------------------------------------------------------------------------------------------- improve


@dataclass(frozen=True)
class Remembered(OwnRows):
    """Labels of the memory, drawn uniformly."""

    fields: ClassVar[frozenset[str]] = frozenset({"labelled_state", "cost_label", "weight"})

    batch_size: int = hyperparameter(32, "labels of one update", low=1)

    def rows(self, context: Context) -> Experience:
        """`[N, 1, ...]`."""
        memory = context.tensors("remember-labels")
        stream = context.generator("remembered", context.spent.updates)
        drawn = torch.randint(len(memory["cost_label"]), (self.batch_size,), generator=stream)
        rows = {name: x[drawn].unsqueeze(1) for name, x in memory.items()}
        return Experience({**rows, "weight": torch.ones(self.batch_size, 1)})


@dataclass(frozen=True)
class NewAdam(OwnUpdate):
    """Every stage begins with an optimizer that knows nothing."""

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Forget the moments and the count of steps."""
        see.context.optimizer[self.trains].state.clear()
        return {}


@dataclass(frozen=True, kw_only=True)
class AbsoluteError(OffPolicyTerm):
    """The absolute error of the network against its labels."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"cost_label", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """|C(s) - label|, `[B, T]`."""
        return (outputs["value"] - experience["cost_label"]).abs()

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By C: the error's sign, weighted."""
        error = outputs["value"] - experience["cost_label"]
        return (error.abs() * weights).sum(), {"value": error.sign() * weights}


def recipe() -> Recipe:
    """The paper's stages, rollouts and labels, with a smaller network and fewer iterations a stage."""
    return Recipe(
        name=SLUG,
        models={"policy": HamiltonianPolicy()},
        collect=StageRollouts(),
        credit=(PointwiseLabels(),),
        select=(RememberLabels(),),
        updates=(
            NewAdam("policy", Fresh()),
            Repeat(1_000, (Update("policy", (AbsoluteError(),), Remembered()),)),
        ),
        adds=("policy",),
        notes={
            "collect": "from new starts, one step more each stage",
            "credit": "states are labelled with their costs, one by one",
            "select": "the last labels of each stage, kept for good",
            "improve": "the network learns the labels; the policy changes only by its gradient",
        },
    )
