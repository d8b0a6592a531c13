"""The claims of the papers, one file a paper: the experiment that could confirm or refute each, written before it ran.

Most are of a method and bear its slug. A paper that brings no method, but measures several, has one of its own name.

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

__all__ = ["claim", "claims", "family_of", "studies_of", "verdict"]


@cache
def claims() -> dict[str, Claim]:
    """Every claim by its slug, which is that of its method where it has one."""
    stems = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__")
    found: list[Claim] = [importlib.import_module(f"{__name__}.{stem}").CLAIM for stem in stems]
    return {c.slug: c for c in found}


def studies_of(method: str) -> list[str]:
    """Slugs of the claims of papers that study a method beside others."""
    return [slug for slug, claim in claims().items() if method in claim.studies]


def family_of(slug: str) -> str:
    """The family of a claim: that of its method, or of the first that it studies."""
    from polyrl import catalogue

    return catalogue.methods()[claims()[slug].methods()[0]].family


def claim(method: str) -> Claim:
    """The claim of a method, or of a study by its name.

    Raises:
        UserError: there is no such method, or it has no claim yet.
    """
    from polyrl import catalogue

    if method in claims():
        return claims()[method]
    if studied := studies_of(method):
        raise UserError(
            f"No claim of {method} has been written down yet; {' and '.join(studied)} studies it beside others: "
            f"polyrl reproduce {studied[0]}."
        )
    having = ", ".join(claims())
    if method in catalogue.methods():
        raise UserError(f"No claim of {method} has been written down yet; there are those of {having}.")
    near = nearest(method, [*claims(), *catalogue.methods()])
    raise UserError(f"There is no method '{method}'.{near} Claims have been written down of {having}.")
