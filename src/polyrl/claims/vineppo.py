"""VinePPO: is credit from continuations worth more per update than a critic or the other answers?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Better, Difference, Final, Measure, Ratio

if TYPE_CHECKING:
    from polyrl.report.runs import Run
    from polyrl.runtime.metric import Metric


@dataclass(frozen=True, kw_only=True)
class Tokens(Measure):
    """Tokens generated in training, those of continuations included."""

    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return what a finished run has spent."""
        return run.spent("tokens") if run.status == "finished" else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return "tokens generated"


CLAIM = Claim(
    slug="vineppo",
    sentence="With the value of every step measured by resuming generation nine times, a policy learns more in the "
    "same number of updates than with a learned critic or with the other answers as the baseline, and more "
    "continuations are better.",
    place="section 6, figures 3 to 5 (MATH, RhoMath 1.1B: PPO 18.1, VinePPO 23.0; up to 9 times fewer updates)",
    source="arXiv:2410.01679",
    question="A lock of twelve letters of which three decide, from a start that opens one in thirty. All arms have the "
    "same responses, updates, clip, KL, whitening and learning rate, and differ in the advantage alone; what "
    "continuations cost in tokens is told beside it.",
    task="lock",
    budget="samples=1280",
    options={"evaluations": 4, "eval_prompts": 400},
    hyperparameters={"learning_rate": "1e-3", "prompts_per_step": "4", "completions_per_prompt": "8"},
    arms=(
        Arm("VinePPO", "vineppo"),
        Arm("K = 3", "vineppo(continuations=3)", why="three continuations"),
        Arm("K = 1", "vineppo(continuations=1)", why="one continuation: noisier than none, by theory"),
        Arm("PPO", "vineppo+gae(gae_lambda=1)+value-loss", why="a learned critic, lambda 1 as the paper tuned it"),
        Arm("RLOO", "vineppo+leave-one-out", why="the other answers as the baseline"),
        Arm("GRPO", "vineppo+group-advantage", why="the same, divided by their deviation"),
    ),
    criteria=(
        Criterion("VinePPO ends five points above PPO", Difference(Final(), "VinePPO", "PPO"), at_least=0.05),
        Criterion("VinePPO ends five points above RLOO", Difference(Final(), "VinePPO", "RLOO"), at_least=0.05),
        Criterion(
            "VinePPO ends five points above GRPO", Difference(Final(), "VinePPO", "GRPO"), at_least=0.05, kind="control"
        ),
        Criterion(
            "nine continuations end above three", Difference(Final(), "VinePPO", "K = 3"), at_least=0, kind="control"
        ),
        Criterion("three end above one", Difference(Final(), "K = 3", "K = 1"), at_least=0, kind="control"),
        Criterion(
            "VinePPO generates at least 30 times RLOO's tokens",
            Ratio(Tokens(), "VinePPO", "RLOO"),
            at_least=30,
            kind="control",
        ),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The learning rate and the number of responses, on seed 0, with VinePPO (9 and 3) and RLOO; PPO was "
    "not tuned.",
    equal="Responses, updates, learning rate, epochs, clip range, KL, whitening, the start, test prompts. Not tokens.",
    refuted_by="VinePPO less than five points above PPO or above RLOO after the same updates.",
    limits="A task that was made so that few steps decide; on tasks where every step does, there is less to gain. At "
    "equal tokens a baseline with far larger batches may win, and nothing here says otherwise. MATH, GSM8K and "
    "wall-clock time on a GPU are not touched.",
    minutes=6,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
