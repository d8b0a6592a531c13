"""The page of a claim, in Markdown: what was claimed, how it was tested, the numbers, the picture, the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from polyrl.report.scale import mean
from polyrl.reproduction.claim import Claim, awaited
from polyrl.reproduction.judging import earlier
from polyrl.reproduction.looks import POWER, seeds_wanted
from polyrl.reproduction.variance import said as variance_text
from polyrl.reproduction.words import (
    chance_text,
    cost_text,
    criterion_digits,
    digits_for,
    estimate_text,
    number,
    signed,
    standing,
    threshold_text,
)
from polyrl.runtime.figures import format_value
from polyrl.runtime.metric import Metric

NOT_RETESTED = "not yet re-tested"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    cells = [[" ".join(str(c).split()).replace("|", "\\|") for c in row] for row in rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, ["---"] * len(head), *cells))


def code(text: str) -> str:
    """Text in the typewriter face; unlike backticks it is not read as a command to try."""
    return f"<code>{text.replace('<', '&lt;')}</code>"


def paper_link(source: str) -> str:
    """`arXiv:1707.06347` -> a Markdown link."""
    kind, _, paper = source.partition(":")
    return f"[{source}](https://arxiv.org/abs/{paper})" if kind.lower() == "arxiv" else source


def claim_page(claim: Claim, entry: Mapping[str, Any] | None, picture: str | None, method_pages: Sequence[str]) -> str:
    """The page of one claim.

    Args:
        entry: of the ledger; None where the claim has not been tested.
        picture: its address as the page sees it.
        method_pages: the addresses of the pages of `claim.methods()`, as the page sees them.
    """
    verdict = str(entry["verdict"]) if entry else NOT_RETESTED
    replaced = entry is not None and awaited(claim, entry)
    old = entry is not None and (earlier(entry) or replaced)
    pieces = [
        f"# {claim.slug}: {verdict}",
        f"> {entry['claim'] if entry and replaced else claim.sentence}",
        f"{paper_link(claim.source)}, {claim.place}. {_methods(claim, method_pages)}.",
    ]
    if entry:
        pieces += [f"**Verdict: {verdict}.** {' '.join(filter(None, (_cost(entry), _summary(entry))))}"]
        pieces += [_REPLACED] if replaced else []
        pieces += [f"![Curves and criteria of {claim.slug}]({picture})"] if picture else []
        pieces += ["## Criteria", _criteria(entry), *_remarks(entry)]
        pieces += ["## Numbers", _numbers(entry), *_elsewhere(entry)]
    if entry and replaced:
        pieces += ["Its arms:", _arms_of(entry)]
    heading = "## The new experiment, not yet run" if replaced else "## The experiment"
    pieces += [
        heading,
        *([f"> {claim.sentence}"] if replaced else []),
        claim.question,
        _experiment(claim, None if replaced else entry),
        _arms(claim),
    ]
    before = "Criteria, fixed before any run:"
    pieces += [] if entry and not old else [_PLANNED if old and not replaced else before, _planned(claim)]
    pieces += _history(entry) if entry else []
    pieces += ["## Run it", _run_it(claim, entry)]
    return "\n\n".join(piece.strip() for piece in pieces) + "\n"


def _methods(claim: Claim, pages: Sequence[str]) -> str:
    linked = [f"[{slug}]({page})" for slug, page in zip(claim.methods(), pages, strict=True)]
    return f"The methods that it studies: {', '.join(linked)}" if claim.studies else f"The method: {linked[0]}"


_REPLACED = (
    "**The verdict, the numbers and the picture are of an earlier experiment.** The one that replaces it is below; it "
    "was written down before any of its seeds ran, and **has not been run yet**."
)
_PLANNED = "The next test of it is judged by today's rule, with these criteria:"


def cost_of(entry: Mapping[str, Any]) -> str:
    """What the arm that the first effect is about cost beside the one that it is compared with."""
    names = [arm["name"] for arm in entry["arms"]]
    compared = [
        pair for c in entry["criteria"] if not standing(c) and len(pair := _compared(c["quantity"], names)) == 2
    ]
    named = compared[0] if compared else tuple(names[:2])
    return cost_text(entry, *named) if len(named) == 2 else ""


def _compared(quantity: str, names: Sequence[str]) -> tuple[str, ...]:
    """The two arms of a difference or a ratio in words, the first of each side where there are several."""
    said = quantity.rpartition(": ")[2]
    for word in (" minus ", " over "):
        if word in said:
            sides = [[n for n in names if f"{side} or ".startswith(f"{n} or ")] for side in said.split(word)]
            return tuple(side[0] for side in sides if side)
    return ()


def _cost(entry: Mapping[str, Any]) -> str:
    found = cost_of(entry)
    return f"{found}." if found else ""


def _history(entry: Mapping[str, Any]) -> list[str]:
    """The earlier verdicts on the claim."""
    if not entry.get("history"):
        return []
    rows = [
        (
            one.get("date", ""),
            f"**{one['verdict']}**" + (" (earlier rule)" if earlier(one) else ""),
            "; ".join(f"{c['name']}: {c['outcome']}" for c in one["criteria"] if not standing(c)),
            ", ".join(map(str, one.get("seeds", ()))),
        )
        for one in entry["history"]
    ]
    return ["## Earlier verdicts", table(("date", "verdict", "effects", "seeds"), rows)]


def _summary(entry: Mapping[str, Any]) -> str:
    if not earlier(entry):
        return _summary_by_kind(entry)
    primary = [c for c in entry["criteria"] if c["primary"]]
    counts = {word: sum(c["outcome"] == word for c in primary) for word in ("met", "failed", "open")}
    said = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    one = "criterion" if len(primary) == 1 else "criteria"
    return (
        f"Of {len(primary)} primary {one}: {said}. The verdict is of the "
        "[earlier rule](../claims.md#verdicts-of-the-earlier-rule): one starting model for all seeds, no premises."
    )


def _summary_by_kind(entry: Mapping[str, Any]) -> str:
    parts = []
    for kind in ("premise", "effect"):
        of = [c for c in entry["criteria"] if c["kind"] == kind]
        counts = {word: sum(c["outcome"] == word for c in of) for word in ("met", "failed", "open")}
        said = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
        parts += [f"{kind.capitalize()}s: {said}."] if of else []
    ran, cap = len(entry["seeds"]), entry["cap"]
    parts += [f"Decided after {ran} of at most {cap} seeds."] if ran < cap else []
    return f"{' '.join(parts)} [How a verdict is made](../claims.md#the-rule)."


def _criteria(entry: Mapping[str, Any]) -> str:
    rows = []
    for c in entry["criteria"]:
        name = f"{c['name']} ({standing(c)})" if standing(c) else f"**{c['name']}**"
        unit = f" {c['unit']}" if c["unit"] else ""
        numbers = estimate_text(c["estimate"], criterion_digits(c), signed(c)) + unit
        chance = chance_text(c["probability_of_improvement"]) or "-"
        rows.append((f"{name}<br>{c['quantity']}", numbers, threshold_text(c), c["outcome"], chance))
    return table(("criterion", "number over seeds", "wanted", "", "probability of improvement"), rows)


def _remarks(entry: Mapping[str, Any]) -> list[str]:
    taken = [f'{", ".join(c["took_the_worst"])} in "{c["name"]}"' for c in entry["criteria"] if c["took_the_worst"]]
    found = [f"The worst value seen was taken for {'; '.join(taken)}."] if taken else []
    known = [
        f"{c['name']}: {text}"
        for c in entry["criteria"]
        if not standing(c) and (text := variance_text(c.get("variance")))
    ]
    return [*found, *([f"{'; '.join(known)}."] if known else [])]


def _main_arms(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [a for a in entry["arms"] if a["task"] == entry["arms"][0]["task"]]


def _numbers(entry: Mapping[str, Any]) -> str:
    """The last evaluation of every run on the first arm's task, and the lines that stand beside it."""
    metric = Metric.read(entry["metric"])
    unit = f", {metric.unit}" if metric.unit else ""
    several = len(entry["seeds"]) > 1
    head = ["arm", f"{metric.label} at the start{unit}", *([f"seed {s}" for s in entry["seeds"]]), *["mean"] * several]
    rows: list[list[object]] = [_row(arm, metric, several) for arm in _main_arms(entry)]
    for name, value in metric.lines.items():
        rows.append([f"*{name}*", *[""] * (len(head) - 2), format_value(metric, value)])
    return table(head, rows)


