"""Models of transformers that were given as objects, kept as ordinary folders so that every process can load them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from polyrl.errors import UserError
from polyrl.models.language.folders import first_line, no_progress_bar
from polyrl.runtime.cache import cache_folder, cached


def is_model(value: Any) -> bool:
    """Whether an object is a model of transformers."""
    return isinstance(value, PreTrainedModel)


def kept(model: PreTrainedModel, tokenizer: Any = None) -> Path:
    """The folder in polyrl's cache that holds this model, named after its weights; written where it is not there.

    Args:
        model: any causal language model; it is read and not changed.
        tokenizer: its tokenizer; None reads the one beside the weights that the model was loaded from.

    Raises:
        UserError: there is no tokenizer.
    """
    if tokenizer is None:
        source = str(model.config.name_or_path or "")
        try:
            if not source:
                raise OSError("it was not loaded from anywhere")
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The model object does not say where its tokenizer is ({first_line(error)}); give (model, tokenizer)."
            ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"The tokenizer beside the model is a {type(tokenizer).__name__} and none of transformers.")

    def make(folder: Path) -> dict[str, Any]:
        with no_progress_bar():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"made": "from a model object", "class": type(model).__name__}

    return cached(cache_folder() / "given" / _digest(model, tokenizer), make)


def _digest(model: PreTrainedModel, tokenizer: Any) -> str:
    """16 hexadecimal digits that identify weights, settings and vocabulary."""
    found = hashlib.blake2b(digest_size=8)
    found.update(str(model.config.to_json_string()).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    found.update(repr((tokenizer.chat_template, tokenizer.special_tokens_map)).encode())
    return found.hexdigest()
