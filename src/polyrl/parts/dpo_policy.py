"""A frozen policy that DPO has trained, as a guide token by token: what RTO pays by and what TGDPO weighs by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.recipe import Part, hyperparameter


@dataclass(frozen=True, kw_only=True)
class DPOGuided(Part):
    """A part of the score stage that asks a frozen DPO policy about every token; subclasses say what comes of it."""

    dpo_model: str | None = hyperparameter(
        None, "folder of a DPO policy or of its run; none trains one on the task's pairs"
    )
    dpo_beta: float = hyperparameter(0.1, "DPO's pull to the start, where the policy is made here", above=0)
    dpo_epochs: int = hyperparameter(2, "passes over the pairs, where the policy is made here", low=1)

    @property
    def off(self) -> bool:
        """Whether the policy is not asked, and so neither made nor loaded."""
        return False

    def required(self) -> frozenset[str]:
        """The reference is needed only where the policy is asked."""
        return self.needs if self.off else self.needs | {"ref_logprob"}

    def prepare(self, task: Any, model: str, say: Callable[[str], None] = lambda _: None) -> str:
        """Return the folder of the DPO policy that goes with the start `model`, made first where it is missing.

        Raises:
            UserError: `dpo_model` holds no policy, or the task has no preference pairs.
        """
        from polyrl.models.language.frozen import trained_folder
        from polyrl.pretrain.dpo_training import dpo_policy

        if self.dpo_model:
            return trained_folder(self.dpo_model)
        if self.off:
            return ""
        return str(dpo_policy(task, model, beta=self.dpo_beta, epochs=self.dpo_epochs, say=say))

    def guide(self, experience: Experience, counted: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Log-probability of every token under the DPO policy, and its log-ratio to the reference, nats.

        Args:
            experience: with `ref_logprob`.
            counted: `[B, T]` bool, tokens that are asked about.
            context: of the run.

        Returns two `[B, T]` without gradient, 0 where not `counted`.
        """
        run_state = context.run_state
        found = run_state.frozen_logprob(experience, self.prepare(run_state.task, run_state.reference_name))
        log_ratio = torch.where(counted, found - experience["ref_logprob"], 0.0)
        return torch.where(counted, found, 0.0), log_ratio
