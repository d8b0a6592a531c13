"""Unfinished, greedy, masked, unpaid and unselected rows: every part of the catalogue does with them what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from parts_run_state import PartsRunState, every_field, truth, with_columns
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, USES, SpecialRows
from polyrl.errors import UserError
from polyrl.methods.language.aihf import JointImprovement
from polyrl.methods.language.rm_ensembles import BestOfN
from polyrl.parts.credit import WhitenAdvantage
from polyrl.parts.dpo_policy import DPOGuided
from polyrl.parts.optimize import Optimize
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Improver, Part, Term
from polyrl.run_state.language_run_state import LanguageRunState
from polyrl.runtime.budget import Budget
from run_states import token_batch

KINDS = ("unfinished", "greedy", "masked", "unpaid", "unselected")
COLLECTED = (
    *("prompt_ids", "prompt_mask", "action", "present", "mask", "behaviour_logprob", "temperature", "ended"),
    *("group", "greedy", "length_limit"),
)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "token-kl-penalty": [{}, {"kl_target": 0.1}],
    "whiten-advantage": [{}, {"whiten_centre": False}, {"whiten_unbiased": True}],
    "group-advantage": [{}, {"scale": "none"}],
    "batch-advantage": [{}, {"baseline": "group"}],
    "dpo-reward": [{"spread": s, "dpo_model": "x"} for s in ("token", "sequence", "shaping")],
    "token-guidance": [{"dpo_model": "x"}],
    "tool-coefficient": [{"right_from": 0.3}, {"right_from": 0.3, "minimum": "group"}],
    "normalize-score": [{}, {"score_form": "scale"}],
    "policy-filter": [{}, {"draw": "keep"}, {"filter": "power"}],
    "varied-rollouts": [{}, {"within": "group"}, {"of": "reward"}],
    "random-drop": [{"drop_rate": 0.4}, {"drop_rate": 0.4, "drop": "rows"}],
    "decision-token-mask": [{}, {"masked": "random"}],
    "step-advantage": [{}, {"step_value": "outcomes"}],
    "demonstration-nll": [{"imitate": "chosen"}],
    "imitation-beside": [{"imitate": "chosen"}],
    "reference-kl": [{"kl_loss_coef": 0.1}],
}
"""Settings of a part that are walked beside the defaults."""


@dataclass
class Drawing(Context):
    """A context that knows whether random numbers were asked for."""

    drew: bool = False

    def generator(self, *names: object) -> torch.Generator:
        self.drew = True
        return super().generator(*names)


@pytest.fixture(autouse=True)
def no_dpo_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DPOGuided, "prepare", lambda *_: "")


def ordinary(run_state: PartsRunState, *, twins: bool = False) -> Experience:
    """Twelve whole responses, a tool's words in the middle of some, with every field and column."""
    batch = token_batch(run_state, greedy_baseline=twins)
    batch = with_columns(run_state, batch).with_fields(**every_field(run_state, batch))
    half = torch.arange(len(batch)) % 3 == 0  # of some all tokens are new, of others only the last ones
    score, advantage = batch["score"].clone(), batch["advantage"].clone()
    score[batch["group"] == 2] = 0.25  # a group that agrees
    advantage[5] = 0.0  # a response that teaches nothing
    window = batch["mask"] & (batch["window"] | half[:, None])
    return batch.with_fields(window=window, score=score, advantage=advantage)


