"""What a run and a generation server say to each other: plain values and tensors in one message, and what weights are.

A message is the length of a JSON text (8 bytes, little-endian), that text, and tensors as a safetensors file has them;
nothing in it can run code.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.language.folders import is_lora
from polyrl.models.language.policy import LanguagePolicy

FORM = 1
"""Of messages; another one is refused."""


def packed(said: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """A message; tensors of any shape."""
    text = json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text + save({k: x.contiguous() for k, x in (tensors or {}).items()})


def unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `packed` took, tensors of any shape.

    Raises:
        UserError: it is no message.
    """
    try:
        size = int.from_bytes(message[:8], "little")
        said = json.loads(message[8 : 8 + size])
        if not isinstance(said, dict):
            raise ValueError("not a mapping")
        return said, load(message[8 + size :])
    except (ValueError, SafetensorError):
        raise UserError(
            "What came over the network is no message of polyrl; is another program at that address?"
        ) from None


def weights_of(policy: LanguagePolicy) -> dict[str, Tensor]:
    """The weights that a policy acts by, of any shape, in main memory, by the model's names; adapters are added in."""
    model: Any = policy.model
    if is_lora(model):
        model = copy.deepcopy(model).merge_and_unload()
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def version_of(weights: Mapping[str, Tensor]) -> str:
    """What tells weights, of any shape, from others: a hash of names, shapes and all their bits."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        x = weights[name].contiguous()
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def reading_of(policy: LanguagePolicy) -> str:
    """What tells how a policy reads and writes text from others: a hash of vocabulary, padding and ends."""
    vocabulary = sorted(policy.tokenizer.get_vocab().items())
    said = json.dumps([vocabulary, policy.pad_id, policy.end_ids])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
