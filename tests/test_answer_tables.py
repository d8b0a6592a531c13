"""Worlds whose answers are tables: exact measures against brute force, and methods' parts against formulas by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import polyrl
from polyrl.data.pairs import numbers_of_step
from polyrl.errors import UserError
from polyrl.models.language.tables import TablePolicy, load_policy
from polyrl.pretrain.start import start_model
from polyrl.rollout.drawing import Sampling
from polyrl.rollout.tables import TableEngine
from polyrl.tasks.language.answer_tree import AnswerTree
from polyrl.tasks.language.garbage_tail import GarbageTail
from polyrl.tasks.language.tables import ENDS, AnswerTables
from polyrl.tasks.language.token_sums import TokenSums


def small_tree() -> AnswerTables:
    """Two tokens; b ends an answer, a goes on, up to three tokens; nothing is uniform."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    following = torch.tensor([[1, ENDS], [2, ENDS], [ENDS, ENDS]])
    return AnswerTables(
        tokens=("a", "b"),
        log_reference=torch.log_softmax(normal(3, 2), -1),
        features=normal(3, 2, 2),
        gold=normal(3, 2),
        following=following,
        seen=torch.empty(0, 1, dtype=torch.long),
    )


ANSWERS = [[1], [0, 1], [0, 0, 0], [0, 0, 1]]