def special(kind: str, batch: Experience) -> Experience:
    """Five rows of a kind in the groups of the ordinary ones, whose numbers would be noticed anywhere."""
    odd = batch.rows([1, 3, 6, 8, 10])
    size, mask = len(odd), odd["mask"]
    yes = torch.ones(size, dtype=torch.bool)
    worth = torch.tensor([300.0, -200.0, 500.0, -700.0, 110.0], dtype=torch.float64)
    changed: dict[str, Tensor] = {name: odd[name] * 40 for name in ("reward", "advantage", "value", "member_score")}
    changed["score"] = worth
    told = worth.tolist()
    if kind == "unfinished":
        changed |= {"finished": ~yes, "ended": ~yes, "score": torch.zeros_like(worth)}
        changed["terminated"] = torch.zeros_like(mask)
    elif kind == "greedy":
        changed |= {"greedy": yes, "weight": odd["weight"] * 0}
    elif kind == "masked":
        nothing = torch.zeros_like(mask)
        changed |= {"mask": nothing, "window": nothing, "weight": odd["weight"] * 0}
    elif kind == "unpaid":
        nan = torch.full_like(worth, torch.nan)
        changed |= {"score": nan, "outcome": nan, "weight": odd["weight"] * 0}
        changed |= {"reward": torch.full_like(odd["reward"], torch.nan)}
        told = nan.tolist()
    else:
        changed["weight"] = odd["weight"] * 0
    odd = odd.with_fields(**changed)
    return odd.with_columns(truth=told, row=[100 + i for i in range(size)], calls=[0] * size)


def joined(first: Experience, second: Experience, order: Tensor) -> Experience:
    """The rows of both tables in an order."""
    columns = {name: [*first.columns[name], *second.columns[name]] for name in first.columns}
    data = {name: torch.cat([first[name], second[name]]) for name in first.fields()}
    return Experience(data, columns, [*first.task_rows, *second.task_rows]).rows(order)


def without(batch: Experience, *names: str) -> Experience:
    """The same rows with these fields away."""
    return Experience({n: batch[n] for n in batch.fields() if n not in names}, batch.columns, batch.task_rows)


def seen_by(part: Part, batch: Experience) -> Experience:
    """What stands in the table when a part is called: fields of the stages before it, and those that it needs."""
    names = {*COLLECTED, *part.required()}
    if part.stage != "score" or "score" in part.required():
        names |= {"score", "reward"}
    elif "reward" in part.required():
        names.add("score")
    if "finished" in batch:
        names |= {"finished", "window", "policy_version"}
    if part.stage in ("select", "improve"):
        names.add("weight")
    if part.name in ("all-steps", "window-steps", "drop-small-gaps"):
        names.discard("weight")
    return Experience({n: batch[n] for n in batch.fields() if n in names}, batch.columns, batch.task_rows)


def parts(*, improve: bool) -> Iterator[Part]:
    """Every part that scores, credits or selects, or every term and improver, in each of its variants."""
    for cls in catalogue.part_classes():
        if cls.stage in ("improve",) if improve else cls.stage in ("score", "credit", "select"):
            for settings in VARIANTS.get(cls().name, [{}]):
                yield cls(**settings)


def elsewhere(part: Part) -> bool:
    """Whether no special row can reach a part: its declaration says so, and the fields that it needs prove it."""
    return part.special_rows is not None and part.special_rows.greedy == "none"


def called(part: Part, batch: Experience, run_state: PartsRunState) -> tuple[Experience, Drawing]:
    context = Drawing(run_state=run_state, seed=0, budget=Budget(samples=1000), iteration=2)
    context.optimizer = catalogue.build("capo", {"learning_rate": 0.01}).optimize.optimizers(run_state)
    return part(seen_by(part, batch), context), context


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bool(torch.isclose(one, other, rtol=0, atol=1e-12, equal_nan=True).all())


WALKED = [pytest.param(p, id=f"{p.name}{i}") for i, p in enumerate(parts(improve=False)) if not elsewhere(p)]


def test_every_part_says_what_it_does_with_special_rows() -> None:
    for part in (*parts(improve=False), *parts(improve=True)):
        assert isinstance(part.special_rows, SpecialRows), part.name
        assert set(part.special_rows.uses().values()) <= set(USES), part.name


