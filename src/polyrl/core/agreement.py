"""Whether two ways to one number agree: sampler and trainer on log-probabilities, written derivatives and autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import NotFinite, UserError

if TYPE_CHECKING:
    from polyrl.core.part import Term
    from polyrl.core.update import See

LARGEST_GAP = {"float32": 0.2, "bfloat16": 2.0}
"""Difference of two log-probabilities of one action, nats, that cannot be rounding. In float32 up to 2e-4 was seen over
all methods; in bfloat16 logits of 16 to 32 are an eighth apart, and the largest of a million differences is told."""


def check_logprob_gap(logprob: Tensor, rows: Experience, limit: float | None, context: Context) -> None:
    """Before the first step sampler and trainer are the same policy: a gap is an error of one of them.

    Steps that an earlier policy took (`policy_version`) are expected to differ, and are left out. The largest gap of an
    iteration is logged as `logprob_gap`.

    Args:
        logprob: `[B, T]`, the trainer's.
        rows: with `behaviour_logprob` and `weight`, `[B, T]`.
        limit: largest gap allowed, nats; None takes `LARGEST_GAP`.

    Raises:
        UserError: the gap is beyond what rounding makes.
    """
    own = rows["weight"] != 0
    if "policy_version" in rows:
        own &= rows["policy_version"] == context.iteration
    if not bool(own.any()):
        return
    gap = float((logprob.detach() - rows["behaviour_logprob"])[own].abs().max())
    context.metrics["logprob_gap"] = max(context.metrics.get("logprob_gap", 0.0), gap)
    limit = LARGEST_GAP[context.run_state.precision] if limit is None else limit
    if limit < gap < math.inf:  # what is not finite is told by the loss
        raise UserError(
            f"Sampler and trainer disagree on the log-probability of an action by {gap:.3g} nats before the first "
            f"update of iteration {context.iteration}, more than {limit:g} (max_logprob_gap), so nothing was "
            "trained on this batch: what was sampled is not from the policy that is trained, or its "
            "log-probability is computed in two ways."
        )


def differs(found: Tensor, wanted: Tensor) -> bool:
    """Whether two results of one computation, of equal shape, are further apart than rounding can bring them."""
    finite = torch.isfinite(wanted)
    found, wanted = found[finite].double(), wanted[finite].double()
    return not float((found - wanted).norm()) <= 1e-3 * float(wanted.norm()) + 1e-5 * len(wanted) ** 0.5


def compare_written(
    term: Term, outputs: dict[str, Tensor], batch: Experience, see: See, weights: Tensor, trains: str
) -> None:
    """Compare the derivatives that a term of a list states with autograd's, where the update's outputs stand.

    The random stream is left where it was; `weights` are `[B, T]`, as the summand.

    Raises:
        UserError: they are not the derivatives of its summand.
    """
    stream = see.generator.get_state()
    leaves = {name: x.detach().requires_grad_() for name, x in outputs.items()}
    with torch.enable_grad():
        total = (term.summand(leaves, batch, see) * weights).sum()
    wanted = torch.autograd.grad(total, [*leaves.values()], allow_unused=True) if total.requires_grad else ()
    see.generator.set_state(stream)
    told = term.grad_summand(outputs, batch, see, weights)
    see.generator.set_state(stream)
    assert told is not None
    size = float(weights.abs().mean()) or 1.0  # as if each step weighed 1
    by = dict(zip(leaves, wanted, strict=True)) if wanted else {}
    pairs = {"loss": (told[0], total.detach())}
    for name, x in outputs.items():
        found, autograds = told[1].get(name), by.get(name)
        zero = torch.zeros_like(x)
        pairs[f"derivative by {name}"] = (zero if found is None else found, zero if autograds is None else autograds)
    for what, (found, right) in pairs.items():
        if differs(found.reshape(-1) / size, right.reshape(-1) / size):
            raise UserError(
                f"The {what} that the term '{term.name}' of the model '{trains}' states (grad_summand, grad_outputs) "
                "is not autograd's of its loss, so nothing was trained; mend it, or leave it away: then autograd finds "
                "it."
            )


def written(
    terms: Sequence[Term],
    outputs: dict[str, Tensor],
    batch: Experience,
    see: See,
    weights: Sequence[Tensor],
    trains: str,
) -> tuple[list[float], dict[str, Tensor]]:
    """Each term's loss, and the derivatives of their sum by the model's outputs, as the terms state them.

    Those of a kind of term that a run meets for the first time are compared with autograd's.

    Args:
        terms: that state their derivatives.
        outputs: of the model, `[B, T, ...]` each.
        batch: rows of the update.
        see: of the update.
        weights: of each term's summand, `[B, T]`.
        trains: name of the model.

    Returns:
        A number for each term, and by output a tensor `[B, T, ...]` as it.

    Raises:
        UserError: they differ.
    """
    losses, grad_outputs = list[float](), dict[str, Tensor]()
    for term, weight in zip(terms, weights, strict=True):
        if type(term) not in see.context.written:
            compare_written(term, outputs, batch, see, weight, trains)
            see.context.written.add(type(term))
        found = term.grad_summand(outputs, batch, see, weight)
        assert found is not None
        losses.append(float(found[0]))
        for name, x in found[1].items():
            grad_outputs[name] = grad_outputs[name] + x if name in grad_outputs else x
    return losses, grad_outputs


def check_loss(value: float, term: Term, trains: str, context: Context) -> None:
    """Stop before a step whose loss is not finite; raises `NotFinite` with the culprit's name."""
    if not math.isfinite(value):
        raise NotFinite(
            f"The loss of term '{term.name}' of the model '{trains}' became {value} in iteration "
            f"{context.iteration}, so the run stopped before the step; lower "
            f"--{trains.replace('_', '-')}.learning-rate, or look at rewards and observations."
        )


def gradient_norm(gradients: Sequence[Tensor], name: str, context: Context) -> float:
    """Norm of all gradients `[...]` together, of the model `name`, or of several that are clipped together.

    Raises:
        NotFinite: it is NaN or infinite.
    """
    size = math.hypot(*(float(gradient.norm()) for gradient in gradients))
    if not math.isfinite(size):
        whose = f"model '{name}'" if len(gradients) == 1 else "models that are clipped together"
        option = f"--{name.replace('_', '-')}.learning-rate" if len(gradients) == 1 else "--learning-rate"
        raise NotFinite(
            f"The gradient of the {whose} became {size} in iteration {context.iteration}, so "
            f"the run stopped before the step; lower {option} or the spread of the rewards."
        )
    return size
