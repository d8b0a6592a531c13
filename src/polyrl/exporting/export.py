"""Writes the greedy policy of a control run into files that need neither polyrl nor torch, and proves them equal."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.exporting import numpy_policy
from polyrl.exporting.document import Document
from polyrl.models.actor import Actor, Moment, Player, Wrapper
from polyrl.rollout.evaluation import Evaluator
from polyrl.run_state.control import ControlRunState
from polyrl.runtime.files import writing

Format = Literal["onnx", "numpy"]
TOLERANCE = 1e-6
"""How far an exported action may be from polyrl's own, as a share of 1 or of itself where that is larger."""
PROBED_EPISODES = 2
MOST_PROBED = 2_000
"""Observations that are compared at most."""
SEED = 11
"""Of the episodes that are compared."""


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        files: that were written.
        observations: how many of two episodes were compared.
        difference: the largest between its actions and polyrl's own, relative to the larger of 1 and the action.
    """

    files: tuple[Path, ...]
    observations: int
    difference: float


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
    Evaluator(run_state.task, SEED, lanes=1)(seen, PROBED_EPISODES)
    shown, masks = np.array(seen.shown[:MOST_PROBED]), np.array(seen.masks[:MOST_PROBED]) if seen.masks else None
    wanted = run_state.task.actions.batch(np.array(seen.actions[:MOST_PROBED]))
    if kind == "numpy":
        arrays = document.packed()
        written = {"policy.npz": arrays, "policy.py": Path(numpy_policy.__file__).read_bytes()}
        policy = numpy_policy.Policy(io.BytesIO(arrays))
        found = policy.actions(policy.computed(shown, masks))
    else:
        from polyrl.exporting import onnx_file

        model = onnx_file.model(document)
        found = onnx_file.actions_of_encoded(document, shown, masks)
        written = {"policy.onnx": model.SerializeToString()}
    apart = _difference(found, wanted)
    if not apart <= TOLERANCE:
        raise UserError(
            f"What was exported acts otherwise than the policy, by {apart:.2g} at most over {len(shown)} observations, "
            f"so nothing was written: a {type(run_state.judged).__name__} states a `greedy` that its player is not."
        )
    with writing(into), TemporaryDirectory(dir=_made(into), prefix=".export-") as unfinished:
        for file in files:  # all are on the disk before one takes its place
            (Path(unfinished) / file.name).write_bytes(written[file.name])
        for file in files:
            (Path(unfinished) / file.name).replace(file)
    return Exported(files, len(shown), apart)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((np.abs(found - wanted.astype(np.float64)) / np.maximum(1, np.abs(wanted))).max(initial=0.0))
