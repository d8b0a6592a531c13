"""Llama-like backbones in training on a CPU: forward and backward passes written out over the model's own weights.

Autograd takes a transformers layer apart into some eighty small operations, each with a tensor to keep and a gradient
to allot. Here a layer is a dozen products and little else, twice as fast on small models, and it keeps half as much:

- query, key and value are one product, gate and up another; RMSNorm's gain (and the attention's scale) is multiplied
  into the weights that follow it, once for a minibatch;
- the two halves of a head that RoPE turns together lie side by side, so that turning is one complex multiplication;
- what is cheap to compute again (norms, activations, attention weights) is not kept;
- responses are read after the keys and values of a prompt that they share (see `prefix`), whose gradients are summed;
- weight gradients are summed in float32 over all micro-batches and handed to the parameters at the end.

The results differ from transformers' by rounding only. What the passes do not know is refused, by the model's class
and configuration, and a model that they accept is compared with its own forward pass once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

from polyrl import kernels
from polyrl.kernels.decoder import unknown_kind
from polyrl.kernels.linear import BLOCK, Linear
from polyrl.kernels.llama_weights import Weights, inverse_rms, through_norm, turn

FAMILIES = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Model classes whose layers are known here, each of them exactly: a subclass may compute something else."""

LONGEST = 1024
"""Most tokens of a row, whatever the model: attention is computed whole, and for one layer takes the square of them."""

SHORT = 64
"""Tokens of a row that are few for every model."""


def pays(backbone: Any, prompt: Tensor, response: Tensor) -> bool:
    """Whether the passes cost less than the model's own for rows of `prompt` [B] and `response` [B] tokens.

    Attention is written out here, and the longer the rows are the more a flash kernel gains on that; the products,
    which are fewer here, weigh the more the wider the model is. A prompt that rows share is read once. Measured on one
    thread (benchmarks/passes.py): both ways cost the same where responses, and a third of prompts, have about as many
    tokens as the model has dimensions.
    """
    if int((prompt + response).max()) > LONGEST:
        return False
    few: float = max(SHORT, 0.9 * backbone.config.hidden_size)
    return float((response + prompt / 3).max()) <= few


def refusal(backbone: Any) -> str | None:
    """Why a backbone cannot be read here, in a few words; None where it can."""
    if not kernels.ENABLED:
        return "POLYRL_KERNELS is off"
    if type(backbone) not in FAMILIES:
        return f"{type(backbone).__name__} is not one of the families that it knows"
    if why := unknown_kind(backbone):
        return why
    for layer in backbone.layers:
        a, m = layer.self_attn, layer.mlp
        for module in (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj):
            if type(module) not in (nn.Linear, Linear):  # adapters, for one: they start as nothing, and then are not
                return f"a layer of type {type(module).__name__}"
    if {(p.device.type, p.dtype) for p in backbone.parameters()} != {("cpu", torch.float32)}:
        return "weights that are not float32 on the CPU"
    known = sum(len(list(layer.parameters())) for layer in backbone.layers) + 2  # embedding and last norm
    return None if known == len(list(backbone.parameters())) else "weights that it does not know"


# --------------------------------------------------------------------------------------------- the passes


@dataclass
class _Kept:
    """What the backward pass needs of one layer; `m` = b T tokens, S = P + T places of keys."""

    x: Tensor
    inverse: Tensor
    hat: Tensor | None
    """[m, H + K, size], queries and keys after their norm, before its gain."""
    hat_inverse: Tensor | None
    query: Tensor
    """[b K, T H / K, size]"""
    keys: Tensor
    values: Tensor
    """[b K, S, size]"""
    attention: Tensor | None
    """[b K, H / K T, S]; None where it takes more room than `gate_up` and is computed again."""
    taken: Tensor
    """[m, H size], what each token took from those before it."""
    middle: Tensor
    middle_inverse: Tensor
    gate_up: Tensor


KeysValues = tuple[Tensor, Tensor]
"""Of one layer, `[p, K, P, size]` each."""


