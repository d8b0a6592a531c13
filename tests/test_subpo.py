"""SubPO: the paper's gradient by enumeration and by hand, what other rewards come to, its networks, runs, pictures."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl as package
from conftest import SEED, Command, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.cli.solve import solve
from polyrl.cli.solve_path import covered
from polyrl.core.experience import Experience
from polyrl.core.update import Update
from polyrl.errors import UserError
from polyrl.methods.operations.subpo import PathNetwork, PathPolicy, PathRewards
from polyrl.models.constructive import Seen
from polyrl.parts.credit import PlainReturn
from polyrl.parts.improve import PolicyGradient, ValueLoss
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.runtime.drawing import Spans
from polyrl.tasks.operations import task
from polyrl.tasks.operations.path_tasks import CoverageTask
from polyrl.tasks.operations.paths import PathProblem, Paths
from polyrl.tasks.operations.set_functions import Coverage
from polyrl.tasks.operations.terrain import Terrain, footprints, weights
from test_construction import stirred

torch.set_num_threads(1)
CHAIN = PathProblem(Terrain(1, 4, 1, moves=("left", "right")), Coverage(torch.eye(4) > 0, torch.ones(4)), 3)
GRID = Terrain(3, 3, 0)
TINY = PathProblem(GRID, Coverage(footprints(GRID), weights(GRID, "gp", 1, 1.0)), 3)


def config_of(method: str = "subpo", spec: str = "coverage(n=5,horizon=6)", **settings: str) -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 12, "tensorboard": False, "checkpoint_every": 1}
    hyperparameters = {"instances": "8", "hidden": "8", **settings}
    return RunConfig(
        method=method, task=spec, budget="iterations=3", seed=SEED, hyperparameters=hyperparameters, **options
    )


def every_path(problem: PathProblem) -> Experience:
    """All sequences of moves, as rows that were collected."""
    moves = torch.tensor([*itertools.product(range(len(problem.terrain.moves)), repeat=problem.horizon)])
    rows = Paths(0, len(moves), problem)
    steps: list[dict[str, Tensor]] = []
    for step in range(problem.horizon):
        shown = {name: x for name, x in rows.observe().items() if isinstance(x, Tensor)}
        mask, before = rows.mask(), rows.state["alone"]
        assert mask is not None
        moved = rows.step(moves[:, step])
        paid = {"reward": moved.reward, "terminated": moved.terminated, "alone": rows.state["alone"] - before}
        steps.append({**shown, "action_mask": mask, "action": moves[:, step], **paid})
    fields = {name: torch.stack([one[name] for one in steps], 1) for name in steps[0]}
    there = torch.ones(moves.shape, dtype=torch.bool)
    nodes, present = rows.nodes.expand(len(moves), 1, -1, -1), torch.ones(len(moves), 1, len(rows.nodes)) > 0
    more = {"nodes": nodes, "node_mask": present, "present": there, "mask": there, "truncated": ~there}
    return Experience({**fields, **more, "group": torch.arange(len(moves))})


def judged_by(batch: Experience, rewards: Any) -> Tensor:
    """What the method judges each move by without a baseline, `[B, T]`."""
    paid = PathRewards(rewards=rewards)(batch, None)  # type: ignore[arg-type]
    return PlainReturn()(paid, None)["advantage"]  # type: ignore[arg-type]


def paths_of(problem: PathProblem, batch: Experience) -> list[list[int]]:
    """The cells of each row."""
    found = []
    for moves in batch["action"].tolist():
        path = [problem.terrain.start]
        for move in moves:
            path.append(int(problem.terrain.following[path[-1], move]))
        found.append(path)
    return found


# -------------------------------------------------------------------------------------------------- the card's numbers


def chain_gradient(rewards: str) -> Tensor:
    """By logits of `right` in each step and cell, all 0: the mean over all paths of score times what judges it."""
    batch = every_path(CHAIN)
    coefficient, found = judged_by(batch, rewards), torch.zeros(3, 4)
    for row, step in itertools.product(range(8), range(3)):
        score = float(batch["action"][row, step]) - 0.5
        found[step, batch["here"][row, step]] += score * coefficient[row, step] / 8
    return found


def test_the_gradient_on_the_chain_is_the_true_one() -> None:
    value = CHAIN.worth.value

    def worth(theta: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for moves in itertools.product((0, 1), repeat=3):
            cell, chance, path = 1, torch.ones((), dtype=torch.float64), [1]
            for step, move in enumerate(moves):
                right = torch.sigmoid(theta[step, cell])
                chance = chance * (right if move else 1 - right)
                cell = min(max(cell + (1 if move else -1), 0), 3)
                path.append(cell)
            total = total + chance * value(path)
        return total

    theta = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    exact = worth(theta)
    assert float(exact.detach()) == 2.5
    (gradient,) = torch.autograd.grad(exact, theta)
    wanted = torch.zeros(3, 4)
    wanted[0, 1], wanted[1, 0], wanted[1, 2] = 0.125, 0.0625, 0.0625
    torch.testing.assert_close(gradient.float(), wanted)
    torch.testing.assert_close(chain_gradient("marginal"), wanted)
    torch.testing.assert_close(chain_gradient("total"), wanted)


def test_the_released_codes_weights_are_the_gradient_of_the_next_gain_alone() -> None:
    wanted = torch.zeros(3, 4)
    wanted[1, 2] = 0.125
    torch.testing.assert_close(chain_gradient("prefix"), wanted)
    batch = every_path(CHAIN)
    gain = PathRewards(rewards="marginal")(batch, None)["reward"]  # type: ignore[arg-type]
    alone = torch.zeros(3, 4)
    for row, step in itertools.product(range(8), range(3)):
        alone[step, batch["here"][row, step]] += (float(batch["action"][row, step]) - 0.5) * gain[row, step] / 8
    torch.testing.assert_close(alone, wanted)


@pytest.mark.parametrize("problem", [CHAIN, TINY])
def test_what_judges_a_move_is_what_the_path_is_worth_from_there_on(problem: PathProblem) -> None:
    batch, value = every_path(problem), problem.worth.value
    marginal, total, prefix, modular = (judged_by(batch, r) for r in ("marginal", "total", "prefix", "modular"))
    for row, path in enumerate(paths_of(problem, batch)):
        for step in range(problem.horizon):
            whole, before = value(path), value(path[: step + 1])
            assert float(marginal[row, step]) == pytest.approx(whole - before, abs=1e-4)
            assert float(total[row, step]) == pytest.approx(whole, abs=1e-4)
            assert float(prefix[row, step]) == pytest.approx(value(path[: step + 2]), abs=1e-4)
            later = sum(value([cell]) for cell in path[step + 1 :])
            assert float(modular[row, step]) == pytest.approx(later, abs=1e-4)


def test_of_a_modular_function_without_repeats_all_is_as_modular() -> None:
    straight = Terrain(1, 6, 0, moves=("right",))
    batch = every_path(PathProblem(straight, Coverage(torch.eye(6) > 0, torch.rand(6)), 5))
    torch.testing.assert_close(judged_by(batch, "marginal"), judged_by(batch, "modular"))
    assert not torch.allclose(judged_by(every_path(TINY), "marginal"), judged_by(every_path(TINY), "modular"))


# --------------------------------------------------------------------------------------------------------- the gradient


def network_of(problem: PathProblem, markov: bool = True, critic: bool = False) -> PathNetwork:
    terrain, stream = problem.terrain, torch.Generator().manual_seed(SEED)
    made = PathNetwork(terrain.cells, len(terrain.moves), (8,), markov, critic, stream)
    assert isinstance(stirred(made), PathNetwork)
    return made


@pytest.mark.parametrize("markov", [True, False])
def test_the_expected_gradient_of_a_network_is_that_of_the_mean_worth(markov: bool) -> None:
    """Over all 125 paths of three moves on 3 by 3 cells."""
    network, batch = network_of(TINY, markov), every_path(TINY)
    logprob = network.outputs(batch, {"logprob"}, None)["logprob"]  # type: ignore[arg-type]
    chance = logprob.sum(1).exp()
    worth = torch.tensor([TINY.worth.value(path) for path in paths_of(TINY, batch)])
    assert float(chance.detach().sum()) == pytest.approx(1, abs=1e-5)
    parameters = [*network.parameters()]

    def gradient(objective: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(objective, parameters, retain_graph=True)])

    def estimated(rewards: str) -> Tensor:
        return gradient((chance.detach()[:, None] * judged_by(batch, rewards) * logprob).sum())

    exact = gradient((chance * worth).sum())
    for rewards in ("marginal", "total"):
        torch.testing.assert_close(estimated(rewards), exact, rtol=1e-3, atol=1e-5)
    for rewards in ("prefix", "modular"):
        assert float((estimated(rewards) - exact).norm()) > 0.1 * float(exact.norm())


def test_marginal_gains_vary_less_than_the_total_return() -> None:
    """The trace of the covariance of one path's gradient, of both the mean of all paths."""
    batch = every_path(TINY)
    logprob = network_of(TINY).outputs(batch, {"logprob"}, None)["logprob"].detach()  # type: ignore[arg-type]
    chance = logprob.sum(1).exp()[:, None]
    score = torch.eye(5)[batch["action"]] - logprob.exp()[..., None]  # of a table of logits of each step
    spread = {}
    for rewards in ("marginal", "total"):
        each = (score * judged_by(batch, rewards)[..., None]).flatten(1)
        spread[rewards] = float((chance * (each - (chance * each).sum(0)).square()).sum())
    assert spread["marginal"] < 0.5 * spread["total"]


