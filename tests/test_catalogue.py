"""The catalogue: finds methods without importing them, takes in those of others, and says what it cannot read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyrl import catalogue, method_files
from polyrl.catalogue import build
from polyrl.errors import UserError
from polyrl.recipe import STAGES

TOY = '''"""Toy: every answer is as good as its length says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polyrl.core.experience import Experience
from polyrl.parts.collect import SampleResponses
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.recipe import Part, Recipe, Stage, hyperparameter

SLUG = "toy"
TITLE = "A toy"
PAPER = "arXiv:0000.00000"
YEAR = 2026
FORMULA = "A = bias"


@dataclass(frozen=True, kw_only=True)
class ToyAdvantage(Part):
    """Every step has the same advantage."""

    stage: ClassVar[Stage] = "credit"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})

    bias: float = hyperparameter(1.0, "the advantage", low=0)

    def __call__(self, experience: Experience, context: object) -> Experience:
        return experience.with_fields(advantage=experience["mask"].float() * self.bias)


def recipe() -> Recipe:
    return Recipe(
        name=SLUG,
        collect=SampleResponses(),
        score=(TaskReward(),),
        credit=(ToyAdvantage(),),
        terms=(PolicyGradient(),),
        optimize=Optimize(),
        adds=("toy-advantage",),
    )
'''


@pytest.fixture
def fresh() -> Iterator[None]:
    """The catalogue looks anew, and again after the test."""

    def forget() -> None:
        for cached in (catalogue.methods, catalogue.variants, catalogue.parts, method_files.read_source):
            cached.cache_clear()

    forget()
    yield
    forget()


def test_listing_imports_no_heavy_library() -> None:
    code = (
        "import sys, polyrl, polyrl.catalogue as c; assert len(c.methods()) >= 5 and len(c.parts()) >= 15;"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numpy', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy; print(*c.methods())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"grpo", "ppo", "rloo", "remax", "reinforce++"} <= set(done.stdout.split())


def test_what_is_read_from_the_source_is_what_is_imported() -> None:
    for slug, info in catalogue.methods().items():
        recipe = build(slug)
        assert recipe.name == slug == info.slug and info.title and info.summary and info.formula
        assert info.paper.startswith(("arXiv:", "doi:")) and 1990 < info.year < 2030
        assert slug in catalogue.family(info.family) and info.family
    classes = {c.__name__: c for c in catalogue.part_classes()}
    for name, info in catalogue.parts().items():
        part = classes[info.class_name]
        assert part().name == name and part.stage == info.stage and info.summary, name
        assert info.summary == (part.__doc__ or "").partition("\n")[0].strip()
    assert not {"part", "term", "improver", "architecture", "averaged"} & set(catalogue.parts())
    stages = [info.stage for info in catalogue.parts().values()]
    assert stages == sorted(stages, key=("policy", "models", "data", *STAGES, "judged").index)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("grop", "no method or part 'grop'. Did you mean 'grpo'"),
        ("reinforce+", "Cannot read the method 'reinforce+'"),
        ("grpo+drop-equal-group", "no method or part 'drop-equal-group'. Did you mean 'drop-equal-groups'"),
        ("grpo+zzzzzz", "no method or part 'zzzzzz'. `polyrl list`"),
        ("gae", "'gae' is a part, not a method; put a method first, such as grpo+gae"),
        ("", "Cannot read the method ''"),
        ("grpo+", "Cannot read the method 'grpo+'"),
        ("reinforce+++", "Cannot read"),
        ("+grpo", "Cannot read '+grpo'"),
        ("grpo++rloo", "Cannot read 'grpo++rloo' from '+rloo' on"),
        ("grpo(clip_range=0.1", "Cannot read 'grpo(clip_range=0.1'"),
        ("grpo(clip_range)", "Cannot read 'clip_range'; write settings like grpo"),
        ("grpo(clip_rang=1)", "no hyperparameter 'clip_rang'. Did you mean 'clip_range'"),
        ("grpo(clip_range=no)", "clipped-surrogate.clip_range is 'no' but must be a float"),
        ("nowhere/mine.py", "There is no method file nowhere/mine.py"),
    ],
)
def test_what_cannot_be_read_is_told(spec: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        build(spec)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_settings_come_after_the_composition() -> None:
    found = build("grpo+rloo", {"optimize.epochs": "3", "policy-gradient.aggregation": "constant"}).hyperparameters()
    assert found["optimize.epochs"] == 3 and found["policy-gradient.aggregation"] == "constant"


# --------------------------------------------------------------------------------------------- methods of other people


def test_a_method_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my_toy.py"
    path.write_text(TOY, encoding="utf-8")
    made = build(str(path), {"bias": "0.5"})
    assert made.name == "toy" and made.hyperparameters()["toy-advantage.bias"] == 0.5
    mixed = build(f"{path}(bias=2)+drop-equal-groups")
    assert [p.name for p in mixed.listed("credit")] == ["toy-advantage"]
    assert mixed.hyperparameters()["toy-advantage.bias"] == 2 and mixed.listed("select")[0].name == "drop-equal-groups"
    added = build(f"grpo+{path}")  # what the file adds goes into another method
    assert [p.name for p in added.listed("credit")] == ["toy-advantage"]
    assert added.listed("improve")[0].name == "clipped-surrogate"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def recipe(:\n", "cannot be imported: SyntaxError"),
        ("import no_such_library_at_all\n", "cannot be imported: ModuleNotFoundError: No module named"),
        ("x = 1\n", "defines no function recipe()"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text, encoding="utf-8")
    for _ in range(2):  # a failed import must not be remembered as done
        with pytest.raises(UserError) as error:
            build(str(path))
        assert words in str(error.value) and str(path) in str(error.value)


def install(folder: Path, entry: str, module: str | None = TOY) -> None:
    """What an installed package leaves behind: a module and a dist-info folder with entry points."""
    if module is not None:
        (folder / "toy_method_package.py").write_text(module, encoding="utf-8")
    info = folder / "toy_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[polyrl.methods]\ntoy = {entry}\n", encoding="utf-8")


def test_a_method_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    install(tmp_path, "toy_method_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    info = catalogue.methods()["toy"]
    assert (info.title, info.paper, info.year, info.family) == ("A toy", "arXiv:0000.00000", 2026, "installed")
    assert info.summary == "Every answer is as good as its length says."
    assert catalogue.parts()["toy-advantage"].stage == "credit"
    assert "toy_method_package" not in sys.modules  # listed without being imported
    made = build("toy+drop-unended", {"toy-advantage.bias": "3"})
    assert made.hyperparameters()["toy-advantage.bias"] == 3
    assert [p.name for p in build("grpo+toy-advantage").listed("credit")] == ["toy-advantage"]
    del sys.modules["toy_method_package"]


def test_an_installed_package_does_not_displace_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    install(tmp_path, "toy_method_package", TOY.replace('SLUG = "toy"', 'SLUG = "grpo"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalogue.methods()["grpo"].module == "polyrl.methods.language.grpo"


@pytest.mark.parametrize("entry", ["gone_package.methods", "gone_package"])
def test_a_package_that_is_gone_does_not_take_the_catalogue_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None, entry: str
) -> None:
    install(tmp_path, entry, module=None)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "grpo" in catalogue.methods() and "toy" not in catalogue.methods()


def test_a_package_whose_source_is_broken_does_not_take_the_catalogue_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    install(tmp_path, "toy_method_package", "def recipe(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "grpo" in catalogue.methods() and "toy" not in catalogue.methods()
