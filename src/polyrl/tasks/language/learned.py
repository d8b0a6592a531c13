"""A task with a learned reward: a reward model trained on preferences, with the true (gold) score logged beside it."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.runtime.chart import Chart
from polyrl.tasks.language.base import LanguageTask, PreferenceSource, Reward, Row, content, digest
from polyrl.tasks.language.preferences import SortPairs
from polyrl.tasks.language.strings import ReverseDense, preference_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from polyrl.models.language.scalar import RewardModel

Say = Callable[[str], None]
RewardFunction = Callable[..., list[float | None]]

REWARD_RECIPE_VERSION = 1
"""Raised when the way of making reward models changes."""
HELD_OUT_PAIRS = 400
"""Pairs that measure the reward model and its scale; never trained on."""


@dataclass(frozen=True)
class Preferences:
    """What reward models and DPO policies learn from, and what they are measured on.

    Attributes:
        labelled: rows with `prompt`, `chosen`, `rejected` and the gold of both.
        held_out: others, labelled by the gold alone.
        prompts, answers: of the held-out pairs, on which scores get their scale.
        gold: of every answer.
    """

    labelled: list[Row]
    held_out: list[Row]
    prompts: list[str]
    answers: list[str]
    gold: list[float]


@dataclass
class ScoredByModel(LanguageTask):
    """What tasks with a learned reward have in common; it goes before a generated task that has a `gold` score.

    The protocol of arXiv:2210.10760: the starting model answers each of `pairs` train prompts twice, an imperfect judge
    who goes by the gold score prefers one answer (`preference_pairs`), and a copy of the starting model learns to score
    by these preferences (`polyrl.pretrain.reward_training`). Policies are trained on that score, whose mean is 0 and
    standard deviation 1 on the starting model's answers, and judged by the gold, which is logged as `gold` and
    `eval/gold`. `prepare` makes the reward model, or finds it in the cache; `ensemble` makes several that learn from
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
        """Check the settings; the reward itself waits for `prepare`."""
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
        self.reward_models: list[RewardModel] = []
        self.rewards = [Reward("reward_model", self.model_score)]

    @property
    def reward_model(self) -> RewardModel | None:
        """The reward model that policies are trained on: the ensemble's first member. None before `prepare`."""
        return self.reward_models[0] if self.reward_models else None

    @property
    def needs_model(self) -> bool:
        """Whether the reward model is one of the rewards and is not made yet."""
        return self.reward_model is None and any(r.function == self.model_score for r in self.rewards)

    if TYPE_CHECKING:  # the task that it goes before has it

        def gold(self, row: Row, completion: str) -> float:
            """Return the true score of a completion."""
            ...

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
        if member >= len(self.reward_models):
            raise UserError(f"The task '{self.name}' has no reward model yet: call its prepare(model) first.")
        from polyrl.pretrain.reward_training import score_texts  # heavy

        scores = score_texts(self.reward_models[member], prompts, [content(c) for c in completions]).tolist()
        return [score + self.offset(prompt) for score, prompt in zip(scores, prompts, strict=True)]

    def scoring_folder(self, model: str) -> str:
        """Return the folder of the reward model that `prepare` makes, or that of a user's own."""
        if any(r.function == self.model_score for r in self.rewards):
            return str(self.reward_folder(model))
        return super().scoring_folder(model)

    def ensemble(self, members: int) -> list[Reward]:
        """Return `members` reward models as rewards, made by `prepare`; a user's own rewards are members themselves."""
        if not any(r.function == self.model_score for r in self.rewards):
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

    def preference_source(self, model: str) -> PreferenceSource:
        """Return the pairs that the reward model learns from, sampled from the starting model `model`."""

        def rows() -> list[Row]:
            from polyrl.models.language.policy import LanguagePolicy

            return self.preferences(LanguagePolicy.load(model)).labelled

        return PreferenceSource([self.fingerprint(), self._label_settings()], rows)

    def prepare(self, model: str, say: Say = lambda _: None) -> None:
        """Load the reward model that goes with the starting model `model`, made first where it is not in the cache."""
        if self.needs_model:
            self._load(model, 1, say)

    def prepare_ensemble(self, model: str, members: int, say: Say = lambda _: None) -> None:
        """Load as many reward models, made first where they are not in the cache."""
        if any(r.function == self.model_score for r in self.rewards):
            self._load(model, members, say)
        else:
            super().prepare_ensemble(model, members, say)

    def _load(self, model: str, members: int, say: Say) -> None:
        from polyrl.models.language.scalar import RewardModel
        from polyrl.runtime.cache import cached

        made: list[Preferences] = []  # the members' common labels, sampled once where any of them is to be made
        while len(self.reward_models) < members:
            member = len(self.reward_models)
            make = functools.partial(self._make, model, say, member, made)
            folder = cached(self.reward_folder(model, member), make)
            self.reward_models.append(RewardModel.load(folder).requires_grad_(False))

    def preferences(self, policy: Any) -> Preferences:
        """Return labelled pairs of answers of the starting model `policy`, and others that are held out."""
        # the seed of rows is far from those of training runs (small) and of pretraining (1000003 and up)
        rows = self.rows("train", 2_000_003 + self.reward_seed, 0, self.pairs + HELD_OUT_PAIRS)
        a, b = self._two_answers(policy, rows)
        cut = self.pairs
        rng = random.Random(f"{self.name}-labels-{self.reward_seed}")
        labelled = preference_pairs(self, rows[:cut], a[:cut], b[:cut], rng, self.label_temperature, self.noise)
        judged = preference_pairs(self, rows[cut:], a[cut:], b[cut:], rng, temperature=0.0)
        gold = [self.gold(row, text) for row, text in zip(rows + rows, a + b, strict=True)]
        return Preferences(labelled, judged, [r["prompt"] for r in rows[cut:]] * 2, a[cut:] + b[cut:], gold)

    def _make(self, model: str, say: Say, member: int, made: list[Preferences], folder: Path) -> dict[str, Any]:
        """Train a reward model and write it to `folder`; return its facts."""
        import time

        from polyrl.models.language.policy import LanguagePolicy
        from polyrl.models.language.scalar import RewardModel
        from polyrl.pretrain.reward_training import normalize, score_texts, train_reward_model
        from polyrl.runtime.seeding import generator

        began = time.perf_counter()
        which = f"reward model {member + 1}" if member else "the reward model"
        say(f"making {which} of {self.name}: {self.pairs} preference pairs, about half a minute")
        policy = LanguagePolicy.load(model)
        if not made:
            made.append(self.preferences(policy))
        data = made[0]
        more = (member,) if member else ()  # a member has its own head and order, and nothing else of its own
        reward_model = RewardModel.like(policy, generator(self.reward_seed, "reward head", *more))
        facts = train_reward_model(
            reward_model,
            data.labelled,
            generator=generator(self.reward_seed, "reward training", *more),
            held_out=data.held_out,
            epochs=self.reward_epochs,
            say=say,
        )
        raw: Tensor = score_texts(reward_model, data.prompts, data.answers)
        mean, std = normalize(reward_model, raw)
        reward_model.save(folder)
        agreeing = sum(p["score_chosen"] > p["score_rejected"] for p in data.labelled)
        differing = sum(p["score_chosen"] != p["score_rejected"] for p in data.labelled)
        say(f"held-out accuracy of the reward model: {facts.get('accuracy', 0.0):.2f}")
        return {
            "task": self.name,
            "difficulty": self.difficulty,
            "kind": "reward model",
            "start": str(Path(model).name),
            "noise": self.noise,
            "label_temperature": self.label_temperature,
            "reward_seed": self.reward_seed,
            "member": member,
            **facts,
            "labels_that_agree_with_gold": agreeing / differing if differing else None,
            "scores": "mean 0 and standard deviation 1 on the starting model's answers to held-out train prompts",
            "raw_mean": mean,
            "raw_std": std,
            "start_gold": sum(data.gold) / len(data.gold),
            "seconds": round(time.perf_counter() - began, 1),
        }

    def _two_answers(self, policy: Any, rows: list[Row]) -> tuple[list[str], list[str]]:
        """Return two sampled answers to each row, at temperature 1."""
        from polyrl.rollout.language import Sampling, TransformersEngine
        from polyrl.runtime.seeding import generator

        batch = TransformersEngine(policy).generate(
            [policy.encode_row(row) for row in rows],
            Sampling(max_tokens=self.max_tokens, stop=tuple(self.stop)),
            completions_per_prompt=2,
            generator=generator(self.reward_seed, "reward samples"),
        )
        texts = batch.columns["completion"]
        return texts[0::2], texts[1::2]


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
        self.preference = None

    def start_settings(self) -> dict[str, Any]:
        """Return the settings that the starting model depends on."""
        return {k: v for k, v in super().start_settings().items() if k != "pair_seed"}
