"""`polyrl show`: what a method is; and the headings that `polyrl trace` shares with it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from polyrl import catalogue
from polyrl.claims import claims, studies_of, verdict
from polyrl.cli import update_lists
from polyrl.cli.update_lists import written
from polyrl.core.access import in_words
from polyrl.recipe import STAGES, Part, Recipe, Stage, options
from polyrl.runtime.progress import STAGE_COLOURS
from polyrl.runtime.terminal import Terminal

QUESTIONS: dict[str, str] = {
    "policy": "what acts?",
    "models": "what acts, and what is trained beside it?",
    "data": "which rows are there beside the fresh ones?",
    "judged": "what do evaluations judge beside the policy?",
    "collect": "where does experience come from?",
    "score": "what was it worth?",
    "credit": "which actions deserve it?",
    "select": "which samples and steps count?",
    "improve": "what step does the model take?",
}


def console() -> Console:
    """Standard output, at least 80 columns wide."""
    return Terminal()


def first_sentence(thing: Any) -> str:
    """First line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


# ---------------------------------------------------------------------------------------------------------- show


def shown(out: Terminal, spec: str, domain: str | None = None) -> tuple[str, bool]:
    """What `show_method` prints on such a terminal, and whether all of it is polyrl's own."""
    with out.capture() as text:
        recipe = show_method(spec, domain, out)
    own = all(type(part).__module__.partition(".")[0] == "polyrl" for part in recipe.parts())
    return text.get(), own and ".py" not in spec


def show_method(spec: str, domain: str | None = None, out: Console | None = None) -> Recipe:
    """Print a method's paper, its five stages with their parts, and every hyperparameter; return its recipe."""
    out = out or console()
    recipe = catalogue.build(spec, domain=domain)
    out.print(title(spec, recipe))
    if recipe.policy:
        out.print(stage_heading("policy", recipe))
        out.print(_parts_table((recipe.policy,), recipe))
    if recipe.models:
        out.print(stage_heading("models", recipe))
        out.print(update_lists.models_table(recipe))
    if recipe.sources:
        out.print(stage_heading("data", recipe))
        out.print(update_lists.sources_table(recipe))
    for stage, parts in recipe.stages():
        if stage == "improve":
            for name in recipe.streams:
                out.print(stream_heading(name, recipe))
                out.print(update_lists.stream_table(name, recipe))
        if recipe.updates and stage != "improve" and not parts and stage not in recipe.notes:
            continue
        out.print(stage_heading(stage, recipe))
        improves = stage == "improve" and recipe.updates
        out.print(update_lists.updates_table(recipe) if improves else _parts_table(parts, recipe))
    if recipe.also_judged:
        out.print(stage_heading("judged", recipe))
        out.print(update_lists.judged_table(recipe))
    infos = catalogue.variants().get(spec, [])
    info = catalogue.method_for(spec, domain) if infos else catalogue.describe(spec)
    source = f"Source: {info.path}. " if info else ""
    named = f" --task {info.task}" if info and info not in infos[:1] and info.task else ""
    named += " --dataset FOLDER" if any(s.from_dataset for s in recipe.sources.values()) else ""
    out.print(Text(f"\n{source}Try: polyrl trace {spec}{named}", style="dim"), soft_wrap=True)
    for other in infos:
        if other is not info:
            said = f"For {other.domain} tasks: polyrl show {spec} --task {other.task}"
            out.print(Text(said, style="dim"), soft_wrap=True)
    return recipe


def _parts_table(parts: Sequence[Part], recipe: Recipe) -> Padding:
    """Parts with their first sentence and every hyperparameter as the option that sets it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for part in parts:
        table.add_row(part_name(part, recipe), first_sentence(type(part)))
        if asked := part.required_access():
            table.add_row("", Text(f"asks the task for {in_words(asked)} access", style="dim"))
        hyperparameters = [(f, getattr(part, f.name)) for f in options(part)]
        if not _has_critic(recipe):
            hyperparameters = [(f, value) for f, value in hyperparameters if not f.name.startswith("critic_")]
        for f, value in hyperparameters:
            option = Text(f"--{f.name.replace('_', '-')} ", style="cyan")
            option.append(written(value), style="bold cyan")
            option.append(f"   {f.metadata.get('help', '')}", style="dim")
            table.add_row("", option)
    return Padding(table, (0, 0, 0, 4))


def _has_critic(recipe: Recipe) -> bool:
    """Whether a critic is trained: the recipe asks for the model, or a term reads its values."""
    return "critic" in recipe.required_models() or any("value" in term.wants for term in recipe.terms)


def title(spec: str, recipe: Recipe) -> Panel:
    """What a method is in a few words, with its paper, or what a composition is made of."""
    info = catalogue.describe(spec)
    if info is None:
        present = {*(part.name for part in recipe.parts()), *recipe.models}
        text = f"A composition, with {', '.join(dict.fromkeys(a for a in recipe.adds if a in present))}."
        for change in catalogue.changes(spec):
            text += f" {change.name}: {first_sentence(type(change))}"
        if recipe.dropped:
            text += f" Dropped, because what they need is no longer given: {', '.join(recipe.dropped)}."
        return Panel(Text(text), title=Text(spec, "bold"), title_align="left", border_style="blue")
    head = Text.assemble(
        (info.summary, ""),
        "\n",
        (info.formula, "bold"),
        "\n",
        (f"{info.paper} ({info.year})" if info.year else info.paper, "dim"),
    )
    if info.slug in claims():
        said = verdict(info.slug) or "not yet re-tested"
        head.append_text(
            Text.assemble("\n", ("the paper's claim: ", "dim"), said, (f"  polyrl reproduce {info.slug}", "dim"))
        )
    for study in studies_of(info.slug):
        said = verdict(study) or "not yet re-tested"
        head.append_text(
            Text.assemble("\n", ("studied beside others: ", "dim"), said, (f"  polyrl reproduce {study}", "dim"))
        )
    return Panel(
        head, title=Text.assemble((info.slug, "bold"), f"  {info.title}"), title_align="left", border_style="blue"
    )


def stage_heading(stage: Stage, recipe: Recipe) -> Group:
    """The stage's number, name and question, and what the recipe notes on it."""
    number = f"{STAGES.index(stage) + 1} " if stage in STAGES else ""
    heading = Text.assemble(
        (f"\n{number}{stage.upper()}", f"bold {STAGE_COLOURS.get(stage, 'white')}"),
        (f"  {QUESTIONS[stage]}", "dim italic"),
    )
    note = recipe.notes.get(stage)
    return Group(heading, *([Padding(Text(note), (0, 0, 0, 4), expand=False)] if note else []))


def stream_heading(name: str, recipe: Recipe) -> Text:
    """A named stream: who acts in it."""
    view = recipe.of_stream(name)
    return Text.assemble(
        (f"\nSTREAM {name}", f"bold {STAGE_COLOURS.get('collect', 'white')}"),
        (f"  rows of its own, with {view.acts} acting", "dim italic"),
    )


def part_name(part: Part, recipe: Recipe) -> Text:
    """A part's name, with a star where the paper adds it."""
    name = Text(part.name)
    if part.name in recipe.adds:
        name.append(" *", style="yellow")
    return name
