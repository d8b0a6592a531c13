"""Written-out passes of Llama-like models against transformers' own, by the length of rows: which costs less.

    python benchmarks/passes.py

Forward and backward of the log-probabilities of one batch, CPU seconds on one thread, medians of four in alternation.
`polyrl.kernels.llama.pays` says where which are taken.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from polyrl.core.experience import Experience
from polyrl.kernels import llama
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import as_experience, micro_batches_of
from polyrl.pretrain.tiny import character_tokenizer

SIZES = {"1M": (128, 4, 512), "5M": (256, 6, 1024)}
SHAPES = ((12, 52), (12, 116), (12, 180), (12, 244), (12, 500), (208, 32), (208, 64), (400, 32))
"""Tokens of the prompt, and of the responses."""
TOKENS, GROUP, MICRO_BATCH = 2048, 8, 1024


def policy_of(hidden: int, layers: int, mlp: int) -> LanguagePolicy:
    """A Qwen3 with weights drawn from seed 0."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=hidden // 8,
        intermediate_size=mlp,
        max_position_embeddings=4096,
    )
    return LanguagePolicy(Qwen3ForCausalLM(config), tokenizer)


def batch_of(policy: LanguagePolicy, prompt: int, response: int) -> Experience:
    """Groups of eight responses to prompts, of so many tokens."""
    stream = torch.Generator().manual_seed(1)
    high, groups = len(policy.tokenizer), max(1, TOKENS // (GROUP * response))

    def ids(count: int) -> list[int]:
        found: list[int] = torch.randint(3, high, (count,), generator=stream).tolist()
        return found

    prompts = [asked for asked in [ids(prompt) for _ in range(groups)] for _ in range(GROUP)]
    return as_experience(prompts, [ids(response) for _ in prompts], pad_id=policy.pad_id)


def update(policy: LanguagePolicy, batch: Experience) -> float:
    """CPU seconds of one forward and backward pass."""
    policy.zero_grad()
    began = time.process_time()
    plan = policy.plan(batch, MICRO_BATCH)
    with policy.sharing(plan) as shared:
        for rows in micro_batches_of(batch, MICRO_BATCH, chunk=None if plan is None else plan.chunk):
            loss = policy.evaluate(batch, want={"logprob"}, rows=rows, shared=shared)["logprob"].sum()
            loss.backward()  # type: ignore[no-untyped-call]
    return time.process_time() - began


def main() -> None:
    """Print a line for each size and length."""
    torch.set_num_threads(1)
    limits = llama.LONGEST, llama.SHORT
    for name, size in SIZES.items():
        policy = policy_of(*size)
        for shape in SHAPES:
            batch = batch_of(policy, *shape)
            seconds: dict[str, list[float]] = {"written out": [], "transformers": []}
            for repeat in range(5):
                for way, found in seconds.items():
                    llama.LONGEST, llama.SHORT = (10**6, 10**6) if way == "written out" else (0, 0)
                    cost = update(policy, batch)
                    if repeat:
                        found.append(cost)
            llama.LONGEST, llama.SHORT = limits
            own, plain = (statistics.median(found) for found in seconds.values())
            plan = policy.plan(batch, MICRO_BATCH)
            choice = "written out" if plan is not None and plan.own else "transformers"
            told = f"written out {1000 * own:5.0f} ms, transformers {1000 * plain:5.0f} ms, ratio {plain / own:.2f}"
            print(
                f"{name} prompts of {shape[0]:3d}, responses of {shape[1]:3d} tokens: {told}; taken: {choice}",
                flush=True,
            )


if __name__ == "__main__":
    main()
