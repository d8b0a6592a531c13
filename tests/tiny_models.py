"""Random two-layer models of several families, as ordinary folders, with weights large enough for firm opinions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from polyrl.models.language.policy import LanguagePolicy
from polyrl.pretrain.tiny import character_tokenizer

torch.set_num_threads(1)  # models this small only get slower with more

FAMILIES = ("qwen3", "llama", "gpt2", "gemma2")


def config_of(family: str, vocabulary: int, **changes: Any) -> Any:
    """Configuration of a tiny model of that family."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": changes.pop("max_position_embeddings", 128),
        "initializer_range": changes.pop("initializer_range", 0.25),
    }
    if family == "qwen3":
        return Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, **size, **special, **changes)
    if family == "llama":
        return LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **size, **special, **changes)
    if family == "qwen2":  # queries, keys and values with biases
        size.pop("head_dim")
        return Qwen2Config(vocab_size=vocabulary, tie_word_embeddings=True, **size, **special, **changes)
    if family == "mistral":
        return MistralConfig(vocab_size=vocabulary, sliding_window=None, **size, **special, **changes)
    if family == "gemma2":  # a window shorter than the responses, and capped logits
        caps = {"sliding_window": 8, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}
        return Gemma2Config(vocab_size=vocabulary, **caps, **size, **special, **changes)
    if family == "granite":
        return GraniteConfig(vocab_size=vocabulary, logits_scaling=3.0, **size, **special, **changes)
    if family == "cohere":
        size.pop("head_dim")
        return CohereConfig(vocab_size=vocabulary, logit_scale=0.3, **size, **special, **changes)
    if family == "mamba":
        return MambaConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, **special, **changes)
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=size["initializer_range"],
        **special,
        **changes,
    )


def save_model(folder: Path, family: str, tokenizer: Any = None, seed: int = 0, **changes: Any) -> Path:
    """Write a model of that family and its tokenizer (one token a character by default)."""
    tokenizer = tokenizer or character_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(family, len(tokenizer), **changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_policy(folder: Path, family: str = "qwen3", tokenizer: Any = None, **changes: Any) -> LanguagePolicy:
    """Save such a model and load it as a policy."""
    return LanguagePolicy.load(save_model(folder / family, family, tokenizer, **changes))


def multi_character_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over a, b, c and é (two bytes, two tokens), with tokens of two and three letters."""
    a, b, c, first, second = "a", "b", "c", "Ã", "©"  # é in the byte-level alphabet
    pieces = ["<pad>", "<bos>", "<eos>", a, b, c, first, second, "ab", "bc", "ca", "abc"]
    merges = [(a, b), (b, c), (c, a), ("ab", c)]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


@torch.no_grad()
def naive_logits(policy: LanguagePolicy, ids: list[int]) -> torch.Tensor:
    """Logits [len(ids), V] of one row, without padding, cache or any code of ours."""
    return policy.causal_lm(input_ids=torch.tensor([ids])).logits[0]
