"""Named streams of fresh rows: their own actors, environments, random numbers, stages and memory."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

from conftest import SEED
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.streams import Stream
from polyrl.core.update import Fresh, Move, On, OwnUpdate, See, Update
from polyrl.errors import UserError
from polyrl.models.actor import Actor, Making
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.base import Copy
from polyrl.models.policies import RandomActor
from polyrl.parts.control import ScaleReward, StateValues, StepEnvironments
from polyrl.parts.credit import GAE
from polyrl.parts.improve import PolicyGradient
from polyrl.recipe import Part, Recipe, Stage
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
SMALL = StepEnvironments(environments=2, steps_per_environment=20)
TERM = PolicyGradient(aggregation="token-mean")


def two_streams(**changes: Any) -> Recipe:
    """A policy gradient on the policy's own steps and on those of a copy that stays behind."""
    stream = Stream(StepEnvironments(environments=3, steps_per_environment=15), acts="behind")
    settings: dict[str, Any] = {
        "name": "two-streams",
        "models": {"policy": MlpPolicy(hidden="8"), "behind": Copy("policy"), "critic": MlpCritic(hidden="8")},
        "collect": SMALL,
        "streams": {"there": stream},
        "updates": (
            Move("behind", "policy", tau=0.5),
            Update(
                "policy",
                (TERM,),
                Fresh(),
                credit=(StateValues("critic"), GAE()),
                also=(On(Fresh("there"), (TERM,), credit=(StateValues("critic"), GAE())),),
            ),
        ),
    }
    return Recipe(**{**settings, **changes})


def loop_of(recipe: Recipe, task: str = "CartPole-v1") -> Any:
    config = RunConfig(method=recipe.name, task=task, budget="iterations=3", seed=SEED, evaluations=1, eval_episodes=1)
    return make_loop(config, given=PythonObjects(recipe=recipe))[0]


def test_an_update_on_two_streams_is_the_sum_of_both() -> None:
    loop = loop_of(two_streams())
    loop.iterate()
    policy = loop.run_state.models["policy"]
    before = loop.run_state.models.flat["policy"].vector.detach().clone()
    own = loop.iterate()
    there = loop.context.fresh["there"]
    assert own["reward"].shape == (2, 20)
    assert there["reward"].shape == (3, 15)

    vector = loop.run_state.models.flat["policy"].vector
    vector.data.copy_(before)
    with See(loop.run_state.models, loop.context, "plain").gradients("policy"):
        total = torch.zeros(())
        for rows in (own, there):
            credited = GAE()(
                StateValues("critic").apply(rows, {"critic": loop.run_state.models["critic"]}), loop.context
            )
            logprob = policy.actor().outputs(rows, {"logprob"})["logprob"]
            weight = rows["weight"] * rows["mask"]
            total = total - (weight * credited["advantage"] * logprob).sum() / weight.sum()
        total.backward()
    norm = float(vector.grad.norm())
    assert loop.context.metrics["grad_norm/policy"] == pytest.approx(norm, rel=1e-4)
    # of the other model's rows no likelihood is compared with the policy's
    assert loop.context.metrics["logprob_gap"] < 1e-5
    ratio = policy.actor().outputs(there, {"logprob"})["logprob"] - there["behaviour_logprob"]
    assert float(ratio.abs().max()) > 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class NothingCounts(Part):
    """Weighs every step 0."""

    stage: ClassVar[Stage] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Any) -> Experience:
        return experience.with_fields(weight=torch.zeros_like(experience["reward"]))


def test_where_no_step_of_the_first_batch_counts_the_gradient_is_that_of_the_other() -> None:
    loop = loop_of(two_streams(select=(NothingCounts(),), updates=(two_streams().updates[1],)))
    found = []
    for _ in range(2):  # the second one finds the gradient of the first where it was
        before = loop.run_state.models.flat["policy"].vector.detach().clone()
        loop.iterate()
        found.append(loop.context.metrics["grad_norm/policy"])
    there, vector = loop.context.fresh["there"], loop.run_state.models.flat["policy"].vector
    vector.data.copy_(before)
    with See(loop.run_state.models, loop.context, "plain").gradients("policy") as policy:
        credited = GAE()(StateValues("critic").apply(there, {"critic": loop.run_state.models["critic"]}), loop.context)
        logprob = policy.actor().outputs(there, {"logprob"})["logprob"]
        weight = there["weight"] * there["mask"]
        (-(weight * credited["advantage"] * logprob).sum() / weight.sum()).backward()
    assert found[1] == pytest.approx(float(vector.grad.norm()), rel=1e-4)


def test_a_stream_more_changes_no_number_of_the_others() -> None:
    class Idle(OwnUpdate):
        seen: ClassVar[list[Experience]] = []

        def step(self, batch: Experience, see: See) -> dict[str, float]:
            self.seen.append(batch)
            return {}

    alone = two_streams(streams={}, updates=(dataclasses.replace(two_streams().updates[1], also=()),))
    both = dataclasses.replace(
        alone,
        streams={"there": two_streams().streams["there"]},
        updates=(*alone.updates, Idle("behind", Fresh("there"))),
    )
    records = []
    for recipe in (alone, both):
        loop = loop_of(recipe)
        rows = [loop.iterate() for _ in range(3)]
        records.append((loop.context.metrics, rows, loop.run_state.models.flat["policy"].vector.detach().clone()))
    (metrics, rows, weights), (other_metrics, other_rows, other_weights) = records
    assert torch.equal(weights, other_weights)
    assert all(torch.equal(a["observation"], b["observation"]) for a, b in zip(rows, other_rows, strict=True))
    for key in ("loss/policy-gradient", "grad_norm/policy", "entropy"):
        assert metrics[key] == other_metrics[key]
    # its environments are its own
    assert len(Idle.seen) == 3
    collectors = loop.run_state.collectors
    assert collectors["there"].seed != collectors[""].seed


