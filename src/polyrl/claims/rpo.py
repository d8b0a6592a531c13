"""RPO: does imitating the chosen answers a little keep DPO from over-optimizing, and only where the tail is bad?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Of

OFF_DATA = Final(key="eval/off_data", better="lower")
BENIGN = "garbage-tail(benign=true)"
STEPS = "schedule=constant,warmup=0,learning_rate=5e-4"

CLAIM = Claim(
    slug="rpo",
    sentence="DPO's loss with the likelihood of the chosen answers beside it does not over-optimize where DPO does: "
    "mass stays on what the data cover.",
    place="abstract, sections 4 and 6",
    source="arXiv:2405.16436",
    question="2,000 answers with shared features, of which 400 are in the data and the rest have a gold of -2; 100 "
    "labelled pairs, 500 steps. Gold, KL and the mass off the data are computed, not sampled. A seed is a world.",
    task="garbage-tail",
    budget="iterations=500",
    options={"evaluations": 20, "checkpoint_every": 1000},
    arms=(
        Arm("DPO", f"dpo({STEPS})"),
        Arm("DPO, stopped early", f"dpo({STEPS})", budget="iterations=100", why="the step with most gold in tuning"),
        Arm("RPO", f"rpo(eta=0.5,{STEPS})"),
        Arm("DPO, benign tail", f"dpo({STEPS})", task=BENIGN, why="control: nothing bad lies outside the data"),
        Arm("RPO, benign tail", f"rpo(eta=0.5,{STEPS})", task=BENIGN),
        Arm("DPO, beta 0.5", f"dpo(beta=0.5,{STEPS})", why="control: a stronger pull, which over-optimizes little"),
        Arm("RPO, beta 0.5", f"rpo(eta=0.5,dpo-loss.beta=0.5,baseline-nll.beta=0.5,{STEPS})"),
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
        Criterion("RPO ends higher", Difference(Final(), "RPO", "DPO"), at_least=0.25, expected=1.07, deviation=2.13),
        Criterion("RPO leaves the mass off the data near the start's 0.05", Of(OFF_DATA, "RPO"), at_most=0.1),
        Criterion(
            "RPO ends no lower than DPO stopped early",
            Difference(Final(), "RPO", "DPO, stopped early"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "where the tail is benign it gains nothing",
            Difference(Final(), "RPO, benign tail", "DPO, benign tail"),
            at_most=0.25,
            kind="control",
        ),
        Criterion(
            "at beta 0.5 it costs gold",
            Difference(Final(), "RPO, beta 0.5", "DPO, beta 0.5"),
            at_most=0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 68)),
    looks=(16, 32, 48),
    tuning_seeds=tuple(range(100, 108)),
    tuning="eta, of 0.05 and 0.5; the step at which DPO is stopped.",
    equal="Pairs, steps, batches, step size, the start, the worlds.",
    refuted_by="A gain over DPO of less than a quarter of a standard deviation of gold, or more than twice the "
    "start's mass off the data.",
    limits="A linear softmax over 2,000 answers to one prompt. Chat benchmarks, and the rate in the number of pairs, "
    "are not touched.",
    minutes=15,
    quick=Quick(share=0.1, options={"evaluations": 2}),
)
