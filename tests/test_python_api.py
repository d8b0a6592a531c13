"""Python as the command line: every option a keyword, objects where names go, results that a notebook shows."""

from __future__ import annotations

import html
import inspect
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import polyrl
from conftest import child_environment, read_records
from polyrl.arguments import model_name, seed_list, task_of
from polyrl.catalogue import build
from polyrl.cli.main import compare as compare_command
from polyrl.cli.main import train as train_command
from polyrl.errors import UserError
from polyrl.runtime.options import by_name
from polyrl.runtime.run_folder import RunFolder
from tiny_models import save_model

ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(12)]
SMALL: dict[str, Any] = {"prompts_per_step": 2, "completions_per_prompt": 2, "quiet": True, "tensorboard": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3")


class Short(gymnasium.Env[Any, Any]):
    """Five steps, a reward of 1 for action 1."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 5):
        self.length, self.steps = length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample() * 0, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample() * 0, float(action), self.steps >= self.length, False, {}


def ones(prompts: list[str], completions: list[Any], **columns: Any) -> list[float]:
    return [1.0] * len(prompts)


# -------------------------------------------------------------------------------------------------- names and options


def test_every_option_of_the_command_line_is_a_keyword() -> None:
    """As an argument of its own, or one that is split from hyperparameters."""
    for command, function in ((train_command, polyrl.train), (compare_command, polyrl.compare)):
        own = inspect.signature(function).parameters
        for parameter in command.params:
            name = str(parameter.name)
            assert name in own or name in by_name() or name in ("method", "methods"), name


def test_options_are_taken_as_they_are_typed(model: Path, tmp_path: Path) -> None:
    result = polyrl.train(
        "grpo", model=model, dataset=ROWS, test_dataset=ROWS[:3], reward=(ones, 0.5), budget={"iterations": 1},
        max_tokens=4, lora=2, device="cpu", evaluations=1, eval_sampled=True, threads=1, checkpoint_every=5,
        learning_rate=1e-3, out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    asked = RunFolder(result.folder).read_config()["run"]
    assert (asked["max_tokens"], asked["lora"], asked["device"], asked["eval_greedy"]) == (4, 2, "cpu", False)
    assert asked["hyperparameters"]["learning_rate"] == "0.001" and "max_tokens" not in asked["hyperparameters"]
    assert asked["from_python"] == ["dataset", "test_dataset", "reward"]
    assert result.final["eval/reward"] == 0.5


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"max_token": 4}, "no option 'max_token'.*Did you mean 'max_tokens'"),
        ({"learning_rat": 1}, "Did you mean 'learning_rate'"),
        ({"num_generations": 4}, "completions_per_prompt|completions-per-prompt"),
        ({"max_tokens": 4, "options": {"max_tokens": 4}}, "max_tokens twice"),
        ({"task": 5}, r"The task is '5' \(int\)"),
        ({"model": 3.5}, r"The model is '3.5' \(float\)"),
        ({"dataset": 7}, r"The dataset is '7' \(int\)"),
        ({"dataset": {"train": ROWS, "test": ROWS}}, "splits or columns train, test"),
        ({"test_dataset": 7, "dataset": ROWS}, "The test_dataset is '7'"),
        ({"reward": 3}, "A reward must be a function"),
        ({"reward": [("x",)]}, "A reward must be a function"),
        ({"preference": 1}, "The preference is '1'"),
        ({"budget": 5}, "The budget is '5'"),
        ({"out": 5}, "out is '5'"),
        ({"lora": "much"}, "lora"),
    ],
)
@pytest.mark.parametrize("function", ["train", "compare"])
def test_a_wrong_object_is_one_sentence(function: str, asked: dict[str, Any], words: str, model: Path) -> None:
    if "dataset" in asked or "lora" in asked or "reward" in asked or "preference" in asked:
        asked = {"model": model, **asked}
    with pytest.raises(UserError, match=words) as told:
        polyrl.train("grpo", **asked) if function == "train" else polyrl.compare(["grpo"], **asked)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


@pytest.mark.parametrize("method, words", [(5, "The method is '5'"), (build, r"as in build\(\)"), (None, "The method")])
def test_a_wrong_method_is_one_sentence(method: Any, words: str) -> None:
    for call in (lambda: polyrl.train(method), lambda: polyrl.compare([method])):
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize("seeds", ["a", 0, [1, 1], 1.5, None, {"a": 1}])
def test_wrong_seeds_are_one_sentence(seeds: Any) -> None:
    with pytest.raises(UserError, match="seeds is"):
        seed_list(seeds)
    assert seed_list((3, 7)) == [3, 7] and seed_list(range(2)) == seed_list(2) == [0, 1]


def test_the_public_names_are_listed_and_there() -> None:
    code = "import polyrl; print(*dir(polyrl)); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    names, heavy = done.stdout.splitlines()
    assert names.split() == sorted(polyrl.__all__) and heavy == "False"
    assert all(getattr(polyrl, name) is not None for name in polyrl.__all__)
    page = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    assert [n for n in polyrl.__all__ if f"polyrl.{n}" not in page and n != "__version__"] == []
    listed = set(re.findall(r"`(\w+)=`", page))
    own = {"task", "dataset", "test_dataset", "rewards", "preference", "model", "seed", "budget"}
    assert {option.of for option in by_name().values()} - own - listed == set()


# ------------------------------------------------------------------------------------------------------------- objects


def test_a_model_object_is_kept_as_a_folder(model: Path) -> None:
    found = AutoModelForCausalLM.from_pretrained(model)
    place = Path(str(model_name(found)))  # its tokenizer lies where it was loaded from
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert model_name((found, tokenizer)) == str(place) == model_name(found)
    mine, theirs = load_file(place / "model.safetensors"), load_file(model / "model.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    with torch.no_grad():
        next(found.parameters()).add_(1.0)
    assert model_name(found) != str(place)
    found.config.name_or_path = ""
    found.name_or_path = ""
    with pytest.raises(UserError, match=r"give \(model, tokenizer\)"):
        model_name(found)


def test_an_environment_object_stands_for_its_id_or_is_copied() -> None:
    assert task_of(gymnasium.make("CartPole-v1")) == ("CartPole-v1", None)
    name, make = task_of(Short(length=3))
    assert name == "Short" and make is not None
    first, second = make(), make()
    assert first is not second and first.length == second.length == 3
    changed = gymnasium.make("CartPole-v1", max_episode_steps=7, sutton_barto_reward=True)
    name, make = task_of(changed)
    assert make is not None and make().unwrapped._sutton_barto_reward is True


def test_objects_train(model: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = AutoModelForCausalLM.from_pretrained(model)
    data = datasets.Dataset.from_list(ROWS)
    result = polyrl.train(
        Path("grpo"), model=found, dataset=data, budget="iterations=1", evaluations=1, max_tokens=4,
        out=tmp_path / "a", **SMALL,
    )  # fmt: skip
    assert result.spent["iterations"] == 1 and RunFolder(result.folder).read_config()["run"]["model"]
    played = polyrl.train(
        "ppo", task=Short(), budget="iterations=2", eval_episodes=2, out=tmp_path / "b", quiet=True, tensorboard=False
    )
    assert set(played.final) >= {"eval/return"} and played.final["eval/length"] == 5
    again = polyrl.resume(played.folder, task=Short(), budget="iterations=3", quiet=True)
    assert again.spent["iterations"] == 3


def test_objects_compare_in_processes_of_their_own(model: Path, tmp_path: Path) -> None:
    """A closure, rows and a recipe are sent to the runs; what they give is what training here gives."""
    scale = 3.0

    def scaled(prompts: list[str], completions: list[Any], **columns: Any) -> list[float]:
        return [scale * len(c) for c in completions]

    recipe = build("rloo", {"prompts_per_step": "2", "completions_per_prompt": "2"})
    asked: dict[str, Any] = {"model": model, "dataset": ROWS, "reward": scaled, "budget": "iterations=1"}
    asked |= {"evaluations": 1, "max_tokens": 4, "quiet": True, "tensorboard": False}
    methods = ["grpo(prompts_per_step=2,completions_per_prompt=2)", recipe]
    found = polyrl.compare(methods, **asked, seeds=[3], workers=1, out=tmp_path / "c")
    assert set(found.finals) == {methods[0], recipe.name} and found.page.is_file()
    alone = polyrl.train(recipe, **asked, seed=3, out=tmp_path / "alone")
    run = next(p for p in Path(found).iterdir() if p.name.startswith("rloo") and p.is_dir())
    assert read_records(run)[-1]["eval/reward"] == alone.final["eval/reward"]
    assert RunFolder(run).read_config()["run"]["from_python"] == ["method", "dataset", "reward"]
    again = polyrl.compare(methods, **asked, seeds=[3], workers=1, out=tmp_path / "c")  # nothing is left to do
    assert again.finals == found.finals
    held = threading.Lock()
    with pytest.raises(UserError, match="cannot be sent to the processes"):
        polyrl.compare(["grpo"], **{**asked, "reward": lambda prompts, completions, **_: [held.locked()]}, seeds=1)
    text = found._repr_html_()
    assert "<table>" in text and recipe.name in text and "<iframe srcdoc=" in text and "&lt;html" in text


def test_an_environment_compares(tmp_path: Path) -> None:
    found = polyrl.compare(
        "ppo", task=Short(), budget="iterations=1", eval_episodes=1, seeds=1, workers=1, quiet=True, out=tmp_path / "c"
    )
    assert found.finals["ppo"].keys() == {0} and str(found) == str(tmp_path / "c")


def test_a_run_is_shown_as_table_and_curve(tmp_path: Path) -> None:
    result = polyrl.train("ppo", task="CartPole-v1", budget="iterations=2", evaluations=2, eval_episodes=1,
                          out=tmp_path / "<run>", quiet=True, tensorboard=False)  # fmt: skip
    text = result._repr_html_()
    assert "&lt;run&gt;" in text and "<run>" not in text
    data = re.findall(r"<script type='application/json' id='data'>(.*?)</script>", html.unescape(text))[0]
    (chart,) = json.loads(data)["items"]
    assert chart["series"][0]["mean"] == [[x, y] for x, y in result.curve()]
    assert len(result.curve()) == 3 and "<th>start</th>" in text
    assert result.curve()[-1][1] == result.final["eval/return"]


FRESH = """
import json, sys
import polyrl
from polyrl.methods.{module} import recipe
asked = json.loads(sys.argv[2])
result = polyrl.train(recipe(), out=sys.argv[1], budget="iterations=1", quiet=True, evaluations=1, **asked)
print(result.spent["iterations"])
"""


@pytest.mark.parametrize(
    "module, asked",
    [
        ("language.grpo", {"model": "MODEL", "dataset": ROWS, "max_tokens": 4}),
        ("preference.online_dpo", {"model": "MODEL", "dataset": ROWS, "max_tokens": 4}),
        ("control.sac", {"task": "Pendulum-v1", "eval_episodes": 1}),
    ],
)
def test_a_recipe_trains_in_a_fresh_interpreter(
    module: str, asked: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    asked = {k: str(model) if v == "MODEL" else v for k, v in asked.items()}
    words = [str(tmp_path / "run"), json.dumps(asked)]
    done = subprocess.run(
        [sys.executable, "-c", FRESH.replace("{module}", module), *words],
        capture_output=True, text=True, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.split()[-1] == "1", done.stderr
