"""Rows as data sets write them, turned into one form: TRL's formats of prompts, pairs and labelled responses.

A row's `prompt` is text or a list of messages, and in a pair `chosen` and `rejected` are what answers it: texts after a
text, and after messages texts or the assistant's messages (with those of users and tools between them). Data sets also
repeat the prompt in both responses, leave it out, or give it as text where the responses are messages; `pair_of`
understands all of these, or refuses. `response_of` does the same for a row with one response, `completion`.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.base import Row, content
from polyrl.tasks.language.phrases import shortened

SIDES = ("chosen", "rejected")

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that the chat template is given, as in TRL."""
RESERVED = frozenset(
    [
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    ]
)
"""Arguments of transformers that are no variables of a template."""


# ------------------------------------------------------------------------------------------------- prompts and columns


def messages_of(row: Row, names: Collection[str] = ("prompt", "messages", *SIDES)) -> Row:
    """Return the row with messages where a prompt or a response is the JSON text of some: tables cannot say it else."""
    return {name: _read_messages(value) if name in names else value for name, value in row.items()}


def _read_messages(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(r"\s*\[\s*\{", value):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if all(isinstance(m, dict) and "role" in m and "content" in m for m in found) else value


def check_messages(where: str, name: str, messages: Any) -> list[dict[str, Any]]:
    """Return the messages without keys that hold null, which tables put where other messages have a value.

    Raises:
        UserError: they are no messages with a role and a text (or calls of tools).
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: the column '{name}' has no messages.")
    found = []
    for i, message in enumerate(messages, start=1):
        calls = isinstance(message, dict) and bool(message.get("tool_calls")) and message.get("content") is None
        known = isinstance(message, dict) and isinstance(message.get("role"), str) and ("content" in message or calls)
        if not known:
            raise UserError(
                f"{where}: message {i} of the column '{name}' must be an object with 'role' and 'content', "
                f"not {json.dumps(message, default=str)[:80]}."
            )
        if not isinstance(message.get("content"), str) and not calls:
            raise UserError(f"{where}: the content of message {i} of the column '{name}' must be text.")
        found.append(_without_nulls(message))
    return found


def check_template_columns(where: str, row: Row) -> Row:
    """Return the row with its columns `tools` and `chat_template_kwargs` as a chat template takes them.

    `tools` is a list of JSON schemas, or such a list as JSON text; keys that hold null are left out. Rows whose prompt
    is text stay as they are: no template lays them out.

    Raises:
        UserError: a column holds something else.
    """
    if isinstance(row.get("prompt"), str):
        return row
    row = dict(row)
    for name, kind, what in (("tools", list, "a list of JSON schemas"), ("chat_template_kwargs", dict, "an object")):
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except ValueError:
                value = ""
        value = _without_nulls(value)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{where}: the column '{name}', which the chat template is given, must be {what}.")
        if name == "tools" and not all(isinstance(tool, dict) for tool in value or ()):
            raise UserError(f"{where}: the column 'tools', which the chat template is given, must be {what}.")
        if name == "chat_template_kwargs" and (taken := sorted(RESERVED & set(value or ()))):
            raise UserError(
                f"{where}: 'chat_template_kwargs' may not set '{taken[0]}'; it is no variable of a template."
            )
        row[name] = value
    return row


def template_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives to the chat template beside its prompt, as arguments of `encode_prompt`."""
    if isinstance(row.get("prompt"), str):
        return {}
    return {name: row[name] for name in TEMPLATE_COLUMNS if row.get(name)}


def _without_nulls(value: Any) -> Any:
    """The value without the keys that hold null, at any depth: tables fill rows up with them."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------------------------- pairs


def pair_of(where: str, row: Row) -> Row:
    """Return a preference pair in one form: the prompt in `prompt` alone, and responses that answer it.

    | prompt | chosen and rejected | what becomes of it |
    | --- | --- | --- |
    | text | texts | stays |
    | messages | texts, or messages that begin with the assistant's | stays |
    | messages | conversations that begin with these messages | the beginning is taken off |
    | text | conversations that begin alike, with this text as a user's message | that beginning is the prompt |
    | text | messages that begin with the assistant's | the text becomes a user's message |
    | none | texts or conversations that begin alike | see `implicit_prompt` |

    Raises:
        UserError: it is none of these.
    """
    if row.get("prompt") is None:
        row = implicit_prompt(where, row)
    row, prompt = dict(row), row["prompt"]
    for side in SIDES:
        if isinstance(row[side], list):
            row[side] = check_messages(where, side, row[side])
    talks = [isinstance(row[side], list) for side in SIDES]
    if isinstance(prompt, str):
        if not any(talks):
            return row
        if not all(talks):
            raise UserError(f"{where}: the columns 'chosen' and 'rejected' must both be text or both be messages.")
        if all(row[side][0]["role"] == "assistant" for side in SIDES):
            return {**row, "prompt": [{"role": "user", "content": prompt}]}
        shared = _common_messages(where, row["chosen"], row["rejected"])
        begins = row["chosen"][:shared]
        if not any(m["role"] != "assistant" and m.get("content", "").strip() == prompt.strip() for m in begins):
            raise UserError(
                f"{where}: the prompt {shortened(prompt)} is no message that both 'chosen' and 'rejected' begin with; "
                "give the prompt as the messages that they have in common, or leave it out."
            )
        return _answers(where, {**row, "prompt": begins, **{side: row[side][shared:] for side in SIDES}})
    prompt = check_messages(where, "prompt", prompt)
    return _answers(where, {**row, "prompt": prompt, **{side: _behind(prompt, row[side]) for side in SIDES}})


def response_of(where: str, row: Row) -> Row:
    """Return a row with one response, `completion`, in one form: the prompt in `prompt` alone, and what answers it.

    As `pair_of`; of a text prompt and a conversation the prompt is what it begins with, up to the message with that
    text. Where there is no prompt nothing tells what it is.

    Raises:
        UserError: it is in no form that is known.
    """
    row, prompt, said = dict(row), row["prompt"], row["completion"]
    if not isinstance(said, str):
        said = check_messages(where, "completion", said)
    if isinstance(prompt, str):
        if isinstance(said, str):
            return row
        if said[0]["role"] == "assistant":
            return {**row, "prompt": [{"role": "user", "content": prompt}], "completion": said}
        asked = [
            i for i, m in enumerate(said) if m["role"] != "assistant" and m.get("content", "").strip() == prompt.strip()
        ]
        if not asked:
            raise UserError(
                f"{where}: the prompt {shortened(prompt)} is no message that 'completion' begins with; give the prompt "
                "as the messages before the response."
            )
        begins = asked[-1] + 1
        return _answers(where, {**row, "prompt": said[:begins], "completion": said[begins:]}, ("completion",))
    prompt = check_messages(where, "prompt", prompt)
    return _answers(where, {**row, "prompt": prompt, "completion": _behind(prompt, said)}, ("completion",))


def conversation_of(where: str, row: Row) -> Row:
    """Return a row that has a whole conversation, `messages`, and no prompt, as a prompt and what answers it.

    The prompt is what stands before the assistant's first message. What follows may have several turns. Other rows stay
    as they are.

    Raises:
        UserError: the assistant says nothing in it, or nothing is said before.
    """
    others = ("prompt", "completion", "chosen", "question")
    if not isinstance(row.get("messages"), list) or any(row.get(name) is not None for name in others):
        return row
    said = check_messages(where, "messages", row["messages"])
    first = next((i for i, message in enumerate(said) if message["role"] == "assistant"), 0)
    if not first:
        why = "begins with the assistant's" if said[0]["role"] == "assistant" else "has no message of the assistant"
        raise UserError(f"{where}: the column 'messages' {why}, so nothing of it answers a prompt; leave the row out.")
    rest = {name: value for name, value in row.items() if name != "messages"}
    return _answers(where, {**rest, "prompt": said[:first], "completion": said[first:]}, ("completion",))


def check_response(where: str, name: str, response: Any) -> None:
    """Raise `UserError` where a column holds neither text nor messages."""
    if not isinstance(response, str | list):
        raise UserError(f"{where}: the column '{name}' must be text or a list of messages with 'role' and 'content'.")
    if isinstance(response, list):
        check_messages(where, name, response)


def is_empty(response: Any) -> bool:
    """Whether a response says nothing and calls no tool."""
    calls = isinstance(response, list) and any(message.get("tool_calls") for message in response)
    return not calls and not content(response).strip()


def _behind(prompt: list[dict[str, Any]], said: Any) -> Any:
    """What a conversation says after the messages of a prompt that it begins with; any other response as it is."""
    if isinstance(said, list) and said[: len(prompt)] == prompt:
        return said[len(prompt) :]
    if isinstance(said, list) and prompt[-1]["role"] == "assistant" and said[: len(prompt) - 1] == prompt[:-1]:
        return _rest_of_turn(said, prompt)
    return said


def _rest_of_turn(said: list[dict[str, Any]], prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a conversation says after a prompt that has begun the assistant's turn; as it is where it does not."""
    begun, whole = str(prompt[-1].get("content") or ""), said[len(prompt) - 1 :]
    if whole and whole[0]["role"] == "assistant" and str(whole[0].get("content") or "").startswith(begun):
        return [{**whole[0], "content": str(whole[0]["content"])[len(begun) :]}, *whole[1:]]
    return said


def _answers(where: str, row: Row, names: Sequence[str] = SIDES) -> Row:
    """The row, if what is left in its responses is the assistant's."""
    for side in names:
        said = row[side]
        if not isinstance(said, list):
            continue
        if not said:
            kind = "pair" if side in SIDES else "row"
            raise UserError(f"{where}: the column '{side}' is empty behind the prompt; leave the {kind} out.")
        if said[0]["role"] != "assistant":
            raise UserError(
                f"{where}: the column '{side}' does not begin with the prompt, nor with a message of the assistant, "
                f"but with {shortened(content(said[:1]))} of the role '{said[0]['role']}'."
            )
        roles = [message["role"] for message in said]
        if roles[-1] != "assistant" or ("assistant", "assistant") in itertools.pairwise(roles):
            raise UserError(
                f"{where}: the column '{side}' must end with the assistant's message, and have others between two of "
                f"them; its roles behind the prompt are {', '.join(roles)}."
            )
    return row


def implicit_prompt(where: str, row: Row) -> Row:
    """Take the prompt out of chosen and rejected: the whole messages, or the words, that both begin with.

    A last space goes to the responses (TRL's `extract_prompt`). Other than there, the prompt ends between two words,
    numbers and special tokens (`<|user|>`), never inside one, and neither response is left without a word.

    Raises:
        UserError: they begin with nothing in common, or one is text and the other messages.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise UserError(f"{where}: the columns 'chosen' and 'rejected' must both be text or both be lists of messages.")
    if isinstance(chosen, list):
        chosen, rejected = (check_messages(where, side, row[side]) for side in SIDES)
        shared = _common_messages(where, chosen, rejected)
    else:
        assert isinstance(rejected, str)
        if chosen == rejected:
            raise UserError(f"{where}: chosen and rejected are equal ({shortened(chosen)}); leave the pair out.")
        shared = _cut(chosen, rejected)
    if shared == 0:
        raise UserError(f"{where}: no column 'prompt', and chosen and rejected begin with nothing in common.")
    return _answers(where, {**row, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]})


def _common_messages(where: str, chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> int:
    """How many messages are the prompt of two conversations."""
    if chosen == rejected:
        raise UserError(f"{where}: chosen and rejected are equal ({shortened(content(chosen))}); leave the pair out.")
    shared = _shared(chosen, rejected)
    if shared and chosen[shared - 1]["role"] == "assistant":
        raise UserError(
            f"{where}: the conversations of chosen and rejected differ only behind an answer of the assistant "
            "that both have, so there is no question that both answer; leave the pair out."
        )
    return shared


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items both begin with."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


_UNIT = re.compile(
    r"<[|｜][^<>|｜\s]*[|｜]>|</?[^\W\d][^<>\s]*>|\[/?[A-Z_]+\]"  # special tokens
    r"|(?<!\w)[-+]?[$€£]?\.?\d\w*(?:[.,:/]\w+|(?<=[eE])[-+]\d+)*"  # numbers
    r"|[^\W\d_]+(?:['’_-][^\W_]+)*\w*"  # words
    r"|\w+"
)
"""What a prompt may not end inside of."""


def _cut(chosen: str, rejected: str) -> int:
    """Where the prompt ends that two texts begin with: between units, a last space left to the responses."""
    cut = _shared(chosen, rejected)
    if cut == min(len(chosen), len(rejected)):
        # one is the beginning of the other: its last unit stays its response
        cut = len(chosen[:cut].rstrip()) - 1
    while cut > 0:
        start = min(_start_of_unit(text, cut) for text in (chosen, rejected))
        if start == cut:
            break
        cut = start
    cut = max(cut, 0)
    return cut - 1 if cut and chosen[cut - 1] == " " else cut


def _start_of_unit(text: str, cut: int) -> int:
    """Where the unit begins that a cut would split; the cut itself where it splits none."""
    while 0 < cut < len(text) and _joins(text[cut - 1], text[cut]):
        cut -= 1
    line = text.rfind("\n", 0, cut) + 1  # no unit has a line break
    for unit in _UNIT.finditer(text, line):
        if unit.start() >= cut:
            break
        if cut < unit.end() and not _unspaced(text[cut - 1], text[cut]):
            return unit.start()
    return cut


def _joins(before: str, after: str) -> bool:
    """Whether two code points are of one character: marks, joined and coloured emoji, two halves of a flag."""
    return (
        unicodedata.category(after) in ("Mn", "Me", "Mc")
        or "\u200d" in (before, after)
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or all("\U0001f1e6" <= c <= "\U0001f1ff" for c in (before, after))
    )


def _unspaced(before: str, after: str) -> bool:
    """Whether both are of a script that puts no spaces between words, where a prompt may end between any two."""
    return all(
        "\u2e80" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff" or "\u0e00" <= c <= "\u0eff" for c in (before, after)
    )
