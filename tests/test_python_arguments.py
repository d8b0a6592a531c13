"""Arguments of the Python API as Python users have them: paths, numbers of NumPy and torch, partials, objects."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyrl
from polyrl import arguments
from polyrl.errors import UserError
from polyrl.runtime.run_folder import RunFolder
from tiny_models import save_model

ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]
OPTIONS: dict[str, Any] = {"max_tokens": 4, "eval_prompts": 2, "evaluations": 1, "tensorboard": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3")


def scaled(prompts: list[str], completions: list[str], scale: float, **columns: Any) -> list[float]:
    return [scale * len(c) for c in completions]


class Length:
    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return scaled(prompts, completions, self.scale)


def test_a_run_with_paths_and_numbers_of_numpy(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    options = {**OPTIONS, "max_tokens": np.int64(4), "eval_prompts": torch.tensor(2), "test_dataset": data}
    options["test_dataset"] = tmp_path / "t.jsonl"
    options["test_dataset"].write_text(json.dumps({"prompt": "9+1=", "answer": "10"}) + "\n", encoding="utf-8")
    rewards = [
        functools.partial(scaled, scale=1.0),
        (functools.partial(scaled, scale=2.0), np.float32(0.5)),
        Length(3.0),
    ]
    result = polyrl.train(
        "grpo",
        model=model,
        dataset=data,
        reward=rewards,
        budget={"iterations": np.int64(1)},
        seed=np.int64(3),
        out=tmp_path / "run",
        quiet=True,
        options=options,
        prompts_per_step=np.int32(2),
        completions_per_prompt=2,
        learning_rate=np.float64(1e-3),
    )
    config = RunFolder(result.folder).read_config()
    asked = config["run"]
    assert (asked["seed"], asked["max_tokens"], asked["eval_prompts"]) == (3, 4, 2)
    assert asked["dataset"] == str(data) and asked["hyperparameters"]["learning_rate"] == "0.001"
    assert list(config["problem"]["rewards"]) == ["scaled", "scaled-2", "Length"]
    assert config["problem"]["rewards"]["scaled-2"]["weight"] == 0.5


@pytest.mark.parametrize(
    "given, plain",
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array(4), 4),
        (torch.tensor(2), 2),
        (Path("a") / "b", "a/b"),
        ((Path("a"), [np.int8(1)]), ("a", [1])),
        ({"a": np.int64(1)}, {"a": 1}),
        ("text", "text"),
        (None, None),
    ],
)
def test_values_become_plain(given: Any, plain: Any) -> None:
    found = arguments.plain(given)
    assert found == plain and type(found) is type(plain)


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"seed": "three"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"options": {"max_tokens": "six"}}, "max_tokens"),
        ({"options": {"max_token": 6}}, "unknown key 'max_token'. Did you mean 'max_tokens'"),
        ({"options": {"seed": 1}}, "takes seed by itself"),
        ({"reward": [3]}, "A reward must be a function"),
        ({"reward": [scaled, scaled]}, "two rewards named|'scaled'"),
    ],
)
def test_mistakes_are_one_sentence(model: Path, tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        polyrl.train("grpo", model=model, dataset=ROWS, out=tmp_path / "run", quiet=True, **asked)
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()
