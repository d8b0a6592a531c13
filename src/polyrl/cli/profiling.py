"""`polyrl trace --profile`: where the time of an iteration goes, how fast it is, and how far from what is possible."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyrl.cli.operations_count import matmul_rate, stage_flops
from polyrl.core.throughput import throughput
from polyrl.recipe import STAGES
from polyrl.runtime.progress import STAGE_COLOURS
from polyrl.runtime.terminal import Terminal

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.loop import Loop
    from polyrl.recipe import Part, Recipe, Stage
    from polyrl.runtime.config import RunConfig

WARM_UP, MEASURED = 1, 3
"""Iterations before the measured ones, which pay for what is made once, and measured ones."""


@dataclass
class Profile:
    """What some iterations cost.

    Attributes:
        seconds: wall time by stage and part; `monitor` is no stage, but takes time.
        flops: work that was needed, by stage; see `polyrl.core.throughput`.
        speed: what `throughput` returns.
        peak: FLOP/s of square matrix products on this machine.
    """

    iterations: int = 0
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    speed: dict[str, float | str] = field(default_factory=dict)
    peak: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all iterations."""
        return sum(self.seconds.values())

    def of_stage(self, stage: str) -> float:
        """Seconds of a stage."""
        return sum(took for (s, _), took in self.seconds.items() if s == stage)

    def shares(self) -> dict[tuple[str, str], float]:
        """Share of each part in all the time."""
        return {key: took / self.total for key, took in self.seconds.items()}

    def peak_shares(self) -> dict[str, float]:
        """Share of the peak that each stage with counted work reached, and that all time together did ("overall")."""
        found = {s: done / self.of_stage(s) / self.peak for s, done in self.flops.items() if done and self.of_stage(s)}
        return {**found, "overall": sum(self.flops.values()) / self.total / self.peak} if found else {}


def measure(loop: Loop, *, warm_up: int = WARM_UP, iterations: int = MEASURED) -> Profile:
    """Run a few iterations and time their parts."""
    for _ in range(warm_up):
        loop.iterate()
    profile = Profile(iterations=iterations)
    loop.seconds.clear()
    before = dataclasses.asdict(loop.context.spent)

    def add(stage: str, part: str, seconds: float) -> None:
        profile.seconds[stage, part] = profile.seconds.get((stage, part), 0.0) + seconds

    def observe(stage: Stage, part: Part, _: Experience | None, __: Experience, seconds: float) -> None:
        add(stage, part.name, seconds)

    for _ in range(iterations):
        experience = loop.iterate(observe)
        if experience is None:
            continue
        for stage, flops in stage_flops(loop.run_state, loop.recipe, experience).items():
            profile.flops[stage] = profile.flops.get(stage, 0.0) + flops
    if loop.seconds.get("monitor"):
        add("monitor", "", loop.seconds["monitor"])
    after = dataclasses.asdict(loop.context.spent)
    profile.speed = throughput(loop.seconds, {name: after[name] - before[name] for name in after}, loop.sampled)
    return profile


def profile_method(config: RunConfig, recipe: Recipe | None = None) -> None:
    """Print where the time of a method's iterations goes."""
    from polyrl.runs import make_loop

    out = Terminal()
    loop, _ = make_loop(config, recipe=recipe, say=lambda text: out.print(Text(text, style="dim")))
    profile = measure(loop)
    if profile.flops:
        dtype = torch.bfloat16 if loop.run_state.precision == "bfloat16" else torch.float32
        profile.peak = matmul_rate(dtype, loop.run_state.device)
    show(out, profile, f"{config.method} on {loop.run_state.task.name}", loop.run_state.precision)


def show(out: Console, profile: Profile, what: str, precision: str) -> None:
    """Print a profile."""
    each = profile.total / profile.iterations
    out.print(Text.assemble((what, "bold"), f": {seconds_text(each)} an iteration, mean of {profile.iterations}\n"))
    table = Table(box=None, padding=(0, 3, 0, 0), show_footer=True)
    table.add_column("stage", "all", header_style="dim")
    table.add_column("part", header_style="dim")
    table.add_column("ms", f"{1000 * each:.2f}", justify="right", header_style="dim")
    table.add_column("share", "100.0%", justify="right", header_style="dim")
    seen = ""
    order = {stage: i for i, stage in enumerate(STAGES)}
    shares = profile.shares()
    for stage, part in sorted(profile.seconds, key=lambda key: order.get(key[0], 9)):  # type: ignore[call-overload]
        took, share = profile.seconds[stage, part] / profile.iterations, shares[stage, part]
        name = Text(stage if stage != seen else "", style=STAGE_COLOURS.get(stage, ""))
        table.add_row(name, part, f"{1000 * took:.2f}", f"{100 * share:.1f}%")
        seen = stage
    out.print(table)
    unit = profile.speed["unit"]
    speeds = [
        f"{profile.speed[key]:,.0f} {unit}/s {words}"
        for key, words in (("collect", "in collecting"), ("overall", "overall"))
        if key in profile.speed
    ]
    out.print(Text.assemble("\n", ("Speed", "bold"), f"  {', '.join(speeds)}"))
    found = profile.peak_shares()
    if found:
        words = ", ".join(f"{stage} {100 * share:.1f}%" for stage, share in found.items())
        reached = f"{profile.peak / 1e9:,.0f} GFLOP/s, which a square {precision} matrix product reaches here"
        out.print(Text.assemble(("Peak", "bold"), f"   {words} of {reached}"))


def seconds_text(seconds: float) -> str:
    """`1.23 s` or `45.6 ms`."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
