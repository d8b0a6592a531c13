"""What selects, as plain loops; and every part of the online language methods by its name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

import plain_parts as plain
from plain_parts import (
    Table,
    before,
    chosen,
    distribution,
    everywhere,
    fresh,
    log_softmax,
    pstdev,
    rows_of,
    whole,
    zeros,
)


def all_steps(t: Table, p: Any, c: Any) -> None:
    t["weight"] = zeros(t)
    for i in rows_of(t):
        for k in fresh(t, i):
            t["weight"][i][k] = 1.0


def window_steps(t: Table, p: Any, c: Any) -> None:
    all_steps(t, p, c)
    t["value_weight"] = everywhere(t, {i: 1.0 for i in whole(t)})


def critic_pretraining(t: Table, p: Any, c: Any) -> None:
    if c.iteration <= p.critic_pretraining:
        t["value_weight"] = t.get("value_weight", [row[:] for row in t["weight"]])
        t["weight"] = zeros(t)


def entropy_at_collection(t: Table, p: Any, c: Any) -> None:
    known = c.run_state.table.tolist()
    t["entropy_at_collection"] = zeros(t)
    for i in rows_of(t):
        for k in chosen(t, i):
            logs = distribution(t, known, i, k)
            t["entropy_at_collection"][i][k] = -sum(math.exp(x) * x for x in logs) if any(t["weight"][i]) else 0.0


def curvature_mask(t: Table, p: Any, c: Any) -> None:
    rate, table, start = (
        c.optimizer["policy"].param_groups[0]["lr"],
        c.run_state.table.tolist(),
        c.run_state.start.tolist(),
    )
    for i in rows_of(t):
        for k in chosen(t, i):
            gain, h = t["advantage"][i][k], start[before(t, i, k)]
            if not t["weight"][i][k] or not gain:
                continue
            pi = [math.exp(x) for x in log_softmax([sum(a * b for a, b in zip(w, h, strict=True)) for w in table])]
            v = [(a == t["action"][i][k]) - x for a, x in enumerate(pi)]
            u = [gain * x * sum(y * y for y in h) for x in v]  # an Adam that has seen nothing gives the gradient
            along = sum(a * b for a, b in zip(v, u, strict=True))
            mean = sum(a * b for a, b in zip(pi, u, strict=True))
            fisher = sum(a * (b - mean) ** 2 for a, b in zip(pi, u, strict=True))
            policy = rate**2 / 2 * along**2
            objective = gain * (rate * along + policy - rate**2 / 2 * fisher)
            if abs(objective) >= p.objective_bound or policy >= p.policy_bound:
                t["weight"][i][k] = 0.0


def training(t: Table) -> list[int]:
    return [i for i in rows_of(t) if any(t["weight"][i])]


def varied_rollouts(t: Table, p: Any, c: Any, made: Table) -> None:
    """The subset that was chosen has the largest variance that any of its size has."""
    rows = training(t)
    value = {}
    for i in rows:
        counted = [k for k in chosen(t, i) if t["weight"][i][k]]
        value[i] = fmean(t["advantage"][i][k] for k in counted)
    count = max(1, round(p.rollouts_start * len(rows))) if rows else 0
    kept = [i for i in rows if any(made["weight"][i])]
    assert len(kept) == count
    if rows:
        best = max(pstdev([value[i] for i in some]) for some in itertools.combinations(rows, count))
        assert abs(pstdev([value[i] for i in kept]) - best) < 1e-9
    for i in rows:
        if i not in kept:
            t["weight"][i] = [0.0] * len(t["weight"][i])


def telling_tokens(t: Table, p: Any, c: Any, made: Table) -> None:
    """The tokens that were chosen have the largest |advantage| x entropy."""
    places = [(i, k) for i in rows_of(t) for k in chosen(t, i) if t["weight"][i][k]]
    key = {(i, k): abs(t["advantage"][i][k]) * t["entropy_at_collection"][i][k] for i, k in places}
    kept = [place for place in places if made["weight"][place[0]][place[1]]]
    assert len(kept) == (max(1, round(p.tokens_start * len(places))) if places else 0)
    lost = [key[place] for place in places if place not in kept]
    assert not lost or min(key[place] for place in kept) >= max(lost) - 1e-9
    for i, k in set(places) - set(kept):
        t["weight"][i][k] = 0.0


def drop_small_advantages(t: Table, p: Any, c: Any) -> None:
    rows = training(t)
    for i in rows:
        if max(abs(t["advantage"][i][k]) for k in chosen(t, i) if t["weight"][i][k]) < p.smallest_advantage:
            t["weight"][i] = [0.0] * len(t["weight"][i])
    t["kept_share"] = [len(training(t)) / max(len(rows), 1) for _ in rows_of(t)]


def drop_small_gaps(t: Table, p: Any, c: Any) -> None:
    t["weight"] = everywhere(t, {i: float(t["advantage_gap"][i] >= p.min_gap) for i in rows_of(t)})
    t["value_weight"] = zeros(t)


def policy_filter(t: Table, p: Any, c: Any) -> list[int]:
    """Best and any other: the rows that are drawn, then those that have no score."""
    rows = [i for i in whole(t) if any(t["weight"][i])]
    if not rows:
        return [*rows_of(t)]
    order = torch.randperm(len(rows), generator=c.generator("filter")).tolist()  # which of equal ones comes first
    ranked = sorted(order, key=lambda n: -t["score"][rows[n]])
    chance = [0.0] * len(rows)
    for g in {t["group"][i] for i in rows}:
        group = [n for n in ranked if t["group"][rows[n]] == g]
        for rank, n in enumerate(group):
            chance[n] = 1.0 if len(group) == 1 else 0.5 if rank == 0 else 0.5 / (len(group) - 1)
    stream = c.generator("filter draw")
    drawn = torch.multinomial(
        torch.tensor(chance, dtype=torch.float64) / sum(chance), len(rows), True, generator=stream
    )
    return [rows[n] for n in drawn.tolist()] + [i for i in rows_of(t) if i not in rows]


def turns(t: Table, p: Any, c: Any) -> None:
    t["turn"] = [[0] * len(row) for row in t["mask"]]
    for i in rows_of(t):
        number, spoke = -1, False
        for k in range(sum(t["present"][i])):
            number += t["mask"][i][k] and not spoke
            spoke = t["mask"][i][k]
            t["turn"][i][k] = max(number, 0)


PARTS: dict[str, Callable[[Table, Any, Any], None]] = {
    **{name: plain.ensemble for name in ("uwo", "wco", "ensemble-mean")},
    "task-reward": plain.task_reward,
    "learned-reward": plain.learned_reward,
    "reference-logprob": plain.reference_logprob,
    "token-kl-penalty": plain.token_kl_penalty,
    "trajectory-kl-penalty": plain.trajectory_kl_penalty,
    "thinking-penalty": plain.thinking_penalty,
    "normalize-score": plain.normalize_score,
    "dpo-reward": plain.dpo_reward,
    "tool-coefficient": plain.tool_coefficient,
    "values": plain.values,
    "gae": plain.gae,
    "egae": plain.egae,
    "whiten-advantage": plain.whiten_advantage,
    "group-advantage": plain.group_advantage,
    "leave-one-out": plain.leave_one_out,
    "pair-difference": plain.pair_difference,
    "batch-advantage": plain.batch_advantage,
    "greedy-baseline": plain.greedy_baseline,
    "vine-advantage": plain.vine_advantage,
    "step-advantage": plain.step_advantage,
    "all-steps": all_steps,
    "window-steps": window_steps,
    "critic-pretraining": critic_pretraining,
    "entropy-at-collection": entropy_at_collection,
    "curvature-mask": curvature_mask,
    "drop-small-advantages": drop_small_advantages,
    "drop-small-gaps": drop_small_gaps,
    "turns": turns,
}
CHOOSING: dict[str, Callable[[Table, Any, Any, Table], None]] = {
    "varied-rollouts": varied_rollouts,
    "telling-tokens": telling_tokens,
}
