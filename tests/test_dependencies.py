"""Every dependency has a range whose two ends are installed and tried, and the pinned versions lie in it."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
BUILT_WITH = [Requirement(line) for line in PROJECT["build-system"]["requires"]]
CORE = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
OPTIONAL = {extra: [r for r in map(Requirement, lines) if r.name != "polyrl"] for extra, lines in EXTRAS.items()}
ALL = [*CORE, *(requirement for extra in OPTIONAL.values() for requirement in extra)]


def pinned(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(number) for name, number in pins}


def bound(requirement: Requirement, operator: str) -> Version:
    (found,) = [Version(s.version) for s in requirement.specifier if s.operator == operator]
    return found


@pytest.mark.parametrize("requirement", [*ALL, *BUILT_WITH], ids=str)
def test_every_dependency_has_both_bounds(requirement: Requirement) -> None:
    assert bound(requirement, ">=") < bound(requirement, "<")


@pytest.mark.parametrize("requirement", ALL, ids=str)
def test_the_pinned_and_the_installed_version_are_allowed(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pinned("constraints.txt")[canonicalize_name(requirement.name)])
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed")
    assert requirement.specifier.contains(installed)


def test_the_oldest_versions_are_the_lower_bounds_of_all_that_a_user_installs() -> None:
    asked = [*CORE, *(r for extra, lines in OPTIONAL.items() if extra not in ("dev", "docs") for r in lines)]
    oldest = pinned("constraints-oldest.txt")
    assert set(oldest) == {canonicalize_name(r.name) for r in asked}
    for requirement in asked:
        assert oldest[canonicalize_name(requirement.name)] == bound(requirement, ">="), requirement.name


def test_ci_installs_both_ends_of_the_ranges() -> None:
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extras = next(line for line in make.splitlines() if line.startswith("EXTRAS")).split("=")[1].strip()
    # solvers wants another protobuf than the oldest tensorboard, ray is for clusters; docs/dependencies.md says so
    apart = {"solvers", "ray"}
    assert set(extras.split(",")) == set(OPTIONAL) - {"dev", "docs"} - apart
    for target in ("newest", "oldest", "capped"):
        assert f"\nmake {target}\n" in commands and f"\n{target}:" in make
    newest, oldest = (make.partition(f"\n{target}:")[2].partition("\n\n")[0] for target in ("newest", "oldest"))
    assert "--constraint" not in newest and "--constraint constraints-oldest.txt" in oldest
