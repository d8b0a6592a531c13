"""The documentation says what the code does: tables, commands, metrics, dependencies, examples, links."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from polyrl import catalogue
from polyrl.catalogue import build
from polyrl.cli.main import polyrl
from polyrl.core.fields import documented
from polyrl.errors import UserError
from polyrl.phases import split_phases
from polyrl.recipe import Change, kebab
from polyrl.runtime.budget import UNITS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("polyrl_docs_hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(hooks: ModuleType) -> dict[str, str]:
    return hooks.pages()


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)


def titled(name: str) -> dict[str, str]:
    """The files that a page shows, by their title; what continues a file is a part of it."""
    found: dict[str, str] = {}
    for title, code in re.findall(r'^```python title="([^"]+)"\n(.*?)^```', text(name), re.DOTALL | re.MULTILINE):
        file = title.removesuffix(", continued")
        found[file] = f"{found[file]}\n\n{code}" if file in found else code
    return found


# ----------------------------------------------------------------------------------- lists that must agree


def test_the_readme_lists_the_methods_of_the_catalogue(hooks: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert hooks.with_table(readme) == readme, "run: python docs/hooks.py"
    assert all(f"| `{slug}` |" in readme for slug in catalogue.methods())


def test_the_tables_of_speed_stand_in_the_results(hooks: ModuleType) -> None:
    speed = text("speed.md")
    assert hooks.with_table(speed, hooks.MEASURED, hooks.measured_tables()) == speed, "run: python docs/hooks.py"


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w-]+", d)[0] for d in wanted}  # type: ignore[index]
    lines = set(re.findall(r"^\| ([a-zA-Z][\w-]*) \|", text("dependencies.md"), re.MULTILINE)) - {"package"}
    assert lines == names


def test_every_command_and_option_is_documented(pages: dict[str, str]) -> None:
    reference = pages["reference/commands.md"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in polyrl.commands.items():
        section = re.search(rf"^## polyrl {name}\n(.*?)(?=^## |\Z)", reference, re.DOTALL | re.MULTILINE)
        assert section, name
        options = {o for p in command.params if p.param_type_name == "option" for o in p.opts}
        assert options <= set(re.findall(r"--?[\w-]+", section[1])), name
        assert f"polyrl {name}" in readme or f"make {name}" in readme, name


def logged() -> set[str]:
    """Names that the sources log as metrics: `context.log(...)`, `metrics[...]` statistics, rows of their own."""
    found: set[str] = set()
    for file in (ROOT / "src/polyrl").rglob("*.py"):
        if file.parent.name == "report":
            continue  # it names what it can show, not what is logged
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "log":
                found |= {k.arg.replace("__", "/") for k in node.keywords if k.arg and k.arg != "board"}
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.JoinedStr):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else ""
                if owner == "metrics" and isinstance(node.ctx, ast.Store):
                    found.add(pattern(node.slice))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "means.add":
                found.add(pattern(node.args[0]))
            if isinstance(node, ast.FunctionDef) and node.name in ("statistics", "after_move"):
                keys = [k for d in ast.walk(node) if isinstance(d, ast.Dict) for k in d.keys]
                found |= {str(k.value) for k in keys if isinstance(k, ast.Constant)}
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "OwnRows" for base in node.bases):
                found.add(f"loss/{kebab(node.name)}")  # what terms on these rows come to
            if isinstance(node, ast.FunctionDef) and node.name == "summary":  # of a task, over a whole evaluation
                keys = [k for d in ast.walk(node) if isinstance(d, ast.Dict) for k in d.keys]
                found |= {f"eval/{k.value}" for k in keys if isinstance(k, ast.Constant)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"eval/\w+", node.value):
                found.add(node.value)
    return found - {""}


def pattern(node: ast.expr) -> str:
    """`f"loss/{term.name}"` -> `loss/<>`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "<>" for v in node.values)
    return ""


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    section = text("run-folder.md").partition("## Metrics")[2]
    documented = {re.sub(r"<\w+>", "<>", k) for k in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)}
    found = logged()
    assert {"reward", "loss/<>", "clip_ratio", "value/mean", "grad_norm/<>", "eval/accuracy"} <= found
    assert found - documented == set()
    counts = {"iteration", *UNITS} - {"iterations"}
    assert counts <= documented
    # written in other ways than those above
    loose = {"<>", "eval/<>", "eval/rewards/<>", "eval/logged/<>", "eval/<>_return", "tokens_per_second"}
    assert documented - found - counts - loose == set()


