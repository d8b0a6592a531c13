"""Epochs over a batch in the list of updates: PPO's own numbers, what is shuffled and counted, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from conftest import SEED
from polyrl import catalogue, kernels
from polyrl.cli.explain import show_method
from polyrl.cli.trace import trace_method
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import ALONE, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Move, Phase, Repeat, Sample, See, Update, flat
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.base import ClosedForm, Copy, Models
from polyrl.models.critics import QNetwork, ValueNetwork
from polyrl.models.policies import SquashedGaussian, StochasticPolicy
from polyrl.parts.control import ScaleReward, StateValues, StepEnvironments
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ReferenceKL, ValueLoss
from polyrl.parts.replayed import SoftValue, SquaredTD, StepAndKeep
from polyrl.recipe import Part, Recipe, Stage
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
PPO_LIST = Path(__file__).parent / "drafts" / "ppo_list.py"
SMALL = {"environments": "4", "steps_per_environment": "32", "epochs": "3", "minibatches": "5"}


def loop_of(method: str | Recipe, task: str = "CartPole-v1", **settings: str) -> Any:
    named = "mine" if isinstance(method, Recipe) else method
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "seed": SEED}
    config = RunConfig(method=named, task=task, budget="steps=2000", hyperparameters=settings, **options)
    return make_loop(config, given=PythonObjects(recipe=method.check() if isinstance(method, Recipe) else None))[0]


def ppo_list(**changes: Any) -> Recipe:
    """The draft with its pass over epochs changed, on four environments of 32 steps."""
    recipe = catalogue.build(str(PPO_LIST), SMALL)
    return dataclasses.replace(recipe, updates=(dataclasses.replace(recipe.updates[0], **changes),))


def start_alike(loop: Any, other: Any, names: dict[str, str] | None = None) -> None:
    """Let the models of `loop` begin with those of another, by the names that they have there."""
    for name, theirs in (names or {"policy": "policy", "critic": "critic"}).items():
        loop.run_state.flat[name].vector.data.copy_(other.run_state.flat[theirs].vector.data)


def weights_of(loop: Any, name: str) -> Tensor:
    found: Tensor = loop.run_state.flat[name].vector.detach().clone()
    return found


# ------------------------------------------------------------------------------------------------------ PPO's numbers


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("joint", [True, False], ids=["clipped together", "clipped apart"])
def test_ppo_as_a_list_comes_to_the_weights_of_ppo(monkeypatch: pytest.MonkeyPatch, task: str, joint: bool) -> None:
    monkeypatch.setattr(kernels, "ENABLED", False)
    both = SMALL | {"entropy_coef": "0.01", "learning_rate": "3e-3"}
    plain = loop_of("ppo", task, **both, critic_learning_rate="3e-3", joint_clip=str(joint), max_grad_norm="0.1")
    apart = {"joint_clip": "none", "max_grad_norm": "0.1"}
    listed = loop_of(str(PPO_LIST), task, **both, **({"joint_clip": "0.1"} if joint else apart))
    start_alike(listed, plain)
    for _ in range(3):
        plain.iterate()
        listed.iterate()
        for name in ("policy", "critic"):
            assert torch.equal(weights_of(listed, name), weights_of(plain, name)), name
    told = ("approx_kl", "entropy", "clip_ratio", "ratio", "logprob_gap", "value/mean")
    norms = ("grad_norm/joint",) if joint else ("grad_norm/policy", "grad_norm/critic")
    losses = ("loss/clipped-surrogate", "loss/value-loss", "loss/entropy-bonus")
    for key in (*told, *norms, *losses):
        assert listed.context.metrics[key] == pytest.approx(plain.context.metrics[key], rel=1e-5, abs=1e-9), key


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_with_fast_forms_the_list_is_ppo_to_the_bit_too(task: str) -> None:
    plain, listed = loop_of("ppo", task, **SMALL), loop_of(str(PPO_LIST), task, **SMALL)
    assert plain.run_state.closed_form({"logprob"}) is not None
    models = listed.run_state.models
    assert models is not None and models.closed_form_of_steps("policy", {"logprob"}) is not None
    assert models.closed_form_of_steps("critic", {"value"}) is not None
    start_alike(listed, plain)
    for _ in range(2):
        plain.iterate()
        listed.iterate()
    for name in ("policy", "critic"):
        assert torch.equal(weights_of(listed, name), weights_of(plain, name)), name


def test_fast_passes_of_a_list_are_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = loop_of(ppo_list())
    slow = loop_of(ppo_list())
    fast.iterate()
    monkeypatch.setattr(kernels, "ENABLED", False)
    slow.iterate()
    for name in ("policy", "critic"):
        torch.testing.assert_close(weights_of(slow, name), weights_of(fast, name), rtol=1e-4, atol=2e-5)
        assert not torch.equal(weights_of(slow, name), weights_of(fast, name)), f"{name}: the fast passes ran in both"


@dataclass(frozen=True)
class EveryOther(Part):
    """Lets the policy's terms count every other step, and the critic's all."""

    stage: ClassVar[Stage] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    def __call__(self, experience: Experience, context: Context) -> Experience:
        every = experience["mask"].float()
        weight = every.clone()
        weight[:, ::2] = 0
        return experience.with_fields(weight=weight, value_weight=every)


def test_steps_that_do_not_count_and_whole_rows_go_through_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    found = Models.closed_form_of_steps

    def note(models: Models, name: str, wants: Collection[str]) -> ClosedForm | None:
        asked.append(name)
        return found(models, name, wants)

    monkeypatch.setattr(Models, "closed_form_of_steps", note)
    loop_of(ppo_list()).iterate()
    assert asked == ["policy", "critic"] * 15
    asked.clear()
    loop_of(dataclasses.replace(ppo_list(minibatches=1), select=(EveryOther(),))).iterate()
    assert asked == ["critic"] * 3
    asked.clear()
    loop_of(ppo_list(minibatch_of="rows", minibatches=2)).iterate()
    assert not asked


@pytest.mark.parametrize("enabled", [True, False], ids=["fast", "plain"])
def test_steps_that_count_for_the_critic_alone_train_it(monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    monkeypatch.setattr(kernels, "ENABLED", enabled)
    settings = SMALL | {"normalize_advantage": "false"}  # of a list whitening is a part, over all that was sampled
    plain = loop_of(dataclasses.replace(catalogue.build("ppo", settings, domain="control"), select=(EveryOther(),)))
    of = tuple(dataclasses.replace(update, credit=()) for update in ppo_list().updates[0].of)
    listed = loop_of(dataclasses.replace(ppo_list(of=of), select=(EveryOther(),)))
    start_alike(listed, plain)
    for _ in range(2):
        plain.iterate()
        listed.iterate()
    for name in ("policy", "critic"):
        torch.testing.assert_close(weights_of(listed, name), weights_of(plain, name), rtol=1e-5, atol=1e-6)


def test_a_copy_of_a_network_has_passes_of_its_own() -> None:
    loop = loop_of(ppo_list())
    loop.iterate()
    policy, critic = (loop.run_state.models[name] for name in ("policy", "critic"))
    assert policy._passes is not None and critic._passes is not None
    assert copy.deepcopy(policy)._passes is None and copy.deepcopy(critic)._passes is None


@dataclass(frozen=True)
class SecondValues(StateValues):
    """What another critic says."""

    gives: ClassVar[frozenset[str]] = frozenset({"second_value", "final_second_value"})
    value: ClassVar[str] = "second_value"


def test_a_second_critic_learns_beside_the_first_and_changes_nothing_of_it() -> None:
    one = ppo_list(joint_clip=None)
    passes = one.updates[0]
    other = Update("second", (ValueLoss(),), Again())
    of = (*passes.of, other)
    credit = (StateValues("critic"), GAE(gamma=0.99))
    two = dataclasses.replace(
        one,
        models={**one.models, "second": MlpCritic(learning_rate=1e-3, schedule="linear", adam_epsilon=1e-5)},
        updates=(dataclasses.replace(passes, of=of, credit=(SecondValues("second"), *credit)),),
    )
    alone, beside = loop_of(one), loop_of(two)
    start_alike(beside, alone, {"policy": "policy", "critic": "critic", "second": "critic"})
    for _ in range(2):
        alone.iterate()
        batch = beside.iterate()
    assert batch is not None
    for name, theirs in (("policy", "policy"), ("critic", "critic"), ("second", "critic")):
        assert torch.equal(weights_of(beside, name), weights_of(alone, theirs)), name
    metrics = beside.context.metrics
    assert (
        metrics["loss/value-loss/second"]
        == metrics["loss/value-loss/critic"]
        == alone.context.metrics["loss/value-loss"]
    )
    assert "loss/value-loss" not in metrics


@dataclass(frozen=True)
class Notes(Part):
    """Writes down what a batch holds when it runs."""

    stage: ClassVar[Stage] = "credit"
    special_rows: ClassVar[SpecialRows | None] = ALONE

    seen: list[Experience] = field(default_factory=list)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        self.seen.append(experience)
        return experience


def noting(recipe: Recipe, at: int = 0) -> tuple[Recipe, Notes]:
    """The recipe with notes in the credit of the update number `at` within its epochs."""
    notes, passes = Notes([]), recipe.updates[0]
    assert isinstance(passes, Epochs)
    of = [*passes.of]
    update = of[at]
    assert isinstance(update, Update)
    of[at] = dataclasses.replace(update, credit=(*update.credit, notes))
    return dataclasses.replace(recipe, updates=(dataclasses.replace(passes, of=tuple(of)),)), notes


def test_the_value_that_advantages_are_of_stays_what_it_was_measured_as() -> None:
    recipe, notes = noting(ppo_list(), at=1)
    passes = recipe.updates[0]
    again = dataclasses.replace(passes.of[1], trains="second", credit=(late := Notes([]),))
    recipe = dataclasses.replace(
        recipe,
        models={**recipe.models, "second": MlpCritic()},
        updates=(dataclasses.replace(passes, of=(*passes.of, again)),),
    )
    loop_of(recipe).iterate()
    assert len(late.seen) == len(notes.seen) == 15
    for before, after in zip(notes.seen, late.seen, strict=True):
        assert torch.equal(after["value"], before["value"])  # the critic's new output has not taken its place
        assert "logprob" in after  # while the policy's, which was no field, is there


# ------------------------------------------------------------------------------------------- what is shuffled, counted


def steps_of(rows: list[Experience]) -> list[tuple[float, ...]]:
    """Every step by its observation, in the order in which it came."""
    return [tuple(x) for batch in rows for x in batch["observation"].flatten(0, 1).tolist()]


def test_each_pass_sees_every_step_once_in_an_order_of_its_own() -> None:
    recipe, notes = noting(ppo_list())
    loop = loop_of(recipe)
    collected = loop.iterate()
    all_steps = sorted(steps_of([collected]))
    assert [len(batch) for batch in notes.seen] == [26, 26, 26, 25, 25] * 3  # 128 steps in 5 minibatches
    orders = [steps_of(notes.seen[5 * k : 5 * k + 5]) for k in range(3)]
    assert all(sorted(order) == all_steps for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    again, same = noting(ppo_list())
    loop_of(again).iterate()
    assert steps_of(same.seen) == steps_of(notes.seen)
    assert loop.context.spent.updates == 2 * 15  # of each model one a minibatch


def test_two_passes_of_one_turn_have_orders_of_their_own() -> None:
    first, notes = noting(ppo_list(epochs=1))
    second, later = noting(ppo_list(epochs=1))
    loop_of(dataclasses.replace(first, updates=(*first.updates, *second.updates))).iterate()
    assert steps_of(notes.seen) != steps_of(later.seen)
    assert sorted(steps_of(notes.seen)) == sorted(steps_of(later.seen))


def test_whole_rows_stay_whole() -> None:
    recipe, notes = noting(ppo_list(minibatch_of="rows", minibatches=2))
    collected = loop_of(recipe).iterate()
    assert collected is not None
    assert [batch["observation"].shape for batch in notes.seen] == [(2, 32, 4)] * 6
    rows = {tuple(row.flatten().tolist()) for row in collected["observation"]}
    assert {tuple(row.flatten().tolist()) for batch in notes.seen[:2] for row in batch["observation"]} == rows


def test_what_follows_the_passes_sees_the_whole_batch_again() -> None:
    recipe, notes = ppo_list(), Notes([])
    after = Update("second", (ValueLoss(),), Again(), credit=(notes,))
    models = {**recipe.models, "second": MlpCritic()}
    loop_of(dataclasses.replace(recipe, models=models, updates=(*recipe.updates, after))).iterate()
    (whole,) = notes.seen
    assert whole["advantage"].shape == (4, 32) and "logprob" not in whole


@dataclass(frozen=True, kw_only=True)
class Leaves(Part):
    """Gives weight to some steps alone."""

    stage: ClassVar[Stage] = "select"
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    policy: int = 0
    """Steps of each row that count for the policy."""
    critic: int = 0

    def __call__(self, experience: Experience, context: Context) -> Experience:
        number = torch.arange(experience["mask"].shape[1]).expand(experience["mask"].shape)
        return experience.with_fields(
            weight=(number < self.policy).float(), value_weight=(number < self.critic).float()
        )


@pytest.mark.parametrize("of", ["steps", "rows"])
def test_a_model_for_which_nothing_counts_takes_no_step(of: str) -> None:
    recipe = ppo_list(minibatch_of=of, minibatches=2)
    loop = loop_of(recipe)
    loop.iterate()  # momentum is there
    listed = loop_of(dataclasses.replace(recipe, select=(Leaves(policy=0, critic=5),)))
    start_alike(listed, loop)
    for name, optimizer in listed.context.optimizer.items():
        optimizer.moments.update({k: v.clone() for k, v in loop.context.optimizer[name].moments.items()})
    before = {name: weights_of(listed, name) for name in ("policy", "critic")}
    listed.iterate()
    assert torch.equal(weights_of(listed, "policy"), before["policy"])
    assert not torch.equal(weights_of(listed, "critic"), before["critic"])
    assert "loss/clipped-surrogate" not in listed.context.metrics and listed.context.spent.updates == 6
    nothing = loop_of(dataclasses.replace(recipe, select=(Leaves(),)))
    nothing.iterate()
    assert nothing.context.metrics["updates/skipped"] == 1 and nothing.context.spent.updates == 0


@dataclass(frozen=True, kw_only=True)
class Spoils(Leaves):
    """The same, and puts what is not finite where nothing counts."""

    gives: ClassVar[frozenset[str]] = frozenset({"weight", "behaviour_logprob"})

    def __call__(self, experience: Experience, context: Context) -> Experience:
        found = super().__call__(experience, context)
        spoilt = torch.where(found["weight"] != 0, found["behaviour_logprob"], -torch.inf)
        return found.with_fields(behaviour_logprob=spoilt, value_weight=found["weight"])


def test_steps_that_do_not_count_reach_no_gradient_and_no_average() -> None:
    policy, critic = ppo_list().updates[0].of
    of = (dataclasses.replace(policy, credit=()), critic)  # whitening counts what was sampled, whatever its weight
    rows = ppo_list(of=of, minibatch_of="rows", minibatches=1, epochs=2)
    spoilt = loop_of(dataclasses.replace(rows, select=(Spoils(policy=7),)))
    clean = loop_of(dataclasses.replace(rows, select=(Leaves(policy=7, critic=7),)))
    spoilt.iterate()
    clean.iterate()
    for name in ("policy", "critic"):
        assert torch.equal(weights_of(spoilt, name), weights_of(clean, name))
    for key in ("approx_kl", "entropy", "ratio", "loss/clipped-surrogate"):
        assert spoilt.context.metrics[key] == pytest.approx(clean.context.metrics[key], rel=1e-6), key
    steps = loop_of(
        dataclasses.replace(
            rows,
            select=(Leaves(policy=7, critic=7),),
            updates=(dataclasses.replace(rows.updates[0], minibatch_of="steps"),),
        )
    )
    steps.iterate()  # the same steps, each a row of its own
    assert steps.context.metrics["ratio"] == pytest.approx(clean.context.metrics["ratio"], rel=1e-5)
    assert steps.context.metrics["entropy"] == pytest.approx(clean.context.metrics["entropy"], rel=1e-5)


def test_epochs_stop_where_the_policy_has_moved_too_far() -> None:
    loop = loop_of(ppo_list(target_kl=1e-9))
    loop.iterate()
    assert loop.context.spent.updates == 2 * 5  # the first pass is never cut
    far = loop_of(ppo_list(target_kl=1e3))
    far.iterate()
    assert far.context.spent.updates == 2 * 15


def test_within_epochs_every_counts_minibatches_over_all_turns() -> None:
    recipe = ppo_list(joint_clip=None, epochs=1)
    passes = recipe.updates[0]
    policy = dataclasses.replace(passes.of[0], every=2)
    copies = (policy, passes.of[1], Move("old", "policy", every=5))
    recipe = dataclasses.replace(
        recipe,
        models={**recipe.models, "old": Copy("policy")},
        updates=(dataclasses.replace(passes, of=copies),),
    )
    loop = loop_of(recipe)
    moves: list[int] = []
    loop.run_state.models.move = lambda *given: moves.append(loop.context.spent.updates)
    loop.iterate()
    loop.iterate()
    # 5 steps of the critic a turn, and of the policy minibatches 2 and 4, then 6, 8 and 10
    assert loop.context.spent.updates == 15 and moves == [7, 15]


@dataclass(frozen=True, kw_only=True)
class Off(Part):
    """Tells likelihoods that are not the policy's."""

    stage: ClassVar[Stage] = "score"
    needs: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})
    gives: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    def __call__(self, experience: Experience, context: Context) -> Experience:
        return experience.with_fields(behaviour_logprob=experience["behaviour_logprob"] + 0.3)


