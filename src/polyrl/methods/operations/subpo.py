"""SubPO: policy gradient for paths whose worth is a submodular function of all that they visit.

A submodular function F pays less for a cell the more was visited before, so no reward of single states says what a path
is worth. Its marginal gains do: they sum to F, and what was gained before a step carries no gradient for it. So a move
is judged by the gains from there on (theorem 2), which has less variance than F of the whole path and, unlike rewards
F({s}) of single states (`rewards=modular`, the paper's ModPO), the right mean.

The abstract, its theorem and the official code (manish-pra/non-additive-RL) were read. Chosen here: the code weights a
move by F of the path up to the next cell, and has the line of marginal gains commented out; that is the gradient of the
next gain alone, because what was gained before has no mean, and stands here as `rewards=prefix`. The code's modular
arm is weighted in the same way; `modular` here sums later rewards. Its policies read numbers of cells, and of the whole
history the numbers of all cells so far; here they read coordinates, and of the history which cells were visited, which
is all that F still depends on where repeats add nothing. A batch's mean at each step is taken off, and advantages are
scaled to variance 1, in the place of a division by twice the horizon. The bonus for entropy, 0 in the code, is left to
`+entropy-bonus`. Of the deep variant, `subpo+gain-critic` has GAE on marginal gains; gamma is 1, as in the theorem.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, Step, Update
from polyrl.errors import UserError
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen
from polyrl.models.mlp import layer_sizes, mlp
from polyrl.parts.combinatorial import BuildSolutions, ConstructivePolicy, NetworkValues
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import PolicyGradient, ValueLoss
from polyrl.parts.operations import PeriodBaseline
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.operations.path_tasks import PathTask

if TYPE_CHECKING:
    from polyrl.core.update import Draws

SLUG, YEAR, PAPER = "subpo", 2023, "arXiv:2307.13372"
TITLE = "Submodular Reinforcement Learning"
FORMULA = "grad J = E[sum_i grad log pi(a_i) (sum_(j >= i) F(s_(j+1) | tau_0:j) - b_i)]"
TASK = "coverage"


class PathNetwork(ConstructiveNetwork):
    """Scores of the moves by place and time, and for a policy that is not Markov by what was visited."""

    scores_moves = True

    def __init__(
        self, cells: int, moves: int, hidden: tuple[int, ...], markov: bool, critic: bool, stream: torch.Generator
    ):
        super().__init__()
        self.markov, inputs = markov, 3 if markov else 3 + cells
        self.move = mlp(inputs, hidden, moves, generator=stream)
        self.worth = mlp(inputs, hidden, 1, generator=stream) if critic else None

    def inputs(self, seen: Seen) -> Tensor:
        """Row, column and share of the moves that are done, `[B, K, 3]`, and which cells were visited."""
        place = seen.nodes[..., :2].gather(1, seen.here[..., None].expand(-1, -1, 2))
        now = torch.cat([place, seen.context], -1)
        return now if self.markov else torch.cat([now, (~seen.left).float()], -1)

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """Of each move, `[B, K, A]`."""
        found: Tensor = self.move(self.inputs(seen))
        return found

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Log-probability, entropy and value of the steps, `[B, T]` each."""
        given = super().outputs(batch, wants, draw) if set(wants) - {"value"} else {}
        if "value" in wants:
            assert self.worth is not None
            given["value"] = self.worth(self.inputs(Seen.stored(batch)))[..., 0].reshape(batch["action"].shape)
        return given


