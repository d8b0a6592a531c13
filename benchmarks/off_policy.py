"""The off-policy benchmark: SAC, TD3 and DQN beside Stable-Baselines3's, time of the whole loop per environment step.

What they learn is compared by off_policy_learning.py.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from off_policy_work import CASES
from peers import BUILD, peer_python
from results import shown, spread, table, write
from turns import REST, alternate, started

HERE = Path(__file__).resolve().parent
FOLDER = BUILD / "bench"
OURS, PEER = "polyrl", "sb3"
PARTS = ("collecting", "update", REST)
WARM_UP = 2
"""Unmeasured turns at first: random steps that are not learned from, caches, allocators."""


def command(side: str, name: str) -> list[str]:
    """What starts a side."""
    if side == OURS:
        return [sys.executable, str(HERE / "off_policy_polyrl.py"), name, "--out", str(FOLDER / name / "run")]
    return [peer_python("sb3"), str(HERE / "off_policy_sb3.py"), name]


def measure(name: str, repeats: int) -> dict[str, Any]:
    """One case: rounds in alternation, seconds of an environment step in each turn, ratios by round.

    Raises:
        RuntimeError: a side did not update as often as the other.
    """
    commands = {side: command(side, name) for side in (PEER, OURS)}
    with started(commands, lambda side: FOLDER / name / f"{side}.log") as processes:
        turns = alternate(processes, repeats, 1, warm_up=WARM_UP)
    seconds = {side: [step_seconds(turn) for turn in found] for side, found in turns.items()}
    sides = {side: summary(turns[side], seconds[side]) for side in turns}
    done = {side: (s["steps"], s["updates"]) for side, s in sides.items()}
    if done[PEER] != done[OURS]:
        raise RuntimeError(f"the sides of {name} do not do the same work: steps and updates of a turn are {done}")
    ratios = [theirs / ours for theirs, ours in zip(seconds[PEER], seconds[OURS], strict=True)]
    return {"goal": CASES[name].goal, "sides": sides, "ratios": {PEER: spread(ratios)}}


def step_seconds(turn: dict[str, Any]) -> float:
    """Processor seconds of one environment step, with its share of the updates."""
    return float(sum(row["seconds"] for row in turn["rows"]) / sum(row["steps"] for row in turn["rows"]))


def summary(turns: Sequence[dict[str, Any]], seconds: Sequence[float]) -> dict[str, Any]:
    """Of one side: seconds a step, their parts, work done in a turn, memory."""
    rows = [row for turn in turns for row in turn["rows"]]
    steps = sum(row["steps"] for row in rows)
    return {
        "seconds_a_step": spread(seconds),
        "parts": {part: sum(row["parts"].get(part, 0.0) for row in rows) / steps for part in PARTS},
        "steps": statistics.fmean(row["steps"] for row in rows),
        "updates": statistics.fmean(row["updates"] for row in rows),
        "peak_mib": max(turn["peak_mib"] for turn in turns),
    }


def product() -> float:
    """Seconds of one product of two matrices of 256 by 256 float32 numbers, of which these updates are made."""
    import torch

    torch.set_num_threads(1)
    a, b, out = (torch.randn(256, 256) for _ in range(3))
    found = []
    for _ in range(600):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def print_case(name: str, found: dict[str, Any]) -> None:
    """A table of one case."""
    case = CASES[name]
    print(f"\n{name}: {case.setting.method.upper()} on {case.environment}, networks {case.setting.network}")
    rows = []
    for side, s in found["sides"].items():
        took = {key: 1000 * value for key, value in s["seconds_a_step"].items()}
        parts = [f"{1000 * s['parts'][part]:.3f}" for part in PARTS]
        done = [f"{s['steps']:.0f}", f"{s['updates']:.0f}", f"{s['peak_mib']:.0f}"]
        rows.append([side, shown(took, 3), *parts, *done])
    head = ["", "ms a step", *(f"{part}, ms" for part in PARTS), "steps a turn", "updates", "peak MiB"]
    print(table(head, rows))
    print(f"  {shown(found['ratios'][PEER])} times faster than {PEER}, goal {case.goal:g}", flush=True)


def main(only: Sequence[str], repeats: int, quick: bool) -> None:
    """Measure cases, print and write them."""
    for name in only or CASES:
        found = measure(name, repeats)
        print_case(name, found)
        if not quick:
            used = {PEER: peer_python("sb3"), OURS: sys.executable}
            work = {"threads": 1, "rounds": repeats, "product": product(), "setting": vars(CASES[name].setting)}
            write("off_policy", used, {name: found}, **work)
