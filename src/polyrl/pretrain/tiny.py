"""A small character-level language model: trains on a laptop in minutes, yet is an ordinary Hugging Face folder."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from polyrl.models.language.folders import no_progress_bar

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(sorted(string.printable[:95]))
"""Newline and the 95 printable ASCII characters."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; every other character becomes `<unk>`.

    Nothing is added to the text, `decode` is the exact inverse, and text never turns into a special token: "<eos>"
    in a prompt is five characters.
    """
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    pad, bos, eos, unk = SPECIALS
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def tiny_config(
    *,
    hidden: int = 192,
    layers: int = 2,
    heads: int = 6,
    kv_heads: int = 6,
    head_dim: int = 32,
    mlp: int = 768,
    context: int = 1024,
) -> Qwen3Config:
    """Qwen3 architecture with a tied head over the character vocabulary: 1.2 million parameters by default.

    Two wide layers rather than four narrow ones: on a CPU the number of layers is what a token costs.

    `context` is the longest prompt plus response, in tokens.
    """
    return Qwen3Config(
        vocab_size=len(SPECIALS) + len(CHARACTERS),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index("<pad>"),
        bos_token_id=SPECIALS.index("<bos>"),
        eos_token_id=SPECIALS.index("<eos>"),
    )


def build_tiny(folder: str | Path, seed: int, **size: Any) -> Path:
    """Write a freshly initialized model and its tokenizer to `folder`; `size` are arguments of `tiny_config`."""
    with torch.random.fork_rng(devices=[]):  # transformers initializes from the global generator: leave it as it was
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(tiny_config(**size))
    with no_progress_bar():
        model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return Path(folder)
