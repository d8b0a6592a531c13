"""Tours of many instances at once: constructions, local search, and their lengths.

All take distances `[B, n, n]` and give orders `[B, n]` int64 of the nodes; a tour goes back from the last to the first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 4_000_000
"""Numbers of one matrix of moves that are worked on at once."""
LONGEST_SEGMENT = 3
"""Nodes that Or-opt moves together (Or 1976)."""
SMALLEST = 1e-6
"""Gains below this share of the longest distance are rounding."""


def tour_lengths(away: Tensor, order: Tensor) -> Tensor:
    """Lengths `[B]` of tours."""
    rows = torch.arange(len(order))[:, None]
    return away[rows, order, order.roll(-1, 1)].sum(1)


def nearest_neighbor(away: Tensor, start: Tensor) -> Tensor:
    """Go to the nearest node that is left, from the nodes `start` `[B]` on."""
    rows, count = torch.arange(len(away)), away.shape[1]
    left = torch.ones(away.shape[:2], dtype=torch.bool)
    order = [start]
    for _ in range(count - 1):
        left[rows, order[-1]] = False
        order.append(away[rows, order[-1]].masked_fill(~left, torch.inf).argmin(1))
    return torch.stack(order, 1)


def farthest_insertion(away: Tensor) -> Tensor:
    """Put the node farthest from the tour where it costs least (Rosenkrantz et al. 1977), from node 0 on: `[B, n]`."""
    size, count = away.shape[:2]
    rows = torch.arange(size)
    following = torch.zeros(size, count, dtype=torch.int64)
    within = torch.zeros(size, count, dtype=torch.bool)
    within[:, 0] = True
    nearest = away[:, 0].clone()  # to the tour
    for _ in range(count - 1):
        node = nearest.masked_fill(within, -torch.inf).argmax(1)
        to, back = away[rows, :, node], away[rows, node].gather(1, following)
        cost = (to + back - away.gather(2, following[..., None])[..., 0]).masked_fill(~within, torch.inf)
        place = cost.argmin(1)
        following[rows, node] = following[rows, place]
        following[rows, place] = node
        within[rows, node] = True
        nearest = torch.minimum(nearest, away[rows, node])
    order = [torch.zeros(size, dtype=torch.int64)]
    for _ in range(count - 1):
        order.append(following[rows, order[-1]])
    return torch.stack(order, 1)


def improved(away: Tensor, order: Tensor) -> Tensor:
    """Tours `[B, n]` after 2-opt and Or-opt: the best move is made until none is left. Distances are symmetric."""
    pieces = max(1, CHUNK // away.shape[1] ** 2)
    chunks = zip(torch.split(away, pieces), torch.split(order, pieces), strict=True)
    return torch.cat([_improved(a, o) for a, o in chunks])


def _improved(away: Tensor, order: Tensor) -> Tensor:
    count = away.shape[1]
    if count < 4:
        return order
    done = order.clone()
    going = torch.arange(len(order))
    smallest = SMALLEST * float(away.max())
    between = away.gather(1, order[..., None].expand_as(away)).gather(2, order[:, None].expand_as(away))
    moving = order
    while len(going):
        gain, key = _best_move(between, smallest)
        better = gain > smallest
        done[going[~better]] = moving[~better]
        going, moving, between = going[better], moving[better], between[better]
        place = key[better].argsort(1)
        moving = moving.gather(1, place)
        between = between.gather(1, place[..., None].expand_as(between)).gather(2, place[:, None].expand_as(between))
    return done


def _best_move(away: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """What the best move of each tour gains `[B]`, and keys `[B, n]` that sort its places into the tour after it.

    Nodes are moved where nothing is gained by turning a part round.

    Args:
        away: distances in the order of the tours, `[B, n, n]`.
        smallest: gains that are none.
    """
    count = away.shape[1]
    place = torch.arange(count)
    step = away[:, place, (place + 1) % count]  # from each place to the next
    gain, key = _best_turn(away, step)
    rest = (gain <= smallest).nonzero()[:, 0]
    if len(rest):
        gain[rest], key[rest] = _best_shift(away[rest], step[rest])
    return gain, key


def _best_turn(away: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """2-opt: the steps (i, i + 1) and (j, j + 1) become (i, j) and (i + 1, j + 1)."""
    count = away.shape[1]
    place = torch.arange(count)
    ahead = away.roll((-1, -1), (1, 2))
    gain = step[:, :, None] + step[:, None] - away - ahead
    gain[:, place, place] = -torch.inf
    value, move = gain.flatten(1).max(1)
    i, j = move // count, move % count
    low, high = (torch.minimum(i, j) + 1)[:, None], torch.maximum(i, j)[:, None]
    return value, torch.where((place >= low) & (place <= high), low + high - place, place).float()


def _best_shift(away: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Or-opt: the nodes i .. last go between j and its next, as they are or turned round."""
    count = away.shape[1]
    place = torch.arange(count)
    gains, moves = [], []
    for length in range(1, min(LONGEST_SEGMENT, count - 3) + 1):
        last, before, after = (place + length - 1) % count, (place - 1) % count, (place + length) % count
        freed = step[:, before] + step[:, last] - away[:, before, after]
        inside = (place - place[:, None]) % count < length
        inside |= place == before[:, None]  # where they stand now
        for first, second in ((place, last), (last, place)):
            cost = away[:, first] + away[:, second].roll(-1, 2) - step[:, None]
            best = (freed[:, :, None] - cost).masked_fill(inside, -torch.inf).flatten(1).max(1)
            gains.append(best.values)
            moves.append(best.indices)
    value, which = torch.stack(gains, 1).max(1)
    chosen = torch.stack(moves, 1)[torch.arange(len(which)), which]
    i, j = (chosen // count)[:, None], (chosen % count)[:, None]
    size, number = (which // 2 + 1)[:, None], (place - i) % count  # number: within the segment
    turned = which[:, None] % 2 == 1
    share = (torch.where(turned, size - 1 - number, number) + 1) / (size + 1)
    return value, torch.where(number < size, j + share, place.float())


def searched(away: Tensor, starts: int) -> Tensor:
    """The best of the local optima from nearest-neighbor tours of `starts` first nodes and from farthest insertion.

    The tours `[B, n]` begin at node 0.
    """
    return _best_of(away, improved(away, farthest_insertion(away)), improved, starts)


def _best_of(away: Tensor, best: Tensor, improve: Callable[[Tensor, Tensor], Tensor], starts: int) -> Tensor:
    """The shortest of tours `best` `[B, n]` and improved nearest-neighbor tours of `starts` first nodes."""
    size, count = away.shape[:2]
    length = tour_lengths(away, best)
    for start in torch.linspace(0, count - 1, min(starts, count)).round().long().tolist():
        order = improve(away, nearest_neighbor(away, torch.full((size,), start)))
        other = tour_lengths(away, order)
        best, length = torch.where((other < length)[:, None], order, best), torch.minimum(other, length)
    return from_first(best)


def from_first(order: Tensor) -> Tensor:
    """The same tours `[B, n]`, begun at node 0."""
    count = order.shape[1]
    zero = (order == 0).int().argmax(1)
    return order.gather(1, (torch.arange(count) + zero[:, None]) % count)


def directed_search(away: Tensor, starts: int) -> Tensor:
    """The best of the local optima by `exchanged` from nearest-neighbor tours of `starts` first nodes.

    Distances may differ by direction; the tours `[B, n]` begin at node 0.
    """
    first = torch.zeros(len(away), dtype=torch.int64)
    return _best_of(away, exchanged(away, nearest_neighbor(away, first)), exchanged, starts)


def exchanged(away: Tensor, order: Tensor) -> Tensor:
    """Tours `[B, n]` after 3-opt without reversal: neighboring parts change places while that shortens the tour.

    It is the one exchange of three steps that turns nothing round, so that it suits distances that differ by direction.
    The best one is made until none is left.
    """
    count = order.shape[1]
    # parts a .. b - 1 and b .. c - 1; whichever node stands first stays there, since a tour has no first place
    a, b, c = torch.combinations(torch.arange(1, count + 1), 3).unbind(1)
    if not len(a):
        return order
    pieces = max(1, CHUNK // len(a))
    chunks = zip(torch.split(away, pieces), torch.split(order, pieces), strict=True)
    return torch.cat([_exchanged(x, o, a, b, c) for x, o in chunks])


def _exchanged(away: Tensor, order: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    count = away.shape[1]
    place, smallest = torch.arange(count), SMALLEST * float(away.max())
    done, moving, going = order.clone(), order, torch.arange(len(order))
    while len(going):
        rows = going[:, None]
        step = away[rows, moving, moving.roll(-1, 1)]  # from each place to the next
        before, first, second, after = (moving[:, at] for at in (a - 1, a, b, c % count))
        joined = away[rows, before, second] + away[rows, moving[:, c - 1], first] + away[rows, moving[:, b - 1], after]
        gain, move = (step[:, a - 1] + step[:, b - 1] + step[:, c - 1] - joined).max(1)
        better = gain > smallest
        done[going[~better]] = moving[~better]
        going, moving, move = going[better], moving[better], move[better]
        low, middle, high = (at[move][:, None] for at in (a, b, c))
        later = torch.where(place < middle, place + high - middle, place - middle + low)
        moving = moving.gather(1, torch.where((place >= low) & (place < high), later, place).argsort(1))
    return done
