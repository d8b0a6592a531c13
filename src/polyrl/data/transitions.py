"""Transitions that are given: those of a data set, sampled uniformly, and never written to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.data.base import Rows, Source
from polyrl.data.returns import returns_to_go
from polyrl.errors import UserError
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.recorded import Recorded

RewardScale = Literal["none", "return-range"]
RANGE = 1000.0
"""What the returns of a data set differ by at most under `reward_scale=return-range` (arXiv:2110.06169's code)."""


@dataclass(frozen=True)
class Transitions(Source):
    """Sample from the transitions of `--dataset`.

    Attributes:
        returns: whether its rows have `return_to_go` and `return_known`, as those of a `Replay`.
    """

    fields: ClassVar[frozenset[str]] = frozenset(
        {"observation", "action", "reward", "next_observation", "discount", "weight", "row"}
    )
    from_dataset: ClassVar[bool] = True

    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)
    reward_scale: RewardScale = hyperparameter(
        "none", "none, or return-range: the best and the worst episode's returns become 1000 apart"
    )
    reward_shift: float = hyperparameter(0.0, "what is added to every reward after that")

    returns: bool = False

    def sampled(self) -> frozenset[str]:
        """Fields of its rows."""
        return self.fields | ({"return_to_go", "return_known"} if self.returns else set())

    def check_within(self, recipe: Recipe) -> None:
        """Rewards of the data alone cannot be scaled beside those of an environment."""
        if recipe.collect is not None and (self.reward_scale != "none" or self.reward_shift):
            raise UserError(
                f"{recipe.name} also learns from its own steps, whose rewards stay as they are; leave --reward-scale "
                "and --reward-shift of the data away."
            )

    def make(self, name: str, task: Any, config: Any) -> Rows:
        """The rows of the task's data set."""
        if not isinstance(task, ControlTask) or task.recorded is None:
            raise UserError(f"The source '{name}' has nothing to give; name a file or folder with --dataset.")
        return GivenTransitions(name, self, task.recorded)


class GivenTransitions(Rows):
    """The rows of a `Transitions`. Nothing of them is in a checkpoint: the config holds their digest.

    Attributes:
        name: in the recipe.
        reward, discount: float32 `[N]`: scaled rewards; gamma, and 0 where the episode terminated.
        returned: float32 `[N]`, discounted sums of scaled rewards to the episode's end; NaN where that is not known.
    """

    def __init__(self, name: str, entry: Transitions, recorded: Recorded):
        self.name, self._recorded = name, recorded
        scale = return_range_scale(recorded.returns) if entry.reward_scale == "return-range" else 1.0
        self.reward = recorded.reward * scale + entry.reward_shift
        self.discount = (~recorded.terminated).float() * entry.gamma
        self.returned: Tensor | None = None
        if entry.returns:
            rewards = (recorded.steps * scale + entry.reward_shift).numpy()
            whole = np.full(len(rewards), np.nan, dtype=np.float32)
            begin = 0
            for end in recorded.ends.nonzero()[:, 0].tolist():
                whole[begin : end + 1] = returns_to_go(rewards[begin : end + 1], entry.gamma)
                begin = end + 1
            self.returned = torch.from_numpy(whole)[recorded.number]

    def ready(self) -> bool:
        """Always."""
        return True

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        """Rows drawn with replacement, each as likely as any other."""
        row = torch.randint(len(self.reward), (count,), generator=stream)
        return self.rows(row).with_fields(weight=torch.ones(count, 1), row=row.unsqueeze(1))

    def rows(self, row: Tensor) -> Experience:
        """The transitions number `row` `[N]` as `[N, 1, ...]`."""
        held = self._recorded
        found = {
            "observation": held.seen.index_select(0, held.before.index_select(0, row)),
            "action": held.action.index_select(0, row),
            "next_observation": held.seen.index_select(0, held.after.index_select(0, row)),
            "reward": self.reward.index_select(0, row),
            "discount": self.discount.index_select(0, row),
        }
        if self.returned is not None:
            returned = self.returned.index_select(0, row)
            found |= {"return_to_go": returned.nan_to_num(0), "return_known": ~returned.isnan()}
        return Experience({name: x.unsqueeze(1) for name, x in found.items()})

    def facts(self) -> dict[str, float]:
        """How many there are."""
        return {f"{self.name}/steps": len(self.reward)}

    def sentence(self) -> str:
        """How much there is, and how well it was acted."""
        return f"{self.name}: {self._recorded.sentence()}"

    def stated(self) -> dict[str, Any]:
        """Steps, whole episodes and their returns, what was left out, and the digest."""
        return self._recorded.stated()


def return_range_scale(returns: list[float]) -> float:
    """What rewards are multiplied with so that returns lie within 1000.

    Raises:
        UserError: no two episodes have different returns.
    """
    if not returns or max(returns) <= min(returns):
        said = "all episodes return the same" if returns else "there is no whole episode"
        raise UserError(f"The data's rewards have no range of returns: {said}; set --reward-scale none.")
    return RANGE / (max(returns) - min(returns))
