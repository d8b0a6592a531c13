"""RPO, TGDPO, HyPO, INPO: their cards' numbers, where they are DPO or IPO to the last digit, plain loops, learning."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from conftest import SEED, Command, reached, read_records
from polyrl import train
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.rloo import LeaveOneOut
from polyrl.methods.preference.dpo import DPOLoss, dpo_loss
from polyrl.methods.preference.hypo import LogRatioCost
from polyrl.methods.preference.inpo import INPOLoss
from polyrl.methods.preference.ipo import IPOLoss
from polyrl.methods.preference.rpo import BaselineNLL
from polyrl.methods.preference.tgdpo import TGDPOLoss, TokenGuidance, token_weights
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Term
from run_states import TableRunState, make_context
from test_language_lists import loop_of, weights
from test_preference_losses import PairRunState, padded, pair_batch, solved


def one_pair(chosen: list[float], rejected: list[float], ref: tuple[list[float], list[float]], **more: Any) -> Any:
    """A batch of one pair, and outputs that are leaves: log-probabilities of the tokens, chosen first."""
    width = max(len(chosen), len(rejected))

    def table(*rows: list[float]) -> Tensor:
        return torch.tensor([r + [0.0] * (width - len(r)) for r in rows], dtype=torch.float64)

    mask = torch.arange(width) < torch.tensor([[len(chosen)], [len(rejected)]])
    fields = {name: table(*rows) for name, rows in more.items()}
    batch = Experience(
        {
            "mask": mask,
            "weight": mask.double(),
            "pair": torch.zeros(2, dtype=torch.long),
            "preferred": torch.tensor([True, False]),
            "ref_logprob": table(*ref),
            **fields,
        }
    )
    return batch, {"logprob": table(chosen, rejected).requires_grad_()}


def gradient_of(
    terms: tuple[Term, ...], batch: Experience, run_state: TableRunState | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The gradient of one `Optimize.run` on the batch, whose sampler is another policy, and what was logged."""
    run_state = run_state or PairRunState(critic=False)
    optimize, context = Optimize(max_grad_norm=1e9, max_logprob_gap=99.0), make_context(run_state)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run(terms, batch, context)
    assert run_state.table.grad is not None
    return run_state.table.grad.clone(), context.metrics


def objective(terms: tuple[Term, ...], batch: Experience, outputs: dict[str, Tensor]) -> Tensor:
    """The sum of the terms' averages."""
    return torch.stack([(t.loss(outputs, batch) * t.step_weights(batch)).sum() for t in terms]).sum()


# --------------------------------------------------------------------------------------------------------------- RPO


def six_and_eight_tokens() -> Any:
    """log pi of -12 and -15, log ref of -13 and -14, over 6 and 8 tokens: h is 2."""
    return one_pair([-2.0] * 6, [-15 / 8] * 8, ([-13 / 6] * 6, [-14 / 8] * 8))


@pytest.mark.parametrize(
    ("spec", "loss", "chosen"),
    [
        ("dpo", 0.598139, -0.045017),
        ("rpo", 0.604139, -0.045517),
        ("rpo(aggregation=seq-mean-token-mean,eta=0.2)", 0.998139, -0.045017 - 0.2 / 6),
    ],
)
def test_one_pair_of_rpo_by_hand(spec: str, loss: float, chosen: float) -> None:
    batch, outputs = six_and_eight_tokens()
    found = objective(build(spec).terms, batch, outputs)
    assert float(found.detach()) == pytest.approx(loss, abs=1e-6)
    (grad,) = torch.autograd.grad(found, outputs["logprob"])
    assert grad[0, :6].tolist() == pytest.approx([chosen] * 6, abs=1e-6)
    assert grad[1].tolist() == pytest.approx([0.045017] * 8, abs=1e-6)  # the rejected response is not imitated


def test_the_weight_of_the_likelihood_is_eta_beta_in_one_form_alone() -> None:
    assert BaselineNLL(eta=0.005, beta=0.01).imitation_weight == pytest.approx(5e-5)
    assert BaselineNLL(eta=0.005, beta=0.05).imitation_weight == pytest.approx(2.5e-4)
    for how in ("seq-mean-token-mean", "token-mean"):
        assert BaselineNLL(eta=0.2, beta=0.01, aggregation=how).imitation_weight == 0.2


