"""RoPE that depends on the length of a text: what a token is worth never depends on the rows beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Phi3Config, PhimoeConfig

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import as_experience
from polyrl.models.language.scalar import Critic, RewardModel
from polyrl.pretrain.tiny import character_tokenizer
from polyrl.rollout.cached import Switching
from polyrl.rollout.continuations import State, go_on
from polyrl.rollout.language import Sampling, TransformersEngine
from tiny_models import config_of

SWITCH = 12
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [5] * SWITCH, [*range(4, 4 + 2 * SWITCH)]]
"""With eight more tokens: below the switch, across it, from the switch on, and beyond it."""
ORIGINAL = {"rope_theta": 100.0, "original_max_position_embeddings": SWITCH, "factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [1.5, 3.0, 4.0, 6.0], **ORIGINAL},
    "yarn": ORIGINAL,
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "linear": {"rope_theta": 100.0, "factor": 3.0},
}
FAMILIES = ("qwen3", "llama", "qwen2", "mistral", "gemma2", "granite", "cohere", "phi3", "phimoe")


def policy_of(family: str, rope: str, **changes: Any) -> LanguagePolicy:
    tokenizer = character_tokenizer()
    parameters = {"rope_type": rope, **ROPES.get(rope, {"rope_theta": 100.0, "factor": 4.0})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family in ("phi3", "phimoe"):
            kind = {"phi3": Phi3Config, "phimoe": PhimoeConfig}[family]
            if family == "phimoe":  # scales what it turns by the length too
                parameters |= {"short_mscale": 1.0, "long_mscale": 1.3}
                changes |= {"num_local_experts": 2, "num_experts_per_tok": 2}
            config = kind(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                max_position_embeddings=128,
                original_max_position_embeddings=SWITCH,
                initializer_range=0.25,
                rope_parameters=parameters,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                sliding_window=None,
                **changes,
            )
        else:
            config = config_of(family, len(tokenizer), rope_parameters=parameters, **changes)
        return LanguagePolicy(AutoModelForCausalLM.from_config(config), tokenizer)


def sampled(policy: LanguagePolicy, **more: Any) -> Experience:
    return TransformersEngine(policy, **more).generate(
        PROMPTS, Sampling(max_tokens=8), completions_per_prompt=2, generator=torch.Generator().manual_seed(1)
    )


def by_itself(policy: LanguagePolicy, batch: Experience) -> Tensor:
    """Log-probability [B, T] of each token after the text before it, which the model reads alone."""
    found = torch.zeros(batch["action"].shape)
    for row in range(len(batch)):
        text = batch["prompt_ids"][row][batch["prompt_mask"][row]].tolist()
        for i, token in enumerate(batch["action"][row][batch["present"][row]].tolist()):
            logits = policy.causal_lm(input_ids=torch.tensor([text])).logits[0, -1]
            found[row, i] = (logits / batch["temperature"][row]).log_softmax(-1)[token]
            text.append(token)
    return found


@pytest.mark.parametrize(
    ("family", "rope"),
    [*((f, "longrope") for f in FAMILIES), *(("llama", r) for r in ROPES), ("granite", "yarn"), ("cohere", "llama3")],
)
@torch.no_grad()
def test_a_token_is_worth_what_its_own_text_says(family: str, rope: str) -> None:
    policy = policy_of(family, rope)
    batch = sampled(policy, compact_at=0.0)
    alone = by_itself(policy, batch)
    for found in (
        batch["behaviour_logprob"],
        policy.evaluate(batch)["logprob"],
        policy.evaluate(batch, padding_side="left")["logprob"],
        torch.cat([policy.evaluate(batch, rows=[i])["logprob"] for i in range(len(batch))]),
    ):
        torch.testing.assert_close(found, alone, rtol=0, atol=2e-4)
    with policy.sharing(policy.plan(batch, 64)) as shared:
        rows = [0, 1]
        torch.testing.assert_close(policy.evaluate(batch, rows=rows, shared=shared)["logprob"], alone[rows])
    whole = [RewardModel.like(policy), Critic.like(policy)]
    torch.nn.init.normal_(whole[1].head.weight)
    for model, read in zip(whole, (whole[0].score, whole[1].evaluate), strict=True):
        together = read(batch)
        apart = torch.cat([read(batch, [i]) for i in range(len(batch))])
        torch.testing.assert_close(together, apart, rtol=0, atol=2e-4, msg=type(model).__name__)


@torch.no_grad()
def test_longrope_is_another_one_beyond_its_switch() -> None:
    """Else the test above would say nothing."""
    policy = policy_of("phi3", "longrope")
    text = torch.tensor([PROMPTS[3]])
    long = policy.causal_lm(input_ids=text).logits[0, SWITCH - 1]
    short = policy.causal_lm(input_ids=text[:, :SWITCH]).logits[0, -1]
    assert (long - short).abs().max() > 0.1


def test_gradients_of_rows_that_cross_the_switch() -> None:
    policy = policy_of("phi3", "longrope")
    batch = sampled(policy)
    slopes = []
    for losses in (
        [policy.evaluate(batch)["logprob"].sum()],
        [by_itself(policy, batch).sum()],
    ):
        policy.zero_grad()
        for loss in losses:
            loss.backward()
        slopes.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert (slopes[0] - slopes[1]).norm() / slopes[1].norm() < 1e-4


@torch.no_grad()
def test_whole_logits_follow_the_switch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("llama", "longrope")
    batch = sampled(policy)
    monkeypatch.setattr(policy, "_plain_head", False)
    torch.testing.assert_close(policy.evaluate(batch)["logprob"], by_itself(policy, batch), rtol=0, atol=2e-4)


@torch.no_grad()
def test_continuations_cross_the_switch() -> None:
    policy = policy_of("phi3", "longrope")
    said = [4, 9, 14, 19, 24, 29]
    states = [State(tuple(prompt), tuple(said[:n])) for prompt in PROMPTS for n in (0, 3, 6)]
    more = go_on(
        TransformersEngine(policy), states, Sampling(max_tokens=10), count=2, generator=torch.Generator().manual_seed(2)
    )
    texts = [state.text for state in states for _ in range(2)]
    width = more["action"].shape[1]
    responses = [row[real].tolist() for row, real in zip(more["action"], more["present"], strict=True)]
    batch = as_experience(texts, responses, pad_id=policy.pad_id)
    torch.testing.assert_close(
        more["behaviour_logprob"], by_itself(policy, batch)[:, :width] * more["mask"], rtol=0, atol=2e-4
    )


@torch.no_grad()
def test_rows_on_one_side_are_read_together() -> None:
    policy = policy_of("phi3", "longrope")
    engine = TransformersEngine(policy)
    below = engine._read([(5, 6), (7, 8, 9)], SWITCH - 3, None)
    across = engine._read([(5, 6), (7, 8, 9)], SWITCH - 2, None)
    assert not isinstance(below, Switching) and isinstance(across, Switching)
    assert len(across.parts) == 1
    beyond = engine._read([tuple(PROMPTS[3]), (5, 6)], 4, None)
    assert isinstance(beyond, Switching) and [rows.tolist() for rows, _ in beyond.parts] == [[0], [1]]


@torch.no_grad()
def test_dynamic_rope_beyond_its_length_is_refused() -> None:
    policy = policy_of("llama", "dynamic", max_position_embeddings=2 * SWITCH)
    short = PROMPTS[:2]
    batch = as_experience(short, [[4, 5, 6]] * 2, pad_id=policy.pad_id)
    torch.testing.assert_close(policy.evaluate(batch)["logprob"], by_itself(policy, batch), rtol=0, atol=2e-4)
    long = as_experience(PROMPTS, [[4, 5, 6]] * 4, pad_id=policy.pad_id)
    for read in (policy.evaluate, RewardModel.like(policy).score, Critic.like(policy).evaluate):
        with pytest.raises(UserError, match=f"27 tokens together.*beyond {2 * SWITCH}"):
            read(long)
    with pytest.raises(UserError, match="context"):
        sampled(policy)
