"""A transformers model as a decoder of one token a row: its own weights, laid out for the few products of a step.

`model.generate` is general, and pays for it at each token. Here the weights are read once, before a batch of responses
is sampled; then a step is four products a layer and little else:

- query, key and value are one product, gate and up another;
- the gain of an RMSNorm (and the attention's scale) is multiplied into the weights that follow it;
- the two halves of a head that RoPE turns together lie side by side, so that turning is one complex multiplication;
- keys and values go into a cache that has room for all tokens to come, and rows that ended leave it;
- float32 products run through oneDNN where that is faster (see `linear`), on weights packed for it.

All this changes rounding only. What the decoder does not know it refuses, by the model's class and configuration, and
where it accepts a model it is compared with it once (`refusal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from polyrl import kernels
from polyrl.kernels.decoding import Decoding
from polyrl.kernels.linear import Linear, onednn_pays, product

FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Model classes whose layers the decoder knows, each of them exactly: a subclass may compute something else."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Kinds of RoPE whose angles depend on the position only, not on how long the text is by now."""

SMALLEST = 2**21
"""Floating point operations of a product below which calling oneDNN costs more than its kernels save (measured)."""

PACKED_FOR = 64
"""Rows that oneDNN lays weights out for. The layout serves any number; for a single row it would be the plain one."""

Product = Callable[[Tensor], Tensor]


# --------------------------------------------------------------------------------------------- which models


def refusal(model: Any, dtype: torch.dtype) -> str | None:
    """Why a causal language model cannot be decoded here, in a few words; None where it can.

    Decided by its class, configuration and modules; a model that passes is compared with the decoder on a few tokens.
    """
    if not kernels.ENABLED:
        return "POLYRL_KERNELS is off"
    kind = type(model).__name__
    if type(model) not in FAMILIES:
        return f"{kind} is not one of the families that it knows"
    if why := unknown_kind(model):
        return why
    if type(model.model.embed_tokens) is not nn.Embedding:
        return f"embeddings of type {type(model.model.embed_tokens).__name__}"
    for layer in model.model.layers:
        for linear in (*_projections(layer), model.lm_head):
            if not (_is_plain(linear) or _is_lora(linear)):
                return f"a layer of type {type(linear).__name__}"
            if _is_lora(linear) and dtype is not torch.float32:
                return "LoRA in bfloat16: adding adapters to rounded weights would lose small changes"
    if {(p.device, p.dtype) for p in model.parameters()} != {(model.device, torch.float32)}:
        return "weights of several kinds"
    return None if _agrees(model) else "it does not give the model's own logits"


def unknown_kind(model: Any) -> str | None:
    """What a model of a known family has that is not computed here: of its attention, RoPE, activation, hooks."""
    config = model.config
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return "attention within a window"
    if config.rope_parameters["rope_type"] not in ROPE_TYPES:
        return f"RoPE of type {config.rope_parameters['rope_type']}"
    if config.hidden_act not in ("silu", "swish"):
        return f"activation {config.hidden_act}"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "modules with hooks"
    return None


def _projections(layer: Any) -> tuple[Any, ...]:
    a, m = layer.self_attn, layer.mlp
    return a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj


def _is_plain(module: Any) -> bool:
    return type(module) in (nn.Linear, Linear)


def _is_lora(module: Any) -> bool:
    """Whether this is a plain linear layer with ordinary adapters of peft (no DoRA and the like)."""
    return (
        type(module).__module__ == "peft.tuners.lora.layer"
        and _is_plain(getattr(module, "base_layer", None))
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )


