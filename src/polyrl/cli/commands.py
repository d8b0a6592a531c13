"""What the commands do that need more than one call."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyrl.api import open_to_judge
from polyrl.core.more_budget import finished
from polyrl.core.throughput import throughput
from polyrl.errors import UserError
from polyrl.other_data import is_model
from polyrl.phases import RunPhase, acting_run, is_phases, resume_phases
from polyrl.request import Request
from polyrl.run_state.language_evaluation import answers
from polyrl.runtime.config import RunConfig, check_given
from polyrl.runtime.figures import format_amount, format_kl
from polyrl.runtime.files import LONGEST_NAME, shown
from polyrl.runtime.progress import Progress, duration
from polyrl.runtime.ranks import all_ranks, join
from polyrl.runtime.run_folder import RunFolder
from polyrl.runtime.terminal import Terminal
from polyrl.tasks import DOMAINS

if TYPE_CHECKING:
    from polyrl.core.loop import Loop


def run_training(request: Request, out: Path | None, *, overwrite: bool, quiet: bool) -> None:
    """Train, then say where everything is."""
    from polyrl.runs import new_folder, start_run

    console, config = Terminal(), request.config
    folder = new_folder(config, out)
    quiet = quiet or not all_ranks().first
    if out is None and len(config.arm.encode()) > LONGEST_NAME and all_ranks().first:
        told = f"The name is too long for a folder, so a hash stands for its end: {folder}"
        console.print(Text(told, style="dim"), soft_wrap=True)
    progress = Progress(config.arm, config.budget, quiet=quiet, console=console)
    say = (lambda _: None) if quiet else (lambda text: console.print(Text(text, style="dim")))
    loop = start_run(config, folder, recipe=request.recipe, progress=progress, overwrite=overwrite, say=say)
    with progress:
        loop.run()
    if not quiet:
        _conclude(console, folder)


def run_training_phases(phases: Sequence[RunPhase], out: Path | None, *, overwrite: bool, quiet: bool) -> None:
    """Run phases, and say of each where everything is."""
    from polyrl.phases import default_phases_folder, run_phases

    console, folder = Terminal(), out or default_phases_folder(phases)
    run_phases(phases, folder, overwrite=overwrite, quiet=quiet, **_telling(console, quiet))


def _telling(console: Terminal, quiet: bool) -> dict[str, Any]:
    """What phases are told by: sentences, and what came of each."""

    def ended(loop: Loop) -> None:
        if not quiet and loop.folder is not None:
            _conclude(console, loop.folder.path)

    say = (lambda _: None) if quiet else (lambda text: console.print(Text(text, style="dim"), soft_wrap=True))
    return {"say": say, "finished": ended}


def _conclude(console: Console, folder: Path) -> None:
    summary = RunFolder(folder).read_summary()
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "start", "end"):
        table.add_column(column, header_style="dim", justify="right" if column else "left")
    for name, value in summary["final"].items():
        start = summary["start"].get(name)
        written = format_kl if name == "eval/kl" else number
        table.add_row(name.removeprefix("eval/"), "" if start is None else written(start), Text(written(value), "bold"))
    for line, value in RunFolder(folder).read_config()["metric"]["lines"].items():  # what there is to reach
        table.add_row(Text(line, "dim"), "", Text(number(value), "dim"))
    console.print(table)
    spent = summary["spent"]
    counts = ", ".join(
        f"{format_amount(spent[unit])} {unit}"
        for unit in ("samples", "tokens", "steps", "queries", "updates")
        if spent.get(unit)
    )
    console.print(f"{counts} in {duration(spent['seconds'])}")
    for line in time_lines(summary):
        console.print(line, soft_wrap=True)
    ordinary = (folder / "model" / "tokenizer_config.json").is_file()
    said = "  (an ordinary Hugging Face folder)" if ordinary else ""
    console.print(f"model   {folder / 'model'}{said}", soft_wrap=True)
    console.print(f"page    polyrl report {folder}", soft_wrap=True)
    console.print(f"watch   polyrl play {folder}", soft_wrap=True)


def time_lines(summary: dict[str, Any]) -> list[str]:
    """Where a run's time went, evaluation and checkpoints included, and how fast it was."""
    seconds = {stage: took for stage, took in summary["seconds_by_stage"].items() if took > 0}
    total = sum(seconds.values())
    if not total:
        return []
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{s} {took:.1f} s ({100 * took / total:.0f}%)" for s, took in largest if took >= 0.01 * total)
    speed = summary.get("throughput") or throughput(seconds, summary["spent"])
    rates = " and ".join(
        f"{speed[key]:,.0f} {speed['unit']}/s {words}"
        for key, words in (("overall", "in training"), ("collect", "in collecting"))
        if key in speed
    )
    return [f"time    {shares}", *([f"speed   {rates}"] if rates else [])]


