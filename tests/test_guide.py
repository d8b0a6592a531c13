"""The drafts of docs/writing-a-method.md, a loss, an off-policy method and an environment, run as a reader would."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from conftest import DIFFICULTY, SEED, TASK, Command, reached, read_records, timeless
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.core.update import See
from polyrl.errors import UserError
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from test_docs import titled

torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the guide, which commands are run in."""
    for name, code in titled("writing-a-method.md").items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def config_of(method: str, task: str, **settings: Any) -> RunConfig:
    fields = {"budget": "iterations=2", "evaluations": 1, "tensorboard": False, "seed": SEED}
    options = {k: settings.pop(k) for k in [*settings] if k in RunConfig.__dataclass_fields__}
    values = {k.replace("__", "."): str(v) for k, v in settings.items()}
    return RunConfig(method=method, task=task, hyperparameters=values, **{**fields, **options})


def weights_after(config: RunConfig, iterations: int) -> Any:
    """Every weight of the policy, or of all models, as one vector."""
    loop: Any = make_loop(config)[0]
    for _ in range(iterations):
        loop.iterate()
    if loop.run_state.models is not None:
        return torch.cat([flat.vector.detach() for flat in loop.run_state.models.flat.values()])
    return torch.cat([p.detach().reshape(-1) for p in loop.run_state.policy.parameters()])


# ------------------------------------------------------------------------------------------------------- the loss


def test_the_ratio_of_a_response_is_the_mean_of_its_tokens_in_logarithms(here: Path) -> None:
    term = loaded(here / "sequence_ratio.py").SequenceRatio(clip_range=0.5)
    batch = Experience(
        {
            "behaviour_logprob": torch.zeros(2, 3),
            "advantage": torch.tensor([[2.0] * 3, [-1.0] * 3]),
            "weight": torch.tensor([[1.0, 1, 1], [1, 1, 0]]),
        }
    )
    logprob = torch.tensor([[0.3, 0.6, 0.9], [-0.2, 0.4, 99.0]], requires_grad=True)
    loss = term.loss({"logprob": logprob}, batch)
    # exp(0.6) = 1.822 is cut to 1.5; exp(0.1) is not
    torch.testing.assert_close(loss.detach()[:, 0], torch.tensor([-3.0, math.exp(0.1)]))
    (loss * term.step_weights(batch)).sum().backward()
    assert logprob.grad is not None
    wanted = torch.tensor([[0.0, 0, 0], [math.exp(0.1) / 4, math.exp(0.1) / 4, 0]])  # two responses, two tokens
    torch.testing.assert_close(logprob.grad, wanted)


def test_the_loss_of_the_guide_is_the_one_of_the_catalogue(here: Path, small_model: Path) -> None:
    common: dict[str, Any] = {"model": str(small_model), "difficulty": DIFFICULTY, "learning_rate": 1e-3}
    mine = config_of("./sequence_ratio.py", TASK, clip_range=1e-2, **common)
    theirs = config_of("gspo", TASK, clip_range=1e-2, clip_range_high="none", **common)
    recipe = build("./sequence_ratio.py")
    assert [term.name for term in recipe.terms] == ["sequence-ratio", "reference-kl"]
    one, other, start = weights_after(mine, 2), weights_after(theirs, 2), weights_after(mine, 0)
    free = weights_after(config_of("./sequence_ratio.py", TASK, clip_range=100, **common), 2)
    assert (one - other).norm() < 1e-3 * (one - start).norm()
    assert (one - free).norm() > 1e-2 * (one - start).norm()  # the clip stops something


# ----------------------------------------------------------------------------------------------------- off policy

SMALL: dict[str, Any] = {
    **{"hidden": "16x16", "batch_size": 16, "eval_episodes": 2},
    **{"random_steps": 20, "learning_starts": 40, "turns": 60},
}


def test_the_target_of_the_guide_is_between_mean_and_least(here: Path) -> None:
    part = loaded(here / "pessimism.py").WeightedTarget
    loop: Any = make_loop(config_of("./pessimism.py", "Pendulum-v1", **SMALL))[0]
    loop.iterate()
    rows = loop.context.sources["replay"].sample(50, torch.Generator().manual_seed(0))

    def target(pessimism: float) -> torch.Tensor:
        found = part(pessimism=pessimism).apply(rows, See(loop.run_state.models, loop.context, "x"))["value_target"]
        return found.detach()  # type: ignore[no-any-return]

    least, mean = target(1.0), target(0.0)
    assert bool((least < mean).all())
    torch.testing.assert_close(target(0.25), 0.25 * least + 0.75 * mean)


