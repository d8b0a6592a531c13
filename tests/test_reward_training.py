"""Training of reward models: the loss against hand values, learning, its scale, and what must not matter."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from conftest import SEED, reached
from polyrl.errors import UserError
from polyrl.models.language.scalar import RewardModel
from polyrl.pretrain.reward_training import (
    bradley_terry_loss,
    normalize,
    pair_accuracy,
    score_texts,
    train_reward_model,
)
from tiny_models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3", initializer_range=0.05)


def vowel_pairs(count: int, seed: int) -> list[dict[str, object]]:
    """The response with more vowels is chosen; lengths differ and say nothing."""
    draw = random.Random(f"pairs-{seed}")
    pairs = []
    while len(pairs) < count:
        texts = ["".join(draw.choices("aeioubcdfg", k=draw.randint(3, 7))) for _ in range(2)]
        share = [sum(c in "aeiou" for c in t) / len(t) for t in texts]
        if abs(share[0] - share[1]) >= 0.3:
            best = share[1] > share[0]
            pairs.append(
                {
                    "prompt": "say " + draw.choice(["it", "this", "that thing"]),
                    "chosen": texts[best],
                    "rejected": texts[not best],
                    "score_chosen": max(share),
                    "score_rejected": min(share),
                }
            )
    return pairs


def new_model(folder: Path) -> RewardModel:
    return RewardModel.load(folder)


def weights(model: RewardModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_loss_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 1.0])
    expected = [math.log1p(math.exp(-1)), math.log(2), math.log1p(math.exp(2))]
    assert float(bradley_terry_loss(chosen, rejected)) == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert float(bradley_terry_loss(chosen + 7, rejected + 7)) == pytest.approx(sum(expected) / 3, rel=1e-5)
    far = torch.tensor([1000.0])
    assert float(bradley_terry_loss(far, -far)) == 0.0
    assert float(bradley_terry_loss(-far, far)) == 2000.0  # no overflow to infinity


def test_gradient_of_the_loss_by_hand():
    chosen = torch.tensor([2.0, 0.5], requires_grad=True)
    rejected = torch.tensor([1.0, 0.5], requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    slope = -torch.tensor([1 / (1 + math.e), 0.5]) / 2  # -sigmoid(-margin), over two pairs
    torch.testing.assert_close(chosen.grad, slope)
    torch.testing.assert_close(rejected.grad, -slope)


def test_optimal_margin_under_flipped_labels():
    """With 25% of the labels flipped a true preference of 0.9 looks like 0.7: the best margin falls to 0.8473."""
    margin = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([margin], max_iter=50)
    agree = 0.9 * 0.75 + 0.1 * 0.25

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        zero = torch.zeros(1)
        loss = agree * bradley_terry_loss(margin, zero) + (1 - agree) * bradley_terry_loss(zero, margin)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert margin.item() == pytest.approx(0.8473, abs=1e-3)


def test_learns_what_separates_the_pairs(folder: Path):
    model = new_model(folder)
    held = vowel_pairs(200, 1)
    before = pair_accuracy(model, held)
    facts = train_reward_model(
        model,
        vowel_pairs(600, 0),
        generator=torch.Generator().manual_seed(SEED),
        held_out=held,
        epochs=4,
        batch_size=32,
        lr=3e-3,
    )
    assert before < 0.9
    reached(facts["accuracy"], 0.95)
    reached(-facts["loss"], -0.25)
    assert facts["accuracy"] == pair_accuracy(model, held)
    assert facts["held_out_pairs"] == 200 and facts["pairs"] == 600
    assert facts["steps"] == 4 * (600 // 32)


def test_training_is_a_function_of_its_generator_and_not_of_memory(folder: Path):
    pairs = vowel_pairs(40, 0)

    def run(seed: int, max_tokens: int = 16384) -> tuple[torch.Tensor, float]:
        model = new_model(folder)
        generator = torch.Generator().manual_seed(seed)
        facts = train_reward_model(
            model, pairs, generator=generator, epochs=2, batch_size=8, lr=1e-3, max_tokens=max_tokens
        )
        return weights(model), facts["loss"]

    (one, loss), (again, _), (other, _), (small, split) = run(0), run(0), run(1), run(0, max_tokens=60)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert split == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(small, one, rtol=1e-3, atol=1e-4)


def test_first_loss_is_that_of_the_scores_as_they_are(folder: Path):
    pairs = vowel_pairs(12, 3)
    model = new_model(folder)
    chosen, rejected = (
        score_texts(model, [p["prompt"] for p in pairs], [p[k] for p in pairs]) for k in ("chosen", "rejected")
    )
    expected = float(bradley_terry_loss(chosen, rejected))
    facts = train_reward_model(
        model, pairs, generator=torch.Generator().manual_seed(0), epochs=1, batch_size=12, lr=0.0
    )
    assert facts["loss"] == pytest.approx(expected, rel=1e-5)


def test_accuracy_goes_by_true_scores_and_leaves_ties_out(folder: Path):
    model = new_model(folder)
    pair = vowel_pairs(1, 0)[0]
    scores = score_texts(model, [pair["prompt"]] * 2, [pair["chosen"], pair["rejected"]])
    better, worse = ("chosen", "rejected") if scores[0] > scores[1] else ("rejected", "chosen")
    row = {"prompt": pair["prompt"], "chosen": pair[better], "rejected": pair[worse]}
    right, wrong, tie = ({**row, "score_chosen": s, "score_rejected": 0.5} for s in (0.9, 0.1, 0.5))
    assert pair_accuracy(model, [row]) == 1.0
    assert pair_accuracy(model, [right, wrong, tie, tie]) == 0.5
    assert pair_accuracy(model, [{**row, "rejected": row["chosen"]}]) == 0.0  # the model's tie finds nothing
    with pytest.raises(ValueError, match="no pair"):
        pair_accuracy(model, [tie])


def test_equal_responses_are_left_out(folder: Path):
    model = new_model(folder)
    same = {"prompt": "p", "chosen": "x", "rejected": "x"}
    with pytest.raises(UserError, match="two different responses"):
        train_reward_model(model, [same], generator=torch.Generator())
    facts = train_reward_model(model, [same, {**same, "rejected": "y"}], generator=torch.Generator(), epochs=1)
    assert facts["pairs"] == 1 and "accuracy" not in facts


def test_scores_do_not_depend_on_batches(folder: Path):
    model = new_model(folder)
    texts = ["", "a", "some words", "xyz" * 5]
    prompts = ["p", "longer prompt", "q=", "p"]
    whole = score_texts(model, prompts, texts)
    torch.testing.assert_close(score_texts(model, prompts, texts, max_tokens=1), whole, rtol=1e-4, atol=1e-6)
    alone = torch.cat([score_texts(model, [p], [t]) for p, t in zip(prompts, texts, strict=True)])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-6)
    assert score_texts(model, [], []).shape == (0,)
    assert not whole.requires_grad


def test_normalized_scores_keep_their_order(folder: Path, tmp_path: Path):
    model = new_model(folder)
    prompts, texts = ["p"] * 6, ["a", "bb", "cde", "xyxy", "", "12"]
    raw = score_texts(model, prompts, texts)
    mean, std = normalize(model, raw)
    assert mean == pytest.approx(float(raw.mean()), rel=1e-5) and std == pytest.approx(float(raw.std(correction=0)))
    scores = score_texts(model, prompts, texts)
    torch.testing.assert_close(scores, (raw - mean) / std, rtol=1e-3, atol=1e-4)
    model.save(tmp_path / "saved")
    assert torch.equal(score_texts(RewardModel.load(tmp_path / "saved"), prompts, texts), scores)
    with pytest.raises(ValueError, match="same score"):
        normalize(model, torch.ones(3))
