"""PDPPO as a draft: the card's numbers, an iteration in plain PyTorch, PPO as its limit, a short learning test."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from conftest import reached
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.parts.credit import GAE
from polyrl.parts.improve import ValueLoss
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects
from test_drafts import PDPPO, PPO_LIST, SIZES, TASKS, config_of, loop_of, names_of

torch.set_num_threads(1)


def lot_sizing() -> Any:
    return names_of(loop_of(PDPPO))["LotSizing"]()


def weights_of(loop: Any) -> dict[str, Tensor]:
    return {name: flat.vector.detach().clone() for name, flat in loop.run_state.flat.items()}


# ------------------------------------------------------------------------------------------------------------ the task


def test_a_period_costs_what_the_card_says() -> None:
    one = lot_sizing()
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
    one, stream = lot_sizing(), np.random.default_rng(0)

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


# ---------------------------------------------------------------------------------------------------------- the method


def judged(value: list[float], post: list[float], reward: list[float], **settings: Any) -> Experience:
    part = names_of(loop_of(PDPPO))["DualAdvantage"](**{"standardize": False, "gamma": 1.0, **settings})
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
    part = names_of(loop_of(PDPPO))["DualAdvantage"](standardize=True, gamma=0.5)
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

    term = names_of(loop_of(PDPPO))["LesserValueLoss"]
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
    loop = loop_of(PDPPO, epochs="3", orthogonal="false", entropy_coef="0.3")
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
    kind = names_of(loop_of(PDPPO))["LotSizing"]

    class One(kind):  # type: ignore[misc, valid-type]
        metadata: ClassVar[dict[str, Any]] = {"info_fields": {"post_observation": (4,)}}
        machines, production = 1, kind.production[:1]

        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(4)

        def step(self, action: Any) -> Any:
            return super().step([action])

    return One


def run(recipe: Any) -> Any:
    loop = make_loop(config_of("mine", {}), given=PythonObjects(recipe=recipe.check(), environment=one_machine()))[0]
    for _ in range(2):
        loop.iterate()
    return weights_of(loop)


def test_with_the_critic_of_states_alone_it_is_ppo() -> None:
    sizes = {**SIZES[PDPPO], "steps_per_environment": "200", "joint_clip": "none", "learning_rate": "1e-3"}
    alone = {"critics": "pre", "regress": "each", "entropy_coef": "0", "activation": "tanh", "standardize": "false"}
    draft = catalogue.build(str(PDPPO), {**sizes, **alone})
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
    both = catalogue.build(f"{PDPPO}+gae+unclipped-surrogate", SIZES[PDPPO])
    (passes,) = both.updates
    assert isinstance(passes.credit[-1], GAE) and passes.of[0].terms[0].name == "unclipped-surrogate"
    loop = loop_of(PDPPO, "+gae+unclipped-surrogate")
    before = weights_of(loop)
    loop.iterate()
    assert all(not torch.equal(before[name], found) for name, found in weights_of(loop).items())
    whole = catalogue.build(f"{PDPPO}+ppo", SIZES[PDPPO], domain="control").updates[0]
    assert [type(update.terms[0]) for update in whole.of[1:]] == [ValueLoss, ValueLoss]


def test_the_control_has_two_critics_of_the_state_before() -> None:
    seen = []
    for shown in ("true", "false"):
        loop = loop_of(PDPPO, after_decision=shown)
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

    recipe = catalogue.build(str(PDPPO), SIZES[PDPPO])
    with pytest.raises(UserError, match="takes every action for allowed"):
        make_loop(config_of("mine", {}), given=PythonObjects(recipe=recipe, environment=Masked))


def test_machines_learn_to_meet_the_demand() -> None:
    def late_return(learning_rate: str) -> float:
        sizes = {"steps_per_environment": "100", "hidden": "32x32", "learning_rate": learning_rate}
        loop = make_loop(config_of(str(PDPPO), sizes, "iterations=25", task=TASKS[PDPPO]))[0]
        returns = []
        for _ in range(25):
            loop.iterate()
            returns.append(loop.context.metrics["episode/return"])
        return sum(returns[-5:]) / 5

    reached(late_return("3e-3") - late_return("0"), 15)  # the same episodes; 35 to 62
