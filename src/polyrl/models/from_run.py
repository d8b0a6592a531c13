"""A model of another run, which acts or gives outputs in this one and is never trained.

It is made of what the run folder's `model/` says and holds, `policy.json` and a file of safetensors, and of classes
that are loaded already: nothing that a folder names is imported, so that a folder of somebody else's runs no code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import polyrl.models.policies  # noqa: F401 - polyrl's own models are there to be found
from polyrl.errors import UserError
from polyrl.models.actor_critic import MlpCriticNetwork, MlpPolicyNetwork
from polyrl.models.base import Interface, Model, Network
from polyrl.models.distributions import distribution_of
from polyrl.models.normalization import RunningMoments
from polyrl.recipe import Architecture, Part, Recipe, hyperparameter, kebab

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

ABOUT = "policy.json"
OF_ARCHITECTURE = {"policy": frozenset({"logprob", "entropy"}), "critic": frozenset({"value"})}
"""Outputs of the models that an architecture makes."""


class ReadPolicyNetwork(MlpPolicyNetwork):
    """A policy of another run: it brings the statistics of its observations along."""

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "logprob" and "entropy" `[B, T]` of raw observations, normalized as its own run did."""
        seen = torch.from_numpy(self.policy.normalize(batch["observation"].double().numpy()))
        return super().outputs(batch.with_fields(observation=seen), wants, draw)


@dataclass(frozen=True, kw_only=True)
class FromRun(Model):
    """A model of another run, as it was when that ended; it is never trained.

    Attributes:
        model: which of that run's models, by its name there; "policy" of a run without one is what it judged.
    """

    domain: ClassVar[str] = "control"
    given: ClassVar[bool] = True

    run: str = hyperparameter("", "folder of the run that the model is of")
    model: str = "policy"

    @property
    def said(self) -> str:
        """Which model it is, and of which run."""
        return f"'{self.model}' of the run {self.run or 'that is named'}"

    @property
    def outputs(self) -> frozenset[str]:  # type: ignore[override]
        """What it gives; nothing as long as no run is named.

        Raises:
            UserError: there is no such run or model.
        """
        if not self.run:
            return frozenset()
        entry = _Run.read(self).entry(self.model)
        return OF_ARCHITECTURE[self.model] if isinstance(entry, Architecture) else entry.outputs

    @property
    def acting_gives(self) -> frozenset[str]:  # type: ignore[override]
        """What a rollout gets of it where it acts."""
        if not self.run:
            return frozenset()
        entry = _Run.read(self).entry(self.model)
        return frozenset({"behaviour_logprob"}) if isinstance(entry, Architecture) else entry.acting_gives

    def check_within(self, recipe: Recipe) -> None:
        """Refuse to read it on observations that another policy has normalized.

        Raises:
            UserError: names the part that reads it.
        """
        acting = recipe.acting
        own = [name for name, model in recipe.models.items() if model is self]
        readers = [p.name for p in recipe.parts() if p.stage != "collect" and {*own} & p.required_models()]
        if readers and acting is not None and acting.setting("normalize_observation", False):
            raise UserError(
                f"{recipe.name}: '{readers[0]}' reads the model '{own[0]}' of another run on observations that the "
                "policy of this run has normalized by its own statistics; set --normalize-observation false."
            )

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """The model with its weights; nothing is drawn from `stream`.

        Raises:
            UserError: there is no such run or model, it was made for another interface, or its code is not here.
        """
        run = _Run.read(self)
        run.check_interface(interface)
        entry, file = run.entry(self.model), run.folder / f"{run.named(self.model)}.safetensors"
        try:
            weights = load_file(file)
            network = _made(entry, self.model, interface, weights)
        except (OSError, SafetensorError):
            raise UserError(f"The run {self.run} has no readable {file.name}, which its '{self.model}' is.") from None
        except RuntimeError:
            raise UserError(
                f"The weights in {file} do not fit observations of size {interface.observation_size} and actions in "
                f"{interface.action_space}, as {interface.task} has them, or are damaged."
            ) from None
        for module in network.modules():
            if isinstance(module, RunningMoments):
                module.hold()
        if run.normalizes and not isinstance(network, ReadPolicyNetwork):
            raise UserError(
                f"'{self.model}' of the run {self.run} reads observations as the policy of that run normalized them, "
                "which no other run does; train that one with --normalize-observation false."
            )
        return network.eval()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify what the model is: its file, and what is said of it.

        Raises:
            UserError: there is no such run or model.
        """
        run = _Run.read(self)
        found = hashlib.blake2b(repr(run.entry(self.model)).encode(), digest_size=8)
        found.update((run.folder / f"{run.named(self.model)}.safetensors").read_bytes())
        return found.hexdigest()


def _made(entry: Model | Architecture, name: str, interface: Interface, weights: Mapping[str, Tensor]) -> Network:
    """A network of another run's model, with its weights."""
    stream = torch.Generator().manual_seed(0)
    if isinstance(entry, Architecture):
        architecture: Any = entry
        if entry.gives:
            raise UserError(
                f"A policy of {entry.name} remembers what it has seen, and a model of another run is asked about "
                "single steps; name a run whose networks have no memory."
            )
        if name == "critic":
            critic = architecture.make_critic(interface.observation_size, 0)
            critic.load_state_dict(weights)
            return MlpCriticNetwork(critic)
        distribution = distribution_of(interface.action_space, architecture.setting("log_std_init", 0.0))
        policy = architecture.make_policy(distribution, interface.continuous, 0)
        policy.load_state_dict(weights)
        return ReadPolicyNetwork(policy, masked=interface.masked > 0)
    network = entry.make(interface, stream)
    network.load_state_dict(weights)
    if type(network) is MlpPolicyNetwork:
        return ReadPolicyNetwork(network.policy, masked=network.masked)
    return network


