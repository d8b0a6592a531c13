"""`polyrl reproduce`: runs a claim's experiment and prints what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from polyrl import catalogue
from polyrl.claims import claim, claims, family_of
from polyrl.errors import UserError
from polyrl.report.scale import mean
from polyrl.reproduction import ledger
from polyrl.reproduction.checking import Check, check
from polyrl.reproduction.claim import Claim, awaited
from polyrl.reproduction.page import cost_of
from polyrl.reproduction.planning import check_planned, plan
from polyrl.reproduction.running import Reproduction, reproduce, span
from polyrl.reproduction.words import chance_text, criterion_digits, estimate_text, signed, standing, threshold_text
from polyrl.runtime.executor import LOCAL, PLAN, check_executor
from polyrl.runtime.figures import format_value
from polyrl.runtime.metric import Metric
from polyrl.runtime.progress import duration
from polyrl.runtime.terminal import Terminal

COLOURS = {
    "confirmed": "green",
    "refuted": "red",
    "premise not met": "magenta",
    "met": "green",
    "failed": "red",
    "open": "yellow",
}


def run_reproductions(
    method: str | None,
    everything: bool,
    *,
    family: str | None = None,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    out: Path | None = None,
    executor: str = LOCAL,
    workers: int | None = None,
    ledger_folder: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Reproduce the claim of one method, of a family, or all claims one after the other.

    Of several claims one that breaks does not keep the others from their verdicts; what it said is told at the end.

    Raises:
        UserError: not exactly one of them was asked for, or a claim cannot be put to the test.
    """
    check_planned(executor, workers, quick=quick)
    chosen = chosen_claims(method, everything, family, out)
    console = Terminal()
    verdicts = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    broken: list[str] = []
    for tested in chosen:
        if not quiet:
            console.print(_opening(tested, quick, seeds))
        try:
            if executor == PLAN and (said := plan(tested, out, seeds=seeds, overwrite=overwrite)):
                console.print(Text(said), soft_wrap=True)
                verdicts.add_row(Text(tested.slug, style="bold"), Text("planned", style="yellow"))
                continue
            made = reproduce(
                tested,
                out,
                quick=quick,
                seeds=seeds,
                executor=LOCAL if executor == PLAN else executor,  # nothing is left to be run
                workers=workers,
                ledger_folder=ledger_folder,
                overwrite=overwrite,
                quiet=quiet,
            )
        except UserError as error:
            if len(chosen) == 1:
                raise
            broken.append(tested.slug)
            console.print(Text(f"{tested.slug}: {error}", style="red"))
            verdicts.add_row(Text(tested.slug, style="bold"), Text("broke off", style="red"))
            continue
        pictures = _draw(made, console, quiet)
        if not quiet:
            print_result(console, tested, made, pictures)
        said = "no verdict" if quick else made.entry["verdict"]
        verdicts.add_row(Text(tested.slug, style="bold"), Text(said, style=_colour(said)))
    if quiet or len(chosen) > 1:
        console.print(verdicts)
    if broken:
        raise UserError(f"No verdict for {', '.join(broken)}; what was finished is kept, and the same command goes on.")


def chosen_claims(method: str | None, everything: bool, family: str | None, out: Path | None) -> list[Claim]:
    """The claims that were asked for.

    Raises:
        UserError: not exactly one way of asking, or there is no such claim.
    """
    if sum((method is not None, everything, family is not None)) != 1:
        raise UserError("Name one method to reproduce, or say --family NAME or --all.")
    if method is None and out is not None:
        raise UserError("--out is for one method; several write to runs/reproduce-METHOD each.")
    if method is not None:
        return [claim(method)]
    if family is None:
        return list(claims().values())
    catalogue.family(family)  # a name that there is
    chosen = [tested for slug, tested in claims().items() if family_of(slug) == family]
    if not chosen:
        raise UserError(f"No method of the family '{family}' has a claim to reproduce yet.")
    return chosen


