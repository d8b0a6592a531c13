"""Nash-MP: does mirror prox reach the Nash policy at its linear rate, whatever the number of answers?"""

import math

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Largest, Of, Orders, Slope

RATE = Slope(key="eval/kl_to_nash", x="reward_calls", log_y=True, floor=1e-13)
ORDER = Orders(key="eval/kl_to_nash")
TUNED_MD = "nash-md(eta=0.5)"
TUNED_ONE = "nash-mp(prox_steps=one,eta=0.005)"


def bound(beta: float) -> float:
    """The promised slope of log KL over queries: -log(1 + 2 beta) an iteration, which makes two queries."""
    return -math.log(1 + 2 * beta) / 2


def game(actions: int, beta: float) -> str:
    """Random preferences; every seed is another game."""
    return f"matrix-game(actions={actions},beta={beta})"


CLAIM = Claim(
    slug="nash-mp",
    sentence="Mirror prox brings the last policy to the Nash policy of the regularized preference game at the linear "
    "rate (1 + 2 beta)^-1 an iteration, whatever the number of answers, and it is the step ahead that does it: at "
    "equal queries it is far ahead of the same step without it, and of Nash-MD.",
    place="abstract and the theorem on the last iterate",
    source="arXiv:2505.19731",
    question="Random games of 10 and of 100 answers at beta 0.01 and 0.1, with 8/beta exact queries for every method. "
    "All numbers are computed, none sampled; a seed is a game. Nash-MD is run at its theory's steps and at the "
    "constant step that was best on other games, the step without a look ahead likewise.",
    task=game(10, 0.01),
    budget="reward_calls=800",
    options={"evaluations": 40, "checkpoint_every": 1000},
    arms=(
        Arm("Nash-MP", "nash-mp"),
        Arm("one prox step", "nash-mp(prox_steps=one)", why="the same step without the look ahead"),
        Arm("one prox step, tuned", TUNED_ONE, why="with the step size that was best on other games", drawn=False),
        Arm("Nash-MD", "nash-md", why="one step against a mixture with the reference"),
        Arm("Nash-MD, tuned", TUNED_MD, why="with the constant step that was best on other games", drawn=False),
        Arm("INPO", "self-play(eta=2)", why="the exact update of iterative Nash policy optimization"),
        Arm("Nash-MP, 100 answers", "nash-mp", task=game(100, 0.01)),
        Arm("Nash-MD, 100 answers", "nash-md", task=game(100, 0.01)),
        Arm("Nash-MD, 100 answers, tuned", TUNED_MD, task=game(100, 0.01), drawn=False),
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
            "without the look ahead the last policy is still far from Nash, 10 answers at beta 0.01",
            Of(ORDER, "one prox step"),
            at_least=-2,
            unit="orders",
            kind="premise",
        ),
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
            "two orders nearer than without the look ahead, whose step is tuned",
            Difference(ORDER, "Nash-MP", "one prox step, tuned"),
            at_most=-2,
            unit="orders",
        ),
        Criterion(
            "two orders nearer than a tuned Nash-MD, 10 answers",
            Difference(ORDER, "Nash-MP", "Nash-MD, tuned"),
            at_most=-2,
            unit="orders",
        ),
        Criterion(
            "two orders nearer than a tuned Nash-MD, 100 answers",
            Difference(ORDER, "Nash-MP, 100 answers", "Nash-MD, 100 answers, tuned"),
            at_most=-2,
            unit="orders",
        ),
        Criterion(
            "two orders nearer than Nash-MD at its theory's steps, 10 answers",
            Difference(ORDER, "Nash-MP", "Nash-MD"),
            at_most=-2,
            unit="orders",
            kind="control",
        ),
        Criterion(
            "two orders nearer than Nash-MD at its theory's steps, 100 answers",
            Difference(ORDER, "Nash-MP, 100 answers", "Nash-MD, 100 answers"),
            at_most=-2,
            unit="orders",
            kind="control",
        ),
        Criterion(
            "nearer than one prox step also at beta 0.1",
            Difference(ORDER, "Nash-MP, 100 answers, beta 0.1", "one prox step, 100 answers, beta 0.1"),
            at_most=0,
            unit="orders",
            kind="control",
        ),
    ),
    seeds=tuple(range(200, 220)),
    looks=(6, 10, 15, 20),
    replaces="sha256:6e65eff9740ca5e6",
    shared="The law from which games are drawn. Nothing else: every seed is another game with another reference.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="On games 0 to 3, 100 and 101 of ten answers the constant steps: of Nash-MD 0.005, 0.02, 0.05, 0.2, 0.5 "
    "and 1, of which 0.5 was best in the geometric mean; of the step without a look ahead 0.001, 0.002, 0.005, 0.05 "
    "and 0.2, of which 0.005 was best. Both have them for a hundred answers too. Nash-MP has the theory's step, "
    "untuned. In the experiment that this one replaces neither was tuned, and the step without a look ahead decided "
    "nothing.",
    equal="Queries (products of the preference matrix with a policy), the games, the reference they start from.",
    refuted_by="A slope of log KL over queries shallower than -log(1 + 2 beta)/2 for 10 or for 100 answers, or less "
    "than two orders between Nash-MP and a tuned Nash-MD, or the same step without the look ahead, at 8/beta queries.",
    limits="Exact games of at most 100 answers. Nothing is said of the deep version, of sampled judges or of win "
    "rates; at beta 0.1 the step without the look ahead is known to be nearer, which the last criterion tells.",
    minutes=6,
    quick=Quick(share=0.2, options={"evaluations": 10}),
)