def test_where_it_says_that_none_can_reach_it_none_can() -> None:
    """No collect part whose fields would do brings such rows."""
    collected = {cls().name: cls.gives for cls in catalogue.part_classes() if cls.stage == "collect"}
    language = {name for name, gives in collected.items() if {"greedy", "finished", "has_greedy_baseline"} & gives}
    given = {g for c in catalogue.part_classes() if c.stage in ("score", "credit", "select") for g in c.gives - c.needs}
    found = 0
    for part in (*parts(improve=False), *parts(improve=True)):
        if elsewhere(part):
            if type(part).apply is not Part.apply or isinstance(part, OffPolicyTerm):
                continue  # its rows are those of a source
            found += 1
            asked = part.required() - given
            assert part.solves or all(not asked <= collected[name] for name in language), part.name
    assert found >= 7 and NO_SPECIAL_ROWS.greedy == "none"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", WALKED)
def test_ordinary_rows_do_not_notice_special_ones(part: Part, kind: str) -> None:
    assert part.special_rows is not None
    use = part.special_rows.uses()[kind]
    if use == "none" or (kind == "unselected" and "weight" not in part.required()):
        return  # there are none where it stands
    run_state = PartsRunState()
    batch = ordinary(run_state, twins=part.name == "greedy-baseline")
    if kind != "unfinished" and "finished" not in part.needs:
        batch = without(batch, "finished", "window")
    odd = special(kind, batch if "finished" in batch else ordinary(run_state))
    odd = without(odd, *{*odd.fields()} - {*batch.fields()})
    plain, quiet = called(part, batch, run_state)
    size = len(batch) + len(odd)
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(4))
    order = torch.arange(size) if quiet.drew else mixed  # random numbers go to rows by their place
    if not quiet.drew:
        own = order[order < len(batch)]
        plain, quiet = called(part, batch.rows(own), run_state)
    whole, context = called(part, joined(batch, odd, order), run_state)

    rows = whole.columns["row"]
    ours = [i for i, row in enumerate(rows) if row < 100]
    assert [rows[i] for i in ours] == plain.columns["row"] or use == "counted"
    # what is logged of single steps, or of what trains, is of the unfinished responses' new tokens too
    told = kind != "unfinished" or (part.stage != "select" and use == "left out")
    logged = {k: v for k, v in context.metrics.items() if k != "rewards/dropped"}
    kept = context.memories == quiet.memories and [*context.stores] == [*quiet.stores]
    kept = kept and all(same(x, quiet.stores[p][n]) for p, s in context.stores.items() for n, x in s.items())
    equal = kept and (not told or logged == pytest.approx(quiet.metrics, abs=1e-12))
    for name in plain.fields():
        equal = equal and len(ours) == len(plain) and same(whole[name][ours], plain[name])
    if use == "counted":
        assert not equal, f"{part.name} says that {kind} rows are counted, and nothing shows it"
        return
    assert equal, (part.name, kind, context.metrics, quiet.metrics)
    assert context.spent.reward_calls == quiet.spent.reward_calls or use == "alone" or kind == "unpaid"
    if use == "left out":
        before = seen_by(part, odd)
        for i, row in enumerate(rows):
            if row >= 100:
                for name in [n for n in whole.fields() if n != "kept_share"]:  # one number of the whole batch
                    mine, zero = whole[name][i], torch.zeros_like(whole[name][i])
                    was = before[name][row - 100] if name in before else zero - 1 if name == "pair" else zero
                    assert same(mine, was) or same(mine, zero), (part.name, kind, name)


@pytest.mark.parametrize("part", WALKED)
def test_a_tools_words_enter_nothing(part: Part) -> None:
    run_state = PartsRunState()
    batch = ordinary(run_state, twins=part.name == "greedy-baseline")
    if "finished" not in part.needs:
        batch = without(batch, "finished", "window")
    mask = batch["mask"]
    dirt = {
        name: torch.where(mask, x, torch.nan)
        for name, x in batch.data.items()
        if x.shape == mask.shape and x.is_floating_point() and "weight" not in name
    }
    clean, quiet = called(part, batch, run_state)
    found, context = called(part, batch.with_fields(**dirt), run_state)
    assert context.metrics == pytest.approx(quiet.metrics, abs=1e-12)
    assert context.memories == quiet.memories
    for name in clean.fields():
        a, b = clean[name], found[name]
        if a.shape[:2] == clean["mask"].shape:
            a, b = a[clean["mask"]], b[clean["mask"]]
        assert same(a, b), (part.name, name)
    if part.name == "token-kl-penalty":
        assert bool(found["reward"][~mask].isnan().all())  # the test does put dirt where it says


