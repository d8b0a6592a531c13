"""UMT-PSR: the card's figures, histories and plans by brute force, the set by plain loops, limits, certificates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached
from polyrl.core.experience import Experience
from polyrl.core.update import Fresh, See
from polyrl.errors import UserError
from polyrl.methods.theory.umt_psr import SLUG, NarrowModels, confidence, telling
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.theory.shared_pomdps import MODELS, SharedPOMDPs, best_response, distances, histories

torch.set_num_threads(1)
Model = tuple[float, ...]


def loop_of(task: str = "shared-pomdps", budget: str = "", seed: int = SEED, **settings: str) -> Any:
    config = RunConfig(
        method=SLUG, task=task, budget=budget, seed=seed, hyperparameters=settings, evaluations=1, tensorboard=False
    )
    return make_loop(config)[0]


def run_of(**given: Any) -> Any:
    loop = loop_of(**given)
    while not loop.context.over:
        loop.iterate()
    return loop


def by_hand(model: Model, seen: tuple[int, ...], done: tuple[int, ...]) -> float:
    """p(observations || actions): a sum over every way that the hidden state can go."""
    p, q, *shows = model
    total = 0.0
    for hidden in itertools.product(range(2), repeat=len(seen)):
        chance = 0.5
        for h, (state, observation) in enumerate(zip(hidden, seen, strict=True)):
            if h:
                stays = (p, 1 - q)[done[h - 1]]
                chance *= stays if state == hidden[h - 1] else 1 - stays
            chance *= shows[state] if observation == state else 1 - shows[state]
        total += chance
    return total


def sequences(horizon: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Observations and actions of every sequence, in the order of their numbers."""
    for digits in itertools.product(range(2), repeat=2 * horizon - 1):
        yield digits[::2], digits[1::2]


def policies(horizon: int) -> Iterator[Tensor]:
    """pi(sequence) `[X]` of every deterministic policy of histories."""
    before = [(h, seen) for h in range(1, horizon) for seen in itertools.product(range(2), repeat=h)]
    for chosen in itertools.product(range(2), repeat=len(before)):
        acts = dict(zip((seen for _, seen in before), chosen, strict=True))
        yield torch.tensor(
            [float(all(acts[o[:h]] == a[h - 1] for h in range(1, horizon))) for o, a in sequences(horizon)],
            dtype=torch.float64,
        )


# -------------------------------------------------------------------------------------- likelihoods and plans


@pytest.mark.parametrize("horizon", [2, 3, 4])
@pytest.mark.parametrize("model", [(0.75, 0.7, 0.9, 0.7), (0.6, 0.9, 0.7, 0.9)])
def test_a_likelihood_is_the_sum_over_all_hidden_states(horizon: int, model: Model) -> None:
    found = histories([(0.5, 0.5, 0.8, 0.8), model], horizon)[-1][1]
    assert found.tolist() == pytest.approx([by_hand(model, *sequence) for sequence in sequences(horizon)], abs=1e-14)


def test_likelihoods_sum_to_1_over_observations_whatever_the_actions_are() -> None:
    everything = histories(MODELS, 3)[-1].view(36, 2, 2, 2, 2, 2)
    assert torch.allclose(everything.sum((1, 3, 5)), torch.ones(36, 2, 2, dtype=torch.float64), atol=1e-14)


def test_figures_of_one_model_are_those_that_were_worked_out() -> None:
    first, second, third = histories([(0.75, 0.7, 0.9, 0.7)], 3)
    assert float(first[0, 0]) == pytest.approx(0.6)
    assert float(second[0, 0]) == pytest.approx(0.405)  # o = 0, a = 0, o = 0
    assert float(second[0, 2]) == pytest.approx(0.324)  # o = 0, a = 1, o = 0
    returns = SharedPOMDPs().returns
    assert returns.tolist() == [0.5 * (o[1] == 1) + 0.5 * (o[2] == 0) for o, _ in sequences(3)]
    assert float(best_response(third * returns)[0]) == pytest.approx(0.57533, abs=5e-6)
    plans = third[0].mul(returns).view(2, 2, 2, 2, 2).sum((0, 2, 4))  # no action depends on what was seen
    assert float(plans.max()) == pytest.approx(0.5)


