"""T-PPO: the card's numbers, limits that are PPO exactly, every token trained once, runs that resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import DIFFICULTY, SEED, TASK, reached, read_records, timeless
from polyrl import catalogue
from polyrl.api import train
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.t_ppo import EGAE, WindowSteps, egae
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.credit import gae
from polyrl.parts.score import TaskReward
from polyrl.parts.windows import WindowedRollouts
from polyrl.run_state.language import LanguageRunState
from polyrl.tasks.language import task
from run_states import make_context
from tiny_models import save_model

VALUES = [0.4, 0.5, 0.55, 0.7]


def advantages(
    lam: float, *, finished: bool, reward: float = 0.0, gamma: float = 1.0, tail: float | None = None
) -> Any:
    ones = torch.ones(1, 4, dtype=torch.bool)
    rewards = torch.tensor([[0, 0, 0, reward]], dtype=torch.float64)
    after = None if tail is None else torch.tensor([tail], dtype=torch.float64)
    values = torch.tensor([VALUES], dtype=torch.float64)
    found = egae(rewards, values, torch.tensor([finished]), ones, gamma=gamma, gae_lambda=lam, tail=after)
    return pytest.approx(found[0].tolist(), abs=1e-6)


def test_checks_1_to_4_egae() -> None:
    assert advantages(1, finished=False) == [0.3, 0.2, 0.15, 0]
    assert advantages(0.95, finished=False) == [0.282875, 0.1925, 0.15, 0]
    assert advantages(0, finished=False) == [0.1, 0.05, 0.15, 0]
    assert advantages(1, finished=True, reward=1.0) == [0.6, 0.5, 0.45, 0.3]
    assert advantages(0.95, finished=True, reward=1.0) == [0.5400875, 0.46325, 0.435, 0.3]
    assert advantages(0.95, finished=False, tail=0.9) == [
        x + 0.95 ** (3 - i) * 0.2 for i, x in enumerate([0.282875, 0.1925, 0.15, 0])
    ]
    assert advantages(1, finished=False, gamma=0.99) == [0.272417, 0.179209, 0.13607, -0.007]


def test_check_2_a_finished_response_has_ordinary_gae() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(5, 7, generator=generator) < 0.7
    mask[:, 0] = True
    end = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    done = torch.ones(5, dtype=torch.bool)
    wanted = gae(reward, value, end, torch.zeros_like(end), mask, gamma=0.97, gae_lambda=0.9)
    assert torch.equal(egae(reward, value, done, mask, gamma=0.97, gae_lambda=0.9), wanted)


def test_check_6_a_constant_critic_teaches_nothing_before_the_end() -> None:
    ones = torch.ones(2, 5, dtype=torch.bool)
    value = torch.full((2, 5), 0.3, dtype=torch.float64)
    found = egae(torch.zeros_like(value), value, torch.tensor([False, False]), ones, gamma=1.0, gae_lambda=0.95)
    assert found.abs().max() < 1e-12


def test_two_masks() -> None:
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    window = torch.tensor([[False, False, True, True], [False, True, True, False]])
    batch = Experience({"mask": mask, "window": window, "finished": torch.tensor([True, False])})
    context = make_context(None)
    made = WindowSteps()(batch, context)
    assert made["weight"].tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert made["value_weight"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    held = WindowSteps(tail_holdback=1)(batch, context)
    assert held["weight"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert WindowSteps(policy_tokens="all")(batch, context)["weight"].tolist() == mask.float().tolist()


# ----------------------------------------------------------------------------------------------------- in the run state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("windows") / "model", "qwen3")


@pytest.fixture
def run_state(model: Path) -> LanguageRunState:
    return LanguageRunState(task("reverse", difficulty=8), model, critic=True)


def windows(run_state: LanguageRunState, part: WindowedRollouts, iterations: int) -> tuple[list[Experience], Any]:
    context = make_context(run_state)
    context.iteration = 0
    found = []
    for _ in range(iterations):
        context.iteration += 1
        found.append(part(None, context))
    return found, context


def test_check_8_each_token_is_trained_once(run_state: LanguageRunState) -> None:
    part = WindowedRollouts(prompts_per_step=3, completions_per_prompt=2, window=3)
    batches, context = windows(run_state, part, 9)
    tokens: dict[tuple[int, int], int] = {}
    policy, critic, generated = 0, 0, 0
    whole: dict[int, list[int]] = {}
    slot_of: dict[int, int] = {}
    begun = -1
    for at, batch in enumerate(batches, 1):
        made = WindowSteps()(batch, context)
        assert batch["window"].sum(1).max() <= 3
        assert bool((batch["policy_version"][batch["window"]] == at).all())
        assert bool((batch["policy_version"][batch["present"] & ~batch["window"]] < at).all())
        for i in range(len(batch)):
            fresh = at == 1 or bool(batches[at - 2]["finished"][i])
            begun += fresh
            slot_of[i] = begun if fresh else slot_of[i]
            now = batch["action"][i][batch["present"][i]].tolist()
            before = [] if fresh else whole[slot_of[i]]
            assert now[: len(before)] == before  # what was said stays said
            whole[slot_of[i]] = now
            for t in made["weight"][i].nonzero()[:, 0].tolist():
                tokens[slot_of[i], t] = tokens.get((slot_of[i], t), 0) + 1
        policy += int(made["weight"].sum())
        critic += int(made["value_weight"].sum())
        generated += int(batch["window"].sum())
    assert context.spent.samples == begun + 1 and context.spent.tokens == generated == policy
    assert set(tokens.values()) == {1} and len(tokens) == sum(map(len, whole.values()))
    finished = sum(int(b["present"][b["finished"]].sum()) for b in batches)
    assert critic == finished > 0


def test_slots_take_the_next_prompts_and_copies_begin_together(run_state: LanguageRunState) -> None:
    part = WindowedRollouts(prompts_per_step=2, completions_per_prompt=2, window=30)
    (first, second), _ = windows(run_state, part, 2)
    assert first["group"].tolist() == [0, 0, 1, 1] and bool(first["finished"].all())
    assert second["group"].tolist() == [2, 2, 3, 3]
    rows = run_state.task.rows("train", 0, 0, 4)
    assert second.columns["prompt"] == [rows[2]["prompt"]] * 2 + [rows[3]["prompt"]] * 2


def test_check_7_a_window_as_long_as_a_response_is_ppo(run_state: LanguageRunState) -> None:
    """The tokens are PPO's from the same numbers, and so are its advantages; only the critic's targets differ."""
    limit = run_state.task.max_tokens
    part = WindowedRollouts(prompts_per_step=3, completions_per_prompt=2, window=limit)
    (batch,), context = windows(run_state, part, 1)
    plain = catalogue.build("ppo", {"prompts_per_step": 3, "completions_per_prompt": 2, "kl_coef": 0})
    context.iteration = 1
    wanted = plain.collect(None, context)
    width = wanted["action"].shape[1]
    assert batch["action"].shape[1] == width
    for name in ("action", "present", "mask", "ended", "group"):
        assert torch.equal(batch[name], wanted[name]), name
    torch.testing.assert_close(batch["behaviour_logprob"], wanted["behaviour_logprob"], atol=1e-5, rtol=1e-5)
    assert bool(batch["finished"].all()) and bool((batch["window"] == batch["present"]).all())


def test_log_probabilities_are_those_of_the_policy_that_sampled(run_state: LanguageRunState) -> None:
    """Within a window the ratio starts at 1, whatever else happened to the slot."""
    batches, _ = windows(run_state, WindowedRollouts(prompts_per_step=4, completions_per_prompt=1, window=2), 5)
    batch = batches[-1]
    assert bool((batch["present"] & ~batch["window"]).any())
    logprob = run_state.policy.evaluate(batch)["logprob"].detach()
    torch.testing.assert_close(logprob, batch["behaviour_logprob"], atol=1e-4, rtol=1e-4)


def test_unfinished_responses_earn_nothing_and_reach_no_reward(run_state: LanguageRunState) -> None:
    asked: list[str] = []

    def score(experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        asked.extend(experience.columns["completion"])
        return torch.ones(len(experience)), {}, len(experience)

    run_state.score = score  # type: ignore[method-assign]
    batches, context = windows(run_state, WindowedRollouts(prompts_per_step=6, completions_per_prompt=1, window=4), 4)
    for batch in batches:
        asked.clear()
        context.metrics.clear()
        paid = TaskReward()(batch, context)
        done = batch["finished"]
        assert asked == [text for text, over in zip(batch.columns["completion"], done.tolist(), strict=True) if over]
        assert paid["score"].tolist() == done.float().tolist() and len(paid) == 6
        assert paid["terminated"].any(1).tolist() == done.tolist()
        assert ("reward" in context.metrics) == bool(done.any())
        assert context.metrics.get("reward", 1.0) == 1.0


def test_naive_truncation_ends_everything(run_state: LanguageRunState) -> None:
    part = WindowedRollouts(prompts_per_step=4, completions_per_prompt=1, window=2, carry_on=False)
    batches, context = windows(run_state, part, 2)
    assert all(bool(b["finished"].all()) and b["action"].shape[1] <= 2 for b in batches)
    assert context.spent.samples == 8


def test_bootstrap_asks_the_critic_for_the_state_after_the_last_token(run_state: LanguageRunState) -> None:
    assert run_state.critic is not None
    torch.nn.init.normal_(run_state.critic.head.weight, generator=torch.Generator().manual_seed(3))
    batches, context = windows(run_state, WindowedRollouts(prompts_per_step=4, completions_per_prompt=1, window=3), 1)
    batch = TaskReward()(batches[0], context)
    batch = batch.with_fields(value=run_state.value(batch))
    open_rows = (~batch["finished"]).nonzero()[:, 0].tolist()
    assert open_rows
    plain, asked = (EGAE(egae_tail=tail)(batch, context)["advantage"] for tail in ("previous", "bootstrap"))
    for i in open_rows:
        n = int(batch["present"][i].sum())
        longer = {name: torch.nn.functional.pad(batch[name][i : i + 1, :n], (0, 1), value=1)
                  for name in ("action", "present", "mask")}  # fmt: skip
        true = run_state.value(batch.rows([i]).with_fields(**longer))[0, n]
        difference = float(asked[i, n - 1] - plain[i, n - 1])
        assert difference == pytest.approx(float(true - batch["value"][i, n - 1]), abs=1e-5)
    garbage = batch.with_fields(action=torch.where(batch["present"], batch["action"], 7))
    assert torch.equal(EGAE(egae_tail="bootstrap")(garbage, context)["advantage"], asked)


# ----------------------------------------------------------------------------------------------- recipes, whole runs


def test_composition() -> None:
    for spec in ("ppo+t-ppo", "grpo+t-ppo"):
        names = [p.name for p in catalogue.build(spec).parts()]
        assert {"windowed-rollouts", "egae", "window-steps", "value-loss"} <= set(names)
    with pytest.raises(UserError, match="'group-advantage' judges whole responses"):
        catalogue.build("t-ppo+grpo")
    with pytest.raises(UserError, match="'egae' needs the field 'finished'"):
        catalogue.build("ppo+egae")


def test_tools_are_refused(model: Path) -> None:
    calculator = LanguageRunState(task("calculator"), model)
    with pytest.raises(UserError, match="has a tool, and 'windowed-rollouts' cannot stop"):
        WindowedRollouts(prompts_per_step=1)(None, make_context(calculator))


def run(model: Path, out: Path, budget: Any, **hyperparameters: Any) -> Any:
    options = {"difficulty": DIFFICULTY, "evaluations": 1, "tensorboard": False, "checkpoint_every": 3}
    settings = {"window": 4, "learning_rate": 4e-4, "gae_lambda": 1.0, "critic_pretraining": 8, **hyperparameters}
    return train("t-ppo", task=TASK, model=model, budget=budget, out=out, quiet=True, options=options, **settings)


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = run(small_model, tmp_path / "run", {"samples": 700}, seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, 0.15)  # 0.27 to 0.49 with three seeds
    records = read_records(tmp_path / "run")[1:]
    assert all(r["decode_steps"] <= 4 for r in records)
    assert all("grad_norm/policy" not in r or r["grad_norm/policy"] == 0 for r in records[:8])  # the critic alone
    assert records[8]["grad_norm/policy"] > 0


def test_slots_survive_a_stop(small_model: Path, tmp_path: Path) -> None:
    """A run that is cut off between checkpoints goes on to the same numbers."""
    import shutil

    from polyrl.api import resume

    hyperparameters = {"prompts_per_step": 6, "completions_per_prompt": 1, "window": 2, "critic_pretraining": 1}
    run(small_model, tmp_path / "whole", {"iterations": 6}, **hyperparameters)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for folder in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        if "6" in folder.name:
            shutil.rmtree(folder)
    resume(tmp_path / "cut", quiet=True)
    assert any("6" in folder.name for folder in (tmp_path / "cut" / "checkpoints").iterdir())  # it went there again
    whole, cut = (timeless(read_records(tmp_path / name)) for name in ("whole", "cut"))
    assert whole == cut
    assert any(r.get("windows/staleness", 0) > 0 for r in whole)
    policies = [LanguagePolicy.load(tmp_path / name / "model").state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(policies[0][k], policies[1][k]) for k in policies[0])
