"""SAC, TD3, DQN: the card's numbers, updates against plain torch loops, learning, resuming, composition, bad input."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from conftest import SEED, reached, read_records
from polyrl import catalogue, kernels
from polyrl.core.experience import Experience
from polyrl.core.update import Again, Move, Repeat, Sample, Update
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.methods.control.dqn import double_target
from polyrl.models.base import Copy, Interface, Models
from polyrl.models.critics import DiscreteQNetwork, QNetwork, dueling_values
from polyrl.models.networks import StackedMlp
from polyrl.models.policies import RandomActor, SquashedGaussian, SquashedGaussianPolicy
from polyrl.models.scalar import PositiveScalar
from polyrl.models.squashed import squashed_logprob
from polyrl.parts.exploring import EpsilonGreedy, exploration
from polyrl.parts.replayed import NextObservation, SoftTarget, SoftValue, SquaredTD, StepAndKeep, soft_target
from polyrl.recipe import Recipe
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
SMALL = {"hidden": "32x32", "batch_size": "32"}


def config_of(method: str, task: str = "Pendulum-v1", **settings: Any) -> RunConfig:
    fields = {"budget": "iterations=2", "evaluations": 1, "eval_episodes": 2, "tensorboard": False, "seed": SEED}
    options = {k: settings.pop(k) for k in [*settings] if k in RunConfig.__dataclass_fields__}
    values = {k: str(v) for k, v in settings.items()}
    return RunConfig(method=method, task=task, hyperparameters=values, **{**fields, **options})  # type: ignore[arg-type]


def loop_of(method: str, task: str = "Pendulum-v1", **settings: Any) -> Any:
    return make_loop(config_of(method, task, **settings))[0]


# ------------------------------------------------------------------------------------------------- numbers by hand


def test_numbers_of_the_card() -> None:
    half, zero = torch.tensor([0.5]), torch.zeros(1)
    assert float(squashed_logprob(half, half, zero)) == pytest.approx(-0.8037095, abs=1e-6)
    target = soft_target(*map(torch.tensor, (1.0, 0.99, 2.0, -1.5, 0.2)))
    assert float(target) == pytest.approx(3.277, abs=1e-6)
    values, theirs = torch.tensor([3.0, 5.0]), torch.tensor([2.0, 1.0])
    assert float(double_target(torch.tensor(1.0), torch.tensor(0.9), values, theirs)) == pytest.approx(1.9)
    assert dueling_values(torch.tensor([1.0]), torch.tensor([2.0, 0.0, 1.0]))[0] == pytest.approx(2)


def test_the_least_of_two_critics_with_errors_of_their_own_is_too_low() -> None:
    errors = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0))
    assert float(errors.amin(-1).mean()) == pytest.approx(-0.5641896, abs=0.005)


def test_log_densities_far_from_zero_are_exact() -> None:
    before = torch.tensor([[-12.0], [0.3], [9.0]])
    found = squashed_logprob(before, before, torch.zeros(3, 1))
    exact = before.double()
    wanted = -0.5 * exact**2 - 0.5 * math.log(2 * math.pi) - torch.log(4 / (exact.exp() + (-exact).exp()) ** 2)
    torch.testing.assert_close(found.double(), wanted[:, 0], rtol=1e-6, atol=1e-5)
    policy = SquashedGaussian(hidden="8").make(pendulum(), torch.Generator().manual_seed(1))
    observation = torch.randn(5, 3)
    action, logprob = policy.sample(observation, 0.3 * torch.randn(5, 1))
    torch.testing.assert_close(policy.logprob(observation, action), logprob, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(policy.logprob(observation, torch.ones(5, 1))).all()


def test_a_density_between_bounds_integrates_to_one() -> None:
    policy = SquashedGaussian(hidden="8").make(pendulum(), torch.Generator().manual_seed(1))
    edges = torch.linspace(-1, 1, 20_001)
    middle = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    observation = torch.tensor([[0.3, -1.0, 2.0]]).expand(len(middle), 3)
    assert float(policy.logprob(observation, middle).exp().sum() * 1e-4) == pytest.approx(1, abs=1e-3)


def test_moves_of_the_card() -> None:
    models = Models({"q": QNetwork(hidden="4"), "q_target": Copy("q")}, pendulum(), 0)
    vector, copied = models.flat["q"].vector, models.flat["q_target"].vector
    assert torch.equal(vector, copied) and vector.data_ptr() != copied.data_ptr()
    copied.data.fill_(1)
    vector.data.fill_(3)
    models.move("q_target", "q", 0.005)
    assert bool((copied == 1.01).all())
    models.move("q_target", "q", -0.3)
    torch.testing.assert_close(copied.data, torch.full_like(copied, 1.01 - 0.3 * 1.99))
    models.move("q_target", "q", 1)
    assert torch.equal(copied, vector)


# ------------------------------------------------------------------------------------------------------- networks


def pendulum() -> Interface:
    return Interface("Pendulum-v1", 3, np.ones(3, dtype=bool), spaces.Box(-2, 2, (1,), np.float32))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("members", "hidden"), [(1, (8, 6)), (2, (8, 6)), (5, (8, 6)), (2, (20, 40))])
def test_networks_in_one_function_are_separate_networks(
    monkeypatch: pytest.MonkeyPatch, activation: Any, members: int, hidden: tuple[int, ...]
) -> None:
    stream = torch.Generator().manual_seed(2)
    network = StackedMlp(4, hidden, 3, members=members, activation=activation, generator=stream)
    x = torch.randn(7, 4, generator=stream)
    weight = torch.randn(7, members, 3, generator=stream)
    gradients = []
    for fast in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", fast)
        network.zero_grad()
        given = x.clone().requires_grad_()
        out = network(given)
        (out * weight).sum().backward()
        gradients.append([out.detach(), given.grad, *(p.grad.clone() for p in network.parameters())])
    for fast_one, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast_one, plain, rtol=1e-5, atol=1e-6)
    act = torch.relu if activation == "relu" else torch.tanh
    for k in range(members):
        h = x
        for layer, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
            h = h @ w[k] + b[k]
            h = act(h) if layer < 2 else h
        torch.testing.assert_close(network(x)[:, k], h, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(network(x)[:, k], h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(x, slice(1)), network(x)[:, :1])
    some = torch.tensor([members - 1, 0])[:members]
    torch.testing.assert_close(network(x, some), network(x)[:, some])


@pytest.mark.parametrize("rows", [[0, 3], [], [0, 1, 2, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_rows_without_a_slope_are_left_out_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, rows: list[int]
) -> None:
    stream = torch.Generator().manual_seed(2)
    network = StackedMlp(4, (20, 40), 3, members=2, generator=stream).requires_grad_(False)
    x, weight = torch.randn(7, 4, generator=stream), torch.randn(7, 2, 3, generator=stream)
    weight[[i for i in range(7) if i not in rows], 1] = 0  # of the second network
    gradients = []
    for fast in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", fast)
        given = x.clone().requires_grad_()
        (network(given) * weight).sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_nothing_is_computed_for_models_that_an_update_does_not_train() -> None:
    loop = loop_of("sac", turns=12, random_steps=4, learning_starts=8, **SMALL)
    before = {name: flat.vector.detach().clone() for name, flat in loop.run_state.models.flat.items()}
    loop.iterate()
    for name, flat in loop.run_state.models.flat.items():
        assert not torch.equal(before[name], flat.vector), name
        assert not any(p.requires_grad for p in loop.run_state.models[name].parameters())
    assert not loop.run_state.models.flat["q_target"].vector.grad.any()


def test_one_model_more_changes_no_other() -> None:
    alone = Models({"policy": SquashedGaussian(hidden="8")}, pendulum(), 3)
    beside = Models({"q": QNetwork(hidden="8"), "policy": SquashedGaussian(hidden="8")}, pendulum(), 3)
    assert torch.equal(alone.flat["policy"].vector, beside.flat["policy"].vector)
    other = Models({"policy": SquashedGaussian(hidden="8")}, pendulum(), 4)
    assert not torch.equal(alone.flat["policy"].vector, other.flat["policy"].vector)


# ------------------------------------------------------------------------------------ updates against plain loops


class Plain:
    """Networks of plain linear layers with the weights of a run's, each with torch's own Adam."""

    def __init__(self, loop: Any):
        self.networks: dict[str, list[nn.Sequential]] = {}
        self.adams: dict[str, torch.optim.Adam] = {}
        for name, module in loop.run_state.models.items():
            if name == "temperature":
                self.log_alpha = module.log.detach().clone().requires_grad_()
                self.adams[name] = torch.optim.Adam(
                    [self.log_alpha], lr=loop.run_state.models.entries[name].learning_rate
                )
                continue
            self.networks[name] = [plain_layers(module.network, k) for k in range(module.network.members)]
            entry = loop.run_state.models.entries[name]
            if not entry.copied:
                parameters = [p for n in self.networks[name] for p in n.parameters()]
                self.adams[name] = torch.optim.Adam(parameters, lr=entry.learning_rate)

    def q(self, name: str, observation: Tensor, action: Tensor) -> list[Tensor]:
        return [n(torch.cat([observation, action], -1))[:, 0] for n in self.networks[name]]

    def step(self, name: str, loss: Tensor) -> None:
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()

    def polyak(self, target: str, towards: str, tau: float) -> None:
        with torch.no_grad():
            for ours, theirs in zip(self.networks[target], self.networks[towards], strict=True):
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    a.copy_((1 - tau) * a + tau * b)

    def check(self, loop: Any) -> None:
        for name, networks in self.networks.items():
            for k, network in enumerate(networks):
                for mine, theirs in zip(
                    plain_layers(loop.run_state.models[name].network, k).parameters(), network.parameters(), strict=True
                ):
                    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def plain_layers(network: StackedMlp, k: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        layer = nn.Linear(weight.shape[1], weight.shape[2])
        layer.weight.data, layer.bias.data = weight.data[k].T.clone(), bias.data[k].clone()
        layers += [layer] if i == len(network.weights) - 1 else [layer, nn.ReLU()]
    return nn.Sequential(*layers)


def sampled(loop: Any, turns: int) -> Iterator[tuple[dict[str, Tensor], torch.Generator]]:
    """The rows that an update drew in each turn of an iteration, and its stream after that."""
    rows = loop.context.sources["replay"]
    drawn = rows.sample

    def sample(count: int, stream: torch.Generator) -> Any:
        found = drawn(count, stream)
        taken.append(({n: found[n][:, 0] for n in found.fields()}, clone(stream)))
        return found

    taken: list[tuple[dict[str, Tensor], torch.Generator]] = []
    rows.sample = sample
    loop.iterate()
    assert len(taken) >= turns
    yield from taken


def clone(stream: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(stream.get_state())


def test_sac_is_its_plain_loop() -> None:
    loop = loop_of("sac", turns=40, random_steps=10, learning_starts=20, learning_rate=3e-3, **SMALL)
    plain = Plain(loop)
    first = 0
    for number, (rows, stream) in enumerate(sampled(loop, 20)):
        turn = 40 - 21 + number  # the buffer is ready with the 20th step
        first = first or turn
        alpha = plain.log_alpha.detach().exp()

        def sample(observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_std = plain.networks["policy"][0](observation).chunk(2, -1)
            std = log_std.clamp(-20, 2).exp()
            u = mean + std * noise
            normal = torch.distributions.Normal(mean, std)
            return u.tanh(), (normal.log_prob(u) - torch.log(1 - u.tanh() ** 2 + 1e-9)).sum(-1)

        with torch.no_grad():
            action, logprob = sample(rows["next_observation"], torch.randn(32, 1, 1, generator=stream)[:, 0])
            least = torch.minimum(*plain.q("q_target", rows["next_observation"], action))
            target = rows["reward"] + rows["discount"] * (least - alpha * logprob)
        errors = [(q - target) ** 2 / 2 for q in plain.q("q", rows["observation"], rows["action"])]
        plain.step("q", (errors[0] + errors[1]).mean())
        noise = torch.randn(32, 1, 1, generator=loop_stream(loop, "policy-update", turn))[:, 0]
        action, logprob = sample(rows["observation"], noise)
        least = torch.minimum(*plain.q("q", rows["observation"], action))
        plain.step("policy", (alpha * logprob - least).mean())
        plain.step("temperature", -(plain.log_alpha * (logprob.detach() - 1)).mean())
        plain.polyak("q_target", "q", 0.005)
    plain.check(loop)
    torch.testing.assert_close(
        loop.run_state.models["temperature"].log.detach(), plain.log_alpha.detach(), rtol=1e-5, atol=1e-6
    )


def loop_stream(loop: Any, name: str, turn: int) -> torch.Generator:
    loop.context.turn = turn
    return loop.context.generator(name)  # type: ignore[no-any-return]


def test_td3_is_its_plain_loop() -> None:
    loop = loop_of("td3", turns=40, random_steps=10, learning_starts=20, **SMALL)
    plain = Plain(loop)

    def acts(name: str, observation: Tensor) -> Tensor:
        return plain.networks[name][0](observation).tanh()

    for number, (rows, stream) in enumerate(sampled(loop, 20)):
        with torch.no_grad():
            noise = (0.2 * torch.randn(32, 1, 1, generator=stream)[:, 0]).clamp(-0.5, 0.5)
            action = (acts("policy_target", rows["next_observation"]) + noise).clamp(-1, 1)
            least = torch.minimum(*plain.q("q_target", rows["next_observation"], action))
            target = rows["reward"] + rows["discount"] * least
        errors = [(q - target) ** 2 / 2 for q in plain.q("q", rows["observation"], rows["action"])]
        plain.step("q", (errors[0] + errors[1]).mean())
        turn = 19 + number
        if (turn + 1) % 2 == 0:
            value = plain.q("q", rows["observation"], acts("policy", rows["observation"]))[0]
            plain.step("policy", -value.mean())
            plain.polyak("q_target", "q", 0.005)
            plain.polyak("policy_target", "policy", 0.005)
    plain.check(loop)


@pytest.mark.parametrize(("double", "clip"), [("true", 10.0), ("false", 10.0), ("true", 0.05)])
def test_dqn_is_its_plain_loop(double: str, clip: float) -> None:
    loop = loop_of(
        "dqn",
        "CartPole-v1",
        turns=8,
        steps_per_environment=10,
        learning_starts=20,
        gradient_steps=5,
        double=double,
        **{**SMALL, "q-target-move.every": "3", "q.max_grad_norm": str(clip)},
    )
    plain = Plain(loop)
    network, target_network = plain.networks["q"][0], plain.networks["q_target"]
    for number, (rows, _) in enumerate(sampled(loop, 35)):
        with torch.no_grad():
            theirs = target_network[0](rows["next_observation"])
            chosen = (network(rows["next_observation"]) if double == "true" else theirs).argmax(-1)
            target = rows["reward"] + rows["discount"] * theirs[torch.arange(32), chosen]
        value = network(rows["observation"])[torch.arange(32), rows["action"]]
        loss = nn.functional.smooth_l1_loss(value, target)
        plain.adams["q"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        plain.adams["q"].step()
        turn, repeat = divmod(number, 5)
        if repeat == 4 and (turn + 1 + 1) % 3 == 0:  # the first turn only fills the buffer
            plain.networks["q_target"][0] = copy.deepcopy(network)
    plain.check(loop)


# ------------------------------------------------------------------------------------------------------- learning


class Follow(gymnasium.Env[np.ndarray, Any]):
    """Say the number that is shown, or, where there are two actions, its sign."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, *, discrete: bool = False):
        self.discrete = discrete
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 5
        return self.show(), {}

    def show(self) -> np.ndarray:
        self.shown = self.np_random.uniform(-1, 1)
        return np.float32([self.shown])

    def step(self, action: Any) -> Any:
        if self.discrete:
            reward = 0.0 if (action == 1) == (self.shown > 0) else -1.0
        else:
            reward = -float((action[0] - self.shown) ** 2)
        self.left -= 1
        return self.show(), reward, False, self.left == 0, {}


