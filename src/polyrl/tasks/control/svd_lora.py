"""Low-rank adaptation of a small frozen network, in NumPy: what a task may train within its steps.

Each of L layers has an update scale P diag(e) Q, of which a rank keeps the first components (arXiv:2303.10512, as
arXiv:2507.11515's code has it). The frozen network solves one classification by construction, because it says what the
right classes are; those of another are said by the same network with some of its layers changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEEPNESS = 3.0
"""By what the readout multiplies: how sure the frozen network is."""
ALPHA = 16.0
"""lora_alpha: updates are multiplied by ALPHA / R."""
ORTHOGONALITY = 0.01
"""Weight of the mean over layers of |P'P - I|^2 + |QQ' - I|^2."""
STEP, DECAY, BETAS, EPSILON = 1e-2, 1e-5, (0.9, 0.999), 1e-8
"""AdamW's step size, weight decay, decay rates and epsilon."""


@dataclass(frozen=True)
class Frozen:
    """A residual network h <- h + tanh(W h), L times, and a readout.

    Attributes:
        weights: `[L, D, D]`.
        readout: `[K, D]`, steepness included.
    """

    weights: Floats
    readout: Floats

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        return [(self.weights.shape[2], self.weights.shape[1])] * len(self.weights)

    def logits(self, x: Floats) -> Floats:
        """`[B, K]` of inputs `[B, D]`."""
        for weight in self.weights:
            x = x + np.tanh(x @ weight.T)
        return x @ self.readout.T

    def classes(self, x: Floats) -> NDArray[np.int64]:
        """The right ones, `[B]`, of the classification that it solves."""
        found: NDArray[np.int64] = self.logits(x).argmax(1)
        return found


def orthogonal(draw: np.random.Generator, rows: int, columns: int) -> Floats:
    """A random matrix `[rows, columns]` whose shorter side is orthonormal."""
    found = np.linalg.qr(draw.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return found if rows >= columns else found.T


def networks(
    draw: np.random.Generator, layers: int, width: int, classes: int, changes: Sequence[int]
) -> tuple[Frozen, Frozen]:
    """A network, and one whose layers differ from it by random matrices of the ranks `changes` `[L]`."""
    weights = np.stack([orthogonal(draw, width, width) for _ in range(layers)])
    readout = STEEPNESS / math.sqrt(width) * draw.standard_normal((classes, width))
    moved = weights.copy()
    for layer, rank in enumerate(changes):
        moved[layer] += 1.5 * orthogonal(draw, width, width)[:, :rank] @ orthogonal(draw, width, width)[:rank]
    return Frozen(weights, readout), Frozen(moved, readout)


@dataclass
class Adapter:
    """Updates of all layers of a frozen network, as one vector, with AdamW's averages.

    Attributes:
        frozen: what is adapted.
        rank: R, components of each layer.
        vector: P `[L, D, R]`, e `[L, R]` and Q `[L, R, D]`, flat; written in place.
        averages: `[2, N]` of gradients and of their squares.
        taken: `[1]`, steps taken so far.
    """

    frozen: Frozen
    rank: int
    vector: Floats
    averages: Floats
    taken: Floats

    @classmethod
    def new(cls, frozen: Frozen, rank: int, draw: np.random.Generator) -> Adapter:
        """P and Q are orthonormal and e is 0, so that nothing is changed yet (check 8)."""
        layers, width = frozen.weights.shape[:2]
        p = np.stack([orthogonal(draw, width, rank) for _ in range(layers)])
        q = np.stack([orthogonal(draw, rank, width) for _ in range(layers)])
        vector = np.concatenate([p.ravel(), np.zeros(layers * rank), q.ravel()])
        return cls(frozen, rank, vector, np.zeros((2, len(vector))), np.zeros(1))

    def parts(self, of: Floats) -> tuple[Floats, Floats, Floats]:
        """P, e and Q as views of a vector `[N]`."""
        layers, width = self.frozen.weights.shape[:2]
        a, b = layers * width * self.rank, layers * (width + 1) * self.rank
        shapes = ((layers, width, self.rank), (layers, self.rank), (layers, self.rank, width))
        p, e, q = (x.reshape(s) for x, s in zip(np.split(of, (a, b)), shapes, strict=True))
        return p, e, q

    def logits(self, x: Floats, ranks: NDArray[np.int64]) -> Floats:
        """`[B, K]` of inputs `[B, D]` with the first `ranks` `[L]` components."""
        return self._forward(x, ranks)[-1][0] @ self.frozen.readout.T

    def _forward(self, x: Floats, ranks: NDArray[np.int64]) -> list[tuple[Floats, Floats, Floats]]:
        """Of each layer what comes in, its components `[B, R]` and its tanh; at last what comes out."""
        p, e, q = self.parts(self.vector)
        kept, scale, found = e * self.mask(ranks), ALPHA / self.rank, []
        for layer, weight in enumerate(self.frozen.weights):
            z = x @ q[layer].T
            t = np.tanh(x @ weight.T + scale * (z * kept[layer]) @ p[layer].T)
            found.append((x, z, t))
            x = x + t
        return [*found, (x, x, x)]

    def mask(self, ranks: NDArray[np.int64]) -> Floats:
        """`[L, R]`, 1 of the first `ranks` `[L]` components of each layer."""
        return (np.arange(self.rank) < ranks[:, None]).astype(float)

    def gradient(self, x: Floats, y: NDArray[np.int64], ranks: NDArray[np.int64]) -> tuple[float, Floats]:
        """Cross-entropy in nats of classes `y` `[B]`, and the gradient `[N]` of it and of the penalty."""
        p, e, q = self.parts(self.vector)
        mask, scale, passed = self.mask(ranks), ALPHA / self.rank, self._forward(x, ranks)
        logits = passed[-1][0] @ self.frozen.readout.T
        logs = logits - logits.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        rows = np.arange(len(y))
        back = np.exp(logs)
        back[rows, y] -= 1
        back = back @ self.frozen.readout / len(y)
        gradient = np.empty_like(self.vector)
        by_p, by_e, by_q = self.parts(gradient)
        for layer in reversed(range(len(mask))):
            h, z, t = passed[layer]
            kept = e[layer] * mask[layer]
            inner = back * (1 - t * t)
            through = scale * inner @ p[layer]
            by_p[layer] = scale * inner.T @ (z * kept)
            by_e[layer] = (through * z).sum(0) * mask[layer]
            by_q[layer] = (through * kept).T @ h
            back = back + inner @ self.frozen.weights[layer] + (through * kept) @ q[layer]
        weight = 4 * ORTHOGONALITY / len(mask)
        active, still = p * mask[:, None, :], mask[:, :, None] * np.eye(self.rank)
        by_p += weight * active @ (active.transpose(0, 2, 1) @ active - still)
        active = q * mask[:, :, None]
        by_q += weight * (active @ active.transpose(0, 2, 1) - still) @ active
        return float(-logs[rows, y].mean()), gradient

    def train(self, x: Floats, y: NDArray[np.int64], ranks: NDArray[np.int64]) -> float:
        """Take one step of AdamW on a batch; returns its cross-entropy before."""
        loss, gradient = self.gradient(x, y, ranks)
        self.taken += 1
        first, second = self.averages
        first += (1 - BETAS[0]) * (gradient - first)
        second += (1 - BETAS[1]) * (gradient * gradient - second)
        rate = np.sqrt(second / (1 - BETAS[1] ** self.taken[0])) + EPSILON
        self.vector *= 1 - STEP * DECAY
        self.vector -= STEP / (1 - BETAS[0] ** self.taken[0]) * first / rate
        return loss
