"""Functions of the user's own, named `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from polyrl.errors import UserError, nearest
from polyrl.tasks.language.phrases import a_kind, reason_of

MODULE_PREFIX = "polyrl_"
"""What the names of modules begin with that were made of a file of the user's."""


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """Return the function that `spec` names; the module or file is run as Python code.

    Args:
        spec: `package.module:function` or `path/to/file.py:function`.
        what: what the function is to the user, such as "reward" or "environment", for errors.

    Raises:
        UserError: it cannot be imported, is not there or cannot be called.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UserError(f"There is no {what} '{spec}'; give 'package.module:function' or 'path/to/file.py:function'.")
    module = import_file(place, what) if place.endswith(".py") else import_module(place)
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f"'{place}' has no function '{name}'.{nearest(name, names)} "
            f"It has {', '.join(sorted(names)) or 'no functions'}."
        )
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise UserError(f"The {what} '{spec}' is not a function but {a_kind(function)}.")
    return function


FINITE_MDP = "FiniteMDP"
"""What a function returns that is a task of theory (`polyrl.tasks.theory.FiniteMDP`)."""


def stated_return(function: str | Callable[..., Any]) -> str:
    """What a function says that it returns, the last word of its annotation; empty where it says nothing.

    Args:
        function: `package.module:function` or `path/to/file.py:function`, whose text is read and not run; or a
            function.
    """
    if not isinstance(function, str):
        try:
            stated = inspect.signature(plain_function(function)).return_annotation
        except (TypeError, ValueError):  # not written in Python
            return ""
        text = stated if isinstance(stated, str) else inspect.formatannotation(stated)
        return text.strip("'\"").rpartition(".")[2]
    place, _, name = function.rpartition(":")
    file = Path(place).expanduser() if place.endswith(".py") else module_file(place)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file else None
    except (OSError, SyntaxError, ValueError):
        return ""  # told where it is loaded
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == name and node.returns is not None:
            return ast.unparse(node.returns).strip("'\"").rpartition(".")[2]
    return ""


def module_file(name: str) -> Path | None:
    """The file that importing `name` would run, from the working folder too, found without importing anything."""
    folders: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    names = name.split(".")
    origin: str | None = None
    for i in range(len(names)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(names[: i + 1]), folders)
        if spec is None:
            return None
        origin, folders = spec.origin, spec.submodule_search_locations
    return Path(origin) if origin and origin.endswith(".py") else None


_LIBRARIES = tuple(
    {str(Path(p)) for p in (sysconfig.get_paths()[k] for k in ("stdlib", "platstdlib", "purelib", "platlib"))}
)


def place_of(error: BaseException) -> str:
    """File and line of the user's own code in which an error came up: the last that is in no library.

    Where there is none, the last one that is not polyrl's; empty where even that is missing.
    """
    ours = str(Path(__file__).parents[1])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<"))]
    theirs = [f for f in frames if not f.filename.startswith(_LIBRARIES) and "site-packages" not in f.filename]
    found = (theirs or frames)[-1:]
    return f"{found[0].filename}, line {found[0].lineno}" if found else ""


def raised(error: BaseException) -> str:
    """`raised ValueError: ... (file.py, line 12)`: what the user's code did and where."""
    place = place_of(error)
    return f"raised {reason_of(error)}" + (f" ({place})" if place else "")


def import_module(name: str) -> ModuleType:
    """Import a module by its dotted name, from the working folder too.

    Raises:
        UserError: it cannot be imported.
    """
    with _import_path(Path.cwd()), _import_errors(f"module '{name}'"):
        return importlib.import_module(name)


def import_file(path: str, what: str) -> ModuleType:
    """Run a file as a module whose name is unique to the file: two files of one name in two folders are two modules.

    Raises:
        UserError: there is no such file, or it cannot be run.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file '{path}' to load {_article(what)} from.")
    unique = hashlib.blake2b(str(file.resolve()).encode(), digest_size=4).hexdigest()
    name = f"{MODULE_PREFIX}{what}_{file.stem}_{unique}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise UserError(f"The file '{path}' cannot be loaded as Python code.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        with _import_path(file.resolve().parent), _import_errors(f"file '{path}'"):
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


@contextlib.contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Let code import its neighbours, as `python file.py` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _import_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(f"The {what} cannot be imported: {reason_of(error)}.") from error


# ------------------------------------------------------------------------------------------------- what a function is


def called_name(function: Callable[..., Any]) -> str:
    """The name of a function, of a partial that of the function in it, of an object that of its class."""
    if isinstance(function, functools.partial):
        return called_name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def plain_function(function: Callable[..., Any]) -> Any:
    """The function that runs in the end: what is in a partial, under a decorator, or an object's `__call__`."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif not inspect.isroutine(function) and not inspect.isclass(function):
            function = type(function).__call__
        elif (inner := getattr(function, "__wrapped__", None)) is not None:
            function = inner
        else:
            return function


def is_user_code(function: Callable[..., Any]) -> bool:
    """Whether the function is no part of polyrl."""
    module = getattr(plain_function(function), "__module__", None) or ""
    return str(module).partition(".")[0] != "polyrl"


def code_digest(function: Callable[..., Any]) -> str:
    """16 hexadecimal digits that identify a function by what it is and not by what it is called.

    They are of its source, of the file where it has one of its own (a neighbour in it may do the work), and of the
    plain values that it holds: arguments of a partial, variables of a closure, attributes of an object.
    """
    found = hashlib.blake2b(digest_size=8)
    for text in _identity(function):
        found.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


def _identity(function: Callable[..., Any]) -> Iterator[str]:
    if isinstance(function, functools.partial):
        yield f"partial {_values((function.args, function.keywords))}"
        yield from _identity(function.func)
        return
    if inspect.ismethod(function):
        yield from _identity(function.__func__)
        yield _values(_attributes(function.__self__))
        return
    if not inspect.isroutine(function):
        yield _source(type(function)) or type(function).__qualname__
        yield _values(_attributes(function))
        return
    code = getattr(plain_function(function), "__code__", None)
    yield getattr(function, "__qualname__", "")
    yield _file_of(function) or _source(function) or ("" if code is None else _compiled(code))
    for inner in (function, plain_function(function)):
        yield _values(getattr(inner, "__defaults__", None))
        cells = getattr(inner, "__closure__", None) or ()
        yield _values([_cell(cell) for cell in cells])


def _file_of(function: Callable[..., Any]) -> str:
    """The text of the file that `import_file` made the function's module of; empty for any other."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not module.__name__.startswith(MODULE_PREFIX) or not getattr(module, "__file__", None):
        return ""
    with contextlib.suppress(OSError):
        return Path(str(module.__file__)).read_text(encoding="utf-8", errors="replace")
    return ""


def _source(thing: Any) -> str:
    with contextlib.suppress(OSError, TypeError, IndexError):
        return inspect.getsource(thing)
    return ""


def _compiled(code: CodeType) -> str:
    """What a function without source computes: its instructions, names and constants, inner functions included."""
    constants = [_compiled(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _attributes(owner: Any) -> Any:
    return getattr(owner, "__dict__", None)


def _values(value: Any, depth: int = 0) -> str:
    """Plain values as text; of others only what kind they are, since their text may tell an address."""
    if value is None or isinstance(value, str | bytes | int | float | bool):
        return repr(value)
    if depth > 4:
        return type(value).__name__
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_values(k)}: {_values(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_values(v, depth + 1) for v in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_values(v, depth + 1) for v in value)) + "}"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return type(value).__name__
