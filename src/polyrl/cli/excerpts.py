"""A few real rows of an experience for `polyrl trace`: preference pairs, steps of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from polyrl.cli.responses import escaped, indented, read_prompt, read_text
from polyrl.cli.tokens import TokenTable, signed
from polyrl.core.experience import Experience

MOST_STEPS = 8
"""Steps of an episode that are shown, and rows where every episode is one step."""
MOST_PAIRS = 2
FIRST = ("demand", "state", "observation", "action", "next_state", "reward", "value", "advantage", "cost")
"""Fields in the order of time: what was seen, what was done, what came of it."""
MASKS = ("mask", "present", "weight")


# ------------------------------------------------------------------------------------------------------- pairs


def some_pairs(experience: Experience) -> list[tuple[int, int]]:
    """The rows (chosen, rejected) of the first few pairs."""
    pair, preferred = experience["pair"], experience["preferred"]
    found = []
    for number in torch.unique(pair[pair >= 0]).tolist()[:MOST_PAIRS]:
        rows = (pair == number).nonzero()[:, 0]
        chosen, rejected = rows[preferred[rows]].tolist(), rows[~preferred[rows]].tolist()
        if chosen and rejected:
            found.append((chosen[0], rejected[0]))
    return found


def log_ratios(experience: Experience, run_state: Any) -> dict[int, float]:
    """rho = log pi - log pi_ref of the whole response, nats, under the present policy: of the pairs that are shown.

    Where no reference was asked it is log pi.
    """
    rows = [row for pair in some_pairs(experience) for row in pair]
    if not rows:
        return {}
    picked = experience.rows(rows)
    with torch.no_grad():
        logprob = run_state.outputs(picked, frozenset({"logprob"}))["logprob"].to(picked["mask"].device)
    ratio = logprob - picked["ref_logprob"] if "ref_logprob" in picked else logprob
    total = torch.where(picked["mask"], ratio, torch.zeros_like(ratio)).sum(1)
    return dict(zip(rows, total.tolist(), strict=True))


def _response(experience: Experience, row: int, tokenizer: Any) -> str:
    """A row's response: its column, or what its tokens say where it has none."""
    if "completion" in experience.columns:
        return str(experience.columns["completion"][row])
    if tokenizer is not None and "action" in experience and "mask" in experience:
        return read_text(tokenizer, experience["action"][row][experience["mask"][row]])
    return ""


def preference_pairs(
    experience: Experience,
    before: dict[int, float] | None = None,
    after: dict[int, float] | None = None,
    tokenizer: Any = None,
) -> Padding:
    """The first few pairs, and how their log-ratios moved, where they are known before and after the update.

    Args:
        experience: rows with `pair` and `preferred`.
        before, after: rho of each row, nats.
        tokenizer: reads prompts, and responses that carry no text.
    """
    moved = bool(before and after)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=moved)
    rho, what = (
        ("rho", "log-ratios rho to the reference") if "ref_logprob" in experience else ("log pi", "log-probabilities")
    )
    for column in ("", f"{rho} before", f"{rho} after", "response") if moved else ("", "response"):
        table.add_column(column, header_style="dim")
    for chosen, rejected in some_pairs(experience):
        if prompt := read_prompt(experience, chosen, tokenizer):
            table.add_row(*[""] * (3 if moved else 1), Text(escaped(prompt), style="bold"))
        for row, name, style in ((chosen, "chosen", "green"), (rejected, "rejected", "red")):
            cells = [Text(name, style=style)]
            if before and after:
                cells += [Text(f"{round(ratios.get(row, 0.0), 4) + 0.0:+.4f}") for ratios in (before, after)]
            table.add_row(*cells, Text(escaped(_response(experience, row, tokenizer)), style="cyan"))
        if before and after:
            h = [ratios.get(chosen, 0.0) - ratios.get(rejected, 0.0) for ratios in (before, after)]
            table.add_row(
                Text("h", style="bold"),
                *[Text(f"{round(x, 4) + 0.0:+.4f}", style="bold") for x in h],
                Text(f"{rho} - {rho}'"),
            )
    said = f"how the {what} (nats) and their difference h moved:" if moved else "some pairs:"
    return indented(said, table)


