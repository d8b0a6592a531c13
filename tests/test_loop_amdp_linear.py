"""LOOP with linear classes and mixtures: regressions by plain sums, sets by brute force, the table as a limit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from conftest import SEED, reached
from polyrl.arguments import PythonObjects
from polyrl.errors import UserError
from polyrl.methods.theory.loop_amdp import Followed
from polyrl.methods.theory.loop_amdp_linear import Fitted, LinearHypothesis, LinearlyFitted
from polyrl.methods.theory.loop_amdp_mixture import MixtureFitted, MixtureHypothesis
from polyrl.models.finite import Counts
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.theory.families import LinearRiver, RiverClass, RiverSwim, river
from polyrl.tasks.theory.finite import FiniteMDP, OwnFiniteTask

torch.set_num_threads(1)
Array = NDArray[np.float64]
LINEAR, MIXTURE = "loop-amdp-linear", "loop-amdp-mixture"
RIVER = river(4, (0.05, 0.6, 0.35), 0.05, 1.0)


def loop_of(method: str, budget: str, task: str = "", made: FiniteMDP | None = None, **s: str) -> Any:
    config = RunConfig(
        method=method, task=task or "one", budget=budget, seed=SEED, hyperparameters=s, evaluations=1, tensorboard=False
    )

    def make() -> FiniteMDP:
        assert made
        return made

    return make_loop(config, given=PythonObjects(environment=make) if made else PythonObjects())[0]


def run_of(method: str, budget: str, **given: Any) -> Any:
    loop = loop_of(method, budget, **given)
    while not loop.context.over:
        loop.iterate()
    return loop


def of_features(features: Any, **more: Any) -> FiniteMDP:
    return FiniteMDP(*RIVER, reward_noise="bernoulli", features=features, **more)


def overlapping(seed: int = 0, d: int = 5) -> FiniteMDP:
    """A river of four places whose eight pairs share five features."""
    drawn = torch.randn(4, 2, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return of_features(drawn)


def outcomes() -> FiniteMDP:
    """A river, and models that are each sure of one outcome of one pair: all rewards and moves are mixtures of them."""
    models = []
    for s, a, t, paid in itertools.product(range(4), range(2), range(4), (0.0, 1.0)):
        moves, reward = torch.full((4, 2, 4), 0.25).double(), torch.full((4, 2), 0.5).double()
        moves[s, a] = torch.eye(4)[t]
        reward[s, a] = paid
        models.append(FiniteMDP(moves, reward, reward_noise="bernoulli"))
    return FiniteMDP(*RIVER, reward_noise="bernoulli", models=models)


def linear_of(mdp: FiniteMDP, width: float = 0.2, span: float = 1e9) -> LinearlyFitted:
    rank = int(torch.linalg.matrix_rank(mdp.features.flatten(0, 1)))
    return LinearlyFitted(mdp, rank, 1.0, span, width)


def steps_of(many: int, seed: int, states: int = 4, actions: int = 2) -> tuple[Tensor, ...]:
    """States, actions, rewards and next states `[many]` of anything."""
    stream = torch.Generator().manual_seed(seed)
    state, action, after = (torch.randint(high, (many,), generator=stream) for high in (states, actions, states))
    return state, action, torch.rand(many, generator=stream, dtype=torch.float64), after


def counted(steps: tuple[Tensor, ...], states: int = 4, actions: int = 2) -> Counts:
    counts = Counts(1, states, actions)
    state, action, reward, after = steps
    counts.add(torch.zeros_like(state), state, action, after, reward)
    return counts


def expected_counts(mdp: FiniteMDP, many: float) -> Counts:
    counts = Counts(*mdp.shape)
    counts.visits.copy_(many * mdp.transition)
    counts.earned.copy_(many * mdp.reward)
    return counts


def hold(followed: Followed, counts: Counts) -> float:
    """Follow what is chosen; its gain."""
    backed_up, value, gain = followed.chosen(counts)
    followed.backed_up.copy_(backed_up)
    followed.value.copy_(value)
    followed.seen.copy_(counts.visits[0].sum(-1))
    return gain


def claim(followed: Fitted, seed: int) -> None:
    """Any Q + J and V."""
    stream = torch.Generator().manual_seed(seed)
    followed.backed_up.copy_(torch.randn(followed.backed_up.shape, generator=stream, dtype=torch.float64))
    followed.value.copy_(torch.rand(followed.value.shape, generator=stream, dtype=torch.float64) * 2)


def regressed(followed: Fitted, steps: tuple[Tensor, ...], features: Array) -> Array:
    """The best function of all pairs by NumPy's least squares on single steps, features `[S, A, d]`."""
    state, action, reward, after = (column.numpy() for column in steps)
    target = reward + followed.value.numpy()[after]
    weights = np.linalg.lstsq(features[state, action], target, rcond=None)[0]
    return np.asarray(features @ weights)


