"""Recipes as YAML files: `method`, and the options and hyperparameters of `polyrl train` under the same names.

A file is read as text, node by node: `1e-4` means what it means on the command line, a name that stands twice is told,
and every mistake is told with its line.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from polyrl.errors import UserError
from polyrl.request import Asked, Frontend, make_task
from polyrl.runtime.files import LARGEST_YAML, read_error, shown
from polyrl.runtime.options import by_name
from polyrl.settings import american, as_text

if TYPE_CHECKING:
    from polyrl.recipe import Recipe

OF_THE_COMMAND = ("out", "overwrite", "quiet", "trust_code")
"""Options of the command that say nothing of a run."""


class FileFrontend(Frontend):
    """The words in which a recipe file's mistakes are told: the same, with the line; others are those of `over`."""

    def __init__(self, file: str, lines: Mapping[str, int], over: Frontend):
        super().__init__(over.name, over.options)
        self.file, self.lines, self.over = file, lines, over

    def written(self, name: str) -> str:
        """A name as files have it."""
        return name.replace("_", "-")

    def unknown(self, name: str, methods: str) -> str:
        """A sentence: nothing bears this name."""
        if not self._is_here(name):
            return self.over.unknown(name, methods)
        return f"{self.at(name)}: '{self.written(name)}' is no option and no hyperparameter of {methods}."

    def last_hint(self, method: str) -> str:
        """What is said where nothing is near an unknown name."""
        return f" `polyrl show {method}` lists them."

    def check_rest(self) -> None:
        """Refuse what else was written beside the file."""
        self.over.check_rest()

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[None]:
        """Put the file and the line before what is refused within."""
        try:
            yield
        except UserError as error:
            if not self._is_here(name):
                raise
            raise UserError(f"{self.at(name)}: {error}") from None

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Put the file and the line before a sentence that begins with an option which stands there."""
        try:
            yield
        except UserError as error:
            word = re.match(r"-*([\w-]+)", str(error))
            if word is None or not self._is_here(word[1]):
                raise
            raise UserError(f"{self.at(word[1])}: {error}") from None

    def at(self, name: str) -> str:
        """File and line of a key."""
        return f"{self.file}, line {self.lines[_plain(name)]}"

    def _is_here(self, name: str) -> bool:
        return _plain(name) in self.lines


@dataclass(frozen=True)
class Written:
    """A key's value as it was written: one text or several, and the line of the key."""

    texts: tuple[str, ...]
    many: bool
    line: int


def read_recipe_file(
    method: str, asked: Asked, over: Frontend, *, trust_code: bool = False
) -> tuple[FileFrontend, Asked]:
    """What a file asks, and over it what was asked beside it.

    Args:
        method: the file.
        asked: what the command or the call says besides.
        over: its words.
        trust_code: whether code that the file names is to run though the user has not run it before.

    Raises:
        UserError: it cannot be read, or says what no option takes.
    """
    file = Path(method).expanduser()
    return _read(file, _keys(file), asked, over, trust_code=trust_code)


def read_phases(
    method: str, asked: Asked, over: Frontend, *, trust_code: bool = False
) -> list[tuple[FileFrontend, Asked]] | None:
    """What a file with `phases` asks, phase by phase; None where it has none, and is one run's.

    What stands beside `phases` holds in all of them that say nothing else, and what was asked beside the file in all;
    the model, from which the first one starts, in that alone.

    Args:
        method, asked, over, trust_code: as of `read_recipe_file`.

    Raises:
        UserError: it cannot be read, or says what no option takes.
    """
    file = Path(method).expanduser()
    root = _root(file)
    listed = [node for key, node in root.value if isinstance(key, yaml.ScalarNode) and key.value == "phases"]
    if not listed:
        return None
    phases = listed[0].value if isinstance(listed[0], yaml.SequenceNode) else []
    if not phases or not all(isinstance(phase, yaml.MappingNode) for phase in phases):
        line = listed[0].start_mark.line + 1
        raise UserError(f"{file}, line {line}: 'phases' is a list of settings, each with lines like - method: sft.")
    shared = _named(file, yaml.MappingNode(root.tag, [(k, n) for k, n in root.value if n is not listed[0]]))
    if "method" in shared:
        raise UserError(f"{file}, line {shared['method'].line}: each phase names its own method; leave this one away.")
    said = []
    for phase in phases:
        said.append(_read(file, shared | _named(file, phase), asked, over, trust_code=trust_code))
        shared.pop("model", None)  # the first phase alone starts from it
        asked = replace(asked, settings={k: v for k, v in asked.settings.items() if k != "model"})
    return said


