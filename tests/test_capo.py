"""CAPO: the card's numbers, brute force over the full matrices, its limits, and what it needs of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.capo import CurvatureMask, predicted_shifts
from polyrl.models.language import last_layer
from polyrl.models.language.last_layer import AdamModel, hidden_states, logit_moves, scores, unembedding
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.improve import aggregation_weights
from polyrl.parts.select import RandomDrop
from polyrl.recipe import Recipe
from polyrl.runtime.budget import Budget
from run_states import TableRunState, token_batch
from test_learning import MARGIN, learn
from tiny_models import save_model

PI = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
H = torch.tensor([[1.0, 2.0]], dtype=torch.float64)


def one(advantage: float, rate: float = 0.1, adam: AdamModel | None = None) -> tuple[float, float]:
    """Shifts of the card's token: pi, h and a = 0."""
    score = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64) - PI
    gain = torch.tensor([advantage], dtype=torch.float64)
    moves = logit_moves(gain[:, None] * score, H, adam)
    shifts = predicted_shifts(PI, score, gain, moves, rate)
    return float(shifts[0]), float(shifts[1])


# --------------------------------------------------------------------------------------------------------- numbers


def test_the_shifts_of_one_token() -> None:
    score = torch.tensor([[0.8, -0.5, -0.3]], dtype=torch.float64)
    assert logit_moves(score, H, None).tolist() == [pytest.approx([4.0, -2.5, -1.5])]
    assert one(1.0) == pytest.approx((0.5791, 0.12005), abs=5e-5)
    assert one(-1.0) == pytest.approx((0.4009, 0.12005), abs=5e-5)
    assert one(2.0) == pytest.approx((2.6728, 0.4802), abs=5e-5)
    assert one(0.0) == (0.0, 0.0) == one(1.0, rate=0.0)


@pytest.mark.parametrize("advantage", [-1.5, 0.4, 2.0])
def test_the_closed_form_of_plain_gradient_ascent(advantage: float) -> None:
    v = torch.tensor([0.8, -0.5, -0.3], dtype=torch.float64)
    vv, hh, alpha = float(v @ v), 5.0, 0.1
    f = torch.diag(PI[0]) - PI[0].outer(PI[0])
    objective = alpha * advantage**2 * vv * hh + alpha**2 / 2 * advantage**3 * hh**2 * (vv**2 - float(v @ f @ v))
    assert one(advantage) == pytest.approx((objective, alpha**2 / 2 * advantage**2 * vv**2 * hh**2))


def test_what_adam_would_do() -> None:
    model = AdamModel(torch.tensor([[0.1, 0.0]]), torch.tensor([[0.04, 0.01]]), steps=10)
    g = torch.tensor([[0.3, -0.2]])
    assert model.direction(g)[0].tolist() == pytest.approx([0.091421, -0.030447], abs=1e-6)
    assert model.m.tolist() == [pytest.approx([0.1, 0.0])]  # asking changes nothing
    empty = AdamModel(torch.zeros(1, 2), torch.zeros(1, 2))
    assert torch.equal(empty.direction(g), g)  # the authors': before it has seen anything
    seen = empty.after(g)
    assert seen.steps == 1 and torch.allclose(seen.m, 0.1 * g) and torch.allclose(seen.q, 0.001 * g.square())


def full_matrices(weights: Tensor, h: Tensor, a: int, gain: float, rate: float, adam: AdamModel) -> tuple[float, float]:
    """The same from vec W: g^T d + d^T H d / 2 and d^T F d / 2, with every matrix written out."""
    pi = (weights @ h).softmax(0)
    v = -pi
    v[a] += 1
    g = gain * v.outer(h)
    d = rate * adam.direction(g).flatten()
    fisher = torch.diag(pi) - pi.outer(pi)
    outer = h.outer(h)
    hessian = gain * torch.kron(v.outer(v) - fisher, outer)
    return float(g.flatten() @ d + d @ hessian @ d / 2), float(d @ torch.kron(v.outer(v), outer) @ d / 2)


