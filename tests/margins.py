"""`make margins`: every learning test with several seeds and instruction sets, what each reached and what it asks for.

python tests/margins.py [--seeds N] [WORD of a test's file]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
PROCESSORS = {
    "as it is": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""Environment variables that hold libraries to an instruction set, so that sums are rounded otherwise."""


def learning_tests(word: str = "") -> list[str]:
    """Every test that says what it `reached`."""
    found = []
    for file in sorted(TESTS.glob(f"test_*{word}*.py" if word else "test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                calls = [n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
                if "reached" in calls:
                    found.append(f"{file.name}::{node.name}")
    return found


def main() -> int:
    """Print a line for each quantity: least and largest value, what is asked, and how much of the room is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    values: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for processor, variables in PROCESSORS.items():
            for seed in range(asked.seeds):
                file = Path(folder) / f"{processor}-{seed}.jsonl"
                environment = {**os.environ, **variables, "POLYRL_TEST_SEED": str(seed), "POLYRL_MARGINS": str(file)}
                command = [sys.executable, "-m", "pytest", "-q", *learning_tests(asked.word)]
                done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
                print(f"{processor}, seed {seed}: {done.stdout.strip().splitlines()[-1]}", flush=True)
                count: dict[str, int] = defaultdict(int)
                for line in file.read_text(encoding="utf-8").splitlines():
                    record = json.loads(line)
                    key = (record["test"], count[record["test"]], record["least"])
                    count[record["test"]] += 1
                    values[key].append(record["found"])
    short = 0
    for (test, _, least), found in sorted(values.items()):
        short += min(found) < least
        print(f"{min(found):8.3f} to {max(found):8.3f}, asked {least:8.3f}, {len(found)} runs  {test}")
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
