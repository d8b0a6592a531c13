"""PF-PPO: the card's numbers, draws against their probabilities, what is left alone, and whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.pf_ppo import Filter, PolicyFilter, draw_probability, rank_weights, ranks
from polyrl.parts.proxies import r_squared
from run_states import TableRunState, make_context, token_batch
from test_learning import MARGIN, learn

FILTERS: tuple[Filter, ...] = ("none", "best", "best-random", "best-worst")


# --------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("filter", "wanted"), zip(FILTERS, (1.6, 5.0, 2.875, 2.0), strict=True))
def test_the_expected_reward_under_each_filter(filter: Filter, wanted: float) -> None:
    reward = torch.tensor([0.0, 5, -1, 3, 1])
    chance = draw_probability(reward, torch.zeros(5).long(), filter)
    assert float(chance @ reward) == pytest.approx(wanted)


def test_weights_are_probabilities_of_any_size() -> None:
    for filter in FILTERS:
        assert all(float(rank_weights(n, filter).sum()) == pytest.approx(1) for n in range(1, 9))
    assert rank_weights(5, "best-random").tolist() == [0.5, 0.125, 0.125, 0.125, 0.125]
    assert rank_weights(4, "best-worst").tolist() == [0.5, 0, 0, 0.5]


def test_draws_by_a_power_of_the_reward() -> None:
    chance = draw_probability(torch.tensor([1, -0.5, 0.1]), torch.tensor([3, 4, 4]), "power", 2.0)
    assert chance.tolist() == pytest.approx([0.7937, 0.1984, 0.0079], abs=5e-5)
    assert draw_probability(torch.zeros(4), torch.zeros(4), "power").tolist() == [0.25] * 4


def test_ranks_are_within_a_prompt() -> None:
    reward, group = torch.tensor([0.6, 0.9, 0.1, 0.2]), torch.tensor([8, 3, 8, 3])
    rank, size = ranks(reward, group)
    assert rank.tolist() == [0, 0, 1, 1] and size.tolist() == [2] * 4
    assert draw_probability(reward, group, "best-worst").tolist() == [0.25] * 4  # a batch-wide one would take two
    assert draw_probability(reward, torch.zeros(4), "best-worst").tolist() == [0, 0.5, 0.5, 0]


def test_ties_are_drawn_and_never_the_same_answer_twice() -> None:
    stream, seen = torch.Generator().manual_seed(0), torch.zeros(5)
    for _ in range(300):
        chance = draw_probability(torch.ones(5), torch.zeros(5).long(), "best-worst", generator=stream)
        assert int((chance > 0).sum()) == 2
        seen += chance
    assert bool(((seen / 300 - 0.2).abs() < 0.06).all())


def test_r_squared() -> None:
    line = torch.arange(4.0), torch.tensor([0.0, 0, 1, 1])
    assert r_squared(*line) == pytest.approx(0.8)
    reward, gold = torch.tensor([-2.0, -1, 0, 0, 1, 2]), torch.tensor([0.0, 0, 1, 0, 1, 1])
    assert r_squared(reward, gold) == pytest.approx(0.6)
    ends = torch.tensor([0, 1, 4, 5])
    assert r_squared(reward[ends], gold[ends]) == pytest.approx(0.9)  # without the unreliable middle
    many = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    noisy = many + 3 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert float(r_squared(many, noisy) or 0) > 0.8 > 0.3 > float(r_squared(many, noisy, bins=1000) or 1)
    assert r_squared(torch.ones(5), torch.arange(5.0)) is None is r_squared(torch.arange(5.0), torch.ones(5))


# --------------------------------------------------------------------------------------------------------- the part


class GoldRunState(TableRunState):
    def measures(self, experience: Experience) -> dict[str, Tensor]:
        return {"gold": torch.tensor(experience.columns["truth"])}


def batch_of(run_state: TableRunState) -> Experience:
    batch = token_batch(run_state, greedy_baseline=True)
    score = torch.tensor(batch.columns["truth"])
    weight = batch["mask"].double() * ~batch["greedy"][:, None]
    return batch.with_fields(score=score, weight=weight, advantage=score[:, None] * batch["mask"])


def test_items_are_drawn_by_their_probability() -> None:
    run_state = GoldRunState()
    batch, context = batch_of(run_state), make_context(run_state)
    batch = batch.with_fields(number=torch.arange(12))
    rows = (~batch["greedy"]).nonzero()[:, 0]
    wanted = torch.zeros(12)
    wanted[rows] = draw_probability(batch["score"][rows], batch["group"][rows], "best-random").float()
    seen = torch.zeros(12)
    for i in range(400):
        context.iteration = i
        drawn = PolicyFilter()(batch, context)
        trained = drawn["weight"].any(1)
        assert int(trained.sum()) == len(rows) and len(drawn) == 12  # as many as there were; twins stay
        seen += torch.bincount(drawn["number"][trained], minlength=12)
    assert bool(((seen / seen.sum() - wanted).abs() < 0.02).all())
    assert context.metrics["filter/score"] > float(batch["score"][rows].mean())
    assert context.metrics["filter/r2"] == pytest.approx(1.0)  # here the reward is the gold
    for name in ("score", "advantage", "weight", "mask", "behaviour_logprob"):
        assert torch.equal(drawn[name], batch[name][drawn["number"]])
    assert drawn.columns["truth"] == [batch.columns["truth"][i] for i in drawn["number"].tolist()]


@pytest.mark.parametrize(("filter", "most"), [("best", 1), ("best-random", 2), ("best-worst", 2), ("none", 9)])
def test_kept_answers_are_kept_once(filter: Filter, most: int) -> None:
    run_state = GoldRunState()
    batch = batch_of(run_state)
    kept = PolicyFilter(filter=filter, draw="keep")(batch, make_context(run_state))
    weight = kept["weight"]
    assert len(kept) == 12
    for g in (2, 5, 7, 9):
        rows = ((batch["group"] == g) & ~batch["greedy"]).nonzero()[:, 0]
        left = rows[weight[rows].any(1)]
        assert len(left) == min(most, len(rows))
        assert int(rows[batch["score"][rows].argmax()]) in left.tolist()
        if filter == "best-worst":
            assert int(rows[batch["score"][rows].argmin()]) in left.tolist()
        assert torch.equal(weight[left], batch["weight"][left])


def test_answers_without_a_score_are_left_as_they_are() -> None:
    run_state = GoldRunState()
    batch = batch_of(run_state)
    finished = torch.arange(12) % 2 == 0
    broken = torch.where(finished, batch["score"], torch.full_like(batch["score"], torch.nan))
    batch = batch.with_fields(finished=finished, score=broken, number=torch.arange(12))
    drawn = PolicyFilter(filter="best")(batch, make_context(run_state))
    left = (~finished).nonzero()[:, 0].tolist()
    assert all(drawn["number"].tolist().count(i) == 1 for i in left)
    assert not drawn["score"][drawn["weight"].any(1) & drawn["finished"]].isnan().any()
    none = batch.with_fields(finished=torch.zeros(12, dtype=torch.bool))
    assert torch.equal(PolicyFilter()(none, make_context(run_state))["number"], torch.arange(12))


def test_the_order_of_rows_changes_no_probability() -> None:
    batch = batch_of(TableRunState())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    for filter in FILTERS:
        one = draw_probability(batch["score"], batch["group"], filter)
        assert torch.allclose(draw_probability(batch["score"][order], batch["group"][order], filter), one[order])


# ------------------------------------------------------------------------------------------------------- whole runs


def test_it_joins_methods_that_have_groups() -> None:
    for name in ("grpo+pf", "rloo+pf", "ppo(completions_per_prompt=5)+pf-ppo", "ppo+pf(filter=power)"):
        assert "policy-filter" in [p.name for p in catalogue.build(name).check().parts()]
    with pytest.raises(UserError, match="only one is sampled; set --completions-per-prompt"):
        catalogue.build("ppo+pf").check()
    with pytest.raises(UserError, match="filter"):
        catalogue.build("pf-ppo(filter=worst)")


def test_keeping_everything_is_ppo_to_the_last_bit(small_model: Path, tmp_path: Path) -> None:
    base = "ppo(prompts_per_step=8,completions_per_prompt=4)"
    methods = (base, f"{base}+pf(filter=none,draw=keep)")
    runs = [learn(m, small_model, tmp_path / str(i), samples=96).final for i, m in enumerate(methods)]
    assert runs[0] == runs[1]


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = learn("pf-ppo(value_clip_range=none)", small_model, tmp_path / "run", seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, MARGIN)
    rows = read_records(tmp_path / "run")[1:]
    reached(sum(r["filter/score"] - r["reward"] for r in rows) / len(rows), 0.03)  # the best are drawn more often