@pytest.mark.parametrize("first", ["policy", "critic"])
def test_sampler_and_trainer_must_agree_before_the_first_step(first: str) -> None:
    recipe = ppo_list(joint_clip=None)
    if first == "critic":
        recipe = ppo_list(joint_clip=None, of=recipe.updates[0].of[::-1])
    loop = loop_of(dataclasses.replace(recipe, score=(*recipe.score, Off())))
    before = weights_of(loop, "policy")
    with pytest.raises(UserError, match=r"disagree on the log-probability of an action by 0\.3 nats before the first"):
        loop.iterate()
    assert torch.equal(weights_of(loop, "policy"), before)
    loop_of(dataclasses.replace(recipe, score=(*recipe.score, Off())), max_logprob_gap="0.4").iterate()
    agreeing = loop_of(recipe)
    agreeing.iterate()
    assert agreeing.context.metrics["logprob_gap"] < 1e-5


def test_masked_actions_have_no_probability_in_a_list_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_action_masks import Masked

    monkeypatch.setattr(kernels, "ENABLED", False)

    def made(method: str) -> Any:
        config = RunConfig(method=method, task="mine", budget="steps=2000", hyperparameters=SMALL, seed=SEED)
        return make_loop(config, given=PythonObjects(environment=Masked))[0]

    plain, listed = made("ppo"), made(str(PPO_LIST))
    start_alike(listed, plain)
    for _ in range(2):
        plain.iterate()
        batch = listed.iterate()
    assert bool(batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1)).all()) and not bool(
        batch["action_mask"].all()
    )
    assert torch.equal(weights_of(listed, "policy"), weights_of(plain, "policy"))


