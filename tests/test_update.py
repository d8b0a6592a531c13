"""The optimizer: no arrangement of the work changes a result, and nothing uncounted or non-finite gets in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.parts.improve import NLL, Averaged, ClippedSurrogate, EntropyBonus, PolicyGradient, ReferenceKL, ValueLoss
from polyrl.parts.optimize import NonFinite, Optimize
from polyrl.recipe import Recipe, Term
from polyrl.rollout.language import Sampling
from polyrl.run_state.language import LanguageRunState
from polyrl.tasks.language import task
from run_states import TableRunState, make_context, token_batch
from tiny_models import save_model

TERMS: tuple[Term, ...] = (
    ClippedSurrogate(clip_range=0.1, clip_range_high=0.15, dual_clip=2.0, aggregation="token-mean"),
    ValueLoss(value_coef=0.5, value_clip_range=0.3, aggregation="seq-mean-token-mean"),
    EntropyBonus(entropy_coef=0.1, aggregation="constant"),
    ReferenceKL(kl_loss_coef=0.2, kl_estimator="k3", aggregation="seq-mean-token-sum"),
    NLL(nll_coef=0.1, aggregation="seq-mean-token-mean"),
)
"""Every term at once, each with an average of its own."""

FLOATS = ("behaviour_logprob", "ref_logprob", "value", "value_target", "advantage")


def filled(batch: Experience, reference: Tensor, seed: int = 1) -> Experience:
    """The batch with what the credit and select stages would give: ragged weights, some fractional, some rows 0."""
    generator = torch.Generator().manual_seed(seed)
    mask, kind = batch["mask"], reference.dtype
    advantage, value, target, weight, off = torch.randn(5, *mask.shape, generator=generator).to(kind)
    weight = (weight.abs() + 0.1) * mask
    weight[mask & (off > 1.2)] = 0  # steps that the selection left out
    weight[3] = 0  # and a whole row
    fields = {"advantage": advantage, "value": value, "value_target": target, "weight": weight}
    return batch.with_fields(**fields, ref_logprob=(reference + 0.2 * off) * mask)


def table_batch(run_state: TableRunState) -> Experience:
    batch = token_batch(run_state)
    return filled(batch, run_state.reference_logprob(batch))


def update(run_state: Any, batch: Experience, terms: tuple[Term, ...] = TERMS, **settings: Any) -> dict[str, float]:
    """One `Optimize.run` with a fresh optimizer; returns what was logged."""
    defaults = {"learning_rate": 0.01, "critic_learning_rate": 0.02, "max_grad_norm": 1e9, "adam_epsilon": 1e-3}
    defaults |= {"max_logprob_gap": 9.0}  # the batches are off-policy on purpose
    optimize = Optimize(**{**defaults, **settings})
    context = make_context(run_state)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run(terms, batch, context)
    return context.metrics


def all_gradients(run_state: Any) -> Tensor:
    named = [p for parameters in run_state.parameters().values() for _, p in parameters]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in named])


def all_weights(run_state: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for ps in run_state.parameters().values() for _, p in ps])


# ------------------------------------------------------------------------------ steps of the critic's own


def test_a_critic_learns_from_steps_of_its_own() -> None:
    """With `value_weight` the value loss is that of a batch with these weights, and the policy does not notice."""
    run_state = TableRunState()
    batch = table_batch(run_state)
    generator = torch.Generator().manual_seed(3)
    own = torch.rand(batch["weight"].shape, generator=generator, dtype=torch.float64) * batch["present"]
    update(run_state, batch.with_fields(value_weight=own), TERMS[:2])
    both = run_state.gradients()
    run_state = TableRunState()
    update(run_state, batch.with_fields(weight=own), TERMS[1:2])
    torch.testing.assert_close(both["values"], run_state.gradients()["values"])
    run_state = TableRunState()
    update(run_state, batch, TERMS[:1])
    torch.testing.assert_close(both["table"], run_state.gradients()["table"])
    assert float(both["values"].abs().max()) > 0 and float(both["table"].abs().max()) > 0


def test_a_critic_alone_leaves_the_policy_where_it_is() -> None:
    """Critic pre-training: no weight for the policy means no step, not a step along nothing."""
    run_state = TableRunState()
    batch = table_batch(run_state)
    before = run_state.table.detach().clone()
    fields = {"value_weight": batch["weight"], "weight": torch.zeros_like(batch["weight"])}
    metrics = update(run_state, batch.with_fields(**fields), TERMS, epochs=2, weight_decay=0.1)
    assert torch.equal(run_state.table, before) and run_state.table.grad is None
    assert metrics["loss/value-loss"] > 0 and "approx_kl" not in metrics and "loss/nll" not in metrics


# ------------------------------------------------------------------------------------- arrangement changes nothing


def split_by(size: int | None) -> Callable[[Experience], list[Tensor]]:
    return lambda batch, grouped_by="": list(torch.arange(len(batch)).split(size or len(batch)))


@pytest.mark.parametrize("settings", [{}, {"epochs": 3, "minibatches": 2, "max_grad_norm": 0.05, "weight_decay": 0.1}])
def test_the_size_of_micro_batches_is_memory_and_never_meaning(settings: dict[str, Any]) -> None:
    results = []
    for micro in (None, 1, 3):
        run_state = TableRunState(micro=micro)
        start = all_weights(run_state)
        metrics = update(run_state, table_batch(run_state), **settings)
        results.append((all_gradients(run_state), all_weights(run_state), metrics))
        assert float((all_weights(run_state) - start).abs().max()) > 1e-3
    for gradients, weights, metrics in results[1:]:
        torch.testing.assert_close(gradients, results[0][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(weights, results[0][1], atol=1e-6, rtol=0)
        assert metrics == {k: pytest.approx(v, abs=1e-6) for k, v in results[0][2].items()}


def test_order_padding_and_numbering_change_nothing() -> None:
    run_state = TableRunState()
    batch = table_batch(run_state)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(2))
    steps = ("action", "present", "mask", "weight", *FLOATS)
    wide = {name: torch.nn.functional.pad(batch[name], (0, 5)) for name in steps}
    prompts = {name: torch.nn.functional.pad(batch[name], (4, 0)) for name in ("prompt_ids", "prompt_mask")}
    variants = {
        "as it is": batch,
        "shuffled": batch.rows(order),
        "wider": batch.with_fields(**wide, **prompts),
        "renumbered": batch.with_fields(group=77 - batch["group"]),
        "without the rows that do not count": batch.rows([i for i in range(len(batch)) if i != 3]),
    }
    results = {}
    for name, variant in variants.items():
        run_state = TableRunState()
        metrics = update(run_state, variant)
        results[name] = (all_gradients(run_state), all_weights(run_state), metrics["loss"])
    for name, (gradients, weights, loss) in results.items():
        torch.testing.assert_close(gradients, results["as it is"][0], atol=1e-9, rtol=0, msg=name)
        torch.testing.assert_close(weights, results["as it is"][1], atol=1e-9, rtol=0, msg=name)
        assert loss == pytest.approx(results["as it is"][2])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e300])
def test_what_stands_where_nothing_counts_gets_in_nowhere(garbage: float) -> None:
    clean = TableRunState()
    batch = table_batch(clean)
    wanted = update(clean, batch)
    dirty = TableRunState(garbage=garbage)
    counted = batch["weight"] != 0
    fields = {name: torch.where(counted, batch[name], torch.full_like(batch[name], garbage)) for name in FLOATS}
    found = update(dirty, batch.with_fields(**fields))
    assert torch.equal(all_gradients(dirty), all_gradients(clean))
    assert torch.equal(all_weights(dirty), all_weights(clean))
    assert found == wanted and all(math.isfinite(v) for v in found.values())


def test_the_loss_is_linear_in_the_weights_of_steps() -> None:
    """token-mean: a step of weight 2 counts as two steps."""
    run_state = TableRunState()
    batch = table_batch(run_state)
    whole = batch.with_fields(weight=(batch["weight"] > 0).double() * 2)
    once = batch.with_fields(weight=(batch["weight"] > 0).double())
    term = (PolicyGradient(aggregation="token-mean"),)
    losses = [update(TableRunState(), b, term)["loss"] for b in (whole, once)]
    assert losses[0] == pytest.approx(losses[1])
    uneven = once["weight"].clone()
    uneven[0] *= 2
    doubled = once.rows([0, *range(len(once))])
    found = [update(TableRunState(), b, term)["loss"] for b in (once.with_fields(weight=uneven), doubled)]
    assert found[0] == pytest.approx(found[1]) != pytest.approx(losses[0])


def test_two_terms_of_one_kind_keep_their_own_averages() -> None:
    batch = table_batch(TableRunState())
    one, other = NLL(aggregation="token-mean"), NLL(aggregation="seq-mean-token-sum")
    apart = [update(TableRunState(), batch, (term,))["loss"] for term in (one, other)]
    grouped_by = update(TableRunState(), batch, (one, other))
    assert grouped_by["loss"] == pytest.approx(sum(apart)) and grouped_by["loss/nll"] == pytest.approx(sum(apart))


def test_no_learning_rate_no_change() -> None:
    run_state = TableRunState()
    before = all_weights(run_state)
    still = {"learning_rate": 0.0, "critic_learning_rate": 0.0, "weight_decay": 0.5}
    update(run_state, table_batch(run_state), epochs=3, minibatches=2, **still)
    assert torch.equal(all_weights(run_state), before)
    assert all(float(gradient.abs().max()) > 0 for gradient in run_state.gradients().values())
    moving = TableRunState()
    update(moving, table_batch(moving), epochs=3, minibatches=2, weight_decay=0.5)
    assert not bool((all_weights(moving) == before).any())  # the same steps with rates move every weight


def test_each_model_has_its_own_learning_rate() -> None:
    for settings, moved in (({"critic_learning_rate": 0.0}, "table"), ({"learning_rate": 0.0}, "values")):
        run_state = TableRunState()
        before = {"table": run_state.table.detach().clone(), "values": run_state.values.detach().clone()}
        update(run_state, table_batch(run_state), **settings)
        assert [n for n, old in before.items() if not torch.equal(getattr(run_state, n), old)] == [moved]


def test_every_row_is_trained_once_in_an_epoch() -> None:
    run_state, seen = TableRunState(), []
    outputs = run_state.outputs

    def spy(experience: Experience, wants: Any) -> dict[str, Tensor]:
        seen.append(experience.columns["truth"])
        return outputs(experience, wants)

    batch = table_batch(run_state)
    run_state.outputs = spy  # type: ignore[method-assign]
    context = make_context(run_state)
    optimize = Optimize(epochs=2, minibatches=4)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run(TERMS, batch, context)
    trained = sorted(t for i, t in enumerate(batch.columns["truth"]) if i != 3)
    epochs = [[t for rows in part for t in rows] for part in (seen[:4], seen[4:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == trained and epochs[0] != epochs[1]  # shuffled anew
    assert context.spent.updates == 8 and len(seen) == 8


def test_more_minibatches_than_rows() -> None:
    run_state = TableRunState()
    context = make_context(run_state)
    optimize = Optimize(minibatches=100)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run(TERMS, table_batch(run_state), context)
    assert context.spent.updates == 11


def test_a_batch_in_which_nothing_counts_is_skipped() -> None:
    run_state = TableRunState()
    batch, before = table_batch(run_state), all_weights(run_state)
    metrics = update(run_state, batch.with_fields(weight=torch.zeros_like(batch["weight"])))
    assert metrics == {"updates/skipped": 1.0} and torch.equal(all_weights(run_state), before)


def test_target_kl_stops_the_epochs() -> None:
    batch = table_batch(TableRunState())
    for target, updates in ((1e-9, 1), (None, 4)):
        run_state = TableRunState()
        context = make_context(run_state)
        optimize = Optimize(epochs=4, learning_rate=0.05, target_kl=target)
        context.optimizer = optimize.optimizers(run_state)
        optimize.run(TERMS, batch, context)
        assert context.spent.updates == updates


def test_gradients_are_clipped_by_the_norm_of_each_model() -> None:
    run_state = TableRunState()
    metrics = update(run_state, table_batch(run_state), max_grad_norm=0.01)
    for model, parameter in (("policy", run_state.table), ("critic", run_state.values)):
        assert metrics[f"grad_norm/{model}"] > 0.02  # before clipping
        assert float(parameter.grad.norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_logged_numbers_are_means_over_counted_steps() -> None:
    run_state = TableRunState()
    batch = table_batch(run_state)
    metrics = update(run_state, batch)
    counted = batch["weight"] != 0
    run_state = TableRunState()
    outputs = {k: v.detach() for k, v in run_state.outputs(batch, {"logprob", "entropy"}).items()}
    ratio = (outputs["logprob"] - batch["behaviour_logprob"]).exp()
    assert metrics["entropy"] == pytest.approx(float(outputs["entropy"][counted].mean()))
    assert metrics["ratio"] == pytest.approx(float(ratio[counted].mean()))
    assert metrics["approx_kl"] == pytest.approx(float((ratio - 1 - ratio.log())[counted].mean()))
    assert metrics["logprob_gap"] == pytest.approx(float(ratio.log().abs()[counted].max()))
    assert metrics["loss"] == pytest.approx(sum(v for k, v in metrics.items() if k.startswith("loss/")))
    gains = batch["advantage"][counted].tolist()
    stopped = [r > 1.15 if a > 0 else r < 0.9 for r, a in zip(ratio[counted].tolist(), gains, strict=True)]
    assert metrics["clip_ratio"] == pytest.approx(sum(stopped) / len(stopped)) and 0 < sum(stopped) < len(stopped)


@pytest.mark.parametrize("side", [1, -1])
def test_the_largest_gap_of_log_probabilities_has_no_sign(side: int) -> None:
    run_state = TableRunState()
    batch = table_batch(run_state)
    ours = run_state.outputs(batch, {"logprob"})["logprob"].detach()
    gap = torch.linspace(0.1, 0.5, ours.shape[1], dtype=torch.float64)  # the sampler said more, or less, everywhere
    metrics = update(run_state, batch.with_fields(behaviour_logprob=ours + side * gap * batch["mask"]))
    counted = batch["weight"] != 0
    assert metrics["logprob_gap"] == pytest.approx(float(gap.expand_as(ours)[counted].max()))


# ------------------------------------------------------------------------------------------------ Adam, fact ppo, 7


@pytest.mark.parametrize(("form", "share"), [("torch", 0.5), ("tensorflow", 0.03065)])
def test_ppo_fact_7_first_step_of_adam(form: Any, share: float) -> None:
    """A gradient as small as epsilon: one weight, whose gradient the advantage sets to 1e-5."""
    run_state = TableRunState(critic=False)
    moved = 1e-5
    batch = token_batch(run_state).rows([1])  # one token
    batch = batch.with_fields(weight=batch["mask"].double(), temperature=torch.ones(1))
    state, action = int(batch["prompt_ids"][0, -1]), int(batch["action"][0, 0])
    p = float(run_state.table.detach()[state].softmax(0)[action])
    batch = batch.with_fields(advantage=torch.full_like(batch["behaviour_logprob"], moved / (1 - p)))
    before = float(run_state.table.detach()[state, action])
    rate = 0.5
    update(run_state, batch, (PolicyGradient(),), learning_rate=rate, adam_epsilon=1e-5, adam_form=form)
    assert float(run_state.table.grad[state, action]) == pytest.approx(-moved)
    assert (float(run_state.table.detach()[state, action]) - before) / rate == pytest.approx(share, rel=1e-3)


def test_tensorflow_form_is_the_textbook_over_many_steps() -> None:
    """m / (sqrt(v) + eps) * lr * sqrt(1 - b2^t) / (1 - b1^t), by hand."""
    run_state = TableRunState(critic=False)
    batch = table_batch(run_state)
    optimize = Optimize(learning_rate=0.01, adam_epsilon=0.01, adam_form="tensorflow", max_grad_norm=1e9)
    context = make_context(run_state)
    context.optimizer = optimize.optimizers(run_state)
    weight = run_state.table.detach().clone()
    m = v = torch.zeros_like(weight)
    for t in range(1, 6):
        optimize.run((NLL(),), batch, context)
        g = run_state.table.grad
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        weight = weight - 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v.sqrt() + 0.01)
        torch.testing.assert_close(run_state.table.detach(), weight, atol=1e-12, rtol=0)


# -------------------------------------------------------------------------------------------------- not a number


def stopped(run_state: TableRunState, batch: Experience, terms: tuple[Term, ...], **settings: Any) -> tuple[str, Any]:
    before = all_weights(run_state)
    context = make_context(run_state)
    context.iteration = 17
    optimize = Optimize(**settings)
    context.optimizer = optimize.optimizers(run_state)
    with pytest.raises(NonFinite) as error:
        optimize.run(terms, batch, context)
    assert torch.equal(all_weights(run_state), before) and not context.params_updated
    assert all(not optimizer.state for optimizer in context.optimizer.values())
    return str(error.value), context


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize(
    ("field", "bad", "term", "became"),
    [
        ("advantage", math.nan, "clipped-surrogate", "nan"),
        ("ref_logprob", -math.inf, "reference-kl", "inf"),
        ("value_target", -math.inf, "value-loss", "inf"),
    ],
)
def test_a_loss_that_is_no_number_names_its_term(field: str, bad: float, term: str, became: str, micro: Any) -> None:
    run_state = TableRunState(micro=micro)
    batch = table_batch(run_state)
    row, column = (batch["weight"] != 0).nonzero()[-1].tolist()
    values = batch[field].clone()
    values[row, column] = bad
    text, _ = stopped(run_state, batch.with_fields(**{field: values}), TERMS)
    assert f"The loss of term '{term}' became {became} in iteration 17" in text


@dataclass(frozen=True, kw_only=True)
class Cliff(Averaged):
    """A finite loss whose gradient is not."""

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return (outputs["logprob"] - outputs["logprob"].detach()).abs().sqrt()


@dataclass(frozen=True, kw_only=True)
class CriticCliff(Averaged):
    wants = frozenset({"value"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return (outputs["value"] - outputs["value"].detach()).abs().sqrt()


@pytest.mark.parametrize(("term", "model"), [(Cliff(), "policy"), (CriticCliff(), "critic")])
def test_a_gradient_that_is_no_number_names_its_model(term: Term, model: str) -> None:
    run_state = TableRunState()
    text, _ = stopped(run_state, table_batch(run_state), (*TERMS, term))
    assert f"The gradient of the {model} became nan in iteration 17" in text


def test_terms_that_cancel_to_no_number_are_told() -> None:
    """An infinite loss is found even where another would hide it."""
    run_state = TableRunState()
    batch = table_batch(run_state)
    huge = batch.with_fields(advantage=torch.full_like(batch["advantage"], -1e308))
    text, _ = stopped(run_state, huge, (PolicyGradient(), NLL()))
    assert "The loss of term 'policy-gradient' became -inf" in text or "became inf" in text


# ------------------------------------------------------------------------------------------- a real language model


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageRunState, Experience]:
    folder = save_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", initializer_range=0.1)
    addition = task("addition", difficulty=2)
    run_state = LanguageRunState(addition, folder, critic=True)
    with torch.no_grad():  # a head of 0 would hide the critic's body
        run_state.critic.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))  # type: ignore[union-attr]
    rows = addition.rows("train", 0, 0, 4)
    stream = torch.Generator().manual_seed(1)
    sampling = Sampling(max_tokens=9, temperature=0.8)
    batch = run_state.sample(rows, sampling, completions_per_prompt=3, generator=stream)
    batch = batch.rows(torch.randperm(len(batch), generator=stream))  # groups lie scattered
    cut = torch.randint(2, 10, (len(batch), 1), generator=stream)
    present = batch["present"] & (torch.arange(batch["present"].shape[1]) < cut)
    tool = torch.rand(present.shape, generator=stream) < 0.25
    tool[:, 0] = False
    batch = batch.with_fields(present=present, mask=present & ~tool, action=batch["action"] * present)
    batch = filled(batch, run_state.reference_logprob(batch))
    off = 0.2 * torch.randn(present.shape, generator=stream)
    return run_state, batch.with_fields(behaviour_logprob=(batch["behaviour_logprob"] + off) * batch["mask"])


def retrained(
    language: tuple[LanguageRunState, Experience], batch: Experience, split: Any = None, **settings: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Update from the same start; leave the run state as it was."""
    run_state = language[0]
    models = (run_state.policy, run_state.critic)
    start = [copy.deepcopy(m.state_dict()) for m in models]  # type: ignore[union-attr]
    for parameters in run_state.parameters().values():
        for _, p in parameters:
            p.grad = None
    if split is not None:
        run_state.micro_batches = split  # type: ignore[method-assign]
    try:
        metrics = update(run_state, batch, learning_rate=1e-3, critic_learning_rate=1e-3, **settings)
        return all_gradients(run_state), all_weights(run_state), metrics
    finally:
        run_state.__dict__.pop("micro_batches", None)
        for model, state in zip(models, start, strict=True):
            model.load_state_dict(state)  # type: ignore[union-attr]