class Pass:
    """Tokens of rows `[b, T]` that are read after prompts of P places (none: P = 0).

    Only tokens are read, and no padding, but for attention, which wants rows of one length. `m` of them, of which the
    last ones only fill up a block: nothing looks at them, and nothing comes back from them.
    """

    def __init__(
        self,
        weights: Weights,
        ids: Tensor,
        real: Tensor,
        start: Tensor | None = None,
        past: list[KeysValues] | None = None,
        source: Tensor | None = None,
        past_real: Tensor | None = None,
    ):
        """Tokens, and what they are read after.

        Args:
            ids: `[b, T]` int64.
            real: `[b, T]` bool, the first so many places of each row.
            start: `[b]` int64, position of each row's first token; 0 where there is no prompt.
            past: keys and values of p prompts for each layer.
            source: `[b]` int64, which prompt each row has.
            past_real: `[b, P]` bool, which places of it are real; None where all are.
        """
        self.weights, self.shape = weights, real.shape
        rows, length = real.shape
        self.where: Tensor | None = None if bool(real.all()) else real.flatten().nonzero()[:, 0]
        self.tokens = real.numel() if self.where is None else len(self.where)
        fill = -self.tokens % BLOCK
        self.ids = F.pad(ids[real], (0, fill))
        self.past, self.source = past, source
        self.prefix = 0 if past is None else past[0][0].shape[2]
        self.prompts: list[int] = [] if source is None else source.tolist()
        place = torch.arange(length)
        position = place.expand(rows, -1) if start is None else start[:, None] + place
        self.turn = weights.turns(F.pad(position[real], (0, fill))[None])
        hidden = F.pad(place > place[:, None], (self.prefix, 0))[None]
        if past_real is not None:
            hidden = hidden | F.pad(~past_real, (0, length))[:, None]
        self.mask = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None, None]
        self.number = real.flatten().cumsum(0) - 1
        """`[b T]`, which token lies at each place."""
        self.kept: list[_Kept] = []
        self.keys_values: list[KeysValues] = []
        """For each layer, those of the tokens that were read."""

    def forward(self, *, keep: bool) -> Tensor:
        """Last hidden states `[m, D]` before the last norm; `keep` what a backward pass needs."""
        w = self.weights
        x = w.embedded(self.ids)
        turned = w.queries + w.keys
        for number, layer in enumerate(w.layers):
            inverse = inverse_rms(x, w.eps)
            heads = layer.qkv.forward(x * inverse).float().view(len(x), -1, w.size)
            queries_keys, hat, hat_inverse = heads[:, :turned], None, None
            if layer.gains is not None:
                hat_inverse = inverse_rms(queries_keys, w.eps)
                hat = queries_keys * hat_inverse
                queries_keys = hat * layer.gains.value
            turn(queries_keys, self.turn)
            query = self._by_head(queries_keys[:, : w.queries])
            keys, values = (self._by_head(h) for h in (queries_keys[:, w.queries :], heads[:, turned:]))
            if self.past is None:
                self.keys_values.append((keys, values))
            else:
                keys, values = (
                    torch.cat([before.index_select(0, self.source), new], 2)  # type: ignore[arg-type]
                    for before, new in zip(self.past[number], (keys, values), strict=True)
                )
            query, keys, values = (h.reshape(len(h) * w.keys, -1, w.size) for h in (query, keys, values))
            attention = self._attention(query, keys)
            taken = torch.bmm(attention, values).view(self.shape[0], w.queries, -1, w.size)
            taken = self._by_token(taken).reshape(len(x), -1)
            middle = x + layer.out.forward(taken)
            middle_inverse = inverse_rms(middle, w.eps)
            gate_up = layer.gate_up.forward(middle * middle_inverse)
            gate, up = gate_up.chunk(2, -1)
            if keep:
                small = attention.numel() <= gate_up.numel()
                kept = x, inverse, hat, hat_inverse, query, keys, values, attention if small else None, taken
                self.kept.append(_Kept(*kept, middle, middle_inverse, gate_up))
            del attention
            x = middle + layer.down.forward(F.silu(gate).mul_(up))
        return x

    def backward(
        self, grad_output: Tensor, later: list[KeysValues] | None = None, past_grads: list[KeysValues] | None = None
    ) -> None:
        """Keep the weights' gradients, given those by the hidden states `[m, D]`, which is overwritten.

        Args:
            gradient: see above.
            later: gradients by this pass's own `keys_values`.
            past_gradients: those by `past` are added there.
        """
        w = self.weights
        turned = w.queries + w.keys
        back = self.turn.conj()
        for number in reversed(range(len(w.layers))):
            layer, kept = w.layers[number], self.kept.pop()
            gate, up = kept.gate_up.chunk(2, -1)
            silu = F.silu(gate)
            by_act = layer.down.backward(grad_output, silu * up)
            by_gate_up = torch.empty_like(kept.gate_up)
            by_gate, by_up = by_gate_up.chunk(2, -1)
            torch.mul(by_act, silu, out=by_up)
            torch.ops.aten.silu_backward.grad_input(by_act.mul_(up), gate, grad_input=by_gate)
            normed = kept.middle * kept.middle_inverse
            grad_output += through_norm(layer.gate_up.backward(by_gate_up, normed).float(), normed, kept.middle_inverse)

            by_taken = layer.out.backward(grad_output, kept.taken).float().view(len(grad_output), w.queries, w.size)
            by_taken = self._by_head(by_taken).reshape(kept.query.shape)
            attention = self._attention(kept.query, kept.keys) if kept.attention is None else kept.attention
            by_values = torch.bmm(attention.transpose(1, 2), by_taken)
            by_attention = torch.bmm(by_taken, kept.values.transpose(1, 2))
            by_score = torch.ops.aten._softmax_backward_data(by_attention, attention, -1, torch.float32)
            by_query = torch.bmm(by_score, kept.keys)
            by_keys = torch.bmm(by_score.transpose(1, 2), kept.query)
            by_query = by_query.view(self.shape[0], w.queries, -1, w.size)
            by_keys, by_values = (h.view(self.shape[0], w.keys, -1, w.size) for h in (by_keys, by_values))
            if past_grads is not None:
                for total, more in zip(past_grads[number], (by_keys, by_values), strict=True):
                    for row, prompt in enumerate(self.prompts):  # index_add_ takes six times as long
                        total[prompt] += more[row, :, : self.prefix]
                by_keys, by_values = by_keys[:, :, self.prefix :], by_values[:, :, self.prefix :]
            if later is not None:
                by_keys, by_values = by_keys.add_(later[number][0]), by_values.add_(later[number][1])
            heads = torch.cat([self._by_token(h) for h in (by_query, by_keys, by_values)], 1)
            queries_keys = heads[:, :turned]
            turn(queries_keys, back)
            if layer.gains is not None and kept.hat is not None and kept.hat_inverse is not None:
                layer.gains.add((queries_keys * kept.hat).sum(0))
                through_norm(queries_keys.mul_(layer.gains.value), kept.hat, kept.hat_inverse)
            normed = kept.x * kept.inverse
            grad_output += through_norm(
                layer.qkv.backward(heads.view(len(grad_output), -1), normed).float(), normed, kept.inverse
            )
        w.embedded_backward(grad_output, self.ids)

    def _by_head(self, x: Tensor) -> Tensor:
        """`[m, h, size]` -> `[b, h, T, size]`, 0 where there is no token."""
        x = x[: self.tokens]
        if self.where is not None:
            x = x.new_zeros(self.shape.numel(), *x.shape[1:]).index_copy_(0, self.where, x)
        return x.view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def _by_token(self, x: Tensor) -> Tensor:
        """`[b, h, T, size]` -> `[m, h, size]`, 0 at what fills them up."""
        x = x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
        if len(self.ids) == self.tokens:
            return x if self.where is None else x.index_select(0, self.where)
        tokens = x.new_zeros(len(self.ids), *x.shape[1:])
        if self.where is None:
            tokens[: self.tokens] = x
        else:
            torch.index_select(x, 0, self.where, out=tokens[: self.tokens])
        return tokens

    def _attention(self, query: Tensor, keys: Tensor) -> Tensor:
        """Attention weights `[b K, H / K T, S]`."""
        score = torch.bmm(query, keys.transpose(1, 2))
        score.view(self.shape[0], self.weights.keys, -1, self.shape[1], keys.shape[1]).add_(self.mask)
        return score.softmax(-1)


