"""Failing well: a mistake is one sentence and exit code 2, nothing half written, no finished iteration lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import DIFFICULTY, TASK, Command, Told, read_records, timeless

Train = Callable[..., Told]


@pytest.fixture
def train(polyrl: Command, small_model: Path, tmp_path: Path) -> Train:
    """`polyrl train` from the small model into `run`, eight samples an iteration."""

    def run(method: str, *more: object, out: Path | None = None) -> Told:
        given = [str(m) for m in more]
        words: list[object] = ["train", method, "--out", out or tmp_path / "run", "--quiet", "--no-tensorboard"]
        if "--dataset" not in given and "--task" not in given:
            words += ["--task", TASK, "--difficulty", DIFFICULTY]
        if "--model" not in given:
            words += ["--model", small_model]
        defaults = {"--budget": "iterations=4", "--eval-prompts": "8", "--evaluations": "1", "--max-tokens": "8"}
        for option, value in defaults.items():
            if option not in given:
                words += [option, value]
        return polyrl(*words, *given)

    return run


SMALL_BATCH = ("--prompts-per-step", "2", "--completions-per-prompt", "4")


def one_sentence(told: Told, *words: str) -> str:
    """Exit code 2 and one line that says these things; returns it."""
    assert told.code == 2, told.err or told.out
    lines = told.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("polyrl: "), told.err
    assert "Traceback" not in told.err + told.out and "Error(" not in told.err
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def words_to_reverse(count: int) -> list[dict[str, Any]]:
    from polyrl.tasks.language import task

    return task(TASK, difficulty=DIFFICULTY).rows("train", 3, 0, count)


# ------------------------------------------------------------------------------------- what is typed on a command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "grpo"], ["no command 'trian'", "'train'"]),
        (["train", "grop"], ["no method or part 'grop'", "'grpo'"]),
        (["train", "reinforce+"], ["reinforce"]),
        (["train", "grpo+drop-equal-group"], ["'drop-equal-group'", "'drop-equal-groups'"]),
        (["train", "grpo", "--task", "adition"], ["no task 'adition'", "'addition'"]),
        (["train", "grpo+value-loss"], ["'value-loss'", "'value_target'", "'gae'"]),
        (["train", "gae"], ["'gae' is a part, not a method"]),
        (["train", "./nowhere.py"], ["no method file ./nowhere.py"]),
        (["train", "grpo", "--budget", "samples=0"], ["samples=0", "above 0"]),
        (["train", "grpo", "--budget", "samples=-5"], ["samples=-5", "above 0"]),
        (["train", "grpo", "--budget", "sample=10"], ["'sample'", "'samples'"]),
        (["train", "grpo", "--budget", "samples=many"], ["'samples=many'"]),
        (["train", "grpo", "--budget", ""], ["budget is empty"]),
        (["train", "grpo", "--clip-range", "-0.1"], ["clip_range", "above 0"]),
        (["train", "grpo", "--clip-range=nan"], ["clip_range", "nan"]),
        (["train", "grpo(clip_range=0)"], ["clip_range", "above 0"]),
        (["train", "grpo", "--temperature", "0"], ["temperature", "above 0"]),
        (["train", "grpo", "--epochs", "1.5"], ["epochs", "'1.5'", "int"]),
        (["train", "grpo", "--epochs", "0"], ["epochs", "at least 1"]),
        (["train", "ppo", "--gae-lambda", "1.01"], ["gae_lambda", "at most 1"]),
        (["train", "grpo", "--kl-estimator", "k4"], ["kl_estimator", "k1, k2, k3"]),
        (["train", "grpo", "--clip-rang", "0.1"], ["--clip-rang", "'clip-range'"]),
        (["train", "grpo", "--evaluation", "3"], ["--evaluation", "'evaluations'"]),
        (["train", "grpo", "--clip-range"], ["--clip-range has no value"]),
        (["train", "grpo", "0.1"], ["'0.1'"]),
        (["train", "grpo", "--difficulty", "99"], ["difficulty", "99"]),
        (["train", "grpo", "--difficulty", "hard"], ["difficulty", "hard"]),
        (["train", "grpo", "--on-reward-error", "panic"], ["--on-reward-error", "stop"]),
        (["train", "grpo", "--device", "warp"], ["device", "warp"]),
        (["train", "grpo", "--lora", "0"], ["lora", "at least 1"]),
        (["train", "grpo", "--threads", "0"], ["threads", "at least 1"]),
        (["train", "grpo", "--checkpoint-every", "0"], ["checkpoint_every", "at least 1"]),
        (["train", "grpo", "--reward-timeout", "0"], ["reward_timeout", "above 0"]),
        (["train", "grpo", "--reward-timeout", "nan"], ["reward_timeout"]),
        (["train", "grpo", "--max-tokens", "0"], ["max_tokens", "at least 1"]),
        (["train", "grpo", "--max-tokens", "100000"], ["context", "max_tokens"]),
        (["train", "grpo", "--dataset", "x.jsonl", "--task", "addition"], ["--task or --dataset"]),
        (["train", "grpo", "--dataset", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["train", "grpo", "--reward", "nowhere.py:f"], ["nowhere.py"]),
        (["train", "grpo", "--reward", "no_such_module:f"], ["no_such_module"]),
        (["train", "grpo", "--reward", "json:nothing"], ["'nothing'"]),
        (["train", "grpo", "--reward", "numerc"], ["'numerc'", "'numeric'"]),
        (["train", "grpo", "--reward", "numeric=much"], ["weight", "'much'"]),
        (["train", "grpo", "--model", "/no/such/folder"], ["/no/such/folder"]),
        (["compare", "grpo", "grop"], ["'grop'", "'grpo'"]),
        (["compare", "grpo", "grpo"], ["named twice"]),
        (["compare", "grpo(clip_range=0.1)", "grpo(clip-range=0.1)"], ["grpo-clip-range-0.1"]),
        (["compare", "grpo", "--seeds", "none"], ["--seeds", "'none'"]),
        (["compare", "grpo", "--seeds", "0"], ["--seeds", "'0'"]),
        (["compare", "grpo", "--seeds", "3,3"], ["--seeds", "'3,3'"]),
        (["compare", "grpo", "--budget", "samples=0"], ["samples=0"]),
        (["compare", "grpo", "--task", "revrse"], ["'revrse'", "'reverse'"]),
        (["list", "method"], ["method"]),
        (["show", "grop"], ["'grop'", "'grpo'"]),
        (["trace", "grop"], ["'grop'", "'grpo'"]),
        (["trace", "grpo", "--clip-rang", "0.1"], ["'clip-range'"]),
        (["eval", "/no/such/run"], ["/no/such/run"]),
        (["play", "/no/such/run"], ["/no/such/run"]),
        (["resume", "/no/such/run"], ["/no/such/run"]),
        (["report", "/no/such/run"], ["/no/such/run"]),
    ],
    ids=" ".join,
)
def test_a_mistake_on_the_command_line(
    words: list[str],
    said: list[str],
    polyrl: Command,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] in ("train", "compare", "trace"):
        if not {"--task", "--dataset"} & set(words):
            words = [*words, "--task", TASK]
        words = [*words, *([] if "--model" in words else ["--model", str(small_model)])]
    if words[0] == "train":
        words = [*words, "--out", "run"]
    one_sentence(polyrl(*words), *said)
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_no_command_is_a_page_of_help(polyrl: Command) -> None:
    told = polyrl()
    assert told.code == 2 and "train" in told.err and "Traceback" not in told.err


# ----------------------------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a="}, "{oops"], ["row 2", "not a JSON object"]),
        ([{"prompt": "a="}, {"text": "b="}], ["row 2", "'prompt'"]),
        ([{"prompt": "a="}, {"prompt": "b="}, {"prompt": 7}], ["row 3", "'prompt'", "a number"]),
        ([{"prompt": "a="}, {"prompt": " "}], ["row 2", "'prompt'", "empty"]),
        ([{"prompt": [{"role": "user"}]}], ["row 1", "'prompt'", "content"]),
        ([{"prompt": "a="}, [1]], ["row 2"]),
        ([], ["no rows"]),
        ([{"prompt": "a="}, {"prompt": "a="}], ["same prompt"]),
        ([{"question": "q", "answer": "no number ####"}], ["row 1", "'answer'"]),
        ([{"prompt": "x" * 80 + str(i), "answer": "1"} for i in range(9)], ["81 tokens", "context of 64"]),
    ],
)
def test_a_malformed_dataset(rows: list[Any], said: list[str], train: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", rows)
    one_sentence(train("grpo", "--dataset", file, "--reward", "exact"), *said)
    assert not (tmp_path / "run").exists()


def test_a_malformed_csv(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,answer\na=,1\nb=\n")
    one_sentence(train("grpo", "--dataset", file), "rows.csv", "row 2", "2 columns")


def test_a_dataset_without_answers_needs_a_reward(train: Train, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{i}="} for i in range(9)])
    one_sentence(train("grpo", "--dataset", file), "reward")
    one_sentence(train("grpo", "--dataset", file, "--reward", "numeric"), "'numeric'", "'answer'")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_a_model(polyrl: Command, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", words_to_reverse(9))
    told = polyrl("train", "grpo", "--dataset", file, "--out", tmp_path / "run")
    one_sentence(told, "--model")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- rewards

REWARDS = """
import time

