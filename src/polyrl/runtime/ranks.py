"""Several processes of one run, as torchrun starts them: all of them know everything, and each computes a share.

A rank is a micro-batch and never meaning. Every rank holds the models and the whole batch of experience, and takes
every step of the loop. Only what costs much is parted, and put together again where it was parted: the rows that are
decoded, and the micro-batches of forward and backward passes. So no part, whatever its scope, sees anything but whole
batches, random numbers are those of one process, and what is not parted is merely computed by each. What the user's own
code says (rewards, tools, preferences) is asked by the first rank alone, which tells the others.

The first rank writes the run's folder; a checkpoint of any number of ranks goes on with any other number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from polyrl.errors import TOLD, Diverged, NotFinite, UserError
from polyrl.runtime.interrupt import be_one_of_several
from polyrl.runtime.torchrun import asked

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a rank waits for another, which may be asking a slow reward; one that died is noticed at once."""
DTYPES = {str(kind): kind for kind in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)}
"""Of fields and outputs, by name."""
KINDS: tuple[type[UserError], ...] = (Diverged, NotFinite, UserError)
"""Errors that one rank tells the others of, the narrowest first."""


class OtherRank(UserError):
    """Something that another rank met, which says it itself."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which of them this one is.

    Attributes:
        number: of this process, from 0.
        count: how many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def alone(self) -> bool:
        """Whether one process is all there is."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this process writes, and asks the user's code."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's run of the items; the first ranks have one more where they do not come out even."""
        if self.alone:
            return items
        size, more = divmod(len(items), self.count)
        start = self.number * size + min(self.number, more)
        return items[start : start + size + (self.number < more)]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, each of one shape `[...]` on every rank, by their sums over all ranks, in place."""
        if self.alone:
            return
        from torch import distributed

        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for (dtype, _), alike in kinds.items():
            whole = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            whole = whole.to(torch.uint8) if dtype == torch.bool else whole
            with _heard():
                distributed.all_reduce(whole)
            start = 0
            for tensor in alike:
                tensor.detach().copy_(whole[start : start + tensor.numel()].view(tensor.shape))
                start += tensor.numel()

    def added(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all ranks of tensors `[...]` by name; what a rank lacks, its share being empty, counts as zeros."""
        if self.alone:
            return dict(named)
        told = self.gathered({name: [[*x.shape], str(x.dtype)] for name, x in named.items()})
        shapes = {name: shape for one in told for name, shape in one.items()}
        found = {
            name: named[name] if name in named else torch.zeros(shape, dtype=DTYPES[dtype])
            for name, (shape, dtype) in sorted(shapes.items())
        }
        self.add([*found.values()])
        return found

    def gathered(self, value: Any) -> list[Any]:
        """What each rank says, in their order; plain values that JSON knows."""
        if self.alone:
            return [value]
        from torch import distributed

        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
        with _heard():
            distributed.all_gather(sizes, torch.tensor([len(mine)]))
            most = max(int(size) for size in sizes)
            padded = torch.cat([mine, mine.new_zeros(most - len(mine))])
            found = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.count)]
            distributed.all_gather(found, padded)
        return [json.loads(bytes(x[: int(n)].tolist())) for x, n in zip(found, sizes, strict=True)]

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, which alone calls `make`; plain values that JSON knows.

        Raises:
            UserError: on every rank what was raised on the first; or it made something that cannot be told.
        """
        if self.alone:
            return make()
        made: Any = None
        error: UserError | None = None
        if self.first:
            try:
                made = make()
                json.dumps(made)
            except UserError as raised:
                error = raised
            except (TypeError, ValueError) as raised:
                error = UserError(
                    f"Under torchrun the first process tells the others what rewards and tools said, and this cannot "
                    f"be told ({raised}); let them give text, numbers, lists and mappings of these."
                )
        self.agree(error)
        told: T = self.gathered(made)[0]
        return told

    def agree(self, error: UserError | None) -> None:
        """Raise on every rank the error of the first that has one."""
        if self.alone:
            if error is not None:
                raise error
            return
        told = self.gathered(None if error is None else [kind_of(error), str(error)])
        if all(one is None for one in told):
            return
        if error is not None:
            raise error
        kind, text = next(one for one in told if one is not None)
        other = {known.__name__: known for known in KINDS}[kind](text)
        other.add_note(TOLD)
        raise other

    def in_turn(self, make: Callable[[], T]) -> T:
        """What every rank makes by itself, the first one before the others, which then find what it has cached."""
        if not self.first:
            self.agree(None)
            return make()
        try:
            made = make()
        except UserError as error:
            self.agree(error)
            raise
        self.agree(None)
        return made

    def any(self, flag: bool) -> bool:
        """Whether it is true of some rank."""
        return flag if self.alone else any(self.gathered(flag))

    def interrupted(self, check: Callable[[], None]) -> None:
        """Raise KeyboardInterrupt on every rank where `check` raises it on some."""
        if self.alone:
            check()
            return
        asked = False
        try:
            check()
        except KeyboardInterrupt:
            asked = True
        if self.any(asked):
            raise KeyboardInterrupt

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients `[...]` of shares of one minibatch; a parameter that had none on any rank has none."""
        if self.alone:
            return
        having = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        self.add([having])
        found = []
        for parameter, ranks_with in zip(parameters, having.tolist(), strict=True):
            if not ranks_with:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found.append(parameter.grad)
        self.add(found)

    def check_equal(self, parameters: Collection[Tensor]) -> None:
        """Stop a run whose ranks no longer hold the same weights `[...]`: something is computed otherwise on one.

        Raises:
            UserError: they differ.
        """
        if self.alone:
            return
        sums = [float(p.detach().double().sum()) for p in parameters]
        if len({repr(told) for told in self.gathered(sums)}) > 1:  # as texts, in which NaN is itself
            raise self._seen_by_all(
                "The processes of this run no longer hold the same weights, so what they compute together means "
                "nothing; run them on machines of one kind, with the same versions of everything."
            )

    def _seen_by_all(self, sentence: str) -> UserError:
        """An error that every rank raises, and the first one says."""
        error = UserError(sentence)
        if not self.first:
            error.add_note(TOLD)
        return error

    def check_same(self, fields: Mapping[str, Tensor]) -> None:
        """Stop a run whose ranks hold different fields `[B, ...]`: each would learn its share of something else.

        Raises:
            UserError: a field differs, by more than rounding where it is of floating point.
        """
        if self.alone:
            return
        mine = {name: [[*x.shape], x.is_floating_point(), _mark(x)] for name, x in sorted(fields.items())}
        first, *others = self.gathered(mine)
        for number, other in enumerate(others, 1):
            for name in sorted(first.keys() | other.keys()):
                one, two = first.get(name), other.get(name)
                near = one and two and one[:2] == two[:2] and abs(one[2] - two[2]) <= one[1] * 1e-3 * (1 + abs(one[2]))
                if not near:
                    raise self._seen_by_all(
                        f"Processes 0 and {number} of this run hold different batches: they differ in '{name}'. "
                        "Every process makes the rows and computes the method's parts, so both must come to the "
                        "same everywhere: draw with a seed, and go through no set of texts."
                    )


