"""How well a learned reward stands for the truth: best-of-n curves (arXiv:2210.10760), R squared (arXiv:2409.06957)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from polyrl.core.context import Context

BINS = 10
"""Bins of equal count for R squared; PF-PPO does not say how many it takes."""


def best_of_n_weights(n: int, size: int) -> Tensor:
    """Probability that the i-th smallest of `size` is the largest of n drawn without replacement, float64 `[size]`.

    C(i-1, n-1) / C(size, n) for i >= n, by log-binomials: E_n = sum of these times the gold of the answers, in the
    order of the proxy, is the unbiased estimate of what best-of-n earns (arXiv:2210.10760, appendix I).
    """
    i = torch.arange(1, size + 1, dtype=torch.float64)
    log = torch.lgamma(i) - torch.lgamma((i - n + 1).clamp(min=1)) - math.lgamma(n)
    log = log - (math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1))
    return torch.where(i >= n, log.exp(), 0.0)


def best_of_n(proxy: Tensor, value: Tensor, n: int) -> Tensor:
    """E_n of `value` when the best of n by `proxy` is taken, both `[..., N]`: returns `[...]` float64."""
    order = proxy.argsort(dim=-1, stable=True)
    return (value.gather(-1, order).double() * best_of_n_weights(n, proxy.shape[-1])).sum(-1)


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n || start) = log n - (n - 1) / n, nats (an upper bound where answers repeat)."""
    return math.log(n) - (n - 1) / n


def pools(group: Tensor) -> Tensor:
    """Rows of each group's answers, `[groups, N]` int64, N the size of the smallest: of the others the first N."""
    _, size = torch.unique(group, return_counts=True)
    least = int(size.min())
    return torch.stack([(group == g).nonzero()[:least, 0] for g in torch.unique(group)])


def log_best_of_n(proxies: Mapping[str, Tensor], gold: Tensor | None, context: Context) -> None:
    """Log what best-of-n by each proxy earns for n = 1, 2, 4, ... up to N, and its KL in nats.

    Args:
        proxies: scores by name, `[..., prompts, N]`; the mean over all but the last dimension is told.
        gold: true worth of the same answers, `[prompts, N]`, where it is known; it is one more proxy.
        context: takes `bon/<proxy>/proxy@<n>` and `bon/<proxy>/gold@<n>` in their own units, and `bon/kl@<n>`.
    """
    known = dict(proxies) if gold is None else {**proxies, "gold": gold}
    size = next(iter(known.values())).shape[-1]
    for n in (2**i for i in range(size.bit_length())):
        for name, proxy in known.items():
            values = {"proxy": proxy} if gold is None else {"proxy": proxy, "gold": gold.expand_as(proxy)}
            for what, value in values.items():
                context.metrics[f"bon/{name}/{what}@{n}"] = float(best_of_n(proxy, value, n).mean())
        context.metrics[f"bon/kl@{n}"] = best_of_n_kl(n)


def r_squared(reward: Tensor, gold: Tensor, bins: int = BINS) -> float | None:
    """R squared of a line through bin means of gold over bin means of reward; None where they do not vary.

    Both `[n]`. Bins hold nearly equal numbers of neighbours in reward.
    """
    order = reward.argsort(stable=True)
    x, y = (torch.stack([c.double().mean() for c in v[order].tensor_split(min(bins, len(v)))]) for v in (reward, gold))
    x, y = x - x.mean(), y - y.mean()
    if float(x.square().sum()) < 1e-20 or float(y.square().sum()) < 1e-20:
        return None
    slope = (x * y).sum() / x.square().sum()
    return float(1 - (y - slope * x).square().sum() / y.square().sum())
