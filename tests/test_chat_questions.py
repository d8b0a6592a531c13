"""Plain questions are asked through the chat template: in training, evaluation, play and reward models, alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import polyrl as library
from chat_tokenizers import LOOP, OPEN, Text, byte_tokenizer, said, user
from conftest import Command, read_records, timeless
from polyrl.api import open_to_judge
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.scalar import RewardModel
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language.chat import Chat, Columns, transcript
from polyrl.tasks.language.dataset import load_rows
from tiny_models import save_model

END = "<|end|>"
TEMPLATE = LOOP + OPEN
ASKED = "<|start|>user\nq<|end|>\n<|start|>assistant\n"
SYSTEM = "<|start|>system\nBe kind.<|end|>\n"
KIND = Chat(system_prompt="Be kind.")
BE_KIND = {"role": "system", "content": "Be kind."}


def reader(chat: Chat | None, template: str | None = TEMPLATE) -> Text:
    text = Text(byte_tokenizer(template=template, end=END))
    text.ask_as(chat)
    return text


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    ("chat", "prompt", "read"),
    [
        (None, "q", "q"),
        (Chat(), "q", ASKED),
        (Chat(template=False), "q", "q"),
        (KIND, "q", SYSTEM + ASKED),
        (Chat(template=False, system_prompt="Be kind."), "q", "q"),
        (None, [user("q")], ASKED),
        (Chat(), [user("q")], ASKED),
        (KIND, [user("q")], SYSTEM + ASKED),
        (Chat(template=False, system_prompt="Be kind."), [user("q")], SYSTEM + ASKED),
        (KIND, [{"role": "system", "content": "No."}, user("q")], "<|start|>system\nNo.<|end|>\n" + ASKED),
        (KIND, [user("q"), said("it is")], f"{SYSTEM}{ASKED}it is"),
        (Chat(), "<|start|>user\nq<|end|>\n<|start|>assistant\n", ASKED),  # laid out by somebody already
        (Chat(), "what is <think>?", ASKED.replace("q", "what is <think>?")),
    ],
)
def test_what_the_model_reads(chat: Chat | None, prompt: Any, read: str) -> None:
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        read = read.removesuffix("<|end|>\n")
    model = reader(chat)
    assert model.raw(model.encode_prompt(prompt)) == read
    assert model.encode_row({"prompt": prompt, "answer": "x"}) == model.encode_prompt(prompt)


@pytest.mark.parametrize("chat", [Chat(), KIND])
def test_responses_are_those_of_the_conversation(chat: Chat) -> None:
    model, talk = reader(chat), chat.conversation("q")
    plain = reader(None)
    assert model.encode_response("q", "yes") == plain.encode_response(talk, "yes")
    assert model.raw(model.encode_response("q", "yes")) == f"yes{END}"
    turns = [said("yes"), user("why"), said("so")]
    assert model.encode_turns("q", turns) == plain.encode_turns(talk, turns)


def test_without_a_template_texts_stay_and_a_system_prompt_is_refused() -> None:
    model = reader(Chat(), template=None)
    assert model.chat is None and model.raw(model.encode_prompt("q")) == "q"
    with pytest.raises(UserError, match=r"--system-prompt needs a chat template, and the tokenizer of .* has none"):
        reader(KIND, template=None)


def test_what_is_saved_says_how_to_ask(tmp_path: Path) -> None:
    """A reward model reads questions later as it read them when it was trained."""
    policy = LanguagePolicy.load(save_model(tmp_path / "start", "llama", byte_tokenizer(template=TEMPLATE, end=END)))
    policy.ask_as(KIND)
    policy.save(tmp_path / "saved")
    assert LanguagePolicy.load(tmp_path / "saved").chat == KIND
    again = LanguagePolicy.load(tmp_path / "saved")
    again.ask_as(None)
    assert again.chat is None and isinstance(again.asked("q"), str)
    RewardModel.like(policy, __import__("torch").Generator().manual_seed(0)).save(tmp_path / "judge")
    judge = RewardModel.load(tmp_path / "judge")
    assert judge.encode_prompt("q") == policy.encode_prompt("q")


# ------------------------------------------------------------------------------------------------------ columns


def test_columns_of_other_names(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"input": "a?", "target": "1", "prompt": "old"}\n{"input": [], "target": "2"}\n')
    with pytest.raises(UserError, match="row 2: the column 'prompt' has no messages"):
        load_rows(str(file), columns=Columns("input", "target"))
    file.write_text('{"input": "a?", "target": "1", "prompt": "old"}\n')
    assert load_rows(str(file), columns=Columns("input", "target")) == [
        {"input": "a?", "target": "1", "prompt": "a?", "answer": "1"}
    ]
    with pytest.raises(UserError, match=r"there is no column 'inptu' \(--prompt-column\)\. Did you mean 'input'"):
        load_rows(str(file), columns=Columns("inptu"))
    with pytest.raises(UserError, match=r"there is no column 'truth' \(--answer-column\)\."):
        load_rows(str(file), columns=Columns("input", "truth"))


# ------------------------------------------------------------------------------------------------- whole runs

REWARDS = """
def first(prompts, completions, target, **columns):
    assert all(isinstance(p, str) for p in prompts) and all(isinstance(c, str) for c in completions)
    return [float(c[:1] == t) for c, t in zip(completions, target)]
