"""PDPPO and its tasks: the card's numbers, an iteration in plain PyTorch, PPO as its limit, a short learning test."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue, kernels
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.control.pdppo import DualAdvantage, LesserValueLoss
from polyrl.parts.credit import GAE
from polyrl.parts.improve import ValueLoss
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.lot_sizing import LotSizing, heuristic_returns
from polyrl.tasks.control.slippery_lake import SlipperyLake, lake_of

torch.set_num_threads(1)


PPO_LIST = Path(__file__).parent / "drafts" / "ppo_list.py"
SMALL = {"environments": "3", "steps_per_environment": "150", "hidden": "8", "epochs": "2"}


def config_of(method: str, sizes: dict[str, str], budget: str = "iterations=3", task: str = "lot-sizing") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(extra: str = "", **settings: str) -> Any:
    return make_loop(config_of(f"pdppo{extra}", {**SMALL, **settings}))[0]


def weights_of(loop: Any) -> dict[str, Tensor]:
    return {name: flat.vector.detach().clone() for name, flat in loop.run_state.flat.items()}


# ------------------------------------------------------------------------------------------------------------ the task


def test_a_period_costs_what_the_card_says() -> None:
    one = LotSizing()
    one.reset(seed=0)
    one.stock, one.setup, one.demand, one.t = np.array([5, 10]), np.array([1]), np.array([[8, 7]]), 0
    one.production, one.setup_cost = np.array([[12, 12]]), np.array([[2, 2]])
    stock, setup, cost = one.decided(np.array([2]))
    assert stock.tolist() == [5, 21] and setup.tolist() == [2] and cost == 2
    shown, reward, _, _, told = one.step(np.array([2]))
    assert told["post_observation"].tolist() == [5, 21, 2] and shown.tolist() == [0, 14, 2]
    assert reward == pytest.approx(-2.74)
    one.t, before = 0, (one.stock.copy(), one.setup.copy())
    assert one.decided(np.array([2]))[2] == 0  # it is set up already
    assert one.decided(np.array([0]))[1].tolist() == [0]  # and idle it loses that
    assert np.array_equal(one.stock, before[0]) and np.array_equal(one.setup, before[1])
    one.stock = np.array([0, 107])
    assert one.step(np.array([0]))[0].tolist() == [0, 100, 0]  # what finds no room is gone


def test_idle_and_random_machines_cost_what_the_card_found() -> None:
    one, stream = LotSizing(), np.random.default_rng(0)

    def mean_cost(act: Any) -> float:
        costs = []
        for seed in range(50):
            one.reset(seed=seed)
            ended, cost = False, 0.0
            while not ended:
                _, reward, ended, _, _ = one.step(act())
                cost -= reward
            costs.append(cost)
        return sum(costs) / len(costs)

    assert mean_cost(lambda: np.zeros(2, dtype=int)) == pytest.approx(455, rel=0.02)
    assert mean_cost(lambda: stream.integers(0, 4, 2)) == pytest.approx(381, rel=0.02)


def test_larger_problems_are_drawn_as_the_published_ones() -> None:
    one, other = LotSizing(15, 5, 1), LotSizing(15, 5, 2)
    assert one.production.shape == (5, 15) and not np.array_equal(one.production, other.production)
    many = np.stack([LotSizing(15, 5, k).production for k in range(12)])
    assert float((many == 0).mean()) == pytest.approx(0.4, abs=0.05) and (many.min(), many.max()) == (0, 40)
    assert {*np.unique(one.setup_cost)} == {1, 2}
    lines = named_task("lot-sizing").metric.lines
    assert lines == heuristic_returns(3, 2, 0)
    assert lines["idle"] == pytest.approx(-455, rel=0.03) and lines["lowest stock"] > lines["idle"] + 100
    with pytest.raises(UserError, match="items of lot-sizing must be a whole number from 1, not 0"):
        named_task("lot-sizing(items=0)").metric  # noqa: B018


def test_the_lake_tells_where_a_step_was_aimed_and_then_slides() -> None:
    lake = SlipperyLake()
    hole, following, reward, law = lake_of(0)
    assert law.sum(1) == pytest.approx(1) and reward[-1] == 1 and not hole[0]
    slid = 0
    for seed in range(400):
        lake.reset(seed=seed)
        aimed = lake.aimed(1)
        assert aimed == 8 == lake.aimed(1) and lake.cell == 0  # it changes nothing
        shown, paid, over, cut, told = lake.step(1)
        assert told["post_observation"].argmax() == aimed and not over and not cut
        moved = paid != pytest.approx(reward[aimed])
        slid += moved
        assert paid == pytest.approx(reward[aimed] + (reward[shown] if moved else 0))
        assert int(shown) in ([*following[aimed]] if moved else [aimed])
    assert slid / 400 == pytest.approx(0.5, abs=0.08)
    lake.reset(seed=0)
    lake.cell = int(np.flatnonzero(hole)[0])
    assert lake.step(0)[1:3] == (0.0, True)
    lake.reset(seed=0)
    lake.cell = 62
    assert lake.step(2)[:3] == (63, 1.0, True)
    lake.reset(seed=0)
    assert lake.aimed(0) == 0  # a wall


def test_no_way_of_walking_beats_the_lakes_optimum() -> None:
    best = named_task("slippery-lake").metric.lines["optimum"]
    lake, draw = SlipperyLake(), np.random.default_rng(0)
    hole, following, reward, law = lake_of(0)
    value = np.zeros((101, 64))
    for left in range(1, 101):  # by plain loops, the way the environment pays
        for cell in range(64):
            tried = []
            for action in range(4):
                to = following[cell, action]
                if hole[cell]:
                    tried.append(0.0)
                    continue
                if to == 63:
                    tried.append(reward[to])
                    continue
                sides = zip(law[to], following[to], strict=True)
                slides = [p * (reward[c] + (c != 63) * value[left - 1, c]) for p, c in sides]
                tried.append(reward[to] + 0.5 * value[left - 1, to] + 0.5 * sum(slides))
            value[left, cell] = max(tried)
    assert value[100, 0] == pytest.approx(best)
    returns = []
    for seed in range(50):
        lake.reset(seed=seed)
        over, total = False, 0.0
        while not over:
            _, paid, over, _, _ = lake.step(draw.integers(4))
            total += paid
        returns.append(total)
    assert np.mean(returns) < best


def test_it_learns_on_the_lake_what_states_after_decisions_are_worth() -> None:
    loop = make_loop(config_of("pdppo", {**SMALL, "epochs": "3"}, task="slippery-lake"))[0]
    batch = loop.iterate()
    assert batch["post_observation"].sum(-1).eq(1).all()
    assert loop.context.spent.updates == 9


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of("pdppo", SMALL), tmp_path / "whole").run()
    stopped_after(start_run(config_of("pdppo", SMALL), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


def test_an_environment_that_tells_nothing_after_decisions_is_refused() -> None:
    with pytest.raises(UserError, match="post_observation"):
        make_loop(config_of("pdppo", SMALL, task="CartPole-v1"))


# ---------------------------------------------------------------------------------------------------------- the method


def judged(value: list[float], post: list[float], reward: list[float], **settings: Any) -> Experience:
    part = DualAdvantage(**{"standardize": False, "gamma": 1.0, **settings})
    steps = {"reward": reward, "value": value, "post_value": post}
    batch = Experience({name: torch.tensor([x]) for name, x in steps.items()})
    no, yes = torch.zeros(1, len(reward), dtype=torch.bool), torch.ones(1, len(reward), dtype=torch.bool)
    found: Experience = part.apply(batch.with_fields(terminated=no, truncated=no, mask=yes), None)
    return found


def test_the_larger_advantage_is_the_one_over_the_lesser_value() -> None:
    assert judged([1.5], [0.5], [2.0])["advantage"].tolist() == [[1.5]]
    assert judged([1.5], [0.5], [2.0], critics="pre")["advantage"].tolist() == [[0.5]]
    exact = [judged([0.0], [q], [q])["advantage"].item() for q in (1.0, -1.0)]
    assert exact == [1.0, 0.0]  # bad actions are not pushed down
    both = judged([0.0, 0.0], [0.0, 0.0], [1.0, 2.0], gamma=0.5)
    assert both["value_target"].tolist() == [[2.0, 2.0]]
    ended = both.with_fields(terminated=torch.tensor([[True, False]]))
    part = DualAdvantage(standardize=True, gamma=0.5)
    target = part.apply(ended, None)["value_target"]
    assert target[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-5)  # of 1 and 2: nothing passes an end


def test_advantages_over_two_unbiased_critics_are_too_large() -> None:
    stream = torch.Generator().manual_seed(0)
    value, post = 0.5 * torch.randn(2, 200_000, generator=stream)
    found = judged(value.tolist(), post.tolist(), [0.0] * len(value), gamma=0.0)["advantage"].mean()
    assert float(found) == pytest.approx(0.5 / np.pi**0.5, abs=5e-3)


def test_of_each_step_the_lesser_critic_learns() -> None:
    class Says:
        observes = "observation"

        def __init__(self, value: float):
            self.value = value

        def __call__(self, observation: Tensor) -> Tensor:
            return torch.full(observation.shape[:-1], self.value)

    term = LesserValueLoss
    batch: Any = {"observation": torch.zeros(1, 1, 1), "value_target": torch.ones(1, 1)}

    def slope(own: float, other: float, regress: str = "lesser") -> float:
        value = torch.tensor([[own]], requires_grad=True)
        see: Any = {"other": Says(other)}
        term("other", value_coef=1.0, regress=regress).summand({"value": value}, batch, see).sum().backward()
        assert value.grad is not None
        return float(value.grad)

    assert slope(0.2, 0.5) == pytest.approx(-1.6) and slope(0.5, 0.2) == 0
    assert slope(0.5, 0.2, "each") == pytest.approx(-1.0)


def test_an_iteration_is_that_of_the_card_in_plain_pytorch() -> None:
    loop = loop_of(epochs="3", orthogonal="false", entropy_coef="0.3")
    models, gamma = loop.run_state.models, 0.99
    policy, critic, post_critic = (copy.deepcopy(models[name]) for name in ("policy", "critic", "post_critic"))
    batch = loop.iterate()
    shown, action = batch["observation"].flatten(0, 1), batch["action"].flatten(0, 1)
    moments = models["policy"].policy.observation_moments
    told = batch["post_observation"].flatten(0, 1).double()
    after = ((told - moments.mean) / (moments.variance + 1e-8).sqrt()).clamp(-10, 10).float()

    returns = torch.zeros_like(batch["reward"])
    following = torch.zeros(len(batch))
    for t in reversed(range(returns.shape[1])):
        following = batch["reward"][:, t] + gamma * following * ~batch["terminated"][:, t]
        returns[:, t] = following
    target = returns.flatten()
    target = (target - target.mean()) / (target.std() + 1e-7)

    def heads() -> tuple[Tensor, Tensor]:
        logits = policy.policy.network(shown).unflatten(-1, (2, 4)).log_softmax(-1)
        return logits.gather(-1, action.unsqueeze(-1)).squeeze(-1), -(logits.exp() * logits).sum(-1)

    with torch.no_grad():
        old, value, post = heads()[0], critic(shown), post_critic(after)
    advantage = torch.maximum(target - value, target - post).unsqueeze(-1)
    rates = {policy: 5e-4, critic: 1e-3, post_critic: 1e-3}
    for model in rates:
        model.requires_grad_(True)
    adam = torch.optim.Adam([{"params": [*model.parameters()], "lr": rate} for model, rate in rates.items()])
    told_loss = []
    for _ in range(3):
        logprob, entropy = heads()
        ratio = (logprob - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        lesser = torch.minimum(critic(shown), post_critic(after))
        loss = -(gain + 0.6 * entropy).mean() + 0.5 * (lesser - target).square().mean()
        told_loss.append(-float(gain.mean().detach()))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for model in rates for p in model.parameters()], 1.0)
        adam.step()
    assert loop.context.metrics["loss/head-surrogate"] == pytest.approx(sum(told_loss) / 3, rel=1e-4)
    for name, plain in (("policy", policy), ("critic", critic), ("post_critic", post_critic)):
        own, other = (dict(model.named_parameters()) for model in (models[name], plain))
        for key, parameter in own.items():
            torch.testing.assert_close(parameter, other[key].detach(), rtol=1e-4, atol=2e-6, msg=f"{name} {key}")


def one_machine() -> Any:
    """Lot sizing by one machine: one choice, so that the ratio of each choice is the whole action's."""

    class One(LotSizing):
        def __init__(self) -> None:
            super().__init__(machines=1, instance=4)
            self.action_space = spaces.Discrete(4)

    return One


