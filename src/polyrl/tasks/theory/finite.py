"""Finite MDPs given by arrays, with exact answers: `FiniteMDP`, and the task that a run solves, `FiniteTask`.

A problem has a finite horizon, a discount, or neither: then it is judged by its average reward. How it may be reached
is its access (`polyrl.core.access`), and a task may be named with less: `river-swim(access=stream)`.

Tensors are float64. H steps, S states, A actions; L is H with a finite horizon, else 1: dynamics, rewards and policies
have one layer for each step, or a single one for all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.access import ACCESS, in_words
from polyrl.errors import UserError, nearest
from polyrl.runtime.chart import Chart
from polyrl.runtime.metric import Metric
from polyrl.settings import parse_call
from polyrl.tasks.language.phrases import a_kind
from polyrl.tasks.theory import solving
from polyrl.tasks.theory.policy_class import PolicyClass, constant
from polyrl.tasks.theory.solving import Solution
from polyrl.tasks.user_code import load_function, raised

Criterion = Literal["finite-horizon", "discounted", "average"]
RewardNoise = Literal["none", "bernoulli"]

KNOWN = frozenset({"generative", "model", "reset-to-state", "reset-to-distribution"})
GRANTED: dict[Criterion, frozenset[str]] = {
    "finite-horizon": KNOWN | {"episodes"},
    "discounted": KNOWN | {"episodes", "stream"},
    "average": KNOWN | {"stream"},
}
"""The most that each kind of problem can grant: without a horizon nothing ends, and on average nothing begins."""


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """A finite MDP. What is given may be tensors, NumPy arrays or nested lists; it is checked and made float64.

    Attributes:
        transition: `[S, A, S]`, or `[H, S, A, S]`; kept as `[L, S, A, S]`.
        reward: mean reward `[S, A]` or `[H, S, A]`; kept as `[L, S, A]`.
        initial: distribution of the first state `[S]`; none is the first state.
        horizon: steps of an episode, H.
        discount: of a step, above 0 and below 1; goes with no horizon. With neither, the average reward counts.
        restart: what `reset-to-distribution` draws from, `[S]` or `[L, S]`; none is uniform. Kept as `[L, S]`.
        reward_noise: "none": a reward is its mean; "bernoulli": it is 1 with this probability, else 0.
        states, actions: what people call them; none are numbers.
        policies: a class of deterministic policies, for methods that look for the best of one: a `PolicyClass`, or
            actions `[N, S]` or `[N, H, S]`. None is stated by default.
        models: a class of problems of the same kind and size, of which this may be one, for methods that look for it.
        features: numbers `[S, A, d]` of each pair, for methods that are linear in them; it fits where rewards and
            transitions are linear in them.
        access: what the problem grants; empty is all that its kind can.
    """

    transition: Any
    reward: Any
    initial: Any = None
    horizon: int | None = None
    discount: float | None = None
    restart: Any = None
    reward_noise: RewardNoise = "none"
    states: Sequence[str] = ()
    actions: Sequence[str] = ()
    policies: Any = None
    models: Sequence[FiniteMDP] = ()
    features: Any = None
    access: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Check everything and bring it to one form.

        Raises:
            UserError: shapes that do not fit, or numbers that are no probabilities or rewards.
        """
        self._check_time()
        transition = _array("transition", self.transition)
        if transition.dim() not in (3, 4) or transition.shape[-1] != transition.shape[-3] or not transition.numel():
            raise UserError(
                f"The transition has the shape {[*transition.shape]} but must be [S, A, S] or [H, S, A, S]."
            )
        if transition.dim() == 4 and self.horizon is None:
            raise UserError(
                "The transition has a layer for each step, [H, S, A, S], and there is no horizon; give one."
            )
        layers, (s, a) = self.horizon or 1, transition.shape[-3:-1]
        shapes = {"transition": (layers, s, a, s), "reward": (layers, s, a), "restart": (layers, s), "initial": (s,)}
        first = torch.zeros(s, dtype=torch.float64)
        first[0] = 1
        given = {
            "transition": transition,
            "reward": _array("reward", self.reward),
            "initial": first if self.initial is None else _array("initial", self.initial),
            "restart": torch.full((s,), 1 / s, dtype=torch.float64)
            if self.restart is None
            else _array("restart", self.restart),
        }
        for name, array in given.items():
            shape = shapes[name]
            if tuple(array.shape) not in (shape, shape[1:] if name != "initial" else shape):
                raise UserError(
                    f"The {name} has the shape {[*array.shape]} but must be {[*shape[1:]] if shape[1:] else [*shape]}"
                    + (f", or {[*shape]} with a layer for each step." if name != "initial" and self.horizon else ".")
                )
            object.__setattr__(self, name, array.double().expand(shape).contiguous())
        for name, size in (("states", s), ("actions", a)):
            names = tuple(map(str, getattr(self, name))) or tuple(map(str, range(size)))
            if len(names) != size:
                raise UserError(f"There are {size} {name} and {len(names)} names for them.")
            object.__setattr__(self, name, names)
        self._check_numbers()
        if self.policies is not None:
            stated = self.policies if isinstance(self.policies, PolicyClass) else PolicyClass(self.policies)
            object.__setattr__(self, "policies", stated.checked(self.shape))
        self._check_models()
        self._check_features()
        whose = f"An MDP that is judged by {self.criterion} reward"
        object.__setattr__(self, "access", checked_access(frozenset(self.access), GRANTED[self.criterion], whose))

    def _check_time(self) -> None:
        if self.horizon is not None and (isinstance(self.horizon, bool) or self.horizon < 1):
            raise UserError(f"The horizon is {self.horizon} but must be at least 1 step.")
        if self.discount is not None and not 0 < self.discount < 1:
            raise UserError(f"The discount is {self.discount:g} but must be above 0 and below 1.")
        if self.horizon is not None and self.discount is not None:
            raise UserError("An MDP has a horizon or a discount, not both; put the discount into the rewards.")
        if self.reward_noise not in ("none", "bernoulli"):
            raise UserError(f"There is no reward noise '{self.reward_noise}'; it is none or bernoulli.")

    def _check_numbers(self) -> None:
        for name in ("transition", "initial", "restart"):
            array: Tensor = getattr(self, name)
            wrong = ((array < 0) | ~array.isfinite()).any(-1) | ((array.sum(-1) - 1).abs() > 1e-6)
            if bool(wrong.any()):
                at = wrong.nonzero()[0].tolist()
                where = f" at {self._place(at)}" if at and name == "transition" else ""
                raise UserError(f"The {name}{where} is no distribution: its numbers must be from 0 on and sum to 1.")
            off = (array.sum(-1, keepdim=True) - 1).abs() > 1e-12  # given in float32, or with a few decimals
            object.__setattr__(self, name, torch.where(off, array / array.sum(-1, keepdim=True), array))
        if not bool(self.reward.isfinite().all()):
            raise UserError(
                f"The reward at {self._place((~self.reward.isfinite()).nonzero()[0].tolist())} is no number."
            )
        if self.reward_noise == "bernoulli" and not bool(((self.reward >= 0) & (self.reward <= 1)).all()):
            raise UserError("With bernoulli noise a mean reward is a probability, from 0 to 1, and some are not.")

    def _check_models(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        for number, model in enumerate(self.models):
            if not isinstance(model, FiniteMDP):
                raise UserError(f"Model {number} of the class is {a_kind(model)} and must be a FiniteMDP.")
            for what in ("shape", "criterion", "reward_noise"):
                if getattr(model, what) != getattr(self, what):
                    raise UserError(
                        f"Model {number} of the class has the {what.replace('_', ' ')} {getattr(model, what)}, and the "
                        f"problem {getattr(self, what)}; they must be alike."
                    )

    def _check_features(self) -> None:
        if self.features is None:
            return
        features, pairs = _array("features", self.features), self.shape[1:]
        if features.dim() != 3 or features.shape[:2] != pairs or not features.shape[2]:
            raise UserError(
                f"The features have the shape {[*features.shape]} but must be {[*pairs]} and d numbers each."
            )
        if not bool(features.isfinite().all()) or not bool(features.any()):
            raise UserError("The features must be finite numbers, and not all of them 0.")
        object.__setattr__(self, "features", features)

    def _place(self, at: Sequence[int]) -> str:
        step = f"step {at[0]}, " if self.horizon else ""
        return f"{step}state {self.states[at[1]]}, action {self.actions[at[2]]}"

    # -- what it is

    @property
    def criterion(self) -> Criterion:
        """By which sum of rewards a policy is judged."""
        return "finite-horizon" if self.horizon else "discounted" if self.discount else "average"

    @property
    def layers(self) -> int:
        """L."""
        return self.horizon or 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, S, A), the shape of a policy."""
        return self.layers, len(self.states), len(self.actions)

    @cached_property
    def uniform(self) -> Tensor:
        """The policy `[L, S, A]` that takes every action equally often."""
        return torch.full(self.shape, 1 / len(self.actions), dtype=torch.float64)

    @cached_property
    def policy_class(self) -> PolicyClass:
        """The class that is stated, else the policies that take one action everywhere."""
        found: PolicyClass = self.policies or constant(self.shape)
        return found

    @cached_property
    def class_worths(self) -> Tensor:
        """What each policy of the class is worth, exactly, `[N]`."""
        return self.worth(torch.nn.functional.one_hot(self.policy_class.policies, len(self.actions)).double())

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the problem by its numbers."""
        found = hashlib.blake2b(f"{self.horizon} {self.discount} {self.reward_noise}".encode(), digest_size=8)
        for array in (self.transition, self.reward, self.initial, self.restart):
            found.update(array.numpy().tobytes())
        return found.hexdigest()

    # -- exact answers

    @cached_property
    def solution(self) -> Solution:
        """The best policy: `policy` and `q` are `[L, S, A]`, `value` `[H + 1, S]` or `[S]`."""
        if self.horizon:
            return solving.finite_horizon(self.transition, self.reward)
        transition, reward = self.transition[0], self.reward[0]
        found = (
            solving.discounted(transition, reward, self.discount)
            if self.discount
            else solving.average_reward(transition, reward)
        )
        return Solution(found.policy[None], found.q[None], found.value, found.gain)

    def worth(self, policy: Tensor) -> Tensor:
        """What policies `[..., L, S, A]` are judged by, `[...]`: expected return from the start, or gain."""
        if self.horizon:
            value = solving.finite_horizon_values(self.transition, self.reward, policy)[..., 0, :]
        else:
            transition, reward, policy = self.transition[0], self.reward[0], policy[..., 0, :, :]
            value = (
                solving.discounted_values(transition, reward, self.discount, policy)
                if self.discount
                else solving.gains(transition, reward, policy)
            )
        initial: Tensor = self.initial
        return value @ initial

    @cached_property
    def optimum(self) -> float:
        """The worth of the best policy."""
        return float(self.worth(self.solution.policy))

    @cached_property
    def gaps(self) -> Tensor:
        """How much worse than the best action each one is, the best policy following, `[L, S, A]`; at least 0."""
        q = self.solution.q
        return q.max(-1, keepdim=True).values - q

    @cached_property
    def constants(self) -> dict[str, float]:
        """What is known of the problem: its optimum, and by its kind the span of the best values and the diameter."""
        found = {"optimum": self.optimum}
        if not self.horizon:
            value = self.solution.value
            found["span"] = float(value.max() - value.min())
            found["diameter"] = solving.diameter(self.transition[0])
        return found

    @cached_property
    def reward_range(self) -> tuple[float, float]:
        """The least and the most that one step can pay."""
        if self.reward_noise == "bernoulli":
            return 0.0, 1.0
        return float(self.reward.min()), float(self.reward.max())

    @cached_property
    def return_range(self) -> tuple[float, float]:
        """The least and the most that an episode can earn, whatever is done and whatever luck there is."""
        if not self.horizon:
            raise UserError("What an episode can earn is asked of problems with a horizon, and this one has none.")
        chance = self.reward_noise == "bernoulli"
        paid = ((self.reward >= 1).double(), (self.reward > 0).double()) if chance else (self.reward, self.reward)
        ends = []
        for reward, sign in zip(paid, (-1.0, 1.0), strict=True):
            value = torch.zeros(len(self.states), dtype=torch.float64)
            for h in range(self.horizon - 1, -1, -1):
                following = torch.where(self.transition[h] > 0, sign * value, -math.inf).max(-1).values
                value = sign * (sign * reward[h] + following).max(-1).values
            ends.append(sign * float((sign * value)[self.initial > 0].max()))
        return ends[0], ends[1]

    # -- what a simulator needs

    @cached_property
    def thresholds(self) -> Tensor:
        """Running sums of the transition, `[L, S, A, S]`; infinite from the last state on that can follow."""
        return thresholds(self.transition)


