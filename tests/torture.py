"""Random kills over every method: whatever moment a run is killed at, resumed it ends with the same numbers.

    python tests/torture.py --kills 200            # `make torture`
    python tests/torture.py --kills 20 --methods ppo,grpo --seed 3

For each method one run on a tiny budget goes through undisturbed. Then others of the same command are killed: at a
random step on the disk (a file flushed, renamed or removed, a folder made; SIGKILL), or after a random share of the
processor time that the run takes (SIGPROF, which nothing handles: the kernel ends the process wherever it is). What is
left is resumed, and often killed again while it resumes, up to three times in a row. At last it is left to finish, and
its metrics (but for seconds), its samples, its summary and its models must be the undisturbed run's to the last bit,
with no file too many or too few.

Every process is a fork of one that has imported everything, so that a kill costs a fraction of a second. Seeds are
fixed; `--seed` gives other moments. Not part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

MOST_IN_A_ROW = 3
FEW = ["--evaluations", "2", "--checkpoint-every", "2", "--quiet", "--no-tensorboard"]
SIZES = {
    "prompts_per_step": "2",
    "completions_per_prompt": "2",
    "continuations": "2",
    "problems": "4",
    "solutions": "2",
    "states_per_step": "2",
    "pairs_per_step": "2",
    "environments": "2",
    "steps_per_environment": "16",
    "epochs": "1",
    "minibatches": "1",
    "demonstrations": "8",
    "reward_pairs": "4",
    "preferences": "8",
    "ptx_rows": "2",
    "critic_pretraining": "2",
    "window": "4",
    "scenarios": "4",
    "periods": "10",
    "dropout_passes": "2",
    **{"turns": "25", "random_steps": "10", "learning_starts": "20", "batch_size": "16", "gradient_steps": "3"},
}
"""Hyperparameters that only cost time, where a method has them."""
OTHER_SIZES = {
    "online-dpo": {"completions_per_prompt": "2"},
    "pf-ppo": {"completions_per_prompt": "3"},
    "d3s": {"prompts_per_step": "4", "completions_per_prompt": "4"},
}
TASKS = {"addition": "reverse(difficulty=3)", "sort-pairs": "sort-pairs(pairs=24)"}
"""Quicker tasks of the same kind."""


@dataclass(frozen=True)
class Case:
    """A method in one form."""

    name: str
    line: list[str]


@dataclass
class Tally:
    """What came of it."""

    kills: int = 0
    in_resume: int = 0
    in_a_row: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)


def cases(names: list[str], model: Path) -> list[Case]:
    """Every method of the catalogue, in every form, on a tiny budget."""
    from control_environments import pendulum_file
    from polyrl import catalogue

    found = []
    for slug, variants in catalogue.variants().items():
        if names and slug not in names:
            continue
        for info in variants:
            task = (
                catalogue.default_task(slug) if len(variants) == 1 else {"control": "CartPole-v1"}.get(info.domain, "")
            )
            task = task or catalogue.default_task(slug)
            recipe = catalogue.build(slug, {}, domain=info.domain)
            has = {key.rpartition(".")[2] for key in recipe.hyperparameters()}
            sizes = {**SIZES, **OTHER_SIZES.get(slug, {})}
            more = [w for k, v in sizes.items() if k in has for w in (f"--{k.replace('_', '-')}", v)]
            if info.domain == "language":
                more += ["--eval-prompts", "4"]
                if task == "addition":
                    more += ["--model", str(model), "--max-tokens", "6"]
            elif info.domain != "theory":
                more += ["--eval-episodes", "2"]
            if any(source.from_dataset for source in recipe.sources.values()):
                more += ["--dataset", str(pendulum_file(model.parent))]
            count = "40" if info.domain == "theory" else "5"
            line = ["train", slug, "--task", TASKS.get(task, task), "--budget", f"iterations={count}", *FEW, *more]
            name = slug if len(variants) == 1 else f"{slug} ({info.domain})"
            found.append(Case(name, line))
    return found


# ------------------------------------------------------------------------------------------------------- one process


def forked(work: Callable[[], None], log: Path) -> int:
    """Do something in a fork of this process, its output in a file; return how it ended, as `os.waitpid` has it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


class Disk:
    """Counts the steps of this process that touch the disk, and kills it at one of them."""

    def __init__(self, at: int = 0):
        self.count, self.at = 0, at
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call


def command(words: list[str]) -> None:
    """Run a command of the command line."""
    from polyrl.cli.main import polyrl

    polyrl.main(words, standalone_mode=False)


# ------------------------------------------------------------------------------------------------------ one method


