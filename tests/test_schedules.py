"""Schedules follow the iterations done and to come: the same in every unit of the budget, and never 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from polyrl.catalogue import build
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.loop import Loop
from polyrl.core.schedules import Schedule, schedule_factor
from polyrl.recipe import Part, Stage
from polyrl.run_state.base import RunState
from polyrl.runtime.budget import Budget, Spent
from run_states import TableRunState, token_batch

N = 10
"""Iterations of the runs compared here."""


class QuietRunState(TableRunState):
    monitor = RunState.monitor


BATCH = token_batch(QuietRunState())
OFF_POLICY = {"max_logprob_gap": 1e6}
"""The same batch is trained on again and again."""


@dataclass(frozen=True, kw_only=True)
class SameBatch(Part):
    """Collects the same batch every time, at the cost that it has."""

    stage: ClassVar[Stage] = "collect"
    gives: ClassVar[frozenset[str]] = frozenset(BATCH.fields())

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        context.spent.samples += len(BATCH)
        context.spent.tokens += int(BATCH["present"].sum())
        context.spent.steps += int(BATCH["mask"].sum())
        return BATCH


def loop_of(budget: str, method: str = "grpo", **hyperparameters: object) -> Loop:
    recipe = replace(
        build(method, {k: str(v) for k, v in {"epochs": 1, "minibatches": 1, **OFF_POLICY, **hyperparameters}.items()}),
        collect=SameBatch(),
    )
    run_state = QuietRunState()
    context = Context(run_state=run_state, seed=0, budget=Budget.parse(budget))
    return Loop(recipe, run_state, context)  # type: ignore[arg-type]


def logged(budget: str, key: str, method: str = "grpo", **hyperparameters: object) -> list[float]:
    loop, found = loop_of(budget, method, **hyperparameters), []
    while loop.context.progress < 1:
        loop.iterate()
        found.append(loop.context.metrics[key])
    return found


def budgets(iterations: int) -> list[str]:
    """Budgets in every unit that end a run after so many iterations, some met exactly and some in mid-iteration."""
    cost = {"samples": len(BATCH), "tokens": int(BATCH["present"].sum()), "steps": int(BATCH["mask"].sum())}
    cost |= {"reward_calls": len(BATCH), "updates": 1, "iterations": 1}
    exact = [f"{unit}={iterations * each}" for unit, each in cost.items()]
    crossed = [f"{unit}={iterations * each - each // 2}" for unit, each in cost.items() if each > 1]
    return [*exact, *crossed, f"{exact[0]},iterations={5 * iterations}"]


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [("linear", 0.0), ("cosine", 0.0), ("cosine", 0.25), ("linear", 0.04), ("inverse-sqrt", 0.25)],
)
def test_learning_rates_are_the_same_in_every_unit(schedule: Schedule, warmup: float) -> None:
    hyperparameters = {"schedule": schedule, "warmup": warmup, "learning_rate": 0.5}
    wanted = [0.5 * schedule_factor(schedule, i / N, warmup, 1 / N) for i in range(N)]
    assert min(wanted) > 0 and len(wanted) == N
    for budget in budgets(N):
        assert logged(budget, "learning_rate", **hyperparameters) == wanted, budget  # to the bit


def test_inverse_square_roots_by_hand() -> None:
    """From the end of the warm-up, where it is 1: a half at four times its length, a third at nine times."""
    factors = [schedule_factor("inverse-sqrt", x, 0.1) for x in (0.0, 0.05, 0.1, 0.4, 0.9)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1 / 2, 1 / 3])
    assert schedule_factor("inverse-sqrt", 0.7, 0.0) == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine", "inverse-sqrt"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_a_run_of_one_iteration_learns(schedule: Schedule, warmup: float) -> None:
    for budget in budgets(1):
        loop = loop_of(budget, schedule=schedule, warmup=warmup, learning_rate=0.5)
        before = loop.run_state.weights()  # type: ignore[attr-defined]
        loop.iterate()
        assert loop.context.progress == 1 and loop.context.metrics["learning_rate"] == 0.5, budget
        assert (loop.run_state.weights() - before).abs().max() > 0.1  # type: ignore[attr-defined]


def test_the_critic_s_schedule_too() -> None:
    for budget in budgets(4):
        loop, rates = loop_of(budget, "ppo", critic_schedule="linear", critic_learning_rate=1.0), []
        while loop.context.progress < 1:
            loop.iterate()
            rates.append(loop.context.optimizer["critic"].param_groups[0]["lr"])
        assert rates == [1.0, 0.75, 0.5, 0.25], budget


def test_shares_that_grow_over_the_run_do_so_in_every_unit() -> None:
    whole = logged("iterations=10", "d3s/rollouts", "grpo+d3s", token_rule="random")
    assert whole[0] < whole[-1]
    for budget in budgets(10):
        assert logged(budget, "d3s/rollouts", "grpo+d3s", token_rule="random") == whole, budget


def test_a_part_of_select_reads_the_step_size_of_the_step_to_come() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Backbone(Part):
        stage: ClassVar[Stage] = "select"

        def __call__(self, experience: Experience, context: Context) -> Experience:
            context.log(read=context.optimizer["policy"].param_groups[0]["lr"])
            return experience

    loop = loop_of("samples=36", schedule="linear")
    loop.recipe = replace(loop.recipe, select=(Backbone(),))
    loop._stages = loop.recipe.stages()
    for _ in range(3):
        loop.iterate()
        assert loop.context.metrics["read"] == loop.context.metrics["learning_rate"]


def test_where_the_cost_varies_the_mean_so_far_is_what_is_to_come() -> None:
    budget = Budget(tokens=1000)
    assert budget.schedule_progress(Spent()) == 0
    assert budget.schedule_progress(Spent(tokens=100, iterations=1)) == 1 / 10
    assert budget.schedule_progress(Spent(tokens=300, iterations=2)) == 2 / 7  # 700 more, at 150 each: 5
    assert budget.schedule_progress(Spent(tokens=999, iterations=3)) == 3 / 4  # what is not over has one more
    assert Budget(tokens=1000, iterations=4).schedule_progress(Spent(tokens=300, iterations=2)) == 2 / 4
    assert Budget(samples=1000).schedule_progress(Spent(tokens=300, iterations=2)) == 0  # no cost is known yet
    assert Budget(seconds=10).schedule_progress(Spent(seconds=2.5, iterations=1)) == 1 / 4


@pytest.mark.parametrize("unit", ["samples", "tokens", "steps", "reward_calls", "updates"])
def test_a_constant_cost_gives_the_numbers_of_iterations_to_the_bit(unit: str) -> None:
    budget, whole = Budget(**{unit: 1000}), Budget(iterations=16)
    for done in range(16):
        began = Spent(**{unit: 64 * done}, iterations=done)
        assert budget.schedule_progress(began) == whole.schedule_progress(began) == done / 16
