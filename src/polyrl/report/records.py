"""The records of a run by column: a float for each number that was logged, and not a mapping for each iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]


class Records(Sequence[dict[str, float]]):
    """Rows of finite numbers, in order; of a row only what it has is in its mapping."""

    def __init__(self, rows: Sequence[Mapping[Any, Any]]):
        """Keep the finite numbers of `rows`; what is no number is left out."""
        self._length = len(rows)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault(tuple(row), []).append(number)
        found: dict[str, Column] = {}
        for names, where in alike.items():  # a few groups: iterations with and without an evaluation
            values = _numbers([list(rows[number].values()) for number in where], len(names))
            for name, column in zip(names, values.T, strict=True):
                found.setdefault(str(name), np.full(self._length, np.nan))[where] = column
        self._columns = {name: column for name, column in found.items() if not np.isnan(column).all()}

    @property
    def keys(self) -> list[str]:
        """Names of what some row has, in the order of their first appearance."""
        return [*self._columns]

    def column(self, key: str) -> Column:
        """Values of `key`, float64 [rows]; NaN where a row lacks it."""
        found = self._columns.get(key)
        return np.full(self._length, np.nan) if found is None else found

    def where(self, key: str) -> npt.NDArray[np.intp]:
        """Numbers of the rows that have `key`, [n]."""
        return np.flatnonzero(~np.isnan(self.column(key)))

    def series(self, key: str) -> list[float]:
        """Values of `key` in the rows that have it."""
        column = self._columns.get(key)
        if column is None:
            return []
        values: list[float] = column[~np.isnan(column)].tolist()
        return values

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> dict[str, float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, float]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, float] | list[dict[str, float]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        number = range(self._length)[index]
        row = ((key, float(column[number])) for key, column in self._columns.items())
        return {key: value for key, value in row if value == value}

    def __iter__(self) -> Iterator[dict[str, float]]:
        columns = [column.tolist() for column in self._columns.values()]
        if not columns:
            yield from ({} for _ in range(self._length))
            return
        for values in zip(*columns, strict=True):
            yield {key: value for key, value in zip(self._columns, values, strict=True) if value == value}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _numbers(rows: list[list[Any]], width: int) -> Column:
    """Numbers as float64 [rows, width], NaN for what is none or not finite."""
    plain = set(map(type, chain.from_iterable(rows))) <= {int, float}
    try:
        found = np.array(rows if plain else [[*map(_small, row)] for row in rows], dtype=np.float64)
    except OverflowError:  # a whole number beyond all floats
        found = np.array([[*map(_small, row)] for row in rows], dtype=np.float64)
    found = found.reshape(len(rows), width)
    found[~np.isfinite(found)] = np.nan
    return found


def _small(value: Any) -> float:
    """A number as float; NaN for anything else, and for what no float holds."""
    if type(value) not in (int, float):
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.nan
