"""One parse: the command line, Python, a recipe file and a config make the same recipe and the same config, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyrl as package
from conftest import Command, child_environment
from polyrl import catalogue
from polyrl.arguments import read_call
from polyrl.catalogue import build
from polyrl.errors import UserError
from polyrl.recipe_file import read_recipe_file, recipe_yaml
from polyrl.request import Asked, Frontend, Request, make_recipe, read
from polyrl.runtime.config import RunConfig
from polyrl.runtime.options import OPTIONS, by_name, hints
from polyrl.settings import parse_value

NOTHING: dict[str, Any] = dict.fromkeys(
    ("task", "model", "reward", "preference", "dataset", "test_dataset", "budget", "options")
) | {"budget": "", "keywords": {}}
FILE = """\
method: grpo+reference-kl
task: addition
budget: samples=64
clip-range: 1e-1
clip_range_high: null
kl-loss-coef: 0.05   # behind a value
epochs: 2
reward: [exact, length=0.5]
eval-sampled: yes
no-tensorboard: true
max_tokens: 6
seed: 3
"""
WORDS = (
    *("grpo+reference-kl", "--task", "addition", "--budget", "samples=64", "--clip-range", "1e-1"),
    *("--clip-range-high", "none", "--kl-loss-coef", "0.05", "--epochs", "2", "--reward", "exact"),
    *("--reward", "length=0.5", "--eval-sampled", "--no-tensorboard", "--max-tokens", "6", "--seed", "3"),
)
KEYWORDS: dict[str, Any] = {
    **{"clip_range": 0.1, "clip_range_high": None, "kl_loss_coef": np.float64(0.05), "epochs": np.int64(2)},
    **{"eval_sampled": True, "no_tensorboard": True, "max_tokens": 6},
}


def written(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def of_file(file: str, **beside: Any) -> Request:
    over = Frontend("polyrl train", [option.name for option in OPTIONS])
    frontend, asked = read_recipe_file(file, Asked([file], **beside), over)
    return read(frontend, asked)


@pytest.fixture
def of_command(polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `polyrl train` makes of its words."""

    def make(*words: str) -> Request:
        found: list[Request] = []
        monkeypatch.setattr("polyrl.cli.commands.run_training", lambda request, *_, **__: found.append(request))
        told = polyrl("train", *words)
        assert told.code == 0, told.err
        return found[0]

    return make


def test_four_doors_lead_to_one_recipe_and_one_config(tmp_path: Path, of_command: Any) -> None:
    """The command line, a file by the command, Python, a file by Python; then the config alone, as claims have it."""
    file = written(tmp_path, FILE)
    asked: dict[str, Any] = {**NOTHING, "task": "addition", "budget": {"samples": 64}, "keywords": KEYWORDS}
    asked |= {"reward": ["exact", ("length", 0.5)], "seed": 3}
    frontends = [of_command(*WORDS), of_command(file), read_call("train", ["grpo+reference-kl"], **asked)]
    frontends.append(read_call("train", [Path(file)], **NOTHING))
    first = frontends[0]
    assert first.recipe.hyperparameters()["clipped-surrogate.clip_range"] == 0.1
    assert (first.config.eval_greedy, first.config.tensorboard, first.config.rewards) == (
        False,
        False,
        ("exact", "length=0.5"),
    )
    for frontend in frontends:
        assert (
            frontend.recipe.hyperparameters() == first.recipe.hyperparameters()
            and frontend.recipe.name == first.recipe.name
        )
        plain = {**frontend.config.as_dict(), "hyperparameters": None}
        assert plain == {**first.config.as_dict(), "hyperparameters": None}
        again = RunConfig.from_dict(frontend.config.as_dict())
        assert make_recipe(again).hyperparameters() == first.recipe.hyperparameters()


