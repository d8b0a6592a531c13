"""NORA: does an optimistic critic that is seldom replaced, with an actor that begins anew, have a regret of sqrt(T)?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Quantity, Ratio, line_slope
from polyrl.runtime.metric import Metric

REGRET = Final(key="eval/cumulative_regret", better="lower")
PER_EPISODE = Final(key="eval/regret", better="lower")
EPISODES = (1_000, 4_000, 16_000, 64_000)


def arm(episodes: int) -> str:
    """The arm that is given so many episodes, and knows it."""
    return f"NORA for {episodes} episodes"


@dataclass(frozen=True)
class Power(Quantity):
    """The power of T by which a measure grows over arms whose runs are T long: the slope on logarithmic axes."""

    lengths: tuple[int, ...] = EPISODES

    def arms(self) -> tuple[str, ...]:
        """One for each length."""
        return tuple(map(arm, self.lengths))

    def combine(self, values: Sequence[float]) -> float:
        """The slope by least squares."""
        found = line_slope(
            [(math.log(t), math.log(max(value, 1e-9))) for t, value in zip(self.lengths, values, strict=True)]
        )
        return math.nan if found is None else found

    def says(self, metric: Metric) -> str:
        """In words."""
        return f"power of T by which {self.measure.says(metric)} grows"


CLAIM = Claim(
    slug="nora",
    sentence="An actor-critic with an optimistic critic of the best policy, seldom replaced, and an actor that begins "
    "anew with each, has a regret that grows by the square root of T, with a number of critics that grows with log T.",
    place="abstract; the body of the paper was not read",
    source="arXiv:2505.03710",
    question="A stochastic lock of five steps with three actions, a secret code for each seed. Regret is exact, by "
    "policy evaluation of every policy that played. The actor's step is tuned to T, so that each T is a run.",
    task="stochastic-lock",
    budget="samples=16000",
    options={"evaluations": 10},
    arms=(
        Arm(arm(16_000), "nora"),
        *(Arm(arm(t), f"nora(total_episodes={t})", budget=f"samples={t}") for t in EPISODES if t != 16_000),
        Arm("no optimism", "nora(bonus=0)", why="the same critic without a bonus, and 0 where nothing is known"),
        Arm("no resets", "nora(reset=false)", why="control: the actor keeps what older critics have taught it"),
        Arm("greedy", "nora(actor=greedy)", why="control: the greedy policy of the same critic"),
    ),
    criteria=(
        Criterion(
            "without optimism an episode costs 0.02 more on average",
            Difference(PER_EPISODE, "no optimism", arm(16_000)),
            at_least=0.02,
            kind="premise",
        ),
        Criterion("regret grows at most by the power 0.6 of T", Power(REGRET), at_most=0.6),
        Criterion(
            "critics grow like log T: by a power of 0.2 at most",
            Power(Final(key="switches", better="lower")),
            at_most=0.2,
        ),
        Criterion(
            "no more regret than without resets",
            Ratio(REGRET, arm(16_000), "no resets"),
            at_most=1.0,
            kind="control",
        ),
        Criterion(
            "no more regret than the greedy policy of the same critic",
            Ratio(REGRET, arm(16_000), "greedy"),
            at_most=1.0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 32)),
    looks=(5, 8, 12),
    tuning_seeds=(0, 1, 2, 3, 4),
    tuning="Nothing: the step is the theory's, the bonus the prototype's.",
    equal="Episodes, the bonus, the rule by which critics are replaced, the lock and the random numbers of a seed.",
    refuted_by="A regret that grows by a power of T above 0.6 from 1,000 to 64,000 episodes, or critics that grow by a "
    "power above 0.2.",
    limits="A table of thirty pairs. It cannot show that resets help (they keep the class of policies small in the "
    "proof, and cost regret here), nor how regret depends on d and H, nor the gap to methods of 1/eps^3. Hybrid data "
    "are not tested.",
    curve="eval/cumulative_regret",
    minutes=5,
    quick=Quick(share=0.05, options={"evaluations": 4}),
)
