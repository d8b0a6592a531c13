"""Ways that collect prizes, of many instances at once: a greedy construction, and ruin and recreate.

All take distances `[B, N, N]`, prizes `[B, N]`, lengths of the longest ways `[B]` and their ends `[B]`, and give routes
`[B, N - 1]` int64: places in their order, without the start (node 0) and the end, padded with 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyrl.runtime.seeding import generator

SPREAD = 8.0
"""How much worse than the best an insertion may look by chance and still be made."""


def nearest_prizes(away: Tensor, prize: Tensor, longest: Tensor, end: Tensor) -> Tensor:
    """Go to the place of the most prize for its distance from which the end can be reached in time, `[B, N - 1]`."""
    size, count = prize.shape
    at = torch.arange(size)
    home = away[at, end]
    left = torch.ones(size, count, dtype=torch.bool)
    left[:, 0] = left[at, end] = False
    here, room, route = torch.zeros(size, dtype=torch.int64), longest.clone(), []
    for _ in range(count - 1):
        way = away[at, here]
        may = left & (way + home <= room[:, None])
        best = (prize / way.clamp(min=1e-9)).masked_fill(~may, -torch.inf).argmax(1)
        goes = may.any(1)
        route.append(torch.where(goes, best, 0))
        room = torch.where(goes, room - way[at, best], room)
        here = torch.where(goes, best, here)
        left[at[goes], best[goes]] = False
    return torch.stack(route, 1)


def ruined_and_recreated(away: Tensor, prize: Tensor, longest: Tensor, end: Tensor, rounds: int, seed: int) -> Tensor:
    """Routes `[B, N - 1]`: put places in that cost little for their prize; take some out, others in, `rounds` times.

    What is kept has more prizes than before, or as many on a shorter way (ruin and recreate: Schrimpf et al. 2000,
    doi:10.1006/jcph.1999.6413). The first way is built without chance.
    """
    stream = generator(seed, "ruin and recreate")
    size, count = prize.shape
    at = torch.arange(size)
    following = torch.zeros(size, count, dtype=torch.int64)  # of places that are not on the way: themselves
    following[:] = torch.arange(count)
    following[:, 0] = end
    best = _recreated(away, prize, longest, end, following, torch.ones(size, count))
    worth = _worth(away, prize, end, best)
    for _ in range(rounds):
        share = 0.1 + 0.5 * torch.rand(size, 1, generator=stream)
        out = torch.rand(size, count, generator=stream) < share
        chance = 1 + (SPREAD - 1) * torch.rand(size, count, generator=stream)
        other = _recreated(away, prize, longest, end, _ruined(best, end, out), chance)
        found = _worth(away, prize, end, other)
        better = found > worth
        best, worth = torch.where(better[:, None], other, best), torch.where(better, found, worth)
    route, here = [], best[:, 0]
    for _ in range(count - 1):
        route.append(torch.where(here == end, 0, here))
        here = torch.where(here == end, end, best[at, here])
    return torch.stack(route, 1)


def _on_the_way(following: Tensor, end: Tensor) -> Tensor:
    """Bool `[B, N]`, places that are visited."""
    place = torch.arange(following.shape[1])
    return (following != place) & (place > 0) & (place != end[:, None])


def _worth(away: Tensor, prize: Tensor, end: Tensor, following: Tensor) -> Tensor:
    """Prizes `[B]`, and of equal ones the shorter way is worth more."""
    place = torch.arange(following.shape[1])
    goes = _on_the_way(following, end) | (place == 0)
    length = (away.gather(2, following[..., None])[..., 0] * goes).sum(1)
    smallest = 1e-6 * prize.amax(1) / away.flatten(1).amax(1).clamp(min=1e-9)
    return (prize * goes).sum(1) - smallest * length


def _ruined(following: Tensor, end: Tensor, out: Tensor) -> Tensor:
    """The ways without the places `out`, bool `[B, N]`."""
    place = torch.arange(following.shape[1])
    out = out & _on_the_way(following, end)
    after = following
    for _ in range(following.shape[1].bit_length()):  # twice as far each time
        after = torch.where(out.gather(1, after), after.gather(1, after), after)
    return torch.where(out, place, after)


def _recreated(away: Tensor, prize: Tensor, longest: Tensor, end: Tensor, following: Tensor, chance: Tensor) -> Tensor:
    """Put places in, one after another, each where it makes the way least longer, while one fits.

    The one of the most prize times `chance` `[B, N]` for what it makes the way longer comes first.
    """
    size, count = prize.shape
    place, at, following = torch.arange(count), torch.arange(size), following.clone()
    goes = _on_the_way(following, end) | (place == 0)
    step = away.gather(2, following[..., None])[..., 0]
    room = longest - (step * goes).sum(1)
    free = ~goes & (place != end[:, None]) & (prize > 0)

    def longer(r: Tensor, node: Tensor) -> Tensor:
        """By how much each place makes the way longer behind a place of it, `[R, N]`."""
        after = following[r, node]
        found: Tensor = away[r, node] + away[r, after] - away[r, node, after, None]
        return found

    # behind each place of the way (last axis): each place
    rows = at[:, None].expand(size, count)
    behind = longer(rows, place.expand(size, count)).masked_fill(~goes[..., None], torch.inf).mT.contiguous()
    for _ in range(count - 1):
        least, before = behind.min(2)
        fits = free & (least <= room[:, None])
        some = fits.any(1)
        if not bool(some.any()):
            break
        node = (prize * chance / least.clamp(min=1e-9)).masked_fill(~fits, -torch.inf).argmax(1)
        r, node = at[some], node[some]
        ahead = before[r, node]
        following[r, node], following[r, ahead] = following[r, ahead], node
        free[r, node] = False
        room[r] -= least[r, node]
        behind[r, :, node], behind[r, :, ahead] = longer(r, node), longer(r, ahead)
    return following
