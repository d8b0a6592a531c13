"""Preference pairs: as token ids, as rows that are found by their pair, and with the reference's log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.policy import Backbone
from polyrl.models.language.rows import as_experience
from polyrl.tasks.language.formats import SIDES, pair_of, template_columns
from polyrl.tasks.language.left_out import place_of
from polyrl.tasks.language.rankings import rankings_of


class DoesNotFit(UserError):
    """A row whose prompt and response are longer than the model's context."""


# ---------------------------------------------------------------------------------------------- pure functions


def sequence_logprob(logprob: Tensor, mask: Tensor, *, length_norm: bool = False) -> Tensor:
    """log pi(y|x) of whole responses, nats `[B]`.

    Args:
        logprob: `[B, T]` log-probabilities of the tokens, nats.
        mask: `[B, T]` bool, true at the response's own tokens, its end token included.
        length_norm: divide by the number of those tokens (length-normalized, nats a token) instead of summing.
    """
    total = torch.where(mask, logprob, torch.zeros_like(logprob)).sum(1)
    return total / mask.sum(1).clamp(min=1) if length_norm else total


def sequence_log_ratio(logprob: Tensor, ref_logprob: Tensor, mask: Tensor, *, length_norm: bool = False) -> Tensor:
    """rho(y|x) = log pi(y|x) - log pi_ref(y|x) of whole responses, nats `[B]`; see `sequence_logprob`."""
    return sequence_logprob(logprob - ref_logprob, mask, length_norm=length_norm)


def by_pair(x: Tensor, pair: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor]:
    """What the preferred and the other row of each row's pair have: `x` `[B]` -> two `[B]`, 0 in rows of no pair.

    Args:
        x: `[B]` float; gradients pass through.
        pair: `[B]` int64, rows of one pair share a number; -1: in no pair.
        preferred: `[B]` bool.

    Raises:
        ValueError: a pair that has not exactly one preferred and one other row.
    """
    paired = pair >= 0
    _, index = torch.unique(pair[paired], return_inverse=True)
    count = torch.bincount(index)
    chosen = torch.bincount(index, weights=preferred[paired].to(torch.float64))
    if not bool(((count == 2) & (chosen == 1)).all()):
        raise ValueError("every pair needs two rows in the batch, one of them preferred")
    empty = torch.zeros(len(count), dtype=x.dtype, device=x.device)
    won = empty.index_add(0, index[preferred[paired]], x[paired & preferred])
    lost = empty.index_add(0, index[~preferred[paired]], x[paired & ~preferred])
    blank = torch.zeros_like(x)
    where = paired.nonzero()[:, 0]
    return blank.index_put((where,), won[index]), blank.index_put((where,), lost[index])


# ---------------------------------------------------------------------------------------------------- fixed pairs


