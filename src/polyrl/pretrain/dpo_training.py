"""Training of a DPO policy that stands by frozen, as a source of rewards; `polyrl train dpo` trains one as a run.

It starts from the starting model and learns from the task's preference pairs, those that its reward model learns from
where it has one, and is kept in the cache like a reward model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.language.pairs import FixedPairs, sequence_log_ratio
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import micro_batches
from polyrl.models.language.tables import load_policy
from polyrl.parts.pairs import dpo_loss
from polyrl.pretrain.reward_models import answers_of
from polyrl.pretrain.supervised import length_batches, scheduled
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.files import fingerprint
from polyrl.runtime.seeding import generator
from polyrl.tasks.language.base import LanguageTask, digest
from polyrl.tasks.language.dataset import DatasetTask

Say = Callable[[str], None]

DPO_RECIPE_VERSION = 1
"""Raised when the way of making DPO policies changes."""


def dpo_policy(
    task: LanguageTask, model: str, *, beta: float = 0.1, epochs: int = 2, say: Say = lambda _: None
) -> Path:
    """Return the folder of the DPO policy that goes with a task and its starting model, made first where it is missing.

    Args:
        task: gives the pairs (`LanguageTask.preference_source`).
        model: the starting model's folder or name, which is the reference as well.
        beta: DPO's coefficient.
        epochs: passes over the pairs.
        say: told what is going on.

    Raises:
        UserError: the task has no preference pairs, or it is a user's data, whose model deserves a run of its own.
    """
    if isinstance(task, DatasetTask):
        raise UserError(
            "A DPO policy is made beforehand only for built-in tasks: train one on your pairs with `polyrl train dpo` "
            "and give its run as --dpo-model."
        )
    source = task.preference_source()
    key = digest([DPO_RECIPE_VERSION, source.key, fingerprint(model), beta, epochs])

    def make(folder: Path) -> dict[str, Any]:
        began = time.perf_counter()
        say(f"making the DPO policy of {task.name}, about half a minute")
        policy = load_policy(model)
        pairs = source.rows(answers_of(task, policy, source.seed))
        facts = train_dpo(policy, pairs, beta=beta, epochs=epochs, generator=generator(0, "dpo policy"))
        policy.save(folder)
        say(f"pairs that the DPO policy has in order: {facts['in_order']:.2f}")
        facts |= {"seconds": round(time.perf_counter() - began, 1)}
        return {"task": task.name, "kind": "DPO policy", "start": Path(model).name, "beta": beta, **facts}

    return cached(cache_folder() / "models" / f"{task.name}-{task.difficulty}-dpo-{key}", make)


def train_dpo(
    policy: LanguagePolicy,
    pairs: Sequence[Mapping[str, Any]],
    *,
    generator: torch.Generator,
    beta: float = 0.1,
    epochs: int = 2,
    batch_size: int = 32,
    lr: float = 5e-4,
    warmup: float = 0.1,
    final_lr: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    max_tokens: int = 16384,
) -> dict[str, float]:
    """Raise the log-ratio of chosen over rejected responses, in place (arXiv:2305.18290, equation 7).

    Args:
        policy: what is trained; as it comes it is the reference.
        pairs: rows with `prompt`, `chosen` and `rejected`; responses are read with their end token, unless
            `chosen_ended` or `rejected_ended` is false. Pairs of equal responses say nothing and are left out.
        generator: decides the order of the pairs, and with it everything.
        beta: strength of the pull to the reference.
        epochs: passes over the pairs, in batches of `batch_size` pairs of similar length.
        lr: highest learning rate of AdamW; it rises over the first `warmup` share of the steps and then falls along a
            cosine to `final_lr` of itself.
        max_tokens: padded tokens of one forward pass; memory, never meaning.

    Returns the facts: `pairs`, `steps`, and of the last pass the mean `loss` (nats; log 2 is the start's) and the share
    of pairs that were `in_order`, each as it stood before its step.
    """
    pairs = [p for p in pairs if p["chosen"] != p["rejected"]]
    if not pairs:
        raise UserError("There are no preference pairs to train on: each needs two different responses.")
    data = FixedPairs(policy, pairs, "the pairs of a DPO policy")
    batch = data.batch(range(len(data)))
    length = (batch["prompt_mask"].sum(1) + batch["present"].sum(1)).view(-1, 2).amax(1)

    def logprobs(numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of both responses of some pairs, chosen first, and their log-probabilities, part by part."""
        for part in micro_batches(2 * length[numbers], max_tokens):
            rows = torch.stack([2 * numbers[part], 2 * numbers[part] + 1], 1).flatten()
            yield rows, policy.evaluate(batch, rows=rows)["logprob"].cpu()

    reference = torch.zeros(batch["mask"].shape)
    with torch.no_grad():
        for rows, found in logprobs(torch.arange(len(data))):
            reference[rows] = found.float()
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    batches = length_batches(length.tolist(), batch_size, generator)
    an_epoch = max(1, len(data) // batch_size)
    steps = epochs * an_epoch
    losses, ordered = [0.0] * steps, [0.0] * steps
    for step in range(steps):
        index = torch.tensor(next(batches))
        for rows, found in logprobs(index):
            rho = sequence_log_ratio(found, reference[rows], batch["mask"][rows])
            h = rho[0::2] - rho[1::2]
            share = dpo_loss(h, beta).sum() / len(index)
            share.backward()  # type: ignore[no-untyped-call]
            losses[step] += share.item()
            ordered[step] += float((h > 0).sum()) / len(index)
        torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr * scheduled(step, steps, warmup, final_lr)
        optimizer.step()
        optimizer.zero_grad()
    loss, right = (sum(values[-an_epoch:]) / an_epoch for values in (losses, ordered))
    return {"pairs": len(data), "steps": steps, "loss": loss, "in_order": right}
