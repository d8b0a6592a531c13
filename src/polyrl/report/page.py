"""One offline page that shows a comparison: the verdict in words, then curves, tables and samples.

The page names no outside host and carries its own script and style. Its content-security policy lets only that script
run and nothing be fetched, so text of models and data stays text.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import jinja2
from markupsafe import Markup, escape

from polyrl.errors import UserError
from polyrl.report.findings import cautions, headline, metric_digits, verdict, ways
from polyrl.report.labels import budget_words
from polyrl.report.payload import build_payload, spending_columns
from polyrl.report.records import Records
from polyrl.report.runs import Comparison, load_folders
from polyrl.report.settings import ABSENT, Settings, compare_settings
from polyrl.runtime.figures import format_amount, format_factor

__all__ = ["render_page", "verdict", "write_report"]

FOLDER = Path(__file__).parent


def embed_json(data: Any) -> Markup:
    """Return `data` as JSON that cannot leave its script element: no `<`, `>` or `&` is left in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only: lone surrogates stay escaped too
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _fixed(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Write a number with a true minus sign, or a dash for None."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def _count(value: float | None) -> str:
    """Write an amount in at most four figures: 950, 3,840, 181k, 2.4M, 5.6e25."""
    return "–" if value is None else format_amount(value)


def _seconds(value: float | None) -> str:
    """Write a time in seconds with a fitting number of digits."""
    if value is None:
        return "–"
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 1
        else "<0.01"
        if 0 < value < 0.01
        else f"{value:.2f}"
    )


def _megabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.0f}"


def _p_value(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _setting(value: Any) -> str:
    if value is ABSENT:
        return "–"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return str(value)


def _breakable(name: str) -> Markup:
    """Let a long setting name break behind its punctuation."""
    return Markup(re.sub(r"([._/-])", r"\1<wbr>", str(escape(name))))


def _arrows(sentence: str) -> str:
    """Set a sentence in print: arrows and minus signs as such."""
    for plain, fine in ((" -> ", " → "), ("[-", "[−"), (" -", " −"), (": -", ": −")):
        sentence = sentence.replace(plain, fine)
    return sentence


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "fixed": _fixed,
        "count": _count,
        "seconds": _seconds,
        "megabytes": _megabytes,
        "p_value": _p_value,
        "times": format_factor,
        "spoken": lambda unit, domain: budget_words(domain, unit),
        "setting": _setting,
        "fine": _arrows,
        "breakable": _breakable,
    }
    environment.filters.update(filters)
    return environment


def _provenance(comparison: Comparison) -> dict[str, str]:
    """What it takes to run the comparison again, as name -> text."""
    shared = compare_settings(comparison.runs).equal
    versions = [
        f"{key.removeprefix('versions.')} {value}" for key, value in shared.items() if key.startswith("versions.")
    ]
    fields = {
        "Command": comparison.command,
        "Task": comparison.task,
        "Starting model": shared.get("model"),
        "Starting fingerprint": shared.get("start"),
        "Seeds": ", ".join(map(str, comparison.seeds)),
        "Commit": shared.get("commit"),
        "Versions": ", ".join(versions),
        "Device": shared.get("device"),
        "Threads per run": shared.get("threads"),
        "Started": comparison.started,
        "Finished": comparison.finished,
    }
    return {name: str(value) for name, value in fields.items() if value not in (None, "")}


def _own_settings(settings: Settings) -> dict[str, dict[str, Any]]:
    """Settings that one method alone has, by method."""
    own: dict[str, dict[str, Any]] = {}
    for key, values in settings.differing.items():
        have = [method for method, value in values.items() if value is not ABSENT]
        if len(have) == 1:
            own.setdefault(have[0], {})[key] = values[have[0]]
    return own


def _lean(script: str) -> str:
    """A script without its indentation and the lines that are comments: both hold no text over several lines."""
    return re.sub(r"(?m)^[ \t]*//.*\n|^[ \t]+", "", script)


