"""LLM-guidance: the mixture and its gradient by hand, the grid's shortest way, the adviser's measures, learning."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from conftest import SEED, reached
from polyrl import catalogue
from polyrl.errors import UserError
from polyrl.methods.control.llm_guidance import advice_weight
from polyrl.methods.control.llm_guidance.adviser import (
    Adviser,
    average_entropy,
    brier_score,
    calibration_error,
    discrimination,
)
from polyrl.methods.control.llm_guidance.mixture import mixed_grad, mixed_logits, mixed_logprob
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control.unlock_grid import FORWARD, LEFT, OPEN, PICK_UP, RIGHT, UnlockGrid

torch.set_num_threads(1)
CHECKED = torch.tensor([0.7, 0.1, 0.1, 0.05, 0.05])
ONE, TWO = torch.eye(5)[0], torch.eye(5)[1]


def loop_of(
    task: str = "UnlockGrid-v0", method: str = "llm-guidance", given: PythonObjects | None = None, **settings: Any
) -> Any:
    values = {"environments": "4", "steps_per_environment": "64", "hidden": "32", "minibatches": "4", **settings}
    config = RunConfig(
        method=method,
        task=task,
        seed=int(values.pop("seed", 0)),
        from_python=("task",) if given else (),
        budget=values.pop("budget", "steps=1024"),
        tensorboard=False,
        hyperparameters={k: str(v) for k, v in values.items()},
    )
    return make_loop(config, given=given or PythonObjects())[0]


# ------------------------------------------------------------------------------------------------ the paper's numbers


def test_the_entropy_of_the_average_and_the_mixture() -> None:
    advice, entropy = average_entropy(CHECKED[None])
    assert float(entropy) * math.log(5) == pytest.approx(1.009763, abs=1e-6)
    assert float(entropy) == pytest.approx(0.627401, abs=1e-6)
    weight = advice_weight(entropy, "entropy", 0.5, 0.8, 0.0)
    mixed = np.exp(mixed_logits(np.zeros((1, 5), np.float32), advice[None].numpy(), weight[None].numpy()))
    assert mixed[0] == pytest.approx([0.386300, 0.162740, 0.162740, 0.144110, 0.144110], abs=1e-6)


def test_passes_that_disagree_are_uncertain() -> None:
    assert float(average_entropy(torch.stack([ONE, TWO]))[1]) == pytest.approx(0.430677, abs=1e-6)
    assert float(average_entropy(torch.stack([ONE, ONE]))[1]) == 0.0


def test_the_gradient_reaches_the_policy_by_its_share() -> None:
    """Hbar = 0.2, P_LLM(a) = 0.9, pi(a) = 0.2: P = 0.76 and the factor is 0.04 / 0.76, by hand and by autograd."""
    advice = np.array([[0.9, 0.1]], np.float32)
    logprob = np.log(np.array([0.2], np.float32))
    mixed, grad = mixed_grad(logprob, np.array([0]), advice, np.array([0.8], np.float32))
    assert math.exp(mixed[0]) == pytest.approx(0.76, abs=1e-6)
    assert grad[0] == pytest.approx(0.052632, abs=1e-6)
    leaf = torch.tensor(logprob, requires_grad=True)
    same = mixed_logprob(leaf, torch.tensor([0]), torch.tensor(advice), torch.tensor([0.8]))
    same.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and float(leaf.grad[0]) == pytest.approx(0.052632, abs=1e-6)
    assert float(same.detach()) == pytest.approx(mixed[0], abs=1e-6)


@pytest.mark.parametrize(("weight", "factor"), [(1.0, 0.0), (0.0, 1.0)])
def test_sure_advice_teaches_nothing_and_none_leaves_the_policy(weight: float, factor: float) -> None:
    logprob = np.log(np.array([0.2, 0.5], np.float32))
    advice = np.stack([ONE.numpy()[:2], TWO.numpy()[:2]])
    mixed, grad = mixed_grad(logprob, np.array([0, 1]), advice, np.full(2, weight, np.float32))
    assert grad.tolist() == [factor, factor]
    assert mixed.tolist() == (logprob.tolist() if weight == 0 else [0.0, 0.0])


def test_shapers() -> None:
    entropy = torch.tensor([0.0, 0.3, 1.0])
    assert advice_weight(entropy, "linear", 0.0, 0.8, 0.0).tolist() == [1, 1, 1]
    assert advice_weight(entropy, "linear", 1.0, 0.8, 0.0).tolist() == [0, 0, 0]
    assert advice_weight(entropy, "constant", 0.0, 0.8, 0.0).tolist() == pytest.approx([0.8] * 3)
    assert advice_weight(entropy, "entropy", 0.0, 0.8, 0.05).tolist() == pytest.approx([0.95, 0.7, 0.0])


def test_measures_of_advice() -> None:
    assert brier_score(CHECKED[None], torch.tensor([0])) == pytest.approx(0.115, abs=1e-6)  # summed over actions
    confidence, right = torch.tensor([0.95, 0.95, 0.55, 0.55]), torch.tensor([True, True, True, False])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05, abs=1e-6)
    wrong = torch.tensor([True, False, False])
    assert discrimination(torch.tensor([0.5, 0.5, 0.1]), wrong) == 0.75
    assert discrimination(torch.tensor([0.5, 0.5, 0.1]), ~torch.ones(3, dtype=torch.bool)) == 0.5


# ----------------------------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize(("n", "shortest"), [(4, 9), (6, 13)])
def test_the_oracle_takes_the_shortest_way(n: int, shortest: int) -> None:
    grid = UnlockGrid(n)
    grid.reset()
    total, over, steps = 0.0, False, 0
    while not over:
        _, reward, over, _, _ = grid.step(grid.best_actions(grid.state)[0])
        total, steps = total + reward, steps + 1
    assert steps == shortest
    assert total == pytest.approx(0.5 + 0.5 + 0.2 + 1 - shortest / 50)


def test_rules_of_the_grid() -> None:
    grid = UnlockGrid(3)
    grid.reset()
    assert grid.follow((1, 0, 0, 0, 0), FORWARD) == ((1, 0, 0, 0, 0), 0.0, False)  # the key is in the way
    assert grid.follow((1, 0, 0, 0, 0), PICK_UP) == ((1, 0, 0, 1, 0), 0.5, False)
    assert grid.follow((2, 1, 1, 0, 0), OPEN) == ((2, 1, 1, 0, 0), -0.02, False)  # no key
    assert grid.follow((2, 1, 1, 1, 0), FORWARD) == ((2, 1, 1, 1, 0), 0.0, False)  # closed
    assert grid.follow((2, 1, 1, 1, 1), FORWARD) == ((2, 2, 1, 1, 1), 0.2, True)
    assert grid.follow((0, 0, 0, 0, 0), LEFT)[0][2] == 3 and grid.follow((0, 0, 3, 0, 0), RIGHT)[0][2] == 0
    cut = [grid.step(LEFT)[3] for _ in range(50)]
    assert cut == [False] * 49 + [True]
    for state in grid.advisable_states():
        assert grid.state_of(grid.observation_of(state)) == state
    with pytest.raises(UserError, match="from 2 to 20"):
        UnlockGrid(1)


# ------------------------------------------------------------------------------------------------------------ training


def test_no_advice_is_plain_ppo() -> None:
    guided, plain = loop_of(shaper="none"), loop_of(method="ppo", entropy_coef="0.01")
    for _ in range(2):
        guided.iterate()
        plain.iterate()
    for a, b in zip(guided.run_state.policy.parameters(), plain.run_state.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_update_in_closed_form_is_autograd_on_the_mixture() -> None:
    """The sampler's likelihood is the trainer's, and both ways back give one gradient."""
    loop = loop_of()
    experience = loop.iterate()
    assert loop.context.metrics["logprob_gap"] < 1e-5
    batch, run_state = experience.steps(), loop.run_state
    weights = torch.linspace(-1, 1, len(batch))[:, None]
    closed = run_state.closed_form({"logprob"})
    found = closed.forward(batch, frozenset({"logprob"}))["logprob"]
    closed.backward({"logprob": weights})
    ours = run_state.flat["policy"].vector.grad.clone()
    run_state.zero_gradients()
    outputs = run_state.outputs(batch, {"logprob"})["logprob"]
    (outputs * weights).sum().backward()
    assert torch.allclose(outputs, found, atol=1e-5)
    assert torch.allclose(run_state.flat["policy"].vector.grad, ours, rtol=1e-3, atol=1e-4)


def test_advice_earns_early_what_the_agent_alone_does_not() -> None:
    """Both return sums are over the same 2048 steps; the second run gives the same numbers to a bit."""

    def earned(**settings: Any) -> list[float]:
        loop = loop_of(seed=SEED, **settings)
        returns = []
        for _ in range(8):
            loop.iterate()
            returns.append(loop.context.metrics.get("episode/return", 0.0))
        return returns

    guided = earned()
    reached(sum(guided) / 8 - sum(earned(shaper="none")) / 8, 0.4)  # 1.09
    assert guided == earned()


def test_advice_at_every_visit() -> None:
    """Fresh passes differ between visits; their weights are stored and the sampler still agrees with the trainer."""
    loop = loop_of(fixed_advice="false", environments="2", steps_per_environment="16", minibatches="1")
    experience = loop.iterate()
    seen = experience["observation"].flatten(0, 1)
    first = (seen == seen[0]).all(1)
    assert int(first.sum()) > 1
    assert len(experience["advice_weight"].flatten()[first].unique()) > 1
    assert loop.context.metrics["logprob_gap"] < 1e-5


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no method describe"):
        loop_of("CartPole-v1")
    with pytest.raises(UserError, match="not have Discrete actions"):
        loop_of("Pendulum-v1")
    with pytest.raises(UserError, match="not a sequence classifier"):
        loop_of(adviser=str(tmp_path))

    class Four(UnlockGrid):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(4)

    with pytest.raises(UserError, match="knows 5 actions"):
        loop_of("mine", given=PythonObjects(environment=Four))


def test_it_composes_with_ppo() -> None:
    composed = catalogue.build("ppo+llm-guidance", {"environments": "3"}, domain="control")
    assert composed.collect.name == "guided-environments"
    assert dataclasses.asdict(composed.collect)["environments"] == 3


def test_dropout_is_on_for_the_adviser_only_while_it_is_asked() -> None:
    guide = loop_of().run_state.actor.guide
    adviser: Adviser = guide.adviser
    text = [UnlockGrid(4).words((0, 0, 0, 0, 0))]
    several = adviser.answers(text, 4, 1)
    assert several.shape == (4, 1, 5) and len(set(several[:, 0, 0].tolist())) == 4
    assert torch.equal(adviser.answers(text, 0, 1), adviser.answers(text, 0, 2))
    assert torch.equal(several, adviser.answers(text, 4, 1)) and not adviser.model.training
