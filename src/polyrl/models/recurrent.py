"""Networks with a memory: a GRU before the dense layers of policy and critic, for what one observation does not tell.

Its state goes on from step to step of an episode and is 0 at the episode's first one. While acting it lies in the
actor's memory; with every step of a rollout the states before it are recorded. Training runs the GRU again over the
steps of a row, from the state that was recorded at the row's first step, which is a constant there (truncated
backpropagation, from stored states as in R2D2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from polyrl import kernels
from polyrl.core.experience import Experience
from polyrl.kernels.gru import gru_states
from polyrl.models.actor import BLOCKED, ActionNotFinite, DistributionActor, Moment
from polyrl.models.control import ControlCritic, ControlPolicy, snapshot
from polyrl.models.distributions import Distribution
from polyrl.models.normalization import Floats

POLICY_STATE, CRITIC_STATE = "policy_state", "critic_state"
"""Fields with the states `[B, T, H]` before each step."""
ENDS = frozenset({"terminated", "truncated", "present"})


def starts_within(batch: Experience) -> Tensor:
    """Steps that begin an episode, bool `[B, T]`, but for those in front: recorded states are 0 there already.

    A step that follows an episode's end begins one, and one that follows a step without experience, on which its
    environment was reset.
    """
    over = batch["terminated"] | batch["truncated"] | ~batch["present"]
    return torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], 1)


class GruLayer(nn.Module):
    """A layer of gated recurrent units (arXiv:1406.1078, with the reset gate behind the product, as torch has it).

    Attributes:
        size: H.
    """

    def __init__(self, inputs: int, size: int, *, orthogonal: bool, generator: torch.Generator):
        super().__init__()
        self.size = size
        self.weight_input, self.weight_state = (nn.Parameter(torch.empty(3 * size, n)) for n in (inputs, size))
        self.bias_input, self.bias_state = (nn.Parameter(torch.zeros(3 * size)) for _ in range(2))
        bound = 1 / math.sqrt(size)
        for tensor in self.parameters():
            if not orthogonal:
                nn.init.uniform_(tensor, -bound, bound, generator=generator)
            elif tensor.dim() > 1:
                nn.init.orthogonal_(tensor, generator=generator)

    def forward(self, x: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        """States after each step, `[B, T, H]`.

        Args:
            x: `[B, T, D]`.
            state: `[B, H]` before the first step.
            starts: bool `[B, T]`, steps before which the state is 0.
        """
        keep = (~starts).to(x.dtype).unsqueeze(-1)
        given = linear(x, self.weight_input, self.bias_input)  # of all steps at once
        if kernels.ENABLED and given.dtype == torch.float32 and given.device.type == "cpu" and not state.requires_grad:
            return gru_states(given, state, keep, self.weight_state, self.bias_state)
        found = []
        for t in range(x.shape[1]):
            state = self._next(given[:, t], state * keep[:, t])
            found.append(state)
        return torch.stack(found, 1)

    def after(self, x: Tensor, state: Tensor) -> Tensor:
        """States `[N, H]` after one step with inputs `[N, D]`."""
        return self._next(linear(x, self.weight_input, self.bias_input), state)

    def _next(self, given: Tensor, state: Tensor) -> Tensor:
        own = linear(state, self.weight_state, self.bias_state)
        size = self.size
        gates = torch.sigmoid(given[:, : 2 * size] + own[:, : 2 * size])
        fresh = torch.tanh(given[:, 2 * size :] + gates[:, :size] * own[:, 2 * size :])
        return fresh + gates[:, size:] * (state - fresh)

    def stepper(self) -> Callable[[Floats, Floats], Floats]:
        """The same for acting, on a copy of the weights: inputs `[N, D]` and states `[N, H]` to new states."""
        size = self.size
        weight_input, weight_state = (w.detach().numpy().T.copy() for w in (self.weight_input, self.weight_state))
        bias_input, bias_state = (b.detach().numpy().copy() for b in (self.bias_input, self.bias_state))

        def step(x: Floats, state: Floats) -> Floats:
            given, own = x @ weight_input + bias_input, state @ weight_state + bias_state
            # 1 / (1 + e^-x), without an overflow
            gates = 0.5 * np.tanh(0.5 * (given[:, : 2 * size] + own[:, : 2 * size])) + np.float32(0.5)
            fresh = np.tanh(given[:, 2 * size :] + gates[:, :size] * own[:, 2 * size :])
            found: Floats = fresh + gates[:, size:] * (state - fresh)
            return found

        return step


class RecurrentPolicy(ControlPolicy):
    """A policy that reads the states of a GRU.

    Attributes:
        gru: normalized observations to states.
    """

    def __init__(
        self,
        gru: GruLayer,
        network: nn.Module,
        distribution: Distribution,
        continuous: NDArray[np.bool_],
        *,
        normalize: bool,
    ):
        super().__init__(network, distribution, continuous, normalize=normalize)
        self.gru = gru


class RecurrentCritic(ControlCritic):
    """Values by the states of a GRU of the critic's own."""

    fields_read = frozenset({CRITIC_STATE}) | ENDS

    def __init__(self, gru: GruLayer, network: nn.Module):
        super().__init__(network)
        self.gru = gru

    def of_steps(self, batch: Experience) -> Tensor:
        """Values `[B, T]`, from the state that was recorded at each row's first step."""
        value: Tensor = self(self.gru(batch["observation"], batch[CRITIC_STATE][:, 0], starts_within(batch)))
        return value

    @torch.no_grad()
    def values_of(self, batch: Experience) -> Tensor:
        """The same without gradients, `[B, T]`."""
        return self.of_steps(batch)

    @torch.no_grad()
    def final_values(self, batch: Experience) -> Tensor:
        """Values of what followed truncated steps, by the states after these; 0 at the others, `[B, T]`."""
        cut = batch["truncated"]
        states = self.gru(batch["observation"], batch[CRITIC_STATE][:, 0], starts_within(batch))
        found = torch.zeros(cut.shape)
        found[cut] = self(self.gru.after(batch["final_observation"][cut], states[cut]))
        return found


