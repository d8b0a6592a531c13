"""Diffusion-PPO: do proposals of a diffusion model help PPO to learn, and more than those of a Gaussian?"""

from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Area, Difference, Final, Gain, Of

WHOLE = Area(x="steps", better="higher")
LAST = Final(better="higher")
OFF = "aux_coef=0,prior_kl_coef=0,candidates=1,guidance=0,adapter_rate=0,pretrain.gradient_steps=1"

CLAIM = Claim(
    slug="diffusion-ppo",
    sentence="Proposals of a diffusion model of given data, sharpened by the critic and imitated with a small weight, "
    "let PPO learn earlier, and end no worse.",
    place="abstract, and the area under the first 40 epochs",
    source="arXiv:2409.01427",
    question="A point goes around a wall to a small goal; each step costs 1, the best return is -17, and who never "
    "arrives gets -40. 100 demonstrations go over the wall or under it, 31 of them arrive. PPO alone needs most of the "
    "budget to arrive at all. Do proposals help, and is it the diffusion model that does?",
    task="wall-point",
    budget="steps=15360",
    hyperparameters={
        "steps_per_environment": "32",
        "epochs.epochs": "4",
        "epochs.minibatches": "4",
        "policy.learning_rate": "1e-3",
        "critic.learning_rate": "1e-3",
    },
    options={"evaluations": 30, "eval_episodes": 1},
    arms=(
        Arm("Diffusion-PPO", "diffusion-ppo(pretrain.gradient_steps=1000)"),
        Arm("PPO", f"diffusion-ppo({OFF})", why="both weights 0, which is PPO to the bit"),
        Arm(
            "Gaussian prior",
            "diffusion-ppo(guidance=0,adapter_rate=0,pretrain.gradient_steps=1000)"
            "+imitating-gaussian(prior.hidden=64x64,prior.learning_rate=1e-3)",
            why="proposals of a Gaussian that imitates the same data, drawn by their value too",
        ),
        Arm(
            "started by imitation",
            f"diffusion-ppo({OFF})+bc-start(imitate.gradient_steps=500)",
            why="control: PPO whose policy has imitated the data first",
        ),
        Arm(
            "without Q",
            "diffusion-ppo(guidance=0,beta=0,pretrain.gradient_steps=1000)",
            why="control: no guidance, and proposals drawn evenly",
        ),
        Arm(
            "frozen",
            "diffusion-ppo(adapter_rate=0,pretrain.gradient_steps=1000)",
            why="control: the prior is not adapted",
        ),
    ),
    criteria=(
        Criterion("PPO learns", Of(Gain(better="higher"), "PPO"), at_least=4, kind="premise"),
        Criterion("with proposals it earns more over the run", Difference(WHOLE, "Diffusion-PPO", "PPO"), at_least=2),
        Criterion(
            "and more than with those of a Gaussian",
            Difference(WHOLE, "Diffusion-PPO", "Gaussian prior"),
            at_least=0,
        ),
        Criterion("it ends no worse", Difference(LAST, "Diffusion-PPO", "PPO"), at_least=-1, kind="control"),
        Criterion(
            "it beats a start by imitation",
            Difference(WHOLE, "Diffusion-PPO", "started by imitation"),
            at_least=0,
            kind="control",
        ),
        Criterion("Q helps", Difference(WHOLE, "Diffusion-PPO", "without Q"), at_least=0, kind="control"),
        Criterion("adapting the prior helps", Difference(WHOLE, "Diffusion-PPO", "frozen"), at_least=0, kind="control"),
    ),
    seeds=tuple(range(20, 36)),
    looks=(5, 10, 16),
    tuning_seeds=(0, 1, 2, 3),
    tuning="The weight of imitation (0.01, 0.03), of the diffusion model and of the Gaussian, both of which keep 0.01, "
    "the paper's; rates of PPO and its epochs were set beforehand, for all arms.",
    equal="Environment steps, PPO's updates, networks, step sizes, data, seeds. Priors are trained for 1000 updates; "
    "PPO and the start by imitation make no use of one.",
    refuted_by="It earns less than 2 more over the run than PPO, or no more than with proposals of a Gaussian.",
    limits="One task of two numbers, whose way is known. The paper's are eight robots and a million steps; its own "
    "release calls the reproduction of its experiments unfinished. That data are half good is made by hand.",
    shared="The task, its start and its data, which are the same for all seeds.",
    minutes=10,
    quick=Quick(share=0.1, options={"evaluations": 2}),
)