# ------------------------------------------------------------------------------------------------ composing, options


def test_parts_take_their_places_within_epochs() -> None:
    recipe = catalogue.build(f"{PPO_LIST}+unclipped-surrogate+entropy-bonus", {"entropy_coef": "0.5", "epochs": "2"})
    passes = recipe.updates[0]
    assert isinstance(passes, Epochs) and passes.epochs == 2
    assert [t.name for u in flat(recipe.updates) for t in u.terms] == [
        "unclipped-surrogate",
        "entropy-bonus",
        "value-loss",
    ]
    assert passes.of[0].terms[1] == EntropyBonus(entropy_coef=0.5)
    other = recipe + GAE(gae_lambda=0.5)  # in the credit of the whole batch
    assert other.updates[0].credit[1].gae_lambda == 0.5
    joined = recipe + ReferenceKL()  # into the one update whose model gives likelihoods
    assert joined.updates[0].of[0].terms[-1] == ReferenceKL()
    values = recipe.set("epochs.minibatches", "3").set("critic.learning_rate", "0.1").hyperparameters()
    assert values["epochs.minibatches"] == 3 and values["critic.learning_rate"] == 0.1 and values["gae.gamma"] == 0.99
    with pytest.raises(UserError, match=r"epochs\.minibatches is 0 but must be at least 1"):
        recipe.set("minibatches", "0")