def close(found: tuple[Tensor, Tensor, dict[str, float]], wanted: tuple[Tensor, Tensor, dict[str, float]]) -> None:
    scale = max(1.0, float(wanted[0].abs().max()))
    torch.testing.assert_close(found[0], wanted[0], atol=2e-6 * scale, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-6, rtol=0)
    for name, value in wanted[2].items():
        assert found[2][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_language_model_does_not_care_for_micro_batches(language: tuple[LanguageRunState, Experience]) -> None:
    run_state, batch = language
    start = all_weights(run_state)
    whole = retrained(language, batch, split_by(None))
    assert torch.equal(all_weights(run_state), start) and float((whole[1] - start).abs().max()) > 1e-4
    assert float(whole[0].abs().max()) > 1e-2
    for split in (split_by(1), split_by(3), None):
        close(retrained(language, batch, split), whole)


def test_token_budgets_of_micro_batches_cover_every_row_once(language: tuple[LanguageRunState, Experience]) -> None:
    run_state, batch = language
    kept = run_state.micro_batch_tokens
    try:
        for tokens in (1, 40, 10**6):
            run_state.micro_batch_tokens = tokens
            found = run_state.micro_batches(batch)
            assert sorted(torch.cat(found).tolist()) == list(range(len(batch)))
            assert len(found) == {1: len(batch), 10**6: 1}.get(tokens, len(found))
    finally:
        run_state.micro_batch_tokens = kept


def test_a_language_model_does_not_care_for_order_padding_and_garbage(
    language: tuple[LanguageRunState, Experience],
) -> None:
    _, batch = language
    wanted = retrained(language, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(8))
    close(retrained(language, batch.rows(order)), wanted)
    steps = ("action", "present", "mask", "weight", *FLOATS)
    wide = {name: torch.nn.functional.pad(batch[name], (0, 5)) for name in steps}
    prompts = {name: torch.nn.functional.pad(batch[name], (4, 0)) for name in ("prompt_ids", "prompt_mask")}
    close(retrained(language, batch.with_fields(**wide, **prompts)), wanted)
    counted = batch["weight"] != 0
    for garbage in (math.nan, math.inf):
        fields = {name: batch[name].masked_fill(~counted, garbage) for name in FLOATS}
        found = retrained(language, batch.with_fields(**fields))
        assert all(math.isfinite(v) for v in found[2].values())
        close(found, wanted)


def test_no_learning_rate_no_change_of_a_language_model(language: tuple[LanguageRunState, Experience]) -> None:
    run_state, batch = language
    start = all_weights(run_state)
    optimize = Optimize(
        learning_rate=0.0, critic_learning_rate=0.0, epochs=2, minibatches=2, weight_decay=0.3, max_logprob_gap=10.0
    )  # the tests before this one have trained the model that sampled
    context = make_context(run_state)
    context.optimizer = optimize.optimizers(run_state)
    optimize.run(TERMS, batch, context)
    assert torch.equal(all_weights(run_state), start)
    assert context.metrics["grad_norm/policy"] > 0 and context.metrics["grad_norm/critic"] > 0


def test_sampler_and_trainer_agree_before_the_first_step(language: tuple[LanguageRunState, Experience]) -> None:
    """max |rho - 1| < 1e-4 at the first step, at another temperature than 1 and with greedy baselines."""
    run_state, _ = language
    recipe: Recipe = build("remax+clipped-surrogate", {"temperature": 0.7, "prompts_per_step": 3})
    context = make_context(run_state, recipe)
    experience: Any = None
    for stage, parts in recipe.stages():
        for part in parts if stage != "improve" else ():
            experience = part(experience, context)
    optimize = Optimize(learning_rate=0.0)
    optimize.run(recipe.terms, experience, context)
    assert context.metrics["logprob_gap"] < 1e-4 and context.metrics["ratio"] == pytest.approx(1, abs=1e-4)
    assert context.metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert context.spent.samples == len(experience) == 6 and experience["temperature"].tolist() == pytest.approx(
        [0.7, 1] * 3
    )
