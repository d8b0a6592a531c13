"""The language policy: a causal language model of Hugging Face and its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels import llama
from polyrl.kernels.linear import quicken
from polyrl.kernels.llama_weights import Weights
from polyrl.kernels.padding import PaddingSide
from polyrl.models.language.encoding import TextEncoding, with_pad
from polyrl.models.language.families import (
    backbone_of,
    cache_argument,
    keeps_keys,
    rope_limit,
    rope_switches,
    side,
    takes,
)
from polyrl.models.language.folders import (
    ADAPTER_SETTINGS,
    LoraSettings,
    check_source,
    is_lora,
    load_adapter,
    load_tokenizer,
    load_weights,
    merged,
    no_progress_bar,
    with_lora,
)
from polyrl.models.language.prefix import Plan, Prompts, SharedPrompts, distinct_prompts, make_plan, worth_sharing
from polyrl.models.language.rows import Index, Layout, as_experience, lay_out, take, to_device
from polyrl.models.language.token_scores import score_logits

Precision = Literal["float32", "bfloat16"]
"""float32, or bfloat16 forward passes (autocast) over float32 weights."""


class Backbone(TextEncoding, nn.Module):
    """A backbone that reads prompts and responses. Dropout is off, always."""

    precision: Precision
    backbone: Any
    """The transformers model without its output head."""
    share_prompts = True
    """Read a prompt that several rows have in common once, and share its keys and values."""

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
        return takes(kind, argument)

    @property
    def context(self) -> int | None:
        """Longest prompt plus response, in tokens, or None when the model states none."""
        return getattr(self.backbone.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.accepts("position_ids"):
            inputs["position_ids"] = position_ids
        return inputs

    def _hidden(self, layout: Layout) -> Tensor:
        """Last hidden states [b, L, d]."""
        inputs = self._inputs(layout.input_ids, layout.attention_mask, layout.position_ids)
        return self.backbone(**inputs, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    @cached_property
    def rope_switches(self) -> tuple[int, ...]:
        """Lengths of a text, in tokens, beyond which the backbone's RoPE is another one."""
        return rope_switches(self.backbone.config)

    def changes_rope(self, longest: int) -> bool:
        """Whether texts of up to `longest` tokens do not all have the same RoPE."""
        return bool(self.rope_switches) and longest > self.rope_switches[0]

    def _check_length(self, longest: int) -> None:
        """Refuse rows whose RoPE is another one for each length: what a token is worth would depend on its row."""
        limit = rope_limit(self.backbone.config)
        if limit is not None and longest > limit:
            raise UserError(
                f"A prompt and response have {longest} tokens together, but the model's dynamic RoPE gives each length "
                f"beyond {limit} other values; shorten them, or set another rope_type in the model's config.json."
            )

    def _read_at(self, layout: Layout, row: Tensor, place: Tensor, read: Callable[[Layout], Tensor]) -> Tensor:
        """What `read` [b, L, ...] gives of a layout padded on the right, at `row`, `place` [n].

        It is what the text up to there gives by itself: where RoPE depends on the length of what is read, places on
        different sides are read apart, each in texts of its own side.
        """
        if not self.changes_rope(layout.input_ids.shape[1]):
            return read(layout)[row, place]
        sides = side(place + 1, self.rope_switches)
        order, found = [], []
        for number in sorted(set(sides.tolist())):
            here = (sides == number).nonzero()[:, 0]
            rows, renumbered = torch.unique(row[here], return_inverse=True)
            width = int(place[here].max()) + 1
            order.append(here)
            found.append(read(layout.beginning(rows, width))[renumbered, place[here]])
        return torch.cat(found)[torch.cat(order).argsort()]

    def _states_before(
        self,
        experience: Experience,
        rows: Index | None,
        where: Tensor,
        padding_side: PaddingSide = "right",
        shared: SharedPrompts | None = None,
    ) -> Tensor:
        """Hidden states [n, d] before the response tokens that `where` [b, T] marks, row by row."""
        row, column = where.nonzero(as_tuple=True)
        longest = self._longest(experience, rows)
        self._check_length(longest)
        found = None
        if padding_side == "right" and not self.changes_rope(longest):
            found = self._read_prompts(experience, rows) if shared is None else shared.of(rows)
        if found is not None:
            prompts, source = found
            action, present = (take(experience[name], rows) for name in ("action", "present"))
            longest = int(present.sum(1).max())
            action, present = (x[:, :longest].to(self.device) for x in (action, present))
            return prompts.states(source, action, present, row, column)
        layout = self._lay_out(experience, rows, padding_side)
        return self._read_at(layout, row, layout.place[row, column] - 1, self._hidden)

    def _longest(self, experience: Experience, rows: Index | None) -> int:
        prompt_mask, present = (take(experience[name], rows) for name in ("prompt_mask", "present"))
        return int((prompt_mask.sum(1) + present.sum(1)).max())

    def _lay_out(self, experience: Experience, rows: Index | None, padding_side: PaddingSide = "right") -> Layout:
        side: PaddingSide = "right" if self.rope_switches else padding_side  # beginnings of rows may be read
        return to_device(lay_out(experience, self.pad_id, rows, padding_side=side), self.device)

    def _read_prompts(self, experience: Experience, rows: Index | None) -> tuple[Prompts, Tensor] | None:
        """The rows' distinct prompts, and which of them each row has; None where to share them gains nothing."""
        prompts, source = distinct_prompts(experience, rows)
        responses = int(take(experience["present"], rows).sum())
        if not (self.share_prompts and worth_sharing(prompts, source, responses) and self.can_share):
            return None
        if self.shares_even_only and len({len(p) for p in prompts}) > 1:
            return None
        return Prompts(self, prompts, self.empty_cache()), source.to(self.device)

    @contextmanager
    def sharing(self, plan: Plan | None) -> Iterator[SharedPrompts | None]:
        """Read a batch's prompts as planned; gradients are whole at a clean exit, and of no use after an error."""
        shared = None
        if plan is not None:
            dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
            weights = Weights(self.backbone, dtype) if plan.own else None
            shared = SharedPrompts(self, plan, weights)
        # weights are cast to bfloat16 once and not for every pass: the outermost context keeps what is cast in it
        with torch.autocast(self.device.type, enabled=False):
            yield shared
            if shared is not None:
                shared.close()

    def plan(self, experience: Experience, max_tokens: int) -> Plan | None:
        """How to read the batch's prompts once, `max_tokens` at a time; None where it gains nothing or cannot be."""
        if not (self.share_prompts and self.can_share):
            return None
        if self.changes_rope(self._longest(experience, None)):
            return None
        prompt, response = experience["prompt_mask"].sum(1), experience["present"].sum(1)
        own = self.has_own_passes and llama.pays(self.backbone, prompt, response)
        return make_plan(experience, max_tokens, even=self.shares_even_only, own=own)

    @cached_property
    def has_own_passes(self) -> bool:
        """Whether the passes of `llama` know this backbone: by what it is, and tried once."""
        if llama.refusal(self.backbone) is not None:
            return False
        return self._agrees(lambda prompts: llama.Prompts(Weights(self.backbone), prompts))

    # ---- keys and values

    def empty_cache(self) -> Any:
        """Key-value cache of the backbone's kind."""
        return DynamicCache(config=self.backbone.config)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: Any) -> Tensor:
        """Last hidden states [n, L, d] of tokens [n, L] that follow what is in `cache`; extends it in place."""
        inputs = self._inputs(input_ids, attention_mask, position_ids) | self._cached(cache)
        return self.backbone(**inputs).last_hidden_state  # type: ignore[no-any-return]

    def _cached(self, cache: Any) -> dict[str, Any]:
        """Arguments of a forward pass that goes on from `cache`, or that keeps none."""
        name = cache_argument(type(self.backbone))
        return {"use_cache": False} if cache is None or name is None else {"use_cache": True, name: cache}

    @cached_property
    def keeps_cache(self) -> bool:
        """Whether the backbone goes on from the keys and values of what it has read: a state is none."""
        return cache_argument(type(self.backbone)) is not None and keeps_keys(self.empty_cache())

    @cached_property
    def shares_even_only(self) -> bool:
        """Whether prompts that are shared need one length: a sliding window would count padding behind a prompt."""
        return any(type(layer) is not DynamicLayer for layer in self.empty_cache().layers)

    @cached_property
    def can_share(self) -> bool:
        """Whether responses can be read after a prompt's keys and values: families differ, so try it."""
        if not (self.keeps_cache and self.accepts("position_ids")):
            return False
        if not {type(layer) for layer in self.empty_cache().layers} <= {DynamicLayer, DynamicSlidingWindowLayer}:
            return False
        return self._agrees(lambda prompts: Prompts(self, prompts, self.empty_cache()))

    @torch.no_grad()
    def _agrees(self, read: Callable[[list[list[int]]], Prompts | llama.Prompts]) -> bool:
        """Whether two short rows have the states of the plain pass when their prompts are read by `read`."""
        vocabulary = self.backbone.get_input_embeddings().weight.shape[0]
        ids = [[i % vocabulary for i in row] for row in ((1, 2, 3, 4, 5), (4, 3, 2, 5, 6))]
        asked = (3, 3) if self.shares_even_only else (3, 2)
        prompts = [row[:n] for row, n in zip(ids, asked, strict=True)]
        batch = as_experience(prompts, [row[n:] for row, n in zip(ids, asked, strict=True)], pad_id=self.pad_id)
        action, present = batch["action"].to(self.device), batch["present"].to(self.device)
        row, column = present.nonzero(as_tuple=True)
        with torch.autocast(self.device.type, enabled=False):
            layout = to_device(lay_out(batch, self.pad_id), self.device)
            plain = self._hidden(layout)[row, layout.place[row, column] - 1]
            source = torch.arange(2, device=self.device)
            states = read(prompts).states(source, action, present, row, column)
        # weights that are not finite are no fault of the reading: what it gives is not finite either
        if not bool(plain.isfinite().all()):
            return True
        return bool(torch.allclose(states, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max())))


