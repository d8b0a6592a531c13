"""The network of BQ-NCO: attention without positions over the sub-problem that remains, and over its costs."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from polyrl.core.experience import Experience
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, by_heads, feed_forward_layers

HEARD = 32
"""Numbers that a node hears of another one over the costs between them."""


class CostConvolution(nn.Module):
    """What each node hears of all others over the costs between them, as shares of their mean in the sub-problem."""

    def __init__(self, width: int):
        super().__init__()
        self.hears, self.says = nn.Linear(width, HEARD), nn.Linear(width, HEARD, bias=False)
        self.costs, self.out = nn.Linear(2, HEARD, bias=False), nn.Linear(HEARD, width)

    def forward(self, h: Tensor, costs: Tensor, there: Tensor) -> Tensor:
        """`h` `[R, M, D]` and costs `[R, M, M]` -> `[R, M, D]`; what is not `there`, bool `[R, M]`, is not heard."""
        both = (there[:, :, None] & there[:, None]).float()
        share = costs * (both.sum((1, 2)) / (costs * both).sum((1, 2)).clamp(min=1e-9))[:, None, None]
        ways = self.costs(torch.stack([share, share.mT], -1))
        heard = (self.hears(h)[:, :, None] + self.says(h)[:, None] + ways).relu() * there[:, None, :, None]
        found: Tensor = h + self.out(heard.sum(2) / there.sum(1)[:, None, None].sqrt())
        return found


class SubproblemNetwork(ConstructiveNetwork):
    """Reads what remains anew at every step, origin and destination first where one travels."""

    reads_costs = True

    def __init__(
        self,
        features: int,
        width: int,
        heads: int,
        layers: int,
        feed_forward: int,
        *,
        travels: bool = True,
        costs: bool = False,
    ):
        super().__init__()
        self.heads, self.ends = heads, 2 * travels
        if travels:
            self.begin, self.end = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.convolution = CostConvolution(width) if costs else None
        self.embed, self.score = nn.Linear(features, width), nn.Linear(width, 1)
        self.query = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.keys = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))  # and values
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.forth = feed_forward_layers(layers, width, feed_forward)
        self.alpha = nn.Parameter(torch.zeros(layers, 2))

    def forward(self, tokens: Tensor, there: Tensor | None = None, costs: Tensor | None = None) -> Tensor:
        """Scores `[R, M]` of tokens `[R, M, F]`, of which the first is the origin and the second the destination.

        `there` bool `[R, M]` says which are no padding; None: all. `costs` `[R, M, M]` are those between the tokens.
        """
        h = self.embed(tokens)
        if self.ends:
            h = h + torch.stack([self.begin, self.end, *[torch.zeros_like(self.begin)] * (tokens.shape[1] - 2)])
        if self.convolution is not None:
            all_there = torch.ones(tokens.shape[:2], dtype=torch.bool)
            h = self.convolution(h, costs, all_there if there is None else there)
        seen = None if there is None else there[:, None, None]
        layers = zip(self.query, self.keys, self.out, self.forth, self.alpha, strict=True)
        for query, keys, out, forth, alpha in layers:
            q, k, v = (self._heads(x) for x in (query(h), *keys(h).chunk(2, -1)))
            attended = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
            h = h + alpha[0] * out(attended.transpose(1, 2).flatten(2))
            h = h + alpha[1] * forth(h)
        found: Tensor = self.score(h)[..., 0]
        return found

    def _heads(self, x: Tensor) -> Tensor:
        return by_heads(x, self.heads)

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """Of what is left and of the destination, each a token of the sub-problem; of all other nodes 0."""
        instances, states, nodes = seen.mask.shape
        left, ends = seen.left.flatten(0, 1), self.ends
        count = ends + left.sum(1)
        most = int(count.max())
        which = left.int().argsort(dim=1, descending=True, stable=True)[:, : most - ends]  # in the nodes' order
        if ends:
            which = torch.cat([torch.stack([seen.here, seen.end], -1).flatten(0, 1), which], 1)  # [R, most]
        row = torch.arange(instances).repeat_interleave(states)[:, None]
        own = seen.context.flatten(0, 1)[:, None].expand(-1, which.shape[1], -1)
        tokens = torch.cat([seen.nodes[row, which], own], -1)
        there = torch.arange(which.shape[1]) < count[:, None]
        costs = None if seen.costs is None else seen.costs[row[..., None], which[:, :, None], which[:, None]]
        found: Tensor = self(tokens, None if bool(there.all()) else there, costs)
        # padding stands at a place behind the nodes; what is left comes after the destination, and takes its place
        to = torch.where(there, which, nodes)
        scores = found.new_zeros(len(found), nodes + 1)
        if ends:
            scores = scores.scatter(1, to[:, 1:2], found[:, 1:2])
        scores = scores.scatter(1, to[:, ends:], found[:, ends:])
        return scores[:, :nodes].reshape(instances, states, nodes)

    def of_steps(self, logprobs: Tensor, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Where several decisions are right (`target`), `logprob` is the mean of theirs."""
        given = super().of_steps(logprobs, batch, wants)
        if "target" in batch and "logprob" in wants:
            target = batch["target"]
            right = torch.where(target > 0, logprobs.reshape(target.shape), 0.0)  # others may be -inf
            given["logprob"] = (target * right).sum(-1)
        return given
