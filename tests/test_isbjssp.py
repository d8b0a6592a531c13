"""The graph network of job shops: messages by hand, symmetries, what leaves the graph, rewards, learning, solving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl as package
from conftest import SEED, Command, reached, read_records, stopped_after
from polyrl.cli.solve import solve
from polyrl.cli.solve_shop import gantt
from polyrl.errors import UserError
from polyrl.methods.operations.isbjssp import OperationGraph, OperationGraphPolicy, ShopTime
from polyrl.models.constructive import Seen
from polyrl.rollout.construction import build, judged
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.runtime.drawing import Spans
from polyrl.tasks.operations import cp_sat
from polyrl.tasks.operations.job_shop import JobShop
from polyrl.tasks.operations.jsplib import read_shop
from polyrl.tasks.operations.shops import Shop, best_makespans, verify
from test_construction import stirred
from test_job_shop import BLOCKED, rows_of, small

torch.set_num_threads(1)
SMALL = {"instances": "6", "width": "8"}


def config_of(spec: str = "job-shop(n=4,machines=3)", budget: str = "iterations=3", **settings: str) -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 12, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(
        method="isbjssp", task=spec, budget=budget, seed=SEED, hyperparameters={**SMALL, **settings}, **options
    )


def network_of(width: int = 8, rounds: int = 2) -> OperationGraph:
    made = OperationGraphPolicy(width=width, rounds=rounds).build(4, 0, torch.Generator().manual_seed(SEED))
    assert isinstance(stirred(made), OperationGraph)
    return made


def seen_of(rows: JobShop) -> Seen:
    mask = rows.mask()
    assert mask is not None
    return Seen.of(rows.observe(), mask)


def logprobs(network: OperationGraph, rows: JobShop) -> Tensor:
    seen = seen_of(rows)
    with torch.no_grad():
        return network.logprobs(seen, network.read(seen.nodes, seen.present))[:, 0]


def midway(environment: JobShop, steps: int = 4) -> JobShop:
    """Some steps on, by the first job that may."""
    rows = environment.copies(1)
    for _ in range(steps):
        mask = rows.mask()
        assert mask is not None
        rows.step(mask.int().argmax(1))
    return rows


# -------------------------------------------------------------------------------------------------------------- network


def test_messages_are_those_of_the_paper_node_by_node() -> None:
    network, rows = network_of(), midway(JobShop(SEED, 1, 4, 3))
    seen = seen_of(rows)
    memory = network.read(seen.nodes, seen.present)
    assert seen.node_state is not None
    left = seen.left[0, 0].tolist()
    assert 0 < sum(left) < 12  # some operations have left the graph
    job, machine, place = (seen.nodes[0, :, k].long().tolist() for k in range(3))
    nodes = range(12)
    with torch.no_grad():
        first = torch.relu(network.embed(torch.cat([memory["static"][0], seen.node_state[0, 0]], -1)))
        h = first
        for kinds, join in zip(network.kinds, network.join, strict=True):
            pre, suc, dis, every = ([x[v] if left[v] else 0 * x[v] for v in nodes] for x in kinds(h).chunk(4, -1))
            after = []
            for v in nodes:
                same = [u for u in nodes if job[u] == job[v]]
                before = sum((pre[u] for u in same if place[u] == place[v] - 1), torch.zeros(8))
                behind = sum((suc[u] for u in same if place[u] == place[v] + 1), torch.zeros(8))
                rivals = [u for u in nodes if u != v and machine[u] == machine[v] and left[u]]
                others = sum((dis[u] for u in rivals), torch.zeros(8)) / max(1, len(rivals))
                mean = sum(every, torch.zeros(8)) / sum(left)
                told = [torch.relu(x) for x in (before, behind, others, mean)]
                after.append(join(torch.cat([*told, h[v], first[v]])))
            h = torch.stack(after)
        found, mean = network.hidden(seen, memory)
    torch.testing.assert_close(found[0, 0][left], h[left])
    torch.testing.assert_close(mean[0, 0], h[left].mean(0))


def test_what_stays_of_an_operation_by_hand() -> None:
    static = network_of().read(*_nodes(rows_of(BLOCKED)))["static"][0]
    mean = 11 / 4
    wanted = [
        [3 / mean, 3 / 5, 1 / 2, 1 / 5],
        [2 / mean, 1, 0, 0],
        [2 / mean, 2 / 6, 1 / 2, 1 / 5],
        [4 / mean, 1, 0, 0],
    ]
    torch.testing.assert_close(static, torch.tensor(wanted))


def _nodes(rows: JobShop) -> tuple[Tensor, Tensor]:
    seen = seen_of(rows)
    return seen.nodes, seen.present


@pytest.mark.parametrize("waiting", [False, True])
def test_names_of_jobs_and_machines_and_padding_mean_nothing(waiting: bool) -> None:
    network, given = network_of(), small(3)
    jobs, machines = [2, 0, 1], [1, 2, 0]
    other = Shop(tuple(tuple((machines[m], t) for m, t in given.jobs[j]) for j in jobs))
    one, two = rows_of(given, waiting=waiting), rows_of(other, waiting=waiting)
    for rows, asked in ((one, 0), (two, machines[0])):
        rows.state["asked"] = torch.tensor([asked])
    found, again = logprobs(network, one)[0], logprobs(network, two)[0]
    order = [3 * jobs.index(j) + k for j in range(3) for k in range(3)] + ([9] if waiting else [])
    torch.testing.assert_close(again[order], found)
    wide = JobShop(SEED, 1, 5, 4, waiting=waiting, operations=6, instances=lambda row, episode: given)
    wide.state["asked"] = torch.tensor([0])
    places = [6 * j + k for j in range(3) for k in range(3)] + ([30] if waiting else [])
    torch.testing.assert_close(logprobs(network, wide)[0][places], found)


def test_operations_that_are_done_enter_nothing() -> None:
    network, rows = network_of(), midway(JobShop(SEED, 3, 9, 4), 7)
    seen = seen_of(rows)
    memory = network.read(seen.nodes, seen.present)
    assert seen.node_state is not None and not bool(seen.left.all()) and not bool(rows.ended.any())
    found = network.logprobs(seen, memory)
    seen.node_state[~seen.left] += 9.0
    assert torch.equal(network.logprobs(seen, memory), found)


# --------------------------------------------------------------------------------------------------------------- method


@pytest.mark.parametrize("spec", ["job-shop(n=4,machines=3)", "job-shop(n=4,machines=3,shutdowns=0.2,waiting=yes)"])
def test_steps_are_those_that_were_sampled_and_rewards_are_what_jobs_wait(spec: str) -> None:
    loop = make_loop(config_of(spec))[0]
    stirred(loop.run_state.policy)
    batch = loop.recipe.collect(None, loop.context)
    out = loop.run_state.policy.outputs(batch, {"logprob", "entropy", "value"}, None)  # type: ignore[arg-type]
    there = batch["present"]
    torch.testing.assert_close(out["logprob"].detach()[there], batch["behaviour_logprob"][there], atol=1e-5, rtol=1e-5)
    assert out["value"].shape == there.shape == out["entropy"].shape
    paid = ShopTime(costs="waiting")(batch, loop.context)["reward"].sum(1)
    stream = loop.context.generator("construction")
    done = build(loop.run_state.policy, loop.run_state.environment, stream=stream).environment
    assert judged(done) == (-batch["reward"].sum(1)).tolist()
    for row in range(6):
        given = done.instance(row)
        work = [time for job in given.jobs for _, time in job]
        wanted = -int(done.state["waited"][row]) / (4 * sum(work) / len(work))
        assert float(paid[row]) == pytest.approx(wanted, rel=1e-5)
    by_time = loop.recipe.score[0](batch, loop.context)["reward"].sum(1)
    for row, given in enumerate(done.instance(row) for row in range(6)):
        work = [time for job in given.jobs for _, time in job]
        assert float(by_time[row]) == pytest.approx(-int(done.state["now"][row]) / (sum(work) / len(work)), rel=1e-5)
    valued = loop.recipe.credit[0](batch, loop.context)["value"]
    torch.testing.assert_close(valued[there], out["value"].detach()[there])
    assert bool((valued[~there] == 0).all())


def test_a_network_that_does_not_read_what_changes_is_refused() -> None:
    with pytest.raises(
        UserError, match="'policy' of am does not read what changes at the nodes of job-shop; use a meth"
    ):
        make_loop(RunConfig(method="am", task="job-shop", budget="iterations=1"))
    with pytest.raises(UserError, match="'policy' of bq-nco does not read what changes"):
        make_loop(RunConfig(method="bq-nco", task="job-shop", budget="iterations=1"))


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if "second" not in k and "time" not in k} for r in read_records(folder)]

    start_run(config_of(), tmp_path / "whole").run()
    stopped_after(start_run(config_of(), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    weights = [(tmp_path / name / "model" / "policy.safetensors").read_bytes() for name in ("whole", "half")]
    assert weights[0] == weights[1]


# -------------------------------------------------------------------------------------------------------------- solving

FILE = "# three jobs\n3 3\n0 2 1 3 2 2\n0 4 1 1 2 3\n2 3 0 2 1 2\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line must be the numbers of jobs and of machines"),
        ("3 3 1\n0 1\n", "its first line must be the numbers of jobs and of machines"),
        (FILE.replace("3 3", "4 3", 1), "says 4 jobs and has lines of 3"),
        (FILE.replace("0 4", "0 x"), "Line 4 of .* but must be whole numbers"),
        (FILE.replace("0 4 1", "0 1"), "Line 4 of .* has 5 numbers but must be pairs"),
        (FILE.replace("2 3 0", "3 3 0"), "Line 5 of .* names machine 3, and there are 3, counted from 0"),
        (FILE.replace("0 4", "0 0"), "an operation of 0 time units"),
        (FILE.replace("0 4", "0 40000000"), "polyrl counts up to 10,000,000"),
    ],
)
def test_files_that_are_no_job_shop_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        read_shop(tmp_path / "x.txt")


def test_solve_writes_a_schedule_and_a_gantt_chart(tmp_path: Path, polyrl: Command) -> None:
    file = tmp_path / "three.txt"
    file.write_text(FILE)
    start_run(config_of("job-shop(n=3,machines=3,waiting=yes)", "iterations=1"), tmp_path / "run").run()
    told = polyrl("solve", tmp_path / "run", "--instance", file, "--best", 11).out
    for name in ("this policy, greedy", "SPT", "LOR", "random, mean of 100", "three: 3 jobs on 3 machines"):
        assert name in told
    assert cp_sat.is_installed() or ("best of all orders" in told and "11" in told)
    shop = read_shop(file)
    lines = (tmp_path / "run" / "solutions" / "three.schedule").read_text().splitlines()
    schedule = [[int(word) for word in line.split()] for line in lines if not line.startswith("#")]
    cost = verify(shop, schedule).cost
    assert cost is not None and cost >= 11 and f"makespan {cost:.0f}" in lines[0]
    picture = (tmp_path / "run" / "solutions" / "three.svg").read_text()
    assert picture.count('class="span') >= 9 and "machine 2" in picture
    with pytest.raises(UserError, match="--symmetries are those of the square"):
        solve(tmp_path / "run", file, symmetries=True)
    with pytest.raises(UserError, match="--best is x but must be a makespan above 0"):
        solve(tmp_path / "run", file, best="x")
    with pytest.raises(UserError, match="cannot be read"):
        solve(tmp_path / "run", tmp_path / "none.txt")


def test_the_chart_has_what_a_schedule_says() -> None:
    given = Shop(BLOCKED.jobs, (((1, 2),), ()))
    chart = gantt("x", given, [[0, 4], [0, 4]], 8).items[1][2]
    assert isinstance(chart, Spans) and chart.domain == (0, 8)
    spans = [[(s.low, s.high, s.look, s.faint) for s in row] for row in chart.items]
    assert spans[0] == [(0, 4, 0, False), (4, 8, 1, False), (1, 2, None, False)]
    assert spans[1] == [(4, 6, 0, False), (2, 4, 1, True), (0, 2, 1, False)]


@pytest.mark.skipif(not cp_sat.is_installed(), reason="OR-tools is not installed")
def test_constraint_programming_comes_to_the_best_of_all_schedules() -> None:
    for seed in range(8):
        found = cp_sat.solved(small(seed), 10)
        assert found is not None and found.proved
        assert verify(small(seed), found.schedule).cost == found.bound == int(best_makespans([small(seed)]))


def test_training_shortens_schedules_of_held_out_shops(tmp_path: Path) -> None:
    done = package.train(
        "isbjssp",
        task="job-shop(n=5,machines=3,shutdowns=0)",
        budget="steps=10000",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 256},
        instances=64,
        width=16,
    )
    reached(-done.final["eval/gap_random"], 2.0)  # seeds 101 to 103: 3.8, 4.9, 5.1
