"""Between text and tokens: prompts and responses as the model would read and write them when deployed.

A prompt is what stands before the model's first token: plain text as the tokenizer encodes it, or a conversation as the
chat template lays it out, with the assistant's turn opened (or gone on with, where the last message is the
assistant's). A response is what the model would write after it, up to the end of its turn.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypedDict, Unpack

from polyrl.errors import UserError
from polyrl.tasks.language.base import content
from polyrl.tasks.language.chat import Chat
from polyrl.tasks.language.formats import template_columns
from polyrl.tasks.language.phrases import reason_of, shortened

_log = logging.getLogger(__name__)

Prompt = str | list[dict[str, Any]]
Response = str | Sequence[Mapping[str, Any]]

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that hold its thoughts; chat templates name them differently."""
ASKED_AS = "polyrl_chat"
"""Key of a tokenizer's settings that says how plain prompts are asked of its model."""
ANCHORS = ("\n", ">", "a")
"""Texts that a piece of a response is encoded after, where the tokenizer adds a space to the beginning of a text."""


class Layout(TypedDict, total=False):
    """What a chat template is given beside the messages; data have it as columns (`template_columns`)."""

    tools: Sequence[Any] | None
    """JSON schemas of the tools that it is to show; nothing for plain text."""
    chat_template_kwargs: Mapping[str, Any] | None
    """Further variables of the template."""


class UnwritableResponse(UserError):
    """A response that the model cannot write so: it would have stopped before, or the chat template writes another."""


