"""Names of other libraries: errors answer with ours, docs/coming-from.md says the same, and ours exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SEED, read_records
from polyrl import catalogue
from polyrl.catalogue import build
from polyrl.cli.main import polyrl
from polyrl.errors import UserError
from polyrl.names_elsewhere import method_elsewhere, option_elsewhere, tables
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.stated_names import stated_names
from test_docs import hooks, logged, text, titled

__all__ = ["hooks"]

torch.set_num_threads(1)
CONTROL = ("ppo", "sac", "td3", "dqn", "rlpd")
THEIRS = {"clip_coef", "train_freq", "q_lr", "DQN", "TD3", "vf_coef", "none"}
"""Names of theirs that stand in our column, to be compared with."""


def section(page: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text(page), re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def said(rows: str) -> list[str]:
    """What stands in backticks in the last column of tables."""
    lines = [line for line in rows.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [word for line in lines for word in re.findall(r"`([^`]+)`", line.split(" | ")[-1])]


@pytest.fixture(scope="module")
def known() -> set[str]:
    recipes = [build(method, domain="control") for method in CONTROL]
    names = {key for recipe in recipes for key in recipe.hyperparameters()}
    return {*names, *(key.rpartition(".")[2] for key in names)}


@pytest.mark.parametrize("heading", ["Stable-Baselines3", "CleanRL"])
def test_names_of_ours_beside_theirs_exist(heading: str, known: set[str]) -> None:
    options = {o for c in polyrl.commands.values() for p in c.params for o in p.opts}
    metrics = logged() | {f"loss/{name}" for name in catalogue.parts()}
    words = [word for word in said(section("coming-from.md", heading)) if word.partition("=")[0] not in THEIRS]
    assert len(words) > 30
    for word in words:
        if word.startswith("polyrl "):
            assert word.split()[1] in polyrl.commands, word
        elif word.startswith("--"):
            given = [w for w in word.split() if w.startswith("--")]
            assert all(o in options or plain(o[2:]) in map(plain, known) for o in given), word
        elif word not in metrics and word not in CONTROL and word.removeprefix("+") not in catalogue.parts():
            assert word.partition("=")[0] in known, word


def plain(name: str) -> str:
    """A name with underscores for hyphens: options are spelled with these."""
    return name.replace("-", "_")


def commands(page: str) -> list[str]:
    """Every `polyrl train`, `compare`, `show` and `trace` of a page's blocks."""
    found = re.findall(r"^(?:\$ )?polyrl ((?:train|compare|show|trace) .*)$", text(page), re.MULTILINE)
    return [line.partition("#")[0].strip() for line in found]


