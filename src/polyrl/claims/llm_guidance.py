"""LLM-guidance: is advice worth most where its weight is one minus its entropy under dropout?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, LastEpisodes, Measure, Of

if TYPE_CHECKING:
    from polyrl.report.runs import Run
    from polyrl.runtime.metric import Metric


@dataclass(frozen=True, kw_only=True)
class FirstEpisodes(Measure):
    """Mean return of the first training episodes; the iteration in which the last of them ends enters as a whole."""

    first: int

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the mean over at least `first` episodes, of all where there were fewer."""
        total, episodes = 0.0, 0.0
        for row in run.metrics:
            if "episode/return" in row and episodes < self.first:
                total += row["episode/return"] * row["episode/count"]
                episodes += row["episode/count"]
        return total / episodes if run.status == "finished" and episodes else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"return of the first {self.first} training episodes"


@dataclass(frozen=True, kw_only=True)
class Logged(Measure):
    """A number that is logged once."""

    key: str

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the first value."""
        values = run.series(self.key)
        return values[0] if run.status == "finished" and values else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return self.key.replace("/", " ")


EARLY = FirstEpisodes(first=100, better="higher")
WHOLE = Area(key="episode/return", x="steps", better="higher")
LAST = LastEpisodes(key="episode/return", count="episode/count", last=100, better="higher")

ADVISER = "adviser_seed=none,adviser_accuracy=0.98"

CLAIM = Claim(
    slug="llm-guidance",
    sentence="A language model's advice helps an agent most where it weighs one minus its entropy under dropout: more "
    "than without dropout, and more than with the same weight everywhere.",
    place="abstract and the comparison of policy shapers",
    source="arXiv:2411.14457",
    question="Key, door and goal on a grid of 6 x 6 cells, where PPO alone seldom gets beyond the key. A small BERT "
    "that was taught on 4 x 8 cells advises, a new one for each seed, taught so well that its entropy tells its "
    "mistakes. Returns run from -1 to 1.94; 0.05 is a fortieth.",
    task="UnlockGrid-v0(width=6)",
    budget="steps=20000",
    hyperparameters={"entropy_coef": "0.01"},
    options={"evaluations": 2},
    arms=(
        Arm("entropy", f"llm-guidance({ADVISER})", why="8 passes with dropout"),
        Arm(
            "uncalibrated",
            f"llm-guidance({ADVISER},shaper=uncalibrated)",
            why="the same rule, one pass without dropout",
        ),
        Arm(
            "constant",
            f"llm-guidance({ADVISER},shaper=constant,advice_share=0.7)",
            why="the mean weight that the entropy gives, in every state",
        ),
        Arm("linear", f"llm-guidance({ADVISER},shaper=linear)", why="control: the advice fades over the run"),
        Arm("unguided", "ppo", why="no advice"),
    ),
    criteria=(
        Criterion(
            "entropy tells wrong advice from right, by an AUROC of 0.6",
            Of(Logged(key="adviser/auroc", better="higher"), "entropy"),
            at_least=0.6,
            kind="premise",
            expected=0.7,
            deviation=0.08,
        ),
        Criterion(
            "over the first 100 episodes dropout is worth 0.05",
            Difference(EARLY, "entropy", "uncalibrated"),
            at_least=0.05,
        ),
        Criterion(
            "over the first 100 episodes the entropy is worth 0.05 over its mean weight",
            Difference(EARLY, "entropy", "constant"),
            at_least=0.05,
        ),
        Criterion(
            "advice helps by 0.2 over the first 100 episodes",
            Difference(EARLY, "entropy", "unguided"),
            at_least=0.2,
            kind="control",
        ),
        Criterion(
            "dropout is no worse over the whole run",
            Difference(WHOLE, "entropy", "uncalibrated"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "entropy beats its mean weight over the whole run",
            Difference(WHOLE, "entropy", "constant"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "entropy beats fading over the whole run",
            Difference(WHOLE, "entropy", "linear"),
            at_least=0,
            kind="control",
        ),
        Criterion("entropy ends above no advice", Difference(LAST, "entropy", "unguided"), at_least=0, kind="control"),
        Criterion(
            "the agent alone reaches the goal in the end",
            Of(Final(key="eval/return", better="higher"), "entropy"),
            at_least=1.2,
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 220)),
    looks=(10, 15, 20),
    replaces="sha256:999ea6d73564917d",
    shared="The grid, which has nothing random in it, and the grid that advisers are taught on. Advisers, agents and "
    "dropout are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="How well the adviser is taught, by its AUROC on seeds 0 to 3, 100 and 101, no agent run: taught to 0.8 or "
    "0.9 of oracle answers 0.51 to 0.70, to 0.95 0.66 in the mean, to 0.98 0.70, from 0.59 to 0.80. Of the last the "
    "mean weight is 0.7, which is what the constant one has. In the experiment that this one replaces the AUROC was "
    "below 0.5 in three of ten seeds.",
    equal="Environment steps, updates, networks, PPO's settings, advisers, seeds; of two arms the mean weight, nearly.",
    refuted_by="Over the first 100 episodes, less than 0.05 above advice without dropout, or above advice of the same "
    "weight everywhere.",
    limits="The adviser is a BERT of 0.1 million parameters, taught from nothing. One world, whose advice is mostly "
    "right on the agent's way, and which is so small that confident mistakes stay: an agent that is advised seldom "
    "learns to do without. The paper's own grids and tables were not at hand.",
    curve="episode/return",
    minutes=9,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_episodes": 2}),
)
