"""A reward model that is trained beside the policy, in the world of a language run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import NotFinite
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.scalar import RewardModel
from polyrl.runtime.seeding import generator

if TYPE_CHECKING:
    from polyrl.worlds.language import LanguageWorld


class JointReward:
    """R_theta: a copy of the starting policy with a head of one number, and its scores in micro-batches."""

    def __init__(self, world: LanguageWorld):
        self.world = world
        head = generator(world.seed, "joint reward head")
        self.model = RewardModel.like(world.policy, head).to(torch.device(world.device))

    def load(self, folder: Path) -> None:
        """Read back the model, in place."""
        self.model.load_state_dict(RewardModel.load(folder).state_dict())

    def encoded(
        self, prompts: list[Any], completions: list[Any], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> Experience:
        """Prompts and completed answers as a batch that can be scored; see `RewardModel.as_batch`."""
        return self.model.as_batch(prompts, completions, rows=rows)

    @torch.no_grad()
    def scores(self, experience: Experience) -> Tensor:
        """Scores of all responses, float32 `[B]`, without gradients."""
        found = torch.zeros(len(experience))
        for rows in micro_batches_of(experience, self.world.micro_batch_tokens):
            found[rows] = self.model.score(experience, rows).float().cpu()
        return found

    def step(
        self,
        objective: Callable[[list[Tensor]], Tensor],
        batches: Sequence[Experience],
        optimiser: torch.optim.Optimizer,
        max_grad_norm: float,
    ) -> tuple[Tensor, list[Tensor]]:
        """Take one step on a loss of the scores, whose slopes by them are carried through the network.

        Args:
            objective: loss of the scores of each batch, `[B]` each.
            batches: what is scored.
            optimiser: of the model.
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
        optimiser.zero_grad()
        for batch, score in zip(batches, scores, strict=True):
            assert score.grad is not None
            self._backward(batch, score.grad)
        size = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm))
        if not math.isfinite(size):
            optimiser.zero_grad()
            raise NotFinite(
                f"The gradient of the reward that is learned became {size}, so the run stopped before the step; "
                "lower --reward-learning-rate."
            )
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach(), [score.detach() for score in scores]

    def _backward(self, experience: Experience, slope: Tensor) -> None:
        """Add to the gradients those of `sum(slope * scores)`, `slope` `[B]` a constant."""
        for rows in micro_batches_of(experience, self.world.micro_batch_tokens):
            total = (self.model.score(experience, rows).float().cpu() * slope[rows]).sum()
            total.backward()  # type: ignore[no-untyped-call]
