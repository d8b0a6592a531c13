"""What the commands do that need more than one call."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyrl.api import open_policy
from polyrl.errors import UserError
from polyrl.runtime.config import RunConfig
from polyrl.runtime.progress import Progress, duration
from polyrl.runtime.run_folder import RunFolder

DEMO_METHODS = ["ppo", "grpo", "rloo", "remax"]


def demo_config() -> RunConfig:
    """The comparison that `make demo` runs: a budget of about three minutes for twenty runs on two cores."""
    return RunConfig(
        method="", task="addition", budget="samples=1792", evaluations=5, eval_prompts=200, tensorboard=False
    )


def run_training(config: RunConfig, out: Path | None, *, overwrite: bool, quiet: bool) -> None:
    """Train, then say where everything is."""
    from polyrl.runs import default_folder, start_run

    console = Console(highlight=False)
    folder = out or default_folder(config)
    progress = Progress(config.arm, config.budget, quiet=quiet, console=console)
    say = (lambda _: None) if quiet else (lambda text: console.print(Text(text, style="dim")))
    loop = start_run(config, folder, progress=progress, overwrite=overwrite, say=say)
    with progress:
        loop.run()
    if not quiet:
        _conclude(console, folder)


def _conclude(console: Console, folder: Path) -> None:
    summary = RunFolder(folder).read_summary()
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "start", "end"):
        table.add_column(column, header_style="dim", justify="right" if column else "left")
    for name, value in summary["final"].items():
        table.add_row(
            name.removeprefix("eval/"), f"{summary['start'].get(name, float('nan')):.3f}", f"[bold]{value:.3f}[/]"
        )
    console.print(table)
    spent = summary["spent"]
    counts = ", ".join(f"{spent[unit]} {unit}" for unit in ("samples", "tokens", "updates"))
    console.print(f"{counts} in {duration(spent['seconds'])}")
    console.print(f"model   {folder / 'model'}  (an ordinary Hugging Face folder)", soft_wrap=True)
    console.print(f"page    polyrl report {folder}", soft_wrap=True)
    console.print(f"watch   polyrl play {folder}", soft_wrap=True)


def resume_folder(folder: Path, *, quiet: bool) -> None:
    """Go on with a run or a comparison."""
    if (folder / "compare.yaml").is_file():
        from polyrl.comparison import read_comparison, run_comparison

        question = read_comparison(folder)["question"]
        base = RunConfig.from_dict(question["base"])
        run_comparison(question["methods"], base, question["seeds"], folder, quiet=quiet)
        return
    from polyrl.runs import resume_run

    console = Console(highlight=False)
    progress = Progress(folder.name, "", quiet=quiet, console=console)
    loop = resume_run(folder, progress=progress)
    progress.label, progress.budget, progress.began_at = (
        loop.recipe.name,
        str(loop.context.budget),
        loop.context.progress,
    )
    if not quiet:
        console.print(f"going on from iteration {loop.context.iteration}")
    with progress:
        loop.run()
    if not quiet:
        _conclude(console, folder)


def run_evaluation(folder: Path, prompts: int, sampled: bool) -> None:
    """Judge a run's policy and print the numbers with the interval of the accuracy."""
    if prompts < 1:
        raise UserError(f"--prompts is {prompts} but must be at least 1.")
    world = open_policy(folder, prompts=prompts, greedy=not sampled)
    metrics, _ = world.evaluate()
    console = Console(highlight=False)
    mode = "sampled at temperature 1" if sampled else "greedy"
    size = world.task.size("test")
    count = prompts if size is None else min(prompts, size)
    console.print(f"{folder}: {count} test prompts of {world.task.name}, {mode}")
    for name, value in metrics.items():
        low, high = wilson_interval(value, count)
        interval = f"  [{low:.3f}, {high:.3f}] over prompts" if name == "eval/accuracy" else ""
        console.print(f"  {name.removeprefix('eval/'):<20} {value:.3f}{interval}")


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share of `count` prompts (Wilson, 1927): over prompts of one policy, not over seeds."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(max(0.0, share * (1 - share)) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def play_policy(folder: Path, prompt: str | None, prompts: int, temperature: float) -> None:
    """Print what the policy answers."""
    import torch

    from polyrl.sampling.language import Sampling

    if temperature < 0:
        raise UserError(f"--temperature is {temperature:g} but must be at least 0.")
    world = open_policy(folder)
    rows = [{"prompt": prompt}] if prompt is not None else world.task.rows("test", 7, 0, prompts)
    sampling = Sampling(
        max_tokens=world.task.max_tokens,
        stop=tuple(world.task.stop),
        greedy=temperature == 0,
        temperature=temperature or 1.0,
    )
    batch = world.sample(rows, sampling, completions_per_prompt=1, generator=torch.Generator().manual_seed(0))
    console = Console(highlight=False)
    for row, text in zip(rows, batch.columns["completion"], strict=True):
        line = Text(str(row["prompt"]), style="bold")
        line.append(text, style="cyan")
        if prompt is None:
            right = world.task.correct(row, text)
            line.append(
                "  right" if right else f"  wrong, expected {world.task.expected(row)}", "green" if right else "red"
            )
        console.print(line, soft_wrap=True)


def write_page(runs: Sequence[Path], out: Path | None) -> None:
    """Write a comparison page and print its verdict."""
    from polyrl.report.findings import verdict
    from polyrl.report.page import write_report
    from polyrl.report.runs import load_folders

    console = Console(highlight=False)
    page = write_report(list(runs), out or Path(runs[0]) / "report.html")
    for sentence in verdict(load_folders(list(runs))):
        console.print(Text(sentence), soft_wrap=True)
    console.print(f"\nThe page: [bold]{page.resolve()}[/]", soft_wrap=True)
