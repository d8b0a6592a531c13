"""LOOP: is a clip per token better than one per turn or per rollout, when each batch is used for several updates?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Gain, Of

AREA = Area(x="samples")

CLAIM = Claim(
    slug="loop-agents",
    sentence="An agent that acts in many turns learns a stateful world from leave-one-out credit and several clipped "
    "updates a batch, without a critic, and learns fastest where the probability ratio is clipped per token rather "
    "than per turn or per rollout.",
    place="tables 1 and 2 (AppWorld, three runs: trajectory 48.9, turn 61.7, token 66.4, RwNorm 59.6; RLOO 57.2)",
    source="arXiv:2502.01600",
    question="Jobs in a small office with hidden tables, from a supervised model of which a third of the "
    "demonstrations guessed instead of looking up. Equal rollouts for all, drawn in equal batches; what is compared "
    "is the area under the curve of held-out jobs whose hidden tests all pass.",
    task="office(start_accuracy=0.55)",
    budget="samples=960",
    options={"evaluations": 4, "eval_prompts": 250},
    arms=(
        Arm("token", "loop-agents"),
        Arm("turn", "loop-agents(ratio_level=turn)"),
        Arm("trajectory", "loop-agents(ratio_level=trajectory)"),
        Arm("RLOO", "loop-agents(epochs=1,minibatches=1)", why="one update a batch"),
        Arm("RwNorm", "loop-agents+group-advantage(scale=population-std)", why="divided by the group's deviation"),
        Arm("token, twice the rate", "loop-agents(learning_rate=2e-4)", why="a second learning rate"),
        Arm("trajectory, twice the rate", "loop-agents(ratio_level=trajectory,learning_rate=2e-4)", why="the same"),
    ),
    criteria=(
        Criterion("LOOP gains ten points on its start", Of(Gain(), "token"), at_least=0.1, kind="premise"),
        Criterion(
            "per token, two points more area than per trajectory",
            Difference(AREA, "token", "trajectory"),
            at_least=0.02,
        ),
        Criterion(
            "the same at twice the learning rate",
            Difference(AREA, "token, twice the rate", "trajectory, twice the rate"),
            at_least=0.02,
            kind="control",
        ),
        Criterion(
            "per token, no less area than per turn", Difference(AREA, "token", "turn"), at_least=0, kind="control"
        ),
        Criterion(
            "several updates a batch, two points more area than one",
            Difference(AREA, "token", "RLOO"),
            at_least=0.02,
            kind="control",
        ),
        Criterion(
            "without the deviation no more than three points below",
            Difference(Final(), "token", "RwNorm"),
            at_least=-0.03,
            kind="control",
        ),
        Criterion(
            "fewer jobs are written to before anything was looked up",
            Of(Gain(key="eval/blind_writes", better="lower"), "token"),
            at_most=-0.1,
            kind="control",
        ),
        Criterion(
            "fewer calls fail", Of(Gain(key="eval/failed_calls", better="lower"), "token"), at_most=0, kind="control"
        ),
    ),
    seeds=(30, 31, 32, 33, 34),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="A first verdict (refuted, seeds 20 to 24) was on a weaker start, 0.20 instead of 0.24, at a learning rate "
    "of 5e-4 that had not been tuned: every clipped arm lost accuracy. This experiment has a new start, new seeds, "
    "and a rate chosen on seeds 0, 100 and 101. There token and trajectory at 1e-4 ended at 0.42 and 0.43 (0.41 "
    "and 0.42 at 2e-4), RLOO at 0.29. On a stronger start (0.52) they ended at 0.67 and 0.67, per turn at 0.66, "
    "RLOO at 0.59; at 3e-4 at 0.46 and 0.53, and RLOO at 0.60. So no defeat of the trajectory is to be expected; "
    "the thresholds are still those of the first experiment.",
    equal="Rollouts, batches, learning rate (twice as large in two arms), clip range, epochs (RLOO: one), the start, "
    "held-out jobs.",
    refuted_by="No gain of ten points, or per token less than two points more area than per trajectory.",
    limits="Two learning rates for token and trajectory, one for the others: RLOO takes an eighth of the updates at "
    "the same rate. A model of 1.2 million parameters and jobs of a few turns, with about thirty tokens of the "
    "agent's, where AppWorld has thousands: the ratio of a whole rollout has far less room to leave its range. "
    "AppWorld's numbers, and what transfers to unseen apps, are not touched.",
    minutes=8,
    quick=Quick(share=0.125, options={"evaluations": 1, "eval_prompts": 40}),
)