# --------------------------------------------------------------------------------------------------- scope


def pieces(scope: str, batch: Experience) -> list[Tensor]:
    """Row numbers of what a part of this scope may be given by itself."""
    number = torch.arange(len(batch)) if scope in ("step", "episode") else batch["group"]
    return [(number == n).nonzero()[:, 0] for n in torch.unique(number)]


def with_windows(part: Part) -> Experience:
    """Ordinary rows, with what only windows have where a part needs it."""
    batch = ordinary(PartsRunState(), twins=part.name == "greedy-baseline")
    return batch if "finished" in part.needs else without(batch, "finished", "window")


def is_within(part: Part, scope: str) -> bool:
    """Whether rows get from a part what they get in the whole batch where each piece of this scope is alone."""
    batch = with_windows(part)
    whole, context = called(part, batch, PartsRunState())
    rows = whole.columns["row"]
    for own in pieces(scope, batch):
        try:
            alone, quiet = called(part, batch.rows(own), PartsRunState())
        except (UserError, KeyError):  # it cannot do without the others
            return False
        wanted = set(batch.rows(own).columns["row"])
        if alone.columns["row"] != [row for row in rows if row in wanted] or quiet.memories != context.memories:
            return False
        places = [rows.index(row) for row in alone.columns["row"]]
        if not all(same(whole[name][places], alone[name]) for name in whole.fields()):
            return False
    return True


SCOPED = sorted({p.name for p in parts(improve=False)})
FINER = {"batch": "group", "group": "episode"}


@pytest.mark.parametrize("name", SCOPED)
def test_a_part_keeps_to_the_scope_that_it_declares_and_needs_it(name: str) -> None:
    """Data parallel processes part rows by it, so one that is too narrow gives wrong numbers without a word."""
    variants = [p for p in parts(improve=False) if p.name == name]
    scope = variants[0].scope
    assert scope is not None, f"{name} declares no scope"
    if elsewhere(variants[0]):
        return  # of rows that this table does not have
    draws = any(called(p, with_windows(p), PartsRunState())[1].drew for p in variants)  # random numbers go by place
    assert scope == "batch" or (not draws and all(is_within(p, scope) for p in variants))
    needed = scope not in FINER or draws or not all(is_within(p, FINER[scope]) for p in variants)
    assert needed, f"{name} needs no {scope}"


TERMS = [
    pytest.param(t, id=f"{t.name}{i}")
    for i, t in enumerate(parts(improve=True))
    if isinstance(t, Term) and t.special_rows != NO_SPECIAL_ROWS
]


@pytest.mark.parametrize("kind", ["greedy", "masked", "unpaid", "unselected"])
@pytest.mark.parametrize("term", TERMS)
def test_terms_and_what_they_log_count_what_has_weight(term: Term, kind: str) -> None:
    run_state = PartsRunState()
    batch = ordinary(run_state)
    pair, preferred = torch.arange(12) // 2, torch.arange(12) % 2 == 0
    batch = batch.with_fields(pair=pair, preferred=preferred, ranking=torch.arange(12) // 4, rank=torch.arange(12) % 4)
    batch = batch.with_fields(group=pair) if term.grouped_by == "group" else batch
    odd = special(kind, batch).with_fields(pair=torch.full((5,), -1), preferred=torch.zeros(5, dtype=torch.bool))
    odd = odd.with_fields(weight=torch.zeros(5, 8), ranking=torch.arange(5), rank=torch.arange(5))
    extra = {n: torch.zeros(12, dtype=torch.float64) for n in ("demand", "initial_inventory")}
    names = {*COLLECTED, *term.required(), "weight", "score"}
    found = []
    for table in (batch, joined(batch, odd, torch.arange(17))):
        table = Experience({n: x for n, x in table.data.items() if n in names})
        table = table.with_fields(**{n: x.new_zeros(len(table)) for n, x in extra.items()})
        run_state = PartsRunState()
        context = Context(run_state=run_state, seed=0, budget=Budget(samples=10), iteration=1)
        optimize = Optimize(learning_rate=0.1, max_grad_norm=1e9)
        context.optimizer = optimize.optimizers(run_state)
        optimize.run((term,), table, context)
        found.append((run_state.weights(), context.metrics))
    assert float((found[0][0] - PartsRunState().weights()).abs().max()) > 5e-4  # it does train
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-9)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9)
    assert term.special_rows is not None and term.special_rows.uses()[kind] == "left out"


