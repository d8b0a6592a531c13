"""PDPPO: does a critic of the state after the decision help, or is it only that two critics make advantages larger?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Gain, Of

WHOLE = Area(x="steps", better="higher")
LAST = Final(better="higher")

CLAIM = Claim(
    slug="pdppo",
    sentence="Where chance acts after the decision, a second critic that sees what the decision has come to makes PPO "
    "learn faster.",
    place="abstract",
    source="arXiv:2504.05150",
    question="Lot sizing with three items and two machines, over 100 periods. Standing idle costs 455, making what is "
    "lowest in stock 317; a difference of 5 is between one and two percent of what learned policies cost.",
    task="lot-sizing",
    budget="steps=100000",
    options={"evaluations": 20, "eval_episodes": 50},
    arms=(
        Arm("both", "pdppo", why="the lesser of a critic before and a critic after the decision"),
        Arm("one", "pdppo(critics=pre,regress=each)", why="PPO with the same returns, ratios and networks"),
        Arm(
            "two before",
            "pdppo(after_decision=false)",
            why="control: the lesser of two critics that both see the state before the decision",
        ),
        Arm("after", "pdppo(critics=post,regress=each)", why="control: the critic after the decision alone"),
    ),
    criteria=(
        Criterion("PPO learns", Of(Gain(better="higher"), "one"), at_least=50, kind="premise"),
        Criterion("both critics cost less over the whole run", Difference(WHOLE, "both", "one"), at_least=5),
        Criterion(
            "and it is not that there are two: they beat two before the decision",
            Difference(WHOLE, "both", "two before"),
            at_least=5,
        ),
        Criterion("both critics end no worse", Difference(LAST, "both", "one"), at_least=-5, kind="control"),
        Criterion(
            "both beat the one after the decision", Difference(WHOLE, "both", "after"), at_least=0, kind="control"
        ),
    ),
    seeds=tuple(range(20, 32)),
    looks=(5, 8, 12),
    tuning_seeds=(0, 1),
    tuning="Nothing: the recipe's defaults, which are the paper's code's but for the size of batches.",
    equal="Environment steps, updates, networks, step sizes, demand paths of evaluations, seeds.",
    refuted_by="Both critics earn less than 5 more than PPO over the run, or than two critics before the decision.",
    limits="One small instance. That rewards double, as the paper has it for some large ones, cannot be asked here.",
    shared="The instance.",
    minutes=14,
    quick=Quick(share=0.1, options={"evaluations": 2, "eval_episodes": 5}),
)
