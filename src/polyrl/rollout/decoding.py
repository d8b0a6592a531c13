"""The loop that decodes rows, a token at a time and each with room of its own, and what it writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.errors import Diverged
from polyrl.kernels.decoding import Decoding
from polyrl.rollout.cached import Plain
from polyrl.rollout.drawing import Sampling, draw
from polyrl.rollout.words import StopStringTracker
from polyrl.runtime.ranks import present


@dataclass
class Rows:
    """What is known and written of all B rows; T is the most room of a row. Time comes first: a step writes a stretch.

    What stands for a row after its end or beyond its room is of no account.
    """

    sampling: Sampling
    room: Tensor
    """[B] int64, the most tokens that a row may get, at least 1."""
    temperature: Tensor
    """[B] float32."""
    warm: bool
    """Whether a temperature is not 1."""
    greedy: Tensor
    """[B] bool."""
    mixed: bool
    """Whether some rows are greedy and some not."""
    uniform: Tensor
    """[T, B] float64."""
    token: Tensor
    """[T, B] int64."""
    logprob: Tensor
    """[T, B] float32."""
    going: Tensor
    """[T, B] bool, whether the row has not ended with this step."""
    forced: Tensor | None
    """[T, B] bool, tokens that a tool said; None where nobody listens."""

    @classmethod
    def new(cls, sampling: Sampling, greedy: Tensor, room: Tensor, generator: torch.Generator, *, heard: bool) -> Rows:
        """Rows of which nothing is written yet, on the device of `greedy` [B] bool; `room` [B] int64."""
        # one table of uniform numbers, drawn at once: what a row draws does not depend on the rest of the batch
        uniform = torch.rand(len(room), int(room.max()), dtype=torch.float64, generator=generator)
        uniform = uniform.to(greedy.device).t().contiguous()
        temperature = torch.where(greedy, 1.0, sampling.temperature)
        return cls(
            sampling=sampling,
            room=room.to(greedy.device),
            temperature=temperature,
            warm=bool((temperature != 1).any()),
            greedy=greedy,
            mixed=not sampling.greedy and bool(greedy.any()),
            uniform=uniform,
            token=torch.zeros_like(uniform, dtype=torch.long),
            logprob=torch.zeros_like(uniform, dtype=torch.float32),
            going=torch.zeros_like(uniform, dtype=torch.bool),
            forced=torch.zeros_like(uniform, dtype=torch.bool) if heard else None,
        )

    def draw(self, row: Tensor, step: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Token [n] int64 and log-probability [n] float32 of the rows `row` [n] at a step; `logits` [n, V] float32."""
        return draw(
            logits,
            self.temperature[row] if self.warm else None,  # None for what plays no part
            self.greedy[row] if self.mixed else None,
            self.uniform[step].index_select(0, row),
            self.sampling,
        )

    def write(self, row: Tensor, step: int, token: Tensor, logprob: Tensor, chosen: Tensor) -> None:
        """Note what the rows `row` [n] said at a step, and whether the policy chose it [n] bool."""
        self.token[step].index_copy_(0, row, token)
        self.logprob[step].index_copy_(0, row, logprob)
        if self.forced is not None:
            self.forced[step].index_copy_(0, row, ~chosen)

    def join(self) -> None:
        """Take in what other processes of the run wrote of their rows, if there are some."""
        present().add([x for x in (self.token, self.logprob, self.going, self.forced) if x is not None])

    def found(self, pad_id: int) -> dict[str, Tensor]:
        """The fields of an `Experience` that sampling makes, cut to the longest response.

        `action` int64, `present`, `mask` bool, `behaviour_logprob` float32 [B, L]; `temperature` float32, `ended` bool
        [B].

        Raises:
            Diverged: a log-probability is not finite.
        """
        step = torch.arange(len(self.going), device=self.going.device)
        present = torch.cat([torch.ones_like(self.going[:1]), self.going[:-1]]) & (step[:, None] < self.room)
        present = present[: int(present.sum(0).max())]
        longest = len(present)
        mask = present if self.forced is None else present & ~self.forced[:longest]
        fields = {
            "action": self.token[:longest].masked_fill(~present, pad_id),
            "present": present,
            "mask": mask,
            "behaviour_logprob": self.logprob[:longest].masked_fill(~mask, 0.0),
        }
        if not bool(torch.isfinite(fields["behaviour_logprob"]).all()):
            raise Diverged(
                "The model's logits are not finite: its weights diverged or are damaged; lower the step size."
            )
        return {
            **{name: x.t().contiguous() for name, x in fields.items()},
            "temperature": self.temperature,
            "ended": ~self.going.gather(0, self.room[None] - 1)[0],
        }


def rows_of_this_rank(rows: Sequence[int], *, asks: bool) -> Sequence[int]:
    """Those that this process of a run decodes; where tools are asked (`asks`), the first process decodes all."""
    ranks = present()
    if not asks:
        return ranks.share(rows)
    return rows if ranks.first else rows[:0]


def decode_rows(
    reading: Decoding | Plain,
    row: Tensor,
    rows: Rows,
    words: StopStringTracker | None,
    *,
    end_ids: tuple[int, ...],
    compact_at: float | None,
) -> None:
    """Fill `rows` for the rows numbered `row` [n] int64, those of `reading` in its order.

    Rows that are over leave when they are `compact_at` of the batch: by default a tenth in the decoder, where that is
    cheap, and a quarter in a model's own cache.
    """
    device, fast = row.device, isinstance(reading, Decoding)
    if compact_at is None:
        compact_at = 0.1 if fast else 0.25
    look_every = 1 if words is not None else _look_every(device)
    room = rows.room[row]
    least, most = int(room.min()), int(room.max())
    alive = torch.ones(len(row), dtype=torch.bool, device=device)
    ends = torch.tensor(end_ids, device=device)
    logits = reading.logits
    for step in range(most):
        token, logprob = rows.draw(row, step, logits)
        chosen = alive
        if words is not None and words.replies:
            chosen = words.force_tokens(row.tolist(), token, alive)
        ended = chosen & torch.isin(token, ends)
        rows.write(row, step, token, logprob, chosen)
        if words is not None:
            ended = ended | words.on_token(row, token, chosen & ~ended, rows.token.t(), step)
        alive = alive & ~ended
        rows.going[step].index_copy_(0, row, alive)
        if step + 1 == most:
            break
        if step + 1 >= least:  # before that everybody has room
            alive = alive & (step + 1 < room)
        if step % look_every == 0:
            count = int(alive.sum())
            if count == 0:
                break
            staying = _lot(count) if fast else count
            if reading.selectable and len(row) - staying >= max(1, compact_at * len(row)):
                stays = alive.clone()
                stays[(~alive).nonzero()[: staying - count, 0]] = True
                order = reading.keep(stays)
                row, token, alive, room = row[order], token[order], alive[order], room[order]
        logits = reading.next(token)


def _lot(count: int) -> int:
    """How many rows stay in the decoder where `count` are wanted: one of about four sizes between powers of two.

    oneDNN makes a kernel for each number of rows that it meets, which takes time and stays in memory.
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def _look_every(device: torch.device) -> int:
    """Steps between two looks at which rows are over: to look makes the processor wait for a GPU."""
    return 1 if device.type == "cpu" else 16