def test_at_the_reference_rpo_is_log_2_and_the_likelihood() -> None:
    batch, _ = six_and_eight_tokens()
    found = objective(build("rpo").terms, batch, {"logprob": batch["ref_logprob"]})
    assert float(found) == pytest.approx(math.log(2) + 0.005 * 0.1 * 13, abs=1e-12)


def test_the_adversarys_value_is_the_likelihood_of_the_baseline() -> None:
    """beta log Z - E_base[r] = -beta E_base[log(pi_r / ref)], where pi_r = ref exp(r / beta) / Z."""
    reward, ref, base = torch.tensor([[1.0, 0.0, -1.0], [0.2, 0.5, 0.3], [0.6, 0.4, 0.0]], dtype=torch.float64)
    beta, rows = 0.5, Experience({"mask": torch.ones(3, 1, dtype=torch.bool)})
    z = (ref * (reward / beta).exp()).sum()
    best = ref * (reward / beta).exp() / z
    nll = BaselineNLL(eta=1.0, beta=beta).loss({"logprob": best.log()[:, None]}, rows)[:, 0]
    value = beta * z.log() - (base * reward).sum()
    assert float(value) == pytest.approx(-0.248845, abs=1e-6)
    assert float((base * (nll + beta * ref.log())).sum()) == pytest.approx(float(value), abs=1e-12)


def test_the_likelihood_takes_mass_from_what_is_in_no_pair() -> None:
    """DPO's smoothed optimum keeps the third action where it starts; any eta gives it up, and the more the sooner."""
    ref = torch.tensor([0.3, 0.3, 0.4]).double()

    def left(eta: float) -> float:
        weight = BaselineNLL(eta=eta, beta=1.0).imitation_weight

        def expected(logp: Tensor) -> Tensor:
            rho = logp - ref.log()
            return dpo_loss(rho[0] - rho[1], 1.0, 0.25) - weight * (0.75 * logp[0] + 0.25 * logp[1])

        return float(solved(expected)[2])

    assert left(0.0) > 0.3 and left(0.5) < 1e-4


def trl_rpo(batch: Experience, run_state: TableRunState, beta: float, alpha: float) -> Tensor:
    """TRL's `loss_type=["sigmoid", "sft"]`, `loss_weights=[1, alpha]`: the cross-entropy is a mean over all tokens."""
    logits, mask = run_state.logits(batch, run_state.table), batch["mask"]
    logp = logits.log_softmax(-1).gather(-1, batch["action"][..., None])[..., 0]
    rho = ((logp - batch["ref_logprob"]) * mask).sum(1)
    sides = [{int(p): r for p, r in zip(batch["pair"][s], rho[s], strict=True)} for s in sides_of(batch)]
    h = torch.stack([sides[0][p] - sides[1][p] for p in sides[0]])
    counted = batch["preferred"][:, None] & mask
    return -logsigmoid(beta * h).mean() + alpha * cross_entropy(logits[counted], batch["action"][counted])


def sides_of(batch: Experience) -> tuple[Tensor, Tensor]:
    return batch["preferred"], ~batch["preferred"]


def test_the_form_over_all_tokens_is_trls() -> None:
    batch, run_state = pair_batch(), TableRunState(critic=False)
    terms = build("rpo(aggregation=token-mean,eta=0.3,beta=0.2)").terms
    grad, logged = gradient_of(terms, batch)
    loss = trl_rpo(batch, run_state, 0.2, 0.3)
    (wanted,) = torch.autograd.grad(loss, run_state.table)
    assert torch.allclose(grad, wanted, atol=1e-12) and logged["loss"] == pytest.approx(float(loss.detach()))


# -------------------------------------------------------------------------------------------------------------- TGDPO


def guided_pair(alpha: float = 0.5) -> Any:
    guide = ([alpha * 1.0, alpha * -1.0], [alpha * -2.0])  # alpha log(pi_guide / ref)
    return one_pair([-1.0, -2.0], [-1.0], ([-1.5, -1.5], [-1.0]), guidance=guide)


