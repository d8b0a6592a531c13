"""Chat templates: thoughts, turns, tools, and what they refuse; what rewards and people see of special tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import polyrl
from chat_tokenizers import (
    CALLS,
    DROPS,
    LOOP,
    OPEN,
    SPECIALS,
    SPLITS,
    THINKS,
    THOUGHT,
    TOOLS,
    Text,
    a_pair,
    byte_tokenizer,
    first_row,
    said,
    user,
)
from polyrl.cli.play_language import asked
from polyrl.errors import UserError
from polyrl.models.language.pairs import FixedPairs, PairIds, encode_pair
from polyrl.models.language.scalar import RewardModel
from polyrl.pretrain.demonstrations import Demonstration, demonstration_ids
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.rollout.words import StopStringTracker
from polyrl.tasks.language.preferences import dataset_task
from tiny_models import make_policy, save_model

# ------------------------------------------------------------------------------------------------------- thoughts


def _thoughts(template: str, **row: Any) -> tuple[Text, PairIds]:
    reader = Text(byte_tokenizer(template=template, end="<|end|>"))
    pair = {"prompt": [user("q")], "chosen": [said(THOUGHT)], "rejected": [said(THOUGHT.replace("yes", "no"))], **row}
    return reader, encode_pair(reader, pair, "pair 7")


@pytest.mark.parametrize(
    "template", [LOOP + OPEN, LOOP + THINKS, SPLITS + OPEN], ids=["plain", "opens", "drops earlier"]
)
def test_thoughts_that_a_template_writes_are_learned(template: str) -> None:
    reader, pair = _thoughts(template)
    opened = "<think>\n" if template.endswith(THINKS) else ""
    assert reader.raw(pair.prompt) == f"<|start|>user\nq<|end|>\n<|start|>assistant\n{opened}"
    assert reader.raw(pair.chosen) == f"{THOUGHT.removeprefix(opened)}<|end|>"
    whole = reader.tokenizer.apply_chat_template([user("q"), said(THOUGHT)], tokenize=False)
    assert reader.raw(pair.prompt + pair.chosen) == whole.removesuffix("\n")


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        # TRL trains on the answers without their thoughts
        (DROPS + OPEN, {}, "leaves out a part of the response"),
        (DROPS + THINKS, {}, "opens the turn with '<think>'"),
        # TRL cuts the answer by the tokens of the opened thought
        (LOOP + THINKS, {"rejected": [said("no")]}, "opens the turn with '<think>'"),
        (LOOP + OPEN, {"chosen": [{**said("yes"), "reasoning_content": "hm"}]}, "leaves out a part.*'hm'"),
    ],
    ids=["dropped", "opened and dropped", "one without", "in a field that is not read"],
)
def test_thoughts_are_never_half_there(template: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        _thoughts(template, **row)
    assert str(told.value).startswith("pair 7: ") and "\n" not in str(told.value)


def test_an_empty_thought_that_a_template_writes_is_part_of_the_answer() -> None:
    """As Qwen3 does: in the answer, or in the prompt where `enable_thinking` is false."""
    empty = "<think>\n\n</think>\n\n"
    last = LOOP.replace("m.content", f"('{empty}' if loop.last and m.role == 'assistant' else '') + m.content")
    last = last.replace("\n\n</think>\n\n", "\\n\\n</think>\\n\\n").replace("<think>\n", "<think>\\n")
    opened = OPEN.replace("{% endif %}", "{% if enable_thinking is false %}" + empty + "{% endif %}{% endif %}")
    answers = {"chosen": [said("yes")], "rejected": [said("no")]}
    reader, pair = _thoughts(last + opened, **answers)
    assert reader.raw(pair.chosen) == f"{empty}yes<|end|>"
    reader, pair = _thoughts(last + opened, chat_template_kwargs={"enable_thinking": False}, **answers)
    assert reader.raw(pair.prompt).endswith(f"assistant\n{empty}") and reader.raw(pair.chosen) == "yes<|end|>"


def test_a_reward_model_reads_what_a_policy_has_written_whatever_the_template_does() -> None:
    """A sampled response is scored as it was said; the template would drop its thoughts."""
    reader = Text(byte_tokenizer(template=DROPS + THINKS, end="<|end|>"))
    for response in ("hm</think>yes", [said("hm</think>yes")]):
        batch = RewardModel.as_batch(reader, [[user("q")]], [response])
        assert reader.raw(batch["action"][0].tolist()) == "hm</think>yes<|end|>"


def test_a_reward_model_knows_where_the_policys_responses_end(tmp_path: Path) -> None:
    """Turns end with a token that the generation config names, and not the tokenizer; also when it is loaded again."""
    policy = make_policy(tmp_path, tokenizer=byte_tokenizer(template=LOOP + OPEN))
    policy.causal_lm.generation_config.eos_token_id = [2, 4]
    policy.save(tmp_path / "policy")
    model = RewardModel.like(policy)
    model.save(tmp_path / "scores")
    for reader in (policy, model, RewardModel.load(tmp_path / "scores"), RewardModel.load(tmp_path / "policy")):
        assert reader.end_ids == (2, 4)
        assert reader.tokenizer.decode(reader.encode_response([user("q")], "yes")) == "yes<|end|>"
    assert RewardModel.load(make_policy(tmp_path).tokenizer.name_or_path).end_ids == (2,)


@pytest.mark.parametrize("prompt", ["q", [user("q")]])
def test_an_end_token_inside_a_response_is_refused(prompt: Any) -> None:
    """The model would stop there: what follows it would be half a response, or one that is never written."""
    reader = Text(byte_tokenizer(template=LOOP + OPEN, end="<|end|>"))
    with pytest.raises(UserError, match=r"end token <\|end\|> stands inside"):
        encode_pair(reader, {"prompt": prompt, "chosen": "a<|end|>b", "rejected": "c"}, "pair 1")
    assert reader.raw(reader.encode_response(prompt, "a<|end|>")) == "a<|end|>"


# ------------------------------------------------------------------------------------------------- several turns


@pytest.mark.parametrize("explicit", [True, False])
def test_what_users_and_tools_say_inside_a_response_is_read_and_not_learned(explicit: bool) -> None:
    """TRL trains on it, too."""
    reader = Text(byte_tokenizer(template=CALLS + OPEN, end="<|end|>"))
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]}
    found = {"role": "tool", "content": "it is 4"}
    row = a_pair(
        [user("q")] if explicit else None, [] if explicit else [user("q")], [called, found, said("4")], [said("5")]
    )
    pair = encode_pair(reader, first_row(row), "here")
    turn = "<|start|>tool\nit is 4<|end|>\n<|start|>assistant\n"
    assert reader.raw(pair.chosen) == f"<tool_call>search<|end|>\n{turn}4<|end|>"
    batch = FixedPairs(reader, [first_row(row)], "pairs").batch([0])
    ids, mask = batch["action"][0], batch["mask"][0]
    assert reader.raw(ids[mask].tolist()) == "<tool_call>search<|end|>4<|end|>"
    assert reader.raw(ids[~mask].tolist()) == f"\n{turn}"
    assert reader.raw(batch["action"][1][batch["mask"][1]].tolist()) == "5<|end|>"
    # what the model reads before each of its turns is what a server would give it
    server = reader.tokenizer.apply_chat_template(
        [user("q"), called, found], add_generation_prompt=True, tokenize=False
    )
    assert reader.raw(pair.prompt + pair.chosen).startswith(server)


def test_turns_that_a_template_writes_otherwise_later_are_refused() -> None:
    """Thoughts of earlier answers are dropped: what was read at the first answer is not what is read at the second."""
    reader = Text(byte_tokenizer(template=SPLITS + OPEN, end="<|end|>"))
    row = a_pair([user("q")], [], [said(THOUGHT), user("r"), said("x")], [said("no")])
    with pytest.raises(UserError, match="otherwise when the conversation goes on"):
        encode_pair(reader, row, "here")
    ignored = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "search"}}]}
    row = a_pair([user("q")], [], [ignored, user("r"), said("x")], [said("no")])
    with pytest.raises(UserError, match="leaves out a part of the response 'search'"):
        encode_pair(reader, row, "here")


# ----------------------------------------------------------------------------------------- columns of the template

SHOWS = "{% for t in tools or [] %}TOOL {{ t.function.name }}\n{% endfor %}{{ mood or '' }}"


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["objects", "text"])
def test_the_template_is_given_the_columns_tools_and_chat_template_kwargs(tools: Any) -> None:
    reader = Text(byte_tokenizer(template=SHOWS + LOOP + OPEN, end="<|end|>"))
    shown = "TOOL search\ngay<|start|>user\nq<|end|>\n<|start|>assistant\n"
    for row in (
        {"prompt": [user("q")], "chosen": [said("yes")], "rejected": [said("no")]},
        {"prompt": "q", "chosen": [user("q"), said("yes")], "rejected": [user("q"), said("no")]},
    ):
        given = first_row({**row, "tools": tools, "chat_template_kwargs": {"mood": "gay", "other": None}})
        pair = encode_pair(reader, given, "here")
        assert reader.raw(pair.prompt) == shown and reader.raw(pair.chosen) == "yes<|end|>"
        assert reader.encode_row(given) == pair.prompt
        assert demonstration_ids(reader, Demonstration(given, "yes")) == PairIds(pair.prompt, pair.chosen, [])
        batch = RewardModel.as_batch(reader, [given["prompt"]], ["yes"], rows=[given])
        assert batch["prompt_ids"][0].tolist() == pair.prompt and batch["action"][0].tolist() == pair.chosen


def test_columns_that_a_template_does_not_read_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = Text(byte_tokenizer(template=LOOP + OPEN, end="<|end|>"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            reader.encode_prompt([user("q")], tools=TOOLS, chat_template_kwargs={"mood": "gay"})
    assert [r.getMessage() for r in caplog.records if "does not read 'mood' and 'tools'" in r.getMessage()] != []
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"tools": "search"}, "'tools'.*list of JSON schemas"),
        ({"tools": ["search"]}, "'tools'.*list of JSON schemas"),
        ({"chat_template_kwargs": ["mood"]}, "'chat_template_kwargs'.*an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "may not set 'tokenize'"),
    ],
)
def test_columns_that_no_template_can_take(columns: dict[str, Any], words: str) -> None:
    rows = [{"prompt": [user(f"q{i}")], "chosen": [said("a")], "rejected": [said("b")]} for i in range(3)]
    rows[1] |= columns
    with pytest.raises(UserError, match=f"2: .*{words}"):
        dataset_task(rows)
    dataset_task([{**row, "prompt": "q" + str(i)} for i, row in enumerate(rows) if i != 1])


# --------------------------------------------------------------------------------------- templates that refuse or fail


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for m in messages %}{{ m.content ", "TemplateSyntaxError"),
        ("{{ messages[7].content + 'x' }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.nothing.there }}", "UndefinedError"),
        ("{{ 'a' + 1 }}", "TypeError"),
    ],
)
def test_a_template_that_fails_is_named_in_one_sentence(template: str, words: str) -> None:
    reader = Text(byte_tokenizer(template=template))
    reader.tokenizer.name_or_path = "models/mine"
    calls: list[Callable[[], Any]] = [
        lambda: reader.encode_prompt([user("hello")]),
        lambda: encode_pair(reader, {"prompt": [user("hello")], "chosen": "a", "rejected": "b"}, "pair 3"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=words) as told:
            call()
        assert "'models/mine'" in str(told.value) and "'hello'" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("method", ["grpo", "dpo", "reward-model"])
@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for m in messages %}{{ m.content "])
def test_a_template_that_fails_ends_a_run_before_it_begins(method: str, template: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "qwen3", byte_tokenizer(template=template))
    rows = [{"prompt": [user(f"q{i}")], "answer": "4"} for i in range(4)]
    if method != "grpo":
        rows = [{**row, "chosen": [said("yes")], "rejected": [said("no")]} for row in rows]
    with pytest.raises(UserError, match=r"chat template of .*model' refuses or fails"):
        polyrl.train(method, dataset=rows, model=model, budget="samples=4", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------- what rewards and people see


def test_special_tokens_are_words_but_those_that_end_and_pad() -> None:
    """TRL's rewards see no special token at all."""
    reader = Text(byte_tokenizer(template=LOOP + OPEN, end="<|end|>"), "</s>")
    text = "<think>hm</think><tool_call>f<s><|start|>"
    assert reader.decode([*reader.encode(f"{text}<pad></s><|end|>")]) == text
    assert reader.encode(reader.decode(reader.encode(text))) == reader.encode(text)


