"""Chains that denoise: their schedules by plain arithmetic, each step by Bayes' rule, flows, log-densities of steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import SEED, reached
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.update import Draws
from polyrl.models.base import Interface
from polyrl.models.denoiser import Denoiser, DenoisingPolicy, DiffusionPolicy, FlowPolicy, noise_rates
from polyrl.tasks.control import task as named_task

torch.set_num_threads(1)
KINDS: list[type[DenoisingPolicy]] = [DiffusionPolicy, FlowPolicy]


class Said(nn.Module):
    """Says the same of everything, and keeps what it was asked."""

    def __init__(self, said: Tensor):
        super().__init__()
        self.said, self.asked = said, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return self.said.expand(*x.shape[:-1], 1, 2)


def policy_of(kind: type[DenoisingPolicy], steps: int, said: Tensor | None = None) -> DenoisingPolicy:
    network = Said(torch.tensor([0.2, -0.1]) if said is None else said)
    return kind(network, named_task("wall-point").actions.space, steps)


def test_the_schedule_is_the_published_one() -> None:
    """The integral of a rate that grows from 0.1 to 10 (arXiv:2011.13456, equation 33), cut into steps."""
    for steps in (1, 5, 20):
        rates = noise_rates(steps).double()
        for t in range(steps):
            begin, end = t / steps, (t + 1) / steps
            integral = 0.1 * (end - begin) + (10 - 0.1) * (end**2 - begin**2) / 2
            assert float(rates[t]) == pytest.approx(1 - math.exp(-integral), rel=1e-5)


def test_a_ddpm_step_is_the_posterior_of_two_normal_laws() -> None:
    """By multiplying the densities of a_{t-1} given a_0 and of a_t given a_{t-1} (arXiv:2006.11239, equation 7)."""
    policy, clean = policy_of(DiffusionPolicy, 5), torch.tensor([0.3, -0.6])
    assert isinstance(policy, DiffusionPolicy)
    beta, kept = policy.beta.double(), policy.kept.double()
    for step in range(1, 5):
        noise = torch.tensor([0.7, -1.1])
        noisy, wanted = policy.spoiled(clean, noise, torch.tensor([step]))
        assert torch.equal(wanted, noise)
        assert noisy.tolist() == pytest.approx((kept[step].sqrt() * clean + (1 - kept[step]).sqrt() * noise).tolist())
        precision = 1 / (1 - kept[step - 1]) + (1 - beta[step]) / beta[step]
        mean = kept[step - 1].sqrt() * clean / (1 - kept[step - 1]) + (1 - beta[step]).sqrt() * noisy / beta[step]
        found, deviation = policy.back(noisy, noise, step)
        assert found.tolist() == pytest.approx((mean / precision).tolist(), rel=1e-4)
        assert float(deviation) == pytest.approx(float(precision**-0.5), rel=1e-4)
    found, deviation = policy.back(policy.spoiled(clean, noise, torch.tensor([0]))[0], noise, 0)
    assert found.tolist() == pytest.approx(clean.tolist(), abs=1e-5) and float(deviation) == 0


def test_a_flow_goes_straight() -> None:
    policy, action, noise = policy_of(FlowPolicy, 4), torch.tensor([0.8, -0.4]), torch.tensor([-1.2, 0.4])
    for step in range(4):
        noisy, wanted = policy.spoiled(action, noise, torch.tensor([step]))
        share = (step + 1) / 4
        assert noisy.tolist() == pytest.approx([(1 - share) * 0.8 - 1.2 * share, -0.4 + 0.8 * share], abs=1e-6)
        assert wanted.tolist() == pytest.approx([2.0, -0.8])
        before, deviation = policy.back(noisy, wanted, step)
        expected = policy.spoiled(action, noise, torch.tensor([step - 1]))[0]
        assert before.tolist() == pytest.approx(expected.tolist(), abs=1e-6) and float(deviation) == 0
    right = policy_of(FlowPolicy, 4, action - noise)
    drawn = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    drawn[0] = noise  # what a chain begins with; it looks at no other number
    assert right.sample(torch.zeros(2), drawn).tolist() == pytest.approx(action.tolist(), abs=1e-6)
    far = policy_of(FlowPolicy, 4, torch.tensor([9.0, -9.0])).sample(torch.zeros(2), drawn)
    assert far.tolist() == [1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_imitated_is_what_a_step_was_spoiled_by(kind: type[DenoisingPolicy]) -> None:
    policy, action = policy_of(kind, 3), torch.rand(40, 1, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch = Experience({"observation": torch.zeros(40, 1, 2), "action": action})

    def draw() -> Draws:
        return Draws(torch.Generator().manual_seed(2))

    found = policy.outputs(batch, {"imitation"}, draw())["imitation"]
    same = draw()
    step = (same.uniform(40, 1, 1) * 3).long()
    noisy, wanted = policy.spoiled(action, same(40, 1, 2), step)
    assert set(step.flatten().tolist()) == {0, 1, 2}
    said = torch.tensor([0.2, -0.1])
    torch.testing.assert_close(found, (said - wanted).square().sum(-1))
    (asked,) = policy.network.asked  # type: ignore[union-attr]
    torch.testing.assert_close(asked[..., 2:4], noisy)
    torch.testing.assert_close(asked[..., 4:], step / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_log_densities_of_steps_are_torchs(kind: type[DenoisingPolicy]) -> None:
    policy, stream = policy_of(kind, 4), torch.Generator().manual_seed(0)
    shown, noise = torch.zeros(6, 2), torch.randn(6, 4, 2, generator=stream)
    chain = torch.stack(policy.chain(shown, noise), -2)
    torch.testing.assert_close(chain[:, 0], noise[:, 0])
    torch.testing.assert_close(chain[:, -1], policy.propose(shown, noise.flatten(1)))
    found = policy.step_logprobs(shown, chain, least=0.05)
    for k, step in enumerate((3, 2, 1, 0)):
        mean, deviation = policy.back(chain[:, k], torch.tensor([0.2, -0.1]).expand(6, 2), step)
        law = torch.distributions.Normal(mean, deviation.clamp(min=0.05))
        torch.testing.assert_close(found[:, k], law.log_prob(chain[:, k + 1]).sum(-1))
        if step:  # what was drawn is what the density is of
            torch.testing.assert_close(chain[:, k + 1], mean + deviation * noise[:, step])
    assert float(noise_rates(4)[1]) > 0.05**2


def test_a_guide_is_added_to_every_step_at_what_it_began_with() -> None:
    policy, noise = policy_of(FlowPolicy, 3), torch.zeros(3, 2)
    seen = list[tuple[int, list[float]]]()

    def guide(step: int, noisy: Tensor) -> Tensor:
        seen.append((step, noisy.tolist()))
        return torch.full_like(noisy, 0.1)

    found = policy.chain(torch.zeros(2), noise, guide)
    plain = policy.chain(torch.zeros(2), noise)
    assert [step for step, _ in seen] == [2, 1, 0]
    assert [place for _, place in seen] == [x.tolist() for x in found[:-1]]
    for k in range(4):
        assert (found[k] - plain[k]).tolist() == pytest.approx([0.1 * k] * 2, abs=1e-6)


@pytest.mark.parametrize("schedule", ["variance-preserving", "straight"])
def test_either_kind_learns_two_ways_that_no_gaussian_has(schedule: Any) -> None:
    """Data at (0.6, 0.6) and at (-0.6, -0.6): after 300 steps most samples are near one or the other."""
    task = named_task("wall-point")
    interface = Interface.of(task)
    entry = Denoiser(noise_schedule=schedule, hidden="64x64", denoising_steps=8)
    stream = torch.Generator().manual_seed(SEED)
    policy, draw = entry.make(interface, stream), Draws(stream)
    adam = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(300):
        sign = 2 * torch.randint(2, (128, 1, 1), generator=stream) - 1
        batch = Experience({"observation": torch.zeros(128, 1, 2), "action": 0.6 * sign.expand(128, 1, 2).float()})
        loss = policy.outputs(batch, {"imitation"}, draw)["imitation"].mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        found = policy.sample(torch.zeros(200, 2), draw(200, 8, 2))
    near = [(found - side).norm(dim=-1) < 0.3 for side in (0.6, -0.6)]
    shares = [float(x.float().mean()) for x in near]
    # seeds 0 to 3: 0.68 to 0.79 of a DDPM, 0.88 to 0.92 of a flow; a Gaussian of independent numbers has 0.09
    reached(sum(shares), 0.5)
    reached(min(shares), 0.2)  # 0.27 to 0.43


def test_expo_may_flow() -> None:
    recipe = catalogue.build("expo", {"noise_schedule": "straight"})
    made = recipe.models["base"].make(Interface.of(named_task("wall-point")), torch.Generator())
    assert isinstance(made, FlowPolicy)