def _row(arm: Mapping[str, Any], metric: Metric, several: bool) -> list[object]:
    starts = [r["start"] for r in arm["runs"] if r["start"] is not None]
    ends = [r["final"] for r in arm["runs"]]
    known = [e for e in ends if e is not None]
    row: list[object] = [arm["name"], format_value(metric, mean(metric, starts).value) if starts else "-"]
    row += [format_value(metric, e) if e is not None else "diverged" for e in ends]
    return [*row, *([f"**{format_value(metric, mean(metric, known).value)}**" if known else "-"] if several else [])]


def _elsewhere(entry: Mapping[str, Any]) -> list[str]:
    """The arms on other tasks, whose metric may be another: what they ended with."""
    others = [a for a in entry["arms"] if a not in _main_arms(entry)]
    if not others:
        return []
    rows = []
    for arm in others:
        ends = [r["final"] for r in arm["runs"] if r["final"] is not None]
        rows.append(
            (arm["name"], code(arm["task"]), arm["measured"], number(fmean(ends), digits_for(*ends)) if ends else "-")
        )
    return ["On other tasks:", table(("arm", "task", "measure", "mean at the end"), rows)]


def _experiment(claim: Claim, entry: Mapping[str, Any] | None) -> str:
    settings = [f"`{k}` {v}" for k, v in claim.hyperparameters.items()]
    items = {
        "Task and budget": f"{code(claim.task)}, `{claim.budget}`" + (f"; {', '.join(settings)}" if settings else ""),
        "Held equal": claim.equal,
        **({"Shared by all seeds": claim.shared} if claim.shared else {}),
        "Seeds of the test": ", ".join(map(str, claim.seeds)) + ("" if not claim.exact else " (an exact experiment)"),
        "Tuned before": claim.tuning,
        "What would have refuted it" if entry else "What would refute it": claim.refuted_by,
        **({"What it cost": _spent(entry)} if entry else {}),
        "What it does not say": claim.limits,
    }
    return "\n".join(f"- **{name}:** {text}" for name, text in items.items())