def whole_and_plain(*kinds: str) -> tuple[Experience, Experience]:
    run_state = PartsRunState()
    batch = ordinary(run_state)
    whole = batch
    for kind in kinds:
        whole = joined(whole, special(kind, batch), torch.arange(len(whole) + 5))
    return batch, whole


def test_best_of_n_measures_whole_sampled_responses() -> None:
    said = []
    for batch in whole_and_plain("unfinished", "greedy", "unpaid"):
        context = Context(run_state=PartsRunState(), seed=0, budget=Budget(samples=10), iteration=1)
        BestOfN().run((), batch, context)
        said.append(context.metrics)
    assert said[0] == pytest.approx(said[1]) and len(said[0]) > 5


def test_the_joint_reward_learns_from_whole_sampled_responses() -> None:
    read: list[list[int]] = []

    def step(objective: Any, batches: list[Experience], *_: Any) -> tuple[float, list[Tensor]]:
        read.append(batches[1].columns["row"])
        return 0.0, [torch.ones(len(b)) for b in batches]

    for batch in whole_and_plain("unfinished", "greedy", "unpaid", "masked"):
        run_state = PartsRunState()
        labelled = Experience({"preferred": torch.tensor([True, False])})
        encoded = lambda p, d, _: Experience({"x": torch.zeros(len(p))})  # noqa: E731
        run_state.own = {"reward": SimpleNamespace(step=step, encoded=encoded)}  # type: ignore[dict-item]
        run_state.pairs = lambda split, pair=labelled: Pairs(pair)  # type: ignore[attr-defined]
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
        context = Context(
            run_state=run_state, seed=0, budget=Budget(samples=10), iteration=1, optimizer={"reward": optimizer}
        )
        JointImprovement()._reward_step(batch, context, 1.0)
    assert read[0] == read[1] == list(range(12))


@dataclass
class Pairs:
    """Fixed pairs, of which there is one."""

    labelled: Experience

    def __len__(self) -> int:
        return 1

    def batch(self, numbers: object) -> Experience:
        return self.labelled


def test_improvers_are_walked_or_exact() -> None:
    for part in parts(improve=True):
        if isinstance(part, Improver):
            assert isinstance(part, Optimize | BestOfN) or elsewhere(part), part.name


# ------------------------------------------------------------------------------------- what went wrong, one by one


