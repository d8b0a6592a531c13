"""Pages that are written from the code when the site is built, the table of methods in the README, pages of claims.

MkDocs calls `on_config` and `on_files`. `python docs/hooks.py` rewrites the README's table, the tables of speed and
`docs/claims/`, which are committed: they are read without building the site.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polyrl import catalogue, method_files, names_elsewhere
from polyrl.claims import claims, family_of, studies_of
from polyrl.cli.update_lists import PLAIN, step_words, walk
from polyrl.core import special_rows
from polyrl.core.fields import FIELDS, Field, documented, own_fields
from polyrl.core.special_rows import USES
from polyrl.core.update import Epochs, Update
from polyrl.recipe import STAGES, Part, Recipe, kebab, options
from polyrl.reproduction import ledger
from polyrl.reproduction.ledger_page import findings, forest, ledger_page
from polyrl.reproduction.page import NOT_RETESTED, claim_page, claims_page
from polyrl.tasks import DOMAINS, built_in

if TYPE_CHECKING:
    import click
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
SPEED = DOCS / "speed.md"
COMPOSITION = DOCS / "composition.md"
COMPOSED = DOCS / "composition.json"
"""What tests/test_composition.py found when it built every pair and ran one iteration of it."""
COMPOSED_PREFERENCE = DOCS / "preference-composition.json"
"""The same of methods that learn from preferences."""
COMING = DOCS / "coming-from.md"
FOUND = DOCS / "findings.md"
FOREST = DOCS / "assets" / "claims" / "all-effects.svg"
RESULTS = DOCS.parent / "benchmarks" / "results"
METHODS, MEASURED, PAIRS, PREFERENCE_PAIRS = "methods", "measured", "pairs", "preference-pairs"
FINDINGS = "findings"
"""Names of the tables between markers."""
QUESTIONS = {
    "models": "What acts, and what is trained beside it?",
    "data": "Which rows are there beside the fresh ones?",
    "policy": "What acts, where no model is given? An architecture, which polyrl makes.",
    "collect": "Where does experience come from?",
    "score": "What was it worth?",
    "credit": "Which actions deserve it?",
    "select": "Which samples and steps count?",
    "judged": "What do evaluations judge beside the policy?",
    "improve": "What step does the model take?",
}

# ------------------------------------------------------------------------------------------------------ small pieces


def file_name(slug: str) -> str:
    """The stem of the method's own file, such as `reinforce_pp`: a slug that files and web addresses can carry.

    A study of several methods has no method's file, and its claim's is named as it is.
    """
    if slug not in catalogue.methods():
        return slug.replace("-", "_")
    path = catalogue.methods()[slug].path
    return path.parent.name if path.stem == "__init__" else path.stem


def cell(value: object) -> str:
    """Text that stays inside its cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *[[cell(c) for c in row] for row in rows]]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def paper_link(paper: str) -> str:
    """`arXiv:1707.06347` or `doi:10.1007/BF00992696` -> a Markdown link."""
    kind, _, number = paper.partition(":")
    places = {"arxiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    return f"[{paper}]({places[kind.lower()]}{number})" if kind.lower() in places else paper or "-"


def verdict(slug: str, root: str = "../") -> str:
    """What the re-test of the paper's claim said, with a link to its page; `root` leads to `docs/`."""
    said = ledger.verdict(slug) or NOT_RETESTED
    return f"[{said}]({root}claims/{file_name(slug)}.md)" if slug in claims() else said


def value_text(value: Any) -> str:
    """A hyperparameter's value as the command line takes it."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value).lower()


def range_text(part: type[Part], f: dataclasses.Field[Any]) -> str:
    """What a hyperparameter may be: `at least 1`, `above 0, or none`, `k1, k2 or k3`."""
    kind = typing.get_type_hints(part)[f.name]
    kinds = [k for k in (typing.get_args(kind) or [kind]) if k is not type(None)]
    optional = type(None) in typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(filter(None, (", ".join(typing.get_args(kind)[:-1]), typing.get_args(kind)[-1])))
    if bool in kinds:
        return "true or false"
    low, high, above = (f.metadata.get(k) for k in ("low", "high", "above"))
    words = [f"above {above:g}" if above is not None else "", f"at least {low:g}" if low is not None else ""]
    words.append(f"at most {high:g}" if high is not None else "")
    return ", ".join(filter(None, [" and ".join(filter(None, words)), "or none" if optional else ""])) or "any"


def hyperparameter_rows(part: type[Part], values: Part | None = None) -> Iterator[tuple[str, str, str, str]]:
    """Name, default, range and meaning of each hyperparameter of a part, as `values` sets them."""
    for f in (
        options(values) if values is not None else [f for f in dataclasses.fields(part) if f.kw_only or f.metadata]
    ):
        default = getattr(values, f.name) if values is not None else f.default
        yield f"`{f.name}`", f"`{value_text(default)}`", range_text(part, f), f.metadata.get("help", "")


def docstring(thing: object) -> str:
    """The whole docstring, with no indentation."""
    return inspect.cleandoc(getattr(thing, "__doc__", "") or "")


def fields_text(names: frozenset[str]) -> str:
    """Names of fields, each a link to its meaning."""
    known = documented(catalogue.part_classes())
    linked = (f"[`{n}`](fields.md#{n})" if n in known else f"`{n}`" for n in sorted(names))
    return ", ".join(linked) or "nothing"


# ------------------------------------------------------------------------------------------------------------- pages


def method_page(slug: str) -> str:
    """Everything about a method: its paper, stages, hyperparameters, facts and commands, for each kind of task."""
    first, *others = catalogue.variants()[slug]
    pieces = [
        f"# {slug}",
        f"**{first.title}** ({first.year}), {paper_link(first.paper)}",
        f"    {first.formula}",
        docstring(importlib.import_module(first.module)),
        f"**Verdict on the paper's claim:** {verdict(slug)}.",
        *[f"**Studied beside others** in `{study}`: {verdict(study)}." for study in studies_of(slug)],
        *_recipe_pieces(first),
    ]
    for info in others:
        intro = docstring(importlib.import_module(info.module))
        pieces += [f"# {slug} for {info.domain} tasks", intro, *_recipe_pieces(info)]
    facts = DOCS / "facts" / f"{file_name(slug)}.md"
    if facts.is_file():
        pieces.append(facts.read_text(encoding="utf-8").strip())
    return "\n\n".join(pieces) + "\n"


OTHERS = {"grpo": "rloo", "dpo": "ipo", "hdpo": "reinforce", "dr-rpo": "dr-lsvi-ucb", "nash-mp": "nash-md"}
"""A method that is worth comparing with one; the key's else."""


def _recipe_pieces(info: method_files.MethodInfo) -> Iterator[str]:
    """Stages, hyperparameters and commands of a method's recipe for one kind of task."""
    slug = info.slug
    recipe = catalogue.build(slug, domain=info.domain or None)
    yield "## The five stages"
    yield "`*` marks what the paper adds; `another+" + slug + "` takes exactly these parts."
    if recipe.policy:
        made = docstring(type(recipe.policy)).partition(chr(10))[0]
        name = recipe.policy.name
        yield f"What acts: [`{name}`](../reference/parts.md#{name}){_star(recipe.policy, recipe)}: {made}"
    yield from _stage_pieces(recipe)
    yield "## Hyperparameters"
    yield (
        "Each is an option: `--name value` sets it in every part that has it, `--part.name value` in one part. "
        "The defaults below are this recipe's, chosen for small models; the paper's own stand further down."
    )
    own = {id(part) for _, part in recipe.entries()}
    parts = [(p.name, p) for p in recipe.parts() if id(p) not in own]
    parts = [*([(recipe.policy.name, recipe.policy)] if recipe.policy else []), *parts, *recipe.entries()]
    rows = [(name.replace("_", "-"), *row) for name, p in parts for row in hyperparameter_rows(type(p), p)]
    if recipe.updates:
        meaning = "passes through the stages and the updates in one iteration"
        rows.append(("iteration", "`turns`", f"`{recipe.turns}`", "at least 1", meaning))
    yield table(("part", "name", "default", "range", "meaning"), rows)
    # a method that runs in several domains needs the task named where it is not the first's
    named = f" --task {info.task}" if info is not catalogue.methods()[slug] else ""
    other = next((b for a, b in [*OTHERS.items(), *((b, a) for a, b in OTHERS.items())] if a == slug), "")
    if not other and info.domain == "language":
        other = "dpo" if info.family == "preference" else "grpo"
    against = f" {other}" if other and not named else ""
    recipe = catalogue.build(slug, domain=info.domain)
    data = " --dataset FOLDER" if any(source.from_dataset for source in recipe.sources.values()) else ""
    yield "## Commands to try"
    yield (
        f"```console\n$ polyrl show {slug}{named}\n$ polyrl trace {slug}{named}{data}\n"
        f"$ polyrl train {slug}{named}{data}\n$ polyrl compare {slug}{against}{named}{data} --seeds 3\n```"
    )


def _star(part: Part, recipe: Recipe) -> str:
    return " `*`" if part.name in recipe.adds else ""


def _stage_pieces(recipe: Recipe) -> Iterator[str]:
    for stage, entries in (("models", recipe.models), ("data", recipe.sources)):
        if entries:
            yield f"### {stage}"
            yield f"*{QUESTIONS[stage]}*"
            yield "\n".join(_entry_line(name, entry, recipe) for name, entry in entries.items())
    for number, (stage, parts) in enumerate(recipe.stages(), start=1):
        yield f"### {number} {stage}"
        if recipe.updates and stage == "improve":
            note = recipe.notes.get(stage, "")
            yield f"*{QUESTIONS[stage]}* {note[:1].upper()}{note[1:]}."
            yield "\n".join(_step_lines(recipe))
            continue
        note = recipe.notes.get(stage, "")
        yield f"*{QUESTIONS[stage]}*" + (f" {note[:1].upper()}{note[1:]}." if note else "")
        yield "\n".join(
            f"- [`{p.name}`](../reference/parts.md#{p.name}){_star(p, recipe)}: "
            f"{docstring(type(p)).partition(chr(10))[0]}"
            for p in parts
        )


def _entry_line(name: str, entry: Part, recipe: Recipe) -> str:
    star = " `*`" if name in recipe.adds else ""
    if entry.name not in {**catalogue.entries(), **catalogue.parts()}:
        said = (
            recipe.models[name].said if name in recipe.models else docstring(type(entry)).partition("\n")[0].rstrip(".")
        )
        return f"- `{name}`{star}: {said}"
    return f"- [`{name}`](../reference/parts.md#{entry.name}){star}: {docstring(type(entry)).partition(chr(10))[0]}"


def _step_lines(recipe: Recipe) -> Iterator[str]:
    for step, depth in walk(recipe.updates):
        space = "    " * depth
        yield f"{space}- **{step_words(step)}**"
        if type(step) not in PLAIN:
            line = f"[`{step.name}`](../reference/parts.md#improve){_star(step, recipe)}"
            yield f"{space}    - {line}: {docstring(type(step)).partition(chr(10))[0]}"
        inner = step.inner if isinstance(step, Update) else step.credit if isinstance(step, Epochs) else ()
        for part in inner:
            line = f"[`{part.name}`](../reference/parts.md#{part.name}){_star(part, recipe)}"
            yield f"{space}    - {line}: {docstring(type(part)).partition(chr(10))[0]}"


def domains(slug: str) -> str:
    """The kinds of task that a method runs on."""
    return ", ".join(info.domain for info in catalogue.variants()[slug] if info.domain)


def methods_page() -> str:
    """The overview of methods."""
    text = "A method is a named recipe from a paper. Methods and [parts](../reference/parts.md) join with `+`: "
    text += "`polyrl train grpo+entropy-bonus`; [what composes with what](../composition.md). **Changes** names the "
    text += "stages in which the paper adds parts of its own."
    pieces = [f"# Methods\n\n{text}\n"]
    for family, members in catalogue.families().items():
        rows = [
            (
                f"[`{m.slug}`]({file_name(m.slug)}.md)",
                domains(m.slug),
                f"{paper_link(m.paper)} ({m.year})",
                m.summary,
                changed_stages(m),
                f"`{m.formula}`",
                verdict(m.slug),
            )
            for m in members
        ]
        head = ("method", "for", "paper", "idea", "changes", "formula", "claim")
        pieces.append(f"## {method_files.FAMILIES.get(family, family)}\n\n{table(head, rows)}")
    return "\n".join(pieces)


def changed_stages(info: method_files.MethodInfo) -> str:
    """The stages in which a method has parts of its own, in the order of the loop."""
    recipe = catalogue.build(info.slug, domain=info.domain or None)
    own = {part.stage for part in recipe.parts() if part.name in recipe.adds}
    return ", ".join(stage for stage in STAGES if stage in own)


def special_rows_text(cls: type[Part]) -> str:
    """What a part does with each kind of row that is no ordinary response, in one sentence."""
    kinds: dict[str, list[str]] = {}
    for kind, use in (cls.special_rows.uses() if cls.special_rows else {}).items():
        kinds.setdefault(use, []).append(kind)
    said = [f"{', '.join(names)} {use}" for use, names in kinds.items()]
    return f"[Special rows](#special-rows): {'; '.join(said)}."


def parts_page() -> str:
    """Every part by stage, with what it reads, gives and can be set to."""
    pieces = [
        "# Parts",
        "A part does one stage's work. Add one to a method with `+`, as in `grpo+drop-equal-groups`, and set its "
        "hyperparameters in parentheses, as in `'grpo+reference-kl(kl_loss_coef=0.04)'`, or as options. A part that "
        "*only measures* is put in where its field is needed. Parts of one *slot* replace each other.",
    ]
    pieces += [
        "## Special rows { #special-rows }",
        docstring(special_rows).partition("\n\n")[2],
        table(("a part says", "which means"), [*USES.items()]),
    ]
    classes = {p.name: p for p in (*catalogue.parts().values(), *catalogue.entries().values())}
    for stage in ("policy", "models", "data", *STAGES, "judged"):
        pieces += [f"## {stage}", QUESTIONS[stage]]
        for name, info in classes.items():
            if info.stage != stage:
                continue
            cls: type[Part] = getattr(importlib.import_module(info.module), info.class_name)
            facts = [f"Reads {fields_text(cls.needs)}.", f"Gives {fields_text(cls.gives)}."]
            facts += [f"Slot: {cls.slot}."] if cls.slot else []
            facts += [f"Models besides the policy: {', '.join(sorted(cls.models))}."] if cls.models else []
            facts += ["Only measures."] if cls.measures else []
            facts += [special_rows_text(cls)] if cls.special_rows else []
            pieces += [f"### {name} {{ #{name} }}", docstring(cls), " ".join(facts)]
            rows = list(hyperparameter_rows(cls))
            pieces += [table(("name", "default", "range", "meaning"), rows)] if rows else []
    return "\n\n".join(pieces) + "\n"


def fields_page() -> str:
    """Every field that the experience may have: what parts share, then what one part alone brings."""
    own = own_fields(catalogue.part_classes())
    head = "| field | shape | dtype | unit | meaning |"
    shared = "".join(f"{field_row(name, field)}\n" for name, field in FIELDS.items())
    brought = "".join(f"{field_row(name, field)} {part_link(kind)} |\n" for name, (field, kind) in own.items())
    return (
        "# Experience fields\n\n"
        "`Experience` is the one table that flows through the stages. `B` is the number of episodes (responses), `T` "
        "the longest one in steps (tokens), `P` the longest prompt.\n\n"
        f"{head}\n|{' --- |' * 5}\n{shared}\n"
        "## Of one part\n\n"
        "What one part alone brings stands in its file, as `own_fields`. A part of yours may say what its own fields "
        "are in the same way, and `polyrl trace` shows it ([writing a method](../writing-a-method.md#parts)).\n\n"
        f"{head} brought by |\n|{' --- |' * 6}\n{brought}"
    )


def field_row(name: str, field: Field) -> str:
    """A field's row of a table, its name a place that links lead to."""
    return f'| <a id="{name}"></a>`{name}` | `{field.shape}` | {field.dtype} | {field.unit} | {field.meaning} |'


def part_link(kind: type[Part]) -> str:
    """The name of a part with a link to it; of what several parts derive from, the link is to the first of them."""
    first = next(cls for cls in catalogue.part_classes() if issubclass(cls, kind))
    return f"[`{kebab(kind.__name__)}`](parts.md#{kebab(first.__name__)})"


TASK_INTRO = {
    "language": "They make their own problems, check answers exactly and keep test problems apart from training "
    "problems. Each has a tiny starting model that is made once, on first use, by supervised training. For your own "
    "data, see [getting started](../getting-started.md#your-own-model-data-and-reward).",
    "control": "Any [Gymnasium](https://gymnasium.farama.org) environment by its id, such as `--task CartPole-v1`, or "
    "a function of yours that makes one, `--task file.py:function`. See [control](../control.md).",
    "operations": "Inventories with simulators that are differentiated, and optima to compare with. See "
    "[operations](../operations.md).",
    "theory": "Exact problems with exact evaluation. See [theory](../theory.md).",
}


def tasks_page() -> str:
    """Every built-in task with its settings."""
    pieces = ["# Tasks", "A task's name says its kind. Settings stand in parentheses, `--task 'sort(difficulty=6)'`."]
    for domain in DOMAINS:
        pieces += [f"## {domain.capitalize()}", TASK_INTRO[domain]]
        module = importlib.import_module(f"polyrl.tasks.{domain}")
        for name in built_in(domain):
            made = module.task(name)
            pieces += [f"### {name}", docstring(type(made)), *_task_facts(name, made)]
    return "\n\n".join(pieces) + "\n"


def _task_facts(name: str, made: Any) -> Iterator[str]:
    metric = made.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    lines = "".join(f"; {line} {value:.5g}" for line, value in metric.lines.items())
    yield f"Judged by {metric.label}{unit}, {'higher' if metric.higher_is_better else 'lower'} is better{lines}."
    if hasattr(made, "difficulty") and made.difficulty:
        allowed = getattr(type(made), "difficulties", None)
        span = f", {allowed.start} to {allowed.stop - 1}" if allowed else ""
        yield (
            f"`--task {name} --difficulty {made.difficulty}` (the default{span}). Longest response: "
            f"{made.max_tokens} tokens. Rewards: {', '.join(f'`{r.name}`' for r in made.rewards)}."
        )
    settings = [f"`{f.name}` `{getattr(made, f.name)}`" for f in dataclasses.fields(made) if f.init]
    if settings:
        yield f"Settings: {', '.join(settings)}."


def commands_page() -> str:
    """Every command with its arguments and options, from the command line's own definition."""
    from polyrl.cli.main import polyrl

    pieces = ["# Commands", docstring(polyrl)]
    for name, command in polyrl.commands.items():
        pieces += [f"## polyrl {name}", f"```console\n$ {_usage(name, command)}\n```", docstring(command.callback)]
        rows = [_option(p) for p in command.params if p.param_type_name == "option"]
        pieces += [table(("option", "what it does"), rows)] if rows else []
    return "\n\n".join(pieces) + "\n"


def _usage(name: str, command: click.Command) -> str:
    import click

    context = click.Context(command)
    words = [p.make_metavar(context) for p in command.params if p.param_type_name == "argument"]
    free = ["[--HYPERPARAMETER VALUE ...]"] if command.context_settings.get("ignore_unknown_options") else []
    return " ".join(["polyrl", name, *words, "[OPTIONS]", *free])


def _option(parameter: click.Parameter) -> tuple[str, str]:
    import click

    left, right = parameter.get_help_record(click.Context(click.Command("polyrl"))) or ("", "")
    return f"`{left}`", right


# ------------------------------------------------------------------------------------------------------------ claims


def claim_pages() -> dict[str, str]:
    """Address in the site -> Markdown of every page about claims."""
    addresses = {slug: f"{file_name(slug)}.md" for slug in claims()}
    entries = {slug: entry for slug in claims() if (entry := ledger.read(slug))}
    example = next(iter(entries), next(iter(claims())))
    source = (catalogue.PACKAGE / "claims" / f"{file_name(example)}.py").read_text(encoding="utf-8")
    written = {"claims/index.md": claims_page(claims(), entries, addresses, source)}
    for slug, claim in claims().items():
        picture = DOCS / "assets" / "claims" / f"{slug}.svg"
        address = f"../assets/claims/{slug}.svg" if picture.is_file() else None
        methods = [f"../methods/{file_name(method)}.md" for method in claim.methods()]
        written[f"claims/{addresses[slug]}"] = claim_page(claim, entries.get(slug), address, methods)
    written["claims/ledger.md"] = whole_ledger(addresses, entries)
    return written


def whole_ledger(addresses: Mapping[str, str], entries: Mapping[str, Any]) -> str:
    """The page of all claims that can be filtered."""
    families = {slug: family_of(slug) for slug in claims()}
    files = {slug: f"../assets/claims/{slug}.svg" for slug in claims()}
    pictures = {slug: file for slug, file in files.items() if (DOCS / "claims" / file).is_file()}
    return ledger_page(claims(), entries, families, addresses, pictures)


def findings_page() -> str:
    """The short paper on what was found, its results written from the ledger."""
    entries = {slug: entry for slug in claims() if (entry := ledger.read(slug))}
    addresses = {slug: f"claims/{file_name(slug)}.md" for slug in claims()}
    made = findings(claims(), entries, addresses)
    return with_table(FOUND.read_text(encoding="utf-8"), FINDINGS, made)


def write_claim_pages() -> None:
    """Bring `docs/claims/` and what was found up to date, and remove pages of claims that are no more."""
    pages = claim_pages()
    entries = {slug: entry for slug in claims() if (entry := ledger.read(slug))}
    FOREST.write_text(forest(claims(), entries), encoding="utf-8")
    FOUND.write_text(findings_page(), encoding="utf-8")
    (DOCS / "claims").mkdir(exist_ok=True)
    for file in (DOCS / "claims").glob("*.md"):
        if f"claims/{file.name}" not in pages:
            file.unlink()
    for address, text in pages.items():
        (DOCS / address).write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ README


def method_table() -> str:
    """The README's table of methods, without its markers."""
    pieces = []
    for family, members in catalogue.families().items():
        rows = [
            (
                f"`{m.slug}`",
                f"{m.title}, {paper_link(m.paper)} ({m.year})",
                m.summary,
                verdict(m.slug, "docs/"),
            )
            for m in members
            if m.module.startswith("polyrl.")
        ]
        if rows:
            heading = f"**{method_files.FAMILIES[family]}** (`{family}`)"
            made = table(("method", "paper", "idea", "the paper's claim"), rows)
            pieces.append(f"{heading}\n\n{made}")
    return "\n".join(pieces)


def with_table(text: str, name: str = METHODS, made: str | None = None) -> str:
    """The text with what stands between the markers of that name replaced: in the README, by the table of methods."""
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the markers {first} and {last} are missing")
    return f"{before}{first}\n{method_table() if made is None else made}{last}{after}"


# ----------------------------------------------------------------------------------------------------- other libraries


def with_names_elsewhere(text: str) -> str:
    """The page with its tables of what other libraries call things."""
    for name, found in names_elsewhere.tables().items():
        text = with_table(text, name, "".join(f"| {' | '.join(row)} |\n" for row in _lines(found)))
    return text


def _lines(found: names_elsewhere.Table) -> Iterator[Sequence[str]]:
    yield found.head
    yield ["---"] * len(found.head)
    yield from found.rows


# ------------------------------------------------------------------------------------------------------- composition


def composition_table(composed: Path = COMPOSED) -> str:
    """Which pairs of methods compose, with lettered settings, and in numbered lines why the others do not."""
    found: dict[str, dict[str, str]] = json.loads(composed.read_text(encoding="utf-8"))
    added = sorted({name for row in found.values() for name in row})
    settings: dict[str, str] = {}
    reasons: dict[str, int] = {}
    rows = []
    for base, row in found.items():
        cells = []
        for name in added:
            said = row.get(name)
            if not said:
                cells.append("" if said is None else "yes")
            elif re.fullmatch(r"[\w=,]+", said):
                cells.append(f"yes {settings.setdefault(said, chr(ord('a') + len(settings)))}")
            else:
                why = said.removeprefix(f"{base}+{name}: ")
                cells.append(str(reasons.setdefault(why, len(reasons) + 1)))
        rows.append((f"`{base}`", *cells))
    lines = [f"{letter}: with `{setting}`" for setting, letter in settings.items()]
    text = table(("", *(f"+{name}" for name in added)), rows) + "\n"
    text += f"{'; '.join(lines)}.\n\n" if lines else ""
    return text + "".join(f"{number}. {cell(why)}\n" for why, number in reasons.items())


# ------------------------------------------------------------------------------------------------------------- speed


def results(name: str) -> dict[str, Any]:
    """The cases of benchmarks/results/<name>.json; none where it has not been measured."""
    file = RESULTS / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return dict(known.get("cases", {}))


def without_avx512(name: str, case: str, peer: str) -> str:
    """The same ratio where all sides had to do without AVX-512."""
    ratio = results(f"{name}_avx2").get(case, {}).get("ratios", {}).get(peer)
    return spread_text(ratio, 2) if ratio else "not measured"


def spread_text(value: dict[str, float], digits: int) -> str:
    """Median with the range of the rounds."""
    return f"{value['median']:,.{digits}f} ({value['low']:,.{digits}f} to {value['high']:,.{digits}f})"


def measured_tables() -> str:
    """All that the benchmarks have measured, as Markdown."""
    made = {
        "language": language_tables,
        "control": control_tables,
        "off_policy": off_policy_tables,
        "off_policy_learning": off_policy_curves,
        "learning": learning_table,
        "start": start_table,
    }
    pieces = [
        f"### {title(name)}\n\n{write(cases)}\n{measured_on(cases)}"
        for name, write in made.items()
        if (cases := results(name))
    ]
    return "\n" + "\n\n".join(pieces) + "\n\n" if pieces else "\nNothing has been measured yet: `make bench`.\n\n"


def title(name: str) -> str:
    """Heading of a result file."""
    titles = {
        "off_policy": "Off-policy control",
        "off_policy_learning": "What off-policy control reaches",
        "learning": "Learning curves",
        "start": "Start-up",
    }
    return titles.get(name, name.capitalize())


def measured_on(cases: dict[str, Any]) -> str:
    """What the cases were measured on: one sentence for all that agree."""
    said: dict[str, list[str]] = {}
    for name, found in cases.items():
        facts = found["measured"]
        versions = {k: v for known in facts["versions"].values() for k, v in known.items()}
        machine = f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores, one thread a process"
        machine += f", {facts['machine']['instructions']}" if "instructions" in facts["machine"] else ""
        state = (
            f"commit {facts['commit']}{' with changes' if facts['dirty'] else ''}, {facts['date'].partition(' ')[0]}"
        )
        sentence = f"{machine}; {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}; {state}."
        said.setdefault(sentence, []).append(name)
    return "\n".join(f"{', '.join(names)}: {text}" if len(said) > 1 else text for text, names in said.items())


def language_tables(cases: dict[str, Any]) -> str:
    """Ratios to the peers, then the parts of a step."""
    ratios, parts = [], []
    for name, found in cases.items():
        for peer, ratio in found["ratios"].items():
            sides = (found["sides"][peer], found["sides"]["polyrl"])
            seconds = [f"{side['seconds']['median']:.3f}" for side in sides]
            first = peer == next(iter(found["ratios"]))
            ratios.append(
                (
                    *(name, peer, *seconds, spread_text(ratio, 2), without_avx512("language", name, peer)),
                    f"{found['goal']:g}" if first and found["goal"] else "",
                )
            )
        for side, values in found["sides"].items():
            milliseconds = [f"{1000 * took:.0f}" for took in values["parts"].values()]
            done = (f"{values['tokens']['mean']:,.0f}", f"{values['updates']:g}", f"{values['peak_mib']:,.0f}")
            parts.append((name, side, *milliseconds, *done))
    names = next(iter(cases.values()))["sides"]["polyrl"]["parts"]
    head = ("work", "peer", "peer, s a step", "polyrl, s a step", "polyrl is faster by", "without AVX-512", "goal")
    columns = ("work", "side", *(f"{part}, ms" for part in names), "tokens", "updates", "peak MiB")
    return f"{table(head, ratios)}\n{table(columns, parts)}"


def control_tables(cases: dict[str, Any]) -> str:
    """Ratios to the peers, then the parts of a step."""
    ratios, parts = [], []
    for name, found in cases.items():
        for peer, ratio in found["ratios"].items():
            rates = [f"{found['sides'][side]['steps_per_second']['median']:,.0f}" for side in (peer, "polyrl")]
            first = peer == next(iter(found["ratios"]))
            ratios.append(
                (
                    *(name, peer, *rates, spread_text(ratio, 2), without_avx512("control", name, peer)),
                    f"{found['goal']:g}" if first and found["goal"] else "",
                )
            )
        for side, values in found["sides"].items():
            microseconds = [f"{1e6 * took:.1f}" for took in values["parts"].values()]
            done = (f"{values['steps']:,.0f}", f"{values['updates']:.0f}", f"{values['peak_mib']:,.0f}")
            parts.append((name, side, *microseconds, *done))
    names = next(iter(cases.values()))["sides"]["polyrl"]["parts"]
    head = ("work", "peer", "peer, steps/s", "polyrl, steps/s", "polyrl is faster by", "without AVX-512", "goal")
    columns = ("work", "side", *(f"{part}, us a step" for part in names), "steps an iteration", "updates", "peak MiB")
    return f"{table(head, ratios)}\n{table(columns, parts)}"


def off_policy_tables(cases: dict[str, Any]) -> str:
    """Ratios to Stable-Baselines3, then the parts of an environment step, and what the products alone would take."""
    ratios, parts = [], []
    for name, found in cases.items():
        took = [f"{1000 * found['sides'][side]['seconds_a_step']['median']:.2f}" for side in ("sb3", "polyrl")]
        ratios.append((name, *took, spread_text(found["ratios"]["sb3"], 2), f"{found['goal']:g}"))
        for side, values in found["sides"].items():
            milliseconds = [f"{1000 * part:.3f}" for part in values["parts"].values()]
            done = (f"{values['steps']:,.0f}", f"{values['updates']:.0f}", f"{values['peak_mib']:,.0f}")
            parts.append((name, side, *milliseconds, *done))
    names = next(iter(cases.values()))["sides"]["polyrl"]["parts"]
    head = ("work", "sb3, ms a step", "polyrl, ms a step", "polyrl is faster by", "goal")
    columns = ("work", "side", *(f"{part}, ms a step" for part in names), "steps a turn", "updates", "peak MiB")
    return f"{table(head, ratios)}\n{table(columns, parts)}"


def off_policy_curves(cases: dict[str, Any]) -> str:
    """Returns of greedy evaluations on the way and at the end, side by side."""
    rows = []
    for name, found in cases.items():
        curves = [found["sides"][side]["curve"] for side in ("sb3", "polyrl")]
        for theirs, ours in zip(*curves, strict=True):
            rows.append((name, len(found["seeds"]), f"{ours['steps']:,}", return_text(theirs), return_text(ours)))
    return table(("work", "seeds", "steps", "sb3", "polyrl"), rows)


def return_text(value: dict[str, Any]) -> str:
    """Interquartile mean with its interval; of fewer than three seeds each seed's return instead."""
    if len(value["by_seed"]) < 3:
        return ", ".join(f"{x:.0f}" for x in value["by_seed"])
    low, high = value["interval"]
    return f"{value['interquartile_mean']:.1f} ({low:.1f} to {high:.1f})"


def learning_table(cases: dict[str, Any]) -> str:
    """Mean reward by piece of the curve."""
    pieces = cases["grpo"]["pieces"]
    rows = []
    for piece in pieces:
        sides = [f"{s['mean']:.3f} ({s['interval'][0]:.3f} to {s['interval'][1]:.3f})" for s in piece["sides"].values()]
        rows.append((" to ".join(map(str, piece["steps"])), *sides, "yes" if piece["agree"] else "no"))
    return table(("steps", *pieces[0]["sides"], "intervals overlap"), rows)


def start_table(cases: dict[str, Any]) -> str:
    """Wall seconds of commands."""
    rows = [
        (name, spread_text(found["seconds"], 2), "" if found["limit"] is None else f"{found['limit']:g}")
        for name, found in cases.items()
    ]
    return table(("what", "seconds", "limit"), rows)


# ------------------------------------------------------------------------------------------------------------ MkDocs


def pages() -> dict[str, str]:
    """Address in the site -> Markdown of every generated page."""
    return {
        "methods/index.md": methods_page(),
        **{f"methods/{file_name(slug)}.md": method_page(slug) for slug in catalogue.methods()},
        "reference/commands.md": commands_page(),
        "reference/parts.md": parts_page(),
        "reference/fields.md": fields_page(),
        "reference/tasks.md": tasks_page(),
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the methods into the navigation."""
    own = ["methods/index.md", *[f"methods/{file_name(slug)}.md" for slug in catalogue.methods()]]
    first = ["claims.md", "findings.md", "claims/index.md", "claims/ledger.md"]
    tested = [*first, *[a for a in claim_pages() if a not in first]]
    chapters = {"methods": {"Methods": own}, "claims": {"Claims": tested}}
    nav = config.nav or []
    config.nav = [chapters.get(next(iter(e.values())), e) if _is_place(e) else e for e in nav]
    return config


def _is_place(entry: Any) -> bool:
    """Whether an entry of the navigation names a place that is filled here."""
    return isinstance(entry, dict) and isinstance(next(iter(entry.values())), str)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for address, text in pages().items():
        files.append(File.generated(config, address, content=re.sub(r"\n{3,}", "\n\n", text)))
    return files


if __name__ == "__main__":
    write_claim_pages()
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    pairs = with_table(COMPOSITION.read_text(encoding="utf-8"), PAIRS, composition_table())
    pairs = with_table(pairs, PREFERENCE_PAIRS, composition_table(COMPOSED_PREFERENCE))
    COMPOSITION.write_text(pairs, encoding="utf-8")
    SPEED.write_text(with_table(SPEED.read_text(encoding="utf-8"), MEASURED, measured_tables()), encoding="utf-8")
    COMING.write_text(with_names_elsewhere(COMING.read_text(encoding="utf-8")), encoding="utf-8")
