"""Agnostic policy learning: the card's numbers, estimates against enumeration, what each access buys."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.theory.cpi import advantages
from polyrl.methods.theory.popler import PetalChains, distinct, join, valued
from polyrl.parts.policy_class import agreeing, one_hot, trees_for
from polyrl.rollout.finite import rolled
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.theory import solving, task
from polyrl.tasks.theory.agnostic import Ladder, RichLock, Singletons
from polyrl.tasks.theory.finite import FiniteMDP
from polyrl.tasks.theory.policy_class import PolicyClass

torch.set_num_threads(1)
CHOOSERS = ("popler", "importance-sampling", "trajectory-tree")


def loop_of(method: str, task: str, budget: str = "iterations=1000", seed: int = SEED, **settings: str) -> Any:
    config = RunConfig(
        method=method, task=task, budget=budget, seed=seed, hyperparameters=settings, evaluations=1, tensorboard=False
    )
    return make_loop(config)[0]


def run_of(method: str, task: str, budget: str = "iterations=1000", **given: Any) -> Any:
    loop = loop_of(method, task, budget, **given)
    while not loop.context.over:
        loop.iterate()
    return loop


# -------------------------------------------------------------------------------------------------- problems


def reachable(policies: Tensor, horizon: int, states: int) -> int:
    """Spanning capacity by brute force: most pairs of one layer that a class reaches in a deterministic problem."""
    most = 0
    cells = [(h, s, a) for h in range(horizon - 1) for s in range(states) for a in range(2)]
    for start in range(states):
        for following in itertools.product(range(states), repeat=len(cells)):
            moves = dict(zip(cells, following, strict=True))
            at = [start] * len(policies)
            for h in range(horizon):
                chosen = [(s, int(p[h, s])) for s, p in zip(at, policies, strict=True)]
                most = max(most, len(set(chosen)))
                at = [moves[h, s, a] for s, a in chosen] if h + 1 < horizon else at
    return most


def test_spanning_capacity_of_all_policies_and_of_singletons() -> None:
    everything = torch.tensor([*itertools.product(range(2), repeat=4)]).view(-1, 2, 2)
    assert reachable(everything, 2, 2) == 4
    assert reachable(Singletons(horizon=1, width=2).mdp.policies.policies[:, :, :2], 1, 2) == 2
    assert reachable(Singletons(horizon=2, width=3).mdp.policies.policies[:, :, :3], 2, 3) == 3
    assert reachable(Singletons(horizon=3, width=2).mdp.policies.policies[:, :, :2], 3, 2) == 3  # 4 with more states


def is_sunflower(found: PolicyClass, horizon: int, states: int) -> bool:
    """Whether each policy's partial trajectories are some core policy's, or meet a petal after their first step."""
    for policy, petals in zip(found.policies, found.petals, strict=True):
        for first in range(horizon):
            for last in range(first, horizon):
                for path in itertools.product(range(states), repeat=last - first + 1):
                    steps = [(first + i, s) for i, s in enumerate(path)]
                    met = any(step in petals for step in steps[1:])
                    agree = any(all(int(c[h, s]) == int(policy[h, s]) for h, s in steps) for c in found.core)
                    if not (met or agree):
                        return False
    return True


@pytest.mark.parametrize(("horizon", "width"), [(2, 2), (3, 2), (3, 3), (4, 2)])
def test_the_sunflower_of_singletons_is_one(horizon: int, width: int) -> None:
    found = Singletons(horizon=horizon, width=width).mdp.policies
    assert is_sunflower(found, horizon, width) and len(found.core) == horizon + 1
    alone = PolicyClass(found.policies, found.core[:1], found.petals)
    assert not is_sunflower(alone, horizon, width)  # a petal's own step is no core policy's then


def test_values_of_the_class_are_those_that_were_worked_out() -> None:
    for seed in range(4):
        made = Singletons(horizon=6, instance=seed)
        worths = made.mdp.class_worths
        layer, state = made.secret
        assert float(worths[0]) == pytest.approx(0.4)
        assert float(worths[1 + layer * 4 + state]) == pytest.approx(0.525) == float(worths.max())
        assert sorted(worths.tolist())[:-2] == pytest.approx([0.325] * 23)
        assert made.metric.target == "best of the class" and made.metric.lines[made.metric.target] == pytest.approx(
            0.525
        )
    mdp = Ladder(horizon=4).mdp
    assert mdp.class_worths.tolist() == pytest.approx([0.5, 1 / 6])
    assert "class" not in task("combination-lock").metric.target


# ------------------------------------------------------------------------------------------ estimates, exactly


def all_episodes(mdp: FiniteMDP, policies: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every way that an episode of a uniform policy of these can go, with its probability."""
    rows, chance = [], []

    def go(p: float, h: int, s: int, so_far: list[tuple[int, int, float]], alive: list[int]) -> None:
        if h == mdp.layers:
            rows.append(so_far)
            chance.append(p)
            return
        for a in range(2):
            now = [n for n in alive if int(policies[n, h, s]) == a]
            if not now:
                continue
            share = p * len(now) / len(alive)
            for t in range(len(mdp.states)):
                if move := float(mdp.transition[h, s, a, t]):
                    go(share * move, h + 1, t, [*so_far, (s, a, float(mdp.reward[h, s, a]))], now)

    for s, p in enumerate(mdp.initial.tolist()):
        if p:
            go(p, 0, s, [], list(range(len(policies))))
    found = torch.tensor(rows, dtype=torch.float64)  # [B, H, 3]
    step = torch.arange(mdp.layers).expand(len(rows), -1)
    batch = {"state": found[..., 0].long(), "action": found[..., 1].long(), "reward": found[..., 2], "step": step}
    return batch, torch.tensor(chance, dtype=torch.float64)