def follow(discrete: bool = False) -> Follow:
    return Follow(discrete=discrete)


LEARNS: dict[str, Any] = {
    **{"turns": 100, "random_steps": 100, "learning_starts": 100, "eval_episodes": 40, "budget": "steps=700"},
    **{"learning_rate": 3e-3, "hidden": "32x32", "batch_size": 64},
}


@pytest.mark.parametrize("method", ["sac", "td3", "sac+n-step", "td3+prioritised"])
def test_continuous_actions_are_learned(method: str) -> None:
    loop = make_loop(config_of(method, "mine", **LEARNS), given=PythonObjects(environment=follow))[0]
    reached(loop.run()["eval/return"], -0.8)  # five steps: -1.7 for the middle; -0.27 to 0 with three seeds


@pytest.mark.parametrize("method", ["dqn", "dqn+prioritised", "dqn+n-step"])
def test_a_few_actions_are_learned(method: str) -> None:
    settings = {**LEARNS, "turns": 10, "steps_per_environment": 10, "gradient_steps": 10, "exploration_fraction": 0.5}
    del settings["random_steps"]
    loop = make_loop(config_of(method, "mine", **settings), given=PythonObjects(environment=lambda: follow(True)))[0]
    reached(loop.run()["eval/return"], -0.6)  # five steps: -2.5 by guessing; -0.08 to 0 with three seeds


