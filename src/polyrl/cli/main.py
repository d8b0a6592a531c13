"""`polyrl`: train, compare, reproduce, list, show, trace, eval, play, record, resume, report, demo.

Commands import what they need when they run, so that `polyrl --help` and `polyrl list` answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from polyrl.cli.options import (
    EXECUTOR,
    FOLDER,
    HOW,
    SEED,
    TRUST,
    WHAT,
    read_command,
    read_phased,
    read_seeds,
    split_methods,
)
from polyrl.errors import UserError, nearest, told_by_another
from polyrl.plain_text import one_line
from polyrl.runtime.torchrun import end, refuse

HYPERPARAMETERS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]}
HELP = {"help_option_names": ["-h", "--help"]}


class Commands(click.Group):
    """A group that lists its commands in the order of use and names the nearest one on a typing error."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order in which they were written."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            UserError: there is none of that name.
        """
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UserError(
                f"There is no command '{args[0]}'.{nearest(args[0], self.commands)} `polyrl --help` lists them."
            )
        if "WORLD_SIZE" in os.environ and args and args[0] not in ("train", "resume", *HELP["help_option_names"]):
            refuse(f"polyrl {args[0]}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(package_name="polyrl")
def polyrl() -> None:
    """Policy optimization: train, compose, compare and re-test published methods.

    Any hyperparameter of a method is an option, such as --clip-range 0.1; `polyrl show METHOD` lists them.
    """


@polyrl.command(context_settings=HYPERPARAMETERS)
@click.argument("method")
@WHAT
@HOW
@SEED
@FOLDER
@TRUST
@click.pass_context
def train(ctx: click.Context, /, method: str, out: Path | None, overwrite: bool, quiet: bool, **given: Any) -> None:
    """Train a policy with METHOD, such as grpo, ppo+entropy-bonus, ./mine.py, or a recipe file mine.yaml.

    Besides the options below, any hyperparameter of the method: --learning-rate 1e-4. Phases are joined by commas, each
    starts from the model of the one before: sft,dpo --sft.budget samples=4000 --dpo.beta 0.3.
    """
    if (phases := read_phased(method, ctx.args, ctx, given)) is not None:
        from polyrl.cli.commands import run_training_phases

        run_training_phases(phases, out, overwrite=overwrite, quiet=quiet)
        return
    request = read_command((method,), ctx.args, ctx, given)
    from polyrl.cli.commands import run_training

    run_training(request, out, overwrite=overwrite, quiet=quiet)


@polyrl.command(context_settings=HYPERPARAMETERS)
@click.argument("methods", nargs=-1, required=True)
@WHAT
@HOW
@click.option("--seeds", default="5", show_default=True, help="how many seeds, from 0; or which: 100-104, or 3,7")
@EXECUTOR
@FOLDER
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    methods: tuple[str, ...],
    seeds: str,
    executor: str,
    workers: int | None,
    out: Path | None,
    overwrite: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Compare METHODS at one budget: the same seeds, prompts, evaluation and start. Writes report.html.

    An arm may have its own hyperparameters: polyrl compare grpo 'grpo(clip_range=0.1)'.
    """
    names, rest = split_methods(methods, ctx.args)
    chosen = read_seeds(seeds)
    asked = read_command(names, rest, ctx, given, several=True)
    from polyrl.comparison import run_comparison

    how: dict[str, Any] = {"executor": executor, "workers": workers, "quiet": quiet, "overwrite": overwrite}
    run_comparison(list(names), asked.config, chosen, out, recipes=asked.recipes, **how)


