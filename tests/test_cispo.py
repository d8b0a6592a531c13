"""CISPO: the card's number, that every token keeps its gradient, and the policy gradient as its limit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from conftest import SEED, reached, read_records
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.cispo import ClippedImportanceWeight, clipped_weight
from polyrl.parts.improve import ClippedSurrogate, PolicyGradient
from run_states import TableRunState
from test_gspo import gradient, weighted
from test_learning import learn


def test_the_weight_is_cut_and_is_no_part_of_the_derivative() -> None:
    logprob = torch.tensor([[math.log(1.5), math.log(0.5)]], dtype=torch.float64, requires_grad=True)
    batch = Experience(
        {
            "advantage": torch.ones(1, 2, dtype=torch.float64),
            "behaviour_logprob": torch.zeros(1, 2, dtype=torch.float64),
            "weight": torch.ones(1, 2, dtype=torch.float64),
        }
    )
    for low, weights in ((None, [1.28, 0.5]), (0.2, [1.28, 0.8])):
        term = ClippedImportanceWeight(clip_range_high=0.28, clip_range_low=low)
        loss = term.loss({"logprob": logprob}, batch)
        assert loss.tolist()[0] == pytest.approx([-weights[0] * math.log(1.5), -weights[1] * math.log(0.5)])
        (slope,) = torch.autograd.grad(loss.sum(), logprob)
        assert slope.tolist()[0] == pytest.approx([-w for w in weights])
        told = term.statistics({"logprob": logprob.detach()}, batch)
        assert told["clip_ratio"].tolist() == [[1.0, 0.0 if low is None else 1.0]]
        assert told["ratio"].tolist()[0] == pytest.approx([1.5, 0.5])


def test_no_token_loses_its_gradient() -> None:
    """Where PPO's clip stops half of the tokens, here all still move, each by no more than its bound."""
    logprob = torch.tensor([[2.0, -2.0, 0.0, 5.0]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    batch = Experience(
        {"advantage": advantage, "behaviour_logprob": torch.zeros(1, 4).double(), "weight": torch.ones(1, 4).double()}
    )
    slopes = [
        torch.autograd.grad(term.loss({"logprob": logprob}, batch).sum(), logprob)[0].tolist()[0]
        for term in (ClippedImportanceWeight(), ClippedSurrogate(clip_range=0.28))
    ]
    assert slopes[0] == pytest.approx([-1.28, math.exp(-2), -1.0, -1.28])
    assert slopes[1] == pytest.approx([0.0, 0.0, -1.0, 0.0])


def test_loss_and_gradient_are_those_of_the_tokens_one_by_one() -> None:
    run_state = TableRunState(critic=False)
    batch = weighted(run_state, per_token=True)
    grad, metrics = gradient(ClippedImportanceWeight(clip_range_high=0.1, clip_range_low=0.15), batch)
    logprob = run_state.outputs(batch, {"logprob"})["logprob"]
    losses, cut = [], 0
    for i in range(len(batch)):
        for t in range(8):
            if bool(batch["mask"][i, t]):
                ratio = math.exp(float((logprob[i, t] - batch["behaviour_logprob"][i, t]).detach()))
                weight = max(0.85, min(1.1, ratio))
                cut += weight != ratio
                losses.append(-weight * batch["advantage"][i, t] * logprob[i, t])
    loss = torch.stack(losses).mean()  # over all tokens of the batch
    (wanted,) = torch.autograd.grad(loss, run_state.table)
    assert torch.allclose(grad, wanted, atol=1e-12) and bool(grad.any())
    assert metrics["loss/clipped-importance-weight"] == pytest.approx(float(loss.detach()))
    assert metrics["clip_ratio"] == pytest.approx(cut / len(losses)) and 0 < cut < len(losses)


def test_before_anything_has_moved_it_is_the_policy_gradient_and_ppo() -> None:
    batch = weighted(TableRunState(critic=False), noise=0.0)
    mine, told = gradient(ClippedImportanceWeight(), batch)
    plain, said = gradient(PolicyGradient(aggregation="token-mean"), batch)
    clipped, _ = gradient(ClippedSurrogate(aggregation="token-mean"), batch)
    assert torch.allclose(mine, plain, atol=1e-12) and torch.allclose(mine, clipped, atol=1e-12) and bool(mine.any())
    assert told["loss"] == pytest.approx(said["loss"]) and told["clip_ratio"] == 0


def test_without_bounds_it_has_the_gradient_of_the_ratio() -> None:
    """sg(rho) A grad log pi is the gradient of rho A."""
    batch = weighted(TableRunState(critic=False), per_token=True)
    mine, _ = gradient(ClippedImportanceWeight(clip_range_high=1e6), batch)
    ratio, _ = gradient(ClippedSurrogate(clip_range=1e6, aggregation="token-mean"), batch)
    assert torch.allclose(mine, ratio, atol=1e-12) and bool(mine.any())


def test_padding_order_and_micro_batches_change_nothing() -> None:
    batch, term = weighted(TableRunState(critic=False), per_token=True), ClippedImportanceWeight(clip_range_high=0.1)
    expected, logged = gradient(term, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    dirty = batch.with_fields(behaviour_logprob=batch["behaviour_logprob"].masked_fill(~batch["mask"], -1e6))
    for rows, run_state in (
        (dirty, TableRunState(critic=False, garbage=float("nan"))),
        (batch.rows(order), TableRunState(critic=False)),
        (batch, TableRunState(critic=False, micro=1)),
    ):
        grad, found = gradient(term, rows, run_state)
        assert torch.allclose(grad, expected, atol=1e-12)
        for key in ("loss", "clip_ratio", "ratio"):
            assert found[key] == pytest.approx(logged[key]), key


def test_an_overflowing_ratio_is_cut_like_any_other() -> None:
    assert clipped_weight(torch.tensor([math.inf, 0.0]), None, 0.28).tolist() == pytest.approx([1.28, 0.0])


def test_recipes_that_can_and_cannot_be() -> None:
    assert [t.name for t in catalogue.build("grpo+cispo").terms] == ["clipped-importance-weight", "reference-kl"]
    assert "ref_logprob" not in {name for p in catalogue.build("cispo").parts() for name in p.gives}
    assert (
        catalogue.build("ppo+clipped-importance-weight", domain="control").terms[0].name == "clipped-importance-weight"
    )
    with pytest.raises(UserError, match=r"clip_range_high is 0\.0 but must be above 0"):
        catalogue.build("cispo", {"clip_range_high": "0"})
    with pytest.raises(UserError, match=r"no hyperparameter .clip_range.\. Did you mean .clip_range_"):
        catalogue.build("cispo", {"clip_range": "0.2"})


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = learn("cispo", small_model, tmp_path / "run", samples=1536, seed=SEED, learning_rate=6e-4)
    reached(done.final["eval/accuracy"] - done.start["eval/accuracy"], 0.1)  # 0.19 to 0.33 with five seeds
    assert max(r["clip_ratio"] for r in read_records(tmp_path / "run") if "clip_ratio" in r) > 0
