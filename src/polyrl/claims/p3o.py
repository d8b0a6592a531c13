"""P3O: is it indifferent to what a reward model adds to all scores of a prompt, and does PPO pay for it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of, Tail

if TYPE_CHECKING:
    from polyrl.runtime.metric import Metric

PLAIN = "learned-reverse(start_accuracy=0.25,pairs=8000)"
SHIFTED = "learned-reverse(start_accuracy=0.25,pairs=8000,prompt_offset=3)"
GAIN = Gain(key="eval/reward", better="higher")
GOLD = Final(key="eval/gold", better="higher")


@dataclass(frozen=True)
class Distance(Difference):
    """How far the measures of two arms are apart, whichever is the larger."""

    def combine(self, values: Sequence[float]) -> float:
        """Return the absolute difference."""
        return abs(values[0] - values[1])

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{self.measure.says(metric)}: distance between {self.first} and {self.second}"


CLAIM = Claim(
    slug="p3o",
    sentence="P3O learns from differences of the rewards of two responses to a prompt: it gains no less reward than "
    "PPO, and more where a reward model adds something to all scores of a prompt, which PPO takes for a signal.",
    place="theorems 1 and 2 (invariance), figures of reward against KL",
    source="arXiv:2310.00212",
    question="Writing words of up to eight letters backwards, rewarded by a reward model that learned from "
    "comparisons: as it is, and with a number added for each prompt, drawn once from N(0, 3^2), where the scores of "
    "the start's answers have a standard deviation of 1. A gain on the same test prompts does not contain the numbers.",
    task=PLAIN,
    budget="samples=1536",
    hyperparameters={
        "prompts_per_step": "32",
        "completions_per_prompt": "2",
        "kl_coef": "0.05",
        "learning_rate": "3e-4",
    },
    options={"evaluations": 2, "eval_prompts": 500},
    arms=tuple(
        Arm(name + there, method, task=task, why=why if not there else "")
        for name, method, why in (
            ("P3O", "p3o", "the joint clip, P3O-V2"),
            ("PPO", "ppo", "a critic and whitened token advantages"),
            ("RLOO", "rloo", "control: differences too, one update a batch and no clip"),
        )
        for there, task in (("", PLAIN), (", shifted", SHIFTED))
    ),
    criteria=(
        Criterion(
            "the shift costs PPO 0.1 of its gain", Difference(GAIN, "PPO, shifted", "PPO"), at_most=-0.1, kind="premise"
        ),
        Criterion("something is learned: without a shift PPO gains 0.1", Of(GAIN, "PPO"), at_least=0.1, kind="premise"),
        Criterion(
            "under the shift P3O gains 0.1 more than PPO",
            Difference(GAIN, "P3O, shifted", "PPO, shifted"),
            at_least=0.1,
        ),
        Criterion("without it P3O gains at most 0.05 less than PPO", Difference(GAIN, "P3O", "PPO"), at_least=-0.05),
        Criterion(
            "the shift moves P3O's gain by at most 0.05, as the theorem says",
            Distance(GAIN, "P3O, shifted", "P3O"),
            at_most=0.05,
            kind="control",
        ),
        Criterion(
            "under the shift P3O gains no less than RLOO",
            Difference(GAIN, "P3O, shifted", "RLOO, shifted"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "the shift costs PPO 0.02 of gold",
            Difference(GOLD, "PPO, shifted", "PPO"),
            at_most=-0.02,
            kind="control",
        ),
        Criterion(
            "without a shift P3O goes no further from the start than PPO",
            Difference(Tail(key="kl", last=5, better="lower"), "P3O", "PPO"),
            at_most=0,
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 210)),
    looks=(5, 7, 10),
    replaces="sha256:74ee9329c1b663d3",
    shared="The 500 test prompts, and the number that is added for a prompt. Starting models, labels, reward models "
    "and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="On seed 100: the learning rate, the start and the number of pairs, such that P3O gains reward; PPO, with "
    "and without the shift, and RLOO were looked at there once. In the experiment that this one replaces the "
    "invariance, which is a theorem, was among the criteria that decided, and the gain without a shift was not.",
    equal="Sampled answers, two a prompt, prompts, the start, the reward model up to the shift, the weight of the KL, "
    "the learning rate, epochs (RLOO: one update a batch), test prompts.",
    refuted_by="P3O less than 0.1 above PPO under a shift that costs PPO 0.1, or more than 0.05 below it without one.",
    limits="A model of 1.2 million parameters. The reward is the learned one: its gain is what both methods are asked "
    "for, and on this task the true score falls while it rises. Shifted scores are rounded in float32, so runs agree "
    "only until a sampled token falls on the other side of a draw. Of the frontier only one point is looked at, and "
    "DPO is not.",
    curve="eval/gold",
    minutes=20,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