@dataclass(frozen=True)
class PairIds:
    """A pair as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    ended: tuple[bool, bool] = (True, True)
    """Whether chosen and rejected end by themselves."""
    own: tuple[list[bool], list[bool]] | None = None
    """Which tokens of chosen and rejected the model writes; None: all. It reads what users and tools say in between."""


def encode_response(reader: Backbone, prompt: Any, response: Any, *, ended: bool = True) -> list[int]:
    """See `TextEncoding.encode_response`."""
    return reader.encode_response(prompt, response, ended=ended)


def encode_pair(reader: Backbone, row: Mapping[str, Any], where: str) -> PairIds:
    """Token ids of a row with `prompt`, `chosen` and `rejected`, in any form that `pair_of` knows.

    Where a row says `chosen_ended` or `rejected_ended` false, that response was cut off and has no end token.

    Raises:
        UserError: the pair does not fit into the model's context, a response has no tokens, both are the same, or the
            chat template does not write them as the model would.
    """
    ended = tuple(said_to_end(row.get(f"{side}_ended"), f"{where}: the column '{side}_ended'") for side in SIDES)
    row = pair_of(where, dict(row))
    given = template_columns(row)
    try:
        prompt = reader.encode_prompt(row["prompt"], **given)
        (chosen, chosen_own), (rejected, rejected_own) = (
            reader.encode_turns(row["prompt"], row[side], ended=end, **given)
            for side, end in zip(SIDES, ended, strict=True)
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        check_fits(where, reader, prompt, ids, f"{side} response", "pair")
    if chosen == rejected:
        raise UserError(f"{where}: chosen and rejected are the same tokens; leave the pair out.")
    own = None if all(chosen_own + rejected_own) else (chosen_own, rejected_own)
    return PairIds(prompt, chosen, rejected, (ended[0], ended[1]), own)


def check_fits(
    where: str, reader: Backbone, prompt: Sequence[int], ids: Sequence[int], response: str, kind: str
) -> None:
    """Refuse a response that has no tokens, or that does not fit into the model's context behind its prompt.

    Args:
        where: the row's place.
        reader: the model.
        prompt, ids: token ids of prompt and response.
        response: what to call the response.
        kind: what to call the row.

    Raises:
        UserError: it has no tokens.
        DoesNotFit: prompt and response are too long.
    """
    if not ids:
        raise UserError(f"{where}: the {response} has no tokens; leave the {kind} out.")
    total = len(prompt) + len(ids)
    if reader.context is not None and total > reader.context:
        raise DoesNotFit(
            f"{where}: prompt and {response} have {total} tokens, more than the model's context of "
            f"{reader.context}; shorten them or leave the {kind} out, as --skip-bad-rows does."
        )


def said_to_end(value: Any, what: str) -> bool:
    """Whether a response ended by itself: where nothing is said it did. Files without kinds write it as text."""
    said = {"": True, "none": True, "true": True, "1": True, "false": False, "0": False}
    found = said.get(str(value).strip().lower())
    if found is None:
        raise UserError(f"{what} must be true or false, not {value!r}.")
    return found


class FixedPairs:
    """Preference pairs of one split, turned into token ids when they are first asked for.

    Pair `n` gives the rows `2n` (chosen) and `2n + 1` (rejected) of the data set, numbered so in the field `example`.
    """

    def __init__(self, reader: Backbone, rows: Sequence[Mapping[str, Any]], label: str, *, max_tokens: int = 1):
        """`label` names the pairs in errors; `max_tokens` is the length limit that the task gives to responses."""
        self.reader, self.rows, self.label, self.max_tokens = reader, rows, label, max_tokens
        self.reference_cache = ReferenceLogprobCache()
        self._ids: dict[int, PairIds] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rankings(self) -> list[list[tuple[int, int]]]:
        """Of each ranking, which rows of the data set its responses are and how many are better; see `rankings_of`."""
        return rankings_of(self.rows)

    def ids(self, number: int) -> PairIds:
        """The pair as token ids; see `encode_pair`."""
        if number not in self._ids:
            row = self.rows[number]
            self._ids[number] = encode_pair(self.reader, row, place_of(row) or f"{self.label}, pair {number + 1}")
        return self._ids[number]

    def check(self, most: int) -> None:
        """Encode the first `most` pairs, so that what is wrong with them is known before a run begins."""
        for number in range(min(most, len(self))):
            self.ids(number)

    def batch(self, numbers: Sequence[int], alone: Mapping[int, PairIds] = MappingProxyType({})) -> Experience:
        """The pairs of these numbers, two rows each; a number may occur twice and is two pairs then.

        The chosen responses of `alone` follow, one row each that is in no pair; their numbers are their own.

        Fields: prompt_ids, prompt_mask, action, present, mask, temperature (1), ended, group, greedy (false),
        length_limit, pair, preferred, example.
        """
        pairs, single = [self.ids(n) for n in numbers], [*alone.values()]
        responses = [ids for p in pairs for ids in (p.chosen, p.rejected)] + [p.chosen for p in single]
        prompts = [p.prompt for p in pairs for _ in range(2)] + [p.prompt for p in single]
        batch = as_experience(prompts, responses, pad_id=self.reader.pad_id)
        size = len(responses)
        mask = batch["present"].clone()
        for i, p in enumerate(pairs):
            for row, written in zip((2 * i, 2 * i + 1), p.own or (), strict=False):
                mask[row, : len(written)] = torch.tensor(written)
        pair = torch.cat([torch.arange(len(pairs)).repeat_interleave(2), torch.full((len(single),), -1)])
        preferred = (torch.arange(size) % 2 == 0) & (pair >= 0)
        example = 2 * torch.tensor(list(numbers), dtype=torch.long).repeat_interleave(2)
        example = example + (~preferred[: len(example)]).long()
        own = torch.tensor([2 * len(self) + n for n in alone], dtype=torch.long)
        return batch.with_fields(
            mask=mask,
            ended=torch.tensor([e for p in pairs for e in p.ended] + [p.ended[0] for p in single], dtype=torch.bool),
            group=torch.where(pair >= 0, pair, torch.arange(size)),
            greedy=torch.zeros(size, dtype=torch.bool),
            length_limit=torch.full((size,), max(self.max_tokens, batch["action"].shape[1])),
            pair=pair,
            preferred=preferred,
            example=torch.cat([example, own]),
        )


class ReferenceLogprobCache:
    """Log-probabilities of the rows of a data set under a model that never changes: each row is asked for once."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, experience: Experience, measure: Callable[[Experience], Tensor]) -> Tensor:
        """Log-probabilities `[B, T]`, 0 where not `present`; `measure` is called with the rows that are not yet known.

        Rows are told apart by `example` [B] int64.
        """
        numbers, lengths = experience["example"].tolist(), experience["present"].sum(1).tolist()
        missing = list({n: i for i, n in reversed(list(enumerate(numbers))) if n not in self._rows}.values())
        if missing:
            missing.sort()
            found = measure(experience.rows(missing)).detach().float().cpu()
            for values, i in zip(found, missing, strict=True):
                self._rows[numbers[i]] = values[: lengths[i]].clone()
        result = torch.zeros(experience["present"].shape)
        for i, (n, length) in enumerate(zip(numbers, lengths, strict=True)):
            result[i, :length] = self._rows[n]
        return result

    def save(self, file: Path) -> None:
        """Write what is known, so that a resumed run has the same numbers to the last bit."""
        from safetensors.torch import save_file

        if self._rows:
            values = list(self._rows.values())
            tensors = {
                "example": torch.tensor(list(self._rows)),
                "length": torch.tensor([len(v) for v in values]),
                "logprob": torch.cat(values),
            }
            save_file(tensors, file)

    def load(self, file: Path) -> None:
        """Read back what `save` wrote; nothing is known where there is no file."""
        from safetensors.torch import load_file

        self._rows = {}
        if file.is_file():
            tensors = load_file(file)
            pieces = torch.split(tensors["logprob"], tensors["length"].tolist())
            self._rows = {n: v.clone() for n, v in zip(tensors["example"].tolist(), pieces, strict=True)}