@pytest.mark.parametrize("line", [c for page in ("control.md", "writing-a-method.md") for c in commands(page)])
def test_commands_of_the_pages_build(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods are built for the task's domain, with the hyperparameters that the command sets."""
    for name, code in titled("writing-a-method.md").items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    verb, *words = re.findall(r"'[^']*'|\S+", line)
    options = {o: p for p in polyrl.commands[verb].params for o in p.opts}
    settings, methods, chosen = dict[str, str](), list[str](), dict[str, str]()
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            value = "" if word in options and getattr(options[word], "is_flag", False) else words.pop(0)
            (chosen if word in options else settings)[word[2:]] = value
        else:
            methods.append(word.strip("'"))
    task = chosen.get("task", "").strip("'")
    domain = "control" if task else None
    for method in methods:
        recipe = build(method, settings, domain=domain)
        values = recipe.hyperparameters()
        for name, value in settings.items():
            full = plain(name)
            found = [v for k, v in values.items() if full in (plain(k), k.rpartition(".")[2])]
            assert found and all(str(v) == value or float(v) == float(value) for v in found), name


def test_the_page_shows_the_tables_that_errors_read(hooks: Any) -> None:
    page = text("coming-from.md")
    assert hooks.with_names_elsewhere(page) == page, "run: python docs/hooks.py"


def test_every_method_that_the_table_of_methods_names_builds() -> None:
    for row in tables()["methods"].rows:
        for ours in re.findall(r"`([^`]+)`", row[-1]):
            if not ours.startswith("--") and ours not in ("double=false", "label_smoothing", "loss_type"):
                build(ours)


ANSWERS = {
    "train grpo --num-generations 4": "TRL's num_generations is our --completions-per-prompt.",
    "train grpo --lr 1e-5": "verl's lr is our --learning-rate.",
    "train sac --lr 1e-5": "lr is our --learning-rate.",
    "train grpo --beta 0.1": "TRL's beta is our --kl-loss-coef (KL in the loss;",
    "train ppo --task CartPole-v1 --n-envs 4": "Stable-Baselines3's n_envs is our --environments",
    "train sac --total-timesteps 100": "Stable-Baselines3's total_timesteps is our --budget steps=...",
    "train grpo --report-to wandb": "metrics.jsonl and TensorBoard files (unless --no-tensorboard)",
    "train grpo --use-vllm": "TRL's use_vllm is not there yet.",
    "train grpo --use-vllm --seed 3": "TRL's use_vllm is not there yet.",
    "train grpo --loss-type dr_grpo": "TRL's loss_type is our --aggregation constant.",
    "train grpo --loss-type=cispo": "is the method 'cispo'",
    "train grpo --lr-scheduler-type cosine": "TRL's lr_scheduler_type is our --schedule.",
    "train ppo --task CartPole-v1 --vf-coef 1": "CleanRL's vf_coef is our --value-coef; both have the half",
    "trace grpo --actor.optim.lr 1": "verl's actor.optim.lr is our --learning-rate.",
    "compare grpo ppo --max-completion-length 9": "TRL's max_completion_length is our --max-tokens.",
    "train GRPOTrainer": "GRPOTrainer is our 'grpo'.",
    "train dr-grpo": "is our 'grpo(scale=none,aggregation=constant)'.",
    "train grpo+gkd": "no method or part 'gkd'. gkd is not built",
    "train SFTTrainer": "SFTTrainer is our 'sft'.",
    "train grpo --tsak addition": "Did you mean 'task'?",
    "train grpo --gae-lambda 1": "no hyperparameter of grpo. `polyrl show grpo` lists them.",
    "train grpo --clip-range": "--clip-range has no value",
    "train grpo --scale none more": "Do not know what to do with 'more'",
}
"""What is typed -> what the answer holds."""


@pytest.mark.parametrize("line", ANSWERS)
def test_an_error_names_our_word(line: str) -> None:
    with pytest.raises(UserError) as error:
        polyrl.main(line.split(), standalone_mode=False)
    assert ANSWERS[line] in str(error.value)


def test_a_wrong_option_or_method_is_told_before_torch_is_imported() -> None:
    """In one process, one after another: it would stay imported."""
    code = (
        "import sys\nfrom polyrl.cli.main import polyrl\nfrom polyrl.errors import UserError\n"
        f"for line in {[*ANSWERS]!r}:\n"
        "    try:\n        polyrl.main(line.split(), standalone_mode=False)\n"
        "    except UserError:\n        assert 'torch' not in sys.modules, line\n"
        "    else:\n        raise SystemExit('no error: ' + line)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_exists_here_keeps_its_meaning_and_what_nobody_knows_gets_no_answer() -> None:
    assert option_elsewhere("no_such_thing", None) == "" and method_elsewhere("no-such-thing") == ""
    assert "'inverse_temperature'" in option_elsewhere("beta", "control")
    assert "kl_loss_coef" not in option_elsewhere("beta", "control")  # TRL's, which has no control


def test_python_keywords_are_answered_too() -> None:
    with pytest.raises(UserError, match=r"TRL's num_generations is our 'completions_per_prompt'\."):
        build("grpo", {"num_generations": 4})


@pytest.mark.parametrize("slug", catalogue.methods())
def test_names_read_from_the_sources_hold_all_hyperparameters(slug: str) -> None:
    for info in catalogue.variants()[slug]:
        real = {key.rpartition(".")[2] for key in build(slug, domain=info.domain or None).hyperparameters()}
        read = stated_names(slug, info.domain or None)
        assert read is not None and real <= read and len(read - real) < 40


@pytest.mark.parametrize("name", catalogue.parts())
def test_and_those_of_parts_that_are_added(name: str) -> None:
    for method in ("grpo", "ppo", "sac", "iql", "bc", "online-dpo", "reinforce", "reward-model"):
        info = catalogue.methods()[method]
        try:
            recipe = build(f"{method}+{name}", domain=info.domain or None)
        except UserError:
            continue
        real = {key.rpartition(".")[2] for key in recipe.hyperparameters()}
        read = stated_names(f"{method}+{name}", info.domain or None)
        assert read is not None and real <= read


def test_of_a_file_of_the_users_own_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from elsewhere import recipe\n", encoding="utf-8")
    assert stated_names(str(tmp_path / "mine.py")) is None


def loop_of(method: str, task: str, **settings: str) -> Any:
    small = {"hidden": "16x16", "batch_size": "16", "learning_starts": "10", **settings}
    config = RunConfig(
        method=method, task=task, budget="iterations=9", seed=SEED, tensorboard=False, hyperparameters=small
    )
    return make_loop(config)[0]


def test_a_temperature_without_a_step_size_is_fixed() -> None:
    fixed = {"temperature.initial": "0.2", "temperature.learning-rate": "0"}
    loop = loop_of("sac", "Pendulum-v1", turns="30", random_steps="10", **fixed)
    loop.iterate()
    assert loop.context.metrics["temperature"] == pytest.approx(0.2) and loop.context.spent.updates == 3 * 21
    assert float(loop.run_state.models["temperature"]()) == pytest.approx(0.2)


def test_a_turn_is_steps_then_updates_and_moves_count_turns() -> None:
    settings = {
        "turns": "8",
        "steps_per_environment": "4",
        "environments": "2",
        "gradient_steps": "1",
        "double": "false",
    }
    loop = loop_of("dqn", "CartPole-v1", **settings, **{"q-target-move.every": "4"})
    moves: list[int] = []
    loop.run_state.models.move = lambda *given: moves.append(loop.context.turn)
    loop.iterate()
    assert loop.context.spent.steps == 8 * 4 * 2 and loop.context.spent.updates == 7 and moves == [3, 7]


def test_a_step_in_a_checkpoint_takes_what_the_page_says(tmp_path: Path) -> None:
    from polyrl.runs import start_run

    config = RunConfig(
        method="sac",
        task="Pendulum-v1",
        budget="iterations=1",
        seed=SEED,
        evaluations=1,
        eval_episodes=1,
        tensorboard=False,
        hyperparameters={"turns": "2000", "random_steps": "2000", "learning_starts": "9999", "hidden": "4"},
    )
    start_run(config, tmp_path / "run").run()
    (file,) = (tmp_path / "run" / "checkpoints").glob("*1/source-replay-*.safetensors")
    assert 4 * (2 * 3 + 1 + 1) <= file.stat().st_size / 2000 < 4 * (2 * 3 + 1 + 1) + 8
    assert read_records(tmp_path / "run")[-1]["replay/steps"] == 2000


@pytest.mark.parametrize("name", ["clip_range", "gae_lambda", "gae-lambda"])
def test_a_name_that_is_ours_too_is_no_news(name: str) -> None:
    assert option_elsewhere(name, None) == ""