# ------------------------------------------------------------------------------------------------- the same again


def run_of(folder: Path, method: str, task: str, budget: str, **settings: Any) -> list[dict[str, Any]]:
    config = config_of(method, task, budget=budget, checkpoint_every=1, **settings)
    start_run(config, folder, overwrite=True).run()
    return comparable(folder)


def comparable(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in record.items() if not k.startswith("seconds") and "per_second" not in k}
        for record in read_records(folder)
    ]


CASES = [
    ("sac", "Pendulum-v1", {"random_steps": 30, "learning_starts": 90, "turns": 120}),
    ("td3+prioritised", "Pendulum-v1", {"random_steps": 30, "learning_starts": 90, "turns": 120}),
    ("dqn+n-step", "CartPole-v1", {"gradient_steps": 4, "capacity": 1500}),
]


@pytest.mark.parametrize(("method", "task", "settings"), CASES)
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(
    tmp_path: Path, method: str, task: str, settings: dict[str, Any]
) -> None:
    whole = run_of(tmp_path / "whole", method, task, "iterations=3", **SMALL, **settings)
    half = tmp_path / "half"
    loop = start_run(config_of(method, task, budget="iterations=3", checkpoint_every=1, **SMALL, **settings), half)
    iterate, count = loop.iterate, 0

    def stops(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return iterate(*given)

    loop.iterate = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    resume_run(half).run()
    assert comparable(half) == whole and len(whole) == 4
    models = [sorted((tmp_path / name / "model").glob("*.safetensors")) for name in ("whole", "half")]
    assert [p.name for p in models[0]] == [p.name for p in models[1]]
    for one, other in zip(*models, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_without_fast_paths_the_numbers_are_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fast in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", fast)
        loop = loop_of("sac", turns=60, random_steps=20, learning_starts=30, **SMALL)
        loop.iterate()
        found.append({name: flat.vector.detach().clone() for name, flat in loop.run_state.models.flat.items()})
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- acting


def test_what_is_stored_is_between_bounds_and_what_the_environment_gets_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    given: list[float] = []
    step = PendulumEnv.step
    monkeypatch.setattr(PendulumEnv, "step", lambda self, u: (given.append(float(u[0])), step(self, u))[1])
    loop = loop_of("sac", turns=30, random_steps=15, **SMALL)
    loop.iterate()
    stored = loop.context.sources["replay"].arrays["action"][:30].reshape(-1)
    assert given == pytest.approx((2 * stored).tolist(), abs=1e-6)
    assert abs(stored).max() <= 1 and len(set(stored[:15].tolist())) == 15


def test_random_actions_fill_the_bounds() -> None:
    actor = RandomActor(spaces.Box(np.float32([-1, 10]), np.float32([3, 20])))
    drawn = actor.execute(actor.noise(2000, 1, torch.Generator().manual_seed(0))[:, 0])  # type: ignore[misc]
    np.testing.assert_allclose(drawn.min(0), [-1, 10], atol=0.02)
    np.testing.assert_allclose(drawn.max(0), [3, 20], atol=0.05)


def test_epsilon_greedy_explores_its_share() -> None:
    loop = loop_of("dqn", "CartPole-v1", **SMALL)
    actor = loop.run_state.actor
    assert isinstance(actor, EpsilonGreedy)
    actor.epsilon = 0.3
    noise = actor.noise(20_000, 1, torch.Generator().manual_seed(0))
    assert float((noise >= 0).mean()) == pytest.approx(0.3, abs=0.01)
    assert float((noise[noise >= 0] < 0.5).mean()) == pytest.approx(0.5, abs=0.02)
    assert [exploration(p, 0.5, 1.0, 0.1) for p in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert exploration(0.0, 0.0, 1.0, 0.1) == pytest.approx(0.1)


def test_the_fast_actors_do_what_the_networks_say() -> None:
    policy = SquashedGaussian(hidden="8x8").make(pendulum(), torch.Generator().manual_seed(1))
    assert isinstance(policy, SquashedGaussianPolicy)
    from polyrl.models.actor import Moment

    seen, noise = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), np.float32([[0.5]] * 6)
    play = policy.actor().player()
    none = np.zeros(6, dtype=bool)
    action, _ = policy.sample(torch.from_numpy(seen), torch.from_numpy(noise))
    np.testing.assert_allclose(play(Moment(seen, seen.astype(float), none, noise)), action.detach(), atol=1e-6)
    mode = torch.tanh(policy.distribution(torch.from_numpy(seen))[0])
    np.testing.assert_allclose(play(Moment(seen, seen.astype(float), none)), mode.detach(), atol=1e-6)


def test_what_follows_a_time_limit_is_what_was_seen_then() -> None:
    shown = torch.arange(4.0).reshape(1, 4, 1)
    cut = torch.tensor([[False, True, False, True]])
    final = torch.tensor([0.0, 70.0, 0.0, 90.0]).reshape(1, 4, 1)
    given = Experience({"observation": shown, "final_observation": final, "truncated": cut})
    found = NextObservation()(given, None)["next_observation"]  # type: ignore[arg-type]
    assert found.flatten().tolist() == [1, 70, 3, 90]


# ----------------------------------------------------------------------------------------------------- composition


def test_changes_of_the_buffer_are_what_they_say() -> None:
    replay = catalogue.build("sac+n-step(n_step=5)+prioritised(priority_exponent=0.7)").sources["replay"]
    assert isinstance(replay, Replay)
    assert (replay.n_step, replay.priority_exponent, replay.importance_exponent) == (5, 0.7, 0.4)
    assert catalogue.build("sac", {"n_step": "2", "replay.gamma": "0.9"}).sources["replay"].gamma == 0.9  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="ppo has no replay buffer, so there is nothing that 'n-step' could change"):
        catalogue.build("ppo+n-step", domain="control")


def test_hyperparameters_of_one_model_are_set_by_its_name() -> None:
    recipe = catalogue.build("sac", {"learning_rate": "1e-3", "q.learning_rate": "2e-3", "q-target-move.tau": "0.1"})
    rates = {name: recipe.hyperparameters()[f"{name}.learning_rate"] for name in ("policy", "q", "temperature")}
    assert rates == {"policy": 1e-3, "q": 2e-3, "temperature": 1e-3}
    assert recipe.hyperparameters()["q-target-move.tau"] == 0.1


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_gradient_steps_are_an_option_that_changes_nothing_at_1(method: str) -> None:
    settings = {"turns": 20, "random_steps": 10, "learning_starts": 15, **SMALL}
    loop, many = loop_of(method, **settings), loop_of(method, **settings, gradient_steps=3)
    recipe = loop.recipe
    (repeat,) = recipe.updates
    assert isinstance(repeat, Repeat) and recipe.hyperparameters()["repeat.gradient_steps"] == 1
    flat = dataclasses.replace(recipe, updates=repeat.of)
    plain = make_loop(config_of("mine", **{}), given=PythonObjects(recipe=flat.check()))[0]
    for run in (loop, plain, many):
        run.iterate()
    for name in ("policy", "q", "q_target"):
        assert torch.equal(loop.run_state.models.flat[name].vector, plain.run_state.models.flat[name].vector), name
    critics = {run.context.optimizer["q"].moments["step"].item() for run in (loop, plain)}
    assert critics == {6} and many.context.optimizer["q"].moments["step"].item() == 18


BROKEN: list[tuple[str, Callable[[], Recipe], str]] = [
    (
        "wants",
        lambda: off_policy(Update("policy", (SquaredTD(),), Sample("replay"), credit=(SoftTarget(),))),
        "the term 'squared-td' wants the output 'q' of the model 'policy', which gives",
    ),
    (
        "model",
        lambda: off_policy(Update("critic", (SquaredTD(),), Sample("replay"))),
        "'critic-update' names the model 'critic', which the recipe does not state; it has policy, q",
    ),
    (
        "source",
        lambda: off_policy(Update("q", (SquaredTD(),), Sample("data"), credit=(SoftTarget(),))),
        "'q-update' names the source 'data', which the recipe does not state; it has replay",
    ),
    (
        "field",
        lambda: off_policy(Update("q", (SquaredTD(),), Sample("replay"))),
        "part 'squared-td' of the q-update needs the field 'value_target', which its batch does not have",
    ),
    (
        "move",
        lambda: off_policy(Move("q_old", "q")),
        "'q-old-move' names the model 'q_old', which the recipe does not state",
    ),
    (
        "repeated",
        lambda: off_policy(Repeat(2, (Update("q", (SquaredTD(),), Again()),))),
        "needs the field 'value_target'",
    ),
]


def off_policy(*steps: Any) -> Recipe:
    return Recipe(
        name="mine",
        models={
            "policy": SquashedGaussian(),
            "q": QNetwork(),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(),
        },
        collect=StepAndKeep(),
        sources={"replay": Replay()},
        updates=(*steps, Update("policy", (SoftValue(),), Sample("replay"))),
    )


@pytest.mark.parametrize(("make", "told"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_lists_that_do_not_hold_together_are_refused(make: Callable[[], Recipe], told: str) -> None:
    with pytest.raises(UserError) as error:
        make().check()
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("method", "task", "told"),
    [
        (
            "sac",
            "CartPole-v1",
            "acts by continuous numbers between bounds, and the actions of CartPole-v1 are Discrete",
        ),
        ("dqn", "Pendulum-v1", "chooses one of a few actions, and the actions of Pendulum-v1 are Box"),
    ],
)
def test_actions_of_another_kind_are_refused(method: str, task: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        loop_of(method, task)


def test_a_loss_that_is_not_finite_names_its_model_and_term() -> None:
    loop = loop_of("sac", turns=30, random_steps=10, learning_starts=20, **SMALL)
    loop.context.sources["replay"].take = poisoned(loop.context.sources["replay"].take)
    with pytest.raises(UserError, match=r"The loss of term 'squared-td' of the model 'q' became nan in iteration 1"):
        loop.iterate()


def poisoned(take: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda experience: take(experience.with_fields(reward=experience["reward"] * torch.nan))


def test_a_value_that_nobody_gives_is_found_in_dueling_networks_too() -> None:
    network = DiscreteQNetwork(hidden="8", dueling=True).make(
        Interface("x", 2, np.ones(2, dtype=bool), spaces.Discrete(3)), torch.Generator().manual_seed(0)
    )
    values = network(torch.randn(5, 2))
    raw = network.network(torch.zeros(1, 2)).squeeze(-2)
    assert values.shape == (5, 3) and raw.shape == (1, 4)
    torch.testing.assert_close(network(torch.zeros(1, 2)).mean(-1), raw[:, 0])