@polyrl.command(context_settings=HELP)
@click.argument("method", required=False)
@click.option("--all", "everything", is_flag=True, help="every claim, one after the other")
@click.option("--family", help="every claim of a family of methods, such as language-online")
@click.option("--quick", is_flag=True, help="a smoke test within a minute; never a verdict")
@click.option("--check", is_flag=True, help="run one seed of the ledger's entries again and compare the numbers")
@click.option("--seeds", help="others than the claim's, for a second opinion that is not entered")
@EXECUTOR
@click.option("--ledger", type=click.Path(path_type=Path), help="folder of the ledger  [the checkout's, or ./ledger]")
@FOLDER
def reproduce(
    method: str | None,
    everything: bool,
    family: str | None,
    quick: bool,
    check: bool,
    seeds: str | None,
    executor: str,
    workers: int | None,
    ledger: Path | None,
    out: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Put the claim of METHOD's paper to the test: confirmed, refuted, premise not met, or inconclusive.

    Runs the experiment that `polyrl.claims` states, judges it by a rule that was fixed before, and enters the numbers
    into the ledger. The same command goes on where it stopped.
    """
    from polyrl.cli.reproduce import run_checks, run_reproductions

    if check:
        if quick or seeds is not None or overwrite:
            raise UserError(
                "--check runs a seed of the ledger's as it was; leave --quick, --seeds and --overwrite away."
            )
        checks: dict[str, Any] = {"executor": executor, "workers": workers, "ledger_folder": ledger, "quiet": quiet}
        run_checks(method, everything, family=family, out=out, **checks)
        return
    run_reproductions(
        method,
        everything,
        family=family,
        quick=quick,
        seeds=None if seeds is None else read_seeds(seeds),
        out=out,
        executor=executor,
        workers=workers,
        ledger_folder=ledger,
        overwrite=overwrite,
        quiet=quiet,
    )


@polyrl.command(context_settings=HELP)
@click.option(
    "--size",
    type=click.Choice(["full", "half", "quarter"]),
    help="how much is run  [the largest whose page comes within five minutes here]",
)
@FOLDER
def demo(size: str | None, out: Path | None, overwrite: bool, quiet: bool) -> None:
    """Compare ppo, grpo, rloo and remax on multi-digit addition: within five minutes on two cores."""
    from polyrl.cli.demo import run_demo

    run_demo(out or Path("runs/demo"), size=size, overwrite=overwrite, quiet=quiet)


@polyrl.command("list", context_settings=HELP)
@click.argument("what", type=click.Choice(["all", "methods", "parts", "tasks"]), default="all")
def list_(what: str) -> None:
    """List methods, parts and tasks."""
    from polyrl.cli.listing import print_list

    print_list(what)


@polyrl.command(context_settings=HELP)
@click.argument("method")
@click.option("--task", help="the task, where the method has a form for each kind of task")
@click.option("--yaml", "as_yaml", is_flag=True, help="print a recipe file instead, which `polyrl train` takes")
def show(method: str, task: str | None, as_yaml: bool) -> None:
    """Show what METHOD is: its paper, its five stages, its hyperparameters."""
    if as_yaml:
        from polyrl.recipe_file import recipe_yaml

        click.echo(recipe_yaml(method, task), nl=False)
        return
    from polyrl.cli.kept_text import kept_text
    from polyrl.runtime.terminal import Terminal
    from polyrl.tasks import domain_of

    out, domain = Terminal(), domain_of(task) if task else None

    def make() -> tuple[str, bool]:
        from polyrl.catalogue import check_names

        check_names(method)
        from polyrl.cli.explain import shown  # heavy

        return shown(out, method, domain)

    look = (out.width, out.color_system, out.encoding)
    out.file.write(kept_text(("show", method, domain, *look), make))


@polyrl.command(context_settings=HYPERPARAMETERS)
@click.argument("method")
@WHAT
@HOW
@SEED
@TRUST
@click.option(
    "--iteration",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="which iteration is explained; those before it run in silence",
)
@click.option("--profile", is_flag=True, help="only where the time of a few iterations goes, by stage and part")
@click.pass_context
def trace(ctx: click.Context, /, method: str, iteration: int, profile: bool, **given: Any) -> None:
    """Run one iteration of METHOD and explain it stage by stage: fields, shapes, ranges, seconds."""
    request = read_command((method,), ctx.args, ctx, given)
    if profile:
        from polyrl.cli.profiling import profile_method

        profile_method(request.config, request.recipe)
        return
    from polyrl.cli.trace import trace_method

    trace_method(request.config, iteration, recipe=request.recipe)


@polyrl.command("eval", context_settings=HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompts", type=int, help="test prompts of a language run  [500; of --dataset all]")
@click.option("--sampled", is_flag=True, help="sampled instead of greedy responses")
@click.option("--episodes", type=int, help="episodes or scenarios of any other run  [the task's]")
@click.option(
    "--dataset", help="judge on all rows of this file or hub data set, in the place of the run's test prompts"
)
@click.option("--reward", multiple=True, help="with --dataset: what judges answers  [the run's, or the data's answers]")
@click.option("--checker", help="with --dataset: how its answers are compared  [the run's]")
@click.option("--max-tokens", type=int, help="with --dataset: longest response  [the run's]")
@click.option("--prompt-column", metavar="NAME", help="with --dataset: its column with the prompt  [the run's]")
@click.option("--answer-column", metavar="NAME", help="with --dataset: its column with the right answer  [the run's]")
@click.option("--system-prompt", metavar="TEXT", help="with --dataset: first message of its prompts  [the run's]")
@click.option("--no-chat-template", is_flag=True, help="with --dataset: leave its plain prompts as they are")
@TRUST
def eval_(run: Path, trust_code: bool, **given: Any) -> None:
    """Judge the trained policy of RUN apart from training; with --dataset, RUN may be a model's folder."""
    from polyrl.cli.commands import run_evaluation

    given["chat_template"] = False if given.pop("no_chat_template") else None
    run_evaluation(run, trust_code=trust_code, **given)


@polyrl.command(context_settings=HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="language: your own prompt; else test prompts of the run's task")
@click.option("--prompts", type=int, help="language: how many test prompts  [5]")
@click.option("--temperature", type=float, help="language: 0 is greedy  [0]")
@click.option("--episodes", type=int, help="control, operations: how many episodes  [3 or 1]")
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value="-",
    help="control: write a video, .mp4 or .gif  [play.mp4 in RUN]",
)
@click.option("--render", is_flag=True, default=None, help="control: show the environment live")
@TRUST
def play(run: Path, trust_code: bool, **given: Any) -> None:
    """Watch the policy of RUN act."""
    from polyrl.cli.commands import play_run

    if given["video"] == Path("-"):
        given["video"] = run / "play.mp4"
    play_run(run, {name: value for name, value in given.items() if value is not None}, trust_code=trust_code)


