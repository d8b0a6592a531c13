"""The weights of Llama-like backbones as the written-out passes use them, and where their gradients are summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyrl.kernels.linear import multiply


@dataclass(frozen=True)
class _Order:
    """How a parameter's first dimension is laid out: as it is, or the halves of heads side by side; and a factor."""

    head: int = 0
    """Size of the heads whose halves RoPE turns together; 0: the order stays."""
    scale: float = 1.0

    def laid_out(self, parameter: Tensor) -> Tensor:
        """The parameter `[n, ...]` with its rows in this order."""
        x = parameter.detach()
        if self.head:
            x = x.view(-1, 2, self.head // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)
        return x * self.scale if self.scale != 1 else x

    def taken_back(self, grad_output: Tensor) -> Tensor:
        """The parameter's gradient `[n, ...]`, given that of what was laid out."""
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
        """Keep a gradient by `value`, `[...]` as that is."""
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
        return x * inverse_rms(x, self.eps) * gain

    def normed_backward(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Gradient by `x` [m, d] of `normed`, given that by its result [m, d]; the gain's is kept."""
        inverse = inverse_rms(x, self.eps)
        normed = x * inverse
        self._last_gain = _sum(self._last_gain, (grad_output * normed).sum(0))
        return through_norm(grad_output * self.backbone.norm.weight.detach(), normed, inverse)

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings `[m, D]` of tokens `[m]`."""
        return F.embedding(ids, self.backbone.embed_tokens.weight.detach())

    def embedded_backward(self, grad_output: Tensor, ids: Tensor) -> None:
        """Keep the gradient [m, d] of the embeddings of `ids` [m]: none for the padding token, as in `nn.Embedding`."""
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


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean of squares + eps) `[..., 1]`: RMSNorm's factor."""
    square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    square.div_(x.shape[-1]).add_(eps)
    return square.rsqrt_()


def turn(heads: Tensor, turn: Tensor) -> None:
    """Turn neighbours of `[m, h, size]` as complex numbers by `[m, 1, size / 2]`, in place."""
    torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2)).mul_(turn)


def through_norm(grad_output: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Gradient by x [m, d], given that by `normed` = x * `inverse`; `grad_output` is overwritten."""
    along = (grad_output * normed).sum(-1, keepdim=True).div_(-normed.shape[-1])
    return grad_output.addcmul_(normed, along).mul_(inverse)
