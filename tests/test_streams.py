"""Random streams of whole runs: seed, purpose and iteration all matter, and training never meets evaluation.

Each method of the catalogue runs on something tiny while every stream that it asks for is written down: those of
`polyrl.runtime.seeding`, and the rows of language tasks, each of which is drawn from a stream of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import polyrl
from control_environments import Walk, pendulum_file
from parts_run_state import PartsRunState
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.methods.language.remax import SampleWithGreedyBaseline
from polyrl.parts.collect import SampleResponses
from polyrl.parts.imitation import DemonstratedPrompts
from polyrl.parts.pairs import SamplePairs
from polyrl.parts.windows import WindowedRollouts
from polyrl.pretrain.demonstrations import STREAM as DEMONSTRATIONS
from polyrl.pretrain.tiny import build_tiny
from polyrl.recipe import Recipe
from polyrl.runs import make_loop
from polyrl.runtime import seeding
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control import has_demonstrations
from polyrl.tasks.language import task as language_task
from polyrl.tasks.operations import task as operations_task
from run_states import VOCABULARY, make_context
from test_composition import SIZE, SMALL_BATCH, SMALL_TASKS

SEED, OTHER_SEED = 7077, 7078
EVALUATION_SEED = 1234
COMPOSED = (
    "capo+random-drop",
    "hdpo(stored=32)",
    "reinforce(stored=32)",
)
"""Beside every method: parts that draw numbers of their own and that no method has."""
EXACT = ("bilevel-penalty", "nash-md", "nash-mp", "self-play")
"""Methods that go through every answer and draw nothing."""
OF_A_RUN = ("jsrl",)
"""Methods with a model of another run, which tests of their own make."""
REPEATED = {
    "pairs": "the order of an epoch of fixed pairs, drawn again by each of its iterations",
    "order": "the order of an epoch of an offline set, drawn again by each of its iterations",
    "traces": "blocks of a fixed store of traces come around again",
    **dict.fromkeys(
        ("bilevel pairs", "emulator", "episodes", "restarts", "stream", "ties", "trees"),
        "numbers of a finite MDP are a function of stream, row and time, and rows are counted over the run",
    ),
}
"""Streams that several iterations share, by one of their names, and why."""
FIXED = {
    "pretraining": "starting models are shared by all seeds",
    "labels": "the fixed pairs of a task",
    "reward head": "the learned reward of a task",
    "reward training": "the learned reward of a task",
    "reward samples": "the learned reward of a task",
    "dpo policy": "what a task's token rewards come from",
    "stores": "a setting of operations",
    "costs": "a setting of operations",
    "matrix-game": "a game of theory",
    "adviser": "the learned adviser of a task",
    "advice": "a fixed adviser's answer in a state, the same whenever the state is met",
}
"""Streams of problems, which a run's seed does not change."""
KNOWN_PROBLEMS = ("rto",)
"""Methods that read rows of a task again, of the fixed seed 0, to tell whether something is made for that task."""

Key = tuple[str, ...]


