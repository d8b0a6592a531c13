"""T-PPO: do windows save decoding steps, and what do they cost in accuracy?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Better, Difference, Final, Gain, Measure, Of, Ratio

if TYPE_CHECKING:
    from polyrl.report.runs import Run
    from polyrl.runtime.metric import Metric


@dataclass(frozen=True, kw_only=True)
class DecodeSteps(Measure):
    """Tokens decoded one after another in the whole run: what a machine waits for that decodes all rows at once."""

    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the sum over iterations."""
        steps = run.series("decode_steps")
        return sum(steps) if run.status == "finished" and steps else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return "decoding steps one after another"


SLOTS = "prompts_per_step=64,completions_per_prompt=1,window=11,minibatches=1,critic_pretraining=10"

CLAIM = Claim(
    slug="t-ppo",
    sentence="Learning from windows of unfinished responses, with GAE cut where they end, is as good per token as PPO "
    "on whole responses, and needs that responses go on: cutting them off for good does not do.",
    place="abstract and figure 1 (AIME 2024: 62 at a 32B model; up to 2.5 times the training efficiency)",
    source="arXiv:2506.15050",
    question="Sorting two to eight digits by insertion, in 5 to 44 tokens. PPO waits for the longest of 64 responses; "
    "T-PPO goes on by windows of 11, which takes fewer decoding steps by construction. Equal tokens, and as many of "
    "them in an optimizer step as near as whole responses allow; both critics learn alone on the same tokens first.",
    task="sort",
    budget="tokens=32000",
    options={"evaluations": 2, "eval_prompts": 1000},
    hyperparameters={"learning_rate": "1e-4"},
    arms=(
        Arm("T-PPO", f"t-ppo({SLOTS})"),
        Arm("PPO", "ppo(kl_coef=0,gae_lambda=0.95)+critic-pretraining(critic_pretraining=4)", why="whole responses"),
        Arm(
            "naive truncation",
            f"t-ppo({SLOTS},carry_on=no)",
            why="a response ends with its window, with no reward",
        ),
    ),
    criteria=(
        Criterion(
            "something is learned: PPO gains three points on its start",
            Of(Gain(), "PPO"),
            at_least=0.03,
            kind="premise",
        ),
        Criterion(
            "T-PPO ends no more than three points below PPO", Difference(Final(), "T-PPO", "PPO"), at_least=-0.03
        ),
        Criterion(
            "T-PPO ends five points above naive truncation",
            Difference(Final(), "T-PPO", "naive truncation"),
            at_least=0.05,
        ),
        Criterion(
            "T-PPO takes at most three quarters of PPO's decoding steps",
            Ratio(DecodeSteps(), "T-PPO", "PPO"),
            at_most=0.75,
            kind="control",
        ),
        Criterion("T-PPO gains three points on its start", Of(Gain(), "T-PPO"), at_least=0.03, kind="control"),
    ),
    seeds=tuple(range(200, 212)),
    looks=(6, 9, 12),
    replaces="sha256:aae474b468244c83",
    shared="The 1000 test prompts. Starting models, training prompts and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The learning rate, in single runs: PPO at 1e-4 and 3e-4 (seed 0; the latter rose and fell), T-PPO at 1e-4 "
    "(seed 0) and 2e-4 (seed 1; rose and fell). In the experiment that this one replaces T-PPO ended 0.022 below PPO "
    "with an interval from -0.041 to -0.002, judged on 400 prompts, which alone make up to 0.035 of a difference's "
    "standard deviation: there are 1000 now, and more seeds.",
    equal="Tokens, slots or responses, learning rates, lambda, clip, epochs, the start, test prompts. Optimizer steps "
    "are about equal in the tokens of each, not in number.",
    refuted_by="More than three points below PPO at equal tokens, or less than five points above responses that end "
    "with their window.",
    limits="A model of 1.2 million parameters and responses of at most 44 tokens. Decoding steps stand for the time "
    "of a machine that decodes all rows at once; on a CPU seconds do not follow them. Scores at 32B are not touched.",
    minutes=20,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
