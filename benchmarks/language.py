"""The language benchmark: polyrl beside TRL, and beside a plain loop where TRL has no such trainer."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from language_work import ALLOCATOR, CASES, PAIRED, PARTS, PEERS, WORK, build_model, data, write_rows
from peers import BUILD, peer_python
from results import shown, spread, table, write
from turns import alternate, one_thread, started

HERE = Path(__file__).resolve().parent
FOLDER = BUILD / "bench"
OURS = "polyrl"
SAME = 1e-5
"""Largest relative difference of two gradient norms that counts as rounding."""
CHANCE = 4.0
"""Standard errors by which mean numbers of tokens may differ: prompts and random numbers are not the same."""


def python_of(side: str) -> str:
    """The interpreter of a side."""
    return peer_python("trl") if side.startswith("trl") else sys.executable


def prepare(name: str, seed: int = 0) -> tuple[str, Path]:
    """Model and training rows of a case, the same files for every side."""
    case = WORK[name]
    model = build_model(case.shape, FOLDER / "models" / case.model, case.family, ends=not case.answer)
    rows = data(case, "train", seed)
    write_rows(data(case, "test", seed), FOLDER / name / "test.jsonl")
    return str(model), write_rows(rows, FOLDER / name / "train.jsonl")


def command(side: str, name: str, model: str, rows: Path, *more: str) -> list[str]:
    """What starts a side."""
    if side == OURS:
        script = ["language_polyrl.py", "--out", str(FOLDER / name / "run")]
    elif side == "plain-loop":
        script = ["language_plain_ppo.py"]
    else:
        script = ["language_trl.py", "--as", side]
    return [python_of(side), str(HERE / script[0]), name, model, str(rows), *script[1:], *more]


def agreement(name: str) -> dict[str, Any]:
    """Gradient norms of the peer's first step and of polyrl's on the same completions.

    Raises:
        RuntimeError: they differ: the two libraries do not do the same work.
    """
    case = CASES[name]
    model, _ = prepare(name)
    folder = FOLDER / name / "agreement"
    rows = data(case, "train")
    if case.method in PAIRED:  # one batch of pairs and no more: both sides take all of it
        rows = rows[: case.shape.prompts * case.shape.group // 2]
    write_rows(data(case, "test"), folder / "test.jsonl")
    file, record = write_rows(rows, folder / "train.jsonl"), folder / "record.json"
    run(command(case.peers[0], name, model, file, "--record", str(record)))
    peer = json.loads(record.read_text(encoding="utf-8"))
    ours = json.loads(run(command(OURS, name, model, file, "--replay", str(record))).splitlines()[-1])
    difference = abs(ours["grad_norm/policy"] / peer["grad_norm"] - 1)
    if difference > SAME:
        raise RuntimeError(
            f"{name}: the gradient's norm is {ours['grad_norm/policy']} in polyrl and {peer['grad_norm']} in "
            f"{case.peers[0]} on the same completions: they do not do the same work."
        )
    return {"grad_norm": {OURS: ours["grad_norm/policy"], case.peers[0]: peer["grad_norm"]}, "relative": difference}


def run(words: list[str]) -> str:
    """Standard output of a command."""
    told = subprocess.run(words, capture_output=True, text=True, check=False, env=one_thread())
    if told.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{told.stderr[-2000:]}")
    return told.stdout


def measure(name: str, repeats: int, quick: bool) -> dict[str, Any]:
    """One case: rounds in alternation, medians of a step, ratios by round."""
    case = CASES[name]
    model, rows = prepare(name)
    sides = [*case.peers, OURS]
    commands = {side: command(side, name, model, rows) for side in sides}
    tuned = {"trl-tuned": ALLOCATOR}
    with started(commands, lambda side: FOLDER / name / f"{side}.log", tuned) as processes:
        turns = alternate(processes, repeats, 1 if quick else case.steps, warm_up=1)
    found: dict[str, Any] = {"goal": case.goal, "sides": {side: summary(turns[side]) for side in sides}}
    by_round = {
        side: [statistics.median(row["seconds"] for row in turn["rows"]) for turn in turns[side]] for side in sides
    }
    found["ratios"] = {
        peer: spread([theirs / ours for theirs, ours in zip(by_round[peer], by_round[OURS], strict=True)])
        for peer in case.peers
    }
    found["same_work"] = same_work(found["sides"], OURS)
    # autocast rounds differently in every library: there the float32 case of the same size stands for both;
    # adapters and heads that each library draws for itself have no common gradient
    if case.precision == "float32" and not case.lora and case.method != "reward-model":
        found["same_gradient"] = agreement(name)
    return found


def same_work(sides: dict[str, dict[str, Any]], ours: str) -> dict[str, float]:
    """By how many standard errors each peer's mean number of tokens a step differs from ours.

    Raises:
        RuntimeError: by more than could be chance, or the number of optimizer steps differs.
    """

    def tokens(side: str) -> tuple[float, float]:
        by_step = sides[side]["tokens"]["by_step"]
        return statistics.fmean(by_step), statistics.variance(by_step) / len(by_step)

    found = {}
    mean, error = tokens(ours)
    for peer in sides:
        if peer == ours:
            continue
        theirs, their_error = tokens(peer)
        found[peer] = (mean - theirs) / math.sqrt(error + their_error) if mean != theirs else 0.0
        if abs(found[peer]) > CHANCE or sides[peer]["updates"] != sides[ours]["updates"]:
            raise RuntimeError(
                f"{ours} and {peer} do not do the same work: {mean:.0f} and {theirs:.0f} tokens a step, "
                f"{sides[ours]['updates']:g} and {sides[peer]['updates']:g} optimizer steps."
            )
    return found


def summary(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one side: medians of a step, by part, with tokens, updates and memory."""
    rows = [row for turn in turns for row in turn["rows"]]
    tokens = [row["tokens"] for row in rows]
    return {
        "seconds": spread([row["seconds"] for row in rows]),
        "wall": spread([row["wall"] for row in rows]),
        "parts": {part: statistics.median(row["parts"].get(part, 0.0) for row in rows) for part in PARTS},
        "tokens": {"mean": statistics.fmean(tokens), "by_step": tokens},
        "updates": statistics.fmean(row["updates"] for row in rows),
        "peak_mib": max(turn["peak_mib"] for turn in turns),
    }


