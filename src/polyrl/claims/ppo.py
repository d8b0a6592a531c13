"""PPO: does the clip matter? Where a batch is reused for 20 epochs it should; with 4 gentle epochs nothing can show."""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, LastEpisodes

LAST = LastEpisodes(key="episode/return", count="episode/count", last=20, better="higher")
WHOLE = Area(key="episode/return", x="steps", better="higher")

CLAIM = Claim(
    slug="ppo",
    sentence="Clipping the probability ratio makes it safe to reuse a batch for many epochs: without the clip the "
    "policy ends worse.",
    place="section 6.1 and table 1",
    source="arXiv:1707.06347",
    question="CartPole with 20 epochs over every batch: the clipped surrogate, the same without a clip, and the "
    "adaptive KL penalty. A difference of 25 is a twentieth of the largest return.",
    task="CartPole-v1",
    budget="steps=50000",
    hyperparameters={
        "environments": "4",
        "steps_per_environment": "128",
        "epochs": "20",
        "minibatches": "4",
        "learning_rate": "1e-3",
        "critic_learning_rate": "1e-3",
        "entropy_coef": "0.01",
    },
    options={"evaluations": 5},
    arms=(
        Arm("clip 0.2", "ppo"),
        Arm("no clip", "ppo+unclipped-surrogate", why="the same surrogate; nothing stops the ratios"),
        Arm("adaptive KL", "ppo+adaptive-kl-penalty(penalty_target=0.01)", why="the paper's other way, section 4"),
    ),
    criteria=(
        Criterion("the clip ends higher than no clip", Difference(LAST, "clip 0.2", "no clip"), at_least=25),
        Criterion("the clip is higher over the whole run", Difference(WHOLE, "clip 0.2", "no clip"), at_least=25),
        Criterion(
            "the clip ends no worse than the adaptive KL",
            Difference(LAST, "clip 0.2", "adaptive KL"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 30)),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="Nothing for this claim; the recipe's defaults were looked at on these seeds.",
    equal="Environment steps, updates, networks, learning rate and its schedule, normalisation, seeds.",
    refuted_by="No clip ends within 25 of the clip or above it, or is as high over the whole run.",
    limits="One easy task. The paper's table is over seven MuJoCo tasks at a million steps each, with 3 to 10 epochs.",
    curve="episode/return",
    minutes=7,
    quick=Quick(share=0.04, options={"evaluations": 1, "eval_episodes": 5}),
)
