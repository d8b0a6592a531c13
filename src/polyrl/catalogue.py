"""Finds methods and parts by name, reading files without importing them, and builds recipes from what a user types.

`polyrl list` and `polyrl --help` must answer at once, so nothing here imports torch: titles, papers and summaries are
read from the source with `ast`, and a module is imported only when its recipe is asked for.

A method of your own joins in either way: a file given by its path (`polyrl train ./mine.py`), or a package with an
entry point in the group `polyrl.methods` that names the module.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError, nearest
from polyrl.method_files import FAMILIES, MethodInfo, PartInfo, method_info, part_infos
from polyrl.names_elsewhere import method_elsewhere
from polyrl.recipe import STAGES, Change, Recipe
from polyrl.settings import american, parse_settings
from polyrl.tasks import DOMAINS, domain_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from types import ModuleType

    from polyrl.recipe import Part

PACKAGE = Path(__file__).parent

# -------------------------------------------------------------------------------------------------- what there is


@cache
def variants() -> dict[str, list[MethodInfo]]:
    """Every method by slug, one entry for each domain that it has a file for, in the domains' order.

    One whose file says `FIRST = True` comes before them. The package's own methods come first, then those of installed
    packages (entry points `polyrl.methods`).
    """
    found: dict[str, list[MethodInfo]] = {}
    root = PACKAGE / "methods"
    files = [path for path in root.glob("*/*.py") if path.stem != "__init__"]
    for path in sorted([*files, *root.glob("*/*/__init__.py")]):  # a long paper is a folder
        named = path.parent if path.stem == "__init__" else path.with_suffix("")
        info = method_info(path, f"polyrl.methods.{named.parent.name}.{named.name}", named.parent.name)
        if info:
            found.setdefault(info.slug, []).append(info)
    from importlib.metadata import entry_points

    for entry in entry_points(group="polyrl.methods"):
        try:
            info = method_info(_installed_file(entry), entry.value, "installed")
        except Exception:  # a package that is gone or broken must not take the catalogue down
            continue
        if info:
            found.setdefault(info.slug, [info])
    order = {domain: i for i, domain in enumerate(DOMAINS)}
    return {
        slug: sorted(infos, key=lambda i: (not i.first, order.get(i.domain, 9)))
        for slug, infos in sorted(found.items())
    }


@cache
def methods() -> dict[str, MethodInfo]:
    """Every method by slug; of one that runs in several domains the first."""
    return {slug: infos[0] for slug, infos in variants().items()}


@cache
def aliases() -> dict[str, str]:
    """Shorter names of methods -> their slugs."""
    return {info.alias: slug for slug, info in methods().items() if info.alias}


def families() -> dict[str, list[MethodInfo]]:
    """Every method, of each slug the first variant, by family: the known families first."""
    found: dict[str, list[MethodInfo]] = {name: [] for name in FAMILIES}
    for info in methods().values():
        found.setdefault(info.family, []).append(info)
    return {name: infos for name, infos in found.items() if infos}


def family(name: str) -> list[str]:
    """Slugs of the methods of a family.

    Raises:
        UserError: there is no such family.
    """
    if name not in families():
        known = [*families()]
        raise UserError(f"There is no family '{name}'.{nearest(name, known)} The families are {', '.join(known)}.")
    return [info.slug for info in families()[name]]


def method_for(name: str, domain: str | None) -> MethodInfo:
    """The file of the method `name` for a domain.

    Raises:
        UserError: the method is of another domain.
    """
    infos = variants()[name]
    for info in infos:
        if domain is None or info.domain in (domain, ""):
            return info
    fitting = [slug for slug, found in variants().items() if any(i.domain == domain for i in found)]
    raise UserError(
        f"'{name}' is a method for {' and '.join(i.domain for i in infos)} tasks, and this is a task of {domain}; "
        f"for it there {'is' if len(fitting) == 1 else 'are'} {', '.join(fitting)}."
    )


def default_task(spec: str) -> str:
    """The task that a method or composition runs on when none is named.

    A file that a method file names lies beside it, where there is none of that name in the present folder.
    """
    name = _split(spec)[0][0] if spec else ""
    info = describe(name)
    task = (info.task if info else "") or "addition"
    file, colon, function = task.rpartition(":")
    beside = info.path.parent / file if info and colon and file.endswith(".py") else None
    return f"{beside}:{function}" if beside and beside.is_file() and not Path(file).is_file() else task


def task_with_data(task: str | None, specs: Sequence[str]) -> str | None:
    """The task of methods that are given data: a task of control beside it, else the data is the task.

    Args:
        task: as it was named, if it was.
        specs: the methods.

    Raises:
        UserError: a task of language is named, which has data of its own.
    """
    if domain_of(task or default_task(specs[0])) == "control":
        return task
    if task:
        raise UserError("Give either --task or --dataset, not both.")
    return "dataset"


def _installed_file(entry: EntryPoint) -> Path:
    """The source of an entry point's module: found by its place, so that its package need not be imported."""
    if entry.dist is not None:
        place = Path(str(entry.dist.locate_file(entry.value.replace(".", "/") + ".py")))
        if place.is_file():
            return place
    spec = importlib.util.find_spec(entry.value)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(entry.value)
    return Path(spec.origin)


