"""What differs between the model families of transformers, and between its releases, declared in one place."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What a forward pass calls the key-value cache: in transformers 5.24 and later, and before."""


@functools.cache
def takes(kind: type, argument: str) -> bool:
    """Whether the forward pass of a model class has an argument of this name."""
    forward: Any = kind.forward  # type: ignore[attr-defined]
    return argument in inspect.signature(forward).parameters


def cache_argument(kind: type) -> str | None:
    """What the forward pass of a model class calls the key-value cache; None where it takes none."""
    return next((name for name in CACHE_ARGUMENTS if takes(kind, name)), None)


def keeps_keys(cache: DynamicCache) -> bool:
    """Whether a model's cache has keys and values in some layer: a state-space model's has states alone."""
    return any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def backbone_of(model: Any) -> Any:
    """The model without its output head.

    A few families (Llama 4's text model) name no base model that they have: then it is the one model inside of them,
    and where there is none, the whole model itself.
    """
    base = model.base_model
    if base is not model:
        return base
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inside[0] if len(inside) == 1 else model


# --------------------------------------------------------------------------------- RoPE that depends on the length


def rope_switches(config: Any) -> tuple[int, ...]:
    """Lengths in tokens beyond which longrope takes its long factors, for all places of a text; in ascending order."""
    found, config = set(), config.get_text_config(decoder=True)
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope":
            own = getattr(config, "original_max_position_embeddings", None)
            length = rope.get("original_max_position_embeddings") or own or config.max_position_embeddings
            found.add(int(length))
    return tuple(sorted(found))


def rope_limit(config: Any) -> int | None:
    """The longest text for which dynamic RoPE is as it was trained; every longer one has its own; None where all do."""
    if any("dynamic" in str(rope.get("rope_type")) for rope in _ropes(config)):
        return int(config.get_text_config(decoder=True).max_position_embeddings)
    return None


def side(length: Tensor, switches: tuple[int, ...]) -> Tensor:
    """How many of the switches texts of `length` [n] tokens are beyond, [n] int64."""
    return torch.bucketize(length, torch.tensor(switches, device=length.device))


def _ropes(config: Any) -> list[dict[str, Any]]:
    """RoPE's parameters: one set for all layers, or one for each kind of layer."""
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [own for own in parameters.values() if isinstance(own, dict)] or [parameters]
