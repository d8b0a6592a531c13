"""Policies that imitate by a loss of their own class: bins one by one and a Gaussian, against plain sums."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Draws
from polyrl.models.actor import Moment
from polyrl.models.base import Interface
from polyrl.parts.imitating import BinnedPolicy, ImitatingGaussian
from polyrl.tasks.control import task as named_task

torch.set_num_threads(1)


def policy_of(entry: Any, scale: float = 3.0) -> Any:
    """A policy for wall-point, whose observations and actions have two numbers each; its last layer is made larger."""
    made = entry.make(Interface.of(named_task("wall-point")), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in (made.network.weights[-1], made.network.biases[-1]):
            parameter.mul_(scale)
    return made


def loss_of(policy: Any, shown: Tensor, action: Tensor) -> Tensor:
    batch = Experience({"observation": shown.unsqueeze(1), "action": action.unsqueeze(1)})
    found: Tensor = policy.outputs(batch, {"imitation"}, Draws(torch.Generator()))["imitation"].squeeze(1)
    return found


@torch.no_grad()
def test_bins_are_drawn_as_often_as_the_loss_says() -> None:
    policy = policy_of(BinnedPolicy(hidden="16", bins=3), 6.0)
    grid = torch.tensor([*itertools.product((-1.0, 0.0, 1.0), repeat=2)])
    shown = torch.tensor([0.4, -0.7])
    share = (-loss_of(policy, shown.expand(9, 2), grid)).exp()
    assert float(share.sum()) == pytest.approx(1, abs=1e-5)
    drawn = policy.propose(shown.expand(40_000, 2), torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0)))
    which = ((drawn[:, 0] + 1) * 3 + drawn[:, 1] + 1).long()
    counted = which.bincount(minlength=9) / 40_000
    torch.testing.assert_close(counted, share, rtol=0, atol=0.012)
    first = share.reshape(3, 3).sum(1)
    alone = share.reshape(3, 3).sum(0)
    assert float((share.reshape(3, 3) - first[:, None] * alone).abs().max()) > 0.002  # the second looks at the first
    likely = policy.likely(shown.unsqueeze(0))[0]
    assert float(likely[0]) == first.argmax() - 1
    assert float(likely[1]) == share.reshape(3, 3)[first.argmax()].argmax() - 1


@torch.no_grad()
def test_an_action_is_imitated_by_the_nearest_values() -> None:
    policy = policy_of(BinnedPolicy(hidden="16", bins=5))
    shown = torch.rand(4, 2)
    near = torch.tensor([[-1.0, 0.5]]).expand(4, 2)
    action = near + torch.tensor([[0.2, -0.2]])
    torch.testing.assert_close(loss_of(policy, shown, action), loss_of(policy, shown, near))
    assert not torch.allclose(loss_of(policy, shown, near + 0.3), loss_of(policy, shown, near))
    same = torch.zeros(1, 2)
    assert not torch.allclose(policy.logits(same, same, 0), policy.logits(same, same, 1))
    flat = policy_of(BinnedPolicy(hidden="16", bins=5), 0.0)
    torch.testing.assert_close(loss_of(flat, shown, action), torch.full((4,), 2 * math.log(5)))


@torch.no_grad()
def test_a_gaussian_imitates_by_its_density() -> None:
    policy = policy_of(ImitatingGaussian(hidden="16"))
    policy.log_std.data[:] = torch.tensor([-1.0, -2.0])
    shown, action = torch.rand(5, 2), torch.rand(5, 2) - 0.5
    plain = torch.distributions.Normal(policy.likely(shown), torch.tensor([-1.0, -2.0]).exp())
    torch.testing.assert_close(loss_of(policy, shown, action), -plain.log_prob(action).sum(-1))
    drawn = policy.propose(shown, torch.ones(5, 2))
    torch.testing.assert_close(drawn, (policy.likely(shown) + plain.scale).clamp(-1, 1))
    assert float(policy.propose(shown, torch.full((5, 2), 50.0)).max()) == 1


@pytest.mark.parametrize("entry", [BinnedPolicy(hidden="16"), ImitatingGaussian(hidden="16")], ids=lambda e: e.name)
def test_actors_do_what_is_proposed(entry: Any) -> None:
    policy = policy_of(entry)
    actor = policy.actor()
    noise = actor.noise(2, 3, torch.Generator().manual_seed(1))
    assert noise.shape == (2, 3, policy.proposal_size)
    shown = torch.rand(3, 2)
    moment = Moment(shown.numpy(), shown.double().numpy(), torch.ones(3, dtype=torch.bool).numpy(), noise=noise[0])
    with torch.no_grad():
        wanted = policy.propose(shown, torch.from_numpy(noise[0]))
        torch.testing.assert_close(torch.from_numpy(actor.player()(moment)), wanted)
        moment.noise = None
        torch.testing.assert_close(torch.from_numpy(actor.player()(moment)), policy.likely(shown))
    assert actor.is_finite()
    next(policy.parameters()).data.fill_(float("nan"))
    assert not actor.is_finite()
