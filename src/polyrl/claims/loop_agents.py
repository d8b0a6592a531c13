"""LOOP: are several clipped updates a batch, on leave-one-out credit, better than one, for an agent of many turns?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import BestDifference, Difference, Final, Gain, Largest, Of

OURS = ("LOOP", "LOOP, twice the rate")
ONCE = ("RLOO, 3e-4", "RLOO, 1e-3")

CLAIM = Claim(
    slug="loop-agents",
    sentence="An agent that acts in many turns learns a stateful world from leave-one-out credit without a critic, "
    "and learns more where each batch is used for several clipped updates than where it is used for one.",
    place="tables 1 and 2 (AppWorld, three runs: LOOP, a clip per token, 66.4, per turn 61.7, per trajectory 48.9; "
    "RLOO 57.2)",
    source="arXiv:2502.01600",
    question="Jobs in a small office with hidden tables, from a supervised model of which a third of the "
    "demonstrations guessed instead of looking up. Equal rollouts for all, drawn in equal batches; LOOP makes eight "
    "updates of each and RLOO one, at larger steps. Both have two learning rates, and the better one of a seed "
    "counts: the share of held-out jobs whose hidden tests all pass.",
    task="office(start_accuracy=0.55)",
    budget="samples=960",
    options={"evaluations": 2, "eval_prompts": 500},
    arms=(
        Arm("LOOP", "loop-agents(learning_rate=1e-4)", why="a clip per token"),
        Arm("LOOP, twice the rate", "loop-agents(learning_rate=2e-4)"),
        Arm("RLOO, 3e-4", "loop-agents(epochs=1,minibatches=1,learning_rate=3e-4)", why="one update a batch"),
        Arm("RLOO, 1e-3", "loop-agents(epochs=1,minibatches=1,learning_rate=1e-3)", why="the same, larger steps"),
        Arm(
            "per trajectory",
            "loop-agents(ratio_level=trajectory,learning_rate=1e-4)",
            why="control: a clip per rollout",
        ),
    ),
    criteria=(
        Criterion(
            "something is learned: RLOO at its better rate gains five points",
            Largest(Gain(), ONCE),
            at_least=0.05,
            kind="premise",
        ),
        Criterion(
            "several updates a batch end three points above one, the better rate of each",
            BestDifference(Final(), OURS, ONCE),
            at_least=0.03,
        ),
        Criterion("LOOP gains ten points on its start", Of(Gain(), "LOOP"), at_least=0.1),
        Criterion(
            "a clip per token ends two points above one per rollout",
            Difference(Final(), "LOOP", "per trajectory"),
            at_least=0.02,
            kind="control",
        ),
        Criterion(
            "fewer jobs are written to before anything was looked up",
            Of(Gain(key="eval/blind_writes", better="lower"), "LOOP"),
            at_most=-0.1,
            kind="control",
        ),
        Criterion(
            "fewer calls fail", Of(Gain(key="eval/failed_calls", better="lower"), "LOOP"), at_most=0, kind="control"
        ),
    ),
    seeds=tuple(range(200, 210)),
    looks=(5, 7, 10),
    replaces="sha256:f5ab05dde71ebfcc",
    shared="The 500 held-out jobs. Starting models, training jobs and samples are each seed's own.",
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="LOOP's learning rate, on seeds 0, 100 and 101: at 1e-4 a clip per token ended at 0.42, at 2e-4 at 0.41; "
    "RLOO at 1e-4 at 0.29, with an eighth of the updates. RLOO's rates here were not tuned and are three and ten "
    "times as large. The experiment that this one replaces asked whether a clip per token is better than one per "
    "rollout, on rollouts of about thirty tokens of the agent's, where hardly any ratio leaves its range: nothing of "
    "that kind can be asked at this length, and it is a control now.",
    equal="Rollouts, batches, clip range, rates to choose from, the start, held-out jobs.",
    refuted_by="No gain of ten points, or several updates a batch less than three points above one.",
    limits="A model of 1.2 million parameters and jobs of a few turns, with about thirty tokens of the agent's, where "
    "AppWorld has thousands. That a clip per token is better than one per turn or per rollout, the paper's first "
    "comparison, is not tested: it takes an environment with rollouts of hundreds of tokens. AppWorld's numbers, and "
    "what transfers to unseen apps, are not touched.",
    minutes=19,
    quick=Quick(share=0.125, options={"evaluations": 1, "eval_prompts": 40}),
)
