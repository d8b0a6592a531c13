"""What trains is what the model reads and writes when deployed: every format of data with every kind of tokenizer.

Two tables and their product. `TOKENIZERS` says for each kind of tokenizer what stands before a plain prompt, how the
chat template lays out a question, and what ends a turn; `FORMATS` writes the same pair in every form that data sets
have. The column `trl` says what TRL's DPOTrainer does where it is something else (trl/trainer/dpo_trainer.py and
trl/data_utils.py of July 2026, read and not run).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chat_tokenizers import (
    DROPS,
    LOOP,
    OPEN,
    SPLITS,
    THINKS,
    Text,
    a_pair,
    byte_tokenizer,
    first_row,
    said,
    user,
)
from polyrl.errors import UserError
from polyrl.models.language.pairs import encode_pair
from polyrl.models.language.scalar import RewardModel


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
    begun: str = "<|start|>user\nq<|end|>\n<|start|>assistant\nit is"
    """The question with a begun answer."""
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
        begun="<s><|start|>user\nq<|end|>\n<|start|>assistant\nit is",
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
        begun="user: q\nassistant: it is",
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


# each writes the question q with the answers "yes" and "no, no"; True: in a conversation
FORMATS: dict[str, tuple[bool, dict[str, Any]]] = {
    "texts": (False, a_pair("q", "", "yes", "no, no")),
    "texts without a prompt": (False, a_pair(None, "q", " yes", " no, no")),
    "messages": (True, a_pair([user("q")], [], [said("yes")], [said("no, no")])),
    "messages, and answers as texts": (True, a_pair([user("q")], "", "yes", "no, no")),
    # TRL: the question stands there twice
    "messages, and whole conversations": (True, a_pair([user("q")], [user("q")], [said("yes")], [said("no, no")])),
    "conversations without a prompt": (True, a_pair(None, [user("q")], [said("yes")], [said("no, no")])),
    # TRL: a TypeError in both, since text and messages cannot be joined
    "a text, and whole conversations": (True, a_pair("q", [user("q")], [said("yes")], [said("no, no")])),
    "a text, and answers as messages": (True, a_pair("q", [], [said("yes")], [said("no, no")])),
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
    batch = RewardModel.as_batch(reader, [row["prompt"]], [row["chosen"]])
    assert batch["prompt_ids"][0].tolist() == pair.prompt and batch["action"][0].tolist() == pair.chosen
    if talk:  # and a server of the model, which asks transformers
        asked = reader.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert asked == pair.prompt


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_answer_that_the_prompt_has_begun_goes_on(kind: str) -> None:
    """As `continue_final_message` of transformers. TRL's DPOTrainer opens a second turn of the assistant."""
    given = TOKENIZERS[kind]
    reader = Text(given.tokenizer(), *given.more_ends)
    prompt = [user("q"), said("it is")]
    server = reader.tokenizer.apply_chat_template(prompt, continue_final_message=True, return_dict=False)
    assert reader.encode_prompt(prompt) == server and reader.raw(server) == given.begun
    whole = [[user("q"), said(f"it is{end}")] for end in (" so", " not so")]
    rows = [
        {"prompt": prompt, "chosen": [said(" so")], "rejected": [said(" not so")]},
        {"prompt": prompt, "chosen": " so", "rejected": " not so"},
        {"prompt": prompt, "chosen": whole[0], "rejected": whole[1]},
    ]
    for row in rows:
        pair = encode_pair(reader, first_row(row), "pair 1")
        assert reader.raw(pair.prompt) == given.begun
        assert (reader.raw(pair.chosen), reader.raw(pair.rejected)) == (f" so{given.end}", f" not so{given.end}")


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
