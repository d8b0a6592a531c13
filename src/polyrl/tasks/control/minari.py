"""Minari's data sets: a folder with an HDF5 file of episodes and a file of facts, as its package reads and writes them.

    FOLDER/data/metadata.json
    FOLDER/data/main_data.hdf5: a group `episode_0`, `episode_1`, ... each

An episode of T steps has T + 1 `observations`; `actions`, `rewards`, `terminations` and `truncations` have T rows. What
is nested, a Dict or a Tuple, is a group with an array for each part; parts of a Tuple are called `_index_0` and so on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.runtime.files import read_json, write_atomically, writing
from polyrl.tasks.language.phrases import reason_of

FILE, FACTS = "main_data.hdf5", "metadata.json"
ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations")
VERSION = "0.5.4"
"""Of the layout that is written: Minari itself reads those of 0.4 and 0.5."""
_NAME = re.compile(r"episode_(\d+)")
_PART = "_index_"


@dataclass(frozen=True)
class Episode:
    """An episode as it was recorded, in the environment's own numbers.

    Attributes:
        observations: arrays `[T + 1, ...]`, nested as the observation space is.
        actions: `[T, ...]`, what the environment was given.
        rewards: `[T]`.
        terminations, truncations: bool `[T]`.
        seed: what the environment was reset with; None where nobody knows.
        place: where it stands, for errors.
    """

    observations: Any
    actions: Any
    rewards: NDArray[Any]
    terminations: NDArray[Any]
    truncations: NDArray[Any]
    seed: int | None = None
    place: str = ""


def _library(place: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"The data set {place} needs the extra 'offline': pip install 'polyrl[offline]'.") from error
    return h5py


# ------------------------------------------------------------------------------------------------------------ reading


def data_folder(path: Path) -> Path:
    """The folder of a data set's files: `path` itself or `data` in it.

    Raises:
        UserError: neither holds a data set in HDF5.
    """
    for folder in (path / "data", path):
        if (folder / FILE).is_file():
            return folder
    if any((folder / FACTS).is_file() for folder in (path / "data", path)):
        raise UserError(
            f"{path} is a data set without {FILE}; polyrl reads those in the format hdf5, so write it in that one."
        )
    raise UserError(f"{path} is no Minari data set: it has no data/{FILE}; give such a folder, or an .npz file.")


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a data set, `metadata.json`; empty where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    file = data_folder(path) / FACTS
    if not file.is_file():
        return {}
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {reason_of(error)}.") from error


def recorded_on(facts: Mapping[str, Any]) -> str:
    """Gymnasium's id of the environment that a data set was recorded on; empty where its facts do not say."""
    stated = facts.get("env_spec")
    with contextlib.suppress(ValueError, TypeError):
        found = json.loads(stated) if isinstance(stated, str) else stated
        return str(found.get("id") or "") if isinstance(found, dict) else ""
    return ""


def reference_scores(facts: Mapping[str, Any], path: Path) -> tuple[float, float] | None:
    """Returns that count as 0 and 1, `ref_min_score` and `ref_max_score`; None where the facts do not give both.

    Raises:
        UserError: they are no numbers, or the second is not above the first.
    """
    stated = [facts.get(name) for name in ("ref_min_score", "ref_max_score")]
    if None in stated:
        return None
    low, high = (x if isinstance(x, int | float) and not isinstance(x, bool) else math.nan for x in stated)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"{data_folder(path) / FACTS} gives ref_min_score {stated[0]!r} and ref_max_score {stated[1]!r}, between "
            "which scores are normalized; write two numbers, the second above the first, or leave both out."
        )
    return float(low), float(high)


