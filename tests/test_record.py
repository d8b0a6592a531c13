"""`polyrl record`: what happened stands in the data set to the last bit, by Minari's own reader where there is one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from conftest import SEED
from polyrl.api import open_policy
from polyrl.cli.main import polyrl as commands
from polyrl.cli.record import dataset_id, record_runs
from polyrl.errors import UserError
from polyrl.rollout.evaluation import Evaluator
from polyrl.rollout.recording import Recorder
from polyrl.runs import make_loop, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.minari import read_episodes, read_facts, stated_space
from polyrl.tasks.control.recorded import read_recorded
from polyrl.trust import choose
from test_action_masks import Masked

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is in the extra `offline`")
NEEDS_MINARI = pytest.mark.skipif(importlib.util.find_spec("minari") is None, reason="minari is not installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short runs of three kinds of actors."""
    root = tmp_path_factory.mktemp("runs")
    small = {"turns": "20", "hidden": "8", "random_steps": "5", "learning_starts": "10", "batch_size": "8"}
    asked = {
        "sac": ("sac", "Pendulum-v1", small),
        "other": ("sac", "Pendulum-v1", small),
        "dqn": ("dqn", "CartPole-v1", {"turns": "1", "hidden": "8"}),
        "ppo": ("ppo", "Pendulum-v1(g=9.0)", {"environments": "2", "steps_per_environment": "16"}),
    }
    for name, (method, task, values) in asked.items():
        config = RunConfig(
            method=method,
            task=task,
            hyperparameters=values,
            **{"budget": "iterations=1", "evaluations": 1, "eval_episodes": 1, "tensorboard": False},  # type: ignore[arg-type]
            seed=SEED + (name == "other"),
        )
        start_run(config, root / name).run()
    return {name: root / name for name in asked}


def replayed(folder: Path, environment: gymnasium.Env[Any, Any]) -> None:
    """Play every episode again from its seed and compare."""
    for episode in read_episodes(folder):
        shown, _ = environment.reset(seed=episode.seed)
        np.testing.assert_array_equal(shown, episode.observations[0])
        assert len(episode.observations) == len(episode.actions) + 1
        for t, action in enumerate(episode.actions):
            shown, reward, terminated, truncated, _ = environment.step(action)
            np.testing.assert_array_equal(shown, episode.observations[t + 1])
            assert (reward, terminated, truncated) == (
                episode.rewards[t],
                episode.terminations[t],
                episode.truncations[t],
            )
        assert terminated or truncated


