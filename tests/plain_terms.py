"""Every term of the online language methods as a plain loop: what the objective of a composition must come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from plain_parts import Table, chosen, rows_of
from plain_selection import training

Places = dict[tuple[int, int], float]


def averaged(t: Table, weight: list[list[float]], how: str) -> Places:
    """What each step's loss is multiplied by, so that the sum is the average `how`."""
    counted = {(i, k): weight[i][k] for i in rows_of(t) for k in chosen(t, i) if weight[i][k]}
    rows = {i for i, _ in counted}
    per_row = {i: sum(w for (j, _), w in counted.items() if j == i) for i in rows}
    divisor: Callable[[int], float] = {
        "token-mean": lambda i: sum(counted.values()),
        "seq-mean-token-mean": lambda i: per_row[i] * len(rows),
        "seq-mean-token-sum": lambda i: len(rows),
        "constant": lambda i: len(rows) * t["length_limit"][i],
    }[how]
    return {(i, k): w / divisor(i) for (i, k), w in counted.items()}


def over_steps(t: Table, p: Any, loss: Callable[[int, int], float], critic: bool = False) -> float:
    weight = t.get("value_weight", t["weight"]) if critic else t["weight"]
    return sum(w * loss(i, k) for (i, k), w in averaged(t, weight, p.aggregation).items())


def log_ratio(t: Table, o: Table, i: int, k: int) -> float:
    return o["logprob"][i][k] - t["behaviour_logprob"][i][k]


def clipped_surrogate(t: Table, p: Any, o: Table) -> float:
    high = p.clip_range if p.clip_range_high is None else p.clip_range_high

    def loss(i: int, k: int) -> float:
        ratio, gain = math.exp(log_ratio(t, o, i, k)), t["advantage"][i][k]
        return -min(ratio * gain, max(1 - p.clip_range, min(1 + high, ratio)) * gain)

    return over_steps(t, p, loss)


def sequence_surrogate(t: Table, p: Any, o: Table) -> float:
    """One ratio a rollout, the geometric mean of its counted tokens'."""
    ratios: dict[int, float] = {}
    for i in training(t):
        ratios[i] = math.exp(fmean([log_ratio(t, o, i, k) for k in chosen(t, i) if t["weight"][i][k]]))

    def loss(i: int, k: int) -> float:
        ratio, gain = ratios[i], t["advantage"][i][k]
        return -min(ratio * gain, max(1 - p.clip_range, min(1 + p.clip_range_high, ratio)) * gain)

    return over_steps(t, p, loss)


def clipped_importance_weight(t: Table, p: Any, o: Table) -> float:
    def loss(i: int, k: int) -> float:
        weight = min(1 + p.clip_range_high, math.exp(log_ratio(t, o, i, k)))
        return -weight * t["advantage"][i][k] * o["logprob"][i][k]

    return over_steps(t, p, loss)


def policy_gradient(t: Table, p: Any, o: Table) -> float:
    return over_steps(t, p, lambda i, k: -t["advantage"][i][k] * o["logprob"][i][k])


def value_loss(t: Table, p: Any, o: Table) -> float:
    def loss(i: int, k: int) -> float:
        new, old, target = o["value"][i][k], t["value"][i][k], t["value_target"][i][k]
        error = (new - target) ** 2
        if p.value_clip_range is not None:
            near = old + max(-p.value_clip_range, min(p.value_clip_range, new - old))
            error = max(error, (near - target) ** 2)
        return p.value_coef * error / 2

    return over_steps(t, p, loss, critic=True)


def value_cross_entropy(t: Table, p: Any, o: Table) -> float:
    def loss(i: int, k: int) -> float:
        chance, target = 1 / (1 + math.exp(-o["value"][i][k])), t["value_target"][i][k]
        return -target * math.log(chance) - (1 - target) * math.log(1 - chance)

    return over_steps(t, p, loss, critic=True)


def reference_kl(t: Table, p: Any, o: Table) -> float:
    def loss(i: int, k: int) -> float:
        if not p.kl_loss_coef:
            return 0.0
        d = t["ref_logprob"][i][k] - o["logprob"][i][k]
        return p.kl_loss_coef * min(math.exp(d) - 1 - d, math.inf if p.kl_clamp is None else p.kl_clamp)

    return over_steps(t, p, loss)


def ratio_surrogate(t: Table, p: Any, o: Table) -> float:
    """One ratio a token; the mean over the tokens of a rollout, then over all rollouts that were sampled."""
    means = []
    for i in training(t):
        gains = []
        for k in [k for k in chosen(t, i) if t["weight"][i][k]]:
            ratio, gain = math.exp(log_ratio(t, o, i, k)), t["advantage"][i][k]
            gains.append(min(ratio * gain, gain + p.clip_range * abs(gain)))
        means.append(fmean(gains))
    return -fmean(means) * t["kept_share"][0] if means else 0.0


def pairwise_surrogate(t: Table, p: Any, o: Table) -> float:
    """Two rollouts of one prompt with one clip for both."""
    rows, losses = training(t), []
    counted = {i: [k for k in chosen(t, i) if t["weight"][i][k]] for i in rows}
    own = {i: sum(log_ratio(t, o, i, k) for k in counted[i]) for i in rows}
    for i in rows:
        other = [j for j in rows if t["group"][j] == t["group"][i] and j != i]
        if len(other) != 1:
            continue
        j = other[0]
        difference = (t["advantage"][i][counted[i][0]] - t["advantage"][j][counted[j][0]]) / 2
        weight = difference * min(math.exp(own[i] + own[j]), p.weight_cap)
        z = own[i] - own[j]
        losses.append(-min(weight * z, weight * max(-p.clip_range, min(p.clip_range, z))) / 2)
    return fmean(losses) if losses else 0.0


def step_regression(t: Table, p: Any, o: Table) -> float:
    found = []
    for i in training(t):
        ratio = sum(o["logprob"][i][k] - t["ref_logprob"][i][k] for k in chosen(t, i))
        found.append((ratio - t["advantage"][i][0] / p.beta) ** 2 / 2)
    return fmean(found) if found else 0.0


TERMS: dict[str, Callable[[Table, Any, Table], float]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        clipped_surrogate,
        sequence_surrogate,
        clipped_importance_weight,
        policy_gradient,
        value_loss,
        value_cross_entropy,
        reference_kl,
        ratio_surrogate,
        pairwise_surrogate,
        step_regression,
    )
}
