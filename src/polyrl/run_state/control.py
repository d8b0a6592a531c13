"""The state of a control run: a Gymnasium task, a small policy and critic, and the training environments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from polyrl import kernels
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.flat import FlatParameters
from polyrl.models.actor import Actor, Making
from polyrl.models.base import Interface, Models, PolicyNetwork
from polyrl.models.closed_form import ActorCriticPasses
from polyrl.models.control import ControlCritic, ControlPolicy, final_values
from polyrl.models.distributions import distribution_of
from polyrl.models.from_run import FromRun
from polyrl.models.normalization import RunningMoments
from polyrl.models.policies import RandomActor
from polyrl.models.stored import Stored, StoredBy, StoredModule
from polyrl.parts.control import StepEnvironments
from polyrl.parts.credit import masked_mean
from polyrl.parts.score import kl_estimate
from polyrl.rollout.control import Collector, check_fits
from polyrl.rollout.environment_state import EnvironmentState
from polyrl.rollout.evaluation import Evaluator
from polyrl.rollout.stepping import PROBED_STEPS, environments_of
from polyrl.run_state.base import RunState
from polyrl.run_state.control_judging import EVALUATION_SEED, AlsoJudged, Evaluation, also_judged, return_metrics
from polyrl.run_state.environment_notices import environment_notices, seed_notices
from polyrl.runtime.seeding import generator, stream_seed
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.environment import ControlTask

if TYPE_CHECKING:
    from polyrl.recipe import Judged, Part, Recipe
    from polyrl.runtime.config import PythonObjects, RunConfig

Say = Callable[[str], None]
Acting = Callable[[Actor, Mapping[str, Any]], Actor]
"""What acts in training, of the policy's own actor and the models."""


def make_task(config: RunConfig, given: PythonObjects) -> ControlTask:
    """The environment by its name, or the user's function."""
    if given.dataset is not None:
        raise UserError(f"Rows are data of language; give the data of {config.task} as a file or folder.")
    if given.environment is not None:
        task = ControlTask(config.task, make=given.environment)
    else:
        task = named_task(config.task)
    if config.dataset:
        task = dataclasses.replace(task, data=Path(config.dataset).expanduser(), skip_bad_rows=config.skip_bad_rows)
    return dataclasses.replace(task, eval_episodes=config.eval_episodes) if config.eval_episodes else task


def make_run_state(config: RunConfig, task: ControlTask, recipe: Recipe, say: Say = lambda _: None) -> ControlRunState:
    """Make the networks; the environments follow when they are first stepped."""
    if config.device not in ("auto", "cpu"):
        raise UserError(
            f"Control runs on the CPU, where its small networks are fastest; leave --device {config.device} away."
        )
    evaluation = Evaluation(episodes=task.eval_episodes)
    told = told_fields(task, recipe)

    def wrapped(collect: Part | None) -> Acting:
        if collect is not None and not isinstance(collect, StepEnvironments):
            raise UserError(f"{recipe.name} collects by '{collect.name}', which does not step environments.")
        if collect is None:
            return lambda inner, models: inner
        return lambda inner, models: collect.actor(inner, Making(task, models, config.seed, say))

    acting = wrapped(recipe.collect)
    streams = {name: (s.acts or recipe.acts, wrapped(s.collect)) for name, s in recipe.streams.items()}

    if recipe.models:
        models = Models(recipe.models, Interface.of(task), config.seed, recipe.acts)
        judged = recipe.judged or recipe.acts
        for name in (recipe.acts, judged, *(acts for acts, _ in streams.values())):
            if not isinstance(models[name], PolicyNetwork):
                raise UserError(f"{recipe.name} acts by or judges '{name}', which is no policy.")
        return ControlRunState(
            task,
            seed=config.seed,
            models=models,
            acts=recipe.acts,
            judges=judged,
            acting=acting,
            streams=streams,
            told=told,
            evaluation=evaluation,
            also=recipe.also_judged,
            say=say,
        )
    if recipe.policy is None:
        raise UserError(f"{recipe.name} has no architecture for control; put one into it, such as +mlp-actor-critic.")
    return ControlRunState(
        task,
        recipe.policy,
        seed=config.seed,
        critic="critic" in recipe.required_models(),
        acting=acting,
        told=told,
        evaluation=evaluation,
        also=recipe.also_judged,
        say=say,
    )


