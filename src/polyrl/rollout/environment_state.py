"""Where training environments stand between rollouts, as a checkpoint holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTS, ARRAYS = "environments.json", "environments.safetensors"


def _of(stream: str, file: str) -> str:
    return f"{stream}-{file}" if stream else file


@dataclass
class EnvironmentState:
    """What environments are in between rollouts: what a checkpoint needs to go on to the same numbers.

    Attributes:
        episode: number of each environment's present episode.
        return_so_far: return so far of each present episode.
        actions: what the environments were given in each present episode, for replay.
        observation: float64 `[B, D]`, what each environment shows, to see whether a replay came to the same.
        restarts: how often all episodes were started anew.
        running: false where episodes start anew at the next rollout.
        lasting: what outlives episodes, by attribute, as it was when each present episode began; empty: nothing does.
        memory: what the actor keeps from step to step, `[B, ...]` by name.
    """

    episode: list[int] = field(default_factory=list)
    return_so_far: list[float] = field(default_factory=list)
    actions: list[NDArray[Any]] = field(default_factory=list)
    observation: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    restarts: int = 0
    running: bool = False
    lasting: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    memory: dict[str, NDArray[Any]] = field(default_factory=dict)

    def copy(self) -> EnvironmentState:
        """A copy that later rollouts do not change."""
        return EnvironmentState(
            [*self.episode],
            [*self.return_so_far],
            [*self.actions],
            self.observation.copy(),
            self.restarts,
            self.running,
            [*self.lasting],
            self.memory,  # replaced, never written into
        )

    def save(self, folder: Path, stream: str = "") -> None:
        """Write it into a folder; `stream`: the named stream whose environments they are."""
        from safetensors.numpy import save_file

        arrays = {f"actions/{i}": np.ascontiguousarray(a) for i, a in enumerate(self.actions)}
        arrays |= {f"lasting/{i}/{name}": x for i, kept in enumerate(self.lasting) for name, x in kept.items()}
        arrays |= {f"memory/{name}": np.ascontiguousarray(x) for name, x in self.memory.items()}
        save_file({**arrays, "observation": self.observation}, folder / _of(stream, ARRAYS))
        facts = {
            "episode": self.episode,
            "return_so_far": self.return_so_far,
            "restarts": self.restarts,
            "running": self.running,
        }
        (folder / _of(stream, FACTS)).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, stream: str = "") -> EnvironmentState | None:
        """What `save` wrote; None where the folder holds none, as that of an exported policy.

        Raises:
            OSError, SafetensorError, KeyError, TypeError, ValueError: it cannot be read.
        """
        from safetensors.numpy import load_file

        if not (folder / _of(stream, FACTS)).is_file():
            return None
        facts = json.loads((folder / _of(stream, FACTS)).read_text(encoding="utf-8"))
        if "paid" in facts:  # as versions before 0.2 wrote it
            facts["return_so_far"] = facts.pop("paid")
        arrays = {name: x.copy() for name, x in load_file(folder / _of(stream, ARRAYS)).items()}
        count = len(facts["episode"])
        lasting: list[dict[str, NDArray[Any]]] = [{} for _ in range(count)]
        for name, x in arrays.items():
            if name.startswith("lasting/"):
                _, number, attribute = name.split("/", 2)
                lasting[int(number)][attribute] = x
        return cls(
            actions=[arrays[f"actions/{i}"] for i in range(count)],
            observation=arrays["observation"],
            lasting=lasting if any(lasting) else [],
            memory={name.partition("/")[2]: x for name, x in arrays.items() if name.startswith("memory/")},
            **facts,
        )
