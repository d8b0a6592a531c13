"""The claims of the papers, one file a paper: the experiment that could confirm or refute each, written before it ran.

A file defines `CLAIM`, a `polyrl.reproduction.claim.Claim`. `polyrl reproduce METHOD` runs it; docs/claims.md says how
it is judged. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from polyrl.errors import UserError, nearest
from polyrl.reproduction.ledger import verdict

if TYPE_CHECKING:
    from polyrl.reproduction.claim import Claim

__all__ = ["claim", "claims", "verdict"]


@cache
def claims() -> dict[str, Claim]:
    """Every claim by the slug of its method."""
    stems = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__")
    found: list[Claim] = [importlib.import_module(f"{__name__}.{stem}").CLAIM for stem in stems]
    return {c.slug: c for c in found}


def claim(method: str) -> Claim:
    """The claim of a method.

    Raises:
        UserError: there is no such method, or it has no claim yet.
    """
    from polyrl import catalogue

    if method in claims():
        return claims()[method]
    having = ", ".join(claims())
    if method in catalogue.methods():
        raise UserError(f"No claim of {method} has been written down yet; there are those of {having}.")
    near = nearest(method, [*claims(), *catalogue.methods()])
    raise UserError(f"There is no method '{method}'.{near} Claims have been written down of {having}.")
