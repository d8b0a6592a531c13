"""VinePPO: is credit from continuations worth more per update than a critic, and per token than the other answers?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import BestDifference, Difference, Final, Gain, Of

CRITICS = ("PPO", "PPO, critic 3e-4")

CLAIM = Claim(
    slug="vineppo",
    sentence="With the value of every step measured by resuming generation, a policy learns more in the same number "
    "of updates than with a learned critic, and more from as many generated tokens than with the other answers as the "
    "baseline.",
    place="section 6, figures 3 to 5 (MATH, RhoMath 1.1B: PPO 18.1, VinePPO 23.0; up to 9 times fewer updates, up to "
    "3 times less time)",
    source="arXiv:2410.01679",
    question="A lock of twelve letters of which three decide, from a start that opens one in thirty. The same clip, "
    "KL, whitening and learning rate for all; what differs is the advantage. Nine continuations against a critic at "
    "two learning rates, the better one of a seed, after equally many responses and updates; and three continuations "
    "against leave-one-out where continuations count as what they are, generated tokens: there RLOO has some fifteen "
    "times as many responses.",
    task="lock",
    budget="samples=1280",
    options={"evaluations": 2, "eval_prompts": 400},
    hyperparameters={"learning_rate": "1e-3", "prompts_per_step": "4", "completions_per_prompt": "8"},
    arms=(
        Arm("VinePPO", "vineppo", why="nine continuations"),
        Arm("PPO", "vineppo+gae(gae_lambda=1)+value-loss", why="a learned critic, lambda 1 as the paper tuned it"),
        Arm(
            "PPO, critic 3e-4",
            "vineppo(critic_learning_rate=3e-4)+gae(gae_lambda=1)+value-loss",
            why="the same with a slower critic",
        ),
        Arm("RLOO", "vineppo+leave-one-out", why="the other answers as the baseline"),
        Arm("K = 3, equal tokens", "vineppo(continuations=3)", budget="tokens=150000", why="three continuations"),
        Arm("RLOO, equal tokens", "vineppo+leave-one-out", budget="tokens=150000", why="many more responses"),
    ),
    criteria=(
        Criterion(
            "the lock can be learned from samples: RLOO with many responses gains 0.1",
            Of(Gain(), "RLOO, equal tokens"),
            at_least=0.1,
            kind="premise",
        ),
        Criterion(
            "after as many updates VinePPO ends five points above PPO, the better critic",
            BestDifference(Final(), ("VinePPO",), CRITICS),
            at_least=0.05,
        ),
        Criterion(
            "from as many tokens three continuations end no lower than RLOO",
            Difference(Final(), "K = 3, equal tokens", "RLOO, equal tokens"),
            at_least=0,
        ),
        Criterion(
            "after as many updates VinePPO ends five points above RLOO",
            Difference(Final(), "VinePPO", "RLOO"),
            at_least=0.05,
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 212)),
    looks=(6, 9, 12),
    replaces="sha256:f9491572159acdb3",
    shared="The 400 test prompts. Starting models, training prompts and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The learning rate and the number of responses, on seed 0, with VinePPO (9 and 3) and RLOO. In the "
    "experiment that this one replaces all arms had the same updates and VinePPO 46 times the tokens of RLOO, and "
    "PPO's critic had one learning rate that nobody had tuned.",
    equal="Responses and updates, or generated tokens; learning rate, epochs, clip range, KL, whitening, the start, "
    "test prompts.",
    refuted_by="VinePPO less than five points above PPO after the same updates, or three continuations below RLOO "
    "from the same tokens.",
    limits="A task that was made so that few steps decide; on tasks where every step does, there is less to gain. "
    "Tokens of continuations are generated side by side, so that on a GPU they cost less time than their number says. "
    "MATH and GSM8K are not touched.",
    minutes=20,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}),
)
