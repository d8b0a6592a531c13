"""polyrl's side of the control benchmark: a whole run of the loop, watched from its progress display.

Started by run.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from control_work import CASES, Case
from turns import Side

from polyrl.core.loop import Loop
from polyrl.runs import start_run
from polyrl.runtime.config import RunConfig
from polyrl.runtime.progress import Progress


def config(case: Case, seed: int) -> RunConfig:
    """An ordinary run, with no evaluation, checkpoint or TensorBoard file on the way, as the peer has none."""
    return RunConfig(
        method="ppo",
        task=case.environment,
        seed=seed,
        budget="steps=100000000",
        hyperparameters={name: str(value) for name, value in case.setting.for_polyrl().items()},
        threads=1,
        eval_episodes=1,
        evaluations=1,
        checkpoint_every=1_000_000_000,
        tensorboard=False,
    )


class Steps(Progress):
    """Ends a step of the benchmark where the loop shows an iteration."""

    def __init__(self, side: Side, iteration: int):
        super().__init__("benchmark", "", quiet=True)
        self.side, self.iteration = side, iteration
        self.before = {"steps": 0, "updates": 0}

    def update(self, record: dict[str, Any], share: float) -> None:
        """An iteration has ended; number 0 is the evaluation before training."""
        if record["iteration"] == 0:
            self.side.begin(iteration=self.iteration)
            return
        counts = {name: record[name] - before for name, before in self.before.items()}
        self.before = {name: record[name] for name in self.before}
        self.side.step(**counts)


def watch(loop: Loop, side: Side) -> None:
    """Time collecting and the update."""
    side.clock.wrap(type(loop.recipe.collect), "__call__", "collecting")
    side.clock.wrap(type(loop.recipe.optimize), "run", "update")


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    case = CASES[given.case]
    side = Side()
    progress = Steps(side, case.setting.environments * case.setting.n_steps)
    loop = start_run(config(case, given.seed), given.out, progress=progress, overwrite=True)
    watch(loop, side)
    loop.run()


if __name__ == "__main__":
    main()