def render_page(comparison: Comparison, csv_name: str = "report.csv") -> str:
    """Return the whole page as one HTML text; `csv_name` is the data file that it speaks of."""
    payload = build_payload(comparison)
    script = "".join(_lean((FOLDER / name).read_text(encoding="utf-8")) for name in ("draw.js", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    settings = compare_settings(comparison.runs)
    own = _own_settings(settings)
    template = _environment().get_template("page.html.jinja")
    return template.render(
        comparison=comparison,
        payload=payload,
        data=embed_json(payload),
        script=Markup(script),
        style=Markup("".join((FOLDER / name).read_text(encoding="utf-8") for name in ("draw.css", "page.css"))),
        digest=digest,
        csv_name=csv_name,
        headline=headline(comparison),
        changes=ways(comparison),
        spending=spending_columns(comparison, payload["costs"]),
        cautions=cautions(comparison),
        digits=metric_digits(comparison),
        settings=settings,
        stages=payload["stages"],
        own=own,
        shared={key: values for key, values in settings.differing.items() if all(key not in of for of in own.values())},
        provenance=_provenance(comparison),
        warnings=[(run, text) for run in comparison.runs for text in run.warnings],
        troubled=[run for run in comparison.runs if run.status != "finished"],
    )


def _cell(value: Any) -> Any:
    # A spreadsheet would run a label that begins like a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def write_metrics(comparison: Comparison, out: TextIO) -> None:
    """Write every logged iteration of every run as CSV: method, seed, status, then one column a metric."""
    keys = list(dict.fromkeys(key for run in comparison.runs for key in run.records.keys))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "seed", "status", *keys])
    for run in comparison.runs:
        front = io.StringIO()
        csv.writer(front, lineterminator="").writerow([_cell(run.label), run.seed, run.status])
        count, have, begins = len(run.records), {*run.records.keys}, front.getvalue()
        columns = [_texts(run.records.series(key), run.records, key) if key in have else [""] * count for key in keys]
        # numbers need no quotes: joined they cost three quarters of what csv's writer takes
        rows = zip([begins] * count, *columns, strict=True)
        out.writelines([",".join(row) + "\n" for row in rows])


def _texts(values: list[float], records: Records, key: str) -> list[str]:
    """A column as texts, empty where a row has no number."""
    if len(values) == len(records):
        return [*map(repr, values)]
    found = [""] * len(records)
    for row, value in zip(records.where(key).tolist(), values, strict=True):
        found[row] = repr(value)
    return found


def metrics_csv(comparison: Comparison) -> str:
    """What `write_metrics` writes, as text."""
    text = io.StringIO()
    write_metrics(comparison, text)
    return text.getvalue()


_MINE = {".html": b"polyrl report", ".csv": b"method,seed,status"}
"""What polyrl's own pages and tables have near their beginning."""


def _check_replaceable(path: Path) -> None:
    """Refuse to replace a file that polyrl did not write.

    Raises:
        UserError: it is such a file.
    """
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            mine = _MINE[path.suffix] in file.read(1 << 20)
    except OSError as error:
        raise UserError(f"'{path}' cannot be replaced ({error.strerror}): choose another place.") from None
    if not mine:
        raise UserError(f"'{path}' is no report of polyrl's, so it is not replaced: choose another name with --out.")


def _write(path: Path, write: Callable[[TextIO], Any]) -> None:
    """Write under another name first, so that a full disk or a kill leaves the old file whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", errors="replace", newline="") as out:
            write(out)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"The report cannot be written to '{path}' ({error.strerror}): choose another place.") from None


def write_report(folders: Sequence[Path], out: Path, comparison: Comparison | None = None) -> Path:
    """Write the page of these run or comparison folders to `out`, and every logged number to a CSV file beside it.

    `comparison` is what they hold, where somebody has read it already.
    Returns the path of the page. Raises `UserError` for a folder that is no run and for a place that cannot be written.
    """
    comparison = comparison or load_folders([Path(folder) for folder in folders])
    out = Path(out)
    if out.suffix != ".html":
        raise UserError(f"The report is a page: give a file name that ends in .html instead of '{out}'.")
    csv_path = out.with_suffix(".csv")
    for path in (out, csv_path):
        _check_replaceable(path)
    page = render_page(comparison, csv_path.name)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder '{out.parent}' cannot be made ({error.strerror}): choose another place.") from None
    _write(csv_path, lambda file: write_metrics(comparison, file))
    _write(out, lambda file: file.write(page))
    return out
