"""What torchrun says to the processes that it starts; torch is not imported to know."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from polyrl.errors import UserError


def asked() -> int:
    """How many processes torchrun started; 1 where it started none."""
    named = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if named else 1


def refuse(what: str) -> None:
    """Refuse under torchrun what is no single run; raises `UserError`."""
    if asked() > 1:
        raise UserError(
            f"torchrun started {asked()} processes for one training run, and {what} is none; start it without torchrun."
        )


def end(code: int) -> NoReturn:
    """End this process; one of several at once, because what joins them may abort where another has left already."""
    if asked() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
