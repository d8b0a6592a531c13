"""The table of speed at a real size, on a GPU: python benchmarks/gpu.py

Qwen3-0.6B's architecture with random weights in bfloat16, GRPO on 64 prompts x 8 completions of 512 tokens (a random
model over 151,936 tokens hardly ever ends by itself): polyrl's loop beside transformers' `generate` and a padded
update. Of the update the share of the measured rate of matrix products is shown, of decoding the share of the measured
rate of copying memory; nothing is compared with a datasheet. Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from results import table, write


@dataclass(frozen=True)
class Work:
    """The model and the batch."""

    hidden: int = 1024
    layers: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    mlp: int = 3072
    vocabulary: int = 151_936
    prompts: int = 64
    prompt: int = 64
    """Tokens of a prompt."""
    group: int = 8
    length: int = 512
    micro_batch_tokens: int = 32_768

    def forward_flops(self, tokens: float, context: float, weights: float) -> float:
        """FLOPs of a forward pass of tokens that attend to `context` others on average."""
        return tokens * (2 * weights + 4 * self.layers * self.heads * self.head_dim * context)

    def update_flops(self, weights: float) -> float:
        """What an update needs: forward and backward, every prompt read once."""
        prompts = self.forward_flops(self.prompts * self.prompt, self.prompt / 2, weights)
        tokens = self.prompts * self.group * self.length
        return 3 * (prompts + self.forward_flops(tokens, self.prompt + self.length / 2, weights))

    def decoding_bytes(self, weights: float) -> float:
        """What decoding must read, 2 bytes a number: all weights and every row's cache, once a token."""
        cache = 2 * self.layers * self.kv_heads * self.head_dim * (self.prompt + self.length / 2)
        return 2 * self.length * (weights + self.prompts * self.group * cache)


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median wall seconds of `work`, the device waited for; the first call is warm-up."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def wait(device: str) -> None:
    """Let the device finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def rates(device: str, size: int) -> tuple[float, float]:
    """FLOP/s of a square bfloat16 matrix product, and bytes per second read and written by a copy."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = 2 * size**3 * 10 / seconds(lambda: [a @ b for _ in range(10)], device, 5)
    c = torch.empty(16 * size * size, device=device, dtype=torch.bfloat16)
    d = torch.empty_like(c)
    return product, 2 * c.nbytes * 10 / seconds(lambda: [d.copy_(c) for _ in range(10)], device, 5)


def build(work: Work, folder: Path) -> str:
    """A model folder of that size, with the character tokenizer."""
    from transformers import Qwen3ForCausalLM

    from polyrl.pretrain.tiny import character_tokenizer, tiny_config

    shape = {name: getattr(work, name) for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "mlp")}
    settings = tiny_config(context=work.prompt + work.length, **shape)
    settings.vocab_size = work.vocabulary
    torch.manual_seed(0)
    Qwen3ForCausalLM(settings).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


def ours(work: Work, model: str, folder: Path, device: str) -> dict[str, float]:
    """Seconds of sampling and of the update in polyrl's loop: the second iteration, when all is warm."""
    from polyrl.runs import start_run
    from polyrl.runtime.config import PythonObjects, RunConfig
    from polyrl.tasks.language import Reward

    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (work.prompts + 16, work.prompt), generator=generator)
    rows = [{"prompt": "".join(map(chr, row))} for row in letters.tolist()]
    config = RunConfig(
        method="grpo",
        task="dataset",
        model=model,
        device=device,
        precision="bfloat16",
        budget="iterations=100",
        hyperparameters={
            "prompts_per_step": str(work.prompts),
            "completions_per_prompt": str(work.group),
            "minibatches": "1",
        },
        max_tokens=work.length,
        micro_batch_tokens=work.micro_batch_tokens,
        monitor_kl_every=0,
        tensorboard=False,
        from_python=("dataset", "reward"),
    )
    length = Reward("length", lambda completions, **_: [float(len(text)) for text in completions], 1.0)
    loop = start_run(config, folder, given=PythonObjects(dataset=rows, rewards=[length]))
    for _ in range(2):
        experience = loop.iterate()
        wait(device)
    metrics = loop.context.metrics
    tokens = int(experience["present"].sum())
    return {"sampling": metrics["seconds/collect"], "update": metrics["seconds/improve"], "tokens": tokens}


