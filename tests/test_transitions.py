"""Recorded transitions: files and what they become, bad ones in a sentence, sampling, runs that only have them."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import polyrl
from conftest import read_records
from control_environments import pendulum_file
from polyrl import catalogue
from polyrl.api import open_policy
from polyrl.catalogue import task_with_data
from polyrl.cli.main import polyrl as commands
from polyrl.core.update import Mix, Sample
from polyrl.data.transitions import GivenTransitions, Transitions, return_range_scale
from polyrl.errors import UserError
from polyrl.methods.control import bc
from polyrl.models.squashed import scaler
from polyrl.request import completed
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.minari import Episode, read_episodes, write_dataset
from polyrl.tasks.control.recorded import Recorded, read_recorded
from polyrl.tasks.control.spaces import ObservationEncoder
from polyrl.unused import refuse_unused
from test_off_policy import comparable

torch.set_num_threads(1)


class Walk(gymnasium.Env[Any, Any]):
    """Any spaces; what happens in it is of no matter here."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]):
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 4
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.observation_space.sample(), 0.0, False, self.left == 0, {}


LINE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
BOX = spaces.Box(np.float32([-1, 10]), np.float32([3, 20]))


def task_of(observations: spaces.Space[Any] = LINE, actions: spaces.Space[Any] = BOX) -> ControlTask:
    return ControlTask("mine", make=lambda: Walk(observations, actions))


def arrays(**changed: Any) -> dict[str, Any]:
    """Seven steps: an episode of three that terminates, one of two that is cut, two steps of one that goes on."""
    number = np.arange(7, dtype=np.float32)
    found: dict[str, Any] = {
        "observations": np.stack([number, -number], 1),
        "actions": np.stack([-1 + number / 2, 10 + number], 1).astype(np.float32),
        "rewards": number * 1.5,
        "terminations": number == 2,
        "truncations": number == 4,
        "next_observations": np.stack([number + 0.5, -number], 1),
    }
    found.update(changed)
    return {name: x for name, x in found.items() if x is not None}


def file_of(folder: Path, kind: str = "npz", **changed: Any) -> Path:
    path, held = folder / f"data.{kind}", arrays(**changed)
    if kind == "npz":
        np.savez(path, **held)
    else:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(x) for name, x in held.items()}, path)
    return path


def all_rows(recorded: Recorded, **hyperparameters: Any) -> dict[str, torch.Tensor]:
    rows = GivenTransitions("data", Transitions(**hyperparameters), recorded).rows(torch.arange(len(recorded)))
    return {name: rows[name][:, 0] for name in rows.fields()}


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_rows_are_what_happened(tmp_path: Path, kind: str) -> None:
    recorded = read_recorded(file_of(tmp_path, kind), task_of())
    found = all_rows(recorded, gamma=0.9)
    number = torch.arange(7.0)
    torch.testing.assert_close(found["observation"], torch.stack([number, -number], 1))
    torch.testing.assert_close(found["next_observation"], torch.stack([number + 0.5, -number], 1))
    torch.testing.assert_close(found["reward"], number * 1.5)
    # a termination cuts what follows off, a time limit does not
    torch.testing.assert_close(found["discount"], torch.tensor([0.9, 0.9, 0, 0.9, 0.9, 0.9, 0.9]))
    assert found["action"].dtype == torch.float32 and float(found["action"].abs().max()) <= 1
    np.testing.assert_allclose(scaler(BOX)(found["action"].numpy()), arrays()["actions"], atol=1e-5)
    assert recorded.returns == [4.5, 10.5] and not len(recorded.left_out) and recorded.notices == []


