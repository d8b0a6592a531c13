"""The draft of a reward of language by the penalty gradient: exact on a bandit, plain sums, a run that resumes."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import read_records, stopped_after
from polyrl.errors import UserError
from polyrl.methods.theory.bilevel_penalty import exact_gradient, penalized, penalty_gradient
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.theory.reward_bandit import RewardBandit

torch.set_num_threads(1)
DRAFT = Path(__file__).parent / "drafts" / "bilevel_reward.py"


@pytest.fixture(scope="module")
def draft() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bilevel_reward_draft", DRAFT)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("instance", [0, 3])
def test_with_all_answers_it_is_the_penalty_gradient_of_the_exact_bandit(draft: ModuleType, instance: int) -> None:
    """No second policy is trained, and the gradient is the one with two, whose error is of the order of sigma."""
    bandit = RewardBandit(choices=6, ridge=0.0, instance=instance)
    weights = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)
    z = bandit.response(weights)
    exact, errors = exact_gradient(bandit.upper, bandit.response, weights), {}
    for sigma in (0.03, 0.003, 0.0):
        x = weights.clone().requires_grad_()
        scores = (bandit.seen @ x)[None]
        loss = draft.penalty_loss(scores, bandit.gold[None], sigma, bandit.tau, z.exp()[None])
        found: Tensor = torch.autograd.grad(loss, x)[0]
        y = penalized(bandit, weights, z, sigma, 1e-14) if sigma else z
        wanted = penalty_gradient(bandit.upper, bandit.lower, weights, y, z, sigma or 1.0)
        assert torch.allclose(found, wanted, atol=1e-8)  # without sigma: the naive one
        errors[sigma] = float((found - exact).norm())
    assert math.log(errors[0.03] / errors[0.003]) / math.log(10) == pytest.approx(1, abs=0.05)
    assert errors[0.0] > 3 * errors[0.03]


def test_the_loss_of_prompts_is_the_mean_of_their_own(draft: ModuleType) -> None:
    stream = torch.Generator().manual_seed(1)
    scores, gold = (torch.randn(3, 4, generator=stream, dtype=torch.float64) for _ in range(2))
    apart = [float(draft.penalty_loss(scores[p : p + 1], gold[p : p + 1], 0.02, 0.1)) for p in range(3)]
    assert float(draft.penalty_loss(scores, gold, 0.02, 0.1)) == pytest.approx(sum(apart) / 3)
    naive = 0.0
    for i in range(4):
        for j in range(4):
            wins = 1 / (1 + math.exp(float(gold[0, j] - gold[0, i])))
            naive -= 2 * wins * math.log(1 / (1 + math.exp(float(scores[0, j] - scores[0, i])))) / 16
    assert float(draft.penalty_loss(scores[:1], gold[:1], 0.0, 0.1)) == pytest.approx(naive)


def config_of(model: Path, **settings: Any) -> RunConfig:
    small = {"prompts_per_step": 4, "demonstrations": 16, "reward_steps": 1, **settings}
    return RunConfig(
        method=str(DRAFT),
        task="sort-pairs(pairs=64)",
        model=str(model),
        budget="iterations=3",
        tensorboard=False,
        eval_prompts=20,
        evaluations=1,
        checkpoint_every=1,
        hyperparameters={k: str(v) for k, v in small.items()},
    )


def test_the_reward_learns_from_the_policys_own_answers(draft: ModuleType, taught: Path) -> None:
    """The steps of one batch lower the loss of its pairs, and the gold is that of the task."""
    loop = make_loop(config_of(taught, gradient="naive", reward_steps=12, reward_learning_rate=1e-3))[0]
    seen = []
    reward = loop.run_state.own["reward"]
    step = reward.step

    def noted(objective: Any, batches: Any, *more: Any) -> Any:
        loss, scores = step(objective, batches, *more)
        seen.append(float(loss))
        assert len(batches) == 1 and len(scores[0]) % 4 == 0
        return loss, scores

    reward.step = noted
    loop.iterate()
    assert len(seen) == 12 and seen[-1] < seen[0] - 0.02
    assert loop.context.metrics["joint/pair_loss"] <= seen[0]


def test_a_draft_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, taught: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if "second" not in k} for r in read_records(folder)]

    start_run(config_of(taught), tmp_path / "whole").run()
    stopped_after(start_run(config_of(taught), tmp_path / "half"), 2)
    resume_run(tmp_path / "half", trust_code=True).run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


def test_bad_input_gets_one_sentence(taught: Path) -> None:
    for settings, said in (({"sigma": 0}, "sigma"), ({"demonstration_weight": 0.1}, "demonstration.weight")):
        with pytest.raises(UserError, match=said):
            make_loop(config_of(taught, **settings))
