"""Responses that are given one by one, as token ids and as rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.pairs import ReferenceLogprobCache, check_fits, said_to_end
from polyrl.models.language.policy import Backbone
from polyrl.models.language.rows import as_experience
from polyrl.tasks.language.formats import response_of, template_columns
from polyrl.tasks.language.left_out import place_of


@dataclass(frozen=True)
class ResponseIds:
    """A response as token ids."""

    prompt: list[int]
    response: list[int]
    ended: bool = True
    """Whether it ends by itself."""
    own: list[bool] | None = None
    """Which of its tokens the model writes; None: all. It reads what users and tools say in between."""


def encode_completion(reader: Backbone, row: Mapping[str, Any], where: str) -> ResponseIds:
    """Token ids of a row with `prompt` and `completion`, in any form that `response_of` knows.

    Where a row says `completion_ended` false, the response was cut off and has no end token.

    Raises:
        UserError: it does not fit into the model's context, has no tokens, or the chat template does not write it as
            the model would.
    """
    ended = said_to_end(row.get("completion_ended"), f"{where}: the column 'completion_ended'")
    row = response_of(where, dict(row))
    given = template_columns(row)
    try:
        prompt = reader.encode_prompt(row["prompt"], **given)
        ids, own = reader.encode_turns(row["prompt"], row["completion"], ended=ended, **given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    check_fits(where, reader, prompt, ids, "response", "row")
    return ResponseIds(prompt, ids, ended, None if all(own) else own)


class GivenResponses:
    """Responses of one split, turned into token ids when they are first asked for.

    Response `n` is the row `n` of the data set, numbered so in the field `example`.
    """

    def __init__(self, reader: Backbone, rows: Sequence[Mapping[str, Any]], label: str, *, max_tokens: int = 1):
        """`label` names the rows in errors; `max_tokens` is the length limit that the task gives to responses."""
        self.reader, self.rows, self.label, self.max_tokens = reader, rows, label, max_tokens
        self.reference_cache = ReferenceLogprobCache()
        self._ids: dict[int, ResponseIds] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, row: Mapping[str, Any], where: str) -> ResponseIds:
        """A row as token ids; `where` names it in errors."""
        return encode_completion(self.reader, row, where)

    def ids(self, number: int) -> ResponseIds:
        """The response as token ids; see `encode_completion`."""
        if number not in self._ids:
            row = self.rows[number]
            self._ids[number] = self.encode(row, place_of(row) or f"{self.label}, row {number + 1}")
        return self._ids[number]

    def check(self, most: int) -> None:
        """Encode the first `most` responses, so that what is wrong with them is known before a run begins."""
        for number in range(min(most, len(self))):
            self.ids(number)

    def batch(self, numbers: Sequence[int]) -> Experience:
        """The responses of these numbers, one row each; a number may occur twice.

        Fields: prompt_ids, prompt_mask, action, present, mask, temperature (1), ended, group, greedy (false),
        length_limit, example.
        """
        found = [self.ids(n) for n in numbers]
        batch = as_experience([r.prompt for r in found], [r.response for r in found], pad_id=self.reader.pad_id)
        mask = batch["present"].clone()
        for i, r in enumerate(found):
            if r.own is not None:
                mask[i, : len(r.own)] = torch.tensor(r.own)
        size = len(found)
        return batch.with_fields(
            mask=mask,
            ended=torch.tensor([r.ended for r in found], dtype=torch.bool),
            greedy=torch.zeros(size, dtype=torch.bool),
            length_limit=torch.full((size,), max(self.max_tokens, batch["action"].shape[1])),
            example=torch.tensor(list(numbers), dtype=torch.long),
        )
