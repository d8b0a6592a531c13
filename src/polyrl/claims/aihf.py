"""AIHF: is it worth more to learn from demonstrations and preferences at once than from one after the other?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of

W1 = "demonstration_weight=0.1"

CLAIM = Claim(
    slug="aihf",
    sentence="Learning from demonstrations and preferences in one stage aligns better than learning from "
    "demonstrations first and from preferences after them, with a reward model or without.",
    place="figures 2 and 3",
    source="arXiv:2406.06874",
    question="Sorting digits, badly taught; 200 right demonstrations of each run's own and 4000 labelled pairs of the "
    "start's answers. The same 60 steps for all: joint or in turn, with and without a reward model; as a control an "
    "anchor on the pairs' own chosen answers. The gold score runs to 4; 0.1 is a fortieth of that.",
    task="sort-pairs",
    budget="iterations=60",
    options={"evaluations": 4},
    arms=(
        Arm("AIHF-DPO", f"dpo+demonstrated-pairs+demonstration-nll({W1})", why="one loss on both"),
        Arm(
            "SFT, then DPO",
            f"dpo+demonstrated-pairs(sft_share=0.2)+demonstration-nll({W1})",
            why="12 steps on demonstrations, 48 on pairs",
        ),
        Arm(
            "DPO with an anchor",
            f"dpo+demonstration-nll(imitate=chosen,{W1})",
            why="control: imitates chosen answers, as RPO does",
        ),
        Arm("DPO", "dpo", why="pairs alone"),
        Arm("AIHF", "aihf", why="reward and policy in turn, two steps of the reward to one of the policy"),
        Arm(
            "RLHF",
            "aihf(demonstration_weight=0,reward_warmup=120,reward_steps=0)",
            why="the reward first, from pairs alone, as many steps",
        ),
    ),
    criteria=(
        Criterion(
            "one loss on both is better than one after the other",
            Difference(Final(), "AIHF-DPO", "SFT, then DPO"),
            at_least=0.1,
        ),
        Criterion(
            "the demonstrations help, and not any anchor",
            Difference(Final(), "AIHF-DPO", "DPO with an anchor"),
            at_least=0.1,
        ),
        Criterion(
            "the joint reward is better than the one of pairs", Difference(Final(), "AIHF", "RLHF"), at_least=0.1
        ),
        Criterion("AIHF lifts the gold score by half a point", Of(Gain(), "AIHF"), at_least=0.5, kind="control"),
        Criterion(
            "one loss on both is better than pairs alone",
            Difference(Final(), "AIHF-DPO", "DPO"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The reward's learning rate, its L2 and the demonstrations' weight of AIHF (seven settings), on seed 0; of "
    "the others nothing.",
    equal="Steps of the policy; of the reward, where there is one; pairs a step, demonstrations, start, test prompts.",
    refuted_by="Learning in one stage is not 0.1 better than in two, with a reward model or without, or an anchor on "
    "chosen answers does as well as demonstrations.",
    limits="A model of 0.2 million parameters on one task. RLHF does not see the demonstrations: its start was taught "
    "on other, bad ones. In 'SFT, then DPO' the reference is the start before the demonstrations.",
    minutes=8,
    quick=Quick(share=0.06, options={"evaluations": 1, "eval_prompts": 50}),
)