def run(recipe: Any) -> Any:
    loop = make_loop(config_of("mine", {}), given=PythonObjects(recipe=recipe.check(), environment=one_machine()))[0]
    for _ in range(2):
        loop.iterate()
    return weights_of(loop)


def test_with_the_critic_of_states_alone_it_is_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit where PPO goes by autograd too; its written passes round otherwise."""
    monkeypatch.setattr(kernels, "ENABLED", False)
    sizes = {**SMALL, "steps_per_environment": "200", "joint_clip": "none", "learning_rate": "1e-3"}
    alone = {"critics": "pre", "regress": "each", "entropy_coef": "0", "activation": "tanh", "standardize": "false"}
    draft = catalogue.build("pdppo", {**sizes, **alone})
    flat = {"schedule": "constant", "adam_epsilon": "1e-8", "value_coef": "1", "minibatches": "1", "gae_lambda": "1"}
    ppo = catalogue.build(str(PPO_LIST), {**sizes, **flat})
    policy, critic = ppo.updates[0].of
    passes = dataclasses.replace(
        ppo.updates[0],
        of=(dataclasses.replace(policy, credit=()), critic),
        credit=draft.updates[0].credit,
    )
    models = {**ppo.models, "post_critic": draft.models["post_critic"]}
    same = run(dataclasses.replace(ppo, models=models, score=(), updates=(passes,)))
    found = run(draft)
    for name in ("policy", "critic"):  # PPO's own policy, surrogate and value loss, on the same advantages
        assert torch.equal(found[name], same[name]), name
    # and on GAE's where nothing is cut and lambda is 1, but for rounding
    gae = dataclasses.replace(passes, credit=ppo.updates[0].credit)
    for name, plain in run(dataclasses.replace(ppo, score=(), updates=(gae,))).items():
        torch.testing.assert_close(found[name], plain, rtol=1e-3, atol=1e-4)


def test_it_takes_parts_of_other_methods() -> None:
    both = catalogue.build("pdppo+gae+unclipped-surrogate", SMALL)
    (passes,) = both.updates
    assert isinstance(passes.credit[-1], GAE) and passes.of[0].terms[0].name == "unclipped-surrogate"
    loop = loop_of("+gae+unclipped-surrogate")
    before = weights_of(loop)
    loop.iterate()
    assert all(not torch.equal(before[name], found) for name, found in weights_of(loop).items())
    whole = catalogue.build("pdppo+ppo", SMALL, domain="control").updates[0]
    assert [type(update.terms[0]) for update in whole.of[1:]] == [ValueLoss, ValueLoss]


def test_the_control_has_two_critics_of_the_state_before() -> None:
    seen = []
    for shown in ("true", "false"):
        loop = loop_of(after_decision=shown)
        values = loop.recipe.updates[0].credit[1]
        batch = loop.iterate()
        found = values.apply(batch, loop.run_state.models)
        seen.append(torch.equal(found["post_state"], batch["observation"]))
    assert seen == [False, True]


def test_what_says_which_actions_are_allowed_is_refused() -> None:
    masked = one_machine()

    class Masked(masked):  # type: ignore[misc, valid-type]
        def reset(self, **given: Any) -> Any:
            shown, told = super().reset(**given)
            return shown, {**told, "action_mask": np.ones(4, dtype=np.int8)}

        def step(self, action: Any) -> Any:
            shown, reward, ended, cut, told = super().step(action)
            return shown, reward, ended, cut, {**told, "action_mask": np.ones(4, dtype=np.int8)}

    recipe = catalogue.build("pdppo", SMALL)
    with pytest.raises(UserError, match="takes every action for allowed"):
        make_loop(config_of("mine", {}), given=PythonObjects(recipe=recipe, environment=Masked))


def test_machines_learn_to_meet_the_demand() -> None:
    def late_return(learning_rate: str) -> float:
        sizes = {"steps_per_environment": "100", "hidden": "32x32", "learning_rate": learning_rate}
        loop = make_loop(config_of("pdppo", sizes, "iterations=25"))[0]
        returns = []
        for _ in range(25):
            loop.iterate()
            returns.append(loop.context.metrics["episode/return"])
        return sum(returns[-5:]) / 5

    reached(late_return("3e-3") - late_return("0"), 15)  # the same episodes; 35 to 62