def test_what_parts_remember_is_their_streams() -> None:
    recipe = two_streams()
    scaled = dataclasses.replace(recipe.streams["there"], score=(ScaleReward(),))
    loop = loop_of(dataclasses.replace(recipe, score=(ScaleReward(),), streams={"there": scaled}))
    own = loop.iterate()
    assert len(loop.context.memories["scale-reward"]["returns"]) == 2
    assert len(loop.context.memories["there.scale-reward"]["returns"]) == 3
    assert {"reward_scale", "there/reward_scale"} <= set(loop.context.metrics)
    policy, behind = (loop.run_state.models[name].reward_moments for name in ("policy", "behind"))
    own_steps, steps = int(own["mask"].sum()), int(loop.context.fresh["there"]["mask"].sum())
    assert own_steps != steps
    assert float(policy.count) == pytest.approx(own_steps, rel=1e-3)
    assert float(behind.count) == pytest.approx((own_steps + steps) / 2, rel=1e-3)  # moved half the way to the policy


def test_random_numbers_of_a_stream_are_its_own() -> None:
    context = loop_of(two_streams()).context
    drawn = {}
    for name in ("", "here", "there"):
        context.stream = name
        drawn[name] = torch.rand(4, generator=context.generator("collect"))
    assert len({tuple(numbers.tolist()) for numbers in drawn.values()}) == 3


class Reads(OwnUpdate):
    """Needs what is measured, on the rows of the stream and on those beside."""

    needs: ClassVar[frozenset[str]] = frozenset({"next_observation"})

    def step(self, batch: Experience, see: See) -> dict[str, float]:
        assert [*see.rows] == [see.context.fresh[name] for name in [b.stream for b in self.also]]
        assert batch is see.context.fresh[self.batch.stream]
        return {"read": float(len(batch) + sum(map(len, see.rows)))}


def test_what_is_measured_for_a_stream_is_measured_there_alone() -> None:
    streams = {
        "there": Stream(SMALL),
        "too": Stream(dataclasses.replace(SMALL, environments=4)),
        "counts": Stream(SMALL),
    }
    counting = Update("policy", (TERM,), Fresh("counts"), credit=(StateValues("critic"), GAE()))
    reads = Reads("behind", Fresh("there"), also=(Fresh("too"),))
    recipe = two_streams(streams=streams, updates=(reads, counting)).check()

    def measured(view: Recipe) -> list[str]:
        return [part.name for _, parts in view.stages() for part in parts if part.measures]

    assert measured(recipe) == []
    assert measured(recipe.of_stream("there")) == measured(recipe.of_stream("too")) == ["next-observation"]
    assert measured(recipe.of_stream("counts")) == ["all-steps"]
    loop = loop_of(recipe)
    loop.iterate()
    assert loop.context.metrics["read"] == 6
    assert not {"weight", "next_observation"} & set(loop.iterate().fields())


def test_hyperparameters_of_a_stream_have_addresses() -> None:
    recipe = two_streams().check().set("there.step-environments.environments", "5")
    assert recipe.streams["there"].collect.environments == 5
    assert recipe.collect.environments == 2
    assert recipe.hyperparameters()["there.step-environments.environments"] == 5
    everywhere = recipe.set("steps-per-environment", "7")
    assert everywhere.collect.steps_per_environment == everywhere.streams["there"].collect.steps_per_environment == 7


class Random(StepEnvironments):
    """Acts at random."""

    def actor(self, inner: Actor, making: Making) -> Actor:
        return RandomActor(making.task.actions.space)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"streams": {}}, "names the stream 'there', which the recipe does not state; it has none"),
        ({"updates": (Move("behind", "policy"),)}, "no update is on the rows of the stream 'there'"),
        (
            {"updates": (dataclasses.replace(two_streams().updates[1], also=()),)},
            "no update is on the rows of the stream",
        ),
        ({"streams": {"there": Stream(SMALL, acts="ahead")}}, "'acts of the stream there' names the model 'ahead'"),
        ({"streams": {"a/b": Stream(SMALL)}}, "'a/b' cannot name a stream"),
        ({"streams": {"there": Stream(SMALL, credit=(GAE(),))}}, "part 'gae' needs the field 'value'"),
    ],
)
def test_streams_that_do_not_hold_together_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        two_streams(**changes).check()


def test_streams_are_read_by_updates() -> None:
    recipe = catalogue.build("ppo", domain="control")
    with pytest.raises(UserError, match="the stream 'there' is read by updates, and it has no list of them"):
        dataclasses.replace(recipe, streams={"there": Stream(SMALL)}).check()


def test_one_model_that_acts_in_two_ways_is_refused() -> None:
    with pytest.raises(UserError, match=r"act by the model 'policy', each in its own way.*let a Copy\('policy'\) act"):
        loop_of(two_streams(streams={"there": Stream(Random())}))


def test_outside_of_control_the_policy_acts_in_every_stream() -> None:
    recipe = catalogue.build("simpo")
    stream = Stream(recipe.collect or catalogue.build("grpo").collect, acts="policy-before")
    with pytest.raises(UserError, match="the model 'policy-before' would act, and in language 'policy' does"):
        from polyrl.core.checking import check_domain

        check_domain(dataclasses.replace(recipe, streams={"there": stream}), "addition", "language")
