"""`polyrl show` and `polyrl trace`: what a method is, and one iteration of it, stage by stage."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from polyrl import catalogue
from polyrl.experience import FIELDS, Experience
from polyrl.recipe import STAGES, Part, Recipe, Stage, Term
from polyrl.runtime.config import RunConfig
from polyrl.runtime.progress import STAGE_COLOURS, duration

QUESTIONS: dict[str, str] = {
    "collect": "where does experience come from?",
    "score": "what was it worth?",
    "credit": "which actions deserve it?",
    "select": "which samples and steps count?",
    "improve": "what step does the model take?",
}


def console() -> Console:
    """Standard output, at least 80 columns wide."""
    return Console(highlight=False)


def first_sentence(thing: Any) -> str:
    """First line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


# ---------------------------------------------------------------------------------------------------------- show


def show_method(spec: str) -> None:
    """Print a method's paper, its five stages with their parts, and every hyperparameter."""
    out = console()
    recipe = catalogue.build(spec)
    out.print(_title(spec, recipe))
    for stage, parts in recipe.stages():
        out.print(_stage_heading(stage, recipe))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for part in parts:
            table.add_row(_part_name(part, recipe), first_sentence(type(part)))
            knobs = [(f, getattr(part, f.name)) for f in dataclasses.fields(part)]
            if "critic" not in recipe.models():
                knobs = [(f, value) for f, value in knobs if not f.name.startswith("critic_")]
            for f, value in knobs:
                option = Text(f"--{f.name.replace('_', '-')} ", style="cyan")
                option.append(_value(value), style="bold cyan")
                option.append(f"   {f.metadata.get('help', '')}", style="dim")
                table.add_row("", option)
        out.print(Padding(table, (0, 0, 0, 4)))
    info = catalogue.describe(spec)
    source = f"Source: {info.path}. " if info else ""
    out.print(f"\n[dim]{source}Try: polyrl trace {spec}[/]", soft_wrap=True)


def _title(spec: str, recipe: Recipe) -> Panel:
    info = catalogue.describe(spec)
    if info is None:
        present = {part.name for part in recipe.parts()}
        text = f"A composition, with {', '.join(a for a in recipe.adds if a in present)}."
        if recipe.dropped:
            text += f" Dropped, because what they need is no longer given: {', '.join(recipe.dropped)}."
        return Panel(Text(text), title=f"[bold]{spec}[/]", title_align="left", border_style="blue")
    head = Text.assemble((info.summary, ""), "\n", (info.formula, "bold"), "\n", (f"{info.paper} ({info.year})", "dim"))
    return Panel(head, title=f"[bold]{info.slug}[/]  {info.title}", title_align="left", border_style="blue")


def _stage_heading(stage: Stage, recipe: Recipe) -> Text:
    heading = Text.assemble(
        (f"\n{STAGES.index(stage) + 1} {stage.upper()}", f"bold {STAGE_COLOURS[stage]}"),
        (f"  {QUESTIONS[stage]}", "dim italic"),
    )
    if stage in recipe.notes:
        heading.append(f"\n    {recipe.notes[stage]}")
    return heading


def _part_name(part: Part, recipe: Recipe) -> Text:
    name = Text(part.name)
    if part.name in recipe.adds:
        name.append(" *", style="yellow")
    return name


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


# --------------------------------------------------------------------------------------------------------- trace


