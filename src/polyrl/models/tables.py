"""Models of theory: float64 tables as large as the problem says, by name.

    models={"policy": SoftmaxTable(), "anchor": LogProbabilityTable()}                             a preference game
    models={"policy": PolicyTable(), "q": ActionValueTable(), "regressions": RidgeRegressions()}   an MDP

Tables begin as the problem says, such as at its reference, and nothing about them is drawn. A closed form writes into
them; what is trained by gradients is stated as such and takes plain gradient steps, as the theory does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.core.schedules import Schedule
from polyrl.errors import NotFinite, UserError
from polyrl.models.base import Copy, Interface, Model, NamedModels, Network, Passes
from polyrl.models.stored import Named, Stored, StoredTables
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.update import Draws
    from polyrl.tasks.theory.games import PreferenceGame
    from polyrl.tasks.theory.mdp import RobustMDP


class Tables(Network):
    """What a model of theory is made of: parameters, if gradients train it, and buffers."""

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """None: tables are read by name, and terms are checked against what their model's entry gives."""
        raise NotImplementedError(f"{type(self).__name__} gives none of {', '.join(sorted(wants))}")


@dataclass(frozen=True, kw_only=True)
class OfTheory(Model):
    """A model whose tables are as large as the problem says. Subclasses name the kind that they are of (`solves`)."""

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """Tables are made of problems: see `TableModels`."""
        raise UserError(f"The model '{self.name}' is one of theory, and the task {interface.task} is one of control.")

    @abstractmethod
    def tables(self, task: Any) -> Tables:
        """New tables for a problem of the kind `solves`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Descended(Model):
    """A model that is trained by plain gradient steps: the step size is in units of the objective, as in the theory."""

    learning_rate: float = hyperparameter(0.5, "step size of plain gradient descent", low=0, high=1e37)
    schedule: Schedule = hyperparameter("constant", "learning rate over the budget")
    max_grad_norm: float | None = hyperparameter(1e6, "norm at which the gradient is clipped; none is off", above=0)

    def follows_budget(self) -> tuple[str, ...]:
        """The schedule, where it is not constant."""
        return () if self.schedule == "constant" else ("schedule",)


# --------------------------------------------------------------------------------------------- preference games


class GamePolicy(Tables):
    """Tables that say how probable each answer of a game is."""

    @property
    @abstractmethod
    def log_policy(self) -> Tensor:
        """Log-probabilities `[n]`, without gradient."""
        raise NotImplementedError


class SoftmaxPolicy(GamePolicy):
    """The softmax of one number for each answer, `logits` `[n]`."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    @property
    def log_policy(self) -> Tensor:
        """Log-probabilities `[n]`, without gradient."""
        return torch.log_softmax(self.logits.detach(), -1)

    @torch.no_grad()
    def assign(self, log_policy: Tensor) -> None:
        """Become the policy of these log-probabilities `[n]`."""
        self.logits.copy_(log_policy)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Log-probability and entropy of the answers, `[B, 1]`, differentiable."""
        logs = torch.log_softmax(self.logits, -1)
        found = {
            "logprob": logs[batch["action"]],
            "entropy": -(logs.exp() * logs).sum().expand(batch["action"].shape),
        }
        return {name: found[name] for name in wants}


@dataclass(frozen=True, kw_only=True)
class SoftmaxTable(OfTheory):
    """One number for each answer of a game, whose softmax is the policy; the game's reference at first."""

    solves: ClassVar[str] = "game"
    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy"})

    def tables(self, task: PreferenceGame) -> SoftmaxPolicy:
        """Logits `[n]`."""
        return SoftmaxPolicy(task.log_reference)


@dataclass(frozen=True, kw_only=True)
class TrainedSoftmaxTable(Descended, SoftmaxTable):
    """One number for each answer of a game, whose softmax is the policy, trained by plain gradient steps."""


class LogProbabilities(GamePolicy):
    """Log-probabilities `[n]` as they were written, which no softmax changes in the last bit."""

    written: Tensor

    def __init__(self, log_policy: Tensor):
        super().__init__()
        self.register_buffer("written", log_policy.clone())

    @property
    def log_policy(self) -> Tensor:
        """Log-probabilities `[n]`."""
        return self.written


