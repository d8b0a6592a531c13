"""The losses on pairs: the numbers of the card, closed forms, gradients, and that no arrangement of rows matters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.methods.preference.dpo import DPOLoss, dpo_loss, robust_dpo_loss
from polyrl.methods.preference.ipo import IPOLoss, ipo_loss
from polyrl.methods.preference.orpo import OddsRatioLoss, log_odds, odds_ratio_loss
from polyrl.methods.preference.simpo import SimpoLoss, simpo_loss
from polyrl.methods.preference.slic import SlicLoss, slic_loss
from polyrl.models.language.pairs import by_pair, sequence_log_ratio, sequence_logprob
from polyrl.parts.imitation import DemonstrationNLL
from polyrl.parts.optimize import Optimize
from polyrl.parts.pairs import ImplicitRewardLoss, LogRatioLoss
from polyrl.recipe import Term
from run_states import VOCABULARY, TableRunState, make_context

Loss = Callable[[Tensor], Tensor]


def at(loss: Callable[..., Tensor], h: float, *settings: float) -> float:
    return float(loss(torch.tensor(h, dtype=torch.float64), *settings))


# ------------------------------------------------------------------------------------------------ numbers of the card


def test_where_the_policy_is_the_reference() -> None:
    assert at(dpo_loss, 0, 0.1) == pytest.approx(math.log(2), abs=1e-12)
    assert at(dpo_loss, 0, 0.1, 0.2) == pytest.approx(math.log(2), abs=1e-12)
    assert at(robust_dpo_loss, 0, 0.1, 0.2) == pytest.approx(math.log(2), abs=1e-12)
    assert at(ipo_loss, 0, 0.1) == pytest.approx(25)
    assert at(slic_loss, 0, 0.1) == 1


def test_one_pair_by_hand() -> None:
    theta, ref = (-12.0, -15.0), (-13.0, -14.0)
    h = (theta[0] - ref[0]) - (theta[1] - ref[1])
    assert h == 2
    assert at(dpo_loss, h, 0.1) == pytest.approx(0.598139, abs=1e-6)
    assert at(dpo_loss, h, 0.1, 0.1) == pytest.approx(0.618139, abs=1e-6)
    assert at(robust_dpo_loss, h, 0.1, 0.1) == pytest.approx(0.573139, abs=1e-6)
    assert at(slic_loss, h, 0.1) == pytest.approx(0.8)
    assert at(ipo_loss, h, 0.1) == pytest.approx(9.0)
    assert at(ipo_loss, 1 / 6 + 1 / 8, 0.1) == pytest.approx(22.168403, abs=1e-6)  # means over 6 and 8 tokens
    both = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    (loss,) = torch.autograd.grad(dpo_loss((both[0] - ref[0]) - (both[1] - ref[1]), 0.1), both)
    assert loss.tolist() == pytest.approx([-0.045017, 0.045017], abs=1e-6)


def test_one_pair_without_a_reference_by_hand() -> None:
    """Mean log-probabilities of -0.5 and -0.9 nats a token."""
    assert at(simpo_loss, 0.4, 2.0, 0.5) == pytest.approx(0.5543552, abs=1e-7)
    assert at(simpo_loss, 0.25, 2.0, 0.5) == pytest.approx(math.log(2), abs=1e-12)  # at the margin
    chosen, rejected = at(log_odds, -0.5), at(log_odds, -0.9)
    assert chosen == pytest.approx(math.log(math.exp(-0.5) / (1 - math.exp(-0.5))), abs=1e-12)
    assert chosen - rejected == pytest.approx(0.8109167, abs=1e-7)
    assert at(odds_ratio_loss, chosen - rejected) == pytest.approx(0.3677289, abs=1e-7)
    assert at(odds_ratio_loss, 0) == pytest.approx(math.log(2), abs=1e-12)


def test_odds_of_what_is_certain_and_of_what_never_happens_are_finite() -> None:
    for dtype in (torch.float32, torch.float64):
        mean = torch.tensor([0.0, -1e-9, -1e-3, -30.0, -1e4], dtype=dtype, requires_grad=True)
        found = log_odds(mean)
        found.sum().backward()  # type: ignore[no-untyped-call]
        assert bool(found.isfinite().all()) and mean.grad is not None and bool(mean.grad.isfinite().all())
        assert found.tolist()[3:] == pytest.approx([-30.0, -1e4], rel=1e-6)  # p / (1 - p) is p where p is small
        assert found.tolist()[2] == pytest.approx(math.log(1 / math.expm1(1e-3)), rel=1e-4)


def minimum(expected: Loss) -> float:
    """The scalar at which a convex loss is least, by golden section."""
    low, high = -50.0, 50.0
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(100):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if float(expected(torch.tensor(a, dtype=torch.float64))) < float(expected(torch.tensor(b).double())):
            high = b
        else:
            low = a
    return (low + high) / 2


@pytest.mark.parametrize(
    ("loss", "best"),
    [
        (lambda h: dpo_loss(h, 0.5), math.log(4) / 0.5),
        (lambda h: ipo_loss(h, 0.5), 0.6),
        (lambda h: slic_loss(h, 0.5), 2.0),
    ],
)
def test_population_minimizers_of_two_actions(loss: Loss, best: float) -> None:
    """P(1 beats 2) = 0.8."""
    assert minimum(lambda h: 0.8 * loss(h) + 0.2 * loss(-h)) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("e", [0.1, 0.3])
def test_label_smoothing_and_the_robust_form_know_of_flips(e: float) -> None:
    """cDPO's minimum is where the model of flipped labels is right; the robust loss is right on average."""
    assert minimum(lambda h: dpo_loss(h, 0.5, e)) == pytest.approx(math.log((1 - e) / e) / 0.5, abs=1e-5)
    for h in (-3.0, 0.4, 5.0):
        flipped = (1 - e) * at(robust_dpo_loss, h, 0.5, e) + e * at(robust_dpo_loss, -h, 0.5, e)
        assert flipped == pytest.approx(at(dpo_loss, h, 0.5), abs=1e-12)


