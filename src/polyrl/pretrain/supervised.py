"""Plain supervised training: raise the probability of given completions, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import as_experience, micro_batches

Ids = Sequence[int]
Example = tuple[Ids, Ids] | tuple[Ids, Ids, Sequence[bool]]
"""Prompt ids, completion ids and, where some of the completion is not to be learned, which of its tokens are."""


def supervised(
    policy: LanguagePolicy,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    warmup: float = 0.05,
    final_lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    max_tokens: int = 16384,
    every: int = 100,
    callback: Callable[[int, float], bool | None] | None = None,
) -> list[float]:
    """Train next-token prediction on completions; prompts are read but not trained.

    Args:
        policy: trained in place.
        examples: (prompt ids, completion ids), and a third element where some tokens of the completion are read but
            not trained, such as a tool's words: true for each token that is trained. Put the end token into the
            completion if it is to be learned.
        steps: optimizer steps of `batch_size` examples, drawn epoch by epoch in batches of similar length.
        lr: highest learning rate of AdamW; it rises over the first `warmup` share of the steps and then falls
            along a cosine to `final_lr` of itself.
        generator: decides the order of the examples, and with it everything.
        max_tokens: padded tokens of one forward pass; memory, never meaning.
        every: `callback(step, mean loss since the last call)` is called every so many steps; true stops the training.

    Returns the loss of each step: mean negative log-likelihood per trained token of the batch, in nats.
    """
    if not examples:
        raise UserError("There are no examples to train on.")
    for i, (prompt, completion, *trained) in enumerate(examples):
        if not prompt or not completion:
            raise UserError(f"Example {i} has an empty prompt or completion; both need at least one token.")
        if trained and (len(trained[0]) != len(completion) or not any(trained[0])):
            raise ValueError(f"example {i} needs one flag for each token of its completion, at least one of them true")
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=betas, weight_decay=weight_decay)
    batches = length_batches([len(e[0]) + len(e[1]) for e in examples], batch_size, generator)
    losses: list[float] = []
    for step in range(steps):
        batch = demonstrations([examples[i] for i in next(batches)], pad_id=policy.pad_id)
        lengths = batch["prompt_mask"].sum(1) + batch["present"].sum(1)
        count = batch["mask"].sum()
        loss = torch.zeros(())
        for rows in micro_batches(lengths, max_tokens):
            part = -policy.evaluate(batch, rows=rows)["logprob"].sum() / count
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach().cpu()
        torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr * scheduled(step, steps, warmup, final_lr)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        if callback is not None and (step + 1) % every == 0 and callback(step + 1, sum(losses[-every:]) / every):
            break
    return losses


def demonstrations(examples: Sequence[Example], *, pad_id: int) -> Experience:
    """Examples as a batch whose `mask` [B, T] is true on the trained tokens only (see `as_experience`)."""
    batch = as_experience([e[0] for e in examples], [e[1] for e in examples], pad_id=pad_id)
    mask = batch["mask"].clone()
    for i, (_, _, *trained) in enumerate(examples):
        if trained:
            mask[i, : len(trained[0])] = torch.tensor(trained[0])
    return batch.with_fields(mask=mask)


def scheduled(step: int, steps: int, warmup: float, final: float) -> float:
    """Share of the highest learning rate at a step: linear rise, then half a cosine down to `final`."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def length_batches(lengths: list[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of `size` example numbers: each epoch sees every example once, in batches of similar length."""
    size = min(size, len(lengths))
    length = torch.tensor(lengths)
    left = torch.empty(0, dtype=torch.long)
    while True:
        # what did not fill a batch comes first in the next epoch, so that no example is ever dropped
        order = torch.cat([left, torch.randperm(len(length), generator=generator)])
        usable = len(order) // size * size
        order, left = order[:usable], order[usable:]
        order = order[torch.argsort(length[order], stable=True)]
        groups: Sequence[Tensor] = torch.split(order, size)
        for i in torch.randperm(len(groups), generator=generator).tolist():
            yield groups[i].tolist()
