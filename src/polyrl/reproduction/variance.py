"""How much of a number's variance over seeds is the evaluation's: a share of few test prompts is noisy itself.

More seeds lower both parts, more `eval_prompts` only the evaluation's, at a fraction of the cost: an experiment whose
evaluation makes up much of the variance asks more prompts before it runs more seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polyrl.reproduction.quantities import Difference, Final, Gain, Of

if TYPE_CHECKING:
    from polyrl.reproduction.claim import Criterion
    from polyrl.reproduction.judging import Observed

SHARE = "eval/accuracy"
"""The evaluation that is a share of prompts, so that its variance follows from it and their number."""


def variance_of_share(shares: Sequence[float], prompts: int) -> float:
    """The mean binomial variance of shares of right answers, each of `prompts` prompts."""
    return sum(p * (1 - p) for p in shares) / len(shares) / prompts


def parts_of(
    criterion: Criterion, per_seed: Mapping[int, float], observed: Sequence[Observed], prompts: int | None
) -> dict[str, float] | None:
    """Standard deviation over seeds and the most of it that the evaluation can have made; None where nobody knows.

    Known are shares of right answers and differences of them. The runs of a seed answer the same prompts, which makes
    the evaluation's part smaller than the sum that is taken here, never larger.

    Args:
        criterion: whose number it is.
        per_seed: the number of each seed, two seeds at least.
        observed: the runs of the experiment.
        prompts: of an evaluation; None where it is no matter of prompts.
    """
    quantity = criterion.quantity
    measure = quantity.measure
    if not prompts or not isinstance(quantity, Of | Difference) or not isinstance(measure, Final | Gain):
        return None
    runs = [o for o in observed if o.arm in quantity.arms() and o.seed in per_seed]
    keys = {measure.key or o.metric.key for o in runs}
    if keys != {SHARE} or len(per_seed) < 2:
        return None
    shares = [[o.run.final(SHARE) for o in runs if o.arm == arm] for arm in quantity.arms()]
    if isinstance(measure, Gain):
        shares += [[o.run.start(SHARE) for o in runs if o.arm == arm] for arm in quantity.arms()]
    known = [[p for p in of if p is not None] for of in shares]
    if not all(known):
        return None
    evaluation = sum(variance_of_share(of, prompts) for of in known)
    mean = sum(per_seed.values()) / len(per_seed)
    total = sum((v - mean) ** 2 for v in per_seed.values()) / (len(per_seed) - 1)
    return {
        "deviation": float(f"{math.sqrt(total):.6g}"),
        "of_evaluation_at_most": float(f"{math.sqrt(evaluation):.6g}"),
        "prompts": prompts,
    }


def said(parts: Mapping[str, Any] | None) -> str:
    """The parts in a sentence; empty where they are not known."""
    if not parts:
        return ""
    total, evaluation = parts["deviation"], parts["of_evaluation_at_most"]
    text = f"standard deviation over seeds {total:.3g}, of which {parts['prompts']:g} test prompts make up to "
    return text + (f"{evaluation:.3g}" if evaluation < total else "all of it")
