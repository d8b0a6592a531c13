"""Synthetic run folders in the format that the loop writes, for tests of the report and of the command line."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ARMS: dict[str, dict[str, float]] = {
    # gain: rise of accuracy; kl: distance at the end; tokens: response length; greedy: extra reward calls a sample
    "grpo": {"gain": 0.30, "kl": 6.0, "tokens": 46, "greedy": 0.0, "improve": 0.9},
    "remax": {"gain": 0.38, "kl": 9.0, "tokens": 41, "greedy": 0.25, "improve": 0.7},
    "reinforce++": {"gain": 0.29, "kl": 4.5, "tokens": 52, "greedy": 0.0, "improve": 0.8},
    "ppo": {"gain": 0.22, "kl": 3.0, "tokens": 49, "greedy": 0.0, "improve": 1.7},
}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "grpo": {"clipped-surrogate.clip_range": 0.2, "group-advantage.normalise": True},
    "remax": {"greedy-baseline.temperature": 0.0},
    "reinforce++": {"clipped-surrogate.clip_range": 0.2, "whitened-advantage.epsilon": 1e-8},
    "ppo": {"clipped-surrogate.clip_range": 0.2, "gae.gae_lambda": 0.95, "gae.gamma": 1.0, "critic.lr": 0.001},
}
SPENDING = ("samples", "tokens", "steps", "reward_calls", "seconds")
STAGES = ("collect", "score", "credit", "select", "improve", "evaluate")


def _samples(rng: random.Random, iteration: int, accuracy: float) -> list[dict[str, Any]]:
    rows = []
    for index in range(6):
        a, b = 12 + 7 * index, 31 + 5 * index
        right = rng.random() < accuracy
        answer = a + b if right else a + b + rng.choice((-10, -1, 1, 10))
        rows.append(
            {
                "iteration": iteration,
                "split": "test",
                "prompt": f"What is {a} + {b}?\nThink step by step, then answer.",
                "completion": f"First the tens: {a // 10 * 10} + {b // 10 * 10} = {a // 10 * 10 + b // 10 * 10}.\n"
                f"Then the ones: {a % 10} + {b % 10} = {a % 10 + b % 10}.\n  So the answer is {answer}.",
                "score": float(right),
                "correct": right,
                "expected": str(a + b),
            }
        )
    return rows


def write_run(
    folder: Path,
    label: str = "grpo",
    seed: int = 0,
    iterations: int = 60,
    per_iteration: int = 64,
    every: int = 5,
    status: str = "finished",
    stop: int | None = None,
    metric: str = "eval/accuracy",
    scale: float = 1.0,
    completion: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write one run folder; `stop` is the last iteration of a run that failed or was killed (`status="running"`)."""
    arm = ARMS.get(label, ARMS["grpo"])
    rng = random.Random(f"{label}-{seed}")
    gain, start = arm["gain"] + rng.gauss(0, 0.02), 0.212
    folder.mkdir(parents=True)
    last = iterations if stop is None else stop
    spent = dict.fromkeys(SPENDING, 0.0)
    stages = dict.fromkeys(STAGES, 0.0)
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for iteration in range(last + 1):
        progress = 1 - math.exp(-3.2 * iteration / iterations)
        accuracy = start + gain * progress
        row: dict[str, Any] = {"iteration": iteration}
        if iteration:
            length = arm["tokens"] * (1 + 0.25 * progress) + rng.gauss(0, 1.5)
            seconds = {
                "collect": 1.1 * length / 45 * rng.uniform(0.9, 1.15),
                "score": 0.05,
                "credit": 0.02,
                "select": 0.001,
                "improve": arm["improve"] * rng.uniform(0.9, 1.1),
            }
            spent["samples"] += per_iteration
            spent["tokens"] += round(per_iteration * length)
            spent["steps"] = spent["tokens"]
            spent["reward_calls"] += per_iteration * (1 + arm["greedy"])
            spent["seconds"] += sum(seconds.values())
            stages |= {name: stages[name] + value for name, value in seconds.items()}
            row |= {
                "reward": scale * (accuracy - 0.04 + rng.gauss(0, 0.035)),
                "reward_std": scale * (0.42 - 0.1 * progress + rng.gauss(0, 0.01)),
                "kl": arm["kl"] * progress**1.5 * rng.uniform(0.92, 1.08),
                "entropy": 0.62 - 0.3 * progress + rng.gauss(0, 0.012),
                "completions/mean_length": length,
                "loss/policy": rng.gauss(0, 0.01),
                **{f"seconds/{name}": value for name, value in seconds.items()},
            }
            if label != "remax":
                row["clip_ratio"] = 0.02 + 0.03 * progress + abs(rng.gauss(0, 0.004))
        if iteration % every == 0 or iteration == iterations:
            evaluated = 0.0 if iteration == 0 else rng.gauss(0, 0.012)
            row |= {metric: scale * (accuracy + evaluated), "eval/mean_length": arm["tokens"] * (1 + 0.25 * progress)}
            stages["evaluate"] += 0.8
            samples += _samples(rng, iteration, accuracy)
        row |= {**spent, "updates": iteration * 4}
        rows.append(row)
    if completion is not None:
        samples[-1]["completion"] = completion
    settings = {
        "polyrl": "0.1.0",
        "command": f"polyrl train {label} --task arithmetic --seed {seed}",
        "method": label,
        "label": label,
        "task": "arithmetic",
        "difficulty": 2,
        "model": "tiny-arithmetic",
        "seed": seed,
        "budget": {"samples": iterations * per_iteration},
        "hyperparameters": {"optimise.lr": 0.0003, "collect.temperature": 1.0, **HYPERPARAMETERS.get(label, {})},
        "evaluation": {"prompts": 200, "greedy": True, "seed": 1234, "split": "test"},
        "versions": {"python": "3.11.9", "torch": "2.9.0", "transformers": "5.1.0", "polyrl": "0.1.0"},
        "commit": "0f3c2d1",
        "device": "cpu",
        "threads": 1,
        "start": "sha256:5f1e0c77",
        **(config or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    evaluations = [row for row in rows if metric in row]
    summary: dict[str, Any] = {
        "status": status,
        "iteration": last,
        "spent": spent,
        "start": {metric: evaluations[0][metric]},
        "seconds_by_stage": stages,
        "warnings": ["iteration 12: the entropy fell below 0.3 nats per token"] if seed == 1 else [],
        "peak_memory_bytes": 410_000_000 + 30_000_000 * len(label) + rng.randrange(9_000_000),
    }
    if status == "finished":
        summary["final"] = {metric: evaluations[-1][metric]}
    if status == "failed":
        summary["error"] = "RewardError: the reward function returned NaN for sample 17 of iteration 23"
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def write_comparison(
    folder: Path,
    methods: Sequence[str] = tuple(ARMS),
    seeds: int = 5,
    failed: Sequence[tuple[str, int]] = (),
    killed: Sequence[tuple[str, int]] = (),
    stated: Mapping[str, Any] | None = None,
    **run: Any,
) -> Path:
    """Write a comparison folder with one run folder per method and seed; `run` goes to every `write_run`."""
    folder.mkdir(parents=True)
    metric = str((stated or {}).get("metric", "eval/accuracy"))
    for method in methods:
        for seed in range(seeds):
            ended: dict[str, Any] = {}
            if (method, seed) in failed:
                ended = {"status": "failed", "stop": 23}
            elif (method, seed) in killed:
                ended = {"status": "running", "stop": 31}
            write_run(folder / f"{method}-seed{seed}", method, seed, metric=metric, **ended, **run)
    content = {
        "command": f"polyrl compare {' '.join(methods)} --task arithmetic --seeds {seeds}",
        "task": "arithmetic",
        "budget": {"samples": 3840},
        "methods": list(methods),
        "seeds": list(range(seeds)),
        "started": "2026-11-20T09:00:00",
        "finished": "2026-11-20T10:12:00",
        "metric": metric,
        **(stated or {}),
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder
