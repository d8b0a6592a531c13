"""What trains is what the model reads and writes when deployed: every format of data with every kind of tokenizer.

Two tables and their product. `TOKENIZERS` says for each kind of tokenizer what stands before a plain prompt, how the
chat template lays out a question, and what ends a turn; `FORMATS` writes the same pair in every form that data sets
have. The column `trl` says what TRL's DPOTrainer does where it is something else (trl/trainer/dpo_trainer.py and
trl/data_utils.py of July 2026, read and not run).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chat_tokenizers import Text, byte_tokenizer
from polyrl.cli.play_language import asked
from polyrl.errors import UserError
from polyrl.policies.demonstrations import Demonstration, demonstration_ids
from polyrl.policies.pairs import FixedPairs, PairIds, encode_pair
from polyrl.policies.scalar import RewardModel
from polyrl.tasks.language.preferences import dataset_task

LOOP = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
THINKS = "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
CALLS = LOOP.replace(
    "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{% endfor %}"
)
DROPS = LOOP.replace("m.content", "m.content.split('</think>')[-1]")
SPLITS = LOOP.replace("m.content", "m.content.split('</think>')[-1] if not loop.last else m.content")


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer, and what it is expected to make of prompts and responses."""

    tokenizer: Callable[[], Any]
    start: str = ""
    """Before a plain prompt."""
    chat: str = "<|start|>user\nq<|end|>\n<|start|>assistant\n"
    """The question as the template lays it out."""
    begins: str = ""
    """What the model has to write before an answer in a conversation."""
    end: str = "<|end|>"
    """What ends a response in a conversation."""
    plain_end: str = "<|end|>"
    """What ends a response that is plain text."""
    more_ends: tuple[str, ...] = ()
    refuses: str = ""
    """What is said where the template would not write the answer as the model does."""
    trl: str = ""
    """What TRL does where it is something else."""


def _with(template: str, **more: Any) -> Callable[[], Any]:
    return lambda: byte_tokenizer(template=template, **{"end": "<|end|>", **more})


