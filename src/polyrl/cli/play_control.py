"""`polyrl play` for control runs: the trained policy's episodes as a table, a video, or live."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from polyrl.api import open_policy
from polyrl.errors import UserError
from polyrl.rollout.evaluation import Episode, Evaluator
from polyrl.run_state.control import ControlRunState
from polyrl.runtime import ownership
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.control.environment import ControlTask, Environment
from polyrl.tasks.language.phrases import reason_of

FILMS = (".mp4", ".gif")
SEED = 7
"""Not the evaluation's: what is shown is chosen by nobody."""


def play(
    folder: Path, *, episodes: int = 3, video: Path | None = None, render: bool = False, trust_code: bool = False
) -> None:
    """Play whole episodes with the most probable actions, and print their returns and lengths.

    Args:
        folder: the run.
        episodes: how many.
        video: where to write a film of them, .mp4 or .gif; needs no display.
        render: show them in a window while they are played.
        trust_code: whether to run what code the folder names.

    Raises:
        UserError: an environment that cannot be shown, a missing package or display, or a bad path.
    """
    if episodes < 1:
        raise UserError(f"--episodes is {episodes} but must be at least 1.")
    if video is not None and render:
        raise UserError("Give either --video or --render: an environment shows itself in one way at a time.")
    if video is not None and video.suffix not in FILMS:
        raise UserError(f"The video {video} must end in {' or '.join(FILMS)}.")
    run_state: Any = open_policy(folder, trust_code=trust_code)
    assert isinstance(run_state, ControlRunState)
    if video is None and not render:
        played = Evaluator(run_state.task, SEED, lanes=min(episodes, 20))(run_state.judged, episodes)
    elif video is not None:
        played = _filmed(run_state, episodes, video)
    else:
        _check_mode(run_state.task, "human")
        if sys.platform.startswith("linux") and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
            raise UserError("There is no display to show the environment on; write a film instead, with --video.")
        with _render_errors(run_state.task):
            played = _shown(run_state, episodes, "human", None)
    _print(run_state.task, played)
    if video is not None:
        Terminal().print(f"video   {video}", soft_wrap=True)


def _print(task: ControlTask, played: list[Episode]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("episode", "return", "steps", "ended"):
        table.add_column(column, justify="left" if column == "ended" else "right", header_style="dim")
    for k, episode in enumerate(played):
        table.add_row(str(k + 1), f"{episode.total:.2f}", str(episode.length), episode.ended)
    if len(played) > 1:
        mean, length = statistics.fmean(e.total for e in played), statistics.fmean(e.length for e in played)
        table.add_row("mean", f"{mean:.2f}", f"{length:.0f}", "", style="bold")
    console = Terminal()
    console.print(f"{task.name}, most probable actions", soft_wrap=True)
    console.print(table)


def _shown(
    run_state: ControlRunState, episodes: int, mode: str, watch: Callable[[Environment], None] | None
) -> list[Episode]:
    judge = Evaluator(run_state.task, SEED, lanes=1, render_mode=mode, watch=watch)
    try:
        return judge(run_state.judged, episodes)
    finally:
        judge.close()


def _filmed(run_state: ControlRunState, episodes: int, video: Path) -> list[Episode]:
    """Play and write a film: under another name until it is whole."""
    try:
        import imageio.v2 as imageio
    except ImportError:
        raise UserError("A video needs imageio, which is not installed: pip install 'polyrl[control]'.") from None
    _check_mode(run_state.task, "rgb_array")
    if not video.absolute().parent.is_dir():
        raise UserError(f"There is no folder {video.absolute().parent} to write the video into.")
    if os.path.lexists(video) and not (video.name == "play.mp4" and ownership.is_run(video.parent)):
        raise UserError(f"{video} exists already, and may be somebody else's; choose another name for the video.")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a display
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    partial = video.with_name(f".{video.stem}.writing{video.suffix}")
    writer: Any = None

    def film(environment: Environment) -> None:
        nonlocal writer
        if writer is None:
            rate = int(environment.metadata.get("render_fps") or 30)
            # h264 wants even sizes and nothing more; gif counts in milliseconds
            how = (
                {"fps": rate, "macro_block_size": 2} if video.suffix == ".mp4" else {"duration": 1000 / rate, "loop": 0}
            )
            writer = imageio.get_writer(partial, **how)
        writer.append_data(environment.render())

    try:
        with _render_errors(run_state.task):
            played = _shown(run_state, episodes, "rgb_array", film)
        writer.close()
        partial.replace(video)
    finally:
        partial.unlink(missing_ok=True)
    return played


def _check_mode(task: ControlTask, mode: str) -> None:
    """Refuse environments that do not know this way of showing themselves."""
    modes = task.render_modes
    if mode not in modes and not (mode == "human" and "rgb_array" in modes):
        raise UserError(
            f"{task.spec} cannot be shown this way: it knows {', '.join(modes) if modes else 'no render mode'}, and "
            f"'{mode}' is needed."
        )


@contextlib.contextmanager
def _render_errors(task: ControlTask) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        packages = ("pygame", "mujoco", "imageio", "ffmpeg", "moviepy", "cv2")
        missing = isinstance(error, ImportError) or any(word in str(error) for word in packages)
        way = ": pip install 'polyrl[control]'" if missing else ""
        raise UserError(f"{task.spec} could not be shown ({reason_of(error)}){way}.") from error
