"""polyrl: policy optimization. Train, compose, compare and re-test published methods on one five-stage loop."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from polyrl.api import compare, evaluate, reproduce, resume, train
    from polyrl.core.experience import Experience
    from polyrl.core.fields import Field
    from polyrl.errors import UserError
    from polyrl.recipe import Architecture, Improver, Part, Recipe, Term, hyperparameter
    from polyrl.results import ComparisonResult, RunResult
    from polyrl.runtime.metric import Metric
    from polyrl.trained_policy import TrainedPolicy, export, load

_HOMES = {
    "train": "api",
    "compare": "api",
    "resume": "api",
    "evaluate": "api",
    "load": "trained_policy",
    "export": "trained_policy",
    "reproduce": "api",
    "TrainedPolicy": "trained_policy",
    "RunResult": "results",
    "ComparisonResult": "results",
    "UserError": "errors",
    "Experience": "core.experience",
    "Field": "core.fields",
    "Metric": "runtime.metric",
    "Architecture": "recipe",
    "Improver": "recipe",
    "Part": "recipe",
    "Recipe": "recipe",
    "Term": "recipe",
    "hyperparameter": "recipe",
}
__all__ = [
    "Architecture",
    "ComparisonResult",
    "Experience",
    "Field",
    "Improver",
    "Metric",
    "Part",
    "Recipe",
    "RunResult",
    "Term",
    "TrainedPolicy",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "hyperparameter",
    "load",
    "reproduce",
    "resume",
    "train",
]


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import public names when first asked for, so that `import polyrl` stays instant."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"polyrl.{_HOMES[name]}"), name)
    if name == "knob":  # as versions before 0.2 called it
        from polyrl.moved import renamed

        return renamed(sys.modules[__name__], name)
    raise AttributeError(f"module 'polyrl' has no attribute '{name}'")


class _MovedLater:
    """Loads the finder of modules of before when one is first asked for, so that `import polyrl` stays instant."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> Any:
        """See `polyrl.moved.Finder`."""
        if not name.startswith("polyrl."):
            return None
        from polyrl.moved import Finder

        return Finder().find_spec(name, path, target)


sys.meta_path.append(_MovedLater)
