"""Streams: fresh rows beside those of the recipe's own stages, each with a collect, an actor and stages of its own.

    streams={"between": Stream(StepEnvironments(), acts="between")}
    updates=(..., Update("policy", (...), Fresh("between")))

A method that samples at two parameter points in one turn, or from two policies, has one stream for each beside its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from polyrl.core.part import Part, Stage

if TYPE_CHECKING:
    from polyrl.core.context import Context
    from polyrl.core.experience import Experience


@dataclass(frozen=True)
class Stream:
    """How rows of a named stream come about, and what is made of them before *improve*.

    Its random numbers, its environments and what its parts remember are its own, so that a stream more changes no
    number of another.

    Attributes:
        collect: what brings its rows.
        score, credit, select: chains of parts, run on these rows alone.
        acts: name of the model that acts in it; empty is the recipe's own `acts`.
    """

    collect: Part
    score: tuple[Part, ...] = ()
    credit: tuple[Part, ...] = ()
    select: tuple[Part, ...] = ()
    acts: str = ""

    def parts(self) -> Iterator[Part]:
        """Every part in the order of the stages."""
        yield from (self.collect, *self.score, *self.credit, *self.select)

    def changed(self, change: Callable[[Part], Part]) -> Stream:
        """The stream with every part changed."""
        chains: dict[str, Any] = {
            name: tuple(map(change, chain))
            for name, chain in (("score", self.score), ("credit", self.credit), ("select", self.select))
        }
        return replace(self, collect=change(self.collect), **chains)


Observer = Callable[[Stage, Part, "Experience | None", "Experience", float], None]
"""Called after every part with the experience before and after it and the seconds it took (`polyrl trace`)."""
Stages = Sequence[tuple[Stage, tuple[Part, ...]]]


def collect_streams(
    streams: Mapping[str, Stages],
    context: Context,
    timed: Callable[[str], AbstractContextManager[None]],
    observe: Observer | None,
) -> float:
    """Run the stages of each stream but *improve*; the rows come to `context.fresh`.

    Returns:
        Seconds of the stages in which tokens were sampled.
    """
    sampling = 0.0
    for name, stages in streams.items():
        experience: Any = None
        context.stream = name
        try:
            for stage, parts in stages:
                tokens, before = context.spent.tokens, time.perf_counter()
                with timed(stage):
                    for part in parts if stage != "improve" else ():
                        began, earlier = time.perf_counter(), experience
                        experience = part(experience, context)
                        if observe:
                            observe(stage, part, earlier, experience, time.perf_counter() - began)
                if context.spent.tokens > tokens:
                    sampling += time.perf_counter() - before
        finally:
            context.stream = ""
        context.fresh[name] = cast("Experience", experience)
    return sampling
