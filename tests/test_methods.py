"""The five methods: the papers' numbers, and losses and gradients equal to plain loops over the papers' equations."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.grpo import GroupAdvantage, group_advantage
from polyrl.methods.language.reinforce_pp import BatchAdvantage
from polyrl.methods.language.remax import GreedyBaseline, remax_coefficients
from polyrl.methods.language.rloo import LeaveOneOut, leave_one_out
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.score import TokenKLPenalty, at_last_step
from polyrl.recipe import Recipe
from run_states import TableRunState, credited, make_context, token_batch

HOWS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant")
BETA, CLIP, GAMMA, LAMBDA = 0.05, 0.1, 0.97, 0.9


def rows(*values: Any) -> Tensor:
    return torch.tensor([list(v) for v in values], dtype=torch.float64)


def one_group(*score: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(score, dtype=torch.float64), torch.zeros(len(score), dtype=torch.long)


# -------------------------------------------------------------------------------------------- parity with plain loops


def mean(values: list[Any]) -> Any:
    return sum(values) / len(values)


def average(losses: list[list[Any]], how: str, limit: int) -> Any:
    """The four averages, literally: `losses` holds the step losses of every trained response."""
    if how == "token-mean":
        return mean([x for response in losses for x in response])
    if how == "seq-mean-token-mean":
        return mean([mean(response) for response in losses])
    if how == "seq-mean-token-sum":
        return mean([sum(response) for response in losses])
    return sum(x for response in losses for x in response) / (len(losses) * limit)


class Plain:
    """The papers' equations with Python loops and numbers; only log pi and V stay tensors, for the gradient."""

    def __init__(self, run_state: TableRunState, batch: Experience):
        self.new, self.old, self.ref, self.value, self.old_value = [], [], [], [], []
        for i in range(len(batch)):
            state, steps = int(batch["prompt_ids"][i, -1]), []
            for t in range(batch["action"].shape[1]):
                if batch["mask"][i, t]:
                    steps.append((t, state, int(batch["action"][i, t])))
                state = int(batch["action"][i, t])
            heat = float(batch["temperature"][i])
            self.new.append([run_state.table[s].div(heat).log_softmax(0)[a] for _, s, a in steps])
            self.ref.append([float(run_state.start[s].div(heat).log_softmax(0)[a]) for _, s, a in steps])
            self.old.append([float(batch["behaviour_logprob"][i, t]) for t, _, _ in steps])
            self.value.append([run_state.values[s] for _, s, _ in steps])
            self.old_value.append([float(run_state.values[s].detach()) for _, s, _ in steps])
        self.score: list[float] = batch.columns["truth"]
        self.group: list[int] = batch["group"].tolist()
        self.greedy: list[bool] = batch["greedy"].tolist()
        self.limit = int(batch["length_limit"][0])
        self.all = range(len(batch))

    def log_ratio(self, i: int) -> list[float]:
        return [o - r for o, r in zip(self.old[i], self.ref[i], strict=True)]

    def token_rewards(self, i: int) -> list[float]:
        paid = [-BETA * d for d in self.log_ratio(i)]
        paid[-1] += self.score[i]
        return paid

    def family(self, i: int, of: list[float]) -> list[float]:
        return [of[j] for j in self.all if self.group[j] == self.group[i]]

    def surrogate(self, i: int, advantage: list[float]) -> list[Any]:
        losses = []
        for new, old, a in zip(self.new[i], self.old[i], advantage, strict=True):
            rho = (new - old).exp()
            losses.append(-torch.minimum(rho * a, rho.clamp(1 - CLIP, 1 + CLIP) * a))
        return losses

    def whitened(self, raw: list[list[float]]) -> list[list[float]]:
        flat = [x for r in raw for x in r]
        centre, spread = statistics.fmean(flat), statistics.pstdev(flat)
        return [[(x - centre) / (spread + 1e-8) for x in r] for r in raw]

    def grpo(self, how: str) -> Any:
        losses, kls = [], []
        for i in self.all:
            family = self.family(i, self.score)
            a = (self.score[i] - statistics.fmean(family)) / (statistics.stdev(family) + 1e-6)
            losses.append(self.surrogate(i, [a] * len(self.new[i])))
            d = [ref - new for new, ref in zip(self.new[i], self.ref[i], strict=True)]
            kls.append([BETA * (x.exp() - x - 1) for x in d])
        return average(losses, how, self.limit) + average(kls, how, self.limit)

    def rloo(self, how: str) -> Any:
        total = [self.score[i] - BETA * sum(self.log_ratio(i)) for i in self.all]
        losses = []
        for i in self.all:
            others = [total[j] for j in self.all if self.group[j] == self.group[i] and j != i]
            losses.append([-(total[i] - statistics.fmean(others)) * new for new in self.new[i]])
        return average(losses, how, self.limit)

    def reinforce_pp(self, how: str) -> Any:
        paid = [self.token_rewards(i) for i in self.all]
        advantage = self.whitened([[sum(r[t:]) for t in range(len(r))] for r in paid])
        return average([self.surrogate(i, advantage[i]) for i in self.all], how, self.limit)

    def remax(self, how: str) -> Any:
        losses = []
        for i in self.all:
            if self.greedy[i]:
                continue
            twin = next(j for j in self.all if self.greedy[j] and self.group[j] == self.group[i])
            kl = self.log_ratio(i)
            c = [self.score[i] - self.score[twin] - BETA * sum(kl[t:]) for t in range(len(kl))]
            losses.append([-x * new for x, new in zip(c, self.new[i], strict=True)])
        return average(losses, how, self.limit)

    def ppo(self, how: str) -> Any:
        advantage = []
        for i in self.all:
            v, r = [*self.old_value[i], 0.0], self.token_rewards(i)
            delta = [r[t] + GAMMA * v[t + 1] - v[t] for t in range(len(r))]
            advantage.append([sum((GAMMA * LAMBDA) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(r))])
        target = [[a + v for a, v in zip(advantage[i], self.old_value[i], strict=True)] for i in self.all]
        white = self.whitened(advantage)
        losses = [self.surrogate(i, white[i]) for i in self.all]
        squares = [[0.25 * (v - x) ** 2 for v, x in zip(self.value[i], target[i], strict=True)] for i in self.all]
        return average(losses, how, self.limit) + average(squares, how, self.limit)


SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"clip_range": CLIP, "kl_loss_coef": BETA},
    "rloo": {"kl_coef": BETA},
    "reinforce++": {"clip_range": CLIP, "kl_coef": BETA},
    "remax": {"kl_coef": BETA},
    "ppo": {"clip_range": CLIP, "kl_coef": BETA, "gamma": GAMMA, "gae_lambda": LAMBDA},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("method", SETTINGS)
def test_losses_and_gradients_are_those_of_plain_loops(method: str, how: str) -> None:
    still = {"learning_rate": 0.0, "critic_learning_rate": 0.0, "epochs": 1, "minibatches": 1, "max_grad_norm": 1e9}
    recipe = catalogue.build(method, {**SETTINGS[method], **still, "aggregation": how})
    run_state = TableRunState()
    batch = token_batch(run_state, greedy_baseline=method == "remax")
    context = make_context(run_state, recipe)
    recipe.optimize.run(recipe.terms, credited(recipe, batch, context), context)  # type: ignore[attr-defined]
    wanted = getattr(Plain(run_state, batch), method.replace("++", "_pp"))(how)
    assert context.metrics["loss"] == pytest.approx(float(wanted.detach()), abs=1e-6)
    gradients = torch.autograd.grad(wanted, [run_state.table, run_state.values], allow_unused=True)
    for name, gradient in zip(("table", "values"), gradients, strict=True):
        exact = torch.zeros_like(run_state.gradients()[name]) if gradient is None else gradient
        torch.testing.assert_close(run_state.gradients()[name], exact, atol=1e-6, rtol=1e-6)
    assert float(run_state.gradients()["table"].abs().max()) > 1e-3
    if method in ("grpo", "reinforce++", "ppo"):
        assert context.metrics["clip_ratio"] > 0  # else the clip was not tested


# ------------------------------------------------------------------------------------------- fact grpo, 1, 9 and 10


def test_grpo_fact_1_group_advantages() -> None:
    score, group = one_group(1, 0, 0, 0)

    def close(found: Tensor, *wanted: float) -> bool:
        return found.tolist() == pytest.approx(list(wanted), abs=1e-4)

    assert close(group_advantage(score, group, "population-std"), 1.7321, -0.5774, -0.5774, -0.5774)
    assert close(group_advantage(score, group, "std"), 1.5, -0.5, -0.5, -0.5)
    assert close(group_advantage(score, group, "none"), 0.75, -0.25, -0.25, -0.25)
    assert close(leave_one_out(score, group), 1, -1 / 3, -1 / 3, -1 / 3)


def sequences(reward: Tensor, group: list[int], greedy: list[bool] | None = None, **more: Tensor) -> Experience:
    mask = torch.ones(reward.shape, dtype=torch.bool)
    twins = torch.tensor(greedy or [False] * len(group))
    return Experience({"reward": reward, "group": torch.tensor(group), "greedy": twins, "mask": mask, **more})