def describe(spec: str) -> MethodInfo | None:
    """What is known of a method by its slug or its file's path; None for a composition."""
    if spec.endswith(".py") and Path(spec).is_file():
        return method_info(Path(spec).resolve(), f"file:{spec}", "file")
    return methods().get(aliases().get(spec, spec))


@cache
def parts() -> dict[str, PartInfo]:
    """Every part that can be named in a composition, by its name."""
    shared = [(p, f"polyrl.parts.{p.stem}") for p in sorted((PACKAGE / "parts").glob("*.py")) if p.stem != "__init__"]
    own = [(m.path, m.module) for infos in variants().values() for m in infos]
    order: dict[str, int] = {s: i for i, s in enumerate(("policy", "models", "data", *STAGES))}
    infos = part_infos(shared + own)
    return dict(sorted(infos.items(), key=lambda item: (order.get(item[1].stage, 9), item[0])))


@cache
def entries() -> dict[str, PartInfo]:
    """Every model and source that a recipe can state, by its class's name in kebab case."""
    files = [
        (path, f"polyrl.{room}.{path.stem}")
        for room in ("models", "data")
        for path in sorted((PACKAGE / room).glob("*.py"))
        if path.stem != "__init__"
    ]
    return part_infos(files)


def part_classes() -> list[type[Part]]:
    """Import and return every known part class (for errors that name who would give a field)."""
    return [getattr(_import(i.module, i.path), i.class_name) for i in parts().values()]


# ------------------------------------------------------------------------------------------------ building recipes


def _import(module: str, path: Path) -> ModuleType:
    if module in sys.modules:
        return sys.modules[module]
    if not module.startswith("file:"):
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded  # dataclasses look their module up while the class is made
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[module]
        raise UserError(f"The method file {path} cannot be imported: {type(error).__name__}: {error}.") from error
    return loaded


def _split(spec: str) -> list[tuple[str, str]]:
    """`grpo(scale=none)+reference-kl` -> [("grpo", "scale=none"), ("reference-kl", "")]; names may contain `+`."""
    known = sorted([*methods(), *aliases(), *parts()], key=len, reverse=True)
    name = "|".join(map(re.escape, known))
    rest = r"(?:\((?P<args>[^)]*)\))?(?:\+|$)"
    token = re.compile(rf"(?P<name>(?:{name})(?=[+(]|$)|[^+(]+){rest}")
    items, at = [], 0
    while at < len(spec):
        # the path of a method file may hold the signs that mean something here
        file = _file_at(spec, at)
        match = (re.compile(rf"(?P<name>{re.escape(file)}){rest}") if file else token).match(spec, at)
        if not match or match.end() == at:
            raise UserError(
                f"Cannot read '{spec}' from '{spec[at:]}' on; write it like grpo+reference-kl(kl_loss_coef=0.04)."
            )
        found = match["name"].strip() if file else american(match["name"].strip())
        items.append((aliases().get(found, found), match["args"] or ""))
        at = match.end()
    if not items or (spec.endswith("+") and spec not in known and not any(spec.endswith(k) for k in known)):
        raise UserError(f"Cannot read the method '{spec}'; write it like grpo or grpo+reference-kl.")
    return items


def _file_at(spec: str, at: int) -> str | None:
    """The path of an existing method file that stands in `spec` at `at`, or None."""
    ends = (m.end() for m in re.finditer(r"\.py(?=[+(]|$)", spec[at:]))
    return next((spec[at : at + end] for end in ends if Path(spec[at : at + end]).expanduser().is_file()), None)


def located(spec: str) -> str:
    """The same method with its files named by absolute paths, so that it means the same in every folder."""
    if ".py" not in spec:
        return spec
    found = [(Path(name).expanduser(), name, arguments) for name, arguments in _split(spec)]
    items = [(str(path.absolute()) if path.is_file() else name, arguments) for path, name, arguments in found]
    return "+".join(f"{name}({arguments})" if arguments else name for name, arguments in items)


def method_files(spec: str) -> list[Path]:
    """The files of the user's own that a method or composition names."""
    paths = [Path(name).expanduser() for name, _ in _split(spec) if name.endswith(".py")]
    return [path.absolute() for path in paths]


def names_in(spec: str) -> list[str]:
    """The methods, parts and files that a composition names."""
    return [name for name, _ in _split(spec)]


