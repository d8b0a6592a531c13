"""GRPO: is the group's mean worth having as a baseline, and does it do without a critic?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import BestDifference, Difference, Final, Gain, Of, Ratio, Seconds

OURS = ("GRPO", "GRPO, twice the rate")
BARE = ("no baseline", "no baseline, twice the rate")

CLAIM = Claim(
    slug="grpo",
    sentence="The other answers to a question are a baseline that does without a critic: GRPO learns more than "
    "without any baseline, and from as many answers it ends within five points of PPO.",
    place="sections 4.1 and 4.2, figure 4, table 5 (GSM8K 82.9 to 88.2, MATH 46.8 to 51.7)",
    source="arXiv:2402.03300",
    question="Additions of up to four digits with an exact checker, from a supervised model that gets a third to a "
    "half right. The same number of sampled answers for all. With no baseline REINFORCE imitates right answers only, "
    "as rewards are 0 and 1. Both sides have two learning rates, and the better one of a seed counts.",
    task="addition",
    budget="samples=2560",
    options={"evaluations": 2, "eval_prompts": 600},
    arms=(
        Arm("GRPO", "grpo(learning_rate=1e-4)"),
        Arm("GRPO, twice the rate", "grpo(learning_rate=2e-4)"),
        Arm("no baseline", "grpo(learning_rate=1e-4)+plain-return", why="the reward itself as the advantage"),
        Arm("no baseline, twice the rate", "grpo(learning_rate=2e-4)+plain-return"),
        Arm("PPO", "ppo(learning_rate=1e-4)", why="a learned critic, with the settings tuned for this task"),
    ),
    criteria=(
        Criterion(
            "the task can be learned from samples: PPO gains five points",
            Of(Gain(), "PPO"),
            at_least=0.05,
            kind="premise",
        ),
        Criterion(
            "the group's baseline is worth two points over none", BestDifference(Final(), OURS, BARE), at_least=0.02
        ),
        Criterion("GRPO ends within five points of PPO", BestDifference(Final(), OURS, ("PPO",)), at_least=-0.05),
        Criterion("GRPO gains five points on its start", Of(Gain(), "GRPO"), at_least=0.05, kind="control"),
        Criterion(
            "the same at the first rate alone",
            Difference(Final(), "GRPO", "no baseline"),
            at_least=0.02,
            kind="control",
        ),
        Criterion(
            "GRPO trains in at most 0.8 of PPO's time", Ratio(Seconds(), "GRPO", "PPO"), at_most=0.8, kind="control"
        ),
    ),
    seeds=tuple(range(200, 210)),
    looks=(5, 7, 10),
    replaces="sha256:32f0cb9f5be78148",
    shared="The 600 test prompts. Starting models, training prompts and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="Learning rates and PPO's settings, on seeds 100 and 101, from the start that all seeds shared then. In "
    "the experiment that this one replaces, GRPO ended 0.042 below no baseline at one rate, and 0.117 below PPO; the "
    "two criteria that its verdict rested on, a gain and a shorter time, hold by construction.",
    equal="Sampled answers, the start, test prompts, rates to choose from; PPO makes two passes over each batch.",
    refuted_by="Less than two points above no baseline, the better rate of each, or more than five below PPO.",
    limits="A model of 1.2 million parameters, and rewards of 0 and 1, which without a baseline punish nothing: where "
    "rewards lie far from 0 a baseline is worth more. Accuracy on GSM8K and MATH, memory at 7B and long answers are "
    "not touched.",
    minutes=18,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
