"""The user's own data: prompts in a file, rewards in a file, a model in a folder, from both entrances."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import DIFFICULTY, TASK, Command, read_records, timeless

SIZE = ["--prompts-per-step", "4", "--completions-per-prompt", "4", "--eval-prompts", "40", "--evaluations", "1"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
REWARDS = '''
from neighbour import same

CALLS = []


def right(prompts, completions, answer, **columns):
    """TRL's signature: the columns of the data come as keywords."""
    assert len(prompts) == len(completions) == len(answer)
    return [same(c, a) for c, a in zip(completions, answer)]


def short(completions, **kwargs):
    """Minus the length in characters; None for the empty one, where it says nothing."""
    return [-float(len(c)) if c else None for c in completions]


def talked(prompts, completions, answer, **columns):
    """Conversations: the completion is a list of messages."""
    assert all(p[-1]["role"] == "user" for p in prompts)
    assert all(len(c) == 1 and c[0]["role"] == "assistant" for c in completions)
    return [same(c[0]["content"], a) for c, a in zip(completions, answer)]
'''


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("def same(a, b): return float(a.strip() == b)\n")
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path / "rewards.py"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def words_to_reverse(split: Any = "train", count: int = 400) -> list[dict[str, Any]]:
    from polyrl.tasks.language import task

    return task(TASK, difficulty=DIFFICULTY).rows(split, 11, 0, count)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "words.jsonl", words_to_reverse())


def test_a_file_a_function_and_a_folder_train(
    dataset: Path, rewards: Path, small_model: Path, tmp_path: Path, polyrl: Command
) -> None:
    """And it learns as the built-in task does."""
    out = tmp_path / "run"
    line = ["--dataset", dataset, "--reward", f"{rewards}:right", "--model", small_model, "--max-tokens", 9, "--quiet"]
    more = ["--learning-rate", "1e-3", "--eval-prompts", 40, "--evaluations", 1, "--budget", "samples=1024"]
    told = polyrl("train", "rloo", *line, *more, "--out", out)
    assert (told.code, told.err) == (0, "")
    records = read_records(out)
    assert records[-1]["eval/accuracy"] >= records[0]["eval/accuracy"] + 0.15
    assert {s["prompt"] for s in read_records(out, "samples.jsonl")} <= {r["prompt"] for r in words_to_reverse()}
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["task"] == "dataset" and config["run"]["rewards"] == [f"{rewards}:right"]
    assert polyrl("eval", out, "--prompts", 8).code == 0 and polyrl("play", out, "--prompts", 2).code == 0


def test_train_and_test_rows_are_apart(
    dataset: Path, rewards: Path, small_model: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyrl.run_state.language import LanguageRunState

    seen: list[set[str]] = []
    original = LanguageRunState.sample

    def sample(self: LanguageRunState, rows: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({r["prompt"] for r in rows})
        return original(self, rows, *args, **kwargs)

    monkeypatch.setattr(LanguageRunState, "sample", sample)
    base = ["train", "grpo", "--dataset", dataset, "--model", small_model, "--max-tokens", 9, "--quiet", *SIZE]
    assert polyrl(*base, "--budget", "iterations=20", "--out", tmp_path / "held").code == 0
    test, train = seen[0] | seen[-1], set().union(*seen[1:-1])
    assert test and train and not test & train
    seen.clear()
    tests = jsonl(tmp_path / "tests.jsonl", words_to_reverse("test", 10))
    more = ["--test-dataset", tests, "--budget", "iterations=1", "--out", tmp_path / "given"]
    assert polyrl(*base, *more).code == 0
    assert seen[0] == seen[-1] == {r["prompt"] for r in words_to_reverse("test", 10)}


def test_several_rewards_with_weights(
    dataset: Path, rewards: Path, small_model: Path, tmp_path: Path, polyrl: Command
) -> None:
    out = tmp_path / "run"
    line = ["--dataset", dataset, "--reward", f"{rewards}:right=2", "--reward", f"{rewards}:short=0.1"]
    more = ["--model", small_model, "--max-tokens", 9, "--quiet", "--budget", "iterations=3", "--out", out]
    told = polyrl("train", "grpo", *line, *SIZE, *more)
    assert (told.code, told.err) == (0, "")
    for sample in read_records(out, "samples.jsonl"):
        text, right = sample["completion"], sample["completion"].strip() == sample["expected"]
        # where a reward says nothing (None: the empty completion), the others stand alone
        assert sample["score"] == pytest.approx(2 * right - 0.1 * len(text)) and sample["correct"] == right
    assert all(r["rewards/short"] < 0 <= r["rewards/right"] <= 1 for r in read_records(out)[1:])
    last = read_records(out)[-1]
    assert 0 <= last["eval/rewards/right"] <= 1 and last["eval/rewards/short"] < 0
    assert last["eval/accuracy"] == pytest.approx(last["eval/rewards/right"])


def test_rows_in_the_form_of_gsm8k(small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    rows = [
        {"question": f"What is {a}+{b}?", "answer": f"{a} and {b}.\n#### {a + b:,}"}
        for a in range(9)
        for b in (1, 2000)
    ]
    out = tmp_path / "run"
    told = polyrl(
        *["train", "grpo", "--dataset", jsonl(tmp_path / "gsm.jsonl", rows), "--model", small_model, "--quiet", *SIZE],
        *["--max-tokens", 9, "--budget", "iterations=1", "--reward", "numeric", "--out", out],
    )
    assert (told.code, told.err) == (0, "")
    for sample in read_records(out, "samples.jsonl"):
        a, b = sample["prompt"].removeprefix("What is ").removesuffix("?\n").split("+")
        assert sample["expected"] == f"{int(a) + int(b):,}"


def test_conversations_with_a_chat_template(rewards: Path, small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    """The same words as messages, and a template that puts them together: the same run to the last bit."""
    from transformers import AutoTokenizer

    model = tmp_path / "chatty"
    shutil.copytree(small_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    rows = words_to_reverse(count=60)
    talk = [{**r, "prompt": [{"role": "user", "content": r["prompt"].removesuffix("=")}]} for r in rows]
    tests, talked_tests = rows[:10], talk[:10]
    runs = []
    for name, train, test, reward in (("plain", rows, tests, "right"), ("talk", talk, talked_tests, "talked")):
        out = tmp_path / name
        line = ["--dataset", jsonl(tmp_path / f"{name}.jsonl", train[10:]), "--model", model, "--max-tokens", 9]
        line += ["--test-dataset", jsonl(tmp_path / f"{name}-test.jsonl", test), "--reward", f"{rewards}:{reward}"]
        line += ["--no-chat-template"] * (name == "plain")
        told = polyrl("train", "grpo", *line, *SIZE, "--budget", "iterations=3", "--out", out, "--quiet")
        assert (told.code, told.err) == (0, "")
        runs.append(timeless(read_records(out)))
    assert runs[0] == runs[1]
    shown = read_records(tmp_path / "talk", "samples.jsonl")[0]
    assert shown["prompt"][0]["role"] == "user" and isinstance(shown["completion"], str)
    assert polyrl("play", tmp_path / "talk", "--prompts", 1).code == 0
    told = polyrl("report", tmp_path / "talk", "--out", tmp_path / "page.html")
    assert told.code == 0, told.err


def test_lora_trains_adapters_only_and_exports_an_ordinary_folder(
    small_model: Path, tmp_path: Path, polyrl: Command
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polyrl.models.language.policy import LanguagePolicy

    out = tmp_path / "run"
    line = ["--task", TASK, "--difficulty", DIFFICULTY, "--model", small_model, "--lora", 4, "--learning-rate", "1e-2"]
    told = polyrl("train", "rloo", *line, *SIZE, "--budget", "iterations=8", "--out", out, "--quiet")
    assert (told.code, told.err) == (0, "")
    newest = max((out / "checkpoints").iterdir())
    adapters = load_file(newest / "policy" / "adapter_model.safetensors")
    assert adapters and all("lora_" in name for name in adapters)
    assert not (newest / "policy" / "model.safetensors").exists()  # the base is not written again and again
    moments = load_file(newest / "optimizer-policy.safetensors")
    assert moments and all("lora_" in name for name in moments)
    # the folder is an ordinary one: no trace of peft, and the same answers as base plus adapters
    assert not list((out / "model").glob("adapter*"))
    state, base = load_file(out / "model" / "model.safetensors"), load_file(small_model / "model.safetensors")
    assert state.keys() == base.keys()
    moved = {k for k in state if not torch.equal(state[k], base[k])}
    assert moved and all("proj" in k for k in moved)  # linear layers only
    merged = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    adapted = LanguagePolicy.load(newest / "policy").causal_lm
    ids = AutoTokenizer.from_pretrained(out / "model")("reverse kdjf=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4)
        start = AutoModelForCausalLM.from_pretrained(small_model).eval()
        assert not torch.allclose(merged(input_ids=ids).logits, start(input_ids=ids).logits, atol=1e-2)
    assert read_records(out)[-1]["kl"] > 0  # measured against the base, with the adapters off
    final = json.loads((out / "summary.json").read_text())["final"]["eval/accuracy"]
    assert f"{final:.3f}" in polyrl("eval", out, "--prompts", 40).out


def test_a_trained_model_is_a_start_for_the_next_run(small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    line = ["--task", TASK, "--difficulty", DIFFICULTY, *SIZE, "--quiet", "--budget", "iterations=2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert polyrl("train", "grpo", *line, "--model", small_model, "--out", first).code == 0
    assert polyrl("train", "rloo", *line, "--model", first / "model", "--out", second).code == 0
    assert read_records(second)[0]["eval/accuracy"] == read_records(first)[-1]["eval/accuracy"]


def test_relative_paths_and_another_folder(
    dataset: Path, rewards: Path, small_model: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was started with relative paths can be resumed, judged and played from anywhere."""
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home, away):
        folder.mkdir()
    for file in (dataset, rewards, tmp_path / "neighbour.py"):
        shutil.move(file, home)
    shutil.copytree(small_model, home / "model")
    monkeypatch.chdir(home)
    line = ["--dataset", "words.jsonl", "--reward", "rewards.py:right=0.5", "--model", "./model", "--max-tokens", 9]
    assert polyrl("train", "grpo", *line, *SIZE, "--budget", "iterations=2", "--out", "run", "--quiet").code == 0
    before = timeless(read_records(home / "run"))
    monkeypatch.chdir(away)
    assert os.listdir(away) == []
    run = Path("../home/run")
    for command in (["resume", run, "--quiet"], ["eval", run, "--prompts", 4], ["play", run, "--prompts", 1]):
        told = polyrl(*command)
        assert (told.code, told.err) == (0, ""), command
    assert timeless(read_records(home / "run")) == before


# ---------------------------------------------------------------------------------------------- the same in Python


def test_the_same_words_in_python_give_the_same_run(
    dataset: Path, rewards: Path, small_model: Path, tmp_path: Path, polyrl: Command
) -> None:
    import polyrl as library

    shell, python, objects = tmp_path / "shell", tmp_path / "python", tmp_path / "objects"
    line = ["--dataset", dataset, "--reward", f"{rewards}:right", "--model", small_model, "--max-tokens", 9]
    more = [*SIZE, "--clip-range", "0.1", "--budget", "samples=48", "--out", shell, "--quiet"]
    assert polyrl("train", "grpo", *line, *more).code == 0
    hyperparameters = {"prompts_per_step": 4, "completions_per_prompt": 4, "clip_range": 0.1}
    options = {"max_tokens": 9, "eval_prompts": 40, "evaluations": 1}
    done = library.train(
        "grpo",
        dataset=str(dataset),
        reward=f"{rewards}:right",
        model=small_model,
        budget={"samples": 48},
        out=python,
        quiet=True,
        options=options,
        **hyperparameters,
    )

    def right(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return [float(c.strip() == a) for c, a in zip(completions, answer, strict=True)]

    library.train(
        "grpo",
        dataset=words_to_reverse(),
        reward=right,
        model=small_model,
        budget="samples=48",
        out=objects,
        quiet=True,
        options=options,
        **hyperparameters,
    )
    runs = [timeless(read_records(folder)) for folder in (shell, python, objects)]
    assert runs[0] == runs[1] == runs[2]
    assert done.folder == python and done.spent["samples"] == 48
    assert done.final["eval/accuracy"] == runs[0][-1]["eval/accuracy"]
    assert library.evaluate(python, prompts=40) == done.final


def test_mistakes_in_python_are_user_errors(small_model: Path, tmp_path: Path) -> None:
    import polyrl as library

    given: dict[str, Any] = {"model": small_model, "task": TASK, "out": tmp_path / "run", "quiet": True}
    with pytest.raises(library.UserError, match="Did you mean 'grpo'"):
        library.train("grop", **given)
    with pytest.raises(library.UserError, match="does not accept 'completions'"):
        library.train("grpo", reward=lambda prompts: [0.0], **given)
    with pytest.raises(library.UserError, match="row 2: the column 'prompt'"):
        library.train("grpo", dataset=[{"prompt": "a"}, {"prompt": None}], **{**given, "task": None})
    with pytest.raises(library.UserError, match="'clip_rang'"):
        library.train("grpo", clip_rang=1, **given)
    assert not (tmp_path / "run").exists()


def test_what_is_odd_in_the_data_is_told_before_the_run_and_counted(
    small_model: Path, tmp_path: Path, polyrl: Command
) -> None:
    """A word among numbers and a row without an answer: in the terminal even if quiet, and in the run's folder."""
    rows: list[dict[str, Any]] = [{"prompt": f"{i}+1=", "answer": i + 1} for i in range(30)]
    rows[3]["answer"], rows[5]["answer"] = "four", ""
    data, out = jsonl(tmp_path / "odd.jsonl", rows), tmp_path / "run"
    line = ["train", "grpo", "--dataset", data, "--model", small_model, "--max-tokens", 4, "--quiet", *SIZE]
    told = polyrl(*line, "--budget", "iterations=2", "--out", out)
    assert told.code == 0, told.err
    warnings = json.loads((out / "summary.json").read_text())["warnings"]
    for text in (f"left out for having no answer ({data}, row 6)", "1 of 29 answers is no number", "row 4"):
        assert any(text in w for w in warnings) and text in told.out
    assert [r["data/rows_left_out"] for r in read_records(out)] == [1, 1, 1]
    kept = {s["prompt"] for s in read_records(out, "samples.jsonl")}
    assert "5+1=" not in kept
    asked = ["--checker", "numeric", "--budget", "iterations=2", "--out", tmp_path / "refused"]
    told = polyrl(*line, *asked)
    assert told.code == 2 and "row 4: the column 'answer' is of no use to the checker 'numeric'" in told.err
    assert not (tmp_path / "refused").exists()
