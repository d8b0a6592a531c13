"""Files of a fleet's day, in JSON.

    {"vertiports": [[0, 0], [30, 0]], "aircraft": [0, 0, 1], "demand": [[[0, 4], [9, 0]], ...], "parking": 10}

`vertiports` are places in miles, `aircraft` says at which vertiport each begins, and `demand` has for each of the
twelve hours the passengers from each vertiport (a row) to each other (a column; 0 to itself). The rest may be left out:
`fare` in dollars as demand is given, else $5 and $1.28 a mile; `mean_delay` hours of each vertiport; `closed`, a list
of [hour, from, to]; `parking` and `chargers` of every vertiport, else 10 and 6. Vertiports, aircraft and hours are
counted from 0, hours from 6:00. Nothing happens by chance in such a day.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.files import read_json
from polyrl.tasks.operations.fleets import BASE_FARE, HOURS, MILE_FARE, MOST_DECISIONS, Day, Plan

KEYS = ("vertiports", "aircraft", "demand", "fare", "mean_delay", "closed", "parking", "chargers")
MOST = 200
"""Vertiports and aircraft of a file."""
MOST_WAITING = 10**6
LARGEST = 10**6
"""Of any other number of a file, either way, so that sums of them stay numbers."""


def read_day(path: Path) -> Day:
    """Read a file.

    Raises:
        UserError: it cannot be read, or something in it makes no day.
    """
    try:
        given = read_json(path)
    except OSError as error:
        raise UserError(f"The instance {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is no fleet's day: {error}.") from None
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise UserError(f"{path} has '{unknown[0]}', but a fleet's day has {', '.join(KEYS)}.")
    places = _numbers(path, given, "vertiports", (None, 2))
    n = len(places)
    aircraft = _numbers(path, given, "aircraft", (None,))
    if not 2 <= n <= MOST or not 1 <= len(aircraft) <= MOST:
        raise UserError(f"{path} has {n} vertiports and {len(aircraft)} aircraft; from 2 and 1 to {MOST} can be flown.")
    starts = _whole(path, "aircraft", aircraft, n - 1)
    shape = (HOURS, n, n)
    demand = _whole(path, "demand", _numbers(path, given, "demand", shape), MOST_WAITING)
    own = demand.diagonal(dim1=1, dim2=2).nonzero()
    if len(own):
        hour, vertiport = own[0].tolist()
        raise UserError(
            f"{path} has passengers of hour {hour} from vertiport {vertiport} to itself, whom nobody can fly; put 0 "
            "there."
        )
    miles = (places[:, None] - places).norm(dim=-1)
    usual = (BASE_FARE + MILE_FARE * miles).expand(shape)
    fare = _numbers(path, given, "fare", shape) if "fare" in given else usual.clone()
    delay = _numbers(path, given, "mean_delay", (n,)) if "mean_delay" in given else torch.zeros(n).double()
    if bool((delay < 0).any()) or bool((fare < 0).any()):
        raise UserError(f"{path} has a fare or a mean_delay below 0.")
    closed = torch.zeros(shape, dtype=torch.bool)
    if given.get("closed"):
        routes = _whole(path, "closed", _numbers(path, given, "closed", (None, 3)), MOST)
        if bool((routes >= torch.tensor([HOURS, n, n])).any()):
            raise UserError(f"{path} closes a route of an hour or a vertiport that is not there; both count from 0.")
        closed[routes[:, 0], routes[:, 1], routes[:, 2]] = True
    limits = {"parking": 10, "chargers": 6}
    for name, usual_limit in limits.items():
        value = given.get(name, usual_limit)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise UserError(f"{name} of {path} is {str(value)[:40]} but must be a whole number from 1 to {MOST}.")
        limits[name] = value
    if int(starts.bincount(minlength=n).max()) > limits["parking"]:
        raise UserError(f"{path} has more aircraft at one vertiport than it has parking for ({limits['parking']}).")
    none = torch.zeros(len(starts), MOST_DECISIONS)
    return Day(places, starts, demand, fare, delay, closed, none.double(), none.bool(), **limits)


def _numbers(path: Path, given: dict[str, Any], name: str, shape: tuple[int | None, ...]) -> Tensor:
    """An entry of a shape, of which None stands for any length; float64.

    Raises:
        UserError: it is of another shape, or has something else than numbers of a sensible size.
    """
    wanted = " x ".join("any" if size is None else str(size) for size in shape)
    if name not in given:
        raise UserError(f"{path} is no fleet's day: it has no '{name}'.")
    try:
        found = torch.tensor(given[name], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} of {path} must be {wanted} numbers, in lists of equal lengths.") from None
    fits = found.dim() == len(shape) and all(s in (None, x) for s, x in zip(shape, found.shape, strict=True))
    if not fits:
        raise UserError(f"{name} of {path} is {' x '.join(map(str, found.shape))} but must be {wanted} numbers.")
    if not bool((found.abs() <= LARGEST).all()):
        raise UserError(f"{name} of {path} has a number that is not finite, or beyond {LARGEST:,}.")
    return found


def _whole(path: Path, name: str, numbers: Tensor, most: int) -> Tensor:
    if bool((numbers != numbers.round()).any()) or bool((numbers < 0).any()) or bool((numbers > most).any()):
        raise UserError(f"{name} of {path} must be whole numbers from 0 to {most}.")
    return numbers.long()


def write_day(path: Path, day: Day) -> None:
    """Write a day as `read_day` reads it, without what chance does to flights."""
    stated = {
        "vertiports": day.places.tolist(),
        "aircraft": day.starts.tolist(),
        "demand": day.demand.tolist(),
        "fare": day.fare.tolist(),
        "mean_delay": day.mean_delay.tolist(),
        "closed": day.closed.nonzero().tolist(),
        "parking": day.parking,
        "chargers": day.chargers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stated) + "\n", encoding="utf-8")


def write_plan(path: Path, plan: Plan, profit: float, by: str) -> None:
    """Write the vertiports that each aircraft is told, a line for each aircraft."""
    lines = [
        f"# profit {profit:.2f}, {by}",
        "# a line for each aircraft: the vertiports that it is told, its own to stay",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, *(" ".join(map(str, own)) for own in plan)]) + "\n", encoding="utf-8")
