"""UMT-PSR: are four problems with one transition learned together with fewer episodes each than apart?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Final, Of, Ratio, Tail

ITERATIONS = Final(key="iteration", better="lower")
ERROR = Tail(key="model_error", last=1, better="lower")

CLAIM = Claim(
    slug="umt-psr",
    sentence="Several partially observed problems are learned with fewer episodes for each where their joint class of "
    "models is smaller than that of the single problems, and what was learned makes a new problem cheaper.",
    place="abstract, and the example of a shared transition in the reviews; the paper has no experiments",
    source="arXiv:2310.13550",
    question="POMDPs of two states that share an unknown transition, one of nine, each with one of four emissions. An "
    "iteration is one episode for each problem and prefix, so episodes of a problem are three times the iterations. "
    "A run ends when all models that it has left are within 0.05 of each other, on average over its problems.",
    task="shared-pomdps(tasks=4)",
    budget="iterations=6000",
    options={"evaluations": 10},
    arms=(
        Arm("joint", "umt-psr"),
        Arm("independent", "umt-psr(learners=independent)", why="a set and a pair of its own for each problem"),
        Arm("one problem", "umt-psr", task="shared-pomdps(tasks=1)", why="the first of the four, alone"),
        Arm(
            "one problem, transition known",
            "umt-psr",
            task="shared-pomdps(tasks=1,known_transition=true)",
            why="a new problem after the transition was learned on others",
        ),
        Arm("joint, uniform actions", "umt-psr(explore=uniform)", why="control: nothing is planned to explore"),
    ),
    criteria=(
        Criterion(
            "there is something to learn: independent learners take 200 iterations or more",
            Of(ITERATIONS, "independent"),
            at_least=200.0,
            kind="premise",
        ),
        Criterion(
            "joint learning takes at most 0.7 of the iterations of independent learners",
            Ratio(ITERATIONS, "joint", "independent"),
            at_most=0.7,
        ),
        Criterion(
            "with the transition known a problem takes at most a third of the iterations",
            Ratio(ITERATIONS, "one problem, transition known", "one problem"),
            at_most=1 / 3,
        ),
        Criterion("the models that are certified are within 0.05 of the true ones", Of(ERROR, "joint"), at_most=0.05),
        Criterion(
            "independent learners of four problems take at least 0.7 of the iterations of one",
            Ratio(ITERATIONS, "independent", "one problem"),
            at_least=0.7,
            kind="control",
        ),
        Criterion(
            "uniform actions throughout take more iterations than the planned exploration",
            Ratio(ITERATIONS, "joint, uniform actions", "joint"),
            at_least=1.0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 32)),
    looks=(6, 12),
    tuning_seeds=(0, 1, 2, 3),
    tuning="Accuracy, beta and the class are those of the prototype; nothing was chosen by results.",
    equal="Problems of a seed, the schedule of episodes, accuracy, delta, the most iterations in beta; the independent "
    "learners stop by the mean over their problems, as the joint one does.",
    refuted_by="More than 0.7 of the iterations of independent learners, more than a third with the transition known, "
    "or certified models that are farther than 0.05 from the true ones.",
    limits="36 models of a problem, enumerated, and the truth among them. Continuous classes, the rank, core actions "
    "and how well conditioned a problem is cannot show; that the transition of the new problem is known exactly "
    "takes the upstream error for 0.",
    curve="distance",
    minutes=5,
    quick=Quick(share=0.02, options={"evaluations": 4}),
)