@polyrl.command(context_settings=HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--instance",
    type=click.Path(path_type=Path),
    help="a file of TSPLIB, or of what the run is of (docs/operations.md); paths have the map of their task",
)
@click.option(
    "--best", default="", help="the best known cost, or a file with that tour  [what the file's comment says]"
)
@click.option("--beam", type=click.IntRange(min=1), default=1, help="prefixes that beam search keeps  [1: greedy]")
@click.option("--symmetries", is_flag=True, help="solve it in all eight symmetries of the square, and take the best")
@click.option("--out", type=click.Path(path_type=Path), help="folder of solution and picture  [solutions in RUN]")
@TRUST
def solve(run: Path, instance: Path | None, **given: Any) -> None:
    """Solve the instance of a file, or the map of coverage and other paths, by the policy of RUN.

    The solution and a picture are written.
    """
    from polyrl.cli.solve import solve as solve_instance

    solve_instance(run, instance, **given)


@polyrl.command(context_settings=HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["onnx", "numpy"]), required=True, help="what is written")
@click.option("--out", type=click.Path(path_type=Path), help="folder of the files  [exported in RUN]")
@click.option("--overwrite", is_flag=True, help="replace the files")
@TRUST
def export(run: Path, **given: Any) -> None:
    """Write the greedy policy of RUN as files that act without polyrl and torch (control)."""
    from polyrl.cli.export import run_export

    run_export(run, **given)