@dataclass(frozen=True, kw_only=True)
class Unweighted(ValueLoss):
    """A loss that asks for no weights of its own."""

    needs: ClassVar[frozenset[str]] = frozenset({"value", "value_target"})


@pytest.mark.parametrize("term", [ValueLoss(), Unweighted()], ids=lambda term: term.name)
def test_weight_is_put_in_for_updates_on_fresh_rows(term: ValueLoss) -> None:
    recipe = Recipe(
        name="mine",
        models={"policy": MlpPolicy(), "critic": ValueNetwork()},
        collect=StepEnvironments(environments=2, steps_per_environment=8),
        updates=(Update("critic", (term,), Fresh(), credit=(StateValues("critic"), GAE())),),
    ).check()
    assert [part.name for stage, parts in recipe.stages() if stage == "select" for part in parts] == ["all-steps"]
    loop = loop_of(recipe)
    loop.iterate()
    assert loop.context.metrics[f"loss/{term.name}"] > 0


def test_show_and_trace_tell_of_the_passes(capsys: pytest.CaptureFixture[str]) -> None:
    show_method(str(PPO_LIST))
    said = " ".join(capsys.readouterr().out.split())
    assert "10 times over the fresh rows, in 8 minibatches of steps:" in said
    assert "--epochs.joint-clip 0.5" in said and "--gae.gae-lambda 0.95" in said and "--value-loss.value-coef" in said
    assert "read by state-values" in said
    options: dict[str, Any] = {"hyperparameters": SMALL, "budget": "iterations=2"}
    trace_method(RunConfig(method=str(PPO_LIST), task="CartPole-v1", **options))
    said = " ".join(capsys.readouterr().out.split())
    assert "state-values, gae gives advantage, final_value, value, value_target; approx_kl" in said
    assert "train critic on the same rows; loss value-loss +" in said


