"""Text that others wrote appears in the terminal literally: no escape sequence acts, no word in brackets is a style."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from conftest import Command
from polyrl.plain_text import one_line, printable
from polyrl.runtime.metric import Metric
from polyrl.runtime.progress import Progress
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.language.phrases import reason_of, shortened
from run_folders import write_comparison, write_run
from tiny_models import save_model

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\r\x08\u202eb [red]c[/red] [bold :smile: \x00"
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal does not show but obeys."""


def literal(said: str) -> bool:
    """Whether the hostile text is there as it was written, and nothing in it acts."""
    joined = said.replace("\n", "")
    return not ACTS.search(said) and "[red]c[/red]" in joined and ":smile:" in joined and "\\x1b[31mred" in joined


@pytest.mark.parametrize(
    "shown",
    [HOSTILE, Text(HOSTILE), Panel(Text("x"), title=Text(HOSTILE)), Panel(Text(HOSTILE))],
    ids=["string", "text", "title", "panel"],
)
def test_everything_printed_is_literal(shown: Any) -> None:
    out = Terminal(file=io.StringIO(), width=300, force_terminal=False)
    out.print(shown, soft_wrap=True)
    assert literal(out.file.getvalue())  # type: ignore[attr-defined]


def test_cells_are_literal() -> None:
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    out = Terminal(file=io.StringIO(), width=300)
    out.print(table)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert literal(said) and said.count("[red]c[/red]") == 2


def test_own_styles_still_act() -> None:
    out = Terminal(file=io.StringIO(), force_terminal=True, color_system="standard")
    out.print(Text.assemble(("bold", "bold"), " ", (HOSTILE, "green")))
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1mbold\x1b[0m" in said
    assert "\x1b[31m" not in said and "\\x1b[31m" in said


@pytest.mark.parametrize("text", ["plain", "é ü 漢字 🙂", "a\u00a0b\u3000c", "two\nlines"])
def test_what_does_not_act_stays(text: str) -> None:
    assert printable(text) == text


def test_sentences_are_one_line() -> None:
    assert one_line("a\nb\x1b[2J") == "a b\\x1b[2J"
    assert one_line("Choose from:\n\tonnx,\n\tnumpy") == "Choose from: onnx, numpy"
    assert not ACTS.search(reason_of(ValueError(HOSTILE))) and not ACTS.search(shortened(HOSTILE))


def test_progress_shows_labels_literally() -> None:
    out = Terminal(file=io.StringIO(), width=300)
    progress = Progress(HOSTILE, "samples=8", Metric(label=HOSTILE), console=out)
    progress.update({"iteration": 0, "eval/accuracy": 0.5}, 0.0)
    progress.warn(HOSTILE)
    out.print(progress._panel({"iteration": 1, "eval/accuracy": 0.5}, 0.5))
    assert literal(out.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("share", "shown"), [(0.0, "cut off 0%"), (0.125, "cut off 12%"), (1.0, "cut off 100%")])
def test_the_line_of_language_shows_how_many_answers_were_cut_off(share: float, shown: str) -> None:
    out = Terminal(file=io.StringIO(), width=300)
    record = {"iteration": 1, "reward": 0.5, "kl": 0.1, "entropy": 1.0, "completions/mean_length": 9.5, "loss": 0.0}
    record |= {"completions/clipped_ratio": share, "clip_ratio": 0.0, "frac_reward_zero_std": 0.5}
    Progress("grpo", "samples=8", console=out).update(record, 1.0)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert f"length 9.500  {shown}  " in said
    Progress("ppo", "steps=8", console=out).update({"iteration": 1, "episode/length": 9.0}, 1.0)
    assert out.file.getvalue().count("cut off") == 1  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ commands


def test_reports_show_labels_and_errors_literally(tmp_path: Path, polyrl: Command) -> None:
    folder = write_comparison(tmp_path / "[red]c[/red]", ["grpo"], seeds=1, failed=[("grpo", 0)])
    write_run(folder / "other", HOSTILE, 0, iterations=4)
    told = polyrl("report", folder)
    assert told.code == 0, told.err
    assert literal(told.out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on hostile prompts, answers and names."""
    from polyrl.cli.main import polyrl as cli

    root = tmp_path_factory.mktemp("hostile")
    rows = [{"prompt": f"{n} {HOSTILE}", "answer": f"{n} {HOSTILE}", "kind": HOSTILE[n:]} for n in range(6)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["train", "grpo", "--dataset", root / "data.jsonl", "--model", save_model(root / "model", "qwen3")]
    words += ["--out", root / "[red]c[/red]", "--prompts-per-step", 2, "--completions-per-prompt", 2, "--quiet"]
    words += [
        "--budget",
        "iterations=1",
        "--max-tokens",
        4,
        "--eval-prompts",
        2,
        "--evaluations",
        1,
        "--no-tensorboard",
    ]
    cli.main([*map(str, words)], standalone_mode=False)
    return root / "[red]c[/red]"


def test_play_shows_prompts_literally(run: Path, polyrl: Command) -> None:
    told = polyrl("play", run, "--prompts", 2)
    assert told.code == 0 and literal(told.out), told.err


def test_trace_shows_prompts_literally(run: Path, polyrl: Command) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["run"]
    few = ["--budget", "iterations=1", "--max-tokens", 4, "--prompts-per-step", 2, "--completions-per-prompt", 2]
    told = polyrl("trace", "grpo", "--dataset", config["dataset"], "--model", config["model"], *few)
    assert told.code == 0 and not ACTS.search(told.out), told.err


@pytest.mark.parametrize("command", ["eval", "resume", "play", "report"])
def test_names_and_mistakes_are_literal(run: Path, tmp_path: Path, polyrl: Command, command: str) -> None:
    told = polyrl(command, tmp_path / "no\x1b[31m[red]folder")
    assert told.code == 2 and not ACTS.search(told.err) and "[red]folder" in told.err
    told = polyrl(command, run, *(["--prompts", 2] if command in ("eval", "play") else []))
    assert told.code == 0 and not ACTS.search(told.out + told.err), told.err


def test_a_reward_that_raises_a_hostile_error(run: Path, tmp_path: Path, polyrl: Command) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["run"]
    (tmp_path / "r.py").write_text(
        f"def bad(prompts, completions, **columns):\n    raise ValueError({HOSTILE!r})\n", encoding="utf-8"
    )
    asked = ["--dataset", config["dataset"], "--model", config["model"], "--reward", f"{tmp_path}/r.py:bad"]
    few = ["--out", tmp_path / "run", "--quiet", "--max-tokens", 4, "--budget", "iterations=1", "--eval-prompts", 2]
    told = polyrl("train", "grpo", *asked, *few, "--prompts-per-step", 2, "--completions-per-prompt", 2)
    assert told.code == 2 and literal(told.err) and "r.py, line 2)" in told.err


def test_every_command_prints_through_the_terminal() -> None:
    """No other console is made, and no string is read as markup."""
    root = Path(__file__).resolve().parents[1] / "src" / "polyrl"
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "terminal.py":
            assert not re.search(r"\bConsole\(", text), file
        assert "from_markup" not in text and "rich.markup" not in text, file
