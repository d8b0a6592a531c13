"""The language policy: a causal language model of Hugging Face and its tokenizer."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from polyrl.errors import UserError
from polyrl.experience import Experience
from polyrl.policies.folders import (
    LoraSettings,
    check_source,
    is_lora,
    load_adapter,
    load_tokenizer,
    load_weights,
    no_progress_bar,
    with_lora,
)
from polyrl.policies.rows import Index, Layout, PaddingSide, check_prompts, lay_out, take, to_device

Precision = Literal["float32", "bfloat16"]
"""float32, or bfloat16 forward passes (autocast) over float32 weights."""


class Reader(nn.Module):
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

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a response."""
        return () if self.tokenizer.eos_token_id is None else (int(self.tokenizer.eos_token_id),)

    @property
    def context(self) -> int | None:
        """Longest prompt plus response, in tokens, or None when the model states none."""
        return getattr(self.backbone.config.get_text_config(decoder=True), "max_position_embeddings", None)

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
            prompt, prompt_mask = (take(experience[k], rows).to(self.device) for k in ("prompt_ids", "prompt_mask"))
            check_prompts(prompt_mask)
            distinct, source = torch.unique(prompt.masked_fill(~prompt_mask, -1), dim=0, return_inverse=True)
            cache = self._shareable_cache(distinct >= 0) if 2 * len(distinct) <= len(prompt) else None
            if cache is not None:
                return self._shared(experience, rows, distinct, source, cache)[row, column]
        layout = to_device(lay_out(experience, self.pad_id, rows, padding_side=padding_side), self.device)
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
        action, present = (take(experience[name], rows).to(self.device) for name in ("action", "present"))
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


class LanguagePolicy(Reader):
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
        self.tokenizer = with_pad(tokenizer)
        self.precision: Precision = precision
        self.model = model if lora is None else with_lora(model, lora)
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
        folder = check_source(name_or_path, weights="config.json", alternative="adapter_config.json")
        if folder is not None and not (folder / "config.json").exists():
            model = load_adapter(folder)
        else:
            model = load_weights(AutoModelForCausalLM, str(name_or_path))
        tokenizer = load_tokenizer(str(name_or_path), folder)
        return cls(model, tokenizer, precision=precision, lora=lora).to(torch.device(device))

    @property
    def causal_lm(self) -> Any:
        """The transformers model; with LoRA, the one that carries the adapters."""
        return self.model.get_base_model() if is_lora(self.model) else self.model

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
        mask = take(experience["mask"], rows).to(self.device)
        row, column = mask.nonzero(as_tuple=True)
        target = take(experience["action"], rows).to(self.device)[row, column]
        temperature = take(experience["temperature"], rows).to(self.device)[row]
        with self.autocast():
            if self._plain_head:
                states = self._states_before(experience, rows, mask, padding_side)
                logprob, entropy = self._score(states, target, temperature, "entropy" in want)
            else:  # the head is not one we can apply by ourselves: the model's own logits, all of them
                layout = to_device(lay_out(experience, self.pad_id, rows, padding_side=padding_side), self.device)
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
        if merge and is_lora(model):
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


@functools.cache
def _accepts(kind: type, argument: str) -> bool:
    forward: Any = kind.forward  # type: ignore[attr-defined]
    return argument in inspect.signature(forward).parameters


def with_pad(tokenizer: Any) -> Any:
    """Pad with the end token when there is no pad token: masks say what is padding, never ids."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has neither a pad token nor an end token; set one and save it again.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
