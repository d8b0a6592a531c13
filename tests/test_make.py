"""What the Makefile and CI call exists: markers, targets, files of tests."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_markers_are_registered() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    known = {line.split(":")[0] for line in options["markers"]}
    asked = {word for words in re.findall(r'-m "([^"]*)"', MAKEFILE) for word in words.split()} - {"not", "and", "or"}
    assert asked
    assert asked <= known


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"\b(?:tests|benchmarks|docs|\.ci)/\w+\.py", MAKEFILE))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_ci_calls_targets_that_exist() -> None:
    called = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"check", "test", "plain", "newest", "oldest"} <= set(called)
    assert not [target for target in called if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)]
