"""polyrl's side of the benchmark of building solutions: instances are made, and solutions of them sampled.

What training needs of each step is recorded, as it is in a run. Started by rollout_routes.py.
"""

from __future__ import annotations

import argparse

import torch
from rollout_routes_work import CASES, Case
from turns import Side

from polyrl.methods.operations.am import AttentionModel
from polyrl.models.constructive import ConstructiveNetwork
from polyrl.rollout.construction import build
from polyrl.tasks.operations import task as named_task


def network_of(case: Case) -> ConstructiveNetwork:
    """The attention model at the case's sizes."""
    sizes = {"width": case.width, "heads": case.heads, "layers": case.layers, "feed_forward": case.feed_forward}
    return AttentionModel(**sizes).make(named_task(case.task), torch.Generator().manual_seed(0))


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    case = CASES[parser.parse_args().case]
    torch.set_num_threads(1)
    side, task, network = Side(), named_task(case.task), network_of(case)
    make, stream = task.environment, torch.Generator().manual_seed(0)

    class Making:
        environment = staticmethod(make)

    side.clock.wrap(Making, "environment", "instances")
    side.begin(parameters=sum(p.numel() for p in network.parameters()))
    seed = 0
    while True:
        environment = Making.environment(seed, case.batch)
        built = build(network, environment, stream=stream, record=True)
        seed += 1
        side.step(steps=int(built.steps["present"].sum()), cost=float(built.costs.mean()))


if __name__ == "__main__":
    main()
