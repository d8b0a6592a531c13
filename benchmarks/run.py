"""`make bench`: polyrl beside the plain way of doing the same work, in alternation, as ratios.

    sampling   the engine (one prefill a prompt, finished rows leave) against transformers' `generate`
    update     bucketed rows and chosen-token log-probabilities against one padded forward with all logits, seconds
    start-up   `polyrl --help` and `polyrl list`, seconds beside a bare Python

Same model, prompts, completions and thread count on both sides; the update's gradients are checked to agree. One
process, one thread; medians over `--repeats` rounds with the spread of the rounds. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import polyrl
from polyrl.policies.language import LanguagePolicy
from polyrl.policies.rows import micro_batches
from polyrl.policies.tiny import build_tiny
from polyrl.sampling.language import Sampling, TransformersEngine

SIZES = {
    # hidden, layers, heads, head_dim, mlp, prompts, completions a prompt, longest completion
    "tiny": ({"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 4, "mlp": 512}, 8, 8, 32),
    "small": ({"hidden": 384, "layers": 8, "heads": 6, "kv_heads": 6, "head_dim": 64, "mlp": 1536}, 4, 8, 128),
}


def rounds(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every way once a round, so that a busy neighbour disturbs all alike; the first round is warm-up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repeats + 1):
        for name, way in ways.items():
            value = way()
            if i:
                found[name].append(value)
    return found


def prompts_of(policy: LanguagePolicy, count: int) -> list[list[int]]:
    """Prompts of 8 to 14 characters."""
    return [policy.encode_prompt(f"echo {i % 10} x {7 * i % 31} =") for i in range(count)]


def sampling_rates(
    policy: LanguagePolicy, prompts: int, group: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Tokens per second of both ways; completions end where the model ends them."""
    ids = prompts_of(policy, prompts)
    engine = TransformersEngine(policy)
    end, pad = policy.tokenizer.eos_token_id, policy.pad_id
    width = max(map(len, ids))
    padded = torch.tensor([[pad] * (width - len(p)) + p for p in ids])
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in ids])
    seed = [0]

    def ours() -> float:
        seed[0] += 1
        began = time.process_time()
        batch = engine.generate(
            ids,
            Sampling(max_tokens=length),
            completions_per_prompt=group,
            generator=torch.Generator().manual_seed(seed[0]),
        )
        return int(batch["present"].sum()) / (time.process_time() - began)

    @torch.no_grad()
    def plain() -> float:
        torch.manual_seed(seed[0])
        began = time.process_time()
        out = policy.causal_lm.generate(
            input_ids=padded.repeat_interleave(group, 0),
            attention_mask=seen.repeat_interleave(group, 0),
            max_new_tokens=length,
            do_sample=True,
            top_k=0,
            eos_token_id=end,
            pad_token_id=pad,
        )[:, width:]
        return int((out != pad).sum()) / (time.process_time() - began)

    return rounds({"polyrl": ours, "transformers.generate": plain}, repeats)


def update_seconds(
    policy: LanguagePolicy, prompts: int, group: int, length: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of one forward and backward of a policy gradient over the same ragged completions, both ways."""
    generator = torch.Generator().manual_seed(0)
    batch = TransformersEngine(policy).generate(
        prompts_of(policy, prompts), Sampling(max_tokens=length), completions_per_prompt=group, generator=generator
    )
    lengths = (
        torch.empty(len(batch)).geometric_(2 / length, generator=generator).long().clamp(1, batch["action"].shape[1])
    )
    mask = torch.arange(batch["action"].shape[1])[None] < lengths[:, None]
    batch = batch.with_fields(present=mask, mask=mask)
    advantage = torch.randn(len(batch), 1, generator=generator)
    count = mask.sum()

    def gradient() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    def ours() -> float:
        policy.zero_grad()
        began = time.process_time()
        sizes = batch["prompt_mask"].sum(1) + batch["present"].sum(1)
        for rows in micro_batches(sizes, 2048):
            logprob = policy.evaluate(batch, rows=rows)["logprob"]
            (-(logprob * advantage[rows]).sum() / count).backward()
        return time.process_time() - began

    def plain() -> float:
        policy.zero_grad()
        began = time.process_time()
        ids = torch.cat([batch["prompt_ids"], batch["action"]], 1)
        seen = torch.cat([batch["prompt_mask"], mask], 1).long()
        where = (seen.cumsum(1) - 1).clamp(min=0)
        logits = policy.causal_lm(input_ids=ids, attention_mask=seen, position_ids=where, use_cache=False).logits
        width = batch["prompt_ids"].shape[1]
        logprob = logits[:, width - 1 : -1].log_softmax(-1).gather(-1, batch["action"][..., None])[..., 0]
        (-(logprob * mask * advantage).sum() / count).backward()
        return time.process_time() - began

    ours()
    first = gradient()
    plain()
    gap = float((first - gradient()).norm() / gradient().norm())
    assert gap < 1e-4, f"the two updates differ by {gap:.1e}: not the same work"
    return rounds({"polyrl": ours, "padded, all logits": plain}, repeats)


def start_seconds(repeats: int) -> dict[str, list[float]]:
    """Wall seconds of the commands that must answer at once."""

    def call(*words: str) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            return time.perf_counter() - began

        return run

    ways = {"polyrl --help": call("-m", "polyrl", "--help"), "polyrl list": call("-m", "polyrl", "list")}
    return rounds({**ways, "bare python": call("-c", "")}, repeats)


def spread(values: list[float]) -> str:
    """Median with the range of the rounds."""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows: list[dict[str, object]] = []
    for size in arguments.sizes:
        shape, prompts, group, length = SIZES[size]
        with tempfile.TemporaryDirectory() as folder:
            build_tiny(folder, 0, **shape)
            policy = LanguagePolicy.load(folder)
            work = f"{size}: {prompts} x {group} completions of <= {length} tokens"
            rates = sampling_rates(policy, prompts, group, length, arguments.repeats)
            ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
            rows.append({"what": "sampling", "work": work, "unit": "tokens/s", "values": rates, "ratios": ratios})
            taken = update_seconds(policy, prompts, group, length, arguments.repeats)
            ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
            rows.append({"what": "update", "work": work, "unit": "s", "values": taken, "ratios": ratios})
    rows.append({"what": "start-up", "work": "cold process", "unit": "s", "values": start_seconds(arguments.repeats)})
    for row in rows:
        print(f"\n{row['what']}  {row['work']}")
        for name, values in row["values"].items():  # type: ignore[attr-defined]
            print(f"  {name:<24} {spread(values)} {row['unit']}")
        if "ratios" in row:
            print(f"  polyrl is faster by       {spread(row['ratios'])}")  # type: ignore[arg-type]
    facts = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "polyrl": polyrl.__version__,
        "threads": 1,
        "clock": "process time (start-up: wall)",
        "repeats": arguments.repeats,
        "rows": rows,
    }
    out = Path(__file__).parent / "results" / "language.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out}")


if __name__ == "__main__":
    main()