@pytest.mark.parametrize(
    ("name", "how"), [("sac", {}), ("sac", {"sampled": True}), ("ppo", {"random": 0.5}), ("dqn", {})]
)
def test_what_is_recorded_is_what_happened(
    runs: dict[str, Path], tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    folder = record_runs([runs[name]], episodes=3, out=tmp_path / "data", **how)
    run_state: Any = open_policy(runs[name])
    replayed(folder, run_state.task.create())
    facts = read_facts(folder)
    assert facts["total_episodes"] == 3 and facts["algorithm_name"] == name and facts["dataset_id"] == "data-v0"
    assert facts["polyrl"]["runs"] == [{"run": name, "method": name, "seed": SEED}]
    spec = json.loads(facts["env_spec"])
    assert spec["id"] == run_state.task.spec and spec["kwargs"] == run_state.task.arguments
    episodes = [*read_episodes(folder)]
    space = run_state.task.actions.space
    assert all(space.contains(action) for e in episodes for action in ([*e.actions] if space.shape else e.actions))
    assert len({e.seed for e in episodes}) == 3
    recorded = read_recorded(folder, run_state.task)
    assert not len(recorded.left_out) and recorded.notices == [] and len(recorded) == facts["total_steps"]


def test_greedy_episodes_are_those_that_are_judged(runs: dict[str, Path], tmp_path: Path) -> None:
    run_state: Any = open_policy(runs["sac"])
    (episode,) = read_episodes(record_runs([runs["sac"]], episodes=1, out=tmp_path / "data"))
    environment = run_state.task.singles(1)[0]

    class Fixed(Evaluator):
        def seed_of(self, episode: int) -> int:
            return seed

    assert episode.seed is not None
    seed = episode.seed
    (judged,) = Fixed(run_state.task, 0)(run_state.judged, 1)
    assert judged.total == pytest.approx(float(episode.rewards.sum()), abs=1e-9) and judged.length == len(
        episode.rewards
    )
    environment.close()


def test_shares_of_random_actions_and_samples(runs: dict[str, Path]) -> None:
    run_state: Any = open_policy(runs["sac"])
    greedy, again, sampled, mixed, wild, other = (
        np.concatenate([e.actions[:, 0] for e in Recorder(run_state.task, [run_state.judged], **how)(8)])
        for how in ({}, {}, {"sampled": True}, {"random": 0.25}, {"random": 1.0}, {"random": 1.0, "seed": 1})
    )
    np.testing.assert_array_equal(greedy, again)
    assert not np.isclose(greedy[:200], sampled[:200]).any()
    assert abs(wild).max() > 1.95 and abs(wild.mean()) < 0.2 and not np.isclose(wild, other).any()
    assert abs(greedy).max() < 1.5  # the small policy's own are smaller, so a large one is random: 1/4 of a quarter
    assert float((abs(mixed) > 1.5).mean()) == pytest.approx(0.25 * 0.25, abs=0.02)


def test_episodes_of_several_runs_stand_in_turn(runs: dict[str, Path], tmp_path: Path) -> None:
    both = [*read_episodes(record_runs([runs["sac"], runs["other"]], episodes=2, out=tmp_path / "both"))]
    alone = [*read_episodes(record_runs([runs["sac"]], episodes=2, out=tmp_path / "alone"))]
    assert len(both) == 4 and len({e.seed for e in both}) == 4
    for one, other in zip(both[::2], alone, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    assert not np.array_equal(both[1].actions, both[0].actions)
    assert read_facts(tmp_path / "both")["polyrl"]["runs"][1]["seed"] == SEED + 1


class Nested(gymnasium.Env[Any, Any]):
    """A Dict of a Tuple; the first part counts steps. It never ends by itself."""

    observation_space = spaces.Dict(
        {"t": spaces.Discrete(50), "rest": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.MultiBinary(2)))}
    )
    action_space = spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        self.shown = np.zeros(2)
        return self.see(), {}

    def see(self) -> Any:
        self.shown += 0.01  # the same array again and again: what is recorded is not to change with it
        return {"t": self.t, "rest": (self.shown, np.array([1, self.t % 2], dtype=np.int8))}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.t += 1
        return self.see(), float(action), False, False, {}


def nested_run_state() -> Any:
    config = RunConfig(method="dqn", task="mine", budget="iterations=1", hyperparameters={"hidden": "8"})
    return make_loop(config, given=PythonObjects(environment=Nested))[0].run_state


def test_actions_that_are_not_allowed_are_never_done(tmp_path: Path) -> None:
    from polyrl.tasks.control.minari import write_dataset

    recorders = []
    for method, more in (("dqn", {}), ("bc", {"dataset": str(tmp_path / "data")})):
        config = RunConfig(method=method, task="mine", budget="iterations=1", hyperparameters={"hidden": "8"}, **more)
        run_state: Any = make_loop(config, given=PythonObjects(environment=Masked))[0].run_state
        recorders.append(
            Recorder(run_state.task, [run_state.judged], random=0.5 if method == "dqn" else 0.0, sampled=True)
        )
        episodes = [*recorders[-1](40)]  # the environment raises where a forbidden action is taken
        assert {int(a) for e in episodes for a in e.actions} == {3, 4, 5, 6}
        if method == "dqn":
            write_dataset(
                tmp_path / "data", episodes, run_state.task.observations.space, run_state.task.actions.space, {}
            )


