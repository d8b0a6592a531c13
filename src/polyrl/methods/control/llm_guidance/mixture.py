"""Acting by a mixture of advice and the policy's own choice, and the likelihood of what was done under the mixture.

P(a|s) = w(s) P_advice(a|s) + (1 - w(s)) pi(a|s). Advice and its weight are constants: only pi is learned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.models.actor import DistributionActor, Moment, Player, Wrapper
from polyrl.models.normalization import Floats


class Guide(Protocol):
    """Gives advice on one of a few actions."""

    def advise(self, observation: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """Probabilities `[B, A]` and the weights `[B]` that they get, for raw observations `[B, D]`."""
        ...


class AdvisedActor(Wrapper):
    """Acts by the mixture of advice and another actor's distribution, and stores the advice that it has used.

    Attributes:
        inner: the agent's own actor, over one of a few actions.
        guide: who gives advice.
    """

    judged_as = "guided"
    inner: DistributionActor

    def __init__(self, inner: DistributionActor, guide: Guide):
        super().__init__(inner)
        self.guide, self.fields_read = guide, frozenset({"advice", "advice_weight"})
        self.recorded = {
            **inner.recorded,
            "advice": ((inner.distribution.size,), np.float32),
            "advice_weight": ((), np.float32),
        }

    def player(self) -> Player:
        """Choose by the mixture's log-probabilities, which then are what is recorded as `params`."""
        describe = self.inner.describer()

        def mixed(moment: Moment) -> Floats:
            params = describe(moment)
            advice, weight = self.guide.advise(moment.shown)
            if moment.records:
                moment.records["advice"][:], moment.records["advice_weight"][:] = advice, weight
            params[:] = mixed_logits(params, advice, weight)
            return params

        return self.inner.chooser(mixed)

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """`behaviour_logprob` of the mixture, `advice` `[B, T, A]` and `advice_weight` `[B, T]`."""
        used = {name: torch.from_numpy(records[name]) for name in ("advice", "advice_weight")}
        return {**self.inner.fields(records, action), **used}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The agent's, with the log-probability of the mixture."""
        found = self.inner.outputs(batch, wants)
        if "logprob" in found:
            found["logprob"] = mixed_logprob(found["logprob"], batch["action"], batch["advice"], batch["advice_weight"])
        return found

    def logprob_by_models(self, logprob: Floats, batch: Experience) -> tuple[Floats, Floats]:
        """The mixture's log-probabilities `[N]`, and their derivatives by the agent's own."""
        action, advice, weight = (batch[n].squeeze(1).numpy() for n in ("action", "advice", "advice_weight"))
        return mixed_grad(logprob, action, advice, weight)


def _log(x: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        found: Floats = np.log(x)
    return found


def mixed_logits(params: Floats, advice: Floats, weight: Floats) -> Floats:
    """log of the mixture `[B, A]`, from logits `[B, A]`, advice `[B, A]` and its weight `[B]`."""
    top = params - params.max(1, keepdims=True)
    logs = top - np.log(np.exp(top).sum(1, keepdims=True))
    theirs, ours = _log(advice * weight[:, None]), _log(1 - weight)[:, None] + logs
    mixed: Floats = np.logaddexp(theirs, ours)
    return mixed


def mixed_logprob(logprob: Tensor, action: Tensor, advice: Tensor, weight: Tensor) -> Tensor:
    """log P of the actions `[...]` under the mixture (arXiv:2411.14457, equation 3), differentiable by `logprob`.

    Args:
        logprob: `[...]`, log pi of the actions.
        action: `[...]` int64.
        advice: `[..., A]` probabilities; weight: `[...]`, in [0, 1].
    """
    theirs = advice.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return torch.logaddexp((weight * theirs).log(), torch.log1p(-weight) + logprob)


def mixed_grad(logprob: Floats, action: NDArray[Any], advice: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """The same for arrays `[N]`, with d log P / d log pi = (1 - w) pi(a) / P(a) `[N]`."""
    theirs = advice[np.arange(len(action)), action]
    ours = _log(1 - weight) + logprob
    mixed: Floats = np.logaddexp(_log(weight * theirs), ours)
    grad_output: Floats = np.exp(ours - mixed)
    return mixed, grad_output
