"""Plackett-Luce DPO: orders by enumeration, DPO as the case of two, and rankings from data to update."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl
from conftest import SEED, reached, read_records
from polyrl.core.experience import Experience
from polyrl.methods.preference.plackett_luce import PlackettLuceLoss, plackett_luce_loss
from polyrl.parts.pairs import dpo_loss
from polyrl.tasks.language import task as built_in_task
from polyrl.tasks.language.rankings import pairs_of, rankings_of


def of_one(reward: Sequence[float], rank: Sequence[int] | None = None) -> float:
    """Loss of one ranking."""
    places = torch.tensor(range(len(reward)) if rank is None else rank)
    loss = plackett_luce_loss(torch.tensor(reward, dtype=torch.float64), places, torch.zeros(len(reward)).long())
    assert len(set(loss.tolist())) == 1  # every row has its ranking's
    return float(loss[0])


# --------------------------------------------------------------------------------------------------------------- loss


def test_the_orders_of_four_have_probabilities_that_sum_to_one_and_are_those_of_drawing_one_after_another() -> None:
    reward, total = [0.7, -1.2, 2.0, 0.1], 0.0
    for order in itertools.permutations(range(4)):
        rank = [order.index(i) for i in range(4)]
        chance, urn = 1.0, list(range(4))
        for i in order:
            chance *= math.exp(reward[i]) / sum(math.exp(reward[j]) for j in urn)
            urn.remove(i)
        assert of_one(reward, rank) == pytest.approx(-math.log(chance), abs=1e-12)
        total += chance
    assert total == pytest.approx(1, abs=1e-12)


def test_two_responses_are_the_loss_of_dpo_and_equal_ones_do_not_compete() -> None:
    for h in (-3.0, 0.0, 0.4, 50.0):
        assert of_one([0.1 * h, 0.0]) == pytest.approx(
            float(dpo_loss(torch.tensor(h, dtype=torch.float64), 0.1)), abs=1e-12
        )
    assert of_one([5.0, -1.0], [0, 0]) == 0
    # two that are equally good are each chosen among themselves and the worse one, never against each other
    tied = of_one([1.0, 0.5, -0.3], [0, 0, 2])
    assert tied == pytest.approx(of_one([1.0, -0.3]) + of_one([0.5, -0.3]), abs=1e-12)


def test_order_of_rows_and_a_common_shift_change_nothing_and_gradients_are_right() -> None:
    g = torch.Generator().manual_seed(SEED)
    ranking = torch.tensor([4, 4, 9, 4, 9, -1, 9, 9, -1])
    rank = torch.tensor([1, 0, 0, 2, 2, 0, 1, 2, 1])
    reward = torch.randn(9, generator=g, dtype=torch.float64)
    loss = plackett_luce_loss(reward, rank, ranking)
    assert loss[[5, 8]].tolist() == [0, 0]
    for rows in (torch.randperm(9, generator=g) for _ in range(5)):
        assert torch.allclose(plackett_luce_loss(reward[rows], rank[rows], ranking[rows]), loss[rows], atol=1e-12)
    assert torch.allclose(plackett_luce_loss(reward + 3 * (ranking == 4), rank, ranking), loss, atol=1e-12)  # Z cancels
    assert float(loss[0]) == pytest.approx(of_one(reward[[1, 0, 3]].tolist()), abs=1e-12)
    x = reward.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: plackett_luce_loss(r, rank, ranking), x)  # type: ignore[no-untyped-call]
    far = torch.tensor([1e6, -1e6, 3.0], requires_grad=True)
    plackett_luce_loss(far, torch.tensor([2, 1, 0]), torch.zeros(3).long()).sum().backward()  # type: ignore[no-untyped-call]
    assert far.grad is not None and bool(far.grad.isfinite().all())


def batch_of(ranking: Sequence[int], rank: Sequence[int], left_out: Sequence[int] = ()) -> tuple[Experience, Tensor]:
    """Rows with three tokens each, and the policy's log-probabilities of them."""
    size = len(ranking)
    g = torch.Generator().manual_seed(1)
    mask = torch.arange(3) < torch.randint(1, 4, (size, 1), generator=g)
    weight = mask.float()
    weight[list(left_out)] = 0
    fields = {"mask": mask, "weight": weight, "ranking": torch.tensor(ranking), "rank": torch.tensor(rank)}
    ref = torch.randn(size, 3, generator=g)
    return Experience({**fields, "ref_logprob": ref}), torch.randn(size, 3, generator=g)


def test_rankings_count_alike_however_long_and_what_a_selection_leaves_out_is_ranked_no_more() -> None:
    ranking, rank = [0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 1, 0, 0, 1]
    term = PlackettLuceLoss(beta=0.7)
    batch, logprob = batch_of(ranking, rank, left_out=[1, 7])
    own = 0.7 * ((logprob - batch["ref_logprob"]) * batch["mask"]).sum(1)
    wanted = (of_one(own[[0, 2, 3]].tolist()) + of_one(own[[5, 4]].tolist())) / 2  # the third has one response left
    weights = term.step_weights(batch)
    assert float(weights.sum()) == pytest.approx(1) and weights[[1, 6, 7]].tolist() == [0, 0, 0]
    assert float(term.weights(batch)[[6, 7]].abs().sum()) == 0
    assert float((term.loss({"logprob": logprob}, batch) * weights).sum()) == pytest.approx(wanted, abs=1e-6)


