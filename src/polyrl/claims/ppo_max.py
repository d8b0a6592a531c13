"""PPO-max: does plain PPO lose the true score to an exploitable reward model, and do the paper's settings keep it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.claims.rm_ensembles import Fall
from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Better, Difference, Final, Measure, Of

if TYPE_CHECKING:
    from polyrl.report.runs import Run
    from polyrl.runtime.metric import Metric

GOLD = Final(key="eval/gold", better="higher")
VANILLA = "ppo(prompts_per_step=256,epochs=4,minibatches=8,kl_coef=0)"
GENTLE = "ppo(prompts_per_step=128,epochs=1,kl_coef=0)"


@dataclass(frozen=True, kw_only=True)
class SincePeak(Measure):
    """By how much a series has risen since the evaluation at which another one was highest."""

    key: str
    other: str
    better: Better = "higher"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the last value minus that at the other's peak."""
        rows = [row for row in run.metrics if self.key in row and self.other in row]
        if run.status != "finished" or not rows:
            return None
        peak = max(rows, key=lambda row: row[self.other])
        return rows[-1][self.key] - peak[self.key]

    def says(self, metric: Metric) -> str:
        """Return its words."""
        names = [name.removeprefix("eval/") for name in (self.key, self.other)]
        return f"rise of {names[0]} since the peak of {names[1]}"


CLAIM = Claim(
    slug="ppo-max",
    sentence="On an exploitable reward model PPO without a brake collapses while its reward keeps rising; a "
    "normalized and clipped score, a KL at every token, a critic that learns first and demonstrations keep the true "
    "score, and not only because they come with fewer and smaller updates.",
    place="section 5, figures 4 (collapse) and 6 to 9 (PPO-max is stable)",
    source="arXiv:2307.04964",
    question="Sorting up to six digits, from a model that was taught badly. The reward model has learned from 300 "
    "pairs only; the exact gold score judges. Vanilla PPO has a raw score, no KL and four passes over 256 answers; "
    "PPO-max has all of its settings and one pass over 128 answers, and so has gentle PPO, which has no other brake.",
    task="learned-sort(pairs=300,reward_epochs=20)",
    budget="samples=5120",
    options={"evaluations": 4},
    hyperparameters={"learning_rate": "0.001"},
    arms=(
        Arm("vanilla", VANILLA, why="raw score, no KL, large buffer, four epochs"),
        Arm("gentle", GENTLE, why="the same with PPO-max's buffer and epochs"),
        Arm("PPO-max", "ppo-max(critic_pretraining=5)"),
        Arm(
            "PPO-max, no ptx",
            "ppo-max(critic_pretraining=5,ptx_coef=0)",
            why="control: is it the demonstrations alone?",
        ),
        Arm("gentle, token KL", f"{GENTLE}+token-kl-penalty(kl_coef=0.05)", why="control: is it the KL alone?"),
    ),
    criteria=(
        Criterion(
            "vanilla PPO loses half a point of gold from its peak",
            Of(Fall(key="eval/gold"), "vanilla"),
            at_least=0.5,
            kind="premise",
        ),
        Criterion("PPO-max ends half a point above vanilla PPO", Difference(GOLD, "PPO-max", "vanilla"), at_least=0.5),
        Criterion("PPO-max ends 0.3 above gentle PPO", Difference(GOLD, "PPO-max", "gentle"), at_least=0.3),
        Criterion("PPO-max ends within 0.3 of its peak", Of(Fall(key="eval/gold"), "PPO-max"), at_most=0.3),
        Criterion(
            "the reward does not show vanilla PPO's collapse: it rises on after the peak of gold",
            Of(SincePeak(key="eval/reward", other="eval/gold"), "vanilla"),
            at_least=0.3,
            kind="control",
        ),
        Criterion(
            "the KL shows it: it rises by 3 nats after the peak of gold",
            Of(SincePeak(key="kl", other="eval/gold"), "vanilla"),
            at_least=3,
            unit="nats",
            kind="control",
        ),
        Criterion(
            "PPO-max ends 0.3 above itself without demonstrations",
            Difference(GOLD, "PPO-max", "PPO-max, no ptx"),
            at_least=0.3,
            kind="control",
        ),
        Criterion(
            "PPO-max ends 0.3 above gentle PPO with a KL at every token",
            Difference(GOLD, "PPO-max", "gentle, token KL"),
            at_least=0.3,
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 210)),
    looks=(5, 7, 10),
    replaces="sha256:3e1a1ff3e86e89d8",
    shared="The 500 test prompts. Starting models, labels, reward models, demonstrations and samples are each seed's "
    "own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="Pairs and passes of the reward model and the learning rate, such that vanilla PPO collapses, on seed 100 "
    "with other labels and another reward model. In the experiment that this one replaces PPO-max was compared with "
    "vanilla PPO, which makes eight times as many passes over its answers; that alone could have been the difference.",
    equal="Sampled answers, the start, the reward model, learning rates; against gentle PPO also answers in a batch "
    "and passes over them.",
    refuted_by="PPO-max that does not end half a point above vanilla PPO, or not 0.3 above gentle PPO, or falls by "
    "more than 0.3 itself.",
    limits="Models of 0.1 million parameters, 20 to 40 iterations. The demonstrations are those that the start was "
    "taught with, corrupted like them. Win rates in chat, the alignment tax and long runs are not touched.",
    minutes=20,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_prompts": 50}),
)
