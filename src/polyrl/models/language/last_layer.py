"""The last layer of a language policy by itself: the states that it reads, and the matrix that it multiplies them with.

Every step's distribution is softmax(W h): `unembedding` is W, and `hidden_states` are the h, with the temperature and
whatever the model's family divides logits by already in them. `AdamModel` follows what Adam would do to W.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import micro_batches_of
from polyrl.runtime.ranks import present

BLOCK = 2**22
"""Numbers in the largest table that is made at once."""

READ = frozenset({"prompt_ids", "prompt_mask", "action", "present", "mask", "temperature"})


def unembedding(policy: LanguagePolicy) -> Tensor:
    """The matrix W `[V, H]` of the output head, on the policy's device; tied or not, only its role as the head.

    Raises:
        UserError: the head is not one matrix: it has a bias, or its logits are capped.
    """
    head = policy.causal_lm.get_output_embeddings()
    weight: Tensor | None = getattr(head, "weight", None)
    if weight is None:
        raise UserError("The model has no output matrix, and this method predicts with it; take another model.")
    return weight.detach()


@torch.no_grad()
def head_factor(policy: LanguagePolicy) -> float:
    """The number by which the model multiplies W h to get its logits: 1 for most families.

    Raises:
        UserError: the logits are not a multiple of W h.
    """
    weight = unembedding(policy)
    states = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)[:8] * 3
    plain, logits = states @ weight.T, policy._logits(states)
    factor = float((plain * logits).sum() / plain.square().sum().clamp(min=1e-30))
    tolerance = 1e-4 * float(logits.abs().max())
    if not policy._plain_head or not torch.allclose(factor * plain, logits, rtol=1e-3, atol=tolerance):
        raise UserError(
            "The model's logits are not its last states times one matrix (a bias, or capped logits), and this method "
            "predicts with that matrix; take a model without them."
        )
    return factor


@torch.no_grad()
def hidden_states(policy: LanguagePolicy, experience: Experience, max_tokens: int) -> Tensor:
    """States `[B, T, H]` float32 before every step in `mask`, in main memory; 0 elsewhere and in greedy baselines.

    softmax(W h) is the distribution that the step was drawn from, temperature included. At most `max_tokens` padded
    tokens are read at a time.
    """
    factor, mask = head_factor(policy), experience["mask"]
    found = torch.zeros(*mask.shape, unembedding(policy).shape[1])
    trained = (~experience["greedy"]).nonzero()[:, 0]
    batch = experience.only(READ).rows(trained)
    plan = policy.plan(batch, max_tokens)
    with policy.sharing(plan) as shared, policy.autocast():
        for rows in present().share(micro_batches_of(batch, max_tokens, chunk=None if plan is None else plan.chunk)):
            where = batch["mask"][rows]
            row, column = where.nonzero(as_tuple=True)
            states = policy._states_before(batch, rows, where.to(policy.device), shared=shared)
            scale = factor / batch["temperature"][rows][row]
            found[trained[rows][row], column] = states.float().cpu() * scale[:, None]
    present().add([found])
    return found


def scores(states: Tensor, action: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Runs of tokens with their tables, on W's device, a few at a time so that memory stays bounded.

    Args:
        states: `[n, H]`, from `hidden_states`.
        action: `[n]` int64.
        weights: W `[V, H]`.

    Yields:
        Numbers of the tokens `[k]`, their states `[k, H]`, their probabilities pi `[k, V]` and e_a - pi `[k, V]`.
    """
    size = max(1, BLOCK // max(weights.shape[0], 64 * weights.shape[1]))
    for part in torch.split(torch.arange(len(states)), size):
        h = states[part].to(weights.device)
        probability = (h @ weights.T.to(h.dtype)).softmax(1)
        score = -probability
        score[torch.arange(len(h)), action[part]] += 1
        yield part, h, probability, score


@dataclass(frozen=True)
class AdamModel:
    """Adam's moments for W alone, to say what a gradient would do; they are not those of the optimizer that trains.

    Before it has seen a gradient it lets each one through as it is.
    """

    m: Tensor
    """`[V, H]` running mean of gradients."""
    q: Tensor
    """`[V, H]` running mean of their squares."""
    steps: int = 0
    """Gradients seen."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def direction(self, gradient: Tensor, rows: slice = slice(None)) -> Tensor:
        """What a gradient `[..., v, H]` of these rows of W would move them by at rate 1; the model stays as it is."""
        if not self.steps:
            return gradient
        (b1, b2), k = self.betas, self.steps + 1
        m = torch.lerp(gradient, self.m[rows], b1) / (1 - b1**k)
        q = torch.lerp(gradient.square(), self.q[rows], b2) / (1 - b2**k)
        return m / (q.sqrt() + self.epsilon)

    def after(self, gradient: Tensor) -> AdamModel:
        """The model after a gradient `[V, H]`."""
        m = torch.lerp(gradient, self.m, self.betas[0])
        q = torch.lerp(gradient.square(), self.q, self.betas[1])
        return dataclasses.replace(self, m=m, q=q, steps=self.steps + 1)


def logit_moves(pull: Tensor, states: Tensor, adam: AdamModel | None) -> Tensor:
    """What each token's own step at rate 1 would add to its own logits, `[n, V]`.

    Its gradient is the outer product of `pull` `[n, V]` and its state `[n, H]`; no model is plain gradient ascent.
    """
    if adam is None or not adam.steps:
        return pull * states.square().sum(1, keepdim=True)
    width = max(1, BLOCK // max(1, states.numel()))
    moves = []
    for start in range(0, pull.shape[1], width):
        rows = slice(start, start + width)
        moves.append((adam.direction(pull[:, rows, None] * states[:, None], rows) @ states[..., None])[..., 0])
    return torch.cat(moves, 1)