def _read(
    file: Path, keys: dict[str, Written], asked: Asked, over: Frontend, *, trust_code: bool
) -> tuple[FileFrontend, Asked]:
    """What the keys of a file ask, and over it what was asked beside it."""
    from polyrl.runtime.budget import Budget
    from polyrl.runtime.config import RunConfig
    from polyrl.trust import check_code

    if "method" not in keys:
        what = "is the config of a run, which `polyrl resume` goes on with" if "run" in keys else "names no method"
        raise UserError(f"{file} {what}; a recipe file has a line like method: grpo.")
    taken = {_plain(name) for name in asked.hyperparameters}
    frontend = FileFrontend(str(file), {key: v.line for key, v in keys.items() if key not in taken}, over)
    settings: dict[str, Any] = {}
    hyperparameters: dict[str, Any] = {}
    with frontend.place("method"):
        named = _one(keys.pop("method"))
    options = by_name()
    for key, value in keys.items():
        if key in OF_THE_COMMAND:
            raise UserError(f"{frontend.at(key)}: '{key}' is said in the command, as --{key.replace('_', '-')}.")
        option = options.get(key)
        if option is None:
            hyperparameters[key] = ",".join(value.texts)
            continue
        with frontend.place(key):
            if option.many:
                settings[option.of] = value.texts
            elif (text := _one(value)) != "none":
                settings[option.of] = option.read(text)
            if key == "budget" and "budget" not in asked.settings:
                Budget.parse(settings.get("budget", ""))
    own = {name: settings[name] for name in ("task", "rewards", "preference") if name in settings}
    check_code(RunConfig(method=named, **own), file, trust_code=trust_code)
    settings |= asked.settings
    everything = {**hyperparameters, **{_plain(k): v for k, v in asked.hyperparameters.items()}}
    return frontend, replace(asked, methods=[named], settings=settings, hyperparameters=everything)


def _plain(name: str) -> str:
    return american(name.replace("-", "_"))


def _one(value: Written) -> str:
    """The one text of a key."""
    if value.many:
        raise UserError("it takes one value, and a list of them stands there.")
    return value.texts[0]


def _keys(file: Path) -> dict[str, Written]:
    """The keys of a file, with underscores, and what stands behind each.

    Raises:
        UserError: it is no mapping of names to values and lists, or has a name twice.
    """
    return _named(file, _root(file))


def _root(file: Path) -> yaml.MappingNode:
    """What a file holds, unread."""
    try:
        if not file.is_file():
            raise UserError(f"There is no recipe file {file}; `polyrl show METHOD --yaml` writes one.")
        if file.stat().st_size > LARGEST_YAML:
            raise UserError(f"{file} cannot be read as YAML: it is larger than {LARGEST_YAML >> 20} MiB.")
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise read_error(error) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f", line {mark.line + 1}," if mark else ""
        said = error.problem if isinstance(error, yaml.MarkedYAMLError) and error.problem else type(error).__name__
        raise UserError(f"{file}{where} cannot be read as YAML: {shown(said).rstrip('.')}.") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{file} holds no settings; write lines like method: grpo.")
    return root


