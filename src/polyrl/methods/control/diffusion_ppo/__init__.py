"""Diffusion-PPO: PPO, pulled a little towards actions that a diffusion model of given data proposes.

PPO-DAP, version 6 of the paper. A diffusion model learns the data's actions (stage I) and is frozen. In every iteration
it proposes actions at the states that PPO has just visited, pushed uphill in Q within the chain; those of high value
are imitated with a small weight, and a Gaussian around proposals without guidance keeps the policy near. PPO's own
gradient sees what the policy itself has done, and nothing else. Low-rank factors adapt the prior to that.

The chain's step, a finite set of levels and what the last step does are those of the authors' release 0.1.0; their text
of version 6 was not at hand. Chosen here: chains with and without guidance share their noise, proposals are brought to
the bounds, Q is a model of its own and takes its targets from V after V's update, and the grid of levels and the floor
of the deviation. DiffPPO of versions 1 to 3, which makes up rows of data, is another method.

The paper adds five things to PPO, and its controls need a sixth, so this is longer than others: the prior and its
factors stand in `prior.py`; here are proposals, two pulls, Q, and the start by imitation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Phase, Repeat, Sample, See, Update
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.methods.control.diffusion_ppo.prior import ActionPrior, AdaptPrior, executed, half_and_middle
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.critics import QNetwork
from polyrl.models.denoiser import Guide
from polyrl.parts.control import ScaleReward, StateValues, StepEnvironments
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.imitating import OwnImitation
from polyrl.parts.improve import Averaged, ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.parts.replayed import OffPolicyTerm, SquaredTD
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, hyperparameter

SLUG = "diffusion-ppo"
TITLE = "Enhancing Sample Efficiency and Exploration in RL through the Integration of Diffusion Models and PPO"
PAPER = "arXiv:2409.01427"
YEAR = 2024
FORMULA = "loss = PPO + aux_coef E[-log pi(a|s)] + prior_kl_coef KL(pi || N(mean, std of raw a)), a ~ guided prior"
TASK = "wall-point"


# ------------------------------------------------------------------------------------------------------- the proposals


def guidance_step(gradient: Tensor, rate: float, cap: float) -> Tensor:
    """`rate` times a gradient `[..., A]`, brought to a norm of at most `cap` (equation 8)."""
    step = rate * gradient
    found: Tensor = step * (cap / step.norm(dim=-1, keepdim=True).clamp(min=cap))
    return found


def annealed(done: int, iterations: float, share: float) -> float:
    """0 at first, 1 from the last of the first `share` of a run's iterations on, of which `done` are done."""
    last = round(share * iterations) - 1 if math.isfinite(iterations) else math.inf
    return min(1.0, done / last) if last > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Proposals(Part):
    """Let the prior propose actions at the visited states, and take those of high value more often (equation 7)."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"proposal", "proposal_mean", "proposal_std"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "proposal": Field("[B, T, R, A]", "float32", "task's own", "actions to imitate (diffusion-ppo)"),
        "proposal_mean": Field("[B, T, A]", "float32", "task's own", "mean of proposals without guidance"),
        "proposal_std": Field("[B, T, A]", "float32", "task's own", "their deviation, with its floor"),
    }
    models: ClassVar[frozenset[str]] = frozenset({"prior", "q"})

    candidates: int = hyperparameter(8, "K, proposals in each state", low=1)
    imitated: int = hyperparameter(2, "R, proposals that are drawn of them to be imitated", low=1)
    guidance: float = hyperparameter(0.3, "alpha_max, step size of the guidance where no noise is left", low=0)
    guidance_cap: float = hyperparameter(0.1, "largest norm of a step of guidance, actions being in [-1, 1]", above=0)
    beta: float = hyperparameter(1.0, "inverse temperature of Q by which proposals are drawn; 0 draws evenly", low=0)
    beta_share: float = hyperparameter(0.3, "share of the iterations in which beta rises from 0", low=0, high=1)
    std_floor: float = hyperparameter(0.1, "least deviation of the Gaussian, actions being in [-1, 1]", above=0)

    def follows_budget(self) -> tuple[str, ...]:
        """The share in which beta rises."""
        return ("beta_share",) if self.beta and self.beta_share else ()

    def check_within(self, recipe: Recipe) -> None:
        """Refuse statistics that data do not share, and guidance where there is no chain.

        Raises:
            UserError: what the policy sees is normalized, or the prior takes no steps.
        """
        if recipe.models["policy"].setting("normalize_observation", False):
            raise UserError(
                f"{recipe.name} has a prior of data that no running statistics have changed; set "
                "--normalize-observation false."
            )
        prior = recipe.models["prior"]
        if self.guidance and not isinstance(prior, ActionPrior):
            raise UserError(f"'{prior.name}' has no chain that guidance could push; set --guidance 0.")

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `proposal` `[B, T, R, A]`, `proposal_mean` and `proposal_std` `[B, T, A]`."""
        shown, prior, context = batch["observation"], see["prior"], see.context
        shown = shown.unsqueeze(-2).expand(*shown.shape[:-1], self.candidates, shown.shape[-1])
        noise = see.draw(*shown.shape[:-1], prior.proposal_size)
        raw = prior.propose(shown, noise).clamp(-1, 1)
        guided = raw
        if self.guidance:
            steps = noise.reshape(*noise.shape[:-1], prior.steps, prior.numbers)
            guided = prior.sample(shown, steps, self.guide(shown, see)).clamp(-1, 1)
        value = see["q"](shown, guided).mean(-1)  # [B, T, K]
        beta = self.beta * annealed(
            context.began.iterations, context.budget.expected_iterations(context.began), self.beta_share
        )
        weights = (beta * value).softmax(-1)
        chosen = weights.flatten(0, -2).multinomial(self.imitated, replacement=True, generator=see.generator)
        chosen = chosen.reshape(*value.shape[:-1], self.imitated, 1).expand(*value.shape[:-1], -1, prior.numbers)
        half, middle = half_and_middle(prior.space)
        mean, std = raw.mean(-2), raw.std(-2, correction=0).clamp(min=self.std_floor)
        context.log(
            prior__beta=beta,
            prior__raw_q=see["q"](shown, raw).mean(),
            prior__guided_q=value.mean(),
            prior__chosen_q=(weights * value).sum(-1).mean(),
        )
        return batch.with_fields(
            proposal=middle + half * guided.gather(-2, chosen),
            proposal_mean=middle + half * mean,
            proposal_std=half * std,
        )

    def guide(self, shown: Tensor, see: See) -> Guide:
        """alpha_max (1 - sigma_t / sigma_max) times the gradient of Q at the noisy actions, capped (equation 8)."""
        q, level = see["q"], see["prior"].level

        def step(number: int, noisy: Tensor) -> Tensor:
            value, back = q.way_back(shown, noisy)
            rate = self.guidance * float(1 - level[number] / level[-1])
            return guidance_step(back(torch.full_like(value, 1 / value.shape[-1])), rate, self.guidance_cap)

        return step


