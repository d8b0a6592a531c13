"""A comparison as lines of a shell, one for each run, for whoever runs them; and what is still missing of it.

`compare.yaml` holds all that is asked of every run, so a line names no more than a run's folder: it begins the run,
goes on with it from its last checkpoint, or finds it finished and does nothing. Nothing heavy is imported.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyrl.comparison_folder import arm_folder, read_comparison
from polyrl.comparison_table import RunSoFar
from polyrl.errors import UserError
from polyrl.runtime.config import PythonObjects
from polyrl.runtime.executor import INHERITED
from polyrl.runtime.files import reading, write_atomically, writing
from polyrl.runtime.metric import Metric
from polyrl.runtime.ownership import PLANNED_BY, PLANS, is_of_plan
from polyrl.runtime.run_folder import RunFolder

LINES, ARRAY, README = PLANS


def check_given_by_name(given: Collection[PythonObjects]) -> None:
    """Refuse what no command can hold.

    Raises:
        UserError: only Python can give it.
    """
    if names := [*dict.fromkeys(name for one in given for name in one.names())]:
        raise UserError(
            f"The {' and '.join(names)} given as Python objects cannot stand in a command that makes a run elsewhere; "
            "give files or names, as in reward='file.py:function', or run it with executor='local'."
        )


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to plan in a folder that holds a comparison already.

    Raises:
        UserError: it does; `polyrl report` names the runs that it lacks.
    """
    if not overwrite and (folder / "compare.yaml").is_file():
        raise UserError(
            f"The comparison {folder} exists already, and `polyrl report {folder}` says which runs it lacks and how "
            "they are made; choose another --out, or say --overwrite to plan it anew."
        )


# --------------------------------------------------------------------------------------------------------- writing


def this_polyrl() -> list[str]:
    """The words that start this polyrl: the command that was typed, or the interpreter with the package."""
    typed = Path(sys.argv[0])
    own = typed.name == "polyrl" and typed.is_file() and os.access(typed, os.X_OK)
    return [str(typed.absolute())] if own else [sys.executable, "-m", "polyrl"]


def line(run: Path, threads: int, *, trust_code: bool) -> str:
    """The line of a shell that makes a run or goes on with it, wherever it is started.

    Raises:
        UserError: a name in it has several lines.
    """
    settings = {"OMP_NUM_THREADS": str(threads), **{k: os.environ[k] for k in INHERITED if os.environ.get(k)}}
    words = [*this_polyrl(), "resume", *(["--trust-code"] if trust_code else []), "--quiet", os.fspath(run)]
    named = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    text = f"cd {shlex.quote(os.getcwd())} && {named} {shlex.join(words)}"
    if len(text.splitlines()) > 1:
        raise UserError(f"The path {str(run)!r} or that of this folder has several lines; plan it somewhere else.")
    return text


def write_plan(folder: Path, lines: Sequence[str], threads: int, about: str, gather: str) -> None:
    """Write the lines of runs, an array of Slurm that takes one each, and how to run and gather them.

    Args:
        folder: where they are written.
        lines: of all runs.
        threads: of a run.
        about: what the runs are, in a sentence.
        gather: the command that reads the runs when they are made.

    Raises:
        UserError: a file of somebody else is in the way.
    """
    where, count = shlex.quote(str((folder / LINES).absolute())), len(lines)
    name = re.sub(r"[^\w.-]+", "-", folder.absolute().name)
    texts = {
        LINES: f"# {PLANNED_BY}: one line a run, in any order, as often as you like; {README} says how.\n"
        + "".join(f"{text}\n" for text in lines),
        ARRAY: f"""#!/bin/bash
# {PLANNED_BY}: each task of the array takes one line of {LINES}. Add your partition and time limit.
#SBATCH --job-name=polyrl-{name}
#SBATCH --array=1-{count}
#SBATCH --cpus-per-task={threads}
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
line=$(grep -v '^#' {where} | sed -n "${{SLURM_ARRAY_TASK_ID}}p")
[ -n "$line" ] || {{ echo "{LINES} has no line ${{SLURM_ARRAY_TASK_ID}}" >&2; exit 2; }}
exec bash -c "$line"
""",
        README: f"""<!-- {PLANNED_BY} -->
# {count} runs to make

{about}

Each line of `{LINES}` makes one run, in a folder of its own. Started again, it goes on from the run's last checkpoint,
to the same numbers; where the run is finished it does nothing. So the order is yours, and how many run at a time.

## Run them

One after the other, four at a time, or as an array of Slurm:

```console
$ bash {where}
$ grep -v '^#' {where} | xargs -d '\\n' -n 1 -P 4 bash -c
$ sbatch {shlex.quote(str((folder / ARRAY).absolute()))}
```

The lines begin in the folder where they were planned, `{os.getcwd()}`, with the polyrl that planned them,
`{shlex.join(this_polyrl())}`. On a machine where either is elsewhere, change it in `{LINES}`. One that does not share
this disk needs that folder (`{folder}` and the files that the command named); bring its run folders back into
`{folder}`.

## Gather them

```console
$ {gather}
```

It says which runs are missing or unfinished, and gives the lines that finish them.
""",
    }
    for file in texts:
        if (folder / file).exists() and not is_of_plan(folder / file):
            raise UserError(f"{folder / file} is not polyrl's, so no plan is written over it; choose another --out.")
    with writing(folder):
        for file, text in texts.items():
            write_atomically(folder / file, text)
        (folder / ARRAY).chmod(0o755)


