"""Child processes of tests run the package that is tested, whatever else is installed or in the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import polyrl
from conftest import SOURCE, child_environment

WHERE = [sys.executable, "-c", "import polyrl; print(polyrl.__file__)"]


def other(tmp_path: Path) -> Path:
    """A folder that holds another polyrl."""
    package = tmp_path / "other" / "polyrl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    return package.parent


def test_children_run_this_polyrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for environment in (None, child_environment(), child_environment(tmp_path, MORE="1")):
        assert subprocess.check_output(WHERE, text=True, env=environment).strip() == polyrl.__file__
    assert Path(polyrl.__file__).is_relative_to(SOURCE)


def test_a_child_that_would_run_another_polyrl_is_refused(tmp_path: Path) -> None:
    without = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for environment in (without, child_environment(other(tmp_path))):
        with pytest.raises(AssertionError, match=r"would run the polyrl of"):
            subprocess.run(WHERE, env=environment, check=False)
    assert subprocess.run(["true"], env=without, check=False).returncode == 0  # no Python: none of our business