def test_one_pair_of_tgdpo_by_hand() -> None:
    batch, outputs = guided_pair()
    term = TGDPOLoss(beta=0.1)
    f = term.token_weight(batch)
    assert f[0].tolist() == pytest.approx([1.05, 0.95]) and float(f[1, 0]) == pytest.approx(1.1)
    assert float(0.1 * term.margin(outputs, batch)[0].detach()) == pytest.approx(0.005)
    loss = objective((term,), batch, outputs)
    assert float(loss.detach()) == pytest.approx(0.690650, abs=1e-6)
    (grad,) = torch.autograd.grad(loss, outputs["logprob"])
    assert grad[0].tolist() == pytest.approx([-0.052369, -0.047381], abs=1e-6)
    assert grad[1].tolist() == pytest.approx([0.054863, 0.0], abs=1e-6)
    plain, outputs = guided_pair(0.0)
    (grad,) = torch.autograd.grad(objective((term,), plain, outputs), outputs["logprob"])
    assert grad.flatten().tolist() == pytest.approx([-0.05, -0.05, 0.05, 0.0])


def test_a_token_that_both_have_counts_by_twice_its_reward() -> None:
    batch, outputs = one_pair([-1.0], [-1.0], ([-1.4], [-1.4]), guidance=([0.5 * 3.0], [0.5 * 3.0]))
    r_hat, term = 0.1 * 3.0, TGDPOLoss(beta=0.1)
    assert float(term.token_weight(batch).sum()) == pytest.approx(2)
    margin = 0.1 * term.margin(outputs, batch)[0].detach()
    assert float(margin) == pytest.approx(2 * 0.5 * 0.1 * r_hat * 0.4)  # 2 alpha beta r_hat u


def test_at_the_reference_every_guide_gives_log_2() -> None:
    batch, _ = guided_pair(7.0)
    assert float(objective((TGDPOLoss(beta=0.1),), batch, {"logprob": batch["ref_logprob"]})) == pytest.approx(
        math.log(2), abs=1e-12
    )


def test_weights_are_clipped_on_both_sides_and_told() -> None:
    guidance, preferred = torch.tensor([[-30.0, 0.2], [-30.0, 0.2]]).double(), torch.tensor([True, False])
    assert token_weights(0.1 * guidance, preferred).flatten().tolist() == pytest.approx([-2.0, 1.02, 4.0, 0.98])
    assert token_weights(0.1 * guidance, preferred, 0.1).flatten().tolist() == pytest.approx([0.1, 1.02, 1.9, 0.98])
    batch, outputs = one_pair([-1.0, -2.0], [-1.0, -2.0], ([-1.5, -1.5], [-1.0, -1.0]), guidance=guidance.tolist())
    told = TGDPOLoss(beta=0.1).statistics(outputs, batch)
    assert told["token_weight/clipped"].tolist() == [0.5, 0.5]
    assert told["token_weight/negative"].tolist() == [0.5, 0.0]
    assert told["token_weight/mean"].tolist() == pytest.approx([0.56, 1.44])
    assert told["rewards/chosen"].tolist() == pytest.approx([0.1 * (0.5 - 0.5)] * 2)  # without weights
    free = TGDPOLoss(beta=0.1, min_token_weight=None)
    assert float(free.token_weight(batch)[0, 0]) == pytest.approx(-2.0)
    assert free.statistics(outputs, batch)["token_weight/clipped"].tolist() == [0.0, 0.0]


# --------------------------------------------------------------------------------------------------------------- HyPO


