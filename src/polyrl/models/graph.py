"""What a trained policy computes greedily, as a list of nodes that leave the house: arrays and names, no code.

An actor states it (`Actor.greedy`), and `polyrl.exporting` writes it for NumPy or ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Node:
    """One operation on rows `[N, ...]`, float32 but where it says otherwise.

    | kind | what it gives | arrays, settings |
    | --- | --- | --- |
    | normalize | (x - mean) / deviation, cut at +-clip, all in float64 | `mean`, `deviation` `[D]`, `clip` |
    | linear | x weight + bias | `weight` `[I, O]`, `bias` `[O]` |
    | tanh, relu, elu | the function | |
    | layer-norm | mean 0 and variance 1 over a row, times scale plus shift | `scale`, `shift` `[O]`, `epsilon` |
    | take | columns `begin` to `end` | `begin`, `end` |
    | allow | `blocked` where the action mask says no | `blocked` |
    | beside | what several lists of nodes give of the same rows, one beside the other | `lists` |
    | expert | of `experts` times `numbers` columns, those of the largest of the `experts` last columns | |
    | argmax | place of the largest, int64 `[N]` | |
    | argmax-each | the same within each of several groups of columns, int64 `[N, A]` | `sizes` |
    | positive | 1 where positive, int64 `[N, A]` | |
    | scale | x half + middle | `half`, `middle` `[A]` |
    | pick | columns at these places | `places` `[P]` |
    | image | rows as images `[N, C, H, W]` | `height`, `width`, `channels`, `channels_first` |
    | convolve | a convolution without padding | `weight` `[O, C, K, K]`, `bias` `[O]`, `stride` |
    | flatten | images as rows | |

    Attributes:
        kind: from the table.
        arrays: by name.
        settings: by name, numbers or lists of them.
        lists: the nodes of `beside`.
    """

    kind: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    lists: Sequence[Sequence[Node]] = ()


def linear(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Node:
    """A linear layer, weight `[I, O]`."""
    return Node("linear", {"weight": weight, "bias": bias})
