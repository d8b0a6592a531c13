"""Folders as they circulate: adapters of every kind, quantized weights, families that name no base model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig, LlamaForCausalLM, MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

import polyrl
from polyrl.errors import UserError
from polyrl.models.language.families import backbone_of
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import as_experience
from polyrl.models.language.scalar import Critic
from polyrl.pretrain.tiny import character_tokenizer
from polyrl.rollout.language import Sampling, TransformersEngine
from tiny_models import config_of, naive_logits, save_model

IDS = [5, 6, 7, 8, 9, 10]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path / "cache"))
    return save_model(tmp_path / "model", "qwen3")


def adapters(model: Path, folder: Path, scale: float = 0.3) -> Path:
    """An adapter folder on that model, whose adapters matter."""
    policy = LanguagePolicy.load(model, lora=LoraSettings(rank=2))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale, generator=torch.Generator().manual_seed(1))
    policy.save(folder)
    return folder


def length(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


# --------------------------------------------------------------------------------------------- adapters


def test_new_adapters_on_an_adapter_folder_start_from_what_it_is(model: Path, tmp_path: Path) -> None:
    folder = adapters(model, tmp_path / "adapters")
    want = naive_logits(LanguagePolicy.load(folder), IDS)
    assert (want - naive_logits(LanguagePolicy.load(model), IDS)).abs().max() > 0.1
    policy = LanguagePolicy.load(folder, lora=LoraSettings(rank=3))
    torch.testing.assert_close(naive_logits(policy, IDS), want, rtol=1e-4, atol=1e-4)
    assert all("lora_" in name for name, p in policy.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert (naive_logits(policy, IDS) - want).abs().max() > 0.1
    with policy.model.disable_adapter():
        torch.testing.assert_close(naive_logits(policy, IDS), want, rtol=1e-4, atol=1e-4)
    policy.save(tmp_path / "again")
    torch.testing.assert_close(
        naive_logits(LanguagePolicy.load(tmp_path / "again"), IDS), naive_logits(policy, IDS), rtol=1e-4, atol=1e-4
    )


def test_adapters_that_changed_are_merged_again(model: Path, tmp_path: Path) -> None:
    found = []
    for scale in (0.3, 0.6):
        folder = adapters(model, tmp_path / "adapters", scale)
        found.append(naive_logits(LanguagePolicy.load(folder, lora=LoraSettings(rank=2)), IDS))
    assert (found[0] - found[1]).abs().max() > 0.1


@pytest.mark.parametrize("lora", [None, 4])
def test_the_reference_of_a_run_on_an_adapter_folder_is_base_and_adapter(
    lora: int | None, model: Path, tmp_path: Path
) -> None:
    run = polyrl.train(
        "grpo+reference-kl",
        dataset=[{"prompt": f"{i}+1="} for i in range(20)],
        reward=length,
        model=adapters(model, tmp_path / "adapters"),
        options={"lora": lora, "max_tokens": 6, "eval_prompts": 4, "evaluations": 1, "tensorboard": False},
        budget="samples=16",
        prompts_per_step=4,
        completions_per_prompt=4,
        learning_rate=1e-12,
        out=tmp_path / "run",
        quiet=True,
    )
    lines = (Path(run.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    gaps = [line["kl"] for line in map(json.loads, lines) if line.get("kl") is not None]
    assert gaps and all(math.isfinite(gap) and abs(gap) < 1e-4 for gap in gaps)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_pickled_adapters_are_refused(lora: LoraSettings | None, model: Path, tmp_path: Path) -> None:
    folder = adapters(model, tmp_path / "adapters")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors.*pickled"):
        LanguagePolicy.load(folder, lora=lora)
    # beside a whole model, transformers would find and read them by itself
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"adapter_model\.safetensors.*pickled"):
        LanguagePolicy.load(folder, lora=lora)
    with pytest.raises(UserError, match="holds adapters"):
        Critic.load(folder)


@pytest.mark.parametrize("settings", ["{", "[]", "{}", '{"base_model_name_or_path": 3, "peft_type": "NO"}'])
def test_settings_of_adapters_that_say_nothing(settings: str, model: Path, tmp_path: Path) -> None:
    folder = adapters(model, tmp_path / "adapters")
    (folder / "adapter_config.json").write_text(settings, encoding="utf-8")
    for lora in (None, LoraSettings(rank=2)):
        with pytest.raises(UserError):
            LanguagePolicy.load(folder, lora=lora)


def test_learned_prompts_are_refused(model: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    whole = AutoModelForCausalLM.from_pretrained(model)
    peft.get_peft_model(whole, settings).save_pretrained(tmp_path / "prompt")
    character_tokenizer().save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="learned prompt"):
        LanguagePolicy.load(tmp_path / "prompt")


# --------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "torchao", "fp8", "mxfp4"])
@pytest.mark.parametrize("kind", [LanguagePolicy, Critic])
def test_quantized_weights_are_refused_in_one_sentence(method: str, kind: Any, model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for place in (config, config.setdefault("text_config", {})):
        place["quantization_config"] = {"quant_method": method, "bits": 4}
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(UserError, match=rf"quantized \({method}\)"):
            kind.load(model)
        place.pop("quantization_config")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"num_hidden_layers": -1},
        {"hidden_act": "nothing"},
        {"rope_parameters": {"rope_type": "unheard of"}},
        {"model_type": "unheard-of"},
        {"vocab_size": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_configurations_that_no_model_has(changes: dict[str, Any], model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(UserError) as error:
        LanguagePolicy.load(model)
    assert str(model) in str(error.value) and "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- families


class Whole(LlamaForCausalLM):
    """Names no base model that it has."""

    base_model_prefix = "language_model"


def nameless(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "llama":
            return Whole(config_of("llama", len(character_tokenizer())))
        if kind == "mllama":
            rope = {"rope_type": "default", "rope_theta": 100.0}
            size = config_of("llama", len(character_tokenizer())).to_dict()
            kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
            kept += ("intermediate_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
            text = {name: size[name] for name in kept}
            return MllamaForCausalLM(MllamaTextConfig(**text, cross_attention_layers=[], rope_parameters=rope))
        sizes = {"hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "head_dim": 16}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attention_chunk_size": 64}
        config = Llama4TextConfig(
            vocab_size=len(character_tokenizer()), max_position_embeddings=128, **sizes, **heads, **special
        )
        return Llama4ForCausalLM(config)


@pytest.mark.parametrize("kind", ["llama", "llama4", "mllama"])
def test_families_that_name_no_base_model_are_sampled_from_and_trained(kind: str) -> None:
    model = nameless(kind)
    assert model.base_model is model and backbone_of(model) is not model
    policy = LanguagePolicy(model, character_tokenizer())
    assert policy._plain_head and policy.can_share
    prompts = [IDS, IDS[:2]]
    batch = TransformersEngine(policy).generate(
        prompts, Sampling(max_tokens=6), completions_per_prompt=3, generator=torch.Generator().manual_seed(0)
    )
    found = policy.evaluate(batch)["logprob"]
    torch.testing.assert_close(found, batch["behaviour_logprob"], rtol=0, atol=1e-4)
    alone = torch.cat([policy.evaluate(batch, rows=[i])["logprob"] for i in range(6)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
    found.sum().backward()
    assert all(p.grad is not None for p in backbone_of(model).layers.parameters())
    critic = Critic.like(policy)
    values = critic.evaluate(as_experience(prompts, [[5, 6], [7]], pad_id=0))
    assert values.shape == (2, 2) and bool((values == 0).all())