class Prompts:
    """Distinct prompts that were read, and the gradients that come back from responses to them."""

    def __init__(self, weights: Weights, prompts: list[list[int]]):
        self.weights = weights
        self.keep = torch.is_grad_enabled() and weights.trained
        self.length = torch.tensor([len(p) for p in prompts])
        longest = max(len(p) for p in prompts)
        # padded on the right, where causal attention alone hides it
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in prompts])
        real = torch.arange(longest) < self.length[:, None]
        self.real = None if bool(real.all()) else real
        self.read = Pass(weights, ids, real)
        self.at = self.length.cumsum(0) - 1
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            self.last = self.read.forward(keep=self.keep)[self.at]
        self.grad_outputs: list[KeysValues] = []
        self.last_grad = torch.zeros_like(self.last)

    def states(self, source: Tensor, action: Tensor, present: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """States `[n, D]` before the tokens at `row`, `column` `[n]` of responses `action` `[b, T]`.

        Row i answers prompt `source[i]` `[b]`, and its first tokens are real, those `present` `[b, T]`.
        """
        work = _Responses(self, source, action, present, row, column)
        anchor = torch.zeros((), requires_grad=self.keep)
        return _States.apply(anchor, work)  # type: ignore[no-any-return, no-untyped-call]

    def grads_of(self) -> list[KeysValues]:
        """Where gradients by the keys and values are summed."""
        if not self.grad_outputs:
            self.grad_outputs = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in self.read.keys_values]
        return self.grad_outputs

    def close(self) -> None:
        """Take what has come back through the prompts."""
        if not self.keep:
            return
        self.keep = False
        grad_output = torch.zeros(len(self.read.ids), self.last.shape[1])
        grad_output[self.at] = self.last_grad
        self.read.backward(grad_output, self.grad_outputs or None)