def paid_on_the_way() -> FiniteMDP:
    """Singletons whose every step pays, with a small core and so more petals: where 1 is played, and what follows."""
    made = Singletons(horizon=3, width=2, instance=1).mdp
    stream = torch.Generator().manual_seed(5)
    reward = torch.rand(made.reward.shape, generator=stream, dtype=torch.float64)
    policies = made.policies.policies
    core = torch.stack([torch.zeros_like(policies[0]), torch.ones_like(policies[0])])
    steps = [of[0] for of in made.policies.petals if of]
    after = [[(h, s), *((h + 1, t) for t in range(4) if h + 1 < 3)] for h, s in steps]
    found = PolicyClass(policies, core, [[], *after])
    return FiniteMDP(made.transition, reward, made.initial, horizon=3, policies=found)


@pytest.mark.parametrize("mdp", [Singletons(horizon=3, width=2, instance=1).mdp, paid_on_the_way()], ids=["D1", "D5"])
def test_popler_is_exact_where_every_episode_comes_as_often_as_it_is_likely(mdp: FiniteMDP) -> None:
    """Segments of all episodes of the core, repeated by their probability: values to rounding, without a sample."""
    found = mdp.policies
    assert is_sunflower(found, 3, 4)
    chains = PetalChains(len(found), max(map(len, found.petals)), len(distinct(found)))
    rows, chance = all_episodes(mdp, found.core)
    copies = (512 * chance).round().long()
    assert torch.equal(copies.double(), 512 * chance)
    join(chains, found, {k: v.repeat_interleave(copies, 0) for k, v in rows.items()}, None, 0)
    for at, (layer, state) in enumerate(distinct(found)):
        chains.explored[at] = True
        for policy, of in zip(found.policies, found.petals, strict=True):
            led = found.core.clone()
            led[:, :layer] = policy[:layer]
            rows, chance = all_episodes(mdp, led)
            copies = (512 * chance).round().long() * (rows["state"][:, layer] == state)
            if (layer, state) in of and bool(copies.any()):
                every = {k: v.repeat_interleave(copies, 0) for k, v in rows.items()}
                join(chains, found, every, (layer, state), layer)
                break
    value, reach = valued(chains, found)
    assert torch.allclose(value, mdp.class_worths, atol=1e-12)
    mass = solving.occupancies(mdp.transition, one_hot(found.policies, 2), mdp.initial)
    for number, of in enumerate(found.petals):
        for place, (layer, state) in enumerate(of):
            assert float(reach[number, place + 1]) == pytest.approx(float(mass[number, layer, state]), abs=1e-12)


