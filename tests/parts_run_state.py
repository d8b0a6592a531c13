"""A run state that answers whatever a part of the language domain may ask, in tables, and a batch with every field."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.parts.score import last_step
from run_states import VOCABULARY, TableRunState

LETTERS = "_<ab;>c"
"""Text of each token: `<` and `>` stand around a thought, `;` ends a step."""


class PartsRunState(TableRunState):
    """`TableRunState` with rewards of several members, frozen policies, continuations, a last layer and a task."""

    def __init__(self, **changes: Any):
        super().__init__(**changes)
        stream = torch.Generator().manual_seed(9)
        self.frozen = torch.randn(VOCABULARY, VOCABULARY, generator=stream, dtype=torch.float64)
        self.reference_name = "start"
        self.policy = SimpleNamespace(decode=lambda ids: "".join(LETTERS[i] for i in ids), context=None)
        self.task = SimpleNamespace(
            name="table", thinking_tags=("<", ">"), step_end=";", step_tokens=0, max_tokens=9, stop=(), rewards=[]
        )
        self.own = {"reward": SimpleNamespace(scores=lambda e: 2 * truth(e) + 1)}  # type: ignore[dict-item]
        self.reads: frozenset[str] = frozenset()

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The table's, with a cost of each step and a score of each row beside them."""
        found = super().outputs(experience, {*wants, "value"} if {"cost", "score"} & set(wants) else wants)
        if "cost" in wants:
            found["cost"] = found["value"].square()
        if "score" in wants:
            found["score"] = torch.where(experience["mask"], found["value"], 0.0).sum(1)
        return {name: x for name, x in found.items() if name in wants}

    @torch.no_grad()
    def value(self, experience: Experience) -> Tensor:
        """Of every state, also of the one behind the last step."""
        return self.values[torch.cat([experience["prompt_ids"][:, -1:], experience["action"][:, :-1]], 1)]

    def divergence(self) -> float:
        return 0.02

    def score(self, experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        found, parts, calls = super().score(experience)
        return (found if "prompt_ids" in experience else found.float()), parts, calls

    def entropy(self, experience: Experience) -> Tensor:
        return self.outputs(experience, {"entropy"})["entropy"].detach()

    def logprob_under(self, name: str, experience: Experience) -> Tensor:
        return self.frozen_logprob(experience, name)

    def frozen_logprob(self, experience: Experience, folder: str) -> Tensor:
        logs = self.logits(experience, self.frozen).log_softmax(-1)
        return logs.gather(-1, experience["action"][..., None])[..., 0] * experience["mask"]

    def member_scores(self, experience: Experience, members: int) -> tuple[Tensor, int]:
        known = truth(experience)
        return torch.stack([(m + 1) * known + known.square() * m for m in range(members)], 1), len(experience)

    def measures(self, experience: Experience) -> dict[str, Tensor]:
        return {"gold": truth(experience).sin()}

    def prefer(self, experience: Experience, first: Sequence[int], second: Sequence[int]) -> list[float]:
        known = truth(experience)
        return [float(torch.sigmoid(known[a] - known[b])) for a, b in zip(first, second, strict=True)]

    def continuations(
        self, experience: Experience, row: Tensor, tokens: Tensor, sampling: object, *, count: int, **_: Any
    ) -> Experience:
        """One token more of each state; what it is worth says the state's own text, and which continuation it is."""
        worth = []
        for i, n in zip(row.tolist(), tokens.tolist(), strict=True):
            said = [int(experience["group"][i]), *experience["action"][i, :n].tolist()]
            worth += [(sum((j + 2) * t for j, t in enumerate(said)) * (k + 1)) % 5 / 4 for k in range(count)]
        one = torch.ones(len(worth), 1, dtype=torch.bool)
        return Experience({"present": one, "mask": one}, {"truth": worth})

    def unembedding(self) -> Tensor:
        return self.table.detach()

    def hidden_states(self, experience: Experience) -> Tensor:
        before = torch.cat([experience["prompt_ids"][:, -1:], experience["action"][:, :-1]], 1)
        return self.start[before] * experience["mask"][..., None]


def truth(experience: Experience) -> Tensor:
    """What each response is worth, `[B]` float64."""
    return torch.tensor(experience.columns["truth"], dtype=torch.float64)


def every_field(run_state: PartsRunState, batch: Experience, seed: int = 5) -> dict[str, Tensor]:
    """All fields that some part of the language domain reads, with numbers of the right shape drawn for them."""
    stream = torch.Generator().manual_seed(seed)
    size, width = batch["mask"].shape
    mask, end = batch["mask"], last_step(batch["mask"])

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    steps = {name: draw(size, width) * mask for name in ("reward", "advantage", "value", "value_target", "dpo_logprob")}
    turn = ((mask.long().diff(dim=1, prepend=torch.zeros(size, 1, dtype=torch.long)) == 1).cumsum(1) - 1).clamp(min=0)
    return {
        **steps,
        "ref_logprob": run_state.reference_logprob(batch),
        "entropy_at_collection": run_state.entropy(batch),
        "terminated": end,
        "truncated": torch.zeros_like(end),
        "finished": torch.ones(size, dtype=torch.bool),
        "window": mask & (torch.arange(width) >= 1),
        "policy_version": torch.ones(size, width, dtype=torch.long),
        "has_greedy_baseline": torch.ones(size, dtype=torch.bool),
        "score": draw(size),
        "member_score": draw(size, 5),
        "kl_charge": draw(size).abs(),
        "kl_factor": torch.full((size,), 1.5, dtype=torch.float64),
        "copies": torch.randint(1, 4, (size,), generator=stream),
        "outcome": torch.rand(size, generator=stream, dtype=torch.float64),
        "state_outcome": torch.rand(size, generator=stream, dtype=torch.float64),
        "ends_response": torch.rand(size, generator=stream) < 0.5,
        "desirable": torch.rand(size, generator=stream) < 0.5,
        "reference_point": torch.full((size,), 0.25, dtype=torch.float64),
        "critic_turn": torch.zeros(size, dtype=torch.bool),
        "advantage_gap": torch.rand(size, generator=stream, dtype=torch.float64),
        "kept_share": torch.full((size,), 0.75, dtype=torch.float64),
        "turn": turn * batch["present"],
        "weight": mask.float(),
        "guidance": draw(size, width) * mask,
    }


def with_columns(run_state: PartsRunState, batch: Experience) -> Experience:
    """The batch with what parts read beside its fields: its text, its rows of the task, and a tool's calls."""
    lengths = batch["present"].sum(1).tolist()
    said = [run_state.policy.decode(ids[:n]) for ids, n in zip(batch["action"].tolist(), lengths, strict=True)]
    group = batch["group"].tolist()
    data = [{"prompt": f"prompt {g}", "demonstration": f"answer {g}", "need": g % 2} for g in group]
    return batch.answering(data).with_columns(
        completion=said,
        prompt=[row["prompt"] for row in data],
        demonstration=[row["demonstration"] for row in data],
        calls=[i % 3 for i in range(len(batch))],
        row=list(range(len(batch))),
    )
