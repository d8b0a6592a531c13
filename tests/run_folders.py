"""Synthetic run folders in the format that the loop writes, for tests of the report and of the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polyrl.runtime.metric import Metric

ARMS: dict[str, dict[str, float]] = {
    # gain: rise of accuracy; kl: distance at the end; tokens: response length; greedy: extra reward calls a sample
    "grpo": {"gain": 0.30, "kl": 6.0, "tokens": 46, "greedy": 0.0, "improve": 0.9},
    "remax": {"gain": 0.38, "kl": 9.0, "tokens": 41, "greedy": 0.25, "improve": 0.7},
    "reinforce++": {"gain": 0.29, "kl": 4.5, "tokens": 52, "greedy": 0.0, "improve": 0.8},
    "ppo": {"gain": 0.22, "kl": 3.0, "tokens": 49, "greedy": 0.0, "improve": 1.7},
}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "grpo": {"clipped-surrogate.clip_range": 0.2, "group-advantage.normalize": True},
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
        "hyperparameters": {"optimize.lr": 0.0003, "collect.temperature": 1.0, **HYPERPARAMETERS.get(label, {})},
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


# ---- the other domains -----------------------------------------------------------------------------------------------

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Domain:
    """A comparison of a domain: how its metric moves by arm, and what its runs log beside it."""

    name: str
    task: str
    metric: Metric
    unit: str
    """The budget's unit; every iteration spends `per_iteration` of it."""
    per_iteration: int
    arms: dict[str, Callable[[float, random.Random], float]]
    """Method -> its metric at a share of the budget, with the noise of a seed."""
    logs: Callable[[float, random.Random], Numbers]
    samples: Callable[[int, float, random.Random], Numbers]


def _rising(start: float, end: float, rate: float, noise: float) -> Callable[[float, random.Random], float]:
    return lambda share, rng: end + (start - end) * math.exp(-rate * share) + rng.gauss(0, noise) * (0.2 + share)


def _shrinking(start: float, decades: float, noise: float) -> Callable[[float, random.Random], float]:
    return lambda share, rng: start * 10 ** (-decades * share + rng.gauss(0, noise) * share)


DOMAINS = {
    "control": Domain(
        name="control",
        task="CartPole-v1",
        metric=Metric("eval/return", "return", lines={"solved": 475.0}, target="solved"),
        unit="steps",
        per_iteration=2048,
        arms={
            "ppo": lambda share, rng: min(500.0, _rising(21, 520, 5, 14)(share, rng)),
            "ppo+no-clip": lambda share, rng: min(500.0, _rising(21, 430, 3, 30)(share, rng)),
        },
        logs=lambda share, rng: {
            "episode/return": 20 + 440 * share + rng.gauss(0, 9),
            "episode/length": 20 + 440 * share,
            "entropy": 0.69 - 0.3 * share,
            "approx_kl": 0.008 + abs(rng.gauss(0, 0.002)),
            "clip_ratio": 0.08 + 0.02 * share,
            "value/explained_variance": -0.1 + 0.95 * share,
            "learning_rate": 3e-4 * (1 - share),
            "grad_norm/policy": 0.4 + abs(rng.gauss(0, 0.05)),
            "loss/clipped-surrogate": -0.01 + rng.gauss(0, 0.002),
            "loss/value-loss": 3 - 2 * share,
            "steps_per_second": 9000 + rng.gauss(0, 300),
        },
        samples=lambda index, value, rng: {
            "episode": index,
            "return": round(value + rng.gauss(0, 5), 1),
            "length": int(value),
            "ended": "truncated",
            "first_observation": [0.01, -0.02, 0.03, 0.04],
        },
    ),
    "operations": Domain(
        name="operations",
        task="lost-demand",
        metric=Metric(
            "eval/cost",
            "cost",
            "per period",
            higher_is_better=False,
            lines={"optimum": 6.0936, "best base stock": 6.315, "best capped base stock": 6.12},
            target="optimum",
        ),
        unit="samples",
        per_iteration=512,
        arms={"hdpo": _rising(31.5, 6.108, 14, 0.006), "reinforce": _rising(31.5, 6.21, 9, 0.05)},
        logs=lambda share, rng: {
            "cost": 6.4 + 20 * math.exp(-9 * share),
            "loss": 6.4 + 20 * math.exp(-9 * share),
            "grad_norm/policy": 0.3 + abs(rng.gauss(0, 0.04)),
            "learning_rate": 0.003,
        },
        samples=lambda index, value, rng: {
            "scenario": index,
            "cost": round(value + rng.gauss(0, 0.3), 3),
            "mean_inventory": round(4 + rng.random(), 2),
            "stockouts": rng.randrange(40),
            "orders": [5, 4, 6, 5],
        },
    ),
    "theory": Domain(
        name="theory",
        task="random-game",
        metric=Metric("eval/kl_to_nash", "KL to the Nash policy", "nats", higher_is_better=False, scale="log"),
        unit="reward_calls",
        per_iteration=2,
        arms={"nash-mp": _shrinking(0.062, 6.6, 0.15), "nash-md": _shrinking(0.062, 1.7, 0.1)},
        logs=lambda share, rng: {"eval/exploitability": 0.036 * 10 ** (-5 * share), "entropy": 1.09 - 0.1 * share},
        samples=lambda index, value, rng: {"action": index, "policy": round(rng.random(), 3), "nash": 0.375327},
    ),
}


