"""A few real responses for `polyrl trace`: one example that is kept through the stages, and its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.fields import documented
from polyrl.parts.collect import LANGUAGE_FIELDS
from polyrl.recipe import Part
from polyrl.tasks.language.columns import told_columns

MOST_ROWS = 4
ROUNDING = 1e-6
"""Smaller rewards, scores and differences of them are shown as 0."""
MOST_TEXT = 160
"""Characters of a prompt or a response that are shown."""
MOST_COLUMNS = 4
WIDEST_COLUMN = 12
"""What the task says of a row is shown where it is short: so many columns, of so many characters."""


def indented(caption: str | Text, *blocks: Any) -> Padding:
    """Blocks below a caption."""
    heading = Text(caption, style="italic dim") if isinstance(caption, str) else caption
    return Padding(Group(heading, *blocks), (0, 0, 0, 4))


def escaped(text: object) -> str:
    """One line of a text, its end kept where it is too long."""
    line = repr(str(text))[1:-1]
    return line if len(line) <= MOST_TEXT else f"{line[: MOST_TEXT // 2]} ... {line[-MOST_TEXT // 2 :]}"


def changed_fields(before: Experience | None, after: Experience) -> list[str]:
    """Fields that are new or not what they were."""
    found = []
    for name in after.fields():
        old = before[name] if before is not None and name in before else None
        if old is None or old.shape != after[name].shape or not bool(torch.equal(old, after[name])):
            found.append(name)
    return found


def differs(old: Tensor, new: Tensor) -> Tensor:
    """Where two tables of one shape differ by more than rounding."""
    if not new.is_floating_point():
        return old != new
    return ~torch.isclose(old.to(new.dtype), new, rtol=1e-5, atol=ROUNDING, equal_nan=True)


def other_rows(part: Part, before: Experience | None, changed: Sequence[str]) -> bool:
    """Whether a part has taken rows, dropped or repeated: more is new than the part gives."""
    return before is not None and part.stage != "collect" and bool(set(changed) - part.gives)


# ----------------------------------------------------------------------------------------------- which are shown


def _by_row(values: Tensor) -> Tensor:
    return values.double().nan_to_num().flatten(1).mean(1) if values.dim() > 1 else values.double().nan_to_num()


def movement(before: Experience | None, after: Experience, names: Sequence[str]) -> Tensor:
    """How far a part has moved what was there, by row: `[B]`, at most 1 for each field."""
    total = torch.zeros(len(after), dtype=torch.float64)
    for name in names:
        if before is None or name not in before or before[name].shape != after[name].shape:
            continue
        change = (after[name].double() - before[name].double()).abs()
        moved = _by_row(torch.where(differs(before[name], after[name]), change, 0.0))
        if float(moved.max()) > 0:
            total += moved / moved.max()
    return total


@dataclass
class Example:
    """The responses that are shown: the same from part to part, until a part does what none of them shows.

    Attributes:
        places: which they are: group and place within it, of one prompt, or of several that have one response each.
        judged: whether they were chosen with a view to what they were worth.
    """

    places: tuple[tuple[int, int], ...] = ()
    judged: bool = False

    def follow(self, before: Experience | None, after: Experience, names: Sequence[str]) -> bool:
        """Keep the responses, or choose others where there is more to see; say whether others were chosen.

        Args:
            before, after: what a part was given, and what it returned.
            names: fields that it has changed; where it has moved none of the present responses, others are chosen.
        """
        worth = next((after[name] for name in ("score", "outcome") if name in after), None)
        moved = movement(before, after, names)
        mine = self.rows(after)
        if mine and (self.judged or worth is None) and (bool((moved[mine] > 0).any()) or not bool((moved > 0).any())):
            return False
        value = torch.zeros(len(after), dtype=torch.float64) if worth is None else worth.double().nan_to_num()
        group, sampled = after["group"], ~after["greedy"]
        rows = sampled.nonzero()[:, 0]
        numbers, index = torch.unique(group[rows], return_inverse=True)
        if len(numbers) < len(rows):
            spread = torch.stack([value[rows[index == g]].std(correction=0) for g in range(len(numbers))])
            shift = torch.stack([moved[rows[index == g]].mean() for g in range(len(numbers))])
            interest = sum(x / x.max() for x in (spread, shift) if float(x.max()) > 0)
            best = int(interest.argmax()) if isinstance(interest, Tensor) else 0
            rows = rows[index == best]
        by_worth, by_move = (rows[x[rows].argsort(stable=True)].tolist() for x in (value, moved))
        picked = [by_worth[-1], by_worth[0], *rows.tolist()]
        if bool((moved > 0).any()):  # those that were moved most and least, too
            picked = [by_move[-1], by_worth[-1], by_worth[0], by_move[0], *picked]
        if worth is None:
            picked = rows.tolist()
        shown = [*dict.fromkeys(picked)][:MOST_ROWS]
        kinds = [moved > 0, moved == 0]
        if "finished" in after:
            kinds += [after["finished"], ~after["finished"]]
        extra = []
        for kind in kinds:  # of each kind one, where there is one
            others = (kind & sampled).nonzero()[:, 0]
            if len(others) and not bool(kind[shown].any()):
                extra.append(int(others[moved[others].argmax()]))
        shown = [*shown[: MOST_ROWS - len(extra)], *extra]
        where = _places_in_group(group)
        self.places = tuple(where[i] for i in sorted(shown))
        again, self.judged = bool(mine), worth is not None
        return again

    def rows(self, experience: Experience) -> list[int]:
        """Row numbers; greedy baselines follow the responses to their prompt."""
        where = {place: i for i, place in enumerate(_places_in_group(experience["group"]))}
        mine = [where[place] for place in self.places if place in where]
        group, greedy = experience["group"].tolist(), experience["greedy"].tolist()
        mine = [i for i in mine if not greedy[i]]
        twins = {group[i]: i for i in range(len(group)) if greedy[i]}
        if any(group[i] in twins for i in mine):
            several = len({group[i] for i in mine}) > 1
            mine = mine[: MOST_ROWS // 2 if several else MOST_ROWS - 1]
        shown = [*dict.fromkeys(group[i] for i in mine)]
        return [i for g in shown for i in [*(j for j in mine if group[j] == g), *([twins[g]] if g in twins else [])]]

    def prompt_rows(self, experience: Experience) -> list[int]:
        """Row numbers of all responses to the prompts, at most twice as many as are shown elsewhere."""
        groups = {g for g, _ in self.places}
        return [i for i, g in enumerate(experience["group"].tolist()) if g in groups][: 2 * MOST_ROWS]


def _places_in_group(group: Tensor) -> list[tuple[int, int]]:
    """Of each row its group, and how many of the group stand before it."""
    seen: Counter[int] = Counter()
    found = []
    for g in group.tolist():
        found.append((g, seen[g]))
        seen[g] += 1
    return found


# -------------------------------------------------------------------------------------------------- whole responses


def read_text(tokenizer: Any, ids: Tensor) -> str:
    """What tokens `[n]` say to the model: special ones stand there too, and no space is cleaned up."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def read_prompt(experience: Experience, row: int, tokenizer: Any) -> str:
    """The row's prompt as the model reads it: laid out by its chat template, with the steps that belong to a state.

    Without a tokenizer or tokens, the task's own text; empty where there is none.
    """
    if tokenizer is not None and "prompt_ids" in experience and "prompt_mask" in experience:
        return read_text(tokenizer, experience["prompt_ids"][row][experience["prompt_mask"][row]])
    return str(experience.columns.get("prompt", [""] * len(experience))[row])


