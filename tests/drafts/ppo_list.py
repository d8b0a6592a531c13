"""PPO as a list of updates: the same numbers as `ppo`, with models that can be added to, such as a second critic.

What the catalogue's recipe says with `terms` and `optimize`: epochs over shuffled single steps, policy and critic
stepped together on each minibatch and clipped by one norm.
"""

from __future__ import annotations

from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.parts.control import ScaleReward, StateValues, StepEnvironments
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.recipe import Recipe

SLUG = "ppo-list-draft"
TITLE = "Proximal Policy Optimization"
PAPER = "arXiv:1707.06347"
YEAR = 2017
FORMULA = "loss = -min(rho A, clip(rho, 1-eps, 1+eps) A); beside it c_v (V - target)^2 / 2"
TASK = "CartPole-v1"


def recipe() -> Recipe:
    """The settings of `ppo`."""
    return Recipe(
        name=SLUG,
        models={
            "policy": MlpPolicy(learning_rate=1e-3, schedule="linear", adam_epsilon=1e-5),
            "critic": MlpCritic(learning_rate=1e-3, schedule="linear", adam_epsilon=1e-5),
        },
        collect=StepEnvironments(environments=8, steps_per_environment=128),
        score=(ScaleReward(gamma=0.99),),
        updates=(
            Epochs(
                (
                    Update(
                        "policy",
                        (ClippedSurrogate(clip_range=0.2), EntropyBonus(entropy_coef=0.0)),
                        Again(),
                        credit=(WhitenAdvantage(),),
                    ),
                    Update("critic", (ValueLoss(value_coef=0.5),), Again()),
                ),
                Fresh(),
                credit=(StateValues("critic"), GAE(gamma=0.99, gae_lambda=0.95)),
                epochs=10,
                minibatches=8,
                minibatch_of="steps",
                joint_clip=0.5,
            ),
        ),
        adds=("policy", "critic", "gae", "clipped-surrogate", "value-loss"),
    )