def print_case(name: str, found: dict[str, Any]) -> None:
    """A table of one case."""
    case = CASES[name]
    print(f"\n{name}: {case.method}, {case.size} model, {case.precision}")
    rows = []
    for side, s in found["sides"].items():
        parts = [f"{1000 * s['parts'][part]:.0f}" for part in PARTS]
        tokens = f"{s['tokens']['mean']:.0f}" if s["tokens"]["mean"] else "-"
        rows.append(
            [side, f"{1000 * s['seconds']['median']:.0f}", *parts, tokens, f"{s['updates']:g}", f"{s['peak_mib']:.0f}"]
        )
    print(table(["", "ms a step", *PARTS, "tokens", "updates", "peak MiB"], rows))
    for peer, off in found["same_work"].items():
        print(f"  tokens a step differ from those of {peer} by {off:+.1f} standard errors")
    for peer, ratio in found["ratios"].items():
        goal = f", goal {case.goal:g}" if case.goal and peer == case.peers[0] else ""
        print(f"  {shown(ratio)} times faster than {peer}{goal}")
    if "same_gradient" in found:
        print(f"  gradient on the same completions: relative difference {found['same_gradient']['relative']:.1e}")


def main(only: Sequence[str], repeats: int, quick: bool) -> None:
    """Measure cases, print and write them."""
    for name in only or CASES:
        found = measure(name, repeats, quick)
        print_case(name, found)
        used = {side: python_of(side) for side in (*CASES[name].peers, OURS)}
        if not quick:
            work = {"peers": {peer: PEERS[peer] for peer in CASES[name].peers}, "threads": 1, "rounds": repeats}
            write("language", used, {name: found}, **work)