def read_episodes(path: Path) -> Iterator[Episode]:
    """The episodes of a data set, in the order of their numbers.

    Raises:
        UserError: the file is damaged, or an episode has no array that it should have.
    """
    file = data_folder(path) / FILE
    total = read_facts(path).get("total_episodes")
    library = _library(path)
    try:
        with library.File(file, "r") as held:
            numbers = sorted(int(match[1]) for name in held if (match := _NAME.fullmatch(name)))
            if isinstance(total, int) and total != len(numbers):
                raise UserError(
                    f"{file} holds {len(numbers)} episodes, and {FACTS} beside it says {total}; it is not whole, so "
                    "load it again."
                )
            for number in numbers:
                place, group = f"{file}, episode {number}", held[f"episode_{number}"]
                for name in ARRAYS:
                    if name not in group:
                        raise UserError(f"{place} has no '{name}'; each episode needs {', '.join(ARRAYS)}.")
                seed = group.attrs.get("seed")
                yield Episode(
                    **{name: _decoded(group[name], library) for name in ARRAYS},
                    seed=None if seed is None else int(seed),
                    place=place,
                )
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # what HDF5 says of a damaged file
        raise UserError(f"{file} cannot be read as HDF5: {reason_of(error)}.") from error


def _decoded(held: Any, library: Any) -> Any:
    if not isinstance(held, library.Group):
        return held[()]
    parts = {name: _decoded(held[name], library) for name in held}
    if parts and all(name.startswith(_PART) for name in parts):
        return tuple(parts[f"{_PART}{i}"] for i in range(len(parts)))
    return parts


# ------------------------------------------------------------------------------------------------------------ writing


def stated_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as Minari states it.

    Raises:
        UserError: Minari has no form for it.
    """
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), **sizes}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": np.asarray(space.n).tolist()}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "subspaces": {key: stated_space(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "subspaces": [stated_space(part) for part in space.spaces]}
    raise UserError(
        f"A data set of Minari holds no {type(space).__name__} space, so nothing can be recorded of such an "
        "environment."
    )


def stacked(space: spaces.Space[Any], values: Sequence[Any]) -> Any:
    """Elements of a space as arrays `[N, ...]` of its types, nested as it is."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, [value[key] for value in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [value[i] for value in values]) for i, part in enumerate(space.spaces))
    return np.asarray(values, dtype=space.dtype).reshape(len(values), *(space.shape or ()))


def write_dataset(
    folder: Path,
    episodes: Iterable[Episode],
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    facts: Mapping[str, Any],
) -> tuple[int, int]:
    """Write a data set into a new folder: whole or not at all. Returns how many episodes and steps it has.

    Args:
        folder: does not exist yet.
        episodes: in their order.
        observations, actions: the environment's spaces.
        facts: other entries of `metadata.json`: `dataset_id`, `algorithm_name`, `env_spec`.

    Raises:
        UserError: the folder exists, the extra is missing, or a space has no form there.
        WriteError: the disk does not allow it.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already; choose another --out, or remove it.")
    library = _library(folder)
    stated = {name: json.dumps(stated_space(space)) for name, space in _spaces(observations, actions).items()}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    count = steps = 0
    try:
        with writing(folder):
            (partial / "data").mkdir(parents=True)
            with library.File(partial / "data" / FILE, "w", track_order=True) as held:
                for count, episode in enumerate(episodes, 1):
                    group = held.create_group(f"episode_{count - 1}")
                    group.attrs["id"], group.attrs["total_steps"] = count - 1, len(episode.rewards)
                    if episode.seed is not None:
                        group.attrs["seed"] = episode.seed
                    steps += len(episode.rewards)
                    for name in ARRAYS:
                        _encode(group, name, getattr(episode, name))
            size = round((partial / "data" / FILE).stat().st_size / 1e6, 1)
            counts = {"total_episodes": count, "total_steps": steps, "dataset_size": size}
            about = {"data_format": "hdf5", "jpeg_encoding": False, "minari_version": VERSION}
            text = json.dumps({**counts, **about, **stated, **facts}, indent=1)
            write_atomically(partial / "data" / FACTS, text + "\n")
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count, steps


def _spaces(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    return {"observation_space": observations, "action_space": actions}


def _encode(group: Any, name: str, value: Any) -> None:
    if isinstance(value, tuple):
        value = {f"{_PART}{i}": part for i, part in enumerate(value)}
    if isinstance(value, dict):
        inner = group.create_group(name)
        for key, part in value.items():
            _encode(inner, key, part)
    else:
        group.create_dataset(name, data=value)
