"""DAPO-direct: is offline credit for steps worth more than offline credit for whole responses?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of

CLAIM = Claim(
    slug="dapo-direct",
    sentence="Regressing the log-ratios of steps on the advantages of a critic that was trained first and frozen "
    "improves a supervised model offline, and more than the same regression on whole responses.",
    place="sections 3 and 4, table 3 (MATH, Llama-3.1-8B 49.4 to 53.6; GRPO 52.3, PPO 52.4)",
    source="arXiv:2412.18279",
    question="Additions of up to four digits, one column a step, from a supervised model that gets a third to a half "
    "right. One set is sampled by the start, of about equal tokens in all arms; the critic passes over it eight "
    "times; then all offline arms take the same number of policy steps.",
    task="addition",
    budget="iterations=51",
    options={"evaluations": 2, "eval_prompts": 1000},
    arms=(
        Arm("DAPO-direct", "dapo-direct(problems=85,critic_epochs=8)", budget="iterations=187"),
        Arm(
            "outcomes",
            "dapo-direct(problems=85,critic_epochs=0,step_value=outcomes)",
            why="no critic: the mean outcome of the continuations that begin with the step",
        ),
        Arm(
            "whole responses",
            "dapo-direct(problems=180,kept=1,critic_epochs=0,step_tokens=100)",
            why="the same loss with the response as the step, A = r - mean r",
        ),
        Arm("GRPO", "grpo", budget="tokens=66000", why="control: online, at equal tokens"),
    ),
    criteria=(
        Criterion(
            "the set teaches something: outcomes, which need no critic, gain three points",
            Of(Gain(), "outcomes"),
            at_least=0.03,
            kind="premise",
        ),
        Criterion(
            "the critic is trained: with it the policy ends no more than two points below outcomes",
            Difference(Final(), "DAPO-direct", "outcomes"),
            at_least=-0.02,
            kind="premise",
        ),
        Criterion("DAPO-direct gains five points on its start", Of(Gain(), "DAPO-direct"), at_least=0.05),
        Criterion(
            "DAPO-direct ends two points above whole responses",
            Difference(Final(), "DAPO-direct", "whole responses"),
            at_least=0.02,
        ),
        Criterion(
            "outcomes end two points above whole responses",
            Difference(Final(), "outcomes", "whole responses"),
            at_least=0.02,
            kind="control",
        ),
        Criterion(
            "DAPO-direct ends no more than five points below GRPO",
            Difference(Final(), "DAPO-direct", "GRPO"),
            at_least=-0.05,
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 212)),
    looks=(6, 9, 12),
    replaces="sha256:3979137b25cde27e",
    shared="The 1000 test prompts. Starting models, sampled sets and critics are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="The task and the number of problems, in single runs of seed 0. In the experiment that this one replaces "
    "the critic passed over its set twice, and the policy ended below the one that learned from outcomes: whether the "
    "critic is good enough is a premise now, and it passes over the set eight times, which was not tuned.",
    equal="Tokens of the set within a tenth or so, policy steps of the offline arms (51; DAPO-direct's other 136 are "
    "the critic's), learning rate, beta, the start, test prompts.",
    refuted_by="With a critic as good as outcomes, a gain of less than five points, or less than two points above the "
    "same loss on whole responses.",
    limits="A model of 1.2 million parameters, three to five steps an answer, one round. MATH and critics on another "
    "base model are not touched.",
    minutes=14,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_prompts": 50}, hyperparameters={}),
)
