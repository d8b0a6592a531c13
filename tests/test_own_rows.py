"""Rows that a paper makes itself, in a list of updates: what they come to, and what is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.update import Fresh, On, OwnRows, Update
from polyrl.errors import UserError
from polyrl.models.actor_critic import MlpPolicy
from polyrl.parts.control import StepEnvironments
from polyrl.parts.improve import Averaged, EntropyBonus
from polyrl.recipe import Recipe
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
OBSERVATION = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[-0.4, 0.3, -0.2, 0.1]], [[9.0, 9.0, 9.0, 9.0]]])
ACTION = torch.tensor([[0], [1], [1]])


@dataclass(frozen=True)
class Shown(OwnRows):
    """Three steps, of which the last one does not count."""

    fields: ClassVar[frozenset[str]] = frozenset({"observation", "action", "weight"})

    asked: list[int] = dataclasses.field(default_factory=list)

    def rows(self, context: Context) -> Experience:
        self.asked.append(context.spent.updates)
        weight = torch.tensor([[1.0], [1.0], [0.0]])
        return Experience({"observation": OBSERVATION, "action": ACTION, "weight": weight})


@dataclass(frozen=True, kw_only=True)
class Imitated(Averaged):
    """Raise the likelihood of these steps."""

    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return -outputs["logprob"]


@dataclass(frozen=True, kw_only=True)
class Labelled(Imitated):
    """Needs what these rows do not have."""

    needs: ClassVar[frozenset[str]] = frozenset({"weight", "score"})


def loop_of(*updates: Update) -> Any:
    recipe = Recipe(
        name="own-rows",
        models={"policy": MlpPolicy(learning_rate=0.01, max_grad_norm=None)},
        collect=StepEnvironments(environments=2, steps_per_environment=8),
        updates=updates,
    )
    config = RunConfig(method="own-rows", task="CartPole-v1", budget="iterations=3", tensorboard=False)
    return make_loop(config, given=PythonObjects(recipe=recipe.check()))[0]


def likelihood(loop: Any) -> Tensor:
    """Mean log-probability of the two steps that count, from the network's own logits."""
    network = loop.run_state.models["policy"]
    batch = Experience({"observation": OBSERVATION, "action": ACTION, "weight": torch.ones(3, 1)})
    found: Tensor = network.outputs(batch, {"logprob"}, None)["logprob"][:2].mean()
    return found


def test_terms_on_rows_of_their_own_are_averages_over_these_rows_that_count() -> None:
    shown = Shown()
    loop = loop_of(Update("policy", (Imitated(),), shown))
    before = float(likelihood(loop).detach())
    loop.iterate()
    assert loop.context.metrics["loss/imitated"] == pytest.approx(-before, rel=1e-6)
    assert float(likelihood(loop).detach()) > before
    loop.iterate()
    assert shown.asked == [0, 1]


def test_they_join_the_step_of_an_update_on_fresh_rows() -> None:
    entropy = Update("policy", (EntropyBonus(entropy_coef=0.0),), Fresh())
    still, joined = loop_of(entropy), loop_of(dataclasses.replace(entropy, also=(On(Shown(), (Imitated(),)),)))
    before = float(likelihood(joined).detach())
    for loop in (still, joined):
        loop.iterate()
    assert float(likelihood(still).detach()) == before  # its gradient is 0
    assert float(likelihood(joined).detach()) > before and joined.context.spent.updates == 1


def test_a_field_that_they_do_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="part 'labelled' of the policy-update needs the field 'score'"):
        loop_of(Update("policy", (Labelled(),), Shown()))
