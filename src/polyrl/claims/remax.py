"""ReMax: does the greedy answer calm the gradient, and is that worth something where a reward model is the judge?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import BestDifference, Final, Gain, Largest, MeanSquare, Ratio

GOLD = Final(key="eval/gold", better="higher")
GAIN = Gain(key="eval/gold", better="higher")
NOISE = MeanSquare(key="grad_norm/policy")
STILL = "learning_rate=0,kl_coef=0"
BARE = "rloo(prompts_per_step=64,completions_per_prompt=1,{})+plain-return"
PAIRED = "rloo(prompts_per_step=32,completions_per_prompt=2,{})"
RATES = ("3e-4", "1e-3")
OURS, THEIRS, NONE = (tuple(f"{name}, {rate}" for rate in RATES) for name in ("ReMax", "RLOO-2", "REINFORCE"))


def at(rate: str) -> str:
    """The settings of a learning rate."""
    return f"learning_rate={rate},kl_coef=0.05"


CLAIM = Claim(
    slug="remax",
    sentence="The reward of the policy's own greedy answer takes what a prompt's scores have in common out of "
    "REINFORCE: the gradient varies less, and from as many answers the policy ends better than without a baseline, "
    "and as well as with another answer for one.",
    place="sections 4 and 5, figure 3",
    source="arXiv:2310.10505",
    question="Sorting up to nine digits, from a model that was taught badly, rewarded by a reward model of 2000 "
    "pairs, whose scores of different prompts lie apart by chance; judged by the exact gold score, from about -4 to "
    "4. Equally many generated answers, greedy ones included. The variance is that of batches at the start, with the "
    "policy held still. All sides have two learning rates, and the better one of a seed counts.",
    task="learned-sort(difficulty=9,pairs=2000,reward_epochs=10,prompt_offset=1)",
    budget="samples=2048",
    options={"evaluations": 2},
    arms=(
        *(
            Arm(name, f"remax({at(rate)})", why="32 prompts, each answered once sampled and once greedily")
            for name, rate in zip(OURS, RATES, strict=True)
        ),
        *(
            Arm(name, PAIRED.format(at(rate)), why="the baseline is the other sample")
            for name, rate in zip(THEIRS, RATES, strict=True)
        ),
        *(Arm(name, BARE.format(at(rate)), why="no baseline") for name, rate in zip(NONE, RATES, strict=True)),
        Arm("ReMax, held still", f"remax({STILL})", drawn=False),
        Arm(
            "REINFORCE, held still",
            BARE.format(STILL),
            why="the same expected gradient, so that a larger mean square is a larger variance",
            drawn=False,
        ),
    ),
    criteria=(
        Criterion(
            "something is learned: the better of RLOO-2's rates lifts gold by 0.3",
            Largest(GAIN, THEIRS),
            at_least=0.3,
            kind="premise",
        ),
        Criterion(
            "the gradient's mean square is at most 0.8 of REINFORCE's",
            Ratio(NOISE, "ReMax, held still", "REINFORCE, held still"),
            at_most=0.8,
        ),
        Criterion(
            "ReMax ends 0.1 above REINFORCE, the better rate of each", BestDifference(GOLD, OURS, NONE), at_least=0.1
        ),
        Criterion(
            "ReMax ends no more than 0.1 below RLOO-2, the better rate of each",
            BestDifference(GOLD, OURS, THEIRS),
            at_least=-0.1,
        ),
        Criterion("ReMax lifts gold by 0.3 at its better rate", Largest(GAIN, OURS), at_least=0.3, kind="control"),
    ),
    seeds=tuple(range(200, 212)),
    looks=(6, 9, 12),
    replaces="sha256:dda6563ea5928885",
    shared="The 500 test prompts. Starting models, labels, reward models and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The task, its KL and the larger rate are those at which PPO gained 0.7 in the tuning of another claim, "
    "rto, on seeds 100 and 101; what scores of a prompt have in common was added to it. In the experiment that this "
    "one replaces nothing was learned: all arms ended within 0.05 of their start.",
    equal="Generated answers (ReMax has half the prompts of REINFORCE), the start, the reward model, KL penalty, "
    "rates to choose from, test prompts.",
    refuted_by="A gradient that varies nearly as much as REINFORCE's, an end less than 0.1 above REINFORCE's, or more "
    "than 0.1 below RLOO-2's.",
    limits="A model of 0.1 million parameters: memory and speed against PPO at 7B, and win rates, are not touched. "
    "Rewards of 0 and 1, for which the paper advises against ReMax, are left out.",
    curve="eval/gold",
    minutes=18,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
