"""A small language model that advises an agent: a BERT classifier over actions, asked several times with dropout on.

The calibrated advice of arXiv:2411.14457: the spread of answers under Monte-Carlo dropout says how much they are worth.
Which states it learns from, and how, follows the re-implementation (arXiv:2606.06673, MainCode/llm_core.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from polyrl.errors import UserError
from polyrl.models.language.folders import no_progress_bar
from polyrl.models.normalization import Floats
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.seeding import generator, stream_seed
from polyrl.tasks.control.unlock_grid import ACTIONS, UnlockGrid
from polyrl.tasks.language.base import digest

RECIPE_VERSION = 1
"""Raised when the way of making advisers changes."""

DROPOUT = 0.1
HELD_OUT = 400
"""Answers that tell when the adviser has learned enough."""
BINS = 10
"""Of the expected calibration error."""

Say = Callable[[str], None]

# -------------------------------------------------------------------------------------------------- pure functions


def average_entropy(passes: Tensor) -> tuple[Tensor, Tensor]:
    """The answers' average `[..., A]`, and its entropy over ln A, in [0, 1] `[...]`; `passes` are `[T, ..., A]`.

    The entropy of the average and not the average of entropies: passes that are sure and disagree are uncertain.
    """
    advice = passes.mean(0)
    entropy = -torch.special.xlogy(advice, advice).sum(-1) / math.log(advice.shape[-1])
    return advice, entropy.clamp(0, 1)


def brier_score(advice: Tensor, truth: Tensor) -> float:
    """Mean over states of the squared error, summed over actions: advice `[S, A]`, right actions `[S]` int64."""
    return float((advice - torch.nn.functional.one_hot(truth, advice.shape[-1])).square().sum(-1).mean())


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: |mean confidence - share right| over equal bins, weighted by their states `[S]`."""
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [
        (confidence[bin_of == b].mean() - right[bin_of == b].float().mean()).abs() * (bin_of == b).float().mean()
        for b in sorted(set(bin_of.tolist()))
    ]
    return float(torch.stack(gaps).sum())


def discrimination(uncertainty: Tensor, wrong: Tensor) -> float:
    """AUROC of `uncertainty` `[S]` for finding what is `wrong` `[S]` bool; ties count half, 0.5 where all are alike."""
    bad, good = uncertainty[wrong], uncertainty[~wrong]
    if not len(bad) or not len(good):
        return 0.5
    above = (bad[:, None] > good).double() + 0.5 * (bad[:, None] == good).double()
    return float(above.mean())


# ------------------------------------------------------------------------------------------------------ the model


