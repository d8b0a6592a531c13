"""Stage 5, improve: gradient steps that also imitate demonstrations, so that what the start could do is not lost."""

from __future__ import annotations

from dataclasses import dataclass

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Recipe, hyperparameter


@dataclass(frozen=True, kw_only=True)
class OptimizeWithDemonstrations(Optimize):
    """Take AdamW steps on the sum of the terms and the mean negative log-likelihood of demonstrations (PPO-ptx).

    The demonstrations are what the starting model was taught with: the task's worked completions, of a dataset its
    column `solution`, `completion` or `answer`. Each step reads the next few; they are no experience, so no average
    over sampled responses ever sees them. Where a minibatch leaves the policy alone, so do they.
    """

    ptx_coef: float = hyperparameter(
        0.1, "weight of the demonstrations' negative log-likelihood, mean over tokens; 0 is off", low=0
    )
    ptx_rows: int = hyperparameter(16, "demonstrations in one optimizer step", low=1)

    def check_within(self, recipe: Recipe) -> None:
        """Only language models have demonstrations."""
        if self.ptx_coef and "prompt_ids" not in recipe.collected:
            raise UserError(
                f"{recipe.name}: part '{self.name}' imitates worked completions, which only language tasks have; set "
                "--ptx-coef 0."
            )

    def add_gradients(self, batch: Experience, context: Context) -> dict[str, float]:
        """Add the gradients of as many demonstrations as a step takes."""
        if not self.ptx_coef or not bool((batch["weight"] != 0).any()):
            return {}
        loss = context.run_state.demonstration_loss(self.ptx_coef, context.spent.updates * self.ptx_rows, self.ptx_rows)
        return {"loss/demonstrations": loss}