def right(prompts, completions, answer, **columns):
    return [float(c.strip() == a) for c, a in zip(completions, answer)]

def by_position(prompts, completions, /, **columns): return [0.0] * len(completions)
def no_completions(prompts): return [0.0]
def other_column(prompts, completions, truth, **columns): return [0.0] * len(completions)
number = 3

def _bad(word):
    return word is not None and word.startswith(BAD)

BAD = "reverse {bad}"

def raises(prompts, completions, answer, **columns):
    if any(_bad(p) for p in prompts):
        raise KeyError("what is this word")
    return right(prompts, completions, answer)

def nans(prompts, completions, answer, **columns):
    return [float("nan") if _bad(p) else r for p, r in zip(prompts, right(prompts, completions, answer))]

def hangs(prompts, completions, answer, **columns):
    while any(_bad(p) for p in prompts):
        time.sleep(0.01)
    return right(prompts, completions, answer)
"""


def reward_file(folder: Path, bad: str = "?") -> Path:
    file = folder / "rewards.py"
    file.write_text(REWARDS.replace("{bad}", bad), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("by_position", ["'by_position'", "by position only"]),
        ("no_completions", ["'no_completions'", "'completions'"]),
        ("other_column", ["'other_column'", "'truth'", "answer"]),
        ("number", ["not a function", "an int"]),
        ("rihgt", ["'rihgt'", "'right'"]),
    ],
)
def test_a_reward_that_cannot_be_called(name: str, said: list[str], train: Train, tmp_path: Path) -> None:
    one_sentence(train("grpo", "--reward", f"{reward_file(tmp_path)}:{name}"), *said)
    assert not (tmp_path / "run").exists(), "the mistake was found after the run had begun"


def test_a_reward_file_that_cannot_be_imported(train: Train, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    one_sentence(train("grpo", "--reward", f"{tmp_path / 'broken.py'}:f"), "broken.py", "no_such_library")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    one_sentence(train("grpo", "--reward", f"{tmp_path / 'syntax.py'}:f"), "syntax.py", "SyntaxError")
    assert not (tmp_path / "run").exists()


def bad_word(iteration: int, prompts: int = 2) -> str:
    """A word that the run with seed 0 first meets in this iteration of so many prompts."""
    from polyrl.tasks.language import task

    words = task(TASK, difficulty=DIFFICULTY)
    rows = [str(r["prompt"]).removeprefix("reverse ") for r in words.rows("train", 0, 0, 4 * prompts)]
    word = rows[prompts * (iteration - 1)]
    assert word not in rows[: prompts * (iteration - 1)]
    return word


FAILURES = [
    ("raises", "raised KeyError: 'what is this word'"),
    ("nans", "returned nan"),
    ("hangs", "took longer than 0.1 seconds"),
]


@pytest.mark.parametrize(("name", "reason"), FAILURES)
def test_a_reward_that_fails_on_one_sample_stops_the_run(
    name: str, reason: str, train: Train, polyrl: Command, tmp_path: Path
) -> None:
    """The default: the sample is named, three finished iterations are kept, and the mended run goes on from there."""
    word, run = bad_word(4), tmp_path / "run"
    spec = f"{reward_file(tmp_path, word)}:{name}"
    told = train("grpo", "--reward", spec, "--reward-timeout", "0.1", *SMALL_BATCH)
    one_sentence(told, f"'{name}'", f"reverse {word}", reason)
    assert [r["iteration"] for r in read_records(run)] == [0, 1, 2, 3]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed" and f"reverse {word}" in summary["error"] and summary["iteration"] == 3
    assert "iteration-000003" in {p.name for p in (run / "checkpoints").iterdir()}
    one_sentence(polyrl("resume", run, "--quiet"), reason)  # nothing was mended: the same sentence
    assert [r["iteration"] for r in read_records(run)] == [0, 1, 2, 3]
    reward_file(tmp_path)  # mended
    assert polyrl("resume", run, "--quiet").code == 0
    straight = tmp_path / "straight"
    assert train("grpo", "--reward", spec, *SMALL_BATCH, out=straight).code == 0
    assert timeless(read_records(run)) == timeless(read_records(straight))


@pytest.mark.parametrize("policy", ["drop", "zero"])
@pytest.mark.parametrize(("name", "reason"), FAILURES)
def test_a_reward_that_fails_on_one_sample_is_passed_over(
    name: str, reason: str, policy: str, train: Train, tmp_path: Path
) -> None:
    spec = f"{reward_file(tmp_path, bad_word(2, 4))}:{name}"
    # two answers a prompt: after three samples that ran out of time the rest of a batch is not tried
    size = ("--prompts-per-step", "4", "--completions-per-prompt", "2", "--budget", "iterations=2")
    told = train("grpo", "--reward", spec, "--on-reward-error", policy, "--reward-timeout", "0.1", *size)
    assert (told.code, told.err) == (0, "")
    records = read_records(tmp_path / "run")
    assert [r["iteration"] for r in records] == [0, 1, 2]
    assert records[2].get("rewards/dropped", 0) == (2 if policy == "drop" else 0)  # the two answers to that word
    assert records[2]["reward_calls"] == 16


@pytest.mark.parametrize("policy", ["stop", "drop", "zero"])
def test_a_reward_that_fails_on_a_test_sample(
    policy: str, train: Train, polyrl: Command, small_model: Path, tmp_path: Path
) -> None:
    """The evaluation follows the same policy, also where accuracy is read off the reward, and loses no iteration."""
    rows = [{"prompt": r["prompt"], "truth": r["answer"]} for r in words_to_reverse(40)]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    code = """
