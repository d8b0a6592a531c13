"""RL4CO's side of the benchmark of building solutions. Runs in the environment build/rl4co.

Started by rollout_routes.py.
"""

from __future__ import annotations

import argparse

import torch
from rl4co.envs import CVRPEnv, TSPEnv
from rl4co.models.zoo.am import AttentionModelPolicy
from rollout_routes_work import CASES
from turns import Side


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    case = CASES[parser.parse_args().case]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = Side()
    kind = {"tsp": TSPEnv, "cvrp": CVRPEnv}[case.problem]
    capacity = {"capacity": case.capacity} if case.capacity else {}
    env = kind(generator_params={"num_loc": case.nodes, **capacity}, check_solution=False)
    policy = AttentionModelPolicy(
        env_name=case.problem, embed_dim=case.width, num_heads=case.heads, num_encoder_layers=case.layers,
        feedforward_hidden=case.feed_forward, normalization="instance",
    )  # fmt: skip
    side.clock.wrap(env, "reset", "instances")
    side.begin(parameters=sum(p.numel() for p in policy.parameters()))
    while True:
        with torch.no_grad():
            found = policy(env.reset(batch_size=[case.batch]), env, phase="train", decode_type="sampling")
        actions = found["actions"]
        if case.problem == "tsp":
            steps = actions.numel()
        else:  # behind the last customer nothing is done but waiting at the depot
            steps = int((actions.shape[1] - (actions.flip(1) > 0).int().argmax(1)).sum())
        side.step(steps=steps, cost=-float(found["reward"].mean()))


if __name__ == "__main__":
    main()
