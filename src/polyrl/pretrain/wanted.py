"""Makes what tasks want of a model (`polyrl.tasks.language.wanted`): their fixed pairs, and their reward models."""

from __future__ import annotations

from collections.abc import Callable

from polyrl.pretrain.pairs import give_pairs
from polyrl.pretrain.reward_models import give_reward_models
from polyrl.tasks.language.base import LanguageTask
from polyrl.tasks.language.wanted import PairsWanted

Say = Callable[[str], None]


def prepare(task: LanguageTask, model: str, say: Say = lambda _: None) -> None:
    """Make what rewards or fixed pairs need of the starting model `model`, or find it in the cache.

    It is called once, before the first reward; where nothing is wanted, nothing happens. `say` is told what goes on.
    """
    wanted = task.wanted
    if isinstance(wanted, PairsWanted):
        give_pairs(task, model, wanted, say)
    elif wanted is not None:
        give_reward_models(task, model, wanted, say)


def prepare_ensemble(task: LanguageTask, model: str, members: int, say: Say = lambda _: None) -> None:
    """Make or load what an ensemble of the task's rewards needs; raises `UserError` where there is no ensemble."""
    wanted = task.ensemble_wanted(members)
    if wanted is not None:
        give_reward_models(task, model, wanted, say)