def _spent(entry: Mapping[str, Any]) -> str:
    """Computing of the whole and of a run of each arm."""
    arms = [f"{a['name']} {fmean(r['seconds'] for r in a['runs']):.3g}" for a in entry["arms"] if a["runs"]]
    runs = sum(len(a["runs"]) for a in entry["arms"])
    return f"{entry['seconds'] / 60:.1f} minutes of computing for {runs} runs; seconds a run: {'; '.join(arms)}."


def _arms_of(entry: Mapping[str, Any]) -> str:
    """The arms as an entry has them."""
    rows = [(a["name"], code(a["method"]), code(a["task"]), f"`{a['budget']}`") for a in entry["arms"]]
    return table(("arm", "method", "task", "budget"), rows)


def _arms(claim: Claim) -> str:
    other = any(a.task or a.budget for a in claim.arms)
    rows = [
        (a.name, code(a.method), *([code(claim.task_of(a)), f"`{claim.budget_of(a)}`"] if other else []), a.why)
        for a in claim.arms
    ]
    return table(("arm", "method", *(["task", "budget"] if other else []), ""), rows)


def _planned(claim: Claim) -> str:
    rows: list[tuple[str, ...]] = []
    for c in claim.criteria:
        stated = {"at_least": c.at_least, "at_most": c.at_most}
        behind = standing({"kind": c.kind})
        name = f"{c.name} ({behind})" if behind else f"**{c.name}**"
        unit = f" {c.unit}" if c.unit else ""
        rows.append((name, c.quantity.says(Metric(key="", label="the metric")), threshold_text(stated) + unit))
    return table(("criterion", "quantity", "wanted"), rows) + "".join(f"\n{line}\n" for line in _plans(claim))


