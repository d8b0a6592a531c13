"""Actions that are not allowed (`info["action_mask"]`): never taken, of probability 0, of no value in targets."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from conftest import SEED, reached
from polyrl.errors import UserError
from polyrl.models.actor import MaskedActor
from polyrl.parts.exploring import chosen
from polyrl.parts.optimize import Optimize
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
ACTIONS = 4


class Masked(gymnasium.Env[np.ndarray, Any]):
    """Reward 1 for the action whose number is shown, which is always allowed, with some others; 5 steps an episode.

    `wrong`: how it fails at the third step.
    """

    def __init__(self, wrong: str = "", ends: bool = False):
        self.wrong, self.ends = wrong, ends
        self.observation_space = spaces.Box(0, 1, (ACTIONS,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS, start=3)

    def _show(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.wanted = int(self.np_random.integers(ACTIONS))
        self.mask = self.np_random.random(ACTIONS) < 0.4
        self.mask[self.wanted] = True
        info: dict[str, Any] = {"action_mask": self.mask.astype(np.int8)}
        if self.t == 3 and self.wrong == "none":
            info = {}
        if self.t == 3 and self.wrong == "shape":
            info["action_mask"] = info["action_mask"][:2]
        if self.t == 3 and self.wrong == "empty":
            info["action_mask"][:] = 0
        return np.eye(ACTIONS, dtype=np.float32)[self.wanted], info

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._show()

    def step(self, action: Any) -> Any:
        action = int(action) - 3
        if not self.mask[action]:
            raise RuntimeError(f"the action {action} is not allowed")
        reward = float(action == self.wanted)
        self.t += 1
        shown, info = self._show()
        over = self.t >= 5
        return shown, reward, over and self.ends, over and not self.ends, info


def loop_of(method: str, make: Any = Masked, budget: str = "iterations=2", **settings: str) -> Any:
    config = RunConfig(
        method=method,
        task="mine",
        budget=budget,
        seed=SEED,
        evaluations=1,
        eval_episodes=20,
        tensorboard=False,
        hyperparameters=settings,
    )
    return make_loop(config, given=PythonObjects(environment=make))[0]


SMALL = {
    "ppo": {"environments": "4", "steps_per_environment": "32", "hidden": "16x16"},
    "dqn with random steps": {"random_steps": "60", "learning_starts": "60", "hidden": "16x16"},
    "dqn": {"steps_per_environment": "20", "learning_starts": "40", "hidden": "16x16", "gradient_steps": "20"},
}


@pytest.mark.parametrize("method", ["ppo", "dqn", "dqn with random steps"])
@pytest.mark.parametrize("ends", [False, True])
def test_what_is_not_allowed_is_never_done(method: str, ends: bool) -> None:
    loop = loop_of(method.partition(" ")[0], lambda: Masked(ends=ends), **SMALL[method])
    loop.run()  # the environment fails at an action that is not allowed, also in evaluation
    batch = loop.iterate()
    allowed = batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1))
    assert bool(allowed.all()) and not bool(batch["action_mask"].all())


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_the_mask_of_a_state_that_a_time_limit_cut_is_its_own(mode: AutoresetMode) -> None:
    batch = loop_of("ppo", vector(mode), **SMALL["ppo"]).iterate()
    over = batch["truncated"][:, :-1]
    assert not torch.equal(batch["action_mask"][:, 1:][over], batch["next_action_mask"][:, :-1][over])
    assert 0.4 < float(batch["next_action_mask"][:, :-1][over].float().mean()) < 0.8


def vector(mode: AutoresetMode) -> Any:
    return lambda num_envs=4: SyncVectorEnv([Masked for _ in range(num_envs)], autoreset_mode=mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_tell_masks_too(mode: AutoresetMode) -> None:
    loop = loop_of("ppo", vector(mode), **SMALL["ppo"])
    batch = loop.iterate()
    mask = batch["mask"]
    allowed = batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)
    assert bool(allowed[mask].all()) and 0.4 < float(batch["action_mask"].float().mean()) < 0.8
    loop.run()


class Ignored(Masked):
    """Tells masks of choices that nobody keeps to: several at once, or first in the second episode."""

    def __init__(self, late: bool = False):
        super().__init__()
        self.late, self.episodes = late, 0
        self.action_space = spaces.Discrete(ACTIONS) if late else spaces.MultiDiscrete([2, 2])

    def reset(self, **options: Any) -> Any:
        shown, info = super().reset(**options)
        self.episodes += 1
        return shown, info if self.episodes > 1 or not self.late else {}

    def step(self, action: Any) -> Any:
        self.mask[:] = True
        shown, reward, ends, cut, info = super().step(np.asarray(action).flat[0] + 3)
        return shown, reward, ends, cut, {} if self.late else info


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stepped", ["single", "vector"])
def test_masks_that_nobody_would_keep_to_are_refused(late: bool, stepped: str) -> None:
    vectors = lambda num_envs=4: SyncVectorEnv([lambda: Ignored(late)] * num_envs)  # noqa: E731
    loop = loop_of("ppo", (lambda: Ignored(late)) if stepped == "single" else vectors, **SMALL["ppo"])
    with pytest.raises(
        UserError, match=r"tells which actions are allowed \(info\['action_mask'\]\), which is known for"
    ):
        loop.iterate()


def test_the_masks_of_a_step_are_those_before_and_after_it() -> None:
    loop = loop_of("ppo", lambda: Masked(ends=False), **SMALL["ppo"])
    batch = loop.iterate()
    before, after = batch["action_mask"], batch["next_action_mask"]
    goes_on = ~batch["truncated"][:, :-1]
    assert torch.equal(before[:, 1:][goes_on], after[:, :-1][goes_on])
    over = batch["truncated"][:, :-1]
    assert bool(over.any()) and not torch.equal(before[:, 1:][over], after[:, :-1][over])  # of the end, not the reset


def test_log_probabilities_are_among_the_allowed() -> None:
    loop = loop_of("ppo", **SMALL["ppo"])
    batch = loop.iterate()
    run_state = loop.run_state
    assert isinstance(run_state.actor, MaskedActor)
    with torch.no_grad():
        logits = run_state.policy.network(batch["observation"])
        found = run_state.outputs(batch, {"logprob", "entropy"})
    for b in range(2):
        for t in range(20):
            allowed = batch["action_mask"][b, t].nonzero()[:, 0]
            logs = logits[b, t, allowed].log_softmax(-1)
            place = allowed.tolist().index(int(batch["action"][b, t]))
            assert float(found["logprob"][b, t]) == pytest.approx(float(logs[place]), abs=1e-5)
            assert float(found["entropy"][b, t]) == pytest.approx(float(-(logs.exp() * logs).sum()), abs=1e-5)


def test_updates_in_closed_form_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for closed in (True, False):
        loop = loop_of("ppo", entropy_coef="0.1", **SMALL["ppo"])
        if not closed:
            loop.run_state._passes = None
        for _ in range(2):
            loop.iterate()
        assert loop.context.metrics["logprob_gap"] < 1e-5 and isinstance(loop.recipe.optimize, Optimize)
        found.append(loop.run_state.flat["policy"].vector.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_targets_take_the_best_of_the_allowed() -> None:
    loop = loop_of("dqn", **SMALL["dqn"])
    for _ in range(2):
        loop.iterate()
    rows = loop.context.sources["replay"].sample(200, torch.Generator().manual_seed(0))
    part = loop.recipe.updates[0].of[0].credit[0]
    from polyrl.core.update import See

    target = part.apply(rows, See(loop.run_state.models, loop.context, "x"))["value_target"]
    with torch.no_grad():
        values = loop.run_state.models["q"](rows["next_observation"])
        theirs = loop.run_state.models["q_target"](rows["next_observation"])
    for i in range(200):
        allowed = rows["next_action_mask"][i, 0].nonzero()[:, 0]
        best = int(allowed[values[i, 0, allowed].argmax()])
        wanted = float(rows["reward"][i, 0] + rows["discount"][i, 0] * theirs[i, 0, best])
        assert float(target[i, 0]) == pytest.approx(wanted, abs=1e-5)


def test_random_actions_are_equally_likely_among_the_allowed() -> None:
    mask = np.tile(np.array([True, False, True, True]), (30_000, 1))
    drawn = chosen(np.random.default_rng(0).random(30_000), 4, mask)
    counts = np.bincount(drawn, minlength=4) / 30_000
    np.testing.assert_allclose(counts, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.01)
    assert set(chosen(np.array([0.0, 0.999999]), 3, None)) == {0, 2}


@pytest.mark.parametrize("method", ["ppo", "dqn"])
def test_it_is_learned_which_of_the_allowed_is_best(method: str) -> None:
    loop = loop_of(method, budget="steps=2000", **{**SMALL[method], "learning_rate": "0.005"})
    reached(loop.run()["eval/return"], 4.0)  # 5 at best; 2.7 by guessing among the allowed


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("none", "gave no info['action_mask'] of 4 actions but none at step 3 of its episode"),
        ("shape", "gave no info['action_mask'] of 4 actions but one of shape (2,) at step 3"),
        ("empty", "allows no action at all (its info['action_mask'] is all 0) at step 3"),
    ],
)
def test_a_mask_that_does_not_fit_stops_the_run(wrong: str, told: str) -> None:
    loop = loop_of("ppo", lambda: Masked(wrong=wrong), **SMALL["ppo"])
    with pytest.raises(UserError) as error:
        loop.iterate()
    assert told in str(error.value)
