"""Models of theory by name: tables against plain formulas, lists that read as the papers do, what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import Command
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.update import Fresh, Move, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.methods.preference.nash_mp import MirrorProx
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.tables import (
    ActionValueTable,
    LogProbabilityTable,
    PolicyTable,
    RidgeRegressions,
    SoftmaxTable,
    TableModels,
    TrainedSoftmaxTable,
)
from polyrl.parts.theory import EnumerateAnswers, ExactWinRates
from polyrl.recipe import Recipe
from polyrl.run_state.theory import make_run_state, make_task
from polyrl.runtime.config import RunConfig
from polyrl.tasks.theory import task as built_in_task
from test_theory_methods import RPS, iterated, prepared


def models_of(task: str = RPS, **entries: Any) -> TableModels:
    return TableModels(entries, built_in_task(task))


def run_state_of(recipe: Recipe, task: str) -> Any:
    config = RunConfig(method="mine", task=task, seed=0)
    return make_run_state(config, make_task(config, None), recipe)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- tables


def test_tables_begin_as_the_problem_says() -> None:
    game, mdp = built_in_task(RPS), built_in_task("linear-mdp")
    models = models_of(policy=SoftmaxTable(), anchor=LogProbabilityTable(), other=Copy("policy"))
    for name in models:
        assert models[name].log_policy.exp().tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-15)
    assert models["policy"].log_policy.dtype == torch.float64 and torch.equal(
        models["policy"].logits, game.log_reference
    )
    models = models_of("linear-mdp", policy=PolicyTable(), q=ActionValueTable(), seen=RidgeRegressions(ridge=0.3))
    assert models["policy"].probabilities.shape == models["q"].values.shape == (3, 5, 16)
    assert torch.equal(models["policy"].probabilities[1, 2], mdp.log_reference.exp().expand(5, 16)[2])
    assert torch.equal(models["seen"].precision, 0.3 * torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    assert not models["q"].values.any() and not models["seen"].moments.any()


def test_regressions_take_in_an_episode_as_sums_of_outer_products() -> None:
    seen = models_of("linear-mdp", seen=RidgeRegressions())["seen"]
    phi = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for following in ([1, 1, 4], [2, 1, 4]):
        seen.add(phi, torch.tensor(following))
    for h in range(3):
        assert torch.allclose(
            seen.precision[h], 0.1 * torch.eye(4, dtype=torch.float64) + 2 * torch.outer(phi[h], phi[h])
        )
    assert torch.equal(seen.moments[0, :, 1], phi[0]) and torch.equal(seen.moments[0, :, 2], phi[0])
    assert torch.equal(seen.moments[2, :, 4], 2 * phi[2]) and float(seen.moments[2, :, :4].abs().sum()) == 0


def test_a_gradient_step_is_that_of_torchs_descent_and_trains_one_model_alone() -> None:
    models = models_of(policy=TrainedSoftmaxTable(learning_rate=0.3), target=Copy("policy"))
    optimizers = models.optimizers()
    assert [*optimizers] == ["policy"]
    batch = Experience({"action": torch.tensor([[0], [2], [2]]), "present": torch.ones(3, 1, dtype=torch.bool)})
    plain = models["policy"].logits.detach().clone().requires_grad_()
    torch.log_softmax(plain, -1)[torch.tensor([0, 2, 2])].sum().backward()
    torch.optim.SGD([plain], lr=0.3).step()
    before = models["target"].logits.clone()
    with See(models, None, "policy-update").gradients("policy"):  # type: ignore[arg-type]
        with models.passes("policy", batch, {"logprob"}, None) as passes:  # type: ignore[arg-type]
            ((rows, outputs),) = passes
        outputs["logprob"].sum().backward()
    optimizers["policy"].step()
    assert rows is None and torch.equal(models["policy"].logits, plain) and torch.equal(models["target"].logits, before)
    assert not models["policy"].logits.requires_grad
    apart = float((plain.detach() - before).norm())
    assert models.distance("policy", "target") == pytest.approx(apart)
    models.move("target", "policy", 0.25)
    assert models.distance("policy", "target") == pytest.approx(0.75 * apart)
    models.move("target", "policy", 1)
    assert torch.equal(models["target"].logits, models["policy"].logits)


def test_log_probabilities_are_kept_to_the_bit_where_a_softmax_rounds_once_more() -> None:
    models = models_of(policy=SoftmaxTable(), anchor=LogProbabilityTable())
    rounded = 0
    for seed in range(100):
        drawn = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        written = torch.log_softmax(drawn, -1)
        models["policy"].assign(written)
        models.move("anchor", "policy", 1)
        assert torch.equal(models["anchor"].log_policy, written)
        assert torch.allclose(models["policy"].log_policy, written, atol=1e-14)
        rounded += not torch.equal(models["policy"].log_policy, written)
    assert rounded > 0


# -------------------------------------------------------------------------------------------------------- lists


def test_lists_have_the_models_and_steps_of_the_papers() -> None:
    recipes = {name: catalogue.build(name) for name in ("nash-mp", "nash-md", "self-play", "nash-mp-pg", "dr-rpo")}
    assert {name: [*recipe.models] for name, recipe in recipes.items()} == {
        "nash-mp": ["policy", "anchor"],
        "nash-md": ["policy"],
        "self-play": ["policy"],
        "nash-mp-pg": ["policy", "target"],
        "dr-rpo": ["policy", "q", "regressions"],
    }
    assert {name: [step.name for step in recipe.update_steps()] for name, recipe in recipes.items()} == {
        "nash-mp": ["mirror-prox", "anchor-move"],
        "nash-md": ["mixture-mirror-descent"],
        "self-play": ["online-mirror-descent"],
        "nash-mp-pg": ["epochs", "policy-update", "target-move"],
        "dr-rpo": ["regularized-softmax"],
    }
    assert [recipe.judged for recipe in recipes.values()] == ["anchor", "", "", "", ""]


def moves(method: str) -> list[tuple[str, str, float, int]]:
    steps = catalogue.build(method).update_steps()
    return [(s.target, s.towards, s.tau, s.every) for s in steps if isinstance(s, Move)]


def test_options_of_the_papers_say_when_and_how_far_copies_move() -> None:
    assert moves("nash-mp") == [("anchor", "policy", 1, 2)]
    assert moves("nash-mp(prox_steps=one)") == [("anchor", "policy", 1, 1)]
    assert moves("nash-mp-pg") == [("target", "policy", 0.1, 1)]
    assert moves("nash-mp-pg(kappa=0.4)") == [("target", "policy", 0.4, 1)]
    three = [("step", "policy", 1, 3), ("target", "policy", 1, 6), ("policy", "target", 1, 3)]
    assert moves("nash-mp-pg(opponent=step)+descend-in-steps(inner_steps=3)") == three
    later = catalogue.build("nash-mp-pg+descend-in-steps", {"opponent": "step", "inner_steps": 3})
    assert [s.every for s in later.update_steps() if isinstance(s, Move)] == [3, 6, 3] and later.judged == "target"


@pytest.mark.parametrize(
    ("method", "before", "now"),
    [
        ("nash-mp", "mirror-prox.prox_steps", "anchor-move.prox_steps"),
        ("nash-mp-pg", "descend-with-average.kappa", "target-move.kappa"),
        ("nash-mp-pg", "descend-with-average.learning_rate", "policy.learning_rate"),
        ("dr-rpo", "robust-backup.ridge", "regressions.ridge"),
    ],
)
def test_options_of_before_keep_their_names_and_whose_they_are_now_is_told(method: str, before: str, now: str) -> None:
    value = "one" if "steps" in before else "0.25"
    with pytest.raises(UserError, match=f"Did you mean '{now}'"):
        catalogue.build(method, {before: value})
    found = catalogue.build(method, {before.rpartition(".")[2]: value})
    assert str(found.hyperparameters()[now]) == value


def test_copies_of_version_two_move_together() -> None:
    with pytest.raises(UserError, match="its copies move after different numbers of steps; set --inner-steps for all"):
        catalogue.build("nash-mp-pg+descend-in-steps", {"opponent": "step", "target_move.inner_steps": 3})


def test_the_distance_to_the_target_is_of_after_the_move() -> None:
    loop = prepared("nash-mp-pg(kappa=0.3)", RPS, "iterations=9")
    for _ in range(3):
        loop.iterate()
        policy, target = (loop.run_state.models[name].log_policy for name in ("policy", "target"))
        wanted = float((policy.exp() * (policy - target)).sum())
        assert loop.context.metrics["kl_to_target"] == pytest.approx(wanted, rel=1e-12) and wanted > 0


def test_an_own_update_takes_the_place_of_one_that_improves_the_same_model() -> None:
    assert [s.name for s in catalogue.build("dr-rpo(eta=0)+dr-lsvi-ucb").updates] == ["greedy-policy"]
    one, other = (iterated(m, "linear-mdp", 20) for m in ("dr-rpo+dr-lsvi-ucb", "dr-lsvi-ucb"))
    assert torch.equal(one.policy, other.policy)
    for method, word in (
        ("nash-mp+self-play", "for the model 'policy' that reads no other model, and the list has none"),
        ("self-play+nash-mp", "for the model 'policy' that reads anchor, and the list has none"),
        ("self-play+nash-mp-pg", "for the model 'target' that reads policy, and the list has none"),
    ):
        with pytest.raises(UserError, match=word):
            catalogue.build(method)
    kept = catalogue.build("self-play(eta=3)") + dataclasses.replace(catalogue.build("self-play"), name="again")
    (step,) = kept.updates
    assert isinstance(step, OwnUpdate) and step.setting("eta", None) == 3  # what was set stays set


# ------------------------------------------------------------------------------------------------------ refused


def game_recipe(**changes: Any) -> Recipe:
    known: dict[str, Any] = {
        "name": "mine",
        "models": {"policy": SoftmaxTable(), "anchor": LogProbabilityTable()},
        "collect": EnumerateAnswers(),
        "score": (ExactWinRates(),),
        "updates": (MirrorProx("policy", Fresh()), Move("anchor", "policy")),
    }
    return Recipe(**{**known, **changes})


@pytest.mark.parametrize(
    ("recipe", "task", "words"),
    [
        (game_recipe(), "linear-mdp", "its part 'enumerate-answers' is for a preference game"),
        (game_recipe(models={"policy": PolicyTable()}), RPS, "its part 'policy-table' is for a robust MDP"),
        (game_recipe(models={}), RPS, "lists no models by name"),
        (game_recipe(models={"policy": QNetwork()}), RPS, r"'policy' \(q-network\) is none of theory"),
        (
            Recipe(name="mine", models={"policy": ActionValueTable()}),
            "linear-mdp",
            "acts by or judges 'policy', which is no policy of a robust MDP",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused_when_recipe_and_task_are_joined(
    recipe: Recipe, task: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_state_of(recipe, task)


def test_a_model_that_a_part_reads_must_be_stated() -> None:
    with pytest.raises(UserError, match="'mirror-prox' names the model 'anchor', which the recipe does not state"):
        game_recipe(models={"policy": SoftmaxTable()}, updates=(MirrorProx("policy", Fresh()),)).check()
    whole = catalogue.build("dr-rpo")
    for lost, kind in (("q", "action-value-table"), ("regressions", "ridge-regressions")):
        left = {name: model for name, model in whole.models.items() if name != lost}
        with pytest.raises(UserError, match=f"'robust-backup' needs a {kind} among the models, '{lost}'"):
            dataclasses.replace(whole, models=left).check()
    with pytest.raises(UserError, match="'proximal-cost' needs a model 'target'"):
        catalogue.build("nash-mp+proximal-cost")


@pytest.mark.parametrize("method", ["nash-mp", "dr-rpo"])
def test_folders_of_before_are_refused_in_one_sentence(method: str, tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    line = ["train", method, "--budget", "iterations=2", "--out", run, "--quiet"]
    assert polyrl(*line).code == 0
    tables: dict[str, Tensor] = {"policy": torch.zeros(3)}
    for folder in (run / "model", *(run / "checkpoints").iterdir()):
        save_file(tables, folder / "tables.safetensors")
    for command in (("play", run), ("resume", run, "--budget", "iterations=4")):
        told = polyrl(*command)
        assert told.code == 2 and told.err.count("\n") == 1
        assert "of an earlier version of polyrl" in told.err and "tables.safetensors; start the run again" in told.err


def test_a_step_that_is_not_finite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    models = models_of(policy=TrainedSoftmaxTable())
    models["policy"].logits.grad = torch.full((3,), math.inf, dtype=torch.float64)
    with pytest.raises(UserError, match=r"The model 'policy' became NaN or infinite, .* --policy\.learning-rate"):
        models.optimizers()["policy"].step()
