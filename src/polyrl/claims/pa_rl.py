"""PA-RL: do improved actions, imitated by each class's own loss, get a policy beyond what it was shown?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Of

LAST = Final(better="higher")
WHOLE = Area(x="steps", better="higher")
ALL = "candidates=8,kept=2,local_steps=3"
ALONE = "candidates=1,kept=1,local_steps=0"

CLAIM = Claim(
    slug="pa-rl",
    sentence="Imitating actions that the critics have improved, by whichever loss a policy has, gets chains, bins and "
    "a Gaussian beyond imitation of the data.",
    place="abstract, and the comparison of components",
    source="arXiv:2412.06685",
    question="A point has to get around a wall to a small goal; 31 of 100 demonstrations, which go both ways, reach "
    "it. An episode costs 1 a step: 17 at best and 40 where the goal is not reached. Critics first learn from the "
    "data, then steps of its own follow.",
    task="wall-point",
    budget="steps=1600",
    hyperparameters={
        "turns": "200",
        "optimizer_steps": "1000",
        "batch_size": "64",
        "hidden": "64x64",
        "learning_rate": "1e-3",
        "critics": "2",
        "step_size": "1e-2",
    },
    options={"evaluations": 8, "eval_episodes": 20},
    arms=(
        Arm("PA-RL", f"pa-rl({ALL})"),
        Arm("imitation", f"pa-rl({ALONE})", why="control: the chain by itself, which imitates data and own steps"),
        Arm("PA-RL, bins", f"pa-rl({ALL})+binned-policy", drawn=False),
        Arm("imitation, bins", f"pa-rl({ALONE})+binned-policy", why="control: bins by themselves", drawn=False),
        Arm("PA-RL, Gaussian", f"pa-rl({ALL})+imitating-gaussian", drawn=False),
        Arm("imitation, Gaussian", f"pa-rl({ALONE})+imitating-gaussian", why="control: by itself", drawn=False),
        Arm(
            "no local steps",
            "pa-rl(candidates=8,kept=2,local_steps=0)",
            why="control: the best of the proposals as they are",
        ),
        Arm("no choice", "pa-rl(candidates=1,kept=1,local_steps=3)", why="control: one proposal, which climbs"),
        Arm(
            "choice alone", f"pa-rl({ALL},imitates=nothing)", why="control: the policy stays as it was after imitation"
        ),
    ),
    criteria=(
        Criterion("PA-RL reaches the goal", Of(LAST, "PA-RL"), at_least=-35, kind="premise"),
        Criterion("a chain gets beyond imitation", Difference(WHOLE, "PA-RL", "imitation"), at_least=1),
        Criterion("bins do", Difference(WHOLE, "PA-RL, bins", "imitation, bins"), at_least=1),
        Criterion("a Gaussian does", Difference(WHOLE, "PA-RL, Gaussian", "imitation, Gaussian"), at_least=1),
        Criterion(
            "choosing among proposals matters", Difference(WHOLE, "PA-RL", "no choice"), at_least=1, kind="control"
        ),
        Criterion("local steps matter", Difference(WHOLE, "PA-RL", "no local steps"), at_least=1, kind="control"),
        Criterion(
            "imitating what was improved matters",
            Difference(WHOLE, "PA-RL", "choice alone"),
            at_least=1,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 26)),
    looks=(4, 6),
    tuning_seeds=(0,),
    tuning="For all arms alike: the length (1200, 1600). The networks, the batch, the step sizes, and 8 proposals of "
    "which 2 climb three steps of 0.01 were set beforehand, so that it fits a laptop.",
    equal="Steps, updates, data, networks, step sizes, seeds, and within a class the policy; arms without an operator "
    "compute less.",
    refuted_by="For some class the mean return over the run is not a step better than that of imitation alone.",
    limits="Two numbers seen and two acted; three steps of 0.01 where the paper takes ten of 0.0003. The paper's "
    "comparisons are with other methods on mazes, kitchens and robots, and its policies are larger.",
    shared="The task and its data, which are the same for all seeds.",
    minutes=14,
    quick=Quick(share=0.2, options={"evaluations": 2, "eval_episodes": 5}),
)
