"""APO: does going on along the last move bring rounds of DPO further, and does a larger step do the same?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of

CLAIM = Claim(
    slug="apo",
    sentence="Extrapolating the policy after each round of iterative DPO along its last move, without data and without "
    "training, makes the rounds go faster.",
    place="theorem 4.1 and section 5",
    source="arXiv:2410.06293",
    question="Sorting digits, taught by corrupted demonstrations; five rounds of 512 sampled answers, the best and the "
    "worst of four a prompt, DPO from and towards the policy that sampled the round. With the extrapolation, without "
    "it, and without it at a step that is 1 / (1 - alpha) as large, which is what it comes to with exact rounds.",
    task="sort-pairs",
    budget="samples=2560",
    options={"evaluations": 5},
    arms=(
        Arm("APO", "apo", why="alpha 0.3"),
        Arm("iterative DPO", "apo(alpha=0)", why="the same rounds without the extrapolation"),
        Arm("raised step", "apo(alpha=0,learning_rate=4.286e-4)", why="the learning rate over 1 - alpha"),
        Arm("smaller beta", "apo(alpha=0,beta=0.07)", why="beta times 1 - alpha: a proximal step as much larger"),
    ),
    criteria=(
        Criterion(
            "rounds of DPO lift the gold score by 0.3", Of(Gain(), "iterative DPO"), at_least=0.3, kind="premise"
        ),
        Criterion("APO ends above iterative DPO", Difference(Final(), "APO", "iterative DPO"), at_least=0),
        Criterion(
            "APO ends above iterative DPO with a raised learning rate",
            Difference(Final(), "APO", "raised step"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "APO ends above iterative DPO with a smaller beta",
            Difference(Final(), "APO", "smaller beta"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=(20, 21, 22, 23, 24, 25, 26, 27),
    looks=(5, 8),
    tuning_seeds=(0, 1, 2),
    tuning="Nothing: settings are the recipe's, those of iterative-dpo.",
    equal="Sampled answers, labels and gradient steps of each round, the start, the optimizer, test prompts.",
    refuted_by="Rounds that end lower with the extrapolation than without it.",
    limits="A model of 0.2 million parameters, one task, exact labels, Adam whose moments go on. Win rates of "
    "chat models are not touched. With exact rounds the extrapolation is a larger step and nothing else, so the two "
    "controls say whether it is more than that here.",
    minutes=12,
    quick=Quick(share=0.2, options={"evaluations": 1, "eval_prompts": 50}),
)
