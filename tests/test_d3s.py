"""D3S: the card's numbers, brute force over all subsets, the schedule, and its limits."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.d3s import (
    TellingTokens,
    VariedRollouts,
    most_varied,
    scheduled,
    top_share,
)
from polyrl.methods.language.grpo import group_advantage
from polyrl.parts.select import EntropyAtCollection
from polyrl.runtime.budget import Spent
from run_states import TableRunState, make_context, token_batch
from test_learning import MARGIN, learn


def variance(x: Tensor) -> float:
    return float(x.double().var(correction=0))


def best(x: Tensor, count: int) -> float:
    return variance(x[most_varied(x, count)])


# --------------------------------------------------------------------------------------------------------- numbers


def test_the_variance_of_the_best_subsets() -> None:
    one = group_advantage(torch.tensor([1.0, 0, 0, 0, 0]), torch.zeros(5).long(), "population-std", 0.0)
    assert one.tolist() == pytest.approx([2, -0.5, -0.5, -0.5, -0.5])
    assert [best(one, n) for n in (2, 3, 4, 5)] == pytest.approx([1.5625, 1.3889, 1.1719, 1], abs=5e-5)
    assert sorted(one[most_varied(one, 2)].tolist()) == pytest.approx([-0.5, 2])


@pytest.mark.parametrize(("right", "wanted"), [(20, 1.0), (10, 4 / 3), (4, 2.7778)])
def test_half_and_half_of_binary_rewards(right: int, wanted: float) -> None:
    score = (torch.arange(40) < right).float()
    advantage = group_advantage(score, torch.zeros(40).long(), "population-std", 0.0)
    assert best(advantage, 2 * min(right, 8)) == pytest.approx(wanted, abs=5e-5)


def test_across_groups_nothing_without_an_advantage_is_chosen() -> None:
    a = torch.tensor([1.0, -1, 1, -1, 1.7321, -0.5774, -0.5774, -0.5774, 0, 0, 0, 0])
    assert variance(a) == pytest.approx(0.6667, abs=5e-5)
    assert sorted(a[most_varied(a, 4)].tolist()) == pytest.approx([-1, -1, 1, 1.7321])
    assert sorted(a[most_varied(a, 6)].tolist()) == pytest.approx([-1, -1, -0.5774, 1, 1, 1.7321])
    assert [best(a, 4), best(a, 6)] == pytest.approx([1.4665, 1.1852], abs=5e-5)
    two = torch.tensor([1.7321, 1.7321, *[-0.5774] * 6])  # not the two largest: these do not vary
    assert sorted(two[most_varied(two, 2)].tolist()) == pytest.approx([-0.5774, 1.7321])


@pytest.mark.parametrize("seed", range(4))
def test_prefix_and_suffix_are_the_best_of_all_subsets(seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(8, generator=stream)
    x = x if seed % 2 else x.round()  # ties
    standard = (x - x.mean()) / x.std(correction=0)
    for n in range(1, 9):
        every = max(variance(standard[list(c)]) for c in itertools.combinations(range(8), n))
        found = most_varied(standard, n, stream)
        assert len(set(found.tolist())) == n
        assert variance(standard[found]) == pytest.approx(every, abs=1e-6)
        assert n == 1 or every >= 1 - 1e-6
        assert variance(x[most_varied(1e4 + x, n)]) == pytest.approx(variance(x[most_varied(x, n)]), abs=1e-3)


def test_equal_numbers_are_drawn() -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.tensor([1.0, *[0.0] * 9])
    zeros = [next(i for i in most_varied(x, 2, stream).tolist() if i) for _ in range(200)]
    assert set(zeros) == set(range(1, 10)) and max(zeros.count(i) for i in range(1, 10)) < 50
    kept = torch.stack([top_share(torch.ones(10), 0.3, stream) for _ in range(200)]).float().mean(0)
    assert bool((kept > 0.15).all()) and bool((kept < 0.45).all())


def test_keys_and_schedule() -> None:
    key = torch.tensor([1.7321, 1.7321, 1, 1]) * torch.tensor([0.1, 1.2, 0.5, 2.0])
    assert key.tolist() == pytest.approx([0.1732, 2.0785, 0.5, 2.0], abs=5e-5)
    assert top_share(key, 0.5).tolist() == [False, True, False, True]
    assert top_share(key, 0.01).sum() == 1 and top_share(key, 1.0).all()
    assert [(scheduled(32, 96, p), scheduled(0.1, 0.5, p)) for p in (0, 0.25, 1)] == [(32, 0.1), (48, 0.2), (96, 0.5)]


# ---------------------------------------------------------------------------------------------------------- parts


class EntropyRunState(TableRunState):
    def entropy(self, experience: Experience) -> Tensor:
        return self.outputs(experience, {"entropy"})["entropy"].detach()


def batch_of(run_state: EntropyRunState) -> Experience:
    batch = token_batch(run_state, greedy_baseline=True)
    gain = torch.linspace(-1, 2, 12, dtype=torch.float64)[:, None] * batch["mask"]
    weight = batch["mask"].double() * ~batch["greedy"][:, None]
    return batch.with_fields(advantage=gain, weight=weight, reward=gain)


def chosen(batch: Experience, run_state: EntropyRunState, **hyperparameters: object) -> Tensor:
    context = make_context(run_state)
    rows = VariedRollouts(rollouts_start=0.5, rollouts_end=0.5)(batch, context)
    rows = EntropyAtCollection()(rows, context)
    return TellingTokens(tokens_start=0.4, tokens_end=0.4)(rows, context)["weight"]


def test_tokens_come_from_the_chosen_responses_by_their_keys() -> None:
    run_state = EntropyRunState()
    batch = batch_of(run_state)
    rows = VariedRollouts(rollouts_start=0.5, rollouts_end=0.5)(batch, make_context(run_state))["weight"]
    counted = [i for i in range(12) if not batch["greedy"][i]]
    mean = {i: float(batch["advantage"][i][batch["mask"][i]].mean()) for i in counted}
    every = itertools.combinations(counted, 4)
    wanted = max(every, key=lambda some: variance(torch.tensor([mean[i] for i in some])))
    assert rows.any(1).nonzero()[:, 0].tolist() == list(wanted)
    weight = chosen(batch, run_state)
    keys = {
        (i, t): abs(float(batch["advantage"][i, t])) * float(run_state.entropy(batch)[i, t])
        for i, t in (rows != 0).nonzero().tolist()
    }
    top = sorted(keys, key=lambda at: -keys[at])[: round(0.4 * len(keys))]
    assert sorted(map(tuple, weight.nonzero().tolist())) == sorted(top)


def test_neither_order_nor_padding_matters() -> None:
    run_state = EntropyRunState()
    wanted = chosen(batch_of(run_state), run_state)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    noisy = EntropyRunState(garbage=float("nan"))
    batch = batch_of(noisy)
    blank = torch.full_like(batch["advantage"], 99.0)
    batch = batch.with_fields(advantage=torch.where(batch["mask"], batch["advantage"], blank))
    assert torch.equal(chosen(batch.rows(order), noisy), wanted[order])


def test_within_groups_each_keeps_its_share() -> None:
    run_state = EntropyRunState()
    batch = batch_of(run_state)
    part = VariedRollouts(rollouts_start=0.5, rollouts_end=0.5, within="group", of="reward")
    kept = part(batch, make_context(run_state))["weight"].any(1)
    for g in (2, 5, 7, 9):
        rows = (batch["group"] == g) & ~batch["greedy"]
        assert int(kept[rows].sum()) == max(1, round(0.5 * int(rows.sum())))


def test_the_schedule_follows_the_budget() -> None:
    run_state = EntropyRunState()
    batch, context = batch_of(run_state), make_context(run_state)
    sizes = []
    for done in (0, 500, 999):
        context.began = Spent(samples=done, iterations=done)
        sizes.append(int(VariedRollouts()(batch, context)["weight"].any(1).sum()))
    assert sizes == [2, 4, 6]  # of 8
    assert context.metrics["d3s/rollouts"] == 6 and context.metrics["d3s/useful"] == 1


def test_the_random_control_keeps_as_many() -> None:
    run_state = EntropyRunState()
    batch, context = batch_of(run_state), make_context(run_state)
    rows = VariedRollouts(rule="random")(batch, context)
    tokens = TellingTokens(token_rule="random")(rows, context)["weight"]
    assert int(rows["weight"].any(1).sum()) == 2
    assert int((tokens != 0).sum()) == max(1, round(0.2 * int((rows["weight"] != 0).sum())))


def test_entropy_is_of_the_whole_vocabulary(small_model: Path) -> None:
    from polyrl.models.language.policy import LanguagePolicy
    from polyrl.models.language.rows import as_experience

    policy = LanguagePolicy.load(small_model)
    policy.causal_lm.get_output_embeddings().weight.data.zero_()  # every token is as likely as any other
    size = policy.causal_lm.get_output_embeddings().weight.shape[0]
    with torch.no_grad():
        found = policy.evaluate(as_experience([[5, 6]], [[7, 8, 9]], pad_id=0), want={"entropy"})["entropy"]
    assert found[0].tolist() == pytest.approx([math.log(size)] * 3)


# ----------------------------------------------------------------------------------------------------- whole runs


def test_it_joins_methods_with_and_without_a_critic() -> None:
    for name in ("grpo+d3s", "rloo+d3s", "ppo+d3s", "reinforce++ +d3s".replace(" ", "")):
        parts = [p.name for p in catalogue.build(name).check().parts()]
        assert parts.index("varied-rollouts") < parts.index("entropy-at-collection") < parts.index("telling-tokens")
    assert "entropy-at-collection" not in [p.name for p in catalogue.build("d3s(token_rule=random)").check().parts()]
    with pytest.raises(UserError, match="put 'varied-rollouts' before"):
        catalogue.build("grpo+telling-tokens+varied-rollouts").check()


def test_everything_chosen_is_grpo_to_the_last_bit(small_model: Path, tmp_path: Path) -> None:
    whole = "grpo+d3s(rollouts_start=1,rollouts_end=1,tokens_start=1,tokens_end=1)"
    runs = [learn(m, small_model, tmp_path / str(i), samples=192).final for i, m in enumerate(("grpo", whole))]
    assert runs[0] == runs[1]


def test_it_learns_from_a_fraction_of_the_tokens(small_model: Path, tmp_path: Path) -> None:
    done = learn("d3s", small_model, tmp_path / "run", samples=1536, prompts_per_step=8, seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, MARGIN)
    records = read_records(tmp_path / "run")
    assert sum(r["select/steps"] for r in records[1:]) < 0.35 * records[-1]["steps"]


def test_it_runs_beside_a_critic(small_model: Path, tmp_path: Path) -> None:
    learn("ppo+d3s", small_model, tmp_path / "run", samples=128)
    last = read_records(tmp_path / "run")[-1]
    assert last["d3s/useful"] == 1 and last["select/steps"] < 0.6 * last["steps"] and last["value/error"] > 0
