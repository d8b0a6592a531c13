"""Online DPO: the two responses of a pair come from the present policy, and are labelled as they come.

Only where pairs come from changes, so it combines with every loss on pairs: `ipo+online-dpo`, `slic+online-dpo`. The
label is the better reward; `+preference-label` asks a preference function instead. The reference stays the start.
"""

from __future__ import annotations

from polyrl.methods.preference.dpo import DPOLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.pairs import BestVersusWorst, SamplePairs
from polyrl.parts.score import TaskReward
from polyrl.recipe import Recipe

SLUG = "online-dpo"
TITLE = "Direct Alignment from Online Feedback"
PAPER = "arXiv:2402.04792"
YEAR = 2024
FORMULA = "(y1, y2) ~ pi, labelled at once; loss = -log sigma(beta h)"
TASK = "sort-pairs"


def recipe() -> Recipe:
    """Algorithm 1: two samples a prompt, an immediate label, one step of the offline loss."""
    return Recipe(
        name=SLUG,
        collect=SamplePairs(prompts_per_step=32, completions_per_prompt=2),
        score=(TaskReward(),),
        credit=(),
        select=(BestVersusWorst(),),
        terms=(DPOLoss(beta=0.1),),
        optimize=Optimize(learning_rate=5e-4, warmup=0.1, schedule="cosine"),
        adds=("sample-pairs", "task-reward", "best-versus-worst"),
        notes={
            "collect": "two responses of the present policy to each prompt",
            "score": "a reward, or a preference function, says which is better",
            "select": "the better one is chosen, the other rejected; equal ones make no pair",
            "improve": "DPO's loss; no gradient passes through the sampling",
        },
    )
