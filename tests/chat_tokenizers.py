"""Tokenizers of bytes and special tokens that differ in what they add and in their chat templates; no model needed."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from polyrl.models.language.encoding import TextEncoding
from polyrl.tasks.language.preferences import dataset_task

SPECIALS = ("<pad>", "<s>", "</s>", "<|start|>", "<|end|>", "<think>", "</think>", "<tool_call>")


def byte_tokenizer(
    *,
    adds: str = "",
    template: str | None = None,
    end: str = "</s>",
    merges: tuple[tuple[str, str], ...] = (),
    specials: tuple[str, ...] = SPECIALS,
) -> PreTrainedTokenizerFast:
    """One token a byte, and those of `merges`; `adds` says what it puts around a text: "", start, end or both."""
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    number = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(number, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    frames = {"start": "<s> $A", "end": f"$A {end}", "both": f"<s> $A {end}"}
    if adds:
        known = [("<s>", number["<s>"]), (end, number[end])]
        backend.post_processor = processors.TemplateProcessing(single=frames[adds], special_tokens=known)
    extra = [t for t in specials if t not in ("<pad>", "<s>", end)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token=end, additional_special_tokens=extra
    )
    if template:
        tokenizer.chat_template = template
    return tokenizer


class Text(TextEncoding):
    """What reads text, without a model."""

    context: int | None = None

    def __init__(self, tokenizer: Any, *more_ends: str):
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id)
        self.more = tuple(tokenizer.convert_tokens_to_ids(t) for t in more_ends)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The end token and the further ones that a generation config may name."""
        return (*super().end_ids, *self.more)

    def raw(self, ids: list[int]) -> str:
        """Text with all special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


LOOP = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
THINKS = "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
CALLS = LOOP.replace(
    "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{% endfor %}"
)
DROPS = LOOP.replace("m.content", "m.content.split('</think>')[-1]")
SPLITS = LOOP.replace("m.content", "m.content.split('</think>')[-1] if not loop.last else m.content")
THOUGHT = "<think>\nhm\n</think>\nyes"
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {}}}]


def user(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def a_pair(prompt: Any, begins: Any, yes: Any, no: Any) -> dict[str, Any]:
    """A row of a pair, both of whose responses begin in one way."""
    row = {"chosen": begins + yes, "rejected": begins + no}
    return row if prompt is None else {"prompt": prompt, **row}


def first_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a data set gives it, other rows being of other questions."""

    def other(value: Any) -> Any:
        text = json.dumps(value)
        return json.loads(text.replace('"q', '"other q'))

    task = dataset_task([row, *({k: other(v) for k, v in row.items()} for _ in range(3))])
    rows = [*task.fixed_pairs["train"], *task.fixed_pairs["test"]]
    return next(r for r in rows if "other" not in json.dumps(r))
