"""A reward model that is trained beside the policy, in the run state of a language run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import NotFinite
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.scalar import RewardModel
from polyrl.runtime.seeding import generator

if TYPE_CHECKING:
    from polyrl.run_state.language import LanguageRunState


class JointReward:
    """R_theta: a copy of the starting policy with a head of one number, and its scores in micro-batches."""

    def __init__(self, run_state: LanguageRunState):
        self.run_state = run_state
        head = generator(run_state.seed, "joint reward head")
        self.model = RewardModel.like(run_state.policy, head).to(torch.device(run_state.device))

    def encoded(
        self, prompts: list[Any], completions: list[Any], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> Experience:
        """Prompts and completed answers as a batch that can be scored; see `RewardModel.as_batch`."""
        return self.model.as_batch(prompts, completions, rows=rows)

    @torch.no_grad()
    def scores(self, experience: Experience) -> Tensor:
        """Scores of all responses, float32 `[B]`, without gradients."""
        found = torch.zeros(len(experience))
        for rows in micro_batches_of(experience, self.run_state.micro_batch_tokens):
            found[rows] = self.model.score(experience, rows).float().cpu()
        return found

    def step(
        self,
        objective: Callable[[list[Tensor]], Tensor],
        batches: Sequence[Experience],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
    ) -> tuple[Tensor, list[Tensor]]:
        """Take one step on a loss of the scores, whose gradients by them are carried through the network.

        Args:
            objective: loss of the scores of each batch, `[B]` each.
            batches: what is scored.
            optimizer: of the model.
            max_grad_norm: to which the gradient is clipped.

        Returns:
            The loss and the scores before the step, without gradients.

        Raises:
            NotFinite: the loss or its gradient is no number; no step was taken.
        """
        scores = [self.scores(batch).requires_grad_() for batch in batches]
        loss = objective(scores)
        if not bool(torch.isfinite(loss)):
            raise NotFinite(
                f"The loss of the reward that is learned became {loss.item()}, so the run stopped before the step; "
                "lower --reward-learning-rate."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        for batch, score in zip(batches, scores, strict=True):
            assert score.grad is not None
            self._backward(batch, score.grad)
        size = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm))
        if not math.isfinite(size):
            optimizer.zero_grad()
            raise NotFinite(
                f"The gradient of the reward that is learned became {size}, so the run stopped before the step; "
                "lower --reward-learning-rate."
            )
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), [score.detach() for score in scores]

    def _backward(self, experience: Experience, grad_output: Tensor) -> None:
        """Add to the gradients those of `sum(gradient * scores)`, `gradient` `[B]` a constant."""
        for rows in micro_batches_of(experience, self.run_state.micro_batch_tokens):
            total = (self.model.score(experience, rows).float().cpu() * grad_output[rows]).sum()
            total.backward()  # type: ignore[no-untyped-call]
