"""Losses beside TRL 1.16.0's on one batch: loss, norm of the gradient, and its product with a fixed direction.

The constants are what TRL's own functions gave in float64 for the bigram models below (`GRPOTrainer._compute_loss`,
`KTOTrainer._compute_loss`, `get_batch_loss_metrics` of `CPOTrainer` and `ORPOTrainer`, the last of which computes its
odds in float32), on prompts of one token, where ORPO's likelihood has no token of the prompt in it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.models.language.rows import as_experience
from polyrl.parts.optimize import Optimize
from run_states import VOCABULARY, TableRunState, make_context

PROMPTS = [1, 2, 3, 4]
CHOSEN = [[5, 0, 2], [3, 3, 6, 1], [2], [6, 4, 0, 5, 1]]
REJECTED = [[1, 4], [0, 2, 5], [6, 6, 3], [4]]
ADVANTAGES = [1.2, -0.7, 0.3, -1.1, 0.9, -0.4, -0.8, 0.6]
"""Of the rows: chosen and rejected response of the first prompt, then of the second."""


def table(phase: float, scale: float) -> Tensor:
    """Logits of the next token by the one before, `[V, V]` float64."""
    i = torch.arange(VOCABULARY, dtype=torch.float64)
    return scale * torch.sin(phase + 3 * i[:, None] + 5 * i)


KTO_ROWS = [4, 7, 3, 0]
"""Two desirable and two undesirable rows of four prompts, in an order in which z0 is above 0."""
KTO_REFERENCE_POINT = 0.320140043533
"""What TRL logs as `kl` there."""
POLICY, START = table(0.3, 1.5), table(0.9, 1.2)
SAMPLER = POLICY + table(2.0, 0.06)
DIRECTION = table(0.1, 1.0)


def logprobs(logits: Tensor, batch: Experience) -> Tensor:
    """Log-probabilities of the responses' tokens, `[B, T]`, 0 where there is none."""
    before = torch.cat([batch["prompt_ids"][:, -1:], batch["action"][:, :-1]], 1)
    found = logits.log_softmax(-1)[before].gather(-1, batch["action"][..., None])[..., 0]
    return found * batch["mask"]


def rows() -> Experience:
    """The eight responses as rows, with every field that the losses read."""
    responses = [ids for pair in zip(CHOSEN, REJECTED, strict=True) for ids in pair]
    batch = as_experience([[p] for p in PROMPTS for _ in range(2)], responses, pad_id=0)
    size, width = batch["mask"].shape
    return batch.with_fields(
        temperature=torch.ones(size, dtype=torch.float64),
        greedy=torch.zeros(size, dtype=torch.bool),
        weight=batch["mask"].double(),
        pair=torch.arange(size) // 2,
        preferred=torch.arange(size) % 2 == 0,
        advantage=torch.tensor(ADVANTAGES, dtype=torch.float64)[:, None].expand(size, width) * batch["mask"],
        behaviour_logprob=logprobs(SAMPLER, batch),
        ref_logprob=logprobs(START, batch),
    )


def told(gradient: Tensor) -> tuple[float, float]:
    """Norm of a gradient by the logits, and its product with the direction."""
    return float(gradient.norm()), float((gradient * DIRECTION).sum())


def ours(spec: str) -> tuple[float, float, float]:
    """Loss of a recipe's objective on the rows, and what is told of its gradient."""
    run_state = TableRunState(critic=False)
    run_state.table, run_state.start = nn.Parameter(POLICY.clone()), START
    recipe = build(spec)
    recipe = replace(recipe, optimize=Optimize(learning_rate=0.0, max_grad_norm=1e9, max_logprob_gap=9.0))
    context = make_context(run_state, recipe)
    batch = rows()
    if spec.startswith("kto"):
        batch = batch.with_fields(desirable=batch["preferred"]).rows(KTO_ROWS)
        for part in dict(recipe.stages())["credit"]:
            batch = part(batch, context)
        assert context.metrics["reference_point"] == pytest.approx(KTO_REFERENCE_POINT, abs=1e-9)
    recipe.optimize.run(recipe.terms, batch, context)
    return context.metrics["loss"], *told(run_state.gradients()["table"])


NUMBERS = {
    "grpo(clip_range=0.02)": (0.006037885949, 0.148124563167, -0.080001866873),
    "gspo(clip_range=0.01,clip_range_high=0.015)": (0.005437973586, 0.135296587009, -0.008283048564),
    "cispo(clip_range_high=0.02)": (-0.355355535386, 0.153719354139, -0.125876596966),
    "simpo(beta=2,target_margin=0.5)": (1.456830954956, 0.672061249428, 0.344295658983),
    "orpo(odds_weight=0.1,aggregation=token-mean)": (2.462264702432, 0.292542835515, 0.565895565524),
    "kto(desirable_weight=1,undesirable_weight=1.5)": (0.608560970091, 0.019551096809, -0.007985888212),
}
"""Recipe -> TRL's numbers, with epsilon 0.02; 0.01 and 0.015 per sequence; CISPO's epsilon_high 1.02; beta as here."""


@pytest.mark.parametrize("spec", NUMBERS)
def test_losses_and_gradients_are_trls(spec: str) -> None:
    assert ours(spec) == pytest.approx(NUMBERS[spec], abs=1e-6)


def test_clipped_sequences_are_counted_as_trl_counts_them() -> None:
    """Its `clip_ratio/region_mean` at the sequence level: three of eight responses."""
    batch = rows()
    term = build("gspo(clip_range=0.01,clip_range_high=0.015)").terms[0]
    assert float(term.statistics({"logprob": logprobs(POLICY, batch)}, batch)["clip_ratio"].mean()) == 0.375