# ------------------------------------------------------------------------------------------------------------ refused

PASS = Update("policy", (ClippedSurrogate(),), Again())
CREDIT = (StateValues("critic"), GAE())


def listed(*updates: Any, policy: Any = None, collect: Any = None, score: tuple[Part, ...] = (), **more: Any) -> Recipe:
    models = {"policy": policy or MlpPolicy(), "critic": MlpCritic(), "old": Copy("policy")}
    known: dict[str, Any] = {"collect": collect or StepEnvironments(), "score": score, "updates": updates}
    return Recipe(name="mine", models=models, **{**known, **more})


BROKEN: list[tuple[str, Callable[[], Recipe], str]] = [
    (
        "fresh within",
        lambda: listed(Epochs((dataclasses.replace(PASS, batch=Fresh()),), credit=CREDIT)),
        "the policy-update within 'epochs' is on the fresh rows and not on a minibatch of them; write Again()",
    ),
    (
        "no credit",
        lambda: listed(Epochs((PASS,))),
        "part 'clipped-surrogate' of the policy-update needs the field 'advantage'",
    ),
    (
        "no values",
        lambda: listed(Epochs((PASS,), credit=(GAE(),))),
        "part 'gae' of the 'epochs' needs the field 'value'",
    ),
    (
        "not a critic",
        lambda: listed(Epochs((PASS,), credit=(StateValues("policy"), GAE()))),
        "'state-values' asks the model 'policy' for values, and the recipe lists critic that gives some",
    ),
    (
        "values in a stage",
        lambda: listed(Epochs((PASS,), credit=(GAE(),)), credit=(StateValues(),)),
        "part 'state-values' sees models by name: put it into an update",
    ),
    (
        "joint and a move",
        lambda: listed(Epochs((PASS, Move("old", "policy")), credit=CREDIT, joint_clip=1.0)),
        "'epochs' clips the gradients of several models by one norm (joint_clip), so it may hold one update for each",
    ),
    (
        "nothing collected",
        lambda: listed(Epochs((PASS,), credit=CREDIT), collect=StepEnvironments()).__class__(
            name="mine", models={"policy": MlpPolicy(), "critic": MlpCritic()}, updates=(Epochs((PASS,)),)
        ),
        "the epochs is on fresh rows, and nothing is collected",
    ),
    (
        "bounded policy",
        lambda: listed(Epochs((PASS,), credit=CREDIT), policy=SquashedGaussian()),
        "part 'clipped-surrogate' of the policy-update needs the field 'behaviour_logprob'",
    ),
    (
        "policy of data",
        lambda: listed(Epochs((PASS,), credit=CREDIT), policy=StochasticPolicy()),
        "part 'clipped-surrogate' of the policy-update needs the field 'behaviour_logprob'",
    ),
    (
        "random first steps",
        lambda: listed(Epochs((PASS,), credit=CREDIT), collect=StepAndKeep(random_steps=10)),
        "needs the field 'behaviour_logprob'",
    ),
    (
        "rewards scaled by nobody",
        lambda: listed(Epochs((PASS,), credit=CREDIT), policy=SquashedGaussian(), score=(ScaleReward(),)),
        "'scale-reward' divides by statistics that the policy keeps, and 'squashed-gaussian' keeps none",
    ),
    (
        "reset of nobody",
        lambda: listed(Phase((Epochs((PASS,), credit=CREDIT),), reset=("q",))),
        "'reset' names the model 'q', which the recipe does not state",
    ),
    (
        "reset of a copy",
        lambda: listed(Phase((Epochs((PASS,), credit=CREDIT),), reset=("old",))),
        "a phase resets the optimizer of 'old', which has none",
    ),
]


