"""Drafts for finite MDPs, each asking for another access: they learn, go on, and do what their algorithms say."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SEED, read_records, stopped_after
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.theory.agnostic import Ladder
from polyrl.tasks.theory.finite import FiniteMDP

torch.set_num_threads(1)
DRAFTS = Path(__file__).parent / "drafts"
PSDP = "psdp"
SYNCHRONOUS, UCBVI = (str(DRAFTS / f"{name}.py") for name in ("q_learning_generative", "ucbvi"))


def config_of(method: str, task: str = "combination-lock", budget: str = "iterations=60", **settings: str) -> RunConfig:
    return RunConfig(
        method=method,
        task=task,
        budget=budget,
        seed=SEED,
        hyperparameters=settings,
        evaluations=1,
        tensorboard=False,
        checkpoint_every=1,
    )


def run_of(
    method: str,
    task: str = "combination-lock",
    count: int = 60,
    given: FiniteMDP | None = None,
    seed: int = SEED,
    **s: str,
) -> Any:
    objects = None
    if given is not None:

        def make() -> FiniteMDP:
            assert given is not None
            return given

        objects = PythonObjects(environment=make)
    config = dataclasses.replace(config_of(method, task, "iterations=1000", **s), seed=seed)
    loop = make_loop(config, given=objects)[0]
    for _ in range(count):
        if not loop.context.over:
            loop.iterate()
    return loop


def best_by_enumeration(mdp: FiniteMDP) -> float:
    layers, states, actions = mdp.shape
    chosen = torch.tensor([*itertools.product(range(actions), repeat=layers * states)])
    policies = torch.nn.functional.one_hot(chosen, actions).double().view(-1, layers, states, actions)
    return float(mdp.worth(policies).max())


@pytest.mark.parametrize("method", [PSDP, SYNCHRONOUS, UCBVI], ids=lambda m: Path(m).stem)
def test_a_draft_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, method: str) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if "second" not in k} for r in read_records(folder)]

    config = config_of(method, budget="iterations=4", **({"turns": "6"} if method == UCBVI else {}))
    start_run(config, tmp_path / "whole").run()
    loop = start_run(config, tmp_path / "half")
    stopped_after(loop, 2)
    resume_run(tmp_path / "half", trust_code=True).run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("task", ["combination-lock(horizon=3,choices=2)", "river-swim(length=2,horizon=4)"])
def test_each_finds_the_best_of_all_deterministic_policies(task: str) -> None:
    settings: dict[str, dict[str, str]] = {
        PSDP: {"episodes": "6000"},
        SYNCHRONOUS: {"draws": "50"},
        UCBVI: {"turns": "50"},
    }
    for method, given in settings.items():
        loop = run_of(method, task, **given)
        best = best_by_enumeration(loop.run_state.mdp)
        worth = loop.run_state.evaluate()[0]["eval/return"]
        assert worth == pytest.approx(best, abs=1e-9), method


def test_regret_is_the_sum_of_exact_gaps_of_what_acted() -> None:
    loop = run_of(UCBVI, count=0, turns="1")
    mdp, expected, policies = loop.run_state.mdp, 0.0, []
    best = best_by_enumeration(mdp) if mdp.shape[0] * mdp.shape[1] < 9 else mdp.optimum
    for _ in range(80):
        policies.append(loop.run_state.policy.clone())
        expected += best - float(mdp.worth(policies[-1]))
        loop.iterate()
    found = loop.run_state.evaluate()[0]
    assert found["eval/cumulative_regret"] == pytest.approx(expected) and expected > 1
    assert found["eval/regret"] == pytest.approx(expected / 80)


def test_what_access_buys() -> None:
    """On a long lock uniform play never opens it: a given distribution and a generative model do, at exact costs."""
    task = "combination-lock(horizon=10,choices=3,keep=1.0)"
    psdp = run_of(PSDP, task, episodes="300")
    assert psdp.context.finished and psdp.context.iteration == 10
    assert psdp.context.spent.queries == psdp.context.spent.samples == 3000
    assert psdp.run_state.evaluate()[0]["eval/suboptimality"] < 1e-9
    synchronous = run_of(SYNCHRONOUS, task, count=200)
    assert synchronous.context.spent.queries == 200 * 10 * 2 * 3 and synchronous.context.spent.samples == 0
    assert synchronous.run_state.evaluate()[0]["eval/suboptimality"] < 1e-9
    greedy = run_of(UCBVI, task, count=30, bonus="0", highest="0.1")  # no optimism beyond the consolation
    bold = run_of(UCBVI, task, count=30)
    regrets = [loop.run_state.evaluate()[0]["eval/cumulative_regret"] for loop in (greedy, bold)]
    assert regrets[0] > 2 * regrets[1] > 0 and greedy.context.spent.queries == 0
    assert psdp.run_state.evaluate()[0]["eval/cumulative_regret"] == 0


def test_psdp_on_the_ladder_is_right_where_its_class_is_complete_and_may_be_wrong_where_it_is_not() -> None:
    """With an action for each state the class holds every greedy step; with one for all states it does not."""
    mdp = Ladder(horizon=4).mdp
    assert mdp.optimum == 0.5 and best_by_enumeration(Ladder(horizon=2).mdp) == 0.5
    ends = {
        policies: [
            run_of(PSDP, "reset-ladder(horizon=8)", seed=seed, episodes="2000", policies=policies).run_state.evaluate()[
                0
            ]["eval/suboptimality"]
            for seed in range(12)
        ]
        for policies in ("all", "class")
    }
    assert max(ends["all"]) < 1e-9
    assert 3 <= sum(gap > 0.1 for gap in ends["class"]) <= 11  # about half, and more episodes do not help


def test_a_pass_of_synchronous_values_is_exact_without_chance() -> None:
    loop = run_of(SYNCHRONOUS, "combination-lock(horizon=4,choices=2,keep=1.0,consolation=0)", count=0)
    mdp = loop.run_state.mdp
    q = torch.zeros(mdp.shape, dtype=torch.float64)
    for k in range(1, 40):
        loop.iterate()
        size = 5 / (4 + k)
        value = torch.cat([q.max(-1).values[1:], torch.zeros(1, 2, dtype=torch.float64)])
        target = mdp.reward + torch.einsum("hsat,ht->hsa", mdp.transition, value)
        q = q + size * (target - q)
        assert torch.allclose(loop.run_state.models["q"].values, q, atol=1e-12)
    assert torch.equal(q[-1], mdp.reward[-1])


def test_discounted_values_come_to_the_exact_ones() -> None:
    loop = run_of(SYNCHRONOUS, "hole-grid(width=3,holes=1,slip=0.2)", count=60, draws="200")
    assert float((loop.run_state.models["q"].values - loop.run_state.mdp.solution.q).abs().max()) < 0.02
    assert loop.run_state.evaluate()[0]["eval/suboptimality"] < 1e-3


def test_optimism_is_above_the_best_value() -> None:
    loop = run_of(UCBVI, count=0, turns="1", bonus="1.0")
    for _ in range(60):
        loop.iterate()
        assert loop.context.metrics["optimistic_value"] >= loop.run_state.mdp.optimum - 1e-12
