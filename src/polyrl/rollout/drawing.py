"""How a token is drawn from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Errors: UserError on values that mean nothing."""

    temperature: float = 1.0
    """Logits are divided by it; log-probabilities of the batch use it too."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens that together have this probability."""
    max_tokens: int = 64
    """Longest response, tool-returned tokens included."""
    stop: tuple[str, ...] = ()
    """Strings that end the response; they stay in it."""
    greedy: bool = False
    """Always take the most probable token."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature must be above 0, not {self.temperature}; for greedy decoding set greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (off) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise UserError("stop must be a list of strings that are not empty.")


def draw(
    logits: Tensor, temperature: Tensor | None, greedy: Tensor | None, uniform: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Token [n] by inverse CDF (greedy rows: argmax), its log-probability [n] under softmax(logits / temperature)."""
    logprobs = torch.log_softmax(logits if temperature is None else logits / temperature[:, None], -1)
    if sampling.greedy:
        token = logits.argmax(-1)
    else:
        probs = logprobs.exp()
        if sampling.top_k or sampling.top_p < 1:
            probs = filtered(probs.double(), sampling.top_k, sampling.top_p)
        # double precision: a running sum over a large vocabulary must not swallow rare tokens
        cdf = probs.cumsum(-1, dtype=torch.float64)
        token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
        token = token.clamp(max=logits.shape[1] - 1)
        if greedy is not None:
            token = torch.where(greedy, logits.argmax(-1), token)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def filtered(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to 0 what top-k and then top-p (of what top-k left) exclude; [n, V] in and out, not renormalized."""
    if top_k == 0 and top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = 0
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probs).scatter(-1, order, ordered)
