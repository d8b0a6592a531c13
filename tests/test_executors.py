"""Who makes the runs of a comparison changes no number of them: processes here, or the lines of a plan."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import polyrl as package
from conftest import Command, child_environment, read_records, run_code, timeless
from polyrl import comparison
from polyrl.catalogue import build
from polyrl.comparison_folder import asked_of
from polyrl.comparison_plan import line, planned_lines, ranges, standings, write_plan
from polyrl.errors import UserError
from polyrl.runtime.executor import KILLED, Job, LocalProcesses
from polyrl.runtime.ray_cluster import changed_files, remove_files, write_files
from test_docs import blocks

ASKED = ["self-play", "nash-mp(eta=0.3)", "--task", "matrix-game(actions=3,beta=0.05)", "--budget", "iterations=6"]
ASKED += ["--evaluations", "2", "--checkpoint-every", "2", "--seeds", "3,5", "--no-tensorboard"]
KEYS = [f"{arm}-seed{seed}" for seed in (3, 5) for arm in ("self-play", "nash-mp-eta-0.3")]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Local runs are made in this process, which takes no time to import; names those that were made."""
    made: list[str] = []

    def work(_: Any, job: Job) -> str:
        made.append(Path(job.folder).name)
        return comparison.work(job.values, job.folder)

    monkeypatch.setattr(LocalProcesses, "work", work)
    return made


@pytest.fixture
def local(here: list[str], tmp_path: Path, polyrl: Command) -> Path:
    """The comparison as it is made here."""
    told = polyrl("compare", *ASKED, "--out", tmp_path / "local", "--quiet")
    assert told.code == 0, told.err
    here.clear()
    return tmp_path / "local"


@pytest.fixture
def planned(tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its plan, in a folder whose name takes quoting, of which no run is made."""
    monkeypatch.chdir(tmp_path)
    folder = Path("a plan, it's mine") / "$HOME"
    told = polyrl("compare", *ASKED, "--out", folder, "--executor", "plan")
    assert told.code == 0 and "Planned 4 runs, and started none" in told.out, told
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "compare.yaml", "runs.sh", "slurm.sh"]
    return folder


def typed(line: str) -> list[str]:
    """The words of a line behind `polyrl`."""
    words = shlex.split(line)
    return words[words.index("resume") :]


def same(run: Path, other: Path) -> None:
    """Every metric, every file of the trained model, and all that was asked are equal."""
    assert timeless(read_records(run)) == timeless(read_records(other))
    models = [{p.name: p.read_bytes() for p in (folder / "model").iterdir()} for folder in (run, other)]
    assert models[0] == models[1] and models[0]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, other)]
    assert all(s["status"] == "finished" for s in summaries)
    assert all(summaries[0][k] == summaries[1][k] for k in ("iteration", "start", "final", "warnings"))
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, other)]
    assert all(configs[0][k] == configs[1][k] for k in ("run", "problem", "hyperparameters", "budget", "seed", "label"))


# ------------------------------------------------------------------------------------------------------------- plans


def test_the_lines_of_a_plan_make_the_runs_that_are_made_here(
    here: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bash as they stand: one as a task of the Slurm array, both one after the other from another folder."""
    asked = [*ASKED, "--seeds", "3,"]
    assert polyrl("compare", *asked, "--out", tmp_path / "local", "--quiet").code == 0
    monkeypatch.chdir(tmp_path)
    planned = Path("a plan, it's mine") / "$HOME"
    assert polyrl("compare", *asked, "--out", planned, "--executor", "plan", "--quiet").code == 0
    environment = child_environment(SLURM_ARRAY_TASK_ID="2")
    how: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(["bash", planned / "slurm.sh"], **how)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in planned.iterdir() if p.is_dir()) == [KEYS[1]]
    before = (planned / KEYS[1] / "summary.json").stat().st_mtime_ns
    done = subprocess.run(["bash", planned.absolute() / "runs.sh"], cwd="/", **how)
    assert done.returncode == 0, done.stderr
    assert (planned / KEYS[1] / "summary.json").stat().st_mtime_ns == before  # its line has done nothing
    for key in KEYS[:2]:
        same(planned / key, tmp_path / "local" / key)
    told = polyrl("report", planned)
    assert told.code == 0 and "All 2 runs are finished." in told.out and (planned / "report.html").is_file()
    sentences = told.out.partition("\nAll 2 runs")[0]
    assert sentences and polyrl("report", tmp_path / "local").out.startswith(sentences)


