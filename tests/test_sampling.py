"""Sampling: what is drawn, what is written about it, and that neither depends on how the work is arranged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout import cached
from polyrl.rollout.drawing import draw, filtered
from polyrl.rollout.language import Sampling, TransformersEngine
from tiny_models import FAMILIES, make_policy, multi_character_tokenizer, naive_logits

TEXTS = ["a", "What is 17 times 3?", "The quick brown fox jumps over the lazy dog", "12+30=", "Zz"]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguagePolicy]:
    folder = tmp_path_factory.mktemp("models")
    return {family: make_policy(folder, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def policy(policies: dict[str, LanguagePolicy]) -> LanguagePolicy:
    return policies["qwen3"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> LanguagePolicy:
    """A policy over few multi-character tokens, so that any short string is said now and then."""
    return make_policy(tmp_path_factory.mktemp("letters"), "qwen3", multi_character_tokenizer())


def sample(policy: LanguagePolicy, sampling: Sampling, seed: int = 0, texts: list[str] = TEXTS, **more) -> Experience:
    engine = TransformersEngine(policy, **{k: more.pop(k) for k in ("max_rows", "compact_at", "fast") if k in more})
    more.setdefault("completions_per_prompt", 3)
    prompts = [policy.encode_prompt(text) for text in texts]
    return engine.generate(prompts, sampling, generator=torch.Generator().manual_seed(seed), **more)


def same(one: Experience, other: Experience, names: tuple[str, ...] = ("action", "present", "mask", "ended")) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


def response(batch: Experience, row: int) -> list[int]:
    return batch["action"][row][batch["present"][row]].tolist()


def prompt(batch: Experience, row: int) -> list[int]:
    return batch["prompt_ids"][row][batch["prompt_mask"][row]].tolist()


def naive_logprob(policy: LanguagePolicy, batch: Experience, row: int) -> Tensor:
    """Log-probability of each response token, from one forward pass over the row alone."""
    asked, said = prompt(batch, row), response(batch, row)
    logits = naive_logits(policy, asked + said)[len(asked) - 1 : -1] / batch["temperature"][row]
    return logits.log_softmax(-1)[torch.arange(len(said)), said]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_behaviour_logprob_is_that_of_a_fresh_pass(policies, family, temperature):
    policy = policies[family]
    batch = sample(policy, Sampling(temperature=temperature, max_tokens=20), greedy_baseline=True)
    for side in ("right", "left"):
        fresh = policy.evaluate(batch, padding_side=side)["logprob"]
        torch.testing.assert_close(fresh, batch["behaviour_logprob"], rtol=0, atol=1e-4)
    for row in range(0, len(batch), 3):
        have = batch["behaviour_logprob"][row][batch["present"][row]]
        torch.testing.assert_close(have, naive_logprob(policy, batch, row), rtol=0, atol=1e-4)


def test_fields_mean_what_the_contract_says(policy):
    batch = sample(policy, Sampling(temperature=0.7, max_tokens=12), greedy_baseline=True, completions_per_prompt=2)
    assert len(batch) == 15
    assert batch["group"].tolist() == [g for g in range(5) for _ in range(3)]
    assert batch["greedy"].tolist() == [False, False, True] * 5
    torch.testing.assert_close(batch["temperature"], torch.tensor([0.7, 0.7, 1.0] * 5))
    for row, text in enumerate(t for t in TEXTS for _ in range(3)):
        assert policy.decode(prompt(batch, row)) == text
        assert not batch["prompt_mask"][row].diff().lt(0).any()  # padded on the left
        assert batch.columns["completion"][row] == policy.decode(response(batch, row))
    assert (batch["action"][~batch["present"]] == policy.pad_id).all()
    assert (batch["behaviour_logprob"][~batch["mask"]] == 0).all()
    assert torch.equal(batch["mask"], batch["present"])
    assert batch["action"].shape[1] == int(batch["present"].sum(1).max())
    assert (batch["present"].int().diff(dim=1) <= 0).all()  # padded on the right


def test_rows_end_with_an_end_token_or_at_the_limit(policy, monkeypatch):
    ends = (2, 40, 41, 42, 43, 44, 45)
    monkeypatch.setattr(policy.causal_lm.generation_config, "eos_token_id", list(ends))
    assert policy.end_ids == ends
    batch = sample(policy, Sampling(max_tokens=15), completions_per_prompt=8)
    assert 0 < int(batch["ended"].sum()) < len(batch)
    for row in range(len(batch)):
        said = response(batch, row)
        assert (said[-1] in ends) == bool(batch["ended"][row])
        assert not set(said[:-1]) & set(ends)
        assert batch["ended"][row] or len(said) == 15


def test_result_does_not_depend_on_compaction_chunks_or_neighbours(policy, monkeypatch):
    monkeypatch.setattr(policy.causal_lm.generation_config, "eos_token_id", list(range(30, 40)))
    settings = Sampling(max_tokens=24, top_p=0.95)
    whole = sample(policy, settings, completions_per_prompt=4)
    assert whole["present"].sum(1).unique().numel() > 4  # rows do leave at different times
    changes = ({"compact_at": 0.0}, {"compact_at": 0.3}, {"compact_at": 2.0}, {"max_rows": 1}, {"max_rows": 7})
    for change in (*changes, *({**change, "fast": False} for change in changes), {"fast": False}):
        other = sample(policy, settings, completions_per_prompt=4, **change)
        assert same(whole, other)
        torch.testing.assert_close(whole["behaviour_logprob"], other["behaviour_logprob"], rtol=0, atol=1e-5)
    few = sample(policy, settings, completions_per_prompt=4, texts=TEXTS[:2])
    width = few["action"].shape[1]
    assert torch.equal(few["action"], whole["action"][:8, :width])
    monkeypatch.setattr(cached, "_selectable", lambda cache: False)
    assert same(whole, sample(policy, settings, completions_per_prompt=4, fast=False))


def test_sharing_the_prompt_changes_nothing(policies):
    for policy in policies.values():
        shared = sample(policy, Sampling(max_tokens=10), completions_per_prompt=4)
        # the same uniform numbers, but every row reads its own prompt
        alone = sample(
            policy, Sampling(max_tokens=10), completions_per_prompt=1, texts=[t for t in TEXTS for _ in "1234"]
        )
        single = sample(policy, Sampling(max_tokens=10), completions_per_prompt=4, max_rows=1)
        assert same(shared, alone) and same(shared, single)
        for group in range(len(TEXTS)):
            rows = [tuple(response(shared, r)) for r in range(4 * group, 4 * group + 4)]
            assert len(set(rows)) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_greedy(policies, family):
    policy = policies[family]
    greedy = sample(policy, Sampling(max_tokens=16, greedy=True, temperature=0.5), completions_per_prompt=1)
    twins = sample(policy, Sampling(max_tokens=16, temperature=0.5), completions_per_prompt=1, greedy_baseline=True)
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([policy.encode_prompt(text)])
        want = policy.causal_lm.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, pad_token_id=0
        )[0, ids.shape[1] :].tolist()
        assert response(greedy, row) == want == response(twins, 2 * row + 1)
    assert greedy["greedy"].all() and (greedy["temperature"] == 1).all()
    fresh = policy.evaluate(greedy)["logprob"]
    torch.testing.assert_close(fresh, greedy["behaviour_logprob"], rtol=0, atol=1e-4)


def test_top_k_of_one_is_greedy(policy):
    one = sample(policy, Sampling(max_tokens=16, top_k=1))
    assert torch.equal(one["action"], sample(policy, Sampling(max_tokens=16, greedy=True))["action"])


@pytest.mark.parametrize("top_k, top_p", [(4, 1.0), (0, 0.6), (8, 0.7)])
def test_tokens_lie_within_the_filtered_set(policy, top_k, top_p):
    batch = sample(policy, Sampling(max_tokens=12, top_k=top_k, top_p=top_p, temperature=1.2), completions_per_prompt=6)
    outside = 0
    for row in range(len(batch)):
        asked, said = prompt(batch, row), response(batch, row)
        probs = (naive_logits(policy, asked + said)[len(asked) - 1 : -1] / 1.2).softmax(-1)
        for p, token in zip(probs, said, strict=True):
            ranked = sorted(range(len(p)), key=lambda i: -p[i])[: top_k or None]
            total, nucleus = float(p[ranked].sum()), []
            for i in ranked:
                if sum(float(p[j]) for j in nucleus) >= top_p * total:
                    break
                nucleus.append(i)
            assert token in nucleus
            outside += len(nucleus) < len(p)
    assert outside  # the filter did exclude something
    fresh = policy.evaluate(batch)["logprob"]  # what is written is the whole softmax all the same
    torch.testing.assert_close(fresh, batch["behaviour_logprob"], rtol=0, atol=1e-4)


def test_filtered_by_hand():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    torch.testing.assert_close(filtered(probs, 2, 1.0), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    torch.testing.assert_close(filtered(probs, 0, 0.7), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    torch.testing.assert_close(filtered(probs, 0, 0.71), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))
    # top-p counts within what top-k left: 0.4 is 57% of 0.7
    torch.testing.assert_close(filtered(probs, 2, 0.5), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))
    torch.testing.assert_close(filtered(probs, 0, 1e-9), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_first_tokens_come_as_often_as_the_softmax_says(policy, top_p):
    count, text = 4000, "The quick brown fox"
    settings = Sampling(max_tokens=1, temperature=1.3, top_p=top_p)
    batch = sample(policy, settings, texts=[text], completions_per_prompt=count, max_rows=1000)
    probs = (naive_logits(policy, policy.encode_prompt(text))[-1] / 1.3).softmax(-1).double()
    probs = filtered(probs[None], 0, top_p)[0]
    probs = probs / probs.sum()
    seen = torch.bincount(batch["action"][:, 0], minlength=len(probs)) / count
    error = (probs * (1 - probs) / count).sqrt()
    assert ((seen - probs).abs() <= 5 * error + 1e-12).all()
    assert (probs > 0.01).sum() > 3


def test_uniform_numbers_at_the_ends_draw_possible_tokens():
    logits = torch.tensor([[-1e9, 1.0, -1e9, 1.0, -1e9]]).repeat(2, 1)
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token, _ = draw(logits, torch.ones(2), torch.zeros(2, dtype=torch.bool), uniform, Sampling())
    assert token.tolist() == [1, 3]


def test_same_seed_same_responses_and_the_global_generator_is_left_alone(policy):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (sample(policy, Sampling(max_tokens=8), seed=s) for s in (1, 1, 2))
    assert same(one, two) and torch.equal(one["behaviour_logprob"], two["behaviour_logprob"])
    assert not torch.equal(one["action"], other["action"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("stop", [("cab",), ("é",), ("bb", "cc"), ("abcabca",)])
def test_stop_strings_end_rows_wherever_tokens_are_cut(letters, stop):
    batch = sample(letters, Sampling(max_tokens=40, stop=stop), texts=["a", "bca"], completions_per_prompt=40)
    hit = 0
    for row in range(len(batch)):
        said, text = response(batch, row), batch.columns["completion"][row]
        assert not any(s in letters.decode(said[:-1]) for s in stop)
        found = any(s in text for s in stop)
        hit += found
        assert bool(batch["ended"][row]) == (found or said[-1] == 2)
        assert batch["mask"][row].sum() == len(said)
    assert hit > 2
    fresh = letters.evaluate(batch)["logprob"]
    torch.testing.assert_close(fresh, batch["behaviour_logprob"], rtol=0, atol=1e-4)


class Echo:
    """Answers with a text and remembers what it was asked."""

    def __init__(self, stop: str, answer: str | None):
        self.stop, self.answer, self.heard = stop, answer, []

    def reply(self, text: str) -> str | None:
        self.heard.append(text)
        if self.answer == "raise":
            raise RuntimeError("broken")
        return self.answer


@pytest.mark.parametrize("stop", ["cab", "aa"])  # after a call and its reply, one more a is not a second call
def test_tool_replies_are_forced_and_do_not_count(letters, stop):
    tool = Echo(stop, "ébc")
    reply = letters.encode("ébc")
    batch = sample(
        letters, Sampling(max_tokens=30, temperature=3.0), texts=["a", "bca"], completions_per_prompt=30, tools=tool
    )
    calls = 0
    for row in range(len(batch)):
        said, mine = response(batch, row), batch["mask"][row].tolist()
        own: list[int] = []  # the policy's tokens since the tool last spoke
        step = 0
        while step < len(said):
            own.append(said[step])
            assert mine[step]
            text = letters.decode(said[: step + 1])
            step += 1
            if letters.decode(own).endswith(stop) and own[-1] != 2:
                calls += 1
                assert text in tool.heard
                room = min(len(reply), 30 - step)
                assert said[step : step + room] == reply[:room]
                assert not any(mine[step : step + room])
                step, own = step + room, []
        assert batch["ended"][row] == (said[-1] == 2 and mine[len(said) - 1])
    assert calls == len(tool.heard) > 2
    forced = batch["present"] & ~batch["mask"]
    assert forced.any() and (batch["behaviour_logprob"][forced] == 0).all()
    assert batch["mask"][:, 1:][forced[:, :-1]].any()  # the policy goes on after a reply
    for side in ("right", "left"):
        fresh = letters.evaluate(batch, padding_side=side)["logprob"]
        torch.testing.assert_close(fresh, batch["behaviour_logprob"], rtol=0, atol=1e-4)
    again = sample(
        letters,
        Sampling(max_tokens=30, temperature=3.0),
        texts=["a", "bca"],
        completions_per_prompt=30,
        tools=tool,
        compact_at=0,
        max_rows=9,
    )
    assert same(batch, again)


def test_an_end_token_that_a_tool_replies_ends_nothing(letters, monkeypatch):
    """Only what the policy says is an end."""
    tool = Echo("cab", "ébc")
    inside = letters.encode("ébc")[-1]
    monkeypatch.setattr(letters.causal_lm.generation_config, "eos_token_id", [2, inside])
    batch = sample(
        letters, Sampling(max_tokens=30, temperature=3.0), texts=["a", "bca"], completions_per_prompt=60, tools=tool
    )
    forced = batch["present"] & ~batch["mask"] & (batch["action"] == inside)
    rows, places = forced.nonzero(as_tuple=True)
    inner = places + 1 < 30
    assert int(inner.sum()) > 2
    assert bool(batch["mask"][rows[inner], places[inner] + 1].all())  # the policy goes on
    assert not bool(batch["ended"][rows[~inner]].any())


def test_broken_silent_and_absent_tools(letters):
    settings = Sampling(max_tokens=20)
    plain = sample(letters, settings, texts=["a", "b"], completions_per_prompt=20)
    silent = Echo("ca", None)
    assert same(plain, sample(letters, settings, texts=["a", "b"], completions_per_prompt=20, tools=silent))
    assert silent.heard
    mixed = sample(letters, settings, texts=["a", "b"], completions_per_prompt=20, tools=[None, Echo("ca", "bb")])
    assert torch.equal(mixed["action"][:20, :20], plain["action"][:20, : mixed["action"].shape[1]])
    assert not (mixed["present"] & ~mixed["mask"])[:20].any() and (mixed["present"] & ~mixed["mask"])[20:].any()


def test_a_tool_that_raises_replies_error(policy):
    texts = ["a", "Zz"]
    first = sample(policy, Sampling(max_tokens=3), texts=texts)
    stop = first.columns["completion"][0][1]  # something that the policy does say
    tool = Echo(stop, "raise")
    batch = sample(policy, Sampling(max_tokens=30), texts=texts, tools=tool)
    forced = batch["present"] & ~batch["mask"]
    assert tool.heard and policy.decode(batch["action"][0][forced[0]].tolist()).startswith("error")


def test_nonsense_is_refused_in_one_sentence(policy):
    for bad in (
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"stop": "abc"},
    ):
        with pytest.raises(UserError):
            Sampling(**bad)
    engine, generator = TransformersEngine(policy), torch.Generator()
    for prompts, tokens, word in (([], 4, "no prompts"), ([[5], []], 4, "empty"), ([[5] * 120], 20, "context")):
        with pytest.raises(UserError, match=word):
            engine.generate(prompts, Sampling(max_tokens=tokens), completions_per_prompt=1, generator=generator)


def test_a_model_without_a_key_value_cache_is_refused(tmp_path: Path):
    policy = make_policy(tmp_path, "mamba")  # takes a cache of another name, and would ignore ours in silence
    with pytest.raises(UserError, match="MambaForCausalLM"):
        sample(policy, Sampling(max_tokens=2))


def test_a_diverged_model_is_said_to_be_one(tmp_path: Path):
    policy = make_policy(tmp_path, "qwen3")
    with torch.no_grad():
        next(policy.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        sample(policy, Sampling(max_tokens=4))


def test_bfloat16_samples_what_it_evaluates(policies):
    policy = policies["qwen3"]
    policy.precision = "bfloat16"
    try:
        batch = sample(policy, Sampling(max_tokens=12))
        fresh = policy.evaluate(batch)["logprob"]
    finally:
        policy.precision = "float32"
    assert batch["behaviour_logprob"].dtype == fresh.dtype == torch.float32
    assert (fresh - batch["behaviour_logprob"]).abs().max() < 0.3  # three significant digits in the logits
    exact = policy.evaluate(batch)["logprob"]
    assert not torch.equal(exact, fresh)