def test_a_recipe_is_composed_once_for_each_method(
    tmp_path: Path, polyrl: Command, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    compose = catalogue.compose

    def counted(spec: str, domain: str | None = None) -> Any:
        made.append(spec)
        return compose(spec, domain)

    monkeypatch.setattr(catalogue, "compose", counted)
    few = "--task reverse --difficulty 4 --budget iterations=1 --prompts-per-step 2 --eval-prompts 2 --evaluations 1"
    common = [*few.split(), "--no-tensorboard", "--quiet", "--model", small_model]
    assert polyrl("train", "grpo", "--clip-range", "0.1", "--out", tmp_path / "a", *common).code == 0
    assert made == ["grpo"]
    package.train("grpo", out=tmp_path / "b", clip_range=0.1, quiet=True, **_keywords(common))
    assert made == ["grpo"] * 2
    arms = ["grpo", "rloo"]
    monkeypatch.setattr("polyrl.comparison._run_all", lambda *_: None)
    assert (
        polyrl("compare", *arms, "--learning-rate", "1e-3", "--seeds", "1", "--out", tmp_path / "c", *common).code == 2
    )
    assert made == ["grpo"] * 2 + arms


def _keywords(words: list[Any]) -> dict[str, Any]:
    task = {"task": "reverse", "difficulty": 4, "model": words[-1], "budget": "iterations=1"}
    return task | {"prompts_per_step": 2, "eval_prompts": 2, "evaluations": 1, "tensorboard": False}


# ------------------------------------------------------------------------------------------------------- recipe files


def test_what_is_said_beside_a_file_goes_before_it(tmp_path: Path, of_command: Any) -> None:
    file = written(tmp_path, FILE)
    request = of_command(file, "--seed", "4", "--clip-range", "0.3", "--reward", "exact")
    assert request.config.seed == 4 and request.config.rewards == ("exact",)
    assert request.recipe.hyperparameters()["clipped-surrogate.clip_range"] == 0.3
    assert request.config.hyperparameters["kl_loss_coef"] == "0.05"
    own = read_call("train", [file], **{**NOTHING, "keywords": {"clip_range": 0.4}}, seed=0)
    assert own.config.seed == 0 and own.recipe.hyperparameters()["clipped-surrogate.clip_range"] == 0.4


@pytest.mark.parametrize(
    "line, said",
    [
        (
            "clip-rnage: 0.1",
            "line 4: 'clip-rnage' is no option and no hyperparameter of grpo. Did you mean 'clip-range'",
        ),
        ("max_token: 3", "line 4: 'max-token' is no option and no hyperparameter of grpo. Did you mean 'max-tokens'"),
        ("vf_coef: 0.5", "line 4: 'vf-coef' is no option and no hyperparameter of grpo."),
        ("optimize.clip-range: 1", "line 4: 'optimize.clip-range' is no option and no hyperparameter of grpo. Did you"),
        ("clip-range: much", "line 4: clipped-surrogate.clip_range is 'much' but must be a float."),
        ("clip-range: -1", "line 4: clipped-surrogate.clip_range is -1.0 but must be above 0"),
        ("lora: x", "line 4: lora is 'x' but must be an int."),
        ("lora: 1.5", "line 4: lora is '1.5' but must be an int."),
        ("threads: 0", "line 4: threads must be at least 1, not 0."),
        ("precision: half", "line 4: precision is 'half' but must be one of float32, bfloat16."),
        ("no-tensorboard: maybe", "line 4: no-tensorboard is 'maybe' but must be a bool."),
        ("seed: [1, 2]", "line 4: it takes one value, and a list of them stands there."),
        ("task: addition", "line 4: 'task' stands on line 2 already."),
        ("out: runs/x", "line 4: 'out' is said in the command, as --out."),
        ("checker: exact", "line 4: --checker is for data of your own; give --dataset too."),
        ("optimize: {epochs: 2}", "line 4: 'optimize' holds names of its own"),
        ("epochs: [[1]]", "line 4: 'epochs' takes a list of plain values."),
        ("x: : y", "line 4, cannot be read as YAML: mapping values are not allowed here."),
    ],
)
def test_mistakes_in_a_file_are_told_with_their_line(line: str, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, f"method: grpo\ntask: addition\n\n{line}\n")
    with pytest.raises(UserError) as told:
        of_file(file)
    assert str(told.value).startswith(f"{file}, {said}"), str(told.value)
    assert "\n" not in str(told.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for text, said in {
        "task: addition": "names no method; a recipe file has a line like method: grpo.",
        "run:\n  method: grpo": "is the config of a run, which `polyrl resume` goes on with",
        "- grpo": "holds no settings",
        "": "holds no settings",
        "? [a]\n: b": "line 1: a name belongs before the colon.",
    }.items():
        with pytest.raises(UserError) as told:
            of_file(written(tmp_path, text))
        assert said in str(told.value)
    with pytest.raises(UserError, match="There is no recipe file"):
        of_file(str(tmp_path / "other.yaml"))
    with pytest.raises(UserError, match="There is no method or part 'grop'"):
        of_file(written(tmp_path, "method: grop"))
    with pytest.raises(UserError, match="compare methods by their names"):
        read_call("compare", ["grpo", "mine.yaml"], **NOTHING)


def test_a_mistake_of_the_command_beside_a_file_is_the_commands(tmp_path: Path, polyrl: Command) -> None:
    told = polyrl("train", written(tmp_path, FILE), "--clip-rnage", "0.1")
    assert told.code == 2 and told.err.startswith("polyrl: --clip-rnage is no option and no hyperparameter of grpo+ref")


def test_code_that_a_file_names_runs_where_the_user_has_run_it(tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("raise SystemExit('run')\n", encoding="utf-8")
    file = written(tmp_path, f"method: grpo\nreward: {reward}:f\n")
    with pytest.raises(UserError, match="which is code that you have not run"):
        of_file(file)
    frontend, asked = read_recipe_file(file, Asked([file]), Frontend("polyrl train"), trust_code=True)
    assert read(frontend, asked).config.rewards == (f"{reward}:f",)
    assert of_file(file).config.rewards == (f"{reward}:f",)  # now it is recorded


def test_trust_that_nothing_asks_for_is_refused(polyrl: Command) -> None:
    told = polyrl("train", "grpo", "--trust-code")
    assert told.code == 2 and "--trust-code is for code that a recipe file names" in told.err
    with pytest.raises(UserError, match="trust_code is for code that a recipe file names"):
        read_call("train", ["grpo"], **NOTHING, trust_code=True)


def test_mistakes_in_files_and_calls_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    file = written(tmp_path, "method: grpo\nclip-rnage: 0.1\n")
    code = (
        "import sys\nfrom polyrl.errors import UserError\nfrom polyrl.cli.main import polyrl\n"
        f"try:\n    polyrl.main(['train', {file!r}], standalone_mode=False)\n"
        "except UserError as error:\n    assert 'line 2' in str(error), error\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr


METHODS = [(slug, info.task or "addition") for slug, infos in catalogue.variants().items() for info in infos]


@pytest.mark.parametrize("method, task", METHODS, ids=[f"{m}@{t}" for m, t in METHODS])
def test_the_file_of_a_method_makes_its_recipe(method: str, task: str, tmp_path: Path) -> None:
    text = recipe_yaml(method, task).replace("dataset: FOLDER", f"dataset: {tmp_path}")
    request = of_file(written(tmp_path, text))
    kind = catalogue.domain_of(task)
    assert request.recipe.hyperparameters() == build(method, domain=kind).hyperparameters()
    assert request.config.task == task and request.config.budget
    left = {k.rpartition(".")[2] for k in request.recipe.hyperparameters()} - {
        k.rpartition(".")[2] for k in request.config.hyperparameters
    }
    for name in left:  # only what nobody can set is left out
        with pytest.raises(UserError):
            request.recipe.set(name, 1)


def test_show_writes_a_file_that_train_takes(tmp_path: Path, polyrl: Command, of_command: Any) -> None:
    shown = polyrl("show", "sac", "--yaml")
    assert shown.code == 0 and "\nmethod: sac\ntask: Pendulum-v1\n" in shown.out and "\nturns: 1000 " in shown.out
    request = of_command(written(tmp_path, shown.out), "--turns", "10")
    assert request.recipe.turns == 10 and request.config.task == "Pendulum-v1"
    wrong = polyrl("show", "sca", "--yaml")
    assert wrong.code == 2 and "There is no method or part 'sca'. Did you mean 'sac'" in wrong.err


# -------------------------------------------------------------------------------------------------- values and options


@pytest.mark.parametrize(
    "kind, given, found",
    [
        (float, 1, 1.0),
        (float, "1e-4", 1e-4),
        (int, 4.0, 4),
        (bool, True, True),
        (bool, 0, False),
        (bool | None, None, None),
        (float | None, "none", None),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (str, 5, "5"),
    ],
)
def test_values_and_their_texts_are_read_alike(kind: Any, given: Any, found: Any) -> None:
    read_as = parse_value("part", "name", kind, given)
    assert read_as == found and type(read_as) is type(found)


@pytest.mark.parametrize("kind, given", [(int, 1.5), (float, None), (float, [1, 2]), (bool, 2), (int, True)])
def test_values_of_another_type_are_refused(kind: Any, given: Any) -> None:
    with pytest.raises(UserError, match=r"part.name is '.*' but must be an? "):
        parse_value("part", "name", kind, given)


def test_every_field_of_a_config_that_can_be_asked_has_one_option() -> None:
    fields = [option.of for name, option in by_name().items() if name != "rewards"]
    assert set(fields) == hints().keys() - {"method", "label", "hyperparameters", "from_python"}
    twice = {f for f in fields if fields.count(f) > 1}
    assert twice == {"chat_template", "eval_greedy", "tensorboard"}  # with the flag that says the opposite


def test_a_keyword_of_python_says_nothing_of_another_one() -> None:
    """Configs of before chat templates have them switched off; what is asked in Python is none of those."""
    call = read_call("train", ["grpo"], **{**NOTHING, "keywords": {"monitor_kl_every": 1}})
    assert call.config.chat_template
