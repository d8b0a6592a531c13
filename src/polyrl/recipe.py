"""Parts and recipes, under one name for method files."""

import sys
from typing import Any

from polyrl.core.judged import Judged
from polyrl.core.part import (
    STAGES,
    Architecture,
    Change,
    Improver,
    OwnModel,
    Part,
    Scope,
    Stage,
    Term,
    hyperparameter,
    kebab,
    options,
)
from polyrl.core.recipe import Recipe

__all__ = [
    "STAGES",
    "Architecture",
    "Change",
    "Improver",
    "Judged",
    "OwnModel",
    "Part",
    "Recipe",
    "Scope",
    "Stage",
    "Term",
    "hyperparameter",
    "kebab",
    "options",
]


def __getattr__(name: str) -> Any:
    """What was called otherwise before 0.2."""
    from polyrl.moved import renamed

    return renamed(sys.modules[__name__], name)