def run_checks(
    method: str | None,
    everything: bool,
    *,
    family: str | None = None,
    out: Path | None = None,
    executor: str = LOCAL,
    workers: int | None = None,
    ledger_folder: Path | None = None,
    quiet: bool = False,
) -> None:
    """Run one seed of each entry again and say whether it is what the ledger says; without a name of all entries.

    Raises:
        UserError: there is no entry, or a number is not what the ledger says.
    """
    check_executor(executor, workers)
    if executor == PLAN:
        raise UserError(
            "--check compares as soon as its runs are made, so they are not planned; leave --executor away."
        )
    everything = everything or (method is None and family is None)
    folder = ledger_folder or ledger.committed_ledger()
    asked = {tested.slug: tested for tested in chosen_claims(method, everything, family, out)}
    entries = {slug: entry for slug in asked if (entry := ledger.read(slug, folder))}
    if not entries:
        raise UserError(f"The ledger {folder} has no entry of {', '.join(asked)} to check.")
    console = Terminal()
    wrong = []
    for slug, entry in entries.items():
        if method is None and awaited(asked[slug], entry):
            console.print(Text(f"{slug}  not checked: the entry is of an earlier experiment", style="yellow"))
            continue
        made = check(asked[slug], entry, out, executor=executor, workers=workers, quiet=quiet)
        console.print(checked_text(slug, made), soft_wrap=True)
        wrong += [] if made.agrees else [slug]
    if wrong:
        raise UserError(f"Not what the ledger says: {', '.join(wrong)}.")


def checked_text(slug: str, made: Check) -> Text:
    """What came of a check: each number that does not agree, and how the others were compared."""
    how = "to the digit" if made.digits else f"within intervals (the entry was {made.why})"
    text = Text.assemble((slug, "bold"), f"  seed {made.seed}: ")
    if made.agrees:
        text.append(f"as entered, {how}", style="green")
    for c in (c for c in made.compared if not c.agrees):
        wanted = f"{c.then:.12g}" if c.low == c.high else f"within [{c.low:.4g}, {c.high:.4g}]"
        now = "no number" if c.now is None else f"{c.now:.12g}"
        text.append(f"\n  {c.name}: {now}, where the entry has {c.then:.12g} ({wanted} expected)", style="red")
    if made.same_code is False:
        text.append("\n  the code that it depends on has changed since", style="yellow")
    return text


def _colour(word: str) -> str:
    return COLOURS.get(word, "yellow")


def _opening(tested: Claim, quick: bool, seeds: Sequence[int] | None) -> Panel:
    text = Text.assemble(
        (tested.sentence, "bold"),
        "\n",
        (f"{tested.source}, {tested.place}", "dim"),
        "\n\n",
        tested.question,
        "\n",
        ("Equal:      ", "dim"),
        tested.equal,
        "\n",
        ("Refuted by: ", "dim"),
        tested.refuted_by,
    )
    chosen = seeds or (tested.tuning_seeds[: tested.quick.seeds] if quick else tested.seeds)
    runs = f"{len(tested.arms)} arms, seeds {span(chosen)}"
    form = "a smoke test without a verdict" if quick else f"about {tested.minutes:g} minutes on two cores"
    title = Text.assemble((tested.slug, "bold"), f"  {runs}; {form}")
    return Panel(text, title=title, title_align="left", border_style="blue")


