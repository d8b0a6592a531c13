"""KTO: the card's numbers, z0 and the loss row by row, what the reference is asked, and runs on labelled data."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl
from conftest import SEED, Command, reached, read_records
from polyrl.api import evaluate as polyrl_evaluate
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.preference.kto import KTOLoss, ReferencePoint, donors, kto_loss, mismatched
from polyrl.methods.preference.slic import SlicLoss
from polyrl.models.language.labelled import LabelledResponses
from polyrl.models.language.pairs import ReferenceLogprobCache
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Term
from polyrl.run_state.labels import auc, judged_labels
from polyrl.run_state.language import Evaluation, LanguageRunState
from polyrl.tasks.language import task as built_in_task
from polyrl.tasks.language.labelled import LabelledDataset
from run_states import VOCABULARY, TableRunState, make_context


def at(r: float, z0: float, desirable: bool, beta: float = 0.1, good: float = 1.0, bad: float = 1.0) -> float:
    numbers = (torch.tensor([x], dtype=torch.float64) for x in (r, z0))
    return float(kto_loss(*numbers, torch.tensor([desirable]), beta, good, bad))


# ------------------------------------------------------------------------------------------------ numbers of the card


def test_one_response_by_hand() -> None:
    """sigma(0.1 (2 - 0.5)) = sigma(0.15) = 0.5374298."""
    assert at(2, 0.5, True) == pytest.approx(0.4625702, abs=1e-7)
    assert at(2, 0.5, False) == pytest.approx(0.5374298, abs=1e-7)
    assert at(2, 0.5, True, good=1.5, bad=7) == pytest.approx(1.5 * 0.4625702, abs=1e-6)
    assert at(2, 0.5, False, good=7, bad=1.5) == pytest.approx(1.5 * 0.5374298, abs=1e-6)


def test_the_value_is_half_at_the_reference_point_and_saturates_on_both_sides() -> None:
    for desirable in (True, False):
        assert at(0.7, 0.7, desirable) == 0.5
        far = [at(r, 0, desirable) for r in (-1e4, 1e4)]
        assert far == ([1.0, 0.0] if desirable else [0.0, 1.0])
    r = torch.tensor([-9.0, -0.3, 1.9, 40.0], dtype=torch.float64, requires_grad=True)
    kind, z0 = torch.tensor([True, False, True, False]), torch.full((4,), 0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, z0, kind, 0.3, 1.2, 0.7), r)  # type: ignore[no-untyped-call]
    big = torch.tensor([-1e6, 1e6] * 2, requires_grad=True)
    kto_loss(big, z0.float(), kind, 0.3, 1, 1).sum().backward()  # type: ignore[no-untyped-call]
    assert big.grad is not None and bool(big.grad.isfinite().all())


# ----------------------------------------------------------------------------------------------- the reference point


def test_each_prompt_gets_the_response_of_the_nearest_row_before_it_with_another_prompt() -> None:
    assert donors([5, 6, 7, 8]) == [3, 0, 1, 2]  # as TRL shifts them
    assert donors([1, 1, 2, 1, 3, 3]) == [5, 5, 1, 2, 3, 3]
    assert donors([4, 4]) == [-1, -1] and donors([4]) == [-1] and donors([]) == []


def labelled_batch(seed: int = 0, width: int = 6, size: int = 9) -> Experience:
    """Nine responses to six prompts of unequal length, a token of a tool here and there, and five labelled true."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(1, width + 1, (size,), generator=g)
    present = torch.arange(width) < length[:, None]
    mask = present & ((torch.rand(size, width, generator=g) < 0.8) | (torch.arange(width) == 0))
    prompts = torch.tensor([[0, 3], [0, 3], [2, 3], [1, 4], [1, 4], [0, 5], [6, 6], [0, 1], [2, 3]])
    return Experience(
        {
            "prompt_ids": prompts,
            "prompt_mask": prompts > 0,
            "action": torch.randint(1, VOCABULARY, (size, width), generator=g).masked_fill(~present, 0),
            "present": present,
            "mask": mask,
            "greedy": torch.zeros(size, dtype=torch.bool),
            "temperature": torch.ones(size, dtype=torch.float64),
            "weight": mask.double(),
            "desirable": torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1], dtype=torch.bool),
            "example": torch.arange(size) + 40,
            "group": torch.arange(size),
        }
    )


