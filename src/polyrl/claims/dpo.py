"""DPO: does one logistic loss on fixed pairs mend a badly taught model, and are pairs sampled on line worth more?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Final, Gain, Of

CLAIM = Claim(
    slug="dpo",
    sentence="Fitting the policy itself to labelled pairs by one logistic loss, with no reward model and no "
    "sampling, makes it clearly better than the supervised model that the pairs came from.",
    place="sections 4 and 6",
    source="arXiv:2305.18290",
    question="Sorting digits, taught by corrupted demonstrations; 4000 pairs of the start's own answers, labelled by "
    "a Bradley-Terry judge with a gold score from -4 to 4. One pass of DPO over them, against the start, and against "
    "pairs of the present policy that are labelled as they come.",
    task="sort-pairs",
    budget="samples=8000",
    options={"evaluations": 8},
    arms=(
        Arm("DPO", "dpo", why="fixed pairs"),
        Arm("online DPO", "online-dpo+preference-label", why="the same loss and judge; pairs of the present policy"),
        Arm("IPO", "ipo", why="fixed pairs, a squared loss"),
        Arm("SLiC", "slic", why="fixed pairs, a hinge loss"),
    ),
    criteria=(
        Criterion("DPO lifts the gold score by half a point", Of(Gain(), "DPO"), at_least=0.5),
        Criterion(
            "pairs sampled on line are worth no less",
            Difference(Final(), "online DPO", "DPO"),
            at_least=0,
            kind="control",
        ),
        Criterion("DPO ends no lower than IPO", Difference(Final(), "DPO", "IPO"), at_least=0, kind="control"),
    ),
    seeds=(20, 21, 22, 23, 24),
    tuning_seeds=(0, 1, 2, 100, 101),
    tuning="Learning rates of the recipes.",
    equal="Labelled pairs (4000 of each arm), the start, beta (0.1), learning rate, batch, judge, test prompts.",
    refuted_by="A gain in the gold score of less than half a point.",
    limits="A model of 0.2 million parameters on one synthetic task. Win rates over PPO on summaries and chat are "
    "not touched.",
    minutes=8,
    quick=Quick(share=0.02, options={"evaluations": 1, "eval_prompts": 50}),
)
