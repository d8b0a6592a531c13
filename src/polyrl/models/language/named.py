"""Models of a run of language by name: the model of `--model`, a critic beside it, and copies of either.

models={"policy": StartingPolicy(), "critic": StartingCritic(), "reference": Copy("policy")}
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.flat import VectorAdamW
from polyrl.models.base import Interface, Model, NamedModels, Network, Passes, Trained
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.scalar import Critic
from polyrl.models.stored import Named, Stored, StoredFolder
from polyrl.recipe import hyperparameter
from polyrl.runtime.ranks import present


@dataclass(frozen=True, kw_only=True)
class OfLanguage(Trained):
    """A model of language, trained by AdamW."""

    learning_rate: float = hyperparameter(1e-4, "AdamW step size", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(1.0, "norm at which the gradient is clipped; none is off", above=0)

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """Models of language are made of folders: see `LanguageModels`."""
        raise UserError(f"The model '{self.name}' is one of language, and the task {interface.task} is one of control.")


@dataclass(frozen=True, kw_only=True)
class StartingPolicy(OfLanguage):
    """The model of `--model`."""

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy"})
    acting_gives: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})


@dataclass(frozen=True, kw_only=True)
class StartingCritic(OfLanguage):
    """A copy of the model of `--model` with a head of one number, 0 at first."""

    outputs: ClassVar[frozenset[str]] = frozenset({"value"})

    learning_rate: float = hyperparameter(1e-3, "AdamW step size", low=0, high=1e37)


class LanguageModels(NamedModels):
    """Implements `NamedModels`: forward passes go by micro-batches that share what is read of prompts.

    Attributes:
        entries: what the recipe says of each.
        acts: name of the model that acts.
    """

    def __init__(
        self,
        entries: Mapping[str, Model],
        policy: LanguagePolicy,
        *,
        acts: str = "policy",
        micro_batch_tokens: int = 1024,
        lora: LoraSettings | None = None,
    ):
        self.entries, self.acts, self.micro_batch_tokens, self.lora = dict(entries), acts, micro_batch_tokens, lora
        self._models: dict[str, LanguagePolicy | Critic] = {}
        trains = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        for name, entry in self.entries.items():
            if isinstance(entry, StartingPolicy):
                if any(isinstance(model, LanguagePolicy) for model in self._models.values()):
                    raise UserError(f"'{name}' is a second starting policy; a run has one, and copies of it.")
                self._models[name] = policy
            elif isinstance(entry, StartingCritic):
                self._models[name] = Critic.like(policy)
            elif not entry.copied:
                raise UserError(
                    f"The model '{name}' ({entry.name}) is none of language; there are starting-policy and "
                    "starting-critic, and copies of them."
                )
        for name, entry in self.entries.items():
            if entry.copied:
                self._models[name] = copy.deepcopy(self._models[entry.copied])
        self._trained = {
            name: [(n, p) for n, p in model.named_parameters() if not isinstance(model, LanguagePolicy) or n in trains]
            for name, model in self._models.items()
        }
        for name in self._models:
            self._models[name].requires_grad_(False)

    def __getitem__(self, name: str) -> Any:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def policy(self, name: str) -> LanguagePolicy:
        """A model that answers prompts.

        Raises:
            UserError: it does not.
        """
        model = self._models[name]
        if not isinstance(model, LanguagePolicy):
            raise UserError(f"The model '{name}' answers no prompts, so it cannot act or be judged.")
        return model

    def trained(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trained parameters by model; with adapters those alone."""
        return {name: named for name, named in self._trained.items() if isinstance(self.entries[name], Trained)}

    def ask_gradients(self, name: str, asked: bool) -> None:
        """Whether what is computed from now on carries gradients to the parameters of this model."""
        for _, parameter in self._trained[name]:
            parameter.requires_grad = asked

    def zero_gradients(self, name: str) -> None:
        """Forget the gradients of a model."""
        for _, parameter in self._trained[name]:
            parameter.grad = None

    def gradients(self, name: str) -> list[Tensor]:
        """The gradients of a model, those that there are."""
        return [p.grad for _, p in self._trained[name] if p.grad is not None]

    def optimizers(self) -> dict[str, VectorAdamW | torch.optim.AdamW]:
        """One AdamW for each trained model."""
        found: dict[str, VectorAdamW | torch.optim.AdamW] = {}
        for name, named in self.trained().items():
            entry = self.entries[name]
            assert isinstance(entry, OfLanguage)
            found[name] = torch.optim.AdamW(
                [parameter for _, parameter in named],
                fused=True,
                lr=entry.learning_rate,
                eps=entry.adam_epsilon,
                weight_decay=entry.weight_decay,
                betas=(0.9, 0.999),
            )
        return found

    @contextmanager
    def passes(
        self,
        name: str,
        batch: Experience,
        wants: Collection[str],
        draw: Any,
        grouped_by: str = "",
        *,
        own: bool = False,
    ) -> Iterator[Passes]:
        """Micro-batches of the rows, each with the outputs that are wanted, `[b, T]`, in main memory.

        Of a run of several processes (`runtime.ranks`) those of this process.
        """
        model = self._models[name]
        plan = model.plan(batch, self.micro_batch_tokens)
        chunk = None if plan is None else plan.chunk
        with model.sharing(plan) as shared:

            def run() -> Passes:
                for rows in present().share(micro_batches_of(batch, self.micro_batch_tokens, grouped_by, chunk)):
                    if isinstance(model, LanguagePolicy):
                        found = model.evaluate(batch, want=wants, rows=rows, shared=shared)
                    else:
                        found = {"value": model.evaluate(batch, rows, shared)}
                    yield rows, {key: x.cpu() for key, x in found.items()}

            yield run()

    @torch.no_grad()
    def move(self, target: str, towards: str, tau: float) -> None:
        """Move the parameters of `target` the share `tau` of the way `towards` another model's."""
        for (_, moved), (_, goal) in zip(self._trained[target], self._trained[towards], strict=True):
            if tau == 1:
                moved.copy_(goal)
            else:
                moved.lerp_(goal, tau)

    @torch.no_grad()
    def distance(self, one: str, other: str) -> float:
        """Euclidean distance of two models' parameters."""
        pairs = zip(self._trained[one], self._trained[other], strict=True)
        return float(torch.stack([(a - b).square().sum() for (_, a), (_, b) in pairs]).sum().sqrt())

    def stored(self) -> dict[str, Stored]:
        """A folder of its name for each: policies as ordinary model or adapter folders."""
        learns = self.trained()
        return {
            name: stored_policy(name, model, self.lora, learns.get(name, ()))
            if isinstance(model, LanguagePolicy)
            else StoredFolder(name, model, Critic.load, learns.get(name, ()))
            for name, model in self._models.items()
        }


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a model that ask for gradients; with adapters those alone."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class StoredAdapters(StoredFolder):
    """The adapters of a policy, in an adapter folder."""

    def load(self, folder: Path) -> None:
        """Read them back."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        assert isinstance(self.model, LanguagePolicy)
        set_peft_model_state_dict(self.model.model, load_file(folder / self.name / "adapter_model.safetensors"))


def stored_policy(name: str, policy: LanguagePolicy, lora: LoraSettings | None, learns: Named) -> Stored:
    """A policy as an ordinary folder, or with adapters as an adapter folder."""
    kind = StoredFolder if lora is None else StoredAdapters
    return kind(name, policy, type(policy).load, learns)
