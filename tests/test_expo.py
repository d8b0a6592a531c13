"""EXPO, its denoiser and its tasks: the card's numbers, best-of-N as its limit, whose gradient is whose, resuming."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.update import See
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.methods.control.expo import EditEntropy, OnTheFlyTarget, best_action, noise_shape
from polyrl.models.base import Interface
from polyrl.models.denoiser import Denoiser, DiffusionPolicy, noise_rates
from polyrl.models.squashed import squashed_logprob
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.eight_modes import MODES, EightModes
from polyrl.tasks.control.wall_point import WallPoint

torch.set_num_threads(1)
SMALL = {
    **{"turns": "20", "learning_starts": "10", "hidden": "16x16", "batch_size": "8", "critics": "3"},
    **{"optimizer_steps": "30", "denoising_steps": "3", "gradient_steps": "2"},
}


def config_of(method: str, sizes: dict[str, str], task: str = "wall-point", budget: str = "iterations=4") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(method: str = "expo", task: str = "wall-point", **settings: str) -> Any:
    return make_loop(config_of(method, {**SMALL, **settings}, task))[0]


def weights_of(loop: Any) -> dict[str, Tensor]:
    return {name: flat.vector.detach().clone() for name, flat in loop.run_state.flat.items()}


# ----------------------------------------------------------------------------------------------------------- the tasks


def test_the_point_goes_around_the_wall() -> None:
    world = WallPoint()
    world.reset(seed=0)
    for _ in range(20):
        place, reward, ended, _, _ = world.step(np.array([1, 0], np.float32))
        assert reward == -1 and not ended
    assert place.tolist() == pytest.approx([-0.2, 0])  # at the wall
    world.reset(seed=0)
    total, steps, ended, cut = 0.0, 0, False, False
    while not (ended or cut):
        up = 1.0 if steps < 5 else -1.0 if steps > 13 else 0.0
        _, reward, ended, cut, _ = world.step(np.array([1, up], np.float32))
        total, steps = total + reward, steps + 1
    assert (ended, steps) == (True, 18) and total == named_task("wall-point").metric.lines["optimum"]
    world.reset(seed=0)
    cuts = [world.step(np.zeros(2, np.float32))[3] for _ in range(40)]
    assert cuts == [False] * 39 + [True]


def test_demonstrations_go_both_ways_and_sometimes_reach_the_goal() -> None:
    recorded = named_task("wall-point").recorded
    assert recorded is not None and len(recorded.returns) == 100
    assert 0.2 <= np.mean([total > -40 for total in recorded.returns]) <= 0.4
    middle = recorded.seen[recorded.seen[:, 0].abs() < 0.15]
    assert 0.4 < float((middle[:, 1] > 0).float().mean()) < 0.6 and float(middle[:, 1].abs().min()) >= 0.4
    again = named_task("wall-point").recorded
    assert again is not None and again.digest == recorded.digest


def test_data_lie_around_eight_modes_and_the_best_beside_one() -> None:
    task = named_task("eight-modes")
    recorded = task.recorded
    assert recorded is not None
    nearest = torch.cdist(recorded.action.double(), torch.from_numpy(MODES))
    assert nearest.argmin(1).bincount().tolist() == [50] * 8
    assert float(nearest.min(1).values.square().mean()) == pytest.approx(2 * 0.05**2, rel=0.2)
    reward = EightModes().step(np.array([0.75, 0], np.float32))[1]
    assert reward == 1 and task.metric.lines["nearest mode"] == pytest.approx(math.exp(-(0.15**2) / 0.02))


def test_only_tasks_with_demonstrations_of_their_own_do_without_a_dataset() -> None:
    with pytest.raises(UserError, match="expo learns from recorded transitions; name their file"):
        loop_of(task="Pendulum-v1")
    few = Interface("CartPole-v1", 2, np.ones(2, dtype=bool), spaces.Discrete(2))
    with pytest.raises(UserError, match="A denoiser acts by continuous numbers between bounds"):
        Denoiser().make(few, torch.Generator())
    assert make_loop(config_of("bc", {"hidden": "8"}, "wall-point"))[0].recipe.name == "bc"


# ------------------------------------------------------------------------------------------------------------ denoising


def test_at_the_end_of_the_way_next_to_nothing_is_left_of_the_action() -> None:
    for steps in (1, 5, 20):
        kept = torch.cumprod(1 - noise_rates(steps), 0)
        assert float(kept[-1]) == pytest.approx(math.exp(-0.1 - (10 - 0.1) / 2), rel=1e-4)
        assert bool((kept[1:] < kept[:-1]).all())


def test_the_cosine_leaves_less_noise_to_the_last_step() -> None:
    kept = torch.cumprod(1 - noise_rates(10, "cosine"), 0)
    assert float(kept[0]) == pytest.approx(0.972093, abs=1e-6)
    assert float(kept[4]) == pytest.approx(0.493844, abs=1e-6)
    assert float(kept[-1]) < 1e-4 and float(torch.cumprod(1 - noise_rates(10), 0)[0]) < 0.95
    assert make_loop(config_of("expo", SMALL))[0].run_state.models["base"].kept[0] > 0.74


def chain_of(steps: int = 4) -> DiffusionPolicy:
    class Exact(torch.nn.Module):
        """Knows the noise where every action is `goal`."""

        goal = torch.tensor([0.3, -0.8])

        def forward(self, x: Tensor) -> Tensor:
            noisy, step = x[..., 2:4], (x[..., 4] * steps).round().long()
            kept = policy.kept[step].unsqueeze(-1)
            return ((noisy - kept.sqrt() * self.goal) / (1 - kept).sqrt()).unsqueeze(-2)

    policy = DiffusionPolicy(Exact(), named_task("wall-point").actions.space, steps)  # type: ignore[arg-type]
    return policy


def test_with_the_right_noise_a_chain_ends_at_the_only_action_there_is() -> None:
    policy, stream = chain_of(), torch.Generator().manual_seed(0)
    found = policy.sample(torch.zeros(50, 2), torch.randn(50, 4, 2, generator=stream))
    torch.testing.assert_close(found, torch.tensor([0.3, -0.8]).expand(50, 2), rtol=0, atol=1e-5)

    class Fixed:
        def __call__(self, *shape: int) -> Tensor:
            return torch.randn(shape, generator=stream)

        def uniform(self, *shape: int) -> Tensor:
            return torch.rand(shape, generator=stream)

    goal = torch.tensor([0.3, -0.8]).expand(7, 1, 2)
    batch = Experience({"observation": torch.zeros(7, 1, 2), "action": goal})
    loss = policy.outputs(batch, {"imitation"}, Fixed())["imitation"]  # type: ignore[arg-type]
    assert loss.shape == (7, 1) and float(loss.max()) < 1e-8
    batch = batch.with_fields(action=goal + 0.1)  # of which the network knows nothing
    assert float(policy.outputs(batch, {"imitation"}, Fixed())["imitation"].min()) > 1e-3  # type: ignore[arg-type]


def test_a_chain_has_the_steps_of_the_paper() -> None:
    """Algorithm 2 of arXiv:2006.11239 in its own form, where nothing has to be brought to [-1, 1]."""
    loop = loop_of(learning_rate="0", noise_schedule="variance-preserving")
    base = loop.run_state.models["base"]
    with torch.no_grad():
        base.network.weights[-1].mul_(0.05)
        base.network.biases[-1].mul_(0.05)
    stream = torch.Generator().manual_seed(1)
    shown, noise = torch.rand(6, 2, generator=stream), 0.02 * torch.randn(6, 3, 2, generator=stream)
    beta = base.beta
    alpha, kept = 1 - beta, torch.cumprod(1 - beta, 0)
    x = noise[:, 0]
    with torch.no_grad():
        for t in (2, 1, 0):
            said = base.network(torch.cat([shown, x, torch.full((6, 1), t / 3)], -1)).squeeze(-2)
            clean = (x - (1 - kept[t]).sqrt() * said) / kept[t].sqrt()
            assert float(clean.abs().max()) < 1
            x = (x - beta[t] / (1 - kept[t]).sqrt() * said) / alpha[t].sqrt()
            if t:
                x = x + (beta[t] * (1 - kept[t - 1]) / (1 - kept[t])).sqrt() * noise[:, t]
        torch.testing.assert_close(base.sample(shown, noise), x, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- the choice


def test_log_density_of_an_edit_is_the_cards() -> None:
    half = torch.tensor([0.5])
    assert float(squashed_logprob(half, half, torch.zeros(1))) == pytest.approx(-0.803710, abs=1e-6)
    edit = loop_of(radius="0.1").run_state.models["edit"]
    stream = torch.Generator().manual_seed(0)
    found, _ = edit.sample(torch.zeros(99, 2), torch.zeros(99, 2), 9 * torch.randn(99, 2, generator=stream))
    assert float(found.abs().max()) == pytest.approx(0.1)


def proposals(loop: Any, candidates: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations `[6, 2]`, noise of the choice, base actions `[6, N, 2]`, and the critics' means `[6, N]`."""
    models, stream = loop.run_state.models, torch.Generator().manual_seed(1)
    shown = torch.rand(6, 2, generator=stream)
    noise = torch.randn(6, *noise_shape(models, candidates), generator=stream)
    repeated = shown.unsqueeze(1).expand(6, candidates, 2)
    base = models["base"].propose(repeated, noise[..., :-2])
    return shown, noise, base, models["q"](repeated, base).mean(-1)


