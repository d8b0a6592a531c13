"""polyrl's side of the off-policy benchmark: a whole run of the loop, watched from its progress display.

Started by run.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from control_polyrl import Steps
from off_policy_work import CASES, Case
from turns import Side

from polyrl.core.loop import Loop
from polyrl.core.updating import UpdateList
from polyrl.runs import start_run
from polyrl.runtime.config import RunConfig


def config(case: Case, seed: int) -> RunConfig:
    """An ordinary run, with no evaluation, checkpoint or TensorBoard file on the way, as the peer has none."""
    settings = {**case.setting.for_polyrl(), "turns": case.turns}
    return RunConfig(
        method=case.setting.method,
        task=case.environment,
        seed=seed,
        budget="steps=100000000",
        hyperparameters={name: str(value) for name, value in settings.items()},
        threads=1,
        eval_episodes=1,
        evaluations=1,
        checkpoint_every=1_000_000_000,
        tensorboard=False,
    )


class CriticSteps(Steps):
    """Counts the critics' optimizer steps: the peer counts one for critics, policy and temperature together."""

    loop: Loop

    def update(self, record: dict[str, Any], share: float) -> None:
        """An iteration has ended."""
        steps = int(self.loop.context.optimizer["q"].moments["step"]) if record["iteration"] else 0
        super().update({**record, "updates": steps}, share)


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    case, side = CASES[given.case], Side()
    progress = CriticSteps(side, case.turns * case.setting.train_freq)
    loop = start_run(config(case, given.seed), given.out, progress=progress, overwrite=True)
    progress.loop = loop
    side.clock.wrap(type(loop.recipe.collect), "__call__", "collecting")
    side.clock.wrap(UpdateList, "run", "update")
    loop.run()


if __name__ == "__main__":
    main()