def print_result(console: Console, tested: Claim, made: Reproduction, pictures: Sequence[Path] = ()) -> None:
    """Print the arms, the criteria and the verdict."""
    entry = made.entry
    console.print()
    console.print(_arms(entry))
    console.print()
    console.print(_criteria(entry))
    said, colour = entry["verdict"].upper(), _colour(entry["verdict"])
    if made.quick:
        said, colour = f"No verdict: {made.why_not}.", "yellow"
    elif made.why_not:
        said += f", not entered: {made.why_not}."
    if len(entry["seeds"]) < entry["cap"] and not made.why_not:
        said += f", after {len(entry['seeds'])} of at most {entry['cap']} seeds"
    cost = cost_of(entry)
    # a sentence stands for itself, a verdict goes on
    costly = f"{said} {cost}." if said.endswith(".") else f"{said}; {cost}"
    body = Group(Text(costly if cost else said, style="bold"), Text(tested.limits, style="dim"))
    console.print(Panel(body, border_style=colour, title=Text("verdict", colour), title_align="left"))
    if made.written:
        console.print(f"ledger   {made.written}", soft_wrap=True)
    for picture in pictures:
        console.print(f"picture  {picture}", soft_wrap=True)
    console.print(f"runs     {made.folder}  ({duration(entry['seconds'])} of computing)", soft_wrap=True)


def _arms(entry: dict[str, Any]) -> Table:
    metric = Metric.read(entry["metric"])
    table = Table(box=None, padding=(0, 2, 0, 0))
    unit = f" ({metric.unit})" if metric.unit else ""
    for column in ("arm", f"{metric.label}{unit}: start", "end, mean over seeds", "runs"):
        table.add_column(column, header_style="dim")
    for arm in entry["arms"]:
        starts = [r["start"] for r in arm["runs"] if r["start"] is not None]
        ends = [r["final"] for r in arm["runs"] if r["final"] is not None]
        lost = sum(r["status"] != "finished" for r in arm["runs"])
        own = "" if arm["measured"] == metric.label else f"  ({arm['measured']})"
        table.add_row(
            Text(arm["name"], style="bold"),
            format_value(metric, mean(metric, starts).value) if starts else "-",
            _with_interval(metric, ends) + own,
            f"{len(arm['runs']) - lost} of {len(arm['runs'])}" + (f", {lost} diverged" if lost else ""),
        )
    for name, value in metric.lines.items():
        table.add_row(Text(name, style="dim"), "", Text(format_value(metric, value), style="dim"), "")
    return table


def _with_interval(metric: Metric, values: Sequence[float]) -> str:
    if not values:
        return "-"
    e = mean(metric, values)
    text = format_value(metric, e.value)
    if e.low is None or e.high is None:
        return text
    return f"{text} [{format_value(metric, e.low)}, {format_value(metric, e.high)}]"


def _criteria(entry: dict[str, Any]) -> Table:
    """Each criterion as a few lines that fit any width."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for c in entry["criteria"]:
        text = Text(c["name"], style="" if standing(c) else "bold")
        if standing(c):
            text.append(f"  ({standing(c)})", style="dim italic")
        unit = f" {c['unit']}" if c["unit"] else ""
        text.append(f"\n{estimate_text(c['estimate'], criterion_digits(c), signed(c))}{unit}", style="not bold")
        text.append(f"   wanted {threshold_text(c)}", style="not bold")
        if chance := chance_text(c["probability_of_improvement"]):
            text.append(f"   chance of improvement {chance}", style="not bold dim")
        text.append(f"\n{c['quantity']}", style="not bold dim")
        if c["took_the_worst"]:
            text.append(f"\nworst value taken for {', '.join(c['took_the_worst'])}", style="not bold yellow")
        table.add_row(Text(c["outcome"], style=COLOURS[c["outcome"]]), text)
    return table


def _draw(made: Reproduction, console: Console, quiet: bool) -> list[Path]:
    """Draw the picture into the folder of the runs, and beside the pages when a checkout's ledger was written."""
    from polyrl.reproduction.picture import save_picture

    places = [made.folder / "claim.svg"]
    if made.written and made.written.parent == ledger.CHECKOUT / "ledger" and ledger.in_checkout():
        places.append(ledger.CHECKOUT / "docs" / "assets" / "claims" / f"{made.entry['slug']}.svg")
    try:
        return [save_picture(made.entry, place) for place in places]
    except UserError as error:
        if not quiet:
            console.print(Text(str(error), style="dim"))
        return []
