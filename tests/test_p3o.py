"""P3O: the card's numbers, exact gradients by enumeration, RLOO as its limit, and that a shift of scores is nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import DIFFICULTY, SEED, TASK, reached, read_records, timeless
from polyrl import catalogue
from polyrl.api import train
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.p3o import ClipForm, PairDifference, PairwiseSurrogate, pairwise_objective
from polyrl.methods.language.rloo import leave_one_out
from polyrl.parts.credit import WhitenAdvantage
from polyrl.parts.optimize import Optimize
from polyrl.parts.pairs import partners
from polyrl.parts.score import TrajectoryKLPenalty
from polyrl.recipe import Recipe
from run_states import TableRunState, credited, make_context, token_batch
from test_learning import MARGIN, learn

FORMS: tuple[ClipForm, ...] = ("separate", "joint")


def objective(ratios: tuple[float, float], rewards: tuple[float, float], form: ClipForm) -> tuple[float, list[float]]:
    """J of one pair with eps = 0.2, and its gradient by both log-ratios."""
    logs = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    r = torch.tensor(rewards, dtype=torch.float64)
    total = pairwise_objective(logs, logs.flip(0), r - r.flip(0), 0.2, form, 10.0).mean()
    (slope,) = torch.autograd.grad(total, logs)
    return float(total.detach()), slope.tolist()


# --------------------------------------------------------------------------------------------- numbers of the card


@pytest.mark.parametrize("rewards", [(2.0, 0.0), (12.0, 10.0)])
def test_a_pair_that_moved_the_right_way_is_clipped(rewards: tuple[float, float]) -> None:
    value, slope = objective((1.3, 0.9), rewards, "separate")
    assert value == pytest.approx(-0.09)
    assert slope == pytest.approx([0.0, -1.17])  # y_1 is stopped, y_2 is live
    value, slope = objective((1.3, 0.9), rewards, "joint")
    assert value == pytest.approx(0.234)
    assert slope == [0.0, 0.0]


def test_a_pair_that_moved_the_wrong_way_is_live() -> None:
    value, slope = objective((0.9, 1.3), (2.0, 0.0), "separate")
    assert value == pytest.approx(0.0) and slope == pytest.approx([1.17, -1.17])
    value, slope = objective((0.9, 1.3), (2.0, 0.0), "joint")
    assert value == pytest.approx(-0.43024, abs=1e-5) and slope == pytest.approx([1.17, -1.17])


@pytest.mark.parametrize("form", FORMS)
def test_where_nothing_has_moved_the_gradient_is_that_of_theorem_1(form: ClipForm) -> None:
    value, slope = objective((1.0, 1.0), (2.0, 0.5), form)
    assert value == 0 and slope == pytest.approx([0.75, -0.75])
    assert objective((1.2, 0.9), (1.0, 1.0), form) == (0.0, [0.0, 0.0])
    assert objective((1.3, 0.9), (2, 0), form)[0] == objective((0.9, 1.3), (0, 2), form)[0]  # which is which


def test_token_ratios_within_the_range_make_a_response_that_is_not() -> None:
    logprob = torch.full((2, 50), 0.02, dtype=torch.float64)
    logprob[1] = 0
    batch = Experience(
        {
            "advantage": torch.tensor([[2.0], [-2.0]]).double().expand(2, 50),
            "behaviour_logprob": torch.zeros(2, 50, dtype=torch.float64),
            "group": torch.zeros(2, dtype=torch.long),
            "weight": torch.ones(2, 50, dtype=torch.float64),
        }
    )
    found = PairwiseSurrogate(clip_form="separate").statistics({"logprob": logprob}, batch)
    assert found["ratio"].tolist() == pytest.approx([math.e, 1.0]) and found["clip_ratio"].tolist() == [1.0, 0.0]
    found = PairwiseSurrogate(clip_form="joint").statistics({"logprob": logprob}, batch)
    assert found["clip_ratio"].tolist() == [1.0, 1.0]
    assert found["pairs/weight"].tolist() == pytest.approx([math.e, math.e])


@pytest.mark.parametrize("form", FORMS)
def test_the_weight_is_capped(form: ClipForm) -> None:
    own = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    gain = pairwise_objective(own, torch.tensor([900.0]).double(), torch.tensor([1.0]).double(), 0.2, form, 10.0)
    (slope,) = torch.autograd.grad(gain.sum(), own)
    assert float(slope) == pytest.approx(10 * math.exp(-1) if form == "separate" else 10 / 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampler", [None, (0.5, 0.3, 0.2)])
def test_the_expected_gradient_is_the_exact_one(form: ClipForm, sampler: tuple[float, ...] | None) -> None:
    """All pairs of three actions of a softmax, on-policy and from another policy, with the clip out of reach."""
    theta = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    logs, r = theta.log_softmax(0), torch.tensor([1.0, 0.3, -0.5], dtype=torch.float64)
    pi = logs.exp().detach()
    q = pi if sampler is None else torch.tensor(sampler, dtype=torch.float64)
    log_w = logs - q.log()
    total = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(3), repeat=2):
        for own, other in ((i, j), (j, i)):
            share = pairwise_objective(log_w[own], log_w[other], r[own] - r[other], 100.0, form, None)
            total = total + q[i] * q[j] * share / 2
    (slope,) = torch.autograd.grad(total, theta)
    exact = pi * (r - pi @ r)
    assert exact.tolist() == pytest.approx([0.28024, 0.02636, -0.30660], abs=1e-5)
    assert torch.allclose(slope, exact, atol=1e-12)


# ------------------------------------------------------------------------------------------ rows, masks, micro-batches


class GroupRunState(TableRunState):
    """Keeps rows together that belong together."""

    def micro_batches(self, experience: Experience, grouped_by: str = "", *, shared: bool = True) -> list[Tensor]:
        if not grouped_by:
            return super().micro_batches(experience)
        unit = torch.unique(experience[grouped_by], return_inverse=True)[1]
        units = torch.arange(int(unit.max()) + 1).split(self.micro or len(experience))
        return [torch.isin(unit, some).nonzero()[:, 0] for some in units]


PAIRS = torch.tensor([7, 2, 7, 5, 2, 5, 4, 9, 9, 4, 3, 3])


def batch_of_pairs(run_state: TableRunState, *, noise: float = 0.6) -> Experience:
    return token_batch(run_state, noise=noise).with_fields(group=PAIRS)


def method(form: ClipForm = "joint", **settings: Any) -> Recipe:
    recipe = catalogue.build("p3o")
    for name, value in {"clip_form": form, **settings}.items():
        recipe = recipe.set(name, value)
    return recipe.check()


def gradient(
    recipe: Recipe, batch: Experience, run_state: TableRunState, weight: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Gradient of one minibatch by the policy's table, after score, credit and select; and the metrics."""
    recipe = replace(recipe, optimize=Optimize(learning_rate=0.0, max_grad_norm=1e9, max_logprob_gap=9.0))
    context = make_context(run_state, recipe)
    experience = credited(recipe, batch, context)
    recipe.optimize.run(recipe.terms, experience if weight is None else experience.with_fields(weight=weight), context)
    return run_state.gradients()["table"], context.metrics


