"""CQL: SAC on data, with critics that are pressed down where the data does not speak.

Of actions that nobody tried critics know nothing, and a policy finds those that they think too well of. Here critics
also learn to value the data's actions above all others, so that what is unknown is thought worth less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Again, Move, Sample, See, Update
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.policies import SquashedGaussian
from polyrl.models.scalar import PositiveScalar
from polyrl.parts.replayed import EntropyTarget, OffPolicyTerm, SoftTarget, SoftValue, SquaredTD
from polyrl.recipe import Recipe, hyperparameter

SLUG = "cql"
TITLE = "Conservative Q-Learning for Offline Reinforcement Learning"
PAPER = "arXiv:2006.04779"
YEAR = 2020
FORMULA = "critics: SAC's loss + w E[log sum_a exp Q(s, a) - Q(s, a_data)]"
TASK = "Pendulum-v1"


def log_sum_exp(value: Tensor, logprob: Tensor) -> Tensor:
    """Log of the integral of exp Q over actions, by importance: log mean_i exp(Q_i - log p_i) (appendix F).

    Args:
        value: `[N, ..., K]`, of N actions.
        logprob: `[N, ...]`, of the densities that they were drawn from.

    Returns:
        `[..., K]`.
    """
    return torch.logsumexp(value - logprob.unsqueeze(-1), 0) - math.log(len(value))


@dataclass(frozen=True, kw_only=True)
class ConservativePenalty(OffPolicyTerm):
    """Press the critics down on all actions, and up on those of the data: CQL(H), equation 4.

    The paper's objective, of which SAC's part is half the squared error; its authors' code has the whole squared error,
    so that its weight counts half as much.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"q"})
    models: ClassVar[frozenset[str]] = frozenset({"q", "policy"})

    conservative_weight: float = hyperparameter(5.0, "w, of the penalty beside the critics' own loss; 0 is SAC", low=0)
    sampled_actions: int = hyperparameter(
        10, "actions from each of three densities: uniform, the policy's now and next", low=1
    )

    def check_within(self, recipe: Recipe) -> None:
        """Refuse policies that draw no actions between bounds.

        Raises:
            UserError: says of which model.
        """
        policy = recipe.models["policy"]
        if "sampled_action" not in policy.outputs:
            raise UserError(
                f"{recipe.name}: '{self.name}' draws actions in [-1, 1] of the policy, and '{policy.name}' gives "
                f"{', '.join(sorted(policy.outputs))}; take a method with the policy of sac."
            )

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """w (log of the integral of exp Q - Q(s, a)), summed over critics, `[B, T]`."""
        if not self.conservative_weight:
            return torch.zeros_like(batch["weight"])
        action, logprob = self.proposed(batch, see)
        observation = batch["observation"].expand(len(action), *batch["observation"].shape)
        everywhere = log_sum_exp(see["q"](observation, action), logprob)
        return self.conservative_weight * (everywhere - outputs["q"]).sum(-1)

    def proposed(self, batch: Experience, see: See) -> tuple[Tensor, Tensor]:
        """Actions `[3 N, B, T, A]` and the log-densities `[3 N, B, T]` that they were drawn from."""
        policy, count = see["policy"], self.sampled_actions
        shape = (count, *batch["action"].shape)
        found = []
        for name in ("observation", "next_observation"):
            shown = batch[name].expand(count, *batch[name].shape)
            found.append(policy.sample(shown, see.draw(*shape[:-1], policy.numbers)))
        uniform = 2 * see.draw.uniform(*shape) - 1
        found.append((uniform, torch.full(shape[:-1], -shape[-1] * math.log(2))))
        actions, logprobs = zip(*found, strict=True)
        return torch.cat(actions), torch.cat(logprobs)


def recipe() -> Recipe:
    """CQL(H) without Lagrange multiplier, with the slow policy of the paper's experiments."""
    return Recipe(
        name=SLUG,
        models={
            "policy": SquashedGaussian(learning_rate=1e-4),
            "q": QNetwork(critics=2),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(initial=1.0),
        },
        sources={"data": Transitions()},
        updates=(
            Update(
                "q",
                (SquaredTD(), ConservativePenalty()),
                Sample("data", batch_size=256),
                credit=(SoftTarget(),),
            ),
            Update("policy", (SoftValue(),), Again()),
            Update("temperature", (EntropyTarget(),), Again()),
            Move("q_target", "q", tau=0.005),
        ),
        turns=1_000,
        adds=("conservative-penalty",),
        notes={"improve": "SAC's updates on rows of the data, with a penalty on the critics"},
        budget="iterations=100",
    )