def resume_folder(folder: Path, *, quiet: bool, trust_code: bool = False, budget: str = "", engine: str = "") -> None:
    """Go on with a run or a comparison; a run with more budget, or other generation servers, where they are named.

    Raises:
        UserError: it cannot go on; or the budget or the servers are of a comparison, whose runs have one or none.
    """
    if engine and (is_phases(folder) or (folder / "compare.yaml").is_file()):
        raise UserError(f"{folder} is no single run; name the new --engine with the folder of the run that has one.")
    if is_phases(folder):
        if budget:
            raise UserError(f"Each phase of {folder} has a budget of its own; give more to one by its folder.")
        resume_phases(folder, trust_code=trust_code, quiet=quiet, **_telling(Terminal(), quiet))
        return
    if budget:
        for place in (folder, folder.absolute().parent):
            if (place / "compare.yaml").is_file():
                raise UserError(
                    f"The runs of the comparison {place} have one budget, so none gets more; compare again with "
                    "another --out and --budget."
                )
    if (folder / "compare.yaml").is_file():
        from polyrl.comparison import run_comparison
        from polyrl.comparison_folder import read_comparison
        from polyrl.trust import check_code

        question = read_comparison(folder)["question"]
        base = RunConfig.from_dict(question["base"], folder / "compare.yaml")
        check_given(base, None, folder, "compare")
        named = question["methods"]
        for method in named.values() if isinstance(named, dict) else named:
            check_code(dataclasses.replace(base, method=str(method)), folder, trust_code=trust_code)
        run_comparison(question["methods"], base, question["seeds"], folder, quiet=quiet)
        return
    from polyrl.comparison import begin_asked, is_finished
    from polyrl.comparison_folder import asked_of
    from polyrl.runs import resume_run

    console = Terminal()
    again = not (budget or engine) and is_finished(folder) and asked_of(folder) is not None
    if again:  # a line of a plan, given once more
        if not quiet:
            console.print(f"The run {folder} is finished.", soft_wrap=True)
            _conclude(console, folder)
        return
    ranks = join()
    quiet = quiet or not ranks.first
    progress = Progress(folder.name, "", quiet=quiet, console=console)
    say = (lambda _: None) if quiet else (lambda text: console.print(Text(text, style="dim"), soft_wrap=True))
    loop = (
        begin_asked(folder, trust_code=trust_code, progress=progress, say=say) if ranks.alone and not engine else None
    )
    begins = loop is not None
    loop = loop or resume_run(folder, progress=progress, trust_code=trust_code, budget=budget, engine=engine)
    progress.label = loop.recipe.name
    if loop.context.over and not quiet:
        console.print(finished(loop), soft_wrap=True)
    elif not quiet and not begins:
        console.print(f"going on from iteration {loop.context.iteration}")
    with progress:
        loop.run()
    if not quiet:
        _conclude(console, folder)


def number(value: float) -> str:
    """Three decimals, or three figures of what would be 0.000."""
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def domain_of_run(folder: Path) -> str:
    """The domain of a run.

    Raises:
        UserError: the folder is no run, or of no domain that there is.
    """
    domain = RunFolder(folder).read_config().get("domain", "language")
    if domain not in DOMAINS:
        raise UserError(f"{folder / 'config.yaml'} names the domain {shown(domain, 80)}, which polyrl does not have.")
    return str(domain)


