"""Nash-MP: does mirror prox reach the Nash policy at its linear rate, whatever the number of answers?"""

import math

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Largest, Orders, Slope

RATE = Slope(key="eval/kl_to_nash", x="reward_calls", log_y=True, floor=1e-13)
ORDER = Orders(key="eval/kl_to_nash")


def bound(beta: float) -> float:
    """The promised slope of log KL over queries: -log(1 + 2 beta) an iteration, which makes two queries."""
    return -math.log(1 + 2 * beta) / 2


def game(actions: int, beta: float) -> str:
    """Random preferences; every seed is another game."""
    return f"matrix-game(actions={actions},beta={beta})"


CLAIM = Claim(
    slug="nash-mp",
    sentence="Mirror prox brings the last policy to the Nash policy of the regularised preference game at the linear "
    "rate (1 + 2 beta)^-1 an iteration, whatever the number of answers, and is far ahead of Nash-MD at equal "
    "queries.",
    place="abstract and the theorem on the last iterate",
    source="arXiv:2505.19731",
    question="Random games of 10 and of 100 answers at beta 0.01 and 0.1, with 8/beta exact queries for every "
    "method. All numbers are computed, none sampled; a seed is a game.",
    task=game(10, 0.01),
    budget="reward_calls=800",
    options={"evaluations": 40, "checkpoint_every": 1000},
    arms=(
        Arm("Nash-MP", "nash-mp"),
        Arm("Nash-MD", "nash-md", why="one step against a mixture with the reference"),
        Arm("one prox step", "nash-mp(prox_steps=one)", why="control: the same step without the look ahead"),
        Arm("INPO", "self-play(eta=2)", why="the exact update of iterative Nash policy optimisation"),
        Arm("Nash-MP, 100 answers", "nash-mp", task=game(100, 0.01)),
        Arm("Nash-MD, 100 answers", "nash-md", task=game(100, 0.01)),
        Arm("Nash-MP, beta 0.1", "nash-mp", task=game(10, 0.1), budget="reward_calls=80"),
        Arm("Nash-MP, 100 answers, beta 0.1", "nash-mp", task=game(100, 0.1), budget="reward_calls=80"),
        Arm(
            "one prox step, 100 answers, beta 0.1",
            "nash-mp(prox_steps=one)",
            task=game(100, 0.1),
            budget="reward_calls=80",
            why="control: expected to win here",
        ),
    ),
    criteria=(
        Criterion(
            "the promised rate at beta 0.01, for 10 and for 100 answers",
            Largest(RATE, ("Nash-MP", "Nash-MP, 100 answers")),
            at_most=bound(0.01),
            unit="a query",
        ),
        Criterion(
            "the promised rate at beta 0.1, for 10 and for 100 answers",
            Largest(RATE, ("Nash-MP, beta 0.1", "Nash-MP, 100 answers, beta 0.1")),
            at_most=bound(0.1),
            unit="a query",
        ),
        Criterion(
            "two orders nearer than Nash-MD, 10 answers",
            Difference(ORDER, "Nash-MP", "Nash-MD"),
            at_most=-2,
            unit="orders",
        ),
        Criterion(
            "two orders nearer than Nash-MD, 100 answers",
            Difference(ORDER, "Nash-MP, 100 answers", "Nash-MD, 100 answers"),
            at_most=-2,
            unit="orders",
        ),
        Criterion(
            "nearer than one prox step also at beta 0.1",
            Difference(ORDER, "Nash-MP, 100 answers, beta 0.1", "one prox step, 100 answers, beta 0.1"),
            at_most=0,
            unit="orders",
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 30)),
    tuning_seeds=(0, 1, 2, 100, 101),
    tuning="Nothing: every step size is the theory's.",
    equal="Queries (products of the preference matrix with a policy), the games, the reference they start from.",
    refuted_by="A slope of log KL over queries shallower than -log(1 + 2 beta)/2 for 10 or for 100 answers, or less "
    "than two orders between Nash-MP and Nash-MD at 8/beta queries.",
    limits="Exact games of at most 100 answers. Nothing is said of the deep version, of sampled judges or of win "
    "rates.",
    minutes=4,
    quick=Quick(share=0.2, options={"evaluations": 10}),
)