@dataclass
class Drawn:
    """What one run asked for, by phase: "start", "evaluation" or the number of an iteration."""

    streams: dict[str, list[Key]] = field(default_factory=dict)
    rows: dict[str, set[str]] = field(default_factory=dict)
    numbers: dict[Key, int] = field(default_factory=dict)
    generators: dict[str, list[torch.Generator]] = field(default_factory=dict)
    phase: str = "start"

    def training(self) -> list[str]:
        return [phase for phase in self.streams if phase.isdigit()]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Writes down every stream that anything in polyrl asks for, and every generator that is made."""
    for module in pkgutil.walk_packages(polyrl.__path__, "polyrl."):  # one imported later would keep another test's
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, original, plain = Drawn(), seeding.stream_seed, random.Random

    def recorded(seed: int, *names: object) -> int:
        key = tuple(map(str, (seed, *names)))
        found.streams.setdefault(found.phase, []).append(key)
        found.numbers[key] = original(seed, *names)
        return found.numbers[key]

    class Recorded(plain):  # type: ignore[misc, valid-type]
        def __init__(self, named: Any = None):
            super().__init__(named)
            found.rows.setdefault(found.phase, set()).add(str(named))

    class Made(torch.Generator):
        def __init__(self, *_: Any):
            super().__init__()
            found.generators.setdefault(found.phase, []).append(self)

    monkeypatch.setattr(torch, "Generator", Made)
    for name, module in list(sys.modules.items()):
        if name.startswith("polyrl") and vars(module).get("stream_seed") is original:
            monkeypatch.setattr(module, "stream_seed", recorded)
    monkeypatch.setattr(random, "Random", Recorded)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny", 0, **SIZE)


def run(method: str, drawn: Drawn, tiny: Path, seed: int = SEED, iterations: int = 2) -> None:
    """A few iterations between evaluations."""
    info = catalogue.methods()[re.split(r"\+(?!$|\+)|\(", method)[0]]
    recipe = catalogue.build(method, domain=info.domain)
    known = {k.rpartition(".")[2] for k in recipe.hyperparameters()}
    small = {**SMALL_BATCH, "environments": 2, "steps_per_environment": 40, "epochs": 2, "minibatches": 2}
    small |= {"scenarios": 16, "periods": 6, "response_window": 8}
    small |= {"turns": 30, "random_steps": 10, "learning_starts": 20, "hidden": 8, "gradient_steps": 3}
    hyperparameters = {k: str(v) for k, v in small.items() if k in known}
    language = info.domain == "language"
    config = RunConfig(
        method=method,
        task={
            "air-taxis": "air-taxis(n=3,aircraft=1)",
            "coverage": "coverage(n=4,horizon=5)",
            "job-shop": "job-shop(n=3,machines=3)",
            "tsp": "tsp(n=6)",
        }.get(info.task, SMALL_TASKS.get(info.task, info.task)),
        model=str(tiny) if language else None,
        dataset=str(pendulum_file(tiny.parent)) if reads_data(recipe) and not has_demonstrations(info.task) else None,
        budget=f"iterations={iterations}",
        seed=seed,
        hyperparameters=hyperparameters,
        eval_prompts=4 if language else None,
        eval_episodes=2 if info.domain == "control" else None,
    )
    drawn.phase = "start"
    loop, _ = make_loop(config)
    if info.domain == "operations" and info.task in ("air-taxis", "coverage", "job-shop", "tsp", "cvrp"):
        loop.run_state.evaluation = dataclasses.replace(loop.run_state.evaluation, instances=4)
    elif info.domain == "operations":  # a few of the thousands of traces that it is judged on
        few = {"traces": 8, "periods": 6, "dropped": 2, "dev_traces": 8, "dev_periods": 6, "dev_dropped": 2}
        loop.run_state.evaluation = dataclasses.replace(loop.run_state.evaluation, **few)
    for i in range(iterations):
        drawn.phase = "evaluation"
        loop.run_state.evaluate()
        drawn.phase = str(i + 1)
        loop.iterate()
        assert loop.context.iteration == i + 1
    drawn.phase = "evaluation"
    loop.run_state.evaluate()


def reads_data(recipe: Recipe) -> bool:
    return any(source.from_dataset for source in recipe.sources.values())


def known_as(key: Key, names: dict[str, str]) -> bool:
    return any(name in names for name in key[1:])


def check(drawn: Drawn, seed: int = SEED, known_problems: bool = False) -> None:
    """What holds for the streams of every run."""
    trained: Counter[Key] = Counter()
    for phase in drawn.training():
        own = Counter(k for k in drawn.streams[phase] if not known_as(k, FIXED))
        for key, times in own.items():
            own_seed = key[0] == str(seed) or int(key[0]) in drawn.numbers.values()  # or it is of one that was named
            assert own_seed, f"the run's seed is not in the stream {key} of iteration {phase}"
            assert not all(name.isdigit() for name in key), f"the stream {key} of iteration {phase} has no name"
            assert times == 1 or known_as(key, REPEATED), f"{key} is drawn {times} times in iteration {phase}"
        trained.update({key for key in own if not known_as(key, REPEATED)})
    repeated = {key for key, times in trained.items() if times > 1}
    assert not repeated, f"iterations share {repeated}"
    judged = {k for k in drawn.streams.get("evaluation", []) if not known_as(k, FIXED)}
    assert not judged & {k for phase in drawn.training() for k in drawn.streams[phase]}
    assert all(key[0] != str(seed) for key in judged), "an evaluation depends on the run's seed"
    assert len(set(drawn.numbers.values())) == len(drawn.numbers), "two names give the same numbers"
    rows = {i: {r for r in drawn.rows.get(i, ()) if re.search(r"-(train|test)-", r)} for i in drawn.rows}
    fixed = (f"-train-{DEMONSTRATIONS + seed}-", *(("-train-0-", "-test-0-") if known_problems else ()))
    named = set(drawn.numbers.values())
    for phase in drawn.training():
        constant = [g.initial_seed() for g in drawn.generators.get(phase, ()) if g.initial_seed() not in named]
        assert not constant, f"iteration {phase} draws from generators whose seeds {constant} nobody named"
        assert [n for n in rows.get(phase, ()) if not any(o in n for o in (f"-train-{seed}-", *fixed))] == []
    assert all("-test-" in name and f"-{seed}-" not in name for name in rows.get("evaluation", ()))


@pytest.mark.parametrize("method", [*sorted({*catalogue.methods()} - {*OF_A_RUN}), *COMPOSED])
def test_no_stream_of_a_run_is_drawn_twice_and_all_follow_its_seed(method: str, drawn: Drawn, tiny: Path) -> None:
    run(method, drawn, tiny)
    check(drawn, known_problems=method in KNOWN_PROBLEMS)
    if method not in EXACT:
        assert any(drawn.streams.get(phase) for phase in drawn.training()), "nothing was written down"


def test_each_iteration_has_prompts_of_its_own(drawn: Drawn, tiny: Path) -> None:
    run("grpo", drawn, tiny, iterations=3)
    seen = [{re.sub(r"-\d+$", "", r) for r in drawn.rows[i] if "-train-" in r} for i in drawn.training()]
    assert all(len(rows) == 4 for rows in seen) and len(set.union(*seen)) == 12


# ---------------------------------------------------------------------------------------------------- one collect part


class PromptsRunState(PartsRunState):
    """Has the prompts of a real task, and answers each with tokens that are drawn at random, whatever it asks."""

    def __init__(self) -> None:
        super().__init__()
        self.task = language_task("reverse")
        self.policy = SimpleNamespace(encode_row=lambda row: [1 + len(row["prompt"]) % 5], pad_id=0)
        self.asked: list[str] = []

    def sample(
        self,
        rows: list[Any],
        sampling: Any,
        *,
        completions_per_prompt: int,
        generator: Any,
        greedy_baseline: bool = False,
    ) -> Experience:
        self.asked = [row["prompt"] for row in rows]
        each = completions_per_prompt + greedy_baseline
        fields = drawn_responses(len(rows) * each, generator)
        group = torch.arange(len(rows)).repeat_interleave(each)
        return Experience({**fields, "group": group, "greedy": torch.zeros(len(group), dtype=torch.bool)})

    def continuations(
        self, experience: Experience, row: torch.Tensor, *_: Any, generator: Any, **__: Any
    ) -> Experience:
        self.asked = experience.columns["prompt"]
        return Experience(drawn_responses(len(row), generator), {"completion": [""] * len(row)})


def drawn_responses(count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Three tokens each, all of them the policy's."""
    every = torch.ones(count, 3, dtype=torch.bool)
    return {
        "action": torch.randint(1, VOCABULARY, (count, 3), generator=generator),
        "present": every,
        "mask": every,
        "behaviour_logprob": torch.zeros(count, 3),
        "ended": torch.ones(count, dtype=torch.bool),
    }


