"""`make mutants`: apply each single mutation of `mutants.py` to a copy of the package and see that its tests notice.

Each runs in a fork of a process that has imported the heavy libraries but nothing of polyrl, so that a mutation costs
what its tests cost. First the tests run on the package as it is, because a test that fails anyway notices nothing.

    python tests/mutate.py [--only WORD] [--workers N] [--least SHARE]
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutants import GROUPS, Group

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"
LIMIT = 300.0
"""Seconds after which tests that do not come back count as having noticed."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: below `src/polyrl`.
        old, new: text that stands there exactly once, and what takes its place.
        tests: arguments of pytest, file names below `tests`.
    """

    file: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        def short(text: str) -> str:
            line = re.sub(r"\s+", " ", text).strip()
            return line if len(line) <= 70 else line[:67] + "..."

        return f"{self.file}: {short(self.old)}  ->  {short(self.new) or '(nothing)'}"


def listed(groups: list[Group] = GROUPS) -> list[Mutant]:
    """Every mutation of the table."""
    return [Mutant(g.file, old, new, g.tests) for g in groups for old, new in g.changes]


def problems(mutant: Mutant) -> Iterator[str]:
    """What is wrong with an entry of the table: it no longer applies, or its tests are gone."""
    path = SOURCE / "polyrl" / mutant.file
    count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    if count != 1:
        yield f"{mutant}: stands {count} times in the file"
    if mutant.old == mutant.new:
        yield f"{mutant}: changes nothing"
    for word in shlex.split(mutant.tests):
        file, _, name = word.partition("::")
        if file.startswith("test_"):
            text = (TESTS / file).read_text(encoding="utf-8") if (TESTS / file).is_file() else ""
            if not text or (name and f"def {name.partition('[')[0]}(" not in text):
                yield f"{mutant}: no test {word}"


# --------------------------------------------------------------------------------------------------------- running


def run_tests(words: str, package: Path) -> int:
    """In a fork: run the tests on the package in `package`; pytest's exit code."""
    import pytest

    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.path.insert(0, str(package))
    os.environ["PYTHONPATH"] = str(package)
    os.chdir(TESTS)
    alone = f"--basetemp={package}-temporary"  # no other run of tests tidies it up
    return int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", alone, *shlex.split(words)]))


def start(words: str, package: Path) -> int:
    """Fork; return the child's number."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = run_tests(words, package)
        finally:
            os._exit(code)
    return child


def verdict(code: int | None) -> str:
    """What an exit code of pytest says; None: it took too long."""
    return {0: "survived", 1: "died", None: "died (too slow)"}.get(code, f"broke pytest (exit code {code})")


def warm() -> None:
    """Import what all children need, and nothing that is under test."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import gymnasium  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import tokenizers  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "polyrl" for name in sys.modules)


def play(jobs: list[Mutant | str], workers: int) -> Iterator[tuple[Mutant | str, str, float]]:
    """Run each mutant's tests, or tests on the unchanged package: what it was, the verdict, seconds."""
    waiting, running = [*reversed(jobs)], dict[int, tuple[Mutant | str, Path, float]]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as root:
        free = []
        for i in range(workers):
            copy = Path(root) / str(i)
            shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
            compileall.compile_dir(copy, quiet=2)  # once, and not in every fork: what is mutated is newer
            free.append(copy)
        sys.dont_write_bytecode = True  # a mutation of equal length within a second would not be seen
        while waiting or running:
            while waiting and free:
                job, copy = waiting.pop(), free.pop()
                if isinstance(job, Mutant):
                    path = copy / "polyrl" / job.file
                    path.write_text(path.read_text(encoding="utf-8").replace(job.old, job.new), encoding="utf-8")
                running[start(job if isinstance(job, str) else job.tests, copy)] = (job, copy, time.monotonic())
            for child, (job, copy, began) in list(running.items()):
                code: int | None = None
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - began < LIMIT:
                    continue
                else:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                del running[child]
                if isinstance(job, Mutant):
                    shutil.copyfile(SOURCE / "polyrl" / job.file, copy / "polyrl" / job.file)
                free.append(copy)
                yield job, verdict(code), time.monotonic() - began
            time.sleep(0.05)


def main() -> int:
    """Print what survives; 1 where too much does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose file or text holds this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.97, help="share that must die")
    asked = parser.parse_args()
    chosen = [m for m in listed() if asked.only in str(m) or asked.only in m.tests]
    stale = [text for mutant in listed() for text in problems(mutant)]
    if stale:
        print("\n".join(["The table does not fit the sources:", *stale]))
        return 1
    warm()
    failing = []
    for job, found, took in play(sorted({m.tests for m in chosen}), asked.workers):
        if found != "survived":
            failing.append(job)
            print(f"the tests fail without any mutation ({found}, {took:.0f} s): {job}", flush=True)
    survivors = []
    for count, (job, found, took) in enumerate(play([*chosen], asked.workers), 1):
        if not found.startswith("died") or job.tests in failing:  # type: ignore[union-attr]
            survivors.append(f"{found}: {job}\n    {job.tests}")  # type: ignore[union-attr]
        print(f"{count}/{len(chosen)} {found} ({took:.0f} s) {job}", flush=True)
    died = len(chosen) - len(survivors)
    print("\n".join(["", *survivors]))
    print(f"{died} of {len(chosen)} mutations died: {died / max(len(chosen), 1):.1%}")
    return int(died < asked.least * len(chosen))


if __name__ == "__main__":
    sys.exit(main())