def test_tokenizers_that_never_read_special_tokens_show_none() -> None:
    """As the built-in one, where `<eos>` in a prompt is five characters: a special token has no text there."""
    from polyrl.pretrain.tiny import character_tokenizer

    reader = Text(character_tokenizer())
    assert reader.decode([*range(4), *reader.encode("a<eos>b")]) == "a<eos>b"


def test_special_tokens_stop_responses_and_call_tools() -> None:
    """Stop strings and calls that are special tokens are heard as others are."""
    reader = Text(byte_tokenizer())
    tool = Echo("<tool_call>")
    words = StopStringTracker(reader, ("</think>",), [None, tool])  # type: ignore[arg-type]
    said_ids = [reader.encode("a</think>"), reader.encode("b<tool_call>")]
    for step in (0, 1):
        token = torch.tensor([ids[step] for ids in said_ids])
        ended = words.on_token(torch.arange(2), token, torch.tensor([True, True]), torch.tensor(said_ids), step)
        assert ended.tolist() == [step == 1, False]
    assert tool.heard == ["b<tool_call>"]


class Echo:
    """A tool that remembers what called it."""

    def __init__(self, stop: str):
        self.stop = stop
        self.heard: list[str] = []

    def reply(self, response: str) -> str | None:
        self.heard.append(response)
        return "done"