def test_what_is_logged_is_of_the_best_and_the_worst_and_of_all_pairs() -> None:
    batch, logprob = batch_of([3, 3, 3, 3], [1, 0, 3, 1])
    term = PlackettLuceLoss(beta=0.5)
    told = {name: x[0].item() for name, x in term.statistics({"logprob": logprob}, batch).items()}
    reward = (0.5 * ((logprob - batch["ref_logprob"]) * batch["mask"]).sum(1)).tolist()
    pairs = [(1, 0), (1, 3), (1, 2), (0, 2), (3, 2)]
    assert told["rewards/chosen"] == pytest.approx(reward[1]) and told["rewards/rejected"] == pytest.approx(reward[2])
    assert told["rewards/margins"] == pytest.approx(reward[1] - reward[2], abs=1e-6)
    assert told["rewards/accuracies"] == pytest.approx(sum(reward[i] > reward[j] for i, j in pairs) / 5)
    assert told["logps/chosen"] == pytest.approx(float((logprob * batch["mask"])[1].sum()), abs=1e-6)


# --------------------------------------------------------------------------------------------------------------- data


def test_pairs_remember_the_ranking_that_they_were_made_of() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "responses": ["a", "b", "c", "d"]},
        {"prompt": "q", "responses": ["x", "y", "z", "z"], "scores": [1, 5, 1, 0.5]},
        {"prompt": "p", "responses": ["b", "a"]},
    ]
    pairs = pairs_of(rows, "the data")
    found = [
        [(pairs[n // 2]["rejected" if n % 2 else "chosen"], rank) for n, rank in one] for one in rankings_of(pairs)
    ]
    assert found[0] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)] and found[2] == [("b", 0), ("a", 1)]
    assert sorted(found[1], key=lambda r: (r[1], r[0])) == [("y", 0), ("x", 1), ("z", 1), ("z", 3)]
    plain = [{"prompt": "p", "chosen": "a", "rejected": "b", "chosen_rank": 7}] * 2  # a column of the user's own
    assert rankings_of(plain) == [[(0, 0), (1, 1)], [(2, 0), (3, 1)]]
    plain = [{"prompt": "p", "chosen": "a", "rejected": "b", "ranked_row": 7}] * 2  # another one
    assert rankings_of(plain) == [[(0, 0), (1, 1)], [(2, 0), (3, 1)]]


def ranked_file(folder: Path, size: int) -> Path:
    """Rankings of four: the sorted digits, one and two wrong in front, and a letter besides."""
    file = folder / "ranked.jsonl"
    rows = []
    for row in built_in_task("sort-pairs").rows("train", 5, 0, size):
        answer = row["answer"]
        rows.append(
            {"prompt": row["prompt"], "responses": [answer, f"a{answer[1:]}", f"ab{answer[2:]}", f"abc{answer[3:]}"]}
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def trained(method: str, out: Path, budget: str, **more: Any) -> Any:
    return polyrl.train(method, out=out, budget=budget, quiet=True, seed=SEED, **more)


def test_on_pairs_a_run_is_dpos(taught: Path, tmp_path: Path) -> None:
    """Each pair is a ranking of two: the same batches, losses and weights, to rounding."""
    shown = {}
    for method in ("plackett-luce", "dpo"):
        trained(method, tmp_path / method, "samples=320", task="sort-pairs(difficulty=6,pairs=200)", model=taught)
        shown[method] = read_records(tmp_path / method)
    names = ["rewards/margins", "rewards/accuracies", "logps/chosen", "grad_norm/policy", "eval/margin", "eval/gold"]
    for ours, theirs in zip(shown["plackett-luce"], shown["dpo"], strict=True):
        for name in ["loss", *names]:
            assert (name in ours) == (name in theirs)
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=2e-5, abs=2e-5), name


def test_rankings_of_four_are_learned_each_response_read_once(taught: Path, tmp_path: Path) -> None:
    file = ranked_file(tmp_path, 150)
    given = {"dataset": file, "model": taught, "learning_rate": 1e-3}
    run = trained("plackett-luce", tmp_path / "run", "samples=2400", **given)
    records = read_records(tmp_path / "run")
    assert {r["rankings/size"] for r in records if "rankings/size" in r} == {4.0}
    assert run.spent["samples"] == 4 * 32 * run.spent["updates"] == 2432
    assert run.spent["reward_calls"] == 0
    reached(run.final["eval/pair_accuracy"], 0.9)
    reached(records[-1]["rewards/accuracies"], 0.9)
