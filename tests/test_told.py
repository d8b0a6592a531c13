"""What environments tell beside observation and reward, and keep beyond episodes: fields, checkpoints, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from conftest import SEED
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.models.critics import ValueNetwork
from polyrl.models.policies import StochasticPolicy
from polyrl.parts.replayed import OffPolicyTerm, StepAndKeep
from polyrl.recipe import Part, Recipe, Stage, hyperparameter
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
SMALL = {"environments": "3", "steps_per_environment": "11", "hidden": "8", "epochs": "1", "minibatches": "1"}


class Stock(gymnasium.Env[np.ndarray, int]):
    """Order 0 to 3, then a customer takes some; told is the stock between both. `sold` goes on over the episodes.

    `wrong`: how it fails to tell at the third step.
    """

    observation_space, action_space = spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(4)
    metadata: ClassVar[dict[str, Any]] = {"info_fields": {"post_observation": (1,), "cost": ()}, "lasting": ("sold",)}

    def __init__(self, wrong: str = ""):
        self.wrong, self.sold = wrong, np.zeros(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.stock, self.t = float(self.np_random.integers(5)), 0
        return np.array([self.stock], np.float32), {}

    def step(self, action: int) -> Any:
        post, taken = self.stock + int(action), float(self.np_random.integers(4))
        self.stock, self.t, self.sold = max(post - taken, 0.0), self.t + 1, self.sold + min(post, taken)
        told: dict[str, Any] = {"post_observation": np.array([post]), "cost": 0.5 * int(action)}
        if self.t == 3 and self.wrong == "none":
            del told["cost"]
        if self.t == 3 and self.wrong == "shape":
            told["cost"] = np.zeros(2)
        if self.t == 3 and self.wrong == "nan":
            told["post_observation"] = np.array([np.nan])
        return np.array([self.stock], np.float32), float(self.sold[0]), False, self.t >= 4, told


class Silent(Stock):
    """Declares nothing, and keeps nothing."""

    metadata: ClassVar[dict[str, Any]] = {}


class Passing(Stock):
    """Keeps nothing beyond an episode, so that vector environments may be made of it."""

    metadata: ClassVar[dict[str, Any]] = {"info_fields": Stock.metadata["info_fields"]}


@dataclass(frozen=True, kw_only=True)
class Charge(Part):
    """Take the cost that the environment tells off the reward."""

    stage: ClassVar[Stage] = "score"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "cost", "post_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    told: ClassVar[frozenset[str]] = frozenset({"cost", "post_observation"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        return experience.with_fields(reward=experience["reward"] - experience["cost"])


def loop_of(make: Callable[..., Any] = Stock, recipe: Recipe | None = None, **settings: str) -> Any:
    built = recipe or catalogue.build("ppo", {**SMALL, **settings}, domain="control") + Charge()
    config = RunConfig(method="mine", task="mine", budget="iterations=9", seed=SEED, tensorboard=False, eval_episodes=2)
    return make_loop(config, given=PythonObjects(recipe=built.check(), environment=make))[0]


def vector(mode: AutoresetMode) -> Any:
    return lambda num_envs=3: SyncVectorEnv([Passing for _ in range(num_envs)], autoreset_mode=mode)


@pytest.mark.parametrize("make", [Stock, *map(vector, AutoresetMode)], ids=["single", *AutoresetMode.__members__])
def test_what_steps_tell_becomes_fields_of_the_steps(make: Any) -> None:
    loop = loop_of(make)
    for _ in range(2):
        batch = loop.iterate()
        seen, post, told = batch["observation"], batch["post_observation"], batch["mask"]
        raw = loop.recipe.set("normalize_observation", "false")
        assert post.shape == (3, 11, 1) and batch["cost"].shape == (3, 11)
        assert torch.equal(batch["cost"][told], 0.5 * batch["action"][told].float())
        assert not bool(post[~told].any()) and seen.shape == post.shape
    plain = loop_of(make, raw)
    batch = plain.iterate()
    told = batch["mask"]
    wanted = batch["observation"][..., 0] + batch["action"]
    assert torch.equal(batch["post_observation"][..., 0][told], wanted[told])


def test_nothing_is_read_that_nobody_asks_for() -> None:
    loop = loop_of(lambda: Stock("none"), catalogue.build("ppo", SMALL, domain="control"))
    batch = loop.iterate()
    assert "cost" not in batch and not loop.run_state.told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("none", r"0 of mine declares a finite info\['cost'\] of shape \(\) and gave none at step 3"),
        ("shape", r"declares a finite info\['cost'\] of shape \(\)"),
        ("nan", r"declares a finite info\['post_observation'\] of shape \(1\)"),
    ],
)
def test_what_is_not_told_as_declared_stops_the_run(wrong: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        loop_of(lambda: Stock(wrong)).iterate()


def test_an_environment_that_does_not_tell_is_refused_before_a_step() -> None:
    with pytest.raises(UserError) as error:
        loop_of(Silent)
    assert "part 'charge' asks the environment for 'cost', and mine tells nothing beside observation" in str(
        error.value
    )
    declared = type("Declares", (Stock,), {"metadata": {"info_fields": ["cost"]}})
    with pytest.raises(UserError, match=r"declares the info fields \['cost'\]; write names with shapes"):
        loop_of(declared)


@dataclass(frozen=True, kw_only=True)
class CostOf(OffPolicyTerm):
    """Learn the cost of a row's step."""

    needs: ClassVar[frozenset[str]] = frozenset({"cost", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})
    told: ClassVar[frozenset[str]] = frozenset({"cost"})

    def loss(self, outputs: dict[str, torch.Tensor], experience: Experience) -> torch.Tensor:
        return (outputs["value"] - experience["cost"]).square()


