"""Runs one seed of a ledger entry again and compares: digit by digit on the same kind of processor, else by interval.

The last digits of a computation differ between processors and versions of libraries, and training magnifies them. On
another processor the seed's numbers must therefore lie where another seed's could: within the prediction interval of
the entry's seeds, at a level that a right entry fails in one of a hundred checks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import special

from polyrl.errors import UserError
from polyrl.reproduction.claim import Claim, awaited
from polyrl.reproduction.judging import judge
from polyrl.reproduction.provenance import code_of, machine, same_kind
from polyrl.reproduction.quantities import Seconds
from polyrl.reproduction.running import arm_configs, default_folder, observe, run_seeds, versions
from polyrl.runtime.executor import LOCAL

FALSE_ALARMS = 0.01
"""Chance that a right entry is told to be wrong, over all its criteria, where intervals are compared."""
LIBRARIES = ("torch", "numpy", "scipy", "transformers", "gymnasium")


@dataclass(frozen=True)
class Compared:
    """One criterion's number of the seed, then and now.

    Attributes:
        name: of the criterion.
        then, now: the numbers.
        low, high: what it may be; both are `then` where digits are compared.
    """

    name: str
    then: float
    now: float | None
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        """Whether it is what the entry says."""
        return self.now is not None and self.low <= self.now <= self.high


@dataclass(frozen=True)
class Check:
    """What a check came to.

    Attributes:
        seed: that was run again.
        digits: whether digits were compared; else intervals, and `why` says why.
        same_code: whether the code is the entry's; None where the entry does not say.
        compared: criterion by criterion, but for those of seconds, which depend on what else the machine does.
    """

    seed: int
    digits: bool
    why: str
    same_code: bool | None
    compared: tuple[Compared, ...]

    @property
    def agrees(self) -> bool:
        """Whether every number is what the entry says."""
        return all(c.agrees for c in self.compared)


def check(
    claim: Claim,
    entry: Mapping[str, Any],
    out: Path | None = None,
    *,
    executor: str = LOCAL,
    workers: int | None = None,
    quiet: bool = False,
) -> Check:
    """Run the entry's first seed again, all arms, and compare the number of each criterion.

    Raises:
        UserError: the entry is of an experiment that another has replaced, or an arm cannot be run, or broke.
    """
    if awaited(claim, entry):
        raise UserError(
            f"The entry of {claim.slug} is of an earlier experiment, which cannot be run again; the one that replaces "
            f"it has not been run: polyrl reproduce {claim.slug}."
        )
    seed = int(entry["seeds"][0])
    again = dataclasses.replace(claim, start=entry.get("start", "shared"))  # all seeds had one under the earlier rule
    folder = out or default_folder(claim).with_name(default_folder(claim).name + "-check")
    run_seeds(again, [seed], folder, workers, executor=executor, quiet=quiet, overwrite=True)
    judged = judge(again, observe(again, folder), [seed])
    why = _why_not_digits(entry)
    found = []
    for stated, now in zip(entry["criteria"], judged, strict=True):
        then = stated["per_seed"].get(str(seed))
        if then is None or isinstance(now.criterion.quantity.measure, Seconds):
            continue  # no two runs take the same time
        values = list(stated["per_seed"].values())
        low, high = expected(values, FALSE_ALARMS / len(judged)) if why else (then, then)
        found.append(Compared(stated["name"], then, now.per_seed.get(seed), low, high))
    code = entry.get("code")
    same = None if code is None else code["hash"] == code_of(again, arm_configs(again))["hash"]
    return Check(seed, not why, why, same, tuple(found))


def expected(values: Sequence[float], chance: float) -> tuple[float, float]:
    """Where another value of the kind lies but for a `chance`: a t prediction interval from two values on.

    One value, or several that are all the same, allow for rounding alone.
    """
    n = len(values)
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
    half = float(special.stdtrit(n - 1, 1 - chance / 2)) * deviation * math.sqrt(1 + 1 / n) if deviation else 0.0
    half = max(half, 1e-6 * max(abs(mean), 1.0))
    return mean - half, mean + half


def _why_not_digits(entry: Mapping[str, Any]) -> str:
    """Why digits cannot be expected to be equal; empty where they can."""
    here = machine()
    if not same_kind(entry["machine"], here):
        made = entry["machine"].get("model") or "a processor that the entry does not name"
        return f"made on {made} ({entry['machine'].get('instructions', 'instruction set unknown')})"
    now = versions()
    other = [f"{name} {entry['versions'].get(name)}" for name in LIBRARIES if entry["versions"].get(name) != now[name]]
    return f"made with {', '.join(other)}" if other else ""
