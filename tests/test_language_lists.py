"""Lists of updates on language models: the numbers of `Optimize`, two streams in one objective, copies, resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, Command, read_records, stopped_after, timeless
from polyrl import catalogue
from polyrl.core.update import Again, Epochs, Fresh, Move, On, Sample, Update
from polyrl.data.pairs import Pairs, numbers_of_step
from polyrl.errors import UserError
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.language.named import LanguageModels, StartingCritic, StartingPolicy
from polyrl.models.language.policy import LanguagePolicy
from polyrl.parts.pairs import OfflinePairs
from polyrl.parts.score import ReferenceLogprob
from polyrl.recipe import Recipe
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
HYPO = "hypo"
SMALL = {"prompts_per_step": "8", "batch_size": "8"}


def config_of(method: str, model: Path, settings: dict[str, str], **more: Any) -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_prompts": 8, "tensorboard": False, "checkpoint_every": 1}
    options |= {"budget": "iterations=3", "task": "sort-pairs", "model": str(model), "seed": SEED}
    return RunConfig(method=method, hyperparameters=settings, **{**options, **more})


def loop_of(recipe: str | Path | Recipe, model: Path, settings: dict[str, str] | None = None, **more: Any) -> Any:
    given = PythonObjects(recipe=recipe) if isinstance(recipe, Recipe) else PythonObjects()
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    return make_loop(config_of(name, model, settings or {}, **more), given=given)[0]


def weights(loop: Any, name: str = "policy") -> Tensor:
    state = loop.run_state
    module = state.policy if state.models is None else state.models[name]
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def pairs_alone(**move: float) -> Recipe:
    """DPO as a list."""
    moves = tuple(Move(name, "policy", tau=tau) for name, tau in move.items())
    update = Update("policy", (DPOLoss(beta=0.1),), Sample("pairs", batch_size=8), credit=(ReferenceLogprob(),))
    return Recipe(
        name="pairs-alone",
        models={"policy": StartingPolicy(learning_rate=1e-3), "reference": Copy("policy")},
        sources={"pairs": Pairs()},
        updates=(update, *moves),
    ).check()


# ------------------------------------------------------------------------------------------- the same as Optimize


def test_a_list_of_one_update_on_fresh_rows_is_grpo(small_model: Path) -> None:
    settings = {"prompts_per_step": "6", "completions_per_prompt": "4", "learning_rate": "1e-3", "epochs": "1"}
    usual = catalogue.build("grpo", {**settings, "minibatches": "1"})
    listed = dataclasses.replace(
        usual,
        optimize=None,
        terms=(),
        models={"policy": StartingPolicy(learning_rate=1e-3)},
        updates=(Update("policy", usual.terms, Fresh()),),
    )
    loops = [loop_of(recipe, small_model, task="addition") for recipe in (usual, listed)]
    for _ in range(3):
        for loop in loops:
            loop.iterate()
    assert torch.equal(weights(loops[0]), weights(loops[1]))
    for key in ("loss/clipped-surrogate", "grad_norm/policy", "approx_kl", "entropy", "logprob_gap"):
        assert loops[0].context.metrics[key] == pytest.approx(loops[1].context.metrics[key], rel=1e-5, abs=1e-7), key


def test_epochs_over_minibatches_are_those_of_optimize(small_model: Path) -> None:
    settings = {"prompts_per_step": "6", "completions_per_prompt": "4", "learning_rate": "1e-3"}
    usual = catalogue.build("grpo", {**settings, "epochs": "2", "minibatches": "3"})
    passes = Epochs((Update("policy", usual.terms, Again()),), epochs=2, minibatches=3)
    policy = StartingPolicy(learning_rate=1e-3)
    listed = dataclasses.replace(usual, optimize=None, terms=(), models={"policy": policy}, updates=(passes,))
    loops = [loop_of(recipe, small_model, task="addition") for recipe in (usual, listed)]
    for loop in loops:
        loop.iterate()
    assert loops[0].context.spent.updates == loops[1].context.spent.updates == 6
    assert torch.equal(weights(loops[0]), weights(loops[1]))


def test_pairs_as_a_source_are_dpo(taught: Path) -> None:
    settings = {"pairs_per_step": "8", "learning_rate": "1e-3", "beta": "0.1", "schedule": "constant", "warmup": "0"}
    usual = loop_of("dpo", taught, settings)
    listed = loop_of(pairs_alone(), taught)
    for _ in range(3):
        usual.iterate()
        listed.iterate()
    assert isinstance(usual.recipe.collect, OfflinePairs)
    assert torch.equal(weights(usual), weights(listed))
    assert listed.context.metrics["pairs/epoch"] == 24 / len(listed.run_state.pairs("train"))


# ------------------------------------------------------------------------------------------------- two streams


def test_hypo_without_its_penalty_is_dpo(taught: Path) -> None:
    settings = {**SMALL, "kl_weight": "0", "learning_rate": "1e-3"}
    both, alone = loop_of(HYPO, taught, settings), loop_of(pairs_alone(), taught)
    for _ in range(3):
        both.iterate()
        alone.iterate()
    assert torch.equal(weights(both), weights(alone))


def test_the_gradients_of_two_streams_are_added(taught: Path) -> None:
    """As autograd has them of the sum, with the weights of each stream's own rows."""
    loop = loop_of(HYPO, taught, {**SMALL, "kl_weight": "0.5", "max_grad_norm": "none", "learning_rate": "0"})
    loop.iterate()  # of equal policies all log-ratios are 0
    state, found = loop.run_state, {}
    with torch.no_grad():
        for p in state.models["policy"].parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    take = loop.context.optimizer["policy"].step
    loop.context.optimizer["policy"].step = lambda: found.update(
        {n: p.grad.clone() for n, p in state.models["policy"].named_parameters() if p.grad is not None}
    )
    fresh = loop.iterate()
    loop.context.optimizer["policy"].step = take
    policy, reference = state.models["policy"], state.models["reference"]
    policy.requires_grad_(True)
    policy.zero_grad()
    mask = fresh["mask"]
    rho = ((fresh["behaviour_logprob"] - fresh["ref_logprob"]) * mask).sum(1)
    same_prompt = fresh["group"][:, None] == fresh["group"][None]
    other = (same_prompt.float() - torch.eye(16)) @ rho  # the other answer to the prompt
    advantage = -0.5 * (rho - other)
    assert float(advantage.abs().max()) > 1e-3
    policy_gradient = -(advantage * (policy.evaluate(fresh)["logprob"] * mask).sum(1)).mean()
    pairs = state.pairs("train").batch(numbers_of_step(SEED, len(state.pairs("train")), 8, 8))
    with torch.no_grad():
        before = (reference.evaluate(pairs)["logprob"] * pairs["mask"]).sum(1)
    ratio = (policy.evaluate(pairs)["logprob"] * pairs["mask"]).sum(1) - before
    margin = 0.1 * (ratio[pairs["preferred"]] - ratio[~pairs["preferred"]])
    (policy_gradient + torch.nn.functional.softplus(-margin).mean()).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=2e-6, msg=name)


