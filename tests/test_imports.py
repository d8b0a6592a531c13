"""What the tree keeps to: imports run one way, files stay short, and features are declared and not felt for."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

linter = pytest.importorskip("importlinter.cli", reason="import-linter is in the extra `dev`")
ROOT = Path(__file__).parent.parent


def test_imports_run_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    broken = linter.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert broken == 0, capsys.readouterr().out


def test_no_import_is_excepted_and_every_room_has_its_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = settings["contracts"]
    assert not contract.get("ignore_imports")
    placed = {name.strip() for layer in contract["layers"] for name in layer.split(":")}
    rooms = {p.stem for p in (ROOT / "src" / "polyrl").iterdir() if p.is_dir() or p.suffix == ".py"}
    outside = {"__pycache__", "__init__", "__main__", "ledger", "py"}
    assert {f"polyrl.{room}" for room in rooms - outside} == placed


LONGEST_FILE = 450
FOREIGN = {
    "tasks/user_code.py": 2,  # functions and modules of users
    "tasks/language/calling.py": 2,
    "arguments.py": 1,
    "run_state/environment_notices.py": 1,
    "runtime/interrupt.py": 1,  # what a system has
    "tasks/control/processes.py": 1,
    "tasks/language/own_process.py": 1,
    "kernels/linear.py": 1,
    "kernels/decoder.py": 1,  # models of transformers and peft
    "kernels/llama_weights.py": 1,
    "models/language/folders.py": 2,
    "moved.py": 2,  # whatever a module defines
    "tasks/operations/settings.py": 1,  # settings by name
}
"""Calls of `hasattr`, all of them on objects that are not polyrl's own: those declare what they have."""


def sources() -> dict[str, str]:
    package = ROOT / "src" / "polyrl"
    return {p.relative_to(package).as_posix(): p.read_text(encoding="utf-8") for p in package.rglob("*.py")}


def test_files_stay_short() -> None:
    lengths = {name: text.count("\n") for name, text in sources().items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


FOREIGN_DEFAULTS = {
    "tasks/user_code.py": 10,  # functions and modules of users
    "tasks/language/calling.py": 7,
    "arguments.py": 2,
    "methods/control/llm_guidance/__init__.py": 1,  # environments and spaces of users
    "tasks/control/environment.py": 1,
    "tasks/control/spaces.py": 1,
    "models/language/policy.py": 7,  # configs and models of transformers and peft
    "models/language/families.py": 2,
    "models/language/encoding.py": 1,
    "models/language/last_layer.py": 1,
    "cli/operations_count.py": 2,
    "kernels/decoder.py": 1,
    "core/part.py": 1,  # what abc writes on a function
}
"""Calls of `getattr` with a default, all of them on such objects too."""


@pytest.mark.parametrize(("call", "arguments", "foreign"), [("hasattr", 2, FOREIGN), ("getattr", 3, FOREIGN_DEFAULTS)])
def test_features_of_our_own_objects_are_declared(call: str, arguments: int, foreign: dict[str, int]) -> None:
    found: dict[str, int] = {}
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == call
            if named and len(node.args) == arguments:
                found[name] = found.get(name, 0) + 1
    assert found == foreign


SHAPES = re.compile(r"\[[^\]]*\]|[Aa]ny shape|[Ss]hape of|shaped like|of these shapes|of this shape")
SHOWN_ONLY = ("cli/", "report/", "reproduction/", "claims/")


def test_public_functions_of_tensors_state_shapes() -> None:
    """A method need not say again what one of its name says in a base class."""
    said: set[str] = set()
    silent: list[tuple[str, str, bool]] = []
    for file, text in sources().items():
        if file.startswith(SHOWN_ONLY):
            continue
        tree = ast.parse(text)
        owners = [(tree, False), *((n, True) for n in tree.body if isinstance(n, ast.ClassDef))]
        for owner, method in owners:
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                notes = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
                if not any(note and re.search(r"\bTensor\b", ast.unparse(note)) for note in notes):
                    continue
                if SHAPES.search(ast.get_docstring(node) or ""):
                    said.add(node.name)
                else:
                    silent.append((file, node.name, method))
    found = [f"{file}: {name}" for file, name, method in silent if not (method and name in said)]
    assert [line for line in found if line.partition(": ")[2] not in WITHOUT_SHAPE] == []


WITHOUT_SHAPE = {
    *("tensors", "moments", "take_models", "load_stores", "save_checkpoint", "ask_gradients"),
    *("stored", "compare_with_autograd", "log_group_metrics", "make", "differs", "update"),
}
"""Functions to which tensors of whatever shape are handed on."""
