"""DAPO-direct: learn first what steps are worth, from outcomes of continuations; then regress the policy onto it.

(Direct Advantage-based Policy Optimization, not ByteDance's DAPO.) The policy's own solutions are continued N times
from each of their steps. A critic learns the share of right continuations of each state and is then frozen. The first
steps of the continuations are the actions; an action's advantage is the critic's value behind it less the mean over
all N, duplicates included; and the log-ratio of each distinct action to the sampling policy is regressed on A / beta.

The equations were reconstructed where the text at hand lacked them. What is ours: the critic continues from the
policy's own backbone, and the state and its actions are rows of one table, so that both stages pass over the same rows.
With steps longer than a response (`step_tokens`) this is the same loss on whole responses: A = r - mean r. A state is a
prompt with the first steps of a solution, and stands where a prompt stands elsewhere; an action is the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.errors import UserError
from polyrl.kernels.padding import pad_rows
from polyrl.parts.collect import LANGUAGE_FIELDS
from polyrl.parts.credit import value_after
from polyrl.parts.improve import ValueCrossEntropy
from polyrl.parts.optimize import Optimize
from polyrl.parts.steps import Continuing, continued, step_starts, task_steps
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter
from polyrl.rollout.language import Sampling
from polyrl.runtime.seeding import generator

SLUG = "dapo-direct"
TITLE = "Direct Advantage-Based Policy Optimization"
PAPER = "arXiv:2412.18279"
YEAR = 2024
FORMULA = "loss = (log pi(a|s) - log pi_ref(a|s) - A(s, a) / beta)^2 / 2, A = V(s a) - mean_N V(s a_j)"


# ------------------------------------------------------------------------------------------- states and steps


def balanced(score: Tensor, group: Tensor, kept: int) -> Tensor:
    """Rows `[n]` of at most `kept` of each group, as many good (above the group's mean) as bad ones where it can be."""
    found: list[int] = []
    for g in dict.fromkeys(group.tolist()):
        rows = (group == g).nonzero()[:, 0].tolist()
        mean = float(score[rows].mean())
        good, bad = [i for i in rows if score[i] > mean], [i for i in rows if score[i] <= mean]
        half = max(kept // 2, kept - len(bad))
        chosen = good[:half]
        found += sorted(chosen + bad[: kept - len(chosen)])
    return torch.tensor(found)


@dataclass(frozen=True, kw_only=True)
class OfflineSteps(Continuing):
    """Sample solutions and continuations from each of their steps once; then pass over these states again and again.

    The first passes are the critic's, the others the policy's; with `policy_epochs` a new set is made after them, by
    the policy as it has become. Each batch is some states with the distinct first steps of their continuations: rows
    whose prompt is the state. A row counts as a sample each time it is trained on; tokens are those that were
    generated. `ref_logprob` is of the policy that made the set.
    """

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = (LANGUAGE_FIELDS - {"behaviour_logprob"}) | {
        *("ref_logprob", "copies", "outcome", "state_outcome", "problem", "ends_response", "critic_turn"),
    }
    own_fields: ClassVar[Mapping[str, Field]] = {
        "copies": Field(
            "[B]", "int64", "-", "how many of the state's continuations begin with this step (offline steps)"
        ),
        "outcome": Field(
            "[B]", "float32", "task's own", "mean score of the continuations that begin with this step (offline steps)"
        ),
        "state_outcome": Field("[B]", "float32", "task's own", "mean score of a state's continuations (offline steps)"),
        "problem": Field("[B]", "int64", "index", "problem of the data set that the state belongs to (offline steps)"),
        "ends_response": Field("[B]", "bool", "-", "nothing follows the step (offline steps)"),
        "critic_turn": Field("[B]", "bool", "-", "the batch is for the critic, not for the policy (offline steps)"),
    }

    continuations: int = hyperparameter(8, "N, continuations of each state: their first steps are the actions", low=2)
    problems: int = hyperparameter(64, "problems in one set", low=1)
    solutions: int = hyperparameter(8, "solutions sampled for each problem", low=1)
    kept: int = hyperparameter(
        4, "solutions of each problem whose steps enter the set, right and wrong ones balanced", low=1
    )
    states_per_step: int = hyperparameter(32, "states in one iteration", low=1)
    critic_epochs: int = hyperparameter(2, "passes in which the critic learns, before the policy does", low=0)
    policy_epochs: int | None = hyperparameter(
        None, "passes in which the policy learns, before a new set; none: no new set", low=1
    )

    def check_within(self, recipe: Recipe) -> None:
        """Its own samples are its responses, and it asks the task itself what they are worth: nobody else can say."""
        others = [p.name for p in recipe.score if "score" in p.gives and p.name != "task-reward"]
        if others:
            raise UserError(
                f"{recipe.name}: '{self.name}' judges steps by the task's own reward, so "
                f"{' and '.join(map(repr, others))} would change nothing; leave one of the two away."
            )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return the rows of some states; see the fields `copies`, `outcome`, `state_outcome` and `critic_turn`."""
        memory, table = context.memory(self.name), context.tensors(self.name)
        spent = not memory or memory["at"] >= memory["states"] * self._passes(memory["states"])
        if spent:
            made = self.make(context, memory.get("round", -1) + 1)
            table.clear()
            table.update(made)
            memory.update(round=memory.get("round", -1) + 1, at=0, states=int(made["group"].max()) + 1)
        states, at = memory["states"], memory["at"]
        epoch, place = divmod(at, states)
        stream = generator(context.seed, self.name, "order", memory["round"], epoch)
        picked = torch.randperm(states, generator=stream)[place : place + self.states_per_step]
        memory["at"] = at + len(picked)
        rows = torch.isin(table["group"], picked).nonzero()[:, 0]
        batch = Experience({name: x[rows] for name, x in table.items()})
        context.spent.samples += len(batch)
        turn = torch.full((len(batch),), epoch < self.critic_epochs)
        problem = context.run_state.task.rows("train", context.seed, 0, int(table["problem"].max()) + 1)
        chosen = [problem[i] for i in batch["problem"].tolist()]
        said = [ids[real].tolist() for ids, real in zip(batch["action"], batch["present"], strict=True)]
        context.log(offline__epoch=epoch, offline__states=states)
        texts = [context.run_state.policy.decode(ids) for ids in said]
        batch = batch.with_columns(prompt=[row["prompt"] for row in chosen], completion=texts)
        return batch.answering(chosen).with_fields(critic_turn=turn)

    def _passes(self, states: int) -> float:
        return float("inf") if self.policy_epochs is None else self.critic_epochs + self.policy_epochs

    def make(self, context: Context, number: int) -> dict[str, Tensor]:
        """Set `number`, as columns of a table with one row for each state and distinct first step."""
        run_state = context.run_state
        task = run_state.task
        sampling = Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_tokens=task.max_tokens,
            stop=tuple(task.stop),
        )
        first = number * self.problems
        solved: Experience = run_state.sample(
            task.rows("train", context.seed, first, self.problems),
            sampling,
            completions_per_prompt=self.solutions,
            generator=context.generator("collect"),
        )
        scores, _, calls = run_state.score(solved)
        spent = context.spent
        spent.tokens += int(solved["present"].sum())
        spent.steps += int(solved["mask"].sum())
        spent.reward_calls += calls
        context.log(reward=scores.nanmean(), reward_std=scores[~scores.isnan()].std(correction=0))
        known = (~scores.isnan()).nonzero()[:, 0]
        solved, scores = solved.rows(known), scores[known]
        solved = solved.rows(balanced(scores, solved["group"], self.kept))
        tokens, group = solved["action"].tolist(), solved["group"].tolist()
        where = self.starts(solved, context).nonzero().tolist()
        distinct = {(group[i], *tokens[i][:t]): (i, t) for i, t in reversed(where)}  # one state, whoever came to it
        row, length = torch.tensor(list(distinct.values())).T
        return self._actions(solved, row, length, first, continued(solved, row, length, self, context), context)

    def _actions(
        self, solved: Experience, row: Tensor, length: Tensor, first: int, after: Experience, context: Context
    ) -> dict[str, Tensor]:
        """The table of the states in rows `row` [S] after `length` [S] tokens, and of first steps of `after` [S N]."""
        end, every = task_steps(context.run_state.task, self.step_end, self.step_tokens)
        action, mask, present = (after[name] for name in ("action", "mask", "present"))
        start = step_starts(action, mask, present, context.run_state.policy.decode, end, every)
        step = start.cumsum(1) <= 1
        wide = (present & step).sum(1)
        outcomes = after["score"].view(len(row), -1)
        prompts, lines = [], []
        for i, (r, n) in enumerate(zip(row.tolist(), length.tolist(), strict=True)):
            prompts.append(
                [*solved["prompt_ids"][r][solved["prompt_mask"][r]].tolist(), *solved["action"][r, :n].tolist()]
            )
            same: dict[tuple[int, ...], list[int]] = {}
            for k in range(i * self.continuations, (i + 1) * self.continuations):
                if not after["score"][k].isnan():
                    same.setdefault(tuple(action[k, : wide[k]].tolist()), []).append(k)
            lines += [(i, ks) for ks in same.values()]
        chosen = torch.tensor([ks[0] for _, ks in lines])
        state = torch.tensor([i for i, _ in lines])
        ids, real = pad_rows(prompts, context.run_state.policy.pad_id, "left")
        width = int(wide[chosen].max())
        here = torch.arange(width) < wide[chosen][:, None]
        counted = here & mask[chosen, :width]
        size = len(lines)
        found: dict[str, Any] = {
            "prompt_ids": ids[state],
            "prompt_mask": real[state],
            "action": action[chosen, :width].masked_fill(~here, context.run_state.policy.pad_id),
            "present": here,
            "mask": counted,
            "ref_logprob": after["behaviour_logprob"][chosen, :width] * counted,
            "temperature": after["temperature"][chosen],
            "ended": after["ended"][chosen],
            "group": state,
            "greedy": torch.zeros(size, dtype=torch.bool),
            "length_limit": solved["length_limit"][row[state]],
            "copies": torch.tensor([len(ks) for _, ks in lines]),
            "outcome": torch.tensor([float(after["score"][ks].mean()) for _, ks in lines]),
            "state_outcome": outcomes.nanmean(1)[state],
            "ends_response": wide[chosen] == present[chosen].sum(1),
            "problem": first + solved["group"][row[state]],
        }
        return found


# ------------------------------------------------------------------------------------------- what is learned


def step_advantage(quality: Tensor, copies: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """A_i = Q_i - (1/N) sum_j Q_j over all N samples of a state, and max A - min A of the state (Algorithm 1).

    Args:
        quality: `[B]` values of distinct actions.
        copies: `[B]` how often each was sampled.
        group: `[B]` states.
    """
    _, index = torch.unique(group, return_inverse=True)
    empty = quality.new_zeros(int(index.max()) + 1)
    count = copies.to(quality.dtype)
    mean = empty.index_add(0, index, quality * count) / empty.index_add(0, index, count)
    high, low = (empty.scatter_reduce(0, index, quality, how, include_self=False) for how in ("amax", "amin"))
    return quality - mean[index], (high - low)[index]


@dataclass(frozen=True, kw_only=True)
class StepAdvantage(Part):
    """Judge each step by the frozen critic's value behind it, against all steps sampled from the same state."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"copies", "outcome", "state_outcome", "ends_response", "critic_turn", "group", "mask"}
    )
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "advantage_gap", "value_target"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "advantage_gap": Field("[B]", "float32", "reward", "best less worst advantage among the steps of a state"),
    }
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    step_value: Literal["critic", "outcomes"] = hyperparameter(
        "critic", "value behind a step: the critic's, or the mean outcome of the continuations that begin with it"
    )

    def required_models(self) -> frozenset[str]:
        """The critic, where it is asked."""
        return frozenset({"critic"}) if self.step_value == "critic" else frozenset()

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `value_target` [B, T], `advantage` [B, T], one number a row, and `advantage_gap` [B].

        The last two are 0 while it is the critic's turn.
        """
        outcome, mask = experience["outcome"], experience["mask"]
        counted = scored_rows(experience) & ~outcome.isnan()
        target = torch.where(counted, experience["state_outcome"], 0.0)[:, None] * torch.ones(mask.shape)
        experience = experience.with_fields(value_target=target)
        if bool(experience["critic_turn"].any()):
            return experience.with_fields(advantage=torch.zeros(mask.shape), advantage_gap=torch.zeros_like(outcome))
        quality = outcome
        if self.step_value == "critic":  # where the step ends the response, its reward is known
            learned = torch.sigmoid(value_after(experience, context))
            quality = torch.where(experience["ends_response"], outcome, learned)
        advantage, gap = torch.zeros_like(quality), torch.zeros_like(quality)
        rows = counted.nonzero()[:, 0]
        if len(rows):
            found = step_advantage(quality[rows], experience["copies"][rows], experience["group"][rows])
            advantage, gap = (x.index_put((rows,), y) for x, y in zip((advantage, gap), found, strict=True))
            against = (advantage * (outcome - experience["state_outcome"]))[rows] < 0
            context.log(steps__gap=gap[rows].mean(), steps__against_outcome=against.float().mean())
        return experience.with_fields(advantage=advantage[:, None] * mask, advantage_gap=gap)


@dataclass(frozen=True, kw_only=True)
class DropSmallGaps(Part):
    """Leave out states whose steps are all about equally good; while it is the critic's turn, weigh states for it."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage_gap", "critic_turn", "group", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    min_gap: float = hyperparameter(0.1, "least difference between the best and the worst step of a state", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `weight` [B, T], and `value_weight` [B, T]: 1 at the first token of one row of each state."""
        mask, turn, gap = experience["mask"], experience["critic_turn"], experience["advantage_gap"]
        counted = scored_rows(experience)
        kept = (gap >= self.min_gap) & ~turn & counted
        group = experience["group"].tolist()
        first = {group[i]: i for i in reversed(counted.nonzero()[:, 0].tolist())}
        value_weight = torch.zeros(mask.shape)
        value_weight[[*first.values()], 0] = 1.0
        value_weight *= turn[:, None]
        if not bool(turn.any()):
            context.log(groups__kept=kept[counted].float().mean())
        return experience.with_fields(weight=(mask & kept[:, None]).float(), value_weight=value_weight)