def planned_text(folder: Path, count: int, gather: str) -> str:
    """What is said of a plan that has been written."""
    runs = f"{count} runs" if count > 1 else "1 run"
    return (
        f"Planned {runs}, and started none: `bash {folder / LINES}` or `sbatch {folder / ARRAY}` makes them, "
        f"`{gather}` gathers them; {folder / README} says more."
    )


# --------------------------------------------------------------------------------------------------------- gathering


@dataclass(frozen=True)
class Standing:
    """How far a run of a comparison is.

    Attributes:
        key: its folder's name.
        finished: whether it is finished.
        diverged: whether it began and then failed.
        said: how far it is, for people.
        line: what makes it or goes on with it.
    """

    key: str
    finished: bool
    diverged: bool
    said: str
    line: str


def planned_lines(folder: Path) -> dict[str, tuple[int, str]]:
    """The lines of a plan, with their numbers from 1, by the folder's name of the run; empty where there is no plan."""
    file = folder / LINES
    if not file.is_file():
        return {}
    with reading():
        lines = [text for text in file.read_text(encoding="utf-8").splitlines() if not text.startswith("#")]
    found: dict[str, tuple[int, str]] = {}
    for number, text in enumerate(lines, start=1):
        try:
            words = shlex.split(text)
        except ValueError:  # somebody has changed it
            continue
        if words:
            found[Path(words[-1]).name] = (number, text)
    return found


def standings(folder: Path) -> list[Standing]:
    """How far each run of a comparison is, in the order of its plan.

    Raises:
        UserError: its compare.yaml cannot be read.
    """
    stated = read_comparison(folder)
    question, lines, metric = stated["question"], planned_lines(folder), Metric.read(stated)
    found = []
    for seed in question["seeds"]:
        for name in question["methods"]:
            run = folder / (key := arm_folder(name, seed))
            _, text = lines.get(key, (0, f"polyrl resume {shlex.quote(str(run))}"))
            summary, begun = RunFolder(run).read_summary(), (run / "config.yaml").is_file()
            status = summary.get("status")
            if status == "finished":
                said = "finished"
            elif status == "failed":
                said = f"failed: {summary.get('error') or 'it does not say why'}"
            else:
                said = _so_far(run, metric, str(question["base"].get("budget"))) if begun else "not begun"
            found.append(Standing(key, status == "finished", status == "failed" and begun, said, text))
    return found


def _so_far(run: Path, metric: Metric, budget: str) -> str:
    so_far = RunSoFar(run, metric)
    so_far.read()
    return f"{100 * so_far.share(budget):.0f}% done, running or stopped"


def missing_text(folder: Path) -> list[str]:
    """What is said of a comparison whose runs are not all finished: which, and the lines that finish them.

    Nothing is said of one without a plan, whose page tells what it lacks.
    """
    if not planned_lines(folder):
        return []
    runs = standings(folder)
    left = [run for run in runs if not run.finished]
    return unfinished_text(left, len(runs), folder) if left else [f"All {len(runs)} runs are finished."]


def unfinished_text(left: Sequence[Standing], count: int, plan: Path) -> list[str]:
    """Which runs are left of so many, and what finishes them, line by line; `plan` is where their plan stands."""
    lines = planned_lines(plan)
    numbers = sorted(lines[run.key][0] for run in left if run.key in lines)
    array = f", or sbatch --array={ranges(numbers)} {shlex.quote(str(plan / ARRAY))}" if numbers else ""
    width = max(len(run.key) for run in left)
    return [
        f"{len(left)} of {count} runs {'is' if len(left) == 1 else 'are'} not finished:",
        *(f"  {run.key:<{width}}  {run.said}" for run in left),
        f"{'This line finishes it' if len(left) == 1 else 'These lines finish them'}{array}:",
        *(run.line for run in left),
    ]


def check_begun(folder: Path) -> None:
    """Refuse to gather a plan of which no run has begun.

    Raises:
        UserError: that is so.
    """
    lines = planned_lines(folder)
    if lines and not any((folder / key / "config.yaml").is_file() for key in lines):
        raise UserError(
            f"None of the {len(lines)} runs that {folder} plans has begun; make them with `bash {folder / LINES}`, "
            f"or as {folder / README} says."
        )


def ranges(numbers: Sequence[int]) -> str:
    """`1-3,7`: increasing numbers as Slurm takes them."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)
