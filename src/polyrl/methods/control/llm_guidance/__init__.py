"""LLM-guidance: mix a language model's advice into the agent's policy, the more the surer the advice is.

The adviser is a frozen text classifier over actions, asked T times with dropout on. The normalized entropy Hbar of its
average answer says how far it can be trusted, and what acts is P = (1 - Hbar) P_LLM + Hbar pi (equation 3). PPO then
runs on the likelihood of the mixture, with advice and Hbar as they were when the action was taken.

The paper's tables were not at hand; formula, rewards and oracle data follow its re-implementation
(arXiv:2606.06673, MainCode/llm_core.py). Differences: the entropy bonus is pi's own and not the mixture's; a state's T
passes are made once a run (`fixed_advice`) instead of at every visit; the adviser is a small BERT without pretraining,
taught to 95% of oracle answers on its own grid, because at the 90% of the paper it knows little outside that grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from gymnasium import spaces
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.errors import UserError
from polyrl.methods.control.llm_guidance.adviser import Adviser, UncertainAdvice, built_in_adviser
from polyrl.methods.control.llm_guidance.mixture import AdvisedActor
from polyrl.methods.control.ppo import recipe as ppo_recipe
from polyrl.models.actor import Actor, DistributionActor, Making
from polyrl.parts.control import StepEnvironments
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.unlock_grid import UnlockGrid

SLUG = "llm-guidance"
TITLE = "Guiding Reinforcement Learning Using Uncertainty-Aware Large Language Models"
PAPER = "arXiv:2411.14457"
YEAR = 2024
FORMULA = "P = (1 - Hbar) P_LLM + Hbar pi, Hbar = entropy of the mean of T dropout passes / ln A"
TASK = "UnlockGrid-v0"

Shaper = Literal["entropy", "uncalibrated", "linear", "constant", "none"]


def advice_weight(entropy: Tensor, shaper: Shaper, progress: float, constant: float, floor: float) -> Tensor:
    """What the advice weighs: 1 - Hbar by entropy, 1 - t / t_max linearly; at most 1 - `floor`. Shape of `entropy`."""
    if shaper == "linear":
        weight = torch.full_like(entropy, 1 - min(progress, 1.0))
    elif shaper == "constant":
        weight = torch.full_like(entropy, constant)
    else:
        weight = 1 - entropy
    return weight.clamp(max=1 - floor)


@dataclass(frozen=True, kw_only=True)
class GuidedEnvironments(StepEnvironments):
    """Step environments with the mixture of the present policy and an adviser's calibrated advice (equation 3)."""

    gives: ClassVar[frozenset[str]] = StepEnvironments.gives | {"advice", "advice_weight"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "advice": Field("[B, T, A]", "float32", "-", "probabilities that an adviser gives the actions (control)"),
        "advice_weight": Field(
            "[B, T]", "float32", "0 to 1", "share of the advice in the mixture that acted (control)"
        ),
    }

    shaper: Shaper = hyperparameter(
        "entropy", "weight of the advice: entropy, uncalibrated (one pass), linear, constant or none"
    )
    dropout_passes: int = hyperparameter(8, "T: answers of the adviser with dropout on that are averaged", low=1)
    entropy_floor: float = hyperparameter(
        0.0, "least weight of the agent, which without it learns nothing in sure states", low=0, high=1
    )
    advice_share: float = hyperparameter(0.8, "weight of the advice for shaper=constant", low=0, high=1)
    adviser: str = hyperparameter(
        "", "folder of a transformers sequence classifier over the actions; empty makes a small BERT"
    )
    adviser_seed: int | None = hyperparameter(0, "seed of the adviser that is made; none takes the run's", low=0)
    adviser_accuracy: float = hyperparameter(
        0.95, "of oracle answers that it was not taught: there its training stops", above=0, high=1
    )
    fixed_advice: bool = hyperparameter(
        True, "ask once about each state; false asks again, with new dropout, at every visit"
    )

    def actor(self, inner: Actor, making: Making) -> Actor:
        """The agent with its guide; alone for shaper=none.

        Raises:
            UserError: the environment or the adviser does not fit.
        """
        if self.shaper == "none":
            return inner
        task = making.task
        advisable(task)
        if not isinstance(inner, DistributionActor):
            raise UserError(
                f"Advice is mixed with the policy's probabilities, and what acts on {task.name} here has none; take a "
                "method with the policy of control's ppo, or --shaper none."
            )
        if task.masked:
            raise UserError(f"{task.name} allows some actions only, and advice may be on others; take --shaper none.")
        return AdvisedActor(inner, self.guide(task, making.seed, making.say))

    def guide(self, task: ControlTask, seed: int, say: Callable[[str], None]) -> UncertainAdvice:
        """Who gives advice on the task.

        Raises:
            UserError: the environment or the adviser does not fit.
        """
        actions = advisable(task)
        environment = task.probe
        describe = getattr(environment, "describe", None)
        if describe is None:
            raise UserError(f"{task.name} has no method describe(observation) that tells its state in words.")
        if self.adviser:
            folder: Any = self.adviser
        elif isinstance(environment, UnlockGrid):
            made = seed if self.adviser_seed is None else self.adviser_seed
            folder = built_in_adviser(teaching_grid(environment), made, self.adviser_accuracy, say)
        else:
            raise UserError(f"There is no built-in adviser for {task.name}; give one with --adviser FOLDER.")
        found = Adviser.load(folder)
        if found.actions != actions:
            raise UserError(f"The adviser {folder} knows {found.actions} actions and {task.name} has {actions}.")
        passes = 0 if self.shaper == "uncalibrated" else self.dropout_passes
        return UncertainAdvice(found, describe, self.weigher(0.0), passes, seed)

    def follows_budget(self) -> tuple[str, ...]:
        """The share of the run in which advice counts."""
        return ("advice_share",)

    def weigher(self, progress: float) -> Callable[[Tensor], Tensor]:
        """What turns Hbar `[...]` into the advice's weight at a share of the run."""
        return lambda entropy: advice_weight(entropy, self.shaper, progress, self.advice_share, self.entropy_floor)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `[B, T]` steps with `advice` [B, T, A] and `advice_weight` [B, T]; logs how good the advice is."""
        actor = context.run_state.actor
        if not isinstance(actor, AdvisedActor):
            return super().__call__(experience, context)
        guide = actor.guide
        assert isinstance(guide, UncertainAdvice)
        guide.weigh = self.weigher(context.schedule_progress)
        if not self.fixed_advice and self.shaper != "uncalibrated":
            guide.visits = int(torch.randint(2**62, (1,), generator=context.generator("advice")))
        batch = super().__call__(experience, context)
        guide.visits = None
        context.log(advice__weight=batch["advice_weight"][batch["mask"]].mean())
        environment = context.run_state.task.probe
        if context.iteration == 1 and isinstance(environment, UnlockGrid):
            good = guide.judged(environment)
            context.log(
                adviser__accuracy=good["accuracy"],
                adviser__brier=good["brier"],
                adviser__calibration_error=good["calibration_error"],
                adviser__auroc=good["auroc"],
            )
        return batch


def advisable(task: ControlTask) -> int:
    """How many actions there are that advice can be on.

    Raises:
        UserError: they are not a few.
    """
    if not isinstance(task.actions.space, spaces.Discrete):
        raise UserError(f"Advice is on one of a few actions, and {task.name} does not have Discrete actions.")
    return int(task.actions.space.n)


def teaching_grid(grid: UnlockGrid) -> UnlockGrid:
    """The grid that the adviser is taught on, never the agent's own: 4 x 8, or 8 x 4 for an agent on that."""
    return UnlockGrid(8, 4) if (grid.width, grid.height) == (4, 8) else UnlockGrid(4, 8)


def recipe() -> Recipe:
    """Control PPO that acts by the mixture; the paper's entropy bonus."""
    base = ppo_recipe()
    guided = GuidedEnvironments(environments=8, steps_per_environment=128)
    return Recipe(
        name=SLUG,
        policy=base.policy,
        collect=guided,
        score=base.score,
        credit=base.credit,
        terms=base.terms,
        optimize=base.optimize,
        adds=("guided-environments",),
        notes={
            **base.notes,
            "collect": "act by (1 - Hbar) of the adviser's answer and Hbar of the policy's; both are kept",
            "improve": "PPO on the likelihood of the mixture: where the advice was sure, nothing is learned",
        },
    ).set("entropy_coef", 0.01)
