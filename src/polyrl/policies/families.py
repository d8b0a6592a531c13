"""What differs between the model families of transformers, and between its releases, declared in one place."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from transformers import DynamicCache
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