def check_names(spec: str) -> None:
    """Refuse names that nothing bears, at once: nothing is imported.

    Raises:
        UserError: a name in `spec` is no method, no part and no method file.
    """
    for name, _ in _split(spec):
        if not (name.endswith(".py") or name in methods() or name in parts()):
            if "," in name and all(one.strip() in methods() for one in name.split(",")):
                raise UserError(f"'{name}' are phases, which `polyrl train` runs; name one method here.")
            said = method_elsewhere(name) or nearest(name, [*methods(), *parts()])
            raise UserError(f"There is no method or part '{name}'.{said} `polyrl list` shows what there is.")


def _load(name: str, domain: str | None) -> Recipe | Part:
    """The recipe or part called `name`, or the recipe in a file."""
    if name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"There is no method file {name}.")
        module = _import(f"file:{path}", path)
        recipe = _returned(module, name)
        if domain == "language":
            _check_responds(recipe, name)
        return dataclasses.replace(recipe, name=vars(module).get("SLUG", path.stem.replace("_", "-")))
    if name in methods():
        info = method_for(name, domain)
        built: Recipe = _import(info.module, info.path).recipe()
        return built
    if name in parts():
        part = parts()[name]
        made: Part = getattr(_import(part.module, part.path), part.class_name)()
        return made
    check_names(name)
    raise AssertionError(f"'{name}' is known but was not found")


def _returned(module: ModuleType, name: str) -> Recipe:
    function = vars(module).get("recipe")
    if not callable(function):
        what = "defines no function" if function is None else "has a 'recipe' that is no function; let it define"
        raise UserError(f"The method file {name} {what} recipe() that returns a polyrl.Recipe.")
    try:
        recipe = function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The function recipe() of the method file {name} failed, called without arguments: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"The function recipe() of the method file {name} returned a {type(recipe).__name__}; let it return a "
            "polyrl.Recipe."
        )
    return recipe


def _check_responds(recipe: Recipe, name: str) -> None:
    """Refuse a recipe of another domain on a task of language, which is the usual one where none is named."""
    if recipe.collect is not None and "prompt_ids" in recipe.collect.gives:
        return
    how = "collects nothing" if recipe.collect is None else f"collects by '{recipe.collect.name}'"
    raise UserError(
        f"The method file {name} {how}, which brings no responses of a language model, and this is a task of language; "
        "name the task that it is for with TASK in the file or with --task."
    )


def build(spec: str, settings: dict[str, Any] | None = None, *, domain: str | None = None) -> Recipe:
    """Build and check the recipe that `spec` names.

    Args:
        spec: a method, parts and methods joined by `+`, each with optional hyperparameters in parentheses, or the path
            of a method file: "grpo", "grpo+drop-equal-groups", "ppo(epochs=4)", "./mine.py+reference-kl".
        settings: hyperparameters set after composing, `field` or `part.field` -> value.
        domain: the kind of task; of a method that runs in several the file for it is taken.

    Raises:
        UserError: unknown name, unknown or bad hyperparameter, or a composition whose needs nobody gives.
    """
    recipe = compose(spec, domain)
    for key, value in (settings or {}).items():
        recipe = recipe.set(key, value)
    return checked(recipe)


def compose(spec: str, domain: str | None = None) -> Recipe:
    """The recipe that `spec` names, as `build` reads it, before it is checked.

    Raises:
        UserError: unknown name, or an unknown or bad hyperparameter in parentheses.
    """
    result: Recipe | None = None
    for name, arguments in _split(spec):
        item = _load(name, domain)
        if result is None:
            if not isinstance(item, Recipe):
                raise UserError(f"'{name}' is a part, not a method; put a method first, such as grpo+{name}.")
            result = item
        else:
            result = result + item
        assert result is not None
        # what a change has set stands in the entry that it changed
        entire = isinstance(item, Recipe | Change)
        own = set() if entire else {f.name for f in dataclasses.fields(item)}
        for key, value in parse_settings(arguments, name).items():
            result = result.set(f"{item.name}.{key}" if key in own else key, value)
    if result is None:
        raise UserError("Name a method, such as grpo; `polyrl list` shows what there is.")
    return dataclasses.replace(result, name=spec if not spec.endswith(".py") else result.name)


def changes(spec: str) -> list[Change]:
    """What of a composition changes entries of the method before it: of `sac+mixture` the mixture.

    Raises:
        UserError: unknown name.
    """
    added = [_load(name, None) for name, _ in _split(spec)[1:]]
    own = [part for item in added for part in (item.joins if isinstance(item, Recipe) else (item,))]
    return [part for part in own if isinstance(part, Change)]


def checked(recipe: Recipe) -> Recipe:
    """The recipe, if it holds together; otherwise an error that names the known parts that would give what is missing.

    Raises:
        UserError: a part needs what nobody gives.
    """
    try:
        return recipe.check()
    except UserError:
        # only now is it worth importing everything, to say who would give the field
        return recipe.check(providers=part_classes())