DONORS = [8, 8, 1, 2, 2, 4, 5, 6, 7]


def log_ratio(run_state: TableRunState, prompt: Tensor, action: Tensor, mask: Tensor) -> Tensor:
    """log pi/ref of one response, token by token."""
    total, before = torch.zeros((), dtype=torch.float64), int(prompt[-1])
    for token, own in zip(action.tolist(), mask.tolist(), strict=True):
        if own:
            total = total + (run_state.table.log_softmax(-1) - run_state.start.log_softmax(-1))[before, token]
        before = token
    return total


def by_hand(run_state: TableRunState, batch: Experience, term: KTOLoss) -> tuple[float, Tensor, Tensor]:
    """z0 before it is clamped, the mean loss and its gradient, row by row."""
    pieces = [(batch["prompt_ids"][i], batch["action"][j], batch["mask"][j]) for i, j in enumerate(DONORS)]
    with torch.no_grad():
        z0 = float(torch.stack([log_ratio(run_state, *piece) for piece in pieces]).mean())
    losses = []
    for i, good in enumerate(batch["desirable"].tolist()):
        r = log_ratio(run_state, batch["prompt_ids"][i], batch["action"][i], batch["mask"][i])
        weight, sign = (term.desirable_weight, 1) if good else (term.undesirable_weight, -1)
        losses.append(weight - weight * torch.sigmoid(sign * term.beta * (r - max(0.0, z0))))
    loss = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(loss, run_state.table)
    return z0, loss.detach(), gradient


def taught_state(sign: float, micro: int | None = None) -> TableRunState:
    """A policy whose log-ratios are on average above 0 at responses to other prompts, or below."""
    run_state = TableRunState(critic=False, micro=micro)
    with torch.no_grad():
        step = log_ratio_gradient(run_state)
        run_state.table.copy_(run_state.start + sign * 3 * step)
    return run_state


def log_ratio_gradient(run_state: TableRunState) -> Tensor:
    batch = labelled_batch()
    with torch.enable_grad():
        pieces = [(batch["prompt_ids"][i], batch["action"][j], batch["mask"][j]) for i, j in enumerate(DONORS)]
        total = torch.stack([log_ratio(run_state, *piece) for piece in pieces]).mean()
        (found,) = torch.autograd.grad(total, run_state.table)
    return found


def improved(
    run_state: TableRunState, batch: Experience, term: Term, **settings: Any
) -> tuple[Tensor, dict[str, float]]:
    """The gradient of `Optimize.run` on the batch with z0 and reference, and what was logged."""
    optimize = Optimize(**{"learning_rate": 0.0, "max_grad_norm": 1e9, **settings})
    context = make_context(run_state)
    context.optimizer = optimize.optimizers(run_state)
    batch = ReferencePoint()(batch, context)
    batch = batch.with_fields(ref_logprob=run_state.reference_logprob(batch))
    optimize.run((term,), batch, context)
    assert run_state.table.grad is not None
    return run_state.table.grad.clone(), context.metrics


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("micro", [None, 1, 4])
def test_loss_and_gradient_are_those_of_the_responses_one_by_one(sign: float, micro: int | None) -> None:
    """z0 carries no gradient, is of the whole batch whatever the micro-batches are, and never below 0."""
    term = KTOLoss(beta=0.7, desirable_weight=1.3, undesirable_weight=0.6)
    run_state = taught_state(sign, micro)
    z0, loss, gradient = by_hand(run_state, labelled_batch(), term)
    assert sign * z0 > 0.1
    found, metrics = improved(run_state, labelled_batch(), term)
    assert metrics["reference_point/unclamped"] == pytest.approx(z0, abs=1e-12)
    assert metrics["reference_point"] == pytest.approx(max(0.0, z0), abs=1e-12)
    assert metrics["loss/kto-loss"] == pytest.approx(float(loss), rel=1e-9)
    assert torch.allclose(found, gradient, atol=1e-12)