def told_fields(task: ControlTask, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Shapes of what the recipe's parts ask the environment to tell.

    Raises:
        UserError: it does not declare that it tells them.
    """
    known = task.info_fields if recipe.told else {}
    for name in sorted(recipe.told - known.keys()):
        asks = next(p.name for p in recipe.parts() if name in p.told)
        raise UserError(
            f"{recipe.name}: part '{asks}' asks the environment for '{name}', and {task.spec} tells "
            f"{', '.join(known) or 'nothing'} beside observation and reward; let its metadata['info_fields'] name it "
            "with its shape, and what step returns as info hold it."
        )
    return {name: known[name] for name in sorted(recipe.told)}


def training_seed(seed: int) -> int:
    """The seed of a run's training episodes: its own, unless the evaluation's episodes start from that one."""
    return seed if seed != EVALUATION_SEED else stream_seed(seed, "training")


class ControlRunState(RunState):
    """Implements `polyrl.run_state.base.RunState` for Gymnasium environments.

    Attributes:
        models: the recipe's, where it states them.
        policy, critic: else the networks; statistics of normalization are the policy's buffers.
        actor: what acts in training; `judged`: what evaluations judge, the policy without wrappers; `also_judged`: what
            they judge beside it.
        acting, actors, collectors: of each stream, "" the recipe's own: the model that acts, what acts with it, and
            what steps its training environments; no collector before the first rollout.
        latest: the latest rollout.
        flat: the trained parameters of each model as one vector.
    """

    def __init__(
        self,
        task: ControlTask,
        architecture: Any = None,
        *,
        seed: int = 0,
        critic: bool = True,
        models: Models | None = None,
        acts: str = "policy",
        judges: str = "policy",
        acting: Acting = lambda inner, models: inner,
        streams: Mapping[str, tuple[str, Acting]] | None = None,
        told: Mapping[str, tuple[int, ...]] | None = None,
        evaluation: Evaluation | None = None,
        also: Mapping[str, Judged] | None = None,
        say: Say = lambda _: None,
    ):
        self.task, self.architecture, self.seed, self.say = task, architecture, seed, say
        self.told = dict(told or {})
        self.evaluation = evaluation or Evaluation(episodes=task.eval_episodes)
        self.models, self.judges = models, judges
        self._passes: ActorCriticPasses | None = None
        if models is None:
            observations = task.observations
            self.architecture = architecture = architecture.fitted(observations, task.name)
            distribution = distribution_of(task.actions.space, architecture.setting("log_std_init", 0.0))
            self.policy: ControlPolicy = architecture.make_policy(distribution, observations.continuous, seed)
            self.critic: ControlCritic | None = architecture.make_critic(observations.size, seed) if critic else None
            self.modules: dict[str, nn.Module] = {"policy": self.policy}
            if self.critic is not None:
                self.modules["critic"] = self.critic
            self.flat = {name: FlatParameters(module) for name, module in self.modules.items()}
            self.judged: Actor = architecture.make_actor(self.policy, self.critic, masked=task.masked > 0)
            self.actor = acting(self.judged, {})
            self.judged = self.actor if self.actor.is_policy else self.judged
            if kernels.ENABLED:
                self._passes = ActorCriticPasses.of(self.policy, self.critic, self.actor)
        else:
            self.modules, self.flat = {**models}, models.trained()
            policy, judged = models[acts], models[judges]
            assert isinstance(policy, PolicyNetwork) and isinstance(judged, PolicyNetwork)
            self.actor = models.actors[acts] = acting(policy.actor(), models)
            self.judged = self.actor if self.actor.is_policy else judged.actor()
        self.acting = {"": acts} | {name: model for name, (model, _) in (streams or {}).items()}
        self.actors = {"": self.actor} | {name: self._actor_of(name, *of) for name, of in (streams or {}).items()}
        for actor in (*self.actors.values(), self.judged):
            check_fits(actor, task.actions.space, task.spec)
        self.reads = ActorCriticPasses.reads | self.actor.fields_read
        if self.models is None and self.critic is not None:
            self.reads |= self.critic.fields_read
        self.collectors: dict[str, Collector] = {}
        self.judge = Evaluator(task, self.evaluation.seed)
        self.also_judged: list[AlsoJudged] = also_judged(self, also or {}, judges)
        self.latest: Experience | None = None
        self._environment_states = {name: EnvironmentState() for name in self.actors}

    def _actor_of(self, stream: str, acts: str, acting: Acting) -> Actor:
        """What acts in a named stream.

        Raises:
            UserError: the same model acts elsewhere too, and one of the two wraps it: whose likelihoods would be meant?
        """
        assert isinstance(self.models, Models)
        policy = self.models[acts]
        assert isinstance(policy, PolicyNetwork)
        inner = policy.actor()
        found, known = acting(inner, self.models), self.models.actors.get(acts)
        if known is not None and (found is not inner or type(known) is not type(inner)):
            raise UserError(
                f"The stream '{stream}' and another one act by the model '{acts}', each in its own way, so it would "
                f"not be known whose likelihoods are meant; let a Copy('{acts}') act in one of them."
            )
        self.models.actors.setdefault(acts, found)
        return found

    # ----------------------------------------------------------------------------------------------- collecting

    @property
    def collector(self) -> Collector | None:
        """What steps the environments of the recipe's own collect; None before the first rollout."""
        return self.collectors.get("")

    def collect(
        self,
        environments: int,
        steps: int,
        generator: torch.Generator,
        actor: Actor | None = None,
        stream: str = "",
        anew: bool = False,
    ) -> tuple[Experience, list[float], list[int]]:
        """A rollout of `steps` in each of `environments`; with raw returns and lengths of the episodes that ended.

        `actor`: who acts, where that is not the run's own. `stream`: whose environments are stepped. `anew`: begin with
        new episodes.
        """
        own, collector = self.actors[stream], self.collectors.get(stream)
        if collector is None or collector.environments.count != environments:
            if collector is not None:
                collector.environments.close()
            made = environments_of(self.task, environments, self.told)
            seed = training_seed(self.seed)
            collector = Collector(made, own, stream_seed(seed, "stream", stream) if stream else seed, self.say)
            collector.load_state(self._environment_states[stream])
            self.collectors[stream] = collector
        rollout = collector.collect(steps, generator, actor, anew=anew)
        action = torch.from_numpy(rollout.action)
        present = torch.from_numpy(rollout.present)
        batch = Experience(
            {
                "observation": torch.from_numpy(rollout.observation),
                "action": action,
                **(actor or own).fields(rollout.records, action),
                "present": present,
                "mask": present.clone(),
                "reward": torch.from_numpy(rollout.reward),
                "terminated": torch.from_numpy(rollout.terminated),
                "truncated": torch.from_numpy(rollout.truncated),
                "final_observation": torch.from_numpy(rollout.final_observation),
                "starts_episode": torch.from_numpy(rollout.starts_episode),
                "rollout_end": torch.from_numpy(rollout.rollout_end),
                **{name: torch.from_numpy(x) for name, x in (rollout.masks | rollout.told).items()},
            }
        )
        if not stream:
            self.latest = batch
        return batch, rollout.returns, rollout.lengths

    def rewind(self) -> None:
        """Undo the latest rollouts, finished or not, because their iteration is not going to count."""
        for collector in self.collectors.values():
            collector.rewind()

    def restarts_at_checkpoints(self) -> bool:
        """True of environments that cannot be brought back by replay."""
        return any(collector.restarts_at_checkpoints for collector in self.collectors.values())

    # --------------------------------------------------------------------------------------------- forward passes

    def zero_gradients(self) -> None:
        """Forget the gradients, which stay where they are: those of the layers are views of them."""
        for flat in self.flat.values():
            assert flat.vector.grad is not None
            flat.vector.grad.zero_()

    def closed_form(self, wants: Collection[str]) -> ActorCriticPasses | None:
        """Passes in NumPy, for networks of known layers."""
        return self._passes

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable "logprob", "entropy" and "value" `[B, T]`, those that are wanted."""
        found: dict[str, Tensor] = {}
        if {"logprob", "entropy"} & set(wants):
            found.update(self.actor.outputs(experience, wants))
        if "value" in wants:
            found["value"] = self._need_critic().of_steps(experience)
        return {name: tensor for name, tensor in found.items() if name in wants}

    def value(self, experience: Experience) -> Tensor:
        """Critic's value of the state before each step, `[B, T]`."""
        critic = self._need_critic()
        return critic.values_of(experience) if self._passes is None else self._passes.values(experience["observation"])

    def final_value(self, experience: Experience) -> Tensor:
        """Critic's value of the state after each truncated step, `[B, T]`; 0 at the others."""
        critic = self._need_critic()
        passes = self._passes
        return critic.final_values(experience) if passes is None else final_values(experience, passes.values)

    @torch.no_grad()
    def divergence(self) -> float:
        """Mean KL from the policy that collected the latest rollout to the present one, in nats a step.

        Estimated by rho - 1 - log rho, which is unbiased because the actions are those of the old policy.
        """
        assert self.latest is not None
        present = self.outputs(self.latest, {"logprob"})["logprob"]
        log_ratio = present - self.latest["behaviour_logprob"]
        estimate = kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3")
        return float(masked_mean(estimate, self.latest["mask"]))

    def reward_moments(self, stream: str = "") -> RunningMoments:
        """Statistics of the discounted return, which belong to the policy that acts in a stream."""
        if self.models is None:
            return self.policy.reward_moments
        policy = self.models[self.acting[stream]]
        assert isinstance(policy, PolicyNetwork) and policy.reward_moments is not None  # parts have asked for it
        return policy.reward_moments

    def _need_critic(self) -> ControlCritic:
        if self.critic is None:
            raise RuntimeError("this run state was made without a critic")
        return self.critic

    # ------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return and length of the fixed evaluation episodes, actions at their most probable; the first few of them."""
        played = self.judge(self.judged, self.evaluation.episodes)
        metrics = return_metrics(played, "eval/", self.task.reference)
        for judged in self.also_judged:
            metrics |= judged.metrics(self.evaluation.episodes)
        return metrics, [e.shown(k) for k, e in enumerate(played[: self.evaluation.shown])]

    @property
    def rows_left_out(self) -> int:
        """How many of the data's transitions are not used."""
        recorded = self.task.recorded
        return 0 if recorded is None else len(recorded.left_out)

    def notices(self) -> list[str]:
        """What is to be said of the data, and of an environment that does not follow its seed."""
        found, recorded = list[str](), self.task.recorded
        if recorded is not None:
            found += [*recorded.left_out.sentences(), *recorded.notices]
        actions = self._any_actions(generator(self.seed, "does it follow its seed"))
        return [*found, *seed_notices(self.task, actions), *environment_notices(self.task, self.judged, self.modules)]

    def _any_actions(self, stream: torch.Generator) -> np.ndarray[Any, Any]:
        """Actions `[T, ...]` to probe an environment with, as it takes them."""
        if self.models is None:
            distribution = self.policy.distribution
            return distribution.mode(distribution.noise((PROBED_STEPS,), stream))
        random = RandomActor(self.task.actions.space)
        actions = random.actions(random.noise(PROBED_STEPS, 1, stream)[:, 0])
        return actions if random.execute is None else random.execute(actions)

    def evaluation_facts(self) -> dict[str, Any]:
        """How the run is judged."""
        return {**dataclasses.asdict(self.evaluation), "actions": "most probable"}

    # --------------------------------------------------------------------------------------------------- folders

    def export(self, folder: Path) -> None:
        """Write the policy with its statistics, and the critic: `policy.safetensors`, `critic.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in self.modules.items():
            StoredModule(name, module).save(folder)
        self._write_about(folder)

    def _write_about(self, folder: Path) -> None:
        about = {
            "task": self.task.name,
            **self._stated(),
            "observation": str(self.task.observations.space),
            "observation_size": self.task.observations.size,
            "action": str(self.task.actions.space),
        }
        (folder / "policy.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def stored(self) -> dict[str, Stored]:
        """The models, and the state of the training environments."""
        models: Mapping[str, Stored]
        if self.models is not None:
            models = self.models.stored()
        else:
            vectors = {name: [("parameters", flat.vector)] for name, flat in self.flat.items()}
            models = {name: StoredModule(name, module, vectors[name]) for name, module in self.modules.items()}
        return {**models, "environments": StoredBy(self._save_environments, self._load_environments)}

    def save(self, folder: Path) -> None:
        """What is stored, and what it is of."""
        super().save(folder)
        self._write_about(folder)

    def _save_environments(self, folder: Path) -> None:
        for stream, state in self._environment_states.items():
            collector = self.collectors.get(stream)
            (collector.state_to_save() if collector else state).save(folder, stream)

    def _load_environments(self, folder: Path) -> None:
        for stream, state in self._environment_states.items():
            self._environment_states[stream] = EnvironmentState.load(folder, stream) or state
            if stream in self.collectors:
                self.collectors[stream].load_state(self._environment_states[stream])

    def given_models(self) -> dict[str, dict[str, str]]:
        """The models that are of other runs."""
        entries = self.models.entries if self.models is not None else {}
        given = {name: entry for name, entry in entries.items() if isinstance(entry, FromRun)}
        return {
            name: {"run": entry.run, "model": entry.model, "fingerprint": entry.fingerprint}
            for name, entry in given.items()
        }

    def start(self) -> str:
        """Fingerprint of the models that are of other runs."""
        return " ".join(f"{name}={given['fingerprint']}" for name, given in self.given_models().items())

    def _stated(self) -> dict[str, Any]:
        """The architecture, or the models, for policy.json."""
        if self.models is None:
            return {"architecture": {"name": self.architecture.name, **dataclasses.asdict(self.architecture)}}
        stated = {name: {"name": m.name, **dataclasses.asdict(m)} for name, m in self.models.entries.items()}
        return {"models": stated, "judged": self.judges}
