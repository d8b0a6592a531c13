"""KTO: learn from responses that are each called good or bad, by how far they are from what the policy says anyway.

A pair says which of two responses is better; a thumb says of one whether it is good. Kahneman and Tversky's value
function judges an outcome against a reference point, and loses interest in it far on either side. Here the outcome is
the implicit reward, the log-ratio r of a response to the start, and the reference point z0 is the KL of the policy to
the start: what r comes to on average for what the policy says, whoever asked.

z0 is estimated from responses to other prompts of the batch: each prompt is read with the response of the row before
it, as in the authors' code, but never with one of its own. It is measured once a batch, over all its rows, before the
first step: with more rows it is less noisy, and neither micro-batches nor minibatches change it. Of several steps on
one batch the later ones are judged against the policy that the first one began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.data.pairs import numbers_of_step
from polyrl.errors import UserError
from polyrl.models.language.pairs import sequence_log_ratio, sequence_logprob
from polyrl.parts.collect import LANGUAGE_FIELDS, count_given
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter

SLUG = "kto"
TITLE = "Kahneman-Tversky Optimization"
PAPER = "arXiv:2402.01306"
YEAR = 2024
FORMULA = "loss = lambda_y - lambda_y sigma(+-beta (r - z0)), r = log(pi/ref)(y), z0 = KL(pi, ref)"
TASK = "sort-pairs"
BALANCE = (1.0, 4 / 3)
"""Where lambda_D n_D / (lambda_U n_U) is to be, with n_D desirable and n_U undesirable responses (section 4.2)."""
SLACK = 0.05
"""Share by which it may be beyond them before that is told."""


def kto_loss(r: Tensor, z0: Tensor, desirable: Tensor, beta: float, good: float, bad: float) -> Tensor:
    """lambda_y - v(x, y), v = lambda_D sigma(beta (r - z0)) or lambda_U sigma(beta (z0 - r)) (equations 7, 8), `[B]`.

    Args:
        r: `[B]` log-ratios of the responses to the reference, nats.
        z0: `[B]` the reference point, nats.
        desirable: `[B]` bool.
        beta: how soon the value saturates.
        good, bad: lambda_D and lambda_U.
    """
    side, weight = (torch.where(desirable, r.new_tensor(a), r.new_tensor(b)) for a, b in ((1.0, -1.0), (good, bad)))
    return weight * torch.sigmoid(-side * beta * (r - z0))


def donors(prompt: Sequence[int]) -> list[int]:
    """For each row the nearest one before it, around the end, that has another prompt; -1 where none has."""
    size = len(prompt)
    return [
        next((j for j in ((i - k) % size for k in range(1, size)) if prompt[j] != prompt[i]), -1) for i in range(size)
    ]


def mismatched(experience: Experience, counted: Tensor, context_length: int | None) -> Experience:
    """Prompts of the rows that are `counted` `[B]`, each with the response of another prompt (`donors`).

    What does not fit into the model's context behind the other prompt is cut off. It is no row of any data set: it has
    no `example`, so what is known of a response to its own prompt is never taken for it.
    """
    rows = experience.rows(counted.nonzero()[:, 0])
    asked = torch.where(rows["prompt_mask"], rows["prompt_ids"], -1)
    number = torch.unique(asked, dim=0, return_inverse=True)[1].tolist() if len(rows) else []
    found = [(i, j) for i, j in enumerate(donors(number)) if j >= 0]
    own, other = rows.rows([i for i, _ in found]), rows.rows([j for _, j in found])
    fields = {name: own[name] for name in ("prompt_ids", "prompt_mask", "temperature", "greedy")}
    fields |= {name: other[name] for name in ("action", "present", "mask")}
    if context_length is not None:
        room = context_length - own["prompt_mask"].sum(1)
        fits = torch.arange(other["action"].shape[1]) < room[:, None]
        fields |= {name: fields[name] & fits for name in ("present", "mask")}
    return Experience(fields)


@dataclass(frozen=True, kw_only=True)
class OfflineResponses(Part):
    """Take the next few of the task's labelled responses, epoch after epoch; of preference pairs both responses.

    A response counts as a sample each time it is used, and costs no call of a reward: it was labelled before.
    """

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = (LANGUAGE_FIELDS - {"behaviour_logprob"}) | {"desirable", "example"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "desirable": Field("[B]", "bool", "-", "the response is labelled good; other labelled ones are bad (KTO)"),
    }

    responses_per_step: int = hyperparameter(64, "labelled responses in one iteration; one alone has no z0", low=2)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `responses_per_step` rows."""
        responses = context.run_state.labelled("train")
        start = (context.iteration - 1) * self.responses_per_step
        batch: Experience = responses.batch(
            numbers_of_step(context.seed, len(responses), start, self.responses_per_step)
        )
        count_given(batch, context)
        context.log(
            labels__epoch=(start + self.responses_per_step) / len(responses),
        )
        return batch


