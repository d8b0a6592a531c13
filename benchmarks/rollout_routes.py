"""Building solutions of routing problems: environment steps a second of polyrl beside RL4CO's, in alternation.

    python benchmarks/rollout_routes.py [CASE ...] [--repeats N] [--quick]

Both sides make random instances and sample a solution of each with an attention model of the same sizes, on one thread.
A step is one decision in one instance. `--quick` writes no results.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from peers import BUILD, peer_python
from results import shown, spread, table, write
from rollout_routes_work import CASES
from turns import REST, alternate, started

HERE = Path(__file__).resolve().parent
FOLDER = BUILD / "bench" / "rollout_routes"
SIDES = ("rl4co", "polyrl")


def command(side: str, name: str) -> list[str]:
    """What starts a side."""
    python = sys.executable if side == "polyrl" else peer_python("rl4co")
    return [python, str(HERE / f"rollout_routes_{side}.py"), name]


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Steps per processor second of each round, their ratio, and where the time goes."""
    commands = {side: command(side, name) for side in SIDES}
    with started(commands, lambda side: FOLDER / f"{name}-{side}.log") as processes:
        facts = {side: process.facts for side, process in processes.items()}
        turns = alternate(processes, repeats, 1, warm_up=1)
    rows = {side: [turn["rows"][0] for turn in turns[side]] for side in SIDES}
    rates = {side: [row["steps"] / row["seconds"] for row in rows[side]] for side in SIDES}
    return {
        "goal": CASES[name].goal,
        "sides": {
            side: {
                **facts[side],
                "steps_per_second": spread(rates[side]),
                "steps": statistics.fmean(row["steps"] for row in rows[side]),
                "cost": statistics.fmean(row["cost"] for row in rows[side]),
                "parts": {
                    part: statistics.median(row["parts"].get(part, 0.0) for row in rows[side])
                    for part in ("instances", REST)
                },
                "peak_mib": max(turn["peak_mib"] for turn in turns[side]),
            }
            for side in SIDES
        },
        "ratio": spread([ours / theirs for theirs, ours in zip(rates["rl4co"], rates["polyrl"], strict=True)]),
    }


def main() -> None:
    """Measure cases, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}  [all]")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of turns  [7]")
    parser.add_argument("--quick", action="store_true", help="writes no results")
    given = parser.parse_args()
    if wrong := [name for name in given.cases if name not in CASES]:
        parser.error(f"there is no case {wrong[0]!r}; there are {', '.join(CASES)}")
    for name in given.cases or CASES:
        found = measure(name, given.repeats)
        print(f"\n{name}: {CASES[name].batch} instances, sampled by an attention model, one thread")
        head = ["", "steps/s", "making instances, s", "the rest, s", "steps", "cost", "parameters", "peak MiB"]
        lines = [
            [
                side,
                shown(s["steps_per_second"], 0),
                *(f"{s['parts'][part]:.2f}" for part in ("instances", REST)),
                f"{s['steps']:.0f}",
                f"{s['cost']:.2f}",
                f"{s['parameters']:.0f}",
                f"{s['peak_mib']:.0f}",
            ]
            for side, s in found["sides"].items()
        ]
        print(table(head, lines))
        print(f"  {shown(found['ratio'])} times faster than RL4CO, goal {found['goal']:g}")
        if not given.quick:
            used = {"rl4co": peer_python("rl4co"), "polyrl": sys.executable}
            write("rollout_routes", used, {name: found}, threads=1, rounds=given.repeats)


if __name__ == "__main__":
    main()
