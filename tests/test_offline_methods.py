"""bc, iql, cql, rlpd: the card's numbers, updates against plain torch loops, limits, learning, resuming."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from conftest import SEED, reached
from control_environments import pendulum_file
from polyrl import catalogue, kernels
from polyrl.core.update import Again, Draws, Move, Repeat, Sample, Update
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.methods.control import rlpd, sac
from polyrl.methods.control.cql import ConservativePenalty, log_sum_exp
from polyrl.methods.control.iql import advantage_weight, expectile_loss
from polyrl.methods.control.rlpd import SubsetTarget
from polyrl.models.base import Interface, Models
from polyrl.models.critics import QNetwork
from polyrl.models.policies import GaussianPolicy, SquashedGaussian, StochasticPolicy
from polyrl.parts.replayed import SoftTarget, SquaredTD
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from test_off_policy import Follow, Plain, clone, comparable, follow, loop_stream, pendulum, plain_layers
from test_transitions import stopped_after

torch.set_num_threads(1)
SMALL = {"hidden": "16x16", "batch_size": "32", "turns": "8"}


def config_of(method: str, data: Path, task: str = "Pendulum-v1", **settings: Any) -> RunConfig:
    fields: dict[str, Any] = {
        **{"budget": "iterations=2", "evaluations": 1, "eval_episodes": 1, "tensorboard": False, "seed": 3},
        **{k: settings.pop(k) for k in [*settings] if k in RunConfig.__dataclass_fields__},
    }
    values = {k: str(v) for k, v in {**SMALL, **settings}.items()}
    return RunConfig(method=method, task=task, dataset=str(data), hyperparameters=values, **fields)


def loop_of(method: str, data: Path, **settings: Any) -> Any:
    return make_loop(config_of(method, data, **settings))[0]


# ------------------------------------------------------------------------------------------------- numbers by hand


def test_numbers_of_the_card() -> None:
    assert expectile_loss(torch.tensor([2.0, -2.0]), 0.7).tolist() == pytest.approx([2.8, 1.2])
    assert float(advantage_weight(torch.tensor(0.5), 3.0, 100.0)) == pytest.approx(4.481689, abs=1e-6)
    assert advantage_weight(torch.tensor([2.0, -1e4]), 3.0, 100.0).tolist() == [100.0, 0.0]
    value = torch.tensor([[1.0], [0.0], [0.0]])  # three actions, each drawn with a third of the probability
    found = log_sum_exp(value, torch.full((3,), -math.log(3)))
    assert float(found - value[0]) == pytest.approx(0.5514447, abs=1e-6)


def test_an_expectile_is_where_its_loss_is_least() -> None:
    sample = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double()
    grid = torch.linspace(-1, 1.5, 2501).double()
    for tau in (0.5, 0.7, 0.9):
        losses = expectile_loss(sample[None] - grid[:, None], tau).mean(1)
        least = grid[losses.argmin()]
        # by definition: the mean of what lies above, weighed by tau, is that of what lies below, by 1 - tau
        above, below = (sample - least).clamp(min=0).mean(), (least - sample).clamp(min=0).mean()
        assert float(tau * above - (1 - tau) * below) == pytest.approx(0, abs=1e-3)
        if tau == 0.5:
            assert float(least) == pytest.approx(float(sample.mean()), abs=1e-3)
    error = torch.tensor([0.3, -4.0, 0.0])
    torch.testing.assert_close(expectile_loss(error, 0.5), error.square() / 2, rtol=0, atol=0)


def test_the_penalty_is_the_integral_of_exp_q() -> None:
    models = Models({"q": QNetwork(hidden="16"), "policy": SquashedGaussian(hidden="8")}, pendulum(), 0)
    observation = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(1))
    edges = torch.linspace(-1, 1, 4001)
    middle = ((edges[1:] + edges[:-1]) / 2).reshape(-1, 1, 1, 1)
    q = models["q"](observation.expand(4000, 1, 1, 3), middle)
    integral = (q.exp().sum(0) * (edges[1] - edges[0])).log()
    penalty = ConservativePenalty(sampled_actions=20_000)
    batch = {"observation": observation, "next_observation": 2 * observation, "action": torch.zeros(1, 1, 1)}
    action, logprob = penalty.proposed(batch, SeeOf(models))  # type: ignore[arg-type]
    assert action.shape == (60_000, 1, 1, 1) and float(action.abs().max()) < 1
    assert logprob[-1].item() == pytest.approx(-math.log(2))
    for part in torch.arange(60_000).chunk(3):  # each of the three densities estimates it by itself
        found = log_sum_exp(models["q"](observation.expand(len(part), 1, 1, 3), action[part]), logprob[part])
        torch.testing.assert_close(found, integral, rtol=0, atol=0.03)


class SeeOf:
    """Models and draws without a run."""

    def __init__(self, models: Any):
        self.models, self.generator = models, torch.Generator().manual_seed(5)
        self.draw = Draws(self.generator)

    def __getitem__(self, name: str) -> Any:
        return self.models[name]


class Numbered:
    """Ten critics, of which each values everything by its number."""

    def __init__(self) -> None:
        self.network = SimpleNamespace(members=10)

    def some(self, observation: Tensor, action: Tensor, members: Tensor) -> Tensor:
        return members.float().expand(*observation.shape[:-1], len(members))


def test_a_target_takes_the_least_of_two_critics_anew() -> None:
    see: Any = SeeOf({"q_target": Numbered()})

    def value(part: SubsetTarget) -> float:
        return float(part.value(torch.zeros(4, 1, 3), torch.zeros(4, 1, 1), see)[0, 0])

    seen = [value(SubsetTarget()) for _ in range(4000)]
    assert set(seen) == set(range(9))  # never the largest
    assert np.mean(seen) == pytest.approx(8 / 3, abs=0.2)  # mean of the least of two of ten numbers
    assert value(SubsetTarget(subset=10)) == value(SubsetTarget(subset=12)) == 0
    assert len({value(SubsetTarget(subset=1)) for _ in range(200)}) == 10


# ----------------------------------------------------------------------------------------------------------- models


def test_gaussian_policies_are_gaussians_around_their_mean() -> None:
    policy: Any = GaussianPolicy(hidden="8").make(pendulum(), torch.Generator().manual_seed(1))
    policy.log_std.data.fill_(-0.7)
    observation, action = torch.randn(5, 1, 3), torch.rand(5, 1, 1) * 2 - 1
    found = policy.outputs({"observation": observation, "action": action}, {"logprob", "mode"}, torch.randn)
    normal = torch.distributions.Normal(found["mode"], math.exp(-0.7))
    torch.testing.assert_close(found["logprob"], normal.log_prob(action).sum(-1))
    assert bool((found["mode"].abs() <= 1).all())
    said = policy.network(observation[:, 0]).squeeze(-2).detach().numpy()
    np.testing.assert_allclose(policy.mode(said), found["mode"][:, 0].detach(), atol=1e-6)
    noise = policy.noise((4000, 5), torch.Generator().manual_seed(0))
    explored = np.stack([policy.explore(said, one) for one in noise])
    assert abs(explored).max() == 1
    inside = np.clip(found["mode"][:, 0].detach().numpy() + math.exp(-0.7) * noise, -1, 1)
    np.testing.assert_allclose(explored, inside, atol=1e-6)


def test_policies_of_choices_give_probabilities() -> None:
    interface = Interface("x", 3, np.ones(3, dtype=bool), spaces.Discrete(4))
    policy: Any = StochasticPolicy(hidden="8").make(interface, torch.Generator().manual_seed(1))
    observation = torch.randn(6, 3)
    every = [
        policy.outputs({"observation": observation, "action": torch.full((6,), a)}, {"logprob"}, None) for a in range(4)
    ]
    probability = torch.stack([found["logprob"] for found in every], 1).exp()
    torch.testing.assert_close(probability.sum(1), torch.ones(6))
    said = policy.network(observation).squeeze(-2).detach().numpy()
    assert policy.mode(said).tolist() == probability.argmax(1).tolist()
    noise = policy.noise((20_000, 6), torch.Generator().manual_seed(0))
    drawn = np.stack([policy.explore(said, one) for one in noise])
    for a in range(4):
        np.testing.assert_allclose((drawn == a).mean(0), probability[:, a].detach(), atol=0.02)
    assert policy.actor().action_shape == () and policy.actor().execute is None


# ------------------------------------------------------------------------------------ updates against plain loops


def drawn(loop: Any, source: str = "data") -> Iterator[tuple[dict[str, Tensor], torch.Generator]]:
    """The rows of a source that an iteration drew, and the update's stream after each draw."""
    rows, taken = loop.context.sources[source], []
    sample = rows.sample

    def watched(count: int, stream: torch.Generator) -> Any:
        found = sample(count, stream)
        taken.append(({n: found[n][:, 0] for n in found.fields()}, clone(stream)))
        return found

    rows.sample = watched
    loop.iterate()
    yield from taken


