"""What was composed is what is computed: each pair that composes, held against plain loops on one small batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parts_run_state import PartsRunState, every_field, with_columns
from plain_parts import Table, chosen, fresh
from plain_selection import CHOOSING, PARTS, policy_filter
from plain_terms import TERMS
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.parts.dpo_policy import DPOGuided
from polyrl.parts.optimize import Optimize
from polyrl.recipe import STAGES, Improver, Part, Recipe
from polyrl.runtime.budget import Budget
from run_states import token_batch
from test_composition import ADDED, BASES, FILE, SMALL_BATCH, joined

STATED: dict[str, dict[str, str]] = json.loads(Path(FILE).read_text(encoding="utf-8"))
PAIRS = [(b, a) for b in BASES for a in ADDED if (said := STATED.get(b, {}).get(a)) is not None and " " not in said]
"""Pairs that docs/composition.json says to compose, as they are or with settings."""
ITERATION = 11
"""One after the critic was trained alone."""


@pytest.fixture(autouse=True)
def no_dpo_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DPOGuided, "prepare", lambda *_: "")


def built(base: str, added: str) -> Recipe:
    settings = dict(item.split("=") for item in filter(None, STATED.get(base, {}).get(added, "").split(",")))
    known = {k.rpartition(".")[2] for k in joined(base, added).hyperparameters()}
    small = {k: str(v) for k, v in SMALL_BATCH.items() if k in known}
    return catalogue.build(f"{base}+{added}", {**small, **settings}, domain="language")


def collected(recipe: Recipe, run_state: PartsRunState) -> Experience:
    """Twelve ragged rows as the recipe's collect part would bring them: groups, twins, windows, states."""
    several = int(getattr(recipe.collect, "completions_per_prompt", 4)) > 1
    twins = "has_greedy_baseline" in recipe.collect.gives
    batch = token_batch(run_state, greedy_baseline=twins and several)
    rows = torch.arange(12)
    if not several or getattr(recipe.collect, "completions_per_prompt", 4) == 2:
        group = rows // 2 if several or twins else rows
        batch = batch.with_fields(group=group, greedy=(rows % 2 == 1) & (twins and not several))
    fields = every_field(run_state, batch)
    if "finished" in recipe.collect.gives:
        finished = rows % 3 != 1
        fields |= {"finished": finished, "window": fields["window"] & (rows[:, None] != 2)}
        batch = batch.with_fields(ended=batch["ended"] & finished)
    batch = with_columns(run_state, batch).with_fields(**{n: fields[n] for n in recipe.collect.gives if n in fields})
    if "behaviour_logprob" not in recipe.collect.gives:
        kept = {n: x for n, x in batch.data.items() if n != "behaviour_logprob"}
        return Experience(kept, batch.columns, batch.task_rows)
    return batch


def plain(batch: Experience) -> Table:
    """The batch as nested lists, with what is true of every row where nothing says otherwise."""
    table: Table = {name: x.tolist() for name, x in batch.data.items()}
    table |= {name: list(values) for name, values in batch.columns.items()}
    table["need"] = batch.task_column("need")
    table.setdefault("finished", [True] * len(batch))
    table.setdefault("window", table["mask"])
    return table


def agree(experience: Experience, table: Table, part: Part) -> None:
    """What the part gave is what the plain loop gave, at every step and row that it is of account for."""
    assert experience.columns["row"] == table["row"], part.name
    for name in sorted(part.gives & {*table} & {*experience.data}):
        found = experience[name].tolist()
        for i, wanted in enumerate(table[name]):
            if not isinstance(wanted, list):
                assert found[i] == pytest.approx(wanted, rel=1e-5, abs=1e-6), (part.name, name, i)
                continue
            where = range(len(wanted)) if "weight" in name else chosen(table, i)
            if name == "advantage":
                where = fresh(table, i)
            elif table["greedy"][i] or (name == "value_target" and not table["finished"][i]):
                where = range(0)
            for k in where:
                assert found[i][k] == pytest.approx(wanted[k], rel=1e-5, abs=1e-6), (part.name, name, i, k)