def test_the_shifts_are_those_of_the_full_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_layer, "BLOCK", 40)  # a few tokens, and a few rows of W, at a time
    stream = torch.Generator().manual_seed(0)
    weights, h = torch.randn(7, 4, generator=stream).double(), torch.randn(9, 4, generator=stream).double()
    action, gain = torch.randint(0, 7, (9,), generator=stream), torch.randn(9, generator=stream).double()
    m, q = torch.randn(7, 4, generator=stream).double(), torch.rand(7, 4, generator=stream).double()
    weights = weights.float().double()
    for adam in (AdamModel(m, q), AdamModel(m, q, steps=3)):
        found = torch.zeros(9, 2, dtype=torch.float64)
        for part, states, probability, score in scores(h, action, weights.double()):
            moves = logit_moves(gain[part, None] * score, states, adam)
            found[part] = torch.stack(predicted_shifts(probability, score, gain[part], moves, 0.3), 1)
        for i in range(9):
            wanted = full_matrices(weights, h[i], int(action[i]), float(gain[i]), 0.3, adam)
            assert found[i].tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_sampled_fisher_is_the_fisher_on_average() -> None:
    pi, d = PI[0], torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)
    scores_ = torch.eye(3, dtype=torch.float64) - pi
    fisher = torch.diag(pi) - pi.outer(pi)
    assert float(pi @ (scores_ @ d).square()) == pytest.approx(float(d @ fisher @ d)) == pytest.approx(0.0301)
    moved = (pi.log() + 0.1 * d).softmax(0)
    kl = float((pi * (pi / moved).log()).sum())
    assert kl == pytest.approx(1.50599e-4, abs=1e-9) and kl == pytest.approx(1.505e-4, rel=1e-3)


# ------------------------------------------------------------------------------------------------ the last layer


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2", "granite", "cohere"])
def test_states_and_matrix_give_the_policys_own_probabilities(family: str, tmp_path: Path) -> None:
    policy = LanguagePolicy.load(save_model(tmp_path, family))
    batch = responses(policy)
    states, weights = hidden_states(policy, batch, max_tokens=30), unembedding(policy)
    logs = (states @ weights.T).log_softmax(-1).gather(-1, batch["action"][..., None])[..., 0]
    with torch.no_grad():
        wanted = policy.evaluate(batch)["logprob"]
    mask = batch["mask"] & ~batch["greedy"][:, None]
    assert torch.allclose(logs[mask], wanted[mask], atol=1e-4)
    assert not states[~mask].any()


def test_a_head_that_is_not_one_matrix_is_refused(tmp_path: Path) -> None:
    policy = LanguagePolicy.load(save_model(tmp_path, "gemma2"))
    with pytest.raises(UserError, match="capped logits"):
        hidden_states(policy, responses(policy), max_tokens=100)


def responses(policy: LanguagePolicy) -> Experience:
    """Five ragged responses with a tool's token in one, of which one is a greedy baseline."""
    stream = torch.Generator().manual_seed(1)
    present = torch.arange(6) < torch.tensor([6, 2, 4, 1, 5])[:, None]
    mask = present.clone()
    mask[0, 2] = False
    return Experience(
        {
            "prompt_ids": torch.randint(3, 20, (5, 3), generator=stream),
            "prompt_mask": torch.tensor(
                [[True] * 3, [False, True, True], [True] * 3, [True] * 3, [False, False, True]]
            ),
            "action": torch.randint(3, 20, (5, 6), generator=stream).masked_fill(~present, policy.pad_id),
            "present": present,
            "mask": mask,
            "temperature": torch.tensor([1.0, 0.7, 1.3, 1.0, 2.0]),
            "group": torch.zeros(5, dtype=torch.long),
            "greedy": torch.tensor([False, False, False, True, False]),
        }
    )


# -------------------------------------------------------------------------------------------------------- the part


class StateRunState(TableRunState):
    """A table whose rows are states: the state before a step is what the token before it says."""

    def unembedding(self) -> Tensor:
        return self.table.detach()

    def hidden_states(self, experience: Experience) -> Tensor:
        before = torch.cat([experience["prompt_ids"][:, -1:], experience["action"][:, :-1]], 1)
        found = self.start[before] * (experience["mask"] & ~experience["greedy"][:, None])[..., None]
        return torch.where(experience["mask"][..., None], found, torch.full_like(found, self.garbage))


