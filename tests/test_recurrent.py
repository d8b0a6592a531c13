"""`+gru`: the layer against torch's, windows against plain loops, what is remembered, learned and resumed."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyrl
from polyrl import kernels
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.base import Interface
from polyrl.models.from_run import FromRun
from polyrl.models.recurrent import CRITIC_STATE, POLICY_STATE, GruLayer, RecurrentCritic, starts_within
from polyrl.parts.recurrent import windows
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.control import task
from polyrl.tasks.control.t_maze import FORWARD, LEFT, RIGHT, TMaze

ROWS, STEPS, INPUTS, SIZE = 4, 12, 3, 5


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_layer(orthogonal: bool = False) -> GruLayer:
    layer = GruLayer(INPUTS, SIZE, orthogonal=orthogonal, generator=stream(3))
    with torch.no_grad():
        for bias in (layer.bias_input, layer.bias_state):
            bias.uniform_(-1, 1, generator=stream(4))
    return layer


def given() -> tuple[Tensor, Tensor, Tensor]:
    g = stream(1)
    starts = torch.rand(ROWS, STEPS, generator=g) < 0.2
    return torch.randn(ROWS, STEPS, INPUTS, generator=g), torch.randn(ROWS, SIZE, generator=g), starts


# -------------------------------------------------------------------------------------------------------------- layer


@pytest.mark.parametrize("fast", [True, False])
def test_the_layer_is_torchs_and_forgets_where_an_episode_begins(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ENABLED", fast)
    layer, (x, state, starts) = a_layer(), given()
    theirs = nn.GRU(INPUTS, SIZE, batch_first=True)
    ours = (layer.weight_input, layer.weight_state, layer.bias_input, layer.bias_state)
    for own, other in zip(ours, theirs.parameters(), strict=True):
        other.data.copy_(own.data)
    wanted = []
    for row in range(ROWS):  # each stretch between starts by itself
        cuts = [0, *starts[row].nonzero()[:, 0].tolist(), STEPS]
        before, found = state[row].clone(), []
        for begin, end in pairwise(cuts):
            if begin < end:
                h = torch.zeros(SIZE) if bool(starts[row, begin]) else before
                found.append(theirs(x[row, begin:end], h[None])[0])
                before = found[-1][-1]
        wanted.append(torch.cat(found))
    slope = torch.randn(ROWS, STEPS, SIZE, generator=stream(2))
    found_states = layer(x, state, starts)
    assert torch.allclose(found_states, torch.stack(wanted), atol=1e-6)
    (found_states * slope).sum().backward()  # type: ignore[no-untyped-call]
    (torch.stack(wanted) * slope).sum().backward()  # type: ignore[no-untyped-call]
    for own, other in zip(ours, theirs.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        assert torch.allclose(own.grad, other.grad, atol=1e-5)


def test_inputs_get_their_gradient_too_and_acting_computes_the_same() -> None:
    layer, (x, state, starts) = a_layer(orthogonal=True), given()
    slopes = []
    for fast in (True, False):
        seen = x.clone().requires_grad_()
        with kernels.plain() if not fast else torch.enable_grad():
            layer(seen, state, starts).square().sum().backward()
        assert seen.grad is not None
        slopes.append(seen.grad)
    assert torch.allclose(*slopes, atol=1e-6) and float(slopes[0].abs().min(-1).values.max()) > 0
    step, kept, states = layer.stepper(), state.numpy().copy(), layer(x, state, starts)
    for t in range(STEPS):
        kept[starts[:, t].numpy()] = 0
        kept = step(x[:, t].numpy(), kept)
        assert np.allclose(kept, states[:, t].detach().numpy(), atol=1e-6)
    far = step(np.full((1, INPUTS), 1e30, np.float32), np.zeros((1, SIZE), np.float32))
    assert np.isfinite(far).all() and np.abs(far).max() <= 1


# ------------------------------------------------------------------------------------------------------------ windows


def a_rollout() -> Experience:
    """Steps of which some end episodes, and of which one resets its environment and is no experience."""
    g = stream(5)
    terminated, truncated = (torch.rand(ROWS, STEPS, generator=g) < 0.25 for _ in range(2))
    present = torch.ones(ROWS, STEPS, dtype=torch.bool)
    present[1, 4] = False
    fields = {
        "observation": torch.randn(ROWS, STEPS, INPUTS, generator=g),
        "final_observation": torch.randn(ROWS, STEPS, INPUTS, generator=g),
        POLICY_STATE: torch.randn(ROWS, STEPS, SIZE, generator=g),
        CRITIC_STATE: torch.randn(ROWS, STEPS, SIZE, generator=g),
        "terminated": terminated & ~truncated,
        "truncated": truncated,
        "present": present,
        "advantage": torch.randn(ROWS, STEPS, generator=g),
        "starts_episode": torch.tensor([True, False, True, False]),
        "factor": torch.arange(ROWS).float(),
    }
    return Experience(fields)


def test_windows_are_the_same_steps_in_shorter_rows() -> None:
    whole = a_rollout()
    cut = windows(whole, 4)
    for row in range(ROWS):
        for k in range(3):
            at, own = slice(4 * k, 4 * k + 4), 3 * row + k
            for name in ("observation", POLICY_STATE, "truncated", "advantage"):
                assert torch.equal(cut[name][own], whole[name][row, at])
            assert cut["factor"][own] == row
            before = 4 * k - 1
            began = (
                bool(whole["starts_episode"][row])
                if k == 0
                else bool((whole["terminated"] | whole["truncated"])[row, before]) or not whole["present"][row, before]
            )
            assert bool(cut["starts_episode"][own]) == began
    assert torch.equal(windows(whole, STEPS)["starts_episode"], whole["starts_episode"])
    assert bool(starts_within(whole)[1, 5]) and not starts_within(whole)[:, 0].any()


def test_values_after_a_cut_go_on_from_what_was_remembered_there() -> None:
    critic = RecurrentCritic(a_layer(), nn.Sequential(nn.Linear(SIZE, 1)))
    batch = a_rollout()
    states = critic.gru(batch["observation"], batch[CRITIC_STATE][:, 0], starts_within(batch)).detach()
    found = critic.final_values(batch)
    assert int(batch["truncated"].sum()) > 3
    for row in range(ROWS):
        for t in range(STEPS):
            wanted = 0.0
            if batch["truncated"][row, t]:
                after = critic.gru.after(batch["final_observation"][row, t : t + 1], states[row, t : t + 1])
                wanted = float(critic.network(after).detach())
            assert float(found[row, t]) == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(critic.values_of(batch), critic.of_steps(batch).detach())


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", ["t-maze(length=3)", "t-maze(length=3,masked=yes)", "CartPole-v1(stepping=vector)"])
def test_what_acted_is_what_is_trained_in_every_window(name: str) -> None:
    """Before a step is taken, log-probabilities and values of windows are those of acting: states went on rightly."""
    run_state = make_loop(RunConfig(method="ppo+gru", task=name, budget="steps=4000"))[0].run_state
    steps = stream(9)
    for _ in range(3):
        batch, _, lengths = run_state.collect(4, 32, steps)
    assert len(lengths) > 1
    assert bool(batch["present"].all()) == ("vector" not in name)
    wants = {"logprob", "value", "entropy"}
    whole = run_state.outputs(batch, wants)
    pieces = run_state.outputs(windows(batch, 4), wants)
    here = batch["present"]
    assert torch.allclose(whole["logprob"][here], batch["behaviour_logprob"][here], atol=1e-5)
    assert torch.allclose(pieces["logprob"].reshape(4, 32)[here], batch["behaviour_logprob"][here], atol=1e-5)
    assert torch.allclose(pieces["value"].reshape(4, 32)[here], run_state.value(batch)[here], atol=1e-5)
    assert float(batch[POLICY_STATE].abs().max()) > 0 and float(run_state.divergence()) == pytest.approx(0, abs=1e-8)
    if "masked" in name:  # one action in the corridor, two at its end
        corridor = ~batch["action_mask"][:, :, 1]
        assert bool((batch["behaviour_logprob"][corridor] == 0).all()) and bool(corridor.any())
        assert float(whole["entropy"].detach()[corridor].abs().max()) == 0


LEARNS = {"t-maze(length=2)": 9_216, "t-maze(length=2,masked=yes)": 6_144}


@pytest.mark.parametrize("task", LEARNS)
def test_it_learns_to_remember(task: str, tmp_path: Path) -> None:
    """Without memory nothing is above 1/2 on average."""
    settings = {"entropy_coef": 0.01, "learning_rate": 2e-3, "epochs": 6, "gru_size": 32, "hidden": "32"}
    budget = f"steps={LEARNS[task]}"
    run = polyrl.train("ppo+gru", task=task, budget=budget, evaluations=1, out=tmp_path / "run", quiet=True, **settings)
    assert run.final["eval/return"] == 1.0
    policy, maze = polyrl.load(tmp_path / "run"), TMaze(2, masked="masked" in task)
    for seed in range(20, 30):
        policy.reset()
        seen, info = maze.reset(seed=seed)
        over = False
        while not over:
            seen, reward, over, _, info = maze.step(policy.act(seen, info.get("action_mask")))
        assert reward == 1


def test_a_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings: dict[str, Any] = {"gru_size": 8, "hidden": "8", "environments": 3, "steps_per_environment": 32}
    polyrl.train(
        "ppo+gru",
        task="t-maze(length=5)",
        budget="steps=600",
        evaluations=1,
        out=run,
        quiet=True,
        checkpoint_every=1,
        keep_checkpoints=9,
        **settings,
    )
    files = sorted((run / "model").glob("*.safetensors"))
    was = {file.name: file.read_bytes() for file in files}
    checkpoints = sorted((run / "checkpoints").iterdir())
    for late in checkpoints[len(checkpoints) // 2 :]:  # as a kill would have left it
        shutil.rmtree(late)
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    polyrl.resume(run, quiet=True)
    assert len(checkpoints) > 3 and was == {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("sac+gru", {}, "no network that could remember"),
        ("ppo+cnn+gru", {}, "no network that could remember"),
        ("llm-guidance+gru", {}, "'guided-environments', and 'gru' does not know what that remembers"),
        ("ppo+gru", {"window": 10}, "rollouts of 128 steps cannot be cut into windows of 10"),
        ("ppo+gru", {"minibatch_of": "steps"}, "tear apart what a memory runs through"),
    ],
)
def test_what_does_not_fit_is_told(method: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        polyrl.train(method, task="t-maze", budget="steps=100", out=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()


def test_no_form_that_leaves_the_house_and_no_guide_of_another_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    polyrl.train("ppo+gru", task="t-maze", budget="iterations=1", evaluations=1, out=run, quiet=True)
    with pytest.raises(UserError, match="keeps something from step to step, for which there is no exported form"):
        polyrl.export(run, "numpy")
    with pytest.raises(UserError, match="remembers what it has seen"):
        FromRun(run=str(run)).make(Interface.of(task("t-maze")), stream())


def test_trace_says_what_the_states_are() -> None:
    from click.testing import CliRunner

    from polyrl.cli.main import polyrl as command

    said = CliRunner().invoke(command, ["trace", "ppo+gru", "--task", "t-maze(length=2)"])
    assert said.exit_code == 0 and "what the policy remembered before each step (gru)" in " ".join(said.output.split())


# --------------------------------------------------------------------------------------------------------------- task


def test_the_maze_pays_for_the_right_turn_at_its_end() -> None:
    maze = TMaze(3)
    signs = set()
    for seed in range(8):
        seen, info = maze.reset(seed=seed)
        sign, turn = float(seen[0]), RIGHT if seen[0] > 0 else LEFT
        signs.add(sign)
        assert seen.tolist() == [sign, 0] and info == {}
        assert maze.step(np.int64(LEFT))[0].tolist() == [sign, 0]  # into a wall
        assert [maze.step(np.int64(FORWARD))[0].tolist() for _ in range(3)] == [[0, 0], [0, 0], [0, 1]]
        assert maze.step(np.int64(FORWARD))[1:4] == (0.0, False, False)
        assert maze.step(np.int64(turn))[1:4] == (1.0, True, False)
    assert signs == {-1.0, 1.0}
    seen, _ = maze.reset(seed=0)
    for _ in range(3):
        maze.step(np.int64(FORWARD))
    assert maze.step(np.int64(LEFT if seen[0] > 0 else RIGHT))[1:4] == (0.0, True, False)
    maze.reset(seed=0)
    ends = [maze.step(np.int64(LEFT))[2:4] for _ in range(12)]
    assert ends == [(False, False)] * 11 + [(False, True)]
    allowed = [TMaze(1, masked=True).reset()[1]["action_mask"].tolist()]
    assert allowed == [[True, False, False]]
    for wrong in ({"length": 0}, {"length": True}, {"masked": 1}):
        with pytest.raises(UserError, match="t-maze must be"):
            TMaze(**wrong)  # type: ignore[arg-type]