def test_a_segment_weighs_as_many_core_policies_as_agree_with_it() -> None:
    """H = 3: of two actions 0, K / # = 4 / 2; with an action 1 in it, 4 / 1."""
    found = Singletons(horizon=3, width=2).mdp.policies
    states = torch.zeros(1, 3).long()
    for actions, weight in (([0, 0, 0], 4 / 1), ([0, 0, 1], 4 / 1)):
        rows = {"state": states, "action": torch.tensor([actions]), "step": torch.arange(3)[None]}
        rows["reward"] = torch.zeros(1, 3, dtype=torch.float64)
        whole = agreeing(found.core, rows).all(-1).sum()
        assert 4 / int(whole) == weight
    two = {k: v[:, :2] for k, v in rows.items()}
    assert int(agreeing(found.core, two).all(-1).sum()) == 2


def test_importance_weights_are_unbiased() -> None:
    loop = loop_of("importance-sampling", "singletons(horizon=3,width=2)", episodes="60000")
    loop.iterate()
    assert loop.context.metrics["class_error"] < 0.03
    mdp = loop.run_state.mdp
    uniform = torch.tensor([*itertools.product(range(2), repeat=3)])[:, :, None].expand(-1, -1, len(mdp.states))
    rows, chance = all_episodes(mdp, uniform)  # every sequence of actions equally often
    weights = 8.0 * agreeing(mdp.policies.policies, rows).all(-1)
    assert torch.allclose((weights * chance * rows["reward"].sum(1)).sum(1), mdp.class_worths, atol=1e-12)


def test_a_tree_is_shared_by_all_policies_and_counts_what_they_need() -> None:
    assert trees_for(41, 0.1) == 336
    loop = loop_of("trajectory-tree", "singletons(horizon=6)", trees="400")
    loop.iterate()
    assert loop.context.spent.queries <= 400 * 6 * 7 and loop.context.spent.samples == 0
    assert loop.context.metrics["class_error"] < 0.12
    two = loop_of("trajectory-tree", "combination-lock(horizon=3,choices=2,keep=1.0,consolation=0)", trees="3")
    two.iterate()  # nothing is random, so that each tree is the problem
    assert two.run_state.models["values"].estimates.tolist() == two.run_state.mdp.class_worths.tolist()
    assert two.context.spent.queries <= 3 * 3 * 2
    sure = make_loop(
        RunConfig(method="trajectory-tree", task="sure", budget="iterations=1", tensorboard=False),
        given=PythonObjects(environment=every_step_pays),
    )[0]
    sure.iterate()
    assert sure.run_state.models["values"].estimates.tolist() == [3.0, 6.0]


def begins_anywhere() -> FiniteMDP:
    """Two states that are stayed in, one of which pays 1 a step."""
    return FiniteMDP([[[1.0, 0.0]], [[0.0, 1.0]]], [[0.0], [1.0]], [0.5, 0.5], horizon=2)


def every_step_pays() -> FiniteMDP:
    """One state, 1 or 2 a step."""
    return FiniteMDP([[[1.0], [1.0]]], [[1.0, 2.0]], horizon=3)


