"""Policies that imitate, each by the loss of its own class, and that propose actions as a function of normal noise.

What improves them looks at proposals alone, so that a denoising chain, bins and a Gaussian can stand for one another.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.models.actor import ActionNotFinite, Actor, Moment, Player, Wrapper
from polyrl.models.base import Network, PolicyNetwork
from polyrl.models.networks import StackedMlp
from polyrl.models.policies import FREE_LOG_STD, GaussianPolicyNetwork
from polyrl.models.squashed import scaler

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws


class ImitatingPolicy(PolicyNetwork):
    """A policy whose output "imitation" `[B, T]` is its class's own supervised loss of the batch's actions.

    Attributes:
        space: of the task's actions.
        numbers: A, numbers of an action.
        proposal_size: P, normal numbers that one action is made of.
    """

    space: spaces.Box
    numbers: int
    proposal_size: int

    @abstractmethod
    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions `[..., A]` in [-1, 1] of observations `[..., D]`, drawn by noise `[..., P]`."""
        raise NotImplementedError

    def likely(self, observation: Tensor) -> Tensor:
        """What it does where nothing is explored, `[..., A]`: the proposal of noise 0."""
        return self.propose(observation, observation.new_zeros(*observation.shape[:-1], self.proposal_size))

    def actor(self) -> Actor:
        """One proposal each."""
        return ImitatingActor(self)


class ImitatingActor(Actor):
    """Does what the policy proposes; how likely that was nobody knows."""

    action_dtype = np.float32
    recorded: Mapping[str, tuple[tuple[int, ...], Any]] = {}

    def __init__(self, policy: ImitatingPolicy):
        self.policy, self.action_shape, self.execute = policy, (policy.numbers,), scaler(policy.space)

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """`[steps, count, P]`."""
        return torch.randn(steps, count, self.policy.proposal_size, generator=generator).numpy()

    def player(self) -> Player:
        """A proposal, or the likely one where there is no noise."""

        @torch.no_grad()
        def play(moment: Moment) -> NDArray[Any]:
            seen, policy = torch.from_numpy(moment.seen), self.policy
            if moment.noise is None:
                return finite(policy.likely(seen))
            return finite(policy.propose(seen, torch.from_numpy(moment.noise).flatten(1)))

        return play

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """None."""
        return {}

    def is_finite(self) -> bool:
        """The policy's parameters."""
        return all_finite(self.policy)


def finite(action: Tensor) -> NDArray[Any]:
    """Actions `[B, A]` as arrays.

    Raises:
        ActionNotFinite: some number is not finite.
    """
    found: NDArray[Any] = action.numpy()
    if not np.isfinite(found).all():
        raise ActionNotFinite
    return found


def all_finite(*models: Network) -> bool:
    """Whether all their parameters are finite."""
    return all(bool(torch.isfinite(p).all()) for model in models for p in model.parameters())


class ChoosingActor(Wrapper):
    """Does what is chosen among several proposals. It is the policy: evaluations judge it too.

    Those choose among proposals of a stream that begins anew with each.

    Attributes:
        choose: actions `[B, A]` of observations `[B, D]` and noise `[B, *shape]`.
        shape: of the normal numbers that one choice takes.
        reads: the models that choose.
    """

    is_policy = True

    def __init__(
        self,
        inner: Actor,
        choose: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int, ...],
        reads: tuple[Network, ...],
    ):
        super().__init__(inner)
        self.choose, self.shape, self.reads = choose, shape, reads

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """`[steps, count, *shape]`."""
        return torch.randn(steps, count, *self.shape, generator=generator).numpy()

    def player(self) -> Player:
        """What is chosen."""
        judging = torch.Generator().manual_seed(0)

        @torch.no_grad()
        def play(moment: Moment) -> NDArray[Any]:
            noise = self.noise(1, len(moment.seen), judging)[0] if moment.noise is None else moment.noise
            return finite(self.choose(torch.from_numpy(moment.seen), torch.from_numpy(noise)))

        return play

    def is_finite(self) -> bool:
        """All that choose."""
        return all_finite(*self.reads)


# ------------------------------------------------------------------------------------------------- classes of policies


class ImitatingGaussianPolicy(GaussianPolicyNetwork, ImitatingPolicy):
    """A Gaussian around a mean between the bounds, cut at them; imitates by its likelihood."""

    def __init__(self, network: StackedMlp, space: spaces.Box):
        super().__init__(network, space)
        self.proposal_size = self.numbers

    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Mean plus deviation times noise."""
        mean = torch.tanh(self.network(observation).squeeze(-2))
        return (mean + self.log_std.clamp(*FREE_LOG_STD).exp() * noise).clamp(-1, 1)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation": -log pi."""
        return {"imitation": -super().outputs(batch, {"logprob"}, draw)["logprob"]}


class BinnedPolicyNetwork(ImitatingPolicy):
    """One number of an action after the other, each one of a few values, by those before it (autoregressive).

    Attributes:
        network: from observation, the numbers that are known and which comes next to the logits of `bins` values.
        values: `[bins]`, evenly from -1 to 1.
    """

    values: Tensor

    def __init__(self, network: StackedMlp, space: spaces.Box, bins: int):
        super().__init__()
        self.network, self.space = network, space
        self.numbers = self.proposal_size = int(np.prod(space.shape))
        self.register_buffer("values", torch.linspace(-1, 1, bins))

    def logits(self, observation: Tensor, action: Tensor, number: int) -> Tensor:
        """`[..., bins]` of one number of an action, of whose numbers those from there on are not looked at."""
        known = torch.where(torch.arange(self.numbers) < number, action, 0)
        which = torch.zeros(self.numbers)
        which[number] = 1
        said: Tensor = self.network(torch.cat([observation, known, which.expand_as(action)], -1))
        return said.squeeze(-2)

    def _drawn(self, observation: Tensor, draw: Callable[[Tensor, int], Tensor]) -> Tensor:
        action = observation.new_zeros(*observation.shape[:-1], self.numbers)
        for number in range(self.numbers):
            action[..., number] = self.values[draw(self.logits(observation, action, number), number)]
        return action

    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Each number drawn with its probabilities, by the share of normal numbers that lie below its noise."""
        place = torch.special.ndtr(noise)

        def draw(logits: Tensor, number: int) -> Tensor:
            below = logits.softmax(-1).cumsum(-1)[..., :-1]
            found: Tensor = (place[..., number, None] >= below).sum(-1)
            return found

        return self._drawn(observation, draw)

    def likely(self, observation: Tensor) -> Tensor:
        """The most probable value of each number in turn."""
        return self._drawn(observation, lambda logits, number: logits.argmax(-1))

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation": the cross-entropy of the values nearest to the action's numbers, summed over them."""
        near = (batch["action"].unsqueeze(-1) - self.values).abs().argmin(-1)
        known, total = self.values[near], torch.zeros(near.shape[:-1])
        for number in range(self.numbers):
            logprob = self.logits(batch["observation"], known, number).log_softmax(-1)
            total = total - logprob.gather(-1, near[..., number, None]).squeeze(-1)
        return {"imitation": total}
