"""docs/scaling.md: every command that it shows is given, at toy size; sbatch is a script that starts each task."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from polyrl import comparison
from polyrl.comparison_plan import standings
from polyrl.reproduction import planning, running
from polyrl.runtime.executor import Job, LocalProcesses
from test_docs import blocks

SCRIPTS = {
    "polyrl": 'echo "$*" >> "$PWD/given"',
    "sbatch": 'for i in $(seq "$(sed -n \'s/#SBATCH --array=1-//p\' "$1")"); do SLURM_ARRAY_TASK_ID=$i bash $1; done',
}
"""What stands on the path: lines are taken down, and given by this process."""


def commands() -> list[str]:
    """All of runs and plans; those that ask for a cluster, for several processes or for a server are given elsewhere.

    That is in test_ray.py, test_ranks.py and test_served.py.
    """
    shown = [line[2:] for block in blocks("scaling.md", "console") for line in block.splitlines()]
    elsewhere = ("--executor ray", "torchrun", "runs/two", "serve ", "--engine")
    return [command for command in shown if not any(word in command for word in elsewhere)]


def toy(command: str) -> str:
    return re.sub(r"iterations=\d+", "iterations=2", command.replace("--seeds 3", "--seeds 1"))


def test_every_command_of_the_page_does_what_it_says(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(planning, "refuse_uncommitted", lambda: None)
    monkeypatch.setattr(running, "refuse_uncommitted", lambda: None)

    def work(_: Any, job: Job) -> str:
        return comparison.work(job.values, job.folder)

    monkeypatch.setattr(LocalProcesses, "work", work)
    given: list[list[str]] = []
    said = {}
    for command in map(toy, commands()):
        name, *words = command.split()
        if name == "polyrl":
            told = polyrl(*words)
            assert told.code == 0, (command, told.err)
            said[command] = told.out
            continue
        subprocess.run(["bash", "-c", command], check=True)
        lines = (tmp_path / "given").read_text().splitlines()
        (tmp_path / "given").unlink()
        given.append(sorted(lines))
        for line in lines:
            assert polyrl(*line.split()).code == 0
    assert len(given) == 3 and given[0] == given[1] == given[2]
    assert given[0] == [f"resume --quiet study/{arm}-seed0" for arm in ("nash-mp", "self-play")]
    assert [run.finished for run in standings(Path("study"))] == [True, True]
    report, local = (next(text for c, text in said.items() if words in c) for words in ("report study", "--out here"))
    assert "All 2 runs are finished." in report
    assert report.partition("\nAll")[0].strip() in local
    claim = next(text for c, text in said.items() if "reproduce" in c)
    assert "Planned 72 runs, and started none" in claim and Path("claim").is_dir()