TOKENIZERS = {
    "adds nothing": Kind(_with(LOOP + OPEN), trl="trains on the line break behind <|end|>, which is never written"),
    "adds a start token": Kind(_with(LOOP + OPEN, adds="start"), start="<s>"),
    "adds an end token": Kind(
        _with(LOOP + OPEN, adds="end"), trl="the plain prompt ends with it, and the response loses its first token"
    ),
    "adds both": Kind(_with(LOOP + OPEN, adds="both"), start="<s>", trl="as before"),
    "template writes the start token": Kind(
        _with("{{ bos_token }}" + LOOP + OPEN, adds="both"),
        start="<s>",
        chat="<s><|start|>user\nq<|end|>\n<|start|>assistant\n",
    ),
    "turns end with another token than texts": Kind(
        _with(LOOP + OPEN, end="</s>"), plain_end="</s>", more_ends=("<|end|>",)
    ),
    "template writes both end tokens": Kind(
        _with(LOOP + "{% if add_generation_prompt %}<|start|>assistant\n{% else %}</s>{% endif %}", end="</s>"),
        plain_end="</s>",
        more_ends=("<|end|>",),
        trl="trains on the second end token, too",
    ),
    "template knows no end": Kind(
        lambda: byte_tokenizer(
            template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        ),
        chat="user: q\nassistant: ",
        end="\n</s>",
        plain_end="</s>",
        trl="appends the end token to plain text only: a conversation would have none",
    ),
    "template knows no opened turn": Kind(_with(LOOP), chat="<|start|>user\nq<|end|>\n", begins="<|start|>assistant\n"),
    "template opens a thought": Kind(
        _with(LOOP + THINKS),
        chat="<|start|>user\nq<|end|>\n<|start|>assistant\n<think>\n",
        refuses="opens the turn with '<think>'",
        trl="warns, and cuts as many tokens off the answer as the opened thought has",
    ),
    "template opens a thought and drops it from answers": Kind(
        _with(DROPS + THINKS),
        chat="<|start|>user\nq<|end|>\n<|start|>assistant\n<think>\n",
        refuses="opens the turn with '<think>'",
        trl="as before",
    ),
    "template drops thoughts of answers": Kind(_with(DROPS + OPEN)),
    "template drops thoughts of earlier answers": Kind(_with(SPLITS + OPEN)),
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _pair(prompt: Any, begins: Any, yes: Any, no: Any) -> dict[str, Any]:
    row = {"chosen": begins + yes, "rejected": begins + no}
    return row if prompt is None else {"prompt": prompt, **row}


# each writes the question q with the answers "yes" and "no, no"; True: in a conversation
FORMATS: dict[str, tuple[bool, dict[str, Any]]] = {
    "texts": (False, _pair("q", "", "yes", "no, no")),
    "texts without a prompt": (False, _pair(None, "q", " yes", " no, no")),
    "messages": (True, _pair([user("q")], [], [said("yes")], [said("no, no")])),
    "messages, and answers as texts": (True, _pair([user("q")], "", "yes", "no, no")),
    # TRL: the question stands there twice
    "messages, and whole conversations": (True, _pair([user("q")], [user("q")], [said("yes")], [said("no, no")])),
    "conversations without a prompt": (True, _pair(None, [user("q")], [said("yes")], [said("no, no")])),
    # TRL: a TypeError in both, since text and messages cannot be joined
    "a text, and whole conversations": (True, _pair("q", [user("q")], [said("yes")], [said("no, no")])),
    "a text, and answers as messages": (True, _pair("q", [], [said("yes")], [said("no, no")])),
    "as a table fills it": (
        True,
        {
            "prompt": [{**user("q"), "name": None}],
            "chosen": [{**said("yes"), "tool_calls": None}],
            "rejected": [{**said("no, no"), "tool_calls": None}],
            "tools": None,
            "chat_template_kwargs": None,
            "chosen_ended": None,
        },
    ),
}


def first_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a data set gives it, other rows being of other questions."""

    def other(value: Any) -> Any:
        text = json.dumps(value)
        return json.loads(text.replace('"q', '"other q'))

    task = dataset_task([row, *({k: other(v) for k, v in row.items()} for _ in range(3))])
    rows = [*task.fixed_pairs["train"], *task.fixed_pairs["test"]]
    return next(r for r in rows if "other" not in json.dumps(r))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_trains_is_what_the_model_reads_and_writes(kind: str, form: str) -> None:
    given, (talk, written) = TOKENIZERS[kind], FORMATS[form]
    reader = Text(given.tokenizer(), *given.more_ends)
    row = first_row(written)
    if talk and given.refuses:
        with pytest.raises(UserError, match=given.refuses):
            encode_pair(reader, row, "pair 1")
        return
    pair = encode_pair(reader, row, "pair 1")
    before = given.begins if talk else " " if form == "texts without a prompt" else ""
    prompt = given.chat if talk else f"{given.start}q"
    end = given.end if talk else given.plain_end
    assert reader.raw(pair.prompt) == prompt
    assert reader.raw(pair.chosen) == f"{before}yes{end}"
    assert reader.raw(pair.rejected) == f"{before}no, no{end}"
    # the tokens, and not their text alone: one for each byte and each special token
    assert (
        pair.prompt + pair.chosen == reader.tokenizer(f"{prompt}{before}yes{end}", add_special_tokens=False).input_ids
    )
    # online methods and `play` read the same prompt, and demonstrations and reward models the same response
    assert reader.encode_row(row) == pair.prompt
    assert reader.encode_response(row["prompt"], row["chosen"]) == pair.chosen
    batch = RewardModel.as_batch(_scalar(reader), [row["prompt"]], [row["chosen"]])
    assert batch["prompt_ids"][0].tolist() == pair.prompt and batch["action"][0].tolist() == pair.chosen
    if talk:  # and a server of the model, which asks transformers
        asked = reader.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert asked == pair.prompt


# ---------------------------------------------------------------------------------------------------- begun answers


def test_an_answer_that_the_prompt_has_begun_goes_on() -> None:
    """As `continue_final_message` of transformers. TRL's DPOTrainer opens a second turn of the assistant."""
    reader = Text(byte_tokenizer(template=LOOP + OPEN, end="<|end|>"))
    prompt = [user("q"), said("it is")]
    opened = "<|start|>user\nq<|end|>\n<|start|>assistant\nit is"
    assert reader.raw(reader.encode_prompt(prompt)) == opened
    whole = [[user("q"), said(f"it is{end}")] for end in (" so", " not so")]
    rows = [
        {"prompt": prompt, "chosen": [said(" so")], "rejected": [said(" not so")]},
        {"prompt": prompt, "chosen": " so", "rejected": " not so"},
        {"prompt": prompt, "chosen": whole[0], "rejected": whole[1]},
    ]
    for row in rows:
        pair = encode_pair(reader, first_row(row), "pair 1")
        assert reader.raw(pair.prompt) == opened
        assert (reader.raw(pair.chosen), reader.raw(pair.rejected)) == (" so<|end|>", " not so<|end|>")


# ------------------------------------------------------------------------------------------------------- thoughts

THOUGHT = "<think>\nhm\n</think>\nyes"


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
        batch = RewardModel.as_batch(_scalar(reader), [[user("q")]], [response])
        assert reader.raw(batch["action"][0].tolist()) == "hm</think>yes<|end|>"


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
    row = _pair(
        [user("q")] if explicit else None, [] if explicit else [user("q")], [called, found, said("4")], [said("5")]
    )
    pair = encode_pair(reader, first_row(row), "here")
    turn = "<|start|>tool\nit is 4<|end|>\n<|start|>assistant\n"
    assert reader.raw(pair.chosen) == f"<tool_call>search<|end|>\n{turn}4<|end|>"
    batch = FixedPairs(_scalar(reader), [first_row(row)], "pairs").batch([0])
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
    row = _pair([user("q")], [], [said(THOUGHT), user("r"), said("x")], [said("no")])
    with pytest.raises(UserError, match="otherwise when the conversation goes on"):
        encode_pair(reader, row, "here")
    ignored = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "search"}}]}
    row = _pair([user("q")], [], [ignored, user("r"), said("x")], [said("no")])
    with pytest.raises(UserError, match="leaves out a part of the response 'search'"):
        encode_pair(reader, row, "here")


