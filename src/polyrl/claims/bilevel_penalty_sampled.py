"""Penalty bilevel from samples: does it come to where the exact gradient comes, and must the minibatch be shared?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Tail

LOSS = Tail(key="hyper_objective", last=1, better="lower")

CLAIM = Claim(
    slug="bilevel-penalty-sampled",
    sentence="With stochastic first derivatives alone a bilevel problem is solved too: a few steps of both lower "
    "solutions to one of the upper variable come near to what the exact hyper-gradient reaches.",
    place="abstract, of stochastic problems; the reviewed version has no experiments",
    source="arXiv:2309.01753",
    question="A bandit of twenty answers whose reward is learned on pairs that its own policy draws, 200,000 of them; "
    "each seed is a bandit. The upper loss at the end is computed exactly.",
    task="reward-bandit",
    budget="queries=200000",
    options={"evaluations": 10},
    arms=(
        Arm("sampled", "bilevel-penalty-sampled"),
        Arm("exact", "bilevel-penalty(gradient=exact)", budget="iterations=1000", why="nothing drawn, exact gradient"),
        Arm("naive", "bilevel-penalty(gradient=naive)", budget="iterations=1000", why="the policy taken for fixed"),
        Arm(
            "not shared",
            "bilevel-penalty-sampled(shared=false)",
            why="other minibatches for the second gradient: their noise is divided by sigma",
        ),
        Arm(
            "momentum",
            "bilevel-penalty-sampled(lower_steps=1,momentum=0.1,step_size=0.02)",
            why="control: the single loop with momentum",
        ),
    ),
    criteria=(
        Criterion(
            "the naive gradient ends with an upper loss 0.01 above the exact one's",
            Difference(LOSS, "naive", "exact"),
            at_least=0.01,
            kind="premise",
        ),
        Criterion(
            "sampled, it ends within 0.03 of the exact one's", Difference(LOSS, "sampled", "exact"), at_most=0.03
        ),
        Criterion("and below the naive one's, which draws nothing", Difference(LOSS, "sampled", "naive"), at_most=0.0),
        Criterion(
            "without the shared minibatch it ends 0.03 higher", Difference(LOSS, "not shared", "sampled"), at_least=0.03
        ),
        Criterion(
            "a single loop with momentum ends within 0.03 of the exact one's",
            Difference(LOSS, "momentum", "exact"),
            at_most=0.03,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 36)),
    looks=(8, 16),
    tuning_seeds=(0, 1, 2),
    tuning="Step sizes and steps to one of the reward, on three bandits: 0.555, 0.583, 0.676 against the exact "
    "gradient's 0.553, 0.576, 0.642 and the naive one's 0.670, 0.666, 0.675; 0.840, 0.740, 0.716 where the minibatch "
    "is not shared.",
    equal="The bandit, the answers drawn, steps of the reward; the arms without samples have 1,000 exact steps.",
    refuted_by="An upper loss more than 0.03 above the exact gradient's, or no lower than the naive one's, or one that "
    "does not depend on sharing the minibatch.",
    limits="A linear reward and twenty answers. Nothing is said of rates.",
    curve="hyper_objective",
    minutes=8,
    quick=Quick(share=0.05, options={"evaluations": 2}),
)
