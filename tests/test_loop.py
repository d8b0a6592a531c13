"""The loop on a run of one number: what a failed iteration leaves, what checkpoints keep, how a resume goes on."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import read_records, timeless
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.loop import Loop
from polyrl.errors import Diverged, UserError
from polyrl.models.stored import Stored, StoredTables
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.select import AllSteps
from polyrl.recipe import Part, Recipe, Stage
from polyrl.run_state.base import RunState
from polyrl.runtime.budget import Budget
from polyrl.runtime.checkpoint import checkpoints, iteration_of, load_stores, read_state, save_checkpoint
from polyrl.runtime.run_folder import RunFolder

ITERATIONS = 7


@dataclass
class Trouble:
    """When something fails, and what it raises there."""

    before_the_step: dict[int, Exception] = field(default_factory=dict)
    after_the_step: dict[int, Exception] = field(default_factory=dict)
    in_evaluation: dict[int, Exception] = field(default_factory=dict)


FILE = "policy.safetensors"


class OneNumber(RunState):
    """The policy is one weight; the return is how large it is."""

    def __init__(self, trouble: Trouble) -> None:
        self.weight, self.trouble = nn.Parameter(torch.zeros(1)), trouble
        self.rewound = self.evaluated = 0
        self.monitored: list[bool] = []

    def stored(self) -> dict[str, Stored]:
        return {"policy": StoredTables(FILE, lambda: {"weight": self.weight}, self.take, [("weight", self.weight)])}

    def take(self, read: dict[str, Tensor]) -> None:
        self.weight.copy_(read["weight"])

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        return {"logprob": self.weight * experience["action"], "entropy": 0 * self.weight * experience["action"]}

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        self.evaluated += 1
        if error := self.trouble.in_evaluation.pop(self.evaluated, None):
            raise error
        return {"eval/return": self.weight.item()}, [{"weight": self.weight.item()}]

    def monitor(self, experience: Experience, context: Context) -> None:
        self.monitored.append("weight" in experience and not context.params_updated)

    def rewind(self) -> None:
        self.rewound += 1


@dataclass(frozen=True, kw_only=True)
class DrawNumbers(Part):
    stage: ClassVar[Stage] = "collect"
    gives: ClassVar[frozenset[str]] = frozenset({"action", "mask"})

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        action = torch.rand(4, 3, generator=context.generator("collect"))
        context.spent.samples += 4
        context.spent.steps += 12
        return Experience({"action": action, "mask": torch.ones(4, 3, dtype=torch.bool)})


@dataclass(frozen=True, kw_only=True)
class JudgeByMemory(Part):
    """Advantages depend on what the part remembers, as numbers and as tensors, so that a lost memory shows."""

    stage: ClassVar[Stage] = "credit"
    needs: ClassVar[frozenset[str]] = frozenset({"action"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})

    def __call__(self, experience: Experience, context: Context) -> Experience:
        memory, kept = context.memory(self.name), context.tensors(self.name)
        memory.setdefault("seen", []).append(context.iteration)
        for name, new in (("mean", experience["action"].mean(0)), ("most", experience["action"].amax(0))):
            kept[name] = kept.get(name, torch.zeros(3)) * 0.9 + new
        if error := context.run_state.trouble.before_the_step.pop(context.iteration, None):
            raise error
        advantage = experience["action"] - kept["mean"] / 9 + 0.1 * kept["most"] + 0.01 * len(memory["seen"])
        return experience.with_fields(advantage=advantage)


@dataclass(frozen=True, kw_only=True)
class Gradient(PolicyGradient):
    def on_update_end(self, metrics: dict[str, float], context: Context) -> None:
        if error := context.run_state.trouble.after_the_step.pop(context.iteration, None):
            raise error


def loop_of(path: Path | None, trouble: Trouble | None = None, **settings: Any) -> Loop:
    """A loop in `path`: a new run, or one to be resumed where the folder is there."""
    run_state = OneNumber(trouble or Trouble())
    recipe = Recipe(
        name="counting",
        collect=DrawNumbers(),
        score=(),
        credit=(JudgeByMemory(),),
        select=(AllSteps(),),
        terms=(Gradient(),),
        optimize=Optimize(learning_rate=0.1, epochs=2, minibatches=2),
    ).check()
    folder = None
    if path is not None:
        folder = RunFolder(path) if path.exists() else RunFolder.create(path)
    context = Context(run_state=run_state, seed=3, budget=Budget(iterations=ITERATIONS))
    more = {"evaluations": 3, "checkpoint_every": 3, "tensorboard": False, **settings}
    return Loop(recipe=recipe, run_state=run_state, context=context, folder=folder, **more)


def told(path: Path) -> tuple[Any, Any]:
    """What a run wrote, without its times."""
    return timeless(read_records(path)), read_records(path, "samples.jsonl")


def saved(path: Path) -> list[int]:
    return [iteration_of(p) for p in checkpoints(path / "checkpoints")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    loop_of(path).run()
    return path


def ends_as(path: Path, whole: Path) -> None:
    assert told(path) == told(whole)
    weights = [load_file(p / "model" / "policy.safetensors")["weight"] for p in (path, whole)]
    assert torch.equal(*weights)
    summaries = [json.loads((p / "summary.json").read_text()) for p in (path, whole)]
    for summary in summaries:
        del summary["spent"]["seconds"]
    assert all(summaries[0][k] == summaries[1][k] for k in ("status", "iteration", "spent", "start", "final"))


def test_a_whole_run_counts_what_it_did(whole: Path) -> None:
    records = read_records(whole)
    assert [r["iteration"] for r in records] == [*range(ITERATIONS + 1)]
    assert [r["samples"] for r in records] == [4 * i for i in range(ITERATIONS + 1)]
    assert [r["updates"] for r in records] == [4 * i for i in range(ITERATIONS + 1)]
    # at the start, where a third of the budget is passed, and at the end
    assert [r["iteration"] for r in records if "eval/return" in r] == [0, 3, 5, 7]
    assert saved(whole) == [6, 7]
    state = read_state(whole / "checkpoints" / "iteration-000007")
    assert state["spent"]["iterations"] == 7 and state["memories"]["judge-by-memory"]["seen"] == [*range(1, 8)]


@pytest.mark.parametrize("at", [1, 2, 5, 7])
def test_an_iteration_that_fails_before_its_step_leaves_no_trace(at: int, tmp_path: Path, whole: Path) -> None:
    loop = loop_of(tmp_path / "run", Trouble(before_the_step={at: UserError("the service is gone")}))
    with pytest.raises(UserError, match="service"):
        loop.run()
    assert loop.run_state.rewound == 1 and saved(tmp_path / "run")[-1] == at - 1  # type: ignore[attr-defined]
    state = read_state(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert state["memories"].get("judge-by-memory", {}).get("seen", []) == [*range(1, at)]
    assert state["spent"]["samples"] == 4 * (at - 1) and state["spent"]["iterations"] == at - 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    again = loop_of(tmp_path / "run")
    assert again.resume() == at - 1
    again.run()
    ends_as(tmp_path / "run", whole)


@pytest.mark.parametrize("at", [2, 5])
def test_an_iteration_that_fails_after_its_step_goes_back_to_the_last_checkpoint(
    at: int, tmp_path: Path, whole: Path
) -> None:
    """The weights have moved: what they are now is between two iterations."""
    loop = loop_of(tmp_path / "run", Trouble(after_the_step={at: UserError("too late")}))
    with pytest.raises(UserError, match="too late"):
        loop.run()
    last = 3 * ((at - 1) // 3)
    assert saved(tmp_path / "run")[-1] == last and loop.run_state.rewound == 0  # type: ignore[attr-defined]
    again = loop_of(tmp_path / "run")
    assert again.resume() == last
    again.run()
    ends_as(tmp_path / "run", whole)


def test_weights_that_diverged_make_no_checkpoint(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", Trouble(before_the_step={5: Diverged("the weights are not finite")}))
    with pytest.raises(Diverged):
        loop.run()
    assert saved(tmp_path / "run") == [0, 3]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["diverged"] is True


def test_an_iteration_whose_evaluation_fails_is_done(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", Trouble(in_evaluation={2: UserError("no judge")}))
    with pytest.raises(UserError, match="no judge"):
        loop.run()
    assert saved(tmp_path / "run")[-1] == 3
    assert [r["iteration"] for r in read_records(tmp_path / "run")] == [0, 1, 2, 3]
    again = loop_of(tmp_path / "run")
    assert again.resume() == 3
    again.run()
    assert read_records(tmp_path / "run")[-1]["iteration"] == ITERATIONS


def test_the_run_state_is_looked_at_between_selection_and_update() -> None:
    loop = loop_of(None)
    for _ in range(2):
        loop.iterate()
    assert loop.run_state.monitored == [True, True]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------ checkpoints


def checkpoint_in(root: Path, iteration: int, keep: int = 2) -> Path:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(1)
    optimizer.step()

    def save(folder: Path) -> None:
        save_file({"weight": weight.detach()}, folder / "policy.safetensors")

    stores = {"part": {"a": torch.arange(3), "b": torch.ones(2)}, "other": {"a": torch.zeros(1)}}
    names = {"policy": ["weight"]}
    state: dict[str, Any] = {"spent": {}, "seconds": {}, "start": {}, "final": {}, "memories": {}}
    return save_checkpoint(root, iteration, state, {"policy": optimizer}, names, save, stores, keep=keep)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(keep: int, tmp_path: Path) -> None:
    for iteration in (1, 5, 11, 101):
        checkpoint_in(tmp_path, iteration, keep)
    assert [iteration_of(p) for p in checkpoints(tmp_path)] == [1, 5, 11, 101][-keep:]


def test_tensors_of_parts_come_back(tmp_path: Path) -> None:
    found = load_stores(checkpoint_in(tmp_path, 1))
    assert {part: sorted(kept) for part, kept in found.items()} == {"part": ["a", "b"], "other": ["a"]}
    assert found["part"]["a"].tolist() == [0, 1, 2] and found["part"]["b"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer-policy.safetensors", "parts.safetensors"])
def test_a_file_that_was_changed_is_found(name: str, tmp_path: Path) -> None:
    folder = checkpoint_in(tmp_path, 1)
    assert read_state(folder)["iteration"] == 1
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        read_state(folder)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = checkpoint_in(tmp_path, 1)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": "somebody-elses-1"}))
    with pytest.raises(UserError, match="is not a checkpoint of this version"):
        read_state(folder)


def test_what_is_stored_goes_by_one_way_in_every_domain(tmp_path: Path) -> None:
    """Save, load and the list of parameters are made of what a run state lists."""
    state, other = OneNumber(Trouble()), OneNumber(Trouble())
    state.weight.data.fill_(2.5)
    state.save(tmp_path)
    other.load(tmp_path)
    assert other.weight.item() == 2.5 and [*other.parameters()] == ["policy"]
    assert other.parameters()["policy"][0][1] is other.weight
    save_file({"weight": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(UserError, match="are of another task: 'weight' does not fit"):
        other.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=f"has no readable {FILE}; it is not the state of such a run"):
        other.load(tmp_path)
    overridden = {"save", "load", "parameters"}
    for module in ("language_run_state", "reward_model", "operations", "theory"):
        home = importlib.import_module(f"polyrl.run_state.{module}")
        kinds = [kind for kind in vars(home).values() if isinstance(kind, type) and issubclass(kind, RunState)]
        assert kinds and not any(overridden & vars(kind).keys() for kind in kinds if kind is not RunState), module
