"""Speed as users see it: work counted by hand, tokens per second, shares that add up, and where they are shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from conftest import Command
from polyrl.cli.commands import time_lines
from polyrl.cli.operations_count import (
    ModelSize,
    Read,
    language_model_size,
    matmul_rate,
    network_size,
    stage_flops,
)
from polyrl.cli.profiling import Profile, measure
from polyrl.core.experience import Experience
from polyrl.core.throughput import throughput
from polyrl.models.language.folders import LoraSettings, with_lora
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from tiny_models import config_of

BODY = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
"""Matrices of two layers: queries, keys and values of half as many heads, output, and three of the MLP."""
HEAD = 40 * 32


def test_the_size_of_a_known_language_model() -> None:
    qwen = AutoModelForCausalLM.from_config(config_of("qwen3", 40))  # the head is tied to the embeddings
    assert language_model_size(qwen) == ModelSize(weights=BODY, head=HEAD, width=2 * 4 * 8, trained=1.0)
    untied = AutoModelForCausalLM.from_config(config_of("llama", 40))
    assert language_model_size(untied) == language_model_size(qwen)  # embeddings are looked up, not multiplied with
    backbone = AutoModel.from_config(config_of("qwen3", 40))
    assert language_model_size(backbone) == ModelSize(weights=BODY, head=0, width=64)


def test_adapters_save_the_gradients_of_frozen_weights() -> None:
    model = with_lora(AutoModelForCausalLM.from_config(config_of("qwen3", 40)), LoraSettings(rank=2))
    size = language_model_size(model)
    # of each matrix [out, in] adapters are [2, in] and [out, 2]
    per_layer = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32))
    assert size.weights == BODY + 2 * per_layer and size.trained == pytest.approx(2 * per_layer / size.weights)
    assert size.backward == 1 + size.trained


def test_a_shared_prompt_is_read_once_and_the_last_token_is_not_read() -> None:
    prompts, responses = torch.tensor([3, 3, 2]), torch.tensor([4, 1, 2])
    read = Read.of(prompts, responses, torch.tensor([0, 0, 1]))
    assert read.tokens == (3 + 2) + (3 + 0 + 1)
    # prompts: 1+2+3 and 1+2; read responses: tokens number 4, 5, 6 of the first row and number 3 of the last one
    assert read.attended == 6 + 3 + (4 + 5 + 6) + 3
    assert read.predicted == 4 + 1 + 2


def test_flops_of_a_forward_pass() -> None:
    size = ModelSize(weights=100, head=10, width=8)
    assert size.forward(Read(tokens=5, attended=15, predicted=2)) == 2 * (100 * 5 + 10 * 2) + 4 * 8 * 15
    assert size.backward == 2.0  # six times the weights a token in all
    net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    assert network_size(net) == ModelSize(weights=4 * 64 + 64 * 2)


def test_flops_of_an_iteration_of_control() -> None:
    config = RunConfig(
        method="ppo",
        task="CartPole-v1",
        budget="steps=1000",
        hyperparameters={"hidden": "16x16", "environments": "2", "steps_per_environment": "8", "epochs": "3"},
    )
    loop, _ = make_loop(config)
    found = stage_flops(loop.run_state, loop.recipe, loop.iterate())
    policy, critic = 4 * 16 + 16 * 16 + 16 * 2, 4 * 16 + 16 * 16 + 16 * 1
    assert found == {"collect": 2 * policy * 16, "improve": 3 * 6 * (policy + critic) * 16}


def test_flops_of_an_iteration_of_language(small_model: Path) -> None:
    loop, _ = make_loop(
        RunConfig(
            method="grpo",
            task="reverse",
            difficulty=4,
            model=str(small_model),
            budget="samples=100",
            monitor_kl_every=0,
            hyperparameters={"prompts_per_step": "2", "completions_per_prompt": "3"},
        )
    )
    batch = loop.iterate()
    size = language_model_size(loop.run_state.policy.causal_lm)  # type: ignore[attr-defined]
    read = Read.of(batch["prompt_mask"].sum(1), batch["present"].sum(1), batch["group"])
    assert stage_flops(loop.run_state, loop.recipe, batch) == {
        "collect": size.forward(read),
        "improve": 3 * size.forward(read),
    }


def test_what_is_not_known_has_no_flops() -> None:
    loop, _ = make_loop(RunConfig(method="nash-mp", task="rock-paper-scissors", budget="iterations=5"))
    assert stage_flops(loop.run_state, loop.recipe, Experience({"action": torch.zeros(1, 1)})) == {}


def test_speed_counts_the_five_stages_only() -> None:
    spent = {"tokens": 600, "steps": 500, "samples": 10}
    seconds = {"collect": 2.0, "score": 1.0, "improve": 3.0, "evaluate": 50.0, "checkpoint": 9.0}
    assert throughput(seconds, spent) == {"unit": "tokens", "collect": 300.0, "overall": 100.0}
    assert throughput(seconds, {**spent, "tokens": 0}) == {"unit": "steps", "collect": 250.0, "overall": 500 / 6}
    went_on = throughput({**seconds, "credit": 4.0}, spent, ("collect", "credit"))["collect"]
    assert went_on == 100.0
    assert throughput({}, {"tokens": 0, "steps": 0, "samples": 0}) == {"unit": "samples"}


def test_the_end_of_a_run_says_where_its_time_went() -> None:
    spent = {"tokens": 600, "steps": 500, "samples": 10}
    seconds = {"collect": 2.0, "improve": 3.0, "evaluate": 4.96, "score": 0.04}
    assert time_lines({"seconds_by_stage": seconds, "spent": spent}) == [
        "time    evaluate 5.0 s (50%), improve 3.0 s (30%), collect 2.0 s (20%)",
        "speed   119 tokens/s in training and 300 tokens/s in collecting",
    ]
    assert time_lines({"seconds_by_stage": {}, "spent": spent}) == []


def test_shares_of_a_profile_add_up() -> None:
    config = RunConfig(method="ppo", task="CartPole-v1", budget="steps=10000", hyperparameters={"environments": "2"})
    loop, _ = make_loop(config)
    profile = measure(loop, warm_up=1, iterations=2)
    assert sum(profile.shares().values()) == pytest.approx(1)
    assert {stage for stage, _ in profile.seconds} >= {"collect", "score", "credit", "select", "improve"}
    assert ("collect", "step-environments") in profile.seconds and ("improve", "optimize") in profile.seconds
    assert loop.context.iteration == 3 and profile.iterations == 2
    # 2 environments x 128 steps x 2 iterations, in the seconds that the stages took
    assert profile.speed["overall"] == pytest.approx(512 / sum(loop.seconds[s] for s in loop.seconds if s != "monitor"))


def test_the_share_of_the_peak_is_work_by_time() -> None:
    seconds = {("collect", "a"): 1.0, ("improve", "b"): 2.0, ("monitor", ""): 1.0}
    profile = Profile(1, seconds, flops={"collect": 10.0, "improve": 60.0}, peak=100.0)
    assert profile.peak_shares() == {"collect": 0.1, "improve": 0.3, "overall": 70 / 4 / 100}
    assert Profile(1, seconds).peak_shares() == {}


def test_the_peak_is_the_work_of_a_product_by_the_least_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on a clock of its own: products take 3, 2 and 5 ms, then the time is up."""
    monkeypatch.setattr("polyrl.kernels.linear.fits", lambda *_: False)
    shown = iter([0.0, 0.01, 0.013, 0.02, 0.022, 0.03, 0.035, 9.0])
    monkeypatch.setattr("polyrl.cli.operations_count.time.perf_counter", lambda: next(shown))
    assert matmul_rate(torch.float32, size=16) == pytest.approx(2 * 16**3 / 0.002)