def _mark(x: Tensor) -> float:
    """One number that tells a tensor from others, also from itself in another order; what is not finite counts as 0."""
    flat = x.detach().reshape(-1).double().cpu().nan_to_num(0.0, 0.0, 0.0)
    return float((flat.abs() * (1 + torch.arange(len(flat), dtype=torch.float64).remainder(97))).sum())


def kind_of(error: UserError) -> str:
    """Name of the narrowest kind of error that every rank knows."""
    return next(kind.__name__ for kind in KINDS if isinstance(error, kind))


@contextmanager
def _heard() -> Iterator[None]:
    """Say in a sentence that another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        gone = OtherRank(
            f"Another process of this run has ended ({str(error).splitlines()[0][:120]}); its own message says why. "
            "`polyrl resume` goes on from the newest checkpoint, with any number of processes."
        )
        if not _Process.ranks.first:  # which says it for all that are left
            gone.add_note(TOLD)
        raise gone from None


class _Process:
    """What this process is one of."""

    ranks = Ranks()
    parted = False


def join() -> Ranks:
    """Meet the other processes that torchrun started, once; alone where it started none."""
    from torch import distributed

    if asked() > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        be_one_of_several()
        distributed.init_process_group(backend, timeout=PATIENCE)
        _Process.ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    return _Process.ranks


def leave() -> None:
    """Part from the others, at the end of a process."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    _Process.ranks = Ranks()


def all_ranks() -> Ranks:
    """The processes of this run."""
    return _Process.ranks


def present() -> Ranks:
    """Those that what is computed now is parted among: this process alone, but within `parted`."""
    return _Process.ranks if _Process.parted else Ranks()


@contextmanager
def parted() -> Iterator[Ranks]:
    """Part what is computed within among all processes, every one of which must come here."""
    before = _Process.parted
    _Process.parted = True
    try:
        yield _Process.ranks
    finally:
        _Process.parted = before