"""
SMALL = ["--prompts-per-step", 2, "--completions-per-prompt", 2, "--eval-prompts", 4, "--evaluations", 1]


OTHER: dict[str, Any] = {"prompt_column": "prompt", "answer_column": "answer", "max_tokens": 4}
COLUMNS: dict[str, Any] = {"prompt_column": "a", "answer_column": "b", "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_tokenizer(template=TEMPLATE, end=END)
    return save_model(tmp_path_factory.mktemp("chat") / "model", "llama", tokenizer)


@pytest.fixture
def line(tmp_path: Path, model: Path) -> list[Any]:
    rows = [{"question": f"say {c}", "target": c} for c in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(REWARDS)
    data = ["--dataset", tmp_path / "data.jsonl", "--prompt-column", "question", "--answer-column", "target"]
    return [*data, "--reward", f"{tmp_path}/mine.py:first", "--model", model, "--max-tokens", 4, *SMALL]


def read_by(run: Path) -> set[str]:
    """Test prompts of a run as its policy reads them."""
    from polyrl.api import open_policy

    state: Any = open_policy(run, trust_code=True)
    decode = state.policy.tokenizer.decode
    return {decode(state.policy.encode_row(row)) for row in state.task.rows("test", 0, 0, 4)}


def test_a_run_asks_answers_resumes_and_plays_alike(line: list[Any], tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "run"
    asked = [*line, "--system-prompt", "Be kind.", "--budget", "iterations=2"]
    told = polyrl("train", "grpo", *asked, "--out", out)
    assert told.code == 0, told.err
    assert "26 of 26 prompts are plain text and the model has a chat template" in " ".join(told.out.split())
    prompts = read_by(out)
    assert prompts and all(p.startswith(f"{SYSTEM}<|start|>user\nsay ") and p.endswith("assistant\n") for p in prompts)
    samples = read_records(out, "samples.jsonl")
    assert all(s["prompt"][0] == BE_KIND and s["prompt"][1]["role"] == "user" for s in samples)
    warnings = json.loads((out / "summary.json").read_text())["warnings"]
    assert any("--no-chat-template" in text for text in warnings)

    played = polyrl("play", out, "--prompts", 1)
    assert played.code == 0 and played.out.startswith("system\nBe kind.\n\nuser\nsay "), played.out
    assert "\n\nassistant\n" in played.out
    own = polyrl("play", out, "--prompt", "say what?")
    assert own.out.startswith("system\nBe kind.\n\nuser\nsay what?\n\nassistant\n"), own.out
    assert polyrl("eval", out, "--prompts", 2, "--trust-code").code == 0
    # other data, and the model alone, which says by itself how it was asked
    for place in (out, out / "model"):
        state: Any = open_to_judge(place, dataset=[{"prompt": "say x", "answer": "x"}], reward="exact", **OTHER)
        (row,) = state.task.rows("test", 0, 0, 1)
        assert state.policy.tokenizer.decode(state.policy.encode_row(row)).startswith(f"{SYSTEM}<|start|>user\nsay x")
    plain: Any = open_to_judge(out, dataset=[{"a": "say x", "b": "x"}], chat_template=False, reward="exact", **COLUMNS)
    assert plain.policy.asked("say x") == "say x"
    assert polyrl("eval", out, "--system-prompt", "x").code == 2
    assert polyrl("report", out).code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "system: Be kind.\\nuser: say " in page


def test_conversations_in_the_data_are_the_same_run(model: Path, tmp_path: Path, polyrl: Command) -> None:
    found = []
    for name in ("plain", "talk"):
        files = []
        for split, letters in (("train", "abcdefghijkl"), ("test", "mnop")):
            chat = [KIND.conversation(f"say {c}") for c in letters]
            rows = [
                {"prompt": talk if name == "talk" else talk[-1]["content"], "answer": talk[-1]["content"][-1]}
                for talk in chat
            ]
            files.append(tmp_path / f"{name}-{split}.jsonl")
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["--dataset", files[0], "--test-dataset", files[1], "--model", model, "--max-tokens", 4, *SMALL]
        words += ["--system-prompt", "Be kind."] * (name == "plain") + ["--budget", "iterations=2", "--quiet"]
        told = polyrl("train", "grpo", *words, "--out", tmp_path / name)
        assert told.code == 0, told.err
        found.append((timeless(read_records(tmp_path / name)), read_records(tmp_path / name, "samples.jsonl")))
    assert found[0] == found[1]


def test_no_chat_template_and_runs_of_before(line: list[Any], tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "run"
    words = [*line, "--budget", "iterations=2", "--checkpoint-every", 1, "--out", out]
    told = polyrl("train", "grpo", *words, "--no-chat-template")
    assert told.code == 0 and "chat template" not in told.out
    assert all(p.startswith("say ") for p in read_by(out))
    assert polyrl("play", out, "--prompt", "say what?").out.startswith("say what?")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["run"]["chat_template"] is False and config["run"]["prompt_column"] == "question"
    # a folder that says nothing of it was written before plain prompts were asked so
    before = {k: v for k, v in config["run"].items() if k not in ("chat_template", "system_prompt")}
    assert RunConfig.from_dict(before).chat_template is False
    assert RunConfig.from_dict({"method": "grpo"}).chat_template is True


def test_a_resumed_run_asks_as_it_began(line: list[Any], tmp_path: Path, polyrl: Command) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    asked = [*line, "--system-prompt", "Be kind.", "--checkpoint-every", 1, "--quiet"]
    for out in (whole, halves):
        assert polyrl("train", "grpo", *asked, "--budget", "iterations=3", "--out", out).code == 0
    last = sorted((halves / "checkpoints").iterdir())[-1]
    for file in sorted(last.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    last.rmdir()
    summary = json.loads((halves / "summary.json").read_text())
    (halves / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    told = polyrl("resume", halves, "--trust-code")
    assert told.code == 0, told.err
    assert timeless(read_records(halves)) == timeless(read_records(whole))
    assert read_by(halves) == read_by(whole)


def test_from_python(line: list[Any], model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"say {c}", "target": c} for c in "abcdefgh"]
    small = {"prompts_per_step": 2, "completions_per_prompt": 2}
    how: dict[str, Any] = {"prompt_column": "question", "answer_column": "target", "system_prompt": "Be kind."}
    options = {"max_tokens": 4, "eval_prompts": 2, "evaluations": 1}
    result = library.train(
        "grpo", model=model, dataset=rows, budget="iterations=1", out=tmp_path / "run", quiet=True, options=options,
        **how, **small,
    )  # fmt: skip
    samples = read_records(result.folder, "samples.jsonl")
    assert all(s["prompt"][0] == BE_KIND for s in samples)


def test_pairs_with_plain_prompts_are_conversations_too(model: Path, tmp_path: Path, polyrl: Command) -> None:
    rows = [{"prompt": f"say {c}", "chosen": c, "rejected": "no"} for c in "abcdefghijklmnop"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["--dataset", tmp_path / "pairs.jsonl", "--model", model, "--max-tokens", 4, "--eval-prompts", 2]
    for method in ("dpo", "reward-model"):
        out = tmp_path / method
        more = [] if method == "dpo" else ["--system-prompt", "Be kind."]
        line_ = line if method == "dpo" else line[:4]
        told = polyrl("train", method, *line_, *more, "--budget", "iterations=1", "--evaluations", 1, "--out", out)
        assert told.code == 0, told.err
        assert "16 of 16 prompts are plain text" in " ".join(told.out.split())
    judge = RewardModel.load(tmp_path / "reward-model" / "model")
    assert judge.tokenizer.decode(judge.encode_prompt("q")) == SYSTEM + ASKED


@pytest.mark.parametrize("option", [["--system-prompt", "x"], ["--prompt-column", "x"], ["--no-chat-template"]])
def test_options_of_data_are_refused_without(option: list[str], polyrl: Command) -> None:
    told = polyrl("train", "grpo", "--task", "addition", *option)
    assert told.code == 2 and f"{option[0]} is for data of your own" in told.err


def test_a_transcript() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "search"}}]}
    assert transcript([BE_KIND, user("q"), call]) == "system: Be kind.\nuser: q\nassistant:  [calls search]"
    assert transcript("q") == "q"