def _plans(claim: Claim) -> list[str]:
    """The looks, and how many seeds each planned criterion takes."""
    looks = claim.looks_at()
    at = f"looks at {', '.join(map(str, looks[:-1]))} and {looks[-1]} seeds" if len(looks) > 1 else "one look"
    said = [f"{at[0].upper()}{at[1:]}, at most {len(claim.seeds)} seeds."]
    for c in claim.criteria:
        if c.expected is not None and c.deviation is not None:
            seeds = seeds_wanted(c.beyond(c.expected), c.deviation)
            said.append(
                f"{c.name}: at {c.expected:g}, with the tuning seeds' standard deviation of {c.deviation:g}, a power "
                f"of {POWER:g} takes {seeds} seeds."
            )
    return said


def _run_it(claim: Claim, entry: Mapping[str, Any] | None) -> str:
    text = f"```console\n$ polyrl reproduce {claim.slug}            # about {claim.minutes:g} minutes on two cores\n"
    text += f"$ polyrl reproduce {claim.slug} --quick    # a smoke test\n```"
    if not entry:
        return text
    versions = ", ".join(f"{name} {v}" for name, v in entry["versions"].items())
    wall = entry["wall_seconds"]
    took = f"{entry['seconds'] / 60:.1f} minutes of computing" + (f" in {wall / 60:.1f} minutes" if wall else "")
    machine = entry["machine"]
    text += f"\n\nEntered on {entry['date']}: {took} on {machine['cores']} cores ({machine['system']} "
    where = " ".join(filter(None, (machine["processor"], machine.get("model"), machine.get("instructions"))))
    code = entry.get("code")
    text += f"{where}), commit {entry['commit']}, {versions}. Experiment {entry['fingerprint']}."
    return text + (f" Code {code['hash']}, {code['files']} files." if code else "")


def _in_the_table(claim: Claim, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return NOT_RETESTED
    marks = [
        *(["earlier experiment"] if awaited(claim, entry) else []),
        *(["earlier rule"] if earlier(entry) else []),
        *filter(None, [cost_of(entry)]),
    ]
    return f"**{entry['verdict']}**" + (f" ({'; '.join(marks)})" if marks else "")


def claims_page(claims: Mapping[str, Claim], entries: Mapping[str, Any], addresses: Mapping[str, str], one: str) -> str:
    """The table of all claims, and the source of one as an example.

    Args:
        entries: of the ledger, by slug.
        addresses: of the claims' pages, by slug.
        one: the source of a claim's file.
    """
    rows = [
        (
            f"[{slug}]({addresses[slug]})",
            entry["claim"] if entry and awaited(c, entry) else c.sentence,
            paper_link(c.source),
            _in_the_table(c, entry),
        )
        for slug, c in claims.items()
        for entry in (entries.get(slug),)
    ]
    return (
        "# Claims put to the test\n\nAll were written down before they ran: [how a verdict is made](../claims.md), "
        "[the whole ledger](ledger.md), [what was found](../findings.md).\n\n"
        + table(("method", "claim", "paper", "verdict"), rows)
        + f"\n## A claim in full\n\n```python\n{one.strip()}\n```\n"
    )