def run_evaluation(
    folder: Path,
    *,
    prompts: int | None,
    sampled: bool,
    episodes: int | None,
    dataset: str | None = None,
    trust_code: bool = False,
    **asked: Any,
) -> None:
    """Judge a run's policy, or a model on data of its own, and print the numbers; of an accuracy with its interval.

    Raises:
        UserError: the run has no policy yet, or an option means nothing for this kind of run.
    """
    from polyrl.run_state.reward_model import RewardModelRunState

    folder = acting_run(folder)
    domain = "language" if dataset is not None or is_model(folder) else domain_of_run(folder)
    language = domain == "language"
    said = {"prompts": prompts is not None, "sampled": sampled, "episodes": episodes is not None}
    meant = ("prompts", "sampled") if language else ("episodes",) if domain != "theory" else ()
    for name, there in said.items():
        if there and name not in meant:
            raise UserError(f"--{name} means nothing for {folder}, which is a run of {domain}.")
    if prompts is not None and prompts < 1:
        raise UserError(f"--prompts is {prompts} but must be at least 1.")
    if episodes is not None and episodes < 1:
        raise UserError(f"--episodes is {episodes} but must be at least 1.")
    how: dict[str, Any] = {"prompts": prompts, "greedy": not sampled, "episodes": episodes, "dataset": dataset}
    run_state: Any = open_to_judge(folder, **how, trust_code=trust_code, **asked)
    metrics, _ = run_state.evaluate()
    console = Terminal()
    for text in run_state.notices() if dataset is not None else ():
        console.print(Text(text, style="dim"), soft_wrap=True)
    count = 0
    if isinstance(run_state, RewardModelRunState):
        if sampled:
            raise UserError(f"--sampled means nothing for {folder}, a reward model, which answers nothing.")
        pairs = run_state.evaluation_facts()["pairs"]
        console.print(f"{folder}: a reward model, on {pairs} held-out pairs of {dataset or run_state.task.name}")
    elif language:
        mode = "greedy" if run_state.evaluation.greedy else "sampled at temperature 1"
        size = run_state.task.size("test")
        count = run_state.evaluation.prompts if size is None else min(run_state.evaluation.prompts, size)
        what = f"{count} test prompts of {run_state.task.name}, {mode}"
        if dataset is not None:
            what = f"{count} prompts of {dataset}, {mode}"
        if not answers(run_state):
            kind = "labelled responses" if run_state.task.labelled else "pairs"
            what = f"{count} held-out {kind} of {dataset or run_state.task.name}, told apart and not answered"
        console.print(f"{folder}: {what}", soft_wrap=True)
    else:
        facts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in run_state.evaluation_facts().items())
        console.print(f"{folder}: {run_state.task.name}{', ' if facts else ''}{facts}", soft_wrap=True)
    for name, value in metrics.items():
        interval = ""
        if language and name == "eval/accuracy":
            low, high = wilson_interval(value, count)
            interval = f"  [{low:.3f}, {high:.3f}] over prompts"
        console.print(f"  {name.removeprefix('eval/'):<20} {number(value)}{interval}")
    for name, value in run_state.task.metric.lines.items():
        console.print(Text(f"  {name:<20} {value:.4g}", "dim"))


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share of `count` prompts (Wilson, 1927): over prompts of one policy, not over seeds."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(max(0.0, share * (1 - share)) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def play_run(folder: Path, options: dict[str, Any], *, trust_code: bool = False) -> None:
    """Let the run's domain show what the policy does.

    Raises:
        UserError: an option that means nothing for this kind of run.
    """
    folder = acting_run(folder)
    domain = domain_of_run(folder)
    play = importlib.import_module(f"polyrl.cli.play_{domain}").play
    known = inspect.signature(play).parameters
    for name in options:
        if name not in known:
            raise UserError(f"--{name} means nothing for {folder}, which is a run of {domain}.")
    play(folder, trust_code=trust_code, **options)
