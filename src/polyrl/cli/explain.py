"""`polyrl show` and `polyrl trace`: what a method is, and one iteration of it, stage by stage."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from polyrl import catalogue
from polyrl.claims import claims, verdict
from polyrl.cli import excerpts
from polyrl.experience import FIELDS, Experience
from polyrl.parts.optimise import Optimise
from polyrl.recipe import STAGES, Part, Recipe, Stage, Term
from polyrl.runtime.config import RunConfig
from polyrl.runtime.progress import STAGE_COLOURS, duration

QUESTIONS: dict[str, str] = {
    "policy": "what acts?",
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


def show_method(spec: str, wing: str | None = None) -> None:
    """Print a method's paper, its five stages with their parts, and every hyperparameter."""
    out = console()
    recipe = catalogue.build(spec, wing=wing)
    out.print(_title(spec, recipe))
    if recipe.policy:
        out.print(_stage_heading("policy", recipe))
        out.print(_parts_table((recipe.policy,), recipe))
    for stage, parts in recipe.stages():
        out.print(_stage_heading(stage, recipe))
        out.print(_parts_table(parts, recipe))
    infos = catalogue.variants().get(spec, [])
    info = catalogue.method_for(spec, wing) if infos else catalogue.describe(spec)
    source = f"Source: {info.path}. " if info else ""
    named = f" --task {info.task}" if info and info not in infos[:1] and info.task else ""
    out.print(f"\n[dim]{source}Try: polyrl trace {spec}{named}[/]", soft_wrap=True)
    for other in infos:
        if other is not info:
            out.print(f"[dim]For {other.wing} tasks: polyrl show {spec} --task {other.task}[/]", soft_wrap=True)


def _parts_table(parts: Sequence[Part], recipe: Recipe) -> Padding:
    """Parts with their first sentence and every hyperparameter as the option that sets it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for part in parts:
        table.add_row(_part_name(part, recipe), first_sentence(type(part)))
        knobs = [(f, getattr(part, f.name)) for f in dataclasses.fields(part)]
        if not _has_critic(recipe):
            knobs = [(f, value) for f, value in knobs if not f.name.startswith("critic_")]
        for f, value in knobs:
            option = Text(f"--{f.name.replace('_', '-')} ", style="cyan")
            option.append(_value(value), style="bold cyan")
            option.append(f"   {f.metadata.get('help', '')}", style="dim")
            table.add_row("", option)
    return Padding(table, (0, 0, 0, 4))


def _has_critic(recipe: Recipe) -> bool:
    """Whether a critic is trained: the recipe asks for the model, or a term reads its values."""
    return "critic" in recipe.models() or any("value" in term.wants for term in recipe.terms)


def _title(spec: str, recipe: Recipe) -> Panel:
    info = catalogue.describe(spec)
    if info is None:
        present = {part.name for part in recipe.parts()}
        text = f"A composition, with {', '.join(a for a in recipe.adds if a in present)}."
        if recipe.dropped:
            text += f" Dropped, because what they need is no longer given: {', '.join(recipe.dropped)}."
        return Panel(Text(text), title=f"[bold]{spec}[/]", title_align="left", border_style="blue")
    head = Text.assemble((info.summary, ""), "\n", (info.formula, "bold"), "\n", (f"{info.paper} ({info.year})", "dim"))
    if info.slug in claims():
        said = verdict(info.slug) or "not yet re-tested"
        head.append_text(
            Text.assemble("\n", ("the paper's claim: ", "dim"), said, (f"  polyrl reproduce {info.slug}", "dim"))
        )
    return Panel(head, title=f"[bold]{info.slug}[/]  {info.title}", title_align="left", border_style="blue")


def _stage_heading(stage: Stage, recipe: Recipe) -> Text:
    number = f"{STAGES.index(stage) + 1} " if stage in STAGES else ""
    heading = Text.assemble(
        (f"\n{number}{stage.upper()}", f"bold {STAGE_COLOURS[stage]}"),
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


STARTS = {"language": "its starting model", "operations": "an untrained policy", "control": "an untrained policy"}
LOGGED = ("reward", "episode/return", "cost", "loss", "kl", "entropy", "perplexity", "value/explained_variance")
"""What of the iteration's metrics the last line shows."""