# ---------------------------------------------------------------------------------------------------------- the policy


class Pull:
    """What makes a term of a weighted pull, which asks for nothing where the weight is 0.

    Attributes:
        coef: the weight.
        reads: fields that the pull is made of.
    """

    coef: float
    reads: ClassVar[frozenset[str]]

    def pull(self, batch: Experience, see: See) -> Tensor:
        """What the weight is of, `[B, T]`."""
        raise NotImplementedError

    def required(self) -> frozenset[str]:
        """What it reads, where that counts."""
        return frozenset({"weight"}) | (self.reads if self.coef else set())

    @property
    def is_written(self) -> bool:
        """Where it is 0."""
        return not self.coef

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """Of every step, `[B, T]`."""
        return self.coef * self.pull(batch, see) if self.coef else 0 * outputs["logprob"]

    def grad_summand(
        self, outputs: dict[str, Tensor], batch: Experience, see: See, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of 0; weights are `[B, T]`."""
        return torch.zeros(()), {}


@dataclass(frozen=True, kw_only=True)
class ProposalLikelihood(Pull, Averaged):
    """Imitate the proposals that were drawn by their value."""

    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    reads: ClassVar[frozenset[str]] = frozenset({"observation", "proposal"})

    aux_coef: float = hyperparameter(0.01, "weight of imitating proposals; 0 is PPO", low=0)

    grad_summand = Pull.grad_summand

    @property
    def coef(self) -> float:  # type: ignore[override]
        """Its weight."""
        return self.aux_coef

    def pull(self, batch: Experience, see: See) -> Tensor:
        """-log pi, the mean over proposals."""
        return -logprob_of(batch["proposal"], batch["observation"].unsqueeze(-2), see).mean(-1)


@dataclass(frozen=True, kw_only=True)
class PriorDivergence(Pull, Averaged):
    """Stay near the Gaussian of the proposals without guidance."""

    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    reads: ClassVar[frozenset[str]] = frozenset({"observation", "proposal_mean", "proposal_std"})

    prior_kl_coef: float = hyperparameter(0.005, "weight of KL(pi || Gaussian of the proposals); 0 is off", low=0)

    grad_summand = Pull.grad_summand

    @property
    def coef(self) -> float:  # type: ignore[override]
        """Its weight."""
        return self.prior_kl_coef

    def pull(self, batch: Experience, see: See) -> Tensor:
        """The divergence, nats (equation 9)."""
        policy = see["policy"].policy
        log_std, std = policy.distribution.log_std, batch["proposal_std"]
        apart = policy.network(batch["observation"]) - batch["proposal_mean"]
        return gaussian_divergence(apart, log_std, std.log()).sum(-1)


def logprob_of(action: Tensor, observation: Tensor, see: See) -> Tensor:
    """Log-densities `[...]` of actions `[..., A]` under the policy."""
    policy = see["policy"].policy
    found: Tensor = policy.distribution.log_prob(policy.network(observation), action)
    return found


def gaussian_divergence(apart: Tensor, log_std: Tensor, others: Tensor) -> Tensor:
    """KL(N(m, a^2) || N(n, b^2)) of every number, nats, by m - n, log a and log b. Any shape."""
    ratio = 2 * (log_std - others)
    return (ratio.exp() + (apart * (-others).exp()).square() - 1 - ratio) / 2


@dataclass(frozen=True, kw_only=True)
class DataLikelihood(OffPolicyTerm):
    """Imitate the data's actions, brought to the task's bounds."""

    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset()
    models: ClassVar[frozenset[str]] = frozenset({"policy", "prior"})

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """-log pi, `[B, T]`."""
        half, middle = half_and_middle(see["prior"].space)
        return -logprob_of(middle + half * batch["action"], batch["observation"], see)


# ------------------------------------------------------------------------------------------------ Q, and another start


@dataclass(frozen=True, kw_only=True)
class NextValueTarget(Part):
    """Targets of Q of what was executed, in [-1, 1]: the reward, and V of the state that followed."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "episode"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"action", "reward", "value", "final_value", "terminated", "truncated"})
    gives: ClassVar[frozenset[str]] = frozenset({"action", "value_target"})
    models: ClassVar[frozenset[str]] = frozenset({"prior"})

    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)

    def apply(self, batch: Experience, see: See) -> Experience:
        """Replace `action` `[B, T, A]`, add `value_target` `[B, T]`."""
        final = batch["final_value"]
        following = torch.cat([batch["value"][:, 1:], final[:, -1:]], 1)
        following = torch.where(batch["truncated"], final, following) * ~batch["terminated"]
        return batch.with_fields(action=executed(batch, see), value_target=batch["reward"] + self.gamma * following)


