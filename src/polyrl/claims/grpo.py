"""GRPO: does it lift a model without a critic, for less computing than PPO, and is it the group's mean that does it?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of, Ratio, Seconds

CLAIM = Claim(
    slug="grpo",
    sentence="With the other answers to a question as the baseline and no critic, GRPO lifts the accuracy of a "
    "supervised model by five points or more, for less computing than PPO.",
    place="sections 4.1 and 4.2, table 5 (GSM8K 82.9 to 88.2, MATH 46.8 to 51.7)",
    source="arXiv:2402.03300",
    question="Additions of up to four digits with an exact checker, from a supervised model that gets a third right. "
    "The same number of sampled answers for all; as a control REINFORCE with no baseline at all, which for rewards "
    "of 0 and 1 imitates right answers only.",
    task="addition",
    budget="samples=2560",
    options={"evaluations": 5},
    arms=(
        Arm("GRPO", "grpo"),
        Arm("PPO", "ppo", why="a learned critic"),
        Arm(
            "Dr. GRPO",
            "grpo(scale=none,aggregation=constant)",
            why="neither divided by the deviation nor by the length",
        ),
        Arm(
            "no baseline",
            "grpo+plain-return",
            why="control: GRPO with the reward itself as the advantage",
        ),
    ),
    criteria=(
        Criterion("GRPO gains five points on its start", Of(Gain(), "GRPO"), at_least=0.05, kind="premise"),
        Criterion(
            "GRPO trains in at most 0.8 of PPO's time", Ratio(Seconds(), "GRPO", "PPO"), at_most=0.8, kind="control"
        ),
        Criterion("GRPO ends no lower than without a baseline", Difference(Final(), "GRPO", "no baseline"), at_least=0),
        Criterion("GRPO ends within five points of PPO", Difference(Final(), "GRPO", "PPO"), at_least=-0.05),
        Criterion(
            "GRPO ends within two points of Dr. GRPO",
            Difference(Final(), "GRPO", "Dr. GRPO"),
            at_least=-0.02,
            kind="control",
        ),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="Learning rates and PPO's settings, on seeds 100 and 101; methods were compared on this task with seeds 0 "
    "to 4.",
    equal="Sampled answers, the start, test prompts, learning rate of the policy.",
    refuted_by="A gain of less than five points, or a training time above 0.8 of PPO's.",
    limits="A model of 1.2 million parameters. Accuracy on GSM8K and MATH, memory at 7B and long answers are not "
    "touched.",
    minutes=8,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
