"""Functions of the user's own, named `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from polyrl.errors import UserError, nearest
from polyrl.tasks.language.phrases import a_kind, reason_of


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
    name = f"polyrl_{what}_{file.stem}_{unique}"
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
