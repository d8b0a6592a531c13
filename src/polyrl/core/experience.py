"""What flows through the five stages: one batch-major table of steps and episodes.

A token is a step, a prompt is a first observation, a response is an episode: so the same `[B, T]` functions serve a
language model and a walking robot. Every field has one name, shape, dtype and unit: `polyrl.core.fields`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyrl.core.fields import FIELDS as FIELDS  # stood here before 0.2
from polyrl.core.fields import Field as Field


class Experience:
    """A batch of episodes: tensors with a common first dimension `B`, and Python values per row.

    Python values are kept in two places that never mix, so that no name of the data can take the place of what a stage
    has made, nor the other way round:

    - `columns`, made by stages: `prompt` and `completion` (the text that was sampled), what sessions of tools report
      (such as `calls`), and what parts add.
    - `task_rows`, the task's own row that each row of the batch answers, with the data's columns under their own names.
      Empty where there are none.

    Treat it as immutable: `with_fields` returns a new table that shares the old columns.
    """

    def __init__(
        self,
        data: Mapping[str, Tensor],
        columns: Mapping[str, Sequence[Any]] | None = None,
        task_rows: Sequence[Mapping[str, Any]] = (),
    ):
        self.data: dict[str, Tensor] = dict(data)
        self.columns: dict[str, list[Any]] = {k: list(v) for k, v in (columns or {}).items()}
        self.task_rows: list[Mapping[str, Any]] = list(task_rows)
        size = self._size = next(iter(self.data.values())).shape[0]
        for name, tensor in self.data.items():
            if tensor.shape[0] != size:
                raise ValueError(f"field '{name}' has {tensor.shape[0]} rows, not {size}")
        for name, values in self.columns.items():
            if len(values) != size:
                raise ValueError(f"column '{name}' has {len(values)} values for {size} rows")
        if self.task_rows and len(self.task_rows) != size:
            raise ValueError(f"{len(self.task_rows)} rows of the task for {size} rows")

    def __len__(self) -> int:
        return self._size

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.data[name]
        except KeyError:
            raise KeyError(f"the experience has no field '{name}'; it has {', '.join(sorted(self.data))}") from None

    def fields(self) -> list[str]:
        """Names of the tensor fields."""
        return [*self.data]

    def with_fields(self, /, **fields: Tensor) -> Experience:
        """Return the same rows with these fields added or replaced."""
        return Experience({**self.data, **fields}, self.columns, self.task_rows)

    def with_columns(self, /, **columns: Sequence[Any]) -> Experience:
        """Return the same rows with these Python columns added or replaced; the task's own rows stay as they are."""
        return Experience(self.data, {**self.columns, **columns}, self.task_rows)

    def answering(self, task_rows: Sequence[Mapping[str, Any]]) -> Experience:
        """Return the same rows, each as an answer to its row of the task, `B` of them."""
        return Experience(self.data, self.columns, task_rows)

    def task_column(self, name: str) -> list[Any] | None:
        """Return the data's column of this name, one value a row; None where no row of the task has it."""
        if not any(name in row for row in self.task_rows):
            return None
        return [row.get(name) for row in self.task_rows]

    def only(self, names: Collection[str]) -> Experience:
        """Return the same rows with none but these fields, and no columns; names that it has not are passed over."""
        return Experience({name: x for name, x in self.data.items() if name in names})

    def to(self, device: torch.device | str) -> Experience:
        """Return the same rows on a device."""
        return Experience({name: x.to(device) for name, x in self.data.items()}, self.columns, self.task_rows)

    def steps(self) -> Experience:
        """Return each step that counts (some weight is not 0) as a row of its own: `[B, T, ...]` becomes `[N, 1, ...]`.

        For policies that see one step at a time. What is per episode is repeated for each of its steps.
        """
        counted = self["weight"] != 0
        if "value_weight" in self:
            counted = counted | (self["value_weight"] != 0)
        row, _ = counted.nonzero(as_tuple=True)
        shape = counted.shape
        return Experience(
            {name: x[counted].unsqueeze(1) if x.shape[:2] == shape else x[row] for name, x in self.data.items()}
        )

    def split(self, count: int) -> list[Experience]:
        """Return `count` nearly equal runs of rows, without columns; their fields are views of this table's."""
        pieces = {name: x.tensor_split(count) for name, x in self.data.items()}
        return [Experience({name: piece[i] for name, piece in pieces.items()}) for i in range(count)]

    def rows(self, index: Tensor | Sequence[int]) -> Experience:
        """Return the rows at `index` [n] (integers, in that order)."""
        where = torch.as_tensor(index)
        if where.dtype == torch.bool:
            raise TypeError("rows() takes row numbers; turn a mask into them with mask.nonzero()[:, 0]")
        where = where.long()
        return Experience(
            {name: x[where.to(x.device)] for name, x in self.data.items()},
            {k: [v[i] for i in where.tolist()] for k, v in self.columns.items()} if self.columns else None,
            [self.task_rows[i] for i in where.tolist()] if self.task_rows else (),
        )
