"""Language models from Hugging Face folders: policy, critic and reward model.

All three read a batch the same way (`lay_out`): prompt and response of each row are joined without the padding that
the batch stores between them, so padding is paid for inside a micro-batch only.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as transformers_logging

from polyrl.errors import UserError
from polyrl.experience import Experience

Precision = Literal["float32", "bfloat16"]
"""float32, or bfloat16 forward passes (autocast) over float32 weights."""

PaddingSide = Literal["left", "right"]
Index = Tensor | Sequence[int]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
_HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) through the `peft` package; the other weights stay frozen."""

    rank: int = 16
    """Rank of the update of each weight matrix."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get adapters, or "all-linear": every linear layer except the output head."""
    seed: int = 0
    """Of the adapters' initial values."""


# ------------------------------------------------------------------------------------------- rows of a batch


@dataclass(frozen=True)
class Layout:
    """Rows as a model reads them. `b` rows, `L` tokens in the longest one, `T` response columns of the batch."""

    input_ids: Tensor
    """[b, L] int64, prompt and response without a gap."""
    attention_mask: Tensor | None
    """[b, L] int64, or None where causal attention alone hides the padding."""
    position_ids: Tensor
    """[b, L] int64, 0 at each row's first token."""
    place: Tensor
    """[b, T] int64, where each response token lies in `input_ids` (0 where there is none).

    `place - 1` is the position that predicts the token: the state before the action.
    """


def lay_out(
    experience: Experience, pad_id: int, rows: Index | None = None, *, padding_side: PaddingSide = "right"
) -> Layout:
    """Join `prompt_ids` and `action` of the rows, padded to the longest. Errors: ValueError on an empty prompt."""
    names = ("prompt_ids", "prompt_mask", "action", "present")
    prompt, prompt_mask, action, present = (_take(experience[name], rows) for name in names)
    ids, real = torch.cat([prompt, action], 1), torch.cat([prompt_mask, present], 1)
    _check_prompts(prompt_mask)
    length = real.sum(1, keepdim=True)
    longest = int(length.max())
    place = real.cumsum(1) - 1
    if padding_side == "left":
        place = place + (longest - length)
    row, column = real.nonzero(as_tuple=True)
    input_ids = ids.new_full((len(ids), longest), pad_id)
    input_ids[row, place[row, column]] = ids[row, column]
    position = torch.arange(longest, device=ids.device).expand(len(ids), -1)
    mask = None
    if padding_side == "left":
        position = (position - (longest - length)).clamp(min=0)
        mask = (torch.arange(longest, device=ids.device) >= longest - length).long()
    return Layout(input_ids, mask, position, place[:, prompt.shape[1] :].masked_fill(~present, 0))


def _check_prompts(prompt_mask: Tensor) -> None:
    if not bool(prompt_mask.any(1).all()):
        raise ValueError("a row has an empty prompt: nothing predicts its first response token")