import time
left = 8 * {calls}
def moody(prompts, completions, truth, **columns):
    global left
    left -= len(prompts)
    while left < 0 and {mood}:
        time.sleep(0.01)
    return [float(c == t) for c, t in zip(completions, truth)]
"""
    reward = tmp_path / "moody.py"
    # eight test prompts, then three iterations of eight samples; the next call is the evaluation
    reward.write_text(code.format(calls=4, mood="True"))
    more = ("--reward-timeout", "0.05", "--on-reward-error", policy, "--budget", "iterations=3", *SMALL_BATCH)
    told = train(
        "grpo", "--dataset", file, "--test-dataset", file_of_tests(tmp_path), "--reward", f"{reward}:moody", *more
    )
    run = tmp_path / "run"
    assert [r["iteration"] for r in read_records(run)] == [0, 1, 2, 3]
    if policy != "stop":
        assert (told.code, told.err) == (0, "")
        assert read_records(run)[3]["eval/accuracy"] == 0
        return
    one_sentence(told, "'moody'", "took longer than 0.05 seconds")
    assert "iteration-000003" in {p.name for p in (run / "checkpoints").iterdir()}
    reward.write_text(code.format(calls=4, mood="False"))
    assert polyrl("resume", run, "--quiet").code == 0
    assert "eval/accuracy" in json.loads((run / "summary.json").read_text())["final"]


def file_of_tests(folder: Path) -> Path:
    from polyrl.tasks.language import task

    rows = task(TASK, difficulty=DIFFICULTY).rows("test", 3, 0, 8)
    return jsonl(folder / "tests.jsonl", [{"prompt": r["prompt"], "truth": r["answer"]} for r in rows])


def test_every_reward_lost_is_told(train: Train, tmp_path: Path) -> None:
    (tmp_path / "dead.py").write_text(
        "def dead(prompts, completions, **columns): raise OSError('the service is down')\n"
    )
    told = train("grpo", "--reward", f"{tmp_path / 'dead.py'}:dead", "--on-reward-error", "drop", *SMALL_BATCH)
    one_sentence(told, "Every response of iteration 1 lost its reward")


# -------------------------------------------------------------------------------------------------- model folders


def test_a_model_folder_without_a_tokenizer(train: Train, small_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small_model / name, bare)
    one_sentence(train("grpo", "--model", bare), str(bare), "no tokenizer")
    assert not (tmp_path / "run").exists()


def test_a_damaged_model_folder(train: Train, small_model: Path, tmp_path: Path) -> None:
    for name, damage in (("model.safetensors", b"PK\x03\x04"), ("config.json", b"{"), ("tokenizer.json", b"{")):
        bad = tmp_path / name.partition(".")[0]
        shutil.copytree(small_model, bad)
        (bad / name).write_bytes(damage)
        one_sentence(train("grpo", "--model", bad), str(bad))
    empty = tmp_path / "empty"
    empty.mkdir()
    one_sentence(train("grpo", "--model", empty), str(empty), "config.json")
    assert not (tmp_path / "run").exists()


def test_a_conversation_without_a_chat_template(train: Train, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"reverse {w}="}], "answer": w[::-1]} for w in ("ab", "cd", "ef")]
    told = train("grpo", "--dataset", jsonl(tmp_path / "rows.jsonl", rows))
    one_sentence(told, "chat template")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------- run folders


def test_a_run_folder_that_exists(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("five years of work")
    one_sentence(train("grpo"), str(run), "exists already")
    one_sentence(train("grpo", "--overwrite"), str(run))  # it is no run: overwriting it would destroy something else
    assert (run / "thesis.txt").read_text() == "five years of work"
    (run / "thesis.txt").unlink()
    assert train("grpo", "--budget", "iterations=1", *SMALL_BATCH).code == 0  # an empty folder is as good as none
    one_sentence(train("grpo"), str(run), "exists already", f"polyrl resume {run}")
    before = (run / "metrics.jsonl").read_bytes()
    one_sentence(train("grpo", "--overwrite", "--clip-range", "0"), "clip_range")  # a mistake destroys nothing
    assert (run / "metrics.jsonl").read_bytes() == before
    assert train("grpo", "--overwrite", "--seed", "1", "--budget", "iterations=1", *SMALL_BATCH).code == 0
    assert (run / "metrics.jsonl").read_bytes() != before


def test_an_out_that_cannot_be_a_folder(train: Train, polyrl: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for more in ((), ("--overwrite",)):
        one_sentence(train("grpo", *more, out=file), str(file))
        one_sentence(train("grpo", *more, out=file / "run"), str(file))
        one_sentence(polyrl("compare", "grpo", "--task", TASK, "--model", "x", "--out", file, *more), str(file))
    assert file.read_text() == "mine"


@pytest.fixture
def done(train: Train, tmp_path: Path) -> Path:
    """A run of two iterations, back before its end: it can be resumed."""
    run = tmp_path / "done"
    assert train("grpo", "--budget", "iterations=2", "--checkpoint-every", "1", *SMALL_BATCH, out=run).code == 0
    return run


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("policy/model.safetensors", b"damaged"),
        ("policy/model.safetensors", None),
        ("optimizer-policy.safetensors", b""),
        ("state.json", b"{"),
        ("state.json", b"[]"),
        ("state.json", b'{"format": "somebody else"}'),
        ("state.json", b'{"format": "polyrl-checkpoint-1"}'),
        ("state.json", b'{"format": "polyrl-checkpoint-1", "files": {}}'),
    ],
)
def test_a_damaged_checkpoint(file: str, content: bytes | None, done: Path, polyrl: Command) -> None:
    path = newest(done) / file
    path.unlink() if content is None else path.write_bytes(content)
    metrics = (done / "metrics.jsonl").read_bytes()
    one_sentence(polyrl("resume", done), str(newest(done)))
    assert (done / "metrics.jsonl").read_bytes() == metrics  # nothing was cut before the checkpoint was known good
    shutil.rmtree(newest(done))  # as the sentence says
    assert polyrl("resume", done, "--quiet").code == 0
    assert timeless(read_records(done)) == timeless([json.loads(x) for x in metrics.splitlines()])


@pytest.mark.parametrize("bit", [3, -1])
def test_one_flipped_bit_is_found(bit: int, done: Path, polyrl: Command) -> None:
    path = newest(done) / "policy" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[bit] ^= 1
    path.write_bytes(data)
    one_sentence(polyrl("resume", done), "model.safetensors", "damaged")


@pytest.mark.parametrize("kind", ["size", "method", "seed"])
def test_a_foreign_checkpoint(kind: str, done: Path, train: Train, polyrl: Command, tmp_path: Path) -> None:
    from polyrl.pretrain.tiny import build_tiny

    other, method, more = tmp_path / "other", "grpo", [*SMALL_BATCH]
    if kind == "size":
        more += ["--model", str(build_tiny(tmp_path / "larger", 0, hidden=32, layers=1, heads=1, kv_heads=1, mlp=32))]
    elif kind == "method":
        method, more = "ppo", ["--prompts-per-step", "8"]
    else:
        more += ["--seed", "1"]
    told = train(method, "--budget", "iterations=2", "--checkpoint-every", "1", *more, out=other)
    assert told.code == 0, told.err
    shutil.rmtree(newest(done))
    shutil.copytree(newest(other), newest(done).with_name("iteration-000002"))
    one_sentence(polyrl("resume", done), "checkpoint")


def test_a_starting_model_that_has_changed(train: Train, polyrl: Command, small_model: Path, tmp_path: Path) -> None:
    from polyrl.pretrain.tiny import build_tiny

    model = tmp_path / "model"
    shutil.copytree(small_model, model)
    run = tmp_path / "run"
    assert train("grpo", "--model", model, "--budget", "iterations=1", *SMALL_BATCH).code == 0
    shutil.rmtree(model)
    build_tiny(model, 1, hidden=64, layers=2, heads=2, kv_heads=2, mlp=128, context=64)
    one_sentence(polyrl("resume", run), "starting model", "has changed")


def test_a_folder_that_is_no_run(polyrl: Command, done: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("resume", "eval", "play", "report"):
        one_sentence(polyrl(command, tmp_path / "empty"), str(tmp_path / "empty"))
    for text in ("a: [", "- 1\n", "method: grpo\n"):
        (done / "config.yaml").write_text(text)
        for command in ("resume", "eval", "play"):
            one_sentence(polyrl(command, done), "config.yaml")


def test_a_run_without_checkpoint_or_model(polyrl: Command, done: Path) -> None:
    shutil.rmtree(done / "checkpoints")
    one_sentence(polyrl("resume", done), "no checkpoint")
    shutil.rmtree(done / "model")
    one_sentence(polyrl("eval", done), "no model")


def test_a_comparison_folder_of_something_else(polyrl: Command, small_model: Path, tmp_path: Path) -> None:
    words = ("compare", "grpo", "--task", TASK, "--model", small_model, "--out", tmp_path / "c", "--seeds", "1")
    (tmp_path / "c").mkdir()
    for text in ("a: [", "- 1\n", ""):
        (tmp_path / "c" / "compare.yaml").write_text(text)
        one_sentence(polyrl(*words), str(tmp_path / "c"))
        one_sentence(polyrl("resume", tmp_path / "c"), "compare.yaml")


# ---------------------------------------------------------------------------------------------- losses that explode

EXPLODING = '''"""Exploding: a term whose loss becomes {value} at update {when}."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from polyrl.methods.language.grpo import recipe as grpo
from polyrl.parts.improve import Averaged
from polyrl.parts.optimize import Optimize

