"""Mixtures of squashed Gaussians: several experts in each state, and a router that says how often each one acts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyrl.core.update import Update, flat
from polyrl.errors import UserError
from polyrl.models.actor import Actor
from polyrl.models.base import Interface
from polyrl.models.graph import Node, linear
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import StackedMlp, live_forward
from polyrl.models.normalization import Floats
from polyrl.models.policies import LARGEST_ATANH, BoundedActor, BoundedPolicy, SquashedGaussian
from polyrl.models.squashed import LOG_STD_MAX, LOG_STD_MIN, squashed_logprob
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws
    from polyrl.recipe import Recipe


class MixtureActor(BoundedActor):
    """Acts by one expert at a time; what the network says is followed by the router's logits."""

    policy: MixturePolicy

    @cached_property
    def _forward(self) -> Callable[[Floats], Floats]:
        said = live_forward(self.policy.network)
        if self.policy.experts == 1:
            return said
        weight, bias = self.policy.router_weight.data.numpy(), self.policy.router_bias.data.numpy()
        return lambda seen: np.concatenate([said(seen), seen @ weight + bias], 1)


class MixturePolicy(BoundedPolicy):
    """tanh of one of K Gaussians, chosen with probabilities that depend on the state as the Gaussians do.

    One network gives the means and log deviations of all experts; the router is a linear layer of the observation whose
    weights begin at 0, so that at first every expert is as likely as another (arXiv:2104.09122's code). One expert has
    no router and is a `SquashedGaussianPolicy`.

    Attributes:
        experts: K.
        actions: A, numbers of an action.
        numbers: normal numbers that `sample` takes for an action: A, and with several experts one more, which draws.
    """

    def __init__(self, network: StackedMlp, space: spaces.Box, experts: int, observation_size: int):
        super().__init__(network, space)
        self.experts, self.actions = experts, self.numbers
        if experts > 1:
            self.numbers += 1
            self.router_weight = nn.Parameter(torch.zeros(observation_size, experts))
            self.router_bias = nn.Parameter(torch.zeros(experts))

    def actor(self) -> Actor:
        """Acts by an expert that it draws; where nothing is explored, by the most probable one."""
        return MixtureActor(self, self.space)

    # ------------------------------------------------------------------------------------------------------ training

    def log_weights(self, observation: Tensor) -> Tensor:
        """Log-probabilities of the experts `[..., K]`."""
        if self.experts == 1:
            return observation.new_zeros(*observation.shape[:-1], 1)
        return (observation @ self.router_weight + self.router_bias).log_softmax(-1)

    def distributions(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations `[..., K, A]` of all experts before the tanh."""
        said = self.network(observation).squeeze(-2).chunk(2, -1)
        mean, log_std = (x.unflatten(-1, (self.experts, self.actions)) for x in said)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def every(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An action of each expert `[..., K, A]`, its own log-density `[..., K]`, and each expert's mode `[..., K, A]`.

        Args:
            observation: `[..., D]`.
            noise: normal numbers `[..., K, A]`.
        """
        mean, log_std = self.distributions(observation)
        before = mean + log_std.exp() * noise
        return torch.tanh(before), squashed_logprob(before, noise, log_std), torch.tanh(mean)

    def of_expert(self, observation: Tensor, expert: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `[..., A]` of the experts `[...]` and their densities under those alone `[...]`, by noise `[..., A]`.

        The gradient reaches these experts and no other, and not the router.
        """
        at = expert[..., None, None].expand(*expert.shape, 1, self.actions)
        mean, log_std = (x.gather(-2, at).squeeze(-2) for x in self.distributions(observation))
        before = mean + log_std.exp() * noise
        return torch.tanh(before), squashed_logprob(before, noise, log_std)

    def drawn(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Experts `[...]` int64, each as often as the router says, by normal noise `[...]`."""
        if self.experts == 1:
            return torch.zeros(observation.shape[:-1], dtype=torch.int64)
        below = self.log_weights(observation.detach()).detach().exp().cumsum(-1)[..., :-1]
        place: Tensor = torch.special.ndtr(noise)
        return (place.unsqueeze(-1) >= below).sum(-1)

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `[..., A]` and their log-densities under the drawn expert `[...]`, by noise `[..., numbers]`.

        Differentiable through that expert; the choice itself carries no gradient.
        """
        return self.of_expert(observation, self.drawn(observation, noise[..., -1]), noise[..., : self.actions])

    def logprob(self, observation: Tensor, action: Tensor) -> Tensor:
        """Log-density of the mixture `[...]` at actions `[..., A]`; those on a bound are brought just inside."""
        mean, log_std = self.distributions(observation)
        before = torch.atanh(action.clamp(-LARGEST_ATANH, LARGEST_ATANH)).unsqueeze(-2)
        each = squashed_logprob(before, (before - mean) * (-log_std).exp(), log_std)
        return torch.logsumexp(self.log_weights(observation) + each, -1)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "sampled_action" and "sampled_logprob" of fresh actions, "expert_weights", "logprob" of stored ones, "mode".

        Whose the fresh actions are, and by which noise, the batch says where it has `expert` `[B, T]` and
        `expert_noise` `[B, T, K, A]`. Where it has `gumbel` `[B, T, K]` too, they are a sum of all experts' actions
        with shares that are 1 and 0 and have the gradient of a softmax (straight through).
        """
        observation, found = batch["observation"], dict[str, Tensor]()
        if {"sampled_action", "sampled_logprob"} & set(wants):
            found["sampled_action"], found["sampled_logprob"] = self._fresh(batch, draw)
        if "expert_weights" in wants:
            found["expert_weights"] = self.log_weights(observation).exp()
        if "logprob" in wants:
            found["logprob"] = self.logprob(observation, batch["action"])
        if "mode" in wants:
            likely = self.log_weights(observation).argmax(-1)
            noise = observation.new_zeros(*likely.shape, self.actions)
            found["mode"] = self.of_expert(observation, likely, noise)[0]
        return found

    def _fresh(self, batch: Experience, draw: Draws) -> tuple[Tensor, Tensor]:
        observation = batch["observation"]
        if "expert" not in batch:
            return self.sample(observation, draw(*observation.shape[:-1], self.numbers))
        noise = batch["expert_noise"]
        if "gumbel" in batch:
            soft = (self.log_weights(observation) + batch["gumbel"]).softmax(-1)
            hard = nn.functional.one_hot(batch["expert"], self.experts).to(soft.dtype)
            share = hard + soft - soft.detach()
            action, logprob, _ = self.every(observation, noise)
            return (share.unsqueeze(-1) * action).sum(-2), (share * logprob).sum(-1)
        at = batch["expert"][..., None, None].expand(*batch["expert"].shape, 1, self.actions)
        return self.of_expert(observation, batch["expert"], noise.gather(-2, at).squeeze(-2))

    # -------------------------------------------------------------------------------------------------------- acting

    def _parts(self, said: Floats) -> tuple[Floats, Floats, Floats]:
        """Means and log deviations `[B, K, A]`, and probabilities of the experts `[B, K]`."""
        many = self.experts * self.actions
        mean, log_std = (x.reshape(len(said), self.experts, -1) for x in (said[:, :many], said[:, many : 2 * many]))
        logits = said[:, 2 * many :] if self.experts > 1 else np.zeros((len(said), 1), np.float32)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return mean, log_std, weights / weights.sum(1, keepdims=True)

    def mode(self, said: Floats) -> Floats:
        """tanh of the most probable expert's mean."""
        mean, _, weights = self._parts(said)
        found: Floats = np.tanh(mean[np.arange(len(said)), weights.argmax(1)])
        return found

    def nodes(self) -> list[Node]:
        """Network and router."""
        if self.experts == 1:
            return super().nodes()
        router = linear(*(p.data.numpy().copy() for p in (self.router_weight, self.router_bias)))
        return [Node("beside", lists=(super().nodes(), (router,)))]

    def greedy(self) -> list[Node]:
        """The same for export; one expert has no router."""
        settings = {"experts": self.experts, "numbers": self.actions}
        chosen = Node("take", settings={"begin": 0, "end": self.actions})
        return [Node("expert", settings=settings) if self.experts > 1 else chosen, Node("tanh")]

    def explore(self, said: Floats, noise: Floats) -> Floats:
        """tanh of mean plus deviation times noise of an expert that the last number of the noise draws."""
        mean, log_std, weights = self._parts(said)
        expert = np.zeros(len(said), np.int64)
        if self.experts > 1:
            place = torch.special.ndtr(torch.from_numpy(noise[:, -1])).numpy()
            expert = (place[:, None] >= weights.cumsum(1)[:, :-1]).sum(1)
        rows = np.arange(len(said))
        deviation = np.exp(np.clip(log_std[rows, expert], LOG_STD_MIN, LOG_STD_MAX))
        found: Floats = np.tanh(mean[rows, expert] + deviation * noise[:, : self.actions])
        return found


@dataclass(frozen=True, kw_only=True)
class GaussianMixture(SquashedGaussian):
    """tanh of one of several Gaussians, drawn by a router, for actions between bounds."""

    outputs: ClassVar[frozenset[str]] = SquashedGaussian.outputs | {"expert_weights"}

    experts: int = hyperparameter(4, "K, Gaussians in each state; 1 is a single squashed Gaussian", low=1)

    def check_within(self, recipe: Recipe) -> None:
        """Refuse several experts whose router nothing would train.

        Raises:
            UserError: an update raises the value of fresh actions, and none of its credit says which expert learns.
        """
        for name, entry in recipe.models.items():
            steps = [u for u in flat(recipe.updates) if isinstance(u, Update) and u.trains == name]
            raised = [u for u in steps if any("sampled_action" in term.wants for term in u.terms)]
            told = any("expert" in part.gives for update in raised for part in update.credit)
            if entry is self and self.experts > 1 and raised and not told:
                raise UserError(
                    f"{recipe.name}: nothing would teach the router of '{name}' which expert to take; write +mixture, "
                    "which brings what trains it."
                )

    def make(self, interface: Interface, stream: torch.Generator) -> MixturePolicy:  # type: ignore[override]
        """A network to means and log deviations of all experts' actions, and the router."""
        box = interface.box("A mixture of Gaussians")
        sizes, numbers = layer_sizes(self.hidden), 2 * self.experts * int(np.prod(box.shape))
        network = StackedMlp(interface.observation_size, sizes, numbers, activation=self.activation, generator=stream)
        return MixturePolicy(network, box, self.experts, interface.observation_size)