@dataclass(frozen=True)
class Notes(Part):
    """Writes down the rows that it sees."""

    stage: ClassVar[Stage] = "credit"
    seen: tuple[list[Experience]] = ([],)

    def apply(self, batch: Experience, see: See) -> Experience:
        self.seen[0].append(batch)
        return batch


def replayed(*also: str) -> tuple[Recipe, list[Experience]]:
    notes = Notes(([],))
    recipe = Recipe(
        name="mine",
        models={"policy": StochasticPolicy(hidden="8"), "costs": ValueNetwork(hidden="8")},
        collect=StepAndKeep(environments=2, steps_per_environment=9),
        sources={"replay": Replay(learning_starts=9, also=also, n_step=2)},
        updates=(Update("costs", (CostOf(),), Sample("replay", batch_size=32), credit=(notes,)),),
        turns=2,
    )
    return recipe, notes.seen[0]


def test_a_replay_keeps_further_fields_of_its_steps() -> None:
    recipe, seen = replayed("cost")
    loop_of(recipe=recipe).iterate()
    rows = seen[-1]
    assert len(seen) == 2 and torch.equal(rows["cost"], 0.5 * rows["action"].float())
    with pytest.raises(UserError, match="part 'cost-of' of the costs-update needs the field 'cost', which its batch"):
        replayed()[0].check()
    with pytest.raises(UserError, match="the source 'replay' needs the field 'post_observation', which no stage gives"):
        replayed("cost", "post_observation")[0].check()


# ----------------------------------------------------------------------------------------------- beyond an episode


def test_what_lasts_goes_on_over_episodes_and_every_evaluation_begins_anew() -> None:
    loop = loop_of()
    first = loop.run_state.evaluate()[0]["eval/return"]
    before = 0.0
    for _ in range(3):
        reward = loop.iterate()["reward"]
        environments = loop.run_state.collector.environments
        sold = sum(float(e.unwrapped.sold[0]) for e in environments.made)
        assert sold > before and reward.shape == (3, 11)
        before = sold
    loop.run_state.judged.policy.load_state_dict(loop_of().run_state.judged.policy.state_dict())
    assert loop.run_state.evaluate()[0]["eval/return"] == first  # whatever was played in between
    assert not loop.run_state.notices()  # it follows its seed


def test_what_lasts_is_in_checkpoints_and_comes_back(tmp_path: Path) -> None:
    whole, half = loop_of(), loop_of()
    for _ in range(2):
        whole.iterate()
        half.iterate()
    half.run_state.save(tmp_path)
    resumed = loop_of()
    resumed.run_state.load(tmp_path)
    resumed.context.iteration, resumed.context.memories = half.context.iteration, half.context.memories
    resumed.run_state.policy.load_state_dict(half.run_state.policy.state_dict())
    a, b = whole.recipe.collect(None, whole.context), resumed.recipe.collect(None, resumed.context)
    for name in ("reward", "observation", "action", "post_observation"):
        assert torch.equal(a[name], b[name]), name
    assert float(a["reward"].max()) > 10  # more than one episode sells