def _named(file: Path, root: yaml.MappingNode) -> dict[str, Written]:
    """The keys of a mapping."""
    found: dict[str, Written] = {}
    for key, node in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{file}, line {line}: a name belongs before the colon.")
        name = _plain(key.value)
        if name in found:
            raise UserError(f"{file}, line {line}: '{shown(key.value)}' stands on line {found[name].line} already.")
        if isinstance(node, yaml.MappingNode) and name != "run":
            inner = node.value[0][0].value if node.value and isinstance(node.value[0][0], yaml.ScalarNode) else "NAME"
            raise UserError(
                f"{file}, line {line}: '{shown(key.value)}' holds names of its own, which belong on lines like it; "
                f"write {shown(key.value)}.{shown(inner)}: VALUE, or {shown(inner)}: VALUE."
            )
        many = isinstance(node, yaml.SequenceNode)
        items = node.value if many else [node]
        if name != "run" and not all(isinstance(item, yaml.ScalarNode) for item in items):
            raise UserError(f"{file}, line {line}: '{shown(key.value)}' takes a list of plain values.")
        found[name] = Written(tuple(map(_text, items)), many, line)
    return found


def _text(node: yaml.Node) -> str:
    """A value as it would be typed: nothing is `none`, and what YAML takes for true is `true`."""
    if node.tag == "tag:yaml.org,2002:null":
        return "none"
    if node.tag == "tag:yaml.org,2002:bool":
        return "true" if node.value.lower() in ("true", "yes", "on") else "false"
    return str(node.value)


# ---------------------------------------------------------------------------------------------------------- writing


def recipe_yaml(method: str, task: str | None = None) -> str:
    """A recipe file of a method with every hyperparameter at its value and one line of help behind it.

    A name stands bare where all parts that have it agree and no option of a run has it, else with its part's before it.

    Raises:
        UserError: there is no such method, or it has no form for this task.
    """
    from polyrl import catalogue
    from polyrl.request import domain
    from polyrl.runtime.config import RunConfig

    catalogue.check_names(method)
    task = task or catalogue.default_task(method)
    config = RunConfig(method=method, task=task)
    recipe = catalogue.build(method, domain=domain(config))
    helps = _helps(recipe)
    fields: dict[str, dict[str, Any]] = {}
    for key, value in recipe.hyperparameters().items():
        fields.setdefault(key.rpartition(".")[2], {})[key] = value
    lines: list[tuple[str, str]] = []
    for name, values in fields.items():
        first = next(iter(values.values()))
        bare = all(v == first for v in values.values()) and name not in by_name()
        for key, value in ({name: first} if bare else values).items():
            try:
                recipe.set(key, value)
            except UserError:  # of a part that the recipe puts in by itself
                continue
            lines.append((f"{key.replace('_', '-')}: {_scalar(value)}", helps.get(name, "")))
    width = min(44, max((len(line) for line, _ in lines), default=0))
    data = any(source.from_dataset for source in recipe.sources.values())
    head = [
        "# A recipe: `polyrl train FILE` runs it. What the command says besides goes before what stands here.",
        f"method: {_scalar(method)}",
        f"task: {_scalar(task)}",
        *(["dataset: FOLDER  # yours: recorded transitions"] if data else []),
        f"budget: {_scalar(recipe.budget or make_task(config).budget)}",
        "seed: 0",
        "# Every other option of `polyrl train` may stand here too, such as",
        "# evaluations: 10",
        "",
    ]
    return "\n".join([*head, *(f"{line:<{width}}  # {said}" if said else line for line, said in lines), ""])


def _helps(recipe: Recipe) -> dict[str, str]:
    """One line of help for each name of a hyperparameter."""
    from polyrl.recipe import options

    found: dict[str, str] = {"turns": "passes of the stages and the updates in one iteration"}
    parts = [*([recipe.policy] if recipe.policy else []), *recipe.parts()]
    for part in parts:
        for f in options(part):
            found.setdefault(f.name, str(f.metadata.get("help", "")))
    return found


def _scalar(value: Any) -> str:
    """A value as a file has it: quoted where YAML would take it for something else."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else as_text(value)
    return text if re.fullmatch(r"[\w./][\w.+,()=/-]*", text) else json.dumps(text, ensure_ascii=False)