def test_the_limit_of_the_method_is_sac_to_the_bit(here: Path) -> None:
    theirs = weights_after(config_of("sac", "Pendulum-v1", **SMALL), 2)
    assert torch.equal(weights_after(config_of("./pessimism.py", "Pendulum-v1", pessimism=1, **SMALL), 2), theirs)
    assert torch.equal(weights_after(config_of("sac+./pessimism.py", "Pendulum-v1", pessimism=1, **SMALL), 2), theirs)
    assert not torch.equal(weights_after(config_of("./pessimism.py", "Pendulum-v1", **SMALL), 2), theirs)


def test_the_method_is_composed_and_set_by_addresses(here: Path) -> None:
    settings = {"n_step": "5", "q.learning-rate": "1e-3", "q-target-move.tau": "0.01", "policy-update.every": "2"}
    values = build("./pessimism.py+n-step", {**settings, "sample.batch-size": "64"}).hyperparameters()
    addressed = ("replay.n_step", "q.learning_rate", "policy.learning_rate", "q-target-move.tau")
    assert [values[name] for name in addressed] == [5, 1e-3, 3e-4, 0.01]
    assert [values[n] for n in ("policy-update.every", "q-update.every", "sample.batch_size")] == [2, 1, 64]
    assert build("sac+./pessimism.py").hyperparameters()["weighted-target.pessimism"] == 0.5
    assert build("./pessimism.py").hyperparameters() == {
        **{k: v for k, v in build("sac").hyperparameters().items() if not k.startswith(("soft-target", "repeat"))},
        "weighted-target.pessimism": 0.5,
    }
    with pytest.raises(UserError, match=r"weighted-target.pessimism is 2.0 but must be at least 0 and at most 1"):
        build("./pessimism.py", {"pessimism": "2"})


def test_a_composed_run_goes_on_after_it_was_stopped(here: Path) -> None:
    method, fields = "./pessimism.py+n-step", {"budget": "iterations=3", "checkpoint_every": 1, **SMALL}
    start_run(config_of(method, "Pendulum-v1", **fields), here / "whole").run()
    loop: Any = start_run(config_of(method, "Pendulum-v1", **fields), here / "half")
    iterate, count = loop.iterate, 0

    def stops(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return iterate(*given)

    loop.iterate = stops
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    resume_run(here / "half").run()
    assert timeless(read_records(here / "half")) == timeless(read_records(here / "whole"))
    models = [sorted((here / name / "model").glob("*.safetensors")) for name in ("whole", "half")]
    assert [p.stem for p in models[0]] == ["policy", "q", "q_target", "temperature"]
    assert [p.read_bytes() for p in models[0]] == [p.read_bytes() for p in models[1]]


def test_the_commands_of_the_off_policy_draft_run(here: Path, polyrl: Command) -> None:
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    shown = polyrl("show", "./pessimism.py")
    assert shown.code == 0 and "--weighted-target.pessimism 0.5" in shown.out
    traced = polyrl("trace", "./pessimism.py", *small)
    assert traced.code == 0 and "weighted-target gives value_target" in traced.out, traced.err
    trained = polyrl("train", "./pessimism.py+n-step", "--n-step=5", "--budget=steps=120", "--out=run", *small)
    assert trained.code == 0, trained.err
    last = read_records(here / "run")[-1]
    assert last["steps"] == 120 and last["updates"] == 3 * 81 and math.isfinite(last["loss/squared-td"])


# -------------------------------------------------------------------------------------------------- an environment

METHODS: dict[str, list[str]] = {
    "ppo": ["--environments=4", "--steps-per-environment=64", "--learning-rate=0.003", "--budget=steps=6000"],
    "dqn": [
        *("--hidden=32x32", "--learning-starts=200", "--steps-per-environment=64", "--gradient-steps=32"),
        *("--exploration-fraction=0.5", "--budget=steps=4000"),
    ],
}


@pytest.mark.parametrize("method", [*METHODS])
def test_the_environment_of_the_guide_is_learned(here: Path, polyrl: Command, method: str) -> None:
    words = ["--task=packing.py:make", "--eval-episodes=200", f"--seed={SEED}", "--out=run", *METHODS[method]]
    told = polyrl("train", method, *words)
    assert told.code == 0, told.err  # it raises where something is done that is not allowed
    start, *_, end = read_records(here / "run")
    reached(end["eval/return"] - start["eval/return"], 0.01)


def test_the_environment_of_the_guide_ends_where_nothing_is_allowed(here: Path) -> None:
    packing = loaded(here / "packing.py").make()
    _, told = packing.reset(seed=0)
    total, over = 0.0, False
    while not over:
        forbidden = (1 - told["action_mask"]).nonzero()[0].tolist()
        assert forbidden == [i for i, x in enumerate(packing.sizes) if not 0 < x <= packing.room]
        for item in forbidden:
            with pytest.raises(ValueError, match="is packed already or does not fit"):
                packing.step(item)
        seen, reward, over, cut, told = packing.step(int(told["action_mask"].argmax()))
        total += reward
        assert not cut and seen[-1] == pytest.approx(1 - total)
    assert not told["action_mask"].any() and 0.4 < total <= 1