def test_an_array_without_such_a_line_says_so(planned: Path) -> None:
    environment = child_environment(SLURM_ARRAY_TASK_ID="5")
    done = subprocess.run(["bash", planned / "slurm.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "has no line 5" in done.stderr


DYING = """
import os, signal, sys
from polyrl.core.loop import Loop
left, iterate = int(sys.argv.pop(1)), Loop.iterate

def counted(*args, **kwargs):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return iterate(*args, **kwargs)

Loop.iterate = counted
from polyrl.cli.main import main
main()
"""


@pytest.mark.parametrize("iterations", [0, 1, 3, 5])
def test_a_worker_that_is_killed_is_made_good_by_the_same_line(
    iterations: int, local: Path, planned: Path, polyrl: Command
) -> None:
    words = typed(planned_lines(planned)[KEYS[0]][1])
    done = run_code(DYING, [str(iterations), *words])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [s.finished for s in standings(planned)] == [False] * 4
    left = next(s for s in standings(planned) if s.key == KEYS[0])
    assert left.said.endswith("done, running or stopped") and not left.diverged
    assert polyrl(*words).code == 0
    same(planned / KEYS[0], local / KEYS[0])
    assert [s.finished for s in standings(planned)] == [True, False, False, False]


def test_a_worker_that_died_before_it_wrote_anything_begins_again(local: Path, planned: Path, polyrl: Command) -> None:
    run = planned / KEYS[0]
    run.mkdir()
    (run / ".polyrl.lock").write_text('{"pid": 1, "host": "elsewhere"}')
    assert polyrl(*typed(planned_lines(planned)[KEYS[0]][1])).code == 0
    same(run, local / KEYS[0])


def test_what_is_missing_is_told_with_the_lines_that_make_it(local: Path, planned: Path, polyrl: Command) -> None:
    nothing = polyrl("report", planned)
    assert nothing.code == 2 and "None of the 4 runs" in nothing.err and "has begun" in nothing.err
    lines = planned_lines(planned)
    assert [number for number, _ in lines.values()] == [1, 2, 3, 4] and [*lines] == KEYS
    for key in (KEYS[0], KEYS[2]):
        assert polyrl(*typed(lines[key][1])).code == 0
    told = polyrl("report", planned).out
    assert "2 of 4 runs are not finished:" in told and told.count("not begun") == 2
    assert f"sbatch --array=2,4 {shlex.quote(str(planned / 'slurm.sh'))}" in told
    assert lines[KEYS[1]][1] in told and lines[KEYS[3]][1] in told and lines[KEYS[0]][1] not in told
    (planned / KEYS[3]).mkdir()
    (planned / KEYS[3] / "summary.json").write_text('{"status": "failed", "error": "The disk is full."}')
    assert "failed: The disk is full." in polyrl("report", planned).out
    for key in (KEYS[1], KEYS[3]):
        assert polyrl(*typed(lines[key][1])).code == 0
    assert "All 4 runs are finished." in polyrl("report", planned).out
    (planned / "runs.sh").unlink()
    assert "runs are finished" not in polyrl("report", planned).out  # of other comparisons the page tells it


def test_a_plan_can_be_finished_here(here: list[str], planned: Path, polyrl: Command) -> None:
    assert polyrl(*typed(planned_lines(planned)[KEYS[2]][1])).code == 0
    assert polyrl("compare", *ASKED, "--out", planned, "--quiet").code == 0
    assert here == [KEYS[0], KEYS[1], KEYS[3]]
    here.clear()
    assert polyrl("resume", planned, "--quiet").code == 0 and here == []


def test_a_run_of_a_comparison_begins_and_goes_on_from_python_too(local: Path, planned: Path) -> None:
    result = package.resume(planned / KEYS[1], quiet=True)
    same(result.folder, local / KEYS[1])


def test_a_plan_makes_no_model_and_each_seed_gets_a_start_of_its_own(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyrl.run_state import language

    def refuse(*_: Any, **__: Any) -> Path:
        raise UserError("A start is made here.")

    monkeypatch.setattr(language, "start_model", refuse)
    words = ["compare", "grpo", "--task", "reverse", "--budget", "samples=8", "--seeds", "2"]
    told = polyrl(*words, "--out", tmp_path / "p", "--executor", "plan")
    assert told.code == 0, told.err
    asked = [asked_of(tmp_path / "p" / f"grpo-seed{seed}") for seed in range(2)]
    assert [(a.start, a.seed, a.budget, a.task) for a in asked if a] == [
        ("own", seed, "samples=8", "reverse") for seed in range(2)
    ]
    assert "A start is made here" in polyrl("resume", tmp_path / "p" / "grpo-seed1").err
    shared = polyrl(*words, "--start", "shared", "--out", tmp_path / "s", "--executor", "plan")
    assert shared.code == 0 and (asked_of(tmp_path / "s" / "grpo-seed1") or asked[0]).start == "shared"


def test_your_own_files_go_along_by_path(
    here: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says that their code was chosen, as an account that has never run it asks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lake.py").write_text(blocks("theory.md", "python")[0].replace("discount=0.9", "horizon=4"))
    words = ["compare", "psdp", "--task", "lake.py:make(far=2)", "--budget", "iterations=3", "--seeds", "1"]
    assert polyrl(*words, "--no-tensorboard", "--out", "local", "--quiet").code == 0
    assert polyrl(*words, "--no-tensorboard", "--out", "plan", "--executor", "plan").code == 0
    ((_, text),) = planned_lines(Path("plan")).values()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another account"))
    monkeypatch.setattr("polyrl.trust._here", set())
    without = [word for word in typed(text) if word != "--trust-code"]
    refused = polyrl(*without)
    assert refused.code == 2 and "--trust-code" in refused.err and not Path("plan/psdp-seed0/config.yaml").exists()
    assert len(without) == len(typed(text)) - 1 and polyrl(*typed(text)).code == 0
    same(Path("plan/psdp-seed0"), Path("local/psdp-seed0"))


def test_a_plan_goes_and_what_is_not_polyrls_stays(here: list[str], planned: Path, polyrl: Command) -> None:
    again = polyrl("compare", *ASKED, "--out", planned, "--executor", "plan")
    assert again.code == 2 and "exists already" in again.err and "polyrl report" in again.err
    (planned / "runs.sh").write_text("# Written by polyrl for a plan of runs: changed since\n")
    assert polyrl("compare", *ASKED, "--out", planned, "--executor", "plan", "--overwrite").code == 0
    assert [*planned_lines(planned)] == KEYS
    (planned / "README.md").write_text("My own notes.\n")
    refused = polyrl("compare", *ASKED, "--out", planned, "--quiet", "--overwrite")
    assert refused.code == 2 and "README.md" in refused.err
    (planned / "README.md").unlink()
    assert polyrl("compare", *ASKED, "--out", planned, "--quiet", "--overwrite").code == 0
    assert not (planned / "runs.sh").exists() and len(here) == 4


def test_lines_have_what_changes_digits_and_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYRL_KERNELS", "off")
    text = line(Path("runs") / "x-seed0", 3, trust_code=False)
    assert "OMP_NUM_THREADS=3 POLYRL_KERNELS=off " in text and text.startswith(f"cd {shlex.quote(os.getcwd())} && ")
    assert text.endswith("resume --quiet runs/x-seed0")
    with pytest.raises(UserError, match="several lines"):
        line(Path("two\nlines"), 1, trust_code=False)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is not polyrl's"):
        write_plan(tmp_path, [text], 3, "About.", "polyrl report x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md"]
    assert ranges([1, 2, 3, 5, 7, 8]) == "1-3,5,7-8" and ranges([4]) == "4"


def test_the_command_that_was_typed_is_the_one_that_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "polyrl"
    script.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(script)])
    assert f" {script} resume " in line(Path("x"), 1, trust_code=False)
    script.chmod(0o644)
    assert " -m polyrl resume --trust-code " in line(Path("x"), 1, trust_code=True)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "slurm"], "There is no executor 'slurm'; it is local, ray, ray://HOST:PORT or plan."),
        (["--executor", "ray://"], "There is no executor 'ray://'"),
        (["--executor", "pln"], "Did you mean 'plan'?"),
        (["--executor", "plan", "--workers", "2"], "--workers means nothing with --executor plan"),
    ],
)
@pytest.mark.parametrize("command", [["compare", *ASKED], ["reproduce", "nash-mp"]], ids=["compare", "reproduce"])
def test_what_cannot_be_is_one_sentence(
    command: list[str], words: list[str], said: str, tmp_path: Path, polyrl: Command
) -> None:
    told = polyrl(*command, "--out", tmp_path / "x", *words)
    assert told.code == 2 and said in told.err and not (tmp_path / "x").exists()


