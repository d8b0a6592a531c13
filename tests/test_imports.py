"""Imports run one way: the layers of pyproject.toml, checked by import-linter; its exceptions only become fewer."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

linter = pytest.importorskip("importlinter.cli", reason="import-linter is in the extra `dev`")
ROOT = Path(__file__).parent.parent
EXCEPTIONS = 9
"""Imports that still run back up: tasks that make models of their own. Lower it where one goes."""


def test_imports_run_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    broken = linter.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert broken == 0, capsys.readouterr().out


def test_exceptions_only_become_fewer_and_every_room_has_its_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = settings["contracts"]
    assert len(contract["ignore_imports"]) == EXCEPTIONS
    placed = {name.strip() for layer in contract["layers"] for name in layer.split(":")}
    rooms = {p.stem for p in (ROOT / "src" / "polyrl").iterdir() if p.is_dir() or p.suffix == ".py"}
    outside = {"__pycache__", "__init__", "__main__", "ledger", "py"}
    assert {f"polyrl.{room}" for room in rooms - outside} == placed
