"""DAPO-direct: is offline credit for steps worth more than offline credit for whole responses?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of

CLAIM = Claim(
    slug="dapo-direct",
    sentence="Regressing the log-ratios of steps on the advantages of a critic that was trained first and frozen "
    "improves a supervised model offline, and more than the same regression on whole responses.",
    place="sections 3 and 4, table 3 (MATH, Llama-3.1-8B 49.4 to 53.6; GRPO 52.3, PPO 52.4)",
    source="arXiv:2412.18279",
    question="Additions of up to four digits, one column a step, from a supervised model that gets a third right. One "
    "set is sampled by the start, of about equal tokens in all arms; then all take the same number of policy steps. "
    "GRPO samples anew for each of its steps, with the same tokens in all.",
    task="addition",
    budget="iterations=51",
    options={"evaluations": 4, "eval_prompts": 400},
    arms=(
        Arm("DAPO-direct", "dapo-direct(problems=85)", budget="iterations=85"),
        Arm(
            "outcomes",
            "dapo-direct(problems=85,critic_epochs=0,step_value=outcomes)",
            why="no critic: the mean outcome of the continuations that begin with the step",
        ),
        Arm(
            "whole responses",
            "dapo-direct(problems=180,kept=1,critic_epochs=0,step_tokens=100)",
            why="control: the same loss with the response as the step, A = r - mean r",
        ),
        Arm("GRPO", "grpo", budget="tokens=66000", why="online, at equal tokens"),
    ),
    criteria=(
        Criterion("DAPO-direct gains five points on its start", Of(Gain(), "DAPO-direct"), at_least=0.05),
        Criterion(
            "DAPO-direct ends two points above whole responses",
            Difference(Final(), "DAPO-direct", "whole responses"),
            at_least=0.02,
        ),
        Criterion(
            "the critic is no worse than outcomes",
            Difference(Final(), "DAPO-direct", "outcomes"),
            at_least=0,
            kind="premise",
        ),
        Criterion(
            "DAPO-direct ends no more than five points below GRPO",
            Difference(Final(), "DAPO-direct", "GRPO"),
            at_least=-0.05,
            kind="control",
        ),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The task and the number of problems and passes, in single runs of seed 0. On a lock of twelve letters "
    "too few answers are right for the critic to learn from: that arm stayed at 0.03, outcomes rose to 0.25 and "
    "whole responses to 0.23. Here, with 60 problems, DAPO-direct ended at 0.50, outcomes at 0.51, whole responses "
    "at 0.55 and GRPO at 0.70.",
    equal="Tokens of the set within a tenth or so, policy steps of the offline arms, learning rate, beta, the start, "
    "test prompts.",
    refuted_by="A gain of less than five points, or less than two points above the same loss on whole responses.",
    limits="A model of 1.2 million parameters, three to five steps an answer, one round. MATH and critics on another "
    "base model are not touched.",
    minutes=6,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}, hyperparameters={}),
)
