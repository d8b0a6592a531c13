"""Continuations: the same tokens as if every state were read by itself, but each text is read once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.decoder import Decoder
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.steps import step_ends, step_starts, task_steps
from polyrl.rollout.continuations import State, go_on, shared_texts, states_of
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.tasks.language import task
from tiny_models import FAMILIES, make_policy, multi_character_tokenizer

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
SAMPLING = Sampling(max_tokens=14, temperature=1.3, top_p=0.95)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_states(engine: TransformersEngine) -> list[State]:
    batch = engine.generate(PROMPTS, SAMPLING, completions_per_prompt=3, generator=stream(0))
    row = torch.tensor([0, 0, 0, 1, 1, 4, 4, 4, 5])
    tokens = torch.tensor([0, 3, 7, 0, 5, 0, 1, 6, 2]).minimum(batch["present"].sum(1)[row] - 1)
    return states_of(batch, row, tokens)


def same(one: Experience, other: Experience) -> None:
    assert one["action"].tolist() == other["action"].tolist()
    assert all(one[name].tolist() == other[name].tolist() for name in ("present", "mask", "ended"))
    torch.testing.assert_close(one["behaviour_logprob"], other["behaviour_logprob"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_texts_give_the_tokens_of_single_ones(family: str, fast: bool, tmp_path: Path) -> None:
    """Through the decoder, through the model's own cache, and where a sliding window allows no cut."""
    policy = make_policy(tmp_path, family)
    engine = TransformersEngine(policy, fast=fast, max_rows=20)
    states = some_states(engine)
    shared, single = (
        go_on(engine, states, SAMPLING, count=3, generator=stream(1), share=share) for share in (True, False)
    )
    same(shared, single)
    # and those are what the engine itself draws after the same text, from the same numbers
    uniform = torch.rand(len(states) * 3, 14 - min(len(s.response) for s in states), dtype=torch.float64,
                         generator=stream(1))  # fmt: skip
    for i in (1, 4, 7):
        room = 14 - len(states[i].response)
        for k in range(3):
            drawn = uniform[i * 3 + k, :room]
            alone = generate_with(engine, states[i].text, room, drawn)
            n = int(alone["present"].sum())
            assert alone["action"][0, :n].tolist() == shared["action"][i * 3 + k, :n].tolist()
            assert int(shared["present"][i * 3 + k].sum()) == n
            assert bool(shared["ended"][i * 3 + k]) == bool(alone["ended"][0])


def generate_with(engine: TransformersEngine, text: tuple[int, ...], room: int, drawn: Tensor) -> Experience:
    """One response from given uniform numbers."""
    real = torch.rand
    sampling = Sampling(max_tokens=room, temperature=1.3, top_p=0.95)
    try:
        torch.rand = lambda *shape, **_: drawn[None]  # type: ignore[assignment]
        return engine.generate([text], sampling, completions_per_prompt=1, generator=stream(0))
    finally:
        torch.rand = real


@pytest.mark.kernels
def test_each_text_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(tmp_path)
    read: list[int] = []
    states_after: Callable[..., Tensor] = Decoder.states

    def counted(self: Decoder, tokens: Tensor, *more: object) -> Tensor:
        read.append(len(tokens))
        return states_after(self, tokens, *more)

    engine = TransformersEngine(policy)
    assert engine.plain_because is None
    monkeypatch.setattr(Decoder, "states", counted)
    text = tuple(range(5, 17))
    states = [State(text[:4], text[4 : 4 + n]) for n in (0, 2, 5, 8)]
    go_on(engine, states, Sampling(max_tokens=9), count=6, generator=stream(0))
    assert read[0] == 12  # not 4 + 6 + 9 + 12
    # then a token a row and step, of rows that have any left: the longest goes on for 8 tokens after its first
    assert sum(read) - 12 <= 6 * 8 * len(states)


def test_beginnings_are_found() -> None:
    texts = [(1, 2), (1, 2, 3, 4), (2,), (1, 2, 4), (1, 2, 3), (2,), ()]
    longest, which = shared_texts(texts)
    assert sorted(longest) == [(1, 2, 3, 4), (1, 2, 4), (2,)]
    assert all(longest[w][: len(t)] == t for t, w in zip(texts, which, strict=True))


def test_limits_and_padding(tmp_path: Path) -> None:
    engine = TransformersEngine(make_policy(tmp_path))
    states = [State((5, 6), ()), State((5, 6), (7, 8, 9))]
    limit = torch.tensor([2, 5])
    batch = go_on(engine, states, Sampling(max_tokens=6), count=4, generator=stream(3), limit=limit)
    assert batch["action"].shape == (8, 3)  # the second state has room for 3, not 5
    lengths = batch["present"].sum(1)
    assert bool((lengths[:4] <= 2).all()) and bool((lengths[4:] <= 3).all())
    cut = torch.tensor([2] * 4 + [3] * 4)
    assert bool((batch["ended"] | (lengths == cut)).all())
    assert bool((batch["action"][~batch["present"]] == engine.policy.pad_id).all())
    with pytest.raises(ValueError, match="no room"):
        go_on(engine, [State((5,), (6, 7))], Sampling(max_tokens=2), count=1, generator=stream(0))
    with pytest.raises(UserError, match="context of 128"):
        go_on(engine, states, Sampling(max_tokens=400), count=1, generator=stream(0))