@polyrl.command(context_settings=HELP)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--episodes", type=int, default=100, show_default=True, help="whole episodes of each run's policy")
@click.option("--sampled", is_flag=True, help="sampled actions instead of the most probable ones")
@click.option("--random", type=float, default=0.0, metavar="SHARE", help="share of steps with a random action  [0]")
@click.option("--seed", type=int, default=0, help="of everything random  [0]")
@click.option("--ref-min-score", type=float, help="return that counts as 0 of a normalized score  [none is told]")
@click.option("--ref-max-score", type=float, help="return that counts as 1")
@click.option("--out", type=click.Path(path_type=Path), help="folder to write  [dataset in the first RUN]")
@TRUST
def record(runs: tuple[Path, ...], trust_code: bool, **given: Any) -> None:
    """Record episodes of the policies of RUNS as a Minari data set, for methods that learn from data (control)."""
    from polyrl.cli.record import record_runs

    record_runs(runs, trust_code=trust_code, **given)


@polyrl.command(context_settings=HELP)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at; others need a token")
@click.option("--port", type=int, default=8600, show_default=True, help="0 takes a free one")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps or auto")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="of forward passes, as in the run")
@click.option("--threads", type=int, default=1, show_default=True, help="of the processor")
@click.option("--quiet", is_flag=True, help="do not tell each request")
def serve(model: str, **given: Any) -> None:
    """Sample responses for a run on another machine: polyrl serve MODEL there, and train --engine http://... here."""
    from polyrl.cli.serve import run_server

    run_server(model, **given)


@polyrl.command("round-robin", context_settings=HELP)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--prompts", type=int, default=500, show_default=True, help="test prompts, one sampled answer each")
@TRUST
def round_robin(runs: tuple[Path, ...], prompts: int, trust_code: bool) -> None:
    """Compare answers of the policies of RUNS, or of a comparison's, all with all, by their task's judge (language)."""
    from polyrl.cli.round_robin import print_round_robin

    print_round_robin(runs, prompts=prompts, trust_code=trust_code)


@polyrl.command(context_settings=HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--budget", default="", help="more for the whole run, spent and to come: samples=, tokens=, steps=, ...")
@click.option("--engine", default="", help="where the run's generation servers are now; none: it samples by itself")
@TRUST
@click.option("--quiet", is_flag=True, help="show warnings only")
def resume(run: Path, budget: str, engine: str, trust_code: bool, quiet: bool) -> None:
    """Go on with an interrupted RUN or comparison, to the same numbers; with --budget, with a finished RUN too."""
    from polyrl.cli.commands import resume_folder

    resume_folder(run, quiet=quiet, trust_code=trust_code, budget=budget, engine=engine)


@polyrl.command(context_settings=HELP)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="page to write  [report.html in the first folder]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the comparison page of RUNS: run folders, or one comparison."""
    from polyrl.cli.report import write_page

    write_page(runs, out)


def main() -> None:
    """Run the command line; a user's mistake, or a disk that does not allow something, is one sentence and code 2."""
    try:
        from polyrl.runtime.interrupt import stopped_by_signals

        with stopped_by_signals():
            polyrl.main(standalone_mode=False)
        if "WORLD_SIZE" in os.environ:
            from polyrl.runtime.ranks import leave

            leave()
    except UserError as error:
        if told_by_another(error):
            end(2)
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        if os.environ.get("RANK", "0") == "0":  # of several processes of a run one says it
            click.echo("polyrl: interrupted; `polyrl resume` goes on from the last checkpoint.", err=True)
        end(130)
    except BrokenPipeError:  # whoever read the output has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        from polyrl.runtime.files import FULL, read_error, write_error

        if error.errno is None:
            raise
        _fail(str(write_error("the disk", error) if error.errno in FULL else read_error(error)))


def _fail(sentence: str) -> None:
    click.echo(f"polyrl: {one_line(sentence)}", err=True)
    end(2)
