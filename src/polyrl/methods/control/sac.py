"""SAC: learn from a replay buffer, towards the return and the policy's own entropy at once.

Two critics learn the soft value of actions from targets of slowly moving copies, of which the lesser counts. The
policy, a Gaussian squashed between the action bounds, is moved along the critics' gradient by its own reparameterized
actions, and a temperature keeps its entropy near a target.
"""

from __future__ import annotations

from polyrl.core.update import Again, Move, Repeat, Sample, Update
from polyrl.data.replay import Replay
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.policies import SquashedGaussian
from polyrl.models.scalar import PositiveScalar
from polyrl.parts.replayed import EntropyTarget, SoftTarget, SoftValue, SquaredTD, StepAndKeep
from polyrl.recipe import Recipe

SLUG = "sac"
TITLE = "Soft Actor-Critic Algorithms and Applications"
PAPER = "arXiv:1812.05905"
YEAR = 2018
FORMULA = "y = r + gamma (min Q'(s', a') - alpha log pi(a'|s')); policy: min alpha log pi(a|s) - min Q(s, a)"
TASK = "Pendulum-v1"


def recipe() -> Recipe:
    """SAC with the usual settings: a step, then an update of critics, policy and temperature (algorithm 1)."""
    return Recipe(
        name=SLUG,
        models={
            "policy": SquashedGaussian(),
            "q": QNetwork(critics=2),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(initial=1.0),
        },
        collect=StepAndKeep(random_steps=1_000),
        sources={"replay": Replay(capacity=1_000_000, learning_starts=1_000)},
        updates=(
            Repeat(
                1,
                (
                    Update("q", (SquaredTD(),), Sample("replay", batch_size=256), credit=(SoftTarget(),)),
                    Update("policy", (SoftValue(),), Again()),
                    Update("temperature", (EntropyTarget(),), Again()),
                    Move("q_target", "q", tau=0.005),
                ),
            ),
        ),
        turns=1_000,
        adds=("policy", "temperature", "soft-target", "soft-value", "entropy-target"),
        notes={
            "collect": "one step at a time into the replay buffer, the first at random",
            "improve": "one update of critics, policy and temperature a step, each on the same sampled rows",
        },
    )