@dataclass(frozen=True, kw_only=True)
class PathPolicy(ConstructivePolicy):
    """A network of place and time, or of all that was visited as well."""

    critic: ClassVar[bool] = False

    learning_rate: float = hyperparameter(1e-2, "Adam step size (paper: 0.001 to 0.02)", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(None, "norm at which the gradient is clipped; none is off", above=0)
    hidden: str = hyperparameter("64x32", "sizes of the hidden layers, joined by x")
    markov: bool = hyperparameter(
        True, "sees place and time alone (SubPO-M); otherwise also what was visited (SubPO-NM)"
    )

    def make(self, interface: Any, stream: torch.Generator) -> PathNetwork:
        """The network for a task's terrain.

        Raises:
            UserError: the task has no paths.
        """
        if not isinstance(interface, PathTask):
            raise UserError(
                f"{self.name} learns paths over a terrain, and {interface.name} has none; use --task {TASK}."
            )
        terrain, sizes = interface.problem.terrain, layer_sizes(self.hidden)
        return PathNetwork(terrain.cells, len(terrain.moves), sizes, self.markov, self.critic, stream)

    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> PathNetwork:
        """Not asked: sizes are those of a terrain."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PathActorCritic(PathPolicy):
    """The same, and a second network for what is still to be gained."""

    critic: ClassVar[bool] = True
    outputs: ClassVar[frozenset[str]] = PathPolicy.outputs | {"value"}


@dataclass(frozen=True, kw_only=True)
class WalkPaths(BuildSolutions):
    """Walk paths with the present policy, and note what each cell would be worth alone."""

    gives: ClassVar[frozenset[str]] = BuildSolutions.gives | {"alone"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "alone": Field("[B, T]", "float32", "of F", "F of the cell that a step leads to, as if it were alone"),
    }

    instances: int = hyperparameter(256, "paths in one iteration (paper: 500 to 3,000)", low=1)


@dataclass(frozen=True, kw_only=True)
class PathRewards(Part):
    """Pay each move its marginal gain, F(tau_0:j+1) - F(tau_0:j), or something else whose later sum judges it."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "path-rewards"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "alone", "nodes", "here"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    rewards: Literal["marginal", "modular", "total", "prefix"] = hyperparameter(
        "marginal",
        "what a move is paid: what it adds; its cell's worth alone (ModPO); the path's worth at its end (REINFORCE); "
        "or so that F up to the next cell judges it (the released code)",
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Put `reward` [B, T] in the place of gains, of which the first has the start's in it."""
        reward = experience["reward"].clone()
        upto = reward.cumsum(1)  # F(tau_0:j+1)
        if self.rewards == "marginal":
            start = experience["here"][:, :1]
            reward[:, :1] -= experience["nodes"][:, 0, :, -1].gather(1, start)  # F({s_0}), which no move earns
        elif self.rewards == "modular":
            reward = experience["alone"]
        elif self.rewards == "total":
            reward = torch.cat([torch.zeros_like(reward[:, 1:]), upto[:, -1:]], 1)
        else:  # what is summed from a step on is F of the path up to the next cell
            reward = torch.cat([-reward[:, 1:], upto[:, -1:]], 1)
        return experience.with_fields(reward=reward)


@dataclass(frozen=True, kw_only=True)
class PathValues(NetworkValues):
    """Measure what the critic says is still to be gained before each move."""

    needs: ClassVar[frozenset[str]] = WalkPaths.gives - {"alone", "reward"}


@dataclass(frozen=True, kw_only=True)
class GainCritic(Change):
    """Judge moves of paths by GAE on their rewards, with a critic of place and time (the paper's deep variant)."""

    gae_lambda: float = hyperparameter(0.95, "0 trusts the critic, 1 trusts the sampled return", low=0, high=1)

    def change(self, recipe: Recipe) -> Recipe:
        """A critic in the policy's model, its values and loss.

        Raises:
            UserError: the recipe learns no paths, or has a critic of them.
        """
        policy = recipe.models.get(recipe.acts)
        if not isinstance(policy, PathPolicy) or policy.critic:
            raise UserError(f"{recipe.name}: '{self.name}' is for what learns paths without a critic, such as {SLUG}.")
        credit = tuple(part for part in recipe.credit if part.slot != "advantage")

        def judged(step: Step) -> Step:
            if not isinstance(step, Update) or step.trains != recipe.acts:
                return step
            return replace(step, terms=(*step.terms, ValueLoss()))

        return replace(
            recipe,
            models={**recipe.models, recipe.acts: PathActorCritic(**vars(policy))},
            credit=(PathValues(), GAE(gamma=1.0, gae_lambda=self.gae_lambda), *credit),
            updates=tuple(map(judged, recipe.updates)),
            notes={
                **recipe.notes,
                "credit": "a move is judged by the gains after it, against what the critic foretold",
            },
        )


def recipe() -> Recipe:
    """SubPO-M with a baseline, on paths of the task's terrain."""
    return Recipe(
        name=SLUG,
        models={"policy": PathPolicy()},
        collect=WalkPaths(),
        score=(PathRewards(),),
        credit=(PeriodBaseline(gamma=1.0), WhitenAdvantage()),
        updates=(Update("policy", (PolicyGradient(aggregation="token-mean"),), Fresh()),),
        adds=("policy", "walk-paths", "path-rewards", "period-baseline"),
        notes={
            "collect": "paths are walked side by side, each with the set of cells that it has visited",
            "score": "what a move adds to all that was visited: to come back to a cell pays nothing",
            "credit": "what is gained from a move on, against the batch's mean at that step",
            "select": "every move of every path counts the same",
            "improve": "one on-policy step of the plain policy gradient",
        },
    )