def solved(loss: Callable[[Tensor], Tensor], size: int = 3) -> Tensor:
    """Probabilities of the softmax policy on `size` actions with the least expected loss."""
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits.log_softmax(0))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logits.detach().softmax(0)


def test_dpo_finds_the_best_policy_under_the_kl() -> None:
    """All pairs of three actions, labelled by Bradley-Terry: the minimum is ref * exp(r / beta) / Z."""
    reward, ref = torch.tensor([1.0, 0.0, -1.0]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    beta = 0.5

    def expected(logp: Tensor) -> Tensor:
        rho = logp - ref.log()
        wins = [
            torch.sigmoid(reward[i] - reward[j]) * dpo_loss(rho[i] - rho[j], beta)
            for i, j in itertools.permutations(range(3), 2)
        ]
        return torch.stack(wins).sum()

    best = solved(expected)
    assert best.tolist() == pytest.approx([0.732165, 0.247720, 0.020115], abs=1e-6)
    assert float((best * (best / ref).log()).sum()) == pytest.approx(0.721790, abs=1e-6)
    normalizer = beta * float((ref * (reward / beta).exp()).sum().log())
    assert normalizer == pytest.approx(0.351155, abs=1e-6)
    assert (beta * (best / ref).log()).tolist() == pytest.approx((reward - normalizer).tolist(), abs=1e-6)


TOTAL_ORDER = ((0, 1), (1, 2), (0, 2))


def fitted(loss: Loss, data: tuple[tuple[int, int], ...], steps: int = 1500, rate: float = 0.05) -> Tensor:
    """Policy after full-batch Adam on pairs of three actions with a uniform reference (the bandit of 2310.12036)."""
    logits = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([logits], lr=rate)
    chosen, rejected = (torch.tensor([pair[side] for pair in data]) for side in (0, 1))
    for _ in range(steps):
        logp = logits.log_softmax(0)
        optimizer.zero_grad()
        loss(logp[chosen] - logp[rejected]).mean().backward()
        optimizer.step()
    return logits.detach().softmax(0)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_a_total_order_makes_dpo_certain_and_ipo_not(tau: float) -> None:
    """IPO's logits are c * 2/3 apart, c = 1/(2 tau), and DPO's probability of the best action goes to 1."""
    ipo = fitted(lambda h: ipo_loss(h, tau), TOTAL_ORDER)
    gap = 2 / 3 / (2 * tau)
    assert ipo.tolist() == pytest.approx(torch.tensor([2 * gap, gap, 0.0]).double().softmax(0).tolist(), abs=1e-4)
    if tau == 1.0:
        assert ipo.tolist() == pytest.approx([0.448441, 0.321322, 0.230237], abs=1e-4)
    assert float(fitted(lambda h: dpo_loss(h, tau), TOTAL_ORDER)[0]) > 0.99


def test_an_action_that_never_wins_is_given_up_by_dpo_and_not_by_ipo() -> None:
    """D = {(a, b), (b, a), (a, c)}."""
    data = ((0, 1), (1, 0), (0, 2))
    assert float(fitted(lambda h: dpo_loss(h, 1.0), data)[2]) < 0.02
    assert float(fitted(lambda h: ipo_loss(h, 1.0), data)[2]) == pytest.approx(0.233, abs=5e-4)


def test_ipo_and_its_unified_form() -> None:
    for tau, h in ((0.1, 2.0), (0.7, -3.0)):
        assert (2 * tau * h - 1) ** 2 == pytest.approx(4 * tau**2 * at(ipo_loss, h, tau))
    assert 4 * 0.1**2 * at(ipo_loss, 2.0, 0.1) == pytest.approx(0.36)
    assert 4 * 0.05**2 * at(ipo_loss, 2.0, 0.05) == pytest.approx(0.64)  # beta_u = 0.1


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: dpo_loss(h, 0.3),
        lambda h: dpo_loss(h, 0.3, 0.2),
        lambda h: robust_dpo_loss(h, 0.3, 0.2),
        lambda h: ipo_loss(h, 0.3),
        lambda h: slic_loss(h, 0.3),
        lambda h: simpo_loss(h, 2.0, 0.5),
        odds_ratio_loss,
    ],
)
def test_gradients_and_far_away_margins(loss: Loss) -> None:
    h = torch.tensor([-7.0, -0.3, 1.9, 40.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, h)  # type: ignore[no-untyped-call]
    far = torch.tensor([-1e6, 1e6], dtype=torch.float32, requires_grad=True)
    loss(far).sum().backward()  # type: ignore[no-untyped-call]
    assert far.grad is not None and bool(far.grad.isfinite().all()) and bool(loss(far).isfinite().all())


# ----------------------------------------------------------------------------------------- rows, masks, micro-batches


class PairRunState(TableRunState):
    """Keeps rows together that belong together."""

    def micro_batches(self, experience: Experience, grouped_by: str = "", *, shared: bool = True) -> list[Tensor]:
        if not grouped_by:
            return super().micro_batches(experience)
        unit = torch.unique(experience[grouped_by], return_inverse=True)[1]
        units = torch.arange(int(unit.max()) + 1).split(self.micro or len(experience))
        return [torch.isin(unit, some).nonzero()[:, 0] for some in units]


def pair_batch(seed: int = 0, width: int = 6, size: int = 10) -> Experience:
    """Five pairs whose rows are scattered, responses of unequal length, a token of a tool here and there."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(1, width + 1, (size,), generator=g)
    present = torch.arange(width) < length[:, None]
    mask = present & ((torch.rand(size, width, generator=g) < 0.8) | (torch.arange(width) == 0))
    order = torch.randperm(size, generator=g)
    pair = (torch.arange(size) // 2 * 3 + 1)[order]
    return Experience(
        {
            "prompt_ids": torch.randint(1, VOCABULARY, (size, 2), generator=g),
            "prompt_mask": torch.ones(size, 2, dtype=torch.bool),
            "action": torch.randint(1, VOCABULARY, (size, width), generator=g).masked_fill(~present, 0),
            "present": present,
            "mask": mask,
            "temperature": torch.ones(size, dtype=torch.float64),
            "weight": mask.double(),
            "pair": pair,
            "preferred": (torch.arange(size) % 2 == 0)[order],
            "ref_logprob": -3 * torch.rand(size, width, generator=g, dtype=torch.float64) * mask,
        }
    )


TERMS: dict[str, ImplicitRewardLoss] = {
    "dpo": DPOLoss(beta=0.3),
    "cdpo": DPOLoss(beta=0.3, label_smoothing=0.1),
    "robust": DPOLoss(beta=0.3, label_smoothing=0.1, loss_type="robust"),
    "dpo, length-normalized": DPOLoss(beta=0.3, length_norm=True),
    "ipo": IPOLoss(tau=0.3),
    "ipo, length-normalized": IPOLoss(tau=0.3, length_norm=True),
    "slic": SlicLoss(beta=0.3),
    "simpo": SimpoLoss(beta=2.0, target_margin=0.5),
    "orpo's odds": OddsRatioLoss(odds_weight=0.4),
}


def gradient(term: Term, batch: Experience, run_state: TableRunState | None = None) -> tuple[Tensor, dict[str, float]]:
    """The gradient of one `Optimize.run` on the batch, and what was logged."""
    return gradient_of((term,), batch, run_state)


def gradient_of(
    terms: tuple[Term, ...], batch: Experience, run_state: TableRunState | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The same of several terms."""
    run_state = run_state or PairRunState(critic=False)
    optimize = Optimize(max_grad_norm=1e9)
    context = make_context(run_state)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run(terms, batch, context)
    assert run_state.table.grad is not None
    return run_state.table.grad.clone(), context.metrics


def log_odds_by_hand(mean: Tensor) -> Tensor:
    return (mean.exp() / (1 - mean.exp())).log()


def by_hand(term: ImplicitRewardLoss, batch: Experience) -> Tensor:
    """The mean loss over pairs, pair by pair and token by token."""
    run_state = TableRunState(critic=False)
    losses = []
    free = not isinstance(term, LogRatioLoss)
    normed = free or term.length_norm
    for number in batch["pair"].unique().tolist():
        rho = {}
        for row in (batch["pair"] == number).nonzero()[:, 0].tolist():
            before, total, count = int(batch["prompt_ids"][row, -1]), torch.zeros((), dtype=torch.float64), 0
            for t in range(batch["action"].shape[1]):
                token = int(batch["action"][row, t])
                if bool(batch["mask"][row, t]):
                    total = total + run_state.table.log_softmax(-1)[before, token]
                    total = total if free else total - batch["ref_logprob"][row, t]
                    count += 1
                before = token
            rho[bool(batch["preferred"][row])] = total / count if normed else total
        if isinstance(term, OddsRatioLoss):
            rho = {side: log_odds_by_hand(mean) for side, mean in rho.items()}
        losses.append(term.pair_loss(rho[True] - rho[False]))
    loss = torch.stack(losses).mean()
    (grad,) = torch.autograd.grad(loss, run_state.table)
    return torch.cat([loss.detach()[None], grad.flatten()])


@pytest.mark.parametrize("name", TERMS)
def test_loss_and_gradient_are_those_of_the_pairs_one_by_one(name: str) -> None:
    batch, term = pair_batch(), TERMS[name]
    grad, metrics = gradient(term, batch)
    expected = by_hand(term, batch)
    assert metrics[f"loss/{term.name}"] == pytest.approx(float(expected[0]), rel=1e-6)
    assert torch.allclose(grad.flatten(), expected[1:], atol=1e-12)


def padded(batch: Experience) -> Experience:
    """The same rows in wider tables, with garbage where nothing counts."""
    wide: dict[str, Tensor] = {}
    for name in batch.fields():
        x = batch[name]
        if name in ("action", "present", "mask", "weight", "ref_logprob"):
            x = torch.nn.functional.pad(x, (0, 3))
        wide[name] = x
    wide["ref_logprob"] = torch.where(wide["mask"], wide["ref_logprob"], torch.tensor(-99.0).double())
    return Experience(wide)


@pytest.mark.parametrize("name", TERMS)
def test_padding_order_and_micro_batches_change_nothing(name: str) -> None:
    batch, term = pair_batch(), TERMS[name]
    expected, logged = gradient(term, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    variants = {
        "padding": (padded(batch), PairRunState(critic=False, garbage=float("nan"))),
        "order": (batch.rows(order), PairRunState(critic=False)),
        "one pair at a time": (batch, PairRunState(critic=False, micro=1)),
        "two pairs at a time": (batch.rows(order), PairRunState(critic=False, micro=2)),
    }
    for what, (rows, run_state) in variants.items():
        grad, found = gradient(term, rows, run_state)
        assert torch.allclose(grad, expected, atol=1e-12), what
        for key, value in logged.items():
            if key.startswith(("rewards", "logps", "loss")):
                assert found[key] == pytest.approx(value, rel=1e-5), (what, key)


def test_rows_of_no_pair_and_pairs_that_are_left_out_teach_nothing() -> None:
    """A batch with rows in no pair, and a pair of weight 0, has the gradient of the others alone."""
    batch, term = pair_batch(), TERMS["dpo"]
    numbers = batch["pair"].unique()
    alone, idle = batch["pair"] == numbers[0], batch["pair"] == numbers[1]
    weight = batch["weight"] * (~alone & ~idle)[:, None]
    some = batch.with_fields(pair=torch.where(alone, -1, batch["pair"]), weight=weight)
    rest = batch.rows((~alone & ~idle).nonzero()[:, 0])
    assert torch.allclose(gradient(term, some)[0], gradient(term, rest)[0], atol=1e-12)
    # where another term counts them, they are in the minibatch: the average is over the pairs' rows all the same
    assert term.step_weights(some)[~alone & ~idle].tolist() == pytest.approx([1 / len(rest)] * len(rest))
    assert term.step_weights(some).sum() == pytest.approx(1)


def test_a_pair_that_the_policy_finds_equal_is_not_ordered_rightly() -> None:
    batch, run_state = pair_batch(), TableRunState(critic=False)
    outputs = {"logprob": run_state.outputs(batch, {"logprob"})["logprob"].detach()}
    batch = batch.with_fields(ref_logprob=outputs["logprob"])
    assert TERMS["dpo"].statistics(outputs, batch)["rewards/accuracies"].tolist() == [0.0] * len(batch)


def test_metrics_have_their_meaning() -> None:
    batch = pair_batch()
    _, logged = gradient(DPOLoss(beta=0.3), batch)
    run_state = TableRunState(critic=False)
    with torch.no_grad():
        logprob = run_state.outputs(batch, {"logprob"})["logprob"]
    rho = sequence_log_ratio(logprob, batch["ref_logprob"], batch["mask"])
    won, lost = rho[batch["preferred"]], rho[~batch["preferred"]]
    assert logged["rewards/chosen"] == pytest.approx(0.3 * float(won.mean()))
    assert logged["rewards/rejected"] == pytest.approx(0.3 * float(lost.mean()))
    assert logged["rewards/margins"] == pytest.approx(0.3 * float(won.mean() - lost.mean()))
    total = (logprob * batch["mask"]).sum(1)
    assert logged["logps/chosen"] == pytest.approx(float(total[batch["preferred"]].mean()))
    first, second = by_pair(rho, batch["pair"], batch["preferred"])
    assert logged["rewards/accuracies"] == pytest.approx(float((first > second).float().mean()))


def test_what_is_logged_without_a_reference() -> None:
    batch = pair_batch()
    with torch.no_grad():
        logprob = TableRunState(critic=False).outputs(batch, {"logprob"})["logprob"]
    mean, won = sequence_logprob(logprob, batch["mask"], length_norm=True), batch["preferred"]
    for term, reward in ((SimpoLoss(beta=2.0), 2 * mean), (OddsRatioLoss(odds_weight=0.3), log_odds_by_hand(mean))):
        _, logged = gradient(term, batch)
        assert logged["rewards/chosen"] == pytest.approx(float(reward[won].mean()))
        assert logged["rewards/margins"] == pytest.approx(float(reward[won].mean() - reward[~won].mean()))
        first, second = by_pair(reward, batch["pair"], won)
        assert logged["rewards/accuracies"] == pytest.approx(float((first > second).float().mean()))
        total = sequence_logprob(logprob, batch["mask"])
        assert logged["logps/rejected"] == pytest.approx(float(total[~won].mean()))


def test_orpo_is_imitation_and_odds() -> None:
    """Equation 6, pair by pair: the mean over a response's tokens first, or over all tokens of the batch."""
    batch, run_state = pair_batch(), TableRunState(critic=False)
    odds = OddsRatioLoss(odds_weight=0.4)
    logprob = run_state.outputs(batch, {"logprob"})["logprob"]
    mean, won = sequence_logprob(logprob, batch["mask"], length_norm=True), batch["preferred"]
    first, second = by_pair(log_odds_by_hand(mean), batch["pair"], won)
    ratio = -(first - second)[won].sigmoid().log().mean()
    likelihood = {
        "seq-mean-token-mean": mean[won].mean(),
        "token-mean": logprob[won][batch["mask"][won]].mean(),
    }
    for how, nll in likelihood.items():
        terms = catalogued("orpo", {"odds_weight": "0.4", "aggregation": how})
        assert terms[0] == odds and isinstance(terms[1], DemonstrationNLL)
        grad, logged = gradient_of(terms, batch)
        (wanted,) = torch.autograd.grad(-nll + 0.4 * ratio, run_state.table, retain_graph=True)
        assert torch.allclose(grad, wanted, atol=1e-12) and bool(grad.any())
        assert logged["loss"] == pytest.approx(float((-nll + 0.4 * ratio).detach()))
        parts = (logged["loss/demonstration-nll"], logged["loss/odds-ratio-loss"])
        assert parts == pytest.approx((float(-nll.detach()), float(0.4 * ratio.detach())))


def catalogued(spec: str, settings: dict[str, str]) -> tuple[Term, ...]:
    return build(spec, settings).terms


def test_an_odds_weight_of_zero_is_imitation_alone() -> None:
    batch = pair_batch()
    both, _ = gradient_of(catalogued("orpo", {"odds_weight": "0"}), batch)
    alone, _ = gradient(
        DemonstrationNLL(imitate="chosen", demonstration_weight=1.0, aggregation="seq-mean-token-mean"), batch
    )
    assert torch.allclose(both, alone, atol=1e-14) and bool(alone.any())


def test_simpo_is_dpo_with_means_where_the_reference_is_uniform() -> None:
    """A reference that finds every token equally likely cancels in a difference of means."""
    batch = pair_batch()
    flat = batch.with_fields(ref_logprob=torch.full_like(batch["ref_logprob"], -1.7))
    mine, _ = gradient(SimpoLoss(beta=0.3, target_margin=0.0), batch)
    others, _ = gradient(DPOLoss(beta=0.3, length_norm=True), flat)
    assert torch.allclose(mine, others, atol=1e-12) and bool(mine.any())


def test_losses_without_a_reference_ask_for_none() -> None:
    for spec in ("simpo", "orpo", "simpo+online-dpo", "dpo+simpo-loss", "dpo+odds-ratio-loss"):
        recipe = build(spec)
        assert "reference" not in recipe.required_models(), spec
        assert "ref_logprob" not in {name for part in recipe.parts() for name in part.gives}, spec
    assert build("dpo+orpo").terms == build("orpo").terms
    assert [t.name for t in build("orpo+dpo").terms] == ["dpo-loss", "demonstration-nll"]  # DPO beside imitation
    assert "reference" in build("simpo+dpo").required_models()


def test_a_pair_that_was_torn_apart_is_noticed() -> None:
    x, preferred = torch.zeros(3), torch.tensor([True, False, True])
    with pytest.raises(ValueError, match="two rows"):
        by_pair(x, torch.tensor([0, 0, 1]), preferred)
    with pytest.raises(ValueError, match="preferred"):
        by_pair(x[:2], torch.tensor([0, 0]), torch.tensor([True, True]))


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("dpo", {"beta": "0"}),
        ("dpo", {"label_smoothing": "0.5"}),
        ("ipo", {"tau": "-1"}),
        ("slic", {"beta": "0"}),
        ("simpo", {"beta": "0"}),
        ("simpo", {"target_margin": "-0.1"}),
        ("orpo", {"odds_weight": "-1"}),
        ("grpo+simpo-loss", {}),
        ("dpo", {"pairs_per_step": "0"}),
        ("dpo", {"reference": "round"}),
        ("online-dpo", {"completions_per_prompt": "1"}),
        ("grpo+dpo-loss", {}),
    ],
)
def test_recipes_that_cannot_be(spec: str, settings: dict[str, Any]) -> None:
    from polyrl.errors import UserError

    with pytest.raises(UserError) as told:
        build(spec, settings)
    assert str(told.value).count("\n") == 0
    if "reference" in settings:
        assert "behaviour_logprob" in str(told.value)
