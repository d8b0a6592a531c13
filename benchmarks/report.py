"""What a page of many long runs costs: processor time and memory of `polyrl report` and `polyrl list`.

    python benchmarks/report.py [--runs 50] [--iterations 5000]

The runs are synthetic, in the format of the loop's (tests/run_folders.py). Nothing is written to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import one_thread

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("grpo", "remax", "reinforce++", "ppo")
MEASURE = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def cost_of(*words: str) -> tuple[float, float]:
    """Processor seconds and peak memory, MiB (on Linux), of a command of polyrl's."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "polyrl", *words]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_thread()).stdout
    seconds, peak = json.loads(told)
    return float(seconds), float(peak)


def main() -> None:
    """Write the runs, and print what reading them costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=5_000)
    given = parser.parse_args()
    sys.path.insert(0, os.fspath(ROOT / "tests"))
    from run_folders import write_run

    with tempfile.TemporaryDirectory() as home:
        folders = []
        for number in range(given.runs):
            method, seed = METHODS[number % len(METHODS)], number // len(METHODS)
            folder = Path(home) / f"{method}-{seed}"
            folders.append(str(write_run(folder, method, seed, iterations=given.iterations, every=100)))
        cost_of("list")  # what it keeps is read again only where a source has changed
        commands = {
            f"report of {given.runs} runs of {given.iterations:,} iterations": (
                "report",
                *folders,
                "--out",
                f"{home}/page.html",
            ),
            "list": ("list",),
        }
        for name, words in commands.items():
            seconds, peak = cost_of(*words)
            print(f"{name}: {seconds:.2f} s of processor time, {peak:.0f} MiB")


if __name__ == "__main__":
    main()
