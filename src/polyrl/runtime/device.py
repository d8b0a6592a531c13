"""Which device a run computes on, and what it takes there by default: precision, micro-batches, rows at a time.

What is decided depends on `Facts` alone, so that it can be looked at for devices that are not here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from polyrl.errors import UserError
from polyrl.runtime.config import RunConfig

MICRO_BATCH_TOKENS = {"cuda": 32_768}
"""Padded tokens of a forward pass where nothing is said, by kind of device."""
SMALL_MICRO_BATCH = 1024
"""The same on every other one: measured best on a CPU, whose caches are small."""
SLOW = 3.0
"""How many times slower bfloat16 products may be than float32 ones: 0.4 where a CPU has them, 11 to 20 where not."""


@dataclass(frozen=True)
class Facts:
    """What devices there are.

    Attributes:
        cuda, mps: whether there is a GPU of NVIDIA's or AMD's kind, and one of Apple's.
        bfloat16: whether the former multiplies bfloat16.
    """

    cuda: bool = False
    mps: bool = False
    bfloat16: bool = False


def facts_here() -> Facts:
    """The facts of this machine."""
    cuda = torch.cuda.is_available()
    return Facts(
        cuda=cuda,
        mps=torch.backends.mps.is_available(),
        bfloat16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
    )


def make_device(name: str, facts: Facts | None = None) -> str:
    """`auto` takes a GPU if there is one: cuda, else mps, else the CPU.

    Raises:
        UserError: the device cannot be used here.
    """
    if name == "auto":
        found = facts_here() if facts is None else facts
        return "cuda" if found.cuda else "mps" if found.mps else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device '{name}' cannot be used: {str(error).splitlines()[0]}.") from None
    return name


@dataclass(frozen=True)
class Settings:
    """How a language run computes.

    Attributes:
        device: where.
        precision: of forward passes.
        micro_batch_tokens: padded tokens of one.
        tf32: whether float32 products of a CUDA device may round their factors to TF32.
    """

    device: str
    precision: Literal["float32", "bfloat16"]
    micro_batch_tokens: int
    tf32: bool = False


def settings_of(config: RunConfig, facts: Facts | None = None) -> Settings:
    """What was asked for, and for the rest what the device is best at.

    Where float32 is asked for on a CUDA device, that is what its products are: no TF32 then.

    Raises:
        UserError: the device cannot be used here.
    """
    found = facts_here() if facts is None else facts
    device = make_device(config.device, found)
    kind = device.partition(":")[0]
    usual: Literal["float32", "bfloat16"] = "bfloat16" if kind == "cuda" and found.bfloat16 else "float32"
    return Settings(
        device=device,
        precision=config.precision or usual,
        micro_batch_tokens=config.micro_batch_tokens or MICRO_BATCH_TOKENS.get(kind, SMALL_MICRO_BATCH),
        tf32=kind == "cuda" and config.precision != "float32",
    )


def settled(config: RunConfig, settings: Settings) -> RunConfig:
    """The config with precision and micro-batches written out, so that a run goes on with them wherever it is."""
    return dataclasses.replace(config, precision=settings.precision, micro_batch_tokens=settings.micro_batch_tokens)


def apply(settings: Settings) -> None:
    """Tell torch how products of the device round; nothing where it is no CUDA device."""
    if settings.device.partition(":")[0] == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = settings.tf32
        torch.backends.cudnn.allow_tf32 = settings.tf32


def bfloat16_slowdown(clock: Callable[[], float] = time.perf_counter) -> float:
    """How many times longer a product of a linear layer takes in bfloat16 than in float32, on the CPU, by one thread.

    Takes some milliseconds; a tenth of a second where bfloat16 is slow.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = {}
    try:
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            F.linear(x, weight)  # kernels are prepared
            took = []
            for _ in range(3):
                began = clock()
                F.linear(x, weight)
                took.append(clock() - began)
            best[dtype] = min(took)
    finally:
        torch.set_num_threads(threads)
    return best[torch.bfloat16] / best[torch.float32]


def check_precision(config: RunConfig, measured: Callable[[], float] = bfloat16_slowdown) -> None:
    """Refuse bfloat16 on a CPU that has no such products, unless `force` says to go on.

    Raises:
        UserError: it was measured to be `SLOW` times slower than float32; or `force` has nothing to force.
    """
    if config.force and config.precision != "bfloat16":
        raise UserError(
            "--force lets --precision bfloat16 run where it is slow, and means nothing here; leave it away."
        )
    if config.precision != "bfloat16" or config.force or make_device(config.device) != "cpu":
        return
    if (slower := measured()) >= SLOW:
        raise UserError(
            f"This processor has no bfloat16 products: one took {slower:.0f} times as long as in float32, which a run "
            "would be slower by; leave --precision away, or go on with --force."
        )
