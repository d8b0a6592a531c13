"""TGDPO: do a guide's weights for each token keep DPO from collapsing when it is trained on, and is it their credit?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final

STEPS = "schedule=constant,warmup=0"
EARLY = "samples=3200"

CLAIM = Claim(
    slug="tgdpo",
    sentence="DPO whose log-ratios a guide weighs token by token ends higher than DPO, and does not collapse where it "
    "is trained until its loss has converged.",
    place="abstract, sections 4 and 5",
    source="arXiv:2506.14574",
    question="Sorting digits after corrupted demonstrations, 400 pairs, ten passes over them, in which DPO gains and "
    "then loses what it has gained. The guide is trained on the same pairs for one pass; it stands beside one that has "
    "converged on them, one whose token rewards are dealt out anew within each response, and the tokens' true gold.",
    task="sort-pairs(pairs=400)",
    budget="samples=8000",
    options={"evaluations": 10, "checkpoint_every": 1000},
    arms=(
        Arm("DPO", f"dpo({STEPS})"),
        Arm("DPO, stopped early", f"dpo({STEPS})", budget=EARLY, why="four passes, the most gold in tuning"),
        Arm("TGDPO", f"tgdpo({STEPS})", why="a guide of one pass"),
        Arm("TGDPO, stopped early", f"tgdpo({STEPS})", budget=EARLY),
        Arm("shuffled guide", f"tgdpo(shuffled=true,{STEPS})", why="control: the same weights in other places"),
        Arm("converged guide", f"tgdpo(dpo_epochs=10,{STEPS})", why="control: as many passes as the policy"),
        Arm("oracle", f"tgdpo(token_reward=oracle,{STEPS})", why="control: what credit can give"),
    ),
    criteria=(
        Criterion(
            "DPO collapses here: ten passes end lower than four",
            Difference(Final(), "DPO, stopped early", "DPO"),
            at_least=0.3,
            kind="premise",
            expected=1.8,
            deviation=0.5,
        ),
        Criterion(
            "TGDPO does not: it ends at most a tenth below its own four passes",
            Difference(Final(), "TGDPO", "TGDPO, stopped early"),
            at_least=-0.1,
        ),
        Criterion("TGDPO ends higher than DPO", Difference(Final(), "TGDPO", "DPO"), at_least=0.3),
        Criterion(
            "it is the credit: with shuffled rewards it ends lower",
            Difference(Final(), "TGDPO", "shuffled guide"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "a guide that has converged does no better",
            Difference(Final(), "converged guide", "TGDPO"),
            at_most=0,
            kind="control",
        ),
        Criterion(
            "the tokens' true gold does better than shuffled rewards",
            Difference(Final(), "oracle", "shuffled guide"),
            at_least=0.3,
            kind="control",
        ),
        Criterion(
            "TGDPO ends no lower than DPO stopped early",
            Difference(Final(), "TGDPO", "DPO, stopped early"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 28)),
    looks=(5, 8),
    tuning_seeds=(100, 101),
    tuning="The number of pairs and of passes, so that DPO collapses; where it is stopped. Alpha 0.5 is the authors', "
    "clipping ours.",
    equal="Pairs, batches, steps, step size, beta, the start. Guides cost a training and a pass over the pairs more; "
    "the oracle knows the gold.",
    refuted_by="A fall after four passes by more than a tenth, or an end less than 0.3 above DPO's.",
    limits="A model of 0.1 million parameters and answers of six characters. MT-Bench, AlpacaEval and Arena-Hard, and "
    "guides by SimPO, are not touched.",
    shared="The test prompts.",
    minutes=14,
    quick=Quick(share=0.1, options={"evaluations": 2, "eval_prompts": 50}),
)
