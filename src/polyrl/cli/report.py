"""`polyrl report`: the page of runs, and what it shows in sentences. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from polyrl.comparison_plan import check_begun, missing_text
from polyrl.phases import is_phases, phase_folders
from polyrl.report.findings import verdict
from polyrl.report.page import write_report
from polyrl.report.runs import load_folders
from polyrl.runtime.terminal import Terminal


def write_page(runs: Sequence[Path], out: Path | None) -> None:
    """Write a comparison page and print its verdict."""
    console = Terminal()
    for run in runs:
        check_begun(run)
    folders = [folder for run in runs for folder in (phase_folders(run) if is_phases(run) else [run])]
    read = load_folders(folders)
    page = write_report(folders, out or Path(runs[0]) / "report.html", read)
    for sentence in verdict(read):
        console.print(Text(sentence), soft_wrap=True)
    for run in runs:
        for text in missing_text(run):
            console.print(Text(text), soft_wrap=True)
    console.print(Text.assemble("\nThe page: ", (str(page.resolve()), "bold")), soft_wrap=True)