def test_grpo_fact_9_equal_rewards() -> None:
    batch = sequences(rows((0, 0.1), (0, 0.1), (0, 0.1), (0, 0.7), (0, 0.7), (0, 0.7)), [0, 0, 0, 1, 1, 1])
    context = make_context(None)
    for part in (GroupAdvantage(), GroupAdvantage(scale="population-std"), GroupAdvantage(scale="none"), LeaveOneOut()):
        assert part(batch, context)["advantage"].abs().max() == 0
        assert context.metrics.pop("frac_reward_zero_std") == 1
    two = sequences(rows((1,), (1,), (0,), (0,)), [0, 0, 1, 1])
    assert BatchAdvantage()(two, context)["advantage"][:, 0].tolist() == pytest.approx([1, 1, -1, -1])
    assert BatchAdvantage(baseline="group")(two, context)["advantage"].tolist() == [[0]] * 4


@pytest.mark.parametrize("gap", [0.001, 1.0, 500.0])
def test_grpo_fact_10_groups_of_two(gap: float) -> None:
    score, group = one_group(gap, 0)
    assert leave_one_out(score, group).tolist() == pytest.approx([gap, -gap])
    assert group_advantage(score, group, "population-std", epsilon=0).tolist() == pytest.approx([1, -1])


def test_a_group_of_one_has_no_advantage() -> None:
    score, group = one_group(5.0)
    assert leave_one_out(score, group).tolist() == [0] and group_advantage(score, group).tolist() == [0]


@pytest.mark.parametrize("part", [GroupAdvantage(), LeaveOneOut(), BatchAdvantage(), BatchAdvantage(baseline="group")])
def test_greedy_twins_do_not_move_the_advantage_of_samples(part: Any) -> None:
    plain = sequences(rows((0, 1), (0, 0), (0, 3), (0, 1)), [0, 0, 1, 1])
    wanted = part(plain, make_context(None))["advantage"]
    reward = rows((0, 1), (0, 0), (9, 90), (0, 3), (0, 1), (7, 70))
    twins = sequences(reward, [0, 0, 0, 1, 1, 1], [False, False, True, False, False, True])
    found = part(twins, make_context(None))["advantage"][[0, 1, 3, 4]]
    torch.testing.assert_close(found, wanted)


def test_reinforce_pp_whitens_over_all_tokens_of_the_batch() -> None:
    batch = sequences(rows((0.5, 1, 2), (0, -1, 0), (0, 0, 0)), [0, 1, 2])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    found = BatchAdvantage()(batch.with_fields(mask=mask), make_context(None))["advantage"]
    raw = [3.5, 3, 2, -1, -1, 0]
    wanted = [(x - statistics.fmean(raw)) / (statistics.pstdev(raw) + 1e-8) for x in raw]
    assert found[mask].tolist() == pytest.approx(wanted) and bool((found[~mask] == 0).all())
    # with the group's baseline it is one number a response, before the whitening
    grouped = BatchAdvantage(baseline="group")(batch.with_fields(group=torch.tensor([0, 0, 1])), make_context(None))
    level = [2.25] * 3 + [-2.25] * 3 + [0] * 3
    exact = [x / statistics.pstdev(level) for x in level]
    assert grouped["advantage"].flatten().tolist() == pytest.approx(exact)


# ------------------------------------------------------------------------------------------------------ fact remax

LOG_RATIO = (0.2, -0.1, 0.0, 0.3)


def remax_batch(log_ratio: Any = LOG_RATIO, score: tuple[float, float] = (0.7, 0.5)) -> Experience:
    """One sampled response and its greedy baseline, scored, with log-ratios to the reference."""
    width = len(log_ratio)
    mask = torch.ones(2, width, dtype=torch.bool)
    scores = torch.tensor(score, dtype=torch.float64)
    return Experience(
        {
            "mask": mask,
            "present": mask,
            "score": scores,
            "reward": at_last_step(scores, mask),
            "behaviour_logprob": rows(log_ratio, [9.0] * width) - 1,
            "ref_logprob": rows([-1] * width, [-1] * width),
            "group": torch.tensor([3, 3]),
            "greedy": torch.tensor([False, True]),
            "length_limit": torch.full((2,), width),
        }
    )