def test_terms_go_where_they_belong() -> None:
    recipe = catalogue.build(f"{HYPO}+ipo", {"tau": "0.3"})
    update = recipe.updates[0]
    assert isinstance(update, Update) and [t.name for t in update.also[0].terms] == ["ipo-loss"]
    values = recipe.hyperparameters()
    assert values["ipo-loss.tau"] == 0.3 and values["sample.batch_size"] == 32
    assert catalogue.build(str(HYPO), {"batch_size": "4"}).updates[0].also[0].batch.batch_size == 4  # type: ignore[union-attr]


def test_a_term_that_only_the_given_pairs_can_tell_joins_them(taught: Path) -> None:
    """The chosen responses are in the pairs' stream: with weight 0 they change nothing, and the gradients are added."""
    recipe = catalogue.build("hypo+rpo")
    update = recipe.updates[0]
    assert isinstance(update, Update) and [t.name for t in update.also[0].terms] == ["dpo-loss", "baseline-nll"]
    assert [t.name for t in update.terms] == ["policy-gradient"]
    plain, none, some = (
        loop_of(spec, taught, {**SMALL, "learning_rate": "1e-3", **({"eta": eta} if eta else {})})
        for spec, eta in (("hypo", ""), ("hypo+rpo", "0"), ("hypo+rpo", "5"))
    )
    for loop in (plain, none, some):
        loop.iterate()
    assert torch.equal(weights(plain), weights(none)) and not torch.equal(weights(plain), weights(some))


# ---------------------------------------------------------------------------------------------------- copies


def test_copies_move_where_the_list_says(taught: Path) -> None:
    loop = loop_of(pairs_alone(reference=0.25), taught)
    start = weights(loop, "reference")
    assert torch.equal(start, weights(loop))
    loop.iterate()
    policy, first = weights(loop), weights(loop, "reference")
    torch.testing.assert_close(first, start + 0.25 * (policy - start), rtol=1e-5, atol=1e-7)
    loop.iterate()
    torch.testing.assert_close(weights(loop, "reference"), first + 0.25 * (weights(loop) - first), rtol=1e-5, atol=1e-7)
    models = loop.run_state.models
    assert models.distance("policy", "reference") == pytest.approx(
        float((weights(loop) - weights(loop, "reference")).norm()), rel=1e-4
    )


