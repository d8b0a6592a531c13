"""Where modules of before 0.2 are now, and what their names are called, for code of users that was written then.

`import polyrl.policies.language` goes on to work, with a `DeprecationWarning`; docs/coming-from.md has the names.
Nothing of polyrl's own goes this way.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_POLICIES_OF_LANGUAGE = ("encoding", "families", "folders", "frozen", "last_layer", "pairs", "prefix", "rows", "scalar")
_SAMPLING = ("cached", "continuations", "control", "decoding", "drawing", "environments", "language", "words")
_WORLDS = ("base", "control", "language", "language_evaluation", "operations", "pairs", "reward_model")
MODULES = {
    "experience": "core.experience",
    "runtime.context": "core.context",
    "policies": "models",
    **{f"policies.{name}": f"models.language.{name}" for name in (*_POLICIES_OF_LANGUAGE, "token_scores")},
    **{f"policies.{name}": f"models.{name}" for name in ("closed_form", "control", "inventory", "mlp")},
    **{f"policies.{name}": f"kernels.{name}" for name in ("decoder", "flat", "linear", "llama")},
    **{f"models.language.{name}": f"kernels.{name}" for name in ("decoder", "llama")},
    "policies.language": "models.language.policy",
    "sampling": "rollout",
    **{f"sampling.{name}": f"rollout.{name}" for name in _SAMPLING},
    "sampling.judge": "rollout.evaluation",
    "rollout.judge": "rollout.evaluation",
    "worlds": "run_state",
    **{f"worlds.{name}": f"run_state.{name}" for name in (*_WORLDS, "theory", "user_data")},
    "worlds.language_world": "run_state.language_run_state",
    "parts.optimise": "parts.optimize",
    "parts.demonstrations": "methods.language.ppo_max",
    "parts.offline_steps": "methods.language.dapo_direct",
    "run_state.joint_reward": "methods.language.aihf",
    "worlds.joint_reward": "methods.language.aihf",
    "models.normalisation": "models.normalization",
}
"""Module of before, and of now, below `polyrl`."""

NAMES = {
    "knob": "hyperparameter",
    "Optimise": "Optimize",
    "World": "RunState",
    "ControlWorld": "ControlRunState",
    "LanguageWorld": "LanguageRunState",
    "OperationsWorld": "OperationsRunState",
    "GameWorld": "GameRunState",
    "MDPWorld": "MDPRunState",
    "Reader": "Backbone",
    "WayBack": "Backward",
    "Judge": "Evaluator",
    "Standing": "EnvironmentState",
    "Words": "StopStringTracker",
    "KeptLogprobs": "ReferenceLogprobCache",
    "Given": "PythonObjects",
    "paid": "assign_reward",
    "regularised_value": "regularized_value",
}
"""Name of before, and of now, of what modules define."""


def told(before: str, now: str) -> None:
    """Warn whoever uses a name of before."""
    warnings.warn(f"{before} is called {now} since polyrl 0.2.", DeprecationWarning, stacklevel=3)


def renamed(module: ModuleType, name: str) -> Any:
    """What is called otherwise in `module` now.

    Raises:
        AttributeError: it never was there.
    """
    now = NAMES.get(name)
    if now is None or not hasattr(module, now):
        raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
    told(f"{module.__name__}.{name}", now)
    return getattr(module, now)


class _Moved(ModuleType):
    """A module of before, which hands on what is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        target = importlib.import_module(self.__dict__["_target"])
        return getattr(target, name) if hasattr(target, name) else renamed(target, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of before where there is none of the name; `polyrl` asks it last of all."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """How a module of before is loaded; None for any other."""
        package, _, rest = name.partition(".")
        if package != "polyrl" or rest not in MODULES:
            return None
        holds = any(other.startswith(f"{rest}.") for other in MODULES)
        return importlib.util.spec_from_loader(name, self, is_package=holds)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module that knows where its contents are."""
        now = f"polyrl.{MODULES[spec.name.partition('.')[2]]}"
        told(spec.name, now)
        module = _Moved(spec.name)
        module.__dict__["_target"] = now
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be run."""