def test_figures_of_the_class_are_those_that_were_worked_out() -> None:
    task = SharedPOMDPs()
    apart = task.distances
    one, other = MODELS.index((0.6, 0.5, 0.7, 0.7)), MODELS.index((0.9, 0.9, 0.9, 0.9))
    assert float(apart[one, other]) == pytest.approx(0.3584)
    assert float(apart.max()) == pytest.approx(0.43304, abs=5e-6)
    assert float(apart[~torch.eye(36, dtype=torch.bool)].min()) == pytest.approx(0.0276)
    assert torch.equal(apart, apart.T) and not apart.diagonal().any()
    uniform = (task.likelihoods[:, None] - task.likelihoods).abs().sum(-1) / 2 / 4
    assert bool((apart >= uniform - 1e-15).all())
    values = best_response(task.likelihoods * task.returns)[0]
    assert [float(values.min()), float(values.max())] == pytest.approx([0.5076, 0.7560], abs=5e-5)


@pytest.mark.parametrize("horizon", [2, 3])
def test_a_plan_is_the_best_of_all_policies(horizon: int) -> None:
    stream = torch.Generator().manual_seed(horizon)
    weights = torch.rand(3, 2 * 4 ** (horizon - 1), generator=stream, dtype=torch.float64)
    value, _ = best_response(weights)
    best = torch.stack([weights @ policy for policy in policies(horizon)]).max(0).values
    assert torch.allclose(value, best, atol=1e-14)


