"""Access: what tasks grant and parts ask for, refused where it does not fit; finite MDPs of the user's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import polyrl
from conftest import SEED, read_records
from polyrl import catalogue
from polyrl.core.access import ACCESS, in_words
from polyrl.core.part import Part
from polyrl.errors import UserError
from polyrl.parts.finite import PlayEpisodes, RestartEpisodes
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runs import make_loop, make_task, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks import DOMAINS, built_in, domain_of
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask

torch.set_num_threads(1)
DRAFTS = Path(__file__).parent / "drafts"
LAKE = """
from polyrl.tasks import theory
def make(far: float = 1.0) -> theory.FiniteMDP:
    stay, cross = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.2], [0.2, 0.8]]
    return theory.FiniteMDP([[stay[s], cross[s]] for s in range(2)], [[0.1, 0.0], [far, 0.0]], discount=0.9)
def silent():
    return make()
def wrong() -> "theory.FiniteMDP":
    return 3
def broken() -> theory.FiniteMDP:
    return theory.FiniteMDP([[[1.0]]], [[1.0, 2.0]], horizon=2)
"""


def config_of(method: str, task: str, **more: Any) -> RunConfig:
    options: dict[str, Any] = {"budget": "iterations=3", "seed": SEED, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, **{**options, **more})


def draft(name: str) -> str:
    """A draft's file, or the name of what is no draft any more."""
    return name if name == "psdp" else str(DRAFTS / f"{name}.py")


# ---------------------------------------------------------------------------------------------- asked and granted


def test_every_part_asks_in_words_that_there_are() -> None:
    classes = list[type[Part]]()
    for info in catalogue.methods().values():
        classes += [type(part) for part in catalogue.build(info.slug, domain=info.domain).parts()]
    asked = {kind: kind.access for kind in classes if kind.access}
    assert all(access <= set(ACCESS) for access in asked.values())
    said_by = {kind.__name__: set(access) for kind, access in asked.items()}
    assert said_by == {
        "PathwiseCost": {"differentiable"},
        "ExactWinRates": {"model"},
        "VineAdvantage": {"reset-to-state"},
        **{k: v for k, v in said_by.items() if v == {"reset-to-state"}},
        "FollowHypothesis": {"stream"},
        **{key: {"episodes"} for key in ("ExploreProblems", "ExploreSunflower", "PlayUniformly")},
        "PlayUntilReplaced": {"episodes"},
        **{key: {"reset-to-distribution"} for key in ("LayerEpisodes", "RestartEverywhere")},
        "GrowTrees": {"generative"},
        "KnowBandit": {"model"},
        "ProbeLayer": {"reset-to-distribution", "reset-to-state"},
    }


def test_every_task_says_what_it_grants() -> None:
    expected = {"language": "reset-to-state", "control": "episodes", "operations": "differentiable", "theory": "model"}
    for domain in DOMAINS:
        names = [n for n in built_in(domain) if domain != "control" or n in ("CartPole-v1", "Pendulum-v1")]
        for name in names[:4]:
            task = make_task(RunConfig(method="x", task=name, seed=0))
            built = (
                *(
                    "air-taxis",
                    "atsp",
                    "coverage",
                    "cvrp",
                    "experiment-design",
                    "job-shop",
                    "knapsack",
                    "orienteering",
                    "tsp",
                ),
            )
            plain = name in ("answer-tree", "garbage-tail", "token-sums", *built)  # by what they are
            assert {"episodes" if plain else expected[domain]} <= task.access <= set(ACCESS), name


def test_every_method_may_use_its_own_task() -> None:
    for slug in ("hdpo", "nash-mp", "dr-rpo", "vineppo", "ppo"):
        info = catalogue.methods()[slug]
        recipe = catalogue.build(slug, domain=info.domain)
        granted = make_task(RunConfig(method=slug, task=info.task or "addition", seed=0)).access
        assert all(part.required_access() <= granted for part in recipe.parts())


@pytest.mark.parametrize(
    ("method", "task", "words"),
    [
        (
            "psdp",
            "combination-lock(access=episodes+generative)",
            ("layer-episodes", "reset-to-distribution", "episodes"),
        ),
        ("ucbvi", "river-swim(horizon=4,access=generative)", ("play-episodes", "episodes access", "generative")),
        ("q_learning_generative", "combination-lock(access=episodes)", ("draw-every-pair", "generative", "episodes")),
        ("ucbvi", "river-swim", ("play-episodes", "asks for episodes access", "stream")),
    ],
)
def test_a_recipe_that_asks_for_more_than_is_granted_is_refused(
    method: str, task: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyrl.run_state import theory

    monkeypatch.setattr(theory, "make_run_state", lambda *_: pytest.fail("a model was made first"))
    with pytest.raises(UserError) as refused:
        make_loop(config_of(draft(method), task))
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words)


