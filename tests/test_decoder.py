"""The decoder: what a transformers model gives, token for token, and only for models that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from polyrl.core.experience import Experience
from polyrl.kernels import decoder
from polyrl.kernels import decoding as decoding_kernel
from polyrl.kernels.decoder import Decoder, refusal
from polyrl.kernels.linear import SETTING, onednn_pays
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import LanguagePolicy
from polyrl.pretrain.tiny import character_tokenizer
from polyrl.rollout import cached, decoding, language
from polyrl.rollout.cached import Cached
from polyrl.rollout.language import Sampling, TransformersEngine
from tiny_models import config_of, multi_character_tokenizer

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18, 19], [5, 6, 7, 8], [20, 21]]

CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "qwen3": Qwen3Config,
    "qwen2": Qwen2Config,  # biases on query, key and value
    "llama": LlamaConfig,
    "mistral": lambda **size: MistralConfig(**{"sliding_window": None, **size}),
}


def config(family: str = "qwen3", vocabulary: int = 100, **changes: Any) -> PretrainedConfig:
    size: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "tie_word_embeddings": family == "qwen3",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "qwen2":
        size.pop("head_dim")
    return CONFIGS[family](**{**size, **changes})


def policy_of(config: PretrainedConfig, tokenizer: Any = None, seed: int = 0, **more: Any) -> LanguagePolicy:
    """A policy with random weights: norms and biases too, which are ones and zeros in a fresh model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 2.0)
                elif name.endswith("bias"):
                    parameter.normal_()
    return LanguagePolicy(model, tokenizer or character_tokenizer(), **more)


@pytest.fixture(scope="module")
def policies() -> dict[str, LanguagePolicy]:
    return {family: policy_of(config(family)) for family in CONFIGS}


