"""Results of the benchmarks: what they were measured on, ratios with their spread, files and tables."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LANGUAGE = ("trl", "transformers", "torch", "numpy")
CONTROL = ("stable-baselines3", "gymnasium", "mujoco", "torch", "numpy")
PACKAGES = {
    "language": LANGUAGE,
    "learning": LANGUAGE,
    "control": CONTROL,
    "off_policy": CONTROL,
    "off_policy_learning": CONTROL,
    "offline_mixtures": CONTROL,
    "start": (*LANGUAGE, *CONTROL),
    "gpu": LANGUAGE,
    "rollout_routes": ("rl4co", "torchrl", "tensordict", "torch", "numpy"),
}
"""What decides the numbers of each file."""


CAPPED = "_avx2"
"""Behind the name of a file whose cases ran with the instruction sets capped at AVX2."""


def machine() -> dict[str, Any]:
    """Processor, cores, system."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def capped() -> bool:
    """Whether the libraries of this process and its children are told to do without AVX-512."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"


def instructions() -> str:
    """The widest instruction set that the measured processes take."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8") if cpu.is_file() else ""
    if capped():
        return "AVX2"
    return "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()


def commit() -> dict[str, Any]:
    """Commit of the checkout, and whether files differed from it."""

    def ask(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False)
        return told.stdout.strip()

    return {"commit": ask("rev-parse", "--short=12", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions in the environment of that Python; what is not installed there is left out."""
    code = (
        "import json, platform; from importlib.metadata import version, PackageNotFoundError\n"
        "found = {'python': platform.python_version()}\n"
        f"for name in {tuple(packages)!r}:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(told.stdout)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def write(name: str, pythons: dict[str, str], results: dict[str, Any], **facts: Any) -> Path:
    """Bring results/<name>.json up to date: cases that were measured now replace the old ones, each with its facts.

    Where the instruction sets are capped (`run.py`), the file is results/<name>_avx2.json.
    """
    file = RESULTS / f"{name}{CAPPED if capped() else ''}.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = {
        **commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": {**machine(), "instructions": instructions()},
        "versions": {side: versions(python, PACKAGES[name]) for side, python in pythons.items()},
        **facts,
    }
    kept = known.get("cases", {}) if known.get("format") == 1 else {}
    cases = {**kept, **{case: {"measured": now, **found} for case, found in results.items()}}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({"format": 1, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    return file


def shown(value: dict[str, float], digits: int = 2) -> str:
    """`2.31 (2.25-2.40)`."""
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first one to the left."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in [head, *rows]
    )