def test_bc_is_its_plain_loop(tmp_path: Path) -> None:
    loop = loop_of("bc", pendulum_file(tmp_path), learning_rate=3e-3)
    plain = Plain(loop)
    log_std = loop.run_state.models["policy"].log_std.detach().clone().requires_grad_()
    network = plain.networks["policy"][0]
    adam = torch.optim.Adam([*network.parameters(), log_std], lr=3e-3)
    for rows, _ in drawn(loop):
        normal = torch.distributions.Normal(network(rows["observation"]).tanh(), log_std.exp())
        adam.zero_grad()
        (-normal.log_prob(rows["action"]).sum(-1).mean()).backward()
        adam.step()
    plain.check(loop)
    torch.testing.assert_close(loop.run_state.models["policy"].log_std.detach(), log_std.detach(), rtol=1e-5, atol=1e-6)
    assert loop.context.spent.updates == 8 and float(log_std.detach()) != 0


def test_bc_by_squared_error_is_its_plain_loop(tmp_path: Path) -> None:
    loop = loop_of("bc+deterministic", pendulum_file(tmp_path), learning_rate=3e-3)
    plain = Plain(loop)
    for rows, _ in drawn(loop):
        action = plain.networks["policy"][0](rows["observation"]).tanh()
        plain.step("policy", nn.functional.mse_loss(action, rows["action"]))
    plain.check(loop)
    with pytest.raises(UserError, match="iql imitates nobody, so there is nothing that 'deterministic' could change"):
        catalogue.build("iql+deterministic")


