"""AdaCoT: does leaving one token out of the loss keep the decision to think from collapsing?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of

PRECISION, RECALL = "eval/trigger_precision", "eval/trigger_recall"

MIXED = "thinking(start_accuracy=0.7)"

CLAIM = Claim(
    slug="adacot",
    sentence="Training on questions that all want a thought makes a model think where no thought is wanted; leaving "
    "the one token that decides out of the loss prevents that, and leaving out another one does not.",
    place="section 3.4, table 1",
    source="arXiv:2505.11896",
    question="Additions, of which easy ones want no thought and hard ones do, from a supervised model that mostly "
    "decides rightly. PPO is run on hard ones alone; then the model is asked easy and hard ones, half of each, and "
    "counted is how many of its thoughts were wanted.",
    task="thinking(mix=hard,start_accuracy=0.7)",
    budget="samples=1536",
    options={"evaluations": 4, "eval_prompts": 500},
    arms=(
        Arm("mask", "ppo+decision-token-mask"),
        Arm("no mask", "ppo"),
        Arm("random mask", "ppo+decision-token-mask(masked=random)", why="control: one token of each answer, drawn"),
        Arm("Exp1", "adacot(omission_penalty=0.1,overuse_penalty=0.3)", task=MIXED, drawn=False, why="to think seldom"),
        Arm("Exp4", "adacot(omission_penalty=0.3,overuse_penalty=0.1)", task=MIXED, drawn=False, why="to think often"),
    ),
    criteria=(
        Criterion(
            "without the mask more than a tenth of the thoughts are for nothing",
            Of(Final(key=PRECISION), "no mask"),
            at_most=0.9,
            kind="premise",
        ),
        Criterion("the mask keeps the start's precision", Of(Gain(key=PRECISION), "mask"), at_least=-0.05),
        Criterion(
            "with it more thoughts are wanted than without",
            Difference(Final(key=PRECISION), "mask", "no mask"),
            at_least=0.05,
        ),
        Criterion(
            "and than with a random token left out",
            Difference(Final(key=PRECISION), "mask", "random mask"),
            at_least=0.05,
        ),
        Criterion(
            "with the mask three quarters of the thoughts are wanted",
            Of(Final(key=PRECISION), "mask"),
            at_least=0.75,
            kind="control",
        ),
        Criterion(
            "without it nearly every hard question is thought about",
            Of(Final(key=RECALL), "no mask"),
            at_least=0.95,
            kind="control",
        ),
        Criterion(
            "without it precision falls to one half",
            Of(Final(key=PRECISION), "no mask"),
            at_most=0.55,
            kind="control",
        ),
        Criterion(
            "on mixed questions Exp4 thinks about more of the medium ones than Exp1",
            Difference(Final(key="eval/trigger_rate/medium", better="higher"), "Exp4", "Exp1"),
            at_least=0.05,
            kind="control",
        ),
        Criterion("with the mask accuracy rises too", Of(Gain(), "mask"), at_least=0.02, kind="control"),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 3, 4, 100, 101),
    tuning="On seed 100: the budget, and how often the demonstrations of the starting model decide wrongly. With 3% of "
    "thoughts for nothing in the demonstrations easy questions stayed without thoughts even without the mask: what is "
    "hardly ever sampled hardly drifts. It is 10% now. With a start that imitates for longer (start_accuracy=0.82) the "
    "fall was less than half as large. All three arms were looked at on this seed, once.",
    equal="Sampled answers, updates, learning rate, the start, test problems; with a mask one token less an answer.",
    refuted_by="Precision that stays above 0.9 without the mask, or falls with it, or is kept by leaving out any "
    "token.",
    limits="A model of 1.2 million parameters whose thoughts are columns of digits, with exact labels. The mask "
    "protects a decision and does not improve it: on the tuning seed recall stayed where it was, and accuracy rose "
    "more without the mask. The logits of the decision are seen only through sampled thoughts. Of the second "
    "stage only the two extreme settings are run, and they decide nothing: on the tuning seed they did not differ.",
    curve=PRECISION,
    minutes=7,
    quick=Quick(share=0.1, options={"evaluations": 1, "eval_prompts": 50}),
)