def test_every_field_and_part_has_its_place(pages: dict[str, str]) -> None:
    assert all(f'id="{name}"' in pages["reference/fields.md"] for name in documented(catalogue.part_classes()))
    assert all(f"{{ #{name} }}" in pages["reference/parts.md"] for name in catalogue.parts())


def test_a_method_page_shows_its_recipe(pages: dict[str, str], hooks: ModuleType) -> None:
    for slug, info in ((slug, info) for slug, infos in catalogue.variants().items() for info in infos):
        page = pages[f"methods/{hooks.file_name(slug)}.md"]
        recipe = build(slug, domain=info.domain)
        assert info.formula in page and hooks.paper_link(info.paper) in page
        rows = set(re.findall(r"^\| ([\w.-]+) \| `(\w+)` \|", page, re.MULTILINE))
        page = re.sub(r"^ +- \[`", "- [`", page, flags=re.MULTILINE)
        assert {key.rpartition(".")[::2] for key in recipe.hyperparameters()} <= rows
        starred = set(re.findall(r"^- \[`([\w-]+)`\][^:]*`\*`:", page, re.MULTILINE))
        assert starred >= set(recipe.adds) - {recipe.policy.name if recipe.policy else ""}
        assert len(catalogue.variants()[slug]) > 1 or starred <= set(recipe.adds)


def test_facts_belong_to_methods(hooks: ModuleType) -> None:
    stems = {hooks.file_name(slug) for slug in catalogue.methods()}
    assert {file.stem for file in (DOCS / "facts").glob("*.md")} <= stems


# ----------------------------------------------------------------------------------- examples that run


def test_the_method_of_the_guide_builds_and_composes(tmp_path: Path) -> None:
    file = tmp_path / "running.py"
    file.write_text(blocks("writing-a-method.md", "python")[0], encoding="utf-8")
    recipe = build(f"{file}+entropy-bonus", {"momentum": "0.8"})
    assert recipe.hyperparameters()["running-baseline.momentum"] == 0.8
    assert [p.name for p in recipe.parts() if p.measures] == ["reference-logprob", "all-steps"]
    with pytest.raises(UserError, match="momentum"):
        build(str(file), {"momentum": "2"})


