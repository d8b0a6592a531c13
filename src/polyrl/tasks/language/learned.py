"""A task with a learned reward: a reward model trained on preferences, with the true (gold) score logged beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.runtime.chart import Chart
from polyrl.tasks.language.base import LanguageTask, Reward, Row, content, digest
from polyrl.tasks.language.preferences import SortPairs
from polyrl.tasks.language.strings import ReverseDense, preference_pairs
from polyrl.tasks.language.wanted import SEEDS_APART, Answers, Preferences, PreferenceSource, RewardModelsWanted, Scorer

RewardFunction = Callable[..., list[float | None]]

REWARD_RECIPE_VERSION = 1
"""Raised when the way of making reward models changes."""
HELD_OUT_PAIRS = 400
"""Pairs that measure the reward model and its scale; never trained on."""


@dataclass
class ScoredByModel(LanguageTask):
    """What tasks with a learned reward have in common; it goes before a generated task that has a `gold` score.

    The protocol of arXiv:2210.10760: the starting model answers each of `pairs` train prompts twice, an imperfect judge
    who goes by the gold score prefers one answer (`preference_pairs`), and a copy of the starting model learns to score
    by these preferences (`polyrl.pretrain.reward_training`). Policies are trained on that score, whose mean is 0 and
    standard deviation 1 on the starting model's answers, and judged by the gold, which is logged as `gold` and
    `eval/gold`. `polyrl.pretrain.wanted` makes the reward model, or finds it in the cache, or several that learn from
    the same labels and differ in their heads and in the order of the pairs (arXiv:2310.02743, section 3).
    """

    pairs: int = 2000
    """Preference pairs that the reward model learns from: fewer make a reward that is easier to exploit."""
    noise: float = 0.0
    """Share of the labels that are flipped, 0 to 0.5."""
    label_temperature: float = 0.1
    """Of the judge: he prefers `a` to `b` with probability sigmoid((gold(a) - gold(b)) / label_temperature)."""
    reward_seed: int = 0
    """Of the pairs, their labels and the reward model's training."""
    reward_epochs: int = 2
    """Passes of the reward model over its pairs."""
    prompt_offset: float = 0.0
    """Standard deviation of a number that is added to all scores of a prompt, its own for each: reward models learn
    differences between answers to one prompt, so their scores of different prompts lie apart by chance."""

    charts = (Chart(title="Over-optimization", x="kl", y=("gold", "reward"), x_scale="sqrt"),)

    def __post_init__(self) -> None:
        """Check the settings; the reward itself waits for its model."""
        super().__post_init__()  # type: ignore[misc]  # of the task that it goes before
        for name in ("pairs", "reward_epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"The {name} of the task '{self.name}' must be a whole number from 1, not {value!r}.")
        if not 0 <= self.noise <= 0.5:
            raise UserError(f"The noise of the task '{self.name}' must be from 0 to 0.5, not {self.noise!r}.")
        if not self.label_temperature >= 0:
            raise UserError(
                f"The label_temperature of the task '{self.name}' must be at least 0, not {self.label_temperature!r}."
            )
        if not 0 <= self.prompt_offset < float("inf"):
            raise UserError(
                f"The prompt_offset of the task '{self.name}' must be at least 0, not {self.prompt_offset!r}."
            )
        self.scorers: list[Scorer] = []
        """Scores of the reward models that are there: one, or those of an ensemble, whose first policies train on."""
        self.rewards = [Reward("reward_model", self.model_score)]

    @property
    def wanted(self) -> RewardModelsWanted | None:
        """The reward model, where it is one of the rewards and is not there yet."""
        return None if self.scorers or not self._scored_by_model else self._reward_models(1)

    @property
    def _scored_by_model(self) -> bool:
        return any(r.function == self.model_score for r in self.rewards)

    def _reward_models(self, members: int) -> RewardModelsWanted:
        names = ("name", "difficulty", "noise", "label_temperature", "reward_seed")
        facts = {"task" if name == "name" else name: getattr(self, name) for name in names}
        return RewardModelsWanted(
            members=members,
            seed=self.reward_seed,
            pairs=self.pairs,
            epochs=self.reward_epochs,
            folder=self.reward_folder,
            preferences=self.preferences,
            facts=facts,
            scorers=self.scorers,
        )

    if TYPE_CHECKING:  # the task that it goes before has it

        def gold(self, row: Row, completion: str) -> float:
            """Return the true score of a completion."""
            ...

    def draw_anew(self, seed: int) -> None:
        """Draw other labels for each seed, and train another reward model on them."""
        self.reward_seed += SEEDS_APART * seed
        super().draw_anew(seed)

    def drawn_from(self) -> list[int]:
        """Return the seed of the labels and reward models, and those of others."""
        return [self.reward_seed, *super().drawn_from()]

    def start_settings(self) -> dict[str, Any]:
        """Return all settings but those of the reward model: one start serves every reward."""
        ours = ("pairs", "noise", "label_temperature", "reward_seed", "reward_epochs", "prompt_offset")
        return {k: v for k, v in asdict(self).items() if k not in ours}

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return the gold score: what the learned reward stands for."""
        return {"gold": self.gold(row, completion)}

    def model_score(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return the reward model's score of each completion, each read as if it had ended by itself."""
        return self._scores_by(0, prompts, completions)

    def _scores_by(self, member: int, prompts: list[Any], completions: list[Any]) -> list[float | None]:
        if member >= len(self.scorers):
            raise UserError(
                f"The task '{self.name}' has no reward model yet: let polyrl.pretrain.wanted.prepare make it first."
            )
        scores = self.scorers[member](prompts, [content(c) for c in completions])
        return [score + self.offset(prompt) for score, prompt in zip(scores, prompts, strict=True)]

    def scoring_folder(self, model: str) -> str:
        """Return the folder of the reward model that is made, or that of a user's own."""
        if self._scored_by_model:
            return str(self.reward_folder(model))
        return super().scoring_folder(model)

    def ensemble(self, members: int) -> list[Reward]:
        """Return `members` reward models as rewards; a user's own rewards are members themselves."""
        if not self._scored_by_model:
            return super().ensemble(members)

        def by(member: int) -> RewardFunction:
            return lambda prompts, completions, **_: self._scores_by(member, prompts, completions)

        return [Reward(f"member_{i}", by(i)) for i in range(members)]

    def offset(self, prompt: Any) -> float:
        """Return what is added to all scores of a prompt: a fixed draw from N(0, `prompt_offset`^2)."""
        if not self.prompt_offset:
            return 0.0
        return random.Random(f"{self.name}-offset-{content(prompt)}").gauss(0, self.prompt_offset)

    def reward_folder(self, model: str, member: int = 0) -> Path:
        """Return the folder of a reward model that goes with a starting model, made or not."""
        from polyrl.runtime.cache import cache_folder
        from polyrl.runtime.files import fingerprint

        settings: list[Any] = self._label_settings()
        if member or self.reward_epochs != 2:  # the one of old keeps its name
            settings += [self.reward_epochs, member]
        key = digest([REWARD_RECIPE_VERSION, self.fingerprint(), fingerprint(model), settings])
        return cache_folder() / "models" / f"{self.name}-{self.difficulty}-reward-{key}"

    def _label_settings(self) -> list[Any]:
        return [self.pairs, self.noise, self.label_temperature, self.reward_seed, HELD_OUT_PAIRS]

    def preference_source(self) -> PreferenceSource:
        """Return the pairs that the reward model learns from."""
        key = [self.fingerprint(), self._label_settings()]
        return PreferenceSource(key, lambda answers: self.preferences(answers).labelled, self.reward_seed)

    def ensemble_wanted(self, members: int) -> RewardModelsWanted | None:
        """Return the members that are to be made; a user's own rewards are there."""
        return self._reward_models(members) if self._scored_by_model else super().ensemble_wanted(members)

    def preferences(self, answers: Answers) -> Preferences:
        """Return labelled pairs of answers of the starting model, and others that are held out."""
        # the seed of rows is far from those of training runs (small) and of pretraining (1000003 and up)
        rows = self.rows("train", 2_000_003 + self.reward_seed, 0, self.pairs + HELD_OUT_PAIRS)
        a, b = answers(rows)
        cut = self.pairs
        rng = random.Random(f"{self.name}-labels-{self.reward_seed}")
        labelled = preference_pairs(self, rows[:cut], a[:cut], b[:cut], rng, self.label_temperature, self.noise)
        judged = preference_pairs(self, rows[cut:], a[cut:], b[cut:], rng, temperature=0.0)
        gold = [self.gold(row, text) for row, text in zip(rows + rows, a + b, strict=True)]
        return Preferences(labelled, judged, [r["prompt"] for r in rows[cut:]] * 2, a[cut:] + b[cut:], gold)


@dataclass
class LearnedReverse(ScoredByModel, ReverseDense):
    """Write a word of up to `difficulty` letters backwards, rewarded by a reward model (see `ScoredByModel`)."""

    name = "learned-reverse"


@dataclass
class LearnedSort(ScoredByModel, SortPairs):
    """Sort 4 to `difficulty` digits, taught badly as in `sort-pairs`, rewarded by a reward model (see `ScoredByModel`).

    Its gold is that of `sort-pairs`, from about -4 to 4. Which digits belong into an answer is harder to learn from a
    few labels than that digits rise and letters are wrong, so a reward model can be pleased without being right.
    """

    label_temperature: float = 1.0

    name = "learned-sort"
    budget = "samples=4096"
    pairs_by_preference = False

    def __post_init__(self) -> None:
        """Check the settings; what stands for people's judgement is the reward model alone."""
        super().__post_init__()
        if self.cycle:
            raise UserError(
                f"The task '{self.name}' is judged by a reward model, so cycle means nothing; leave it away."
            )
        self.preference = None

    def start_settings(self) -> dict[str, Any]:
        """Return the settings that the starting model depends on."""
        return {k: v for k, v in super().start_settings().items() if k not in ("pair_seed", "cycle")}