class _Responses:
    """The states before tokens of responses, forwards and backwards."""

    def __init__(self, prompts: Prompts, source: Tensor, action: Tensor, present: Tensor, row: Tensor, column: Tensor):
        self.prompts = prompts
        self.first = column == 0  # these have the prompt's last state
        self.first_source = source[row[self.first]]
        self.read: Pass | None = None
        ids, real = action[:, :-1], present[:, 1:]  # the last token is not read: nothing is predicted after it
        if bool(real.any()):
            past_real = None if prompts.real is None else prompts.real[source]
            start = prompts.length[source]
            self.read = Pass(prompts.weights, ids, real, start, prompts.read.keys_values, source, past_real)
            self.at = self.read.number[(row * ids.shape[1] + column - 1)[~self.first]]
        self.x: Tensor | None = None

    def forward(self, keep: bool) -> Tensor:
        x = self.prompts.last.new_empty(len(self.first), self.prompts.last.shape[1])
        x[self.first] = self.prompts.last[self.first_source]
        if self.read is not None:
            x[~self.first] = self.read.forward(keep=keep)[self.at]
        self.x = x if keep else None
        return self.prompts.weights.normed(x)

    def backward(self, grad_output: Tensor) -> None:
        prompts = self.prompts
        if not prompts.keep or self.x is None:
            raise RuntimeError("a micro-batch went backward after its prompts had: each must before the next is read")
        by_x = prompts.weights.normed_backward(grad_output, self.x)
        prompts.last_grad.index_add_(0, self.first_source, by_x[self.first])
        if self.read is not None:
            by_states = torch.zeros(len(self.read.ids), grad_output.shape[1])
            by_states[self.at] = by_x[~self.first]
            self.read.backward(by_states, past_grads=prompts.grads_of())


class _States(torch.autograd.Function):
    """The link to autograd: what comes back goes to the sums that `Weights` and `Prompts` keep."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, work: _Responses) -> Tensor:
        ctx.work = work
        with torch.autocast("cpu", enabled=False):
            return work.forward(keep=anchor.requires_grad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, None]:
        work, ctx.work = ctx.work, None
        with torch.autocast("cpu", enabled=False):
            work.backward(grad_output.float())
        return None, None