# ---------------------------------------------------------------------------------------------- steps of episodes


def _stepwise(experience: Experience, names: Sequence[str] | None) -> list[str]:
    """Fields to show step by step: those with a value for each step that fits into a cell."""
    shapes = {name: tuple(experience[name].shape) for name in experience.fields()}
    lengths = [shape[1] for name, shape in shapes.items() if name in ("action", "mask", "reward", "demand", "state")]
    if not lengths:
        return []
    size = (len(experience), lengths[0])
    hidden = (*MASKS, "final_observation", "final_value")  # which are zero but where an episode was cut
    there = [name for name, shape in shapes.items() if shape[:2] == size and name not in hidden]
    if names is not None:
        return [name for name in names if name in there]
    return sorted(there, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def _cell(value: Tensor, name: str) -> Text:
    """The value of one step: a number, a few of them, or the first of many."""
    flat = value.flatten()
    if flat.dtype == torch.bool:
        return Text("yes" if bool(flat.all()) else "-", style="" if bool(flat.any()) else "dim")
    if flat.numel() == 1 and name == "advantage":
        return signed(float(flat[0]))
    if flat.numel() > 2 and bool((flat >= 0).all()) and abs(float(flat.sum()) - 1) < 1e-3 and bool((flat < 1).all()):
        return Text(f"{int(flat.argmax())}: {float(flat.max()):.2f}")  # probabilities: the largest, and whose it is
    figures = 3 if flat.numel() == 1 else 2
    written = [f"{float(x):.{figures}g}" if x.is_floating_point() else str(int(x)) for x in flat[:2]]
    return Text(" ".join(written) + (" .." if flat.numel() > 2 else ""), style="cyan" if name == "action" else "")


def steps(experience: Experience, names: Sequence[str] | None = None, caption: str = "") -> Padding | None:
    """The first steps of two episodes, or the first rows where episodes have one step; None if nothing is by step.

    Args:
        experience: of any domain.
        names: fields to show; None shows all that have a value a step, and those a row (`[B]`) of one-step episodes.
        caption: what is to be seen.
    """
    shown = _stepwise(experience, names)
    if not shown:
        return None
    length = experience[shown[0]].shape[1]
    if length == 1:
        return _one_step(experience, shown, names, caption)
    rows = _two_rows(experience)
    blocks: list[Any] = []
    for i in rows:
        count = min(MOST_STEPS, length)
        lines = [(f"row {i}", [Text(str(t), style="dim") for t in range(count)])]
        for name in shown:
            values = experience[name][i, :count]
            if names is None and values.dtype == torch.bool and not bool(values.any()):
                continue  # flags that are not raised here
            lines.append((name, [_cell(value, name) for value in values]))
        blocks += [*([Text("")] if blocks else []), TokenTable(lines)]
    more = f" (of {length})" if length > MOST_STEPS else ""
    which = f"{len(rows)} of {len(experience)} rows" if len(experience) > 1 else "the one row"
    said = caption or f"the first steps{more} of {which}"
    return indented(f"{said}:", *blocks)


def _two_rows(experience: Experience) -> list[int]:
    """Two rows that differ: those of the greatest and least reward, the first two where rewards say nothing."""
    if "reward" in experience and experience["reward"].dim() == 2:
        total = experience["reward"].double().sum(1)
        best, worst = int(total.argmax()), int(total.argmin())
        if best != worst:
            return [best, worst]
    return list(range(min(2, len(experience))))


def _one_step(experience: Experience, shown: Sequence[str], names: Sequence[str] | None, caption: str) -> Padding:
    flat = [name for name in experience.fields() if experience[name].dim() == 1]
    columns = [*shown, *(name for name in flat if names is None or name in names)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, header_style="dim", justify="right")
    for i in range(min(MOST_STEPS, len(experience))):
        table.add_row(*[_cell(experience[name][i], name) for name in columns])
    more = f" of {len(experience)}" if len(experience) > MOST_STEPS else ""
    return indented(f"{caption or f'the first rows{more}, one step each'}:", table)