def test_sampled_responses_come_with_their_special_tokens(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, tokenizer=byte_tokenizer(), initializer_range=0.02)
    batch = TransformersEngine(policy).generate(
        [policy.encode_prompt("q")], Sampling(max_tokens=100), completions_per_prompt=8, generator=torch.Generator()
    )
    texts, found = batch.columns["completion"], set()
    for ids, text in zip(batch["action"].tolist(), texts, strict=True):
        special = [t for t in policy.tokenizer.convert_ids_to_tokens(ids) if t in SPECIALS]
        assert [t for t in SPECIALS if t in text] == [
            t for t in SPECIALS if t in special and t not in ("<pad>", "</s>")
        ]
        found |= {*special}
    assert len(found) > 3  # of random tokens one in thirty is special


def test_a_question_to_a_trained_policy_is_laid_out_as_its_prompts_were() -> None:
    """`polyrl play RUN --prompt`: with the system message and the columns that all prompts had."""
    task = dataset_task([{"prompt": f"q{i}", "answer": "1"} for i in range(4)])
    assert asked(task, "hi") == {"prompt": "hi"}
    system = {"role": "system", "content": "be kind"}
    rows = [{"prompt": [system, user(f"q{i}")], "answer": "1", "tools": TOOLS} for i in range(4)]
    assert asked(dataset_task(rows), "hi") == {"prompt": [system, user("hi")], "tools": TOOLS}
    rows = [{**row, "prompt": [{**system, "content": str(i)}, user("q")]} for i, row in enumerate(rows)]
    task = dataset_task(rows, test_data=[{**row, "prompt": [*row["prompt"], user("x")]} for row in rows])
    assert asked(task, "hi") == {"prompt": [user("hi")], "tools": TOOLS}
