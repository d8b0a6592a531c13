"""Building solutions with a network: rollouts of many copies, greedy decoding, and beam search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.errors import Diverged
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen
from polyrl.tasks.batched import Padded, State
from polyrl.tasks.operations.combinatorial import ConstructionEnvironment


@dataclass(frozen=True)
class Built:
    """Solutions as they were built.

    Attributes:
        environment: the rows at their end.
        steps: what was seen and done, `[R, T, ...]` by name; steps after a row's end are in it too, and not `present`.
    """

    environment: ConstructionEnvironment
    steps: dict[str, Tensor]

    @property
    def costs(self) -> Tensor:
        """Minus the sum of rewards, `[R]`."""
        return -self.steps["reward"].sum(1)


@torch.no_grad()
def build(
    network: ConstructiveNetwork,
    environment: ConstructionEnvironment,
    *,
    copies: int = 1,
    stream: torch.Generator | None = None,
    record: bool = False,
) -> Built:
    """Build solutions of all rows, from their present states to the end.

    Args:
        network: says what comes next; each instance is read once.
        environment: stays as it is.
        copies: solutions of each row, one after another, each begun as an optimal one may begin.
        stream: of the nodes that are sampled; None takes the most probable ones.
        record: whether what was seen is kept, for training.

    Raises:
        Diverged: what the network says is not finite.
    """
    rows = environment.copies(copies)
    if copies > 1:
        rows.state = rows.varied(rows.state, torch.arange(rows.rows) % copies)
    memory = _read(network, rows, copies)
    kept: dict[str, list[Tensor]] = {}

    def keep(**values: Tensor) -> None:
        for name, x in values.items():
            kept.setdefault(name, []).append(x)

    while not bool(rows.ended.all()):
        mask = rows.mask()
        assert mask is not None
        shown = rows.observe()
        logprobs = _finite(network.logprobs(Seen.of(shown, mask, copies), memory)).flatten(0, 1)
        action = logprobs.argmax(1) if stream is None else _sampled(logprobs, stream)
        going = ~rows.ended
        if record:
            keep(**{name: x for name, x in shown.items() if isinstance(x, Tensor)})
            keep(action_mask=mask, present=going, behaviour_logprob=logprobs.gather(1, action[:, None])[:, 0])
        before = {name: rows.state[name] for name in rows.counts} if record else {}
        moved = rows.step(action)
        keep(**{name: (moved.state[name] - x).float() for name, x in before.items()})
        keep(action=torch.where(going, action, 0), reward=moved.reward, terminated=moved.terminated & going)
    return Built(rows, {name: torch.stack(values, 1) for name, values in kept.items()})


def _read(network: ConstructiveNetwork, environment: ConstructionEnvironment, copies: int = 1) -> Memory:
    """What the network reads of instances, of which there are `copies` in turn."""
    nodes = environment.observe()["nodes"]
    assert isinstance(nodes, Padded)
    return network.read(nodes.values[::copies], nodes.present[::copies])


def _sampled(logprobs: Tensor, stream: torch.Generator) -> Tensor:
    """One node of each row `[R]`, by its probability."""
    return torch.multinomial(logprobs.exp(), 1, generator=stream)[:, 0]


def _finite(logprobs: Tensor) -> Tensor:
    if bool(logprobs.isnan().any()):
        raise Diverged("What the policy says of the nodes that may come next is not finite; lower the learning rate.")
    return logprobs


@torch.no_grad()
def beam_search(
    network: ConstructiveNetwork, environment: ConstructionEnvironment, width: int
) -> ConstructionEnvironment:
    """The cheapest of the solutions that a beam of the `width` most probable prefixes comes to, as rows at their end.

    Prefixes are ranked by the sum of log-probabilities; those that are whole stay in the beam by theirs, and of those
    the cheapest is taken, whatever its probability. Rows of width 1 are the greedy ones.
    """
    rows, count = environment.rows, environment.mask().shape[1]  # type: ignore[union-attr]
    instance = torch.arange(rows)[:, None]
    memory = _read(network, environment)
    state = environment.state
    score, paid = torch.zeros(rows, 1), torch.zeros(rows, 1)
    ended = environment.ended[:, None].clone()
    while not bool(ended.all()):
        beams = score.shape[1]
        mask = environment.allowed(state).view(rows, beams, -1) & ~ended[..., None]
        seen = Seen.of(environment.show(state), mask.flatten(0, 1), beams)
        gain = _finite(network.logprobs(seen, memory))
        gain = torch.where(ended[..., None], torch.full_like(gain, -torch.inf), gain)
        gain[..., 0] = torch.where(ended, 0.0, gain[..., 0])  # what is whole stays as it is, once
        total = (score[..., None] + gain).flatten(1)
        # a beam is as wide as there are prefixes in the row that has most
        wide = min(width, int((total > -torch.inf).sum(1).max()))
        score, chosen = total.topk(wide, 1)
        parent, action = chosen // count, chosen % count
        lost = score == -torch.inf  # rows with fewer prefixes: their first one again, at no probability
        parent, action = torch.where(lost, parent[:, :1], parent), torch.where(lost, action[:, :1], action)
        flat = (instance * beams + parent).flatten()
        before = ended.flatten()[flat]
        state, paid = environment.rows_of(state, flat), paid.flatten()[flat]
        going = (~before).nonzero()[:, 0]
        moved = environment.advance(environment.rows_of(state, going), action.flatten()[going])
        state = _put(state, going, moved.state)
        paid[going] -= moved.reward
        before[going] = moved.terminated
        paid, ended = paid.view(rows, wide), before.view(rows, wide)
    found = environment.copies(1)
    best = (instance * paid.shape[1] + paid.argmin(1, keepdim=True)).flatten()
    found.state, found.ended = environment.rows_of(state, best), torch.ones(rows, dtype=torch.bool)
    return found


def _put(state: State, rows: Tensor, fresh: State) -> State:
    return {name: x.index_copy(0, rows, fresh[name]) for name, x in state.items()}


def judged(environment: ConstructionEnvironment) -> list[float]:
    """Cost of each row's solution, recomputed from it alone.

    Raises:
        RuntimeError: one of them is infeasible, which masks must have prevented: that is never a number.
    """
    costs = []
    for row in range(environment.rows):
        found = environment.verify(environment.instance(row), environment.solution(row))
        if found.cost is None:
            raise RuntimeError(f"the solution of row {row} is infeasible: {found.why}")
        costs.append(found.cost)
    return costs