@pytest.mark.parametrize(("make", "told"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_passes_that_do_not_hold_together_are_refused(make: Callable[[], Recipe], told: str) -> None:
    with pytest.raises(UserError) as error:
        make().check()
    assert told in str(error.value)


def test_a_term_that_needs_models_by_name_is_refused_without_a_list() -> None:
    recipe = catalogue.build("ppo", domain="control")
    with pytest.raises(UserError, match="the term 'soft-value' asks for models by name or for random numbers"):
        dataclasses.replace(recipe, terms=(*recipe.terms, SoftValue())).check()


# ------------------------------------------------------------------------------------------------- phases, sources


def test_an_optimizer_begins_anew_with_a_phase() -> None:
    def run(reset: tuple[str, ...]) -> tuple[Any, list[float]]:
        recipe = ppo_list(epochs=1, minibatches=1)
        first = Phase(recipe.updates, optimizer_steps=4)
        loop = loop_of(dataclasses.replace(recipe, updates=(first, Phase(recipe.updates, reset=reset))))
        taken = []
        for _ in range(4):
            loop.iterate()
            taken.append(float(loop.context.optimizer["policy"].moments["step"]))
        return loop, taken

    loop, taken = run(("policy",))
    assert taken == [1, 2, 1, 2] and float(loop.context.optimizer["critic"].moments["step"]) == 4
    kept, taken = run(())
    assert taken == [1, 2, 3, 4]
    assert not torch.equal(weights_of(loop, "policy"), weights_of(kept, "policy"))


@dataclass(frozen=True, kw_only=True)
class Target(Part):
    """The reward as the target."""

    stage: ClassVar[Stage] = "credit"
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})

    def apply(self, batch: Experience, see: See) -> Experience:
        return batch.with_fields(value_target=batch["reward"])