def test_with_radius_0_it_is_the_best_of_the_base_actions() -> None:
    loop = loop_of(radius="0")
    shown, noise, base, values = proposals(loop)
    found = best_action(loop.run_state.models, shown, noise, "q")
    torch.testing.assert_close(found, base[torch.arange(6), values.argmax(1)])
    assert len(values.argmax(1).unique()) > 1
    shown, noise, base, _ = proposals(loop, 1)
    torch.testing.assert_close(best_action(loop.run_state.models, shown, noise, "q"), base[:, 0])


def test_what_is_chosen_is_never_worse_than_a_base_action() -> None:
    loop = loop_of(radius="0.5")
    shown, noise, _, values = proposals(loop)
    models = loop.run_state.models
    chosen = best_action(models, shown, noise, "q")
    gained = models["q"](shown, chosen).mean(-1) - values.amax(1)
    assert float(gained.min()) >= -1e-6 and float(gained.max()) > 1e-4
    assert float(chosen.abs().max()) <= 1


@pytest.mark.parametrize("follows", ["best", "base"])
def test_targets_are_of_the_same_choice(follows: str) -> None:
    loop = loop_of(radius="0.5")
    models, context = loop.run_state.models, loop.context
    loop.run_state.flat["q"].vector.data.mul_(2)  # the critics are not their slow copies
    context.iteration = 1
    stream = torch.Generator().manual_seed(2)
    batch = Experience(
        {
            "next_observation": torch.rand(5, 1, 2, generator=stream),
            "reward": torch.rand(5, 1, generator=stream),
            "discount": torch.tensor([[0.99], [0.99], [0.0], [0.99], [0.99]]),
        }
    )
    part = OnTheFlyTarget(candidates=3, follows=follows, subset=3)  # type: ignore[arg-type]
    found = part.apply(batch, See(models, context, "x"))["value_target"]
    noise = torch.randn(5, 1, *noise_shape(models, 3), generator=context.generator("x"))
    for row in range(5):
        shown = batch["next_observation"][row, 0]
        if follows == "best":
            action = best_action(models, shown, noise[row, 0], "q_target")
        else:
            action = models["base"].propose(shown, noise[row, 0, 0, :-2])
        value = models["q_target"](shown, action).amin()
        expected = batch["reward"][row, 0] + batch["discount"][row, 0] * value
        torch.testing.assert_close(found[row, 0], expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_each_loss_belongs_to_its_model() -> None:
    loop = loop_of(optimizer_steps="0")
    before = weights_of(loop)
    loop.iterate()
    assert all(not torch.equal(before[name], now) for name, now in weights_of(loop).items())
    assert not any(p.requires_grad for m in loop.run_state.models.values() for p in m.parameters())
    for name in ("base", "edit", "q", "temperature"):
        still = loop_of(
            optimizer_steps="0",
            **{f"{n}.learning_rate": "0" for n in ("base", "edit", "q", "temperature") if n != name},
        )
        before = weights_of(still)
        still.iterate()
        moved = {n for n, now in weights_of(still).items() if not torch.equal(before[n], now)}
        assert moved == {name}


def test_the_base_policy_imitates_before_anything_is_collected() -> None:
    loop = loop_of()
    before = weights_of(loop)
    loop.iterate()
    assert (loop.context.spent.updates, loop.context.spent.steps) == (20, 0)
    assert {n for n, now in weights_of(loop).items() if not torch.equal(before[n], now)} == {"base"}
    loop.iterate()
    assert loop.context.spent.steps == 10  # 10 more batches before


def test_the_entropy_of_edits_goes_to_minus_half_a_nat_a_number() -> None:
    batch = Experience({"action": torch.zeros(1, 1, 2), "sampled_logprob": torch.tensor([[1.0]])})
    assert float(EditEntropy().loss({"log_number": torch.ones(1)}, batch)) == 0
    assert float(EditEntropy(target_entropy=-2.0).loss({"log_number": torch.ones(1)}, batch)) == 1


def test_edits_get_beyond_what_the_data_show() -> None:
    """0.32 is earned at the nearest mode, and by the best step of the data 0.80; 1 is the most that there is."""
    sizes = {"turns": "100", "optimizer_steps": "300", "batch_size": "32", "hidden": "32x32", "learning_rate": "1e-3"}
    more = {"learning_starts": "50", "initial": "0.05", "base.learning_rate": "3e-3", "gradient_steps": "2"}
    more |= {"candidates": "8"}
    config = dataclasses.replace(
        config_of("expo+binned-policy", {**sizes, **more}, "eight-modes", "steps=400"), eval_episodes=40
    )
    reached(make_loop(config)[0].run()["eval/return"], 0.5)


def test_it_composes_with_parts_for_replay_buffers() -> None:
    recipe = catalogue.build("expo+n-step+prioritised", {"candidates": "2", "radius": "0.1"})
    replay = recipe.sources["replay"]
    assert isinstance(replay, Replay) and (replay.n_step, replay.priority_exponent) == (3, 0.6)
    values = recipe.hyperparameters()
    assert values["act-on-the-fly.candidates"] == values["on-the-fly-target.candidates"] == 2
    loop_of("expo+n-step+prioritised").iterate()


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of("expo", SMALL), tmp_path / "whole").run()
    stopped_after(start_run(config_of("expo", SMALL), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
    ends = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "checkpoints").glob("*4/**/*.safetensors")}
        for name in ("half", "whole")
    ]
    assert ends[0].keys() >= {"base.safetensors", "edit.safetensors", "q.safetensors"} and ends[0] == ends[1]