def walked(recipe: Recipe) -> tuple[Experience, Table, PartsRunState]:
    """The recipe's stages between collect and improve, on the batch and on the lists, compared after every part."""
    run_state = PartsRunState()
    experience = collected(recipe, run_state)
    table = plain(experience)
    context = Context(run_state=run_state, seed=0, budget=Budget(samples=1000), iteration=ITERATION)
    context.optimizer = {"policy": SimpleNamespace(param_groups=[{"lr": 0.01}])}
    for stage, chain in recipe.stages():
        for part in chain if stage not in ("collect", "improve") else ():
            experience = part(experience, context)
            if "advantage" in experience:  # everything here is in double precision
                experience = experience.with_fields(advantage=experience["advantage"].double())
            if part.name == "policy-filter":
                order = policy_filter(table, part, context)
                table = {name: [values[i] for i in order] for name, values in table.items()}
                assert len(order) == len(experience)
            elif part.name in CHOOSING:
                CHOOSING[part.name](table, part, context, plain(experience))
            else:
                PARTS[part.name](table, part, context)
            agree(experience, table, part)
    return experience, table, run_state


@pytest.mark.parametrize(("base", "added"), PAIRS, ids=[f"{b}+{a}" for b, a in PAIRS])
def test_a_composition_computes_what_its_parts_say_one_after_the_other(base: str, added: str) -> None:
    recipe = built(base, added)
    experience, table, run_state = walked(recipe)
    for term in recipe.terms:
        outputs = {name: x.detach() for name, x in run_state.outputs(experience, term.wants).items()}
        losses = term.loss(outputs, experience) * term.step_weights(experience)
        counted = term.weights(experience) != 0
        counted = counted if losses.dim() == 2 else counted.any(1)
        found = float(torch.where(counted, losses, torch.zeros_like(losses)).sum())
        wanted = TERMS[term.name](table, term, {name: x.tolist() for name, x in outputs.items()})
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6), term.name


def brought(added: str) -> list[Part]:
    """The parts that `+added` brings: one by name, or those that a method's paper adds."""
    if added in catalogue.methods():
        recipe = catalogue.build(added, domain="language")
        return [part for part in recipe.parts() if part.name in recipe.adds]
    return [part for part in joined("grpo", added).score if part.name == added]


@pytest.mark.parametrize("base", BASES)
def test_a_composition_holds_the_parts_that_the_rule_says(base: str) -> None:
    """One part in each slot, the added one where the replaced one stood, others at the end of their stage."""
    first = catalogue.build(base, domain="language")
    for added in [a for b, a in PAIRS if b == base]:
        chains: dict[str, list[Part]] = {stage: [*first.listed(stage)] for stage in STAGES}
        for part in brought(added):
            chain = chains[part.stage]
            place = next((i for i, old in enumerate(chain) if _replaces(part, old)), None)
            if place is not None:
                chain[place] = part
            elif part.stage == "improve":
                chain.insert(len(chain) - 1, part)  # a term: the optimizer comes last
            else:
                chain.append(part)
        made = joined(base, added)
        wanted = [p.name for stage in STAGES for p in chains[stage] if p.name not in made.dropped]
        assert [p.name for stage in STAGES for p in made.listed(stage)] == wanted, added


def _replaces(part: Part, old: Part) -> bool:
    if part.stage == "collect" or isinstance(part, Improver) or isinstance(old, Improver):
        return isinstance(old, Improver) == isinstance(part, Improver)
    return type(old) is type(part) or (bool(part.slot) and old.slot == part.slot)


def test_every_part_of_an_online_method_has_its_plain_loop() -> None:
    for recipe in [catalogue.build(base, domain="language") for base in BASES]:
        for part in recipe.parts():
            if part.stage in ("score", "credit", "select"):
                assert part.name in PARTS or part.name in CHOOSING or part.name == "policy-filter", part.name
            elif part.stage == "improve" and not isinstance(part, Improver):
                assert part.name in TERMS, part.name
    assert issubclass(type(built("grpo", "rloo").optimize), Optimize) and len(PAIRS) > 280
