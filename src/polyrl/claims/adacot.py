"""AdaCoT: does leaving one token out of the loss keep the decision to think from collapsing?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of, Quantity

if TYPE_CHECKING:
    from polyrl.runtime.metric import Metric

PRECISION, RECALL = "eval/trigger_precision", "eval/trigger_recall"


@dataclass(frozen=True)
class HalfKept(Quantity):
    """A change of the first arm minus half of the second's: at least 0 where half of what the second loses is kept."""

    first: str
    second: str

    def arms(self) -> tuple[str, ...]:
        """Return both arms."""
        return self.first, self.second

    def combine(self, values: Sequence[float]) -> float:
        """Return the first minus half of the second."""
        return values[0] - values[1] / 2

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{self.measure.says(metric)}: {self.first} minus half of that of {self.second}"


CLAIM = Claim(
    slug="adacot",
    sentence="Training on questions that all want a thought makes a model think where no thought is wanted; leaving "
    "the one token that decides out of the loss keeps at least half of what is lost, and leaving out another one does "
    "not.",
    place="section 3.4, table 1",
    source="arXiv:2505.11896",
    question="Additions, of which easy ones want no thought and hard ones do, from a supervised model that mostly "
    "decides rightly. PPO is run on hard ones alone; then the model is asked easy and hard ones, half of each, and "
    "counted is how many of its thoughts were wanted: the precision.",
    task="thinking(mix=hard,start_accuracy=0.7)",
    budget="samples=1536",
    options={"evaluations": 2, "eval_prompts": 1000},
    arms=(
        Arm("mask", "ppo+decision-token-mask"),
        Arm("no mask", "ppo"),
        Arm("random mask", "ppo+decision-token-mask(masked=random)", why="one token of each answer, drawn"),
    ),
    criteria=(
        Criterion(
            "without the mask precision falls by five points",
            Of(Gain(key=PRECISION), "no mask"),
            at_most=-0.05,
            kind="premise",
        ),
        Criterion(
            "the mask keeps half of the precision that is lost without it",
            HalfKept(Gain(key=PRECISION), "mask", "no mask"),
            at_least=0,
        ),
        Criterion(
            "it keeps three points more than a random token left out",
            Difference(Gain(key=PRECISION), "mask", "random mask"),
            at_least=0.03,
        ),
        Criterion(
            "the mask costs at most five points of accuracy, all questions",
            Difference(Final(), "mask", "no mask"),
            at_least=-0.05,
            kind="control",
        ),
        Criterion(
            "with the mask no more hard questions go without a thought: recall falls by at most five points",
            Of(Gain(key=RECALL), "mask"),
            at_least=-0.05,
            kind="control",
        ),
        Criterion("with the mask accuracy rises too", Of(Gain(), "mask"), at_least=0.02, kind="control"),
    ),
    seeds=tuple(range(200, 209)),
    looks=(4, 6, 9),
    replaces="sha256:0d91ab6eda20d004",
    shared="The 1000 test questions. Starting models, demonstrations and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="On seed 100: the budget, and how often the demonstrations of the starting model decide wrongly: 10% now, "
    "as with 3% easy questions stayed without thoughts even without the mask. In the experiment that this one "
    "replaces all seeds had one start, whose precision alone met a criterion; on a start made on another processor "
    "the fall was half as large, so that half of the fall is asked for now, whatever it is.",
    equal="Sampled answers, updates, learning rate, the start, test problems; with a mask one token less an answer.",
    refuted_by="More than half of the precision that is lost without the mask lost with it, or a random token left "
    "out that keeps all but three points of what the mask keeps.",
    limits="A model of 1.2 million parameters whose thoughts are columns of digits, with exact labels. The mask "
    "protects a decision and does not improve it. The logits of the decision are seen only through sampled thoughts. "
    "The second stage, with its penalties for thoughts too many and too few, is not run.",
    curve=PRECISION,
    minutes=22,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_prompts": 50}),
)