def test_without_what_followed_the_next_row_is_it(tmp_path: Path) -> None:
    recorded = read_recorded(file_of(tmp_path, next_observations=None), task_of())
    found = all_rows(recorded)
    assert found["reward"].tolist() == [0, 1.5, 3, 4.5, 7.5]  # neither the cut step nor the last one
    follows = [i for i, x in enumerate(found["discount"].tolist()) if x]
    assert found["next_observation"][follows, 0].tolist() == [1, 2, 4, 6]
    assert found["discount"].tolist() == pytest.approx([0.99, 0.99, 0, 0.99, 0.99])
    (said,) = recorded.left_out.sentences()
    assert said.startswith("2 rows of the data are left out for want of the observation that followed (first: ")
    assert said.endswith("data.npz, row 4).")
    ends = read_recorded(file_of(tmp_path, next_observations=None, terminations=np.arange(7) == 6), task_of())
    assert len(ends) == 6 and all_rows(ends)["discount"].tolist()[-1] == 0


def minari(folder: Path, task: ControlTask, episodes: list[Episode], **facts: Any) -> Path:
    pytest.importorskip("h5py")
    write_dataset(folder, episodes, task.observations.space, task.actions.space, {"dataset_id": "mine-v0", **facts})
    return folder


def as_episodes(held: dict[str, Any]) -> list[Episode]:
    found = []
    for first, last in ((0, 3), (3, 5), (5, 7)):
        part = {name: x[first:last] for name, x in held.items()}
        shown = np.concatenate([part["observations"], part["next_observations"][-1:]])
        names = ("actions", "rewards", "terminations", "truncations")
        found.append(Episode(observations=shown, **{name: part[name] for name in names}, seed=first))
    return found


def test_a_data_set_of_minari_is_the_same_table(tmp_path: Path) -> None:
    held = arrays(next_observations=None)
    shown = held["observations"]
    held["next_observations"] = np.concatenate([shown[1:], shown[-1:] + 1])
    held["next_observations"][[2, 4]] += 0.25
    folder = minari(tmp_path / "walk", task_of(), as_episodes(held))
    np.savez(tmp_path / "flat.npz", **held)
    one, other = (read_recorded(p, task_of()) for p in (folder, tmp_path / "flat.npz"))
    assert one.digest == other.digest and one.returns == other.returns
    assert len(one.seen) == 10 and len(other.seen) == 14  # what is seen twice is held once
    for name, x in all_rows(one).items():
        assert torch.equal(x, all_rows(other)[name]), name
    assert read_recorded(folder / "data", task_of()).digest == one.digest
    assert [e.seed for e in read_episodes(folder)] == [0, 3, 5]
    changed = {**held, "rewards": held["rewards"] + np.eye(7)[3]}
    np.savez(tmp_path / "other.npz", **changed)
    assert read_recorded(tmp_path / "other.npz", task_of()).digest != one.digest


NESTED = spaces.Dict(
    {
        "where": spaces.Box(-1, 1, (2, 2), np.float32),
        "held": spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2))),
        "seen": spaces.Box(0, 255, (3,), np.uint8),
        "gear": spaces.MultiDiscrete([2, 3]),
    }
)