def trace_method(config: RunConfig) -> None:
    """Run one iteration and explain it: what each part did to which fields, and what that looks like on a few rows."""
    from polyrl.runs import make_loop

    out = console()
    loop, facts = make_loop(config, say=lambda text: out.print(Text(text, style="dim")))
    recipe, world, wing = loop.recipe, loop.world, str(facts.get("wing", "language"))
    out.print(_title(config.method, recipe))
    start = f", from {STARTS[wing]}" if wing in STARTS else ""
    out.print(f"[dim]One iteration on the task {escape(world.task.name)}{start}; * marks what the paper adds.[/]")
    if recipe.policy:
        out.print(_stage_heading("policy", recipe))
        out.print(Text.assemble("  ", _part_name(recipe.policy, recipe), f"  {first_sentence(type(recipe.policy))}"))
        knobs = ", ".join(
            f"{f.name}={_value(getattr(recipe.policy, f.name))}" for f in dataclasses.fields(recipe.policy)
        )
        out.print(Text(f"    {knobs}", style="dim"))
    seen: set[Stage] = set()
    told: dict[str, Any] = {}
    paired = any(term.together == "pair" for term in recipe.terms)

    def observe(stage: Stage, part: Part, before: Experience | None, after: Experience, seconds: float) -> None:
        for earlier in STAGES[: STAGES.index(stage) + 1]:  # stages without parts are told too
            if earlier not in seen:
                seen.add(earlier)
                out.print(_stage_heading(earlier, recipe))
        if stage == "improve":
            _explain_improve(out, loop, seconds, wing)
            if told.get("rho"):
                moved = excerpts.log_ratios(after, world)
                out.print(excerpts.preference_pairs(after, told["rho"], moved, _tokenizer(world)))
            return
        _explain_part(out, part, recipe, before, after, seconds)
        for block in _excerpts(part, before, after, world):
            out.print(block)
        if paired and "rho" not in told and {"pair", "preferred", "ref_logprob"} <= set(after.fields()):
            told["rho"] = excerpts.log_ratios(after, world)

    loop.iterate(observe)
    total = sum(loop.seconds.get(s, 0.0) for s in STAGES) or 1.0
    shares = "  ".join(f"{s} {100 * loop.seconds.get(s, 0.0) / total:.0f}%" for s in STAGES)
    out.print(f"\n[bold]Time[/]  {total:.2f} s in all: {shares}")
    left = [f"{k} {loop.context.metrics[k]:.3g}" for k in LOGGED if k in loop.context.metrics]
    if left:
        out.print(f"[bold]Logged[/]  {'  '.join(left)}")


def _tokenizer(world: Any) -> Any:
    """What reads the world's tokens; None where there are none."""
    return getattr(getattr(world, "policy", None) or getattr(world, "model", None), "tokenizer", None)


