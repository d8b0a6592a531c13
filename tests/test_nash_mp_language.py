"""Nash-MP on answers of a language model: its gradient by a plain loop, its limits, and that it learns."""

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
from polyrl.errors import UserError
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig

TASK = "sort-pairs(pairs=100)"
SMALL = {"prompts_per_step": "6", "max_grad_norm": "none"}


def loop_of(method: str, model: Path, **settings: Any) -> Loop:
    named = {**SMALL, **{name: str(value) for name, value in settings.items()}}
    return make_loop(RunConfig(method=method, task=TASK, model=str(model), hyperparameters=named, eval_prompts=20))[0]


def flat(loop: Loop, name: str) -> Tensor:
    return torch.cat([p.detach().flatten() for p in loop.run_state.models[name].parameters()])  # type: ignore[attr-defined]


def shaken(loop: Loop) -> None:
    """Let the policy, the start and the target be three policies."""
    with torch.no_grad():
        for seed, name in enumerate(("policy", "reference", "target")):
            for p in loop.run_state.models[name].parameters():  # type: ignore[attr-defined]
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())))


def total(model: Any, batch: Any, row: int) -> Tensor:
    """Log-probability of a row's answer, by the model of transformers alone."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row]]
    answer = batch["action"][row][batch["present"][row]]
    ids = torch.cat([prompt, answer])
    logits = model.causal_lm(input_ids=ids[None]).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt), len(ids))
    return logits[places - 1, ids[places]].sum()


def test_the_gradient_is_that_of_a_plain_loop(taught: Path) -> None:
    loop = loop_of("nash-mp-pg", taught, beta=0.1, pull=0.3, learning_rate=0, kappa=1e-9)
    shaken(loop)
    models: Any = loop.run_state.models  # type: ignore[attr-defined]
    taken: dict[str, Tensor] = {}
    step = loop.context.optimizer["policy"].step
    loop.context.optimizer["policy"].step = lambda: (
        taken.update({n: p.grad.clone() for n, p in models["policy"].named_parameters() if p.grad is not None}),
        step(),
    )
    batch = loop.iterate()
    assert batch is not None and len(batch) == 12
    win = batch["score"]
    for group in range(6):
        assert float(win[batch["group"] == group].sum()) == 1 and set(win.tolist()) == {0.0, 1.0}
    models["policy"].requires_grad_(True)
    models["policy"].zero_grad()
    own, costs = [], []
    for row in range(12):
        logprob = total(models["policy"], batch, row)
        with torch.no_grad():
            start, target = total(models["reference"], batch, row), total(models["target"], batch, row)
        own.append(logprob)
        costs.append(float(0.5 - win[row] + 0.1 * (logprob.detach() - start) + 0.3 * (logprob.detach() - target)))
    mean = sum(costs) / 12
    torch.stack([(c - mean) * x / 12 for c, x in zip(costs, own, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
    for name, p in models["policy"].named_parameters():
        if name in taken and p.grad is not None:
            torch.testing.assert_close(taken[name], p.grad, atol=2e-5, rtol=2e-3)
    assert loop.context.metrics["cost/mean"] == pytest.approx(mean, abs=1e-4)


def test_without_the_pull_the_target_is_of_no_account(taught: Path) -> None:
    slow, fast = (loop_of("nash-mp-pg", taught, pull=0, kappa=kappa) for kappa in (0.1, 0.9))
    for _ in range(3):
        slow.iterate()
        fast.iterate()
    assert torch.equal(flat(slow, "policy"), flat(fast, "policy"))
    assert not torch.equal(flat(slow, "target"), flat(fast, "target"))


def test_with_kappa_1_the_pull_is_of_no_account(taught: Path) -> None:
    """Then the target is the policy that samples: regularized self-play."""
    plain, pulled = (loop_of("nash-mp-pg", taught, pull=pull, kappa=1, learning_rate=1e-4) for pull in (0, 5))
    for _ in range(3):
        plain.iterate()
        pulled.iterate()
        assert torch.equal(flat(pulled, "policy"), flat(pulled, "target"))
        assert pulled.context.metrics["target/kl"] == pytest.approx(0, abs=1e-4)
    held = loop_of("nash-mp-pg", taught, pull=5, kappa=0.1, learning_rate=1e-4)
    for _ in range(3):
        held.iterate()
    near = float((flat(plain, "policy") - flat(pulled, "policy")).norm())
    far = float((flat(plain, "policy") - flat(held, "policy")).norm())
    assert near < 0.2 * far


def test_the_target_is_a_moving_average(taught: Path) -> None:
    loop = loop_of("nash-mp-pg", taught, kappa=0.25)
    expected = flat(loop, "target")
    for _ in range(3):
        loop.iterate()
        expected = 0.75 * expected + 0.25 * flat(loop, "policy")
        torch.testing.assert_close(flat(loop, "target"), expected, atol=1e-6, rtol=1e-5)


def test_the_start_is_not_asked_where_it_does_not_pull(taught: Path) -> None:
    loop = loop_of("nash-mp-pg", taught, beta=0)
    batch = loop.iterate()
    assert batch is not None and "ref_logprob" not in batch


def test_the_name_stands_for_the_game_where_no_task_is_named_and_mistakes_are_told() -> None:
    assert build("nash-mp-pg", domain="theory").collect != build("nash-mp-pg", domain="language").collect
    assert polyrl.__version__ and build("nash-mp-pg", domain="language").models.keys() == {
        "policy",
        "reference",
        "target",
    }
    with pytest.raises(UserError, match="must be at least 2"):
        build("nash-mp-pg(completions_per_prompt=1)", domain="language")
    with pytest.raises(UserError, match="needs a model 'target'"):
        build("hypo+nash-mp-pg", domain="language")


def test_the_gold_score_rises(taught: Path, tmp_path: Path) -> None:
    result = polyrl.train(
        "nash-mp-pg",
        task=TASK,
        model=taught,
        budget="samples=3200",
        out=tmp_path / "r",
        learning_rate=1e-3,
        seed=SEED,
        quiet=True,
        options={"evaluations": 1, "eval_prompts": 100, "tensorboard": False},
    )
    reached(result.final["eval/gold"] - result.start["eval/gold"], 0.1)