def test_the_term_of_the_guide_joins_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "whole_guide.py"
    file.write_text(titled("writing-a-method.md")["running.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    guide = __import__("whole_guide")
    assert guide.penalized.check().hyperparameters()["ratio-penalty.ratio_coef"] == 0.2
    assert [t.name for t in guide.penalized.terms][-1] == "ratio-penalty"


def compositions() -> list[str]:
    """Methods and compositions in inline code, and after `train`, `show`, `trace` and `compare` in console blocks."""
    found: set[str] = set()
    slugs = "|".join(map(re.escape, sorted(catalogue.methods(), key=len, reverse=True)))
    for file in WRITTEN:
        said = file.read_text(encoding="utf-8")
        found |= set(re.findall(rf"`'?((?:{slugs})[(+][^`']+)'?`", said))
        for line in re.findall(r"^\$ polyrl (?:train|show|trace|compare) (.*)$", said, re.MULTILINE):
            words = re.findall(r"'[^']+'|\S+", line.partition(" --")[0].partition("#")[0])
            named = [w.strip("'") for w in words if not w.startswith("gropo") and "./" not in w]
            found |= {phase for word in named for phase in split_phases(word)}
    return sorted(found)


def number(value: object) -> object:
    """A setting as text or as what it became, comparable."""
    try:
        return float(str(value))
    except ValueError:
        return str(value).lower()


@pytest.mark.parametrize("spec", compositions())
def test_every_composition_in_the_text_builds(spec: str) -> None:
    """All that it names is in the recipe: the method's settings, and what is added to it."""
    _, *added = re.split(r"(?<=[\w)+])\+(?=[a-z./])", spec)
    stated = {c.domain for c in catalogue.part_classes() if kebab(c.__name__) in added and issubclass(c, Change)} - {""}
    domain = stated.pop() if stated else catalogue.methods()[re.split(r"(?<!\+)\+(?!\+)|\(", spec)[0]].domain
    recipe = build(spec, domain=domain).check()
    values = recipe.hyperparameters()
    for name, given in re.findall(r"([\w.-]+)=([^,()]+)", spec):
        found = [v for k, v in values.items() if k == name or k.endswith(f".{name}")]
        assert number(given) in map(number, found), (name, given, found)
    names = {part.name for part in recipe.parts()} | {kebab(type(recipe.policy).__name__)}
    changes = {name for name in catalogue.parts() if catalogue.parts()[name].stage == "data"}
    assert {part.split("(")[0] for part in added if part.split("(")[0] in catalogue.parts()} <= names | changes


def test_options_in_the_text_exist(tmp_path: Path) -> None:
    known = {o for c in polyrl.commands.values() for p in c.params for o in p.opts}
    for name in catalogue.parts():
        cls = next(c for c in catalogue.part_classes() if kebab(c.__name__) == name)
        fields = [f"--{f.replace('_', '-')}" for f in cls.__dataclass_fields__]
        known |= {*fields, *(f"--{name}.{f[2:]}" for f in fields)}
    values = {key for slug in catalogue.methods() for key in build(slug).hyperparameters()}
    for name, code in titled("writing-a-method.md").items():
        (tmp_path / name).write_text(code, encoding="utf-8")
        if "def recipe()" in code:  # a method of the reader's own
            values |= build(f"{tmp_path / name}").hyperparameters().keys()
    known |= {f"--{key.replace('_', '-')}" for full in values for key in (full, full.rpartition(".")[2])}
    known |= {"--help", "--version"}
    for file in WRITTEN:
        for line in re.findall(r"`(?:polyrl )?[^`\n]*--[^`\n]+`|^\$ polyrl .*$", file.read_text("utf-8"), re.MULTILINE):
            if line.startswith("`python "):  # a program of its own, such as a benchmark
                continue
            for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", line):
                phase, _, of_phase = option[2:].partition(".")
                told = f"--{of_phase}" if phase in catalogue.methods() else option  # of one phase alone
                assert {option, told} & known, f"{file.name}: {option}"


# ----------------------------------------------------------------------------------- the site


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is in the extra `docs`")
def test_the_site_builds_strictly_and_names_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    html = list(tmp_path.rglob("*.html"))
    assert len(html) > len(list(DOCS.glob("*.md")))
    for file in html:
        fetched = re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+", file.read_text()
        )
        assert not fetched, f"{file.name}: {fetched}"


def test_the_text_speaks_of_the_project_only() -> None:
    for file in [*WRITTEN, DOCS / "hooks.py"]:
        said = file.read_text(encoding="utf-8").lower()
        for word in ("/work/", "/tmp/", "/home/", "shared folder", "helper", "lorem"):
            assert word not in said, f"{file.name}: {word}"


@pytest.mark.parametrize("file", WRITTEN, ids=lambda f: f.name)
def test_links_of_the_repository_lead_somewhere(file: Path, pages: dict[str, str]) -> None:
    home = DOCS / "methods" if file.parent.name == "facts" else file.parent  # facts are read inside a method's page
    said = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", said):
        if target.startswith(("https://arxiv.org/", "https://doi.org/")) or target.endswith("report.png"):
            continue
        path = (home / target).resolve()
        assert path.is_file() or str(path.relative_to(DOCS)) in pages, f"{file.name}: {target}"


def test_every_promise_names_a_test_that_exists() -> None:
    promised = text("failing.md").partition("## What is promised")[2]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and line not in ("| promise | test |",)]
    for row in rows:
        if set(row) <= set("| -"):
            continue
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.split("|")[-2])
        assert named, f"no `test_file.py::test_name` in: {row}"
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"
