"""Every part of the online language methods as a plain loop over rows and tokens: what a composition must come to.

A table is a dictionary of nested lists, `[row][token]` or `[row]`. Nothing of the library computes here, so that the
two can be held against each other; where equal numbers leave a choice open, what was chosen is checked and taken over.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import torch

Table = dict[str, Any]
END = 4
"""Token that ends a step."""


def pstdev(x: list[float]) -> float:
    mean = fmean(x)
    return math.sqrt(fmean((v - mean) ** 2 for v in x))


def stdev(x: list[float]) -> float:
    return pstdev(x) * math.sqrt(len(x) / (len(x) - 1))


def rows_of(t: Table) -> range:
    return range(len(t["mask"]))


def chosen(t: Table, i: int) -> list[int]:
    return [k for k, here in enumerate(t["mask"][i]) if here]


def whole(t: Table) -> list[int]:
    return [i for i in rows_of(t) if t["finished"][i] and not t["greedy"][i]]


def fresh(t: Table, i: int) -> list[int]:
    return [] if t["greedy"][i] else [k for k in chosen(t, i) if t["window"][i][k]]


def siblings(t: Table, i: int) -> list[int]:
    return [j for j in whole(t) if t["group"][j] == t["group"][i]]


def zeros(t: Table) -> list[list[float]]:
    return [[0.0] * len(row) for row in t["mask"]]


def everywhere(t: Table, number: dict[int, float]) -> list[list[float]]:
    out = zeros(t)
    for i, x in number.items():
        for k in chosen(t, i):
            out[i][k] = x
    return out


def pay(t: Table, i: int, amount: float) -> None:
    t["reward"][i][chosen(t, i)[-1]] += amount


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    norm = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - norm for x in row]


def before(t: Table, i: int, k: int) -> int:
    return t["action"][i][k - 1] if k else t["prompt_ids"][i][-1]


def distribution(t: Table, table: list[list[float]], i: int, k: int) -> list[float]:
    return log_softmax([x / t["temperature"][i] for x in table[before(t, i, k)]])


def logprobs(t: Table, table: torch.Tensor) -> list[list[float]]:
    out, known = zeros(t), table.tolist()
    for i in rows_of(t):
        for k in chosen(t, i):
            out[i][k] = distribution(t, known, i, k)[t["action"][i][k]]
    return out


def total(t: Table, i: int) -> float:
    return sum(t["reward"][i][k] for k in chosen(t, i))


# ------------------------------------------------------------------------------------------------------------- score


def judged(t: Table, score: dict[int, float]) -> None:
    t["reward"], t["score"] = zeros(t), [score.get(i, 0.0) for i in rows_of(t)]
    for i in rows_of(t):
        if t["finished"][i]:
            pay(t, i, t["score"][i])


def task_reward(t: Table, p: Any, c: Any) -> None:
    judged(t, {i: t["truth"][i] for i in rows_of(t) if t["finished"][i]})


def learned_reward(t: Table, p: Any, c: Any) -> None:
    judged(t, {i: 2 * t["truth"][i] + 1 for i in rows_of(t) if t["finished"][i]})


def ensemble(t: Table, p: Any, c: Any) -> None:
    done = [i for i in rows_of(t) if t["finished"][i]]
    members = []
    for m in range(p.members):
        raw = {i: (m + 1) * t["truth"][i] + m * t["truth"][i] ** 2 for i in done}
        seen = [raw[i] for i in whole(t)]
        members.append({i: (raw[i] - fmean(seen)) / (pstdev(seen) or 1.0) for i in done})
    combined = {}
    for i in done:
        x = [member[i] for member in members]
        lowest, mean = min(x), fmean(x)
        combined[i] = lowest if p.name == "wco" else mean - getattr(p, "uwo_coef", 0.0) * pstdev(x) ** 2
    judged(t, combined)


def reference_logprob(t: Table, p: Any, c: Any) -> None:
    t["ref_logprob"] = logprobs(t, c.run_state.start)


def token_kl_penalty(t: Table, p: Any, c: Any) -> None:
    for i in rows_of(t):
        for k in chosen(t, i) if p.kl_coef and not t["greedy"][i] else []:
            t["reward"][i][k] -= p.kl_coef * (t["behaviour_logprob"][i][k] - t["ref_logprob"][i][k])


def trajectory_kl_penalty(t: Table, p: Any, c: Any) -> None:
    t["kl_charge"] = [0.0 for _ in rows_of(t)]
    for i in whole(t):
        ratio = sum(t["behaviour_logprob"][i][k] - t["ref_logprob"][i][k] for k in chosen(t, i))
        t["kl_charge"][i] = p.kl_coef * ratio
        pay(t, i, -t["kl_charge"][i])


def rescore(t: Table, i: int, score: float) -> None:
    pay(t, i, score - t["score"][i])
    t["score"][i] = score


def thinking_penalty(t: Table, p: Any, c: Any) -> None:
    for i in rows_of(t):
        text, need = t["completion"][i], t["need"][i]
        inside, closed, _ = text.partition("<")[2].partition(">")
        thinks = "<" in text and bool(inside.strip() or not closed)
        good = text.startswith("<") and text.count("<") == text.count(">") == 1 and text.index("<") < text.index(">")
        off = p.omission_penalty * (need and not thinks) + p.overuse_penalty * (not need and thinks)
        if t["finished"][i]:
            rescore(t, i, t["score"][i] - off - p.format_penalty * (not good))


def normalize_score(t: Table, p: Any, c: Any) -> None:
    seen = [t["score"][i] for i in whole(t)]
    mean, spread = fmean(seen), max(stdev(seen), 1e-8)
    for i in rows_of(t):
        if t["finished"][i]:
            rescore(t, i, max(-p.score_clip, min(p.score_clip, (t["score"][i] - mean) / spread)))


def dpo_reward(t: Table, p: Any, c: Any) -> None:
    found = logprobs(t, c.run_state.frozen)
    for i in rows_of(t):
        if t["greedy"][i]:
            continue
        dense = {}
        for k in chosen(t, i):
            x = p.dpo_reward_scale * (found[i][k] - t["ref_logprob"][i][k])
            dense[k] = max(-p.dpo_reward_clip, min(p.dpo_reward_clip, x))
        for k, x in dense.items():
            t["reward"][i][k] += x if p.spread != "sequence" else 0.0
        if p.spread != "token" and t["finished"][i]:
            pay(t, i, sum(dense.values()) * (1 if p.spread == "sequence" else -1))


def tool_coefficient(t: Table, p: Any, c: Any) -> None:
    right = [i for i in whole(t) if t["score"][i] >= p.right_from - 1e-6]
    for i in rows_of(t):
        same = [t["calls"][j] for j in right if t["group"][j] == t["group"][i]]
        fewest = 0 if p.minimum == "zero" else min(same, default=None)
        m = t["calls"][i]
        if fewest is None or not t["finished"][i]:
            continue
        if fewest == 0:
            factor = math.cos(m * math.pi / (2 * m + p.smoothing))
        else:
            factor = math.sin(math.pi * m / max(m + fewest, 1))
        rescore(t, i, t["score"][i] * factor)


# ------------------------------------------------------------------------------------------------------------ credit


def values(t: Table, p: Any, c: Any) -> None:
    known = c.run_state.values.tolist()
    t["value"] = [[known[before(t, i, k)] for k in range(len(t["mask"][i]))] for i in rows_of(t)]


def gae(t: Table, p: Any, c: Any) -> None:
    t["advantage"], t["value_target"] = zeros(t), zeros(t)
    for i in rows_of(t):
        tokens = chosen(t, i)
        for at, k in enumerate(tokens):
            sum_, discount = 0.0, 1.0
            for here, after in zip(tokens[at:], [*tokens[at + 1 :], None], strict=True):
                follows = 0.0 if after is None else t["value"][i][after]
                if after is None and not t["finished"][i]:  # an unfinished response ends with the last value known
                    follows = t["value"][i][here]
                sum_ += discount * (t["reward"][i][here] + p.gamma * follows - t["value"][i][here])
                discount *= p.gamma * p.gae_lambda
            t["advantage"][i][k] = sum_
            t["value_target"][i][k] = sum_ + t["value"][i][k]


def egae(t: Table, p: Any, c: Any) -> None:
    gae(t, p, c)
    for i in rows_of(t):
        for k in chosen(t, i):
            t["value_target"][i][k] = sum(t["reward"][i][j] for j in chosen(t, i) if j >= k)


def whiten_advantage(t: Table, p: Any, c: Any) -> None:
    places = [(i, k) for i in rows_of(t) for k in fresh(t, i)]
    seen = [t["advantage"][i][k] for i, k in places]
    spread = (stdev(seen) if p.whiten_unbiased else pstdev(seen)) + 1e-8
    white = zeros(t)
    for i, k in places:
        white[i][k] = (t["advantage"][i][k] - fmean(seen) * p.whiten_centre) / spread
    t["advantage"] = white


def group_advantage(t: Table, p: Any, c: Any) -> None:
    found = {}
    for i in whole(t):
        own = [total(t, j) for j in siblings(t, i)]
        found[i] = (total(t, i) - fmean(own)) / ((stdev(own) if len(own) > 1 else 0.0) + p.group_epsilon)
    t["advantage"] = everywhere(t, found)


def leave_one_out(t: Table, p: Any, c: Any) -> None:
    others = {i: [total(t, j) for j in siblings(t, i) if j != i] for i in whole(t)}
    t["advantage"] = everywhere(t, {i: total(t, i) - fmean(o) if o else 0.0 for i, o in others.items()})


def pair_difference(t: Table, p: Any, c: Any) -> None:
    found = {}
    for i in whole(t):
        both = siblings(t, i)
        if len(both) == 2:
            j = both[0] if both[1] == i else both[1]
            found[i] = t["score"][i] - t["kl_charge"][i] - (t["score"][j] - t["kl_charge"][j])
    t["advantage"] = everywhere(t, found)


def batch_advantage(t: Table, p: Any, c: Any) -> None:
    t["advantage"] = zeros(t)
    for i in whole(t):
        for k in chosen(t, i):
            t["advantage"][i][k] = sum(t["reward"][i][j] for j in chosen(t, i) if j >= k)
    places = [(i, k) for i in whole(t) for k in chosen(t, i)]
    seen = [t["advantage"][i][k] for i, k in places]
    mean, spread = fmean(seen), pstdev(seen) + 1e-8
    for i, k in places:
        t["advantage"][i][k] = (t["advantage"][i][k] - mean) / spread


def greedy_baseline(t: Table, p: Any, c: Any) -> None:
    twin = {t["group"][i]: t["score"][i] for i in rows_of(t) if t["greedy"][i]}
    t["advantage"] = zeros(t)
    for i in rows_of(t):
        for at, k in enumerate(chosen(t, i)):
            later = chosen(t, i)[at:]
            penalty = -sum(t["reward"][i][j] for j in later) + t["score"][i]
            left = len(later)
            t["advantage"][i][k] = p.reward_gamma**left * (t["score"][i] - twin[t["group"][i]]) - penalty


def vine_advantage(t: Table, p: Any, c: Any) -> None:
    t["advantage"] = zeros(t)
    for i in whole(t):
        starts, begins = [], True
        for k in range(sum(t["present"][i])):
            if t["mask"][i][k] and begins:
                starts.append(k)
                begins = False
            begins = begins or t["action"][i][k] == END
        worth = {}
        for k in starts:
            said = [t["group"][i], *t["action"][i][:k]]
            base = sum((j + 2) * token for j, token in enumerate(said))
            worth[k] = fmean((base * (n + 1)) % 5 / 4 for n in range(p.continuations))
        for k, following in zip(starts, [*starts[1:], None], strict=True):
            here = [j for j in chosen(t, i) if j >= k and (following is None or j < following)]
            gain = sum(t["reward"][i][j] for j in here) + (worth[following] if following is not None else 0.0)
            for j in here:
                t["advantage"][i][j] = gain - worth[k]


def step_advantage(t: Table, p: Any, c: Any) -> None:
    known, quality = c.run_state.values.tolist(), {}
    for i in rows_of(t):
        last = t["action"][i][sum(t["present"][i]) - 1]
        quality[i] = t["outcome"][i] if t["ends_response"][i] else 1 / (1 + math.exp(-known[last]))
    found, t["advantage_gap"] = {}, [0.0 for _ in rows_of(t)]
    for i in rows_of(t):
        state = [j for j in rows_of(t) if t["group"][j] == t["group"][i]]
        copies = sum(t["copies"][j] for j in state)
        found[i] = quality[i] - sum(t["copies"][j] * quality[j] for j in state) / copies
        t["advantage_gap"][i] = max(quality[j] for j in state) - min(quality[j] for j in state)
    t["advantage"] = everywhere(t, found)
    t["value_target"] = everywhere(t, {i: t["state_outcome"][i] for i in rows_of(t)})