def test_a_step_of_a_run_is_along_the_sampled_gradient() -> None:
    loop, again = (make_loop(config_of(instances="64"))[0] for _ in range(2))
    batch = loop.iterate()
    assert batch is not None
    paid, step = batch["reward"], torch.arange(6)
    later = torch.stack([paid[:, i:].sum(1) for i in step], 1)
    judged = later - later.mean(0)
    judged = judged / judged.square().mean().sqrt()
    torch.testing.assert_close(batch["advantage"], judged, rtol=1e-4, atol=1e-4)
    network = again.run_state.policy
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    logprob = network.outputs(batch, {"logprob"}, None)["logprob"]
    grads = torch.autograd.grad(-(judged * logprob).mean(), [*network.parameters()])
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert loop.context.metrics["grad_norm/policy"] == pytest.approx(norm, rel=1e-4) and norm > 0
    value = loop.run_state.task.problem.worth.value
    start = loop.run_state.task.problem.terrain.start
    for row in range(64):
        path = [start, int(batch["here"][row, 1])]
        assert float(paid[row, 0]) == pytest.approx(value(path) - value([start]), abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("markov", [True, False])
def test_only_a_policy_that_is_not_markov_sees_what_was_visited(markov: bool) -> None:
    network, rows = network_of(TINY, markov), Paths(0, 2, TINY)
    rows.step(torch.tensor([1, 3]))
    mask = rows.mask()
    assert mask is not None
    seen = Seen.of(rows.observe(), mask)
    before = network.scores(seen, {}).detach()
    seen.left[:, 0, 8] = False
    assert torch.equal(network.scores(seen, {}).detach(), before) == markov
    inputs = network.inputs(seen)
    assert inputs[0, 0, :3].tolist() == pytest.approx([0, 0.5, 1 / 3]) and inputs.shape == (2, 1, 3 if markov else 12)
    if not markov:
        assert inputs[0, 0, 3:].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("method", ["subpo", "subpo(markov=no)", "subpo+gain-critic"])
def test_steps_are_those_that_were_sampled(method: str) -> None:
    loop = make_loop(config_of(method))[0]
    stirred(loop.run_state.policy)
    batch = loop.recipe.collect(None, loop.context)
    out = loop.run_state.policy.outputs(batch, {"logprob", "entropy"}, None)
    torch.testing.assert_close(out["logprob"].detach(), batch["behaviour_logprob"], atol=1e-5, rtol=1e-5)
    entropy = loop.run_state.policy.logprobs(Seen.stored(batch), {}).detach().view(8, 6, 5)
    torch.testing.assert_close(out["entropy"].detach(), -(entropy.exp() * entropy).sum(-1))


def test_with_a_critic_moves_are_judged_against_what_it_says() -> None:
    loop = make_loop(config_of("subpo+gain-critic", **{"gae-lambda": "1", "instances": "32"}))[0]
    stirred(loop.run_state.policy)
    batch = loop.recipe.score[0](loop.recipe.collect(None, loop.context), loop.context)
    valued = loop.recipe.credit[0](batch, loop.context)
    advantage = loop.recipe.credit[1](valued, loop.context)["advantage"]
    value = loop.run_state.policy.outputs(batch, {"value"}, None)["value"].detach()
    to_go = PlainReturn()(batch, loop.context)["advantage"]
    torch.testing.assert_close(advantage, to_go - value, rtol=1e-4, atol=1e-4)
    assert [type(part).__name__ for part in loop.recipe.credit] == ["PathValues", "GAE", "WhitenAdvantage"]
    weights_before = [p.clone() for p in loop.run_state.policy.worth.parameters()]
    loop.iterate()
    moved = zip(weights_before, loop.run_state.policy.worth.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


def test_a_critic_leaves_the_terms_that_were_there_before() -> None:
    def terms(method: str) -> list[Any]:
        (update,) = catalogue.build(method).updates
        assert isinstance(update, Update)
        return [*update.terms]

    assert terms("subpo+gain-critic") == [PolicyGradient(aggregation="token-mean"), ValueLoss()]
    before = terms("subpo+entropy-bonus(entropy_coef=0.3)+gain-critic")
    after = terms("subpo+gain-critic+entropy-bonus(entropy_coef=0.3)")
    assert sorted(map(str, before)) == sorted(map(str, after)) and len(before) == 3
    assert [term.name for term in terms("subpo+clipped-surrogate+gain-critic")] == ["clipped-surrogate", "value-loss"]


# ----------------------------------------------------------------------------------------------------------------- runs


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UserError, match="'policy' of am chooses among nodes, and in coverage one chooses among moves"):
        make_loop(RunConfig(method="am", task="coverage", budget="iterations=1"))
    with pytest.raises(
        UserError, match="path-policy learns paths over a terrain, and tsp has none; use --task coverage"
    ):
        make_loop(RunConfig(method="subpo", task="tsp", budget="iterations=1"))
    with pytest.raises(UserError, match="am: 'gain-critic' is for what learns paths without a critic, such as subpo"):
        catalogue.build("am+gain-critic")
    with pytest.raises(UserError, match="'gain-critic' is for what learns paths without a critic"):
        catalogue.build("subpo+gain-critic+gain-critic")
    with pytest.raises(UserError, match="hidden layers are '8x'"):
        PathPolicy(hidden="8x").make(CoverageTask(), torch.Generator())


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    config = config_of("subpo+gain-critic", markov="no")
    start_run(config, tmp_path / "whole").run()
    stopped_after(start_run(config, tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    files = [(tmp_path / name / "model" / "policy.safetensors").read_bytes() for name in ("whole", "half")]
    assert files[0] == files[1]
    values = [
        [r["eval/value"] for r in read_records(tmp_path / name) if "eval/value" in r] for name in ("whole", "half")
    ]
    assert values[0][-1] == values[1][-1]


def test_a_run_is_judged_by_the_mean_worth_of_sampled_paths(tmp_path: Path, polyrl: Command) -> None:
    start_run(config_of(), tmp_path / "run").run()
    final = next(r for r in reversed(read_records(tmp_path / "run")) if "eval/value" in r)
    lines = task("coverage(n=5,horizon=6)").metric.lines
    assert final["eval/gap_optimum"] == pytest.approx(100 * (1 - final["eval/value"] / lines["optimum"]))
    told = polyrl("play", tmp_path / "run", "--episodes", 2).out
    assert "weight covered, sampled, mean of 12 held-out instances" in told and "greedy planner" in told
    paths = [line.split()[3:] for line in told.splitlines() if line.startswith("instance ")]
    assert len(paths) == 2 and paths[0] != paths[1] and paths[0][0] == paths[1][0] == "6"  # sampled, of one map
    assert f"{final['eval/value']:.4f}" in told


def test_solve_writes_a_path_and_a_map(tmp_path: Path, polyrl: Command) -> None:
    start_run(config_of(), tmp_path / "run").run()
    told = polyrl("solve", tmp_path / "run").out
    for name in (
        "this policy, greedy",
        "this policy, best of 512",
        "greedy planner",
        "optimum",
        "5 by 5 cells (hills)",
    ):
        assert name in told
    lines = (tmp_path / "run" / "solutions" / "coverage.path").read_text().splitlines()
    path = [5 * int(line.split()[0]) + int(line.split()[1]) for line in lines[1:]]
    problem = task("coverage(n=5,horizon=6)").problem
    cost = Paths(0, 1, problem).verify(problem, path).cost
    assert cost is not None and f"weight covered {-cost:.4f}" in lines[0]
    picture = (tmp_path / "run" / "solutions" / "coverage.svg").read_text()
    assert picture.count('class="span') == 25 and "row 4" in picture
    with pytest.raises(UserError, match="has learned one map, that of its task; leave out --instance x"):
        solve(tmp_path / "run", Path("x.txt"))
    with pytest.raises(UserError, match="leave out --symmetries"):
        solve(tmp_path / "run", symmetries=True)
    with pytest.raises(UserError, match="--best is 3, but the best path over a map is searched here"):
        solve(tmp_path / "run", best="3")


def test_a_run_of_tours_must_be_told_its_instance(tmp_path: Path) -> None:
    sizes = {"width": "8", "heads": "2", "layers": "1", "feed_forward": "8", "instances": "4", "test_instances": "4"}
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 4, "tensorboard": False}
    start_run(
        RunConfig(method="am", task="tsp(n=5)", budget="iterations=1", seed=SEED, hyperparameters=sizes, **options),
        tmp_path / "run",
    ).run()
    with pytest.raises(UserError, match=r"Say which instance the run .* is to solve: --instance FILE"):
        solve(tmp_path / "run")


def test_the_picture_has_what_a_path_covers() -> None:
    grid = Terrain(2, 3, 0, frozenset({5}))
    problem = PathProblem(grid, Coverage(footprints(grid), torch.tensor([1.0, 1, 9, 1, 1, 0])), 2)
    chart = covered("x", problem, [0, 1, 0]).items[1][2]
    assert isinstance(chart, Spans) and chart.domain == (0, 3)
    told = [[(s.look, s.faint, s.text) for s in row] for row in chart.items]
    assert told == [[(0, False, "0"), (0, False, "1"), (0, True, "")], [(0, True, ""), (0, True, "")]]
    alone = covered("x", problem, [0, 0, 0]).items[1][2]
    assert isinstance(alone, Spans) and [(s.look, s.faint) for s in alone.items[0]][2] == (None, False)


def test_training_covers_more_of_a_map(tmp_path: Path) -> None:
    done = package.train(
        "subpo",
        task="coverage(n=6,horizon=10,weights=bimodal)",
        budget="updates=40",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 256},
        instances=128,
    )
    # in percent of the greedy planner, where random moves come to 50; seeds 0 to 3: 72.9, 78.2, 72.4, 70.5
    reached(100 - done.final["eval/gap_greedy_planner"], 62.0)