def test_bc_of_choices_is_its_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    held = {"observations": rng.normal(size=(60, 1)), "next_observations": rng.normal(size=(60, 1))}
    data = pendulum_file(tmp_path, actions=rng.integers(0, 2, 60), **held)
    loop = make_loop(config_of("bc", data, "mine"), given=PythonObjects(environment=lambda: follow(True)))[0]
    plain = Plain(loop)
    for rows, _ in drawn(loop):
        plain.step(
            "policy", nn.functional.cross_entropy(plain.networks["policy"][0](rows["observation"]), rows["action"])
        )
    plain.check(loop)


def test_iql_is_its_plain_loop(tmp_path: Path) -> None:
    loop = loop_of("iql", pendulum_file(tmp_path), learning_rate=3e-3, expectile=0.8, largest_weight=1.05)
    plain = Plain(loop)
    log_std = loop.run_state.models["policy"].log_std.detach().clone().requires_grad_()
    policy, value = plain.networks["policy"][0], plain.networks["value"][0]
    adam = torch.optim.Adam([*policy.parameters(), log_std], lr=3e-3)
    clipped = 0
    for rows, _ in drawn(loop):
        seen, action = rows["observation"], rows["action"]
        with torch.no_grad():
            least = torch.minimum(*plain.q("q_target", seen, action))
        error = least - value(seen)[:, 0]
        plain.step("value", ((error > 0) * 0.8 + (error <= 0) * 0.2).mul(error**2).mean())
        with torch.no_grad():
            weight = torch.exp(3.0 * (least - value(seen)[:, 0]))
            clipped += int((weight > 1.05).sum())
            target = rows["reward"] + rows["discount"] * value(rows["next_observation"])[:, 0]
        normal = torch.distributions.Normal(policy(seen).tanh(), log_std.exp())
        adam.zero_grad()
        (-(weight.clamp(max=1.05) * normal.log_prob(action).sum(-1)).mean()).backward()
        adam.step()
        errors = [(q - target) ** 2 / 2 for q in plain.q("q", seen, action)]
        plain.step("q", (errors[0] + errors[1]).mean())
        plain.polyak("q_target", "q", 0.005)
    assert 0 < clipped < 8 * 32
    plain.check(loop)


