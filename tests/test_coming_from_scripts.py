"""Scripts side by side in docs/coming-from.md: ours are run as they stand, by command and by Python, and are equal.

Those of TRL and Stable-Baselines3 are run where the environments of the benchmarks are there (benchmarks/peers.py).
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import Command, read_records
from test_docs import ROOT, blocks, titled
from test_first_day import words

FILES = titled("coming-from.md")
SIDES = {"grpo": "trl", "dpo": "trl", "ppo": "sb3", "sac": "sb3"}
COMMANDS = {
    line.split()[2]: line
    for block in blocks("coming-from.md", "console")
    for line in block.replace("$ ", "").replace("\\\n", " ").splitlines()
    if line.startswith("polyrl train")
}


@pytest.fixture
def here(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, questions, pairs, a reward and all scripts of the page."""
    words(tmp_path, small_model)
    rows = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": r["answer"][::-1]} for r in rows]
    pairs = [pair for pair in pairs if pair["chosen"] != pair["rejected"]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for name, code in {**FILES, **titled("first-day/post-training.md")}.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("POLYRL_RUNS", str(tmp_path / "python"))
    return tmp_path


def test_each_script_has_a_command_and_few_lines_beside_it() -> None:
    assert COMMANDS.keys() == SIDES.keys()
    assert {f"{side}_{method}.py" for method, side in SIDES.items()} | {f"{m}.py" for m in SIDES} == FILES.keys()
    for method in SIDES:
        lines = [
            line for line in FILES[f"{method}.py"].splitlines() if line and not line.startswith(("import", "from"))
        ]
        assert len(lines) <= 5, method


@pytest.mark.parametrize("method", [*SIDES])
def test_command_and_lines_come_to_the_same_numbers(
    method: str, here: Path, polyrl: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    told = polyrl(*shlex.split(COMMANDS[method])[1:])
    assert told.code == 0, told.err
    runpy.run_path(str(here / f"{method}.py"))
    capsys.readouterr()
    (by_python,) = (here / "python").iterdir()
    by_command = here / shlex.split(COMMANDS[method])[-1]
    last: list[dict[str, Any]] = [read_records(folder)[-1] for folder in (by_command, by_python)]
    same = [{k: v for k, v in r.items() if "seconds" not in k and "per_second" not in k} for r in last]
    assert same[0] == same[1] and len(same[0]) > 10
    assert last[0]["updates" if SIDES[method] == "trl" else "steps"] >= {"grpo": 16, "dpo": 20, "ppo": 10_000}.get(
        method, 1500
    )


@pytest.mark.parametrize("method", [*SIDES])
def test_the_script_of_the_other_side_runs_and_what_it_saved_opens(method: str, here: Path, polyrl: Command) -> None:
    side = SIDES[method]
    python = ROOT / "build" / side / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the environment of {side} is not there; the benchmarks make it")
    quiet = {**os.environ, "PYTHONPATH": str(here), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(python), f"{side}_{method}.py"], cwd=here, env=quiet, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if side == "trl":  # what it saved is a model for polyrl too
        assert polyrl(*shlex.split(COMMANDS[method])[1:]).code == 0
        ours = [r for r in read_records(here / method) if "eval/accuracy" in r or "eval/pair_accuracy" in r]
        told = polyrl("eval", f"{method}-trl", "--dataset", "fresh.jsonl", "--max-tokens", "8")
        assert told.code == 0 and ours, told.err
