"""Penalty bilevel: do two policies and first derivatives find the reward that the exact hyper-gradient finds?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Of, Tail

LOSS = Tail(key="hyper_objective", last=1, better="lower")
GOLD = Final(key="eval/return", better="higher")

CLAIM = Claim(
    slug="bilevel-penalty",
    sentence="A bilevel problem is solved with first derivatives alone: the difference of two lower-level solutions "
    "over sigma stands for the missing part of the hyper-gradient, with an error of the order of sigma.",
    place="abstract; the reviewed version has no experiments",
    source="arXiv:2309.01753",
    question="A bandit of twenty answers whose reward is learned on pairs that its own policy draws. Both levels are "
    "known functions, and the exact gradient follows from the closed form of the policy. Each seed is a bandit.",
    task="reward-bandit",
    budget="iterations=1000",
    options={"evaluations": 10},
    arms=(
        Arm("penalty", "bilevel-penalty"),
        Arm("exact", "bilevel-penalty(gradient=exact)", why="by the closed form of the response"),
        Arm("naive", "bilevel-penalty(gradient=naive)", why="control: the policy taken for fixed"),
    ),
    criteria=(
        Criterion(
            "the naive gradient ends with an upper loss 0.01 above the exact one's",
            Difference(LOSS, "naive", "exact"),
            at_least=0.01,
            kind="premise",
        ),
        Criterion(
            "the penalty gradient ends within 0.002 of the exact one's upper loss",
            Difference(LOSS, "penalty", "exact"),
            at_most=0.002,
        ),
        Criterion(
            "at the end its gradient is wrong by less than sigma",
            Of(Tail(key="gradient_error", last=1, better="lower"), "penalty"),
            at_most=0.05,
        ),
        Criterion(
            "its policy earns as much gold as the naive one's",
            Difference(GOLD, "penalty", "naive"),
            at_least=0.0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 30)),
    looks=(6, 10),
    tuning_seeds=(0, 1, 2, 3),
    tuning="The step 0.1, after 0.3 did not settle on one of four bandits.",
    equal="The bandit, the step, the number of steps; the reward begins at 0.",
    refuted_by="An upper loss more than 0.002 above the exact gradient's, or a gradient that is wrong by more than "
    "sigma at the end.",
    limits="Exact lower solves, a linear reward, a policy in closed form. Minibatches, the single loop and rewards of "
    "language models are not tested. A lower upper loss is not a better policy here: it goes where pairs are easy to "
    "tell apart, and the control says what that costs.",
    curve="hyper_objective",
    minutes=3,
    quick=Quick(share=0.05, options={"evaluations": 4}),
)