def test_whitening_is_over_samples_and_not_over_their_greedy_twins() -> None:
    batch = Experience(
        {
            "mask": torch.ones(4, 2, dtype=torch.bool),
            "greedy": torch.tensor([False, True, False, True]),
            "advantage": torch.tensor([[1.0, 1.0], [0.0, 0.0], [3.0, 3.0], [0.0, 0.0]]),
        }
    )
    found = WhitenAdvantage()(batch, Context(run_state=None, seed=0, budget=Budget(samples=1)))["advantage"]
    assert found.tolist() == [[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_a_part_that_says_nothing_is_refused_beside_unfinished_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WhitenAdvantage, "special_rows", None)
    catalogue.build("ppo")
    with pytest.raises(UserError, match="'whiten-advantage' does not say what it does with unfinished responses"):
        catalogue.build("t-ppo")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("t-ppo+varied-rollouts(of=reward)", "chooses by reward"),
        ("ppo+windowed-rollouts+egae", "window-steps"),
    ],
)
def test_what_cannot_be_said_of_unfinished_responses_is_refused(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        catalogue.build(spec)


def test_the_fields_are_those_of_the_responses() -> None:
    """The batch of this file is what it says: no special row in it, every kind among the others."""
    batch = ordinary(PartsRunState())
    assert not bool(batch["greedy"].any()) and bool(batch["finished"].all()) and bool(batch["mask"].any(1).all())
    assert bool((batch["present"] & ~batch["mask"]).any()) and not bool(truth(batch).isnan().any())


def test_the_logged_kl_is_of_the_policy_to_the_start_and_of_whole_responses() -> None:
    """E log pi/ref over responses: positive where the policy prefers what it says; no twin and no window enters."""
    run_state: Any = LanguageRunState.__new__(LanguageRunState)
    run_state.monitor_kl_every = 0
    logprob = torch.tensor([[-0.5, -0.25], [-1.0, -0.5], [-9.0, -9.0], [-0.125, -0.25]])
    reference = torch.tensor([[-1.5, -1.25], [-1.0, -2.5], [-1.0, -1.0], [-0.375, -8.0]])
    batch = Experience(
        {
            "mask": torch.ones(4, 2, dtype=torch.bool),
            "greedy": torch.tensor([False, False, True, False]),
            "finished": torch.tensor([True, True, True, False]),
            "window": torch.tensor([[True, True], [False, True], [True, True], [True, False]]),
            "behaviour_logprob": logprob,
            "ref_logprob": reference,
        }
    )
    context = Context(run_state=run_state, seed=0, budget=Budget(samples=1), iteration=1)
    run_state.monitor(batch, context)
    assert context.metrics["kl"] == pytest.approx((2.0 + 2.0) / 2)
    assert context.metrics["kl_per_token"] == pytest.approx((1.0 + 1.0 + 2.0 + 0.25) / 4)
    assert context.metrics["perplexity"] == pytest.approx(math.exp((0.5 + 0.25 + 0.5 + 0.125) / 4))
    assert context.metrics["ref_perplexity"] == pytest.approx(math.exp((1.5 + 1.25 + 2.5 + 0.375) / 4))


@pytest.mark.parametrize(
    "term",
    ["dpo-loss", "ipo-loss", "slic-loss", "simpo-loss", "odds-ratio-loss", "bradley-terry", "tgdpo-loss", "inpo-loss"],
)
def test_a_pair_of_which_a_selection_left_out_one_row_teaches_nothing(term: str) -> None:
    """As if the pair were not there: neither loss, nor gradient, nor what is logged knows of its other half."""
    part = next(t for t in parts(improve=True) if t.name == term)
    assert isinstance(part, Term)
    pair, preferred = torch.arange(12) // 2, torch.arange(12) % 2 == 0
    found = []
    for lost in (True, False):
        run_state = PartsRunState()
        batch = ordinary(run_state).with_fields(pair=pair, preferred=preferred)
        batch = Experience({n: batch[n] for n in (*COLLECTED, *part.required(), "weight")})
        weight = batch["weight"].clone()
        weight[4 if lost else [4, 5]] = 0.0
        context = Context(run_state=run_state, seed=0, budget=Budget(samples=10), iteration=1)
        optimize = Optimize(learning_rate=0.1, max_grad_norm=1e9)
        context.optimizer = optimize.optimizers(run_state)
        optimize.run((part,), batch.with_fields(weight=weight), context)
        found.append(
            (run_state.weights(), {k: v for k, v in context.metrics.items() if k.startswith(("loss", "rew", "logps"))})
        )
    assert float((found[0][0] - PartsRunState().weights()).abs().max()) > 5e-4
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9) and len(found[0][1]) > 5
