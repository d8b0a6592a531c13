"""PPO on a language model as a plain loop on transformers: what polyrl's is measured against, TRL having none any more.

`generate`, padded batches, forward passes with all logits, a critic of its own: the same rewards, KL penalty, GAE,
whitening, losses and number of optimizer steps as polyrl's `ppo`. Started by run.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from language_work import MAX_GRAD_NORM, PPO, WORK, echo, read_rows
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from turns import Side


class Critic(nn.Module):
    """A backbone with one number a token."""

    def __init__(self, folder: str):
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.head = nn.Linear(self.backbone.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Values of every position, `[B, L]`."""
        values: Tensor = self.head(self.backbone(**inputs, use_cache=False).last_hidden_state)[..., 0]
        return values


@dataclass
class Batch:
    """Padded prompts on the left, completions on the right."""

    ids: Tensor
    seen: Tensor
    width: int
    """Tokens of the padded prompt."""
    mask: Tensor
    """`[B, T]`: completion tokens, the end token included."""

    def rows(self, rows: Tensor) -> Batch:
        """Some of the rows."""
        return Batch(self.ids[rows], self.seen[rows], self.width, self.mask[rows])

    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with."""
        positions = (self.seen.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": self.ids, "attention_mask": self.seen, "position_ids": positions}


def logprobs(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and entropy there, `[B, T]` both."""
    logits = model(**batch.inputs(), use_cache=False).logits[:, batch.width - 1 : -1]
    every = logits.log_softmax(-1)
    return every.gather(-1, batch.ids[:, batch.width :, None])[..., 0], -(every.exp() * every).sum(-1)


def values(critic: Critic, batch: Batch) -> Tensor:
    """Value of the state before each completion token, `[B, T]`."""
    found: Tensor = critic(**batch.inputs())[:, batch.width - 1 : -1]
    return found


class Plain:
    """Policy, reference, critic and their optimizers."""

    def __init__(self, folder: str, rows: list[dict[str, str]], count: int, length: int, learning_rate: float):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.policy: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.critic = Critic(folder)
        self.optimizers = [torch.optim.AdamW(m.parameters(), lr=learning_rate, weight_decay=0.0) for m in self.models()]
        self.rows, self.count, self.length, self.step = rows, count, length, 0

    def models(self) -> list[Any]:
        """What is trained."""
        return [self.policy, self.critic]

    @torch.no_grad()
    def generate(self, prompts: list[str]) -> Batch:
        """Answer the prompts."""
        given = self.tokenizer(prompts, return_tensors="pt", padding=True)
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ids = self.policy.generate(
            **given, max_new_tokens=self.length, do_sample=True, top_k=0, eos_token_id=end, pad_token_id=pad
        )
        width = given["input_ids"].shape[1]
        ended = ids[:, width:] == end
        mask = ended.cumsum(1) - ended.long() == 0
        return Batch(ids, torch.cat([given["attention_mask"], mask.long()], 1), width, mask)

    def score(self, batch: Batch, targets: list[str]) -> Tensor:
        """Rewards `[B]`."""
        kept = [ids[m].tolist() for ids, m in zip(batch.ids[:, batch.width :], batch.mask, strict=True)]
        texts = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        return torch.tensor(echo(texts, targets))

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities under policy and reference, and values, `[B, T]` each."""
        return logprobs(self.policy, batch)[0], logprobs(self.reference, batch)[0], values(self.critic, batch)

    def advantages(
        self, scores: Tensor, old: Tensor, ref: Tensor, value: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """GAE on token rewards with a KL penalty; whitened advantages and the critic's targets, `[B, T]`."""
        value, rewards = value * mask, -PPO["kl_coef"] * (old - ref) * mask
        last = mask.sum(1) - 1
        rewards[torch.arange(len(last)), last] += scores
        result, running = torch.zeros_like(rewards), torch.zeros(len(rewards))
        for t in range(rewards.shape[1] - 1, -1, -1):
            follows = value[:, t + 1] * mask[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros(len(rewards))
            delta = rewards[:, t] + PPO["gamma"] * follows - value[:, t]
            running = (delta + PPO["gamma"] * PPO["gae_lambda"] * running) * mask[:, t]
            result[:, t] = running
        chosen = result[mask]
        return (result - chosen.mean()) / (chosen.std(correction=0) + 1e-8) * mask, result + value

    def update(self, batch: Batch, old: Tensor, value: Tensor, advantage: Tensor, target: Tensor) -> int:
        """Epochs of minibatches; returns the number of optimizer steps."""
        updates = 0
        for _ in range(PPO["epochs"]):
            for rows in torch.randperm(len(old)).chunk(PPO["minibatches"]):
                self.backward(batch.rows(rows), old[rows], advantage[rows], target[rows])
                self.take_step()
                updates += 1
        return updates

    def backward(self, batch: Batch, old: Tensor, advantage: Tensor, target: Tensor) -> None:
        """Gradients of one minibatch, of both models."""
        mask, clip = batch.mask, PPO["clip"]
        logprob, _ = logprobs(self.policy, batch)
        ratio = torch.exp(logprob - old)
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        error = (values(self.critic, batch) - target).square() / 2
        ((PPO["value_coef"] * error - surrogate)[mask].sum() / mask.sum()).backward()

    def take_step(self) -> None:
        """Clip and step."""
        for model, optimizer in zip(self.models(), self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()

    def iterate(self) -> dict[str, float]:
        """One iteration of PPO."""
        start = self.step * self.count
        chosen = [self.rows[i % len(self.rows)] for i in range(start, start + self.count)]
        self.step += 1
        batch = self.generate([row["prompt"] for row in chosen])
        scores = self.score(batch, [row["target"] for row in chosen])
        old, ref, value = self.measure(batch)
        advantage, target = self.advantages(scores, old, ref, value, batch.mask)
        updates = self.update(batch, old, value, advantage, target)
        return {"tokens": int(batch.mask.sum()), "updates": updates, "reward": float(scores.mean())}


def record(plain: Plain) -> dict[str, Any]:
    """What the first step sees, and loss and gradient norm of the whole batch as one minibatch."""
    chosen = plain.rows[: plain.count]
    batch = plain.generate([row["prompt"] for row in chosen])
    kept = [ids[m].tolist() for ids, m in zip(batch.ids[:, batch.width :], batch.mask, strict=True)]
    scores = plain.score(batch, [row["target"] for row in chosen])
    old, ref, value = plain.measure(batch)
    advantage, target = plain.advantages(scores, old, ref, value, batch.mask)
    plain.backward(batch, old, advantage, target)
    norms = [torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9) for model in plain.models()]
    return {
        "prompts": [row["prompt"] for row in chosen],
        "completions": kept,
        "texts": plain.tokenizer.batch_decode(kept, skip_special_tokens=True),
        "targets": [row["target"] for row in chosen],
        "grad_norm": float(norms[0]),
        "critic_grad_norm": float(norms[1]),
    }


def main() -> None:
    """Take turns; or, with --record, take one step and write down what it saw and came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(WORK))
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    case = WORK[given.case]
    size = case.shape
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    plain = Plain(given.model, read_rows(given.rows), size.prompts * size.group, size.length, case.learning_rate)
    if given.record:
        given.record.write_text(json.dumps(record(plain)), encoding="utf-8")
        return
    side = Side()
    parts = {
        "generate": "generation",
        "score": "scoring",
        "measure": "log-probabilities",
        "backward": "loss and backward",
    }
    for method, part in parts.items():
        side.clock.wrap(plain, method, part)
    side.begin()
    while True:
        side.step(**plain.iterate())


if __name__ == "__main__":
    main()
