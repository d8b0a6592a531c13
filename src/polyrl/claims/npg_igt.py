"""N-PG-IGT: do normalized steps with momentum learn from fewer trajectories than a tuned vanilla policy gradient?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Of

WHOLE = Area(x="steps", better="higher")

CLAIM = Claim(
    slug="npg-igt",
    sentence="Normalized steps along a momentum of gradients, taken ahead of the policy or corrected by a Hessian, "
    "learn from fewer trajectories than the vanilla policy gradient.",
    place="abstract, and the experiments",
    source="arXiv:2302.01734",
    question="CartPole with 200 steps, one of the paper's tasks, four rows of 200 steps a gradient, fifty of them; "
    "HARPG takes two such batches for each of its steps, and so half as many. A policy that stands still earns 14.",
    task="CartPole-v1(max_episode_steps=200)",
    budget="steps=40000",
    options={"evaluations": 20},
    arms=(
        Arm("N-PG-IGT", "npg-igt(step_size=0.3)"),
        Arm("vanilla", "npg-igt+constant-step(step_size=3e-4)", why="the vanilla policy gradient, its step size tuned"),
        Arm("N-HARPG", "n-harpg(step_size=0.2)", why="normalized steps with the correction by a Hessian"),
        Arm("momentum", "npg-igt(step_size=0.2,extrapolates=false)", why="control: gradients at the policy itself"),
        Arm("HARPG", "harpg(step_size=5e-4)", why="control: the correction without normalization"),
    ),
    criteria=(
        Criterion("the vanilla gradient learns", Of(Final(), "vanilla"), at_least=50, kind="premise"),
        Criterion("N-PG-IGT earns more over the run", Difference(WHOLE, "N-PG-IGT", "vanilla"), at_least=0),
        Criterion("N-HARPG earns more over the run", Difference(WHOLE, "N-HARPG", "vanilla"), at_least=0),
        Criterion(
            "gradients ahead of the policy do better than at it",
            Difference(WHOLE, "N-PG-IGT", "momentum"),
            at_least=0,
            kind="control",
        ),
        Criterion(
            "and normalization matters to the correction",
            Difference(WHOLE, "N-HARPG", "HARPG"),
            at_least=0,
            kind="control",
        ),
    ),
    seeds=tuple(range(20, 44)),
    looks=(8, 16, 24),
    tuning_seeds=(0, 1, 2),
    tuning="The step size of every arm, by the mean return over the run: of normalized ones seven from 0.03 to 3, of "
    "the vanilla gradient seven from 1e-4 to 1e-2, of HARPG six from 1e-4 to 3e-3. Means over the tuning seeds: "
    "N-PG-IGT 174, momentum 169, N-HARPG 156, vanilla 148, HARPG 113.",
    equal="Environment steps, policy, rows of a batch, seeds; every step size is the best of its grid.",
    refuted_by="With its best constant step the vanilla gradient earns as much over the run as either of the two.",
    limits="One task, at which the return is at most 200, and a network of two layers. The paper's rates are for many "
    "steps; which of its curves are of which tasks is not said in its abstract.",
    shared="The task.",
    minutes=12,
    quick=Quick(share=0.2, options={"evaluations": 2}),
)