# ------------------------------------------------------------------------------------------------- the linear class


@pytest.mark.parametrize("many", [3, 60])
def test_the_excess_is_the_quadratic_form_of_the_regression_on_single_steps(many: int) -> None:
    """For a linear Q + J also the squared error over all steps less that of the best function, |u - u_V|^2_Lambda."""
    mdp = overlapping()
    features, steps = mdp.features.numpy(), steps_of(many, 1)
    followed, counts = linear_of(mdp), counted(steps)
    claim(followed, 2)
    state, action, reward, after = (column.numpy() for column in steps)
    best = regressed(followed, steps, features)
    plain = sum((followed.backed_up.numpy()[s, a] - best[s, a]) ** 2 for s, a in zip(state, action, strict=True))
    assert float(followed.excess(counts).sum()) == pytest.approx(plain)
    u = np.arange(5) / 3 - 0.5
    followed.backed_up.copy_(torch.from_numpy(features @ u))
    target = reward + followed.value.numpy()[after]
    losses = [float(((f[state, action] - target) ** 2).sum()) for f in (features @ u, best)]
    assert float(followed.excess(counts).sum()) == pytest.approx(losses[0] - losses[1])


def test_the_bonus_is_the_most_that_any_function_of_the_set_claims() -> None:
    """Two features: around the boundary of {|u - u_V|^2_Lambda <= width}, each pair's largest claim."""
    mdp = overlapping(d=2)
    features, steps, width = mdp.features.numpy(), steps_of(30, 3), 0.3
    state, action, _, _ = (column.numpy() for column in steps)
    precision = features[state, action].T @ features[state, action]
    turn = np.linspace(0, 2 * math.pi, 20_001)
    around = np.linalg.solve(np.linalg.cholesky(precision).T, np.stack([np.cos(turn), np.sin(turn)]))
    largest = math.sqrt(width) * (features @ around).max(-1)
    counts = counted(steps)
    followed, plain = linear_of(mdp, width), linear_of(mdp, 0.0)
    n, _ = followed.sums(counts, np.zeros(4))
    regress, known = followed.seen_by(n, followed.basis(np.zeros(4))[1])
    assert known.all()
    assert np.allclose(np.sqrt(width * regress.diagonal()).reshape(4, 2), largest, rtol=1e-6)
    assert np.isclose((n * regress.diagonal()).sum(), 2)  # so the whole set is d times as wide as that of a pair
    raised = hold(followed, counts)
    assert raised > hold(plain, counts)


def test_a_grid_of_linear_functions_is_cut_as_by_single_losses() -> None:
    """Which of 441 hypotheses with two features are in the set: by their losses on all steps, one after another."""
    mdp = overlapping(seed=4, d=2)
    features, steps, beta = mdp.features.numpy(), steps_of(40, 5), 2.0
    followed, counts = linear_of(mdp), counted(steps)
    state, action, reward, after = (column.numpy() for column in steps)
    inside = 0
    for u in itertools.product(np.linspace(-1, 1, 21), repeat=2):
        claimed = features @ np.array(u)
        value = claimed.max(1) - claimed.max(1).min()
        followed.backed_up.copy_(torch.from_numpy(claimed))
        followed.value.copy_(torch.from_numpy(value))
        target = reward + value[after]
        best = regressed(followed, steps, features)
        excess = float(((claimed[state, action] - target) ** 2).sum() - ((best[state, action] - target) ** 2).sum())
        assert (float(followed.excess(counts).sum()) <= beta) == (excess <= beta) or abs(excess - beta) < 1e-9
        inside += excess <= beta
    assert 3 < inside < 400


