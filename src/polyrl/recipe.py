"""Parts and recipes, under one name for method files."""

from polyrl.core.part import (
    STAGES,
    Architecture,
    Change,
    Improver,
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
    "Part",
    "Recipe",
    "Scope",
    "Stage",
    "Term",
    "hyperparameter",
    "kebab",
    "options",
]