def test_minibatches_share_one_reference_point() -> None:
    """Two steps of half the rows each, without moving: their gradients are of losses with the batch's z0."""
    run_state, batch = taught_state(1.0), labelled_batch()
    grads = []
    original = Optimize._step

    def watching(self: Optimize, *args: Any) -> None:
        assert run_state.table.grad is not None
        grads.append(run_state.table.grad.clone())
        original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimize, "_step", watching)
        improved(run_state, batch.rows(list(range(8))), KTOLoss(), minibatches=2)
        halves = (grads[0] + grads[1]) / 2
        whole, _ = improved(run_state, batch.rows(list(range(8))), KTOLoss())
    assert len(grads) == 3 and torch.allclose(halves, whole, atol=1e-12)


def test_a_small_beta_is_an_eighth_of_slic() -> None:
    """Both losses are straight lines then: KTO's slope is beta / 4 in each of two rows, SLiC's beta in each pair."""
    run_state, batch = TableRunState(critic=False), labelled_batch().rows([0, 1, 3, 4, 6, 7])
    batch = batch.with_fields(pair=torch.tensor([0, 0, 1, 1, 2, 2]), preferred=batch["desirable"])
    assert batch["desirable"].tolist() == [True, False] * 3
    kto, _ = improved(run_state, batch, KTOLoss(beta=1e-7))
    slic, _ = improved(run_state, batch, SlicLoss(beta=1e-7))
    assert torch.allclose(8 * kto, slic, rtol=1e-5, atol=1e-15) and float(slic.abs().max()) > 1e-9


def test_only_whole_sampled_rows_of_other_prompts_are_mismatched() -> None:
    batch = labelled_batch()
    counted = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)  # prompts 03 03 23 . 14 05 . . 23
    found = mismatched(batch, counted, None)
    assert found["prompt_ids"].tolist() == [[0, 3], [0, 3], [2, 3], [1, 4], [0, 5], [2, 3]]
    own = [0, 1, 2, 4, 5, 8]
    donor = [8, 8, 1, 2, 4, 5]
    for name in ("action", "present", "mask"):
        assert torch.equal(found[name], batch[name][donor]), name
    assert torch.equal(found["prompt_mask"], batch["prompt_mask"][own])
    assert "example" not in found and "desirable" not in found


def test_rows_that_are_no_samples_or_that_a_selection_left_out_count_for_nothing() -> None:
    """As if they were not there: a greedy baseline for z0, and a row of weight 0 for the loss and what is logged."""
    run_state, batch = taught_state(1.0), labelled_batch()
    greedy = torch.arange(9) == 4
    seen = ReferencePoint()(batch.with_fields(greedy=greedy), make_context(run_state))["reference_point"]
    kept = (~greedy).nonzero()[:, 0]
    alone = ReferencePoint()(batch.rows(kept), make_context(run_state))["reference_point"]
    assert torch.equal(seen[kept], alone) and float(alone.min()) > 0.1 and float(seen[4]) == 0
    left_out = batch.with_fields(weight=batch["weight"] * ~greedy[:, None])  # where another term counts the row
    assert KTOLoss().step_weights(left_out).tolist() == [1 / 8] * 4 + [0] + [1 / 8] * 4
    found = []
    for rows, weight in ((batch, batch["weight"] * ~greedy[:, None]), (batch.rows(kept), batch["weight"][kept])):
        context = make_context(run_state)
        optimize = Optimize(learning_rate=0.0, max_grad_norm=1e9)
        context.optimizer = optimize.optimizers(run_state)
        reference = run_state.reference_logprob(rows)
        point = torch.full((len(rows),), 0.3, dtype=torch.float64)
        rows = rows.with_fields(weight=weight, ref_logprob=reference, reference_point=point)
        optimize.run((KTOLoss(),), rows, context)
        assert run_state.table.grad is not None
        found.append((run_state.table.grad.clone(), context.metrics))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9)


