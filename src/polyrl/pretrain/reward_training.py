"""Training of a reward model on preference pairs, and its scores on a scale that people can read.

A pair is a row with TRL's columns `prompt`, `chosen` and `rejected`, plain text or messages; the true scores of both
responses may stand beside them as `score_chosen` and `score_rejected`, to measure accuracy by. This trains a model that
a task needs before a run; `polyrl train reward-model` trains one as a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.language.rows import micro_batches
from polyrl.models.language.scalar import RewardModel
from polyrl.pretrain.supervised import length_batches, scheduled

Pair = Mapping[str, Any]


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected) over pairs of scores `[n]`, nats (arXiv:2009.01325, equation 1)."""
    return torch.nn.functional.softplus(rejected - chosen).mean()


def train_reward_model(
    model: RewardModel,
    pairs: Sequence[Pair],
    *,
    generator: torch.Generator,
    held_out: Sequence[Pair] = (),
    epochs: int = 2,
    batch_size: int = 64,
    lr: float = 5e-4,
    warmup: float = 0.05,
    final_lr: float = 0.1,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    max_tokens: int = 16384,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Train the score so that chosen responses score above rejected ones.

    Args:
        model: trained in place, backbone and head.
        pairs: what to learn from. Pairs of equal responses say nothing and are left out.
        generator: decides the order of the pairs, and with it everything.
        held_out: pairs to measure the accuracy on, at the end.
        epochs: passes over the pairs, each in batches of similar length.
        batch_size: pairs of an optimizer step.
        lr: highest learning rate of AdamW; it rises over the first `warmup` share of the steps and then falls along a
            cosine to `final_lr` of itself.
        max_tokens: padded tokens of one forward pass; memory, never meaning.

    Returns the facts: `pairs` trained on, `steps`, the mean `loss` of the last epoch (nats; log 2 is a coin's), and
    `held_out_pairs` and `accuracy` on those (see `pair_accuracy`) where there are any.
    """
    pairs = [p for p in pairs if p["chosen"] != p["rejected"]]
    if not pairs:
        raise UserError("There are no preference pairs to train on: each needs two different responses.")
    prompts = [p["prompt"] for p in pairs]
    batch = model.as_batch([*prompts, *prompts], [p["chosen"] for p in pairs] + [p["rejected"] for p in pairs])
    length = (batch["prompt_mask"].sum(1) + batch["present"].sum(1)).view(2, -1).amax(0)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    batches = length_batches(length.tolist(), batch_size, generator)
    an_epoch = max(1, len(pairs) // batch_size)
    steps = epochs * an_epoch
    losses: list[float] = []
    for step in range(steps):
        index = torch.tensor(next(batches))
        loss = 0.0
        # both responses of a pair are read together
        for part in micro_batches(2 * length[index], max_tokens):
            rows = torch.cat([index[part], index[part] + len(pairs)])
            chosen, rejected = model.score(batch, rows).chunk(2)
            share = bradley_terry_loss(chosen, rejected) * (len(part) / len(index))
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr * scheduled(step, steps, warmup, final_lr)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        if (step + 1) % an_epoch == 0:
            say(f"epoch {(step + 1) // an_epoch} of {epochs}: loss {sum(losses[-an_epoch:]) / an_epoch:.3f}")
    facts = {"pairs": len(pairs), "steps": steps, "loss": sum(losses[-an_epoch:]) / an_epoch}
    judged = [p for p in held_out if _preference(p)]
    if judged:
        facts |= {"held_out_pairs": len(judged), "accuracy": pair_accuracy(model, judged, max_tokens=max_tokens)}
    return facts


def pair_accuracy(model: RewardModel, pairs: Sequence[Pair], *, max_tokens: int = 16384) -> float:
    """Share of pairs whose better response the model scores higher; a tie of the model's scores is wrong.

    The better response is the one with the higher true score, whatever the label says, and pairs with equal true
    scores do not count; without true scores it is the chosen one.
    """
    judged = [p for p in pairs if _preference(p)]
    if not judged:
        raise ValueError("no pair has a better response to find")
    prompts = [p["prompt"] for p in judged]
    chosen = score_texts(model, prompts, [p["chosen"] for p in judged], max_tokens=max_tokens)
    rejected = score_texts(model, prompts, [p["rejected"] for p in judged], max_tokens=max_tokens)
    truth = torch.tensor([_preference(p) for p in judged])
    return float(((chosen - rejected) * truth > 0).float().mean())


def _preference(pair: Pair) -> float:
    """Return by how much the chosen response is truly better: 1 where only the label is known."""
    return float(pair.get("score_chosen", 1.0)) - float(pair.get("score_rejected", 0.0))


@torch.no_grad()
def score_texts(
    model: RewardModel,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    max_tokens: int = 16384,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> Tensor:
    """Score of each completion, float32 `[B]` on the CPU, in batches of similar length with at most `max_tokens`.

    `rows` hold what a chat template is given beside the prompts (see `RewardModel.as_batch`).
    """
    scores = torch.zeros(len(completions))
    if not completions:
        return scores
    batch = model.as_batch(prompts, completions, rows=rows)
    for part in micro_batches(batch["prompt_mask"].sum(1) + batch["present"].sum(1), max_tokens):
        scores[part] = model.score(batch, part).float().cpu()
    return scores


@torch.no_grad()
def normalize(model: RewardModel, scores: Tensor) -> tuple[float, float]:
    """Change the head so that responses that scored `scores` `[n]` have mean 0 and standard deviation 1 from now on.

    A reward model is free up to a constant, and its scale is an accident of training; hyperparameters such as a KL
    coefficient need a known one. Returns the mean and standard deviation (population) that the scores had.
    """
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not std > 0:
        raise ValueError("all responses have the same score, so there is no scale to normalize")
    model.head.weight.div_(std)
    model.head.bias.sub_(mean).div_(std)
    return mean, std
