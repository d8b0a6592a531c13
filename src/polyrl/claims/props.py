"""PROPS: does choosing the next actions for the buffer's sake lower its sampling error, and does PPO learn faster?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Of, Ratio, Seconds, Tail

ERROR = Tail(key="props/sampling_error", last=15, better="lower")
LAST_ERROR = Tail(key="props/sampling_error", last=1, better="lower")
WHOLE = Area(x="steps", better="higher")
STILL = "policy.learning_rate=0,epochs.epochs=1"

CLAIM = Claim(
    slug="props",
    sentence="Choosing what is collected so that the buffer looks more on-policy lowers its sampling error, and PPO "
    "learns faster from it than from a buffer that its own policy has filled.",
    place="abstract",
    source="arXiv:2311.08290",
    question="The paper's grid of 25 cells, whose frequencies of actions can be counted: the error is their divergence "
    "from the policy, in nats. Buffers hold the steps of two updates, 2048. Every learner ends near the best return.",
    task="corner-grid",
    budget="steps=20480",
    options={"evaluations": 20},
    arms=(
        Arm("PROPS", "props"),
        Arm("buffer", "props(refit.epochs=0)", why="PPO with the same buffer, filled by its own policy"),
        Arm("PPO", "props(refit.epochs=0,batches=1)", why="control: PPO, whose buffer is its last batch"),
        Arm("PROPS, still", f"props({STILL})", budget="steps=2048", why="for a policy that stands still", drawn=False),
        Arm(
            "still",
            f"props({STILL},refit.epochs=0)",
            budget="steps=2048",
            why="the same, sampled from that policy",
            drawn=False,
        ),
    ),
    criteria=(
        Criterion("PPO with the buffer learns", Of(Final(), "buffer"), at_least=0.5, kind="premise"),
        Criterion("its buffer has an error", Of(ERROR, "buffer"), at_least=0.005, unit="nats", kind="premise"),
        Criterion(
            "of a policy that stands still the error is at most two thirds",
            Ratio(LAST_ERROR, "PROPS, still", "still"),
            at_most=0.67,
        ),
        Criterion("while it learns too", Ratio(ERROR, "PROPS", "buffer"), at_most=0.67),
        Criterion("and it learns faster", Difference(WHOLE, "PROPS", "buffer"), at_least=0),
        Criterion("it learns faster than PPO", Difference(WHOLE, "PROPS", "PPO"), at_least=0, kind="control"),
        Criterion("it ends no worse", Difference(Final(), "PROPS", "buffer"), at_least=-0.05, kind="control"),
        Criterion(
            "it takes at most ten times as long", Ratio(Seconds(), "PROPS", "buffer"), at_most=10, kind="control"
        ),
    ),
    seeds=tuple(range(20, 28)),
    looks=(5, 8),
    tuning_seeds=(0, 1, 3),
    tuning="The step size of fits (1e-3, 3e-3, 1e-2, 3e-2), their passes (4, 8, 16), where they end (0.02 to 0.2) and "
    "the penalty (0, 0.1), by the sampling error alone. PPO has the same settings in all arms, which were not tuned.",
    equal="Environment steps, PPO's updates, networks, step sizes, seeds; buffers of PROPS and of the second arm.",
    refuted_by="The error stays above two thirds, of a policy that stands still or one that learns, or the mean of the "
    "return over the run is lower than with the same buffer.",
    limits="A grid with 25 states and four actions. The paper's gains on MuJoCo take a million steps. How much of the "
    "time fits take depends on the network and the environment, which costs nothing here.",
    shared="The grid, which has no randomness.",
    minutes=8,
    quick=Quick(share=0.1, options={"evaluations": 2}),
)