@dataclass(frozen=True)
class FitQ(Epochs):
    """Passes over the rollout in which Q learns."""

    epochs: int = hyperparameter(4, "passes of Q over each batch", low=1)
    minibatches: int = hyperparameter(4, "minibatches in one pass of Q", low=1)


@dataclass(frozen=True)
class Pretrain(Repeat):
    """Stage I: updates of the prior on the data, at the beginning of the run."""

    gradient_steps: int = hyperparameter(2_000, "updates of the prior on the data", low=1)


@dataclass(frozen=True)
class Imitate(Repeat):
    """Updates of the policy on the data, before anything is collected."""

    gradient_steps: int = hyperparameter(1_000, "updates of the policy on the data", low=1)


@dataclass(frozen=True, kw_only=True)
class BcStart(Change):
    """Let the policy begin by imitating the data, by likelihood."""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with an iteration before its first one, in which nothing is collected.

        Raises:
            UserError: it does not pretrain a prior, beside which the policy could imitate.
        """
        of = [s.of for s in recipe.updates if isinstance(s, Phase) and any(isinstance(x, Pretrain) for x in s.of)]
        if len(of) != 1:
            raise UserError(f"{recipe.name} pretrains no prior on data, beside which '{self.name}' could imitate.")
        imitate = Imitate(of=(Update("policy", (DataLikelihood(),), Sample("data", 256)),))
        then = Phase(tuple(s for s in recipe.updates if not isinstance(s, Phase)), reset=("policy",))
        before = Phase((imitate, *of[0]), optimizer_steps=1, collects=False)
        return dataclasses.replace(recipe, updates=(before, then))


def recipe() -> Recipe:
    """Stage I is the beginning of the first iteration; everything else is every iteration's."""
    policy = Update(
        "policy",
        (ClippedSurrogate(clip_range=0.2), EntropyBonus(entropy_coef=0.0), ProposalLikelihood(), PriorDivergence()),
        Again(),
        credit=(WhitenAdvantage(),),
    )
    values = StateValues("critic")
    return Recipe(
        name=SLUG,
        models={
            "policy": MlpPolicy(learning_rate=3e-4, normalize_observation=False),
            "critic": MlpCritic(learning_rate=3e-4),
            "q": QNetwork(critics=1, hidden="64x64", learning_rate=1e-3),
            "prior": ActionPrior(),
        },
        collect=StepEnvironments(environments=8, steps_per_environment=128),
        score=(ScaleReward(gamma=0.99),),
        sources={"data": Transitions()},
        updates=(
            Phase((Pretrain(of=(Update("prior", (OwnImitation(),), Sample("data", 256)),)),), optimizer_steps=1),
            Epochs(
                (policy, Update("critic", (ValueLoss(value_coef=0.5),), Again())),
                Fresh(),
                credit=(values, GAE(gamma=0.99, gae_lambda=0.95), Proposals()),
                epochs=10,
                minibatches=8,
                minibatch_of="steps",
                joint_clip=0.5,
            ),
            FitQ(
                (Update("q", (SquaredTD(),), Again()),),
                Fresh(),
                credit=(values, NextValueTarget(gamma=0.99)),
                minibatch_of="steps",
            ),
            AdaptPrior("prior", Fresh()),
            Phase(()),
        ),
        adds=("proposals", "proposal-likelihood", "prior-divergence"),
        notes={
            "credit": "a diffusion model of the data proposes actions where the policy has been",
            "improve": "PPO, with a small pull towards proposals of high value; low-rank factors adapt the prior",
        },
    )
