"""PMOE: does the frequency estimator keep experts on several best actions, where other estimators let them collapse?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, LastEpisodes, Of, Tail

APART = Tail(key="experts/apart", last=2, better="higher")
LATE = LastEpisodes(key="episode/return", count="episode/count", last=500, better="higher")

CLAIM = Claim(
    slug="pmoe",
    sentence="Where two actions are best, a router that learns how often each expert is best keeps experts on both, "
    "which a softmax with Gumbel noise and the score function do not.",
    place="abstract, and the comparison of estimators",
    source="arXiv:2104.09122",
    question="One action with two peaks of equal reward. Two experts whose means lie on both peaks and which act "
    "equally often are 0.7 apart, as it is logged; those of one peak, or of which one never acts, are 0 apart.",
    task="two-peaks",
    budget="steps=2500",
    hyperparameters={
        "turns": "500",
        "hidden": "32x32",
        "batch_size": "64",
        "learning_rate": "1e-2",
        "initial": "0.05",
        "random_steps": "500",
        "learning_starts": "500",
    },
    options={"evaluations": 4},
    arms=(
        Arm("frequency", "pmoe(experts=2)", why="the paper's estimator"),
        Arm("gumbel", "sac+gumbel-mixture(experts=2)", why="control: the critics' gradient through a softmax"),
        Arm("score", "sac+score-mixture(experts=2)", why="control: the score function"),
        Arm("one", "sac", why="one Gaussian"),
    ),
    criteria=(
        Criterion("one Gaussian finds a peak", Of(LATE, "one"), at_least=0.5, kind="premise"),
        Criterion("experts stand on both peaks", Of(APART, "frequency"), at_least=0.35),
        Criterion(
            "they are farther apart than with Gumbel noise", Difference(APART, "frequency", "gumbel"), at_least=0.1
        ),
        Criterion(
            "they are farther apart than with the score function",
            Difference(APART, "frequency", "score"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "a mixture earns what one Gaussian does",
            Difference(LATE, "frequency", "one"),
            at_least=-0.05,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 30)),
    looks=(5, 10),
    tuning_seeds=(0, 1, 2),
    tuning="Step size (1e-3, 3e-3, 1e-2), the temperature at first (1, 0.2, 0.05), the batch (32, 64) and the length: "
    "so a peak is found. In these runs one of two experts was mostly left behind, with a tenth of the router.",
    equal="Environment steps, updates, networks but for the last layer and the router, step sizes, seeds.",
    refuted_by="Experts end less than 0.35 apart, or with Gumbel noise as far apart within 0.1.",
    limits="One action and one state. The paper's tasks are six of MuJoCo at a million steps each; half of 0.7 counts "
    "as both peaks because two experts need not act equally often.",
    shared="The task, which has no randomness.",
    curve="experts/apart",
    minutes=6,
    quick=Quick(share=0.5, options={"evaluations": 1}),
)