def row_fields(part: Part, experience: Experience, changed: Sequence[str]) -> list[str]:
    """Fields of a part that say one number, or a few, of each row, and not the same of all."""
    found = []
    few = {name for name, field in documented([type(part)]).items() if field.shape == "[B, k]"}
    for name in changed:
        values = experience[name]
        narrow = values.dim() == 1 or (values.dim() == 2 and values.shape[1] <= 8 and name in few)
        if (
            name in part.gives
            and name not in LANGUAGE_FIELDS
            and narrow
            and (name == "score" or bool((values != values[:1]).any()))
        ):
            found.append(name)
    return found


def _said_of(experience: Experience, rows: Sequence[int]) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Columns of the task that are short enough to show: those that differ between rows, and what all rows share."""
    differ: dict[str, list[Any]] = {}
    shared: dict[str, str] = {}
    prompts = [str(prompt) for prompt in experience.columns.get("prompt", [""] * len(experience))]
    for name, values in told_columns(experience.task_rows, experience.columns).items():
        if not all(isinstance(values[i], str | int | float) for i in rows):
            continue
        said = [str(values[i]) for i in rows]
        if max(map(len, said)) > 1 and all(
            x in re.findall(r"\w+", prompts[i]) for i, x in zip(rows, said, strict=True)
        ):
            continue  # the prompt says it
        if len(set(said)) == 1 and len(said[0]) <= MOST_TEXT // 4:
            shared[name] = said[0]
        elif len(set(said)) > 1 and max(map(len, said)) <= WIDEST_COLUMN:
            differ[name] = values
    return dict([*differ.items()][:MOST_COLUMNS]), shared


def _number(experience: Experience, name: str, row: int) -> Text:
    if name == "score" and "finished" in experience and not bool(experience["finished"][row]):
        return Text("not yet", style="dim")
    values = experience[name][row]
    if values.dtype == torch.bool:
        return Text("yes" if bool(values) else "no", style="" if bool(values) else "dim")
    if values.dim():
        return Text(" ".join(f"{float(x):.2f}" for x in values))
    if not values.is_floating_point():
        return Text(str(int(values)))
    said = float(values)
    return Text(
        f"{said:.3g}" if 0 < abs(said) < 0.01 else f"{said:.2f}", style="bold green" if said > 0 else "bold red"
    )


def completions(
    experience: Experience,
    rows: Sequence[int],
    caption: str,
    fields: Sequence[str] = (),
    before: Experience | None = None,
    tokenizer: Any = None,
) -> Padding:
    """Some responses with what is known of each: fields, what they were before, and what the task says.

    Args:
        experience: of language.
        rows: which rows.
        caption: what is to be seen.
        fields: `[B]` or `[B, k]`, a column each.
        before: the same rows before the part; fields that it has get a second column.
        tokenizer: reads prompts.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    said, common = _said_of(experience, rows)
    prompts = [read_prompt(experience, i, tokenizer) for i in rows]
    shared = len(set(prompts)) == 1
    heads = [""]
    for name in fields:
        heads += [f"{name} before", "now"] if before is not None and name in before else [name]
    for head in [*heads, *said]:
        table.add_column(head, header_style="dim", justify="right" if head else "left", no_wrap=True)
    if not shared:
        table.add_column("prompt", header_style="dim")
    table.add_column("response", header_style="dim")
    for i, prompt in zip(rows, prompts, strict=True):
        cells = [Text("greedy" if bool(experience["greedy"][i]) else "sample", style="dim")]
        for name in fields:
            if before is not None and name in before:
                cells.append(_number(before, name, i))
            cells.append(_number(experience, name, i))
        cells += [Text(escaped(values[i])) for values in said.values()]
        if not shared:
            cells.append(Text(escaped(prompt), style="bold"))
        cells.append(Text(escaped(experience.columns["completion"][i]), style="cyan"))
        table.add_row(*cells)
    heading = Text(f"{caption}: ", style="italic dim")
    if shared:
        heading.append(escaped(prompts[0]), style="not italic not dim bold")
    if common:
        heading.append(f"  ({', '.join(f'{name} {escaped(value)}' for name, value in common.items())})", style="dim")
    return indented(heading, table)