def test_what_is_asked_may_depend_on_a_hyperparameter() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Either(RestartEpisodes):
        access: ClassVar[frozenset[str]] = frozenset()
        restart: bool = hyperparameter(True, "whether it restarts")

        def required_access(self) -> frozenset[str]:
            return frozenset({"reset-to-distribution"} if self.restart else set())

    base = catalogue.build("psdp")
    for restart in (True, False):
        recipe = dataclasses.replace(base, collect=Either(restart=restart))
        given = PythonObjects(recipe=recipe)
        if restart:
            with pytest.raises(UserError, match="'either' asks for reset-to-distribution"):
                make_loop(config_of("x", "combination-lock(access=episodes)"), given=given)
        else:
            make_loop(config_of("x", "combination-lock(access=episodes)"), given=given)


def test_a_view_grants_no_more_than_the_problem() -> None:
    with pytest.raises(UserError, match=r"river-swim grants no episodes access; it can grant stream, reset-to-state"):
        make_task(config_of("x", "river-swim(access=episodes)"))
    with pytest.raises(UserError, match=r"no access 'strem'\. Did you mean 'stream'"):
        make_task(config_of("x", "river-swim(access=strem)"))
    assert make_task(config_of("x", "river-swim(access=stream)")).access == {"stream"}
    assert in_words(["model", "episodes", "stream"]) == "episodes, stream and model" and in_words([]) == "nothing"


def test_methods_of_other_problems_say_so() -> None:
    with pytest.raises(UserError, match="is for a robust MDP, and this is a finite MDP; try --task linear-mdp"):
        make_loop(config_of("dr-rpo", "combination-lock"))
    with pytest.raises(UserError, match="is for a finite MDP, and this is a robust MDP; try --task combination-lock"):
        make_loop(config_of(draft("ucbvi"), "linear-mdp"))
    with pytest.raises(UserError, match="is for a finite MDP, and this is a preference game"):
        make_loop(config_of(draft("ucbvi"), "rock-paper-scissors"))


# -------------------------------------------------------------------------------------------------- the user's own


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    file = tmp_path / "lake.py"
    file.write_text(LAKE)
    return file


def test_a_function_is_of_theory_by_what_it_says_that_it_returns(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.write_text(LAKE + "\nraise SystemExit('it was run')\n")
    assert domain_of(f"{lake}:make") == domain_of(f"{lake}:make(far=2)") == domain_of(f"{lake}:wrong") == "theory"
    assert domain_of(f"{lake}:silent") == domain_of(f"{lake}:gone") == domain_of("gone.py:make") == "control"
    monkeypatch.chdir(lake.parent)
    assert domain_of("lake:make") == "theory" and domain_of("lake:silent") == "control"


def test_a_problem_of_the_users_own_is_solved_and_resumed(lake: Path, tmp_path: Path) -> None:
    config = config_of(draft("q_learning_generative"), f"{lake}:make(far=2,access=generative)", budget="queries=1200")
    start_run(config, tmp_path / "run").run()
    records = read_records(tmp_path / "run")
    assert records[-1]["queries"] == 1200 and records[-1]["eval/suboptimality"] < 1e-9
    assert [r["queries"] for r in records[:3]] == [0, 4, 8]
    task = make_task(config)
    assert isinstance(task, FiniteTask) and task.access == {"generative"} and task.mdp.reward[0, 1, 0] == 2
    lake.write_text(LAKE.replace("0.1", "0.2"))
    with pytest.raises(UserError, match=r"The arrays of the MDP of .* is not what the run began with"):
        resume_run(tmp_path / "run", trust_code=True)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("silent", "returned a FiniteMDP without saying so; annotate it: -> FiniteMDP"),
        ("wrong", "says that it returns a FiniteMDP, and returned"),
        ("broken", "lake.py:broken: The reward has the shape"),
        ("make(depth=2)", "raised TypeError"),
    ],
)
def test_a_function_that_gives_no_problem_is_told_so(lake: Path, function: str, words: str) -> None:
    method = "ppo" if function == "silent" else draft("q_learning_generative")
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace("->", "->")):
        make_loop(config_of(method, f"{lake}:{function}"))


def test_python_takes_the_problem_itself(tmp_path: Path) -> None:
    mdp = FiniteMDP(np.full((2, 2, 2), 0.5), [[0.0, 1.0], [0.5, 0.0]], horizon=2)

    def make() -> FiniteMDP:
        return mdp

    for k, task in enumerate((mdp, make)):
        result = polyrl.train(
            draft("q_learning_generative"), task=task, budget={"iterations": 300}, out=tmp_path / str(k), quiet=True
        )
        assert result.final["eval/return"] == pytest.approx(1 + 0.75)
        assert result.spent["queries"] == 300 * 8


def test_a_composition_keeps_asking() -> None:
    recipe: Recipe = catalogue.build(draft("ucbvi")) + PlayEpisodes(episodes=2)
    assert recipe.collect is not None and recipe.collect.required_access() == {"episodes"}
