"""Tokenizers of bytes and special tokens that differ in what they add and in their chat templates; no model needed."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from polyrl.policies.encoding import TextEncoding

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
        self.more = tuple(tokenizer.convert_tokens_to_ids(t) for t in more_ends)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The end token and the further ones that a generation config may name."""
        return (*super().end_ids, *self.more)

    def raw(self, ids: list[int]) -> str:
        """Text with all special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
