"""RLOO: does REINFORCE with a leave-one-out baseline do without PPO's machinery when a learned reward is the judge?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of, Ratio, Seconds

GOLD = Final(key="eval/gold", better="higher")

CLAIM = Claim(
    slug="rloo",
    sentence="In learning from a reward model REINFORCE with a leave-one-out baseline needs none of PPO's machinery: "
    "at the same number of samples it ends no worse than PPO, and better than with no baseline.",
    place="abstract, sections 3 and 5",
    source="arXiv:2402.14740",
    question="Writing words backwards, rewarded by a reward model that was trained on preferences; judged by the "
    "gold score that it stands for, from 0 to 1. Scores of different prompts lie apart by chance, as those of reward "
    "models do.",
    task="learned-reverse(start_accuracy=0.25,prompt_offset=2)",
    budget="samples=2560",
    options={"evaluations": 4},
    arms=(
        Arm("RLOO, k=4", "rloo"),
        Arm("PPO", "ppo", why="critic, ratio, clip, several epochs"),
        Arm("RLOO, k=2", "rloo(prompts_per_step=32,completions_per_prompt=2)"),
        Arm(
            "no baseline",
            "rloo(prompts_per_step=64,completions_per_prompt=1)+plain-return",
            why="control: plain REINFORCE",
        ),
    ),
    criteria=(
        Criterion(
            "RLOO lifts the gold score of its start",
            Of(Gain(key="eval/gold", better="higher"), "RLOO, k=4"),
            at_least=0.01,
            kind="premise",
        ),
        Criterion("RLOO ends no worse than PPO", Difference(GOLD, "RLOO, k=4", "PPO"), at_least=-0.01),
        Criterion(
            "RLOO ends better than with no baseline", Difference(GOLD, "RLOO, k=4", "no baseline"), at_least=0.01
        ),
        Criterion(
            "four answers are no worse than two", Difference(GOLD, "RLOO, k=4", "RLOO, k=2"), at_least=0, kind="control"
        ),
        Criterion(
            "RLOO trains in less time than PPO", Ratio(Seconds(), "RLOO, k=4", "PPO"), at_most=0.8, kind="control"
        ),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="Learning rates of the recipes, on another task.",
    equal="Sampled answers, the start, the reward model, the KL penalty, learning rate of the policy, test prompts.",
    refuted_by="A gold score more than 0.01 below PPO's, a gain of less than 0.01, or none over REINFORCE without a "
    "baseline.",
    limits="A model of 1.2 million parameters and a reward model of the same size. Win rates on TL;DR and HH are not "
    "touched.",
    curve="eval/gold",
    minutes=9,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