def kl_gradient(logits: list[Tensor], ref: list[Tensor], paths: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Gradient of the expected loss of HyPO's second stream, and of the exact KL, by all logits in a row.

    Every two answers are a group, whose loss counts by the probability of drawing just these. `logits` and `ref` are
    of the first token, then of the second after each of the first, `paths` all answers.
    """

    def steps(of: list[Tensor], path: tuple[int, ...]) -> Tensor:
        where = [0, *(1 + before for before in path[:-1])]
        return torch.stack([of[i].log_softmax(0)[token] for i, token in zip(where, path, strict=True)])

    logp = torch.stack([steps(logits, path) for path in paths])
    refs = torch.stack([steps(ref, path) for path in paths])
    probability = logp.sum(1).exp()
    kl = (probability * (logp - refs).sum(1)).sum()
    exact = torch.cat(torch.autograd.grad(kl, logits, retain_graph=True))
    both = list(itertools.product(range(len(paths)), repeat=2))
    row = torch.tensor([i for pair in both for i in pair])
    mask = torch.ones(len(row), logp.shape[1], dtype=torch.bool)
    batch = Experience(
        {
            "behaviour_logprob": logp.detach()[row],
            "ref_logprob": refs.detach()[row],
            "mask": mask,
            "present": mask,
            "weight": mask.double(),
            "greedy": torch.zeros(len(row), dtype=torch.bool),
            "ended": torch.ones(len(row), dtype=torch.bool),
            "group": torch.arange(len(both)).repeat_interleave(2),
        }
    )
    context = make_context(TableRunState())
    for part in (LogRatioCost(kl_weight=1.0), LeaveOneOut()):
        batch = part(batch, context)
    loss = PolicyGradient(aggregation="seq-mean-token-sum").loss({"logprob": logp[row]}, batch).sum(1)
    drawn = probability.detach()[row].view(-1, 2).prod(1)
    found = torch.cat(torch.autograd.grad((loss.view(-1, 2).mean(1) * drawn).sum(), logits))
    return found, exact


def test_the_second_stream_has_the_gradient_of_the_reverse_kl() -> None:
    logits = [torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)]
    ref = [torch.tensor([0.45, 0.45, 0.10], dtype=torch.float64).log()]
    found, exact = kl_gradient(logits, ref, [(0,), (1,), (2,)])
    assert exact.tolist() == pytest.approx([-0.211871, -0.231985, 0.443856], abs=1e-6)
    assert torch.allclose(found, exact, atol=1e-12)


def test_a_first_token_pays_for_what_follows_it() -> None:
    """Token by token its gradient would be 0: it is as likely as in the reference."""
    logits = [torch.zeros(2).double(), torch.tensor([0.9, 0.1]).double().log(), torch.zeros(2).double()]
    logits = [x.requires_grad_() for x in logits]
    paths = list(itertools.product(range(2), repeat=2))
    found, exact = kl_gradient(logits, [torch.zeros(2).double()] * 3, paths)
    assert exact[:2].tolist() == pytest.approx([0.092016, -0.092016], abs=1e-6)
    assert torch.allclose(found, exact, atol=1e-12)


def test_dpo_is_blind_to_what_the_kl_sees() -> None:
    ref = torch.tensor([0.45, 0.45, 0.10]).double()
    one, two = torch.tensor([0.6, 0.2, 0.2]).double(), torch.tensor([0.3, 0.1, 0.6]).double()
    for policy, kl in ((one, 0.149053), (two, 0.803008)):
        rho = (policy / ref).log()
        assert float(dpo_loss(rho[0] - rho[1], 1.0)) == pytest.approx(0.287682, abs=1e-6)
        assert float((policy * rho).sum()) == pytest.approx(kl, abs=1e-6)
    # of all that DPO finds equal a small lambda takes the nearest; smoothed labels keep h = log 3 the best

    def expected(logp: Tensor) -> Tensor:
        rho = logp - ref.log()
        return dpo_loss(rho[0] - rho[1], 1.0, 0.25) + 1e-5 * (logp.exp() * rho).sum()

    assert solved(expected).tolist() == pytest.approx([0.665697, 0.221899, 0.112404], abs=1e-3)


# --------------------------------------------------------------------------------------------------------------- INPO


def two_anchors() -> Any:
    return one_pair([-10.0], [-14.0], ([-11.0], [-13.0]), behaviour_logprob=([-10.5], [-13.5]))


def test_one_pair_of_inpo_by_hand() -> None:
    batch, outputs = two_anchors()
    term = INPOLoss(eta=7.5e-3, tau=2.5e-3)
    assert float(term.margin(outputs, batch)[0].detach()) == pytest.approx(4 / 3)
    assert float(objective((term,), batch, outputs).detach()) == pytest.approx(4268.444, abs=1e-3)
    equal = batch.with_fields(behaviour_logprob=batch["ref_logprob"])
    assert float(objective((term,), equal, {"logprob": batch["ref_logprob"]})) == pytest.approx(4444.444, abs=1e-3)


def test_the_minimum_of_inpos_loss_is_mirror_descents_next_policy() -> None:
    win = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]).double()
    ref, now = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.35, 0.25]).double()
    eta, tau = 1.0, 0.3
    term = INPOLoss(eta=eta, tau=tau)
    anchors = Experience(
        {
            "ref_logprob": ref.log()[:, None],
            "behaviour_logprob": now.log()[:, None],
            "mask": torch.ones(3, 1, dtype=torch.bool),
        }
    )

    def expected(logp: Tensor) -> Tensor:
        own = term.implicit_reward({"logprob": logp[:, None]}, anchors)
        return torch.stack(
            [
                now[i] * now[j] * win[i, j] * term.pair_loss(own[i] - own[j])
                for i, j in itertools.product(range(3), repeat=2)
            ]
        ).sum()

    exact = ((win @ now) / eta).exp() * ref ** (tau / eta) * now ** (1 - tau / eta)
    assert (win @ now).tolist() == pytest.approx([0.565, 0.415, 0.515])
    assert solved(expected).tolist() == pytest.approx((exact / exact.sum()).tolist(), abs=1e-6)
    assert solved(expected).tolist() == pytest.approx([0.456092, 0.306732, 0.237176], abs=1e-6)


# -------------------------------------------------------------------------------------- limits, to the last digit


def with_more(batch: Experience) -> Experience:
    """The batch with a guide's opinion and a sampler's log-probabilities."""
    g = torch.Generator().manual_seed(8)
    shape = batch["mask"].shape
    return batch.with_fields(
        guidance=2 * torch.randn(shape, generator=g, dtype=torch.float64) * batch["mask"],
        behaviour_logprob=-3 * torch.rand(shape, generator=g, dtype=torch.float64) * batch["mask"],
    )


LIMITS: dict[str, tuple[tuple[Term, ...], tuple[Term, ...]]] = {
    "rpo, eta 0": ((DPOLoss(beta=0.3), BaselineNLL(eta=0.0, beta=0.3)), (DPOLoss(beta=0.3),)),
    "inpo, tau = eta": ((INPOLoss(eta=0.3, tau=0.3),), (IPOLoss(tau=0.3),)),
    "inpo, tau 0": ((INPOLoss(eta=0.3, tau=0.0),), (IPOLoss(tau=0.3, reference="round"),)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_the_losses_to_the_last_digit(name: str) -> None:
    mine, others = LIMITS[name]
    batch = with_more(pair_batch())
    found, wanted = gradient_of(mine, batch)[0], gradient_of(others, batch)[0]
    assert torch.equal(found, wanted) and bool(wanted.any())


def test_tgdpo_with_equal_weights_is_dpo_to_the_last_digit() -> None:
    batch = with_more(pair_batch())
    batch = batch.with_fields(guidance=torch.zeros_like(batch["guidance"]))
    for more in ({}, {"label_smoothing": 0.1}, {"length_norm": True}, {"reference": "round"}):
        found, wanted = (gradient_of((kind(beta=0.3, **more),), batch)[0] for kind in (TGDPOLoss, DPOLoss))  # type: ignore[arg-type]
        assert torch.equal(found, wanted), more


@pytest.mark.parametrize("limit", ["rpo(eta=0)", "tgdpo(alpha=0)", "tgdpo(dpo_model=START)"])
def test_runs_at_the_limit_have_dpos_weights(limit: str, taught: Path) -> None:
    settings = {"pairs_per_step": "8", "learning_rate": "1e-3"}
    limit = limit.replace("START", str(taught))
    loops = [loop_of(spec, taught, settings, task="sort-pairs(pairs=48)") for spec in ("dpo", limit)]
    for _ in range(3):
        for loop in loops:
            loop.iterate()
    assert torch.equal(weights(loops[0]), weights(loops[1]))


def test_without_guidance_no_guide_is_made_and_without_tau_no_reference_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyrl.pretrain.dpo_training.dpo_policy", lambda *_, **__: pytest.fail("nobody is asked"))
    assert TokenGuidance(alpha=0.0).prepare(None, "") == ""
    assert "reference" not in build("inpo(tau=0)").required_models()
    assert "reference" in build("inpo").required_models()


# ------------------------------------------------------------------------------------- plain loops, padding, order

TERMS: dict[str, tuple[Term, ...]] = {
    "rpo": (DPOLoss(beta=0.3), BaselineNLL(eta=0.7, beta=0.3)),
    "rpo, average": (DPOLoss(beta=0.3), BaselineNLL(eta=0.7, beta=0.3, aggregation="seq-mean-token-mean")),
    "tgdpo": (TGDPOLoss(beta=0.3),),
    "tgdpo, as the code": (TGDPOLoss(beta=0.3, min_token_weight=None),),
    "inpo": (INPOLoss(eta=0.3, tau=0.1),),
    "rpo+tgdpo": (TGDPOLoss(beta=0.3), BaselineNLL(eta=0.7, beta=0.3)),
    "inpo+rpo": (INPOLoss(eta=0.3, tau=0.1), BaselineNLL(eta=0.7, beta=0.3)),
}


def plain(terms: tuple[Term, ...], batch: Experience) -> tuple[float, Tensor]:
    """Loss and gradient by the table of logits, pair by pair and token by token."""
    run_state = TableRunState(critic=False)
    total = torch.zeros((), dtype=torch.float64)
    pairs = batch["pair"].unique().tolist()
    for number in pairs:
        side: dict[bool, dict[str, Any]] = {}
        for row in (batch["pair"] == number).nonzero()[:, 0].tolist():
            chosen, before = bool(batch["preferred"][row]), int(batch["prompt_ids"][row, -1])
            sums = {"nll": 0.0, "dpo": 0.0, "tgdpo": 0.0, "inpo": 0.0}
            for t in range(batch["action"].shape[1]):
                token = int(batch["action"][row, t])
                if bool(batch["mask"][row, t]):
                    logp = run_state.table.log_softmax(-1)[before, token]
                    ref, old = float(batch["ref_logprob"][row, t]), float(batch["behaviour_logprob"][row, t])
                    sums["nll"] = sums["nll"] - logp
                    sums["dpo"] = sums["dpo"] + logp - ref
                    sums["inpo"] = sums["inpo"] + logp - ref / 3 - 2 * old / 3
                    f = 1 + (0.3 if chosen else -0.3) * float(batch["guidance"][row, t])
                    if any(isinstance(x, TGDPOLoss) and x.min_token_weight for x in terms):
                        f = min(max(f, 0.1), 1.9)
                    sums["tgdpo"] = sums["tgdpo"] + f * (logp - ref)
                before = token
            side[chosen] = {**sums, "length": int(batch["mask"][row].sum())}
        for term in terms:
            if isinstance(term, BaselineNLL):
                average = term.aggregation == "seq-mean-token-mean"
                total = total + (
                    0.7 * side[True]["nll"] / side[True]["length"] if average else 0.21 * side[True]["nll"]
                )
                continue
            kind = {TGDPOLoss: "tgdpo", DPOLoss: "dpo", INPOLoss: "inpo"}[type(term)]
            h = side[True][kind] - side[False][kind]
            total = total + ((h - 1 / 0.6) ** 2 if kind == "inpo" else -logsigmoid(0.3 * h))
    loss = total / len(pairs)
    (grad,) = torch.autograd.grad(loss, run_state.table)
    return float(loss.detach()), grad


@pytest.mark.parametrize("name", TERMS)
def test_loss_and_gradient_are_those_of_plain_loops(name: str) -> None:
    batch = with_more(pair_batch())
    grad, logged = gradient_of(TERMS[name], batch)
    loss, wanted = plain(TERMS[name], batch)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6) and torch.allclose(grad, wanted, atol=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_padding_order_and_micro_batches_change_nothing(name: str) -> None:
    batch = with_more(pair_batch())
    expected, logged = gradient_of(TERMS[name], batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    wide = padded(Experience({n: batch[n] for n in batch.fields() if n not in ("guidance", "behaviour_logprob")}))
    more = {n: torch.nn.functional.pad(batch[n], (0, 3)) for n in ("guidance", "behaviour_logprob")}
    wide = wide.with_fields(**{n: torch.where(wide["mask"], x, 77.0) for n, x in more.items()})
    variants = {
        "padding": (wide, PairRunState(critic=False, garbage=float("nan"))),
        "order": (batch.rows(order), PairRunState(critic=False)),
        "two pairs at a time": (batch.rows(order), PairRunState(critic=False, micro=2)),
    }
    for what, (rows, run_state) in variants.items():
        grad, found = gradient_of(TERMS[name], rows, run_state)
        assert torch.allclose(grad, expected, atol=1e-12), what
        for key, value in logged.items():
            if key.startswith(("rewards", "logps", "loss", "token_weight")):
                assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-12), (what, key)


def test_what_was_composed_is_what_stands_there() -> None:
    names = {spec: [t.name for t in build(spec).terms] for spec in ("rpo+tgdpo", "tgdpo+rpo", "rpo+ipo", "inpo+rpo")}
    assert names["rpo+tgdpo"] == names["tgdpo+rpo"] == ["tgdpo-loss", "baseline-nll"]
    assert names["rpo+ipo"] == ["ipo-loss", "baseline-nll"] and names["inpo+rpo"] == ["inpo-loss", "baseline-nll"]
    for spec in ("online-dpo+tgdpo-loss+token-guidance", "iterative-dpo+tgdpo", "iterative-dpo+inpo", "inpo+ipo"):
        build(spec)
    update: Any = build("hypo+ipo(tau=0.3)").updates[0]
    assert [t.name for t in update.also[0].terms] == ["ipo-loss"]


# ------------------------------------------------------------------------------------------------------------- guides


def test_guidance_is_alpha_times_the_guides_log_ratio() -> None:
    batch = pair_batch().with_fields(greedy=torch.zeros(10, dtype=torch.bool))
    run_state = TableRunState(critic=False)
    run_state.task, run_state.reference_name = None, ""  # type: ignore[attr-defined]
    guide = torch.randn(batch["mask"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    run_state.frozen_logprob = lambda *_: guide  # type: ignore[attr-defined]
    part = TokenGuidance(alpha=0.4, dpo_model="given")
    found = part(batch, make_context(run_state))["guidance"]
    assert torch.allclose(found, 0.4 * (guide - batch["ref_logprob"]) * batch["mask"], atol=1e-12)
    assert not bool(found[~batch["mask"]].any()) and bool(found[batch["mask"]].all())


# ----------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rpo", {"learning_rate": 1e-3}),
        ("tgdpo", {"learning_rate": 1e-3}),
        ("hypo", {"learning_rate": 1e-3}),
        ("inpo", {"learning_rate": 1e-3, "prompts_per_step": 64, "minibatches": 4}),
    ],
)
def test_the_gold_score_rises_clearly(method: str, settings: dict[str, Any], taught: Path, tmp_path: Path) -> None:
    result = train(
        method, task="sort-pairs(pairs=600)", model=taught, out=tmp_path / "run", budget="samples=1600", quiet=True,
        seed=SEED, options={"evaluations": 1, "eval_prompts": 100, "tensorboard": False}, **settings,
    )  # fmt: skip
    reached(result.final["eval/reward"] - result.start["eval/reward"], 0.1)
    assert 0 < result.final["eval/kl"] < 8
    assert result.spent["reward_calls"] == (result.spent["samples"] / 2 if method == "inpo" else 0)
    record = read_records(tmp_path / "run")[-1]
    assert {"rewards/margins", "logps/chosen"} <= set(record)
    assert ("token_weight/clipped" in record) == (method == "tgdpo")


# ---------------------------------------------------------------------------------------------- what is told, and not


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("rpo(eta=-1)", "eta"),
        ("rpo(baseline-nll.beta=0.2)", "one number; set --baseline-nll.beta 0.1"),
        ("rpo+ipo(tau=0.3)", "'ipo-loss' 0.3"),
        ("rpo(imitate=demonstrations)", "demonstrated"),
        ("tgdpo(alpha=-0.1)", "alpha"),
        ("tgdpo(min_token_weight=1.2)", "min_token_weight"),
        ("dpo+tgdpo-loss", "guidance"),
        ("hypo(kl_weight=-1)", "kl_weight"),
        ("inpo(tau=0.2)", "tau 0.2 is above eta 0.1"),
        ("inpo(completions_per_prompt=1)", "completions_per_prompt"),
        ("dpo+inpo-loss", "behaviour_logprob"),
    ],
)
def test_recipes_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        build(spec)
    assert words in str(told.value) and str(told.value).count("\n") == 0


def test_a_guide_that_is_none_is_told(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no policy"):
        loop_of(f"tgdpo(dpo_model={tmp_path})", taught, task="sort-pairs(pairs=48)")


def test_trace_shows_what_the_guide_thinks_of_each_token(taught: Path, polyrl: Command) -> None:
    line = ["trace", "tgdpo", "--task", "sort-pairs(pairs=48)", "--model", taught, "--pairs-per-step", 2]
    told = polyrl(*line, "--eval-prompts", 4)
    words = " ".join(told.out.split())
    assert told.code == 0 and "guidance" in words and "token-guidance" in words and "tgdpo-loss" in words
    shown = polyrl("show", "rpo")
    assert shown.code == 0 and "baseline-nll *" in shown.out and "--eta 0.005" in shown.out
