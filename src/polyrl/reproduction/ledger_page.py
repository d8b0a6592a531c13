"""The ledger as pages: every claim with what decided it, its cost, limits and history; and what was found, in short.

Markdown that reads without a script; where scripts run, two lists above it leave the claims of a family or a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from polyrl.reproduction.claim import Claim, awaited
from polyrl.reproduction.judging import CONFIRMED, INCONCLUSIVE, NOT_MET, REFUTED, earlier
from polyrl.reproduction.page import NOT_RETESTED, cost_of, paper_link, table
from polyrl.reproduction.words import criterion_digits, estimate_text, signed, standing, threshold_text

REACH = 9.0
"""Half-widths that the picture of all effects reaches to either side; what lies further is drawn at its end."""
COLOURS = {"met": "#2a9d5c", "failed": "#d1495b", "open": "#b08900"}
VERDICTS = (CONFIRMED, REFUTED, NOT_MET, INCONCLUSIVE, NOT_RETESTED)

SCRIPT = """<script>
(() => {
  const lists = [...document.querySelectorAll(".claims-filter select")];
  const claims = [...document.querySelectorAll(".claim")];
  const show = () => {
    for (const claim of claims)
      claim.hidden = lists.some((list) => list.value && claim.dataset[list.name] !== list.value);
    const left = claims.filter((claim) => !claim.hidden).length;
    document.querySelector(".claims-filter output").textContent = `${left} of ${claims.length}`;
  };
  lists.forEach((list) => list.addEventListener("change", show));
  document.querySelector(".claims-filter").hidden = false;
  show();
})();
</script>"""


def ledger_page(
    claims: Mapping[str, Claim],
    entries: Mapping[str, Any],
    families: Mapping[str, str],
    addresses: Mapping[str, str],
    pictures: Mapping[str, str],
) -> str:
    """The page of the whole ledger.

    Args:
        claims: by slug.
        entries: of the ledger, by slug; a claim without one has not been tested.
        families: the family of each claim, by slug.
        addresses: of the claims' pages, by slug.
        pictures: their addresses as the page sees them, by slug.
    """
    verdicts = {slug: str(entries[slug]["verdict"]) if slug in entries else NOT_RETESTED for slug in claims}
    count = [f"{n} {verdict}" for verdict in VERDICTS if (n := list(verdicts.values()).count(verdict))]
    pieces = [
        "# The ledger",
        f"{len(claims)} claims: {', '.join(count)}. [How a verdict is made](../claims.md); [what was found]"
        "(../findings.md), in short; [the table](index.md).",
        _filter(sorted({families[slug] for slug in claims}), [v for v in VERDICTS if v in verdicts.values()]),
    ]
    for slug, claim in claims.items():
        pieces += _claim(claim, entries.get(slug), families[slug], verdicts[slug], addresses[slug], pictures.get(slug))
    return "\n\n".join([*pieces, SCRIPT]) + "\n"


def _filter(families: Iterable[str], verdicts: Iterable[str]) -> str:
    """Two lists, hidden where no script runs."""

    def chosen(name: str, values: Iterable[str]) -> str:
        options = "".join(f"<option>{escape(value)}</option>" for value in values)
        return (
            f'<label>{name.capitalize()} <select name="{name}"><option value="">all</option>{options}</select></label>'
        )

    lists = f"{chosen('family', families)} {chosen('verdict', verdicts)}"
    return f'<div class="claims-filter" hidden>{lists} <output></output></div>'


def _claim(
    claim: Claim, entry: Mapping[str, Any] | None, family: str, verdict: str, address: str, picture: str | None
) -> list[str]:
    replaced = entry is not None and awaited(claim, entry)
    pieces = [
        f'<div class="claim" data-family="{escape(family)}" data-verdict="{escape(verdict)}" markdown="1">',
        f"## {claim.slug}: {verdict}",
        f"{entry['claim'] if entry else claim.sentence} {paper_link(claim.source)}, {claim.place}. "
        f"[The claim's page]({address}).",
    ]
    if entry:
        pieces += ["The verdict is of the earlier rule."] if earlier(entry) else []
        pieces += ["It is of an experiment whose successor is written down and has not been run."] if replaced else []
        pieces += [_deciding(entry)]
        cost = cost_of(entry)
        pieces += [f"{f'{cost}; ' if cost else ''}{entry['seconds'] / 60:.1f} minutes of computing in all."]
    pieces += [] if replaced else [f"What it does not say: {claim.limits}"]
    pieces += [_earlier(entry)] if entry and entry.get("history") else []
    pieces += [f"[![Curves and criteria of {claim.slug}]({picture})]({address})"] if picture else []
    return [*pieces, "</div>"]


def _deciding(entry: Mapping[str, Any]) -> str:
    """Premises and effects with their intervals."""
    rows = []
    for c in entry["criteria"]:
        if (behind := standing(c)) in ("", "premise"):
            unit = f" {c['unit']}" if c["unit"] else ""
            numbers = estimate_text(c["estimate"], criterion_digits(c), signed(c)) + unit
            rows.append((behind or "effect", c["name"], numbers, threshold_text(c), c["outcome"]))
    return table(("", "criterion", "over seeds", "wanted", ""), rows).strip()


def _earlier(entry: Mapping[str, Any]) -> str:
    said = [f"{one['verdict']} ({one.get('date', 'no date')})" for one in entry["history"]]
    return f"Earlier verdicts: {', '.join(said)}."


# ------------------------------------------------------------------------------------------------------- what was found

HEADINGS = {
    CONFIRMED: "Held at this scale",
    REFUTED: "Did not hold at this scale",
    NOT_MET: "Could not be asked: the premise is not met",
    INCONCLUSIVE: "Undecided",
}


def findings(claims: Mapping[str, Claim], entries: Mapping[str, Any], addresses: Mapping[str, str]) -> str:
    """The results of the short paper: the claims by verdict, each with the numbers of what decided it.

    Args:
        addresses: of the claims' pages, by slug, as the page sees them.
    """
    pieces = []
    for verdict, heading in HEADINGS.items():
        found = [slug for slug in claims if slug in entries and entries[slug]["verdict"] == verdict]
        if not found:
            continue
        found.sort(key=lambda slug: awaited(claims[slug], entries[slug]))  # what stands goes first
        rows = [_found(claims[slug], entries[slug], addresses[slug]) for slug in found]
        pieces.append(f"### {heading}\n\n{table(('method', 'claim', 'effects, over seeds'), rows)}")
    untested = [f"[{slug}]({addresses[slug]})" for slug in claims if slug not in entries]
    if untested:
        pieces.append(f"### Written down and not run\n\n{', '.join(untested)}.\n")
    return "\n" + "\n".join(pieces)


def _found(claim: Claim, entry: Mapping[str, Any], address: str) -> tuple[str, str, str]:
    marks = ["earlier experiment"] if awaited(claim, entry) else ["earlier rule"] if earlier(entry) else []
    effects = [
        f"{c['name']}: {estimate_text(c['estimate'], criterion_digits(c), signed(c))}, {c['outcome']}"
        for c in entry["criteria"]
        if not standing(c)
    ]
    return f"[{claim.slug}]({address})" + "".join(f" ({m})" for m in marks), entry["claim"], "<br>".join(effects)


def forest(claims: Mapping[str, Claim], entries: Mapping[str, Any]) -> str:
    """An SVG of all effects: how far each lies on the wanted side of its threshold, in half-widths of its interval.

    So every bar is two long, and one that does not touch the line in the middle is beyond its threshold.
    """
    rows = [
        (slug, c, c["estimate"])
        for slug in claims
        if slug in entries
        for c in entries[slug]["criteria"]
        if not standing(c) and c["estimate"] and c["estimate"]["high"] is not None
    ]
    width, left, step, top = 380, 150, 22, 40
    middle = left + (width - left) / 2
    unit = (width - left - 20) / 2 / REACH
    drawn = [f'<line x1="{middle:g}" y1="{top - 12}" x2="{middle:g}" y2="{top + step * len(rows)}" stroke="#888"/>']
    before = ""
    for n, (slug, c, estimate) in enumerate(rows):
        y = top + step * n + 4
        half = estimate["high"] - estimate["value"]
        threshold = c["at_least"] if c["at_least"] is not None else c["at_most"]
        beyond = (estimate["value"] - threshold) * (1 if c["at_least"] is not None else -1)
        place = max(-REACH + 1, min(REACH - 1, beyond / half if half else REACH * (1 if beyond >= 0 else -1)))
        x = [middle + unit * (place + side) for side in (-1, 0, 1)]
        colour = COLOURS[c["outcome"]]
        drawn += [
            f"<g><title>{escape(slug)}: {escape(c['name'])}</title>",
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(slug) if slug != before else ""}</text>',
            f'<line x1="{x[0]:.1f}" y1="{y}" x2="{x[2]:.1f}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x[1]:.1f}" cy="{y}" r="4.5" fill="{colour}"/></g>',
        ]
        before = slug
    head = [
        f'<text x="{middle - 8:g}" y="16" text-anchor="end">threshold missed</text>',
        f'<text x="{middle + 8:g}" y="16">threshold met</text>',
    ]
    size = f'viewBox="0 0 {width} {top + step * len(rows) + 8}" font-family="sans-serif" font-size="13" fill="#777"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *head, *drawn, "</svg>"]) + "\n"
