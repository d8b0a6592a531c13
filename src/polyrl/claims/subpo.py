"""SubPO: do marginal gains of a submodular function find paths that a planner who knows the map would take?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Gap, Of

CLAIM = Claim(
    slug="subpo",
    sentence="Policy gradient whose rewards are marginal gains of a submodular function of the path finds paths near "
    "those of a planner with known dynamics, and better ones than by modular rewards or the return of the whole path.",
    place="abstract",
    source="arXiv:2307.13372",
    question="A map of ten by ten cells with three hills of weight, paths of 20 moves that cover two by two cells "
    "each. The greedy planner knows the map and where moves lead; the policy sees place and time, and what its paths "
    "were worth. All arms have the same network, paths, updates and step size.",
    task="coverage",
    budget="updates=200",
    options={"evaluations": 2},
    arms=(
        Arm("marginal gains", "subpo"),
        Arm("released code", "subpo(rewards=prefix)", why="control: judged by F up to the next cell, as in the code"),
        Arm("modular", "subpo(rewards=modular)", why="control: each cell pays what it is worth alone"),
        Arm(
            "total return",
            "subpo(rewards=total,whiten_centre=no)+plain-return",
            why="control: REINFORCE, F of the whole path judges every move, without a baseline",
        ),
        Arm(
            "total return, baseline",
            "subpo(rewards=total)",
            why="control: the same with the mean of the batch taken off",
        ),
    ),
    criteria=(
        Criterion(
            "something is learned: ten of the 44.6 more than random moves cover",
            Of(Gain(), "marginal gains"),
            at_least=10,
            kind="premise",
        ),
        Criterion(
            "marginal gains come within 10% of the greedy planner",
            Of(Gap(line="greedy planner"), "marginal gains"),
            at_most=10,
            unit="%",
        ),
        Criterion(
            "they cover 3 more than modular rewards", Difference(Final(), "marginal gains", "modular"), at_least=3
        ),
        Criterion(
            "they cover 3 more than by the total return",
            Difference(Final(), "marginal gains", "total return"),
            at_least=3,
        ),
        Criterion(
            "they cover 3 more than by the released code's weights",
            Difference(Final(), "marginal gains", "released code"),
            at_least=3,
        ),
        Criterion(
            "they cover more than by the total return with the same baseline",
            Difference(Final(), "marginal gains", "total return, baseline"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=(40, 41, 42, 43, 44, 45, 46, 47),
    tuning_seeds=(100, 101),
    tuning="Nothing was tuned: learning rate, batch, network and updates are those that were written down beforehand. "
    "Seeds 100 and 101: marginal gains 31.7 and 31.6, released code 23.2 and 23.2, modular 8.6 and 10.5, total return "
    "25.5 and 14.6, total return with the baseline 31.7 and 31.7, where the greedy planner comes to 28.5. So the last "
    "control is not expected to be met.",
    equal="Paths, updates, network, step size, the scale of advantages, and the 512 sampled paths of an evaluation.",
    refuted_by="More than 10% below the greedy planner, or less than 3 above modular rewards, the total return or the "
    "released code's weights.",
    limits="One small map without chance in its moves, a Markov policy, one set function. The hardness of the problem "
    "and its guarantee of 1 - 1/e are not asked, nor are the car and the ant.",
    shared="The map.",
    minutes=8,
    quick=Quick(share=0.05, options={"evaluations": 1, "eval_episodes": 20}),
)