def masked(run_state: StateRunState, batch: Experience, context: Context, **hyperparameters: Any) -> Tensor:
    return CurvatureMask(**hyperparameters)(batch, context)["weight"]


def ready(**changes: Any) -> tuple[StateRunState, Experience, Context]:
    run_state = StateRunState(**changes)
    batch = token_batch(run_state)
    gain = torch.linspace(-2, 2, 12, dtype=torch.float64)[:, None] * batch["mask"]
    gain[5] = 0.0
    batch = batch.with_fields(advantage=gain, weight=batch["mask"].float())
    optimizer = catalogue.build("capo", {"learning_rate": 0.01}).optimize.optimizers(run_state)  # type: ignore[attr-defined]
    return (
        run_state,
        batch,
        Context(run_state=run_state, seed=0, budget=Budget(samples=10), iteration=1, optimizer=optimizer),
    )


def test_tokens_are_kept_one_by_one_as_the_shifts_say() -> None:
    run_state, batch, context = ready()
    bounds = {"objective_bound": 0.05, "policy_bound": 0.01, "optimizer_model": "sgd"}
    weight = masked(run_state, batch, context, **bounds)
    empty = AdamModel(torch.zeros(7, 7).double(), torch.zeros(7, 7).double())
    states, rejected = run_state.hidden_states(batch), 0
    for i, t in batch["mask"].nonzero().tolist():
        gain = float(batch["advantage"][i, t])
        shifts = full_matrices(run_state.table.detach(), states[i, t], int(batch["action"][i, t]), gain, 0.01, empty)
        keep = abs(shifts[0]) < 0.05 and shifts[1] < 0.01
        assert bool(weight[i, t]) == keep
        rejected += not keep
    assert 5 < rejected < int(batch["mask"].sum()) - 5
    assert bool(weight[5][batch["mask"][5]].all())  # no advantage, no step
    told = int((batch["mask"] & (batch["advantage"] != 0)).sum())
    assert context.metrics["capo/rejected"] == pytest.approx(rejected / told)
    assert context.metrics["select/steps"] == int((weight != 0).sum())


def test_a_step_that_moves_the_policy_too_far_is_left_out_whatever_the_objective_gains() -> None:
    run_state, batch, context = ready()
    weight = masked(run_state, batch, context, objective_bound=1e9, policy_bound=1e-4, optimizer_model="sgd")
    empty = AdamModel(torch.zeros(7, 7).double(), torch.zeros(7, 7).double())
    states, rejected = run_state.hidden_states(batch), 0
    for i, t in batch["mask"].nonzero().tolist():
        gain = float(batch["advantage"][i, t])
        shift = full_matrices(run_state.table.detach(), states[i, t], int(batch["action"][i, t]), gain, 0.01, empty)[1]
        assert bool(weight[i, t]) == (shift < 1e-4)
        rejected += shift >= 1e-4
    assert 5 < rejected < int(batch["mask"].sum()) - 5


def test_a_step_that_lowers_the_objective_too_far_is_left_out_as_well() -> None:
    """The bound has two sides: where momentum goes against a token's gradient, its shift is negative."""
    run_state, batch, context = ready()
    states, rejected = run_state.hidden_states(batch), 0
    m = 20 * torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    adam = AdamModel(m, torch.ones(7, 7).double(), steps=30)
    context.tensors("curvature-mask").update(m=adam.m, q=adam.q)
    context.memory("curvature-mask")["steps"] = adam.steps
    weight = masked(run_state, batch, context, objective_bound=0.03, policy_bound=1e9)
    for i, t in (batch["mask"] & (batch["advantage"] != 0)).nonzero().tolist():
        gain = float(batch["advantage"][i, t])
        shift = full_matrices(run_state.table.detach(), states[i, t], int(batch["action"][i, t]), gain, 0.01, adam)[0]
        assert bool(weight[i, t]) == (-0.03 < shift < 0.03)
        rejected += shift <= -0.03
    assert rejected > 3


