"""Start-up: wall seconds that a person waits for a command to answer, for a first iteration, for a short training."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from control_work import CASES as CONTROL
from language import prepare
from peers import BUILD, HERE, peer_python
from results import shown, spread, table, write
from turns import one_thread

FOLDER = BUILD / "bench" / "start"
POLYRL = [sys.executable, "-m", "polyrl"]
LIMITS = {
    "import polyrl": 0.3,
    "polyrl --help": 0.3,
    "polyrl list": 0.3,
    "importing torch and a Llama of transformers": None,
    "polyrl train, first evaluation": None,
    "polyrl train, first iteration": 5.0,
    "100,000 steps of CartPole, polyrl": None,
    "100,000 steps of CartPole, polyrl with one evaluation": None,
    "100,000 steps of CartPole, Stable-Baselines3": None,
}
"""What is measured, and seconds that it may take."""


def seconds_of(words: Sequence[str]) -> float:
    """Wall seconds of a command."""
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=one_thread())
    return time.perf_counter() - began


def import_seconds() -> float:
    """What `-X importtime` says of `import polyrl`."""
    words = [sys.executable, "-X", "importtime", "-c", "import polyrl"]
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=one_thread()).stderr
    total = re.search(r"\| +(\d+) \| polyrl$", told, re.MULTILINE)
    assert total is not None
    return int(total[1]) / 1e6


def language_start() -> tuple[float, float]:
    """Wall seconds from the command to the first two lines of metrics.jsonl: first evaluation, first iteration."""
    model, rows = prepare("grpo-tiny")
    out = FOLDER / "grpo"
    shutil.rmtree(out, ignore_errors=True)
    words = [*POLYRL, "train", "grpo", "--dataset", str(rows), "--model", model, "--out", str(out), "--quiet"]
    words += ["--reward", f"{HERE / 'language_work.py'}:echo", "--max-tokens", "32", "--budget", "updates=1000"]
    began, reached = time.perf_counter(), list[float]()
    with subprocess.Popen(words, env=one_thread(), stdout=subprocess.DEVNULL) as process:
        while len(reached) < 2:
            time.sleep(0.005)
            written = out / "metrics.jsonl"
            lines = written.read_bytes().count(b"\n") if written.is_file() else 0
            reached += [time.perf_counter() - began] * (lines - len(reached))
            if process.poll() is not None and len(reached) < 2:
                raise RuntimeError(f"{' '.join(words)} ended with {process.returncode} before its first iteration")
        process.terminate()
    return reached[0], reached[1]


def cartpole(*more: str) -> float:
    """Wall seconds of `polyrl train ppo` for 100,000 steps of CartPole with the zoo's hyperparameters."""
    setting = CONTROL["cartpole-zoo"].setting
    options = [w for k, v in setting.for_polyrl().items() for w in (f"--{k.replace('_', '-')}", str(v))]
    out = ["--out", str(FOLDER / "ppo"), "--overwrite", "--quiet", "--budget", f"steps={setting.steps}"]
    return seconds_of([*POLYRL, "train", "ppo", "--task", "CartPole-v1", *options, *out, *more])


def peer_cartpole() -> float:
    """The same with a script of Stable-Baselines3, which evaluates and saves nothing."""
    return seconds_of([peer_python("sb3"), str(HERE / "control_sb3.py"), "cartpole-zoo", "--whole"])


def main(only: Sequence[str], repeats: int, quick: bool) -> None:
    """Measure in rounds, print, write."""
    names = list(LIMITS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    ways: dict[str, Callable[[], float]] = {
        "import polyrl": import_seconds,
        "polyrl --help": lambda: seconds_of([*POLYRL, "--help"]),
        "polyrl list": lambda: seconds_of([*POLYRL, "list"]),
        # what every program that loads such a model waits for, polyrl or not
        names[3]: lambda: seconds_of([sys.executable, "-c", "import torch; from transformers import LlamaForCausalLM"]),
        "100,000 steps of CartPole, polyrl": cartpole,
        "100,000 steps of CartPole, polyrl with one evaluation": lambda: cartpole("--evaluations", "1"),
        "100,000 steps of CartPole, Stable-Baselines3": peer_cartpole,
    }
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(way())
        first, second = language_start()
        seconds[names[4]].append(first)
        seconds[names[5]].append(second)
    found: dict[str, Any] = {n: {"seconds": spread(seconds[n]), "limit": limit} for n, limit in LIMITS.items()}
    rows = [[name, shown(f["seconds"]), "-" if f["limit"] is None else f"{f['limit']:g}"] for name, f in found.items()]
    print("\nstart-up, wall seconds")
    print(table(["", "seconds", "limit"], rows))
    if not quick:
        write("start", {"polyrl": sys.executable, "sb3": peer_python("sb3")}, found, rounds=repeats, threads=1)
