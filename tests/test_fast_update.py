"""The language update's fast paths against the plain ones: oneDNN's products, shared prompts, passes of our own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.kernels import linear, llama
from polyrl.kernels.linear import Linear, quicken
from polyrl.models.language.families import CACHE_ARGUMENTS
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import Backbone, LanguagePolicy
from polyrl.models.language.prefix import distinct_prompts
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.token_scores import score_logits
from polyrl.run_state.language import LanguageRunState
from polyrl.tasks.language import task
from test_language_policy import random_batch
from tiny_models import make_policy, save_model

BIASES = {"attention_bias": True, "mlp_bias": True}
"""A Llama whose every linear layer has a bias."""


# ------------------------------------------------------------------------------------------------ oneDNN's products


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """oneDNN whatever the processor; a list of the sizes of products that went there."""
    monkeypatch.setenv(linear.SETTING, "1")
    linear.onednn_pays.cache_clear()
    if not linear.onednn_pays():
        pytest.skip("this PyTorch has no oneDNN")
    sizes: list[int] = []
    product = linear.product

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        sizes.append(2 * x.numel() * len(weight))
        return product(x, weight, bias)

    monkeypatch.setattr(linear, "product", counted)
    yield sizes
    linear.onednn_pays.cache_clear()


def inputs(kind: str, rows: int, size: int) -> Tensor:
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(1))
    if kind == "three dimensions":
        return x.view(4, -1, size)
    if kind == "transposed":
        return x.t().contiguous().t()
    if kind == "every other row":
        return x.repeat_interleave(2, 0)[::2]
    return x


@pytest.mark.parametrize("kind", ["plain", "three dimensions", "transposed", "every other row"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "size", "out"), [(128, 128, 128), (128, 128, 127), (512, 384, 96), (64, 96, 512)])
def test_linear_equals_f_linear(onednn: list[int], kind: str, bias: bool, rows: int, size: int, out: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(size, out, bias=bias)
    x = inputs(kind, rows, size).requires_grad_()
    grad_output = torch.randn(*x.shape[:-1], out)

    def passes() -> list[Tensor]:
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(grad_output)
        with torch.no_grad():
            assert torch.equal(layer(x), y)
        return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]

    want = passes()
    assert not onednn
    quicken(nn.Sequential(layer))
    assert type(layer) is Linear
    for have, wanted in zip(passes(), want, strict=True):
        assert have.shape == wanted.shape
        assert (have - wanted).norm() / wanted.norm() < 1e-6
    large = 2 * rows * size * out >= linear.SMALLEST
    assert len(onednn) == (4 if large else 0)  # forward, both gradients, forward without one


def test_what_needs_no_gradient_gets_none_and_other_kinds_go_the_plain_way(onednn: list[int]) -> None:
    layer = Linear(256, 256)
    x = torch.randn(256, 256)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad and len(onednn) == 1
    layer.weight.requires_grad_()
    layer(x).sum().backward()
    assert layer.bias.grad is None and len(onednn) == 3  # forward, and the weight's
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.double()(x.double())
    assert len(onednn) == 3


@pytest.mark.parametrize("setting", ["0", "1"])
def test_the_setting_decides(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(linear.SETTING, setting)
    linear.onednn_pays.cache_clear()
    assert linear.onednn_pays() == (setting == "1" and torch.backends.mkldnn.is_available())
    linear.onednn_pays.cache_clear()


def test_models_get_these_layers_and_are_saved_as_before(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    kinds = {type(m) for m in policy.modules() if isinstance(m, nn.Linear)}
    assert kinds == {Linear}
    head, embeddings = policy.causal_lm.get_output_embeddings(), policy.causal_lm.get_input_embeddings()
    assert head.weight is embeddings.weight
    policy.save(tmp_path / "again")
    again = LanguagePolicy.load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    assert [*again.state_dict()] == [*policy.state_dict()]
    lora = LanguagePolicy.load(tmp_path / "again", lora=LoraSettings(rank=2))
    assert {type(m) for m in lora.modules() if type(m).__name__ == "Linear" and type(m).__module__[:4] != "peft"} == {
        Linear
    }


# ------------------------------------------------------------------------------------------------ scores of tokens


@pytest.mark.parametrize("entropy", [True, False])
def test_scores_equal_autograd_s(entropy: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(7, 11, dtype=torch.double).mul(3), torch.arange(7)
    temperature, grad_outputs = torch.rand(7) + 0.5, torch.randn(2, 7)
    found, want = logits.float().requires_grad_(), logits.requires_grad_()
    scores = score_logits(found, target, temperature, entropy)
    logs = (want / temperature[:, None]).log_softmax(-1)
    plain = logs[torch.arange(7), target], -(logs.exp() * logs).sum(-1)
    assert (scores[1] is not None) == entropy
    for mine, theirs in zip(scores, plain, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs.float())
    uses = [(True, True), (True, False), (False, True)] if entropy else [(True, False)]
    for use in uses:
        for table, outputs in ((found, scores), (want, plain)):
            table.grad = None
            parts = [(o * s).sum() for o, s, u in zip(outputs, grad_outputs, use, strict=True) if u]
            sum(parts).backward(retain_graph=True)  # type: ignore[union-attr]
        torch.testing.assert_close(found.grad, want.grad.float())  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------- shared prompts


def make_run_state(folder: Path, family: str, **settings: Any) -> LanguageRunState:
    changes = settings.pop("changes", {})
    folder = save_model(folder / family, family, **changes)
    settings = {"critic": True, "micro_batch_tokens": 30, **settings}
    run_state = LanguageRunState(task("addition", difficulty=1), folder, **settings)
    with torch.no_grad():
        stream = torch.Generator().manual_seed(3)
        if run_state.critic is not None:  # a head of 0 would hide the critic's body
            run_state.critic.head.weight.normal_(0, 0.3, generator=stream)
        for name, parameter in run_state.policy.named_parameters():
            if "lora_B" in name or name.endswith("bias"):  # these start at 0 and would hide what is before them
                parameter.normal_(0, 0.2, generator=stream)
    return run_state


def make_batch(run_state: LanguageRunState) -> Experience:
    """Ragged prompts, each of several rows; responses of 1 to 13 tokens, some a tool's; several temperatures."""
    batch = random_batch(run_state.policy)
    return batch.with_fields(greedy=torch.zeros(len(batch), dtype=torch.bool), pair=torch.arange(len(batch)) // 2)


Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


def some_loss(batch: Experience) -> Loss:
    """Differently much of every output at every place."""
    grad_outputs = torch.randn(3, *batch["mask"].shape, generator=torch.Generator().manual_seed(5))
    return lambda outputs, rows: sum(  # type: ignore[return-value]
        (outputs[name] * grad_output[rows]).sum()
        for name, grad_output in zip(("logprob", "entropy", "value"), grad_outputs, strict=True)
        if name in outputs
    )


def gradients(
    run_state: LanguageRunState,
    batch: Experience,
    wants: Collection[str] = ("logprob", "entropy", "value"),
    split: list[Tensor] | None = None,
    grouped_by: str = "",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of all models by one minibatch in micro-batches, and all outputs."""
    for named in run_state.parameters().values():
        for _, parameter in named:
            parameter.grad = None
    loss = some_loss(batch)
    outputs = {name: torch.zeros(batch["mask"].shape) for name in wants}
    with run_state.updating(batch, wants) as forward:
        for rows in split or run_state.micro_batches(batch, grouped_by):
            found = forward(rows)
            loss(found, rows).backward()
            for name, values in found.items():
                outputs[name][rows] = values.detach()
    named = [p for parameters in run_state.parameters().values() for _, p in parameters]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in named]), outputs


@contextmanager
def plainly(run_state: LanguageRunState) -> Iterator[None]:
    """Without shared prompts: every row is read whole."""
    readers: list[Backbone] = [run_state.policy, *([run_state.critic] if run_state.critic else [])]
    for reader in readers:
        reader.share_prompts = False
    yield
    for reader in readers:
        del reader.share_prompts


@contextmanager
def counted(run_state: LanguageRunState, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Tokens that were read by passes of our own, after a cache by the model's modules, and plainly."""
    tokens = {"own": 0, "cache": 0, "plain": 0}
    for reader in (run_state.policy, run_state.critic, run_state.reference):
        if reader is not None:
            _ = reader.can_share, reader.has_own_passes  # tried once, and not to be counted
    start, read, hidden = llama.Pass.__init__, Backbone.read, Backbone._hidden

    def own(self: Any, weights: Any, ids: Tensor, real: Tensor, *rest: Any) -> None:
        tokens["own"] += int(real.sum())
        start(self, weights, ids, real, *rest)

    def cached(self: Any, ids: Tensor, *rest: Any) -> Tensor:
        tokens["cache"] += ids.numel()
        return read(self, ids, *rest)

    def plain(self: Any, layout: Any) -> Tensor:
        tokens["plain"] += layout.input_ids.numel()
        return hidden(self, layout)

    with monkeypatch.context() as patch:
        patch.setattr(llama.Pass, "__init__", own)
        patch.setattr(Backbone, "read", cached)
        patch.setattr(Backbone, "_hidden", plain)
        yield tokens


def needed(batch: Experience) -> int:
    """Tokens that must be read: each distinct prompt once, and each response but its last token."""
    prompts, _ = distinct_prompts(batch)
    return sum(map(len, prompts)) + int((batch["present"].sum(1) - 1).sum())


def close(found: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    assert float(wanted.norm()) > 1e-3
    assert float((found - wanted).norm() / wanted.norm()) < share


CASES = {
    "qwen3": ("qwen3", "own", {}),
    "llama": ("llama", "own", {}),
    "llama-biases": ("llama", "own", BIASES),
    "qwen2": ("qwen2", "own", {}),
    "mistral": ("mistral", "own", {}),
    "gpt2": ("gpt2", "cache", {}),
    "gemma2": ("gemma2", "cache", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_shared_prompts_give_the_plain_gradients(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, way, changes = CASES[case]
    run_state = make_run_state(tmp_path, family, changes=changes)
    batch = make_batch(run_state)
    assert len(run_state.micro_batches(batch)) > 3
    with counted(run_state, monkeypatch) as tokens:
        found, outputs = gradients(run_state, batch)
    assert tokens["plain"] == 0 and tokens["own" if way == "cache" else "cache"] == 0
    if way == "own":
        assert tokens["own"] == 2 * needed(batch)  # policy and critic
    else:  # padding is read too
        assert 2 * needed(batch) <= tokens["cache"] < 2 * needed(batch) + 100
    with plainly(run_state), counted(run_state, monkeypatch) as tokens:
        wanted, plain = gradients(run_state, batch)
    assert tokens["own"] == tokens["cache"] == 0 and tokens["plain"] > 2 * needed(batch) + 100
    close(found, wanted)
    for name, values in plain.items():
        torch.testing.assert_close(outputs[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_any_split_gives_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_state = make_run_state(tmp_path, family, micro_batch_tokens=20)
    batch = make_batch(run_state)
    with plainly(run_state):
        wanted, _ = gradients(run_state, batch, split=[torch.arange(len(batch))])
    for split in (
        [torch.arange(len(batch))],
        [*torch.randperm(len(batch)).split(3)],
        [*torch.arange(len(batch)).split(1)],
    ):
        close(gradients(run_state, batch, split=split)[0], wanted)  # some of them take prompts of several chunks
    close(gradients(run_state, batch, grouped_by="pair")[0], wanted)
    for rows in run_state.micro_batches(batch, "pair"):
        pairs = batch["pair"][rows].bincount()
        assert set(pairs[pairs > 0].tolist()) == {2}
    run_state.micro_batch_tokens = 10**6
    close(gradients(run_state, batch)[0], wanted)


def test_pairs_share_their_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO: two responses to each prompt, read after it."""
    run_state = make_run_state(tmp_path, "qwen3", critic=False)
    batch = make_batch(run_state).rows([1, 2, 4, 5, 0, 7])
    batch = batch.with_fields(pair=torch.arange(6) // 2)
    with counted(run_state, monkeypatch) as tokens:
        found, _ = gradients(run_state, batch, {"logprob"}, grouped_by="pair")
    assert tokens == {"own": needed(batch), "cache": 0, "plain": 0}
    with plainly(run_state):
        close(found, gradients(run_state, batch, {"logprob"}, grouped_by="pair")[0])


def test_own_passes_take_the_fast_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onednn: list[int]) -> None:
    run_state = make_run_state(tmp_path, "qwen3", critic=False)
    batch = make_batch(run_state)
    with plainly(run_state):
        wanted, _ = gradients(run_state, batch, {"logprob"})
    assert not onednn  # all products of so small a model are
    monkeypatch.setattr(linear, "SMALLEST", 0)
    close(gradients(run_state, batch, {"logprob"})[0], wanted)
    assert len(onednn) > 100


def test_what_is_measured_reads_prompts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_state = make_run_state(tmp_path, "llama")
    batch = make_batch(run_state)
    assert run_state.reference.has_own_passes
    for measure in (run_state.reference_of, run_state.value):
        with counted(run_state, monkeypatch) as tokens:
            found = measure(batch)
        assert tokens == {"own": needed(batch), "cache": 0, "plain": 0} and not found.requires_grad
        monkeypatch.setattr(Backbone, "share_prompts", False)
        torch.testing.assert_close(found, measure(batch), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(Backbone, "share_prompts", True)
    twins = batch.with_fields(greedy=torch.arange(len(batch)) == 2)
    assert not run_state.value(twins)[2].any()
    others = [i for i in range(len(batch)) if i != 2]
    torch.testing.assert_close(run_state.value(twins)[others], run_state.value(batch)[others], rtol=1e-4, atol=1e-5)


def test_lora_shares_prompts_through_the_model_s_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_state = make_run_state(tmp_path, "qwen3", lora=LoraSettings(rank=2), critic=False)
    batch = make_batch(run_state)
    with counted(run_state, monkeypatch) as tokens:
        found, _ = gradients(run_state, batch, {"logprob", "entropy"})
        reference = run_state.reference_of(batch)
    assert tokens["own"] == tokens["plain"] == 0 and tokens["cache"] >= 2 * needed(batch)
    with plainly(run_state):
        close(found, gradients(run_state, batch, {"logprob", "entropy"})[0])
        torch.testing.assert_close(reference, run_state.reference_of(batch), rtol=1e-4, atol=1e-5)


def test_lora_that_has_not_moved_yet_gets_gradients(tmp_path: Path) -> None:
    """Adapters start as nothing: a comparison with the model alone would take it for the plain one."""
    policy = make_policy(tmp_path, "qwen3")
    policy.save(tmp_path / "start")
    run_state = LanguageRunState(task("reverse"), tmp_path / "start", lora=LoraSettings(rank=2))
    batch = make_batch(run_state)
    found, _ = gradients(run_state, batch, {"logprob"})
    assert not run_state.policy.has_own_passes and found.abs().sum() > 0


def test_bfloat16_is_as_near_to_float32_as_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        run_state = make_run_state(tmp_path, "qwen3", precision=precision, changes={"initializer_range": 0.1})
        batch = make_batch(run_state)
        with counted(run_state, monkeypatch) as tokens:
            found[precision], _ = gradients(run_state, batch)
        assert tokens["own"] == 2 * needed(batch)
    with plainly(run_state):
        autocast, _ = gradients(run_state, batch)
    error = (found["bfloat16"] - found["float32"]).norm() / found["float32"].norm()
    assert 1e-4 < error < 1.2 * (autocast - found["float32"]).norm() / found["float32"].norm() < 0.1


def test_which_models_are_read_by_our_own_passes(tmp_path: Path) -> None:
    for family in ("gpt2", "gemma2", "cohere", "granite", "mamba"):
        policy = make_policy(tmp_path, family)
        assert not policy.has_own_passes and policy.can_share == (family != "mamba"), family
    for way in (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"hidden_act": "gelu"},
    ):
        policy = make_policy(tmp_path / str(len(way)), "llama", **way)
        assert not policy.has_own_passes and policy.can_share
    policy = make_policy(tmp_path / "odd", "llama")
    policy.backbone.layers[0].register_forward_hook(lambda *_: None)
    assert not policy.has_own_passes
    scaled = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 16, "rope_theta": 1e4}  # type: ignore[dict-item]
    assert make_policy(tmp_path / "scaled", "llama", rope_parameters=scaled).has_own_passes


def test_a_model_that_reads_its_cache_otherwise_is_read_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_state = make_run_state(tmp_path, "gpt2", critic=False)
    forward = run_state.policy.backbone.forward

    def odd(**given: Any) -> Any:
        output = forward(**given)
        if any(given.get(name) is not None for name in CACHE_ARGUMENTS):
            output.last_hidden_state = output.last_hidden_state * 1.1
        return output

    monkeypatch.setattr(run_state.policy.backbone, "forward", odd)
    batch = make_batch(run_state)
    with counted(run_state, monkeypatch) as tokens:
        found, _ = gradients(run_state, batch, {"logprob"})
    assert tokens["plain"] > needed(batch)
    monkeypatch.undo()
    with plainly(run_state):
        close(found, gradients(run_state, batch, {"logprob"})[0])


def test_long_rows_take_the_model_s_own_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "LONGEST", 10)
    run_state = make_run_state(tmp_path, "qwen3", critic=False)
    batch = make_batch(run_state)
    with counted(run_state, monkeypatch) as tokens:
        found, _ = gradients(run_state, batch, {"logprob"})
    assert tokens["own"] == 0 and tokens["cache"] >= needed(batch)
    with plainly(run_state):
        close(found, gradients(run_state, batch, {"logprob"})[0])


@pytest.mark.parametrize(
    ("hidden", "prompt", "response", "paid"),
    [
        *((128, 12, 100, True), (128, 12, 116, False), (128, 208, 32, True), (128, 208, 64, False)),
        *((256, 12, 180, True), (256, 12, 244, False), (256, 400, 32, True)),
        *((32, 12, 56, True), (2048, 12, 1020, False)),
    ],
)
def test_the_passes_are_taken_where_they_were_measured_to_pay(
    hidden: int, prompt: int, response: int, paid: bool
) -> None:
    """Rows of which the longest decides, prompts counting a third; never beyond what one layer's attention may take."""
    backbone = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
    lengths = torch.tensor([prompt, 3]), torch.tensor([response, 1])
    assert llama.pays(backbone, *lengths) is paid


def test_frozen_weights_stay_without_a_gradient(tmp_path: Path) -> None:
    run_state = make_run_state(tmp_path, "qwen3", critic=False)
    batch = make_batch(run_state)
    whole, _ = gradients(run_state, batch, {"logprob"})
    table = run_state.policy.backbone.embed_tokens.weight.requires_grad_(False)
    table.grad = None
    part, _ = gradients(run_state, batch, {"logprob"})
    assert table.grad is None
    torch.testing.assert_close(part, whole[table.numel() :], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_an_error_between_micro_batches_leaves_nothing_behind(family: str, tmp_path: Path) -> None:
    run_state = make_run_state(tmp_path, family)
    batch = make_batch(run_state)
    wanted, _ = gradients(run_state, batch)
    for _, parameter in run_state.parameters()["policy"]:
        parameter.grad = None
    with pytest.raises(KeyError, match="stop"), run_state.updating(batch, {"logprob"}) as forward:
        rows = run_state.micro_batches(batch)[0]
        some_loss(batch)(forward(rows), rows).backward()
        raise KeyError("stop")
    again, _ = gradients(run_state, batch)  # which forgets gradients first, as each optimizer step does
    assert torch.equal(again, wanted)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_micro_batch_cannot_go_backward_after_its_prompts(family: str, tmp_path: Path) -> None:
    run_state = make_run_state(tmp_path, family, micro_batch_tokens=20)
    batch = make_batch(run_state)
    plan = run_state.policy.plan(batch, 20)
    assert plan is not None and len(plan.prompts) > 1
    first, *_, last = run_state.micro_batches(batch)
    with (
        pytest.raises(RuntimeError, match="before the next is read"),
        run_state.updating(batch, {"logprob"}) as forward,
    ):
        early = forward(first)["logprob"].sum()
        forward(last)
        early.backward()


def test_chunks_hold_few_tokens_and_micro_batches_follow_them(tmp_path: Path) -> None:
    run_state = make_run_state(tmp_path, "qwen3")
    batch = make_batch(run_state)
    plan = run_state.policy.plan(batch, 25)
    assert plan is not None
    for prompts in plan.prompts:
        assert len(prompts) * max(map(len, prompts)) <= 25
    asked = [batch["prompt_ids"][i][batch["prompt_mask"][i]].tolist() for i in range(len(batch))]
    places = zip(plan.chunk.tolist(), plan.place.tolist(), strict=True)
    assert [plan.prompts[chunk][place] for chunk, place in places] == asked
    groups = micro_batches_of(batch, 25, chunk=plan.chunk)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(batch)))
    chunks = [plan.chunk[group].unique().tolist() for group in groups]
    assert all(len(chunk) == 1 for chunk in chunks) and chunks == sorted(chunks)
    for group in groups:
        longest = batch["present"][group].sum(1) + batch["prompt_mask"][group].sum(1) // 8
        assert len(group) == 1 or len(group) * int(longest.max()) <= 25
