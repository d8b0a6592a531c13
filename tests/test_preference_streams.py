"""Compositions of preference methods with lists of updates: the step of each is that of a plain loop over its rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from conftest import SEED
from polyrl.catalogue import build
from polyrl.core.composing import where_needed
from polyrl.core.update import Update
from polyrl.data.pairs import numbers_of_step
from polyrl.methods.preference.tgdpo import TokenGuidance
from test_language_lists import SMALL, loop_of, weights


def moved_policy(loop: Any) -> Any:
    """The run's policy, moved away from the start by numbers that are no method's."""
    policy = loop.run_state.models["policy"]
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return policy


def gradients_of_a_turn(loop: Any) -> tuple[dict[str, Tensor], Any]:
    """The gradients at the policy's first step of a turn, and the turn's fresh rows."""
    found: dict[str, Tensor] = {}
    optimizer, policy = loop.context.optimizer["policy"], loop.run_state.models["policy"]
    take = optimizer.step

    def step() -> None:
        for name, p in policy.named_parameters():
            if p.grad is not None:
                found.setdefault(name, p.grad.clone())

    optimizer.step = step
    fresh = loop.iterate()
    optimizer.step = take
    return found, fresh


def agree(found: dict[str, Tensor], policy: Any, loss: Tensor) -> None:
    policy.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    assert found and max(float(x.abs().max()) for x in found.values()) > 1e-5
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=3e-6, msg=name)


@pytest.mark.parametrize("spec", ["hypo+ipo(tau=0.3)", "hypo+tgdpo(token_reward=oracle)", "hypo+slic"])
def test_hypos_two_streams_with_another_loss_are_added(spec: str, taught: Path) -> None:
    """The KL by leave-one-out on fresh answers, and the other loss pair by pair and token by token."""
    loop = loop_of(spec, taught, {**SMALL, "kl_weight": "0.5", "max_grad_norm": "none", "learning_rate": "0"})
    loop.iterate()  # of equal policies all log-ratios are 0
    policy = moved_policy(loop)
    found, fresh = gradients_of_a_turn(loop)
    state = loop.run_state
    policy.requires_grad_(True)
    mask = fresh["mask"]
    rho = ((fresh["behaviour_logprob"] - fresh["ref_logprob"]) * mask).sum(1)
    other = ((fresh["group"][:, None] == fresh["group"][None]).float() - torch.eye(len(rho))) @ rho
    advantage = -0.5 * (rho - other)
    total = -(advantage * (policy.evaluate(fresh)["logprob"] * mask).sum(1)).mean()

    given = state.pairs("train")
    numbers = numbers_of_step(SEED, len(given), 8, 8)
    pairs = given.batch(numbers)
    with torch.no_grad():
        before = state.models["reference"].evaluate(pairs)["logprob"]
    u = policy.evaluate(pairs)["logprob"] - before
    losses = []
    for i, number in enumerate(numbers):
        side = []
        for row, sign in ((2 * i, 1), (2 * i + 1, -1)):
            places = pairs["mask"][row].nonzero()[:, 0].tolist()
            texts = [policy.decode([int(pairs["action"][row, t])]) for t in places]
            worth = state.task.token_gold(state.task.fixed_pairs["train"][number], texts)
            sums = torch.zeros(())
            for t, r in zip(places, worth, strict=True):
                f = min(max(1 + sign * 0.5 * r, 0.1), 1.9) if "tgdpo" in spec else 1.0  # both betas are 0.1
                sums = sums + f * u[row, t]
            side.append(sums)
        h = side[0] - side[1]
        if "ipo" in spec:
            losses.append((h - 1 / 0.6).square())
        else:
            losses.append(torch.relu(1 - 0.1 * h) if "slic" in spec else -logsigmoid(0.1 * h))
    agree(found, policy, total + torch.stack(losses).mean())


@pytest.mark.parametrize(("spec", "tau", "eta"), [("apo+inpo", 0.033, 0.1), ("apo+inpo(eta=0.3,tau=0.3)", 0.3, 0.3)])
def test_apos_round_with_inpos_loss_is_anchored_to_the_start_and_to_who_sampled(
    spec: str, tau: float, eta: float, taught: Path
) -> None:
    """The start is `reference`, which no round moves. Alpha 0: after the step the policy is where it was."""
    settings = {"prompts_per_step": "8", "learning_rate": "0", "epochs": "1", "minibatches": "1", "alpha": "0"}
    loop = loop_of(spec, taught, {**settings, "max_grad_norm": "none"})
    loop.iterate()
    policy = moved_policy(loop)
    found, fresh = gradients_of_a_turn(loop)
    policy.requires_grad_(True)
    with torch.no_grad():
        start = loop.run_state.models["reference"].evaluate(fresh)["logprob"]
    own = policy.evaluate(fresh)["logprob"]
    losses = []
    for number in fresh["pair"].unique().tolist():
        if number < 0:
            continue
        side: dict[bool, Tensor] = {}
        for row in (fresh["pair"] == number).nonzero()[:, 0].tolist():
            total = torch.zeros(())
            for t in fresh["mask"][row].nonzero()[:, 0].tolist():
                anchor = tau / eta * start[row, t] + (1 - tau / eta) * fresh["behaviour_logprob"][row, t]
                total = total + own[row, t] - anchor
            side[bool(fresh["preferred"][row])] = total
        losses.append((side[True] - side[False] - 1 / (2 * eta)).square())
    assert len(losses) > 1
    agree(found, policy, torch.stack(losses).mean())


def test_what_only_the_given_pairs_can_tell_is_asked_of_them() -> None:
    update = build("hypo+tgdpo(alpha=0.3)").updates[0]
    assert isinstance(update, Update)
    assert [part.name for part in update.also[0].credit] == ["reference-logprob", "token-guidance"]
    assert build("hypo+tgdpo(alpha=0.3)").hyperparameters()["token-guidance.alpha"] == 0.3
    recipe = build("hypo+tgdpo")
    assert [part.name for part in recipe.score] == ["log-ratio-cost"]
    # a part that a stage's own terms read stays there, and a recipe without a second stream is left as it is
    assert where_needed(build("tgdpo")) == build("tgdpo") and where_needed(build("hypo")) == build("hypo")
    stays = dataclasses.replace(build("hypo"), score=(*build("hypo").score, TokenGuidance()))
    assert where_needed(stays) == stays  # nobody reads it


def test_without_penalty_and_guidance_hypo_with_tgdpo_is_dpo(taught: Path) -> None:
    settings = {**SMALL, "kl_weight": "0", "learning_rate": "1e-3"}
    loops = [loop_of(spec, taught, settings) for spec in ("hypo", "hypo+tgdpo(alpha=0)")]
    for _ in range(2):
        for loop in loops:
            loop.iterate()
    assert torch.equal(weights(loops[0]), weights(loops[1]))


def test_its_guide_is_made_before_the_run(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prepared(self: TokenGuidance, task: Any, model: str, say: Any = None) -> str:
        asked.append(model)
        return str(taught)

    monkeypatch.setattr(TokenGuidance, "prepare", prepared)
    loop = loop_of("hypo+tgdpo", taught, SMALL)
    assert asked == [str(taught)]
    loop.iterate()  # a guide that is the start has nothing to say: DPO's loss at the start
    assert loop.context.metrics["loss/tgdpo-loss"] == pytest.approx(0.6931472, abs=1e-5)
