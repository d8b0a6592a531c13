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

from polyrl.kernels.linear import BLOCK, Linear, multiply
from polyrl.models.language.decoder import unknown_kind

FAMILIES = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Model classes whose layers are known here, each of them exactly: a subclass may compute something else."""

LONGEST = 1024
"""Most tokens of a row: attention is computed whole, which takes the square of them in memory for one layer."""


def refusal(backbone: Any) -> str | None:
    """Why a backbone cannot be read here, in a few words; None where it can."""
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


# --------------------------------------------------------------------------------------------- the weights


@dataclass(frozen=True)
class _Order:
    """How a parameter's first dimension is laid out: as it is, or the halves of heads side by side; and a factor."""

    head: int = 0
    """Size of the heads whose halves RoPE turns together; 0: the order stays."""
    scale: float = 1.0

    def laid_out(self, parameter: Tensor) -> Tensor:
        x = parameter.detach()
        if self.head:
            x = x.view(-1, 2, self.head // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)
        return x * self.scale if self.scale != 1 else x

    def taken_back(self, grad_output: Tensor) -> Tensor:
        """The parameter's gradient, given that of what was laid out."""
        if self.head:
            grad_output = (
                grad_output.view(-1, self.head // 2, 2, *grad_output.shape[1:])
                .transpose(1, 2)
                .reshape(grad_output.shape)
            )
        return grad_output * self.scale if self.scale != 1 else grad_output


def _add_gradient(parameter: nn.Parameter, grad_output: Tensor) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = grad_output.clone(memory_format=torch.contiguous_format)
    else:
        parameter.grad.add_(grad_output)


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    """Sum in float32, in place but for the first."""
    return more.float() if total is None else total.add_(more)


class _Product:
    """Linear layers that read the same input as one product, a norm's gain multiplied in; and their gradients."""

    def __init__(self, *parts: tuple[Any, _Order], gain: nn.Parameter | None = None, dtype: torch.dtype):
        self.parts, self.gain = parts, gain
        weight = torch.cat([order.laid_out(linear.weight) for linear, order in parts])
        if gain is not None:
            weight *= gain.detach()
        self.weight = weight.to(dtype)
        self.bias: Tensor | None = None
        if any(linear.bias is not None for linear, _ in parts):
            none = weight.new_zeros
            biases = [none(len(i.weight)) if i.bias is None else order.laid_out(i.bias) for i, order in parts]
            self.bias = torch.cat(biases).to(dtype)
        # of the two factors of the weight's gradient the narrow one is transposed, and so is the result if that is x
        self.sideways = weight.shape[0] > weight.shape[1]
        self._grad: Tensor | None = None
        self._bias_grad: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x [m, in]` -> `[m, out]` of the weights' dtype."""
        return multiply(x.to(self.weight.dtype), self.weight, self.bias)

    def backward(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Gradient by `x [m, in]`, given that by the result `[m, out]`; the weights' is kept."""
        grad_output, x = grad_output.to(self.weight.dtype), x.to(self.weight.dtype)
        narrow, wide = (x, grad_output) if self.sideways else (grad_output, x)
        self._grad = _sum(self._grad, multiply(narrow.t().contiguous(), wide.t()))
        if self.bias is not None:
            self._bias_grad = _sum(self._bias_grad, grad_output.sum(0, dtype=torch.float32))
        return multiply(grad_output, self.weight.t())

    def finish(self) -> None:
        """Hand the gradients to the parameters."""
        if self._grad is None:
            return
        grad_output = self._grad.t() if self.sideways else self._grad
        gain, start = self.gain, 0
        for linear, order in self.parts:
            rows = slice(start, start := start + len(linear.weight))
            found = order.taken_back(grad_output[rows])
            if gain is not None:
                _add_gradient(gain, (found * linear.weight.detach()).sum(0))
                found = found * gain.detach()
            _add_gradient(linear.weight, found)
            if linear.bias is not None and self._bias_grad is not None:
                _add_gradient(linear.bias, order.taken_back(self._bias_grad[rows]))
        self._grad = self._bias_grad = None


class _HeadGains:
    """Gains of the norms over query and key heads, for all heads `[H + K, size]`; and their gradient."""

    def __init__(self, query: nn.Parameter, key: nn.Parameter, scale: float, heads: tuple[int, int]):
        self.heads = heads
        self.parts = (query, _Order(len(query), scale)), (key, _Order(len(key)))
        rows = [order.laid_out(p).expand(n, -1) for (p, order), n in zip(self.parts, heads, strict=True)]
        self.value = torch.cat(rows)
        self._grad: Tensor | None = None

    def add(self, grad_output: Tensor) -> None:
        """Keep a gradient by `value`."""
        self._grad = _sum(self._grad, grad_output)

    def finish(self) -> None:
        """Hand the gradient to the parameters."""
        if self._grad is not None:
            grad_outputs = self._grad[: self.heads[0]], self._grad[self.heads[0] :]
            for (parameter, order), grad_output in zip(self.parts, grad_outputs, strict=True):
                _add_gradient(parameter, order.taken_back(grad_output.sum(0)))
        self._grad = None


class _Layer:
    """Products and gains of one layer."""

    def __init__(self, layer: Any, heads: tuple[int, int], dtype: torch.dtype):
        a, m, plain = layer.self_attn, layer.mlp, _Order()
        query, key = _Order(a.head_dim, a.scaling), _Order(a.head_dim)
        self.gains: _HeadGains | None = None
        if hasattr(a, "q_norm"):
            self.gains = _HeadGains(a.q_norm.weight, a.k_norm.weight, a.scaling, heads)
            query = key
        before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.qkv = _Product((a.q_proj, query), (a.k_proj, key), (a.v_proj, plain), gain=before, dtype=dtype)
        self.out = _Product((a.o_proj, plain), dtype=dtype)
        self.gate_up = _Product((m.gate_proj, plain), (m.up_proj, plain), gain=between, dtype=dtype)
        self.down = _Product((m.down_proj, plain), dtype=dtype)

    def finish(self) -> None:
        """Hand the gradients to the parameters."""
        for product in (self.qkv, self.out, self.gate_up, self.down):
            product.finish()
        if self.gains is not None:
            self.gains.finish()


class Weights:
    """A backbone's weights as they are now, laid out for the passes of one minibatch, and what gradients they have."""

    def __init__(self, backbone: Any, dtype: torch.dtype = torch.float32):
        """`dtype` is that of the products; norms, attention and sums stay float32."""
        self.backbone, self.eps = backbone, backbone.config.rms_norm_eps
        attention = backbone.layers[0].self_attn
        self.size: int = attention.head_dim
        self.queries = attention.q_proj.out_features // self.size
        self.keys = attention.k_proj.out_features // self.size
        self.layers = [_Layer(layer, (self.queries, self.keys), dtype) for layer in backbone.layers]
        self.trained = any(p.requires_grad for p in backbone.parameters())
        self._last_gain: Tensor | None = None

    def turns(self, position: Tensor) -> Tensor:
        """RoPE at positions `[b, T]` as complex numbers `[b T, 1, size / 2]`, by the model's own module."""
        angles: tuple[Tensor, Tensor] = self.backbone.rotary_emb(torch.zeros(1), position)
        cos, sin = angles
        half = self.size // 2
        return torch.complex(cos[..., :half], sin[..., :half]).view(-1, 1, half)

    def normed(self, x: Tensor) -> Tensor:
        """Last norm of `x [n, D]`."""
        gain: Tensor = self.backbone.norm.weight.detach()
        return x * _inverse_rms(x, self.eps) * gain

    def normed_backward(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Gradient by `x` of `normed`, given that by its result; the gain's is kept."""
        inverse = _inverse_rms(x, self.eps)
        normed = x * inverse
        self._last_gain = _sum(self._last_gain, (grad_output * normed).sum(0))
        return _through_norm(grad_output * self.backbone.norm.weight.detach(), normed, inverse)

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings `[m, D]` of tokens `[m]`."""
        return F.embedding(ids, self.backbone.embed_tokens.weight.detach())

    def embedded_backward(self, grad_output: Tensor, ids: Tensor) -> None:
        """Keep the gradient of the embeddings: none for the padding token, as in `nn.Embedding`."""
        table = self.backbone.embed_tokens
        if not table.weight.requires_grad:
            return
        if table.padding_idx is not None:
            grad_output = grad_output.masked_fill((ids == table.padding_idx)[:, None], 0)
        if table.weight.grad is None:
            table.weight.grad = torch.zeros_like(table.weight)
        table.weight.grad.index_add_(0, ids, grad_output)

    def finish(self) -> None:
        """Hand all gradients to the parameters."""
        for layer in self.layers:
            layer.finish()
        if self._last_gain is not None:
            _add_gradient(self.backbone.norm.weight, self._last_gain)
        self._last_gain = None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean of squares + eps) `[..., 1]`: RMSNorm's factor."""
    square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    square.div_(x.shape[-1]).add_(eps)
    return square.rsqrt_()


def _turn(heads: Tensor, turn: Tensor) -> None:
    """Turn neighbours of `[m, h, size]` as complex numbers by `[m, 1, size / 2]`, in place."""
    torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2)).mul_(turn)


def _through_norm(grad_output: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Gradient by x, given that by `normed` = x * `inverse`; `gradient` is overwritten."""
    along = (grad_output * normed).sum(-1, keepdim=True).div_(-normed.shape[-1])
    return grad_output.addcmul_(normed, along).mul_(inverse)


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
            inverse = _inverse_rms(x, w.eps)
            heads = layer.qkv.forward(x * inverse).float().view(len(x), -1, w.size)
            queries_keys, hat, hat_inverse = heads[:, :turned], None, None
            if layer.gains is not None:
                hat_inverse = _inverse_rms(queries_keys, w.eps)
                hat = queries_keys * hat_inverse
                queries_keys = hat * layer.gains.value
            _turn(queries_keys, self.turn)
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
            middle_inverse = _inverse_rms(middle, w.eps)
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
            grad_output += _through_norm(
                layer.gate_up.backward(by_gate_up, normed).float(), normed, kept.middle_inverse
            )

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
            _turn(queries_keys, back)
            if layer.gains is not None and kept.hat is not None and kept.hat_inverse is not None:
                layer.gains.add((queries_keys * kept.hat).sum(0))
                _through_norm(queries_keys.mul_(layer.gains.value), kept.hat, kept.hat_inverse)
            normed = kept.x * kept.inverse
            grad_output += _through_norm(
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