def test_a_mismatched_response_is_cut_where_the_context_ends() -> None:
    batch = labelled_batch()
    found = mismatched(batch, torch.ones(9, dtype=torch.bool), 4)
    room = 4 - batch["prompt_mask"].sum(1)
    assert room.tolist() == [3, 3, 2, 2, 2, 3, 2, 3, 2]
    for i, j in enumerate(DONORS):
        kept = torch.arange(6) < room[i]
        assert torch.equal(found["present"][i], batch["present"][j] & kept)
        assert torch.equal(found["mask"][i], batch["mask"][j] & kept)


def test_responses_to_one_prompt_and_batches_of_one_have_no_reference_point() -> None:
    run_state = TableRunState(critic=False)
    with pytest.raises(UserError, match=r"All responses of iteration 1 answer one prompt.*--responses-per-step"):
        ReferencePoint()(labelled_batch().rows([0, 1]), make_context(run_state))
    with pytest.raises(UserError, match="responses_per_step is 1 but must be at least 2"):
        build("kto", {"responses_per_step": 1})
    with pytest.raises(UserError, match="beta is 0"):
        build("kto", {"beta": "0"})


def test_a_recipe_measures_reference_and_reference_point_by_itself() -> None:
    recipe = build("kto")
    assert {"reference-logprob", "reference-point"} <= {p.name for p in recipe.parts()}
    assert "reference" in recipe.required_models()
    with pytest.raises(UserError, match="needs the field 'desirable', which nobody gives"):
        build("dpo+kto-loss")
    assert build("dpo+kto").collect == build("kto").collect


# ------------------------------------------------------------------------------------------------------ what is logged


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("rows", [list(range(9)), [0, 2, 3], [1, 4, 5]])
def test_rewards_of_each_kind_are_means_over_that_kind(rows: list[int], micro: int | None) -> None:
    run_state = taught_state(1.0, micro)
    batch = labelled_batch().rows(rows)
    _, metrics = improved(run_state, batch, KTOLoss(beta=0.5))
    with torch.no_grad():
        r = [
            float(log_ratio(run_state, *(batch[n][i] for n in ("prompt_ids", "action", "mask"))))
            for i in range(len(rows))
        ]
    kinds = batch["desirable"].tolist()
    for name, kind in (("chosen", True), ("rejected", False)):
        of_kind = [x for x, k in zip(r, kinds, strict=True) if k == kind]
        if of_kind:
            assert metrics[f"rewards/{name}"] == pytest.approx(0.5 * sum(of_kind) / len(of_kind), abs=1e-12)
        else:
            assert f"rewards/{name}" not in metrics and f"logps/{name}" not in metrics
    assert metrics["labels/desirable"] == pytest.approx(sum(kinds) / len(kinds))
    both = len(set(kinds)) == 2
    assert ("rewards/margins" in metrics) == both
    if both:
        assert metrics["rewards/margins"] == metrics["rewards/chosen"] - metrics["rewards/rejected"]


def test_the_area_under_the_curve_is_the_share_of_couples_in_order() -> None:
    good, bad = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.3, -2.0])
    couples = [0.5 if g == b else float(g > b) for g, b in itertools.product(good.tolist(), bad.tolist())]
    assert auc(good, bad) == pytest.approx(sum(couples) / 6) == pytest.approx(4.5 / 6)


# ------------------------------------------------------------------------------------------------------------ real runs


def responses(count: int, share: float = 0.5, seed: int = 5) -> list[dict[str, Any]]:
    """Answers of sort-pairs, sorted ones labelled true and ones with a letter false: one of each prompt."""
    rows = built_in_task("sort-pairs").rows("train", seed, 0, count)
    kinds = [int((i + 1) * share) > int(i * share) for i in range(count)]
    return [
        {"prompt": r["prompt"], "completion": r["answer"] if good else f"a{r['answer'][1:]}", "label": good}
        for r, good in zip(rows, kinds, strict=True)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labelled") / "responses.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in responses(600)))
    return file


def state_of(model: Path, rows: Any = None, **more: Any) -> LanguageRunState:
    task = LabelledDataset(responses(200) if rows is None else rows)
    return LanguageRunState(task, model, evaluation=Evaluation(prompts=20), **more)