def test_trace_profile_and_summary_show_speed(polyrl: Command, tmp_path: Path) -> None:
    small = ["--environments", 2, "--steps-per-environment", 32, "--minibatches", 2, "--epochs", 2]
    told = polyrl("trace", "ppo", "--task", "CartPole-v1", "--profile", *small)
    assert told.code == 0 and told.err == ""
    shares = [float(share) for share in re.findall(r"([\d.]+)%\s*$", told.out, re.MULTILINE)]
    assert sum(shares[:-1]) == pytest.approx(shares[-1], abs=0.5) and shares[-1] == 100.0
    assert re.search(r"[\d,]+ steps/s in collecting, [\d,]+ steps/s overall", told.out)
    assert re.search(r"improve [\d.]+%, overall [\d.]+% of [\d,]+ GFLOP/s", told.out)
    run = tmp_path / "run"
    told = polyrl("train", "ppo", "--task", "CartPole-v1", "--budget", "steps=128", "--out", run, *small)
    assert told.code == 0 and "speed   " in told.out and "improve" in told.out.partition("time    ")[2]
    summary = json.loads((run / "summary.json").read_text())
    expected = throughput(summary["seconds_by_stage"], summary["spent"])  # from rounded seconds
    assert summary["throughput"] == {
        "unit": "steps",
        **{k: pytest.approx(expected[k], rel=0.05) for k in ("collect", "overall")},
    }
