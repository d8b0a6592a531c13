"""LOOP: does regret stop growing with few changes of policy, where the same learner without optimism fails?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Final, Of, Ratio, Slope

REGRET = Final(key="eval/cumulative_regret", better="lower")
PER_STEP = Final(key="eval/regret", better="lower")
GROWTH = Slope(key="cumulative_regret", x="steps", log_x=True, log_y=True, low=10_000)
SWITCHING = Slope(key="switches", x="steps", log_x=True, low=1_000)

CLAIM = Claim(
    slug="loop-amdp",
    sentence="An optimistic learner that plans anew only when its hypothesis leaves the confidence set has a sublinear "
    "regret on average reward, and changes its policy a number of times that grows with log T.",
    place="abstract; the body of the paper was not read, and has no experiments",
    source="arXiv:2404.12648",
    question="RiverSwim of six states, one stream of 100,000 steps. Regret is the sum of exact gaps of the actions "
    "taken. The same plan without optimism, and the same optimism that plans anew whenever a count has doubled.",
    task="river-swim",
    budget="steps=100000",
    options={"evaluations": 10},
    arms=(
        Arm("LOOP", "loop-amdp"),
        Arm("count doubling", "loop-amdp(replan=doubling)", why="control: the same bonus, anew when a count doubles"),
        Arm("no optimism", "loop-amdp(width=0,replan=doubling)", why="the same plan without a bonus"),
    ),
    criteria=(
        Criterion(
            "without optimism a step costs 0.05 or more on average",
            Of(PER_STEP, "no optimism"),
            at_least=0.05,
            kind="premise",
        ),
        Criterion("regret has all but stopped: its power from 10,000 steps on", Of(GROWTH, "LOOP"), at_most=0.25),
        Criterion(
            "changes of policy grow with log T: at most one for each factor of e, from 1,000 steps on",
            Of(SWITCHING, "LOOP"),
            at_most=1.0,
        ),
        Criterion(
            "half as many changes of policy as by doubling counts, or fewer",
            Ratio(Final(key="switches", better="lower"), "LOOP", "count doubling"),
            at_most=0.5,
        ),
        Criterion(
            "no more regret than by doubling counts",
            Ratio(REGRET, "LOOP", "count doubling"),
            at_most=1.0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 40)),
    looks=(8, 14, 20),
    tuning_seeds=(0, 1, 2, 3, 4),
    tuning="The width 0.03 lies between the two that the prototype measured; nothing was chosen by results.",
    shared="The river is the same for all seeds; a seed is what happens in it.",
    equal="Steps, the bonus, the known span, rewards and moves of a seed wherever two arms do the same.",
    refuted_by="A regret that still grows by a power above 0.25 after 10,000 steps, more changes of policy than one "
    "for each factor of e in steps, or more than half as many as count doubling has.",
    limits="An instance with gaps, so the square root of T cannot show, nor how regret depends on dimension and span. "
    "Ties go to the first action, which swims left: without optimism that fails more often than random ties would.",
    curve="eval/cumulative_regret",
    minutes=5,
    quick=Quick(share=0.05, options={"evaluations": 4}),
)