def test_a_rollout_that_does_not_count_is_forgotten_with_what_lasted() -> None:
    loop, same = loop_of(), loop_of()
    for run in (loop, same):
        run.iterate()
    context = loop.context
    context.iteration += 1
    first = loop.recipe.collect(None, context)
    loop.run_state.rewind()
    again = loop.recipe.collect(None, context)
    assert torch.equal(first["reward"], again["reward"])
    new = loop_of()
    new.context.iteration = 1
    once = new.recipe.collect(None, new.context)
    new.run_state.rewind()  # before the first checkpoint: from the very beginning
    assert torch.equal(new.recipe.collect(None, new.context)["reward"], once["reward"])


def test_what_cannot_last_is_refused() -> None:
    several = lambda num_envs=3: SyncVectorEnv([Stock for _ in range(num_envs)])  # noqa: E731

    def made(num_envs: int = 3) -> Any:
        vectors = several(num_envs)
        vectors.metadata = {**vectors.metadata, **Stock.metadata}
        return vectors

    with pytest.raises(UserError, match="keeps sold beyond its episodes, which checkpoints can hold of environments"):
        loop_of(made).iterate()
    nothing = type("Nothing", (Stock,), {"metadata": {**Stock.metadata, "lasting": ("bought",)}})
    with pytest.raises(UserError, match="declares that 'bought' lasts, and it is no NumPy array of it"):
        loop_of(nothing).iterate()


@dataclass(frozen=True, kw_only=True)
class Priced(Part):
    """Take a price times a cost off the reward, the environment's or none: what it asks for follows its options."""

    stage: ClassVar[Stage] = "score"
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    price: float = hyperparameter(0.0, "of a unit of cost; 0 asks for none", low=0)
    needed: bool = hyperparameter(True, "whether it says that it needs what it asks for")

    @property
    def told(self) -> frozenset[str]:
        return frozenset({"cost"}) if self.price else frozenset()

    def required(self) -> frozenset[str]:
        return self.needs | (self.told if self.needed else frozenset())

    def __call__(self, experience: Experience, context: Context) -> Experience:
        if not self.price:
            return experience
        return experience.with_fields(reward=experience["reward"] - self.price * experience["cost"])


def test_what_is_asked_for_follows_an_option() -> None:
    plain = catalogue.build("ppo", SMALL, domain="control")
    assert (plain + Priced()).told == frozenset() and "cost" not in (plain + Priced()).collected
    assert "cost" not in loop_of(Silent, plain + Priced()).iterate()  # nothing is asked of one that tells nothing
    asking = (plain + Priced()).set("price", "2")
    assert asking.told == {"cost"} and "cost" in asking.collected
    with pytest.raises(UserError, match="part 'priced' asks the environment for 'cost', and mine tells nothing"):
        loop_of(Silent, asking)
    free, charged = (loop_of(Stock, recipe).iterate() for recipe in (plain + Priced(), asking))
    assert torch.equal(charged["reward"], free["reward"] - charged["action"].float())  # 2 times 0.5 a unit


def test_what_is_asked_for_and_not_needed_is_refused() -> None:
    recipe = catalogue.build("ppo", SMALL, domain="control") + Priced(price=1.0, needed=False)
    with pytest.raises(UserError, match="'priced' asks the environment to tell 'cost' and does not need it as it is"):
        recipe.check()


@dataclass(frozen=True, kw_only=True)
class Measured(Part):
    """A fact that the environment tells, for a part that derives it."""

    stage: ClassVar[Stage] = "score"
    needs: ClassVar[frozenset[str]] = frozenset({"cost"})
    gives: ClassVar[frozenset[str]] = frozenset({"double_cost"})
    told: ClassVar[frozenset[str]] = frozenset({"cost"})
    measures: ClassVar[bool] = True


def test_what_a_derived_part_asks_for_is_asked_too() -> None:
    kind = type(
        "Derives", (Charge,), {"derives": (Measured,), "told": frozenset(), "needs": frozenset({"double_cost"})}
    )
    recipe = catalogue.build("ppo", SMALL, domain="control") + kind()
    assert recipe.told == {"cost"}


def test_the_recipe_asks_for_what_its_parts_ask_for() -> None:
    recipe = catalogue.build("ppo", domain="control")
    assert recipe.told == frozenset() and (recipe + Charge()).told == {"cost", "post_observation"}
    assert {"cost", "post_observation"} <= (recipe + Charge()).collected
    with pytest.raises(UserError, match="part 'charge' needs the field 'cost', which nobody gives"):
        dataclasses.replace(catalogue.build("reinforce", domain="operations"), score=(Charge(),)).check()