@torch.no_grad()
def _agrees(model: Any) -> bool:
    """Whether two rows of different length get the model's own logits, from their prompt and one step later."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    rows = [[i % vocabulary for i in row] for row in ((1, 2, 3, 4, 5), (4, 3, 6))]
    with torch.autocast(model.device.type, enabled=False):
        own = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]
        decoding = Decoder(model, rows=2).read([row[:-1] for row in rows], torch.arange(2), room=2)
        logits = decoding.logits, decoding.next(torch.tensor([row[-1] for row in rows], device=model.device))
    for back, got in zip((-2, -1), logits, strict=True):
        want = torch.stack([one[back] for one in own])
        # weights that are not finite are no fault of the decoder's: what it gives is not finite either
        if bool(want.isfinite().all()) and not torch.allclose(
            got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max())
        ):
            return False
    return True


# --------------------------------------------------------------------------------------------- the weights


@dataclass(frozen=True)
class _Layer:
    """Products and gains of one layer; gains of norms before a product are in its weights."""

    qkv: Product
    gains: Tensor | None
    """Gains [H + K, d] of the norms of each query and key head."""
    out: Product
    gate_up: Product
    down: Product


class Decoder:
    """A model's weights as they are now, laid out for decoding. Make a new one after each update of the model.

    `rows` is how many rows will be decoded at a time: it decides which products go to oneDNN.
    """

    def __init__(self, model: Any, *, rows: int, dtype: torch.dtype = torch.float32):
        config, backbone = model.config, model.model
        self.dtype, self.rows, self.device = dtype, rows, model.device
        # attention's products change shape at each step, and a CPU prepares bfloat16 ones anew for each shape
        self.attention_dtype = torch.float32 if self.device.type == "cpu" else dtype
        self.eps = config.rms_norm_eps
        self.rotary = backbone.rotary_emb
        self.embedding = backbone.embed_tokens.weight.detach()
        attention = backbone.layers[0].self_attn
        self.size = attention.head_dim
        self.key_heads = attention.k_proj.out_features // self.size
        self.query_heads = attention.q_proj.out_features // self.size
        self.layers = [self._layer(layer) for layer in backbone.layers]
        self.norm = _gain(backbone.norm)
        self.head = self._product(*_read(model.lm_head))

    def _layer(self, layer: Any) -> _Layer:
        attention = layer.self_attn
        query, key, value, out, gate, up, down = map(_read, _projections(layer))
        scale, gains = self.size**-0.5, None
        if hasattr(attention, "q_norm"):
            gain = _gain(attention.q_norm) * scale, _gain(attention.k_norm)
            count = self.query_heads, self.key_heads
            gains = torch.cat([self._paired(g).expand(n, -1) for g, n in zip(gain, count, strict=True)])
        else:
            query = _each(query, lambda x: x * scale)
        query, key = _each(query, self._paired), _each(key, self._paired)
        return _Layer(
            qkv=self._product(*_joined(query, key, value), gain=_gain(layer.input_layernorm)),
            gains=gains,
            out=self._product(*out),
            gate_up=self._product(*_joined(gate, up), gain=_gain(layer.post_attention_layernorm)),
            down=self._product(*down),
        )

    def _paired(self, x: Tensor) -> Tensor:
        """Reorder the first dimension (heads of `size`): i and i + size / 2, which RoPE turns, become neighbours."""
        halves = x.view(-1, 2, self.size // 2, *x.shape[1:])
        return halves.transpose(1, 2).reshape(x.shape)

    def _product(self, weight: Tensor, bias: Tensor | None, gain: Tensor | None = None) -> Product:
        """The function x [m, k] -> [m, n] of a weight [n, k], each of its columns times `gain` first."""
        large = 2 * self.rows * weight.numel() >= SMALLEST
        if gain is not None:
            weight = weight * gain
        weight, bias = weight.to(self.dtype), None if bias is None else bias.to(self.dtype)
        if large and self.device.type == "cpu" and onednn_pays() and can_pack(self.dtype):
            packed = pack(weight)
            return lambda x: product(x, packed, bias)
        return lambda x: F.linear(x, weight, bias)

    # ---- the model

    def read(self, prompts: Sequence[Sequence[int]], source: Tensor, *, room: int) -> Decoding:
        """Read distinct prompts; row i of [n] answers `prompts[source[i]]` with at most `room` tokens."""
        return Decoding(self, prompts, source.to(self.device), room)

    def read_cut(
        self, texts: Sequence[Sequence[int]], text: Tensor, length: Tensor, source: Tensor, *, room: int
    ) -> Decoding:
        """Read distinct texts once; prompt j of [p] is the first `length[j]` tokens of `texts[text[j]]`.

        Row i of [n] answers prompt `source[i]` with at most `room` tokens.
        """
        text, length, source = (x.to(self.device) for x in (text, length, source))
        return Decoding(self, texts, source, room, cut=(text, length))

    def cache(self, entries: int, places: int) -> Tensor:
        """Room for keys and values: [L, 2, entries, K, places, d]."""
        shape = len(self.layers), 2, entries, self.key_heads, places, self.size
        return torch.empty(shape, dtype=self.attention_dtype, device=self.device)

    def turns(self, positions: int) -> Tensor:
        """RoPE of the first positions as complex numbers [positions, 1, d / 2], by the model's own module."""
        place = torch.arange(positions, device=self.device)[None]
        cos, sin = self.rotary(torch.zeros(1, device=self.device), place)
        half = self.size // 2
        return torch.complex(cos[0, :, :half], sin[0, :, :half])[:, None]

    def states(self, tokens: Tensor, turn: Tensor, attend: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """Last hidden states [m, D] of tokens [m], float32.

        `turn` [m, 1, d / 2] is RoPE at their positions; `attend` takes a layer's number, scaled queries [m, H, d] and
        keys and values [m, 2 K, d] and gives what each token takes from its row, [m, H d], all in `attention_dtype`.
        """
        x = F.embedding(tokens, self.embedding)
        turned = self.query_heads + self.key_heads
        for i, layer in enumerate(self.layers):
            heads = layer.qkv(self._normed(x)).view(x.shape[0], -1, self.size).float()
            queries_keys = heads[:, :turned]
            if layer.gains is not None:
                queries_keys.mul_(_inverse_rms(queries_keys, self.eps)).mul_(layer.gains)
            pairs = queries_keys.view(*queries_keys.shape[:2], -1, 2)
            torch.view_as_complex(pairs).mul_(turn)
            heads = heads.to(self.attention_dtype)
            read = attend(i, heads[:, : self.query_heads], heads[:, self.query_heads :])
            x = x + layer.out(read.to(self.dtype))
            gate, up = layer.gate_up(self._normed(x)).chunk(2, -1)
            x = x + layer.down(F.silu(gate, inplace=True).mul_(up))
        return x

    def logits(self, states: Tensor) -> Tensor:
        """Logits [m, V] float32 of last hidden states [m, D]."""
        normed = (states * _inverse_rms(states, self.eps)).mul_(self.norm)
        return self.head(normed.to(self.dtype)).float()

    def _normed(self, x: Tensor) -> Tensor:
        return (x * _inverse_rms(x, self.eps)).to(self.dtype)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of this kind here: bfloat16 ones only where the processor has AVX-512."""
    return dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Tensor) -> Tensor:
    """A weight [n, k] in the layout that oneDNN reads fastest."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)  # type: ignore[no-any-return]


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(sum of squares + d eps) [..., 1]: RMSNorm's factor but for sqrt(d), which stands in the gain."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    factor: Tensor = norm.square_().add_(x.shape[-1] * eps).rsqrt_()
    return factor


def _gain(norm: Any) -> Tensor:
    weight: Tensor = norm.weight.detach()
    return weight * math.sqrt(weight.numel())


def _read(linear: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer as they are, active adapters added in."""
    base = linear if _is_plain(linear) else linear.base_layer
    weight, bias = base.weight.detach(), None if base.bias is None else base.bias.detach()
    if base is not linear and not linear.disable_adapters and not linear.merged:
        for name in linear.active_adapters:
            if name in linear.lora_A:
                weight = weight + linear.get_delta_weight(name).detach()
    return weight, bias


def _each(pair: tuple[Tensor, Tensor | None], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    weight, bias = pair
    return change(weight), None if bias is None else change(bias)


def _joined(*parts: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Several weights and biases as one: their products one beside the other."""
    weights, biases = zip(*parts, strict=True)
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    return torch.cat(weights), torch.cat([w.new_zeros(len(w)) if bias is None else bias for w, bias in parts])
