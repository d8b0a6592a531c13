"""DR-RPO: optimistic robust values and a softmax policy around a reference, learnt in the nominal dynamics alone.

A d-rectangular linear robust MDP: the deployed dynamics may differ from those of training within a divergence ball
around every factor. Each episode backs up optimistic worst-case values; the policy pi ~ ref exp(Q / eta) is the exact
maximizer of the value regularized by eta KL(pi || ref), so there is no optimizer and no inner loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.models.tables import ActionValueTable, PolicyTable, RidgeRegressions
from polyrl.parts.theory import KnownReward, RobustBackup, RollEpisode, check_finite, mirror_policy
from polyrl.recipe import Recipe, hyperparameter

SLUG = "dr-rpo"
TITLE = "Distributionally Robust Regularized Policy Optimization"
PAPER = "arXiv:2510.14246"
YEAR = 2025
FORMULA = "pi ~ ref exp(Q / eta), Q = r + sum_i phi_i worst_i(V) + beta sum_i phi_i sqrt(Lambda^-1_ii)"
TASK = "linear-mdp"


@dataclass(frozen=True, kw_only=True)
class RegularizedSoftmax(OwnUpdate):
    """Install the policy that maximizes the backed-up value minus eta KL(pi || ref), in closed form for every state."""

    solves: ClassVar[str] = "mdp"
    needs: ClassVar[frozenset[str]] = frozenset({"action_value"})
    models: ClassVar[frozenset[str]] = frozenset({"q"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    eta: float | None = hyperparameter(None, "temperature of the policy's regularization; none takes the task's", low=0)
    alpha: float | None = hyperparameter(
        None, "step of the mirror form; none is the closed form, an infinite step", above=0
    )

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """pi_h(. | s) for all h and s at once, from the table that the backup left."""
        task, trained = see.context.run_state.task, see[self.trains]
        eta = task.eta if self.eta is None else self.eta
        policy, _ = mirror_policy(see["q"].values, trained.probabilities, task.log_reference, eta, self.alpha)
        check_finite(self, see.context, policy=policy)
        trained.assign(policy)
        return {}


def recipe() -> Recipe:
    """One episode, one backup over all data, one closed-form policy."""
    return Recipe(
        name=SLUG,
        models={"policy": PolicyTable(), "q": ActionValueTable(), "regressions": RidgeRegressions()},
        collect=RollEpisode(),
        score=(KnownReward(),),
        credit=(RobustBackup(),),
        updates=(RegularizedSoftmax("policy", Fresh()),),
        adds=("regularized-softmax",),
        notes={
            "collect": "one episode in the nominal dynamics; the deployed ones are never seen",
            "score": "the environment's reward, known as a function",
            "credit": "a backward sweep over all data: one regression a factor, moved to its worst, plus a bonus. Step "
            "h needs the improved policy of step h + 1, so the sweep already values the policy of the last stage",
            "select": "nothing to do: every transition stays in the regressions",
            "improve": "a softmax in closed form; no gradient and no optimizer",
        },
    )
