"""A task with a learned reward: a reward model trained on preferences, with the true (gold) score logged beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.tasks.language.base import Reward, Row, content, digest
from polyrl.tasks.language.strings import ReverseDense, preference_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from polyrl.policies.scalar import RewardModel

Say = Callable[[str], None]

REWARD_RECIPE_VERSION = 1
"""Raised when the way of making reward models changes."""
HELD_OUT_PAIRS = 400
"""Pairs that measure the reward model and its scale; never trained on."""


@dataclass
class LearnedReverse(ReverseDense):
    """Write a word of up to `difficulty` letters backwards, rewarded by a reward model.

    The protocol of arXiv:2210.10760: the starting model answers each of `pairs` train prompts twice, an imperfect judge
    who goes by the gold score prefers one answer (`preference_pairs`), and a copy of the starting model learns to score
    by these preferences (`polyrl.policies.reward_training`). Policies are trained on that score, whose mean is 0 and
    standard deviation 1 on the starting model's answers, and judged by the gold, which is logged as `gold` and
    `eval/gold`. `prepare` makes the reward model, or finds it in the cache.
    """

    pairs: int = 2000
    """Preference pairs that the reward model learns from: fewer make a reward that is easier to exploit."""
    noise: float = 0.0
    """Share of the labels that are flipped, 0 to 0.5."""
    label_temperature: float = 0.1
    """Of the judge: he prefers `a` to `b` with probability sigmoid((gold(a) - gold(b)) / label_temperature)."""
    reward_seed: int = 0
    """Of the pairs, their labels and the reward model's training."""
    prompt_offset: float = 0.0
    """Standard deviation of a number that is added to all scores of a prompt, its own for each: reward models learn
    differences between answers to one prompt, so their scores of different prompts lie apart by chance."""

    name = "learned-reverse"

    def __post_init__(self) -> None:
        """Check the settings; the reward itself waits for `prepare`."""
        super().__post_init__()
        if isinstance(self.pairs, bool) or not isinstance(self.pairs, int) or self.pairs < 1:
            raise UserError(f"The pairs of the task '{self.name}' must be a whole number from 1, not {self.pairs!r}.")
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
        self.reward_model: RewardModel | None = None
        self.rewards = [Reward("reward_model", self.model_score)]

    @property
    def needs_model(self) -> bool:
        """Whether the reward model is one of the rewards and is not made yet."""
        return self.reward_model is None and any(r.function == self.model_score for r in self.rewards)

    def start_settings(self) -> dict[str, Any]:
        """Return all settings but those of the reward model: one start serves every reward."""
        ours = ("pairs", "noise", "label_temperature", "reward_seed", "prompt_offset")
        return {k: v for k, v in super().start_settings().items() if k not in ours}

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return the gold score: what the learned reward stands for."""
        return {"gold": self.gold(row, completion)}

    def model_score(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return the reward model's score of each completion, each read as if it had ended by itself."""
        if self.reward_model is None:
            raise UserError(f"The task '{self.name}' has no reward model yet: call its prepare(model) first.")
        from polyrl.policies.reward_training import score_texts  # heavy

        scores = score_texts(self.reward_model, prompts, [content(c) for c in completions]).tolist()
        return [score + self.offset(prompt) for score, prompt in zip(scores, prompts, strict=True)]

    def offset(self, prompt: Any) -> float:
        """Return what is added to all scores of a prompt: a fixed draw from N(0, `prompt_offset`^2)."""
        if not self.prompt_offset:
            return 0.0
        return random.Random(f"{self.name}-offset-{content(prompt)}").gauss(0, self.prompt_offset)

    def reward_folder(self, model: str) -> Path:
        """Return the folder of the reward model that goes with a starting model, made or not."""
        from polyrl.policies.start import cache_folder, fingerprint

        settings = [self.pairs, self.noise, self.label_temperature, self.reward_seed, HELD_OUT_PAIRS]
        key = digest([REWARD_RECIPE_VERSION, self.fingerprint(), fingerprint(model), settings])
        return cache_folder() / "models" / f"{self.name}-{self.difficulty}-reward-{key}"

    def prepare(self, model: str, say: Say = lambda _: None) -> None:
        """Load the reward model that goes with the starting model `model`, made first where it is not in the cache."""
        if not self.needs_model:
            return
        from polyrl.policies.scalar import RewardModel
        from polyrl.policies.start import cached

        folder = cached(self.reward_folder(model), lambda folder: self._make(model, folder, say))
        self.reward_model = RewardModel.load(folder)
        self.reward_model.requires_grad_(False)

    def _make(self, model: str, folder: Path, say: Say) -> dict[str, Any]:
        """Train the reward model and write it to `folder`; return its facts."""
        import time

        from polyrl.policies.language import LanguagePolicy
        from polyrl.policies.reward_training import normalise, score_texts, train_reward_model
        from polyrl.policies.scalar import RewardModel
        from polyrl.runtime.seeding import generator

        began = time.perf_counter()
        say(f"making the reward model of {self.name}: {self.pairs} preference pairs, about half a minute")
        policy = LanguagePolicy.load(model)
        # the seed of rows is far from those of training runs (small) and of pretraining (1000003 and up)
        rows = self.rows("train", 2_000_003 + self.reward_seed, 0, self.pairs + HELD_OUT_PAIRS)
        a, b = self._two_answers(policy, rows)
        cut = self.pairs
        rng = random.Random(f"{self.name}-labels-{self.reward_seed}")
        labelled = preference_pairs(self, rows[:cut], a[:cut], b[:cut], rng, self.label_temperature, self.noise)
        judged = preference_pairs(self, rows[cut:], a[cut:], b[cut:], rng, temperature=0.0)
        reward_model = RewardModel.like(policy, generator(self.reward_seed, "reward head"))
        stream = generator(self.reward_seed, "reward training")
        facts = train_reward_model(reward_model, labelled, generator=stream, held_out=judged, say=say)
        unseen = [r["prompt"] for r in rows[cut:]]
        raw: Tensor = score_texts(reward_model, unseen + unseen, a[cut:] + b[cut:])
        mean, std = normalise(reward_model, raw)
        reward_model.save(folder)
        gold = [self.gold(row, text) for row, text in zip(rows + rows, a + b, strict=True)]
        agreeing = sum(p["score_chosen"] > p["score_rejected"] for p in labelled)
        differing = sum(p["score_chosen"] != p["score_rejected"] for p in labelled)
        say(f"held-out accuracy of the reward model: {facts.get('accuracy', 0.0):.2f}")
        return {
            "task": self.name,
            "difficulty": self.difficulty,
            "kind": "reward model",
            "start": str(Path(model).name),
            "noise": self.noise,
            "label_temperature": self.label_temperature,
            "reward_seed": self.reward_seed,
            **facts,
            "labels_that_agree_with_gold": agreeing / differing if differing else None,
            "scores": "mean 0 and standard deviation 1 on the starting model's answers to held-out train prompts",
            "raw_mean": mean,
            "raw_std": std,
            "start_gold": sum(gold) / len(gold),
            "seconds": round(time.perf_counter() - began, 1),
        }

    def _two_answers(self, policy: Any, rows: list[Row]) -> tuple[list[str], list[str]]:
        """Return two sampled answers to each row, at temperature 1."""
        from polyrl.runtime.seeding import generator
        from polyrl.sampling.language import Sampling, TransformersEngine

        batch = TransformersEngine(policy).generate(
            [policy.encode_prompt(row["prompt"]) for row in rows],
            Sampling(max_tokens=self.max_tokens, stop=tuple(self.stop)),
            completions_per_prompt=2,
            generator=generator(self.reward_seed, "reward samples"),
        )
        texts = batch.columns["completion"]
        return texts[0::2], texts[1::2]
