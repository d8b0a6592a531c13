"""`polyrl play` for theory: the policy as a table, beside the exact answer."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyrl.api import open_policy
from polyrl.run_state.finite import FiniteRunState, likeliest
from polyrl.run_state.theory import GameRunState, MDPRunState, answers, choices
from polyrl.runtime.terminal import Terminal


def play(folder: Path, *, trust_code: bool = False) -> None:
    """Print what the trained policy does, and how far that is from the exact answer.

    Raises:
        UserError: the run has no policy yet.
    """
    run_state = open_policy(folder, trust_code=trust_code)
    console = Terminal()
    if isinstance(run_state, GameRunState):
        _show_game(console, run_state)
    elif isinstance(run_state, FiniteRunState):
        _show_finite(console, run_state)
    else:
        assert isinstance(run_state, MDPRunState)
        _show_mdp(console, run_state)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, header_style="dim", justify="right" if i else "left")
    return table


def _show_game(console: Console, run_state: GameRunState) -> None:
    """Every answer's probability, here and in the Nash policy, and how often it beats the policy."""
    task = run_state.task
    console.print(Text(f"{task.name}: {len(task.names)} answers, beta {task.beta:g}", style="bold"))
    table = _table("answer", "probability", "in the Nash policy", "beats this policy")
    rows = answers(task, run_state.output_policy)
    for row in rows:
        numbers = [f"{row[key]:.4f}" for key in ("probability", "nash", "beats the policy")]
        table.add_row(str(row["answer"]), *numbers)
    console.print(table)
    if len(rows) < len(task.names):
        rest = 1 - sum(row["probability"] for row in rows)
        console.print(f"and {len(task.names) - len(rows)} more with {rest:.4f} in all", style="dim")
    measures = run_state.evaluate()[0]
    console.print(
        f"\nKL to the Nash policy {measures['eval/kl_to_nash']:.2e} nats\n"
        f"gap (exploitability)  {measures['eval/exploitability']:.2e}: what the best opponent wins beyond 1/2"
    )


def _show_mdp(console: Console, run_state: MDPRunState) -> None:
    """What the policy does on its way, and its exact returns under every shift beside those of the exact plan."""
    task = run_state.task
    bound = f"rho {task.rho:g}" if task.constraint == "radius" else f"lambda {task.lam:g}"
    console.print(Text(f"{task.name}: {task.divergence}, {bound}, eta {task.eta:g}", style="bold"))
    table = _table("step", "state", "likeliest action", "probability", "worst value from here")
    for row in choices(task, run_state.policy, shown=12):
        table.add_row(
            str(row["step"]), row["state"], row["action"], f"{row['probability']:.4f}", f"{row['worst value']:.4f}"
        )
    console.print(table)
    console.print()
    table = _table("expected return", "this policy", "exact plan")
    for name, value in task.returns(run_state.policy).items():
        table.add_row(f"dynamics {name}", f"{value:.4f}", f"{run_state.pursued_returns[name]:.4f}")
    table.add_row("worst dynamics", f"{float(task.judge(run_state.policy, eta=0).value[0, 0]):.4f}", "")
    console.print(table)
    console.print(f"\nbelow the best worst case by {task.suboptimality(run_state.policy):.2e}")


def _show_finite(console: Console, run_state: FiniteRunState) -> None:
    """What the answer does in every state of the first steps, beside the best policy, and what it is worth."""
    mdp = run_state.mdp
    layers, states, actions = mdp.shape
    steps = f", {layers} steps" if mdp.horizon else f", discount {mdp.discount:g}" if mdp.discount else ", on average"
    console.print(Text(f"{run_state.task.name}: {states} states, {actions} actions{steps}", style="bold"))
    table = _table(*(["step"] if mdp.horizon else []), "state", "likeliest action", "probability", "best", "gap")
    rows = likeliest(run_state, shown=24)
    for row in rows:
        numbers = [f"{row['probability']:.4f}", row["best"], f"{row['gap']:.4f}"]
        table.add_row(*([str(row["step"])] if mdp.horizon else []), row["state"], row["action"], *numbers)
    console.print(table)
    if len(rows) < layers * states:
        console.print(f"and {layers * states - len(rows)} more", style="dim")
    metric = run_state.task.metric
    console.print(
        f"\n{metric.label} {float(mdp.worth(run_state.answer)):.6g}, and the best is {mdp.optimum:.6g} ({metric.unit})"
    )
