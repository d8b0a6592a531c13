"""Log-probabilities and entropies of tokens from logits, with a gradient that keeps one table and makes one more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def score_logits(
    logits: Tensor, target: Tensor, temperature: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of tokens `target` [n] and entropy [n] of softmax(logits [n, V] / temperature [n]), float32."""
    logprob, entropy = _Scores.apply(logits, target, temperature, want_entropy)  # type: ignore[no-untyped-call]
    return logprob, entropy


class _Scores(torch.autograd.Function):
    """Log-probability of a token and entropy [n] of softmax(logits [n, V] / temperature [n]), float32.

    One table [n, V] is kept and one is made on the way back; and nothing is done for an entropy without a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, temperature: Tensor, want_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        logs = (logits.float() / temperature[:, None]).log_softmax(-1)
        logprob = logs.gather(-1, target[:, None])[:, 0]
        # 0 log 0 = 0, also where a logit is -inf
        entropy = -(logs.exp() * logs.clamp(min=-1e38)).sum(-1) if want_entropy else None
        ctx.save_for_backward(logs, target, temperature, entropy)
        ctx.dtype = logits.dtype
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_logprob: Tensor | None, by_entropy: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        logs, target, temperature, entropy = ctx.saved_tensors
        grad_output = logs.exp()
        along = torch.zeros_like(temperature) if by_logprob is None else -by_logprob
        if by_entropy is None:
            grad_output *= along[:, None]
        else:  # d H / d logit = -p (log p + H)
            grad_output *= along[:, None] - by_entropy[:, None] * (logs.clamp(min=-1e38) + entropy[:, None])
        if by_logprob is not None:
            grad_output.scatter_add_(-1, target[:, None], by_logprob[:, None])
        return (grad_output / temperature[:, None]).to(ctx.dtype), None, None, None