def write_domain(
    folder: Path, domain: str, seeds: int = 5, iterations: int = 48, every: int = 4, **metric: Any
) -> Path:
    """Write a comparison of `control`, `operations` or `theory`; `metric` changes fields of its metric."""
    of = DOMAINS[domain]
    judged = dataclasses.replace(of.metric, **metric)
    folder.mkdir(parents=True)
    budget = {of.unit: iterations * of.per_iteration}
    for label, moves in of.arms.items():
        for seed in range(seeds):
            rng = random.Random(f"{domain}-{label}-{seed}")
            run = folder / f"{label}-seed{seed}"
            run.mkdir()
            rows, samples = [], []
            spent = {"samples": 0, "tokens": 0, "steps": 0, "reward_calls": 0, "seconds": 0.0, "updates": 0}
            for iteration in range(iterations + 1):
                share = iteration / iterations
                row: Numbers = {"iteration": iteration}
                if iteration:
                    spent |= {of.unit: spent[of.unit] + of.per_iteration, "updates": spent["updates"] + 10}
                    if of.unit == "steps":
                        spent["samples"] += 8
                    spent["seconds"] += 0.2 + 0.02 * rng.random()
                    row |= {**of.logs(share, rng), "seconds/collect": 0.15, "seconds/improve": 0.05}
                if iteration % every == 0:
                    row[judged.key] = moves(share, rng)
                    samples += [{"iteration": iteration, **of.samples(i, row[judged.key], rng)} for i in range(3)]
                rows.append({**row, **spent})
            settings = {
                "method": label,
                "label": label,
                "domain": domain,
                "task": of.task,
                "seed": seed,
                "budget": budget,
                "metric": dataclasses.asdict(judged),
                "hyperparameters": {"optimize.learning_rate": 0.0003, "mlp.hidden": "64x64"},
                "evaluation": {"episodes": 100},
                "device": "cpu",
                "threads": 1,
                "start": "",
            }
            evaluated = [row for row in rows if judged.key in row]
            summary = {
                "status": "finished",
                "iteration": iterations,
                "spent": spent,
                "start": {judged.key: evaluated[0][judged.key]},
                "final": {judged.key: evaluated[-1][judged.key]},
                "seconds_by_stage": {"collect": 0.15 * iterations, "improve": 0.05 * iterations, "evaluate": 1.0},
                "peak_memory_bytes": 300_000_000,
            }
            (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
            (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
            (run / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in samples), encoding="utf-8")
            (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    stated = {
        "command": f"polyrl compare {' '.join(of.arms)} --task {of.task}",
        "domain": domain,
        "task": of.task,
        "budget": budget,
        "methods": list(of.arms),
        "seeds": list(range(seeds)),
        **judged.stated(),
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(stated, sort_keys=False), encoding="utf-8")
    return folder