@pytest.mark.parametrize(
    "part",
    [SampleResponses, SampleWithGreedyBaseline, SamplePairs, DemonstratedPrompts, WindowedRollouts],
    ids=lambda part: part.__name__,
)
def test_seeds_and_iterations_collect_other_prompts_and_other_samples(part: Any) -> None:
    def collected(seed: int, iteration: int) -> tuple[list[str], list[list[int]]]:
        context = make_context(PromptsRunState())
        context.seed = seed
        for context.iteration in range(1, iteration + 1):
            batch = part(prompts_per_step=6, completions_per_prompt=2)(None, context)
        return context.run_state.asked, batch["action"].tolist()

    found = {(seed, i): collected(seed, i) for seed in (0, SEED, OTHER_SEED) for i in (1, 2)}
    for (one, (asked, said)), (other, (asked_too, said_too)) in combinations(found.items(), 2):
        assert asked != asked_too, f"{one} and {other} have the same prompts"
        assert said != said_too, f"{one} and {other} draw the same samples"
    for at, once in found.items():
        assert collected(*at) == once


# ------------------------------------------------------------------------------------------------------- the streams


def test_seed_purpose_and_iteration_all_matter() -> None:
    def first(seed: int, name: str, iteration: int, *more: object) -> list[float]:
        context = make_context(None)
        context.seed, context.iteration = seed, iteration
        return torch.rand(4, generator=context.generator(name, *more)).tolist()

    drawn = [
        first(seed, name, i, *more)
        for seed in (0, 1, 2**40)
        for name in ("collect", "minibatches")
        for i in (1, 2, 11)
        for more in ((), (0,), (1,))
    ]
    assert len({tuple(d) for d in drawn}) == 3 * 2 * 3 * 3
    assert first(1, "collect", 2) == first(1, "collect", 2)
    assert first(1, "collect", 2) == torch.rand(4, generator=seeding.generator(1, "collect", 2)).tolist()


