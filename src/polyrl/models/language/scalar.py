"""Models with one number a token: the critic and the reward model."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import GENERATION_CONFIG_NAME

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.linear import quicken
from polyrl.models.language.encoding import UnwritableResponse, with_pad
from polyrl.models.language.families import backbone_of
from polyrl.models.language.folders import check_source, is_lora, load_tokenizer, load_weights, no_progress_bar
from polyrl.models.language.policy import Backbone, LanguagePolicy, Precision
from polyrl.models.language.prefix import SharedPrompts
from polyrl.models.language.rows import Index, as_experience, take
from polyrl.tasks.language.base import content
from polyrl.tasks.language.formats import template_columns

_HEAD_FILE = "head.safetensors"


class _ScalarModel(Backbone):
    """A backbone with one number a token; the head starts at 0."""

    ends: tuple[int, ...] = ()
    """Token ids that end a response beside the tokenizer's end token, those of the policy whose responses are read."""

    def __init__(self, backbone: nn.Module, tokenizer: Any, *, precision: Precision = "float32"):
        super().__init__()
        self.backbone: Any = backbone
        quicken(backbone)
        self.tokenizer = with_pad(tokenizer)
        self.precision: Precision = precision
        config: Any = self.backbone.config
        size = config.get_text_config(decoder=True).hidden_size
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, size, 1, device=self.device)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a response: the same as of the policy that it began as."""
        return tuple(sorted({*super().end_ids, *self.ends}))

    @classmethod
    def load(
        cls, name_or_path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "float32"
    ) -> Self:
        """Load a folder written by `save`, or start from a language model's folder with a fresh head."""
        folder = check_source(name_or_path, weights="config.json")
        backbone = load_weights(AutoModel, str(name_or_path))
        model = cls(backbone, load_tokenizer(str(name_or_path), folder), precision=precision)
        if folder is not None:
            model.ends = _ends_in(folder)
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
        if set(self.end_ids) > set(super().end_ids):
            (Path(folder) / GENERATION_CONFIG_NAME).write_text(json.dumps({"eos_token_id": [*self.end_ids]}))
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

    def evaluate(
        self, experience: Experience, rows: Index | None = None, shared: SharedPrompts | None = None
    ) -> Tensor:
        """Value of the state before each action, differentiable: float32 [B, T], 0 where not `present`.

        `shared` are the prompts of the batch, read once for many calls (see `sharing`).
        """
        present = take(experience["present"], rows).to(self.device)
        with self.autocast():
            states = self._states_before(experience, rows, present, shared=shared)
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
        model = cls(_copy_backbone(policy), policy.tokenizer, precision=policy.precision, generator=generator)
        model.ends = policy.end_ids
        return model

    def score(self, experience: Experience, rows: Index | None = None) -> Tensor:
        """Score of each row at its last present token (its last prompt token if the response is empty): float32 [B]."""
        self._check_length(self._longest(experience, rows))
        layout = self._lay_out(experience, rows)
        prompt_mask, present = (take(experience[name], rows).to(self.device) for name in ("prompt_mask", "present"))
        last = prompt_mask.sum(1) + present.sum(1) - 1
        with self.autocast():
            states = self._read_at(layout, torch.arange(len(last), device=self.device), last, self._hidden)
        return self._read_head(states)

    def as_batch(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        end: bool = True,
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> Experience:
        """Prompts and completions, texts or messages, as a batch to score.

        With `end` the end token follows each completion, as if it ended by itself. `rows` are the prompts' rows, whose
        columns `tools` and `chat_template_kwargs` the chat template is given. A completion that the template does not
        write so, or that has an end token inside, is another model's: its text stands there as that one wrote it.
        """
        asked, said = [], []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            given = {} if rows is None else template_columns({**rows[i], "prompt": prompt})
            asked.append(self.encode_prompt(prompt, **given))
            try:
                said.append(self.encode_response(prompt, completion, ended=end, **given))
            except UnwritableResponse:
                close = self.end_ids[:1] if end else ()
                said.append([*self.encode(content(completion)), *close])
        return as_experience(asked, said, pad_id=self.pad_id)

    def score_texts(self, prompts: Sequence[str], completions: Sequence[str], *, end: bool = True) -> Tensor:
        """Score of each completion [B]; with `end` the end token follows it, as in a response that ended by itself."""
        return self.score(self.as_batch(prompts, completions, end=end))


def _ends_in(folder: Path) -> tuple[int, ...]:
    """Token ids that end a response, as the folder's generation config names them; none where there is none."""
    try:
        named = json.loads((folder / GENERATION_CONFIG_NAME).read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return ()
    return tuple(int(i) for i in (named if isinstance(named, list) else [named]) if isinstance(i, int))


def _copy_backbone(policy: LanguagePolicy) -> nn.Module:
    model: Any = copy.deepcopy(policy.model)
    if is_lora(model):
        model = model.merge_and_unload()
    backbone: nn.Module = backbone_of(model)
    return backbone.requires_grad_(True)
