"""dfPO: does it beat PPO and SAC on few costs, and is it its law of motion, or any descent of the same network?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import BeyondLine, Difference, Final, Gain, Of

FREE = "surface-shape(bound=10000)"
LAST = Final(better="lower")
MEDIAN = Final(key="eval/median_cost", better="lower")

CLAIM = Claim(
    slug="dfpo",
    sentence="Learning pointwise what states cost, and moving by a Hamiltonian law along its gradient, ends lower than "
    "PPO and SAC that may ask for as few costs.",
    place="abstract, and the table of final costs (surface: dfPO 6.30, PPO 19.9, SAC 7.43)",
    source="arXiv:2404.15617",
    question="The paper's Surface: a closed curve with 16 numbers, moved for 20 steps towards the least perimeter for "
    "its area. The mean cost begins near 20, a circle's is 3.54. PPO and SAC are paid minus the cost in each step.",
    task="surface-shape",
    budget="steps=29440",
    options={"evaluations": 2, "eval_episodes": 100},
    arms=(
        Arm("dfPO", "dfpo", task=FREE, why="velocities are not limited, as in the paper"),
        Arm("PPO", "ppo"),
        Arm("SAC", "sac(hidden=64x64)", why="networks of the same size"),
        Arm("clipped", "dfpo", why="control: dfPO with velocities between -1 and 1, as PPO and SAC have them"),
        Arm("signs", "dfpo+sign-policy", why="control: signs of the same network's gradient, in the same bounds"),
        Arm("plain", "dfpo+descent-policy", task=FREE, why="control: plain descent of the same network"),
        Arm(
            "random",
            "dfpo+sign-policy(rolls=random)",
            why="control: a network of costs from random rollouts, then signs of its gradient",
        ),
        Arm(
            "as published",
            "dfpo(label_pairing=before)",
            task=FREE,
            why="the code's pairing: the cost after a step is the label of the state before it",
        ),
        Arm("grid", "dfpo(rate=20)", task="grid-shape(bound=10000)", why="the paper's Grid, 6.05 there", drawn=False),
    ),
    criteria=(
        Criterion("dfPO learns", Of(Gain(better="lower"), "dfPO"), at_most=-5, kind="premise"),
        Criterion("PPO learns", Of(Gain(better="lower"), "PPO"), at_most=-1, kind="premise"),
        Criterion("dfPO ends below PPO", Difference(LAST, "dfPO", "PPO"), at_most=-1),
        Criterion("dfPO ends below SAC", Difference(LAST, "dfPO", "SAC"), at_most=-0.5),
        Criterion(
            "its median shape is better than PPO's too", Difference(MEDIAN, "dfPO", "PPO"), at_most=0, kind="control"
        ),
        Criterion("with PPO's bounds it is below PPO", Difference(LAST, "clipped", "PPO"), at_most=0, kind="control"),
        Criterion("with SAC's bounds it is below SAC", Difference(LAST, "clipped", "SAC"), at_most=0, kind="control"),
        Criterion(
            "the law of motion is no worse than plain descent",
            Difference(LAST, "dfPO", "plain"),
            at_most=0,
            kind="control",
        ),
        Criterion(
            "in the bounds it is no worse than signs", Difference(LAST, "clipped", "signs"), at_most=0, kind="control"
        ),
        Criterion(
            "its own rollouts are better than random ones",
            Difference(LAST, "signs", "random"),
            at_most=0,
            kind="control",
        ),
        Criterion(
            "labels of the right states cost nothing",
            Difference(LAST, "dfPO", "as published"),
            at_most=0,
            kind="control",
        ),
        Criterion(
            "on Grid it is better than all velocities at 1",
            Of(BeyondLine(line="constant action"), "grid"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 28)),
    looks=(5, 8),
    tuning_seeds=(0, 1),
    tuning="Nothing but the number of iterations a stage, 1000, at which dfPO comes to what the exact gradient does, "
    "and the gain of plain descent, 1, the first that was tried. PPO and SAC have their usual settings.",
    equal="Queried costs (dfPO's 21 stages ask for 29,440), the shapes of evaluations, seeds; networks of 64 and 64 "
    "units. The arms without clipped velocities differ from the others in that.",
    refuted_by="dfPO ends less than 1 below PPO, or less than 0.5 below SAC.",
    limits="PPO and SAC had 100,000 steps in the paper, and rewards that are reshaped beside the plain ones; both "
    "are tuned for no task here. The molecule needs a licensed program, and is not there.",
    shared="The law by which shapes begin.",
    minutes=12,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_episodes": 5}, hyperparameters={}),
)