def test_objects_are_refused_in_a_plan(tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [0.0 for _ in completions]

    common: dict[str, Any] = {"seeds": 1, "out": tmp_path / "x", "executor": "plan", "budget": "samples=8"}
    with pytest.raises(
        UserError, match=r"The reward given as Python objects cannot stand in a command.*reward='file.py"
    ):
        package.compare("grpo", task="reverse", reward=reward, **common)
    with pytest.raises(UserError, match=r"The method given as Python objects"):
        package.compare([build("grpo")], task="reverse", **common)
    with pytest.raises(UserError, match=r"There is no executor 'here'"):
        package.compare("grpo", task="reverse", **{**common, "executor": "here"})
    assert not (tmp_path / "x").exists()
    result = package.compare("nash-mp", task="rock-paper-scissors", quiet=True, **{**common, "budget": "iterations=2"})
    assert [*planned_lines(result.folder)] == ["nash-mp-seed0"]
    assert "has no run in it yet" in result._repr_html_()


@pytest.mark.parametrize("address", ["ray", "ray://head:10001"])
def test_a_cluster_takes_ray(address: str, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyrl.runtime.executor.find_spec", lambda name: None)
    told = polyrl("compare", *ASKED, "--out", tmp_path / "x", "--executor", address)
    assert told.code == 2 and "pip install 'polyrl[ray]'" in told.err and not (tmp_path / "x").exists()


def test_files_that_changed_are_told_apart(tmp_path: Path) -> None:
    """What a node brings home where no disk is shared: no file twice, none that is hidden, none of a torn folder."""
    home, away = tmp_path / "home", tmp_path / "away"
    write_files(away, {"checkpoints/iteration-1/state.json": b"1", "metrics.jsonl": b"a\n", ".polyrl.lock": b"{}"})
    write_files(away, {"model/.polyrl-files.json": b"[]", ".model.writing/x": b"half"})
    first = changed_files(away, {})
    assert [*first] == ["checkpoints/iteration-1/state.json", "metrics.jsonl", "model/.polyrl-files.json"]
    known = {name: stamp for name, (stamp, _) in first.items()}
    write_files(home, {name: data for name, (_, data) in first.items()})
    assert changed_files(away, known) == {}
    write_files(away, {"metrics.jsonl": b"b\n"})  # of the same size
    assert {name: data for name, (_, data) in changed_files(away, known).items()} == {"metrics.jsonl": b"b\n"}
    (away / "checkpoints" / "iteration-2").mkdir()
    (away / "checkpoints" / "iteration-2" / "a").write_bytes(b"a")
    (away / "checkpoints" / "iteration-2" / "b").symlink_to("gone")
    assert [*changed_files(away, known)] == ["metrics.jsonl"]
    remove_files(home, ["checkpoints/iteration-1/state.json"])
    assert sorted(p.name for p in home.iterdir()) == ["metrics.jsonl", "model"]
    assert changed_files(tmp_path / "nowhere", {}) == {}


def test_a_mistake_is_found_before_anything_is_planned(tmp_path: Path, polyrl: Command) -> None:
    for words in (["--clip-range", "0.1"], ["--device", "warp"], ["--max-tokens", "7"]):
        told = polyrl("compare", *ASKED, *words, "--out", tmp_path / "x", "--executor", "plan")
        assert told.code == 2 and not (tmp_path / "x").exists(), words


def test_a_run_that_its_comparison_does_not_ask_is_none(planned: Path, polyrl: Command) -> None:
    told = polyrl("resume", planned / "grpo-seed3")
    assert told.code == 2 and "is not a run folder" in told.err and not (planned / "grpo-seed3").exists()
    budget = polyrl("resume", planned / KEYS[0], "--budget", "iterations=9")
    assert budget.code == 2 and "have one budget" in budget.err and not (planned / KEYS[0]).exists()


# ------------------------------------------------------------------------------------------------------------- local


def die(values: dict[str, Any], folder: str, objects: bytes) -> str:
    if values["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{folder} {objects.decode()} {os.environ['OMP_NUM_THREADS']}"


def test_a_process_that_dies_takes_its_own_run_with_it_and_no_other() -> None:
    jobs = [Job({"kill": kill}, f"run{i}", b"x") for i, kill in enumerate((False, True, False))]
    with LocalProcesses(die, threads=1, workers=None) as executor:
        assert [executor.work(job) for job in jobs] == ["run0 x 1", KILLED, "run2 x 1"]


@pytest.mark.parametrize(
    ("workers", "threads", "jobs", "wanted"), [(None, 2, 9, 4), (None, 16, 9, 1), (3, 1, 9, 3), (3, 1, 2, 2)]
)
def test_as_many_at_once_as_there_are_cores_for(
    workers: int | None, threads: int, jobs: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert LocalProcesses(die, threads, workers).at_once(jobs) == wanted


# ------------------------------------------------------------------------------------------------------- reproductions


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources count as committed."""
    from polyrl.reproduction import planning, running

    for module in (planning, running):
        monkeypatch.setattr(module, "refuse_uncommitted", lambda: None)
    monkeypatch.setattr(running, "commits_are_clean", lambda _: True)


@pytest.mark.usefixtures("committed")
def test_a_claim_is_planned_look_by_look(
    here: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyrl.reproduction import running
    from polyrl.reproduction.claim import Arm, Criterion
    from polyrl.reproduction.quantities import Final, Of
    from test_verdicts import game_claim

    never = Criterion("no number", Of(Final(key="eval/nothing"), "two"), at_least=0.0)
    arms = (Arm("two", "nash-mp"), Arm("short", "nash-mp(prox_steps=one)", budget="reward_calls=20"))
    claim = game_claim(criteria=(never,), arms=arms, seeds=tuple(range(10, 16)), looks=(3, 6))
    monkeypatch.setattr("polyrl.cli.reproduce.claim", lambda _: claim)
    ledger, out = tmp_path / "ledger", tmp_path / "out"
    words = ["reproduce", "nash-mp", "--executor", "plan", "--out", out, "--ledger", ledger]

    def make(place: Path, besides: Callable[[str], bool] = lambda _: False) -> None:
        for key, (_, text) in planned_lines(place).items():
            if not besides(key):
                assert polyrl(*typed(text)).code == 0

    for seeds in ("10-to-12", "13-to-15"):
        place = out / f"seeds-{seeds}"
        told = polyrl(*words, "--quiet")
        assert told.code == 0 and "Planned 6 runs" in told.out, told
        assert {text.split()[-1].rpartition("/")[2] for _, text in planned_lines(place).values()} == {
            f"{arm}-seed{seed}" for arm in ("two", "short") for seed in range(int(seeds[:2]), int(seeds[:2]) + 3)
        }
        left = f"two-seed{seeds[:2]}"
        make(place, left.__eq__)
        said = polyrl(*words, "--quiet").out
        assert "1 of 6 runs is not finished:" in said and left in said and "sbatch --array=1 " in said
        make(place)
    assert here == [] and not ledger.exists()
    told = polyrl(*words)
    assert told.code == 0 and here == [] and "INCONCLUSIVE" in told.out
    entered = json.loads((ledger / "nash-mp.json").read_text())
    assert entered["seeds"] == list(range(10, 16))
    local = running.reproduce(claim, tmp_path / "local", ledger_folder=tmp_path / "other", workers=1, quiet=True)
    assert len(here) == 12
    for arm, other in zip(entered["arms"], local.entry["arms"], strict=True):
        assert [r["final"] for r in arm["runs"]] == [r["final"] for r in other["runs"]]


@pytest.mark.usefixtures("committed")
def test_what_is_not_planned_of_a_claim(tmp_path: Path, polyrl: Command) -> None:
    quick = polyrl("reproduce", "nash-mp", "--quick", "--executor", "plan", "--out", tmp_path / "x")
    assert quick.code == 2 and "--quick is made here" in quick.err
    check = polyrl("reproduce", "nash-mp", "--check", "--executor", "plan", "--out", tmp_path / "x")
    assert check.code == 2 and "--check compares" in check.err
    asked: dict[str, Any] = {"seeds": [900], "out": tmp_path / "x", "executor": "plan"}
    said = package.reproduce("nash-mp", **asked)
    assert said["verdict"] is None and said["planned"].startswith("Planned ")
    assert "not finished" in package.reproduce("nash-mp", **asked)["planned"]
