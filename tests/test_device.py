"""What a device takes by default, decided from facts that are given here: no device of these is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import Command
from polyrl.comparison_folder import begin
from polyrl.errors import UserError
from polyrl.rollout import room
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.runtime import device
from polyrl.runtime.config import RunConfig
from polyrl.runtime.device import Facts, Settings, bfloat16_slowdown, check_precision, make_device, settings_of, settled
from tiny_models import make_policy

NVIDIA, OLD, APPLE, NONE = Facts(cuda=True, bfloat16=True), Facts(cuda=True), Facts(mps=True), Facts()


def asked(**options: Any) -> RunConfig:
    return RunConfig(method="grpo", **options)


def test_auto_takes_the_gpu_that_there_is() -> None:
    assert [make_device("auto", facts) for facts in (NVIDIA, APPLE, NONE)] == ["cuda", "mps", "cpu"]
    assert make_device("auto", Facts(cuda=True, mps=True)) == "cuda" and make_device("cpu", NVIDIA) == "cpu"


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (NVIDIA, Settings("cuda", "bfloat16", 32_768, tf32=True)),
        (OLD, Settings("cuda", "float32", 32_768, tf32=True)),  # it does not multiply bfloat16
        (APPLE, Settings("mps", "float32", 1024)),
        (NONE, Settings("cpu", "float32", 1024)),
    ],
)
def test_each_device_has_defaults_of_its_own(facts: Facts, settings: Settings) -> None:
    assert settings_of(asked(), facts) == settings


def test_what_is_asked_for_stays() -> None:
    assert settings_of(asked(precision="float32", micro_batch_tokens=77), NVIDIA) == Settings("cuda", "float32", 77)
    assert settings_of(asked(device="cpu"), NVIDIA) == Settings("cpu", "float32", 1024)
    assert settings_of(asked(precision="bfloat16"), NONE).precision == "bfloat16"
    assert settings_of(asked(precision="bfloat16"), OLD).tf32


def test_a_run_states_what_it_took_and_goes_on_with_it() -> None:
    config = settled(asked(budget="samples=9"), settings_of(asked(), NVIDIA))
    assert (config.precision, config.micro_batch_tokens, config.device) == ("bfloat16", 32_768, "auto")
    assert settings_of(config, NONE) == Settings("cpu", "bfloat16", 32_768)  # as it began, wherever it goes on


def test_only_a_cuda_device_is_told_how_to_round() -> None:
    products: Any = torch.backends.cuda.matmul
    before = products.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        device.apply(Settings("cuda:1", "bfloat16", 9, tf32=True))
        assert products.allow_tf32 and torch.backends.cudnn.allow_tf32
        device.apply(Settings("cpu", "float32", 9))
        assert products.allow_tf32
        device.apply(Settings("cuda", "float32", 9, tf32=False))
        assert not products.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        products.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# ----------------------------------------------------------------------------------------------- bfloat16 on a CPU


def slow() -> float:
    return 19.6


def test_bfloat16_that_is_slow_is_refused_unless_it_is_forced() -> None:
    config = asked(precision="bfloat16", device="cpu")
    with pytest.raises(UserError, match=r"took 20 times as long as in float32.*leave --precision away, or.*--force"):
        check_precision(config, slow)
    check_precision(asked(precision="bfloat16", device="cpu", force=True), slow)
    check_precision(config, lambda: 0.4)
    check_precision(config, lambda: 2.9)
    with pytest.raises(UserError, match="took 3 times"):
        check_precision(config, lambda: 3.0)


def test_nothing_is_measured_where_it_does_not_matter() -> None:
    def never() -> float:
        raise AssertionError

    check_precision(asked(), never)
    check_precision(asked(precision="float32"), never)
    check_precision(asked(precision="bfloat16", device="meta"), never)  # any that is no CPU
    for other in ({}, {"precision": "float32"}):
        with pytest.raises(UserError, match=r"--force lets --precision bfloat16 run .* means nothing here"):
            check_precision(asked(force=True, **other), never)


def test_the_measurement_takes_the_fastest_of_three_products_of_each() -> None:
    """The clock is told at the beginning and end of each; kernels are prepared before, unmeasured."""
    times = iter([0, 5, 10, 11, 20, 22, 100, 130, 200, 220, 300, 340])
    assert bfloat16_slowdown(lambda: next(times)) == 20 / 1
    threads = torch.get_num_threads()
    assert 0.01 < bfloat16_slowdown() < 1000 and torch.get_num_threads() == threads


def test_the_command_line_asks_before_anything_is_made(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch, small_model: Path
) -> None:
    monkeypatch.setattr(device.check_precision, "__defaults__", (slow,))
    words = ["--task", "reverse", "--difficulty", "4", "--model", str(small_model), "--device", "cpu"]
    words += ["--budget", "iterations=1", "--evaluations", "1", "--eval-prompts", "4", "--precision", "bfloat16"]
    out = tmp_path / "run"
    for command in (["train", "grpo"], ["compare", "grpo", "--seeds", "1"]):
        told = polyrl(*command, *words, "--out", str(out))
        assert told.code == 2 and "--force" in told.err and "20 times" in told.err
        assert not out.exists()
    told = polyrl("train", "grpo", *words, "--out", str(out), "--force")
    assert told.code == 0, told.err
    run = yaml.safe_load((out / "config.yaml").read_text())["run"]
    assert (run["precision"], run["force"], run["micro_batch_tokens"]) == ("bfloat16", True, 1024)
    assert "--force means nothing on CartPole-v1" in polyrl("train", "ppo", "--task", "CartPole-v1", "--force").err


# ------------------------------------------------------------------------------------------------- rows at a time


def test_rows_are_a_power_of_two_that_half_of_the_free_memory_holds() -> None:
    for free, each, rows in (
        (2_000, 1, 512),  # half of it: 1,000
        (2_048, 1, 1024),
        (2_047, 1, 512),
        (100, 50, 1),
        (100, 51, 1),  # none fits: one all the same
        (10**12, 1, room.MOST_ROWS),
    ):
        assert room.rows_that_fit(free, each) == rows


def test_a_row_is_its_keys_values_and_logits(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    c = policy.backbone.config
    keys_and_values = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 4
    logits = room.DRAWING * 4 * c.vocab_size
    assert room.row_bytes(policy, 100) == 100 * keys_and_values + logits
    assert room.row_bytes(policy, 7) == 7 * keys_and_values + logits


def test_the_engine_asks_for_free_memory_and_draws_the_same(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    asked_of: list[str] = []

    def free(where: torch.device) -> int:
        asked_of.append(where.type)
        return 2 * 3 * room.row_bytes(policy, 3 + 6)

    scarce = TransformersEngine(policy, free=free)
    assert scarce.rows_at_once(9) == 2 and asked_of == ["cpu"]  # three fit
    assert TransformersEngine(policy, free=lambda _: None).rows_at_once(9) == room.ROWS
    assert TransformersEngine(policy, max_rows=5, free=free).rows_at_once(9) == 5
    drawn = [
        engine.generate(
            [[1, 2, 3], [3, 2]],
            Sampling(max_tokens=6),
            completions_per_prompt=4,
            generator=torch.Generator().manual_seed(0),
        )
        for engine in (scarce, TransformersEngine(policy))
    ]
    assert torch.equal(drawn[0]["action"], drawn[1]["action"])
    torch.testing.assert_close(drawn[0]["behaviour_logprob"], drawn[1]["behaviour_logprob"])


# --------------------------------------------------------------------------------------------- folders of before


def test_comparisons_of_before_go_on(tmp_path: Path) -> None:
    """They have precision and micro-batches written out, which nobody had asked for."""
    base = RunConfig(method="", task="CartPole-v1", budget="steps=9")
    before = {**base.as_dict(), "precision": "float32", "micro_batch_tokens": 1024}
    del before["force"]
    question = {"methods": ["ppo"], "seeds": [0], "base": before}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"question": question}))
    assert begin(tmp_path, ["ppo"], base, [0], overwrite=False)["question"] == question
    before["micro_batch_tokens"] = 512
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"question": question}))
    with pytest.raises(UserError, match="holds another comparison"):
        begin(tmp_path, ["ppo"], base, [0], overwrite=False)