def _excerpts(part: Part, before: Experience | None, after: Experience, world: Any) -> Iterator[Any]:
    """What a part has done, on a few real rows."""
    sampled = "completion" in after.columns and "group" in after and "greedy" in after
    new = {"pair", "preferred"} <= set(after.fields()) and (before is None or "preferred" not in before)
    if new:
        yield excerpts.preference_pairs(after, tokenizer=_tokenizer(world))
    elif part.stage == "collect":
        block = (
            excerpts.completions(after, ["completion"], "one prompt and what was sampled for it")
            if sampled
            else excerpts.steps(after)
        )
        if block:
            yield block
    elif "score" in part.gives and "score" in after and sampled:
        yield excerpts.completions(after, ["score", "completion"], "scored")
    elif "advantage" in part.gives and "advantage" in after:
        if sampled:
            yield excerpts.tokens(after, _tokenizer(world))
        elif block := excerpts.steps(
            after, ("action", "reward", "value", "advantage"), "what each step will be pushed by"
        ):
            yield block
    elif not sampled and not part.measures:
        given = [name for name in after.fields() if name in part.gives]
        if given and (block := excerpts.steps(after, ("action", *given), "on a few rows")):
            yield block


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
    if values.dtype == torch.int64 or not values.numel():
        return "", "", ""
    numbers = values.float()
    mask = experience["mask"] if "mask" in experience and name not in ("mask", "present") else None
    if mask is not None and values.dim() >= 2 and values.shape[:2] == mask.shape and bool(mask.any()):
        numbers = numbers[mask]
    if values.dtype == torch.bool:
        return "", f"{100 * float(numbers.mean()):.0f}% true", ""
    return tuple(f"{float(v):.3g}" for v in (numbers.min(), numbers.mean(), numbers.max()))  # type: ignore[return-value]


def _explain_improve(out: Console, loop: Any, seconds: float, wing: str) -> None:
    recipe, metrics = loop.recipe, loop.context.metrics
    for term in recipe.terms:
        line = Text("  ")
        line.append_text(_part_name(term, recipe)).stylize("bold")
        line.append(f"  {first_sentence(type(term))}")
        out.print(line)
        out.print(Text(f"    {_term_facts(term, metrics)}", style="dim"))
    o = recipe.optimise
    took = f"  {duration(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'}"
    if not isinstance(o, Optimise):
        line = Text.assemble("  ", _part_name(o, recipe), f"  {first_sentence(type(o))}", (took, "dim"))
        out.print(line)
        knobs = ", ".join(f"{f.name}={_value(getattr(o, f.name))}" for f in dataclasses.fields(o))
        logged = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if not k.startswith("seconds/"))
        for said in (knobs, f"logged: {logged}" if logged else ""):
            if said:
                out.print(Text(f"    {said}", style="dim"))
        return
    step = "token" if wing == "language" else "step"
    norms = {name: value for name, value in metrics.items() if name.startswith("grad_norm/")}
    norm = norms.get("grad_norm/policy", next(iter(norms.values()), 0.0))
    out.print(
        Text.assemble(
            "  ",
            ("optimise", "bold"),
            f"  {norm:.3g} was the gradient's norm (clipped at {o.max_grad_norm:g}); "
            f"AdamW at learning rate {metrics.get('learning_rate', 0):.2g}, {o.epochs} epoch{'s' * (o.epochs > 1)} of "
            f"{o.minibatches} minibatch{'es' * (o.minibatches > 1)} = {loop.context.spent.updates} "
            f"step{'s' * (loop.context.spent.updates != 1)}",
            (took, "dim"),
        )
    )
    if {"clip_ratio", "ratio", "approx_kl"} <= metrics.keys():
        out.print(
            Text(
                f"    on average over the steps: ratio {metrics['ratio']:.4f}, {100 * metrics['clip_ratio']:.1f}% of "
                f"{step}s had left the clip range, KL to the sampler {metrics['approx_kl']:.2g} nats a {step}",
                style="dim",
            )
        )
    if "logprob_gap" in metrics:
        text = f"    check: sampler and trainer agree on every log-probability to {metrics['logprob_gap']:.1e} nats"
        out.print(Text(text, style="dim"))


def _term_facts(term: Term, metrics: dict[str, float]) -> str:
    knobs = ", ".join(f"{f.name}={_value(getattr(term, f.name))}" for f in dataclasses.fields(term))
    reads = "reads " + ", ".join(sorted(term.required() | term.wants))
    return "; ".join(filter(None, (f"loss {metrics.get(f'loss/{term.name}', 0):+.4f}", knobs, reads)))