def enumerated(tables: AnswerTables, table: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Probability, log-ratio to the start and gold of every answer, one step after another."""
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for answer in ANSWERS:
        state, logprob, reference, gold = 0, 0.0, 0.0, 0.0
        for token in answer:
            logprob += float(table[state, token])
            reference += float(tables.log_reference[state, token])
            gold += float(tables.gold[state, token])
            state = int(tables.following[state, token])
        assert state == ENDS
        for values, value in zip(found, (math.exp(logprob), logprob - reference, gold), strict=True):
            values.append(value)
    return found


def test_measures_are_those_of_all_answers_one_by_one() -> None:
    tables = small_tree()
    policy = TablePolicy(tables)
    policy.theta.data.copy_(torch.tensor([0.7, -1.1]))
    table = policy.table().detach()
    share, rho, gold = enumerated(tables, table)
    assert sum(share) == pytest.approx(1, abs=1e-12)
    assert tables.longest == 3 and tables.best == pytest.approx(max(gold), abs=1e-12)
    assert tables.kl(table) == pytest.approx(sum(p * r for p, r in zip(share, rho, strict=True)), abs=1e-12)
    assert tables.mean(table, tables.gold) == pytest.approx(
        sum(p * g for p, g in zip(share, gold, strict=True)), abs=1e-12
    )
    assert [tables.worth(a) for a in ANSWERS] == pytest.approx(gold, abs=1e-12)
    assert tables.kl(tables.log_reference) == 0


def test_no_policy_has_more_gold_at_a_kl_than_gold_at() -> None:
    """The best at a KL is ref exp(gold / t) / Z over whole answers; random policies lie below."""
    tables = small_tree()
    share, _, gold = enumerated(tables, tables.log_reference)
    for temperature in (0.3, 1.0, 4.0):
        weight = [p * math.exp(g / temperature) for p, g in zip(share, gold, strict=True)]
        best = [w / sum(weight) for w in weight]
        kl = sum(b * math.log(b / p) for b, p in zip(best, share, strict=True))
        assert tables.gold_at(kl) == pytest.approx(sum(b * g for b, g in zip(best, gold, strict=True)), abs=1e-9)
        assert tables.kl(tables.tilted(temperature)) == pytest.approx(kl, abs=1e-12)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        table = torch.log_softmax(torch.randn(3, 2, generator=random, dtype=torch.float64), -1)
        assert tables.mean(table, tables.gold) <= tables.gold_at(tables.kl(table)) + 1e-9


def test_walks_that_may_never_end_are_refused() -> None:
    tables = small_tree()
    with pytest.raises(ValueError, match="later ones"):
        replace(tables, following=torch.tensor([[0, ENDS], [2, ENDS], [ENDS, ENDS]]))


def test_samples_are_drawn_from_the_table_and_say_how_likely_they_were() -> None:
    policy = TablePolicy(small_tree())
    policy.theta.data.copy_(torch.tensor([0.4, 0.2]))
    batch = TableEngine(policy).generate(
        [[0]], Sampling(max_tokens=3), completions_per_prompt=20_000, generator=torch.Generator().manual_seed(3)
    )
    share, _, _ = enumerated(policy.tables, policy.table().detach())
    for answer, probability in zip(ANSWERS, share, strict=True):
        found = batch.columns["completion"].count(policy.decode(answer)) / 20_000
        assert found == pytest.approx(probability, abs=4 * math.sqrt(probability / 20_000))
    again = policy.evaluate(batch)["logprob"].detach()
    assert torch.allclose(again, batch["behaviour_logprob"], atol=1e-6)
    assert bool((again[~batch["mask"]] == 0).all())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_entropy_and_logprob_are_of_the_steps(temperature: float) -> None:
    policy = TablePolicy(small_tree())
    policy.theta.data.copy_(torch.tensor([0.4, -0.8]))
    how = Sampling(max_tokens=3, temperature=temperature)
    batch = TableEngine(policy).generate([[0]], how, completions_per_prompt=9, generator=torch.Generator())
    found = {k: v.detach() for k, v in policy.evaluate(batch, want={"logprob", "entropy"}).items()}
    for row, column in itertools.product(range(9), range(3)):
        if not bool(batch["mask"][row, column]):
            continue
        state = column  # only a goes on
        p = torch.softmax(policy.logits().detach()[state] / temperature, -1)
        assert float(found["logprob"][row, column]) == pytest.approx(
            math.log(p[batch["action"][row, column]]), abs=1e-6
        )
        assert float(found["entropy"][row, column]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)


# ------------------------------------------------------------------------------------------------- garbage-tail


def test_the_world_is_the_one_that_its_settings_state() -> None:
    task = GarbageTail(instance=3)
    tables = task.tables
    known = tables.gold[0, :400]
    assert float(known.mean()) == pytest.approx(0, abs=1e-12)
    assert float(known.square().mean()) == pytest.approx(1, abs=1e-12)
    assert tables.gold[0, 400:].unique().tolist() == [-2.0]
    assert float(tables.log_reference.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert tables.off_data(tables.log_reference) == pytest.approx(0.05, abs=1e-12)
    assert tables.mean(tables.log_reference, tables.gold) == pytest.approx(task.metric.lines["the start"], abs=1e-12)
    names = [tables.ids(row[side])[0] for row in task.fixed_pairs["train"] for side in ("chosen", "rejected")]
    assert len(names) == 200 and max(names) < 400
    assert all(row["chosen"] != row["rejected"] for row in task.fixed_pairs["test"])
    assert float(GarbageTail(instance=3, benign=True).tables.gold[0, 400:].std()) > 0.7


def test_labels_are_bradley_terry() -> None:
    task = GarbageTail(pairs=20_000, covered=20, actions=20, tail_mass=0, instance=1)
    gold = task.tables.gold[0]
    expected = right = 0.0
    for row in task.fixed_pairs["train"]:
        a, b = (task.tables.ids(row[side])[0] for side in ("chosen", "rejected"))
        gap = float(abs(gold[a] - gold[b]))
        expected += 1 / (1 + math.exp(-gap))
        right += float(gold[a] > gold[b])
    assert right / 20_000 == pytest.approx(expected / 20_000, abs=0.01)


def test_each_seed_has_a_world_of_its_own_unless_one_is_named() -> None:
    free, named = GarbageTail(), GarbageTail(instance=0)
    assert torch.equal(free.tables.gold, named.tables.gold)
    before = free.fixed_pairs["train"]
    free.draw_anew(5)
    named.draw_anew(5)
    assert torch.equal(free.tables.gold, GarbageTail(instance=5).tables.gold)
    assert free.fixed_pairs["train"] != before and free.fingerprint() != named.fingerprint()
    assert torch.equal(named.tables.gold, GarbageTail(instance=0).tables.gold)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"covered": 1}, "covered"),
        ({"tail_mass": 0.0}, "tail_mass"),
        ({"pairs": 0}, "pairs"),
        ({"noise": -1.0}, "noise"),
        ({"tail_gold": math.nan}, "tail_gold"),
    ],
)
def test_settings_that_make_no_world_are_told(how: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=f"has {named}="):
        GarbageTail(**how)  # type: ignore[arg-type]


def test_token_sums_are_sums_over_places() -> None:
    task = TokenSums(length=3, choices=4, instance=2)
    tables = task.tables
    assert tables.longest == task.max_tokens == 3
    assert tables.mean(tables.log_reference, tables.gold) == pytest.approx(0, abs=1e-12)
    assert tables.best == pytest.approx(float(tables.gold.max(1).values.sum()), abs=1e-12)
    assert task.correct({}, task.worked({})) and not task.correct({}, "t0 t0 t0") | task.correct({}, "t1 t1 t1")
    policy = TablePolicy(tables)
    policy.theta.data.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    table = policy.table().detach()
    by_place = (table.exp() * (table - tables.log_reference)).sum()
    assert tables.kl(table) == pytest.approx(float(by_place), abs=1e-12)
    logits = 80 * policy.theta.detach().double().view(3, 4)
    assert torch.allclose(table, torch.log_softmax(logits, -1), atol=1e-12)
    assert "off_data" not in tables.measures(table)
    for split in ("train", "test"):
        assert all(row["chosen"] != row["rejected"] for row in TokenSums(length=1, choices=2).fixed_pairs[split])
    with pytest.raises(UserError, match="has choices=1"):
        TokenSums(choices=1)


@pytest.mark.parametrize("shared", [True, False])
def test_the_tree_is_walked_from_a_start_that_knows_both_walks(shared: bool) -> None:
    task = AnswerTree(instance=1, shared=shared)
    tables, walks = task.tables, task.walks()
    assert tables.log_reference.shape == (13, 3) and tables.longest == 3
    assert tables.features.shape[2] == (21 if shared else 39)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    assert float(tables.logprob_of(tables.log_reference, every).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert tables.worths(every).sum() == 1 and task.correct({}, task.worked({}))
    assert [task.fixed_pairs["train"][0][side] for side in ("chosen", "rejected")] == [
        *map(tables.text, walks.tolist())
    ]
    known = float(tables.logprob_of(tables.log_reference, walks).exp().sum())
    assert known > 3 * 2 / 27 and tables.off_data(tables.log_reference) == pytest.approx(1 - known)
    if shared:  # after a0 a1: the constant, the last action, and each of both taken once, for the action a2
        state = int(tables.following[int(tables.following[0, 0]), 1])
        x = [1, 0, 1, 0, 1 / 3, 1 / 3, 0]
        assert (tables.features[state, 2] / 80).tolist() == pytest.approx([0] * 14 + x)
    with pytest.raises(UserError, match="it has one pair"):
        AnswerTree(pairs=2)


def test_only_shared_parameters_take_mass_from_both_walks(tmp_path: Path) -> None:
    """In tree 1 the chosen walk itself loses where prefixes share parameters, and gains where they do not."""
    for shared in (False, True):
        how = {"task": f"answer-tree(instance=1,shared={shared})", "budget": "iterations=60"}
        trained("dpo(beta=0.01)", tmp_path / "run", **how, learning_rate=2e-3, **PLAIN)
        rows = evaluations(tmp_path / "run")
        rises = rows[-1]["eval/gold"] - rows[0]["eval/gold"]
        assert rises < -0.02 if shared else rises > 0.02


@pytest.mark.parametrize("method", ["dpo(beta=0.01)", "ipo(tau=0.005)", "slic(beta=0.01)"])
def test_a_run_on_a_tree_is_a_plain_loop_over_its_one_pair(method: str, tmp_path: Path) -> None:
    losses = {
        "dpo": lambda h: torch.nn.functional.softplus(-0.01 * h),
        "ipo": lambda h: (h - 100).square(),
        "slic": lambda h: torch.relu(1 - 0.01 * h),
    }
    trained(
        method, tmp_path / "run", task="answer-tree(instance=3)", budget="iterations=40", learning_rate=2e-3, **PLAIN
    )
    found = evaluations(tmp_path / "run")[-1]
    tables = AnswerTree(instance=3).tables
    start, walks = tables.log_reference, tables.seen
    theta = torch.zeros(tables.features.shape[2], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=2e-3)
    for _ in range(40):
        adam.zero_grad()
        own = tables.logprob_of(torch.log_softmax(start + tables.features @ theta, -1), walks)
        rho = own - tables.logprob_of(start, walks)
        losses[method.partition("(")[0]](rho[0] - rho[1]).backward()
        torch.nn.utils.clip_grad_norm_([theta], 1.0)
        adam.step()
    table = torch.log_softmax(start + tables.features @ theta.detach(), -1)
    assert found["eval/off_data"] == pytest.approx(tables.off_data(table), abs=1e-4)
    assert found["eval/gold"] == pytest.approx(float(tables.logprob_of(table, walks)[0].exp()), abs=1e-4)
    assert abs(found["eval/off_data"] - tables.off_data(start)) > 0.01


def test_a_policy_over_tables_is_read_back_whole(tmp_path: Path) -> None:
    policy = TablePolicy(GarbageTail(instance=2).tables)
    policy.theta.data.normal_(generator=torch.Generator().manual_seed(0))
    policy.save(tmp_path / "m")
    again = load_policy(tmp_path / "m")
    assert isinstance(again, TablePolicy) and torch.equal(again.table(), policy.table())
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no policy over tables"):
        load_policy(tmp_path / "m")


def evaluations(folder: Path) -> list[dict[str, float]]:
    """What a run logged where it was judged, oldest first."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [row for row in rows if "eval/gold" in row]


def trained(method: str, folder: Path, **how: object) -> Tensor:
    """theta after a few steps of a method on one world."""
    asked = {"task": "garbage-tail(instance=1)", "budget": "iterations=4", "evaluations": 1, "tensorboard": False}
    polyrl.train(method, out=folder, overwrite=True, **{**asked, **how})  # type: ignore[arg-type]
    return load_file(folder / "model" / "model.safetensors")["theta"]


def by_hand(beta: float = 0.1, eta: float = 0.0, steps: int = 4, rate: float = 5e-4) -> Tensor:
    """The same steps of DPO, and of RPO's likelihood, with their gradients by hand and Adam written out."""
    task = GarbageTail(instance=1)
    tables, rows = task.tables, task.fixed_pairs["train"]
    phi, start = tables.features[0], tables.log_reference[0]
    theta = torch.zeros(phi.shape[1], dtype=torch.float64)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(steps):
        table = torch.log_softmax(start + phi @ theta, 0)
        gradient = torch.zeros_like(theta)
        for n in numbers_of_step(0, 100, 32 * step, 32):
            won, lost = (tables.ids(rows[n][side])[0] for side in ("chosen", "rejected"))
            h = (table - start)[won] - (table - start)[lost]
            # the mean of features cancels in h; it does not in the likelihood
            gradient -= beta * torch.sigmoid(-beta * h) * (phi[won] - phi[lost]) / 32
            gradient -= eta * beta * (phi[won] - table.exp() @ phi) / 32
        gradient *= min(1.0, 1 / (float(gradient.norm()) + 1e-6))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        scale = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        theta = theta - rate * first / (1 - 0.9 ** (step + 1)) / scale
    return theta.float()


PLAIN = {"schedule": "constant", "warmup": 0.0}


def test_dpo_and_rpo_take_the_steps_that_are_written_by_hand(tmp_path: Path) -> None:
    for method, eta in (("dpo", 0.0), ("rpo(eta=5)", 5.0)):
        found = trained(method, tmp_path / "run", **PLAIN)
        assert torch.allclose(found, by_hand(eta=eta), rtol=1e-4, atol=1e-8), method


def test_limits_are_dpo_to_the_bit(tmp_path: Path) -> None:
    plain = trained("dpo", tmp_path / "run", **PLAIN)
    for method in ("rpo(eta=0)", "tgdpo(alpha=0)"):
        assert torch.equal(trained(method, tmp_path / "run", **PLAIN), plain), method
    # hypo's update is another optimizer's code: rounding is its own
    hypo = trained("hypo(kl_weight=0)", tmp_path / "run", learning_rate=5e-4)
    assert torch.allclose(hypo, plain, rtol=1e-5, atol=1e-9)
    assert not torch.equal(trained("rpo(eta=5)", tmp_path / "run", **PLAIN), plain)


def test_what_is_logged_is_what_the_policy_is(tmp_path: Path) -> None:
    theta = trained("dpo", tmp_path / "run")
    task = GarbageTail(instance=1)
    policy = TablePolicy(task.tables)
    policy.theta.data.copy_(theta)
    p = policy.table().detach()[0].exp()
    final = evaluations(tmp_path / "run")[-1]
    assert final["eval/gold"] == pytest.approx(float((p * task.tables.gold[0]).sum()), abs=1e-9)
    assert final["eval/off_data"] == pytest.approx(float(p[400:].sum()), abs=1e-9)
    won = [float(p[task.tables.ids(row["chosen"])[0]].log()) for row in task.fixed_pairs["train"]]
    assert final["eval/chosen_logprob"] == pytest.approx(sum(won) / 100, abs=1e-5)
    assert final["eval/root_kl"] ** 2 == pytest.approx(final["eval/kl"], abs=1e-12)
    lost = [float(p[task.tables.ids(row["rejected"])[0]].log()) for row in task.fixed_pairs["train"]]
    assert final["eval/rejected_logprob"] == pytest.approx(sum(lost) / 100, abs=1e-5)
    assert final["eval/gold"] < final["eval/gold_at_kl"] < final["eval/best_gold"] == float(task.tables.gold.max())
    # the likeliest answers are shown, with what they are worth
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    shown = [line for line in lines if "probability" in line][-8:]
    likely = p.argsort(descending=True)[:8].tolist()
    assert [line["completion"] for line in shown] == [f"a{i}" for i in likely]
    assert [line["probability"] for line in shown] == pytest.approx(p[likely].tolist(), abs=1e-9)
    assert [line["score"] for line in shown] == pytest.approx(task.tables.gold[0, likely].tolist())
    best = int(task.tables.gold.argmax())
    assert [line["correct"] for line in shown] == [i == best for i in likely]


@pytest.mark.parametrize(
    ("method", "how", "said"),
    [
        ("ppo", {}, "trains a critic, a network"),
        ("reward-model", {}, "trains a reward model, a network"),
        ("dpo", {"lora": 4}, "leave --lora away"),
        ("dpo", {"model": "somewhere"}, "leave --model away"),
    ],
)
def test_what_needs_a_network_is_refused(method: str, how: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        trained(method, tmp_path / "run", **how)


def test_dpo_over_optimizes_here_and_a_kl_on_fresh_answers_holds_it(tmp_path: Path) -> None:
    """Gold rises and falls again while the tail gathers mass: margins of 1 and 0.3 are half of what is seen."""
    fast = {"budget": "iterations=250", "evaluations": 10, "learning_rate": 2e-3}
    finals = {}
    for method in ("dpo", "hypo"):
        trained(method, tmp_path / method, **fast, **(PLAIN if method == "dpo" else {}))
        finals[method] = [row["eval/gold"] for row in evaluations(tmp_path / method)]
    assert finals["dpo"][-1] < max(finals["dpo"]) - 1
    assert finals["hypo"][-1] > finals["dpo"][-1] + 1


def test_the_start_is_the_tables_of_the_task() -> None:
    policy = load_policy(start_model(GarbageTail(instance=4)))
    assert isinstance(policy, TablePolicy)
    assert torch.equal(policy.tables.gold, GarbageTail(instance=4).tables.gold)
    assert not bool(policy.theta.any())