@dataclass(frozen=True, kw_only=True)
class StepRegression(Term):
    """Regress the summed log-ratio of each step to the policy that sampled it on its advantage over beta."""

    slot: ClassVar[str] = "policy-objective"
    grouped_by: ClassVar[str] = "group"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "ref_logprob", "mask", "group", "weight"})

    beta: float = hyperparameter(0.1, "weight of the KL to the sampling policy in what is maximized", above=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """(log-ratio - A / beta)^2 / 2 of each row, `[B]`."""
        ratio = ((outputs["logprob"] - experience["ref_logprob"]) * experience["mask"]).sum(1)
        return (ratio - experience["advantage"][:, 0] / self.beta).square() / 2

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B]` weights: one over the number of rows that count, 0 in the others."""
        counted = (experience["weight"] != 0).any(1)
        return counted.float() / counted.sum().clamp(min=1)


def recipe() -> Recipe:
    """DAPO-direct with the paper's order of things and a beta that a small model can reach."""
    return Recipe(
        name=SLUG,
        collect=OfflineSteps(),
        score=(),
        credit=(StepAdvantage(),),
        select=(DropSmallGaps(),),
        terms=(StepRegression(), ValueCrossEntropy()),
        optimize=Optimize(critic_learning_rate=3e-4),
        adds=("offline-steps", "step-advantage", "drop-small-gaps", "step-regression", "value-cross-entropy"),
        notes={
            "collect": "once: solutions, and continuations from each of their steps; then passes over these states",
            "credit": "the critic says what the state behind each step is worth, once it has learned and is frozen",
            "select": "one row for each distinct step; states where all steps are equally good are left out",
            "improve": "first the critic alone, by cross-entropy; then the policy alone, by least squares",
        },
    )
