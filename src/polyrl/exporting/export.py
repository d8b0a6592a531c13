"""Writes the greedy policy of a control run into files that need neither polyrl nor torch, and proves them equal."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.exporting import numpy_policy
from polyrl.exporting.document import Document
from polyrl.models.actor import Actor, Moment, Player, Wrapper
from polyrl.rollout.evaluation import Evaluator
from polyrl.run_state.control import ControlRunState
from polyrl.runtime.files import writing

Format = Literal["onnx", "numpy"]
TOLERANCE = 1e-5
"""How far an exported action may be from polyrl's own, as a share of 1, itself or half its range, the largest."""
PROBED_EPISODES = 2
MOST_PROBED = 2_000
"""Observations that are compared at most."""
DRAWN = 32
"""Observations that are drawn from the space and compared as the environment has them."""
SEED = 11
"""Of the episodes and observations that are compared."""


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        files: that were written.
        observations: how many were compared, of two episodes and drawn from the space.
        difference: the largest between its actions and polyrl's own, as a share of `TOLERANCE`'s measure.
        inputs: of an ONNX graph, by name.
        masked: whether it needs the action mask.
    """

    files: tuple[Path, ...]
    observations: int
    difference: float
    inputs: tuple[str, ...] = ()
    masked: bool = False


class _Seen(Wrapper):
    """Notes what the policy is shown, and does what it does."""

    def __init__(self, inner: Actor):
        super().__init__(inner)
        self.shown, self.masks, self.actions = list[Any](), list[Any](), list[Any]()

    def player(self) -> Player:
        """The inner actor's."""
        play = self.inner.player()

        def noting(moment: Moment) -> NDArray[Any]:
            action = play(moment)
            if len(self.shown) < MOST_PROBED:
                self.shown += [*moment.shown.copy()]
                self.masks += [*(moment.mask.copy() if moment.mask is not None else ())]
                self.actions += [*(action if self.execute is None else self.execute(action)).copy()]
            return action

        return noting


def export(run_state: ControlRunState, method: str, into: Path, kind: Format, *, overwrite: bool = False) -> Exported:
    """Write `policy.npz` and `policy.py`, or `policy.onnx`, into a folder, once they are shown to act as the policy.

    Raises:
        UserError: there is no exported form, a file is there already, a package is missing, it acts otherwise, or the
            folder cannot be written.
    """
    files = tuple(into / name for name in (("policy.npz", "policy.py") if kind == "numpy" else ("policy.onnx",)))
    if not overwrite and (there := next((f for f in files if f.exists()), None)) is not None:
        raise UserError(f"{there} exists already; choose another folder with --out, or replace it with --overwrite.")
    document = Document.of(run_state, method)
    seen = _Seen(run_state.judged)
    judge = Evaluator(run_state.task, SEED, lanes=1)
    judge(seen, PROBED_EPISODES)
    judge.close()
    shown, masks = np.array(seen.shown[:MOST_PROBED]), np.array(seen.masks[:MOST_PROBED]) if seen.masks else None
    wanted = run_state.task.actions.batch(np.array(seen.actions[:MOST_PROBED]))
    drawn = _drawn(run_state)
    if kind == "numpy":
        arrays = document.packed()
        written = {"policy.npz": arrays, "policy.py": Path(numpy_policy.__file__).read_bytes()}
        policy = numpy_policy.Policy(io.BytesIO(arrays))
        found, answered = policy.actions(policy.computed(shown, masks)), policy.act_all(drawn.shown, drawn.masks)
        inputs: tuple[str, ...] = ()
    else:
        from polyrl.exporting import onnx_file

        model = onnx_file.model(document)
        found = onnx_file.actions_of_encoded(document, shown, masks)
        answered = onnx_file.actions_of(model, document, drawn.shown, drawn.masks)
        inputs = tuple(one.name for one in model.graph.input)
        written = {"policy.onnx": model.SerializeToString()}
    space, count = run_state.task.actions.space, len(shown) + len(drawn.shown)
    apart = max(_difference(found, wanted, space), _difference(answered, drawn.actions, space) if drawn.shown else 0.0)
    if not apart <= TOLERANCE:
        raise UserError(
            f"What was exported acts otherwise than the policy, by {apart:.2g} at most over {count} observations, so "
            f"nothing was written: what a {type(run_state.judged).__name__} states as its `greedy` is not what it "
            "does, or float32 does not tell its actions apart."
        )
    with writing(into), TemporaryDirectory(dir=_made(into), prefix=".export-") as unfinished:
        for file in files:  # all are on the disk before one takes its place
            (Path(unfinished) / file.name).write_bytes(written[file.name])
        for file in files:
            (Path(unfinished) / file.name).replace(file)
    return Exported(files, count, apart, inputs, bool(run_state.task.masked))


@dataclass(frozen=True)
class _Drawn:
    """Observations of the space as the environment has them, with every action allowed, and what the policy does."""

    shown: list[Any]
    masks: NDArray[np.bool_] | None
    actions: NDArray[Any]


def _drawn(run_state: ControlRunState) -> _Drawn:
    task, actor = run_state.task, run_state.judged
    space = copy.deepcopy(task.observations.space)
    space.seed(SEED)
    shown, rows = list[Any](), list[NDArray[np.float64]]()
    for one in (space.sample() for _ in range(DRAWN)):
        row = np.empty(task.observations.size)
        try:
            task.observations.encode(one, row)
        except ValueError:  # a list that is longer than the task takes
            continue
        shown.append(one)
        rows.append(row)
    if not rows:
        return _Drawn([], None, np.empty(0))
    seen, masks = np.array(rows), np.ones((len(rows), task.masked), dtype=bool) if task.masked else None
    action = actor.player()(Moment(actor.normalize(seen), seen, np.ones(len(rows), dtype=bool), mask=masks))
    return _Drawn(shown, masks, task.actions.batch(action if actor.execute is None else actor.execute(action)))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _difference(found: NDArray[Any], wanted: NDArray[Any], space: spaces.Space[Any]) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    scale = np.maximum(1.0, np.abs(wanted))
    if isinstance(space, spaces.Box):
        half = (space.high.astype(np.float64) - space.low.astype(np.float64)) / 2
        scale = np.maximum(scale, np.where(np.isfinite(half), half, 0.0))
    return float((np.abs(found - wanted.astype(np.float64)) / scale).max(initial=0.0))