def contents(run: Path) -> dict[str, Any]:
    """Everything of a run that must not differ: by file, without times and without what names the machine."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in run.rglob("*") if p.is_file()):
        name = str(file.relative_to(run))
        data = file.read_bytes()
        if name.endswith(".jsonl"):
            data = json.dumps([_timeless(json.loads(line)) for line in data.split(b"\n")[:-1]]).encode()
        elif name == "summary.json":
            summary = json.loads(data)
            kept = {k: summary.get(k) for k in ("status", "iteration", "start", "final", "warnings", "error")}
            data = json.dumps([kept, _timeless(summary["spent"])]).encode()
        elif name == "config.yaml" or file.name == "state.json":
            data = b""
        found[name] = data
    return found


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    times = ("seconds", "tokens_per_second", "steps_per_second", "updates_per_second")
    return {k: v for k, v in record.items() if k not in times and not k.startswith("seconds/")}


class Method:
    """A method that is killed again and again."""

    def __init__(self, case: Case, folder: Path):
        """Let one run go through, and count its steps.

        Raises:
            RuntimeError: it does not go through.
        """
        self.case, self.folder = case, folder
        folder.mkdir(parents=True)
        whole, counted = folder / "whole", folder / "counted.json"

        def work() -> None:
            disk = Disk()
            command([*case.line, "--out", str(whole)])
            used = resource.getrusage(resource.RUSAGE_SELF)
            counted.write_text(json.dumps({"steps": disk.count, "seconds": used.ru_utime + used.ru_stime}))

        if forked(work, folder / "log") != 0:
            raise RuntimeError((folder / "log").read_text()[-2000:])
        self.whole, self.known = contents(whole), json.loads(counted.read_text())

    def torment(self, dice: random.Random, tally: Tally) -> None:
        """One run: killed, resumed, killed again, and left to finish; count what came of it."""
        run, log = self.folder / "run", self.folder / "log"
        tally.runs += 1
        told = []
        row = dice.choice((1, 1, 2, 2, MOST_IN_A_ROW))
        for turn in range(row):
            resumed = (run / "config.yaml").is_file()
            share = dice.random() ** (1 if turn == 0 else 2)  # a resumed run has less to do
            how, at = "step", max(1, int(share * self.known["steps"]))
            if dice.random() < 0.5:
                how, at = "ms", max(1, int(1000 * share * self.known["seconds"]))
            ended = self._go(run, log, how, at)
            if not os.WIFSIGNALED(ended):
                if ended != 0:
                    tally.differences.append(f"{self.case.name}: {told} and then failed: {log.read_text()[-300:]}")
                break
            told.append(f"{'resume' if resumed else 'run'} killed at {how} {at}")
            tally.kills += 1
            tally.in_resume += resumed
            tally.in_a_row += turn > 0
        if self._go(run, log) != 0:
            tally.differences.append(f"{self.case.name}: {told}, and not to be resumed: {log.read_text()[-300:]}")
        else:
            found = contents(run)
            if wrong := sorted(k for k in found.keys() | self.whole.keys() if found.get(k) != self.whole.get(k)):
                tally.differences.append(f"{self.case.name}: {told}: {', '.join(wrong)}")
        shutil.rmtree(run, ignore_errors=True)

    def _go(self, run: Path, log: Path, how: str = "", at: int = 0) -> int:
        begun = (run / "config.yaml").is_file()
        words = ["resume", str(run), "--quiet"] if begun else [*self.case.line, "--out", str(run)]

        def work() -> None:
            if how == "step":
                Disk(at)
            elif how:
                signal.setitimer(signal.ITIMER_PROF, at / 1000)
            command(words)

        return forked(work, log)


def main() -> int:
    """Kill until there were enough kills; print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--methods", default="", help="names with commas between; all of the catalogue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", default="", help="names to leave out")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many, however many kills there were")
    chosen = parser.parse_args()

    import torch
    import transformers  # noqa: F401 - imported once, for all forks

    from polyrl import api, cli, runs  # noqa: F401
    from polyrl.core import loop  # noqa: F401
    from polyrl.pretrain.tiny import build_tiny
    from polyrl.run_state import control, language, operations, theory  # noqa: F401

    torch.set_num_threads(1)
    began, tally, broken = time.monotonic(), Tally(), []
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        model = Path(place) / "model"
        forked(
            lambda: build_tiny(model, 0, hidden=32, layers=1, heads=2, kv_heads=2, mlp=64, context=64) and None,
            Path(place) / "log",
        )
        methods: list[Method] = []
        left = set(filter(None, chosen.skip.split(",")))
        for case in cases(list(filter(None, chosen.methods.split(","))), model):
            if case.name.partition(" ")[0] in left:
                continue
            try:
                methods.append(Method(case, Path(place) / case.name.replace(" ", "-")))
                known = methods[-1].known
                print(f"{case.name}: {known['steps']} steps on the disk, {known['seconds']:.1f} s", flush=True)
            except RuntimeError as error:
                broken.append(case.name)
                print(f"{case.name}: its undisturbed run failed: {error}", flush=True)
        turn = 0
        while methods and tally.kills < chosen.kills and time.monotonic() - began < 60 * chosen.minutes:
            method = methods[turn % len(methods)]
            before = len(tally.differences)
            method.torment(random.Random(f"{chosen.seed}/{method.case.name}/{turn}"), tally)
            for text in tally.differences[before:]:
                print(f"DIFFERENCE {text}", flush=True)
            turn += 1
            if turn % 20 == 0:
                print(f"{tally.kills} kills in {tally.runs} runs, {len(tally.differences)} differences", flush=True)
    print(
        f"{len(methods)} methods, {tally.runs} runs, {tally.kills} kills ({tally.in_resume} during resume, "
        f"{tally.in_a_row} right after another), {len(tally.differences)} differences, "
        f"{time.monotonic() - began:.0f} s{f'; not run: {chr(44).join(broken)}' if broken else ''}"
    )
    return int(bool(tally.differences or broken))


if __name__ == "__main__":
    sys.exit(main())