@dataclass(frozen=True)
class _Run:
    """What a run folder says of its models.

    Attributes:
        said: how the run was named.
        folder: `model/` of it.
        about: its `policy.json`.
    """

    said: str
    folder: Path
    about: Mapping[str, Any]

    @classmethod
    def read(cls, wanted: FromRun) -> _Run:
        """Read it.

        Raises:
            UserError: no run is named, or there is none.
        """
        if not wanted.run:
            raise UserError(
                "A model of this recipe is of another run, and none is named; give the folder of a finished run, such "
                "as --guide.run runs/ppo (`polyrl show` has the option's name)."
            )
        folder = Path(wanted.run).expanduser()
        if not folder.is_dir():
            raise UserError(f"There is no folder {wanted.run}, of which a model is wanted; name a finished run.")
        try:
            about = json.loads((folder / "model" / ABOUT).read_text(encoding="utf-8"))
            if not isinstance(about, dict) or not isinstance(about.get("models", {}), dict):
                raise ValueError
        except (OSError, ValueError):
            raise UserError(
                f"{wanted.run} has no model/{ABOUT} that can be read, so it is no finished run of control."
            ) from None
        if "action" not in about and "observation_size" not in about:
            raise UserError(
                f"The run {wanted.run} was on {about.get('task')}, which is no task of control; name a run of one."
            )
        return cls(wanted.run, folder / "model", about)

    @property
    def normalizes(self) -> bool:
        """Whether a policy of the run normalizes what it observes."""
        stated = [self.about.get("architecture", {}), *self.about.get("models", {}).values()]
        return any(isinstance(entry, dict) and bool(entry.get("normalize_observation")) for entry in stated)

    def check_interface(self, interface: Interface) -> None:
        """Refuse a run whose task shows or takes something else.

        Raises:
            UserError: says what differs.
        """
        size = self.about.get("observation_size", interface.observation_size)
        for what, theirs, ours in (
            ("observations of size", str(size), str(interface.observation_size)),
            ("actions in", str(self.about.get("action")), str(interface.action_space)),
        ):
            if theirs != ours:
                raise UserError(
                    f"The run {self.said} was on {self.about.get('task')}, which has {what} {theirs}, and "
                    f"{interface.task} has {what} {ours}; name a run on a task of the same interface."
                )

    def named(self, name: str) -> str:
        """Its name of a model: what is asked for as "policy" is what it judged, where it has none of that name."""
        models = self.about.get("models", {})
        return str(self.about.get("judged", name)) if name == "policy" and models and name not in models else name

    def entry(self, name: str) -> Model | Architecture:
        """What the run's recipe stated of a model; of a copy, what it is a copy of.

        Raises:
            UserError: it has none of that name, or one whose class is not loaded.
        """
        name = self.named(name)
        if "architecture" in self.about:
            known = [f for f in OF_ARCHITECTURE if (self.folder / f"{f}.safetensors").is_file()]
            found: Any = self.about["architecture"] if name in known else None
        else:
            known, found = [*self.about["models"]] if "models" in self.about else [], None
            seen, at = set[Any](), name
            while at in known and at not in seen:
                seen.add(at)
                found = self.about["models"][at]
                at = found.get("of", "") if isinstance(found, dict) and found.get("name") == "copy" else ""
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise UserError(f"The run {self.said} has no model '{name}'; it has {', '.join(known) or 'none'}.")
        called, settings = found["name"], {key: value for key, value in found.items() if key != "name"}
        root: type[Part] = Architecture if "architecture" in self.about else Model
        kind = next((kind for kind in _kinds(root) if kebab(kind.__name__) == called), None)
        if kind is None or kind is FromRun:
            raise UserError(
                f"'{name}' of the run {self.said} is a '{called}'"
                + (", of another run again; name that one." if kind else ", which no code that is loaded here makes.")
            )
        try:
            made = kind(**settings)
        except TypeError:
            wanted = ", ".join(f.name for f in dataclasses.fields(kind))
            raise UserError(f"{self.folder / ABOUT} states '{called}' with other settings than {wanted}.") from None
        assert isinstance(made, Model | Architecture)
        return made


def _kinds(root: type[Part]) -> Iterator[type[Part]]:
    """Classes that are loaded, the most general first."""
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)
