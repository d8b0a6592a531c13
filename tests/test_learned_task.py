"""The task with a learned reward: its reward model, the cache of it, and the gold that is logged beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polyrl.core.context import Context
from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.scalar import RewardModel
from polyrl.parts.score import TaskReward
from polyrl.pretrain import reward_models, reward_training
from polyrl.pretrain.wanted import prepare
from polyrl.rollout.language import Sampling
from polyrl.run_state.language import Evaluation, LanguageRunState
from polyrl.runs import make_loop
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language import Reward, learned, task
from polyrl.tasks.language.learned import LearnedReverse
from tiny_models import save_model


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("start"), "qwen3", initializer_range=0.1))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(learned, "HELD_OUT_PAIRS", 30)
    return tmp_path / "cache"


def small(**settings: Any) -> LearnedReverse:
    made = task("learned-reverse", difficulty=3, **{"pairs": 40, **settings})
    assert isinstance(made, LearnedReverse)
    return made


def scores(made: LearnedReverse, prompts: list[str], completions: list[str]) -> list[float | None]:
    return made.rewards[0].function(prompts=prompts, completions=completions, answer=["cba"] * len(prompts))


def test_the_reward_waits_for_its_model(start: str):
    made = small()
    assert made.rewards[0].name == "reward_model" and made.needs_model
    with pytest.raises(UserError, match=r"no reward model yet: let polyrl.pretrain.wanted.prepare make it"):
        scores(made, ["reverse abc="], ["cba"])
    prepare(made, start)
    assert not made.needs_model
    found = scores(made, ["reverse abc="] * 2, ["cba", "zz"])
    assert len(found) == 2 and all(isinstance(s, float) for s in found) and found[0] != found[1]


def test_the_users_own_rewards_need_no_model(start: str, cache: Path):
    made = small()
    made.rewards = [Reward("mine", lambda prompts, completions, **_: [1.0] * len(completions))]
    assert not made.needs_model
    prepare(made, start)
    assert not cache.exists() and not made.scorers
    assert not task("addition").needs_model
    prepare(task("addition"), start)  # other tasks need nothing
    assert not cache.exists()


def test_second_prepare_trains_nothing(start: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    made, said = small(), []
    prepare(made, start, said.append)
    assert any("40 preference pairs" in text for text in said)
    first = scores(made, ["reverse abc="] * 2, ["cba", "c"])

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(reward_training, "train_reward_model", never)
    again, said = small(), []
    prepare(again, start, said.append)
    assert scores(again, ["reverse abc="] * 2, ["cba", "c"]) == first and said == []
    prepare(made, start)
    for other in (small(noise=0.25), small(reward_seed=1), small(pairs=41), small(label_temperature=0.2)):
        with pytest.raises(AssertionError, match="trained again"):
            prepare(other, start)
    assert len(list((cache / "models").iterdir())) == 1


def test_reward_model_is_a_function_of_its_seed(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prints = []
    for i, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("POLYRL_CACHE", str(tmp_path / f"cache{i}"))
        made = small(reward_seed=seed)
        prepare(made, start)
        prints.append(made.reward_folder(start).joinpath("model.safetensors").read_bytes())
    assert prints[0] == prints[1] != prints[2]


def test_folders_tell_reward_models_apart_and_starts_do_not(start: str, tmp_path: Path):
    other = str(save_model(tmp_path / "other", "qwen3", seed=1))
    kinds = [small(), small(noise=0.25), small(reward_seed=1), small(pairs=41), small(label_temperature=0.2)]
    folders = {made.reward_folder(start) for made in kinds} | {small().reward_folder(other)}
    assert len(folders) == 6
    # one starting model serves every reward: arms with and without noise begin at the same place
    assert len({made.fingerprint() for made in kinds}) == 1
    assert small(start_accuracy=0.2).fingerprint() != small().fingerprint()
    assert small().fingerprint() != task("reverse-dense", difficulty=3).fingerprint()


def labelled(monkeypatch: pytest.MonkeyPatch, start: str, **settings: Any) -> list[dict[str, Any]]:
    """The pairs that the reward model is trained on."""
    taken: list[list[dict[str, Any]]] = []
    real = reward_training.train_reward_model

    def take(model: Any, pairs: Any, **how: Any) -> Any:
        taken.append(pairs)
        return real(model, pairs, **how)

    monkeypatch.setattr(reward_training, "train_reward_model", take)
    prepare(small(pairs=200, **settings), start)
    monkeypatch.setattr(reward_training, "train_reward_model", real)
    return taken[0]


def test_labels_follow_the_gold(start: str, monkeypatch: pytest.MonkeyPatch):
    # an untrained model is nearly never right, so give the answers
    def answers(made: Any, policy: Any, rows: Any, seed: int) -> tuple[list[str], list[str]]:
        return [row["answer"] for row in rows], [row["answer"][:2] + "." for row in rows]

    monkeypatch.setattr(reward_models, "two_answers", answers)
    clear = labelled(monkeypatch, start, label_temperature=0.0)
    assert all(p["score_chosen"] == 1.0 and p["prompt"] == f"reverse {p['chosen'][::-1]}=" for p in clear)
    noisy = labelled(monkeypatch, start, label_temperature=0.0, noise=0.25)
    assert 0.15 < sum(p["score_chosen"] < p["score_rejected"] for p in noisy) / 200 < 0.35
    assert [p["prompt"] for p in noisy] == [p["prompt"] for p in clear]


def test_facts_and_scale_of_the_scores(start: str):
    made = small(noise=0.25)
    prepare(made, start)
    facts = json.loads((made.reward_folder(start) / "polyrl.json").read_text())
    assert facts["noise"] == 0.25 and facts["pairs"] <= 40 and "mean 0" in facts["scores"] and facts["raw_std"] > 0
    from polyrl.models.language.policy import LanguagePolicy

    rows = made.rows("train", 2_000_003, 0, 70)
    a, b = reward_models.two_answers(made, LanguagePolicy.load(start), rows, 0)
    prompts = [r["prompt"] for r in rows[40:]]
    values = torch.tensor(scores(made, prompts * 2, a[40:] + b[40:]))
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(values.std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def test_right_answers_are_exact_and_gold_is_measured():
    made = small()
    row = {"prompt": "reverse abc=", "answer": "cba"}
    assert made.correct(row, "cba") and not made.correct(row, "cbb")
    assert made.measures(row, "cbb") == {"gold": pytest.approx(2 / 3)}
    assert task("addition").measures({}, "1") == {}
    for wrong in ({"noise": 0.6}, {"noise": -0.1}, {"pairs": 0}, {"pairs": 2.5}, {"label_temperature": -1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            small(**wrong)


def test_the_run_state_logs_the_gold_beside_the_reward(start: str):
    made = small()
    prepare(made, start)
    run_state = LanguageRunState(made, start, evaluation=Evaluation(prompts=6, shown=6))
    metrics, samples = run_state.evaluate()
    rows = made.rows("test", 1234, 0, 6)
    gold = [made.gold(row, s["completion"]) for row, s in zip(rows, samples, strict=True)]
    assert metrics["eval/gold"] == pytest.approx(sum(gold) / 6)
    assert metrics["eval/reward"] == pytest.approx(sum(s["score"] for s in samples) / 6, abs=1e-5)

    context = Context(run_state=run_state, seed=0, budget=Budget(samples=10), iteration=1)
    stream = torch.Generator().manual_seed(0)
    sampling = Sampling(max_tokens=made.max_tokens)
    batch = run_state.sample(rows, sampling, completions_per_prompt=3, generator=stream, greedy_baseline=True)
    texts = [row["answer"] if i % 4 < 3 else "" for row in rows for i in range(4)]  # greedy baselines come last
    TaskReward()(batch.with_columns(completion=texts), context)
    assert context.metrics["gold"] == 1.0  # twins do not count
    assert "gold" not in LanguageRunState(task("reverse", difficulty=3), start).evaluate()[0]


def test_a_critic_begins_as_the_reward_model(start: str, tmp_path: Path):
    """Value of the state before the last token is then the score of the answer without it, offsets aside."""
    hyperparameters = {
        "critic_start": "reward-model",
        "critic_pretraining": "1",
        "prompts_per_step": "4",
        "ptx_coef": "0",
    }
    task_name = "learned-reverse(pairs=40,difficulty=3)"
    config = RunConfig(
        method="ppo-max", task=task_name, model=start, budget="samples=8", hyperparameters=hyperparameters
    )
    loop, _ = make_loop(config)
    run_state, made = loop.run_state, loop.run_state.task
    scores = made.scorers[0].model
    assert isinstance(scores, RewardModel)
    for name, value in scores.state_dict().items():
        assert torch.equal(run_state.critic.state_dict()[name], value), name
    rows = made.rows("train", 0, 0, 3)
    stream = torch.Generator().manual_seed(0)
    batch = run_state.sample(rows, Sampling(max_tokens=6), completions_per_prompt=1, generator=stream)
    last = batch["present"].sum(1) - 1
    shorter = batch["present"].clone()
    shorter[torch.arange(3), last] = False
    wanted = scores.score(batch.with_fields(present=shorter))
    assert torch.allclose(run_state.critic.evaluate(batch)[torch.arange(3), last], wanted, atol=1e-5)
    kept = {n: v.clone() for n, v in scores.state_dict().items()}
    loop.iterate()
    assert all(torch.equal(v, kept[n]) for n, v in scores.state_dict().items())  # what scores stays as it is
    assert any(not torch.equal(v, kept[n]) for n, v in run_state.critic.state_dict().items())

    config.hyperparameters["critic_start"] = "policy"
    assert not make_loop(config)[0].run_state.critic.head.weight.any()


def test_no_reward_model_to_begin_with(start: str, tmp_path: Path):
    asked = {"critic_start": "reward-model"}
    with pytest.raises(UserError, match="needs a reward model that scores the task 'reverse'"):
        make_loop(RunConfig(method="ppo-max", task="reverse", model=start, budget="samples=8", hyperparameters=asked))
    other = RewardModel.like(LanguagePolicy.load(start))
    other.tokenizer.add_tokens(["another"])
    other.save(tmp_path / "judge")
    with pytest.raises(UserError, match="reads other tokens than the policy"):
        LanguageRunState(small(), start, critic=str(tmp_path / "judge"))
