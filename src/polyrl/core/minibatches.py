"""Rows of a batch as minibatches are made of them: which belong together, and which count."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.part import Term
from polyrl.errors import UserError


def units_of(experience: Experience, terms: tuple[Term, ...]) -> tuple[Tensor, str]:
    """What minibatches are made of, `[B]` numbers from 0 (rows of equal number stay together), and the field's name."""
    fields = {t.grouped_by for t in terms if t.grouped_by}
    if not fields:
        return torch.arange(len(experience)), ""
    if len(fields) > 1:
        raise UserError(f"The objective's terms keep rows together by different fields: {', '.join(sorted(fields))}.")
    name = fields.pop()
    return torch.unique(experience[name], return_inverse=True)[1], name


def steps_that_count(terms: tuple[Term, ...], experience: Experience) -> Tensor:
    """Steps that some term counts, `[B, T]` bool."""
    common = experience["weight"]
    found = common != 0
    for term in terms:
        own = term.weights(experience)
        if own is not common:
            found = found | (own != 0)
    return found


def rows_of_units(picked: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """The numbers among `rows` [n] whose unit [B] is one of `picked` [m]."""
    return rows[torch.isin(unit[rows], picked)]


def minibatches_of(
    table: Experience, order: Tensor, count: int, unit: Tensor, rows: Tensor, grouped_by: str
) -> list[Experience]:
    """A table's rows in nearly equal minibatches.

    Args:
        table: of B rows.
        order: shuffled numbers `[u]` of units; where rows are not kept together, of rows.
        count: of minibatches, where there are as many units.
        unit: of each row, `[B]`.
        rows: that count, `[n]`.
        grouped_by: the field by which rows are kept together; empty where they are not.
    """
    count = min(count, len(order))
    if grouped_by:
        return [table.rows(rows_of_units(picked, unit, rows)) for picked in order.tensor_split(count)]
    if table.columns or table.task_rows:
        return [table.rows(picked) for picked in order.tensor_split(count)]
    return table.rows(order).split(count)  # all rows are gathered at once


def blanked(fields: dict[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """The same tensors, those that are float of shape `[B, T]` with 0 where not `counted`."""
    return {
        name: torch.where(counted, x, torch.zeros_like(x)) if x.shape == counted.shape and x.is_floating_point() else x
        for name, x in fields.items()
    }


def counted_alone(
    outputs: dict[str, Tensor], batch: Experience, counted: Tensor
) -> tuple[dict[str, Tensor], Experience]:
    """Outputs `[B, T]` and batch with 0 where not `counted`: what stands there must reach no gradient (0 * inf)."""
    if bool(counted.all()):
        return outputs, batch
    return blanked(outputs, counted), batch.with_fields(**blanked(batch.data, counted))


def joined(tables: list[Experience]) -> Experience:
    """The rows of several tables one after another, with the fields that all of them have."""
    names = set(tables[0].fields()).intersection(*(t.fields() for t in tables[1:]))
    return Experience({name: torch.cat([t[name] for t in tables]) for name in tables[0].fields() if name in names})


def put_rows(found: dict[str, Tensor], outputs: Mapping[str, Tensor], rows: Tensor | None, size: int) -> None:
    """Put outputs `[b, ...]` of some rows, as constants, into those of all `size` rows."""
    for name, x in outputs.items():
        if rows is None:
            found[name] = x.detach()
        else:
            if name not in found:
                found[name] = x.new_zeros((size, *x.shape[1:]))
            found[name][rows] = x.detach()
