"""LOOP: the card's numbers, PPO and RLOO as limits, masking, the office, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.loop_agents import (
    DropSmallAdvantages,
    Level,
    RatioSurrogate,
    clipped_gain,
    unit_log_ratios,
    unit_weights,
    units_of,
)
from polyrl.methods.language.rloo import leave_one_out
from polyrl.parts.improve import ClippedSurrogate, PolicyGradient
from polyrl.parts.tools import turns
from polyrl.tasks.language import task
from polyrl.tasks.language.base import replayed, table_rows, tool_spans
from polyrl.tasks.language.office import TURN_LIMIT, Office, OfficeTask, checks
from run_states import TableRunState, credited, make_context, token_batch
from test_learning import MARGIN, learn

LEVELS: tuple[Level, ...] = ("token", "turn", "trajectory")


# --------------------------------------------------------------------------------------------------------- numbers


def test_leave_one_out_of_six_and_the_filter() -> None:
    score = torch.tensor([1, 0.5, 0.5, 0, 0, 1])
    advantage = leave_one_out(score, torch.zeros(6, dtype=torch.long))
    assert (
        advantage.tolist() == pytest.approx([0.6, 0, 0, -0.6, -0.6, 0.6], abs=1e-6)
        and abs(float(advantage.sum())) < 1e-6
    )
    mask = torch.ones(6, 3, dtype=torch.bool)
    batch = Experience({"advantage": advantage[:, None] * mask, "weight": mask.float()})
    context = make_context(None)
    done = DropSmallAdvantages()(batch, context)
    assert done["weight"][:, 0].tolist() == [1, 0, 0, 1, 1, 1] and done["kept_share"].tolist() == pytest.approx(
        [4 / 6] * 6
    )
    assert context.metrics["rollouts/kept"] == pytest.approx(4 / 6) and context.metrics["select/steps"] == 12
    pair = leave_one_out(torch.tensor([0.9, 0.2]), torch.zeros(2, dtype=torch.long))
    assert pair.tolist() == pytest.approx([0.7, -0.7])


def test_the_bound_on_the_gain() -> None:
    far, near, eps = torch.tensor(9.0), torch.tensor(0.1), 0.1
    assert float(clipped_gain(far, torch.tensor(1.0), eps, eps)) == pytest.approx(1.1)
    assert float(clipped_gain(near, torch.tensor(-1.0), eps, eps)) == pytest.approx(-0.9)
    assert RatioSurrogate(log_symmetric=True)._low == pytest.approx(1 - 0.90909, abs=1e-5)
    ratio, advantage = torch.rand(200) * 2, torch.randn(200)
    bound = advantage + eps * advantage.abs()
    assert torch.allclose(clipped_gain(ratio, advantage, eps, eps), torch.minimum(ratio * advantage, bound))


def one_row(ratios: Tensor, advantage: float, turn: list[int]) -> tuple[Experience, dict[str, Tensor]]:
    width = len(ratios)
    logprob = ratios.log()[None].requires_grad_()
    row = Experience(
        {
            "advantage": torch.full((1, width), advantage),
            "behaviour_logprob": torch.zeros(1, width),
            "weight": torch.ones(1, width),
            "turn": torch.tensor([turn]),
            "kept_share": torch.ones(1),
        }
    )
    return row, {"logprob": logprob}


@pytest.mark.parametrize(
    ("level", "gain", "live"), [("token", 1.0, [0, 1, 1]), ("turn", 1.0, [0, 0, 1]), ("trajectory", 1.08, [1, 1, 1])]
)
def test_three_tokens_in_two_turns(level: Level, gain: float, live: list[int]) -> None:
    row, outputs = one_row(torch.tensor([1.2, 1.0, 0.9]), 1.0, [0, 0, 1])
    term = RatioSurrogate(ratio_level=level)
    loss = (term.loss(outputs, row) * term.step_weights(row)).sum()
    assert float(-loss.detach()) == pytest.approx(gain)
    loss.backward()  # type: ignore[no-untyped-call]
    assert (outputs["logprob"].grad[0] != 0).long().tolist() == live
    stopped = term.statistics(outputs, row)["clip_ratio"][0].tolist()
    assert stopped == [1 - x for x in live]


@pytest.mark.parametrize(("tokens", "share"), [(1, 9.4e-7), (20, 0.1433), (200, 0.3681)])
def test_how_often_units_leave_the_clip_range(tokens: int, share: float) -> None:
    exact = 0.5 * math.erfc(math.log(1.1) / (0.02 * math.sqrt(tokens)) / math.sqrt(2))
    assert exact == pytest.approx(share, rel=0.05)
    if tokens > 1:
        log_ratio = 0.02 * torch.randn(4000, tokens, generator=torch.Generator().manual_seed(0))
        whole = units_of("trajectory", log_ratio)
        found = unit_log_ratios(log_ratio, torch.ones_like(log_ratio).bool(), whole)[:, 0].exp() > 1.1
        assert float(found.float().mean()) == pytest.approx(share, abs=0.025)


# ------------------------------------------------------------------------------------- brute force, limits, masking


def loop_batch(run_state: TableRunState, noise: float = 0.3) -> Experience:
    batch = token_batch(run_state, noise=noise)
    recipe = catalogue.build("loop-agents(ratio_level=turn)")
    return credited(recipe, batch, make_context(run_state))


def gradient(term: Any, batch: Experience, run_state: TableRunState) -> Tensor:
    recipe = replace(
        catalogue.build("loop-agents", {"epochs": 1, "minibatches": 1, "max_grad_norm": 1e9}), terms=(term,)
    )
    recipe = recipe.set("learning_rate", 0.0)
    recipe.optimize.run(recipe.terms, batch, make_context(run_state, recipe))  # type: ignore[attr-defined]
    return run_state.gradients()["table"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_objective_is_its_formula(level: Level) -> None:
    run_state = TableRunState()
    batch = loop_batch(run_state)
    outputs = {name: x.detach() for name, x in run_state.outputs(batch, {"logprob"}).items()}
    term = RatioSurrogate(ratio_level=level)
    found = -float((term.loss(outputs, batch) * term.step_weights(batch)).sum())
    total = 0.0
    for i in range(len(batch)):
        where = [t for t in range(batch["mask"].shape[1]) if batch["weight"][i, t]]
        units: dict[int, float] = {}
        for t in where:
            key = {"token": t, "turn": int(batch["turn"][i, t]), "trajectory": 0}[level]
            moved = float(outputs["logprob"][i, t] - batch["behaviour_logprob"][i, t])
            units[key] = units.get(key, 0.0) + moved
        if where:
            a = float(batch["advantage"][i, where[0]])
            total += sum(min(math.exp(u) * a, a + 0.1 * abs(a)) for u in units.values()) / len(units)
    assert found == pytest.approx(total / len(batch), rel=1e-5)  # over all rollouts, dropped ones too


def test_per_token_it_is_ppos_surrogate_exactly() -> None:
    run_state = TableRunState()
    batch = loop_batch(run_state)
    mine = gradient(RatioSurrogate(nominal=False), batch, run_state)
    theirs = gradient(ClippedSurrogate(clip_range=0.1, aggregation="seq-mean-token-mean"), batch, TableRunState())
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-12) and bool(mine.any())


@pytest.mark.parametrize("level", LEVELS)
def test_where_nothing_has_moved_it_is_reinforce(level: Level) -> None:
    """theta = psi: J = A, and a trajectory's gradient is |a| times a token mean's (check 5)."""
    run_state = TableRunState()
    batch = loop_batch(run_state, noise=0.0)
    mine = gradient(RatioSurrogate(ratio_level=level, nominal=False), batch, run_state)
    loss = RatioSurrogate(ratio_level=level).loss(run_state.outputs(batch, {"logprob"}), batch)
    assert loss.detach() == pytest.approx(-batch["advantage"], abs=1e-6)
    how = {"token": "seq-mean-token-mean", "trajectory": "seq-mean-token-sum"}
    if level != "turn":
        assert torch.allclose(mine, gradient(PolicyGradient(aggregation=how[level]), batch, TableRunState()), atol=1e-8)


@pytest.mark.parametrize("level", LEVELS)
def test_only_what_the_agent_wrote_counts_in_any_order_and_any_micro_batch(level: Level) -> None:
    term = RatioSurrogate(ratio_level=level)
    batch = loop_batch(TableRunState())
    wanted = gradient(term, batch, TableRunState())
    assert torch.allclose(gradient(term, batch, TableRunState(garbage=37.0)), wanted)  # tool tokens and padding
    assert torch.allclose(gradient(term, batch, TableRunState(micro=2)), wanted)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(gradient(term, batch.rows(order), TableRunState()), wanted)
    wide = {n: torch.nn.functional.pad(x, (0, 3)) for n, x in batch.data.items() if x.shape == batch["mask"].shape}
    assert torch.allclose(gradient(term, batch.with_fields(**wide), TableRunState()), wanted)


def test_ratios_that_ran_away_leave_no_nan() -> None:
    row, outputs = one_row(torch.tensor([1e30, 1e30, 1e30]), 1.0, [0, 0, 0])
    term = RatioSurrogate(ratio_level="trajectory")
    (term.loss(outputs, row) * term.step_weights(row)).sum().backward()  # type: ignore[no-untyped-call]
    assert not outputs["logprob"].grad.any()


def test_weights_of_units() -> None:
    weight = torch.tensor([[1.0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    found = unit_weights(weight, turns(weight.bool(), torch.ones(2, 6).bool()))
    assert found.tolist() == [[0.25, 0.25, 0, 0.25, 0.25, 0], [0] * 6]
    uneven = torch.tensor([[1.0, 0, 1, 1, 1]])
    assert unit_weights(uneven, torch.tensor([[0, 0, 1, 1, 1]]))[0].tolist() == pytest.approx(
        [1 / 2, 0, 1 / 6, 1 / 6, 1 / 6]
    )


def test_a_batch_of_half_use_makes_half_a_step() -> None:
    term, batch = RatioSurrogate(), loop_batch(TableRunState())
    half = batch.with_fields(kept_share=batch["kept_share"] / 2)
    assert torch.allclose(2 * gradient(term, half, TableRunState()), gradient(term, batch, TableRunState()))


# --------------------------------------------------------------------------------------------------- recipes, inputs


def test_compositions() -> None:
    names = [p.name for p in catalogue.build("grpo+loop").check().parts()]
    assert {"leave-one-out", "drop-small-advantages", "ratio-surrogate"} <= set(
        names
    ) and "group-advantage" not in names
    assert "turns" in {p.name for p in catalogue.build("loop-agents(ratio_level=turn)").check().parts()}
    assert "turns" not in names
    rw_norm = catalogue.build("loop-agents+group-advantage(scale=population-std)").check()
    assert "leave-one-out" not in {p.name for p in rw_norm.parts()}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ppo+loop-agents", "set --completions-per-prompt 4"),
        ("grpo+ratio-surrogate", "'drop-small-advantages' would give it"),
        ("loop-agents(ratio_level=word)", "ratio_level"),
        ("loop-agents(clip_range=0)", "above 0"),
    ],
)
def test_recipes_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        catalogue.build(spec).check()
    assert "\n" not in str(told.value)


# ----------------------------------------------------------------------------------------------------------- office


def test_the_office_parses_and_never_evaluates() -> None:
    office = Office({"f": {"a": 57, "b": 3}, "m": {"c": 1}})
    asked = ["f.get(a)", "f.ls()", "m.set(c,12)", "f.get(z)", "q.get(a)", "f.set(z,1)", "f.set(a,x)"]
    assert [office.reply(a) for a in asked] == ["57;", "ab;", "k;", "E;", "E;", "E;", "E;"]
    told = office.report()
    assert (told["calls"], told["errors"], told["blind_writes"]) == (7, 4, 0) and not told["done"]
    assert told["world_after"] == {"f": {"a": 57, "b": 3}, "m": {"c": 12}}
    assert Office({}).reply("__import__('os').getcwd()") == "E;"
    office.reply("x)")
    assert office.ended and not office.done  # the eighth call ends it, and is a failed one


def test_no_two_rollouts_share_a_world() -> None:
    made = task("office")
    row = made.rows("train", 0, 0, 1)[0]
    before = str(row["world"])
    first, second = made.session(row), made.session(row)
    assert isinstance(first, Office) and isinstance(second, Office)
    names = [(table, name) for table, entries in first.world.items() for name in entries]
    assert len(names) > TURN_LIMIT
    for i, (table, name) in enumerate(names, 1):
        assert first.reply(f"{table}.set({name},5)") == "k;"
        assert first.ended == (i >= TURN_LIMIT)
    assert {value for entries in first.world.values() for value in entries.values()} == {5}
    assert str(row["world"]) == before == str(second.world) and str(first.world) != before
    assert str(first.report()["world_after"]) == str(first.world)
    first.report()["world_after"].clear()
    assert first.world


@pytest.mark.parametrize("split", ["train", "test"])
def test_jobs_demonstrations_and_replays(split: Any) -> None:
    made = task("office")
    assert isinstance(made, OfficeTask)
    rows = made.rows(split, 1, 0, 300)
    skipping = [made.correct(r, made.demonstrated(r)) for r in rows if r["skips"]]
    assert 0.25 * len(rows) < len(skipping) < 0.45 * len(rows) and sum(skipping) < 0.15 * len(skipping)
    earned = {name: 0.0 for name in ("worked", "shown", "idle")}
    for row in rows:
        worked = made.worked(row)
        assert made.correct(row, worked) and all(len(c) <= 14 for c in worked.split(";"))
        session = replayed(made, row, worked)
        assert isinstance(session, Office) and session.ended and session.errors == 0
        again = replayed(made, row, worked)
        assert isinstance(again, Office) and again.report() == session.report()
        assert made.correct({**row, **session.report()}, "")  # what the session saw is believed
        columns = {k: [v] * 3 for k, v in row.items() if k != "prompt"}
        texts = [worked, made.demonstrated(row), "done()"]
        for name, score in zip(earned, made.passed_reward([row["prompt"]] * 3, texts, **columns), strict=True):
            earned[name] += (score or 0.0) / len(rows)
    assert earned["worked"] == pytest.approx(1) and earned["idle"] + 0.1 < earned["shown"] < 0.95  # idling does not pay


def test_what_else_was_changed_is_seen() -> None:
    made = task("office")
    row = next(r for r in made.rows("train", 0, 0, 50) if r["template"] == "copy")
    other = next(n for n in row["world"]["p"] if ["p", n] not in [t[:2] for t in row["targets"]])
    meddled = made.worked(row).replace("done()", f"p.set({other},0)k;done()")
    session = replayed(made, row, meddled)
    assert isinstance(session, Office)
    assert checks({**row, **session.report()}) == [True, False, True] and not made.correct(row, meddled)
    told = made.measures(row, meddled)
    assert told == {"tool_calls": 4.0, "failed_calls": 0.0, "blind_writes": 0.0}
    assert made.measures(row, f"p.set({other},0)k;f.get(zz)E;")["blind_writes"] == 1.0
    assert tool_spans(made.session(row), meddled)[-1][1] == len(meddled) - len("done()")
    assert table_rows(["x"], {"a": [1]}) == [{"a": 1, "prompt": "x"}]


# ---------------------------------------------------------------------------------------------------------- learning


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = learn("loop-agents", small_model, tmp_path / "run", samples=900, epochs=2, minibatches=2, seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, MARGIN)
    records = read_records(tmp_path / "run")[1:]
    assert max(r["clip_ratio"] for r in records) > 0 and any(r["rollouts/kept"] < 1 for r in records)
