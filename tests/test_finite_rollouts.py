"""Collecting on finite MDPs: rows do not depend on batches, draws have their distributions, access costs queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import NotFinite, UserError
from polyrl.models.finite import FinitePolicy
from polyrl.models.tables import TableModels
from polyrl.parts.finite import DrawEveryPair, FollowStream, FromFinite, PlayEpisodes, RestartEpisodes, ReturnToStates
from polyrl.run_state.finite import FiniteRunState
from polyrl.runtime.budget import Budget
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.families import CombinationLock, RiverSwim
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask, OwnFiniteTask

torch.set_num_threads(1)
LOCK = CombinationLock(horizon=4, choices=2)


def context_of(task: FiniteTask, seed: int = 3) -> Context:
    run_state = FiniteRunState(task, TableModels({"policy": FinitePolicy()}, task))
    context = Context(run_state=run_state, seed=seed, budget=Budget(iterations=100), iteration=1)
    run_state.begin(context)
    return context


def collected(part: FromFinite, context: Context, times: int) -> list[Experience]:
    found = []
    for k in range(times):
        context.iteration = k + 1
        found.append(part(None, context))  # type: ignore[arg-type]
    return found


def together(batches: list[Experience], dim: int = 0) -> dict[str, Tensor]:
    return {name: torch.cat([b[name] for b in batches], dim) for name in batches[0].fields()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------------- random numbers


def test_counted_uniforms_are_uniform_and_independent_of_what_is_drawn_beside_them() -> None:
    rows, times = torch.arange(300), torch.arange(200)
    whole = counted_uniforms(1, "x", rows=rows, times=times, numbers=3)
    part = counted_uniforms(1, "x", rows=rows[17:19], times=times[50:53], numbers=2)
    assert torch.equal(whole[17:19, 50:53, :2], part)
    each = counted_uniforms(1, "x", rows=torch.tensor([5, 9]), times=torch.tensor([[7], [80]]))
    assert each[:, 0, 0].tolist() == [float(whole[5, 7, 0]), float(whole[9, 80, 0])]
    flat = whole.flatten()
    assert float(flat.min()) >= 0 and float(flat.max()) < 1 and len(flat.unique()) == len(flat)
    counts = torch.histc(flat, 100, 0, 1)
    chi2 = float(((counts - len(flat) / 100) ** 2 / (len(flat) / 100)).sum())
    assert 55 < chi2 < 155  # 99 degrees of freedom, +- 4 deviations
    for dim in (0, 1, 2):  # neighbours in row, time and place are uncorrelated
        first, second = whole.narrow(dim, 0, whole.shape[dim] - 1), whole.narrow(dim, 1, whole.shape[dim] - 1)
        pairs = torch.stack([first.flatten(), second.flatten()])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.02
    for other in ({"seed": 2}, {"name": "y"}):
        drawn = counted_uniforms(other.get("seed", 1), other.get("name", "x"), rows=rows, times=times)  # type: ignore[arg-type]
        assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), whole[..., 0].flatten()]))[0, 1])) < 0.02


# ------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("kind", [PlayEpisodes, RestartEpisodes])
def test_episodes_are_the_same_however_batches_are_cut(kind: Any) -> None:
    whole = together(collected(kind(episodes=12), context_of(LOCK), 1))
    context = context_of(LOCK)
    parts = [b for n, k in ((3, 2), (1, 2), (4, 1)) for b in collected(kind(episodes=n), context, k)]
    width = whole["state"].shape[1]
    padded = {
        name: torch.cat([torch.nn.functional.pad(b[name], (0, width - b[name].shape[1])) for b in parts])
        for name in whole
    }
    assert same(whole, padded)
    assert not same(whole, together(collected(kind(episodes=12), context_of(LOCK, seed=4), 1)))


def test_the_stream_goes_on_where_it_stopped_and_is_the_same_however_it_is_cut() -> None:
    task = RiverSwim(length=3)
    whole = together(collected(FollowStream(steps=60), context_of(task), 1), 1)
    context = context_of(task)
    parts = [b for n, k in ((20, 1), (1, 10), (15, 2)) for b in collected(FollowStream(steps=n), context, k)]
    cut = together(parts, 1)
    assert cut.pop("truncated").sum() == 13 and whole.pop("truncated").sum() == 1  # each rollout ends somewhere
    assert same(whole, cut)
    assert torch.equal(whole["state"][0, 1:], whole["next_state"][0, :-1])
    assert whole["step"][0].tolist() == [*range(60)] and not whole["terminated"].any()
    assert context.spent.steps == 60 and context.spent.queries == context.spent.samples == 0


def test_generative_draws_are_the_same_however_batches_are_cut() -> None:
    whole = together(collected(DrawEveryPair(draws=6), context_of(LOCK), 1))
    context = context_of(LOCK)
    parts = [b for n, k in ((2, 1), (1, 2), (2, 1)) for b in collected(DrawEveryPair(draws=n), context, k)]
    pairs = 4 * 2 * 2
    cut = {name: torch.cat([b[name].view(pairs, -1) for b in parts], 1).view(-1, 1) for name in whole}
    assert same(whole, cut)
    assert context.spent.queries == 6 * pairs and context.spent.steps == context.spent.samples == 0


def test_draws_have_the_probabilities_and_rewards_of_the_problem() -> None:
    stream = torch.Generator().manual_seed(0)
    transition = torch.rand(2, 3, 2, 3, generator=stream).double()
    mdp = FiniteMDP(
        transition / transition.sum(-1, keepdim=True),
        torch.rand(2, 3, 2, generator=stream).double(),
        horizon=2,
        reward_noise="bernoulli",
    )
    draws = 20_000
    (batch,) = collected(DrawEveryPair(draws=draws), context_of(OwnFiniteTask(made=mdp, name="own")), 1)
    following = batch["next_state"].view(*mdp.shape, draws)
    counts = torch.nn.functional.one_hot(following, 3).double().mean(-2)
    assert float((counts - mdp.transition).abs().max()) < 5 * 0.5 / draws**0.5
    assert float((batch["reward"].view(*mdp.shape, draws).mean(-1) - mdp.reward).abs().max()) < 5 * 0.5 / draws**0.5
    at = (batch["step"], batch["state"], batch["action"])
    order = torch.arange(12).repeat_interleave(draws)
    assert torch.equal((at[0] * 6 + at[1] * 2 + at[2])[:, 0], order)


def test_played_episodes_earn_what_the_policy_is_worth_and_cost_its_regret() -> None:
    context = context_of(LOCK)
    run_state = context.run_state
    policy = (LOCK.mdp.solution.policy + LOCK.mdp.uniform) / 2
    run_state.models["policy"].assign(policy)
    (batch,) = collected(PlayEpisodes(episodes=40_000), context, 1)
    worth = float(LOCK.mdp.worth(policy))
    assert float(batch["reward"].sum(1).mean()) == pytest.approx(worth, abs=5 * 0.5 / 200)
    total, count = run_state.acting["regret"].tolist()
    assert count == 40_000 and total / count == pytest.approx(LOCK.mdp.optimum - worth)
    steps = torch.arange(4).expand(40_000, 4)
    told = policy[steps, batch["state"], batch["action"]].log()
    assert torch.equal(batch["behaviour_logprob"], told) and torch.equal(batch["step"], steps)
    assert batch["terminated"].sum(1).eq(1).all() and batch["terminated"][:, -1].all() and not batch["truncated"].any()
    assert context.spent.queries == 0 and (context.spent.samples, context.spent.steps) == (40_000, 160_000)


def test_the_gap_regret_of_a_stream_is_that_of_its_actions() -> None:
    task = RiverSwim()
    context = context_of(task)
    (batch,) = collected(FollowStream(steps=500), context, 1)
    gaps = sum(float(task.mdp.gaps[0, s, a]) for s, a in zip(batch["state"][0], batch["action"][0], strict=True))
    total, count = context.run_state.acting["regret"].tolist()
    assert count == 500 and total == pytest.approx(gaps) and gaps > 0
    best = context_of(task)
    best.run_state.models["policy"].assign(task.mdp.solution.policy)
    collected(FollowStream(steps=500), best, 1)
    assert best.run_state.acting["regret"].tolist() == [pytest.approx(0, abs=1e-9), 500]


# -------------------------------------------------------------------------------------------------------- resets


def test_restarts_begin_in_the_given_distribution_at_every_step() -> None:
    restart = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    mdp = FiniteMDP(LOCK.mdp.transition, LOCK.mdp.reward, horizon=4, restart=restart, reward_noise="bernoulli")
    context = context_of(OwnFiniteTask(made=mdp, name="own"))
    (batch,) = collected(RestartEpisodes(episodes=20_000, first_action="uniform"), context, 1)
    step, state = batch["step"][:, 0], batch["state"][:, 0]
    for h in range(4):
        here = step == h
        assert float(here.double().mean()) == pytest.approx(0.25, abs=0.02)
        assert float((state[here] == 0).double().mean()) == pytest.approx(float(restart[h, 0]), abs=0.03)
        assert bool((batch["present"][here].sum(1) == 4 - h).all()) and bool(
            (batch["reward"][here, 4 - h :] == 0).all()
        )
    assert context.spent.queries == 20_000 and context.spent.steps == int(batch["present"].sum())
    assert torch.allclose(batch["behaviour_logprob"][:, 0].exp(), torch.full((20_000,), 0.5).double())


def test_the_first_action_alone_is_uniform() -> None:
    context = context_of(LOCK)
    context.run_state.models["policy"].assign(LOCK.mdp.solution.policy)
    (batch,) = collected(RestartEpisodes(episodes=400, first_action="uniform"), context, 1)
    best = LOCK.mdp.solution.policy[batch["step"], batch["state"], batch["action"]]
    followed = torch.where(batch["present"], best, 1.0)
    assert float(followed[:, 0].mean()) == pytest.approx(0.5, abs=0.1) and bool((followed[:, 1:] == 1).all())


def test_only_states_that_were_seen_can_be_returned_to() -> None:
    task = CombinationLock(horizon=3, choices=2, keep=1.0)

    class Into(ReturnToStates):
        def chosen(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
            return torch.full_like(rows, 1), torch.full_like(rows, 1)

    context = context_of(task)
    (batch,) = collected(ReturnToStates(episodes=5), context, 1)
    assert batch["step"][:, 0].tolist() == [0] * 5 and context.spent.queries == 5  # nothing but the start is known
    fresh = context_of(task)
    with pytest.raises(UserError, match="state bad at step 2, where the run has never been"):
        collected(Into(episodes=2), fresh, 1)
    collected(ReturnToStates(episodes=30), fresh, 1)  # some of them fall
    (batch,) = collected(Into(episodes=2), fresh, 1)
    assert batch["state"][:, 0].tolist() == [1, 1] and batch["step"][:, 0].tolist() == [1, 1]


def test_without_a_horizon_somebody_has_to_say_when_an_episode_is_cut() -> None:
    task = RiverSwim(discount=0.9)
    with pytest.raises(UserError, match="--steps"):
        collected(PlayEpisodes(), context_of(task), 1)
    (batch,) = collected(PlayEpisodes(episodes=3, steps=7), context_of(task), 1)
    assert batch["state"].shape == (3, 7) and not batch["terminated"].any()
    assert batch["truncated"].nonzero().tolist() == [[b, 6] for b in range(3)]


def test_an_iteration_that_does_not_count_leaves_no_regret() -> None:
    context = context_of(LOCK)
    collected(PlayEpisodes(episodes=2), context, 1)
    before = {name: table.clone() for name, table in context.run_state.acting.items()}
    context.iteration = 2
    PlayEpisodes(episodes=50)(None, context)  # type: ignore[arg-type]
    assert float(context.run_state.acting["regret"][1]) == 52
    context.run_state.rewind()
    assert same(before, context.run_state.acting)
    context.iteration = 3  # fails before anything was played
    context.run_state.rewind()
    assert same(before, context.run_state.acting)


def test_a_policy_that_is_none_is_refused() -> None:
    context = context_of(LOCK)
    for wrong in (LOCK.mdp.uniform * 2, LOCK.mdp.uniform.new_full(LOCK.mdp.shape, torch.nan), LOCK.mdp.uniform[0]):
        with pytest.raises(NotFinite, match=r"no policy|of the shape"):
            context.run_state.models["policy"].assign(wrong)
