"""GSPO: the card's number, its two forms, PPO's clip as its limit, and that its clip is told of responses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.gspo import SequenceSurrogate, sequence_ratio
from polyrl.parts.improve import ClippedSurrogate
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Term
from run_states import TableRunState, make_context, token_batch
from test_learning import MARGIN, learn

WIDE = SequenceSurrogate(clip_range=0.03, clip_range_high=0.04)
"""A clip range at which some responses of the batch below are stopped and some are not."""


def weighted(run_state: TableRunState, *, per_token: bool = False, noise: float = 0.6) -> Experience:
    """Ragged responses with tool tokens, sampled off-policy, one advantage a response unless `per_token`."""
    batch = token_batch(run_state, noise=noise)
    size, width = batch["mask"].shape
    g = torch.Generator().manual_seed(3)
    advantage = torch.randn(size, width if per_token else 1, generator=g, dtype=torch.float64).expand(size, width)
    return batch.with_fields(advantage=advantage * batch["mask"], weight=batch["mask"].double())


def gradient(term: Term, batch: Experience, run_state: TableRunState | None = None) -> tuple[Tensor, dict[str, float]]:
    """Gradient of one step on the batch by the policy's table, and what was logged."""
    run_state = run_state or TableRunState(critic=False)
    context = make_context(run_state)
    optimize = Optimize(max_grad_norm=1e9, max_logprob_gap=9.0)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run((term,), batch, context)
    return run_state.gradients()["table"], context.metrics


# --------------------------------------------------------------------------------------------- numbers by hand


def test_the_ratio_is_the_geometric_mean_of_the_tokens() -> None:
    log_ratio = torch.tensor([[0.2, -0.1, 0.05, 9.0]], dtype=torch.float64)
    counted = torch.tensor([[True, True, True, False]])
    assert float(sequence_ratio(log_ratio, counted)) == pytest.approx(1.051271, abs=1e-6)
    assert sequence_ratio(torch.full((1, 2), math.nan), torch.zeros(1, 2, dtype=torch.bool)).tolist() == [1.0]


def test_the_clip_is_told_of_responses_and_not_of_tokens() -> None:
    """Ten tokens that move far and cancel are no clipped response; one short response is one of three."""
    logprob = torch.zeros(3, 10, dtype=torch.float64)
    logprob[0] = torch.tensor([0.5, -0.5] * 5)
    logprob[1, :2] = 0.02
    logprob[2] = 0.01
    weight = torch.ones(3, 10, dtype=torch.float64)
    weight[1, 2:] = 0
    batch = Experience(
        {
            "advantage": torch.tensor([[1.0], [1.0], [-1.0]]).double().expand(3, 10),
            "behaviour_logprob": torch.zeros(3, 10, dtype=torch.float64),
            "weight": weight,
        }
    )
    term = SequenceSurrogate()
    found = term.statistics({"logprob": logprob}, batch)
    assert found["ratio"].tolist() == pytest.approx([1.0, math.exp(0.02), math.exp(0.01)])
    assert found["clip_ratio"].tolist() == [0.0, 1.0, 0.0]  # the last one moved against its advantage: live
    token = ClippedSurrogate(clip_range=3e-4, clip_range_high=4e-4)
    told = token.statistics({"logprob": logprob}, batch)["clip_ratio"]
    assert float((told * weight).sum() / weight.sum()) == pytest.approx(7 / 22)  # what tokens would say


def test_a_step_logs_shares_of_responses() -> None:
    batch = weighted(TableRunState(critic=False))
    _, metrics = gradient(WIDE, batch)
    with torch.no_grad():
        log_ratio = TableRunState().outputs(batch, {"logprob"})["logprob"] - batch["behaviour_logprob"]
    ratios, stopped = [], []
    for i in range(len(batch)):
        own = [float(log_ratio[i, t]) for t in range(8) if bool(batch["mask"][i, t])]
        s, a = math.exp(sum(own) / len(own)), float(batch["advantage"][i, 0])
        ratios.append(s)
        stopped.append((s > 1.04 and a > 0) or (s < 0.97 and a < 0))
    assert metrics["ratio"] == pytest.approx(sum(ratios) / 12)
    assert metrics["clip_ratio"] == pytest.approx(sum(stopped) / 12) and 0 < sum(stopped) < 12


# ------------------------------------------------------------------------------------------- loss and gradient


def plain_loss(batch: Experience, run_state: TableRunState, low: float, high: float) -> Tensor:
    """Equation 5 response by response: the ratio itself is differentiated."""
    log_ratio = run_state.outputs(batch, {"logprob"})["logprob"] - batch["behaviour_logprob"]
    losses = []
    for i in range(len(batch)):
        own = [log_ratio[i, t] for t in range(8) if bool(batch["mask"][i, t])]
        s, a = torch.exp(torch.stack(own).mean()), batch["advantage"][i, 0]
        losses.append(-torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a))
    return torch.stack(losses).mean()


def test_loss_and_gradient_are_those_of_the_responses_one_by_one() -> None:
    run_state = TableRunState(critic=False)
    batch = weighted(run_state)
    grad, metrics = gradient(WIDE, batch)
    loss = plain_loss(batch, run_state, 0.03, 0.04)
    (wanted,) = torch.autograd.grad(loss, run_state.table)
    assert torch.allclose(grad, wanted, atol=1e-12) and bool(grad.any())
    assert metrics["loss/sequence-surrogate"] == pytest.approx(float(loss.detach()), rel=1e-9)