class TextEncoding:
    """What a tokenizer and its chat template make of prompts and responses; part of every model that reads text."""

    tokenizer: Any

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a response."""
        return () if self.tokenizer.eos_token_id is None else (int(self.tokenizer.eos_token_id),)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> number."""
        found: dict[str, int] = self.tokenizer.get_vocab()
        return found

    # ---- how plain texts are asked

    def ask_as(self, chat: Chat | None) -> None:
        """Ask prompts so from now on; what is saved with the tokenizer says it too. None: as they are.

        Raises:
            UserError: there is a system prompt, and nothing to lay it out.
        """
        self.tokenizer.init_kwargs.pop(ASKED_AS, None)
        if chat is None or chat == Chat(template=False):
            return
        if not self._has_template:
            if chat.system_prompt:
                raise UserError(
                    f"--system-prompt needs a chat template, and the tokenizer of {self._name} has none; leave it "
                    "away, or set tokenizer.chat_template."
                )
            return
        self.tokenizer.init_kwargs[ASKED_AS] = dataclasses.asdict(chat)

    @property
    def chat(self) -> Chat | None:
        """How prompts are asked; None: as they are."""
        found = self.tokenizer.init_kwargs.get(ASKED_AS)
        return Chat(**found) if isinstance(found, dict) else None

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt as the model reads it: text, or messages for the chat template.

        A plain text becomes the user's message unless it holds a token that the template writes around messages: then
        somebody has laid it out already.
        """
        chat = self.chat
        if chat is None or (isinstance(prompt, str) and not (chat.template and self._is_plain(prompt))):
            return prompt
        return chat.conversation(prompt)

    def _is_plain(self, text: str) -> bool:
        return not any(mark in text for mark in self._marks)

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """Special tokens that the chat template writes around a message."""
        try:
            around = self._render([{"role": "user", "content": "a"}], {}, add_generation_prompt=True)
        except UserError:  # said where a prompt is encoded
            return ()
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values())
        return tuple(mark for mark in added if len(mark) > 1 and mark in around)

    # ---- prompts

    def encode_row(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of a row's `prompt`; the chat template is given its columns `tools` and `chat_template_kwargs`."""
        return self.encode_prompt(row["prompt"], **template_columns(row))

    def encode_prompt(self, prompt: Prompt, **layout: Unpack[Layout]) -> list[int]:
        """Token ids of a plain or conversational prompt.

        A start token that the tokenizer adds to a text stands there once; an end token that it adds does not: the
        prompt goes on. A conversation is laid out by the chat template, which writes start tokens by itself. Where
        its last message is the assistant's, the response goes on with that message.

        Args:
            prompt: text or messages.
            layout: `tools` and `chat_template_kwargs`, which the chat template is given.

        Raises:
            UserError: there is no chat template, it refuses the conversation or is damaged, or an empty prompt cannot
                start with a start token.
        """
        prompt = self.asked(prompt)
        ids = self._encode_text(prompt) if isinstance(prompt, str) else self._bare(self._prompt_text(prompt, layout))
        if not ids:
            if self.tokenizer.bos_token_id is None:
                raise UserError("A prompt is empty and the tokenizer has no start token; give a prompt with text.")
            ids = [int(self.tokenizer.bos_token_id)]
        return ids

    def _encode_text(self, text: str) -> list[int]:
        """Token ids of plain text with what the tokenizer adds before it, and nothing of what it adds behind it."""
        bare = self._bare(text)
        if not self._adds_tokens:
            return bare
        whole = [int(i) for i in self.tokenizer(text)["input_ids"]]
        if not bare:
            while whole and whole[-1] in self.end_ids:
                whole.pop()
            return whole
        starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
        if starts:
            whole = whole[: starts[0] + len(bare)]
        # a text that was laid out by a template before has its start token already
        if len(whole) > 1 and whole[0] == whole[1] == self.tokenizer.bos_token_id:
            whole = whole[1:]
        return whole

    @cached_property
    def _adds_tokens(self) -> bool:
        """Whether the tokenizer adds tokens around a text."""
        return [int(i) for i in self.tokenizer("a")["input_ids"]] != self._bare("a")

    # ---- conversations

    @property
    def _name(self) -> str:
        return f"'{self.tokenizer.name_or_path}'" if self.tokenizer.name_or_path else "the model"

    def _render(self, messages: Sequence[Mapping[str, Any]], layout: Layout, **how: bool) -> str:
        """Text of a conversation, as the chat template writes it."""
        if not self._has_template:
            raise UserError(
                "The prompt is a conversation but the model's tokenizer has no chat template; "
                "give plain text prompts or set tokenizer.chat_template."
            )
        tools, variables = list(layout.get("tools") or ()) or None, dict(layout.get("chat_template_kwargs") or {})
        try:
            self._say_what_is_not_shown(frozenset([*(["tools"] if tools else []), *variables]))
            text = self.tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **how, **variables)
        except Exception as error:  # a template is a program of somebody else, and may raise anything
            begins = shortened(content(messages[:1]))
            raise UserError(
                f"The chat template of {self._name} refuses or fails on the conversation that begins with {begins}: "
                f"{reason_of(error)}; change the messages, or tokenizer.chat_template."
            ) from error
        return str(text)

    def _say_what_is_not_shown(self, given: frozenset[str]) -> None:
        """Log once which variables the chat template is given and never reads."""
        if given in self._told:
            return
        self._told.add(given)
        template = str(self.tokenizer.get_chat_template(tools=[{}] if "tools" in given else None))
        unread = sorted(name for name in given if not re.search(rf"\b{re.escape(name)}\b", template))
        if unread:
            _log.warning(
                "The chat template of %s does not read %s: what the data says there is not shown to the model.",
                self._name,
                " and ".join(f"'{name}'" for name in unread),
            )

    @cached_property
    def _told(self) -> set[frozenset[str]]:
        return set()

    def _prompt_text(self, prompt: list[dict[str, Any]], layout: Layout) -> str:
        going_on = _goes_on(prompt)
        how = {"continue_final_message": True} if going_on else {"add_generation_prompt": True}
        return self._render(prompt, layout, **how)

    # ---- responses

    def encode_response(
        self, prompt: Prompt, response: Response, *, ended: bool = True, **layout: Unpack[Layout]
    ) -> list[int]:
        """Token ids of a given response after a prompt, with the end token that the model would have to say.

        Args:
            prompt: text or messages.
            response: text or one message; after a conversation the chat template lays it out, up to the end of its
                turn.
            ended: false for a response that a length limit cut off: it has no end token.
            layout: as for the prompt.

        Raises:
            UnwritableResponse: the chat template writes the answered turn otherwise than it opens one to be answered,
                or leaves out a part of the response; or an end token stands inside the response.
        """
        prompt = self.asked(prompt)
        if isinstance(prompt, str):
            text = content(response)
            ids = self._after(prompt, self._encode_text(prompt), text)
        else:
            messages = list(response) if not isinstance(response, str) else [{"role": "assistant", "content": response}]
            text = content(messages)
            opened, rest = self._answered(prompt, messages, layout)
            ids = self._after(opened, self._bare(opened), rest, laid_out=True)
        inside = self.encode(text)
        while inside and inside[-1] in self.end_ids:
            inside.pop()
        early = next((i for i in inside if i in self.end_ids), None)
        if early is not None:
            end = self.tokenizer.decode([early], skip_special_tokens=False)
            raise UnwritableResponse(
                f"the end token {end} stands inside the response {shortened(text)}, where the model stops."
            )
        stop = next((i for i, token in enumerate(ids) if token in self.end_ids), None)
        if stop is not None:
            ids = ids[: stop + 1] if ended else ids[:stop]  # templates may write more behind the end of a turn
        elif ended and self.tokenizer.eos_token_id is not None:
            ids = [*ids, int(self.tokenizer.eos_token_id)]
        return ids

    def encode_turns(
        self, prompt: Prompt, response: Response, *, ended: bool = True, **layout: Unpack[Layout]
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a response of one or more turns, and which of them the model writes.

        Between two messages of the assistant stand others, of the user or of a tool: the model reads them, with what
        the template writes around them.

        Raises:
            UnwritableResponse: as `encode_response`, or the template writes an answered turn otherwise when the
                conversation goes on.
        """
        prompt = self.asked(prompt)
        if isinstance(prompt, str) or isinstance(response, str) or len(response) == 1:
            ids = self.encode_response(prompt, response, ended=ended, **layout)
            return ids, [True] * len(ids)
        talk, ids = list(prompt), self.encode_prompt(prompt, **layout)
        before, own = len(ids), [False] * len(ids)
        for i, message in enumerate(response):
            if message["role"] == "assistant":
                opened = self.encode_prompt(talk, **layout)
                if opened[: len(ids)] != ids:
                    raise UnwritableResponse(
                        f"the chat template of {self._name} writes an answer otherwise when the conversation goes on; "
                        "give each answer as a row of its own, or leave the row out."
                    )
                own += [False] * (len(opened) - len(ids))
                answer = self.encode_response(talk, [message], ended=ended or i + 1 < len(response), **layout)
                ids, own = [*opened, *answer], [*own, *[True] * len(answer)]
            talk.append(dict(message))
        return ids[before:], own[before:]

    def _answered(
        self, prompt: list[dict[str, Any]], messages: Sequence[Mapping[str, Any]], layout: Layout
    ) -> tuple[str, str]:
        """The prompt as text, and what the chat template writes behind it where `messages` answer it."""
        if len(messages) != 1 or messages[0].get("role", "assistant") != "assistant":
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise UserError(f"a response must be one message of the assistant, not {len(messages)} ({roles}).")
        opened = self._prompt_text(prompt, layout)
        answer = dict(messages[0])
        if _goes_on(prompt):
            answer["content"] = str(prompt[-1]["content"]) + str(answer.get("content") or "")
            prompt = prompt[:-1]
        whole = self._render([*prompt, answer], layout, add_generation_prompt=False)
        advice = "give both as texts that are laid out already, set chat_template_kwargs, or leave the row out"
        if not whole.startswith(opened):
            shared = next(i for i, (a, b) in enumerate(zip(opened, whole + "\0", strict=False)) if a != b)
            raise UnwritableResponse(
                f"the chat template of {self._name} opens the turn with {shortened(opened[shared:])} and does not "
                f"write the response {shortened(content(messages))} so; {advice}."
            )
        turn = _squeezed(whole[self._turn_begins(prompt, whole, layout) :])
        called = [str(call.get("function", call).get("name") or "") for call in answer.get("tool_calls") or ()]
        for said in (content([answer]), *(str(answer.get(name) or "") for name in REASONING), *called):
            if _squeezed(said) not in turn:
                raise UnwritableResponse(
                    f"the chat template of {self._name} leaves out a part of the response {shortened(said)}; {advice}."
                )
        return opened, whole[len(opened) :]

    def _turn_begins(self, prompt: list[dict[str, Any]], whole: str, layout: Layout) -> int:
        """Where in the whole conversation the template begins to write the last turn."""
        try:
            before = self._render(prompt, layout, add_generation_prompt=False) if prompt else ""
        except UserError:  # a template that takes no conversation without an answer
            return 0
        return next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))

    def _after(self, before: str, before_ids: list[int], text: str, *, laid_out: bool = False) -> list[int]:
        """Token ids of `text` after a prompt: as the tokenizer encodes both together, where the prompt's stay."""
        both = self._bare(before + text) if laid_out else self._encode_text(before + text)
        if before_ids and both[: len(before_ids)] == before_ids:
            return both[len(before_ids) :]
        return self.encode(text)

    # ---- pieces of text

    def _bare(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def encode(self, text: str) -> list[int]:
        """Token ids of text inside a response: nothing is added, not even the space that some tokenizers begin with."""
        if self._adds_space:
            for anchor in ANCHORS:
                before, both = self._bare(anchor), self._bare(anchor + text)
                if both[: len(before)] == before:
                    return both[len(before) :]
        return self._bare(text)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer encodes the beginning of a text otherwise than the same words after a line break."""
        before = self._bare("\n")
        return self._bare("\na") != [*before, *self._bare("a")]

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Token ids that no text shows: those that end and pad.

        Other special tokens are words of the response: `<think>`, a call of a tool. Where the tokenizer never reads a
        special token out of a text, as the built-in one, none has a text, and all are hidden.
        """
        if self.tokenizer.split_special_tokens:
            return frozenset(int(i) for i in self.tokenizer.all_special_ids)
        return frozenset(int(i) for i in (self.tokenizer.pad_token_id, *self.end_ids) if i is not None)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids of a response, as rewards, checkers and people see it: without `hidden_ids`.

        Spaces are not cleaned up, and a first one stays.
        """
        if self.tokenizer.split_special_tokens:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        shown = [i for i in ids if i not in self.hidden_ids]
        if not self._adds_space:
            return self._text(shown)
        before = self._bare("a")
        return self._text([*before, *shown]).removeprefix(self._text(before))

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _goes_on(prompt: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the response goes on with the prompt's last message."""
    return bool(prompt) and prompt[-1].get("role") == "assistant" and isinstance(prompt[-1].get("content"), str)


def _squeezed(text: str) -> str:
    """The text without white space, which templates trim and add."""
    return "".join(text.split())


def with_pad(tokenizer: Any) -> Any:
    """Pad with the end token when there is no pad token: masks say what is padding, never ids."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has neither a pad token nor an end token; set one and save it again.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