class Adviser:
    """A sequence classifier that is asked which action to take in a state told in words."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> Adviser:
        """Load a transformers sequence classifier.

        Raises:
            UserError: the folder holds none.
        """
        try:
            with no_progress_bar():
                model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, SafetensorError):
            raise UserError(
                f"The adviser {folder} is not a sequence classifier that transformers can load from safetensors."
            ) from None
        return cls(model.requires_grad_(False), tokenizer)

    @property
    def actions(self) -> int:
        """How many actions it knows."""
        return int(self.model.config.num_labels)

    @torch.no_grad()
    def answers(self, texts: Sequence[str], passes: int, seed: int) -> Tensor:
        """Softmax of `passes` stochastic passes (one with dropout off for 0), float32 `[T, B, A]`."""
        asked = self.tokenizer([*texts] * max(passes, 1), return_tensors="pt", padding=True)
        self.model.train(passes > 0)
        with torch.random.fork_rng(devices=[]):  # dropout knows no other generator
            torch.manual_seed(seed)
            logits: Tensor = self.model(**asked).logits
        self.model.eval()
        return logits.float().softmax(-1).view(max(passes, 1), len(texts), -1)


class UncertainAdvice:
    """The guide of a run: what the adviser says of each observation, and what that weighs at the moment.

    Attributes:
        describe: the state in words, of an observation `[D]`.
        weigh: normalized entropy to the weight of the advice, any shape.
        passes: with dropout on; 0 is a single one with dropout off.
        visits: seed of new passes at every visit; None asks once about each state, from a seed of its own.
    """

    def __init__(
        self,
        adviser: Adviser,
        describe: Callable[[NDArray[np.float64]], str],
        weigh: Callable[[Tensor], Tensor],
        passes: int,
        seed: int,
    ):
        self.adviser, self.describe, self.weigh, self.passes, self.seed = adviser, describe, weigh, passes, seed
        self.visits: int | None = None
        self._known: dict[bytes, tuple[Floats, Tensor]] = {}

    def advise(self, observation: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """Average answers `[B, A]` and their weights `[B]` for observations `[B, D]`."""
        if self.visits is None:
            found = [self._of(row) for row in observation]
            advice, entropy = np.stack([a for a, _ in found]), torch.stack([h for _, h in found])
        else:
            self.visits += 1
            texts = [self.describe(row) for row in observation]
            mean, entropy = average_entropy(self.adviser.answers(texts, self.passes, self.visits))
            advice = mean.numpy()
        return advice, self.weigh(entropy).numpy()

    def _of(self, observation: NDArray[np.float64]) -> tuple[Floats, Tensor]:
        key = observation.tobytes()
        if key not in self._known:
            text = self.describe(observation)
            answers = self.adviser.answers([text], self.passes, stream_seed(self.seed, "advice", text))
            mean, entropy = average_entropy(answers)
            self._known[key] = mean[0].numpy(), entropy[0]
        return self._known[key]

    def judged(self, grid: UnlockGrid) -> dict[str, float]:
        """How good the advice is over all states of a grid (`judged_advice`)."""
        found = [self._of(grid.observation_of(state)) for state in grid.advisable_states()]
        advice = torch.from_numpy(np.stack([a for a, _ in found]))
        return judged_advice(grid, advice, torch.stack([h for _, h in found]))


def word_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word of `texts`, and the numbers up to 20; every other word is `<unk>`."""
    words = sorted({word for text in texts for word in text.split()} | {str(i) for i in range(21)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<cls>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<cls>",
        model_input_names=["input_ids", "attention_mask"],
    )


def oracle_answers(
    grid: UnlockGrid, samples: int, rng: random.Random, random_share: float = 0.3
) -> tuple[list[str], list[int]]:
    """States in words and the oracle's action, met by a walk that moves at random one time in three or so.

    Only states in which the oracle's action was taken are kept, so what is seldom met is seldom learned.
    """
    texts: list[str] = []
    labels: list[int] = []
    while len(texts) < samples:
        grid.reset()
        for _ in range(grid.max_steps):
            state, best = grid.state, grid.best_actions(grid.state)[0]
            action = rng.randrange(len(ACTIONS)) if rng.random() < random_share else best
            if action == best:
                texts.append(grid.words(state))
                labels.append(best)
            if grid.step(action)[2]:
                break
    return texts[:samples], labels[:samples]


def train_adviser(
    folder: Path,
    grid: UnlockGrid,
    *,
    seed: int = 0,
    accuracy: float = 0.95,
    samples: int = 4000,
    most_steps: int = 400,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Train a small BERT by cross-entropy on the oracle's answers, dropout on, and write it; return its facts.

    It stops where it names the oracle's action in a share `accuracy` of answers that it was not taught.
    """
    say(f"making an adviser of {samples} oracle answers on a {grid.width} x {grid.height} grid, a few seconds")
    texts, labels = oracle_answers(grid, samples, random.Random(f"adviser-{seed}"))
    asked, wanted = oracle_answers(grid, HELD_OUT, random.Random(f"adviser-held-out-{seed}"))
    tokenizer = word_tokenizer(texts)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.1,  # BERT's 0.02 is for wide layers: here nothing would move for hundreds of steps
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        pad_token_id=0,
        id2label=dict(enumerate(ACTIONS)),
    )
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    held_out = tokenizer(asked, return_tensors="pt", padding=True)
    target, stream = torch.tensor(labels), generator(seed, "adviser")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = BertForSequenceClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        for step in range(1, most_steps + 1):
            rows = torch.randint(len(texts), (32,), generator=stream)
            logits = model(input_ids=inputs["input_ids"][rows], attention_mask=inputs["attention_mask"][rows]).logits
            loss = torch.nn.functional.cross_entropy(logits, target[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, step / 20)
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                reached = _share_right(model, held_out, torch.tensor(wanted))
                if reached >= accuracy:
                    break
    model.eval()
    with no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "kind": "adviser",
        "grid": [grid.width, grid.height],
        "samples": samples,
        "steps": step,
        "seed": seed,
        "loss": loss.item(),
        "accuracy": reached,
    }


@torch.no_grad()
def _share_right(model: Any, inputs: Any, wanted: Tensor) -> float:
    model.eval()
    said = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.argmax(-1)
    model.train()
    return float((said == wanted).float().mean())


def built_in_adviser(grid: UnlockGrid, seed: int = 0, accuracy: float = 0.95, say: Say = lambda _: None) -> Path:
    """The folder of an adviser that was taught on `grid`, made first where it is not in the cache."""
    key = digest([RECIPE_VERSION, grid.width, grid.height, seed, accuracy])
    folder = cache_folder() / "models" / f"adviser-{grid.width}x{grid.height}-{key}"
    return cached(folder, lambda new: train_adviser(new, grid, seed=seed, accuracy=accuracy, say=say))


def judged_advice(grid: UnlockGrid, advice: Tensor, uncertainty: Tensor) -> dict[str, float]:
    """How good advice `[S, A]` with uncertainties `[S]` is over `grid.advisable_states()`.

    Right is any action that begins a shortest way. Brier: summed over actions, against the advised action where it is
    right, else against the oracle's.
    """
    best = [grid.best_actions(state) for state in grid.advisable_states()]
    said = advice.argmax(-1)
    right = torch.tensor([a in b for a, b in zip(said.tolist(), best, strict=True)])
    truth = torch.where(right, said, torch.tensor([b[0] for b in best]))
    return {
        "accuracy": float(right.float().mean()),
        "brier": brier_score(advice, truth),
        "calibration_error": calibration_error(advice.amax(-1), right),
        "auroc": discrimination(uncertainty, ~right),
    }
