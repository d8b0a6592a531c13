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

CLAIM = Claim(
    slug="llm-guidance",
    sentence="A language model's advice helps an agent most where it weighs one minus its entropy under dropout: more "
    "than no advice, than advice without calibration and than advice that fades.",
    place="abstract and the comparison of policy shapers",
    source="arXiv:2411.14457",
    question="Key, door and goal on a grid of 6 x 6 cells, where PPO alone seldom gets beyond the key. A small BERT "
    "that was taught on 4 x 8 cells advises, a new one for each seed. Returns run from -1 to 1.94; 0.05 is a fortieth.",
    task="UnlockGrid-v0(width=6)",
    budget="steps=20000",
    hyperparameters={"entropy_coef": "0.01"},
    options={"evaluations": 5},
    arms=(
        Arm("entropy", "llm-guidance(adviser_seed=none)", why="8 passes with dropout"),
        Arm(
            "uncalibrated",
            "llm-guidance(adviser_seed=none,shaper=uncalibrated)",
            why="control: the same rule, one pass without dropout",
        ),
        Arm("linear", "llm-guidance(adviser_seed=none,shaper=linear)", why="the advice fades over the run"),
        Arm("constant", "llm-guidance(adviser_seed=none,shaper=constant)", why="control: the advice weighs 0.8"),
        Arm("unguided", "ppo", why="no advice"),
    ),
    criteria=(
        Criterion("advice helps early", Difference(EARLY, "entropy", "unguided"), at_least=0.2),
        Criterion("calibration helps early", Difference(EARLY, "entropy", "uncalibrated"), at_least=0.05),
        Criterion(
            "entropy tells wrong advice from right",
            Of(Logged(key="adviser/auroc", better="higher"), "entropy"),
            at_least=0.6,
            kind="premise",
        ),
        Criterion(
            "calibration is no worse over the whole run",
            Difference(WHOLE, "entropy", "uncalibrated"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "entropy beats fading over the whole run",
            Difference(WHOLE, "entropy", "linear"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "entropy beats a constant weight over the whole run",
            Difference(WHOLE, "entropy", "constant"),
            at_least=0,
            kind="control",
        ),
        Criterion("entropy ends above fading", Difference(LAST, "entropy", "linear"), at_least=0, kind="control"),
        Criterion(
            "the agent alone reaches the goal in the end",
            Of(Final(key="eval/return", better="higher"), "entropy"),
            at_least=1.2,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 30)),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="How long the adviser is taught (0.9 and 0.95 of oracle answers; at 0.9 its entropy told nothing about its "
    "mistakes, AUROC 0.55) and the grid's size, on seeds 0 to 3.",
    equal="Environment steps, updates, networks, PPO's settings, advisers, seeds.",
    refuted_by="Calibrated advice does not earn 0.05 more than uncalibrated advice over the first 100 episodes, or its "
    "entropy finds wrong advice with an AUROC below 0.6, or it does not beat no advice by 0.2.",
    limits="The adviser is a BERT of 0.1 million parameters, taught from nothing. One world, whose advice is mostly "
    "right on the agent's way. The paper's own grids and tables were not at hand.",
    curve="episode/return",
    minutes=6,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_episodes": 2}),
)