# ---------------------------------------------------------------------------------------- pairs that hold their prompt


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("A: Yes, it is", "A: You are right", "A:"),
        ("A: it costs 420 euros", "A: it costs 450 euros", "A: it costs"),
        ("A: 4.25", "A: 4.75", "A:"),
        ("A: $3", "A: $4", "A:"),
        ("A: 3e8", "A: 3e9", "A:"),
        ("A: -1", "A: -2", "A:"),
        ("A: 1,200", "A: 1,300", "A:"),
        ("A: 12:30", "A: 12:45", "A:"),
        ("A: <|a|>yes", "A: <|b|>no", "A:"),
        ("A:<|a|>yes", "A:<|a b", "A:"),
        ("A: </think> x", "A: </tool> x", "A:"),
        ("A: [INST] x", "A: [INSTRUCT] x", "A:"),
        ("A: <｜User｜>x", "A: <｜Tool｜>x", "A:"),
        ("A: don't", "A: don", "A:"),
        ("A: well-known", "A: well-made", "A:"),
        ("A: snake_case", "A: snake_eyes", "A:"),
        ("A: e\u0301t\u00e9", "A: et", "A:"),
        ("A: \U0001f44d\U0001f3fd", "A: \U0001f44d\U0001f3ff", "A:"),
        ("A: \U0001f1e9\U0001f1ea", "A: \U0001f1e9\U0001f1f0", "A:"),
        ("\n\nAssistant:\nYes", "\n\nAssistant:\nYou", "\n\nAssistant:\n"),
        ("答：是的", "答：是吗", "答：是"),
        ("A: yes", "A: yes, and no", "A:"),
        ("A: yes ", "A: yes and no", "A:"),
        ("A: yes.", "A: yes. No.", "A: yes"),
        ("A: one two", "A: one six", "A: one"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_common_prompt_ends_between_words(chosen: str, rejected: str, prompt: str, turned: bool) -> None:
    """TRL cuts at the first character that differs: inside a word, a number or the text of a special token."""
    begin = "Human: is it?\n\n" if not chosen.startswith("\n") else "Human: is it?"
    chosen, rejected = (rejected, chosen) if turned else (chosen, rejected)
    row = first_row({"chosen": "q " + begin + chosen, "rejected": "q " + begin + rejected})
    assert row["prompt"] == "q " + begin + prompt
    assert (row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) == (
        "q " + begin + chosen,
        "q " + begin + rejected,
    )
    assert row["chosen"].strip() and row["rejected"].strip()


BROKEN = {
    "nothing in common": ({"chosen": "yes", "rejected": "no"}, "nothing in common"),
    "equal": ({"chosen": "q yes", "rejected": "q yes"}, "equal"),
    "one is empty": ({"prompt": "q", "chosen": "", "rejected": "no"}, "'chosen' is empty"),
    "one is white": ({"prompt": "q", "chosen": "yes", "rejected": " \n"}, "'rejected' is empty"),
    "no answer": ({"chosen": [user("q"), said("a")], "rejected": [user("q")]}, "'rejected' is empty"),
    "other questions": (
        {"chosen": [user("q"), user("a"), said("x")], "rejected": [user("q"), user("b"), said("y")]},
        "does not begin with the prompt",
    ),
    "another question than the prompt": (
        {"prompt": "other", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        "no message that both",
    ),
    "another conversation than the prompt": (
        {"prompt": [user("p")], "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        "does not begin with the prompt",
    ),
    "ends with the user": (
        {"prompt": [user("q")], "chosen": [said("a"), user("b")], "rejected": [said("c")]},
        "roles behind the prompt are assistant, user",
    ),
    "two answers in a row": (
        {"prompt": [user("q")], "chosen": [said("a"), said("b")], "rejected": [said("c")]},
        "roles behind the prompt are assistant, assistant",
    ),
    "text and messages": ({"prompt": "q", "chosen": "a", "rejected": [said("b")]}, "both be text or both"),
    "behind an answer": (
        {
            "chosen": [user("q"), said("a"), user("b"), said("x")],
            "rejected": [user("q"), said("a"), user("c"), said("y")],
        },
        "only behind an answer",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_pairs_that_are_in_no_form_are_refused_alike_from_a_list_and_from_a_file(name: str, tmp_path: Path) -> None:
    row, words = BROKEN[name]
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "prompt": "y"}, row]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for data in (rows, str(file)):
        with pytest.raises(UserError, match=words) as told:
            dataset_task(data)
        assert "3: " in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(("value", "ended"), [(False, False), ("false", False), (0, False), (None, True), ("", True)])
def test_what_a_table_says_of_responses_that_were_cut_off(value: Any, ended: bool) -> None:
    reader = Text(byte_tokenizer())
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_ended": value}
    assert encode_pair(reader, row, "here").ended == (ended, True)
    with pytest.raises(UserError, match="'rejected_ended' must be true or false, not 'maybe'"):
        encode_pair(reader, {**row, "rejected_ended": "maybe"}, "here")


# ----------------------------------------------------------------------------------------- columns of the template

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
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
        assert demonstration_ids(_scalar(reader), Demonstration(given, "yes")) == PairIds(pair.prompt, pair.chosen, [])
        batch = RewardModel.as_batch(_scalar(reader), [given["prompt"]], ["yes"], rows=[given])
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


# ------------------------------------------------------------------------------------------ start tokens and spaces


@pytest.mark.parametrize("adds", ["start", "both"])
def test_a_text_that_begins_with_the_start_token_has_it_once(adds: str) -> None:
    """Prompts that were laid out by a template before, as text."""
    reader = Text(byte_tokenizer(adds=adds))
    assert reader.raw(reader.encode_prompt("<s>q")) == reader.raw(reader.encode_prompt("q")) == "<s>q"
    assert reader.raw(reader.encode_prompt("")) == "<s>"
    assert reader.raw(reader.encode_response("<s>q", "a")) == "a</s>"


def test_a_response_has_the_tokens_of_its_text_where_prompt_and_response_would_merge() -> None:
    """`q` and `u` are one token: the deployed model has read a `q`, and writes a `u`."""
    reader = Text(byte_tokenizer(merges=(("q", "u"), ("u", "u"))))
    pair = encode_pair(reader, {"prompt": "q", "chosen": "u", "rejected": "uu"}, "here")
    q, u, uu, end = (reader.tokenizer.convert_tokens_to_ids(t) for t in ("q", "u", "uu", "</s>"))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([q], [u, end], [uu, end])


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Puts a space before every text, as Llama 2's tokenizer does."""
    words = ["<unk>", "<s>", "</s>", *"▁abc\n>", "▁a", "▁b"]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


@pytest.mark.parametrize(("response", "tokens"), [(" b", ["▁b"]), ("b", ["b"]), ("cb a", ["c", "b", "▁a"])])
def test_no_space_is_added_to_responses(response: str, tokens: list[str]) -> None:
    reader = Text(sentencepiece_like())
    pair = encode_pair(reader, {"prompt": "a c", "chosen": response, "rejected": "cc"}, "here")
    assert reader.tokenizer.convert_ids_to_tokens(pair.chosen) == [*tokens, "</s>"]
    assert reader.raw(pair.prompt + pair.chosen) == f"a c{response}</s>"
    assert reader.tokenizer.convert_ids_to_tokens(reader.encode(response)) == tokens
    assert reader.decode(pair.chosen) == response


# -------------------------------------------------------------------------------------- what rewards and people see


def test_special_tokens_are_words_but_those_that_end_and_pad() -> None:
    """TRL's rewards see no special token at all."""
    reader = Text(byte_tokenizer(template=LOOP + OPEN, end="<|end|>"), "</s>")
    text = "<think>hm</think><tool_call>f<s><|start|>"
    assert reader.decode([*reader.encode(f"{text}<pad></s><|end|>")]) == text
    assert reader.encode(reader.decode(reader.encode(text))) == reader.encode(text)


def test_tokenizers_that_never_read_special_tokens_show_none() -> None:
    """As the built-in one, where `<eos>` in a prompt is five characters: a special token has no text there."""
    from polyrl.policies.tiny import character_tokenizer

    reader = Text(character_tokenizer())
    assert reader.decode([*range(4), *reader.encode("a<eos>b")]) == "a<eos>b"


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


def _scalar(reader: Text) -> Any:
    """What `RewardModel.as_batch` needs of a reward model."""
    reader.pad_id = int(reader.tokenizer.pad_token_id)  # type: ignore[attr-defined]
    return reader
