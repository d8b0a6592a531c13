"""A greedy policy as arrays and JSON, from which files of any format are written."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.models.graph import Node
from polyrl.run_state.control import ControlRunState


@dataclass(frozen=True)
class Document:
    """A policy as arrays and JSON.

    Attributes:
        about: what it is of, and its nodes, whose arrays are named.
        arrays: by these names.
        size: numbers of an encoded observation.
    """

    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    size: int

    @classmethod
    def of(cls, run_state: ControlRunState, method: str) -> Document:
        """The policy that the run's evaluation judges.

        Raises:
            UserError: it has no form that leaves the house.
        """
        task, arrays = run_state.task, dict[str, NDArray[Any]]()
        if run_state.judged.memory:
            raise UserError("The policy keeps something from step to step, for which there is no exported form.")
        nodes = [_plain(node, arrays) for node in run_state.judged.greedy(bool(task.masked))]
        action = task.actions.space
        stated = {"kind": type(action).__name__, "shape": [*(action.shape or ())], "dtype": str(action.dtype)}
        if isinstance(action, spaces.Box):
            arrays |= {"action_low": action.low, "action_high": action.high}
        else:
            arrays["action_start"] = np.asarray(action.start if not isinstance(action, spaces.MultiBinary) else 0)
        about = {
            "format": 1,
            "task": task.name,
            "method": method,
            "masked": task.masked,
            "observation": task.observations.described(),
            "action": stated,
            "nodes": nodes,
        }
        return cls(about, arrays, task.observations.size)

    def packed(self) -> bytes:
        """`policy.npz`: the arrays, and JSON as bytes."""
        file, about = io.BytesIO(), np.frombuffer(json.dumps(self.about).encode("utf-8"), dtype=np.uint8)
        stored: dict[str, Any] = {"about": about, **self.arrays}
        np.savez_compressed(file, **stored)
        return file.getvalue()


def _plain(node: Node, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """A node for JSON; its arrays go into `arrays` under names of their own."""
    named = dict[str, str]()
    for name, array in node.arrays.items():
        named[name] = f"{len(arrays)}-{node.kind}-{name}"
        arrays[named[name]] = np.ascontiguousarray(array)
    lists = [[_plain(inner, arrays) for inner in inners] for inners in node.lists]
    return {"kind": node.kind, "arrays": named, "settings": dict(node.settings), "lists": lists}
