"""ReMax: does the greedy answer calm the gradient, and learn where REINFORCE cannot? And where does it fail?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, MeanSquare, Ratio

GOLD = Final(key="eval/gold", better="higher")
NOISE = MeanSquare(key="grad_norm/policy")
FROZEN = "learning_rate=0,kl_coef=0"

CLAIM = Claim(
    slug="remax",
    sentence="The reward of the policy's own greedy answer takes the prompt's offset out of REINFORCE: the gradient "
    "varies less, and the method learns from a reward model as well as other baselines do, without a critic.",
    place="sections 4 and 5, figure 3",
    source="arXiv:2310.10505",
    question="Writing words backwards, rewarded by a reward model whose scores of different prompts lie apart "
    "(standard deviation 2, where answers differ by 1); equally many generated answers, greedy ones included. The "
    "variance is that of batches at the start, with the policy held still. The control: an exact reward of 0 and 1.",
    task="learned-reverse(start_accuracy=0.25,prompt_offset=2)",
    budget="samples=2560",
    options={"evaluations": 4},
    arms=(
        Arm("ReMax", "remax", why="32 prompts, each answered once sampled and once greedily"),
        Arm("RLOO-2", "rloo(prompts_per_step=32,completions_per_prompt=2)", why="the baseline is the other sample"),
        Arm("REINFORCE", "rloo(prompts_per_step=64,completions_per_prompt=1)+plain-return", why="no baseline"),
        Arm("ReMax, held still", f"remax({FROZEN})", drawn=False),
        Arm(
            "REINFORCE, held still",
            f"rloo(prompts_per_step=64,completions_per_prompt=1,{FROZEN})+plain-return",
            why="the same expected gradient, so that a larger mean square is a larger variance",
            drawn=False,
        ),
        Arm("ReMax, exact reward", "remax", task="addition", why="control: where ReMax is advised against"),
        Arm("RLOO-2, exact reward", "rloo(prompts_per_step=32,completions_per_prompt=2)", task="addition"),
    ),
    criteria=(
        Criterion(
            "the gradient varies less than REINFORCE's",
            Ratio(NOISE, "ReMax, held still", "REINFORCE, held still"),
            at_most=0.8,
        ),
        Criterion("ReMax ends better than REINFORCE", Difference(GOLD, "ReMax", "REINFORCE"), at_least=0.01),
        Criterion("ReMax ends within five points of RLOO-2", Difference(GOLD, "ReMax", "RLOO-2"), at_least=-0.05),
        Criterion(
            "with an exact reward too it keeps up with RLOO-2",
            Difference(Final(), "ReMax, exact reward", "RLOO-2, exact reward"),
            at_least=-0.05,
            kind="control",
        ),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="Learning rates of the recipes, on another task.",
    equal="Generated answers (ReMax has half the prompts of REINFORCE), the start, the reward model, KL penalty, "
    "learning rate.",
    refuted_by="A gradient that varies as much as REINFORCE's, an end no better than REINFORCE's, or RLOO-2 ahead by "
    "five points.",
    limits="A model of 1.2 million parameters: memory and speed against PPO at 7B, and win rates, are not touched.",
    curve="eval/gold",
    minutes=9,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