def test_while_a_source_fills_updates_on_fresh_rows_go_on() -> None:
    recipe = ppo_list(epochs=1, minibatches=1)
    sampled = Update("q", (SquaredTD(),), Sample("replay", batch_size=4), credit=(Target(),))
    repeated = Repeat(2, (sampled, Move("q_target", "q")))
    recipe = dataclasses.replace(
        recipe,
        models={**recipe.models, "q": QNetwork(hidden="8"), "q_target": Copy("q")},
        sources={"replay": Replay(learning_starts=200)},
        updates=(*recipe.updates, repeated),
    )
    loop = loop_of(recipe, "Pendulum-v1")
    moves: list[int] = []
    loop.run_state.models.move = lambda *given: moves.append(loop.context.iteration)
    steps = []
    for _ in range(3):
        loop.iterate()
        steps.append(loop.context.spent.updates)
    # 128 steps are too few, 256 are enough: then two updates of the critics follow the two of policy and critic
    assert steps == [2, 6, 10] and moves == [2, 2, 3, 3]
    assert WhitenAdvantage() in flat(recipe.updates).__next__().credit


# --------------------------------------------------------------------------------------- what a fresh reader ran into


@dataclass(frozen=True, kw_only=True)
class Told(EntropyBonus):
    """Reads no log-probability, and is told of the ends of iterations."""

    def on_update_end(self, metrics: dict[str, float], context: Context) -> None:
        context.memory(self.name).setdefault("told", []).append(sorted(metrics))


def test_terms_of_lists_are_told_when_their_updates_are_done() -> None:
    loop = loop_of(ppo_list(of=(Update("policy", (Told(),), Again()), Update("critic", (ValueLoss(),), Again()))))
    for _ in range(2):
        loop.iterate()
    told = loop.context.memory("told")["told"]
    assert len(told) == 2 and all({"loss/told", "loss/value-loss", "approx_kl"} <= set(keys) for keys in told)


def test_sampler_and_trainer_are_compared_whatever_the_terms_read() -> None:
    """So a target of the KL stops epochs although no term looks at a log-probability."""
    policy = Update("policy", (EntropyBonus(entropy_coef=1.0),), Again())
    loop = loop_of(ppo_list(of=(policy,), epochs=30, minibatches=1, target_kl=1e-9, joint_clip=None))
    loop.iterate()
    metrics = loop.context.metrics
    assert loop.context.spent.updates == 2  # the first move shows in the second pass
    assert metrics["approx_kl"] > 1e-9 and metrics["logprob_gap"] < 1e-5 and "entropy" in metrics


