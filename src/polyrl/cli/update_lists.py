"""How `polyrl show` and `polyrl trace` tell of models, sources and the list of updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from polyrl.core.update import Again, Epochs, Fresh, Mix, Move, OwnUpdate, Phase, Repeat, Sample, Step, Update, flat
from polyrl.core.updating import UpdateList
from polyrl.recipe import Judged, Part, Recipe, options


def written(value: Any) -> str:
    """A hyperparameter's value as the command line takes it."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _first_sentence(thing: Any) -> str:
    return (thing.__doc__ or "").partition("\n")[0]


def _option_rows(table: Table, called: str, part: Part) -> None:
    for f in options(part):
        option = Text(f"--{called}.{f.name} ".replace("_", "-"), style="cyan")
        option.append(written(getattr(part, f.name)), style="bold cyan")
        option.append(f"   {f.metadata.get('help', '')}", style="dim")
        table.add_row("", option)


def _table() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    return table


def _starred(name: str, called: str, recipe: Recipe) -> Text:
    text = Text(name)
    if called in recipe.adds:
        text.append(" *", style="yellow")
    return text


def models_table(recipe: Recipe) -> Padding:
    """Every model: what it is, who trains it, moves it and reads it, and its hyperparameters."""
    table = _table()
    updates = [s for s in flat(recipe.updates) if isinstance(s, Update)]
    for name, model in recipe.models.items():
        facts = [model.said]
        facts += [f"trained by {u.name}" for u in updates if u.trains == name]
        facts += [
            f"improved by {u.name}" for u in flat(recipe.updates) if isinstance(u, OwnUpdate) and u.trains == name
        ]
        facts += [
            f"moved towards {m.towards}" for m in flat(recipe.updates) if isinstance(m, Move) and m.target == name
        ]
        parts = [p for _, stage in recipe.stages() for p in stage]
        parts += [p for u in updates for p in u.inner]
        parts += [p for step in recipe.update_steps() if isinstance(step, Epochs) for p in step.credit]
        parts += [step for step in recipe.update_steps() if isinstance(step, OwnUpdate)]
        readers = [p.name for p in parts if name in p.required_models()]
        facts += [f"read by {', '.join(dict.fromkeys(readers))}"] if readers else []
        facts += ["acts"] if name == recipe.acts else []
        facts += ["is judged"] if name == recipe.judged else []
        table.add_row(_starred(name, name, recipe), "; ".join(facts))
        _option_rows(table, name, model)
    return Padding(table, (0, 0, 0, 4))


def models_summary(recipe: Recipe) -> Padding:
    """The models in a line each."""
    table = _table()
    for name, model in recipe.models.items():
        what = model.said if model.copied else _first_sentence(type(model))
        values = ", ".join(f"{f.name}={written(getattr(model, f.name))}" for f in options(model))
        table.add_row(_starred(name, name, recipe), Text.assemble(what, (f"  {values}", "dim")))
    return Padding(table, (0, 0, 0, 2))


def sources_table(recipe: Recipe) -> Padding:
    """Every source with its hyperparameters."""
    table = _table()
    for name, source in recipe.sources.items():
        filled = f", filled after {source.after}" if source.after else ", given"
        table.add_row(_starred(name, name, recipe), f"{_first_sentence(type(source)).rstrip('.')}{filled}")
        _option_rows(table, name, source)
    return Padding(table, (0, 0, 0, 4))


def judged_table(recipe: Recipe) -> Padding:
    """What evaluations judge beside the policy, with the metric that tells of it."""
    table = _table()
    for name, judged in recipe.also_judged.items():
        plain = type(judged) is Judged
        said = f"{judged.model or recipe.judged or recipe.acts}{' as it acts in training' if judged.acting else ''}"
        said += "" if plain else f", {_first_sentence(type(judged)).rstrip('.')}"
        said += f", on {judged.task}" if judged.task else ""
        table.add_row(_starred(name, name, recipe), Text.assemble(said, (f"  eval/{name}/return", "dim")))
        _option_rows(table, name, judged)
    return Padding(table, (0, 0, 0, 4))


def stream_table(name: str, recipe: Recipe) -> Padding:
    """The parts of a named stream in the order of its stages, with their hyperparameters."""
    table = _table()
    for stage, parts in recipe.of_stream(name).stages():
        for part in parts if stage != "improve" else ():
            said = _starred(part.name, part.name, recipe)
            table.add_row(said, Text.assemble(_first_sentence(type(part)), (f"  {stage}", "dim")))
            _option_rows(table, f"{name}.{part.name}", part)
    return Padding(table, (0, 0, 0, 4))


def batch_words(batch: Part) -> str:
    """Where an update's rows come from: "256 rows of replay"."""
    if isinstance(batch, Sample):
        return f"{batch.batch_size} rows of {batch.source}"
    if isinstance(batch, Mix):
        return f"{batch.batch_size} rows, {batch.share:.0%} of {batch.first} and the rest of {batch.second}"
    if isinstance(batch, Again):
        return "the same rows"
    if isinstance(batch, Fresh):
        return f"the fresh rows of {batch.stream}" if batch.stream else "the fresh rows"
    return batch.name