@dataclass(frozen=True, kw_only=True)
class LogProbabilityTable(OfTheory):
    """A policy that is kept and not played, such as the anchor of a proximal step; the game's reference at first."""

    solves: ClassVar[str] = "game"

    def tables(self, task: PreferenceGame) -> LogProbabilities:
        """Log-probabilities `[n]`."""
        return LogProbabilities(torch.log_softmax(task.log_reference, -1))


# ---------------------------------------------------------------------------------------------------------- MDPs


class ActionProbabilities(Tables):
    """Probabilities of the actions, `probabilities` `[H, S, A]`."""

    probabilities: Tensor

    def __init__(self, probabilities: Tensor):
        super().__init__()
        self.register_buffer("probabilities", probabilities.clone())

    def assign(self, probabilities: Tensor) -> None:
        """Take other probabilities `[H, S, A]`."""
        self.probabilities.copy_(probabilities)


@dataclass(frozen=True, kw_only=True)
class PolicyTable(OfTheory):
    """A probability of every action in every state and step; the reference policy at first."""

    solves: ClassVar[str] = "mdp"

    def tables(self, task: RobustMDP) -> ActionProbabilities:
        """Probabilities `[H, S, A]`."""
        shape = (task.horizon, len(task.states), len(task.actions))
        return ActionProbabilities(task.log_reference.exp().expand(shape))


class ActionValues(Tables):
    """Values of the actions, `values` `[H, S, A]`."""

    values: Tensor

    def __init__(self, values: Tensor):
        super().__init__()
        self.register_buffer("values", values.clone())

    def assign(self, values: Tensor) -> None:
        """Take other values `[H, S, A]`."""
        self.values.copy_(values)


@dataclass(frozen=True, kw_only=True)
class ActionValueTable(OfTheory):
    """A value of every action in every state and step, 0 at first."""

    solves: ClassVar[str] = "mdp"

    def tables(self, task: RobustMDP) -> ActionValues:
        """Values `[H, S, A]`."""
        return ActionValues(torch.zeros(task.horizon, len(task.states), len(task.actions), dtype=torch.float64))


class Regressions(Tables):
    """What ridge regressions on linear features have seen.

    Attributes:
        precision: `[H, d, d]`, Lambda_h = ridge I + sum phi phi^T.
        moments: `[H, d, S]`, sum phi 1[s'], so that Lambda_h^-1 moments_h g regresses any function g of the next state.
    """

    precision: Tensor
    moments: Tensor

    def __init__(self, precision: Tensor, moments: Tensor):
        super().__init__()
        self.register_buffer("precision", precision)
        self.register_buffer("moments", moments)

    def add(self, features: Tensor, next_states: Tensor) -> None:
        """Take in one episode: features `[H, d]` of what was done, and where it led, `[H]` int64."""
        self.precision += features[:, :, None] * features[:, None, :]
        self.moments[torch.arange(len(next_states)), :, next_states] += features


