"""The inventory simulator: equal to a plain per-period simulation, and its gradient to the closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models import inventory as policies
from polyrl.tasks.operations import TASKS, task
from polyrl.tasks.operations.demand import NormalDemand, PoissonDemand
from polyrl.tasks.operations.network import Network
from polyrl.tasks.operations.simulator import Rollout, Simulator

SETTINGS = [
    "backlog",
    "backlog(lead_time=1)",
    "lost-sales",
    "lost-sales(lead_time=1,ordering_cost=3)",
    "serial",
    "serial(lead_times=1x3,holding_costs=0.5x1)",
    "transshipment",
    "transshipment(stores=3,lead_time=6,warehouse_lead_time=1)",
    "one-warehouse",
    "one-warehouse(stores=10,lead_time=3)",
]
TREE = Network(
    (-1, 0, 0, 1, 1, 2), (2, 1, 3, 2, 1, 1), (0.1, 0.2, 0.3, 1, 2, 3), (0, 0, 0, 9, 5, 4), stores=3, lost=True
)


# ------------------------------------------------------------------------------------------------ plain simulation


def plain(
    net: Network, start: Tensor, demand: Tensor, asked: Tensor
) -> Iterator[tuple[list[float], list[float], float]]:
    """One scenario, with a calendar of arrivals; yields (on hand, shipped, 0) and ([], [], cost) for each period."""
    calendar = {(i, k): float(start[i, k]) for i in range(net.locations) for k in range(net.slots)}
    on_hand = [0.0] * net.locations
    for t, wanted in enumerate(demand.tolist()):
        on_hand = [x + calendar.pop((i, t), 0.0) for i, x in enumerate(on_hand)]
        shipped = []
        for i, s in enumerate(net.supplier):
            order = float(asked[t, i])
            if s >= 0:
                total = sum(float(asked[t, j]) for j in range(net.locations) if net.supplier[j] == s)
                share = on_hand[s] / total if net.transit else min(1.0, on_hand[s] / total) if total else 1.0
                order *= share
            shipped.append(order)
        yield list(on_hand), shipped, 0.0
        cost = 0.0
        for i in range(net.locations):
            if i >= net.upstream:
                leaves = wanted[i - net.upstream]
            else:
                leaves = sum(shipped[j] for j in range(net.locations) if net.supplier[j] == i)
            end = on_hand[i] - leaves
            cost += net.penalty[i] * -end if end < 0 else net.holding[i] * end
            on_hand[i] = max(end, 0.0) if net.lost else end
            calendar[i, t + net.lead_time[i]] = calendar.get((i, t + net.lead_time[i]), 0.0) + shipped[i]
            cost += net.ordering_cost * (shipped[i] > 0)
        yield [], [], cost / net.stores


def replayed(simulator: Simulator, start: Tensor, demand: Tensor, asked: Tensor) -> Rollout:
    """The batched simulator with orders that were fixed beforehand, `[B, T, N]`."""
    orders = iter(asked.unbind(1))
    return simulator.run(lambda _: next(orders), start, demand, record=True)


@pytest.mark.parametrize("spec", [*SETTINGS, "tree"])
def test_it_is_the_plain_simulation(spec: str) -> None:
    stream = torch.Generator().manual_seed(3)
    if spec == "tree":
        simulator, size = Simulator(TREE), 4
        demand = PoissonDemand((3.0, 2.0, 4.0)).draw(stream, size, 25)
        start = 6 * torch.rand(size, TREE.locations, TREE.slots, generator=stream)
        start *= torch.arange(TREE.slots) < torch.tensor(TREE.lead_time)[:, None]
    else:
        made = task(spec)
        simulator = made.simulator
        demand, start = made.traces(7, "train", 0, 4, 25)
    net = simulator.network
    asked = 12 * torch.rand(*demand.shape[:2], net.locations, generator=stream)
    asked *= torch.rand(asked.shape, generator=stream) < 0.8  # some order nothing
    if net.transit:
        asked += 0.1
    found = replayed(simulator, start, demand, asked)
    assert found.inventory is not None and found.order is not None
    for b in range(len(demand)):
        steps = list(plain(net, start[b], demand[b], asked[b]))
        for t, ((on_hand, shipped, _), (_, _, cost)) in enumerate(zip(steps[::2], steps[1::2], strict=True)):
            assert found.inventory[b, t, :, 0].tolist() == pytest.approx(on_hand, abs=2e-3)
            assert found.order[b, t].tolist() == pytest.approx(shipped, abs=1e-3)
            assert float(found.cost[b, t]) == pytest.approx(cost, rel=1e-4, abs=2e-3)


@pytest.mark.parametrize("spec", SETTINGS)
def test_units_are_conserved(spec: str) -> None:
    """What came from outside is on hand, on order, or was taken by customers; nothing else."""
    made = task(spec)
    net = made.network
    demand, start = made.traces(1, "train", 0, 8, 40)
    asked = 8 * torch.rand(8, 40, net.locations, generator=torch.Generator().manual_seed(1)) + 0.1
    found = replayed(made.simulator, start, demand, asked)
    assert found.inventory is not None and found.order is not None
    outside = torch.tensor([s < 0 for s in net.supplier])
    came = found.order[..., outside].sum(-1)
    before, after = found.inventory[:, :-1].sum((2, 3)), found.inventory[:, 1:].sum((2, 3))
    sold = demand
    if net.lost:
        sold = torch.minimum(demand, found.inventory[:, :, net.upstream :, 0])
    assert float((after - before - came[:, :-1] + sold.sum(-1)[:, :-1]).abs().max()) < 5e-3
    if net.upstream:
        kept = found.inventory[:, :, : net.upstream, 0]
        assert float(kept.min()) > -1e-4  # nobody ships what he does not have
        if net.transit:  # and who may not keep stock ships all of it
            sent = found.order[:, :, net.upstream :].sum(-1)
            torch.testing.assert_close(sent, kept[..., 0], atol=1e-3, rtol=1e-4)


def test_who_would_send_back_orders_nothing() -> None:
    simulator = task("serial").simulator
    net = simulator.network
    start = torch.full((1, net.locations, net.slots), 3.0)
    demand, asked = torch.full((1, 4, net.stores), 2.0), torch.full((1, 4, net.locations), -1.5)
    found = replayed(simulator, start, demand, asked)
    assert found.order is not None and float(found.order.abs().max()) == 0
    assert torch.equal(found.cost, replayed(simulator, start, demand, 0 * asked).cost)


def test_orders_are_whole_where_units_are() -> None:
    made = task("lost-sales")
    start, demand = torch.full((1, 1, made.network.slots), 2.4), torch.full((1, 5, 1), 3.0)
    run = made.simulator.run(lambda inventory: 1.6 + 0 * inventory[..., 0], start, demand, integer=True, record=True)
    assert run.order is not None and run.order.flatten().tolist() == [2.0] * 5
    assert run.inventory is not None and run.inventory[0, 0].flatten().tolist() == [2.0] * made.network.slots
    run = made.simulator.run(lambda inventory: 1.6 + 0 * inventory[..., 0], start, demand, record=True)
    assert run.order is not None and run.order.flatten().tolist() == pytest.approx([1.6] * 5)


# --------------------------------------------------------------------------------------------------- fact hdpo, 6


def one_step(lost: bool) -> tuple[Tensor, Tensor]:
    simulator = Simulator(Network((-1,), (2,), (1.0,), (9.0,), lost=lost))
    state, end = simulator.step(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[2.0]]), torch.tensor([[5.0]]))
    return state[0, 0], simulator.cost(end)[0]


def test_hdpo_fact_6_the_pipeline() -> None:
    state, cost = one_step(lost=True)
    assert state.tolist() == [4, 2] and float(cost) == 2 * 9
    state, cost = one_step(lost=False)
    assert state.tolist() == [2, 2] and float(cost) == 2 * 9


def test_hdpo_fact_6_proportional_rationing() -> None:
    simulator = Simulator(Network((-1, 0, 0, 0), (1, 1, 1, 1), (0,) * 4, (0,) * 4, stores=3))

    def shipped(*asked: float) -> list[float]:
        return simulator.shipped(torch.tensor([[0.0, *asked]]), torch.tensor([[6.0]]))[0, 1:].tolist()

    assert shipped(4, 4, 4) == pytest.approx([2, 2, 2])
    assert shipped(1, 2, 3) == pytest.approx([1, 2, 3]) and shipped(1, 0, 0) == pytest.approx([1, 0, 0])
    assert shipped(9, 3, 0) == pytest.approx([4.5, 1.5, 0]) and shipped(0, 0, 0) == [0, 0, 0]


def test_a_warehouse_in_transit_ships_everything() -> None:
    simulator = Simulator(Network((-1, 0, 0), (1, 1, 1), (0,) * 3, (0, 9, 9), stores=2, transit=True))

    def shipped(*asked: float) -> list[float]:
        return simulator.shipped(torch.tensor([[5.0, *asked]]), torch.tensor([[6.0]]))[0].tolist()

    assert shipped(1, 2) == pytest.approx([5, 2, 4]) and shipped(0, 0) == pytest.approx([5, 3, 3])


def test_an_order_of_period_t_serves_demand_of_period_t_plus_its_lead_time() -> None:
    for lead in (1, 3, 5):
        simulator = Simulator(Network((-1,), (lead,), (1.0,), (9.0,)))
        start, demand = torch.zeros(1, 1, lead), torch.zeros(1, 9, 1)
        once = torch.zeros(1, 9, 1)
        once[0, 1] = 4.0
        demand[0, 1 + lead] = 4.0
        cost = replayed(simulator, start, demand, once).cost[0]
        assert cost.tolist() == [0] * 9  # it arrives just in time: never held, never missed


# --------------------------------------------------------------------------------------------------- fact hdpo, 2


def gradient_at(level: float) -> tuple[float, float]:
    """Cost of a base-stock level and its pathwise derivative, from the simulator, warm periods only."""
    made = task("backlog")
    rule = policies.BaseStock(made.network, level)
    stream = torch.Generator().manual_seed(5)
    demand = NormalDemand((5.0,), (1.6,), clipped=False).draw(stream, 20000, 60)
    run = made.simulator.run(rule, torch.full((20000, 1, 4), level / 4), demand)
    cost = run.cost[:, 10:].mean()
    (slope,) = torch.autograd.grad(cost, [rule.level.parameter])
    return float(cost.detach()), float(slope) / float(torch.sigmoid(rule.level.start))  # d softplus


def test_hdpo_fact_2_the_gradient_through_the_simulator() -> None:
    cost, slope = gradient_at(28.0)
    assert cost == pytest.approx(7.0163, abs=0.06) and slope == pytest.approx(-1.00868, abs=0.03)
    assert gradient_at(29.585)[1] == pytest.approx(0.0, abs=0.03)
    assert gradient_at(31.0)[1] > 0.3


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, so that differences are exact enough."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("spec", ["backlog", "lost-sales", "serial", "transshipment", "one-warehouse"])
def test_the_gradient_of_a_network_is_that_of_differences(spec: str, double: None) -> None:
    made = task(spec)
    network = policies.OrderNetwork(made.network, made.customers.mean, (8,), generator=torch.Generator().manual_seed(0))
    demand, start = made.traces(0, "train", 0, 64, 20)

    def cost(shift: float = 0.0, direction: list[Tensor] | None = None) -> Tensor:
        saved = [p.detach().clone() for p in network.parameters()]
        if direction:
            for p, d in zip(network.parameters(), direction, strict=True):
                p.data.add_(d, alpha=shift)
        found = made.simulator.run(network, start, demand).cost.mean(dtype=torch.float64)
        for p, s in zip(network.parameters(), saved, strict=True):
            p.data.copy_(s)
        return found

    gradient = torch.autograd.grad(cost(), list(network.parameters()))
    stream = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=stream) for p in network.parameters()]
        with torch.no_grad():
            slope = float(cost(1e-6, direction) - cost(-1e-6, direction)) / 2e-6
        exact = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        assert exact == pytest.approx(slope, rel=1e-4, abs=1e-5)
        assert abs(exact) > 0.01  # else nothing was compared


# ------------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("spec", SETTINGS)
def test_orders_of_networks_can_be_shipped(spec: str) -> None:
    made = task(spec)
    net = made.network
    network = policies.OrderNetwork(net, made.customers.mean, generator=torch.Generator().manual_seed(0))
    demand, start = made.traces(0, "train", 0, 32, 30)
    with torch.no_grad():
        run = made.simulator.run(network, start, demand, record=True)
        assert run.inventory is not None and run.order is not None
        wanted = network(run.inventory.flatten(0, 1)).view_as(run.order)
    torch.testing.assert_close(wanted, run.order, atol=1e-4, rtol=1e-4)
    assert float(run.order.min()) >= 0


def test_rules_by_hand() -> None:
    chain = task("serial").network
    one = Network((-1,), (3,), (1.0,), (9.0,))
    state = torch.tensor([[[4.0, 1.0, 2.0]]])
    assert policies.BaseStock(one, 12.0)(state).item() == pytest.approx(5)
    assert policies.BaseStock(one, 6.0)(state).item() == 0
    capped = policies.CappedBaseStock(one, 12.0)
    capped.cap.start.fill_(capped.cap.start.new_tensor(3.0).expm1().log())  # softplus inverted
    assert capped(state).item() == pytest.approx(3)
    for reorder, wanted in ((6.0, 0.0), (7.0, 5.0), (8.0, 5.0)):
        assert policies.ReorderPoint(reorder, 12.0)(state).item() == wanted
    echelon = policies.EchelonStock(chain, 10.0)
    assert echelon.levels().tolist() == pytest.approx([40, 30, 20, 10])  # from the top to the store
    stock = torch.zeros(1, 4, 4)
    stock[0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert echelon(stock)[0].tolist() == pytest.approx([40 - 10, 30 - 9, 20 - 7, 10 - 4])


def test_a_step_of_the_optimizer_moves_a_level_by_the_learning_rate_times_the_unit() -> None:
    rule = policies.BaseStock(task("backlog").network, 10.0, unit=150.0)
    optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)
    (rule.level() - 20).square().backward()
    optimizer.step()
    assert rule.level().item() == pytest.approx(10.45, abs=1e-3)


def test_a_warehouse_deals_out_in_balance() -> None:
    made = task("transshipment")
    rule = policies.BalancedStock(made.network, made.customers.mean)
    stock = torch.zeros(1, 6, 3)
    stock[0, 0, 0] = 90.0
    target, mean = rule.position(), torch.tensor(made.customers.mean)
    torch.testing.assert_close(target, 3 * mean, atol=1e-3, rtol=1e-3)
    sent = rule(stock)[0, 1:]
    torch.testing.assert_close(sent, target + (90 - target.sum()) / 5, atol=1e-3, rtol=1e-3)
    assert float(sent.detach().sum()) == pytest.approx(90, abs=1e-2)


# ---------------------------------------------------------------------------------------------------------- traces


def test_traces_are_functions_of_seed_split_and_index() -> None:
    made = task("one-warehouse")
    demand, start = made.traces(1, "train", 3, 16, 20)
    again = made.traces(1, "train", 3, 16, 20)
    assert torch.equal(demand, again[0]) and torch.equal(start, again[1])
    for other in ((2, "train", 3), (1, "dev", 3), (1, "test", 3), (1, "train", 4)):
        assert not torch.equal(demand, made.traces(*other, 16, 20)[0])  # type: ignore[arg-type]


def test_demand_has_the_moments_that_it_states() -> None:
    made = task("transshipment(correlation=0.5)")
    demand = made.traces(0, "test", 0, 2000, 20)[0].flatten(0, 1)
    assert demand.mean(0).tolist() == pytest.approx(made.customers.mean, abs=0.05)
    assert demand.std(0).tolist() == pytest.approx(made.customers.std, abs=0.05)
    pairs = torch.corrcoef(demand.T)[torch.triu(torch.ones(5, 5), 1) > 0]
    assert pairs.tolist() == pytest.approx([0.5] * 10, abs=0.03)
    assert float(demand.min()) < 0  # not clipped
    assert float(task("one-warehouse").traces(0, "test", 0, 2000, 20)[0].min()) == 0
    poisson = task("lost-sales").traces(0, "test", 0, 2000, 20)[0]
    assert torch.equal(poisson, poisson.round()) and float(poisson.mean()) == pytest.approx(5, abs=0.05)
    assert float(poisson.var()) == pytest.approx(5, abs=0.15)


def test_the_start_is_random_in_the_stores_and_empty_upstream() -> None:
    made = task("serial")
    start = made.traces(0, "train", 0, 500, 1)[1]
    assert float(start[:, :3].abs().max()) == 0
    assert (
        float(start[:, 3].mean()) == pytest.approx(2.5, abs=0.1) and 0 <= float(start.min()) <= float(start.max()) < 5
    )


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("backlok", "no task 'backlok'.*'backlog'"),
        ("backlog(leadtime=2)", "no setting 'leadtime'.*'lead_time'"),
        ("backlog(lead_time=0)", "lead_time is 0 but must be at least 1"),
        ("backlog(lead_time=1.5)", "lead_time is '1.5' but must be an int"),
        ("backlog(penalty=-1)", "penalty is -1 but must be above 0"),
        ("backlog(penalty=0)", "penalty is 0"),
        ("backlog(holding=nan)", "holding is nan"),
        ("backlog(std=inf)", "std is inf"),
        ("backlog(mean=-5)", "mean is -5"),
        ("lost-sales(lead_time=9)", "at most 4"),
        ("lost-sales(mean=50)", "at most 10"),
        ("lost-sales(ordering_cost=-1)", "ordering_cost is -1"),
        ("lost-sales(ordering_cost=5,lead_time=3)", "lead_time of at most 2"),
        ("serial(lead_times=2xax3)", "'2xax3'"),
        ("serial(lead_times=2x0x3x4)", "lead time of location 1 is 0 but must be at least 1"),
        ("serial(lead_times=2x1.5x3x4)", "whole periods"),
        ("serial(lead_times=2x3)", "holding"),
        ("serial(holding_costs=1x0.5x0.2x0.1)", "must not fall"),
        ("serial(holding_costs=-1x0.5x0.6x1)", "holding cost of location 0 is -1"),
        ("transshipment(stores=0)", "stores is 0 but must be at least 1"),
        ("transshipment(correlation=2)", "correlation is 2 but must be from 0 to 1"),
        ("transshipment(warehouse_lead_time=0)", "warehouse_lead_time is 0"),
        ("one-warehouse(warehouse_holding=-1)", "holding cost of location 0 is -1"),
    ],
)
def test_settings_that_make_no_sense(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(spec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lead_time": (0,)}, "lead time of location 0 is 0"),
        ({"holding": (-1.0,)}, "holding"),
        ({"penalty": (float("nan"),)}, "penalty"),
        ({"penalty": (1.0, 2.0)}, "2 values for 1"),
        ({"supplier": (0,)}, "supplier must stand before"),
    ],
)
def test_networks_that_cannot_be(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(Network((-1,), (2,), (1.0,), (9.0,)), **change)


def test_names_agree() -> None:
    assert list(TASKS) == sorted(TASKS)
    assert all(task(name).name == name for name in TASKS)
