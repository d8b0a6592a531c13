"""Small fake run states and batches for tests: every probability can be written down and summed by hand."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.recipe import Recipe
from polyrl.run_state.base import RunState
from polyrl.runtime.budget import Budget

torch.set_num_threads(1)  # tables this small only get slower with more

VOCABULARY = 7


class TableRunState:
    """Policy and critic are tables over the previous token: logits `[V, V]` and values `[V]`, in float64.

    `micro` rows go through at a time (None: all). `garbage` stands in every output where `mask` is false.
    """

    def __init__(self, *, micro: int | None = None, garbage: float = 0.0, seed: int = 0, critic: bool = True):
        generator = torch.Generator().manual_seed(seed)

        def table(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.table, self.values = nn.Parameter(table(VOCABULARY, VOCABULARY)), nn.Parameter(table(VOCABULARY))
        self.start = table(VOCABULARY, VOCABULARY)  # the reference: not the policy, so that a KL is not zero
        self.micro, self.garbage, self.critic = micro, garbage, critic
        self.policy: Any = SimpleNamespace(context=None)  # reads any length

    def logits(self, experience: Experience, table: Tensor) -> Tensor:
        before = torch.cat([experience["prompt_ids"][:, -1:], experience["action"][:, :-1]], 1)
        return table[before] / experience["temperature"][:, None, None]

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        mask = experience["mask"]
        logs = self.logits(experience, self.table).log_softmax(-1)
        before = torch.cat([experience["prompt_ids"][:, -1:], experience["action"][:, :-1]], 1)
        every = {
            "logprob": logs.gather(-1, experience["action"][..., None])[..., 0],
            "entropy": -(logs.exp() * logs).sum(-1),
            "value": self.values[before],
        }
        blank = torch.full(mask.shape, self.garbage, dtype=torch.float64)
        return {name: torch.where(mask, every[name], blank) for name in every if name in wants}

    precision = RunState.precision
    updating = RunState.updating
    measured_outputs = RunState.measured_outputs
    closed_form = RunState.closed_form
    zero_gradients = RunState.zero_gradients

    @torch.no_grad()
    def reference_logprob(self, experience: Experience) -> Tensor:
        logs = self.logits(experience, self.start).log_softmax(-1)
        return logs.gather(-1, experience["action"][..., None])[..., 0] * experience["mask"]

    @torch.no_grad()
    def value(self, experience: Experience) -> Tensor:
        return self.outputs(experience, {"value"})["value"]

    def score(self, experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        return torch.tensor(experience.columns["truth"], dtype=torch.float64), {}, len(experience)

    def measures(self, experience: Experience) -> dict[str, Tensor]:
        return {}

    def micro_batches(self, experience: Experience, grouped_by: str = "", *, shared: bool = True) -> list[Tensor]:
        return list(torch.arange(len(experience)).split(self.micro or len(experience)))

    def parameters(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        models = {"policy": [("table", self.table)]}
        return {**models, "critic": [("values", self.values)]} if self.critic else models

    def gradients(self) -> dict[str, Tensor]:
        named = {"table": self.table, "values": self.values}
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()}

    def weights(self) -> Tensor:
        return torch.cat([self.table.detach().flatten(), self.values.detach()])


def make_context(run_state: Any, recipe: Recipe | None = None, **changes: Any) -> Context:
    context = Context(run_state=run_state, seed=0, budget=Budget(samples=1000), iteration=1, **changes)
    if recipe is not None:
        context.optimizer = recipe.improver.optimizers(run_state)
    return context


def token_batch(
    run_state: TableRunState, *, seed: int = 0, greedy_baseline: bool = False, noise: float = 0.3
) -> Experience:
    """Ragged responses in scattered groups of 2 to 4, tool tokens in their middle, sampled a little off-policy."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    group = torch.tensor([7, 2, 7, 5, 2, 5, 7, 5, 2, 5, 9, 9])
    size, width, limit = len(group), 8, 9
    length = torch.tensor([8, 1, 5, 3, 8, 2, 6, 4, 7, 5, 1, 3])
    present = torch.arange(width) < length[:, None]
    mask = present & (uniform(size, width) < 0.7)
    mask[:, 0] = True  # the policy speaks first
    mask[torch.arange(size), length - 1] |= length != limit - 1
    action = torch.randint(1, VOCABULARY, (size, width), generator=generator).masked_fill(~present, 0)
    twins = torch.zeros(size, dtype=torch.bool)
    if greedy_baseline:
        twins[[0, 4, 7, 11]] = True
    batch = Experience(
        {
            "prompt_ids": torch.randint(1, VOCABULARY, (size, 3), generator=generator),
            "prompt_mask": torch.ones(size, 3, dtype=torch.bool),
            "action": action,
            "present": present,
            "mask": mask,
            "temperature": torch.where(twins, 1.0, 0.5 + uniform(size)),
            "ended": length < limit - 1,
            "group": group,
            "greedy": twins,
            "length_limit": torch.full((size,), limit),
        },
        {"truth": (2 * uniform(size) - 0.5).tolist()},
    )
    with torch.no_grad():
        logprob = run_state.outputs(batch, {"logprob"})["logprob"]
    return batch.with_fields(behaviour_logprob=(logprob + noise * (uniform(size, width) - 0.5)) * mask)


def credited(recipe: Recipe, experience: Experience, context: Context) -> Experience:
    """Run the stages between collect and improve."""
    for stage, parts in recipe.stages():
        if stage not in ("collect", "improve"):
            for part in parts:
                experience = part(experience, context)
    return experience