def test_a_reference_that_moves_is_measured_anew(taught: Path) -> None:
    """A copy of the policy: every log-ratio is 0 and the loss log 2, although a pair may have been seen before."""
    loop = loop_of(pairs_alone(reference=1.0), taught)
    loop.run_state.pairs("train").rows[8:] = []  # the same pairs in every iteration
    for _ in range(3):
        loop.iterate()
        assert loop.context.metrics["loss/dpo-loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_another_model_may_be_judged(taught: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(pairs_alone(), judged="reference")
    loop = start_run(config_of("x", taught, {}), tmp_path / "run", given=PythonObjects(recipe=recipe))
    loop.run()
    evaluations = [r["eval/reward"] for r in read_records(tmp_path / "run") if "eval/reward" in r]
    assert len(evaluations) == 2 and evaluations[0] == evaluations[1]  # the reference stood still
    assert loop.run_state.policy is loop.run_state.models["policy"]  # and acts no more
    exported = LanguagePolicy.load(tmp_path / "run" / "model")
    assert torch.equal(torch.cat([p.flatten() for p in exported.parameters()]), weights(loop, "reference"))


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("lora", [None, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(taught: Path, tmp_path: Path, lora: int | None) -> None:
    if lora:
        pytest.importorskip("peft")
    config = config_of(str(HYPO), taught, SMALL, lora=lora)
    start_run(config, tmp_path / "whole").run()
    loop = start_run(config, tmp_path / "half")
    stopped_after(loop, 2)
    folder = tmp_path / "half" / "checkpoints" / "iteration-000002"
    assert {"policy", "reference"} <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "pairs.json").read_text()) == {"taken": 16}
    resume_run(tmp_path / "half", trust_code=True).run()
    assert timeless(read_records(tmp_path / "half")) == timeless(read_records(tmp_path / "whole"))


def test_a_failed_iteration_gives_its_pairs_back(taught: Path, tmp_path: Path) -> None:
    loop = start_run(config_of("x", taught, {}), tmp_path / "run", given=PythonObjects(recipe=pairs_alone()))
    loop.iterate()
    rows = loop.context.sources["pairs"]
    rows.sample(8, torch.Generator())
    assert rows.rewind() and rows.taken == 8  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------- bad recipes


def test_models_that_do_not_fit_are_told(taught: Path) -> None:
    base = pairs_alone()
    for models, told in (
        ({**base.models, "q": QNetwork()}, "none of language"),
        ({**base.models, "other": StartingPolicy()}, "second starting policy"),
    ):
        with pytest.raises(UserError, match=told):
            loop_of(dataclasses.replace(base, models=models), taught)
    critic = dataclasses.replace(base, models={**base.models, "critic": StartingCritic()}, judged="critic")
    with pytest.raises(UserError, match="answers no prompts"):
        loop_of(critic, taught)
    with pytest.raises(UserError, match="is one of language"):
        make_loop(
            RunConfig(method="x", task="CartPole-v1", budget="iterations=1"),
            given=PythonObjects(recipe=base),
        )


def test_a_stream_that_lacks_a_field_is_told() -> None:
    base = pairs_alone()
    update = Update("policy", (), Fresh(), also=(On(Sample("pairs"), (DPOLoss(),)),))
    with pytest.raises(UserError, match="needs the field 'ref_logprob'"):
        dataclasses.replace(base, collect=OfflinePairs(), updates=(update,)).check()
    with pytest.raises(UserError, match="names the source 'pears'"):
        lost = On(Sample("pears"), (DPOLoss(),), credit=(ReferenceLogprob(),))
        dataclasses.replace(base, collect=OfflinePairs(), updates=(dataclasses.replace(update, also=(lost,)),)).check()


def test_a_critic_is_a_model_like_others(taught: Path) -> None:
    models = {"policy": StartingPolicy(), "critic": StartingCritic(learning_rate=1e-2), "old": Copy("critic")}
    named = LanguageModels(models, LanguagePolicy.load(taught))
    batch = loop_of(pairs_alone(), taught).run_state.pairs("train").batch([0, 1, 2])
    named.ask_gradients("critic", True)
    with named.passes("critic", batch, {"value"}, None) as passes:
        for _, outputs in passes:
            assert not bool(outputs["value"].any())  # the head starts at 0
            (outputs["value"] - 1).square().sum().backward()
    assert named.gradients("critic") and not named.gradients("old")
    named.optimizers()["critic"].step()
    named.zero_gradients("critic")
    assert named.distance("critic", "old") > 0 and not named.gradients("critic")


def test_show_and_trace_tell_both_streams(taught: Path, polyrl: Command) -> None:
    shown = polyrl("show", HYPO)
    assert shown.code == 0 and "train policy on the fresh rows and on 32 rows of pairs" in " ".join(shown.out.split())
    told = polyrl("trace", HYPO, "--model", taught, "--prompts-per-step", 4, "--batch-size", 4, "--eval-prompts", 4)
    words = " ".join(told.out.split())
    assert told.code == 0 and "dpo-loss" in words and "policy-gradient" in words and "gradient norm" in words
