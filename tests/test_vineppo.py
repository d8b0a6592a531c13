"""VinePPO: the card's numbers, brute force on a run state whose values are known, and a run that learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached
from polyrl import catalogue
from polyrl.api import train
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.vineppo import VineAdvantage, step_advantages
from polyrl.parts.credit import WhitenAdvantage
from polyrl.parts.improve import ReferenceKL
from polyrl.rollout.language import Sampling
from polyrl.tasks.language import task
from run_states import make_context
from tiny_models import make_policy

NAN = math.nan


def one_row(values: list[float], reward: list[float]) -> tuple[list[float], list[float]]:
    """A step a token."""
    ones = torch.ones(1, len(values), dtype=torch.bool)
    found, used = step_advantages(torch.tensor([values]).float(), torch.tensor([reward]).float(), ones, ones)
    return found[0].tolist(), used[0].tolist()


# --------------------------------------------------------------------------------------------------- the card's checks


def test_check_1_step_advantages_telescope() -> None:
    found, _ = one_row([0.5, 0.6, 0.2, 0.8], [0, 0, 0, 1])
    assert found == pytest.approx([0.1, -0.4, 0.6, 0.2])
    assert sum(found) == pytest.approx(1 - 0.5)


def test_check_2_a_missing_value_is_filled_from_behind() -> None:
    found, used = one_row([0.5, 0.6, NAN, NAN], [0, 0, 0, 1])
    assert found == pytest.approx([0.1, 0.4, 0, 0]) and used == pytest.approx([0.5, 0.6, 1, 1])


@pytest.mark.parametrize(
    ("p", "count", "error"),
    [(0.5, 1, 0.5), (0.5, 3, 0.25), (0.5, 9, 0.13672), (0.9, 1, 0.18), (0.9, 3, 0.1458), (0.9, 9, 0.07748)],
)
def test_check_3_the_mean_of_k_outcomes(p: float, count: int, error: float) -> None:
    """The mean over all outcomes of what `nanmean` makes of them."""
    total = 0.0
    for outcome in range(2**count):
        drawn = torch.tensor([float(outcome >> i & 1) for i in range(count)])
        chance = p ** int(drawn.sum()) * (1 - p) ** (count - int(drawn.sum()))
        total += chance * abs(float(drawn.view(1, count).nanmean(1)) - p)
    assert total == pytest.approx(error, abs=1e-5)


def test_check_4_noise_of_a_neutral_step() -> None:
    """Variance 2 p (1 - p) / K, by independent continuations of both its ends."""
    p, count = 0.3, 2
    outcomes = [(a / count, math.comb(count, a) * p**a * (1 - p) ** (count - a)) for a in range(count + 1)]
    variance = sum(pa * pb * one_row([a, b], [0, 0])[0][0] ** 2 for a, pa in outcomes for b, pb in outcomes)
    assert variance == pytest.approx(2 * p * (1 - p) / count)


def test_checks_5_and_6_equal_ends_and_a_single_step() -> None:
    assert one_row([1, 1, 0], [0, 0, 0])[0] == pytest.approx([0, -1, 0])
    assert one_row([0.25], [1])[0] == pytest.approx([0.75])


def test_check_8_whitening_by_the_samples_deviation() -> None:
    advantage = torch.tensor([[0, 0, 0.5, 0.5, 0, 0, -0.1, -0.1]])
    batch = Experience({"advantage": advantage, "mask": torch.ones_like(advantage, dtype=torch.bool)})
    white = WhitenAdvantage(whiten_unbiased=True)(batch, make_context(None))["advantage"][0].tolist()
    assert white == pytest.approx([-0.399, -0.399, 1.595, 1.595, -0.399, -0.399, -0.798, -0.798], abs=1e-3)
    scaled = WhitenAdvantage(whiten_unbiased=True, whiten_centre=False)(batch, make_context(None))["advantage"]
    assert scaled[0].tolist() == pytest.approx([0, 0, *[0.5 / 0.250713] * 2, 0, 0, *[-0.1 / 0.250713] * 2], abs=1e-3)


def test_check_9_k3_and_its_clamp() -> None:
    term = ReferenceKL(kl_loss_coef=1.0, kl_clamp=10.0)
    outputs = {"logprob": torch.tensor([[math.log(0.25), -9.0]])}
    reference = Experience({"ref_logprob": torch.tensor([[math.log(0.5), 0.0]])})
    assert term.loss(outputs, reference)[0].tolist() == pytest.approx([0.30685, 10.0], abs=1e-5)


def test_steps_of_several_tokens_and_tools() -> None:
    start = torch.tensor([[True, False, False, True, False, True, False]])
    mask = torch.tensor([[True, False, True, True, True, True, False]])
    value = torch.tensor([[0.5, NAN, NAN, 0.75, NAN, 0.25, 99.0]])
    reward = torch.tensor([[0.0, 0, -0.1, 0, 0, 1, 0]])
    found, used = step_advantages(value, reward, start, mask)
    assert found[0].tolist() == pytest.approx([0.15, 0, 0.15, -0.5, -0.5, 0.75, 0])
    assert used[0].tolist() == pytest.approx([0.5, 0, 0, 0.75, 0, 0.25, 0])


# ----------------------------------------------------------------------------------------------------- in the run state


@pytest.fixture(scope="module")
def run_state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from polyrl.run_state.language import LanguageRunState

    policy = make_policy(tmp_path_factory.mktemp("vine"))
    del policy
    folder = next(tmp_path_factory.getbasetemp().glob("vine0/qwen3"))
    lock = task("lock", difficulty=1)
    lock.rewards = [lock.rewards[0]]
    return LanguageRunState(lock, folder)


def sampled(run_state: Any, count: int = 3) -> Experience:
    """Responses to two locks; right where a letter of the first half says so, so that values differ."""
    rows = run_state.task.rows("train", 0, 0, 2)
    sampling = Sampling(max_tokens=run_state.task.max_tokens)
    batch: Experience = run_state.sample(
        rows, sampling, completions_per_prompt=count, generator=torch.Generator().manual_seed(0)
    )
    score = torch.tensor([float(len(text) % 2) for text in batch.columns["completion"]])
    last = batch["present"].sum(1) - 1
    reward = torch.zeros(batch["mask"].shape)
    reward[torch.arange(len(batch)), last] = score
    return batch.with_fields(score=score, reward=reward)


def odd(run_state: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reward texts of odd length; gives the list of what is scored."""
    seen: list[str] = []

    def score(experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        texts = experience.columns["completion"]
        seen.extend(texts)
        return torch.tensor([float(len(t) % 2) for t in texts]), {}, len(texts)

    monkeypatch.setattr(run_state, "score", score)
    return seen


def test_values_are_means_over_continuations_of_each_distinct_state(
    run_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, batch, context = odd(run_state, monkeypatch), sampled(run_state), make_context(run_state)
    part = VineAdvantage(continuations=4, step_tokens=3)
    made = part(batch, context)
    start, value, tokens = made["step_start"], made["step_value"], batch["action"].tolist()
    states = {(int(batch["group"][i]), *tokens[i][:t]) for i, t in start.nonzero().tolist()}
    assert context.metrics["continuations/states"] == len(states) < int(start.sum())  # prompts are shared
    assert len(seen) == 4 * len(states) and context.spent.reward_calls == len(seen) and context.spent.samples == 0
    assert context.spent.tokens == context.metrics["continuations/tokens"] > 0
    for g in (0, 1):  # what was begun by nobody's own words has one value
        assert len(set(value[batch["group"] == g][:, 0].tolist())) == 1
    scores = torch.tensor([float(len(t) % 2) for t in seen]).view(-1, 4).mean(1)
    assert set(value[start].tolist()) <= set(scores.tolist())
    # every continuation begins with its state
    texts = {run_state.policy.decode(state[1:]) for state in states}
    assert {t for t in texts if any(s.startswith(t) for s in seen)} == texts
    by_step = made["advantage"].gather(1, start.cumsum(1).sub(1).clamp(min=0))
    assert by_step.shape == made["advantage"].shape
    for i in range(len(batch)):  # they telescope to R - V(s_0)
        total = made["advantage"][i][start[i]].sum()
        assert float(total) == pytest.approx(float(batch["score"][i] - value[i, 0]), abs=1e-6)


def test_a_value_is_unbiased_and_of_the_sampling_policy(run_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many continuations both the prompt's value and the mean score of many responses come to the same number."""
    odd(run_state, monkeypatch)
    batch = sampled(run_state, 2)
    made = VineAdvantage(continuations=600, max_states=0)(batch, make_context(run_state))
    many = sampled(run_state, 600)
    for g in (0, 1):
        mean = float(many["score"][many["group"] == g].mean())
        assert float(made["step_value"][batch["group"] == g][0, 0]) == pytest.approx(mean, abs=0.09)  # 3 deviations


def test_the_cap_leaves_later_steps_without_credit(run_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    odd(run_state, monkeypatch)
    batch = sampled(run_state)
    made = VineAdvantage(continuations=2, step_tokens=2, max_states=1)(batch, make_context(run_state))
    number = made["step_start"].cumsum(1) - 1
    assert bool((made["advantage"][(number > 1) & batch["mask"]] == 0).all()) and bool((number > 1).any())


def test_rows_padding_and_twins_do_not_matter(run_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage behind a response's end changes nothing, and a greedy baseline gets no steps."""
    odd(run_state, monkeypatch)
    batch, part = sampled(run_state), VineAdvantage(continuations=2, step_tokens=4)
    wanted = part(batch, make_context(run_state))
    wide = {n: torch.nn.functional.pad(batch[n], (0, 3)) for n in ("present", "mask", "reward")}
    action = torch.nn.functional.pad(batch["action"], (0, 3), value=9)
    action = torch.where(wide["present"], action, 11)
    found = part(batch.with_fields(**wide, action=action), make_context(run_state))
    width = batch["mask"].shape[1]
    for name in ("advantage", "step_value", "step_start"):
        assert torch.equal(found[name][:, :width], wanted[name]) and not bool(found[name][:, width:].any())
    greedy = torch.tensor([False, True, False, False, False, False])
    twins = part(batch.with_fields(greedy=greedy), make_context(run_state))
    assert not bool(twins["step_start"][1].any()) and bool(twins["step_start"][0].any())


# ------------------------------------------------------------------------------------------------- recipes and learning


def test_composition() -> None:
    assert catalogue.build("ppo+vineppo").required_models() == frozenset({"reference"})  # no critic is left
    assert "value-loss" in catalogue.build("ppo+vineppo").dropped
    names = [p.name for p in catalogue.build("grpo+vineppo").credit]
    assert names == ["vine-advantage"]
    both = catalogue.build("vineppo", {"temperature": 0.6, "top_p": 0.9})
    assert both.hyperparameters()["vine-advantage.temperature"] == 0.6
    with pytest.raises(UserError, match=r"samples with temperature 0\.6 but 'vine-advantage' continues with 1"):
        catalogue.build("vineppo", {"sample_responses.temperature": 0.6})
    with pytest.raises(UserError, match="judged by 'uwo'"):
        catalogue.build("vineppo+uwo")
    with pytest.raises(UserError, match="'thinking-penalty' would change the score of responses"):
        catalogue.build("vineppo+adacot")
    with pytest.raises(UserError, match="at least 1"):
        catalogue.build("vineppo", {"continuations": 0})


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    from conftest import DIFFICULTY, TASK

    done = train(
        "vineppo",
        task=TASK,
        model=small_model,
        budget={"samples": 352},
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"difficulty": DIFFICULTY, "evaluations": 1, "tensorboard": False, "keep_checkpoints": 1},
        learning_rate=4e-4,
        prompts_per_step=8,
        completions_per_prompt=4,
        continuations=3,
        step_tokens=1,
    )
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, 0.25)  # 0.47 to 0.58 with three seeds
