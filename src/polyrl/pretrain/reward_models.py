"""Reward models that a task or a user names: made of the starting model where they are not in the cache, or loaded."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.scalar import RewardModel
from polyrl.pretrain import reward_training
from polyrl.pretrain.reward_training import normalize
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.runtime.cache import cached
from polyrl.runtime.device import make_device
from polyrl.runtime.seeding import generator
from polyrl.tasks.language import rewards
from polyrl.tasks.language.base import LanguageTask, Reward, Row, table_rows
from polyrl.tasks.language.checkers import CHECKERS
from polyrl.tasks.language.wanted import Answers, Preferences, RewardModelsWanted

Say = Callable[[str], None]


class Scores:
    """Scores of texts by a reward model, which stays as it is."""

    def __init__(self, model: RewardModel):
        self.model = model.requires_grad_(False)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float]:
        """One number for each completion; `rows` hold what a chat template is given beside the prompts."""
        found: list[float] = reward_training.score_texts(self.model, prompts, completions, rows=rows).tolist()
        return found


# ---------------------------------------------------------------------------------------------------- those of a task


def two_answers(task: LanguageTask, policy: LanguagePolicy, rows: list[Row], seed: int) -> tuple[list[str], list[str]]:
    """Two sampled answers to each row, at temperature 1."""
    batch = TransformersEngine(policy).generate(
        [policy.encode_row(row) for row in rows],
        Sampling(max_tokens=task.max_tokens, stop=tuple(task.stop)),
        completions_per_prompt=2,
        generator=generator(seed, "reward samples"),
    )
    texts = batch.columns["completion"]
    return texts[0::2], texts[1::2]


def answers_of(task: LanguageTask, policy: LanguagePolicy, seed: int) -> Answers:
    """The same as a function of rows, which a task labels."""
    return lambda rows: two_answers(task, policy, rows, seed)


def give_reward_models(task: LanguageTask, model: str, wanted: RewardModelsWanted, say: Say = lambda _: None) -> None:
    """Load the reward models that go with the starting model `model`, those made first that are not in the cache."""
    made: list[Preferences] = []  # the members' common labels, sampled once where any of them is to be made
    while len(wanted.scorers) < wanted.members:
        member = len(wanted.scorers)
        make = functools.partial(_make, task, wanted, model, say, member, made)
        folder = cached(wanted.folder(model, member), make)
        wanted.scorers.append(Scores(RewardModel.load(folder)))


def _make(
    task: LanguageTask,
    wanted: RewardModelsWanted,
    model: str,
    say: Say,
    member: int,
    made: list[Preferences],
    folder: Path,
) -> dict[str, Any]:
    """Train a reward model and write it to `folder`; return its facts."""
    began = time.perf_counter()
    which = f"reward model {member + 1}" if member else "the reward model"
    say(f"making {which} of {task.name}: {wanted.pairs} preference pairs, about half a minute")
    policy = LanguagePolicy.load(model)
    if not made:
        made.append(wanted.preferences(answers_of(task, policy, wanted.seed)))
    data = made[0]
    more = (member,) if member else ()  # a member has its own head and order, and nothing else of its own
    reward_model = RewardModel.like(policy, generator(wanted.seed, "reward head", *more))
    facts = reward_training.train_reward_model(
        reward_model,
        data.labelled,
        generator=generator(wanted.seed, "reward training", *more),
        held_out=data.held_out,
        epochs=wanted.epochs,
        say=say,
    )
    mean, std = normalize(reward_model, reward_training.score_texts(reward_model, data.prompts, data.answers))
    reward_model.save(folder)
    agreeing = sum(p["score_chosen"] > p["score_rejected"] for p in data.labelled)
    differing = sum(p["score_chosen"] != p["score_rejected"] for p in data.labelled)
    say(f"held-out accuracy of the reward model: {facts.get('accuracy', 0.0):.2f}")
    return {
        "kind": "reward model",
        "start": str(Path(model).name),
        **wanted.facts,
        "member": member,
        **facts,
        "labels_that_agree_with_gold": agreeing / differing if differing else None,
        "scores": "mean 0 and standard deviation 1 on the starting model's answers to held-out train prompts",
        "raw_mean": mean,
        "raw_std": std,
        "start_gold": sum(data.gold) / len(data.gold),
        "seconds": round(time.perf_counter() - began, 1),
    }


# ---------------------------------------------------------------------------------------------------- those of a user


def load_reward(spec: str) -> Reward:
    """Return the reward that `spec` names: the folder of a reward model, or one of `polyrl.tasks.language.rewards`.

    The folder is one that `polyrl train reward-model` wrote, or that run's; a weight can follow: `runs/rm=0.5`. Raises
    `UserError` if it holds no reward model, and as `rewards.load_reward` does.
    """
    name, weight = rewards.split_weight(spec)
    if name not in CHECKERS and Path(name).expanduser().is_dir():
        return model_reward(name, weight)
    return rewards.load_reward(spec)


def model_reward(folder: str, weight: float = 1.0) -> Reward:
    """Return the score of a reward model as a reward; `folder` is the model's, or that of the run that trained it.

    The model is loaded at the first call. Raises `UserError` if there is none.
    """
    path = Path(folder).expanduser()
    found = next((p for p in (path, path / "model") if (p / "head.safetensors").is_file()), None)
    if found is None:
        raise UserError(
            f"The folder '{folder}' holds no reward model; give one that `polyrl train reward-model` has written."
        )
    loaded: list[Scores] = []

    def score(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        if not loaded:
            loaded.append(Scores(RewardModel.load(found, device=make_device("auto"))))
        return [*loaded[0](prompts, completions, table_rows(prompts, columns))]

    name = found.resolve().parent.name if found.name == "model" else found.resolve().name
    return Reward(name, score, weight, folder=str(found))