def test_partners() -> None:
    counted = torch.tensor([True] * 6 + [False] * 2)
    assert partners(torch.tensor([4, 1, 4, 2, 2, 2, 1, 4]), counted).tolist() == [2, -1, 0, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_are_those_of_the_pairs_one_by_one(form: ClipForm) -> None:
    run_state = GroupRunState(critic=False)
    batch, recipe = batch_of_pairs(run_state), method(form)
    grad, metrics = gradient(recipe, batch, run_state)
    run_state.table.grad = None
    experience = credited(recipe, batch, make_context(run_state))
    logprob = run_state.outputs(batch, {"logprob"})["logprob"]
    now, old, ref = (
        torch.where(batch["mask"], x, 0.0).sum(1)
        for x in (logprob, experience["behaviour_logprob"], experience["ref_logprob"])
    )
    r = torch.tensor(batch.columns["truth"], dtype=torch.float64) - 0.05 * (old - ref)
    total = torch.zeros((), dtype=torch.float64)
    for pair in torch.unique(PAIRS):
        a, b = (pair == PAIRS).nonzero()[:, 0].tolist()
        w, d = (now - old)[[a, b]].exp(), r[a] - r[b]
        fixed = w.detach()
        if form == "separate":
            clipped = w.clamp(0.8, 1.2)
            total = total + torch.minimum(d * fixed[1] * w[0], d * fixed[1] * clipped[0]) / 2
            total = total + torch.minimum(-d * fixed[0] * w[1], -d * fixed[0] * clipped[1]) / 2
        else:
            z, weight = w[0].log() - w[1].log(), d * fixed.prod()
            total = total + torch.minimum(weight * z, weight * z.clamp(-0.2, 0.2)) / 2
    (wanted,) = torch.autograd.grad(-total / 6, run_state.table)
    assert torch.allclose(grad, wanted, atol=1e-12) and bool(grad.any())
    assert metrics["loss/pairwise-surrogate"] == pytest.approx(float(-total.detach() / 6))
    assert 0 < metrics["clip_ratio"] < 1  # both sides of the clip were tried


@pytest.mark.parametrize("form", FORMS)
def test_padding_order_and_micro_batches_change_nothing(form: ClipForm) -> None:
    run_state = GroupRunState(critic=False)
    batch, recipe = batch_of_pairs(run_state), method(form)
    expected, logged = gradient(recipe, batch, run_state)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    wide = batch.with_fields(behaviour_logprob=batch["behaviour_logprob"].masked_fill(~batch["mask"], 1e6))
    for rows, other in (
        (wide, GroupRunState(critic=False, garbage=float("nan"))),
        (batch.rows(order), GroupRunState(critic=False)),
        (batch, GroupRunState(critic=False, micro=1)),
        (batch.rows(order), GroupRunState(critic=False, micro=4)),
    ):
        grad, found = gradient(recipe, rows, other)
        assert torch.allclose(grad, expected, atol=1e-12)
        for key in ("loss", "clip_ratio", "ratio", "pairs/weight"):
            assert found[key] == pytest.approx(logged[key]), key


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_lost_its_partner_teaches_nothing(form: ClipForm) -> None:
    """The others' gradient, whether the partner is gone (its reward failed) or a select part left it out."""
    run_state, recipe = GroupRunState(critic=False), method(form)
    batch = batch_of_pairs(run_state)
    expected = gradient(recipe, batch.rows((PAIRS != 7).nonzero()[:, 0]), run_state)[0]
    without = torch.arange(12) != 2
    alone = gradient(recipe, batch.rows(without.nonzero()[:, 0]), GroupRunState(critic=False))[0]
    assert torch.allclose(alone, expected, atol=1e-12)
    weight = batch["mask"].double() * without[:, None]
    left_out = gradient(recipe, batch, GroupRunState(critic=False), weight)[0]
    assert torch.allclose(left_out, expected, atol=1e-12)


# --------------------------------------------------------------------------------------------------- limit: RLOO-2


@pytest.mark.parametrize("form", FORMS)
def test_on_policy_the_first_step_is_that_of_rloo_with_two(form: ClipForm) -> None:
    batch = batch_of_pairs(GroupRunState(), noise=0.0)
    rloo = catalogue.build("rloo").set("completions_per_prompt", 2).set("kl_coef", 0.3).check()
    mine = gradient(method(form, kl_coef=0.3), batch, GroupRunState(critic=False))[0]
    assert torch.allclose(mine, gradient(rloo, batch, GroupRunState(critic=False))[0], atol=1e-12) and bool(mine.any())
    scores, group = torch.tensor([3.0, 1.0, 0.25, 0.5]), torch.tensor([0, 0, 1, 1])
    assert torch.equal(scores - scores[partners(group, group >= 0)], leave_one_out(scores, group))


def test_a_run_of_one_update_a_batch_is_a_run_of_rloo(small_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prompts_per_step": 16, "completions_per_prompt": 2, "epochs": 1, "minibatches": 1}
    for name in ("p3o", "rloo"):
        learn(name, small_model, tmp_path / name, samples=128, kl_coef=0.05, **settings)
    mine, others = (read_records(tmp_path / name) for name in ("p3o", "rloo"))
    for a, b in zip(mine, others, strict=True):
        for key in ("reward", "entropy", "grad_norm/policy", "eval/accuracy"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-3), key


# ------------------------------------------------------------------------------------------------ shifts of the score


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_of_a_prompts_scores_changes_no_advantage(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    group = torch.arange(200) // 2
    score = torch.randint(-4096, 4096, (200,), generator=g).to(dtype) / 1024  # exact also with the first shift below
    mask = torch.ones(200, 1, dtype=torch.bool)
    batch = Experience(
        {
            "score": score,
            "kl_charge": torch.rand(200, generator=g, dtype=dtype),
            "group": group,
            "greedy": torch.zeros(200, dtype=torch.bool),
            "mask": mask,
        }
    )

    def advantage(shift: Tensor) -> Tensor:
        return PairDifference()(batch.with_fields(score=score + shift[group]), make_context(TableRunState()))[
            "advantage"
        ]

    plain = advantage(torch.zeros(100, dtype=dtype))
    assert torch.equal(advantage(torch.randint(-3000, 3000, (100,), generator=g).to(dtype) / 8), plain)
    rough = advantage(3 * torch.randn(100, generator=g, dtype=dtype))
    assert float((rough - plain).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-13)
    assert not (plain + plain[partners(group, mask[:, 0])]).any()  # D_2 = -D_1 to the last bit


def hits(prompts: list[Any], completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """Letters that are right, in eighths: float32 holds them exactly, and with the shift below too."""
    return [
        sum(a == b for a, b in zip(text, right, strict=False)) / 8
        for text, right in zip(completions, answer, strict=True)
    ]


def shifted_hits(prompts: list[Any], completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    found = hits(prompts, completions, answer)
    return [(score or 0) + (sum(map(ord, str(p))) % 64 - 32) / 4 for score, p in zip(found, prompts, strict=True)]


@pytest.mark.parametrize("name", ["p3o(clip_form=joint)", "p3o(clip_form=separate)", "ppo"])
def test_a_run_does_not_notice_a_shift_and_ppo_does(name: str, small_model: Path, tmp_path: Path) -> None:
    """To the last bit: every number but the reward itself, over several epochs, minibatches and iterations."""
    told = []
    for reward in (hits, shifted_hits):
        out = tmp_path / reward.__name__
        options = {"difficulty": DIFFICULTY, "evaluations": 1, "tensorboard": False, "eval_prompts": 100}
        train(
            name,
            task=TASK,
            reward=reward,
            model=small_model,
            budget="samples=128",
            out=out,
            quiet=True,
            options=options,
            learning_rate=1e-3,
            kl_coef=0.1,
        )
        told.append([{k: v for k, v in r.items() if "reward" not in k} for r in timeless(read_records(out))])
    assert (told[0] == told[1]) == name.startswith("p3o")
    assert told[0][-1]["entropy"] != told[0][1]["entropy"]  # it went somewhere


def test_advantages_that_a_batch_scaled_and_moved_are_differences_again() -> None:
    batch, recipe = batch_of_pairs(GroupRunState()), method()
    plain = gradient(recipe, batch, GroupRunState(critic=False))[0]
    white = gradient(recipe + WhitenAdvantage(), batch, GroupRunState(critic=False))[0]
    scale = white.abs().sum() / plain.abs().sum()
    assert torch.allclose(white, scale * plain, atol=1e-10) and abs(float(scale) - 1) > 0.01


# ------------------------------------------------------------------------------------------------- parts and recipes


def test_the_kl_is_one_charge_for_a_response() -> None:
    run_state = TableRunState()
    batch = token_batch(run_state, greedy_baseline=True)
    context = make_context(run_state)
    done = credited(replace(method(kl_coef=0.25), credit=()), batch, context)
    counted = batch["mask"] & ~batch["greedy"][:, None]
    kl = torch.where(counted, batch["behaviour_logprob"] - done["ref_logprob"], 0.0).sum(1)
    assert torch.allclose(done["kl_charge"], 0.25 * kl) and bool(kl.any())
    assert torch.allclose(done["reward"].sum(1), done["score"] - 0.25 * kl)
    free = TrajectoryKLPenalty(kl_coef=0.0)
    assert "ref_logprob" not in free.required() and not free(done, context)["kl_charge"].any()


def test_it_joins_methods_and_takes_the_place_of_their_judgement() -> None:
    for other in ("ppo", "grpo", "rloo", "remax"):
        names = {p.name for p in catalogue.build(f"{other}(completions_per_prompt=2)+p3o").check().parts()}
        assert {"trajectory-kl-penalty", "pair-difference", "pairwise-surrogate"} <= names
        assert not names & {"gae", "value-loss", "token-kl-penalty", "clipped-surrogate", "policy-gradient"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("p3o(completions_per_prompt=4)", "set --completions-per-prompt 2"),
        ("p3o(completions_per_prompt=1)", "set --completions-per-prompt 2"),
        ("grpo+p3o", "set --completions-per-prompt 2"),
        ("p3o+leave-one-out", "add the part pair-difference"),
        ("p3o+token-kl-penalty", "'pair-difference' needs the field"),
    ],
)
def test_recipes_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        catalogue.build(spec).check()
    assert "\n" not in str(told.value)


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = learn("p3o", small_model, tmp_path / "run", samples=896, seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, MARGIN)
    assert max(r["clip_ratio"] for r in read_records(tmp_path / "run") if "clip_ratio" in r) > 0
