"""Several processes of one run give the numbers of one: `polyrl.runtime.ranks`, with gloo on this machine.

Every language and preference method runs for three iterations in one process and in two (tests/rank_runs.py).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import child_environment, hear_interrupts, read_records, timeless
from polyrl import catalogue
from polyrl.core import updating
from polyrl.core.context import Context
from polyrl.core.means import Means
from polyrl.core.parting import pooled
from polyrl.errors import NotFinite, UserError, told_by_another
from polyrl.pretrain.tiny import build_tiny
from polyrl.runtime import ranks, torchrun
from polyrl.runtime.ranks import Ranks
from polyrl.tasks import built_in
from test_composition import BASES, PREFERENCE, SIZE, SMALL_BATCH, SMALL_TASKS
from test_docs import blocks

DRIVER = Path(__file__).with_name("rank_runs.py")
MORE: dict[str, dict[str, Any]] = {
    "sft": {},
    "kto": {},
    "reward-model": {},
    "nash-mp-pg": {"task": SMALL_TASKS["sort-pairs"]},
    "ppo+capo": {"task": "reverse(difficulty=4)"},
    "grpo+reference-kl": {"task": "reverse(difficulty=4)"},
    "hypo+tgdpo": {},
    "dpo of tables": {"method": "dpo", "task": "garbage-tail(pairs=64)", "model": None},
}
"""Runs beside those of every method: compositions, models of other kinds, answers that are tables."""
SOME = (*("ppo", "otc-po", "t-ppo", "vineppo", "hypo", "reward-model", "kto", "nash-mp-pg", "dpo of tables"),)
"""One of each kind: a critic, tools, windows, continuations, two streams, scores, labels, several models, tables."""
OTHERS = [name for name in (*BASES, *PREFERENCE, *MORE) if name not in SOME]
WITH_CONTEXT = ("loop-agents", "otc-po", "adacot")
"""Methods whose responses the small model has no room for."""


def wanted(name: str, model: Path, roomy: Path) -> dict[str, Any]:
    """Arguments of a run of three iterations, a few rows each."""
    method = MORE.get(name, {}).get("method", name)
    info = catalogue.methods()[method.partition("+")[0]]
    known = {k.rpartition(".")[2] for k in catalogue.build(method, domain="language").hyperparameters()}
    settings = {**SMALL_BATCH, "prompts_per_step": 12}  # of a few prompts none may be answered right: then all is noise
    plain = info.task in ("", "addition") or info.task not in built_in("language")
    task = "reverse(difficulty=4)" if plain else SMALL_TASKS.get(info.task, info.task)
    return {
        "method": method,
        "task": task,
        "model": str(roomy if name in WITH_CONTEXT else model),
        "budget": "iterations=3",
        "evaluations": 1,
        "eval_prompts": 16,
        "micro_batch_tokens": 256,
        "monitor_kl_every": 1,
        "hyperparameters": {k: str(v) for k, v in settings.items() if k in known},
        **{k: v for k, v in MORE.get(name, {}).items() if k != "method"},
    }


def started(count: int, words: list[str], begun: int | None = None) -> list[subprocess.Popen[str]]:
    """The processes of a run, which meet at a port that is free; or only so many of them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    several = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=child_environment(**(several | {"RANK": str(k), "LOCAL_RANK": str(k)} if count > 1 else {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_interrupts,
        )
        for k in range(begun or count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit codes and what was said."""
    said = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *one) for process, one in zip(processes, said, strict=True)]


def runs_of(
    names: list[str], model: Path, factory: pytest.TempPathFactory
) -> Callable[[str, int], tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Make the runs in one process and in two; what reads a run's records and weights."""
    roomy = build_tiny(factory.mktemp("models") / "roomy", 0, **SIZE)
    runs = {name: wanted(name, model, roomy) for name in names}
    folders = {}
    for count in (1, 2):
        folders[count] = factory.mktemp(f"of{count}")
        for code, _, said in ended(started(count, [str(DRIVER), str(folders[count]), json.dumps(runs)])):
            assert code == 0, said[-2000:]

    def read(name: str, count: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        file = folders[count] / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")), load_file(file.with_suffix(".safetensors"))

    return read


@pytest.fixture(scope="module")
def some(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[Any, Any]]:
    """The runs of `SOME`."""
    return runs_of([*SOME], small_model, tmp_path_factory)


@pytest.fixture(scope="module")
def others(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[Any, Any]]:
    """All other runs."""
    return runs_of(OTHERS, small_model, tmp_path_factory)


@pytest.mark.parametrize("name", SOME)
def test_two_processes_come_to_the_numbers_of_one(name: str, some: Callable[[str, int], tuple[Any, Any]]) -> None:
    check_equal(name, some)


@pytest.mark.whole_catalogue
@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_of_every_method(name: str, others: Callable[[str, int], tuple[Any, Any]]) -> None:
    check_equal(name, others)


def check_equal(name: str, found: Callable[[str, int], tuple[Any, Any]]) -> None:
    """Records and weights of both runs are the same but for rounding."""
    (alone, weights), (both, parted) = found(name, 1), found(name, 2)
    assert "error" not in alone and "error" not in both, alone.get("error") or both["error"]
    assert len(alone["records"]) == len(both["records"]) == 4
    for before, after in zip(alone["records"], both["records"], strict=True):
        assert sorted(before) == sorted(after)
        # of a gap that is rounding itself only the size is the same
        rounding = {k for k in before if k.endswith("logprob_gap")}
        assert after == pytest.approx(
            {k: before[k] if k not in rounding else after[k] for k in after}, rel=2e-5, abs=2e-5, nan_ok=True
        )
        assert all(after[k] < 1e-4 for k in rounding)
    moved = sum(float((weights[k] - parted[k]).square().sum()) for k in weights) ** 0.5
    size = sum(float(weights[k].square().sum()) for k in weights) ** 0.5
    assert sorted(weights) == sorted(parted) and moved <= 1e-6 * size


# ---------------------------------------------------------------------------------------------------------- whole runs

RUN = [
    "-m",
    "polyrl",
    "train",
    "grpo",
    "--task",
    "reverse",
    "--difficulty",
    "4",
    "--eval-prompts",
    "8",
    "--prompts-per-step",
    "2",
]


def command(model: Path, out: Path, iterations: int, *more: object) -> list[str]:
    """A short run that the first process writes."""
    budget = ["--budget", f"iterations={iterations}", "--checkpoint-every", "2", "--evaluations", "1", "--quiet"]
    return [*RUN, "--model", str(model), "--out", str(out), *budget, *map(str, more)]


def numbers(run: Path) -> list[dict[str, Any]]:
    """Records of a run without times, and without what is rounding alone."""
    return [{k: v for k, v in record.items() if k != "logprob_gap"} for record in timeless(read_records(run))]


def check_alike(run: Path, other: Path) -> None:
    for one, two in zip(numbers(run), numbers(other), strict=True):
        assert two == pytest.approx(one, rel=2e-5, abs=2e-5)


def test_a_process_is_killed_and_the_run_goes_on_with_any_number(small_model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert ended(started(1, command(small_model, whole, 14)))[0][0] == 0
    processes = started(2, command(small_model, broken, 14))
    while not (broken / "checkpoints" / "iteration-000002").exists() and processes[0].poll() is None:
        time.sleep(0.02)
    processes[1].kill()
    (code, _, said), _ = ended(processes)
    assert code == 2 and "Another process of this run has ended" in said and "polyrl resume" in said
    assert "Traceback" not in said and 2 <= read_records(broken)[-1]["iteration"] < 14
    stop_at = (
        read_records(broken)[-1]["iteration"] + 3
    )  # two processes have begun it, one goes on, and two come to the end
    one = started(1, ["-m", "polyrl", "resume", str(broken), "--quiet"])[0]
    while read_records(broken)[-1]["iteration"] < stop_at and one.poll() is None:
        time.sleep(0.02)
    one.send_signal(signal.SIGTERM)
    assert ended([one])[0][0] == 130
    for code, _, said in ended(started(2, ["-m", "polyrl", "resume", str(broken), "--quiet"])):
        assert code == 0, said
    check_alike(whole, broken)
    assert json.loads((broken / "summary.json").read_text(encoding="utf-8"))["status"] == "finished"
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


def test_the_commands_of_the_page(small_model: Path, tmp_path: Path) -> None:
    shown = [line[2:].split() for block in blocks("scaling.md", "console") for line in block.splitlines()]
    first = next(words for words in shown if words[0] == "torchrun")
    again = next(words for words in shown if words[:3] == ["polyrl", "resume", "runs/two"])
    small = ["--model", str(small_model), "--difficulty", "4", "--budget", "iterations=2", "--eval-prompts", "8"]
    for words in (["torch.distributed.run", *first[1:], *small], again):
        told = [sys.executable, "-m", *words]
        done = subprocess.run(told, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert "is finished" in done.stdout
    assert [record["iteration"] for record in read_records(tmp_path / "runs" / "two")] == [0, 1, 2]


def test_ctrl_c_ends_all_after_an_iteration_with_a_checkpoint(small_model: Path, tmp_path: Path) -> None:
    words = command(small_model, tmp_path / "run", 100)
    words[words.index("--checkpoint-every") + 1] = "1000"
    processes = started(2, words)
    while (
        not (records := tmp_path / "run" / "metrics.jsonl").exists() or len(read_records(tmp_path / "run")) < 3
    ) and (processes[0].poll() is None):
        time.sleep(0.02)
    for _ in range(2):  # the terminal sends it to every process, and so does torchrun
        for process in processes:
            process.send_signal(signal.SIGINT)
    (code, _, said), (second, _, nothing) = ended(processes)
    assert code == second == 130 and said.count("polyrl: interrupted") == 1 and "Traceback" not in said + nothing
    assert "polyrl" not in nothing
    last = read_records(records.parent)[-1]["iteration"]
    assert 2 <= last < 100 and (records.parent / "checkpoints" / f"iteration-{last:06d}").is_dir()


SCRIPT = """
import os, sys
import polyrl
from polyrl.tasks.language import task
made = task("reverse", difficulty=4).rows("train", int(os.environ["RANK"]) * {other}, 0, 40)
rows = [{{"prompt": row["prompt"], "answer": row["answer"]}} for row in made]
small = dict(model={model!r}, out={out!r}, budget="iterations=2", eval_prompts=4, prompts_per_step=2, max_tokens=6)
polyrl.train("grpo", dataset=rows[4:], test_dataset=rows[:4], reward="exact", quiet=True, **small)
"""


@pytest.mark.parametrize("other", [0, 1])
def test_a_script_whose_processes_have_different_rows_is_stopped(other: int, small_model: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "script.py", tmp_path / "run"
    file.write_text(SCRIPT.format(other=other, model=str(small_model), out=str(out)), encoding="utf-8")
    for code, _, said in ended(started(3, [str(file)])):
        assert (code == 1 and "hold different batches" in said) if other else code == 0, said
    status = json.loads((out / "summary.json").read_text(encoding="utf-8"))["status"]
    assert status == ("failed" if other else "finished")


REWARD = """
import os, random
def fickle(completions, **columns):
    with open({log!r}, "a") as file:
        file.write(f"{{os.environ['RANK']}}\\n")
    {body}
"""


def test_the_first_process_alone_asks_a_reward_and_tells_the_others(small_model: Path, tmp_path: Path) -> None:
    log, file = tmp_path / "asked", tmp_path / "fickle.py"
    file.write_text(REWARD.format(log=str(log), body="return [random.random() for _ in completions]"), encoding="utf-8")
    words = command(small_model, tmp_path / "run", 2, "--reward", f"{file}:fickle")
    for code, out, said in ended(started(2, words)):  # of rewards that differ the weights would, which is looked at
        assert code == 0 and not out, said
    assert set(log.read_text(encoding="utf-8").split()) == {"0"}


def test_an_error_of_the_first_process_ends_all_and_is_said_once(small_model: Path, tmp_path: Path) -> None:
    log, file = tmp_path / "asked", tmp_path / "fickle.py"
    file.write_text(REWARD.format(log=str(log), body="raise RuntimeError('no service')"), encoding="utf-8")
    words = command(small_model, tmp_path / "run", 2, "--reward", f"{file}:fickle")
    (first, _, said), (second, _, nothing) = ended(started(2, words))
    assert first == second == 2 and "no service" in said and "fickle.py" in said
    assert "polyrl:" not in nothing


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compare", "grpo", "rloo", "--seeds", "1"], "polyrl compare is none; start it without torchrun"),
        (["train", "ppo", "--task", "CartPole-v1"], "only language models are trained by several"),
        (["train", "sft,dpo", "--task", "sort-pairs"], "a list of phases is none; start it without torchrun"),
    ],
)
def test_what_is_no_run_of_several_processes_is_refused(words: list[str], told: str, tmp_path: Path) -> None:
    begun = 2 if "ppo" in words else 1  # others are refused before the processes meet
    for code, _, said in ended(started(2, ["-m", "polyrl", *words, "--out", str(tmp_path / "out")], begun)):
        assert code == 2 and told in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- its pieces


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_runs_that_come_to_all(count: int) -> None:
    for size in range(12):
        shares = [Ranks(k, count).share(range(size)) for k in range(count)]
        assert [i for share in shares for i in share] == [*range(size)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1 and len(shares[0]) == max(map(len, shares))


class Both(Ranks):
    """The first of two processes, of which the other says what it is told to."""

    def __init__(self, other: Callable[[Any], Any]):
        super().__init__(0, 2)
        object.__setattr__(self, "other", other)

    def gathered(self, value: Any) -> list[Any]:
        return [value, self.other(value)]  # type: ignore[attr-defined]


def test_an_error_of_another_process_keeps_its_kind() -> None:
    with pytest.raises(NotFinite, match="loss became nan") as error:
        Both(lambda _: ["NotFinite", "The loss became nan."]).agree(None)
    assert told_by_another(error.value)
    mine = UserError("mine")
    with pytest.raises(UserError, match="mine") as error:
        Both(lambda _: ["NotFinite", "The loss became nan."]).agree(mine)
    assert error.value is mine and not told_by_another(error.value)
    Both(lambda _: None).agree(None)


def test_weights_that_differ_stop_the_run() -> None:
    weights = [torch.ones(3)]
    Both(lambda sums: sums).check_equal(weights)
    Both(lambda sums: [float(str(s)) for s in sums]).check_equal([torch.full((2,), float("nan"))])  # said elsewhere
    with pytest.raises(UserError, match="no longer hold the same weights"):
        Both(lambda sums: [s + 1e-9 for s in sums]).check_equal(weights)


def test_batches_that_differ_stop_the_run() -> None:
    fields = {"action": torch.tensor([[3, 4], [5, 6]]), "score": torch.tensor([1.0, float("nan")])}

    def other(**changed: torch.Tensor) -> Both:
        marks: list[Any] = []
        Both(lambda value: marks.append(value) or value).check_same(fields | changed)  # type: ignore[func-returns-value]
        return Both(lambda _: marks[0])

    other().check_same(fields)
    other(score=torch.tensor([1.0 + 1e-6, float("nan")])).check_same(fields)
    for changed in (
        {"action": torch.tensor([[5, 6], [3, 4]])},
        {"action": torch.tensor([[3, 4, 5, 6]])},
        {"score": torch.tensor([1.1, float("nan")])},
        {"more": torch.zeros(2)},
    ):
        with pytest.raises(UserError, match=f"0 and 1 of this run hold different batches.*'{next(iter(changed))}'"):
            other(**changed).check_same(fields)


def test_what_cannot_be_told_is_said() -> None:
    with pytest.raises(UserError, match="cannot be told"):
        Both(lambda value: value).from_first(lambda: {1, 2})


def test_what_is_logged_is_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    means, context = Means(), Context(run_state=None, seed=0, budget=None)  # type: ignore[arg-type]
    context.metrics["logprob_gap"] = 0.5

    def other(value: Any) -> Any:
        return value and {"sums": {"loss": 2.0, "seen": 3.0}, "counts": {"loss": 0.0, "seen": 1.0}, "gap": 0.7}

    monkeypatch.setattr("polyrl.core.parting.present", lambda: Both(other))
    with pooled(means, context) as own:
        own.add("loss", 1.0, 1.0)
        context.metrics["logprob_gap"] = 0.6
    assert means.found() == {"loss": 3.0, "seen": 3.0} and context.metrics["logprob_gap"] == 0.7


class _Enough(Exception):
    """What a test wanted to see is done."""


def test_gradients_are_summed_in_one_order_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes go through a set of names in orders of their own, and would add one model's gradients to another's."""
    summed: list[str] = []
    names = [f"model{k}" for k in range(12)][::-1]

    def enough(_: str) -> list[torch.Tensor]:
        raise _Enough

    monkeypatch.setattr("polyrl.core.updating.add_gradients", summed.append)
    turn: Any = object.__new__(updating._Turn)
    turn.parted, turn.models = set(names), SimpleNamespace(gradients=enough)
    turn.context = SimpleNamespace(optimizer={name: name for name in names})
    with pytest.raises(_Enough):
        turn._step(names, None)
    assert summed == names


def test_one_process_parts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert torchrun.asked() == 1 and ranks.join().alone and ranks.present().alone
    monkeypatch.setenv("WORLD_SIZE", "8")  # of somebody else: without an address nobody can be met
    assert torchrun.asked() == 1
    torchrun.refuse("anything")