def test_credit_is_added_behind_the_credit_that_it_needs() -> None:
    plain = ppo_list(of=(Update("policy", (ClippedSurrogate(),), Again()), Update("critic", (ValueLoss(),), Again())))
    recipe = (plain + WhitenAdvantage()).check()
    passes = recipe.updates[0]
    assert isinstance(passes, Epochs) and [p.name for p in passes.credit] == ["state-values", "gae", "whiten-advantage"]
    assert recipe.credit == plain.credit
    loop = loop_of(recipe)
    batch = loop.iterate()
    assert batch is not None and loop.context.spent.updates > 0


def test_a_model_that_replaces_nothing_is_told_by_what_there_is() -> None:
    with pytest.raises(UserError, match="ppo lists no models by name, so 'mlp-policy', which is to be its 'policy'"):
        catalogue.build(f"ppo+{PPO_LIST}")
    with pytest.raises(UserError, match="lists policy, critic, so 'q-network', which is to be its 'q'"):
        ppo_list() + dataclasses.replace(catalogue.build("dqn"), models={"q": QNetwork()}, adds=("q",))


@dataclass(frozen=True)
class Beside(StateValues):
    """Values of what the environment tells, for which nothing is seen after a time limit."""

    gives: ClassVar[frozenset[str]] = frozenset({"beside"})
    observation: ClassVar[str] = "shown"
    value: ClassVar[str] = "beside"
    bootstraps: ClassVar[bool] = False


def test_values_without_a_bootstrap_look_at_no_final_observation() -> None:
    part = Beside("critic")
    assert part.required() == {"shown"} and StateValues("critic").required() >= {"final_observation", "truncated"}
    loop = loop_of(ppo_list())
    batch = loop.iterate()
    found = part.apply(batch.with_fields(shown=batch["observation"]), See(loop.run_state.models, loop.context, "x"))
    assert "final_beside" not in found
    assert torch.equal(found["beside"], loop.run_state.models["critic"].values(batch["observation"]))


def test_weights_of_a_model_decay() -> None:
    found = []
    for decay in ("0", "0.5"):
        loop = loop_of(ppo_list(), **{"policy.weight_decay": decay, "learning_rate": "1e-2"})
        loop.iterate()
        found.append(float(weights_of(loop, "policy").norm()))
    assert found[1] < found[0] - 0.5


def test_constants_of_a_method_may_be_assigned_together(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text('SLUG, PAPER = "mine", "arXiv:1"\nTITLE = NAME = "Mine"\n\n\ndef recipe():\n    ...\n')
    info = catalogue.describe(str(file))
    assert info is not None and (info.slug, info.paper, info.title, info.year) == ("mine", "arXiv:1", "Mine", 0)


def test_runs_of_a_method_file_are_found_wherever_it_lies(tmp_path: Path) -> None:
    from polyrl.report.runs import load_comparison
    from run_folders import write_run

    write_run(tmp_path / "mine-seed0", iterations=2, config={"label": "mine", "method": "/far/mine.py", "seed": 0})
    (tmp_path / "compare.yaml").write_text("methods: [/far/mine.py]\nseeds: [0]\n")
    assert not [text for text in load_comparison(tmp_path).problems if "No run folder" in text]


def test_trace_shows_what_credit_within_a_list_gave(capsys: pytest.CaptureFixture[str]) -> None:
    assert loop_of(ppo_list()).context.credited is None  # nobody looks, so nothing is held
    trace_method(RunConfig(method=str(PPO_LIST), task="CartPole-v1", hyperparameters=SMALL), iteration=1)
    improve = " ".join(capsys.readouterr().out.partition("5 IMPROVE")[2].split())
    places = [improve.rindex(f"{part} gives") for part in ("state-values", "gae", "whiten-advantage")]
    assert places == sorted(places)
    assert "[4, 32]" in improve and "[26, 1]" in improve and ":;" not in improve


def test_a_method_file_may_hold_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "paper"
    folder.mkdir()
    file = folder / "mine.py"
    file.write_text('TASK = "mine.py:make"\n\n\ndef recipe():\n    ...\n')
    monkeypatch.chdir(tmp_path)
    place, _, name = catalogue.default_task("paper/mine.py").rpartition(":")
    assert Path(place).resolve() == file and name == "make"
    monkeypatch.chdir(folder)
    assert catalogue.default_task("mine.py") == "mine.py:make"