def drawn(before: Experience, after: Experience, rows: Sequence[int]) -> tuple[str, Padding]:
    """What became of rows that a part has dropped or repeated: a sentence on all, and a table of a few.

    Args:
        before, after: what the part was given, and what it returned.
        rows: rows of `before` to show, those of the greatest score first.
    """
    old, new = _keys(before), Counter(_keys(after))
    rows = list({old[i]: i for i in reversed(rows)}.values())  # the same response sampled twice is one line
    if "score" in before:
        rows.sort(key=lambda i: -float(before["score"][i]))
    left = len(set(old) & set(new))
    most = max(new.values())
    total = f"{len(after)} rows, where there were {len(before)}"
    sentence = f"{total}: {left} of the {len(set(old))} different ones are left, the commonest {most} times"
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("times", *(["score"] if "score" in before else []), "response"):
        table.add_column(head, header_style="dim", justify="left" if head == "response" else "right")
    for i in rows:
        times = new[old[i]]
        cells = [Text(str(times), style="bold" if times else "dim")]
        if "score" in before:
            cells.append(_number(before, "score", i))
        table.add_row(*cells, Text(escaped(before.columns["completion"][i]), style="cyan" if times else "dim"))
    return sentence, indented("how often each response stands in the batch now:", table)


def _keys(experience: Experience) -> list[bytes]:
    names = [name for name in ("group", "action", "behaviour_logprob") if name in experience]
    tables = [experience[name].reshape(len(experience), -1).numpy() for name in names]
    return [b"".join(t[i].tobytes() for t in tables) for i in range(len(experience))]