def thresholds(probabilities: Tensor) -> Tensor:
    """Running sums of distributions `[..., n]`, by which one uniform number draws: its outcome is how many it reached.

    From the last possible outcome on they are infinite, so that no rounding leads to one of probability 0.
    """
    possible = (probabilities > 0).long()
    later = possible.flip(-1).cumsum(-1).flip(-1) - possible
    return probabilities.cumsum(-1).masked_fill(later == 0, math.inf)


def _array(name: str, given: Any) -> Tensor:
    try:
        return given.detach().double() if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"The {name} cannot be read as an array of numbers; it is {a_kind(given)}.") from None


def checked_access(asked: frozenset[str], there: frozenset[str], whose: str) -> frozenset[str]:
    """The access that is asked for, or all that there is where nothing is.

    Raises:
        UserError: it is no access, or none that `whose` grants.
    """
    for name in sorted(asked):
        if name not in ACCESS:
            raise UserError(f"There is no access '{name}'.{nearest(name, ACCESS)} There is {in_words(ACCESS)}.")
        if name not in there:
            raise UserError(f"{whose} grants no {name} access; it can grant {in_words(there)}.")
    return asked or there


# -------------------------------------------------------------------------------------------------------- the task


@dataclass(frozen=True)
class FiniteTask:
    """A finite MDP as what a run solves; its families derive from it.

    Attributes:
        access: what the run may use of what the problem grants; empty is all of it. Written `stream+generative`.
    """

    access: frozenset[str] = frozenset()

    name: ClassVar[str] = "finite-mdp"
    budget: ClassVar[str] = "iterations=100"
    drawn_by_seed: ClassVar[bool] = False
    """Whether `instance`, where it is not said, is the run's seed, so that seeds are problems of one kind."""

    equal_optima: ClassVar[bool] = True
    """Whether the problems of all seeds have the same optimum; else no line stands beside their results."""

    def for_seed(self, seed: int) -> FiniteTask:
        """The problem that a run of this seed is given."""
        return self

    def __post_init__(self) -> None:
        """Refuse access that the problem does not grant; its arrays are made, and checked, with that."""
        whose = f"The task {self.name}"
        object.__setattr__(self, "access", checked_access(frozenset(self.access), self.mdp.access, whose))

    @cached_property
    def mdp(self) -> FiniteMDP:
        """The problem."""
        raise NotImplementedError

    @cached_property
    def metric(self) -> Metric:
        """The exact worth of a policy, beside the best one's and that of the uniform policy."""
        mdp = self.mdp
        kinds: dict[Criterion, tuple[str, str, str]] = {
            "finite-horizon": ("eval/return", "expected return", "reward"),
            "discounted": ("eval/return", "expected discounted return", "reward"),
            "average": ("eval/gain", "gain", "reward per step"),
        }
        key, label, unit = kinds[mdp.criterion]
        lines = {"optimum": mdp.optimum, "uniform policy": float(mdp.worth(mdp.uniform))}
        target = "optimum"
        if mdp.policies is not None:
            target = "best of the class"
            lines[target] = float(mdp.class_worths.max())
        if self.drawn_by_seed:  # seeds are compared, and their optima are equal but for rounding
            lines = {name: round(value, 10) for name, value in lines.items()} if self.equal_optima else {}
            target = target if lines else ""
        return Metric(key=key, label=label, unit=unit, lines=lines, target=target)

    @cached_property
    def charts(self) -> tuple[Chart, ...]:
        """The regret over what was acted, on logarithmic axes: its slope is the power by which it grows."""
        over = "steps" if self.mdp.criterion == "average" else "samples"
        regret = Chart(title="Regret", x=over, y=("cumulative_regret",), x_scale="log", y_scale="log")
        error = Chart(title="Values of the class", x="samples", y=("class_error",), x_scale="log", y_scale="log")
        return (regret, error) if self.mdp.policies is not None else (regret,)