def test_nested_observations_and_episodes_without_end(tmp_path: Path) -> None:
    from polyrl.tasks.control.minari import write_dataset

    run_state = nested_run_state()
    task = run_state.task
    task.eval_limit = 7
    episodes = [*Recorder(task, [run_state.judged], random=0.5)(2)]
    write_dataset(tmp_path / "data", episodes, task.observations.space, task.actions.space, {})
    for episode in read_episodes(tmp_path / "data"):
        assert episode.observations["t"].tolist() == [*range(8)]
        np.testing.assert_allclose(episode.observations["rest"][0][:, 0], 0.01 * np.arange(1, 9))
        assert episode.observations["rest"][1].shape == (8, 2)
        assert episode.rewards.tolist() == episode.actions.tolist() and set(episode.actions.tolist()) <= {5, 6, 7}
        assert episode.truncations.tolist() == [False] * 6 + [True] and not episode.terminations.any()
    recorded = read_recorded(tmp_path / "data", task)
    assert len(recorded) == 14 and recorded.seen.shape == (16, 54)
    assert set(recorded.action.tolist()) <= {0, 1, 2}


@NEEDS_MINARI
def test_minari_reads_it(runs: dict[str, Path], tmp_path: Path) -> None:
    import minari

    folder = record_runs([runs["sac"], runs["other"]], episodes=2, sampled=True, out=tmp_path / "pendulum")
    held = minari.MinariDataset(folder / "data")
    assert (held.total_episodes, held.total_steps, held.id) == (4, 800, "pendulum-v0")
    task = ControlTask("Pendulum-v1")
    assert held.observation_space == task.observations.space and held.action_space == task.actions.space
    environment = held.recover_environment()
    for theirs, ours in zip(held, read_episodes(folder), strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
    (seed,) = (m["seed"] for m in held.storage.get_episode_metadata([3]))
    np.testing.assert_array_equal(environment.reset(seed=seed)[0], held[3].observations[0])


@NEEDS_MINARI
def test_what_minari_writes_is_read(tmp_path: Path) -> None:
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage
    from minari.serialization import deserialize_space

    run_state = nested_run_state()
    run_state.task.eval_limit = 5
    space, actions = run_state.task.observations.space, run_state.task.actions.space
    for one in (space, actions, spaces.MultiDiscrete([2, 3]), spaces.Box(-np.inf, 3, (2,), np.float64)):
        assert deserialize_space(stated_space(one)) == one
    (episode,) = Recorder(run_state.task, [run_state.judged])(1)
    (tmp_path / "theirs").mkdir()
    storage = MinariStorage.new(tmp_path / "theirs" / "data", space, actions, data_format="hdf5")
    columns = {n: getattr(episode, n) for n in ("observations", "actions", "rewards", "terminations", "truncations")}
    storage.update_episodes([EpisodeBuffer(seed=4, **columns)])
    (read,) = read_episodes(tmp_path / "theirs")
    assert read.seed == 4 and read.rewards.tolist() == episode.rewards.tolist()
    np.testing.assert_array_equal(read.observations["rest"][0], episode.observations["rest"][0])
    assert len(read_recorded(tmp_path / "theirs", run_state.task)) == 5


def test_the_command_tells_what_it_did_and_refuses_what_it_cannot(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(runs["sac"]), str(tmp_path / "data")
    commands.main(["record", folder, "--episodes", "2", "--out", out, "--random", "0.5"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "Pendulum-v1, most probable actions, 50% of the steps at random" in said
    assert f"data    {out}, 400 steps" in said and f"--task 'Pendulum-v1' --dataset {out}" in said
    cases = [
        (["record", folder, "--out", out], "data exists already; choose another --out, or remove it."),
        (["record", folder, "--episodes", "0"], "--episodes is 0 but must be at least 1."),
        (["record", folder, "--random", "1.5"], "--random is 1.5 but is a share of the steps, from 0 to 1."),
        (["record", folder, str(runs["dqn"])], "one on CartPole-v1; record runs of one task together."),
        (["record", str(tmp_path)], "config.yaml"),
    ]
    for arguments, told in cases:
        with pytest.raises(UserError) as error:
            commands.main(arguments, standalone_mode=False)
        assert told in str(error.value), arguments
    assert not (runs["sac"] / "dataset").exists()
    commands.main(["record", folder, "--episodes", "1"], standalone_mode=False)
    assert (runs["sac"] / "dataset" / "data" / "main_data.hdf5").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_runs_of_other_domains_and_vector_environments_have_no_episodes(tmp_path: Path) -> None:
    config = RunConfig(method="dr-rpo", budget="iterations=1", evaluations=1, tensorboard=False)
    start_run(config, tmp_path / "regret").run()
    with pytest.raises(UserError, match="is a run of theory; only runs of control have episodes to record"):
        record_runs([tmp_path / "regret"])
    source = tmp_path / "many.py"
    source.write_text(
        "import gymnasium\ndef many(num_envs=2):\n    return gymnasium.make_vec('CartPole-v1', num_envs)\n"
    )
    values = {"turns": "1", "hidden": "8", "steps_per_environment": "4", "environments": "2"}
    config = RunConfig(
        method="dqn", task=f"{source}:many", budget="iterations=1", hyperparameters=values, tensorboard=False
    )
    choose(config)
    start_run(config, tmp_path / "vector").run()
    with pytest.raises(UserError, match="makes vector environments, whose episodes cannot be recorded one by one"):
        record_runs([tmp_path / "vector"])
    assert not (tmp_path / "vector" / "dataset").exists()
    assert not [p for p in (tmp_path / "vector").iterdir() if "writing" in p.name]


def test_a_name_is_one_that_minari_takes() -> None:
    assert dataset_id(Path("/x/my data (2)")) == "my-data-2-v0" and dataset_id(Path("walk-v3")) == "walk-v3"
    with pytest.raises(UserError, match="holds no Sequence space, so nothing can be recorded of such an environment"):
        stated_space(spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}))


def test_scores_are_normalized_by_the_references_of_the_data(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = record_runs([runs["sac"]], episodes=2, out=tmp_path / "data", ref_min_score=-1500.0, ref_max_score=-150.0)
    facts = read_facts(folder)
    assert (facts["ref_min_score"], facts["ref_max_score"]) == (-1500.0, -150.0)
    small = {"turns": "2", "hidden": "8", "batch_size": "8"}
    how: dict[str, Any] = {"budget": "iterations=1", "evaluations": 1, "eval_episodes": 2, "tensorboard": False}
    asked = RunConfig(method="bc", task="Pendulum-v1", hyperparameters=small, dataset=str(folder), **how)
    final = start_run(asked, tmp_path / "run").run()
    assert final["eval/normalized_return"] == pytest.approx((final["eval/return"] + 1500) / 1350, abs=1e-12)
    plain = record_runs([runs["sac"]], episodes=1, out=tmp_path / "plain")
    other = RunConfig(method="bc", task="Pendulum-v1", hyperparameters=small, dataset=str(plain), **how)
    assert "eval/normalized_return" not in start_run(other, tmp_path / "other").run()


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, -1.0), (float("nan"), 1.0), (None, 1.0), (1.0, None)])
def test_references_that_normalize_nothing_are_refused(
    low: float | None, high: float | None, runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="ref-max-score"):
        record_runs([runs["sac"]], episodes=1, out=tmp_path / "data", ref_min_score=low, ref_max_score=high)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("low", "high"), [("a", 1), (2, 1), (True, 3)])
def test_references_in_a_file_that_are_none_are_refused(
    low: object, high: object, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = record_runs([runs["sac"]], episodes=1, out=tmp_path / "data", ref_min_score=0.0, ref_max_score=1.0)
    file = folder / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ref_min_score": low, "ref_max_score": high}))
    with pytest.raises(UserError, match="ref_min_score"):
        _ = ControlTask(name="Pendulum-v1", data=folder).reference