@dataclass(frozen=True, kw_only=True)
class RidgeRegressions(OfTheory):
    """Ridge regressions of what follows on the features of a state and an action, one for each step."""

    solves: ClassVar[str] = "mdp"

    ridge: float = hyperparameter(0.1, "lambda of the ridge regressions", above=0)

    def tables(self, task: RobustMDP) -> Regressions:
        """Without data: the prior alone."""
        d = task.features.shape[2]
        prior = self.ridge * torch.eye(d, dtype=torch.float64).repeat(task.horizon, 1, 1)
        return Regressions(prior, torch.zeros(task.horizon, d, len(task.states), dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------- by name


class GradientDescent:
    """Plain gradient steps on a model's tables, with the attributes of a torch optimizer; it keeps no state.

    Attributes:
        param_groups: one group: params, lr.
        state: empty.
    """

    def __init__(self, name: str, parameters: list[nn.Parameter], *, lr: float):
        self.name = name
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr}]
        self.state: defaultdict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step.

        Raises:
            NotFinite: it came to tables that are not finite.
        """
        (group,) = self.param_groups
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-group["lr"])
                _check_finite(self.name, parameter, f"lower --{self.name.replace('_', '-')}.learning-rate")


def _check_finite(name: str, table: Tensor, advice: str) -> None:
    if not bool(torch.isfinite(table).all()):
        raise NotFinite(f"The model '{name}' became NaN or infinite, so the run stopped before it was used; {advice}.")


class TableModels(NamedModels):
    """Implements `NamedModels`: all rows at once, in float64 on the CPU.

    Attributes:
        entries: what the recipe says of each.
        acts: name of the model that acts.
    """

    def __init__(self, entries: Mapping[str, Model], task: Any, acts: str = "policy"):
        self.entries, self.acts = dict(entries), acts
        self._models: dict[str, Tables] = {}
        for name, entry in self.entries.items():
            home = self.entries[entry.copied] if isinstance(entry, Copy) else entry
            if not isinstance(home, OfTheory):
                raise UserError(f"The model '{name}' ({home.name}) is none of theory, and {task.name} is a task of it.")
            self._models[name] = home.tables(task)
            self.ask_gradients(name, False)

    def __getitem__(self, name: str) -> Any:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def probabilities(self, name: str) -> Tensor:
        """Probabilities `[H, S, A]` of the actions by the model of this name, a policy in MDPs."""
        policy = self._models[name]
        assert isinstance(policy, ActionProbabilities)
        return policy.probabilities

    def ask_gradients(self, name: str, asked: bool) -> None:
        """Whether what is computed from now on carries gradients to the tables of this model."""
        self._models[name].requires_grad_(asked)

    def zero_gradients(self, name: str) -> None:
        """Forget the gradients of a model."""
        self._models[name].zero_grad()

    def gradients(self, name: str) -> list[Tensor]:
        """The gradients of a model, those that there are."""
        return [p.grad for p in self._models[name].parameters() if p.grad is not None]

    def passes(
        self,
        name: str,
        batch: Experience,
        wants: Collection[str],
        draw: Draws,
        grouped_by: str = "",
        *,
        own: bool = False,
    ) -> AbstractContextManager[Passes]:
        """All rows at once."""
        return nullcontext(iter([(None, self._models[name].outputs(batch, wants, draw))]))

    def optimizers(self) -> dict[str, GradientDescent]:
        """Plain gradient descent for each model that is trained by gradients."""
        return {
            name: GradientDescent(name, [*self._models[name].parameters()], lr=entry.learning_rate)
            for name, entry in self.entries.items()
            if isinstance(entry, Descended)
        }

    @torch.no_grad()
    def move(self, target: str, towards: str, tau: float) -> None:
        """Move the tables of `target` the share `tau` of the way `towards` another model's.

        Raises:
            NotFinite: it came to tables that are not finite.
        """
        for moved, goal in self._pairs(target, towards):
            if tau == 1:
                moved.copy_(goal)
            else:
                moved.lerp_(goal, tau)
            _check_finite(target, moved, f"lower the share of the way that it moves, or look at '{towards}'")

    def distance(self, one: str, other: str) -> float:
        """Euclidean distance of two models' tables."""
        return float(torch.stack([(a - b).square().sum() for a, b in self._pairs(one, other)]).sum().sqrt())

    def _pairs(self, one: str, other: str) -> list[tuple[Tensor, Tensor]]:
        """The tables of two models beside each other, whatever they are called: logits may be log-probabilities."""
        return [*zip(self._models[one].state_dict().values(), self._models[other].state_dict().values(), strict=True)]

    def stored(self) -> dict[str, Stored]:
        """`NAME.safetensors` for each."""
        found: dict[str, Stored] = {}
        for name, model in self._models.items():
            trained: Named = [*model.named_parameters()] if isinstance(self.entries[name], Descended) else ()
            found[name] = StoredTables(
                f"{name}.safetensors", model.state_dict, model.load_state_dict, trained, of="a theory run"
            )
        return found