def test_remax_fact_1_coefficients_of_the_official_code() -> None:
    wanted = [0.182119, 0.19906, 0.19602, 0.183]
    mask = torch.ones(1, 4, dtype=torch.bool)
    settings: dict[str, Any] = {"gamma": 0.99, "kl_coef": 0.05, "kl_to_go": False}
    found = remax_coefficients(torch.tensor([0.2], dtype=torch.float64), rows(LOG_RATIO), mask, **settings)
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-6)
    # through the parts: the penalty is found again in the reward
    context = make_context(None)
    batch = TokenKLPenalty(kl_coef=0.05)(remax_batch(), context)
    made = GreedyBaseline(reward_gamma=0.99, kl_to_go=False)(batch, context)
    assert made["advantage"][0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert made["baseline_score"].tolist() == [0.5, 0.5]
    # verl's form: the KL of a token and of all after it
    to_go = GreedyBaseline(reward_gamma=0.99)(batch, context)["advantage"][0].tolist()
    exact = [0.2 * 0.99 ** (4 - j) - 0.05 * sum(LOG_RATIO[j:]) for j in range(4)]
    assert to_go == pytest.approx(exact, abs=1e-9)


def test_remax_passes_over_tool_tokens() -> None:
    mask = torch.tensor([[True, False, True, False]])
    found = remax_coefficients(torch.tensor([1.0]), torch.tensor([[1.0, 9, 2, 9]]), mask, gamma=0.5, kl_coef=0.1)
    assert found[0].tolist() == pytest.approx([0.25 - 0.3, 0, 0.5 - 0.2, 0])


def test_remax_clips_the_difference_and_not_the_rewards() -> None:
    batch = remax_batch(score=(-20.0, -30.0))
    found = GreedyBaseline(difference_clip=5.0)(batch, make_context(None))["advantage"]
    assert found[0].tolist() == [5.0] * 4
    near = GreedyBaseline(difference_clip=5.0)(remax_batch(score=(-20.0, -21.0)), make_context(None))["advantage"]
    assert near[0].tolist() == pytest.approx([1.0] * 4)
    worse = GreedyBaseline(difference_clip=5.0)(remax_batch(score=(-30.0, -20.0)), make_context(None))["advantage"]
    assert worse[0].tolist() == [-5.0] * 4


def test_remax_fact_2_the_first_of_256_tokens_gets_little() -> None:
    mask = torch.ones(1, 256, dtype=torch.bool)
    found = remax_coefficients(torch.ones(1, dtype=torch.float64), torch.zeros(1, 256), mask, gamma=0.99)
    assert float(found[0, 0]) == pytest.approx(0.0763, abs=5e-5)
    assert float(found[0, -1]) == pytest.approx(0.99)  # the last token already carries gamma^1


def bandit_gradients(p: float, reward: tuple[float, float], *, baseline: bool) -> tuple[Tensor, Tensor]:
    """The gradient for each sampled arm `[2, 2]`, by the real parts, and the arms' probabilities."""
    logits = torch.tensor([math.log(p / (1 - p)) if p < 1 else 1000.0, 0.0], dtype=torch.float64)
    chance, best = logits.softmax(-1), int(logits.argmax())
    gradients = []
    for arm in (0, 1):
        free = logits.clone().requires_grad_()
        batch = remax_batch((0.0,), (reward[arm], reward[best] if baseline else 0.0))
        made = GreedyBaseline()(batch, make_context(None))
        made = made.with_fields(weight=rows((1,), (0,)))
        logprob = free.log_softmax(-1)[[arm, best]][:, None]
        term = PolicyGradient()
        loss = (term.loss({"logprob": logprob}, made) * term.step_weights(made)).sum()
        gradients.append(-torch.autograd.grad(loss, free)[0])
    return torch.stack(gradients), chance


@pytest.mark.parametrize(
    ("p", "reward", "reinforce", "remax"),
    [
        (0.6, (1, 0.2), 0.129792, 0.110592),
        (0.7, (1, 0.2), 0.081312, 0.131712),
        (0.4, (1, 0.2), 0.221952, 0.110592),
        (0.6, (1, 0.5), 0.2352, 0.0432),
    ],
)
def test_remax_fact_3_variance_on_two_arms(p: float, reward: Any, reinforce: float, remax: float) -> None:
    means = []
    for baseline, wanted in ((False, reinforce), (True, remax)):
        gradient, chance = bandit_gradients(p, reward, baseline=baseline)
        expected = (chance[:, None] * gradient).sum(0)
        variance = (chance * gradient.square().sum(1)).sum() - expected.square().sum()
        assert float(variance) == pytest.approx(wanted, abs=1e-6)
        means.append(expected)
    torch.testing.assert_close(means[0], means[1])  # the baseline leaves the expectation alone
    threshold = 0.5 + reward[1] / (2 * (reward[0] - reward[1]))
    assert (remax < reinforce) == (p <= threshold)


def test_remax_fact_4_offsets_and_greedy_samples() -> None:
    context = make_context(None)
    plain = GreedyBaseline()(remax_batch(), context)["advantage"][0]
    moved = GreedyBaseline()(remax_batch(score=(0.7 + 13, 0.5 + 13)), context)["advantage"][0]
    torch.testing.assert_close(moved, plain)
    same = GreedyBaseline()(remax_batch(score=(0.5, 0.5)), context)["advantage"]
    assert bool((same == 0).all())


@pytest.mark.parametrize("p", [0.9, 0.3])
def test_remax_fact_5_mean_square_of_advantages(p: float) -> None:
    context = make_context(None)
    for greedy, wanted in ((1.0, 1 - p), (0.0, p)):
        right, wrong = (
            float(GreedyBaseline()(remax_batch((0.0,), (r, greedy)), context)["advantage"][0, 0]) for r in (1.0, 0.0)
        )
        assert p * right**2 + (1 - p) * wrong**2 == pytest.approx(wanted)
    for size in (2, 4):
        total = 0.0
        for outcome in itertools.product((1.0, 0.0), repeat=size):
            chance = math.prod(p if r else 1 - p for r in outcome)
            total += chance * float(leave_one_out(*one_group(*outcome))[0]) ** 2
        assert total == pytest.approx(p * (1 - p) * size / (size - 1))
    if p == 0.9:
        assert p * (1 - p) * 2 == pytest.approx(0.18)


def test_remax_fact_6_a_deterministic_policy_gets_no_gradient() -> None:
    """Sampled and greedy answer are the same, whatever they earn."""
    gradient, chance = bandit_gradients(1.0, (123.0, -77.0), baseline=True)
    assert chance.tolist() == [1.0, 0.0] and gradient[0].tolist() == [0.0, 0.0]


def improved(recipe: Recipe, batch: Experience, run_state: TableRunState) -> dict[str, Tensor]:
    context = make_context(run_state, recipe)
    recipe.optimize.run(recipe.terms, batch, context)  # type: ignore[attr-defined]
    return run_state.gradients()


@pytest.mark.parametrize("spec", ["remax", "grpo+remax", "remax+reinforce++", "remax(completions_per_prompt=2)+rloo"])
def test_remax_fact_7_nothing_flows_through_the_greedy_pass(spec: str) -> None:
    """Whatever the log-probabilities of the twins are: same gradient. And twins never have a weight."""
    recipe = catalogue.build(spec, {"max_grad_norm": 1e9, "minibatches": 1, "learning_rate": 0.0})
    run_state = TableRunState()
    batch = token_batch(run_state, greedy_baseline=True)
    twins = batch["greedy"]
    made = credited(recipe, batch, make_context(run_state))
    assert bool((made["weight"][twins] == 0).all()) and bool((made["weight"][~twins] == made["mask"][~twins]).all())
    plain = improved(recipe, made, run_state)
    for by in (0.5, 1e6, math.nan):
        moved = batch["behaviour_logprob"] + torch.where(twins[:, None], by, 0.0)
        # the twins' own probabilities may change at will, also what their critic-free score stage makes of them
        again = credited(recipe, batch.with_fields(behaviour_logprob=moved), make_context(run_state))
        torch.testing.assert_close(improved(recipe, again, run_state)["table"], plain["table"], rtol=0, atol=1e-12)


def test_a_greedy_baseline_without_greedy_answers_is_told() -> None:
    with pytest.raises(
        UserError,
        match=r"'greedy-baseline' needs the field 'has_greedy_baseline'.*'sample-with-greedy-baseline' would give",
    ):
        catalogue.build("grpo+greedy-baseline")


@pytest.mark.parametrize("method", SETTINGS)
def test_advantages_do_not_depend_on_order_numbering_or_padding(method: str) -> None:
    recipe = catalogue.build(method, SETTINGS[method])
    run_state = TableRunState()
    batch = token_batch(run_state, greedy_baseline=method == "remax")
    wanted = credited(recipe, batch, make_context(run_state))["advantage"]
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    shuffled = credited(recipe, batch.rows(order), make_context(run_state))["advantage"]
    torch.testing.assert_close(shuffled, wanted[order])
    renamed = credited(recipe, batch.with_fields(group=1000 - 3 * batch["group"]), make_context(run_state))["advantage"]
    torch.testing.assert_close(renamed, wanted)
    wide = {n: torch.nn.functional.pad(batch[n], (0, 4)) for n in ("action", "present", "mask", "behaviour_logprob")}
    padded = credited(recipe, batch.with_fields(**wide), make_context(run_state))["advantage"]
    torch.testing.assert_close(padded, torch.nn.functional.pad(wanted, (0, 4)))
