"""Composing control's methods with parts of others: it fits, or one sentence says why it does not."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from conftest import SEED
from polyrl import catalogue
from polyrl.core.part import Change, Part, Term
from polyrl.errors import UserError
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig

METHODS = {
    "expo": "wall-point",
    "diffusion-ppo": "wall-point",
    "dfpo": "surface-shape(bound=10000)",
    "airllm": "lora-channel",
    "props": "corner-grid",
    "sac": "Pendulum-v1",
    "dqn": "corner-grid",
    "ppo": "corner-grid",
    "ppo+gru": "t-maze",
}


def made(method: str, task: str) -> Any:
    return make_loop(RunConfig(method=method, task=task, budget="iterations=1", seed=SEED, tensorboard=False))[0]


def test_a_part_that_can_be_named_is_whole() -> None:
    """What leaves a method to those that derive from it is no part: added to a recipe it could do nothing."""
    for kind in catalogue.part_classes():
        left = [name for name, x in inspect.getmembers(kind) if getattr(x, "__isabstractmethod__", False)]
        left += ["change"] if issubclass(kind, Change) and kind.change is Change.change else []
        left += ["loss"] if issubclass(kind, Term) and kind.loss is Term.loss and kind.summand is Term.summand else []
        if kind.stage in ("collect", "score", "credit", "select"):
            left += ["__call__"] if kind.__call__ is Part.__call__ and kind.apply is Part.apply else []
        assert not left, f"{kind.__name__} leaves {left} to others; let ABSTRACT of method_files name it"


def test_what_leaves_its_work_to_others_cannot_be_named() -> None:
    for name in ("act-by-choice", "proposal-target", "cost-policy", "attention-policy", "from-finite", "episodes"):
        assert name not in catalogue.parts()


@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_collecting_fits_or_says_why_not(method: str) -> None:
    ways = [name for name, part in catalogue.parts().items() if part.stage == "collect"]
    told = set[str]()
    for way in ways:
        try:
            loop = made(f"{method}+{way}", METHODS[method])
        except UserError as error:
            told.add(str(error))
        else:
            assert loop.recipe.collect is not None and loop.recipe.collect.name == way
    assert len(told) > 5


@pytest.mark.parametrize(
    ("method", "task", "words"),
    [
        (
            "pa-rl+act-on-the-fly",
            "wall-point",
            "'act-on-the-fly' names the model 'edit', which the recipe does not state",
        ),
        ("dfpo+keep-rollouts", METHODS["dfpo"], "'keep-rollouts' names the model 'behaviour'"),
        ("ppo+act-improved", "wall-point", "'act-improved' names the model 'base', .* it lists no models by name"),
        ("subpo+greedy-rollout-baseline", "coverage", "'greedy-rollout-baseline' names the model 'baseline'"),
        ("expo+dqn", "wall-point", "'explore-environments' draws one of a few actions"),
        ("expo+llm-guidance", "wall-point", "Advice is on one of a few actions"),
        ("dqn+llm-guidance", "UnlockGrid-v0", "Advice is mixed with the policy's probabilities"),
        ("airllm+step-environments", "lora-channel", "takes actions of 8 numbers, and what acts here gives 16"),
        (
            "diffusion-ppo+cql",
            "wall-point",
            "'conservative-penalty' draws actions in .* of the policy, and 'mlp-policy'",
        ),
        ("ppo+gru+llm-guidance", "UnlockGrid-v0", "acts by more than its policy, through 'guided-environments'"),
    ],
)
def test_what_does_not_fit_is_told(method: str, task: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(method, task)


def test_what_passengers_pay_is_for_those_who_fly_them() -> None:
    settings = {"instances": "2"}
    config = RunConfig(method="isbjssp+share-of-revenue", task="job-shop(n=3,machines=3)", hyperparameters=settings)
    with pytest.raises(UserError, match="'share-of-revenue' is of what passengers pay, and job-shop has none"):
        make_loop(config)[0].run()