SEEN = [0]


@dataclass(frozen=True, kw_only=True)
class TimeBomb(Averaged):
    """Nothing, until it goes off."""

    needs = frozenset({{"weight"}})
    wants = frozenset({{"logprob"}})

    def loss(self, outputs, experience):
        SEEN[0] += 1
        return outputs["logprob"] * (float("{value}") if SEEN[0] == {when} else 0.0)


def recipe():
    base = grpo()
    return dataclasses.replace(
        base, name="exploding", terms=(*base.terms, TimeBomb()), optimize=Optimize(epochs=2, minibatches=1)
    )
'''


@pytest.mark.parametrize(("value", "when", "kept"), [("nan", 7, 3), ("inf", 7, 3), ("nan", 6, 2), ("nan", 1, 0)])
def test_a_loss_that_is_not_finite(
    value: str, when: int, kept: int, train: Train, polyrl: Command, tmp_path: Path
) -> None:
    """Two updates an iteration: the 7th is the first of iteration 4, the 6th the second of iteration 3."""
    file, run = tmp_path / "exploding.py", tmp_path / "run"
    file.write_text(EXPLODING.format(value=value, when=when))
    told = train(str(file), *SMALL_BATCH, "--checkpoint-every", "2")
    iteration = (when + 1) // 2
    one_sentence(told, "'time-bomb'", f"in iteration {iteration}", "nan" if value == "nan" else "inf")
    assert [r["iteration"] for r in read_records(run)] == list(range(iteration))
    newest_kept = newest(run)
    assert newest_kept.name == f"iteration-{kept:06d}"
    from safetensors.torch import load_file

    weights = load_file(newest_kept / "policy" / "model.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    assert polyrl("resume", run, "--quiet").code == 0  # the bomb has gone off
    assert [r["iteration"] for r in read_records(run)] == [0, 1, 2, 3, 4]


def finite_and_small(checkpoint: Path) -> bool:
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "policy" / "model.safetensors")
    return all(float(w.abs().max()) < 100 for w in weights.values())


def test_a_step_that_is_far_too_long(train: Train, tmp_path: Path) -> None:
    """The second update finds the weights out of all bounds: they are not kept."""
    one_sentence(
        train("grpo", "--learning-rate", "1e37"), "became", "in iteration 1, so the run stopped before the step"
    )
    assert finite_and_small(newest(tmp_path / "run"))


def test_weights_that_diverged_are_not_kept(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the next sampling that finds them, there is no checkpoint of them either."""
    import torch

    from polyrl.parts.optimize import Optimize

    original = Optimize.run

    def run(self: Optimize, terms: Any, experience: Any, context: Any) -> None:
        original(self, terms, experience, context)
        if context.iteration == 3:
            with torch.no_grad():
                context.run_state.parameters()["policy"][0][1].fill_(float("nan"))

    monkeypatch.setattr(Optimize, "run", run)
    one_sentence(train("grpo", *SMALL_BATCH, "--checkpoint-every", "2"), "not finite", "diverged")
    assert newest(tmp_path / "run").name == "iteration-000002" and finite_and_small(newest(tmp_path / "run"))


def test_a_full_disk(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from polyrl.runtime.run_folder import RunFolder

    original = RunFolder.log

    def log(self: RunFolder, record: dict[str, Any], *, board: bool = True) -> None:
        if record["iteration"] == 2:
            raise OSError(28, "No space left on device", str(self.path / "metrics.jsonl"))
        original(self, record, board=board)

    monkeypatch.setattr(RunFolder, "log", log)
    one_sentence(train("grpo", *SMALL_BATCH), "disk is full", "metrics.jsonl")