def test_a_direction_that_was_not_seen_is_worth_the_most_and_one_that_follows_from_others_is_not() -> None:
    """Half an effort at a place is known from none and a whole one there, and at another place from neither."""
    task = LinearRiver(length=3, sights=2)
    followed = LinearHypothesis().tables(task)
    assert followed.dimension == 6 and followed.backed_up.shape == (6, 3)
    counts = Counts(*task.mdp.shape)
    counts.visits[0, 0, 0, 1] = 4  # no effort in one sight of the first place
    counts.visits[0, 1, 2, 2] = 9  # and a whole one in the other
    n, _ = followed.sums(counts, np.zeros(6))
    regress, known = followed.seen_by(n, followed.basis(np.zeros(6))[1])
    assert known.reshape(6, 3).tolist() == [[True] * 3] * 2 + [[False] * 3] * 4
    assert regress.diagonal()[:6].tolist() == pytest.approx([1 / 4, (1 / 4 + 1 / 9) / 4, 1 / 9] * 2)
    counts.visits[0, 0, 0, 1] = 0
    known = followed.seen_by(followed.sums(counts, np.zeros(6))[0], followed.basis(np.zeros(6))[1])[1]
    assert known.reshape(6, 3).tolist() == [[False, False, True]] * 2 + [[False] * 3] * 4
    assert hold(followed, Counts(*task.mdp.shape)) == pytest.approx(1.0, abs=1e-6)


def test_one_feature_for_each_pair_is_the_table() -> None:
    one_hot = of_features(torch.eye(8).view(4, 2, 8))
    for many, width, span in ((0, 0.3, 9.0), (5, 0.3, 9.0), (300, 0.3, 1.0), (300, 0.0, 9.0)):
        counts = counted(steps_of(many, 6))
        table, linear = Followed(4, 2, 1.0, span, width), linear_of(one_hot, width, span)
        assert linear.dimension == 8
        assert hold(table, counts) == pytest.approx(hold(linear, counts), abs=1e-12)
        assert torch.allclose(table.backed_up, linear.backed_up, atol=1e-12)
        assert torch.allclose(table.value, linear.value, atol=1e-12)
        assert torch.allclose(table.excess(counts), linear.excess(counts), atol=1e-9)


def test_a_run_with_one_feature_for_each_pair_is_that_of_the_table() -> None:
    table = run_of("loop-amdp", "steps=1500", task="river-swim")
    linear = run_of(LINEAR, "steps=1500", task="linear-river(sights=1,efforts=2)")
    for name in ("switches", "cumulative_regret", "excess", "optimistic_gain"):
        assert linear.context.metrics[name] == pytest.approx(table.context.metrics[name], rel=1e-9), name
    assert linear.context.metrics["switches"] >= 3
    counts = [loop.run_state.models["counts"].visits for loop in (table, linear)]
    assert torch.equal(*counts)
    assert torch.equal(linear.run_state.policy, table.run_state.policy)