def as_experience(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int) -> Experience:
    """Make a batch of given token ids, every response token counted in `mask`, temperature 1, each row its own group.

    For data that no policy sampled: demonstrations, preference pairs. Fields: prompt_ids, prompt_mask, action, present,
    mask, temperature, group.
    """
    prompt_ids, prompt_mask = pad_rows(prompts, pad_id, "left")
    action, present = pad_rows(responses, pad_id, "right")
    size = len(prompt_ids)
    return Experience(
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "action": action,
            "present": present,
            "mask": present.clone(),
            "temperature": torch.ones(size),
            "group": torch.arange(size),
        }
    )


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, side: PaddingSide) -> tuple[Tensor, Tensor]:
    """Return token ids [B, L] int64 padded on that side to the longest row, and [B, L] bool, true where real."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return ids, mask


def micro_batches(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Split rows of `lengths` [B] (prompt plus response tokens) into groups of at most `max_tokens` padded tokens.

    Rows of similar length share a group and the longest come first, so that memory peaks at once. A row longer than
    `max_tokens` is a group of its own. Returns row indices, int64; every row is in exactly one group.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    groups, start = [], 0
    for _ in range(len(order)):
        if start == len(order):
            break
        longest = max(1, int(lengths[order[start]]))
        size = max(1, max_tokens // longest)
        groups.append(order[start : start + size])
        start += len(groups[-1])
    return groups


def _take(value: Tensor, rows: Index | None) -> Tensor:
    return value if rows is None else value[torch.as_tensor(rows, dtype=torch.long, device=value.device)]


# ------------------------------------------------------------------------------------------- policy


class _Reader(nn.Module):
    """A backbone that reads prompts and responses. Dropout is off, always."""

    tokenizer: Any
    precision: Precision
    backbone: Any
    """The transformers model without its output head."""
    share_prompts = True
    """Read a prompt that several rows of a micro-batch have in common once, and share its keys and values."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def pad_id(self) -> int:
        """Token id that fills unused places."""
        return int(self.tokenizer.pad_token_id)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: dropout would make the sampled and the trained probabilities differ."""
        return super().train(False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of every forward pass: bfloat16 autocast where `precision` says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def accepts(self, argument: str) -> bool:
        """Whether the backbone's forward pass has an argument of this name: families differ."""
        kind: Any = type(self.backbone)
        return _accepts(kind, argument)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.accepts("position_ids"):
            inputs["position_ids"] = position_ids
        return inputs

    def _hidden(self, layout: Layout) -> Tensor:
        """Last hidden states [b, L, d]."""
        inputs = self._inputs(layout.input_ids, layout.attention_mask, layout.position_ids)
        return self.backbone(**inputs, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def _states_before(
        self, experience: Experience, rows: Index | None, where: Tensor, padding_side: PaddingSide = "right"
    ) -> Tensor:
        """Hidden states [n, d] before the response tokens that `where` [b, T] marks, row by row."""
        row, column = where.nonzero(as_tuple=True)
        if self.share_prompts and padding_side == "right":
            prompt, prompt_mask = (_take(experience[k], rows).to(self.device) for k in ("prompt_ids", "prompt_mask"))
            _check_prompts(prompt_mask)
            distinct, source = torch.unique(prompt.masked_fill(~prompt_mask, -1), dim=0, return_inverse=True)
            cache = self._shareable_cache(distinct >= 0) if 2 * len(distinct) <= len(prompt) else None
            if cache is not None:
                return self._shared(experience, rows, distinct, source, cache)[row, column]
        layout = _to(lay_out(experience, self.pad_id, rows, padding_side=padding_side), self.device)
        return self._hidden(layout)[row, layout.place[row, column] - 1]

    def _shareable_cache(self, prompt_mask: Tensor) -> Any:
        """Empty key-value cache that gradients pass through and whose rows can be picked, or None."""
        if not (self.accepts("past_key_values") and self.accepts("position_ids")):
            return None
        cache = DynamicCache(config=self.backbone.config)
        kinds = {type(layer) for layer in cache.layers}
        if kinds == {DynamicLayer}:
            return cache
        # a sliding window counts places, so padding between prompt and response would shorten it
        length = prompt_mask.sum(1)
        even = bool((length == length[0]).all())
        return cache if even and kinds <= {DynamicLayer, DynamicSlidingWindowLayer} else None

    def _shared(
        self, experience: Experience, rows: Index | None, distinct: Tensor, source: Tensor, cache: Any
    ) -> Tensor:
        """States [b, T', d] before the first T' response tokens; row i has the prompt `distinct[source[i]]`.

        Prompts [p, P] come padded with -1 on the left and are read padded on the right: so every position sees a real
        token, and attention over nothing (NaN in some backward passes) cannot occur.
        """
        action, present = (_take(experience[name], rows).to(self.device) for name in ("action", "present"))
        length = (distinct >= 0).sum(1)
        longest = int(length.max())
        place = torch.arange(longest, device=self.device)
        real = place < length[:, None]
        ids = distinct.new_full(real.shape, self.pad_id)
        ids[real] = distinct[distinct >= 0]
        inputs = self._inputs(ids, None, place.expand(len(ids), -1))
        states = self.backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        states = states[source, length[source] - 1][:, None]
        steps = int(present.sum(1).max()) - 1  # the last token predicts nothing
        if steps < 1:
            return states  # type: ignore[no-any-return]
        cache.reorder_cache(source)
        mask = None if bool(real.all()) else torch.nn.functional.pad(real[source].long(), (0, steps), value=1)
        position = length[source, None] + torch.arange(steps, device=self.device)
        inputs = self._inputs(action[:, :steps], mask, position)
        after = self.backbone(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        return torch.cat([states, after], 1)


class LanguagePolicy(_Reader):
    """A causal language model and its tokenizer.

    Dropout is off, always: the module stays in evaluation mode, so that sampling and training see the same network.
    A tokenizer without a pad token pads with its end token (masks, never ids, say what is padding).
    """

    model: Any
    """The transformers model, or with LoRA the peft model around it: what is trained and saved."""
    head_budget = 2**25
    """Logits (tokens times vocabulary) that may exist at once; larger batches are cut and recomputed in backward."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, precision: Precision = "float32", lora: LoraSettings | None = None
    ):
        super().__init__()
        if precision not in get_args(Precision):
            raise UserError(f"precision '{precision}' is unknown; choose float32 or bfloat16.")
        self.tokenizer = _with_pad(tokenizer)
        self.precision: Precision = precision
        self.model = model if lora is None else _with_lora(model, lora)
        vocabulary = self.causal_lm.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > vocabulary:
            raise UserError(
                f"The tokenizer has {len(tokenizer)} tokens but the model only {vocabulary} embeddings; "
                "give the tokenizer that belongs to the model."
            )
        self.eval()
        self._plain_head = self._head_is_plain()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        lora: LoraSettings | None = None,
    ) -> Self:
        """Load a model folder, an adapter folder written by `save`, or a model of the Hugging Face hub.

        Weights are float32 and come from safetensors files; code in the folder is never run.
        Errors: UserError when the folder, its tokenizer or its weights are missing or damaged.
        """
        folder = _check_source(name_or_path, weights="config.json", alternative="adapter_config.json")
        if folder is not None and not (folder / "config.json").exists():
            model = _load_adapter(folder)
        else:
            model = _load_weights(AutoModelForCausalLM, str(name_or_path))
        tokenizer = _load_tokenizer(str(name_or_path), folder)
        return cls(model, tokenizer, precision=precision, lora=lora).to(torch.device(device))

    @property
    def causal_lm(self) -> Any:
        """The transformers model; with LoRA, the one that carries the adapters."""
        return self.model.get_base_model() if _is_lora(self.model) else self.model

    @property
    def backbone(self) -> Any:
        """The transformers model without its output head."""
        return self.causal_lm.base_model

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a response: the tokenizer's end token and those of the generation config."""
        generation = getattr(self.causal_lm, "generation_config", None)
        configured = getattr(generation, "eos_token_id", None)
        more = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(i) for i in [self.tokenizer.eos_token_id, *more] if i is not None}))

    @property
    def context(self) -> int | None:
        """Longest prompt plus response, in tokens, or None when the model states none."""
        return getattr(self.causal_lm.config.get_text_config(decoder=True), "max_position_embeddings", None)

    # ---- text

    def encode_prompt(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        """Token ids of a plain or conversational prompt (chat template, with the assistant's turn opened).

        Errors: UserError when the tokenizer has no chat template, or an empty prompt cannot start with a bos token.
        """
        if not isinstance(prompt, str):
            if not getattr(self.tokenizer, "chat_template", None):
                raise UserError(
                    "The prompt is a conversation but the model's tokenizer has no chat template; "
                    "give plain text prompts or set tokenizer.chat_template."
                )
            ids = self.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            ids = self.tokenizer(prompt)["input_ids"]
        if not ids:
            if self.tokenizer.bos_token_id is None:
                raise UserError("A prompt is empty and the tokenizer has no start token; give a prompt with text.")
            ids = [self.tokenizer.bos_token_id]
        return [int(i) for i in ids]

    def encode(self, text: str) -> list[int]:
        """Token ids of text inside a response: nothing is added."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without special tokens and without cleaning up spaces."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    # ---- forward passes

    def evaluate(
        self,
        experience: Experience,
        *,
        want: Collection[str] = frozenset({"logprob"}),
        rows: Index | None = None,
        padding_side: PaddingSide = "right",
    ) -> dict[str, Tensor]:
        """Score the actions of a batch (or of its `rows`) under the current weights, differentiably.

        Needs prompt_ids, prompt_mask, action, present, mask and temperature. Returns float32 [B, T], 0 where not
        `mask`: "logprob", the log-probability of each action given everything before it under
        softmax(logits / temperature), and "entropy" of that same distribution, both in nats.
        """
        if unknown := set(want) - {"logprob", "entropy"}:
            raise ValueError(f"evaluate gives 'logprob' and 'entropy', not {sorted(unknown)}")
        mask = _take(experience["mask"], rows).to(self.device)
        row, column = mask.nonzero(as_tuple=True)
        target = _take(experience["action"], rows).to(self.device)[row, column]
        temperature = _take(experience["temperature"], rows).to(self.device)[row]
        with self.autocast():
            if self._plain_head:
                states = self._states_before(experience, rows, mask, padding_side)
                logprob, entropy = self._score(states, target, temperature, "entropy" in want)
            else:  # the head is not one we can apply by ourselves: the model's own logits, all of them
                layout = _to(lay_out(experience, self.pad_id, rows, padding_side=padding_side), self.device)
                inputs = self._inputs(layout.input_ids, layout.attention_mask, layout.position_ids)
                logits = self.causal_lm(**inputs, use_cache=False).logits[row, layout.place[row, column] - 1]
                logprob, entropy = _score_logits(logits, target, temperature, "entropy" in want)
        found = {"logprob": logprob} if entropy is None else {"logprob": logprob, "entropy": entropy}
        blank = torch.zeros(mask.shape, device=self.device)
        return {name: blank.index_put((row, column), found[name]) for name in found if name in want}

    def next_logits(
        self, input_ids: Tensor, *, attention_mask: Tensor | None, position_ids: Tensor, cache: Any = None
    ) -> Tensor:
        """Logits [n, V] float32 of the token after the last column of `input_ids` [n, L]; extends `cache` in place."""
        inputs = self._inputs(input_ids, attention_mask, position_ids)
        inputs |= {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        if self._plain_head:
            return self._logits(self.backbone(**inputs).last_hidden_state[:, -1]).float()
        return self.causal_lm(**inputs).logits[:, -1].float()  # type: ignore[no-any-return]

    def _logits(self, states: Tensor) -> Tensor:
        """Output head on hidden states [n, d], with the scalings that model families add after it."""
        logits: Tensor = self.causal_lm.get_output_embeddings()(states)
        config = self.causal_lm.config.get_text_config(decoder=True)
        if scaling := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
            if (factor := getattr(config, name, None)) is not None:
                logits = logits * factor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _score(
        self, states: Tensor, target: Tensor, temperature: Tensor, want_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        def score(states: Tensor, target: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor | None]:
            return _score_logits(self._logits(states), target, temperature, want_entropy)

        vocabulary = self.causal_lm.get_output_embeddings().weight.shape[0]
        size = max(1, self.head_budget // vocabulary)
        if len(states) <= size:
            return score(states, target, temperature)
        parts = []
        for chunk in zip(*(torch.split(x, size) for x in (states, target, temperature)), strict=True):
            if torch.is_grad_enabled():
                parts.append(checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(score(*chunk))
        entropy = torch.cat([part[1] for part in parts]) if want_entropy else None
        return torch.cat([part[0] for part in parts]), entropy

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether `_logits` of the hidden states are the model's logits: families differ, so try a few tokens."""
        head = self.causal_lm.get_output_embeddings()
        if head is None or self.backbone is self.causal_lm:
            return False
        ids = torch.arange(min(3, head.weight.shape[0]), device=self.device)[None]
        whole = self.causal_lm(input_ids=ids, use_cache=False).logits[0]
        states = getattr(self.backbone(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if states is None:
            return False
        return bool(torch.allclose(self._logits(states[0]), whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max())))

    # ---- folders

    def save(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write a folder that transformers loads: safetensors weights and tokenizer.

        With LoRA it is an adapter folder, or with `merge` an ordinary model folder with the adapters added in.
        """
        model: Any = self.model
        if merge and _is_lora(model):
            model = copy.deepcopy(model).merge_and_unload()
        with no_progress_bar():
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _score_logits(
    logits: Tensor, target: Tensor, temperature: Tensor, want_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = logits.float() / temperature[:, None]
    total = logits.logsumexp(-1)
    logprob = logits.gather(-1, target[:, None])[:, 0] - total
    if not want_entropy:
        return logprob, None
    return logprob, total - (torch.exp(logits - total[:, None]) * logits).sum(-1)


# ------------------------------------------------------------------------------------------- critic, reward model


class _ScalarModel(_Reader):
    """A backbone with one number a token; the head starts at 0."""

    def __init__(self, backbone: nn.Module, tokenizer: Any, *, precision: Precision = "float32"):
        super().__init__()
        self.backbone: Any = backbone
        self.tokenizer = _with_pad(tokenizer)
        self.precision: Precision = precision
        config: Any = self.backbone.config
        size = config.get_text_config(decoder=True).hidden_size
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, size, 1, device=self.device)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    @classmethod
    def load(
        cls, name_or_path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> Self:
        """Load a folder written by `save`, or start from a language model's folder with a fresh head."""
        folder = _check_source(name_or_path, weights="config.json")
        backbone = _load_weights(AutoModel, str(name_or_path))
        model = cls(backbone, _load_tokenizer(str(name_or_path), folder), precision=precision)
        if folder is not None and (folder / _HEAD_FILE).exists():
            try:
                model.head.load_state_dict(load_file(folder / _HEAD_FILE))
            except (SafetensorError, RuntimeError) as error:
                raise UserError(f"{folder / _HEAD_FILE} is damaged ({error}); save the model again.") from None
        return model.to(torch.device(device))

    def save(self, folder: str | Path) -> None:
        """Write backbone, head and tokenizer as safetensors to a folder that `load` reads."""
        with no_progress_bar():
            self.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, Path(folder) / _HEAD_FILE
        )

    def _read_head(self, states: Tensor) -> Tensor:
        return self.head(states.float())[..., 0]  # type: ignore[no-any-return]


class Critic(_ScalarModel):
    """Value of the state before each token. A separate backbone; the head starts at exactly 0."""

    @classmethod
    def like(cls, policy: LanguagePolicy) -> Self:
        """Critic on a copy of the policy's backbone as it is in memory (LoRA adapters merged)."""
        return cls(_copy_backbone(policy), policy.tokenizer, precision=policy.precision)

    def evaluate(self, experience: Experience, rows: Index | None = None) -> Tensor:
        """Value of the state before each action, differentiable: float32 [B, T], 0 where not `present`."""
        present = _take(experience["present"], rows).to(self.device)
        with self.autocast():
            states = self._states_before(experience, rows, present)
        blank = torch.zeros(present.shape, device=self.device)
        return blank.index_put(present.nonzero(as_tuple=True), self._read_head(states))


class RewardModel(_ScalarModel):
    """One score a response, read at its last token.

    The head starts normal with standard deviation 1 / sqrt(d + 1) (arXiv 2009.01325).
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: Any,
        *,
        precision: Precision = "float32",
        generator: torch.Generator | None = None,
    ):
        super().__init__(backbone, tokenizer, precision=precision)
        generator = generator or torch.Generator().manual_seed(0)
        with torch.no_grad():
            std = 1 / math.sqrt(self.head.in_features + 1)
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator) * std)

    @classmethod
    def like(cls, policy: LanguagePolicy, generator: torch.Generator | None = None) -> Self:
        """Reward model on a copy of the policy's backbone as it is in memory (LoRA adapters merged)."""
        return cls(_copy_backbone(policy), policy.tokenizer, precision=policy.precision, generator=generator)

    def score(self, experience: Experience, rows: Index | None = None) -> Tensor:
        """Score of each row at its last present token (its last prompt token if the response is empty): float32 [B]."""
        layout = _to(lay_out(experience, self.pad_id, rows), self.device)
        prompt_mask, present = (_take(experience[name], rows).to(self.device) for name in ("prompt_mask", "present"))
        last = prompt_mask.sum(1) + present.sum(1) - 1
        with self.autocast():
            states = self._hidden(layout)[torch.arange(len(last), device=self.device), last]
        return self._read_head(states)

    def as_batch(self, prompts: Sequence[str], completions: Sequence[str], *, end: bool = True) -> Experience:
        """Texts as a batch to score; with `end` the end token follows each completion, as if it ended by itself."""
        close = [self.tokenizer.eos_token_id] if end and self.tokenizer.eos_token_id is not None else []
        asked = [self.tokenizer(p)["input_ids"] or [self.tokenizer.bos_token_id] for p in prompts]
        said = [self.tokenizer(c, add_special_tokens=False)["input_ids"] + close for c in completions]
        return as_experience(asked, said, pad_id=self.pad_id)

    def score_texts(self, prompts: Sequence[str], completions: Sequence[str], *, end: bool = True) -> Tensor:
        """Score of each completion [B]; with `end` the end token follows it, as in a response that ended by itself."""
        return self.score(self.as_batch(prompts, completions, end=end))


# ------------------------------------------------------------------------------------------- loading


def _to(layout: Layout, device: torch.device) -> Layout:
    mask = None if layout.attention_mask is None else layout.attention_mask.to(device)
    return Layout(layout.input_ids.to(device), mask, layout.position_ids.to(device), layout.place.to(device))


@functools.cache
def _accepts(kind: type, argument: str) -> bool:
    forward: Any = kind.forward  # type: ignore[attr-defined]
    return argument in inspect.signature(forward).parameters


def _with_pad(tokenizer: Any) -> Any:
    """Pad with the end token when there is no pad token: masks say what is padding, never ids."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has neither a pad token nor an end token; set one and save it again.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a progress bar while it loads or saves weights."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_lora(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _copy_backbone(policy: LanguagePolicy) -> nn.Module:
    model: Any = copy.deepcopy(policy.model)
    if _is_lora(model):
        model = model.merge_and_unload()
    backbone: nn.Module = model.base_model
    return backbone.requires_grad_(True)


def _with_lora(model: nn.Module, lora: LoraSettings) -> nn.Module:
    peft = _peft()
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator: leave it as it was
        torch.manual_seed(lora.seed)
        wrapped = peft.get_peft_model(model, settings)
    for used in wrapped.peft_config.values():
        if isinstance(used.target_modules, set):
            used.target_modules = sorted(used.target_modules)  # a set is saved in another order by every process
    found: nn.Module = wrapped
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("LoRA needs the peft package; install it with `pip install 'polyrl[lora]'`.") from None
    return peft


def _check_source(name_or_path: str | Path, *, weights: str, alternative: str | None = None) -> Path | None:
    """Return the local folder, or None for a name on the hub."""
    name, folder = str(name_or_path), Path(name_or_path).expanduser()
    local = isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1
    if not folder.exists():
        if local:
            raise UserError(f"The model folder {name} does not exist.")
        return None
    if not folder.is_dir():
        raise UserError(f"{name} is a file; give the model's folder.")
    if not (folder / weights).exists() and not (alternative and (folder / alternative).exists()):
        raise UserError(f"{name} has no {weights}; save a model there with model.save_pretrained.")
    return folder


def _load_tokenizer(name: str, folder: Path | None) -> Any:
    missing = UserError(f"{name} has no tokenizer; save one beside the model with tokenizer.save_pretrained.")
    # transformers makes up an empty tokenizer for a folder that has none, so look first
    if folder is not None and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        raise missing
    try:
        return AutoTokenizer.from_pretrained(str(folder or name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if folder is None:
            raise missing from None
        raise UserError(f"The tokenizer in {name} cannot be read: {_first_line(error)}") from None


def _load_weights(kind: Any, name: str) -> Any:
    source = str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    try:
        with no_progress_bar():
            model, report = kind.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise UserError(f"The weights in {name} are damaged ({_first_line(error)}); copy the folder again.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"The model {name} cannot be loaded: {_first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"The weights in {name} are incomplete: {missing[0]} and {len(missing) - 1} more are missing.")
    return model


def _load_adapter(folder: Path) -> nn.Module:
    peft = _peft()
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(settings.get("base_model_name_or_path"))
    _check_source(base, weights="config.json")
    try:
        model: nn.Module = peft.PeftModel.from_pretrained(
            _load_weights(AutoModelForCausalLM, base), folder, is_trainable=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"The adapters in {folder} cannot be loaded: {_first_line(error)}") from None
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