class RecurrentActor(DistributionActor):
    """Acts by the states of a policy's GRU, and carries those of the critic along where steps are recorded.

    Attributes:
        critic: None where nobody asks for values.
        masked: whether the environment says which actions are allowed.
    """

    policy: RecurrentPolicy

    def __init__(self, policy: RecurrentPolicy, critic: RecurrentCritic | None, *, masked: bool):
        super().__init__(policy)
        self.critic, self.masked = critic, masked
        states = {POLICY_STATE: ((policy.gru.size,), np.float32)}
        if critic is not None:
            states[CRITIC_STATE] = ((critic.gru.size,), np.float32)
        self.memory = states
        self.recorded = {**self.recorded, **states}
        self.fields_read = frozenset({POLICY_STATE}) | ENDS | ({"action_mask"} if masked else frozenset())

    def describer(self) -> Callable[[Moment], Floats]:
        """What the policy says of the states after a moment's observations; they are remembered."""
        step, describe = self.policy.gru.stepper(), snapshot(self.policy.network)
        watch = None if self.critic is None else self.critic.gru.stepper()

        def of(moment: Moment) -> Floats:
            for name, state in moment.memory.items():
                if name in moment.records:
                    moment.records[name][:] = state
            if watch is not None and CRITIC_STATE in moment.records:
                seen = moment.memory[CRITIC_STATE]
                seen[:] = watch(moment.seen, seen)
            state = moment.memory[POLICY_STATE]
            state[:] = step(moment.seen, state)
            params = describe(state, moment.records.get("params"))
            if not np.isfinite(params).all():
                raise ActionNotFinite
            if moment.mask is not None:
                params[~moment.mask] = BLOCKED
            return params

        return of

    def fields(self, records: Mapping[str, NDArray[np.float32]], action: Tensor) -> dict[str, Tensor]:
        """`behaviour_logprob`, and the states before each step."""
        found = super().fields(records, action)
        return found | {name: torch.from_numpy(records[name]) for name in self.memory}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Log-probability and entropy, among the allowed actions, from the state at each row's first step."""
        states = self.policy.gru(batch["observation"], batch[POLICY_STATE][:, 0], starts_within(batch))
        params = self.policy.network(states)
        if self.masked:
            params = torch.where(batch["action_mask"], params, torch.full_like(params, float(BLOCKED)))
        found = {
            "logprob": self.distribution.log_prob(params, batch["action"]),
            "entropy": self.distribution.entropy(params),
        }
        return {name: x for name, x in found.items() if name in wants}