def stacked_of(space: spaces.Space[Any], values: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {k: stacked_of(part, [v[k] for v in values]) for k, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked_of(part, [v[i] for v in values]) for i, part in enumerate(space.spaces))
    return np.stack([np.asarray(v) for v in values])


@given(st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_many_observations_are_written_as_one_after_another(seed: int, count: int) -> None:
    NESTED.seed(seed)
    values = [NESTED.sample() for _ in range(count)]
    encoder = ObservationEncoder(NESTED)
    single, together = np.empty((count, encoder.size)), np.empty((count, encoder.size))
    for value, row in zip(values, single, strict=True):
        encoder.encode(value, row)
    encoder.encode_all(stacked_of(NESTED, values), together)
    np.testing.assert_array_equal(single, together)
    short = stacked_of(NESTED, values)
    del short["gear"]
    with pytest.raises(KeyError):
        encoder.encode_all(short, together)


def test_nested_observations_go_through_a_data_set(tmp_path: Path) -> None:
    task = task_of(NESTED, spaces.Discrete(4, start=2))
    NESTED.seed(3)
    values = [NESTED.sample() for _ in range(4)]
    end = np.array([False, False, True])
    kept = Episode(stacked_of(NESTED, values), np.array([2, 5, 3]), np.ones(3), ~end & end, end)
    recorded = read_recorded(minari(tmp_path / "nested", task, [kept]), task)
    shown = np.empty((4, task.observations.size))
    for value, row in zip(values, shown, strict=True):
        task.observations.encode(OrderedDict(value), row)
    found = all_rows(recorded)
    np.testing.assert_array_equal(found["observation"], shown[:3].astype(np.float32))
    np.testing.assert_array_equal(found["next_observation"], shown[1:].astype(np.float32))
    assert found["action"].tolist() == [0, 3, 1] and found["action"].dtype == torch.int64


def test_actions_beyond_the_bounds_are_brought_to_them_and_told(tmp_path: Path) -> None:
    actions = arrays()["actions"].copy()
    actions[1, 0], actions[5, 1] = 7.0, 9.0
    actions[2, 1] = 10 - 1e-5  # rounding
    recorded = read_recorded(file_of(tmp_path, actions=actions), task_of())
    assert recorded.action[1, 0] == 1 and recorded.action[5, 1] == -1 and recorded.action[2, 1] == -1
    (said,) = recorded.notices
    assert said.startswith("2 actions of the data ") and "lay beyond the bounds of mine" in said


# ------------------------------------------------------------------------------------------------------ bad files


def nan_at(name: str, row: int) -> Any:
    changed = arrays()[name].astype(np.float32).copy()
    changed[row] = np.nan
    return {name: changed}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("missing", {"rewards": None, "truncations": None}, "has no rewards and no truncations; it needs observations, "),
    ("observations", {"observations": np.zeros((7, 3))}, "its observations are none of mine, whose space is Box(-inf"),
    ("next", {"next_observations": np.zeros((6, 2))}, "its observations are none of mine"),
    ("actions", {"actions": np.zeros((7, 1))}, "its actions are none of mine, whose space is Box([-1. 10.]"),
    ("length", {"terminations": np.zeros(6, dtype=bool)}, "its terminations are of shape (6,) and type bool, where"),
    ("text", {"rewards": np.array(["a"] * 7)}, "its rewards are of shape (7,) and type <U1, where numbers of 7 steps"),
    ("wide", {"rewards": np.zeros((7, 2))}, "its rewards are of shape (7, 2), where one number a step belongs"),
    ("nan", nan_at("observations", 3), "data.npz, row 3: its observation is not finite; mend it, or leave such steps"),
    ("nan after", nan_at("next_observations", 6), "data.npz, row 6: its observation is not finite"),
    ("nan reward", nan_at("rewards", 0), "data.npz, row 0: its reward is not finite"),
    ("nan action", nan_at("actions", 5), "data.npz, row 5: its action is not finite"),
    ("empty", {name: x[:0] for name, x in arrays().items()}, "holds no transition."),
]


@pytest.mark.parametrize(("changed", "told"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_arrays_are_told_in_a_sentence(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    names = {**arrays(), **changed}
    path = tmp_path / "data.npz"
    np.savez(path, **{name: x for name, x in names.items() if x is not None})
    with pytest.raises(UserError) as error:
        read_recorded(path, task_of())
    assert told in str(error.value) and "\n" not in str(error.value)
    if "mend it" in str(error.value):
        recorded = read_recorded(path, task_of(), skip_bad_rows=True)
        assert len(recorded) == 6 == torch.isfinite(recorded.reward).sum()
        assert "1 row of the data is left out as --skip-bad-rows asks" in recorded.left_out.sentences()[0]
        assert torch.isfinite(all_rows(recorded)["next_observation"]).all()


def test_choices_that_there_are_not_are_told(tmp_path: Path) -> None:
    task = task_of(actions=spaces.Discrete(3, start=1))
    for actions, row in (([1, 2, 3, 4, 1, 1, 1], 3), ([0, 2, 3, 3, 1, 1, 1], 0), ([1, 1.5, 1, 1, 1, 1, 1], 1)):
        path = file_of(tmp_path, actions=np.array(actions))
        with pytest.raises(UserError, match=rf"row {row}: its action is none of Discrete\(3, start=1\)"):
            read_recorded(path, task)
        assert len(read_recorded(path, task, skip_bad_rows=True)) == 6
    with pytest.raises(UserError, match=r"its actions are none of mine, whose space is Discrete\(3, start=1\)"):
        read_recorded(file_of(tmp_path), task)


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    broken, text = tmp_path / "broken.npz", tmp_path / "rows.jsonl"
    broken.write_bytes(b"PK nothing")
    text.write_text("{}\n")
    (tmp_path / "empty").mkdir()
    arrow = tmp_path / "arrow" / "data"
    arrow.mkdir(parents=True)
    (arrow / "metadata.json").write_text('{"data_format": "arrow"}')
    told = {
        broken: "broken.npz cannot be read: ",
        text: "rows.jsonl is none that polyrl reads: give a Minari data set's folder, or an .npz file.",
        tmp_path / "nowhere": "There is no data ",
        tmp_path / "empty": "empty is no Minari data set: it has no data/main_data.hdf5",
        arrow: "polyrl reads those in the format hdf5",
    }
    for path, said in told.items():
        with pytest.raises(UserError) as error:
            read_recorded(path, task_of())
        assert said in str(error.value), path


def test_damaged_data_sets_are_told(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    task = task_of()
    folder = minari(tmp_path / "walk", task, as_episodes(arrays()), env_spec=json.dumps({"id": "Pendulum-v1"}))
    file, facts = folder / "data" / "main_data.hdf5", folder / "data" / "metadata.json"
    (said,) = read_recorded(folder, task).notices
    assert said.endswith("walk was recorded on Pendulum-v1, and is read for mine.")
    other = task_of(spaces.Box(-1, 1, (5,), np.float32))
    with pytest.raises(UserError, match=r"episode 0: its observations are none of mine.*--task \(its facts name Pend"):
        read_recorded(folder, other)
    with h5py.File(file, "a") as held:
        del held["episode_1"]["rewards"]
    with pytest.raises(UserError, match="episode 1 has no 'rewards'; each episode needs observations, actions, rewar"):
        read_recorded(folder, task)
    with h5py.File(file, "a") as held:
        del held["episode_2"]
    with pytest.raises(UserError, match=r"holds 2 episodes, and metadata.json beside it says 3; it is not whole"):
        read_recorded(folder, task)
    facts.write_text("{")
    with pytest.raises(UserError, match=r"metadata.json cannot be read"):
        read_recorded(folder, task)
    facts.unlink()
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"main_data.hdf5 cannot be read as HDF5: OSError"):
        read_recorded(folder, task)


# --------------------------------------------------------------------------------------------------------- sampling


def test_sampling_is_uniform_and_follows_its_stream(tmp_path: Path) -> None:
    rows = GivenTransitions("data", Transitions(), read_recorded(file_of(tmp_path), task_of()))
    found = rows.sample(14_000, torch.Generator().manual_seed(1))
    counts = torch.bincount(found["row"][:, 0], minlength=7)
    assert int(counts.min()) > 1790 and int(counts.max()) < 2210  # 2000, five deviations of 41
    assert torch.equal(found["observation"][:, 0, 0], found["row"][:, 0].float()) and bool((found["weight"] == 1).all())
    again = rows.sample(14_000, torch.Generator().manual_seed(1))
    assert torch.equal(found["row"], again["row"])
    assert set(found.fields()) == Transitions.fields and rows.ready() and rows.facts() == {"data/steps": 7}


def test_rewards_are_brought_to_a_range_of_returns(tmp_path: Path) -> None:
    recorded = read_recorded(file_of(tmp_path), task_of())
    assert return_range_scale([4.5, 10.5]) == pytest.approx(1000 / 6)
    found = all_rows(recorded, reward_scale="return-range", reward_shift=-1.0)
    torch.testing.assert_close(found["reward"], torch.arange(7.0) * 1.5 * 1000 / 6 - 1)
    for returns, said in (([], "there is no whole episode"), ([2.0, 2.0], "all episodes return the same")):
        with pytest.raises(UserError, match=f"no range of returns: {said}; set --reward-scale none"):
            return_range_scale(returns)


def test_a_mixed_batch_says_whose_rows_stand_where() -> None:
    assert Sample("data", batch_size=9).places() == {"data": slice(None)}
    mix = Mix("data", "replay", batch_size=10, share=0.3)
    rows = [*range(10)]
    assert {name: rows[place] for name, place in mix.places().items()} == {"data": rows[:3], "replay": rows[3:]}
    assert rows[Mix("data", "replay", batch_size=10, share=0.0).places()["replay"]] == rows
    assert mix.reads() == {"data", "replay"}


# ------------------------------------------------------------------------------------------ runs that collect nothing


def config_of(data: Path, **settings: Any) -> RunConfig:
    fields: dict[str, Any] = {
        **{"method": "bc", "task": "Pendulum-v1", "dataset": str(data), "budget": "iterations=3", "evaluations": 1},
        **{"eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1},
        "hyperparameters": {"turns": "4", "hidden": "8", "batch_size": "16"},
    }
    return RunConfig(**{**fields, **settings})


def test_a_run_without_environments_counts_updates(tmp_path: Path) -> None:
    said: list[str] = []
    loop = start_run(config_of(pendulum_file(tmp_path)), tmp_path / "run", say=said.append)
    loop.run()
    records = read_records(tmp_path / "run")
    assert [r["updates"] for r in records] == [0, 4, 8, 12] and {r["steps"] for r in records} == {0}
    assert all(r["data/steps"] == 60 and r["updates_per_second"] > 0 for r in records[1:])
    assert loop.run_state.collector is None
    assert len(said) == 1 and said[0].startswith("data: 60 transitions; 3 episodes with returns from ")
    config = loop.folder.read_config()
    assert config["data"]["data"]["steps"] == 60 and config["data"]["data"]["episodes"] == 3
    assert config["problem"]["data"] == config["data"]["data"]["digest"]
    summary = loop.folder.read_summary()
    assert summary["throughput"]["unit"] == "updates" and "collect" not in summary["throughput"]


def test_a_budget_that_never_ends_is_refused(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path)
    with pytest.raises(
        UserError, match="bc collects nothing, so a budget of steps never ends; give one of updates, it"
    ):
        make_loop(config_of(data, budget="steps=100"))
    assert make_loop(config_of(data, budget="steps=100,updates=3"))[0].context.budget.updates == 3
    assert completed(config_of(data, budget="")).budget == "iterations=100"
    assert completed(config_of(data, method="sac", budget="", hyperparameters={})).budget == "steps=100000"
    with pytest.raises(UserError, match=r"different budgets of their own, iterations=100 \(bc\) and that of the task"):
        completed(config_of(data, budget="", hyperparameters={}), methods=["bc", "sac"])


def test_data_is_asked_for_and_its_absence_told(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path)
    with pytest.raises(UserError, match="bc learns from recorded transitions; name their file or folder with --datase"):
        make_loop(config_of(data, dataset=None))
    with pytest.raises(UserError, match="--dataset means nothing for sac, which learns from no data; leave it away"):
        start_run(config_of(data, method="sac", hyperparameters={}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config, task = config_of(data), ControlTask("Pendulum-v1")
    refuse_unused(config, [catalogue.build("sac"), bc.recipe()], task, "control")  # one arm of the comparison reads it
    with pytest.raises(UserError, match="Rows are data of language; give the data of Pendulum-v1 as a file or folder"):
        polyrl.train(bc.recipe(), task="Pendulum-v1", dataset=[{"prompt": "a"}], out=tmp_path / "run", quiet=True)
    bad = pendulum_file(tmp_path, rewards=np.where(np.arange(60) == 7, np.nan, 1.0))
    loop = make_loop(config_of(bad, skip_bad_rows=True))[0]
    assert loop.run_state.rows_left_out == 1 and "row 7: its reward is not finite" in loop.run_state.notices()[0]


def test_which_task_data_belongs_to() -> None:
    assert task_with_data(None, ["bc"]) is None
    assert task_with_data("HalfCheetah-v5", ["bc"]) == "HalfCheetah-v5"
    assert task_with_data(None, ["grpo"]) == "dataset"
    assert task_with_data("CartPole-v1", ["ppo"]) == "CartPole-v1"
    with pytest.raises(UserError, match="Give either --task or --dataset, not both"):
        task_with_data("addition", ["grpo"])


def stopped_after(iterations: int, loop: Any) -> None:
    """Run a loop and interrupt it."""
    iterate, count = loop.iterate, 0

    def stops(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count > iterations:
            raise KeyboardInterrupt
        return iterate(*given)

    loop.iterate = stops
    with pytest.raises(KeyboardInterrupt):
        loop.run()


def test_a_run_goes_on_with_the_same_data_only(tmp_path: Path) -> None:
    data = pendulum_file(tmp_path)
    start_run(config_of(data), tmp_path / "whole").run()
    stopped_after(2, start_run(config_of(data), tmp_path / "half"))
    before = data.read_bytes()
    pendulum_file(tmp_path, rewards=np.ones(60))
    with pytest.raises(UserError, match=r"The training data of .*half is not what the run began with"):
        resume_run(tmp_path / "half")
    data.write_bytes(before)
    resume_run(tmp_path / "half").run()
    assert comparable(tmp_path / "half") == comparable(tmp_path / "whole")
    data.unlink()  # what was learned needs no data any more
    assert open_policy(tmp_path / "half").evaluate()[0] == read_last(tmp_path / "whole")


def read_last(folder: Path) -> dict[str, float]:
    return {k: v for k, v in read_records(folder)[-1].items() if k.startswith("eval/")}


def test_runs_on_other_data_are_of_another_problem(tmp_path: Path) -> None:
    from polyrl.report.problems import find_problems

    facts = []
    for rewards in (np.zeros(60), np.zeros(60), np.ones(60)):
        facts.append(make_loop(config_of(pendulum_file(tmp_path, rewards=rewards)))[1])
    assert [len(p.runs) for p in find_problems(facts)] == [2, 1]


def test_the_command_line_trains_traces_compares_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, small = str(pendulum_file(tmp_path)), ["--turns", "3", "--hidden", "8", "--batch-size", "8"]
    commands.main(["trace", "bc", "--dataset", data, *small], standalone_mode=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "data holds 60 steps" in told and "train policy on 8 rows of data" in told and "1 COLLECT" not in told
    quick = ["--budget", "iterations=2", "--eval-episodes", "1", "--evaluations", "1", "--no-tensorboard", "--quiet"]
    folder = str(tmp_path / "compared")
    asked = ["compare", "bc", "bc+deterministic", "--dataset", data, "--seeds", "1", "--workers", "1", "--out", folder]
    commands.main([*asked, *quick, *small], standalone_mode=False)
    capsys.readouterr()
    page = tmp_path / "page.html"
    commands.main(["report", folder, "--out", str(page)], standalone_mode=False)
    assert "bc+deterministic" in capsys.readouterr().out and page.stat().st_size > 10_000


def test_the_guide_of_python_takes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = {"eval_episodes": 1, "evaluations": 1, "tensorboard": False}
    asked: dict[str, Any] = {"budget": "iterations=1", "turns": 2, "hidden": "8", "options": options}
    result = polyrl.train("bc", dataset=pendulum_file(tmp_path), out=out, quiet=True, **asked)
    assert result.spent["updates"] == 2 and np.isfinite(result.final["eval/return"])
    recipe = bc.recipe()
    again = polyrl.train(
        recipe, task="Pendulum-v1", dataset=pendulum_file(tmp_path), out=out, overwrite=True, quiet=True, **asked
    )
    assert again.final == result.final
    assert PythonObjects(recipe=recipe).names() == ("method",)