def _numbered(every: int) -> str:
    if every < 2:
        return "" if every else ", once an iteration"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(every % 10 if every // 10 % 10 != 1 else 0, "th")
    return f", at every {every}{ending}"


def step_words(step: Step) -> str:
    """An update, move or repeat in a line."""
    if isinstance(step, Repeat):
        return "once:" if step.gradient_steps == 1 else f"{step.gradient_steps} times:"
    if isinstance(step, Epochs):
        passes = "once" if step.epochs == 1 else f"{step.epochs} times"
        parts = "" if step.minibatches == 1 else f", in {step.minibatches} minibatches of {step.minibatch_of}"
        return f"{passes} over {batch_words(step.batch)}{parts}{_numbered(step.every)}:"
    if isinstance(step, Phase):
        until = f"until {step.optimizer_steps:,} optimizer steps" if step.optimizer_steps else "to the end"
        reset = f", with a new optimizer of {', '.join(step.reset)}" if step.reset else ""
        return f"{until}{'' if step.collects else ', without collecting'}{reset}:"
    if isinstance(step, OwnUpdate):
        rows = " and on ".join(map(batch_words, (step.batch, *step.also)))
        return f"{step.name} of {step.trains} on {rows}{_numbered(step.every)}"
    if isinstance(step, Move):
        how = "becomes" if step.tau == 1 else f"moves {step.tau:g} of the way to"
        return f"{step.target} {how} {step.towards}{_numbered(step.every)}"
    rows = " and on ".join(batch_words(on.batch) for on in step.objectives)
    return f"train {step.trains} on {rows}{_numbered(step.every)}"


def walk(steps: Sequence[Step], depth: int = 0) -> Iterator[tuple[Step, int]]:
    """Every step of a list with its depth in repeats."""
    for step in steps:
        yield step, depth
        if isinstance(step, Repeat | Epochs | Phase):
            yield from walk(step.of, depth + 1)


def updates_table(recipe: Recipe) -> Padding:
    """The list of updates in its order, each with its parts and their hyperparameters."""
    table = _table()
    for number, (step, depth) in enumerate(walk(recipe.updates), 1):
        line = Text("  " * depth + step_words(step), style="bold")
        table.add_row(Text(str(number), style="dim"), line)
        if type(step) not in PLAIN:
            said = _starred(step.name, step.name, recipe)
            said.append(f"  {_first_sentence(type(step))}", style="not bold")
            table.add_row("", Text("  ").append_text(said))
        _option_rows(table, step.name, step)
        if isinstance(step, Update | Epochs):
            _option_rows(table, step.batch.name, step.batch)
            for on in step.also if isinstance(step, Update) else ():
                _option_rows(table, on.batch.name, on.batch)
            for part in step.inner if isinstance(step, Update) else step.credit:
                said = _starred(part.name, part.name, recipe)
                said.append(f"  {_first_sentence(type(part))}", style="not bold")
                table.add_row("", Text("  ").append_text(said))
                _option_rows(table, part.name, part)
    return Padding(table, (0, 0, 0, 4))


PLAIN = (Update, Move, Repeat, Epochs, Phase)
"""Steps that no paper has written for itself."""
WATCHED = ("approx_kl", "entropy", "logprob_gap")
"""What is told of passes over a batch, where they log it."""


def _given(step: Update | Epochs) -> str:
    credit = [p for on in step.objectives for p in on.credit] if isinstance(step, Update) else step.credit
    gives = sorted({field for part in credit for field in part.gives})
    return f"{', '.join(p.name for p in credit)} gives {', '.join(gives)}" if gives else ""


def traced(
    recipe: Recipe, models: Any, sources: Mapping[str, Any], metrics: Mapping[str, float]
) -> Iterator[tuple[Text, Step | None]]:
    """What the updates of an iteration did, a line each with its step, from the means that it logged."""
    improver = recipe.improver
    assert isinstance(improver, UpdateList)
    for name, rows in sources.items():
        facts = rows.facts()
        held, full = (facts.get(f"{name}/{what}") for what in ("steps", "full"))
        if held is None:
            said = f"{name}: " + ", ".join(f"{key.rpartition('/')[2]} {value:.3g}" for key, value in facts.items())
            if not facts:
                said = rows.sentence() or f"{name}: {_first_sentence(type(recipe.sources[name])).rstrip('.')}"
        else:
            said = f"{name} holds {held:,.0f} steps" + ("" if full is None else f", {full:.1%} of its capacity")
        yield Text(said if rows.ready() else f"{said}: too few to begin, so nothing was trained", style="dim"), None
    for step, depth in walk(recipe.updates):
        line = Text("  " * depth).append(step_words(step).removesuffix(":"), style="bold")
        if type(step) not in PLAIN:
            values = [f"{f.name}={written(getattr(step, f.name))}" for f in options(step) if f.name != "every"]
            line.append("".join(f"; {value}" for value in values), style="dim")
        if isinstance(step, Move):
            line.append(f"; {models.distance(step.target, step.towards):.3g} apart now", style="dim")
        elif isinstance(step, Epochs):
            watched = [key for key in map(step.called, WATCHED) if key in metrics]
            told = [_given(step), *(f"{key} {metrics[key]:.3g}" for key in watched)]
            line.append("".join(f"; {fact}" for fact in told if fact), style="dim")
        elif isinstance(step, Update):
            terms = [t for on in step.objectives for t in on.terms]
            keys = {t.name: improver.logged(f"loss/{t.name}", t, step.trains) for t in terms}
            losses = [f"{name} {metrics[key]:+.4f}" for name, key in keys.items() if key in metrics]
            norm = metrics.get(f"grad_norm/{step.trains}")
            facts_ = [
                _given(step),
                f"loss {', '.join(losses)}" if losses else "",
                "" if norm is None else f"gradient norm {norm:.3g}",
            ]
            line.append("".join(f"; {fact}" for fact in facts_ if fact), style="dim")
        yield line, step
