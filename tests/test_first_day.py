"""The pages of docs/first-day: what they say is typed is typed, in a folder with what they say lies there.

What a page shows of an output is compared with the output but for its numbers, which depend on the processor.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import Command
from polyrl.tasks.language import task
from test_docs import DOCS, blocks, titled

PAGES = sorted(path.stem for path in (DOCS / "first-day").glob("*.md"))


def words(folder: Path, small_model: Path) -> None:
    """A model, questions with answers, and some that are not among them."""
    shutil.copytree(small_model, folder / "my-model")
    rows = {row["prompt"]: row for row in task("reverse", difficulty=4).rows("train", 7, 0, 1000)}
    lines = [json.dumps({"prompt": row["prompt"], "answer": row["answer"]}) + "\n" for row in rows.values()]
    (folder / "words.jsonl").write_text("".join(lines[:600]))
    (folder / "fresh.jsonl").write_text("".join(lines[600:800]))


def demand(folder: Path) -> None:
    """A year of demand."""
    days = np.random.default_rng(0).poisson(np.tile([4, 4, 5, 5, 7, 9, 3], 52))
    np.savetxt(folder / "demand.csv", days, fmt="%d")


THERE: dict[str, Callable[..., None] | None] = {
    "control": None,
    "operations": demand,
    "post-training": words,
    "student": None,
}
"""What puts there what lies in the folder of each page before its first command."""


def typed(page: str) -> list[tuple[str, list[str]]]:
    """Commands of a page, and the lines that it shows of what each says."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks(f"first-day/{page}.md", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line != "...":
                found[-1][1].append(line)
    return found


def shape(line: str, folder: Path) -> str:
    """A line without its numbers, amounts, factors and directions, and without the folder's own path."""
    line = line.replace(f"{folder}/", "").replace("−", "-")
    line = re.sub(r"\b(beats|looks better than|rose|fell|above|below|improved on)\b", "#", line)
    line = re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?[kMm%]?(-fold)?", "#", line)
    return re.sub(r"[\s─]+", " ", line).strip()


def test_each_kind_of_user_has_a_page_of_five_to_eight_commands() -> None:
    assert sorted(THERE) == PAGES
    for page in PAGES:
        assert 5 <= len(typed(page)) <= 8, page
        assert all(command.startswith("polyrl ") for command, _ in typed(page))


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_shows(
    page: str, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for name, code in titled(f"first-day/{page}.md").items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    if (lay := THERE[page]) is not None:
        lay(tmp_path, *([request.getfixturevalue("small_model")] if lay is words else []))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for command, shown in typed(page):
        told = polyrl(*shlex.split(command)[1:])
        assert told.code == 0, f"{command}\n{told.err}"
        said = {shape(line, tmp_path) for line in told.out.splitlines()}
        missing = [line for line in shown if shape(line, tmp_path) not in said]
        assert shown and not missing, f"{command} says\n{told.out}\nand not\n" + "\n".join(missing)