def test_limits_of_their_own_stay_with_rows_that_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows end here and there, so those that go on move up; each still has the room that it had."""
    engine = TransformersEngine(make_policy(tmp_path), compact_at=0.0)
    monkeypatch.setattr(engine.policy.causal_lm.generation_config, "eos_token_id", list(range(10, 26)))
    states = [State((5, 6), (7,) * n) for n in (0, 1, 2, 3)]
    limit = torch.tensor([2, 12, 5, 9])
    batch = go_on(engine, states, Sampling(max_tokens=20), count=12, generator=stream(3), limit=limit)
    lengths, room = batch["present"].sum(1), limit.repeat_interleave(12)
    assert 8 < int(batch["ended"].sum()) < 44  # some ended, and some had no room left
    assert bool((lengths <= room).all()) and bool((batch["ended"] | (lengths == room)).all())
    at_once = TransformersEngine(engine.policy, compact_at=2.0)
    same = go_on(at_once, states, Sampling(max_tokens=20), count=12, generator=stream(3), limit=limit)
    assert all(torch.equal(batch[name], same[name]) for name in ("action", "present", "ended"))


class Oracle:
    """Says how many letters it was told."""

    stop = "!"

    def reply(self, response: str) -> str | None:
        return f"<{len(response)}>"


def test_tools_and_stop_strings_know_what_was_said_before(tmp_path: Path) -> None:
    engine = TransformersEngine(make_policy(tmp_path))
    policy = engine.policy
    state = State(tuple(policy.encode("ab")), tuple(policy.encode("xyz#")))
    hash_sign = Sampling(max_tokens=12, stop=("##",))
    (bang, number) = (policy.encode("!")[0], policy.encode("#")[0])
    forced = {0: bang}
    drawn = "polyrl.rollout.decoding.draw"
    with pytest.MonkeyPatch.context() as patch:
        steps = iter(range(100))

        def draw(logits: Tensor, *_: object) -> tuple[Tensor, Tensor]:
            token = forced.get(next(steps), number)
            return torch.full((len(logits),), token), torch.zeros(len(logits))

        patch.setattr(drawn, draw)
        told = go_on(engine, [state], hash_sign, count=2, generator=stream(0), tool=Oracle())
        text = policy.decode(told["action"][0][told["present"][0]].tolist())
        assert text.startswith("!<5>")  # "xyz#!" has five letters
        assert told["mask"][0].tolist()[:4] == [True, False, False, False]
        assert text == "!<5>##" and bool(told["ended"].all())
        forced.clear()
        steps = iter(range(100))
        ended = go_on(engine, [state], hash_sign, count=1, generator=stream(0))
        assert ended["present"].sum() == 1 and bool(ended["ended"][0])  # one half of the stop was there already


# ------------------------------------------------------------------------------------------------------------ steps


def starts_of(policy: LanguagePolicy, text: str, end: str = ";", every: int = 0, *, eos: bool = True) -> list[str]:
    """The steps that a response falls into, as texts."""
    ids = policy.encode(text) + list(policy.end_ids) * eos
    action = torch.tensor([[*ids, 0, 0]])
    present = torch.arange(len(ids) + 2)[None] < len(ids)
    start = step_starts(action, present, present, policy.decode, end, every)[0, : len(ids)]
    places = [*start.nonzero()[:, 0].tolist(), len(ids)]
    return [policy.decode(ids[a:b]) for a, b in pairwise(places)]


def test_steps_join_to_the_response(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    assert starts_of(policy, "75=12;48=13;132") == ["75=12;", "48=13;", "132"]
    assert starts_of(policy, "1;2;") == ["1;", "2;"]  # the end token alone is no step
    assert starts_of(policy, ";;3", eos=False) == [";", ";", "3"]
    assert starts_of(policy, "ab\n\ncd", "\n\n") == ["ab\n\n", "cd"]
    assert starts_of(policy, "abcdefg", every=3) == ["abc", "def", "g"]
    assert starts_of(policy, "abcdef", every=3) == ["abc", "def"]
    assert starts_of(policy, "") == [""]
    assert step_ends([], policy.decode, ";") == []


def test_a_delimiter_of_several_tokens_or_inside_one(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, "qwen3", multi_character_tokenizer())
    assert starts_of(policy, "aébébc", "é") == ["aé", "bé", "bc"]
    assert starts_of(policy, "aabcb", "b") == ["aabc", "b"]  # "abc" is one token: the step ends with it


def test_a_tools_words_belong_to_the_step_before(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    ids = policy.encode("1=2;3;4")
    mask = torch.tensor([[True, True, False, False, True, True, True]])
    present = torch.ones_like(mask)
    start = step_starts(torch.tensor([ids]), mask, present, policy.decode, ";")
    assert start[0].tolist() == [True, False, False, False, True, False, True]


def test_what_ends_a_step_is_the_parts_or_the_tasks_choice() -> None:
    assert task_steps(task("lock"), "", None) == (";", 1)
    assert task_steps(task("lock"), "b", None) == ("b", 0)
    assert task_steps(task("lock"), "", 3) == (";", 3)
    assert task_steps(task("addition"), "", None) == (";", 0)