@pytest.fixture
def policy(policies: dict[str, LanguagePolicy], monkeypatch: pytest.MonkeyPatch) -> LanguagePolicy:
    """The Qwen3 policy with many end tokens, so that rows end all the time."""
    found = policies["qwen3"]
    monkeypatch.setattr(found.causal_lm.generation_config, "eos_token_id", list(range(30, 36)))
    return found


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many times a batch was decoded by each of the two ways."""
    seen = {"fast": 0, "plain": 0}

    class Fast(Decoder):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            seen["fast"] += 1

    class Plain(Cached):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            seen["plain"] += 1

    monkeypatch.setattr(language, "Decoder", Fast)
    monkeypatch.setattr(cached, "Cached", Plain)
    return seen


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """Every product through oneDNN, whatever the processor; gives the shapes of the weights that were packed."""
    monkeypatch.setenv(SETTING, "1")
    onednn_pays.cache_clear()
    if not onednn_pays():
        pytest.skip("this PyTorch has no oneDNN")
    shapes, pack = [], decoder.pack
    monkeypatch.setattr(decoder, "SMALLEST", 0)
    monkeypatch.setattr(decoder, "pack", lambda weight: (shapes.append(weight.shape), pack(weight))[1])
    yield shapes
    monkeypatch.undo()
    onednn_pays.cache_clear()


def sample(policy: LanguagePolicy, sampling: Sampling, fast: bool = True, each: int = 6, **more: Any) -> Experience:
    engine = TransformersEngine(policy, fast=fast, **{k: more.pop(k) for k in ("max_rows", "compact_at") if k in more})
    assert (engine.plain_because is None) == fast
    prompts = more.pop("prompts", PROMPTS)
    generator = torch.Generator().manual_seed(more.pop("seed", 0))
    return engine.generate(prompts, sampling, completions_per_prompt=each, generator=generator, **more)


def assert_same(one: Experience, other: Experience, atol: float = 1e-5) -> None:
    assert one.fields() == other.fields() and one.columns == other.columns
    for name in one.fields():
        if name == "behaviour_logprob":
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol)
        else:
            assert torch.equal(one[name], other[name]), name


def assert_both_ways(policy: LanguagePolicy, sampling: Sampling, atol: float = 1e-5, **more: Any) -> Experience:
    fast = sample(policy, sampling, **more)
    assert_same(fast, sample(policy, sampling, fast=False, **more), atol)
    return fast


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("peaked", [True, False])
def test_tokens_and_logprobs_are_those_of_the_model(family, peaked, spies):
    policy = policy_of(config(family))
    firmness = 8.0 if peaked else 0.5
    with torch.no_grad():
        policy.causal_lm.model.norm.weight.mul_(firmness)  # and so the logits, and the rounding in them
    batch = assert_both_ways(policy, Sampling(max_tokens=24), atol=1e-5 * max(1.0, firmness))
    assert spies == {"fast": 1, "plain": 1}
    chosen = batch["behaviour_logprob"][batch["mask"]].exp().mean()
    assert chosen > 0.3 if peaked else chosen < 0.1
    fresh = policy.evaluate(batch)["logprob"]
    torch.testing.assert_close(fresh, batch["behaviour_logprob"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"head_dim": 16},
        {"rms_norm_eps": 1e-2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",  # scales cosine and sine too
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=lambda changes: str(next(iter(changes.values()))) if len(changes) == 1 else "biases",
)
def test_what_a_configuration_changes_is_followed(changes):
    assert_both_ways(policy_of(config("llama", **changes)), Sampling(max_tokens=20), each=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"temperature": 1.7, "top_p": 0.8},
        {"top_k": 5},
        {"greedy": True},
        {"max_tokens": 1},
    ],
    ids=str,
)
def test_every_way_of_drawing(policy, settings):
    assert_both_ways(policy, Sampling(**{"max_tokens": 20, **settings}))
    twins = assert_both_ways(policy, Sampling(**{"max_tokens": 20, **settings}), greedy_baseline=True)
    assert twins["greedy"].sum() >= len(PROMPTS)


def test_rows_leave_and_nobody_notices(policy, monkeypatch):
    sampling = Sampling(max_tokens=30)
    whole = assert_both_ways(policy, sampling)
    assert whole["present"].sum(1).unique().numel() > 5
    changes = ({"compact_at": 2.0}, {"compact_at": 0.0}, {"compact_at": 0.4}, {"max_rows": 1}, {"max_rows": 7})
    for lot in (decoding._lot, lambda count: count, lambda count: -(-count // 8) * 8):  # ended rows may stay
        monkeypatch.setattr(decoding, "_lot", lot)
        for change in changes:
            assert_same(whole, sample(policy, sampling, **change))
    monkeypatch.setattr(decoding, "_look_every", lambda device: 5)  # as on a GPU
    for change in ({}, *changes):
        assert_same(whole, sample(policy, sampling, **change))


def test_rows_stay_in_lots():
    assert [decoding._lot(n) for n in (1, 2, 7, 8, 9, 16, 17, 32, 33, 63, 64, 65, 250)] == [
        1, 2, 7, 8, 10, 16, 20, 32, 40, 64, 64, 80, 256
    ]  # fmt: skip
    assert all(n <= decoding._lot(n) <= n * 5 / 4 for n in range(1, 2000))


def test_prompts_are_read_once_and_leave_with_their_last_row(policy, monkeypatch):
    seen: list[decoder.Decoding] = []
    read = Decoder.read

    def spy(*args: Any, **kwargs: Any) -> decoder.Decoding:
        seen.append(read(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(Decoder, "read", spy)
    prompts = [*PROMPTS, PROMPTS[0]]  # one of them twice, with rows far apart
    sample(policy, Sampling(max_tokens=40), prompts=prompts, each=1)
    (only,) = seen[-1:]
    assert only.responses.shape[2] == len(prompts)
    assert only.padding is not None and only.prompts.shape[2] == only.padding.shape[0] < len(PROMPTS)
    sample(policy, Sampling(max_tokens=2), prompts=prompts, each=9, max_rows=100)
    assert seen[-1].responses.shape[2] == 9 * len(prompts)
    assert seen[-1].prompts.shape[2] == len(PROMPTS)


def test_prompts_read_a_few_at_a_time(policy, monkeypatch):
    whole = sample(policy, Sampling(max_tokens=12))
    monkeypatch.setattr(decoding_kernel, "PREFILL_TOKENS", 10)
    assert_same(whole, sample(policy, Sampling(max_tokens=12)))
    even = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]  # nothing to hide
    assert_both_ways(policy, Sampling(max_tokens=12), prompts=even)


class Tool:
    stop = "ca"

    def reply(self, text: str) -> str:
        return "bbcé"


def test_stop_strings_and_tools():
    policy = policy_of(config(vocabulary=12), multi_character_tokenizer())
    prompts = [policy.encode_prompt(text) for text in ("a", "bca", "cab")]
    stopped = assert_both_ways(policy, Sampling(max_tokens=20, stop=("cab", "é")), prompts=prompts, each=20)
    assert stopped["ended"].any() and not stopped["ended"].all()
    sampling = Sampling(max_tokens=30, temperature=2.0)
    asked = assert_both_ways(policy, sampling, prompts=prompts, each=20, tools=[Tool(), None, Tool()])
    forced = asked["present"] & ~asked["mask"]
    assert forced[:20].any() and not forced[20:40].any()
    assert_same(asked, sample(policy, sampling, prompts=prompts, each=20, tools=[Tool(), None, Tool()], compact_at=2.0))


def test_new_weights_are_seen(policies):
    policy = policy_of(config())
    engine = TransformersEngine(policy)

    def tokens(engine: TransformersEngine) -> Experience:
        return engine.generate(
            PROMPTS, Sampling(max_tokens=10), completions_per_prompt=4, generator=torch.Generator().manual_seed(1)
        )

    before = tokens(engine)
    for parameter in policy.parameters():  # one at a time: none may be forgotten
        with torch.no_grad():
            parameter.mul_(1.0 + 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)))
        after = tokens(engine)
        assert not torch.equal(before["behaviour_logprob"][:, 0], after["behaviour_logprob"][:, 0])
        before = after
    assert engine.plain_because is None
    assert_same(before, tokens(TransformersEngine(policy, fast=False)))


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_weights(family, packed):
    policy = policy_of(config(family))
    batch = sample(policy, Sampling(max_tokens=16))
    assert len(packed) >= 4 * 2 + 1  # each product of two layers, and the head
    assert policy.causal_lm.lm_head.weight.shape in packed
    assert_same(batch, sample(policy, Sampling(max_tokens=16), fast=False))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_bfloat16(family, packed):
    policy = policy_of(config(family, initializer_range=0.1), precision="bfloat16")
    batch = sample(policy, Sampling(max_tokens=16), each=30)
    # weights that are tried in float32 are packed; those in bfloat16 only where the processor can
    assert len(packed) >= (2 if decoder.can_pack(torch.bfloat16) else 1) * (4 * 2 + 1)
    assert batch["behaviour_logprob"].dtype == torch.float32
    exact = policy_of(config(family, initializer_range=0.1)).evaluate(batch)["logprob"]
    own = policy.evaluate(batch)["logprob"]
    error = (batch["behaviour_logprob"] - exact).abs()[batch["mask"]]
    usual = (own - exact).abs()[batch["mask"]]
    assert 0 < error.mean() < 2 * usual.mean()  # no worse than autocast
    assert error.max() < 3 * usual.max()


def test_bfloat16_weights_that_cannot_be_packed_stay_plain(packed, monkeypatch):
    """As on a processor without AVX-512, where oneDNN raises an error."""
    pack = decoder.pack

    def strict(weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype is not torch.float32:
            raise RuntimeError("bf16 path needs the cpu support avx512bw, avx512vl and avx512dq")
        return pack(weight)

    monkeypatch.setattr(decoder, "pack", strict)
    monkeypatch.setattr(decoder, "can_pack", lambda dtype: dtype is torch.float32)
    batch = sample(policy_of(config(), precision="bfloat16"), Sampling(max_tokens=8))
    assert batch["present"].any() and len(packed) == 4 * 2 + 1  # of the trial in float32 alone
    assert sample(policy_of(config()), Sampling(max_tokens=8))["present"].any() and len(packed) == 3 * (4 * 2 + 1)


def test_lora_is_added_in():
    policy = policy_of(config(), lora=LoraSettings(rank=2))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted = assert_both_ways(policy, Sampling(max_tokens=12))
    with policy.model.disable_adapter():
        plain = assert_both_ways(policy, Sampling(max_tokens=12))
    assert not torch.equal(adapted["behaviour_logprob"][:, 0], plain["behaviour_logprob"][:, 0])


def refused(policy: LanguagePolicy) -> str:
    """Why the policy is not decoded fast; it is sampled from all the same."""
    engine = TransformersEngine(policy)
    assert engine.plain_because is not None
    engine.generate(PROMPTS, Sampling(max_tokens=3), completions_per_prompt=2, generator=torch.Generator())
    return engine.plain_because


class Mine(Qwen3ForCausalLM):
    pass


def test_others_go_through_their_own_forward_pass(spies):
    assert "GPT2LMHeadModel" in refused(policy_of(config_of("gpt2", 100)))
    assert "Gemma2ForCausalLM" in refused(policy_of(config_of("gemma2", 100)))
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    assert "window" in refused(policy_of(config("qwen2", **window)))
    assert "window" in refused(policy_of(config("mistral", sliding_window=8)))
    dynamic = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    assert "dynamic" in refused(policy_of(config("llama", rope_parameters=dynamic)))
    assert "gelu" in refused(policy_of(config(hidden_act="gelu")))
    assert "Mine" in refused(LanguagePolicy(Mine(config()), character_tokenizer()))
    lora = policy_of(config(), precision="bfloat16", lora=LoraSettings(rank=2))
    assert "LoRA" in refused(lora)
    assert spies["fast"] == 0 and spies["plain"] == 8


def test_changed_models_go_through_their_own_forward_pass(spies):
    hooked = policy_of(config())
    hooked.causal_lm.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert "hooks" in refused(hooked)
    other = policy_of(config())
    other.causal_lm.model.layers[1].mlp.act_fn = nn.GELU()
    assert "logits" in refused(other)  # nothing says so but the numbers
    layer = policy_of(config())
    layer.causal_lm.model.layers[0].mlp.up_proj = nn.Sequential(layer.causal_lm.model.layers[0].mlp.up_proj)
    assert "Sequential" in refused(layer)
    assert spies["fast"] == 0


def test_the_plain_path_on_request(policies, spies):
    engine = TransformersEngine(policies["qwen3"], fast=False)
    assert engine.plain_because is not None
    engine.generate(PROMPTS, Sampling(max_tokens=2), completions_per_prompt=1, generator=torch.Generator())
    assert spies == {"fast": 0, "plain": 1}
    assert refusal(policies["qwen3"].causal_lm, torch.float32) is None
