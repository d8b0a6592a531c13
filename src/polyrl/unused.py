"""What was asked for and would do nothing: refused in one sentence before a run begins, so that nobody relies on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.runtime.config import RunConfig

OF_LANGUAGE = (
    *(
        "difficulty",
        "dataset",
        "test_dataset",
        "checker",
        "prompt_column",
        "answer_column",
        "system_prompt",
        "chat_template",
        "max_prompt_tokens",
        "skip_bad_rows",
        "rewards",
        "preference",
    ),
    *(
        "model",
        "start",
        "lora",
        "max_tokens",
        "precision",
        "force",
        "micro_batch_tokens",
        "engine",
        "eval_prompts",
        "eval_greedy",
    ),
    *("monitor_kl_every", "on_reward_error", "reward_timeout", "reward_process"),
)
"""Fields of `RunConfig` that only language runs look at."""
OF_DATA = ("dataset", "skip_bad_rows")
"""Those of them that methods of control look at which learn from recorded transitions."""
ELSEWHERE = {"language": ("eval_episodes",), "theory": ("eval_episodes", "device")}
"""Fields that runs of a domain do not look at, besides those of language: theory judges exactly, on the CPU."""
OF_RESPONSES = ("max_tokens", "eval_greedy", "monitor_kl_every", "engine")
"""Fields that mean nothing where no responses are sampled."""
OF_JUDGING = ("checker", "rewards", "on_reward_error", "reward_timeout", "reward_process")
"""Fields that mean nothing where nobody asks rewards."""
OPTIONS = {"rewards": "reward", "eval_greedy": "eval-sampled", "chat_template": "no-chat-template"}
"""Options that are not called as their field is."""


def refuse_unused(config: RunConfig, recipes: Sequence[Recipe], task: Any, domain: str) -> None:
    """Refuse settings that none of the runs would look at.

    A reward that is only evaluated is looked at.

    Args:
        config: what was asked for; of a comparison what all arms share.
        recipes: of the run, or of all arms: what one of them looks at is used.
        task: what they run on.
        domain: its domain.

    Raises:
        UserError: names the options, and why they do nothing.
    """
    asked = _asked(config)
    nothing = ELSEWHERE.get(domain, ()) if domain == "language" else (*OF_LANGUAGE, *ELSEWHERE.get(domain, ()))
    if domain == "control":
        nothing = tuple(name for name in nothing if name not in OF_DATA)
        _refuse_unread_data(asked, recipes)
    if useless := [name for name in nothing if name in asked]:
        said, them = _said(useless)
        raise UserError(f"{said} nothing on {task.name}, which is a task of {domain}; leave {them} away.")
    if domain == "language":
        _refuse_unused_of_language(asked, recipes, task)


def _refuse_unread_data(asked: Sequence[str], recipes: Sequence[Recipe]) -> None:
    """Refuse transitions that none of the recipes reads."""
    useless = [name for name in OF_DATA if name in asked]
    if useless and not any(source.from_dataset for recipe in recipes for source in recipe.sources.values()):
        said, them = _said(useless)
        names = " and ".join(recipe.name for recipe in recipes)
        raise UserError(f"{said} nothing for {names}, which learns from no data; leave {them} away.")


def _refuse_unused_of_language(asked: Sequence[str], recipes: Sequence[Recipe], task: Any) -> None:
    from polyrl.tasks.language.dataset import DatasetTask
    from polyrl.tasks.language.preferences import PairDataset

    if "test_dataset" in asked and not isinstance(task, DatasetTask):
        raise UserError("--test-dataset is for data of your own; give --dataset too.")
    if "start" in asked and ("model" in asked or isinstance(task, DatasetTask)):
        raise UserError("--start is of the tiny models that polyrl makes, and a model is given; leave it away.")
    if "difficulty" in asked and isinstance(task, DatasetTask):
        raise UserError("--difficulty is of built-in tasks, and means nothing for data of your own; leave it away.")
    names = " and ".join(recipe.name for recipe in recipes)
    given = isinstance(task, PairDataset)
    if all("reward-model" in recipe.required_models() for recipe in recipes):
        pairs = "the data's pairs" if given else "the task's pairs" if task.pairs_by_preference else ""
        useless = (
            (*OF_RESPONSES, *OF_JUDGING) if given else OF_JUDGING if pairs else ("eval_greedy", "monitor_kl_every")
        )
        if found := [name for name in useless if name in asked]:
            said, them = _said(found)
            why = f"learns from {pairs}" if pairs else "answers nothing"
            raise UserError(f"{said} nothing for {names}, which {why}; leave {them} away.")
    labelled = bool(task.labelled)
    if "preference" in asked and not task.pairs_by_preference and not any(_asks(r, given, labelled) for r in recipes):
        read = any(_is_given(r, given, labelled) for r in recipes)
        why = f"the data has its {'labels' if labelled else 'pairs'}" if read else "no part asks for one"
        raise UserError(
            f"--preference means nothing for {names}: {why}; "
            "leave it away, or let it compare sampled responses, as online-dpo+preference-label does."
        )


def _asks(recipe: Recipe, pairs_given: bool, labelled: bool) -> bool:
    """Whether a preference function is asked: by a part, or for labels of pairs that are made."""
    from polyrl.parts.pairs import PreferenceLabel

    if (_reads_pairs(recipe) or _reads_labels(recipe)) and not _is_given(recipe, pairs_given, labelled):
        return True
    return any(isinstance(part, PreferenceLabel) or _is_users(part) for part in recipe.parts())


def _is_given(recipe: Recipe, pairs_given: bool, labelled: bool) -> bool:
    """Whether the data has what the recipe reads: its pairs, or its labels, of which a pair has two."""
    return (pairs_given and _reads_pairs(recipe)) or ((pairs_given or labelled) and _reads_labels(recipe))


def _reads_pairs(recipe: Recipe) -> bool:
    return recipe.fixed_pairs


def _reads_labels(recipe: Recipe) -> bool:
    return recipe.collect is not None and "desirable" in recipe.collect.gives


def _is_users(part: object) -> bool:
    """A part of somebody else's may ask whatever it likes."""
    return type(part).__module__.partition(".")[0] != "polyrl"


def _asked(config: RunConfig) -> list[str]:
    """Fields that were set to something else than what they are by default."""
    usual = {f.name: f.default for f in dataclasses.fields(config)}
    python = {"reward": "rewards"}
    objects = {python.get(name, name) for name in config.from_python}
    if config.device == "cpu":
        usual["device"] = "cpu"  # where all but language runs anyway
    if config.precision == "float32" and config.micro_batch_tokens in (None, 1024):
        usual |= {"precision": "float32", "micro_batch_tokens": config.micro_batch_tokens}  # written out before 0.2
    return [name for name, value in usual.items() if getattr(config, name) != value or name in objects]


def _said(fields: Sequence[str]) -> tuple[str, str]:
    """`--reward and --lora mean`, and the pronoun that stands for them."""
    names = [f"--{OPTIONS.get(name, name.replace('_', '-'))}" for name in fields]
    return f"{' and '.join(names)} {'means' if len(names) == 1 else 'mean'}", "it" if len(names) == 1 else "them"