def theirs(work: Work, model: str, device: str) -> dict[str, float]:
    """The same with `generate` and padded forward passes of as many tokens at a time, with all logits."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 90, (work.prompts, work.prompt), generator=generator).to(device)
    prompts = prompts.repeat_interleave(work.group, 0)
    advantage = torch.randn(len(prompts), 1, generator=generator).to(device)
    ids = prompts

    @torch.no_grad()
    def sample() -> None:
        nonlocal ids
        with torch.autocast(device, torch.bfloat16):
            ids = policy.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=work.length,
                min_new_tokens=work.length, do_sample=True, top_k=0, pad_token_id=0,
            )  # fmt: skip

    def update() -> None:
        optimizer.zero_grad()
        for rows in torch.arange(len(ids), device=device).split(max(1, work.micro_batch_tokens // ids.shape[1])):
            with torch.autocast(device, torch.bfloat16):
                logits = policy(input_ids=ids[rows], use_cache=False).logits[:, work.prompt - 1 : -1]
            action = ids[rows, work.prompt :, None]
            logprob = logits.float().log_softmax(-1).gather(-1, action)[..., 0]
            (-(logprob * advantage[rows]).sum() / (work.length * len(ids))).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    sampling = seconds(sample, device, 1)
    return {"sampling": sampling, "update": seconds(update, device, 1), "tokens": work.length * len(prompts)}


def measure(work: Work, device: str, square: int) -> dict[str, Any]:
    """Everything, as the file has it; `square`: size of the matrices that the device's rates are measured with."""
    product, copy = rates(device, square)
    with TemporaryDirectory() as folder:
        model = build(work, Path(folder) / "model")
        sides = {"polyrl": ours(work, model, Path(folder) / "run", device)}
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        sides["transformers"] = theirs(work, model, device)
    head = work.vocabulary * work.hidden
    attention = work.hidden * work.head_dim * (2 * work.heads + 2 * work.kv_heads)
    weights = head + work.layers * (attention + 3 * work.hidden * work.mlp)
    for side in sides.values():
        side["share_of_bandwidth"] = work.decoding_bytes(weights) / side["sampling"] / copy
        side["share_of_peak"] = work.update_flops(weights) / side["update"] / product
    return {
        "parameters": weights,
        "flop_per_second": product,
        "bytes_per_second": copy,
        "sides": sides,
        "peak_bytes": peak,
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    rows = []
    for name, side in found["sides"].items():
        shares = [f"{100 * side[key]:.0f}%" for key in ("share_of_bandwidth", "share_of_peak")]
        rates = [f"{side['tokens'] / side['sampling']:,.0f}", f"{side['sampling']:.2f}", f"{side['update']:.2f}"]
        rows.append([name, *rates, *shares])
    products, copies = found["flop_per_second"] / 1e12, found["bytes_per_second"] / 1e9
    print(f"matrix products {products:.1f} TFLOP/s, copies {copies:.0f} GB/s")
    head = ["", "tokens/s", "sampling, s", "update, s", "bandwidth used in decoding", "peak used in the update"]
    print(table(head, rows))


def main() -> None:
    """Measure, print, write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here, so there is nothing to measure.")
        sys.exit(2)
    found = {"device": torch.cuda.get_device_name(), **measure(Work(), "cuda", square=8192)}
    show(found)
    write("gpu", {"polyrl": sys.executable}, {"qwen3-0.6b": found})


if __name__ == "__main__":
    main()