def test_labels_are_learned_and_no_reward_is_needed(data: Path, taught: Path, tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    line = ["--dataset", data, "--model", taught, "--max-tokens", 12, "--no-tensorboard", "--quiet", "--seed", SEED]
    told = polyrl("train", "kto", *line, "--budget", "samples=3200", "--evaluations", 1, "--out", run)
    assert (told.code, told.err) == (0, "")
    records = read_records(run)
    start, final = records[0], records[-1]
    assert start["eval/auc"] == 0.5 and start["eval/loss"] == pytest.approx(0.5, abs=1e-5)
    reached(final["eval/auc"], 0.9)
    assert final["eval/log_ratio_desirable"] > final["eval/log_ratio_undesirable"]
    difference = final["eval/log_ratio_desirable"] - final["eval/log_ratio_undesirable"]
    assert final["eval/margin"] == pytest.approx(difference, abs=1e-5)
    assert final["eval/loss"] < start["eval/loss"]
    assert "eval/reward" not in final and "eval/accuracy" not in final and "eval/pair_accuracy" not in final
    assert records[-1]["reward_calls"] == 0 and records[-1]["reference_point"] >= 0
    assert "eval/auc" in (run / "config.yaml").read_text()
    judged = polyrl_evaluate(run, prompts=200)
    assert judged["eval/auc"] == pytest.approx(final["eval/auc"], abs=1e-6)
    for words in (["play", run, "--prompts", 2], ["report", run, "--out", tmp_path / "page.html"]):
        told = polyrl(*words)
        assert told.code == 0, told.err


def test_pairs_are_two_labelled_responses_each(taught: Path, tmp_path: Path) -> None:
    """Given as rows of pairs or of responses, kto comes to the same model."""
    rows = built_in_task("sort-pairs").rows("train", 5, 0, 60)
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": f"a{r['answer'][1:]}"} for r in rows]
    single = [
        {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
        for p in pairs
        for side in ("chosen", "rejected")
    ]
    found = []
    for name, given in (("pairs", pairs), ("single", single)):
        found.append(
            polyrl.train(
                "kto", dataset=given, model=taught, out=tmp_path / name, budget="iterations=3", quiet=True,
                options={"evaluations": 1, "tensorboard": False, "max_tokens": 12}, responses_per_step=16,
            )
        )  # fmt: skip
    for key in ("rewards/chosen", "rewards/rejected", "loss", "reference_point/unclamped", "labels/desirable"):
        assert read_records(found[0].folder)[-1][key] == read_records(found[1].folder)[-1][key], key
    for key in ("eval/auc", "eval/margin", "eval/log_ratio_desirable"):
        assert found[0].final[key] == pytest.approx(found[1].final[key], abs=1e-5)
    assert found[0].final["eval/pair_accuracy"] >= 0.5 and "eval/pair_accuracy" not in found[1].final
    assert found[0].spent["samples"] == 48


def test_responses_to_other_prompts_are_never_answered_from_what_is_known_of_their_own(taught: Path) -> None:
    run_state = state_of(taught)
    batch = run_state.labelled("train").batch(range(12))
    context = make_context(run_state)
    clean = ReferencePoint()(batch, context)
    assert context.metrics["reference_point/unclamped"] == pytest.approx(0, abs=1e-5)  # the policy is its reference
    cache = run_state.labelled("train").reference_cache
    assert len(cache) == 0  # nor is anything of them kept
    run_state.reference_logprob(batch)
    assert len(cache) == 12
    cache._rows = {n: torch.full_like(x, -50.0) for n, x in cache._rows.items()}
    again = ReferencePoint()(batch, context)
    assert torch.equal(again["reference_point"], clean["reference_point"])
    assert float(run_state.reference_logprob(batch)[batch["present"]].max()) == -50.0


def test_the_reference_is_asked_once_for_each_response_and_a_checkpoint_keeps_it(taught: Path, tmp_path: Path) -> None:
    run_state = state_of(taught)
    asked: list[int] = []
    original = run_state.reference_of

    def counting(experience: Experience) -> Tensor:
        asked.extend(experience["example"].tolist())
        return original(experience)

    run_state.reference_of = counting  # type: ignore[method-assign]
    for numbers in ([0, 1, 2], [2, 3, 2], [0, 3]):
        batch = run_state.labelled("train").batch(numbers)
        known = run_state.reference_logprob(batch)
        assert torch.allclose(known, original(batch), atol=1e-5)
    assert sorted(asked) == [0, 1, 2, 3]
    run_state.save(tmp_path / "kept")
    other = state_of(taught)
    other.load(tmp_path / "kept")
    assert other.labelled("train").reference_cache._rows.keys() == {0, 1, 2, 3}
    assert isinstance(other.labelled("train").reference_cache, ReferenceLogprobCache)
    assert torch.equal(other.reference_logprob(batch), known)


def test_held_out_responses_are_judged_by_their_log_ratios(taught: Path) -> None:
    """Against a plain loop over rows of a policy that has moved, with z0 measured on these rows."""
    run_state = state_of(taught, responses(300, share=0.25))
    with torch.no_grad():
        for i, (_, p) in enumerate(run_state.parameters()["policy"]):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    held = run_state.labelled("test")
    metrics, shown = judged_labels(run_state, held, build("kto").terms, most=16, shown=3)
    assert len(shown) == 3 and {"prompt", "completion", "score", "label"} <= set(shown[0])
    numbers = held.some(16)
    kinds = [held.rows[n]["label"] for n in numbers]
    share = sum(row["label"] for row in held.rows) / len(held)
    assert len(numbers) == 16 and sum(kinds) == max(1, round(16 * share))
    ratios = []
    for n in numbers:
        one = held.batch([n])
        with torch.no_grad():
            logprob = run_state.policy.evaluate(one)["logprob"]
        ratios.append(float((logprob - run_state.reference_of(one)).sum()))
    good = [r for r, kind in zip(ratios, kinds, strict=True) if kind]
    bad = [r for r, kind in zip(ratios, kinds, strict=True) if not kind]
    assert metrics["eval/log_ratio_desirable"] == pytest.approx(sum(good) / len(good), abs=1e-4)
    assert metrics["eval/log_ratio_undesirable"] == pytest.approx(sum(bad) / len(bad), abs=1e-4)
    ahead = [float(g > b) for g, b in itertools.product(good, bad)]
    assert metrics["eval/auc"] == pytest.approx(sum(ahead) / len(ahead), abs=1e-6)
    context = make_context(run_state)
    z0 = float(ReferencePoint()(held.batch(numbers), context)["reference_point"][0])
    losses = [1 - 1 / (1 + math.exp(-0.1 * (1 if k else -1) * (r - z0))) for r, k in zip(ratios, kinds, strict=True)]
    assert metrics["eval/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_few_held_out_responses_have_both_kinds() -> None:
    rows = [{"prompt": f"{i}", "completion": "a", "label": i >= 97} for i in range(100)]
    held = LabelledResponses(None, rows, "rows")  # type: ignore[arg-type]
    assert held.some(100) == list(range(100))
    assert held.some(10) == [*range(9), 97] and held.some(2) == [0, 97] and held.some(1) == [0, 97]
    assert held.some(50) == [*range(48), 97, 98]


def test_kinds_that_outweigh_each_other_are_told(taught: Path) -> None:
    """3 in 10 are desirable: weighed alike, the undesirable ones push the policy off all responses."""
    rows = responses(300, share=0.3)
    for settings, told in (({}, True), ({"desirable_weight": 2.5}, False), ({"desirable_weight": 4.0}, True)):
        run_state = state_of(taught, rows)
        run_state.pair_terms = tuple(build("kto", settings).terms)
        said = " ".join(run_state.notices())
        assert ("training responses are desirable" in said) == told, (settings, said)
    for before in (1.0, 4.0):
        run_state.pair_terms = tuple(build("kto", {"desirable_weight": before}).terms)
        (sentence,) = run_state.notices()
        weight = float(sentence.rpartition("--desirable-weight ")[2].split()[0])
        run_state.pair_terms = tuple(build("kto", {"desirable_weight": weight}).terms)
        assert run_state.notices() == []
