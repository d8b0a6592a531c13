"""PPO: reuse each batch for several epochs, with the probability ratio clipped and a learned critic.

The token MDP of RLHF: a state is the prompt and the tokens so far, an action is the next token, gamma is 1. The score
is paid at the last token, the reference KL (k1, of the sampling policy, a constant in the loss) at every token; GAE
turns them into advantages with the critic's values; advantages are whitened over the batch.
"""

from __future__ import annotations

from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty
from polyrl.recipe import Recipe

SLUG = "ppo"
TITLE = "Proximal Policy Optimization"
PAPER = "arXiv:1707.06347"
YEAR = 2017
FORMULA = "loss = -min(rho A, clip(rho, 1-eps, 1+eps) A) + c_v (V - target)^2 / 2"


def recipe() -> Recipe:
    """PPO as language models use it: token KL in the reward, GAE, clipped surrogate, value loss, several epochs."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=64, completions_per_prompt=1),
        score=(TaskReward(), TokenKLPenalty(kl_coef=0.02)),  # r_t = -beta (logp_old - logp_ref) + 1[t = last] S
        credit=(GAE(gamma=1.0, gae_lambda=0.98), WhitenAdvantage()),
        terms=(ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.5)),
        optimize=Optimize(epochs=2, minibatches=2),
        adds=("gae", "clipped-surrogate", "value-loss"),
        notes={
            "score": "the checker's score at the last token; the KL to the start is charged token by token",
            "credit": "a critic predicts the score from every prefix; GAE spreads the surprise over the tokens",
            "improve": "several epochs on one batch, safe because the clip stops ratios that have moved far enough",
        },
    )
