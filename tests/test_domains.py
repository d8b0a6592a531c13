"""Domains: which kind of task a name means, which file of a method fits it, and what is filled in unsaid."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from polyrl import catalogue
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.core.means import Means
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Architecture, Improver, hyperparameter
from polyrl.request import completed, default_task
from polyrl.runs import located, make_loop, plain
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.runtime.metric import Metric
from polyrl.tasks import DOMAINS, built_in, domain_of

# ------------------------------------------------------------------------------------------------------------ tasks


@pytest.mark.parametrize(
    ("task", "domain"),
    [
        ("addition", "language"),
        ("countdown(difficulty=4)", "language"),
        ("dataset", "language"),
        ("CartPole-v1", "control"),
        ("ALE/Pong-v5", "control"),
        ("some_package.envs:Thing-v0", "control"),
        ("envs.py:make", "control"),
        ("some.module:make", "control"),
        ("lost-sales(lead_time=2)", "operations"),
        ("rock-paper-scissors", "theory"),
    ],
)
def test_a_task_belongs_to_one_domain(task: str, domain: str) -> None:
    assert domain_of(task) == domain


def test_a_wrong_task_names_the_nearest_of_all_domains() -> None:
    for wrong, meant in (("adition", "addition"), ("lost-sale", "lost-sales"), ("rock-paper-scisors", "rock-paper-")):
        with pytest.raises(UserError, match=f"no task '{wrong}'.*{meant}"):
            domain_of(wrong)


def test_no_two_domains_share_a_task_and_listing_imports_nothing_heavy() -> None:
    names = [name for domain in DOMAINS for name in built_in(domain)]
    assert len(names) == len(set(names)) and len(names) > 10
    code = (
        "import sys; from polyrl.tasks import *; [built_in(w) for w in DOMAINS]; domain_of('CartPole-v1');"
        "print([m for m in ('torch', 'gymnasium', 'scipy', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- methods


def test_ppo_has_a_file_for_tokens_and_one_for_environments() -> None:
    assert [info.domain for info in catalogue.variants()["ppo"]] == ["language", "control"]
    assert build("ppo").collect.name == "sample-responses"
    control = build("ppo", {"environments": "3"}, domain="control")
    assert (
        control.collect.name == "step-environments" and control.hyperparameters()["step-environments.environments"] == 3
    )
    assert control.policy is not None and build("ppo").policy is None


def test_show_tells_of_the_method_s_other_form(capsys: pytest.CaptureFixture[str]) -> None:
    from polyrl.cli.explain import show_method

    show_method("ppo")
    language = capsys.readouterr().out
    assert "sample-responses" in language and "polyrl show ppo --task CartPole-v1" in language
    show_method("ppo", "control")
    control = capsys.readouterr().out
    assert "step-environments" in control and "polyrl trace ppo --task CartPole-v1" in control
    assert "polyrl show ppo --task addition" in control and "methods/control/ppo.py" in control.replace("\n", "")


def test_a_method_of_another_domain_is_refused_with_those_that_fit() -> None:
    with pytest.raises(UserError, match=r"'grpo' is a method for language tasks.*control; for it there (is|are) .*ppo"):
        build("grpo", domain="control")
    with pytest.raises(UserError, match="'hdpo' is a method for operations tasks"):
        build("hdpo", domain="language")


def test_preference_methods_run_in_the_language_domain() -> None:
    assert catalogue.methods()["dpo"].family == "preference" and catalogue.methods()["dpo"].domain == "language"


def test_every_method_names_a_task_of_its_domain() -> None:
    for slug, infos in catalogue.variants().items():
        for info in infos:
            assert domain_of(info.task) == info.domain, slug


# ------------------------------------------------------------------------------------------------- what is filled in


def test_task_and_budget_are_the_methods_and_the_tasks_own() -> None:
    assert completed(RunConfig(method="grpo")).task == "addition"
    assert completed(RunConfig(method="grpo")).budget == "samples=3000"
    said = completed(RunConfig(method="ppo", task="CartPole-v1"))
    assert (said.task, said.budget) == ("CartPole-v1", "steps=100000")
    assert completed(RunConfig(method="ppo", task="CartPole-v1", budget="steps=5")).budget == "steps=5"
    assert default_task(["grpo", "rloo+reference-kl"]) == "addition"


def test_methods_with_different_tasks_need_one_named() -> None:
    with pytest.raises(
        UserError, match=r"different tasks of their own, addition .grpo. and .* .hdpo.; name one with --task"
    ):
        default_task(["grpo", "hdpo"])


def test_an_environment_from_python_makes_a_run_of_control() -> None:
    from polyrl.request import domain

    assert domain(RunConfig(method="ppo", task="make_it"), PythonObjects(environment=lambda: None)) == "control"


def test_names_of_folders_hold_no_settings_and_no_paths() -> None:
    assert plain("ALE/Pong-v5") == "Pong-v5"
    assert plain("lost-sales(lead_time=2)") == "lost-sales"
    assert plain("/some/where/envs.py:make") == "envs.py-make"


def test_an_environment_file_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs.py").write_text("def make(): ...\n")
    monkeypatch.chdir(tmp_path)
    assert located(RunConfig(method="ppo", task="envs.py:make")).task == f"{tmp_path / 'envs.py'}:make"
    assert located(RunConfig(method="ppo", task="CartPole-v1")).task == "CartPole-v1"


# ------------------------------------------------------------------------------------- metrics, networks, improvers


def test_a_metric_is_read_back_as_it_was_stated() -> None:
    metric = Metric("eval/cost", "cost", "euro", False, "log", {"optimum": 6.0936, "heuristic": 6.3}, "optimum")
    assert Metric.read(metric.stated()) == metric
    assert Metric.read({}) == Metric() and Metric.read({"metric": "eval/x"}).key == "eval/x"
    with pytest.raises(ValueError, match="'best' is none of the lines optimum"):
        Metric(lines={"optimum": 1.0}, target="best")


@dataclass(frozen=True, kw_only=True)
class Wide(Architecture):
    """A wider network."""

    hidden: str = hyperparameter("8x8", "sizes")
    width: int = hyperparameter(3, "of something", low=1)


def test_an_architecture_is_set_listed_and_composed_like_a_part() -> None:
    recipe = build("ppo", domain="control")
    wide = (recipe + Wide()).set("width", "5").set("hidden", "16x16").check()
    assert wide.policy == Wide(hidden="16x16", width=5)
    assert wide.hyperparameters()["wide.width"] == 5 and wide.policy.name == "wide"
    assert (recipe.set("hidden", "9x9") + Wide()).policy == Wide(hidden="9x9")  # what both have is kept
    with pytest.raises(UserError, match=r"wide.width is 0 but must be at least 1"):
        wide.set("width", "0")
    with pytest.raises(UserError, match="grpo is given its policy, so 'wide' has nothing to replace"):
        build("grpo") + Wide()


def test_an_improver_takes_the_place_of_the_optimizer() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Exact(Improver):
        """Solve it."""

        needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    recipe = (build("grpo") + Exact()).check()
    assert recipe.optimize == Exact() and recipe.optimize.optimizers(None) == {}


# ------------------------------------------------------------------------------------------------------ experience


def test_steps_that_count_become_rows() -> None:
    batch = Experience(
        {
            "observation": torch.arange(12.0).reshape(2, 3, 2),
            "action": torch.tensor([[1, 2, 3], [4, 5, 6]]),
            "weight": torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]]),
            "length_limit": torch.tensor([7, 8]),
        }
    )
    steps = batch.steps()
    assert steps["action"].tolist() == [[1], [3], [5]]
    assert steps["observation"].tolist() == [[[0.0, 1.0]], [[4.0, 5.0]], [[8.0, 9.0]]]
    assert steps["length_limit"].tolist() == [7, 7, 8] and steps["weight"].tolist() == [[1.0], [1.0], [2.0]]


def test_rows_that_belong_together_are_never_parted() -> None:
    """The minibatches of a pairwise term hold whole pairs, whatever their number and the order of rows."""
    from polyrl.core.minibatches import rows_of_units, units_of

    class Pairwise:
        grouped_by = "pair"

    batch = Experience({"pair": torch.tensor([7, 3, 7, 9, 3, 9]), "weight": torch.ones(6, 1)})
    unit, name = units_of(batch, (Pairwise(),))  # type: ignore[arg-type]
    assert name == "pair" and unit.tolist() == [1, 0, 1, 2, 0, 2]
    assert rows_of_units(torch.tensor([2, 0]), unit, torch.arange(6)).tolist() == [1, 3, 4, 5]
    # rows that do not count are left
    assert rows_of_units(torch.tensor([0]), unit, torch.tensor([0, 1, 2])).tolist() == [1]


def test_one_norm_over_policy_and_critic() -> None:
    """joint_clip scales both gradients by one factor; without it each model has its own."""
    from polyrl.core.context import Context
    from polyrl.runtime.budget import Budget

    def stepped(joint: bool) -> tuple[float, float]:
        policy, critic = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        context = Context(run_state=None, seed=0, budget=Budget(samples=1))
        context.optimizer = {n: torch.optim.SGD([p], lr=1.0) for n, p in (("policy", policy), ("critic", critic))}
        policy.grad, critic.grad = torch.tensor([3.0]), torch.tensor([4.0])
        means = Means()
        Optimize(max_grad_norm=1.0, joint_clip=joint)._step(means, context)
        norms = {"grad_norm/joint": 5.0} if joint else {"grad_norm/policy": 3.0, "grad_norm/critic": 4.0}
        assert means.found() == pytest.approx(norms)
        return -policy.item(), -critic.item()

    assert stepped(True) == pytest.approx((0.6, 0.8), rel=1e-5)
    assert stepped(False) == pytest.approx((1.0, 1.0), rel=1e-5)


def test_a_recipe_of_another_domain_is_refused_before_a_model_is_made() -> None:
    tasks = {"language": "addition", "control": "CartPole-v1", "operations": "lost-sales", "theory": "linear-mdp"}
    for slug, infos in catalogue.variants().items():
        own = {info.domain for info in infos}
        for info in infos:
            recipe = build(slug, domain=info.domain)
            for domain in set(tasks) - own:
                config = RunConfig(method="mine", task=tasks[domain], budget="iterations=1", from_python=("method",))
                words = rf"cannot run on .* works on tasks of {info.domain}, and this is one of {domain}; give --task"
                if any(isinstance(source, Transitions) for source in recipe.sources.values()):
                    words = "learns from recorded transitions; name their file or folder with --dataset"
                with pytest.raises(UserError, match=words):
                    make_loop(config, given=PythonObjects(recipe=recipe))


def test_parts_that_collect_say_what_they_read() -> None:
    silent = [
        part.name
        for infos in catalogue.variants().values()
        for info in infos
        for part in build(info.slug, domain=info.domain).parts()
        if part.stage == "collect" and part.domain != info.domain
    ]
    assert not silent, f"collect on the tasks of one domain, and do not say which: {silent}"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "online-dpo+kto",
            "learns from labelled responses, and its part 'task-reward' judges responses that were just",
        ),
        ("iterative-dpo+kto", "learns from labelled responses"),
        (
            "online-dpo+reward-model",
            "trains a reward model, which writes no responses, and its part 'sample-pairs' asks",
        ),
    ],
)
def test_who_asks_for_responses_where_nobody_writes_any_is_refused(method: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_loop(RunConfig(method=method, task="sort-pairs", budget="iterations=1"))
