"""POPLER: are the values of a whole class learned from plain episodes, where importance weights no longer do?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Final, Of, Ratio, Tail

ERROR = Tail(key="class_error", last=1, better="lower")


def where(horizon: int) -> str:
    """Singletons of so many steps; each seed has another secret."""
    return f"singletons(horizon={horizon})"


CLAIM = Claim(
    slug="popler",
    sentence="A class of policies with a sunflower and a small spanning capacity is learned from plain episodes, with "
    "no value functions and no model, at a cost that does not grow like the number of action sequences.",
    place="abstract of arXiv:2310.06113, which arXiv:2506.01884 takes up; the bodies were not read",
    source="arXiv:2310.06113",
    question="Singletons of 6 and of 12 steps: 25 and 49 policies. The error is the largest distance of an estimated "
    "value from the exact one. Importance sampling is given as many episodes as POPLER takes; trees have a generative "
    "model and 20,000 draws.",
    task=where(12),
    budget="samples=32800",
    options={"evaluations": 10},
    arms=(
        Arm("POPLER", "popler"),
        Arm("importance sampling", "importance-sampling", why="uniform episodes, weights of A^H"),
        Arm("POPLER at 6 steps", "popler", task=where(6), budget="samples=18400"),
        Arm("importance sampling at 6 steps", "importance-sampling", task=where(6), budget="samples=18400"),
        Arm(
            "trees",
            "trajectory-tree",
            budget="queries=20000",
            why="control: a generative model, a fifteenth of the draws",
        ),
        Arm(
            "PSDP on a ladder of 8",
            "psdp(episodes=100000)",
            task="reset-ladder(horizon=8)",
            budget="queries=800000",
            why="control: resets, and a class of two that holds the best policy",
        ),
    ),
    criteria=(
        Criterion(
            "importance sampling's error at least triples from 6 steps to 12",
            Ratio(ERROR, "importance sampling", "importance sampling at 6 steps"),
            at_least=3.0,
            kind="premise",
        ),
        Criterion("POPLER's error at 12 steps is below 0.1", Of(ERROR, "POPLER"), at_most=0.1),
        Criterion(
            "POPLER's error grows by less than 2.5 from 6 steps to 12",
            Ratio(ERROR, "POPLER", "POPLER at 6 steps"),
            at_most=2.5,
        ),
        Criterion(
            "at 12 steps it is half of importance sampling's, or less",
            Ratio(ERROR, "POPLER", "importance sampling"),
            at_most=0.5,
        ),
        Criterion(
            "trees are as exact with fewer draws",
            Ratio(ERROR, "trees", "POPLER"),
            at_most=1.0,
            kind="control",
        ),
        Criterion(
            "PSDP on the ladder is still 0.05 below the best of its class with 100,000 episodes a layer",
            Of(Final(key="eval/class_suboptimality", better="lower"), "PSDP on a ladder of 8"),
            at_least=0.05,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 32)),
    looks=(5, 8, 12),
    tuning_seeds=(0, 1, 2, 3),
    tuning="Episodes from the start and towards each petal, 4000 and 600, after 2000 and 750 had errors of 0.08.",
    equal="Episodes of POPLER and of importance sampling, the problem and its secret, the class.",
    refuted_by="An error of POPLER above 0.1 at 12 steps, or more than 2.5 times that at 6 steps, while importance "
    "sampling's more than triples.",
    limits="A class that was made for it. Lower bounds over all algorithms are theorems and cannot be tested so; rich "
    "observations and the emulator are not touched.",
    curve="class_error",
    minutes=4,
    quick=Quick(share=0.05, options={"evaluations": 4}),
)
