"""DAPO-direct: the card's numbers, the offline set counted by hand, and runs that learn from it and resume."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import DIFFICULTY, SEED, TASK, reached, read_records, timeless
from polyrl import catalogue
from polyrl.api import resume, train
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.dapo_direct import (
    DropSmallGaps,
    OfflineSteps,
    StepAdvantage,
    StepRegression,
    balanced,
    step_advantage,
)
from polyrl.parts.credit import value_after
from polyrl.parts.improve import ValueCrossEntropy
from polyrl.run_state.language import LanguageRunState
from polyrl.tasks.language import task
from run_states import make_context
from tiny_models import save_model

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
ADVANTAGE = torch.tensor([0.26, -0.14, -0.44], dtype=torch.float64)


def advantages(quality: Sequence[float], copies: Sequence[int]) -> tuple[list[float], float]:
    found, gap = step_advantage(torch.tensor(quality), torch.tensor(copies), torch.zeros(len(quality)).long())
    return found.tolist(), float(gap[0])


def regression(logprob: Tensor, ref: Tensor, advantage: Tensor, beta: float) -> Tensor:
    """Losses `[B]` of steps of one token."""
    one = torch.ones(len(ref), 1, dtype=torch.bool)
    rows = Experience({"ref_logprob": ref[:, None], "advantage": advantage[:, None], "mask": one})
    return StepRegression(beta=beta).loss({"logprob": logprob[:, None]}, rows)


def test_check_1_at_the_reference_it_is_a_policy_gradient() -> None:
    logprob = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    loss = regression(logprob, logprob.detach(), torch.tensor([0.2, -0.2]).double(), 0.01)
    assert loss.tolist() == pytest.approx([200, 200])
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logprob.grad is not None and logprob.grad.tolist() == pytest.approx([-20, 20])


def test_checks_2_and_3_gaps_and_duplicates() -> None:
    assert advantages([0.9, 0.5, 0.1], [1, 1, 1]) == (pytest.approx([0.4, 0, -0.4]), pytest.approx(0.8))
    assert advantages([0.52, 0.50, 0.48], [1, 1, 1])[1] == pytest.approx(0.04)
    assert advantages([0.8, 0.4], [3, 1])[0] == pytest.approx([0.1, -0.3])
    # adding a constant to all changes nothing, and states do not mix
    assert advantages([1.8, 1.4], [3, 1])[0] == pytest.approx([0.1, -0.3])
    both, gap = step_advantage(torch.tensor([0.8, 5.0, 0.4]), torch.tensor([3, 2, 1]), torch.tensor([7, 9, 7]))
    assert both.tolist() == pytest.approx([0.1, 0, -0.3]) and gap.tolist() == pytest.approx([0.4, 0, 0.4])


def test_check_4_the_gradient_is_that_of_the_improvement() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log().requires_grad_()
    beta, now = 0.4, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    loss = (now * regression(logits.log_softmax(0), REF.log(), ADVANTAGE, beta)).sum()
    found = -beta * torch.autograd.grad(loss, logits)[0]
    assert found.tolist() == pytest.approx([0.170807, -0.058406, -0.112401], abs=1e-6)
    policy = logits.softmax(0)
    improvement = (policy * ADVANTAGE).sum() - beta * (policy * (policy / REF).log()).sum()
    torch.testing.assert_close(torch.autograd.grad(improvement, logits)[0], found)


@pytest.mark.parametrize(
    ("uniform", "beta", "wanted"),
    [
        (False, 1.0, (0.620814, 0.253195, 0.125991)),
        (False, 0.1, (0.937616, 0.059960, 0.002424)),
        (True, 1.0, (0.617016, 0.255494, 0.127491)),
        (True, 0.1, (0.933029, 0.064529, 0.002443)),
    ],
)
def test_check_5_minimizers_improve(uniform: bool, beta: float, wanted: tuple[float, ...]) -> None:
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    share = torch.full((3,), 1 / 3, dtype=torch.float64) if uniform else REF
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (share * regression(logits.log_softmax(0), REF.log(), ADVANTAGE, beta)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    policy = logits.detach().softmax(0)
    assert policy.tolist() == pytest.approx(wanted, abs=2e-5)
    assert float((policy * ADVANTAGE).sum() - beta * (policy * (policy / REF).log()).sum()) > 0


def test_check_6_cross_entropy_with_soft_targets() -> None:
    for chance, loss in ((0.5, 0.693147), (0.75, 0.562335)):
        logit = torch.tensor([[math.log(chance / (1 - chance))]], requires_grad=True)
        found = ValueCrossEntropy().loss({"value": logit}, Experience({"value_target": torch.tensor([[0.75]])}))
        assert float(found.detach()) == pytest.approx(loss, abs=1e-6)
        assert float(torch.autograd.grad(found.sum(), logit)[0]) == pytest.approx(chance - 0.75, abs=1e-6)


def test_check_7_without_advantages_it_pulls_back_to_the_reference() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert regression(REF.log(), REF.log(), zero, 0.1).tolist() == [0, 0, 0]
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log().requires_grad_()
    regression(logits.log_softmax(0), REF.log(), zero, 0.1).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad[0] < 0 < logits.grad[1]


def test_log_ratios_are_sums_over_the_steps_own_tokens() -> None:
    mask = torch.tensor([[True, True, False, True]])
    rows = Experience({"ref_logprob": torch.full((1, 4), -1.0), "advantage": torch.full((1, 4), 0.5), "mask": mask})
    outputs = {"logprob": torch.tensor([[-1.5, -0.5, 99.0, -2.0]])}
    assert float(StepRegression(beta=0.5).loss(outputs, rows)) == pytest.approx((-1.0 - 1.0) ** 2 / 2)


def test_solutions_are_balanced() -> None:
    score = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0, 1, 1])
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    assert balanced(score, group, 4).tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert balanced(score, group, 2).tolist() == [0, 3, 5, 6, 8, 9]
    skewed = torch.tensor([1.0, 1, 1, 1, 1, 0])
    assert balanced(skewed, torch.zeros(6).long(), 4).tolist() == [0, 1, 2, 5]


# ----------------------------------------------------------------------------------------------------- in the run state


@pytest.fixture(scope="module")
def run_state(tmp_path_factory: pytest.TempPathFactory) -> LanguageRunState:
    folder = save_model(tmp_path_factory.mktemp("steps") / "model", "qwen3")
    made = LanguageRunState(task("lock", difficulty=1), folder, critic=True)
    assert made.critic is not None
    torch.nn.init.normal_(made.critic.head.weight, generator=torch.Generator().manual_seed(3))

    def score(experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        texts = experience.columns["completion"]
        return torch.tensor([float(len(t) % 2) for t in texts]), {}, len(texts)

    made.score = score  # type: ignore[method-assign]
    return made


PART = OfflineSteps(problems=3, solutions=3, kept=2, continuations=5, states_per_step=4, step_tokens=5, critic_epochs=1)


def test_the_set_is_what_was_sampled(run_state: LanguageRunState) -> None:
    context = make_context(run_state)
    table = Experience(PART.make(context, 0))
    group = table["group"]
    states = int(group.max()) + 1
    for state in range(states):
        rows = table.rows((group == state).nonzero()[:, 0])
        copies, outcome = rows["copies"], rows["outcome"]
        assert int(copies.sum()) == 5  # every continuation is one of the actions
        assert float((copies * outcome).sum()) / 5 == pytest.approx(float(rows["state_outcome"][0]), abs=1e-6)
        assert len({tuple(a[p].tolist()) for a, p in zip(rows["action"], rows["present"], strict=True)}) == len(rows)
        assert bool((rows["present"].sum(1) <= 5 + rows["ended"].long()).all())  # an end token alone is no step
    # all actions of states differ from prompts by whole steps, and log-probabilities are the policy's
    logprob = run_state.policy.evaluate(table)["logprob"].detach()
    torch.testing.assert_close(logprob, table["ref_logprob"], atol=1e-4, rtol=1e-4)
    assert context.spent.reward_calls == 9 + 5 * states and context.spent.samples == 0
    assert context.spent.tokens > 0


def test_passes_cover_every_state_once(run_state: LanguageRunState) -> None:
    context = make_context(run_state)
    turns, seen = [], list[int]()
    total = None
    for _ in range(40):
        batch = PART(None, context)
        total = context.memory("offline-steps")["states"]
        turns.append(bool(batch["critic_turn"].any()))
        seen += sorted(set(batch["group"].tolist()))
        assert batch["critic_turn"].all() == batch["critic_turn"].any()
        context.iteration += 1
        if len(seen) >= 2 * total:
            break
    assert total is not None
    assert sorted(seen[:total]) == list(range(total)) == sorted(seen[total : 2 * total])
    assert turns == sorted(turns, reverse=True)  # first the critic, then the policy
    again = make_context(run_state)
    assert torch.equal(PART(None, again)["action"], PART(None, make_context(run_state))["action"])


def test_a_new_set_after_the_policys_passes(run_state: LanguageRunState) -> None:
    part = OfflineSteps(problems=1, solutions=1, kept=1, continuations=2, states_per_step=99, critic_epochs=1,
                        policy_epochs=1, step_tokens=99)  # fmt: skip
    context = make_context(run_state)
    problems = []
    for _ in range(4):
        problems.append(part(None, context).columns["prompt"][0])
        context.iteration += 1
    rows = [row["prompt"] for row in run_state.task.rows("train", 0, 0, 2)]
    assert problems == [rows[0], rows[0], rows[1], rows[1]]


def test_values_behind_steps(run_state: LanguageRunState) -> None:
    """The critic is read behind the step, whatever is stored after its end; a last step has its reward."""
    context = make_context(run_state)
    batch = PART(None, context)
    batch = batch.with_fields(critic_turn=torch.zeros(len(batch), dtype=torch.bool))
    after = value_after(batch, context)
    for i in range(0, len(batch), 5):
        n = int(batch["present"][i].sum())
        longer = {name: torch.nn.functional.pad(batch[name][i : i + 1, :n], (0, 1), value=1)
                  for name in ("action", "present", "mask")}  # fmt: skip
        assert float(after[i]) == pytest.approx(
            float(run_state.value(batch.rows([i]).with_fields(**longer))[0, n]), abs=1e-5
        )
    made = StepAdvantage()(batch, context)
    quality = torch.where(batch["ends_response"], batch["outcome"], torch.sigmoid(after))
    wanted, gap = step_advantage(quality, batch["copies"], batch["group"])
    torch.testing.assert_close(made["advantage"][:, 0], wanted)
    selected = DropSmallGaps(min_gap=0.1)(made, context)
    assert (selected["weight"] != 0).any(1).tolist() == (gap >= 0.1).tolist()
    assert not bool(selected["value_weight"].any())
    garbage = batch.with_fields(action=torch.where(batch["present"], batch["action"], 9))
    torch.testing.assert_close(StepAdvantage()(garbage, context)["advantage"], made["advantage"])
    critic = DropSmallGaps()(StepAdvantage()(batch.with_fields(critic_turn=batch["greedy"] | True), context), context)
    assert not bool(critic["weight"].any()) and int(critic["value_weight"].sum()) == len(set(batch["group"].tolist()))


def test_steps_longer_than_a_response_are_responses(run_state: LanguageRunState) -> None:
    """The limit: one state a problem, and A = r - mean r over its N responses."""
    part = OfflineSteps(problems=3, solutions=2, kept=2, continuations=6, states_per_step=9, critic_epochs=0,
                        step_tokens=1000)  # fmt: skip
    context = make_context(run_state)
    batch = part(None, context)
    assert len(set(batch["group"].tolist())) == 3 and bool(batch["ends_response"].all())
    made = StepAdvantage()(batch, context)
    torch.testing.assert_close(made["advantage"][:, 0], batch["outcome"] - batch["state_outcome"])


# ---------------------------------------------------------------------------------------------------------- whole runs


def run(model: Path, out: Path, iterations: int, **hyperparameters: Any) -> Any:
    options = {"difficulty": DIFFICULTY, "evaluations": 1, "tensorboard": False, "checkpoint_every": 3}
    settings = {"learning_rate": 5e-4, "step_tokens": 1, "critic_learning_rate": 1e-3, **hyperparameters}
    return train("dapo-direct", task=TASK, model=model, budget={"iterations": iterations}, out=out, quiet=True,
                 options=options, **settings)  # fmt: skip


def test_it_learns(small_model: Path, tmp_path: Path) -> None:
    done = run(small_model, tmp_path / "run", 42, critic_epochs=3, seed=SEED)
    start, final = done.start["eval/accuracy"], done.final["eval/accuracy"]
    reached(final - start, 0.15)  # 0.47
    records = read_records(tmp_path / "run")[1:]
    assert records[0]["tokens"] == records[-1]["tokens"]  # nothing is sampled after the first iteration
    turns = [r["grad_norm/critic"] > 0 for r in records]
    assert turns == sorted(turns, reverse=True) and not turns[-1]  # frozen while the policy learns
    assert all(r["grad_norm/policy"] == 0 for r, critic in zip(records, turns, strict=True) if critic)


def test_the_set_survives_a_stop(small_model: Path, tmp_path: Path) -> None:
    run(small_model, tmp_path / "whole", 6, problems=6, critic_epochs=1, states_per_step=6)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (last,) = [f for f in (tmp_path / "cut" / "checkpoints").iterdir() if f.name.endswith("6")]
    shutil.rmtree(last)
    resume(tmp_path / "cut", quiet=True)
    assert last.is_dir()
    whole, cut = (timeless(read_records(tmp_path / name)) for name in ("whole", "cut"))
    assert whole == cut


def test_composition() -> None:
    outcomes = catalogue.build("dapo-direct", {"step_value": "outcomes", "critic_epochs": 0})
    assert outcomes.score == ()
    assert [p.name for p in catalogue.build("grpo+dapo-direct").credit] == ["step-advantage"]
    with pytest.raises(UserError, match="needs the field 'reward'"):
        catalogue.build("dapo-direct+gae")
    with pytest.raises(UserError, match="judges steps by the task's own reward, so 'uwo' would change nothing"):
        catalogue.build("dapo-direct+uwo")
    with pytest.raises(UserError, match="at least 2"):
        catalogue.build("dapo-direct", {"continuations": 1})