def test_advantages_of_the_ladder_stop_conservative_iteration_at_the_bad_policy() -> None:
    """Of star over bad by layer -.047619, -.015873, -.005291, +.001764: their sum is below 0, so CPI stops at once."""
    mdp = Ladder(horizon=4).mdp
    bad = one_hot(mdp.policies.policies[1], 2)
    value = solving.finite_horizon_values(mdp.transition, mdp.reward, bad)
    q = mdp.reward + torch.einsum("hsat,ht->hsa", mdp.transition, value[1:])
    gain = (mdp.restart * (q[..., 0] - q[..., 1])).sum(-1)
    assert gain.tolist() == pytest.approx([-0.047619, -0.015873, -0.005291, 0.001764], abs=1e-6)
    rows = 400_000
    uniform = torch.rand(rows, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = torch.arange(rows) % 4
    state = (torch.arange(rows) // 4 % 7 == 0).long()
    batch = Experience(dict(rolled(mdp, bad, state, step, uniform, mdp.uniform[0][state])))
    found = advantages(mdp.policies.policies, bad, batch)
    assert float(found[0]) == pytest.approx(-0.067, abs=0.03) and float(found[1]) == pytest.approx(0, abs=0.03)
    stuck = run_of("cpi", "reset-ladder(horizon=4)", begins_with="1", episodes="20000")
    assert stuck.context.iteration == 1 and stuck.run_state.evaluate()[0]["eval/return"] == pytest.approx(1 / 6)


def test_psdp_that_is_wrong_in_the_last_layer_is_wrong_in_all() -> None:
    """Exact values: with bad behind it each layer's best is bad, with star it is star."""
    mdp = Ladder(horizon=4).mdp
    for tail in (0, 1):
        policy = one_hot(mdp.policies.policies[tail], 2)
        value = solving.finite_horizon_values(mdp.transition, mdp.reward, policy)
        q = mdp.reward + torch.einsum("hsat,ht->hsa", mdp.transition, value[1:])
        gains = (mdp.restart * (q[..., 0] - q[..., 1])).sum(-1)[:3]
        assert bool((gains < 0).all() if tail else (gains > 0).all())


def test_psdp_takes_the_best_of_the_class_in_a_single_layer() -> None:
    run = run_of("psdp", "reset-ladder(horizon=1)", episodes="20000")
    assert run.context.finished and run.run_state.evaluate()[0]["eval/class_suboptimality"] < 1e-9


# ------------------------------------------------------------------------------------------------- what it buys


def test_what_each_access_buys_on_singletons() -> None:
    """The card's prototype at H = 12: POPLER .079, importance sampling .247, trees .045 for a fiftieth of the draws."""
    where = "singletons(horizon=12)"
    popler = run_of("popler", where)
    episodes = popler.context.spent.samples
    weighed = run_of("importance-sampling", where, f"samples={episodes}")
    trees = run_of("trajectory-tree", where, "queries=20000")
    error = [run.context.metrics["class_error"] for run in (popler, weighed, trees)]
    assert popler.context.finished and episodes <= 4000 + 48 * 600
    reached(-error[0], -0.16)
    reached(error[1] / error[0], 1.5)
    reached(-error[2], -0.1)
    assert popler.run_state.evaluate()[0]["eval/class_suboptimality"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("horizon", "best"), [(6, 0.525153), (12, 0.325944)])
def test_the_rich_lock_is_worth_what_was_worked_out(horizon: int, best: float) -> None:
    lock = RichLock(horizon=horizon, instance=3)
    assert float(lock.mdp.class_worths.max()) == pytest.approx(best, abs=1e-6)
    assert lock.mdp.optimum == pytest.approx(0.9)  # by the secret code without noise, which the class does not hold
    policies = lock.mdp.policies.policies
    share = policies.double().mean(-1)  # of action 1, by policy and layer
    assert torch.allclose(torch.minimum(share, 1 - share), torch.tensor(0.1, dtype=torch.float64))


def test_the_emulator_is_exact_where_its_table_is_the_problem() -> None:
    """States that are their own observations, sure moves and sure rewards: each decoding is right, each value exact."""
    lock = "combination-lock(horizon=4,choices=2,keep=1.0,consolation=0)"
    run = run_of("policy-emulator", lock, rollouts="2")
    assert run.context.finished and run.context.iteration == 4
    assert run.run_state.models["values"].estimates.tolist() == run.run_state.mdp.class_worths.tolist()
    table = run.run_state.models["emulator"]
    loop = make_loop(
        RunConfig(method="policy-emulator", task="two", budget="iterations=9", tensorboard=False),
        given=PythonObjects(environment=begins_anywhere),
    )[0]
    loop.iterate(), loop.iterate()
    assert 0.5 < float(loop.run_state.models["values"].estimates[0]) < 1.5
    assert run.context.spent.queries == 4 * 60 * 2 * (2 + 2) and int(table.observed.min()) >= 0


def test_the_emulator_values_a_class_whose_data_say_nothing_of_each_other() -> None:
    """The card's prototype at H = 12: an error of .039, importance sampling .331 at as many episodes."""
    where = "rich-lock(horizon=12)"
    emulator = run_of("policy-emulator", where)
    weighed = run_of("importance-sampling", where, f"samples={emulator.context.spent.samples}")
    reached(-emulator.context.metrics["class_error"], -0.15)
    reached(weighed.context.metrics["class_error"], 0.2)
    assert emulator.run_state.evaluate()[0]["eval/class_suboptimality"] < 1e-9


@pytest.mark.parametrize("method", CHOOSERS)
def test_a_class_that_is_not_stated_is_one_action_everywhere(method: str) -> None:
    loop = loop_of(method, "combination-lock(horizon=2,choices=2)")
    loop.iterate()
    mdp = loop.run_state.mdp
    assert mdp.policies is None and len(mdp.policy_class) == 2
    assert loop.context.metrics["class_error"] < 0.3
    assert "eval/class_suboptimality" not in loop.run_state.evaluate()[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([[0, 2]], "take actions that are none of the 2"),
        ([[0, 0.5]], "take actions that are none of the 2"),
        ([[0, 0, 0]], "must be \\[N, 2, 2\\]"),
        ("x", "cannot be read as an array of actions"),
        (PolicyClass([[0, 1]], petals=[[], []]), "1 policies in the class, and petals for 2"),
        (PolicyClass([[0, 1]], petals=[[(2, 0)]]), "petal \\(2, 0\\) is none of 2 layers"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(given: Any, said: str) -> None:
    stay = [[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2]
    with pytest.raises(UserError, match=said):
        FiniteMDP(stay, [[0.0, 0.0], [1.0, 1.0]], horizon=2, policies=given)


@pytest.mark.parametrize(
    ("method", "where", "settings", "said"),
    [
        ("popler", "singletons(access=generative)", {}, "asks for episodes access"),
        ("trajectory-tree", "singletons(access=episodes)", {}, "asks for generative access"),
        ("psdp", "singletons(access=episodes)", {}, "asks for reset-to-distribution access"),
        ("policy-emulator", "rich-lock(access=reset-to-distribution)", {}, "asks for reset-to-state access"),
        ("cpi", "reset-ladder(access=episodes)", {}, "asks for reset-to-distribution access"),
        ("cpi", "reset-ladder", {"begins_with": "2"}, "has 2 policies, numbered from 0; there is no 2"),
        ("trajectory-tree", "river-swim", {}, "trajectory-tree is for problems with a horizon"),
        ("popler", "river-swim(discount=0.9)", {}, "popler is for problems with a horizon"),
    ],
)
def test_bad_input_gets_one_sentence(method: str, where: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        loop_of(method, where, **settings).iterate()


# --------------------------------------------------------------------------------- everybody's own problem


def own(**kind: Any) -> FiniteMDP:
    """Two banks of a lake, with rewards beyond [0, 1]."""
    stay, cross = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.2], [0.2, 0.8]]
    return FiniteMDP([[stay[s], cross[s]] for s in range(2)], [[-0.5, 0.0], [3.0, 1.0]], **kind)


@pytest.mark.parametrize("method", ["loop-amdp", "nora", *CHOOSERS, "psdp", "cpi", "policy-emulator"])
@pytest.mark.parametrize("kind", [{}, {"horizon": 3}], ids=["average", "horizon"])
def test_a_problem_of_ones_own_runs_under_each_method_whose_access_it_grants(method: str, kind: dict[str, Any]) -> None:
    config = RunConfig(method=method, task="lake", budget="iterations=40", evaluations=1, tensorboard=False)
    fits = (method == "loop-amdp") == (not kind)

    def make() -> FiniteMDP:
        return own(**kind)

    def run() -> Any:
        loop = make_loop(config, given=PythonObjects(environment=make))[0]
        while not loop.context.over:
            loop.iterate()
        return loop

    if not fits:
        with pytest.raises(UserError, match=r"asks for \w+(-\w+)* access|problems with a horizon|average reward"):
            run()
        return
    loop = run()
    found = loop.run_state.evaluate()[0]
    assert 0 <= found["eval/suboptimality"] <= loop.run_state.mdp.optimum - float(loop.run_state.mdp.class_worths.min())
    if method in CHOOSERS:
        assert loop.context.metrics["class_error"] < 1.5


OWN = """
import numpy as np
from polyrl.tasks.theory import FiniteMDP


def make(kind: str = "horizon", known: bool = False) -> FiniteMDP:
    stay, cross = np.eye(2), np.array([[0.8, 0.2], [0.2, 0.8]])
    how = {"horizon": {"horizon": 3}, "discount": {"discount": 0.9}, "average": {}}[kind]
    arrays = np.stack([stay, cross], 1), [[0.1, 0.0], [1.0, 0.5]]
    models = [FiniteMDP(arrays[0], np.array(arrays[1]) * share, **how) for share in (1.0, 0.5)]
    features = np.eye(4).reshape(2, 2, 4)
    return FiniteMDP(*arrays, **how, models=models if known else [], features=features if known else None)
"""
RUNS: dict[str, set[str]] = {
    "horizon": {"nora", "popler", "importance-sampling", "trajectory-tree", "psdp", "cpi", "policy-emulator"},
    "average": {"loop-amdp"},
    "average,known=true": {"loop-amdp", "loop-amdp-linear", "loop-amdp-mixture", "loop-amdp-models"},
    "discount": set(),
}
"""Methods of theory that solve a user's problem of each kind."""
WANTS = {
    "bilevel-penalty": "learns a reward of features",
    "bilevel-penalty-sampled": "learns a reward of features",
    "umt-psr": "learns a model of a joint class",
    "dr-rpo": "robust",
    "dr-lsvi-ucb": "robust",
}
"""Methods that want more than arrays of transition and reward, and what they say then."""
THEORY = sorted(slug for slug, info in catalogue.methods().items() if info.module.startswith("polyrl.methods.theory."))


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("method", THEORY)
def test_a_problem_in_a_file_runs_under_every_method_of_theory_or_is_told_why_not(
    tmp_path: Path, method: str, kind: str
) -> None:
    """All methods that the catalogue has, so that a new one has to be put into one of the two tables."""
    file = tmp_path / "lake.py"
    file.write_text(OWN, encoding="utf-8")
    config = RunConfig(
        method=method, task=f"{file}:make(kind={kind})", budget="iterations=3", evaluations=1, tensorboard=False
    )

    def run() -> Any:
        loop = make_loop(config)[0]
        while not loop.context.over:
            loop.iterate()
        return loop

    if method in RUNS[kind]:
        found = run().run_state.evaluate()[0]
        assert found["eval/suboptimality"] >= -1e-12
        return
    said = r"asks for \w+(-\w+)* access|problems with a horizon|average reward|states none|" + WANTS.get(method, "none")
    assert method in set().union(*RUNS.values(), WANTS)
    with pytest.raises(UserError, match=said) as refused:
        run()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("loop-amdp", "river-swim"),
        ("loop-amdp-models", "river-class"),
        ("loop-amdp-linear", "linear-river"),
        ("loop-amdp-mixture", "river-class"),
        ("nora", "stochastic-lock"),
        *((method, "singletons(horizon=4)") for method in CHOOSERS),
        ("cpi", "reset-ladder"),
        ("policy-emulator", "rich-lock(horizon=4)"),
        ("bilevel-penalty", "reward-bandit"),
        ("bilevel-penalty-sampled", "reward-bandit"),
        ("umt-psr", "shared-pomdps"),
    ],
)
def test_a_method_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, method: str, where: str) -> None:
    def numbers(folder: Path) -> str:
        return repr([{k: v for k, v in r.items() if "second" not in k} for r in read_records(folder)])

    stated: dict[str, Any] = {"budget": "iterations=4", "seed": SEED, "evaluations": 1, "checkpoint_every": 1}
    config = RunConfig(method=method, task=where, tensorboard=False, **stated)
    start_run(config, tmp_path / "whole").run()
    stopped_after(start_run(config, tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
