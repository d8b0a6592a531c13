"""Float32 products of linear layers through oneDNN, on processors where it is twice as fast as MKL.

PyTorch gives float32 products to MKL, which takes its AVX2 kernels on AMD processors; oneDNN takes AVX-512 ones there
(measured on an EPYC: 105 against 210 to 245 GFLOP/s a core). The results differ by rounding only.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SETTING = "POLYRL_ONEDNN"
"""Environment variable that decides by itself: 1 takes oneDNN, 0 does not."""

SMALLEST = 2**22
"""Floating point operations of a product below which calling oneDNN costs more than its kernels save (measured)."""

BLOCK = 64
"""Rows are filled up to a multiple of this many: oneDNN makes and keeps a kernel for each shape that it meets."""


@functools.cache
def onednn_pays() -> bool:
    """Whether oneDNN's float32 products are faster here than PyTorch's own: by the processor, never by a clock."""
    backends: Any = torch.backends
    available = backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    setting = os.environ.get(SETTING, "")
    if setting or not available:
        return bool(available) and setting != "0"
    if not backends.mkl.is_available() or backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [m, k] @ weight [n, k]^T + bias [n]` of float32 on the CPU, without gradients; any strides."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `F.linear(x, weight)`, of `[..., k]` and `[n, k]`, is a product that oneDNN does faster."""
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and 2 * x.numel() * weight.shape[0] >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and onednn_pays()
    )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [m, k] @ weight [n, k]^T + bias [n]` by the faster of both, without gradients."""
    return product(x, weight, bias) if fits(x, weight) else F.linear(x, weight, bias)


def _filled(x: Tensor) -> Tensor:
    """`[..., k]` as rows `[m, k]`, zeros behind them up to a whole block."""
    rows = x.reshape(-1, x.shape[-1])
    fill = -len(rows) % BLOCK
    return F.pad(rows, (0, 0, 0, fill)) if fill else rows


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = _filled(x)
        ctx.save_for_backward(rows, weight)
        ctx.shape = x.shape
        return product(rows, weight, bias)[: x.numel() // x.shape[-1]].view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = _filled(grad_output)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = product(rows, weight.t())[: grad_output.numel() // grad_output.shape[-1]].view(ctx.shape)
        if ctx.needs_input_grad[1]:
            # oneDNN is slow where its first factor is transposed by strides, and only there: so copy that one
            to_weight = product(rows.t().contiguous(), x.t())
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias


class Linear(nn.Linear):
    """`nn.Linear` that takes oneDNN where it pays; the parameters, their names and what is saved stay the same."""

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` -> `[..., out]`; differentiable once where oneDNN is used."""
        if not fits(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def quicken(model: nn.Module) -> None:
    """Make every plain `nn.Linear` of a model a `Linear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
