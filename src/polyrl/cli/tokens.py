"""Responses token by token for `polyrl trace`: what each token was given, and what it will be pushed by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text
from torch import Tensor

from polyrl.cli.responses import differs, indented, read_text
from polyrl.core.experience import Experience
from polyrl.parts.collect import LANGUAGE_FIELDS
from polyrl.recipe import Part

MOST_TOKENS = 24
STEPS_THAT_SAY_LITTLE = ("terminated", "truncated", "value_target")


def token_fields(part: Part, before: Experience | None, experience: Experience, changed: Sequence[str]) -> list[str]:
    """Fields with a value a token that a part has read or given, in this order, those that nobody can read left out."""
    size = experience["mask"].shape
    hidden = (*LANGUAGE_FIELDS - {"behaviour_logprob"}, *STEPS_THAT_SAY_LITTLE)
    reads = [name for name in sorted(part.required()) if name in experience and name not in changed]
    gives = [
        name for name in changed if name in part.gives and not (part.stage == "collect" and name in LANGUAGE_FIELDS)
    ]
    gives.sort(key=lambda name: before is not None and name in before)  # what is new before what it has changed
    if "advantage" in gives and "value" in experience and "value" not in reads:
        reads.append("value")
    return [name for name in [*reads, *gives] if tuple(experience[name].shape) == tuple(size) and name not in hidden]


def _places(moving: Tensor, count: int) -> list[int | None]:
    """Tokens to show of `count`, None for a gap: all, or the first, the last and some around the greatest change."""
    if count <= MOST_TOKENS:
        return list(range(count))
    third = MOST_TOKENS // 3
    peak = int(moving[:count].argmax()) if float(moving[:count].max()) > 0 else 0
    start = min(max(peak - third // 2, 0), count - third)
    kept = sorted({*range(third), *range(start, start + third), *range(count - third, count)})
    found: list[int | None] = []
    for t in kept:
        if found and found[-1] is not None and t > found[-1] + 1:
            found.append(None)
        found.append(t)
    return found


@dataclass
class TokenTable:
    """Lines of cells under one another, broken where the terminal ends.

    Attributes:
        lines: name and cells; cells of equal place stand in one column.
    """

    lines: list[tuple[str, list[Text]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Tables one below the other, each as wide as there is room for."""
        label = max(len(name) for name, _ in self.lines)
        widths = [max(cell_len(cells[t].plain) for _, cells in self.lines) for t in range(len(self.lines[0][1]))]
        rounds, used = 1, label + 1
        for width in widths:
            rounds, used = (
                (rounds, used + width + 1) if used + width + 1 <= options.max_width else (rounds + 1, label + 1)
            )
        most = -(-len(widths) // rounds)  # rounds of equal length
        start = 0
        while start < len(widths):
            end, used = start, label + 1
            while end < len(widths) and (end == start or used + widths[end] + 1 <= options.max_width):
                if end - start >= most and len(widths) - end > 1:
                    break
                used, end = used + widths[end] + 1, end + 1
            for name, cells in self.lines:
                line = Text(no_wrap=True, overflow="crop")
                line.append(name.ljust(label + 1), style="dim")
                for t in range(start, end):
                    cell = cells[t]
                    line.append_text(cell)
                    line.append(" " * (widths[t] - cell_len(cell.plain) + 1))
                line.rstrip()
                yield line
            start = end


def token_table(
    experience: Experience,
    before: Experience | None,
    rows: Sequence[int],
    names: Sequence[str],
    tokenizer: Any,
    logprobs: Collection[str],
    caption: str = "what each token will be pushed by:",
) -> Padding:
    """Two of the rows token by token: the one that a part has moved most and the one that it has moved least.

    Args:
        experience: of language.
        before: what the part was given: a field that it has changed has a line of its own for what it was.
        rows: rows to choose from.
        names: fields `[B, T]`.
        tokenizer: reads the tokens.
        logprobs: fields in nats, which are shown without a sign.
        caption: what is to be seen.
    """
    rows = [i for i in rows if not bool(experience["greedy"][i])]  # greedy baselines are never trained
    moved = {i: _moved(experience, before, i, names) for i in rows}
    size = {i: float(moved[i].sum()) for i in rows}
    told = before is not None and "advantage" in before and torch.equal(before["advantage"], experience["advantage"])
    alike = len({round(x, 6) for x in size.values()}) == 1
    if "advantage" in experience and (alike or ("advantage" in names and not told)):
        size = {i: float(experience["advantage"][i].sum()) for i in rows}
    ranked = sorted(rows, key=lambda i: size[i])
    if "finished" in experience:  # one response that goes on, and one that has ended
        done = experience["finished"][ranked].tolist()
        ranked = [i for i, ended in zip(ranked, done, strict=True) if not ended] + [
            i for i, ended in zip(ranked, done, strict=True) if ended
        ]
    blocks = []
    for i in dict.fromkeys((ranked[0], ranked[-1])):
        here = experience["present"][i].nonzero()[:, 0].tolist()
        places = [None if k is None else here[k] for k in _places(moved[i][here], len(here))]
        lines = [("action", [_piece(experience, i, t, tokenizer) for t in places])]
        for name in names:
            old = before[name] if before is not None and name in before else None
            own = experience["mask"][i]
            moves = old is not None and bool(differs(old[i], experience[name][i])[own].any())
            if old is not None and moves and len({*old[i][own].tolist()}) > 1:
                lines.append((f"{name} before", _line(old[i], experience, i, places, name, logprobs)))
            lines.append((name, _line(experience[name][i], experience, i, places, name, logprobs)))
        blocks.append(TokenTable(lines))
    return indented(caption, *[x for block in blocks for x in (block, Text(""))][:-1])


def _moved(experience: Experience, before: Experience | None, row: int, names: Sequence[str]) -> Tensor:
    total = torch.zeros(experience["mask"].shape[1], dtype=torch.float64)
    for name in names:
        now = experience[name][row].double()
        if before is None or name not in before:
            continue
        total += torch.where(differs(before[name][row].double(), now), (now - before[name][row].double()).abs(), 0.0)
    return total


def _piece(experience: Experience, row: int, t: int | None, tokenizer: Any) -> Text:
    if t is None:
        return Text("...", style="dim")
    piece = repr(read_text(tokenizer, experience["action"][row, t : t + 1]))[1:-1]
    return Text(piece, style="cyan" if bool(experience["mask"][row, t]) else "dim")


def _line(
    values: Tensor,
    experience: Experience,
    row: int,
    places: Sequence[int | None],
    name: str,
    logprobs: Collection[str],
) -> list[Text]:
    """Cells of one field; what a tool said has none."""
    own = experience["mask"][row]
    shown = values[own]
    largest = float(shown.double().abs().max()) if len(shown) else 0.0
    digits = 2 if largest >= 0.1 or largest == 0 else 3 if largest >= 0.01 else 4
    cells = []
    for t in places:
        if t is None or not bool(own[t]):
            cells.append(Text("" if t is not None else "...", style="dim"))
        elif values.dtype == torch.bool:
            cells.append(Text("yes" if bool(values[t]) else "-", style="" if bool(values[t]) else "dim"))
        elif not values.is_floating_point():
            cells.append(Text(str(int(values[t]))))
        elif name in logprobs:
            cells.append(Text(signed(float(values[t]), digits).plain.removeprefix("+")))
        elif "weight" in name:
            weight = float(values[t])
            cells.append(Text(f"{weight:.3g}", style="dim" if weight == 0 else ""))
        else:
            cells.append(signed(float(values[t]), digits))
    return cells


def signed(value: float, digits: int = 2) -> Text:
    """A number with its sign: green above 0, red below."""
    said = f"{value:+.{digits}f}"
    zero = not any(c in "123456789" for c in said)
    return Text(said.replace("-", "+") if zero else said, style="dim" if zero else "green" if value > 0 else "red")