def trace_method(config: RunConfig) -> None:
    """Run one iteration and explain it: what each part did to which fields, and what that looks like on one prompt."""
    from polyrl.runs import make_loop

    out = console()
    loop, _ = make_loop(config, say=lambda text: out.print(Text(text, style="dim")))
    recipe = loop.recipe
    out.print(_title(config.method, recipe))
    task = loop.world.task  # type: ignore[attr-defined]
    out.print(f"[dim]One iteration on the task {task.name}, from its starting model; * marks what the paper adds.[/]")
    seen: set[Stage] = set()

    def observe(stage: Stage, part: Part, before: Experience | None, after: Experience, seconds: float) -> None:
        if stage not in seen:
            seen.add(stage)
            out.print(_stage_heading(stage, recipe))
        if stage == "improve":
            _explain_improve(out, loop, seconds)
            return
        _explain_part(out, part, recipe, before, after, seconds)
        if stage == "collect":
            out.print(_episodes(after, ["completion"], "one prompt and what was sampled for it"))
        elif "score" in part.gives and "score" in after:
            out.print(_episodes(after, ["score", "completion"], "scored"))
        elif "advantage" in part.gives:
            out.print(_tokens(after, loop.world))

    loop.iterate(observe)
    for stage, _ in recipe.stages():
        if stage not in seen and stage == "select":
            out.print(_stage_heading(stage, recipe))
    total = sum(loop.seconds.get(s, 0.0) for s in STAGES)
    shares = "  ".join(f"{s} {100 * loop.seconds.get(s, 0.0) / total:.0f}%" for s in STAGES)
    out.print(f"\n[bold]Time[/]  {total:.2f} s in all: {shares}")
    left = [f"{k} {v:.3g}" for k, v in loop.context.metrics.items() if k in ("reward", "kl", "entropy", "perplexity")]
    out.print(f"[bold]Logged[/]  {'  '.join(left)}")


