"""The control benchmark: PPO of polyrl beside Stable-Baselines3's, in steps per second of the whole training loop."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_work import CASES, PEERS
from peers import BUILD, peer_python
from results import shown, spread, table, write
from turns import REST, alternate, started

HERE = Path(__file__).resolve().parent
FOLDER = BUILD / "bench"
OURS = "polyrl"
PARTS = ("collecting", "update", REST)
WARM_UP = 2
"""Turns before the first measured one: caches, allocators, running statistics."""


def command(side: str, name: str) -> list[str]:
    """What starts a side."""
    if side == OURS:
        return [sys.executable, str(HERE / "control_polyrl.py"), name, "--out", str(FOLDER / name / "run")]
    return [peer_python("sb3"), str(HERE / "control_sb3.py"), name, "--peer", side]


def measure(name: str, repeats: int, quick: bool) -> dict[str, Any]:
    """One case: rounds in alternation, steps per second of each turn, ratios by round."""
    case = CASES[name]
    sides = [*case.peers, OURS]
    with started({side: command(side, name) for side in sides}, lambda s: FOLDER / name / f"{s}.log") as processes:
        iteration = int(processes[OURS].facts["iteration"])
        count = max(1, (case.steps // 4 if quick else case.steps) // iteration)
        turns = alternate(processes, repeats, count, warm_up=WARM_UP * count)
    rates = {side: [rate(turn) for turn in turns[side]] for side in sides}
    return {
        "goal": case.goal,
        "sides": {side: summary(turns[side], rates[side]) for side in sides},
        "ratios": {
            peer: spread([ours / theirs for theirs, ours in zip(rates[peer], rates[OURS], strict=True)])
            for peer in case.peers
        },
    }


def rate(turn: dict[str, Any]) -> float:
    """Steps per processor second of one turn."""
    return float(sum(row["steps"] for row in turn["rows"]) / sum(row["seconds"] for row in turn["rows"]))


def summary(turns: Sequence[dict[str, Any]], rates: Sequence[float]) -> dict[str, Any]:
    """Of one side: steps per second, microseconds a step by part, work done, memory."""
    rows = [row for turn in turns for row in turn["rows"]]
    steps = sum(row["steps"] for row in rows)
    return {
        "steps_per_second": spread(rates),
        "wall_steps_per_second": spread(
            [sum(r["steps"] for r in t["rows"]) / sum(r["wall"] for r in t["rows"]) for t in turns]
        ),
        "parts": {part: sum(row["parts"].get(part, 0.0) for row in rows) / steps for part in PARTS},
        "steps": statistics.fmean(row["steps"] for row in rows),
        "updates": statistics.fmean(row["updates"] for row in rows),
        "peak_mib": max(turn["peak_mib"] for turn in turns),
    }


def print_case(name: str, found: dict[str, Any]) -> None:
    """A table of one case."""
    case = CASES[name]
    print(f"\n{name}: PPO on {case.environment}, networks {case.setting.network}")
    rows = []
    for side, s in found["sides"].items():
        parts = [f"{1e6 * s['parts'][part]:.1f}" for part in PARTS]
        done = [f"{s['steps']:.0f}", f"{s['updates']:.0f}", f"{s['peak_mib']:.0f}"]
        rows.append([side, shown(s["steps_per_second"], 0), *parts, *done])
    head = ["", "steps/s", *(f"{part}, us a step" for part in PARTS), "steps an iteration", "updates", "peak MiB"]
    print(table(head, rows))
    for peer, ratio in found["ratios"].items():
        goal = f", goal {case.goal:g}" if peer == case.peers[0] else ""
        print(f"  {shown(ratio)} times faster than {peer}{goal}")


def main(only: Sequence[str], repeats: int, quick: bool) -> None:
    """Measure cases, print and write them."""
    for name in only or CASES:
        found = measure(name, repeats, quick)
        print_case(name, found)
        if not quick:
            used = {**dict.fromkeys(CASES[name].peers, peer_python("sb3")), OURS: sys.executable}
            work = {"peers": {peer: PEERS[peer] for peer in CASES[name].peers}, "threads": 1, "rounds": repeats}
            write("control", used, {name: found}, **work)