def test_features_may_be_replaced_by_an_invertible_mixture_of_them() -> None:
    stream = torch.Generator().manual_seed(8)
    mixing = torch.randn(5, 5, generator=stream, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 50.0, 1.0, 1.0])
    mdp = overlapping(7)
    other = of_features(mdp.features @ mixing)
    redundant = of_features(torch.cat([mdp.features, mdp.features.sum(-1, keepdim=True)], -1))
    for many in (4, 200):
        counts = counted(steps_of(many, 9))
        one = linear_of(mdp)
        gain = hold(one, counts)
        for changed in (linear_of(other), linear_of(redundant)):
            assert changed.dimension == 5 and hold(changed, counts) == pytest.approx(gain, abs=1e-6)
            assert torch.allclose(changed.backed_up, one.backed_up, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mixture"])
def test_the_step_at_which_it_no_longer_fits_is_that_of_the_excess_step_by_step(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"linear": lambda: linear_of(overlapping(), 0.5), "mixture": lambda: mixture_of(small(), 0.5)}[kind]
    followed, before, new = made(), steps_of(8, 10), steps_of(300, 11)
    counts = counted(before)
    hold(followed, counts)
    state, action, reward, after = new
    found = followed.left(counts, 2 * state + action, reward, after)
    limit = 3 * followed.dimension * 0.5
    assert found is not None and 2 < found < 299
    now = counted(before)
    for t in range(found + 1):
        assert float(followed.excess(now).sum()) < limit
        zero = torch.zeros(1).long()
        now.add(zero, state[t : t + 1], action[t : t + 1], after[t : t + 1], reward[t : t + 1])
    assert float(followed.excess(now).sum()) >= limit
    monkeypatch.setattr("polyrl.methods.theory.loop_amdp_linear.ENTRIES", 60)  # a few steps at a time
    assert followed.left(counts, 2 * state + action, reward, after) == found
    followed.width = 1e9
    assert followed.left(counts, 2 * state + action, reward, after) is None


def test_right_after_a_choice_the_set_of_a_pair_is_spent_in_each_direction() -> None:
    """n phi^T Lambda^-1 phi sums to d: so the trigger is that of the whole set, and does not fire at once."""
    followed = LinearHypothesis(span=100.0).tables(LinearRiver())
    counts = expected_counts(LinearRiver().mdp, 5000.0)
    hold(followed, counts)
    assert float(followed.excess(counts).sum()) == pytest.approx(12 * followed.width, rel=1e-3)


def test_doubling_is_that_of_the_determinant_and_seldom() -> None:
    """By NumPy's determinant after each step; and as often as log2 det(I + Lambda) allows, d log2(1 + T / d)."""
    followed, before, new = linear_of(overlapping()), steps_of(20, 12), steps_of(200, 13)
    counts = counted(before)
    hold(followed, counts)
    pairs = 2 * new[0] + new[1]
    found = followed.doubled(counts, pairs)
    basis = followed.basis(np.zeros(4))[1]

    def determinant(n: Array) -> float:
        return float(np.linalg.det(np.eye(5) + basis.T @ np.diag(n) @ basis))

    n = counts.visits[0].sum(-1).flatten().numpy()
    begun = determinant(n)
    assert found is not None
    for t, pair in enumerate(pairs[: found + 1].tolist()):
        n[pair] += 1
        assert (determinant(n) >= 2 * begun - 1e-6) == (t == found)
    loop = run_of(LINEAR, "steps=1500", task="linear-river(length=4)", replan="doubling")
    assert 8 < loop.context.metrics["switches"] <= 8 * math.log2(1 + 1500 / 8)


@pytest.mark.parametrize("replan", ["excess", "doubling"])
@pytest.mark.parametrize(
    ("method", "task"), [(LINEAR, "linear-river(length=4)"), (MIXTURE, "river-class")], ids=["linear", "mixture"]
)
def test_the_stream_is_the_same_in_whatever_pieces_it_is_drawn(method: str, task: str, replan: str) -> None:
    whole = run_of(method, "steps=150", task=task, replan=replan)
    single = run_of(method, f"steps={whole.context.spent.steps}", task=task, replan=replan, steps="1")
    assert single.context.iteration > 3 * whole.context.iteration
    for name in ("cumulative_regret", "switches", "excess", "optimistic_gain"):
        assert whole.context.metrics[name] == pytest.approx(single.context.metrics[name], rel=1e-6, abs=1e-9), name


def test_the_river_is_linear_in_its_features_and_one_sight_of_two_efforts_is_river_swim() -> None:
    """The backup of any V is a linear function: Bellman complete. Sights and efforts change neither gain nor span."""
    mdp, swim = LinearRiver(efforts=4, sights=2).mdp, RiverSwim().mdp
    features = mdp.features.flatten(0, 1).numpy()
    for seed in range(3):
        value = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        backup = (mdp.reward[0] + mdp.transition[0] @ value).flatten().numpy()
        fitted = features @ np.linalg.lstsq(features, backup, rcond=None)[0]
        assert np.allclose(fitted, backup, atol=1e-12)
    assert mdp.optimum == pytest.approx(swim.optimum, abs=1e-9)
    assert mdp.constants["span"] == pytest.approx(swim.constants["span"], abs=1e-6)
    same = LinearRiver(sights=1, efforts=2).mdp
    assert torch.equal(same.transition, swim.transition) and torch.equal(same.reward, swim.reward)
    assert len(set(mdp.states)) == 12 and mdp.actions == ("0", "0.333333", "0.666667", "1")


def test_what_pairs_have_in_common_is_learned_once() -> None:
    """Eighteen states and three actions are 54 pairs and twelve features: a table has four times the regret."""
    linear, table = (run_of(m, "steps=6000", task="linear-river") for m in (LINEAR, "loop-amdp"))
    regret = [loop.run_state.evaluate()[0]["eval/cumulative_regret"] for loop in (linear, table)]
    reached(-linear.run_state.evaluate()[0]["eval/suboptimality"], -1e-6)
    reached(regret[1] / regret[0], 2.5)


# -------------------------------------------------------------------------------------------------------- mixtures


def small() -> FiniteMDP:
    """Three rivers of four places, of which the true one is a mixture."""
    models = [
        FiniteMDP(*river(4, (0.05, 0.95 - up, up), low, 1.0), reward_noise="bernoulli")
        for up, low in ((0.1, 0.3), (0.2, 0.05), (0.5, 0.3))
    ]
    share = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    moves = torch.einsum("k,ksat->sat", share, torch.stack([m.transition[0] for m in models]))
    reward = torch.einsum("k,ksa->sa", share, torch.stack([m.reward[0] for m in models]))
    return FiniteMDP(moves, reward, reward_noise="bernoulli", models=models)


def mixture_of(mdp: FiniteMDP, width: float = 0.2, span: float = 1e9) -> MixtureFitted:
    made = MixtureHypothesis(span=span).tables(OwnFiniteTask(name="own", made=mdp))
    made.width = width
    return made


def test_the_best_mixture_is_that_of_least_squares_whose_shares_sum_to_1() -> None:
    mdp, steps = small(), steps_of(50, 14)
    followed, counts = mixture_of(mdp), counted(steps)
    claim(followed, 15)
    value = followed.value.numpy()
    x = np.stack([(m.reward[0] + m.transition[0] @ followed.value).numpy() for m in mdp.models], -1)  # [S, A, K]
    state, action, reward, after = (column.numpy() for column in steps)
    target = reward + value[after]
    rows = x[state, action]
    shares = np.linalg.lstsq(rows[:, 1:] - rows[:, :1], target - rows[:, 0], rcond=None)[0]
    best = x[..., 0] + (x[..., 1:] - x[..., :1]) @ shares  # theta_0 is 1 less the others
    plain = ((followed.backed_up.numpy()[state, action] - best[state, action]) ** 2).sum()
    assert float(followed.excess(counts).sum()) == pytest.approx(plain)


def test_a_constant_added_to_v_changes_nothing_and_where_models_agree_nothing_is_to_learn() -> None:
    followed, counts = mixture_of(small()), counted(steps_of(30, 16))
    claim(followed, 17)
    before = followed.excess(counts)
    followed.value.add_(3.0)
    followed.backed_up.add_(3.0)
    assert torch.allclose(followed.excess(counts), before, atol=1e-8)
    value = np.array([0.0, 1.0, 1.5, 4.0])
    common, basis = followed.basis(value)
    regress, known = followed.seen_by(np.zeros(8), basis)
    assert not regress.any()
    assert known.reshape(4, 2).tolist() == [[False, True], [True, False], [True, False], [True, True]]
    assert common[2] == pytest.approx(0.0 + value[0])  # left in the second place leads to the first in all models


def test_with_all_that_there_is_to_know_a_mixture_is_found_that_no_model_is() -> None:
    mdp = small()
    assert min(float((m.transition - mdp.transition).abs().max()) for m in mdp.models) > 0.03
    followed = mixture_of(mdp, 0.0)
    counts = expected_counts(mdp, 100.0)
    assert hold(followed, counts) == pytest.approx(mdp.optimum, abs=1e-6)
    assert torch.allclose(followed.value, mdp.solution.value, atol=1e-4)
    assert torch.allclose(followed.backed_up, mdp.solution.q[0] + mdp.solution.gain[0], atol=1e-4)
    gains = [float(m.solution.gain[0]) for m in mdp.models]
    nothing = mixture_of(mdp, 0.0)
    assert (
        hold(nothing, Counts(*mdp.shape)) > max(gains) - 1e-5
    )  # the best outcome of each pair is at least the best model
    assert hold(mixture_of(mdp, 1.0), expected_counts(mdp, 5.0)) > mdp.optimum


def test_models_of_single_outcomes_are_the_table() -> None:
    mdp = outcomes()
    for many, width, span in ((0, 0.3, 9.0), (5, 0.3, 9.0), (300, 0.3, 1.0), (300, 0.0, 9.0)):
        counts = counted(steps_of(many, 18))
        counts.earned.copy_(counts.earned.round().clamp(max=counts.visits.sum(-1)))
        table, mixture = Followed(4, 2, 1.0, span, width), mixture_of(mdp, width, span)
        assert mixture.dimension == 8
        assert hold(table, counts) == pytest.approx(hold(mixture, counts), abs=1e-9)
        assert torch.allclose(table.backed_up, mixture.backed_up, atol=1e-9)
        assert torch.allclose(table.excess(counts), mixture.excess(counts), atol=1e-7)


def test_a_run_with_models_of_single_outcomes_is_that_of_the_table() -> None:
    made = outcomes()
    table, mixture = (run_of(m, "steps=400", made=made) for m in ("loop-amdp", MIXTURE))
    for name in ("switches", "cumulative_regret", "excess", "optimistic_gain"):
        assert mixture.context.metrics[name] == pytest.approx(table.context.metrics[name], rel=1e-6), name
    assert torch.equal(*(loop.run_state.models["counts"].visits for loop in (table, mixture)))


def test_the_rivers_differ_in_four_directions_and_a_mixture_learns_sooner_than_a_table() -> None:
    river_class = RiverClass(up=0.35, small=0.005, large=1.0)
    assert MixtureHypothesis().tables(river_class).dimension == 4
    task = "river-class(up=0.35,small=0.005,large=1.0)"
    loop = run_of(MIXTURE, "steps=4000", task=task)
    found = loop.run_state.evaluate()[0]
    reached(-found["eval/suboptimality"], -1e-6)
    reached(-found["eval/cumulative_regret"], -40)
    assert loop.context.metrics["switches"] <= 8


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("method", "task", "settings", "said"),
    [
        (LINEAR, "river-swim", {}, "is linear in features, and river-swim states none; try --task linear-river"),
        (MIXTURE, "river-swim", {}, "mixes the models of a class, and river-swim states none; try --task river-class"),
        (LINEAR, "linear-river", {"width": "0"}, "say when to leave it, --replan doubling"),
        (LINEAR, "linear-river(efforts=1)", {}, "efforts=1, which is out of its range"),
        (LINEAR, "combination-lock", {}, "asks for stream access"),
        (MIXTURE, "river-swim(discount=0.9)", {}, "is for problems of average reward"),
    ],
)
def test_bad_input_gets_one_sentence(method: str, task: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_of(method, "steps=100", task=task, **settings)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.zeros(4, 2), r"features have the shape \[4, 2\] but must be \[4, 2\] and d numbers each"),
        (torch.zeros(2, 4, 3), r"features have the shape \[2, 4, 3\]"),
        (torch.zeros(4, 2, 3), "must be finite numbers, and not all of them 0"),
        (torch.full((4, 2, 1), math.nan), "must be finite numbers"),
        ("many", "features cannot be read as an array"),
    ],
)
def test_features_that_are_none_are_refused(features: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        of_features(features)


def test_backups_that_go_in_circles_are_calmed_and_what_is_left_is_told() -> None:
    """Half of the steps' share that a table takes for ever; and a backup without a fixed point is told from one."""
    followed, circles = linear_of(overlapping(), span=5.0), []

    def turning(value: Array) -> Array:
        found = np.zeros((4, 2))
        found[:, 0] = [0.0, 0.5, 1.6 - 1.4 * value[2], 0.5]
        circles.append(value[2])
        return found

    _, value, _ = followed.settled(turning)
    assert followed.unsettled < 1e-6 and float(value[2]) == pytest.approx(1.6 / 2.4, abs=1e-5)
    assert 200 < len(circles) < 3000 and abs(circles[150] - circles[149]) > 0.1

    def jumping(value: Array) -> Array:
        return np.array([[0.0, 0.0], [0.5, 0.0], [1.0 if value[2] < 0.5 else 0.0, 0.0], [0.5, 0.0]])

    followed.settled(jumping)
    assert followed.unsettled > 0.1
    loop = loop_of(LINEAR, "steps=50", made=overlapping(), replan="doubling")
    loop.iterate()
    assert "unsettled" not in loop.context.metrics
    loop.run_state.models["hypothesis"].chosen = lambda counts, luck: followed.settled(jumping)
    loop.run_state.models["hypothesis"].unsettled = 0.3
    for _ in range(3):
        loop.iterate()
    assert loop.context.metrics["unsettled"] == 0.3
