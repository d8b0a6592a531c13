"""Pretraining of starting models: deterministic, stops where it should, learns no tool's words; the models' cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import as_experience
from polyrl.pretrain import solutions as pretraining
from polyrl.pretrain.solutions import demonstration, pretrain
from polyrl.pretrain.start import start_folder
from polyrl.pretrain.supervised import demonstrations, supervised
from polyrl.pretrain.tiny import build_tiny
from polyrl.runtime.cache import cached
from polyrl.runtime.files import fingerprint
from polyrl.tasks.language import task, tool_spans
from tiny_models import make_policy, save_model


def weights(policy: LanguagePolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


SMALL = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp": 64}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pretraining a matter of seconds."""
    for name, value in {
        "EXAMPLES": 200,
        "STEPS": 6,
        "CHECK_EVERY": 2,
        "CHECKED_PROMPTS": 8,
        "GLANCED_PROMPTS": 4,
    }.items():
        monkeypatch.setattr(pretraining, name, value)


@pytest.mark.usefixtures("short")
def test_pretraining_is_a_function_of_task_and_seed(tmp_path: Path):
    made = task("calculator", difficulty=1, start_accuracy=None)
    facts = [pretrain(made, tmp_path / name, seed=seed, **SMALL) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert facts[0]["steps"] == 6
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    start = build_tiny(tmp_path / "start", 0, **SMALL)
    assert a != (start / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("answers", "steps", "asked"),
    [
        ([0.0, 0.5, 0.4], 4, [4, 4, 8]),  # the second look reaches the goal, and all prompts agree
        ([0.5, 0.3, 0.5, 0.5], 4, [4, 8, 4, 8]),  # all prompts do not agree with the first look
        ([0.3, 0.3, 0.3], 6, [4, 4, 4]),  # never
        ([0.4, 0.4], 2, [4, 8]),
    ],
)
def test_pretraining_stops_when_a_look_and_all_prompts_agree(tmp_path, monkeypatch, answers, steps, asked):
    queue, seen = iter(answers), []

    def measured(policy: Any, task: Any, rows: Any) -> float:
        seen.append(len(rows))
        return next(queue, 0.9)

    monkeypatch.setattr(pretraining, "greedy_accuracy", measured)
    facts = pretrain(task("reverse", difficulty=3, start_accuracy=0.4), tmp_path, **SMALL)
    assert facts["steps"] == steps and facts["stopped_at"] == answers[-1]
    assert seen == [*asked, 200] and facts["test_accuracy"] == 0.9


@pytest.mark.usefixtures("short")
def test_overshoot_goes_back_to_between_two_looks(tmp_path, monkeypatch):
    """Accuracy here is the share of the way from the first weights: all looks but the last are below the goal."""
    start = weights(LanguagePolicy.load(build_tiny(tmp_path / "start", 0, **SMALL)))
    seen: list[torch.Tensor] = []

    def measured(policy: Any, task: Any, rows: Any) -> float:
        now = weights(policy)
        if len(seen) < 2:  # the first two looks
            seen.append(now)
            return 0.0
        if len(seen) == 2:
            seen.append(now)
        share = float((now - seen[1]).norm() / (seen[2] - seen[1]).norm())
        return 0.9 * share

    monkeypatch.setattr(pretraining, "greedy_accuracy", measured)
    facts = pretrain(task("reverse", difficulty=3, start_accuracy=0.4), tmp_path / "made", **SMALL)
    assert facts["steps"] == 6 and facts["stopped_at"] == pytest.approx(0.45, abs=1e-3)  # halfway
    made = weights(LanguagePolicy.load(tmp_path / "made"))
    torch.testing.assert_close(made, (seen[1] + seen[2]) / 2)
    assert not torch.equal(seen[1], start)


def test_tool_words_are_not_learned(tmp_path: Path):
    policy = make_policy(tmp_path)
    made = task("calculator", difficulty=3)
    for row in made.rows("train", 0, 0, 10):
        prompt, ids, learned = demonstration(policy, made, row)
        text = made.worked(row)
        assert policy.decode(prompt) == row["prompt"] and policy.decode(ids[:-1]) == text
        assert ids[-1] == policy.tokenizer.eos_token_id and learned[-1]
        spans = tool_spans(made.tool, text)
        assert len(spans) == 3
        tool_positions = {i for start, end in spans for i in range(start, end)}  # one token a character
        assert {i for i, flag in enumerate(learned) if not flag} == tool_positions
    row = task("addition").rows("train", 0, 0, 1)[0]
    assert all(demonstration(policy, task("addition"), row)[2])


def test_masked_tokens_have_no_loss(tmp_path: Path):
    policy = make_policy(tmp_path)
    made = task("calculator", difficulty=2)
    examples = [demonstration(policy, made, row) for row in made.rows("train", 0, 0, 6)]
    batch = demonstrations(examples, pad_id=policy.pad_id)
    logprob = policy.evaluate(as_experience([e[0] for e in examples], [e[1] for e in examples], pad_id=policy.pad_id))
    flags = [flag for e in examples for flag in e[2]]
    values = logprob["logprob"][batch["present"]][torch.tensor(flags)]
    assert len(values) == sum(flags) < int(batch["present"].sum())
    losses = supervised(policy, examples, steps=1, batch_size=6, lr=0.0, generator=torch.Generator().manual_seed(0))
    assert losses[0] == pytest.approx(-values.mean().item(), rel=1e-4)


def test_masked_tokens_have_no_gradient(tmp_path: Path):
    """What comes after the last trained token changes nothing, so training with it equals training without it."""
    save_model(tmp_path, "qwen3")
    prompt, words = [10, 11, 12], [[20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42, 43]]

    def trained(examples: Any) -> torch.Tensor:
        policy = LanguagePolicy.load(tmp_path)
        supervised(policy, examples, steps=3, batch_size=3, lr=1e-2, generator=torch.Generator().manual_seed(0))
        return weights(policy)

    cut = trained([(prompt, w[:2]) for w in words])
    masked = trained([(prompt, w, [True, True, False, False]) for w in words])
    whole = trained([(prompt, w) for w in words])
    torch.testing.assert_close(masked, cut, rtol=1e-3, atol=2e-4)  # Adam amplifies the last bits
    assert not torch.allclose(whole, cut, atol=5e-3)
    middle = trained([(prompt, w, [True, False, True, True]) for w in words])
    assert not torch.allclose(middle, whole, atol=5e-3)


def test_bad_masks_are_refused(tmp_path: Path):
    policy = make_policy(tmp_path)
    for flags in ([True], [False, False], [True] * 3):
        with pytest.raises(ValueError, match="example 0 needs one flag"):
            supervised(policy, [([5], [6, 7], flags)], steps=1, batch_size=1, lr=0.0, generator=torch.Generator())


def test_cache_makes_once_and_leaves_nothing_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path))
    folder = start_folder(task("addition"))
    assert folder.is_relative_to(tmp_path) and folder != start_folder(task("addition"), seed=1)
    threads = torch.get_num_threads()

    def fail(temporary: Path) -> dict[str, Any]:
        (temporary / "half").write_text("written")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached(folder, fail)
    assert not folder.exists() and not list(folder.parent.iterdir())
    calls: list[Path] = []

    def make(temporary: Path) -> dict[str, Any]:
        calls.append(temporary)
        build_tiny(temporary, 0, **SMALL)
        return {"steps": 3}

    assert cached(folder, make) == cached(folder, make) == folder
    assert len(calls) == 1 and calls[0] != folder
    assert json.loads((folder / "polyrl.json").read_text()) == {"steps": 3}
    assert list(folder.parent.iterdir()) == [folder]
    assert torch.get_num_threads() == threads
    assert fingerprint(folder) == fingerprint(build_tiny(tmp_path / "same", 0, **SMALL))


def test_two_processes_that_make_one_model_both_get_it(tmp_path: Path):
    folder = tmp_path / "models" / "one"

    def make(temporary: Path) -> dict[str, Any]:
        folder.mkdir()  # the other process is faster
        (folder / "polyrl.json").write_text('{"winner": true}')
        return {"winner": False}

    assert cached(folder, make) == folder
    assert json.loads((folder / "polyrl.json").read_text()) == {"winner": True}
