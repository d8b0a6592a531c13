"""APO: its limit is iterative DPO, the card's numbers, which policy is judged, and where the momentum comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl
from conftest import SEED, reached
from polyrl.catalogue import build
from polyrl.core.loop import Loop
from polyrl.core.update import Move
from polyrl.errors import UserError
from polyrl.methods.preference.apo import Extrapolate, exponent
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig

SMALL = {"prompts_per_step": "8", "completions_per_prompt": "3", "learning_rate": "1e-3"}
TASK = "sort-pairs(pairs=100)"


def loop_of(method: str, model: Path, settings: dict[str, str], **more: Any) -> Loop:
    config = RunConfig(method=method, task=TASK, model=str(model), hyperparameters=settings, eval_prompts=20, **more)
    return make_loop(config)[0]


def flat(policy: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def named(loop: Loop, name: str) -> Tensor:
    return flat(loop.run_state.models[name])  # type: ignore[attr-defined]


def test_with_alpha_0_it_is_iterative_dpo_to_the_bit(taught: Path) -> None:
    rounds = {**SMALL, "reference": "round", "schedule": "constant"}
    usual, own = loop_of("iterative-dpo", taught, rounds), loop_of("apo", taught, {**SMALL, "alpha": "0"})
    further = loop_of("apo", taught, {**SMALL, "alpha": "0.3"})
    for _ in range(3):
        for loop in (usual, own, further):
            loop.iterate()
    assert torch.equal(flat(usual.run_state.policy), named(own, "policy"))  # type: ignore[attr-defined]
    assert torch.equal(named(own, "trained"), named(own, "policy"))
    assert not torch.equal(named(further, "trained"), named(own, "trained"))
    assert usual.run_state.evaluate()[0] == own.run_state.evaluate()[0]


def test_the_policy_goes_on_along_the_move_between_trained_policies(taught: Path) -> None:
    loop = loop_of("apo", taught, {**SMALL, "alpha": "0.5"})
    trained = [named(loop, "policy").clone()]
    for _ in range(3):
        loop.iterate()
        trained.append(named(loop, "trained").clone())
        assert torch.equal(named(loop, "before"), trained[-2])
        torch.testing.assert_close(named(loop, "policy"), trained[-1] + 0.5 * (trained[-1] - trained[-2]))
    moved = float((trained[-1] - trained[-2]).norm())
    assert loop.context.metrics["extrapolated"] == pytest.approx(0.5 * moved, rel=1e-4)


def test_what_is_judged_and_kept_is_the_policy_before_its_extrapolation(taught: Path, tmp_path: Path) -> None:
    loop = loop_of("apo", taught, SMALL)
    loop.iterate()
    loop.run_state.export(tmp_path / "model")
    again = loop_of("apo", tmp_path / "model", SMALL)
    assert torch.equal(named(again, "policy"), named(loop, "trained"))
    assert not torch.equal(named(loop, "trained"), named(loop, "policy"))


@pytest.mark.parametrize(
    ("alpha", "found"), [(0.3, [1, 2.3, 3.69, 5.107, 6.5321]), (0.6, [1, 2.6, 4.56, 6.736, 9.0416]), (0.0, [1, 2, 3])]
)
def test_check_2_exponents(alpha: float, found: list[float]) -> None:
    assert [exponent(alpha, n + 1) for n in range(len(found))] == pytest.approx(found, abs=1e-9)
    assert exponent(alpha, 200) - exponent(alpha, 199) == pytest.approx(1 / (1 - alpha), abs=1e-9)


SECOND = {0.0: (0.529056, 0.291944, 0.179000), 0.3: (0.579508, 0.275240, 0.145252), 0.6: (0.627163, 0.256383, 0.116454)}


@pytest.mark.parametrize("alpha", SECOND)
def test_checks_3_and_4_exact_rounds_of_a_log_linear_policy(alpha: float) -> None:
    """The moves of the recipe on logits: after exact proximal steps they give theorem 4.1's closed form."""
    moves = [step for step in build(f"apo(alpha={alpha})").update_steps() if isinstance(step, Move)]
    assert [(step.target, step.towards) for step in moves] == [
        ("before", "trained"),
        ("trained", "policy"),
        ("policy", "before"),
    ]
    reward, start = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5]).double().log()
    logits = {name: start.clone() for name in ("policy", "trained", "before")}
    found = []
    for _ in range(6):
        logits["policy"] += reward  # beta 1
        for step in moves:
            logits[step.target].lerp_(logits[step.towards], step.tau)
        found.append({name: value.softmax(-1).clone() for name, value in logits.items()})
    assert found[0]["trained"].tolist() == pytest.approx([0.353420, 0.321540, 0.325040], abs=1e-6)
    assert found[1]["trained"].tolist() == pytest.approx(SECOND[alpha], abs=1e-6)
    if alpha == 0.3:
        assert found[0]["policy"].tolist() == pytest.approx([0.405779, 0.317752, 0.276469], abs=1e-6)
    for n, each in enumerate(found, start=1):
        closed = (start + exponent(alpha, n) * reward).softmax(-1)
        torch.testing.assert_close(each["trained"], closed, atol=1e-12, rtol=1e-10)


