"""Iterative DPO: in rounds, sample several responses a prompt, pair the best with the worst, and fit them as DPO does.

Two algorithms bear this name. With `reference=start` every round pulls to the starting model: the KL to it is held.
With `reference=round` every round pulls to the policy that sampled it (a proximal step): the drift over rounds has no
bound. Then the reference's log-probabilities are those of sampling, and no reference model is loaded.
"""

from __future__ import annotations

from polyrl.methods.preference.dpo import DPOLoss
from polyrl.parts.collect import SampleResponses
from polyrl.parts.optimize import Optimize
from polyrl.parts.pairs import BestVersusWorst
from polyrl.parts.score import TaskReward
from polyrl.recipe import Recipe

SLUG = "iterative-dpo"
TITLE = "Iterative DPO"
PAPER = "arXiv:2405.07863"
YEAR = 2024
FORMULA = "round: y1..yK ~ pi_t; (best, worst) by reward; epochs of -log sigma(beta h)"
TASK = "sort-pairs"


def recipe() -> Recipe:
    """A round is an iteration: 4 responses to each of 128 prompts, 2 passes over the pairs in minibatches."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=128, completions_per_prompt=4),
        score=(TaskReward(),),
        credit=(),
        select=(BestVersusWorst(),),
        terms=(DPOLoss(beta=0.1, reference="start"),),
        optimize=Optimize(learning_rate=3e-4, schedule="cosine", epochs=2, minibatches=4),
        adds=("sample-responses", "task-reward", "best-versus-worst"),
        notes={
            "collect": "a round begins: several responses to each of many prompts",
            "score": "a reward ranks the responses to a prompt",
            "select": "the best is chosen, the worst rejected; the others are not used",
            "improve": "several passes of DPO over the round's pairs",
        },
    )
