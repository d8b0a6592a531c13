"""Reading model folders and hub models: safetensors only, no code from the folder, one sentence for each mistake."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from polyrl.errors import UserError
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.files import fingerprint

ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


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


def is_lora(model: Any) -> bool:
    """Whether the model carries adapters of peft."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def with_lora(model: nn.Module, lora: LoraSettings) -> nn.Module:
    """Put fresh adapters on the model, initialized from their own seed; only they are trained."""
    peft = import_peft()
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):  # peft initializes from the global generator: leave it as it was
        torch.manual_seed(lora.seed)
        wrapped = peft.get_peft_model(model, settings)
    for used in wrapped.peft_config.values():
        if isinstance(used.target_modules, set):
            used.target_modules = sorted(used.target_modules)  # a set is saved in another order by every process
    found: nn.Module = wrapped
    return found


def import_peft() -> Any:
    """The peft package; UserError that names the extra where it is not installed."""
    try:
        import peft
    except ImportError:
        raise UserError("LoRA needs the peft package; install it with `pip install 'polyrl[lora]'`.") from None
    return peft


def check_source(name_or_path: str | Path, *, weights: str, alternative: str | None = None) -> Path | None:
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


def load_tokenizer(name: str, folder: Path | None) -> Any:
    """Load the tokenizer of a folder, or of a hub model where `folder` is None; UserError when there is none."""
    missing = UserError(f"{name} has no tokenizer; save one beside the model with tokenizer.save_pretrained.")
    # transformers makes up an empty tokenizer for a folder that has none, so look first
    if folder is not None and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        raise missing
    try:
        return AutoTokenizer.from_pretrained(str(folder or name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if folder is None:
            raise missing from None
        raise UserError(f"The tokenizer in {name} cannot be read: {first_line(error)}") from None


def load_weights(kind: Any, name: str) -> Any:
    """Load a transformers model of this kind in float32; UserError when weights are missing or damaged."""
    source = str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    _check_weights(name, source)
    try:
        with no_progress_bar():
            model, report = kind.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise UserError(f"The weights in {name} are damaged ({first_line(error)}); copy the folder again.") from None
    except Exception as error:  # a configuration may say anything, and each family trips over it in its own way
        raise UserError(f"The model {name} cannot be loaded: {first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"The weights in {name} are incomplete: {missing[0]} and {len(missing) - 1} more are missing.")
    return model


def _check_weights(name: str, source: str) -> None:
    """Refuse what cannot be trained in full precision, and what transformers would read without saying so."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
        adapter = find_adapter_config_file(source)
    except Exception as error:  # what is read is whatever lies there
        raise UserError(f"The model {name} cannot be loaded: {first_line(error)}") from None
    if adapter is not None:
        raise UserError(f"{name} holds adapters; give the folder of the model that they belong to, or download them.")
    for part in (config, config.get("text_config")):
        quantized = part.get("quantization_config") if isinstance(part, dict) else None
        if quantized:
            method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
            raise UserError(
                f"The weights in {name} are quantized ({method}), and polyrl trains float32 weights; give the "
                "model that it was made from."
            )


def _adapter_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """Folder or name of an adapter folder's base model, and its settings."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{folder} has no {ADAPTER_WEIGHTS}; polyrl reads no pickled weights, so save the adapters as safetensors."
        )
    try:
        settings = json.loads((folder / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
        return str(settings["base_model_name_or_path"]), settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ADAPTER_SETTINGS} names no base model ({first_line(error)}).") from None


def load_adapter(folder: Path) -> nn.Module:
    """Load an adapter folder on its base model, ready to be trained on."""
    peft = import_peft()
    base, _ = _adapter_settings(folder)
    check_source(base, weights="config.json")
    weights = load_weights(AutoModelForCausalLM, base)
    try:
        if not peft.PeftConfig.from_pretrained(folder).is_prompt_learning:
            model: nn.Module = peft.PeftModel.from_pretrained(weights, folder, is_trainable=True)
            return model
    except Exception as error:  # settings may say anything
        raise UserError(f"The adapters in {folder} cannot be loaded: {first_line(error)}") from None
    raise UserError(f"The adapters in {folder} are a learned prompt, which polyrl does not train; use LoRA.")


def merged(folder: Path) -> Path:
    """The model that an adapter folder and its base make together, as an ordinary folder in polyrl's cache.

    New adapters start from it: it is their base model, and what they are compared with.
    """
    base, settings = _adapter_settings(folder)
    state = hashlib.blake2b(f"{fingerprint(base)} {json.dumps(settings, sort_keys=True)}".encode(), digest_size=8)
    with (folder / ADAPTER_WEIGHTS).open("rb") as data:
        while block := data.read(1 << 24):
            state.update(block)

    def make(target: Path) -> dict[str, Any]:
        model: Any = load_adapter(folder)
        with no_progress_bar():
            model.merge_and_unload().save_pretrained(target)
        load_tokenizer(str(folder), folder).save_pretrained(target)
        return {"base": base, "adapters": str(folder)}

    return cached(cache_folder() / "models" / f"merged-{state.hexdigest()}", make)


def first_line(error: Exception) -> str:
    """First line of an error, for a one-sentence message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
