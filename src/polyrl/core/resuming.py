"""Going back to the newest checkpoint of a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.runtime.budget import Spent
from polyrl.runtime.checkpoint import (
    checkpoints,
    iteration_of,
    load_optimizers,
    load_stores,
    prune,
    read_state,
    tidy,
)
from polyrl.runtime.files import writing
from polyrl.runtime.ranks import all_ranks

if TYPE_CHECKING:
    from polyrl.core.loop import Loop
    from polyrl.runtime.run_folder import RunFolder


def go_back(loop: Loop, folder: RunFolder) -> int:
    """Go back to the newest checkpoint of the folder; return its iteration.

    A run that was killed before its first checkpoint begins again. What the folder has lost is in `loop.notices`. Of
    several processes the first one tidies the folder, and all read the checkpoint that it chose.

    Raises:
        UserError: there is no usable checkpoint, or a line of the records is damaged.
    """
    ranks = all_ranks()
    root = folder.path / "checkpoints"
    name = ranks.from_first(lambda: _newest(loop, folder))
    if name is None:
        return 0
    newest = root / name
    _load(loop, newest)
    if ranks.first:
        _cut_back(loop, folder, newest)
    return loop.context.iteration


def _newest(loop: Loop, folder: RunFolder) -> str | None:
    """Tidy the folder, and name the checkpoint to go back to; None where the run begins again."""
    root = folder.path / "checkpoints"
    with writing(root):
        folder.tidy()
        tidy(root, loop.notices.append)
    records = folder.path / "metrics.jsonl"
    written = max((r["iteration"] for r in folder.records()), default=-1)
    found = checkpoints(root)
    if not found:
        if written > 0 or folder.read_summary().get("status") == "finished":
            raise UserError(f"{folder.path} has no checkpoint to go on from; start the run again with --overwrite.")
        loop.notices += [*folder.cut_back(-1), "there is no checkpoint yet, so the run begins again"]
        return None
    # where the metrics lost their end, an older checkpoint writes it again
    newest = next((c for c in reversed(found) if iteration_of(c) <= written), None)
    if newest is None:
        raise UserError(
            f"{records} ends before the oldest checkpoint, {found[0].name}, so what it held is lost; bring it back "
            "from a copy, or start the run again with --overwrite."
        )
    if newest != found[-1]:
        loop.notices.append(f"{records} ends before {found[-1].name}, so the run goes on from {newest.name}")
    return newest.name


def _load(loop: Loop, newest: Path) -> None:
    """Read a checkpoint."""
    state = read_state(newest)
    loop.run_state.check_readable(newest)
    for name, mine in loop.identity().items():
        if state.get(name) != mine:
            raise UserError(f"The checkpoint {newest} is of another run: its {name} is {state.get(name)}, not {mine}.")
    loop.run_state.load(newest)
    for rows in loop.context.sources.values():
        rows.load(newest)
    load_optimizers(newest, loop.context.optimizer, loop.names())
    loop.context.stores = load_stores(newest)
    try:
        loop.context.iteration = int(state["iteration"])
        loop.context.spent = Spent(**state["spent"])
        loop.context.memories = state["memories"]
        loop.context.finished = str(state.get("finished", ""))
        loop.seconds, loop.start, loop.final = state["seconds"], state["start"], state["final"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"The state.json of {newest} is damaged; remove it to go on from an older one.") from None


def _cut_back(loop: Loop, folder: RunFolder, newest: Path) -> None:
    """Let the folder end where the checkpoint is, and hear what its records warn of."""
    root, records = folder.path / "checkpoints", folder.path / "metrics.jsonl"
    loop.notices += folder.cut_back(loop.context.iteration)
    with writing(root):
        prune(root, loop.keep_checkpoints, newest, loop.notices.append)  # a kill may have come before that
    found_in = []
    for record in folder.records():
        found_in.append(record["iteration"])
        if record["iteration"]:
            loop.warnings += [f"iteration {record['iteration']}: {text}" for text in loop.health.observe(record)]
    if lost := sorted(set(range(loop.context.iteration + 1)) - set(found_in)):
        text = f"{records} has no line of iteration {', '.join(map(str, lost[:5]))}{' ...' * (len(lost) > 5)}"
        loop.warnings.append(text)
        loop.notices.append(text)
