"""Gated recurrent units over the steps of a few rows, forward and back, in NumPy.

At the sizes of control a framework spends its time between the operations of a step, ten forwards and twenty back. Here
they are written out, on buffers of one step, and weights get their gradient by one product over all steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]


class _GruStates(torch.autograd.Function):
    """See `gru_states`."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, state: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Keep of each step the state before it, the gates, the fresh state, and what the reset gate let through."""
        x, kept, w, b = (t.detach().numpy() for t in (given, keep, weight, bias))
        rows, steps, size = len(x), x.shape[1], x.shape[2] // 3
        before, found, fresh, own = (np.empty((steps, rows, size), np.float32) for _ in range(4))
        gates = np.empty((steps, rows, 2 * size), np.float32)
        transposed, h = np.ascontiguousarray(w.T), state.detach().numpy()
        half = np.float32(0.5)
        for t in range(steps):
            h = np.multiply(h, kept[:, t], out=before[t])
            said = h @ transposed
            said += b
            gate = np.add(x[:, t, : 2 * size], said[:, : 2 * size], out=gates[t])
            gate *= half
            np.tanh(gate, out=gate)
            gate *= half
            gate += half
            own[t] = said[:, 2 * size :]
            new = np.multiply(gate[:, :size], own[t], out=fresh[t])
            new += x[:, t, 2 * size :]
            np.tanh(new, out=new)
            h = np.subtract(h, new, out=found[t])
            h *= gate[:, size:]
            h += new
        ctx.kept = before, gates, fresh, own, kept, w
        return torch.from_numpy(found.swapaxes(0, 1).copy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
        """Gradients by what inputs give, and by weight and bias."""
        before, gates, fresh, own, kept, w = ctx.kept
        steps, rows, size = before.shape
        by_given = np.empty((steps, rows, 3 * size), np.float32)
        by_own = np.empty((steps, rows, 3 * size), np.float32)
        arriving = grad.numpy()
        back = np.zeros((rows, size), np.float32)
        for t in range(steps - 1, -1, -1):
            back = back + arriving[:, t]
            reset, update, new = gates[t, :, :size], gates[t, :, size:], fresh[t]
            by_new = back * (1 - update) * (1 - new * new)
            mine = by_given[t]
            mine[:, :size] = by_new * own[t] * reset * (1 - reset)
            mine[:, size : 2 * size] = back * (before[t] - new) * update * (1 - update)
            mine[:, 2 * size :] = by_new
            by_own[t, :, : 2 * size] = mine[:, : 2 * size]
            np.multiply(by_new, reset, out=by_own[t, :, 2 * size :])
            back = (back * update + by_own[t] @ w) * kept[:, t]
        flat = by_own.reshape(-1, 3 * size)
        weight = flat.T @ before.reshape(-1, size)
        given = torch.from_numpy(by_given.swapaxes(0, 1).copy())
        return given, None, None, torch.from_numpy(weight), torch.from_numpy(flat.sum(0))


def gru_states(given: Tensor, state: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """States after each step `[B, T, H]`, as `polyrl.models.recurrent.GruLayer` has them; all float32.

    Args:
        given: `[B, T, 3 H]`, what inputs give to the gates.
        state: `[B, H]` before the first step, a constant.
        keep: `[B, T, 1]`, 0 before steps at which the state is forgotten, else 1.
        weight: `[3 H, H]` of states.
        bias: `[3 H]` of states.
    """
    states: Tensor = _GruStates.apply(given, state, keep, weight, bias)  # type: ignore[no-untyped-call]
    return states