@dataclass(frozen=True, kw_only=True)
class ReferencePoint(Part):
    """Measure z0 = max(0, mean log-ratio of the batch's responses to prompts that are not theirs)."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset(
        {"prompt_ids", "prompt_mask", "action", "present", "mask", "temperature", "greedy"}
    )
    gives: ClassVar[frozenset[str]] = frozenset({"reference_point"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "reference_point": Field(
            "[B]", "float32", "nats", "what a response's log-ratio is judged against, one number a batch (KTO)"
        ),
    }
    models: ClassVar[frozenset[str]] = frozenset({"reference"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `reference_point` [B], one number in all whole sampled rows, without gradient; 0 elsewhere.

        Raises:
            UserError: all responses answer one prompt.
        """
        run_state = context.run_state
        counted = scored_rows(experience)
        batch = mismatched(experience, counted, run_state.policy.context)
        if not len(batch):
            raise UserError(
                f"All responses of iteration {context.iteration} answer one prompt, and z0 is measured on responses to "
                "other prompts; give data with more prompts, or a larger --responses-per-step."
            )
        logprob = run_state.measured_outputs(batch, {"logprob"})["logprob"]
        r = sequence_log_ratio(logprob, run_state.reference_logprob(batch), batch["mask"])
        z0 = r.mean().clamp(min=0)
        context.log(reference_point=z0, reference_point__unclamped=r.mean())
        return experience.with_fields(reference_point=torch.where(counted, z0, 0.0))


@dataclass(frozen=True, kw_only=True)
class KTOLoss(Term):
    """Raise desirable responses above the reference point and hold undesirable ones below it (equation 8)."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"desirable", "reference_point", "ref_logprob", "mask", "weight"})
    derives: ClassVar[tuple[type[Part], ...]] = (ReferencePoint,)

    beta: float = hyperparameter(0.1, "how soon a response's value saturates: reward = beta * log-ratio", above=0)
    desirable_weight: float = hyperparameter(1.0, "lambda_D: weight of desirable responses", low=0)
    undesirable_weight: float = hyperparameter(1.0, "lambda_U: weight of undesirable responses", low=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Loss of each response, `[B]`."""
        r = sequence_log_ratio(outputs["logprob"], experience["ref_logprob"], experience["mask"])
        weights = self.desirable_weight, self.undesirable_weight
        return kto_loss(r, experience["reference_point"], experience["desirable"], self.beta, *weights)

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B]` weights: one over the number of responses that count, of both kinds together, 0 in the others."""
        counted = (experience["weight"] != 0).any(1).to(experience["weight"].dtype)
        return counted / counted.sum().clamp(min=1)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Implicit rewards and log-probabilities of either kind, 0 in the other, and the share of the desirable, `[B]`.

        What is logged is what `on_update_end` makes of them.
        """
        good = experience["desirable"].to(outputs["logprob"].dtype)
        reward = self.beta * sequence_log_ratio(outputs["logprob"], experience["ref_logprob"], experience["mask"])
        total = sequence_logprob(outputs["logprob"], experience["mask"])
        return {
            "labels/desirable": good,
            "rewards/chosen": reward * good,
            "rewards/rejected": reward * (1 - good),
            "logps/chosen": total * good,
            "logps/rejected": total * (1 - good),
        }

    def notices(self, run_state: Any) -> list[str]:
        """Say where one kind of response outweighs the other: then the policy is pushed off, or to, all of them."""
        labels = [row["label"] for row in run_state.labelled("train").rows]
        good, bad = self.desirable_weight * sum(labels), self.undesirable_weight * (len(labels) - sum(labels))
        low, high = BALANCE
        if not (good and bad) or low * (1 - SLACK) <= good / bad <= high * (1 + SLACK):
            return []
        return [
            f"{sum(labels)} of {len(labels)} training responses are desirable, so with these weights they count "
            f"{good / bad:.2f} times as much as the undesirable ones; the paper keeps this between 1 and 4/3, as "
            f"--desirable-weight {self.desirable_weight * bad / good:.2f} does."
        ]

    def on_update_end(self, metrics: dict[str, float], context: Context) -> None:
        """Divide by the share of each kind: means over desirable and over undesirable responses, TRL's names."""
        good = metrics["labels/desirable"]
        for side, share in (("chosen", good), ("rejected", 1 - good)):
            for name in (f"rewards/{side}", f"logps/{side}"):
                value = metrics.pop(name)
                if share > 0:
                    metrics[name] = value / share
        if 0 < good < 1:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]


def recipe() -> Recipe:
    """KTO as published: labelled responses, summed log-ratios to the starting model, equal weights, one pass."""
    return Recipe(
        name=SLUG,
        collect=OfflineResponses(responses_per_step=64),
        score=(),
        credit=(),
        terms=(KTOLoss(beta=0.1),),
        optimize=Optimize(learning_rate=5e-4, warmup=0.1, schedule="cosine"),
        adds=("offline-responses", "kto-loss"),
        notes={
            "collect": "responses that are labelled good or bad; nothing is sampled",
            "score": "the label is the score; the starting model says how likely it finds each response",
            "credit": "z0: what a log-ratio is judged against, from prompts with responses to others",
            "improve": "a value that saturates on both sides of z0, so that no response is pushed for ever",
        },
    )