def test_the_adam_model_learns_from_what_was_kept_and_is_remembered() -> None:
    run_state, batch, context = ready()
    weight = masked(run_state, batch, context, objective_bound=0.05, policy_bound=0.01)
    gradient, states = torch.zeros(7, 7).double(), run_state.hidden_states(batch)
    for i, t in (weight != 0).nonzero().tolist():
        v = -(run_state.table.detach() @ states[i, t]).softmax(0)
        v[batch["action"][i, t]] += 1
        gradient += float(batch["advantage"][i, t]) * v.outer(states[i, t])
    gradient /= int((weight != 0).sum())
    kept = context.tensors("curvature-mask")
    assert torch.allclose(kept["m"], 0.1 * gradient, atol=1e-5) and context.memory("curvature-mask") == {"steps": 1}
    again = masked(run_state, batch, context, objective_bound=0.05, policy_bound=0.01)
    assert not torch.equal(again, weight) and context.memory("curvature-mask") == {"steps": 2}  # now it is Adam's step


def test_without_a_bound_or_a_step_everything_is_kept() -> None:
    run_state, batch, context = ready()
    wide = {"objective_bound": 1e9, "policy_bound": 1e9}
    assert torch.equal(masked(run_state, batch, context, **wide), batch["weight"])
    context.optimizer["policy"].param_groups[0]["lr"] = 0.0
    assert torch.equal(masked(run_state, batch, context), batch["weight"])
    context.optimizer = None  # nothing trains
    assert torch.equal(masked(run_state, batch, context), batch["weight"])


def test_neither_order_nor_padding_nor_blocks_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"objective_bound": 0.05, "policy_bound": 0.01}
    run_state, batch, context = ready()
    wanted = masked(run_state, batch, context, **bounds)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    run_state, batch, context = ready(garbage=float("nan"))
    monkeypatch.setattr(last_layer, "BLOCK", 50)
    assert torch.equal(masked(run_state, batch.rows(order), context, **bounds), wanted[order])


def test_losses_are_averaged_over_kept_tokens() -> None:
    weights = aggregation_weights(torch.tensor([[1.0, 0.0, 1.0]]), "seq-mean-token-mean")
    assert float((weights * torch.tensor([[1.0, 3.0, 5.0]])).sum()) == 3.0


def test_random_drop_is_a_share_and_never_everything() -> None:
    _, batch, context = ready()
    everything = batch["weight"]
    half = RandomDrop(drop_rate=0.5)(batch, context)["weight"]
    assert torch.equal(half, RandomDrop(drop_rate=0.5)(batch, context)["weight"])  # a seed is a run
    assert 0.25 < float(half.sum() / everything.sum()) < 0.75
    assert torch.equal(RandomDrop(drop_rate=0)(batch, context)["weight"], everything)
    assert torch.equal(RandomDrop(drop_rate=1)(batch, context)["weight"], everything)
    rows = RandomDrop(drop_rate=0.5, drop="rows")(batch, context)["weight"]
    assert all(torch.equal(r, e) or not r.any() for r, e in zip(rows, everything, strict=True))


# ------------------------------------------------------------------------------------------------------- whole runs


def composed(name: str) -> Recipe:
    return catalogue.build(name).check()


def test_it_joins_methods_with_one_advantage_a_response_and_one_a_token() -> None:
    for name in ("grpo+capo", "rloo+capo", "ppo+capo", "capo+random-drop"):
        assert "curvature-mask" in [p.name for p in composed(name).parts()]
    with pytest.raises(UserError, match="'curvature-mask' needs the field"):
        composed("reinforce+capo")


def test_bounds_out_of_reach_give_grpo_to_the_last_bit(small_model: Path, tmp_path: Path) -> None:
    runs = [
        learn(method, small_model, tmp_path / str(i), samples=192, minibatches=1, group_epsilon=1e-6).final
        for i, method in enumerate(("grpo", "capo(objective_bound=1e9,policy_bound=1e9)"))
    ]
    assert runs[0] == runs[1]


def test_it_learns_while_it_rejects(small_model: Path, tmp_path: Path) -> None:
    done = learn("capo(objective_bound=0.05,policy_bound=0.001)", small_model, tmp_path / "run", seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, MARGIN)
    rejected = [r["capo/rejected"] for r in read_records(tmp_path / "run")[1:]]
    assert max(rejected) > 0.002
