"""RTO: the card's numbers, where it is PPO to the last bit, the shaping identity, and the DPO policy that it needs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records, timeless
from polyrl.api import train
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.rto import DPOReward, correlation, dpo_token_rewards, spread_over
from polyrl.models.language.frozen import load_frozen, trained_folder
from polyrl.models.language.pairs import FixedPairs, sequence_log_ratio
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.credit import gae
from polyrl.parts.score import at_last_step
from polyrl.pretrain import dpo_training
from polyrl.pretrain.dpo_training import dpo_policy, train_dpo
from polyrl.rollout.language import Sampling
from polyrl.run_state.language import LanguageRunState
from polyrl.runtime.seeding import generator
from polyrl.tasks.language import learned, task
from polyrl.tasks.language.dataset import DatasetTask
from run_states import TableRunState, credited, make_context, token_batch
from test_learning import learn


class DPORunState(TableRunState):
    """The table run state with a third table, the DPO policy's; `same` makes it the reference."""

    def __init__(self, *, same: bool = False, **more: Any):
        super().__init__(**more)
        self.task, self.reference_name, self.asked = None, "", 0
        shift = torch.randn(self.start.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        self.dpo = self.start if same else self.start + 2 * shift

    def frozen_logprob(self, experience: Experience, folder: str) -> Tensor:
        self.asked += 1
        logs = self.logits(experience, self.dpo).log_softmax(-1)
        found = logs.gather(-1, experience["action"][..., None])[..., 0].detach()
        return torch.where(experience["mask"], found, torch.full_like(found, self.garbage))


def rewarded(batch: Experience, run_state: DPORunState, **hyperparameters: Any) -> tuple[Experience, dict[str, float]]:
    """The batch after PPO's score stage with this part in it, and what was logged; the folder is never looked at."""
    context = make_context(run_state)
    recipe = build("ppo") + DPOReward(dpo_model="given", **hyperparameters)
    for part in recipe.stages()[1][1]:
        batch = part(batch, context)
    return batch, context.metrics


# --------------------------------------------------------------------------------------------------------- numbers

RATIO = torch.tensor([[0.2, -0.4, 1.6]], dtype=torch.float64)
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_rewards_and_advantages_of_three_tokens() -> None:
    assert dpo_token_rewards(RATIO, 0.05)[0].tolist() == pytest.approx([0.01, -0.02, 0.08])
    dense = dpo_token_rewards(RATIO, 0.05, 0.05)
    assert dense[0].tolist() == pytest.approx([0.01, -0.02, 0.05])
    kl = 0.01 * torch.tensor([[0.1, 0.0, -0.2]], dtype=torch.float64)
    reward = at_last_step(torch.tensor([1.3], dtype=torch.float64), ALL) - kl + dense
    assert reward[0].tolist() == pytest.approx([0.009, -0.02, 1.352])
    end = torch.tensor([[False, False, True]])
    found = gae(reward, torch.zeros(1, 3), end, torch.zeros_like(end), ALL, gamma=1.0, gae_lambda=0.95)
    assert found[0].tolist() == pytest.approx([1.21018, 1.2644, 1.352])


def test_token_rewards_telescope_to_the_implicit_reward() -> None:
    implicit = 0.1 * RATIO.sum()  # beta times the log-ratio of the response
    assert float(dpo_token_rewards(RATIO, 0.05).sum()) == pytest.approx(float(0.05 / 0.1 * implicit))
    assert float(implicit) == pytest.approx(0.14)


def test_shaping_identity_on_a_tree_of_two_steps() -> None:
    """beta log(pi*/ref) is r + V(s') - V(s): along every path it sums to the reward less the value of the root."""
    beta, ref = 0.5, 0.5
    terminal = torch.tensor([[1.0, 0.0], [0.2, 0.4]], dtype=torch.float64)
    inner = beta * torch.logsumexp(terminal / beta + math.log(ref), 1)
    root = beta * torch.logsumexp(inner / beta + math.log(ref), 0)
    assert inner.tolist() == pytest.approx([0.71689, 0.30993], abs=1e-5) and float(root) == pytest.approx(0.55372, 1e-5)
    first = torch.softmax(inner / beta, 0)
    second = torch.softmax(terminal / beta, 1)
    assert float(first[0]) == pytest.approx(0.69294, 1e-5)
    paths = [(a, b) for a in range(2) for b in range(2)]
    log_ratio = torch.stack([torch.stack([first[a], second[a, b]]).log() - math.log(ref) for a, b in paths])
    tokens = dpo_token_rewards(log_ratio, beta)
    assert tokens[0].tolist() == pytest.approx([0.16317, 0.28311], abs=1e-5)
    assert tokens[1].tolist() == pytest.approx([0.16317, -0.71689], abs=1e-5)
    assert torch.allclose(tokens.sum(1), terminal.flatten() - root)
    # so the optimal policy of the dense reward alone is the one of the score at the end: same order of paths
    assert tokens.sum(1).argsort().tolist() == terminal.flatten().argsort().tolist()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_spreads_differ_in_time_and_not_in_sum(clip: float) -> None:
    batch = token_batch(DPORunState(), greedy_baseline=True)
    mask = batch["mask"]
    ratio = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * mask
    dense = dpo_token_rewards(ratio, 0.05, clip)
    token, sequence, shaping = (spread_over(dense, mask, how) for how in ("token", "sequence", "shaping"))
    assert torch.allclose(token.sum(1), sequence.sum(1))  # DDPO: the same return
    assert shaping.sum(1).abs().max() < 1e-12  # RS-PPO: nothing but the score
    assert torch.allclose(shaping, token - sequence)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    assert torch.equal(sequence != 0, last & (sequence != 0)) and bool((sequence[last] != 0).all())
    assert not any(x[~mask].any() for x in (token, sequence, shaping))  # tool tokens and padding are paid nothing


# -------------------------------------------------------------------------------------------------------- the part


def gradients(run_state: DPORunState, recipe: Any) -> tuple[Experience, dict[str, Tensor]]:
    context = make_context(run_state, recipe)
    batch = credited(recipe, token_batch(run_state), context)
    recipe.optimize.run(recipe.terms, batch, context)
    return batch, {"weights": run_state.weights(), **run_state.gradients()}


@pytest.mark.parametrize("same", [True, False])
def test_without_a_difference_or_a_scale_it_is_ppo(same: bool) -> None:
    plain, wanted = gradients(DPORunState(), build("ppo"))
    run_state = DPORunState(same=same)
    scale = 0.3 if same else 0.0
    mine, found = gradients(run_state, build("rto") + DPOReward(dpo_model="given", dpo_reward_scale=scale))
    for name in ("reward", "advantage", "value_target"):
        assert torch.equal(mine[name], plain[name]), name
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    assert run_state.asked == (1 if same else 0)


def test_what_is_paid_is_what_the_tables_say() -> None:
    run_state = DPORunState(garbage=math.nan)
    plain = token_batch(DPORunState())
    batch, logged = rewarded(plain, run_state, dpo_reward_scale=0.2, dpo_reward_clip=0.15)
    for part in build("ppo").stages()[1][1]:
        plain = part(plain, make_context(run_state))
    added, clipped = batch["reward"] - plain["reward"], 0
    before = torch.cat([batch["prompt_ids"][:, -1:], batch["action"][:, :-1]], 1)
    for i, t in batch["mask"].nonzero().tolist():
        heat, a = float(batch["temperature"][i]), int(batch["action"][i, t])
        dpo, start = ((x[before[i, t]] / heat).log_softmax(0)[a] for x in (run_state.dpo, run_state.start))
        raw = 0.2 * float(dpo - start)
        clipped += abs(raw) > 0.15
        assert float(added[i, t]) == pytest.approx(max(-0.15, min(0.15, raw)), abs=1e-9)
    assert not added[~batch["mask"]].any()
    assert clipped > 0 and logged["dpo/clipped"] == pytest.approx(clipped / int(batch["mask"].sum()))
    assert logged["dpo/reward"] == pytest.approx(float(added.sum(1).mean()))
    both = torch.stack([added.sum(1), batch["score"]])
    assert logged["dpo/agreement"] == pytest.approx(float(torch.corrcoef(both)[0, 1]))


def test_order_and_twins_do_not_matter() -> None:
    run_state = DPORunState(garbage=math.nan)
    batch = token_batch(DPORunState(), greedy_baseline=True)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for how in ("token", "sequence", "shaping"):
        wanted, _ = rewarded(batch, run_state, spread=how)
        found, _ = rewarded(batch.rows(order), run_state, spread=how)
        assert torch.equal(found["reward"], wanted["reward"][order])
        twins = batch["greedy"]
        assert torch.equal(wanted["reward"][twins], at_last_step(wanted["score"], batch["mask"])[twins])


def test_correlation_needs_both_to_vary() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    assert float(correlation(x, -3 * x + 1)) == pytest.approx(-1)
    assert math.isnan(float(correlation(x, torch.ones(3))))


# -------------------------------------------------------------------------------------------------- the DPO policy

WORDS = ("abc", "de", "fghi", "jkl", "mno", "pq", "rst", "uvw")


def pairs() -> list[dict[str, Any]]:
    """The right word beats the copied one; the last pair says nothing."""
    rows: list[dict[str, Any]] = [{"prompt": f"reverse {w}=", "chosen": w[::-1], "rejected": w} for w in WORDS]
    return [*rows, {"prompt": "reverse xx=", "chosen": "xx", "rejected": "xx"}]


def trained(model: Path, **settings: Any) -> tuple[LanguagePolicy, dict[str, float]]:
    policy = LanguagePolicy.load(model)
    how = {"epochs": 6, "batch_size": 4, "lr": 1e-3, **settings}
    return policy, train_dpo(policy, pairs(), generator=generator(0, "test"), **how)


def test_dpo_training_raises_the_chosen(small_model: Path) -> None:
    policy, facts = trained(small_model)
    assert facts["pairs"] == len(WORDS) and facts["steps"] == 12
    assert facts["loss"] < math.log(2) - 0.1 and facts["in_order"] == 1
    start = LanguagePolicy.load(small_model)
    batch = FixedPairs(policy, pairs()[:-1], "the pairs").batch(range(len(WORDS)))
    with torch.no_grad():
        rho = sequence_log_ratio(*(p.evaluate(batch)["logprob"] for p in (policy, start)), batch["mask"])
    assert bool((rho[0::2] > rho[1::2]).all())
    parts, split = trained(small_model, max_tokens=30)  # memory, never meaning
    assert split["loss"] == pytest.approx(facts["loss"], rel=1e-4)
    for a, b in zip(policy.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_dpo_starts_at_log_two_and_needs_a_difference(small_model: Path) -> None:
    _, facts = trained(small_model, epochs=1, batch_size=8)
    assert facts["loss"] == pytest.approx(math.log(2), abs=1e-6)  # measured before the only step
    with pytest.raises(UserError, match="each needs two different responses"):
        train_dpo(LanguagePolicy.load(small_model), pairs()[-1:], generator=generator(0, "test"))


def test_responses_are_read_as_they_were_trained_on_end_token_included(small_model: Path, tmp_path: Path) -> None:
    """What is measured of sampled responses is what DPO's log-ratio sums, for those that ended themselves."""
    policy, _ = trained(small_model)
    policy.save(tmp_path / "run" / "model")
    run_state = LanguageRunState(task("reverse", difficulty=4), small_model, micro_batch_tokens=40)
    rows = run_state.task.rows("train", 0, 0, 12)
    batch = run_state.sample(rows, Sampling(max_tokens=4), completions_per_prompt=1, generator=generator(0, "test"))
    ratio = run_state.frozen_logprob(batch, str(tmp_path / "run")) - run_state.reference_logprob(batch)
    assert not ratio[~batch["mask"]].any() and len(run_state._frozen) == 1
    ended, cut = batch["ended"], ~batch["ended"]
    assert 2 < int(ended.sum()) < 12
    texts = batch.columns["completion"]
    told = [{"prompt": r["prompt"], "chosen": t, "rejected": t + "#"} for r, t in zip(rows, texts, strict=True)]
    read = FixedPairs(run_state.policy, told, "the responses").batch(range(12)).rows(torch.arange(0, 24, 2))
    with torch.no_grad():
        rho = sequence_log_ratio(*(p.evaluate(read)["logprob"] for p in (policy, run_state.reference)), read["mask"])
    assert torch.allclose(ratio.sum(1)[ended], rho[ended], atol=1e-4)
    assert not torch.allclose(ratio.sum(1)[cut], rho[cut], atol=1e-3)  # no end token was said there
    end = batch["action"].gather(1, (batch["present"].sum(1) - 1)[:, None])[:, 0]
    assert torch.equal(end == run_state.policy.end_ids[0], ended)
    # the last token is paid with the score, whether it is an end token or where the limit cut
    dense = spread_over(dpo_token_rewards(ratio, 1.0), batch["mask"], "sequence")
    last = (batch["present"].sum(1) - 1)[:, None]
    assert torch.allclose(dense.gather(1, last)[:, 0], ratio.sum(1))


def test_the_policy_is_made_once_of_the_pairs_of_the_reward_model(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(learned, "HELD_OUT_PAIRS", 10)
    calls: list[int] = []
    real = dpo_training.train_dpo

    def counted(policy: LanguagePolicy, rows: Any, **more: Any) -> dict[str, float]:
        calls.append(len(rows))
        return real(policy, rows, **more)

    monkeypatch.setattr(dpo_training, "train_dpo", counted)
    made = task("learned-sort", pairs=40)
    part = DPOReward()
    folder = part.prepare(made, str(taught))
    assert part.prepare(task("learned-sort", pairs=40), str(taught)) == folder and calls == [40]
    facts = json.loads((Path(folder) / "polyrl.json").read_text(encoding="utf-8"))
    assert facts["kind"] == "DPO policy" and facts["beta"] == 0.1
    assert load_frozen(folder, LanguagePolicy.load(taught)).training is False
    others = {str(dpo_policy(task("learned-sort", pairs=p), str(taught), beta=b)) for p, b in ((41, 0.1), (40, 0.2))}
    assert len(others | {folder}) == 3 and calls == [40, 41, 40]
    assert DPOReward(dpo_reward_scale=0).prepare(made, str(taught)) == "" and len(calls) == 3


def test_what_is_missing_is_said_in_a_sentence(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The task 'addition' has no preference pairs .* give --dpo-model"):
        DPOReward().prepare(task("addition"), str(small_model))
    with pytest.raises(UserError, match="only for built-in tasks: train one on your pairs with `polyrl train dpo`"):
        DPOReward().prepare(DatasetTask([{"prompt": p, "answer": "b"} for p in "abcd"]), str(small_model))
    with pytest.raises(UserError, match="holds no policy"):
        DPOReward(dpo_model=str(tmp_path)).prepare(task("addition"), str(small_model))
    assert trained_folder("some/hub-name") == "some/hub-name"
    other = LanguagePolicy.load(small_model)
    other.tokenizer.add_tokens(["#!"])
    with pytest.raises(UserError, match="other tokens than the policy"):
        load_frozen(str(small_model), other)
    with pytest.raises(UserError, match="must be at least 0"):
        build("rto(dpo_reward_scale=-1)")


def test_it_joins_methods_that_tell_tokens_apart() -> None:
    for name in ("ppo+rto", "reinforce++ + rto".replace(" ", ""), "rm-ensembles+rto", "grpo+rto(spread=sequence)"):
        assert "dpo-reward" in [p.name for p in build(name).check().parts()]
    for name in ("grpo+rto", "rloo+rto", "remax+rto"):
        with pytest.raises(UserError, match="gives all tokens of an answer the same advantage"):
            build(name).check()


# ------------------------------------------------------------------------------------------------------- whole runs


def test_a_dpo_policy_that_is_the_start_changes_no_run(small_model: Path, tmp_path: Path) -> None:
    specs = ("ppo", "rto(dpo_reward_scale=0)", f"rto(dpo_model={small_model},dpo_reward_scale=3)")
    runs = []
    for i, spec in enumerate(specs):
        learn(spec, small_model, tmp_path / str(i), samples=128)
        rows = timeless(read_records(tmp_path / str(i)))
        runs.append([{k: v for k, v in row.items() if not k.startswith("dpo/")} for row in rows])
    assert runs[0] == runs[1] == runs[2]


def test_it_learns_on_pairs_of_its_own(taught: Path, tmp_path: Path) -> None:
    done = train(
        "rto",
        task="learned-sort(pairs=400,reward_epochs=8,label_temperature=0)",
        model=taught,
        budget="samples=768",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        kl_coef=0.05,
        dpo_reward_scale=0.2,
        dpo_reward_clip=0.2,
        dpo_epochs=8,
        learning_rate=2e-3,
        options={"evaluations": 1, "tensorboard": False},
    )
    reached(done.final["eval/gold"] - done.start["eval/gold"], 0.2)  # 0.48
    rows = read_records(tmp_path / "run")[1:]
    assert all({"gold", "dpo/reward", "dpo/log_ratio", "dpo/clipped", "dpo/agreement"} <= set(r) for r in rows)