def test_distances_are_the_largest_total_variation_of_any_policy() -> None:
    found = histories(MODELS[:8], 3)[-1]
    apart = (found[:, None] - found).abs() / 2
    assert torch.allclose(distances(found), torch.stack([apart @ p for p in policies(3)]).max(0).values, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- the task


@pytest.mark.parametrize("horizon", [2, 3, 4])
def test_histories_are_an_mdp_whose_episodes_are_those_of_the_models(horizon: int) -> None:
    """The chance of every sequence and its return, by the transition alone; the optimum by enumeration."""
    task = SharedPOMDPs(tasks=2, horizon=horizon, instance=0)
    mdp = task.mdp
    names = list(mdp.states)
    for n in range(2):
        for number, (seen, done) in enumerate(sequences(horizon)):
            said = f"{n + 1}: {seen[0]}"
            chance, paid, state = float(mdp.initial[names.index(said)]) * 2, 0.0, names.index(said)
            for h, action in enumerate(done):
                paid += float(mdp.reward[h, state, action])
                said += f" a{action} {seen[h + 1]}"
                chance *= float(mdp.transition[h, state, action, names.index(said)])
                state = names.index(said)
            paid += float(mdp.reward[horizon - 1, state, 0])
            assert chance == pytest.approx(by_hand(MODELS[int(task.truth[n])], seen, done), abs=1e-14)
            assert paid == pytest.approx(float(task.returns[number]))
            assert [int(x) for x in task.sequences(torch.tensor(state))] == [n, number]
    value, actions = best_response(task.likelihoods[task.truth] * task.returns)
    assert mdp.optimum == pytest.approx(float(value.mean()))
    assert float(mdp.worth(task.policy(actions))) == pytest.approx(mdp.optimum)


def test_the_joint_class_is_what_is_shared_and_has_the_truth() -> None:
    for instance in range(6):
        for shared, size in (("transition", 9 * 16), ("everything", 36), ("nothing", 36**2)):
            task = SharedPOMDPs(shared=shared, instance=instance)  # type: ignore[arg-type]
            assert len(task.joint) == len(task.joint.unique(dim=0)) == size
            assert bool((task.joint == task.truth).all(1).any())
            moves = task.joint // 4
            assert bool((moves[:, 0] == moves[:, 1]).all()) == (shared != "nothing")
        known = SharedPOMDPs(tasks=1, known_transition=True, instance=instance)
        assert len(known.joint) == 4 and set((known.joint // 4).flatten().tolist()) == {int(known.truth[0]) // 4}
        assert known.truth.tolist() == SharedPOMDPs(tasks=1, instance=instance).truth.tolist()
    four = SharedPOMDPs(tasks=4, instance=5).truth.tolist()
    assert SharedPOMDPs(tasks=2, instance=5).truth.tolist() == four[:2]
    per_problem = [math.log(len(SharedPOMDPs(tasks=n).joint)) / n for n in (1, 2, 4)]
    assert per_problem == pytest.approx([3.5835, 2.4849, 1.9356], abs=5e-5)


# ------------------------------------------------------------------------------------------------ the method


def test_beta_is_the_one_that_was_worked_out() -> None:
    update = NarrowModels("policy", Fresh())
    assert update.beta(9 * 4**4, 3) == pytest.approx(19.8431, abs=5e-5)
    assert update.beta(36, 3) == pytest.approx(15.6842, abs=5e-5)


@pytest.mark.parametrize("problems", [1, 2, 3])
def test_the_set_and_the_pair_are_those_of_plain_loops(problems: int) -> None:
    stream, task = torch.Generator().manual_seed(problems), SharedPOMDPs(tasks=problems)
    said = 3 * torch.randn(problems, 36, generator=stream, dtype=torch.float64)
    found = confidence(task.joint, said, task.distances, 6.0)
    total = {tuple(m): sum(float(said[n, k]) for n, k in enumerate(m)) for m in task.joint.tolist()}
    kept = [m for m, value in total.items() if value >= max(total.values()) - 6.0]
    assert [tuple(m) for m in found.kept.tolist()] == kept and 1 < len(kept) < len(total)
    assert total[tuple(found.best.tolist())] == max(total.values())

    def apart(one: tuple[int, ...], other: tuple[int, ...]) -> float:
        return sum(float(task.distances[i, j]) for i, j in zip(one, other, strict=True))

    assert found.distance == pytest.approx(max(apart(one, other) for one in kept for other in kept))
    assert apart(*map(tuple, found.pair.tolist())) == pytest.approx(found.distance)


def test_pairs_of_a_large_set_are_all_looked_at() -> None:
    task = SharedPOMDPs(tasks=4)
    found = confidence(task.joint, torch.zeros(4, 36, dtype=torch.float64), task.distances, 1.0)
    assert len(found.kept) == 2304 and found.distance == pytest.approx(4 * float(task.distances.max()))
    last = torch.full((4, 36), -5.0, dtype=torch.float64)
    last[:, MODELS.index((0.9, 0.9, 0.9, 0.9))] = 0
    found = confidence(task.joint, last, task.distances, 25.0)
    assert found.best.tolist() == [35] * 4 and bool((task.distances[found.pair[0], found.pair[1]] > 0.4).all())
    far = torch.zeros(3000, 3000, dtype=torch.float64)
    far[2100, 2500] = far[2500, 2100] = 1.0
    found = confidence(torch.arange(3000)[:, None], torch.zeros(1, 3000, dtype=torch.float64), far, 1.0)
    assert found.pair.tolist() == [[2100], [2500]] and found.distance == 1.0


def test_distances_of_two_problems_are_added_and_are_not_that_of_both_together() -> None:
    """p = (.5, .5) against q = (.9, .1), twice: .4 and .4 are .8, where the product laws are .56 apart."""
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.9, 0.1], dtype=torch.float64)
    apart = distances(torch.stack([p, q]))
    both = float((torch.outer(p, p) - torch.outer(q, q)).abs().sum() / 2)
    found = confidence(torch.tensor([[0, 0], [1, 1]]), torch.zeros(2, 2, dtype=torch.float64), apart, 1.0)
    assert found.distance == pytest.approx(0.8) and both == pytest.approx(0.56)


def test_copies_of_one_problem_are_one_with_all_the_data() -> None:
    """On the diagonal class only the sum of the problems' likelihoods counts."""
    stream, task = torch.Generator().manual_seed(4), SharedPOMDPs(tasks=3, shared="everything")
    said = 3 * torch.randn(3, 36, generator=stream, dtype=torch.float64)
    together = confidence(task.joint, said, task.distances, 5.0)
    alone = confidence(torch.arange(36)[:, None], said.sum(0, keepdim=True), task.distances, 5.0)
    assert torch.equal(together.kept[:, :1], alone.kept) and together.best.tolist() == alone.best.tolist() * 3
    assert together.distance == pytest.approx(3 * alone.distance)


def test_one_width_for_a_product_class_keeps_what_separate_sets_would_drop() -> None:
    task = SharedPOMDPs(shared="nothing")
    said = torch.zeros(2, 36, dtype=torch.float64)
    said[0, 1:] = -16.0  # beyond the 15.68 of 36 models, within the 19.27 of 36 squared
    update = NarrowModels("policy", Fresh())
    together = confidence(task.joint, said, task.distances, update.beta(36**2, 3))
    alone = confidence(torch.arange(36)[:, None], said[:1], task.distances, update.beta(36, 3))
    assert len(alone.kept) == 1 and len(together.kept) == 36**2


def test_what_tells_a_pair_apart_sees_their_distance() -> None:
    task = SharedPOMDPs(instance=1)
    pair = torch.tensor([[0, 7], [35, 20]])
    policy = telling(task, pair)
    names = list(task.mdp.states)
    for n in range(2):
        total = 0.0
        for number, (seen, done) in enumerate(sequences(3)):
            said, chance = f"{n + 1}: {seen[0]}", 1.0
            for h, action in enumerate(done):
                chance *= float(policy[h, names.index(said), action])
                said += f" a{action} {seen[h + 1]}"
            total += chance * float((task.likelihoods[pair[0, n]] - task.likelihoods[pair[1, n]])[number].abs()) / 2
        assert total == pytest.approx(float(task.distances[pair[0, n], pair[1, n]]))


def test_the_first_exploration_is_that_of_the_whole_class() -> None:
    loop = loop_of(task="shared-pomdps(tasks=3)")
    task = loop.run_state.task
    pair = confidence(task.joint, torch.zeros(3, 36, dtype=torch.float64), task.distances, 1.0).pair
    assert torch.equal(loop.run_state.policy, telling(task, pair))
    assert len({tuple(column) for column in pair.T.tolist()}) == 1


def test_an_iteration_plays_every_problem_and_every_prefix_once() -> None:
    """N H episodes; those of h follow the exploration policy for h steps, and are uniform afterwards."""
    loop = loop_of(task="shared-pomdps(tasks=2)")
    task, collect = loop.run_state.task, loop.recipe.collect
    rows, explored = torch.arange(6, 12), loop.run_state.policy
    _, states = collect.starts(rows, loop.context)
    assert (states // 42).tolist() == [0, 1] * 3 and bool((states % 42 < 2).all())
    played = collect.policy(rows, loop.context)
    for row, h in enumerate([0, 0, 1, 1, 2, 2]):
        assert torch.equal(played[row, :h], explored[:h]) and torch.equal(played[row, h:], task.mdp.uniform[h:])
    assert float((explored[0] - 0.5).abs().max()) == 0.5
    loop.iterate()
    assert loop.context.spent.samples == 6
    gaps = [task.mdp.optimum - float(task.mdp.worth(policy)) for policy in played]
    assert loop.context.metrics["cumulative_regret"] == pytest.approx(sum(gaps))


def test_more_episodes_are_turns_through_the_same_problems_and_prefixes() -> None:
    once, thrice = loop_of(), loop_of(episodes="3")
    policy = thrice.recipe.collect.policy(torch.arange(18), thrice.context)
    assert torch.equal(policy, once.recipe.collect.policy(torch.arange(6), once.context).repeat(3, 1, 1, 1))
    for loop in (once, thrice):
        loop.iterate()
    assert thrice.context.spent.samples == 18
    regrets = [loop.context.metrics["cumulative_regret"] for loop in (once, thrice)]
    assert regrets[1] == pytest.approx(3 * regrets[0])


def test_uniform_exploration_follows_no_pair() -> None:
    loop = loop_of(explore="uniform")
    played = loop.recipe.collect.policy(torch.arange(6), loop.context)
    assert torch.equal(played, loop.run_state.mdp.uniform.expand(6, -1, -1, -1))


def test_likelihoods_of_a_run_are_those_of_its_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, step = [], NarrowModels.step

    def noted(self: NarrowModels, batch: Experience, see: See) -> Mapping[str, float]:
        batches.append(batch)
        return step(self, batch, see)

    monkeypatch.setattr(NarrowModels, "step", noted)
    loop = loop_of()
    task = loop.run_state.task
    total = [[0.0] * 36 for _ in range(2)]
    for _ in range(3):
        loop.iterate()
    for rows in batches:
        for states, actions in zip(rows["state"].tolist(), rows["action"].tolist(), strict=True):
            said = task.mdp.states[states[-1]]
            seen = tuple(int(part) for part in said.split(": ")[1].split() if not part.startswith("a"))
            for k, model in enumerate(MODELS):
                total[int(said[0]) - 1][k] += math.log(by_hand(model, seen, tuple(actions[:-1])))
    found = loop.run_state.models["evidence"].log_likelihood
    assert len(batches) == 3
    assert torch.allclose(found, torch.tensor(total, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("task", ["shared-pomdps(tasks=1)", "shared-pomdps(tasks=1,shared=nothing)"])
def test_of_one_problem_joint_and_independent_learners_are_the_same(task: str) -> None:
    runs = [loop_of(task=task, learners=learners) for learners in ("joint", "independent")]
    for _ in range(40):
        numbers = []
        for run in runs:
            run.iterate()
            numbers.append({k: v for k, v in run.context.metrics.items() if "second" not in k})
        assert numbers[0] == numbers[1]
    for name in ("policy", "exploration"):
        one, other = (run.run_state.models[name].probabilities for run in runs)
        assert torch.equal(one, other)


def test_a_certified_run_ends_with_models_that_are_close_and_a_policy_that_is_good() -> None:
    """Wide sets: the truth stays in, so all that the certificate says is so; joint learners need fewer episodes."""
    runs = {name: run_of(task="shared-pomdps(tasks=4)", seed=0, learners=name) for name in ("joint", "independent")}
    for run in runs.values():
        metrics = run.context.metrics
        assert run.context.finished.startswith("every model left") and run.context.iteration < 6000
        assert metrics["model_error"] <= metrics["distance"] <= 0.05
        assert metrics["farthest_distance"] <= 4 * 0.05
        assert run.run_state.evaluate()[0]["eval/suboptimality"] <= 2 * 0.05
    ratio = runs["joint"].context.iteration / runs["independent"].context.iteration
    reached(-ratio, -0.8)


def test_an_eps_above_every_distance_ends_the_run_at_once() -> None:
    assert run_of(eps="0.44").context.iteration == 1
    assert not loop_of(eps="0.43").context.over


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("combination-lock", {}, "learns a model of a joint class, and combination-lock states none"),
        ("shared-pomdps(tasks=0)", {}, "tasks=0, which is out of its range"),
        ("shared-pomdps(horizon=5)", {}, "horizon=5, which is out of its range"),
        ("shared-pomdps(shared=emissions)", {}, "emissions"),
        ("shared-pomdps(tasks=6)", {}, "share transition have 36,864 joint models, and at most 10,000"),
        ("shared-pomdps(access=generative)", {}, "grants no generative access; it can grant episodes"),
        ("shared-pomdps", {"eps": "0"}, "eps"),
        ("shared-pomdps", {"steps": "2"}, "learns from whole episodes; leave --steps away"),
    ],
)
def test_bad_input_gets_one_sentence(task: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        loop_of(task, **settings)