@dataclass(frozen=True)
class OwnFiniteTask(FiniteTask):
    """A problem of the user's own.

    Attributes:
        name: what the user typed.
        made: what the user's function returned.
    """

    name: str = ""  # type: ignore[misc]
    made: FiniteMDP = field(default=None)  # type: ignore[assignment]

    @cached_property
    def mdp(self) -> FiniteMDP:
        """As it was given."""
        return self.made


def own_task(name: str, function: Callable[..., Any] | None = None) -> OwnFiniteTask:
    """The task of a user's function, `file.py:function`; settings beside `access` are its keyword arguments.

    Args:
        name: as it was typed, settings included: `lake.py:make(size=5,access=episodes)`.
        function: where it was given from Python.

    Raises:
        UserError: it cannot be called, or returns no `FiniteMDP`.
    """
    import yaml

    spec, settings = parse_call(name)
    access = frozenset(filter(None, settings.pop("access", "").split("+")))
    function = function or load_function(spec, "task")
    try:
        made = function(**{key: yaml.safe_load(value) for key, value in settings.items()})
    except UserError as error:
        raise UserError(f"{spec}: {error}") from None
    except Exception as error:
        raise UserError(f"{spec} {raised(error)} when it was asked for a finite MDP.") from error
    if not isinstance(made, FiniteMDP):
        raise UserError(f"{spec} says that it returns a FiniteMDP, and returned {a_kind(made)}.")
    return OwnFiniteTask(access, name, made)