def squashed(network: nn.Module, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = network(observation).chunk(2, -1)
    u = mean + log_std.clamp(-20, 2).exp() * noise
    normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
    return u.tanh(), (normal.log_prob(u) - torch.log(1 - u.tanh() ** 2 + 1e-9)).sum(-1)


def test_cql_is_its_plain_loop(tmp_path: Path) -> None:
    loop = loop_of("cql", pendulum_file(tmp_path), learning_rate=3e-3, sampled_actions=3, conservative_weight=2.0)
    plain = Plain(loop)
    policy = plain.networks["policy"][0]
    for turn, (rows, stream) in enumerate(drawn(loop)):
        seen, after, alpha = rows["observation"], rows["next_observation"], plain.log_alpha.detach().exp()
        with torch.no_grad():
            action, logprob = squashed(policy, after, torch.randn(32, 1, 1, generator=stream)[:, 0])
            least = torch.minimum(*plain.q("q_target", after, action))
            target = rows["reward"] + rows["discount"] * (least - alpha * logprob)
            proposed = []
            for shown in (seen, after):
                noise = torch.randn(3, 32, 1, 1, generator=stream)[:, :, 0]
                proposed += [squashed(policy, shown, one) for one in noise]
            uniform = 2 * torch.rand(3, 32, 1, 1, generator=stream)[:, :, 0] - 1
            proposed += [(one, torch.full((32,), math.log(0.5))) for one in uniform]
        data = plain.q("q", seen, rows["action"])
        everywhere = [
            torch.stack([q[k] - logprob for q, logprob in ((plain.q("q", seen, a), p) for a, p in proposed)])
            for k in range(2)
        ]
        penalty = [everywhere[k].logsumexp(0) - math.log(9) - data[k] for k in range(2)]
        errors = [(q - target) ** 2 / 2 for q in data]
        plain.step("q", (errors[0] + errors[1] + 2.0 * (penalty[0] + penalty[1])).mean())
        noise = torch.randn(32, 1, 1, generator=loop_stream(loop, "policy-update", turn))[:, 0]
        action, logprob = squashed(policy, seen, noise)
        plain.step("policy", (alpha * logprob - torch.minimum(*plain.q("q", seen, action))).mean())
        plain.step("temperature", -(plain.log_alpha * (logprob.detach() - 1)).mean())
        plain.polyak("q_target", "q", 0.005)
    plain.check(loop)


ONLINE = {"random_steps": "4", "learning_starts": "5", "turns": "12", "gradient_steps": "3"}


def test_rlpd_is_its_plain_loop(tmp_path: Path) -> None:
    loop = loop_of("rlpd", pendulum_file(tmp_path), learning_rate=3e-3, layer_norm="false", critics=4, **ONLINE)
    plain, count = Plain(loop), 0
    policy = plain.networks["policy"][0]
    own: list[tuple[Any, torch.Generator]] = []
    replay = loop.context.sources["replay"]
    sample = replay.sample
    replay.sample = lambda n, stream: (found := sample(n, stream), own.append((found, clone(stream))))[0]
    for rows, _ in drawn(loop):
        turn, repeat = 4 + count // 3, count % 3  # the buffer is ready with the fifth step
        mine, stream = own[count]
        rows = {n: torch.cat([rows[n], mine[n][:, 0]]) for n in rows}
        assert len(rows["reward"]) == 32 and len(mine["reward"]) == 16
        alpha = plain.log_alpha.detach().exp()
        with torch.no_grad():
            noise = torch.randn(32, 1, 1, generator=stream)[:, 0]
            action, logprob = squashed(policy, rows["next_observation"], noise)
            chosen = torch.randperm(4, generator=stream)[:2].tolist()
            values = plain.q("q_target", rows["next_observation"], action)
            least = torch.minimum(*(values[k] for k in chosen))
            target = rows["reward"] + rows["discount"] * (least - alpha * logprob)
        plain.step("q", sum((q - target) ** 2 / 2 for q in plain.q("q", rows["observation"], rows["action"])).mean())
        plain.polyak("q_target", "q", 0.005)
        count += 1
        if repeat == 2:
            noise = torch.randn(32, 1, 1, generator=loop_stream(loop, "policy-update", turn))[:, 0]
            action, logprob = squashed(policy, rows["observation"], noise)
            mean = torch.stack(plain.q("q", rows["observation"], action)).mean(0)
            plain.step("policy", (alpha * logprob - mean).mean())
            plain.step("temperature", -(plain.log_alpha * (logprob.detach() - 1)).mean())
    assert count == 3 * 8
    plain.check(loop)


def test_layers_are_normalized_before_their_activation(tmp_path: Path) -> None:
    loop = loop_of("rlpd", pendulum_file(tmp_path), **ONLINE)
    network = loop.run_state.models["q"].network
    assert network.members == 10 and len(network.scales) == 2
    x = torch.randn(5, 4)
    for k in (0, 9):
        h = x
        for layer, linear in enumerate(m for m in plain_layers(network, k) if isinstance(m, nn.Linear)):
            h = linear(h)
            if layer < 2:
                h = nn.functional.layer_norm(h, h.shape[-1:], network.scales[layer][k], network.shifts[layer][k]).relu()
        torch.testing.assert_close(network(x)[:, k], h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(x, torch.tensor([9, 0])), network(x)[:, [9, 0]])


# ------------------------------------------------------------------------------------------------------------ limits


def vectors(loop: Any) -> dict[str, Tensor]:
    return {name: flat.vector.detach().clone() for name, flat in loop.run_state.models.flat.items()}


def same_bits(one: Any, other: Any) -> bool:
    a, b = vectors(one), vectors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_cql_without_its_penalty_is_sac_on_the_same_rows(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path)
    base = sac.recipe()
    first, *others = base.updates[0].of  # type: ignore[union-attr]
    offline = dataclasses.replace(
        base,
        collect=None,
        sources={"data": Transitions()},
        updates=(dataclasses.replace(first, batch=Sample("data", batch_size=256)), *others),
    )
    plain = make_loop(config_of("mine", data), given=PythonObjects(recipe=offline))[0]
    limit = loop_of("cql", data, conservative_weight=0, learning_rate=3e-4)
    other = loop_of("cql", data, learning_rate=3e-4)
    for loop in (plain, limit, other):
        loop.iterate()
    assert same_bits(plain, limit) and not same_bits(plain, other)
    composed = next(step for step in catalogue.build("sac+cql").update_steps() if isinstance(step, Update))
    assert [t.name for t in composed.terms] == ["squared-td", "conservative-penalty"]


def test_rlpd_without_data_is_sac_with_its_ensemble(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path)
    own = rlpd.recipe()
    td, move = own.updates[0].of  # type: ignore[union-attr]
    alone = dataclasses.replace(
        sac.recipe(),
        models=own.models,
        updates=(
            Repeat(20, (Update("q", (SquaredTD(),), Sample("replay"), credit=td.credit), move)),  # type: ignore[union-attr]
            Update("policy", own.updates[1].terms, Again()),  # type: ignore[union-attr]
            own.updates[2],
        ),
    )
    plain = make_loop(config_of("mine", data, **ONLINE), given=PythonObjects(recipe=alone), asked=False)[0]
    limit = loop_of("rlpd", data, share=0, **ONLINE)
    other = loop_of("rlpd", data, share=0.5, **ONLINE)
    for loop in (plain, limit, other):
        loop.iterate()
    assert same_bits(plain, limit) and not same_bits(plain, other)
    assert isinstance(td.credit[0], SoftTarget) and isinstance(move, Move)  # type: ignore[union-attr]


def test_iql_with_no_inverse_temperature_imitates(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path)
    limit = loop_of("iql", data, inverse_temperature=0, **{"policy.schedule": "constant"})
    cloned = loop_of("bc", data)
    rows, other = [r for r, _ in drawn(limit)], [r for r, _ in drawn(cloned)]
    assert not torch.equal(rows[0]["row"], other[0]["row"])  # its rows are the value's, so the loss is compared
    from polyrl.methods.control.bc import ImitationLoss
    from polyrl.methods.control.iql import WeightedImitation

    logprob = {"logprob": torch.randn(7, 1)}
    weighed = WeightedImitation().loss(logprob, {"imitation_weight": torch.ones(7, 1)})  # type: ignore[arg-type]
    assert torch.equal(weighed, ImitationLoss().loss(logprob, {}))  # type: ignore[arg-type]
    assert limit.context.metrics["imitation_weight"] == 1.0


def test_priorities_are_told_to_the_buffer_and_not_to_the_data(tmp_path: Path) -> None:
    loop = loop_of("rlpd+prioritised", pendulum_file(tmp_path), critics=2, **ONLINE)
    told: list[tuple[Tensor, Tensor]] = []
    replay = loop.context.sources["replay"]
    feedback = replay.feedback
    replay.feedback = lambda rows, values: (told.append((rows, values)), feedback(rows, values))[1]
    loop.iterate()
    assert len(told) == 3 * 8
    for rows, values in told:
        assert rows.shape == values.shape == (16, 1) and int(rows.max()) < 12


# ---------------------------------------------------------------------------------------------------------- learning


def follow_file(folder: Path, acts: str, episodes: int = 120) -> Path:
    """Episodes of `Follow`: at random, or by an expert whose hand trembles."""
    environment, rng = Follow(discrete=acts == "choices"), np.random.default_rng(0)
    columns: dict[str, list[Any]] = {n: [] for n in ("observations", "actions", "rewards", "next_observations")}
    ends = []
    for k in range(episodes):
        shown, _ = environment.reset(seed=k)
        over = False
        while not over:
            if acts == "choices":
                action: Any = int(shown[0] > 0) if rng.random() < 0.8 else int(rng.integers(2))
            elif acts == "expert":
                action = np.clip(shown + rng.normal(0, 0.3, 1), -2, 2).astype(np.float32)
            else:
                action = rng.uniform(-2, 2, 1).astype(np.float32)
            after, reward, _, over, _ = environment.step(action)
            for name, value in zip(columns, (shown, action, reward, after), strict=True):
                columns[name].append(value)
            ends.append(over)
            shown = after
    path = folder / f"{acts}.npz"
    arrays = {name: np.array(values) for name, values in columns.items()}
    np.savez(path, **arrays, terminations=np.zeros(len(ends), dtype=bool), truncations=np.array(ends))
    return path


LEARNS: dict[str, Any] = {
    **{"turns": 500, "eval_episodes": 40, "learning_rate": 3e-3, "hidden": "32x32", "batch_size": 64},
    **{"budget": "iterations=1"},
}


def learned(method: str, data: Path, discrete: bool = False, **settings: Any) -> float:
    config = config_of(method, data, "mine", **{**LEARNS, "seed": SEED, **settings})
    loop = make_loop(config, given=PythonObjects(environment=lambda: follow(discrete)))[0]
    return float(loop.run()["eval/return"])


def test_an_expert_is_imitated(tmp_path: Path) -> None:
    data = follow_file(tmp_path, "expert")
    for method in ("bc", "bc+deterministic"):
        reached(learned(method, data), -0.2)  # five steps: -1.7 for the middle; -0.03 to -0.01 with three seeds


def test_an_expert_of_choices_is_imitated(tmp_path: Path) -> None:
    reached(learned("bc", follow_file(tmp_path, "choices"), True), -0.6)  # five steps: -2.5 by guessing; -0.15 to -0.07


def test_better_than_the_data(tmp_path: Path) -> None:
    data = follow_file(tmp_path, "random")
    assert learned("bc", data) < -1  # the middle of what was done at random: -1.7; -1.7 to -1.3 with three seeds
    reached(learned("iql", data), -0.6)  # -0.21 to -0.05
    reached(learned("cql", data, conservative_weight=0.5, sampled_actions=4, turns=300), -0.4)  # -0.06 to -0.01


def test_steps_and_data_are_learned_from_together(tmp_path: Path) -> None:
    online = {"random_steps": 20, "learning_starts": 20, "gradient_steps": 4, "critics": 4, "turns": 100}
    reached(learned("rlpd", follow_file(tmp_path, "random"), **{**online, "budget": "steps=150"}), -0.5)  # -0.1 to 0


# ------------------------------------------------------------------------------------------------- the same again


@pytest.mark.parametrize("method", ["bc", "iql", "cql", "rlpd"])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(tmp_path: Path, method: str) -> None:
    data, online = pendulum_file(tmp_path), ONLINE if method == "rlpd" else {}
    config = config_of(method, data, budget="iterations=3", checkpoint_every=1, **online)
    start_run(config, tmp_path / "whole").run()
    stopped_after(2, start_run(config, tmp_path / "half"))
    resume_run(tmp_path / "half").run()
    assert comparable(tmp_path / "half") == comparable(tmp_path / "whole") and len(comparable(tmp_path / "half")) == 4
    models = [sorted((tmp_path / name / "model").glob("*.safetensors")) for name in ("whole", "half")]
    assert [p.name for p in models[0]] == [p.name for p in models[1]] and len(models[0])
    for one, other in zip(*models, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize("method", ["iql", "cql"])
def test_without_fast_paths_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    found = []
    for fast in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", fast)
        loop = loop_of(method, pendulum_file(tmp_path))
        loop.iterate()
        found.append(vectors(loop))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_methods_of_one_kind_of_actions_say_so(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path, actions=np.zeros(60, dtype=np.int64))
    for method in ("iql", "cql", "rlpd", "bc+deterministic"):
        with pytest.raises(
            UserError, match="acts by continuous numbers between bounds, and the actions of CartPole-v1"
        ):
            make_loop(config_of(method, data, "CartPole-v1", **(ONLINE if method == "rlpd" else {})))
    with pytest.raises(UserError, match="rlpd also learns from its own steps, whose rewards stay as they are"):
        catalogue.build("rlpd", {"reward_shift": "-1"})
    bad = {"iql": {"expectile": "1.5"}, "cql": {"conservative_weight": "-1"}, "rlpd": {"subset": "0"}}
    for method, settings in bad.items():
        with pytest.raises(UserError, match=r"but must be"):
            catalogue.build(method, settings)
