"""An offline set of states and steps: solutions of the present policy, and what it would say from each of their steps.

A state is a prompt with the first steps of a solution, and stands where a prompt stands elsewhere; an action is the
next step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.padding import pad_rows
from polyrl.parts.collect import LANGUAGE_FIELDS
from polyrl.parts.steps import Continuing, continued, step_starts, task_steps
from polyrl.recipe import Recipe, Stage, hyperparameter
from polyrl.runtime.seeding import generator


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
        *("ref_logprob", "copies", "outcome", "state_outcome", "ends_response", "critic_turn"),
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
        from polyrl.rollout.language import Sampling

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
