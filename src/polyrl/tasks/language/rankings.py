"""Several responses to a prompt, graded or in order, as the pairs that they say: each better one against each worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.base import Row
from polyrl.tasks.language.left_out import UNUSABLE, DataRow, LeftOut, place_of

RESPONSES, SCORES = "responses", "scores"
RANKING, PLACES = "ranked_row", ("chosen_rank", "rejected_rank")
"""Columns of a pair: the number of the ranking that it is of, and how many of that one's responses are better."""


def ranked(rows: Sequence[Any]) -> bool:
    """Whether some row has a list of responses and is no pair."""
    return any(isinstance(r, Mapping) and isinstance(r.get(RESPONSES), list) and r.get("chosen") is None for r in rows)


def pairs_of(rows: Sequence[Row], label: str, left_out: LeftOut | None = None) -> list[Row]:
    """Rows with `prompt`, `chosen` and `rejected`, best against worst first, all of one ranking behind each other.

    Args:
        rows: with `responses`, best first, or with a number for each in `scores`, of which more is better. Equally good
            ones make no pair.
        label: names the data in errors.
        left_out: counts rows that cannot be used; None: the first one is an error.

    Raises:
        UserError: a row has no two responses, or scores that are none, or says of no two which is better.
    """
    found: list[Row] = []
    for number, row in enumerate(rows, start=1):
        where = place_of(row) or f"{label}, row {number}"
        try:
            found += [DataRow({**pair, RANKING: number}, where) for pair in _pairs(where, row)]
        except UserError as error:
            if left_out is None:
                raise
            left_out.add(UNUSABLE, str(error))
    return found


def _pairs(where: str, row: Row) -> list[Row]:
    responses, scores = row.get(RESPONSES), row.get(SCORES)
    if not isinstance(responses, list) or len(responses) < 2:
        raise UserError(f"{where}: the column '{RESPONSES}' must be a list of two responses or more.")
    for place, response in enumerate(responses, start=1):
        if not isinstance(response, str | list) or not response:
            what = "is empty" if response in ("", []) else "is neither text nor a list of messages"
            raise UserError(f"{where}: response {place} of the column '{RESPONSES}' {what}.")
    order = [float(-place) for place in range(len(responses))]
    if scores is not None:
        if not isinstance(scores, list) or len(scores) != len(responses) or not all(map(_is_score, scores)):
            raise UserError(
                f"{where}: the column '{SCORES}' must have a number for each of {len(responses)} responses."
            )
        order = [float(score) for score in scores]
    best_first = sorted(range(len(order)), key=lambda i: -order[i])
    apart = [(i, j) for i, j in combinations(best_first, 2) if order[i] > order[j]]
    if not apart:
        raise UserError(f"{where}: all responses are equally good, so there is nothing to learn; leave the row out.")
    made = (RESPONSES, SCORES, "rejected", "chosen")
    kept = {name: value for name, value in row.items() if name not in made}
    rank = [sum(other > own for other in order) for own in order]
    found = []
    for i, j in sorted(apart, key=lambda pair: order[pair[1]] - order[pair[0]]):
        graded = {} if scores is None else {"score_chosen": order[i], "score_rejected": order[j]}
        places = dict(zip(PLACES, (rank[i], rank[j]), strict=True))
        found.append({**kept, "chosen": responses[i], "rejected": responses[j], **graded, **places})
    return found


def _is_score(value: Any) -> bool:
    """Whether it is a number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def rankings_of(pairs: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, int]]]:
    """What `pairs_of` made pairs of, each ranking as a list of responses, best first.

    Args:
        pairs: one that is of no ranking is one of two.

    Returns:
        For each response a number, 2 n of the chosen one of pair n and 2 n + 1 of the rejected one, and how many are
        better. Of the same text at the same place one is left.
    """
    found: dict[Any, dict[tuple[int, str], int]] = {}
    for n, row in enumerate(pairs):
        ours = all(name in row for name in (RANKING, *PLACES))  # one of these alone is a column of the data's
        ranks = [row[place] for place in PLACES] if ours else (0, 1)
        responses = found.setdefault(row[RANKING] if ours else ("pair", n), {})
        for side, (name, rank) in enumerate(zip(("chosen", "rejected"), ranks, strict=True)):
            responses.setdefault((rank, str(row[name])), 2 * n + side)
    ranked_rows = ([(number, rank) for (rank, _), number in one.items()] for one in found.values())
    return [sorted(one, key=lambda response: response[1]) for one in ranked_rows]
