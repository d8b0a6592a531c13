"""HyPO: does a KL that is charged on fresh answers keep DPO from over-optimizing, better than imitation does?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final

BENIGN = "garbage-tail(benign=true)"
STEPS = "schedule=constant,warmup=0,learning_rate=5e-4"

CLAIM = Claim(
    slug="hypo",
    sentence="The reverse KL, estimated on fresh answers that nobody labels, keeps what DPO loses off its pairs: the "
    "same pairs lead to a better policy.",
    place="abstract, sections 5 and 6",
    source="arXiv:2406.01462",
    question="2,000 answers with shared features, of which 400 are in the data and the rest have a gold of -2; 100 "
    "labelled pairs, 500 steps. Gold, KL and the mass off the data are computed, not sampled. A seed is a world.",
    task="garbage-tail",
    budget="iterations=500",
    options={"evaluations": 20, "checkpoint_every": 1000},
    arms=(
        Arm("DPO", f"dpo({STEPS})"),
        Arm("DPO, stopped early", f"dpo({STEPS})", budget="iterations=100", why="the step with most gold in tuning"),
        Arm("HyPO", "hypo(kl_weight=0.003,learning_rate=5e-4)", why="two fresh answers to each of 32 prompts a step"),
        Arm("RPO", f"rpo(eta=0.5,{STEPS})", why="imitation of the chosen answers instead, at its best eta"),
        Arm("DPO, benign tail", f"dpo({STEPS})", task=BENIGN, why="control: nothing bad lies outside the data"),
        Arm("HyPO, benign tail", "hypo(kl_weight=0.003,learning_rate=5e-4)", task=BENIGN),
    ),
    criteria=(
        Criterion(
            "DPO over-optimizes here: 500 steps end lower than the 100 that tuning stops at",
            Difference(Final(), "DPO, stopped early", "DPO"),
            at_least=0.3,
            kind="premise",
            expected=1.48,
            deviation=1.76,
        ),
        Criterion("HyPO ends higher", Difference(Final(), "HyPO", "DPO"), at_least=0.5, expected=1.76, deviation=1.91),
        Criterion("HyPO ends higher than RPO at its best", Difference(Final(), "HyPO", "RPO"), at_least=0),
        Criterion(
            "HyPO ends no lower than DPO stopped early",
            Difference(Final(), "HyPO", "DPO, stopped early"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "where the tail is benign it gains nothing",
            Difference(Final(), "HyPO, benign tail", "DPO, benign tail"),
            at_most=0.25,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 52)),
    looks=(10, 20, 32),
    tuning_seeds=tuple(range(100, 108)),
    tuning="lambda, of 0.003 and 0.01, with the exact KL; RPO's eta, of 0.05 and 0.5; where DPO is stopped.",
    equal="Pairs, steps, step size, start, worlds. HyPO also samples 64 answers a step, which nobody labels.",
    refuted_by="A gain over DPO of less than half a standard deviation of gold, or none over RPO.",
    limits="A linear softmax over 2,000 answers to one prompt. Win rates on summaries and chat are not touched.",
    minutes=12,
    quick=Quick(share=0.1, options={"evaluations": 2}),
)