def test_streams_keep_their_numbers_in_every_version() -> None:
    """A resumed run, and the ledger, need the same numbers as ever."""
    assert seeding.stream_seed(0, "collect", 1) == 1280786626481617265
    assert seeding.generator(0, "collect", 1).initial_seed() == 1280786626481617265


# -------------------------------------------------------------------------------------- training meets no evaluation


class Seen(Walk):
    """Writes down the seeds of its episodes."""

    seeds: ClassVar[list[int]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        Seen.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def episodes_of(seed: int) -> tuple[set[int], set[int]]:
    """Seeds of the training episodes, each of which was met once, and of the evaluation episodes of a control run."""
    config = RunConfig(
        method="ppo",
        task="Seen",
        budget="iterations=2",
        seed=seed,
        eval_episodes=3,
        from_python=("task",),
        hyperparameters={"environments": "3", "steps_per_environment": "32"},
    )
    loop, _ = make_loop(config, given=PythonObjects(environment=Seen))
    Seen.seeds.clear()
    loop.run_state.evaluate()
    judged = {*Seen.seeds}
    Seen.seeds.clear()
    for _ in range(2):
        loop.iterate()
    assert len({*Seen.seeds}) == len(Seen.seeds) > 3  # of three environments
    return {*Seen.seeds}, judged


@pytest.mark.parametrize("seed", [0, 1, EVALUATION_SEED])
def test_control_is_judged_on_episodes_that_no_seed_trains_on(seed: int) -> None:
    """Even a run whose seed is the evaluation's own."""
    trained, judged = episodes_of(seed)
    assert judged == {seeding.stream_seed(EVALUATION_SEED, "environment", 0, k) % 2**31 for k in range(3)}
    assert len(trained) >= 3 and not trained & judged


def test_control_trains_on_other_episodes_with_another_seed() -> None:
    assert not episodes_of(0)[0] & episodes_of(1)[0]


@pytest.mark.parametrize("spec", ["reverse", "sort-pairs", "thinking"])
def test_language_rows_of_training_are_never_those_of_evaluation(spec: str) -> None:
    """Whatever the seeds: a problem belongs to one of the two splits."""
    made = language_task(spec)
    judged = {str(r["prompt"]) for r in made.rows("test", EVALUATION_SEED, 0, 60)}
    for seed in (0, EVALUATION_SEED):
        assert not judged & {str(r["prompt"]) for r in made.rows("train", seed, 0, 200)}


@pytest.mark.parametrize("split", ["dev", "test"])
def test_operations_are_judged_on_traces_that_no_run_trains_on(split: Any) -> None:
    made = operations_task("lost-sales")
    judged = made.traces(EVALUATION_SEED, split, 0, 8, 6)[0]
    for index in range(4):
        assert not torch.equal(judged, made.traces(EVALUATION_SEED, "train", index, 8, 6)[0])