def test_with_exact_rounds_a_larger_step_does_the_same_and_no_worse() -> None:
    """100 answers, 60 rounds of beta 5, 20 draws of rewards; and beta (1 - alpha) without APO."""
    draws = torch.rand(20, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gap(steps: float) -> float:
        return float((draws.amax(1) - ((steps * draws).softmax(1) * draws).sum(1)).mean())

    plain = gap(exponent(0.0, 60) / 5)
    assert plain == pytest.approx(0.0743, abs=0.006)  # other draws than the card's
    for alpha, ratio in ((0.3, 0.668), (0.6, 0.345)):
        own, raised = gap(exponent(alpha, 60) / 5), gap(60 / (5 * (1 - alpha)))
        assert own / plain == pytest.approx(ratio, abs=0.02)
        assert raised < own < 1.05 * raised


def test_adapters_are_not_extrapolated(taught: Path) -> None:
    with pytest.raises(UserError, match="leave --lora away, or set --alpha 0"):
        loop_of("apo", taught, SMALL, lora=2).iterate()
    loop_of("apo", taught, {**SMALL, "alpha": "0"}, lora=2).iterate()


def test_compositions() -> None:
    assert build("apo+ipo(reference=round)").hyperparameters()["policy-move.alpha"] == 0.3
    assert "inpo-loss" in [name for name, _ in build("apo+inpo").entries()]
    with pytest.raises(UserError, match="comes first in a composition, as in apo"):
        build("iterative-dpo+apo")
    assert Extrapolate("policy", "before", alpha=0.6).tau == -0.6


def test_a_stopped_run_goes_on_to_the_same_bits(taught: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"evaluations": 1, "eval_prompts": 20, "tensorboard": False, "checkpoint_every": 1}
    call: dict[str, Any] = {"task": TASK, "model": taught, "options": more, "quiet": True, **SMALL}
    polyrl.train("apo", budget="iterations=3", out=tmp_path / "whole", **call)
    polyrl.train("apo", budget="iterations=2", out=tmp_path / "parted", **call)
    polyrl.resume(tmp_path / "parted", budget="iterations=3", quiet=True)
    one, other = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "parted"))
    assert one == other


def test_the_gold_score_rises(taught: Path, tmp_path: Path) -> None:
    more = {"evaluations": 1, "eval_prompts": 100, "tensorboard": False}
    call: dict[str, Any] = {"task": TASK, "model": taught, "options": more, "quiet": True, "seed": SEED}
    result = polyrl.train(
        "apo", budget="samples=1600", out=tmp_path / "r", prompts_per_step=64, learning_rate=1e-3, **call
    )
    reached(result.final["eval/gold"] - result.start["eval/gold"], 0.1)