def test_each_token_keeps_its_own_advantage() -> None:
    """The token form (section 4.3): s_i is a constant, and every token's own probability is differentiated."""
    run_state = TableRunState(critic=False)
    batch = weighted(run_state, per_token=True)
    grad, metrics = gradient(WIDE, batch)
    logprob = run_state.outputs(batch, {"logprob"})["logprob"]
    losses = []
    for i in range(len(batch)):
        steps = [t for t in range(8) if bool(batch["mask"][i, t])]
        moved = [float((logprob[i, t] - batch["behaviour_logprob"][i, t]).detach()) for t in steps]
        s, own = math.exp(sum(moved) / len(moved)), []
        for t in steps:
            ratio, a = s * torch.exp(logprob[i, t] - logprob[i, t].detach()), batch["advantage"][i, t]
            own.append(-torch.minimum(ratio * a, ratio.clamp(0.97, 1.04) * a))
        losses.append(torch.stack(own).mean())
    loss = torch.stack(losses).mean()
    (wanted,) = torch.autograd.grad(loss, run_state.table)
    assert torch.allclose(grad, wanted, atol=1e-12) and bool(grad.any())
    assert metrics["loss/sequence-surrogate"] == pytest.approx(float(loss.detach()), rel=1e-9)


def test_responses_of_one_token_are_ppos_clip() -> None:
    """Loss, gradient and what is logged are equal, to the last bit."""
    batch = weighted(TableRunState(critic=False))
    one = Experience({n: x[:, :1] if x.dim() == 2 and not n.startswith("prompt") else x for n, x in batch.data.items()})
    mine, told = gradient(WIDE, one)
    others, said = gradient(ClippedSurrogate(clip_range=0.03, clip_range_high=0.04), one)
    assert torch.allclose(mine, others, rtol=0, atol=1e-16) and bool(mine.any())
    for name in ("loss", "clip_ratio", "ratio"):
        assert told[name] == pytest.approx(said[name], rel=1e-12), name
    assert 0 < told["clip_ratio"] < 1


def test_before_anything_has_moved_it_is_grpo() -> None:
    batch = weighted(TableRunState(critic=False), noise=0.0)
    mine, told = gradient(SequenceSurrogate(), batch)
    others, said = gradient(ClippedSurrogate(aggregation="seq-mean-token-mean"), batch)
    assert torch.allclose(mine, others, atol=1e-12) and bool(mine.any())
    assert told["loss"] == pytest.approx(said["loss"]) and told["clip_ratio"] == 0


def test_padding_order_and_micro_batches_change_nothing() -> None:
    batch = weighted(TableRunState(critic=False))
    expected, logged = gradient(WIDE, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    dirty = batch.with_fields(behaviour_logprob=batch["behaviour_logprob"].masked_fill(~batch["mask"], 1e6))
    for rows, run_state in (
        (dirty, TableRunState(critic=False, garbage=float("nan"))),
        (batch.rows(order), TableRunState(critic=False)),
        (batch, TableRunState(critic=False, micro=1)),
        (batch.rows(order), TableRunState(critic=False, micro=5)),
    ):
        grad, found = gradient(WIDE, rows, run_state)
        assert torch.allclose(grad, expected, atol=1e-12)
        for key in ("loss", "clip_ratio", "ratio"):
            assert found[key] == pytest.approx(logged[key]), key


def test_tokens_that_are_left_out_are_in_no_ratio() -> None:
    """As if they were a tool's words: the ratio is that of the tokens that count."""
    batch = weighted(TableRunState(critic=False))
    gone = torch.arange(8) == 2
    some = batch.with_fields(weight=batch["weight"] * ~gone)
    less = batch.with_fields(mask=batch["mask"] & ~gone, weight=batch["weight"] * ~gone)
    mine, told = gradient(WIDE, some)
    others, said = gradient(WIDE, less)
    assert torch.allclose(mine, others, atol=1e-12) and told["ratio"] == pytest.approx(said["ratio"])


# --------------------------------------------------------------------------------------------- recipes and runs


def test_it_takes_the_place_of_an_objective_and_of_nothing_else() -> None:
    assert [p.name for p in catalogue.build("gspo").listed("credit")] == ["group-advantage"]
    mixed = catalogue.build("ppo+gspo", domain="language")
    assert [t.name for t in mixed.terms] == ["sequence-surrogate", "value-loss"]
    assert [p.name for p in mixed.listed("credit")] == [p.name for p in catalogue.build("ppo").listed("credit")]
    assert catalogue.build("gspo+cispo").terms[0].name == "clipped-importance-weight"
    plain = catalogue.build("gspo", {"clip_range": "0.1", "clip_range_high": "none"})
    assert replace(SequenceSurrogate(), clip_range=0.1, clip_range_high=None) == plain.terms[0]


@pytest.mark.parametrize(
    ("spec", "settings", "says"),
    [
        ("gspo", {"clip_range": "0"}, "sequence-surrogate.clip_range is 0.0 but must be above 0"),
        ("gspo", {"minibatch_of": "steps"}, "needs whole responses"),
        ("gspo(completions_per_prompt=1)", {}, "completions"),
    ],
)
def test_recipes_that_cannot_be(spec: str, settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        catalogue.build(spec, settings)
    assert "\n" not in str(told.value)


def test_an_environments_single_steps_have_no_response() -> None:
    with pytest.raises(UserError, match="'sequence-surrogate' needs whole responses"):
        catalogue.build("ppo+sequence-surrogate", domain="control")


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = learn("gspo", small_model, tmp_path / "run", seed=SEED)
    reached(done.final["eval/accuracy"] - done.start["eval/accuracy"], MARGIN)
    records = read_records(tmp_path / "run")
    assert max(r["clip_ratio"] for r in records if "clip_ratio" in r) > 0.2  # later minibatches of a batch