def _explain_part(
    out: Console, part: Part, recipe: Recipe, before: Experience | None, after: Experience, seconds: float
) -> None:
    line = Text("  ")
    line.append_text(_part_name(part, recipe)).stylize("bold")
    line.append(f"  {first_sentence(type(part))}")
    line.append(f"  {1000 * seconds:.0f} ms", style="dim")
    out.print(line)
    needs = sorted(part.required())
    if needs:
        out.print(Text(f"    reads {', '.join(needs)}", style="dim"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("    gives", "shape", "unit", "min", "mean", "max", "meaning"):
        table.add_column(column, header_style="dim", justify="right" if column in ("min", "mean", "max") else "left")
    for name in after.fields():
        old = before[name] if before is not None and name in before else None
        if old is not None and old.shape == after[name].shape and bool(torch.equal(old, after[name])):
            continue
        field = FIELDS.get(name)
        table.add_row(
            f"    {name}",
            _shape(after[name]),
            field.unit if field else "",
            *_range(after, name),
            field.meaning if field else "",
        )
    if table.row_count:
        out.print(table)


def _shape(tensor: torch.Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def _range(experience: Experience, name: str) -> tuple[str, str, str]:
    """Least, mean and greatest value over the steps that count."""
    values = experience[name]
    if values.dtype == torch.int64:
        return "", "", ""
    numbers = values.float()
    if values.dim() == 2 and numbers.shape == experience["mask"].shape and name not in ("mask", "present"):
        numbers = numbers[experience["mask"]]
    if values.dtype == torch.bool:
        return "", f"{100 * float(numbers.mean()):.0f}% true", ""
    return tuple(f"{float(v):.3g}" for v in (numbers.min(), numbers.mean(), numbers.max()))  # type: ignore[return-value]


def _chosen_group(experience: Experience) -> list[int]:
    """Rows of the group whose scores differ most, at most four of them and its greedy twin."""
    groups = experience["group"].tolist()
    best = groups[0]
    if "score" in experience:
        score = experience["score"]
        spread = {g: float(score[experience["group"] == g].std(correction=0)) for g in dict.fromkeys(groups)}
        best = max(spread, key=lambda g: spread[g])
    rows = [i for i, g in enumerate(groups) if g == best]
    twins = [i for i in rows if bool(experience["greedy"][i])]
    return [*[i for i in rows if i not in twins][: 4 - len(twins)], *twins]


def _episodes(experience: Experience, columns: list[str], caption: str) -> Padding:
    rows = _chosen_group(experience)
    prompt = experience.columns.get("prompt", [""] * len(experience))[rows[0]]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for i in rows:
        cells = [Text("greedy" if bool(experience["greedy"][i]) else "sample", style="dim")]
        if "score" in columns:
            value = float(experience["score"][i])
            cells.append(Text(f"{value:.2f}", style="bold green" if value > 0 else "bold red"))
        cells.append(Text(repr(experience.columns["completion"][i])[1:-1], style="cyan"))
        table.add_row(*cells)
    heading = Text.assemble((f"{caption}: ", "italic dim"), (str(prompt), "bold"))
    return Padding(Group(heading, table), (0, 0, 0, 4))


def _tokens(experience: Experience, world: Any) -> Padding:
    """The first tokens of two rows with their advantages: what the update will push up or down."""
    blocks: list[Any] = [Text("what each token will be pushed by:", style="italic dim")]
    rows = [i for i in _chosen_group(experience) if not bool(experience["greedy"][i])]
    if len(rows) < 2:  # one response a prompt: take the best and the worst instead
        trained = (~experience["greedy"]).nonzero()[:, 0]
        ranked = trained[experience["advantage"].sum(1)[trained].argsort()].tolist()
        rows = [ranked[0], ranked[-1]]
    ranked = sorted(rows, key=lambda i: float(experience["advantage"][i].sum()))
    for i in dict.fromkeys((ranked[0], ranked[-1])):
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        steps = experience["mask"][i].nonzero()[:, 0].tolist()
        if len(steps) > 12:
            steps = [*steps[:6], *steps[-6:]]
        names = ("action", "value", "advantage")
        for name in names:
            if name not in experience:
                continue
            cells: list[Text] = []
            for t in steps:
                if name == "action":
                    piece = world.policy.tokenizer.decode([int(experience["action"][i, t])])
                    cells.append(Text(repr(piece)[1:-1], style="cyan"))
                else:
                    value = float(experience[name][i, t])
                    cells.append(Text(f"{value:+.2f}", style="green" if value > 0 else "red" if value < 0 else "dim"))
            if len(experience["mask"][i].nonzero()) > 12:
                cells.insert(6, Text("...", style="dim"))
            table.add_row(Text(name, style="dim"), *cells)
        blocks.append(table)
    return Padding(Group(*blocks), (0, 0, 0, 4))


def _explain_improve(out: Console, loop: Any, seconds: float) -> None:
    recipe, metrics = loop.recipe, loop.context.metrics
    for term in recipe.terms:
        line = Text("  ")
        line.append_text(_part_name(term, recipe)).stylize("bold")
        line.append(f"  {first_sentence(type(term))}")
        out.print(line)
        out.print(Text(f"    {_term_facts(term, metrics)}", style="dim"))
    o = recipe.optimise
    out.print(
        Text.assemble(
            "  ",
            ("optimise", "bold"),
            f"  {metrics.get('grad_norm/policy', 0):.3g} was the gradient's norm (clipped at {o.max_grad_norm:g}); "
            f"AdamW at learning rate {metrics.get('learning_rate', 0):.2g}, {o.epochs} epoch{'s' * (o.epochs > 1)} of "
            f"{o.minibatches} minibatch{'es' * (o.minibatches > 1)} = {loop.context.spent.updates} steps",
            (f"  {duration(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'}", "dim"),
        )
    )
    if "clip_ratio" in metrics:
        out.print(
            Text(
                f"    on average over the steps: ratio {metrics['ratio']:.4f}, {100 * metrics['clip_ratio']:.1f}% of "
                f"tokens had left the clip range, KL to the sampler {metrics['approx_kl']:.2g} nats a token",
                style="dim",
            )
        )
    if "logprob_gap" in metrics:
        text = f"    check: sampler and trainer agree on every log-probability to {metrics['logprob_gap']:.1e} nats"
        out.print(Text(text, style="dim"))


def _term_facts(term: Term, metrics: dict[str, float]) -> str:
    knobs = ", ".join(f"{f.name}={_value(getattr(term, f.name))}" for f in dataclasses.fields(term))
    reads = ", ".join(sorted(term.required() | term.wants))
    return f"loss {metrics.get(f'loss/{term.name}', 0):+.4f}; {knobs}; reads {reads}"
