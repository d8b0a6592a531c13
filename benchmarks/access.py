"""Which access buys what: errors of a class's values by horizon and access, and PSDP under resets; one picture.

python benchmarks/access.py [--draw]   about three minutes on one core; --draw makes the picture of what was measured
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from polyrl.report.drawing import save
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.runtime.drawing import Axis, Curves, Point, Series, Sheet, Words

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "access.json"
PICTURE = HERE.parent / "docs" / "assets" / "access.svg"
SEEDS = range(5)
HORIZONS = (4, 6, 8, 10, 12)
EPISODES = (1_000, 10_000, 100_000)
ARMS = {
    "episodes: importance sampling": ("importance-sampling", "samples={episodes}"),
    "episodes and a sunflower: POPLER": ("popler", "samples={episodes}"),
    "a generative model: trees": ("trajectory-tree", "queries=20000"),
}


def last(method: str, task: str, budget: str, seed: int, **settings: str) -> dict[str, Any]:
    """What a run comes to: its metrics and its last evaluation."""
    config = RunConfig(method=method, task=task, budget=budget, seed=seed, hyperparameters=settings, tensorboard=False)
    loop = make_loop(config)[0]
    while not loop.context.over:
        loop.iterate()
    return {**loop.context.metrics, **loop.run_state.evaluate()[0]}


def measure() -> dict[str, Any]:
    """Everything that the picture shows, by seed."""
    errors = {
        name: {
            h: [
                last(method, f"singletons(horizon={h})", budget.format(episodes=4000 + 2400 * h), seed)["class_error"]
                for seed in SEEDS
            ]
            for h in HORIZONS
        }
        for name, (method, budget) in ARMS.items()
    }
    ladder = {
        f"{h} layers": {
            n: [
                last("psdp", f"reset-ladder(horizon={h})", "queries=1000000000", seed, episodes=str(n))[
                    "eval/class_suboptimality"
                ]
                for seed in range(20)
            ]
            for n in EPISODES
        }
        for h in (3, 8)
    }
    return {"errors": errors, "ladder": ladder}


def _curves(found: dict[str, dict[str, list[float]]], x: str, y: str, *, log_x: bool, floor: float) -> Curves:
    def across(value: str) -> float:
        return math.log10(float(value)) if log_x else float(value)

    def up(value: float) -> float:
        return math.log10(max(value, floor))

    series, heights, places = [], [], []
    for look, (name, by) in enumerate(found.items()):
        mean: list[Point] = [(across(k), up(fmean(values))) for k, values in by.items()]
        series.append(Series(name=name, look=look, mean=mean, end=mean[-1]))
        heights += [height for _, height in mean]
        places += [place for place, _ in mean]
    return Curves(
        width=640,
        height=330,
        x=Axis(domain=(min(places), max(places)), title=x, log=log_x),
        y=Axis(domain=(min(heights) - 0.15, max(heights) + 0.15), title=y, log=True),
        series=series,
        beside=0,
        alone=True,
    )


def draw(found: dict[str, Any]) -> None:
    """The picture."""
    left = _curves(found["errors"], "steps of an episode, H", "largest error of 4H + 1 values", log_x=False, floor=1e-2)
    right = _curves(
        found["ladder"], "episodes for each layer", "distance to the best of two policies", log_x=True, floor=1e-3
    )
    head = Words(lines=["Singletons: what episodes, structure and a generative model buy"], weight=600)
    other = Words(lines=["Resets to a distribution: PSDP on the ladder"], weight=600)
    items = [(16, 12, head), (16, 40, left), (672, 12, other), (672, 40, right)]
    save(Sheet(width=1330, height=386, label="Which access buys what", items=items), PICTURE)


if __name__ == "__main__":
    if "--draw" not in sys.argv:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RESULTS.read_text(encoding="utf-8")))