class LanguagePolicy(Backbone):
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
        quicken(self.model)
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

        Weights are float32 and come from safetensors files; code in the folder is never run. `lora` puts fresh adapters
        on the model; those of an adapter folder are then part of the frozen weights.
        Errors: UserError when the folder, its tokenizer or its weights are missing or damaged.
        """
        folder = check_source(name_or_path, weights="config.json", alternative=ADAPTER_SETTINGS)
        if folder is not None and (folder / ADAPTER_SETTINGS).exists():
            # what new adapters start from, and are compared with, has those of the folder in it
            model = load_adapter(folder) if lora is None else load_weights(AutoModelForCausalLM, str(merged(folder)))
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
        return backbone_of(self.causal_lm)

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
        shared: SharedPrompts | None = None,
    ) -> dict[str, Tensor]:
        """Score the actions of a batch (or of its `rows`) under the current weights, differentiably.

        `shared` are the prompts of the batch, read once for many calls (see `sharing`).

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
                states = self._states_before(experience, rows, mask, padding_side, shared)
                logprob, entropy = self._score(states, target, temperature, "entropy" in want)
            else:  # the head is not one we can apply by ourselves: the model's own logits, all of them
                self._check_length(self._longest(experience, rows))
                layout = self._lay_out(experience, rows, padding_side)
                logits = self._read_at(layout, row, layout.place[row, column] - 1, self._whole_logits)
                logprob, entropy = score_logits(logits, target, temperature, "entropy" in want)
        found = {"logprob": logprob} if entropy is None else {"logprob": logprob, "entropy": entropy}
        blank = torch.zeros(mask.shape, device=self.device)
        return {name: blank.index_put((row, column), found[name]) for name in found if name in want}

    def _whole_logits(self, layout: Layout) -> Tensor:
        """The model's own logits [b, L, V]."""
        inputs = self._inputs(layout.input_ids, layout.attention_mask, layout.position_ids)
        return self.causal_lm(**inputs, use_cache=False).logits  # type: ignore[no-any-return]

    def next_logits(
        self, input_ids: Tensor, *, attention_mask: Tensor | None, position_ids: Tensor, cache: Any = None
    ) -> Tensor:
        """Logits [n, V] float32 of the token after the last column of `input_ids` [n, L]; extends `cache` in place."""
        inputs = self._inputs(input_ids, attention_mask, position_ids) | self._cached(cache)
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
            return score_logits(self._logits(states), target, temperature, want_entropy)

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
