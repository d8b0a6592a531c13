"""Options that a run would not look at are refused in one sentence; those that it looks at are not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import polyrl as package
from conftest import Command
from polyrl import catalogue
from polyrl.errors import UserError
from polyrl.reproduction.running import base_of, group_folders, groups, shortened
from polyrl.request import default_task, domain, make_task
from polyrl.runtime.config import RunConfig
from polyrl.unused import ELSEWHERE, OF_LANGUAGE, refuse_unused

OTHER: dict[str, Any] = {
    **{"difficulty": 3, "dataset": "x.jsonl", "test_dataset": "x.jsonl", "checker": "exact", "max_prompt_tokens": 9},
    **{"skip_bad_rows": True, "rewards": ("exact",), "preference": "x.py:f", "model": "x", "lora": 2, "max_tokens": 9},
    **{
        "precision": "bfloat16",
        "force": True,
        "micro_batch_tokens": 9,
        "engine": "http://127.0.0.1:1",
        "eval_prompts": 9,
        "eval_greedy": False,
    },
    **{"monitor_kl_every": 1, "on_reward_error": "drop", "reward_timeout": 9.0, "reward_process": "own"},
    **{"eval_episodes": 9, "device": "cuda", "start": "own"},
}
"""Another value than the usual one."""
OF_COLUMNS = ("prompt_column", "answer_column", "system_prompt")
TRAINED = {"control": "ppo", "operations": "hdpo", "theory": "nash-mp"}


def refused(*methods: str, **asked: Any) -> str:
    """What is said of a run, or of a comparison's arms; empty where nothing is."""
    task = asked.pop("task", "") or default_task(methods)
    config = RunConfig(method=methods[0], task=task, **asked)
    plain = {k: v for k, v in asked.items() if k in ("dataset", "from_python")}  # what is asked is not loaded
    config_of_task = RunConfig(method=methods[0], task=task, **plain)
    recipes = [catalogue.build(method, domain=domain(config)) for method in methods]
    try:
        refuse_unused(config, recipes, make_task(config_of_task), domain(config))
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def answers(tmp_path: Path) -> str:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) + "\n" for n in range(4)))
    return str(file)


@pytest.mark.parametrize("kind", ["control", "operations", "theory"])
def test_what_only_language_looks_at_is_refused_elsewhere(kind: str) -> None:
    method, task = TRAINED[kind], "CartPole-v1" if kind == "control" else ""
    shown = task or default_task([method])
    for field in OF_LANGUAGE:
        if field in ("dataset", "checker", "max_prompt_tokens", "skip_bad_rows", "chat_template", *OF_COLUMNS):
            continue  # data is a task by itself, and the others are refused without it
        option = {"rewards": "reward", "eval_greedy": "eval-sampled"}.get(field, field.replace("_", "-"))
        said = refused(method, task=task, **{field: OTHER[field]})
        assert said == f"--{option} means nothing on {shown}, which is a task of {kind}; leave it away."
    assert "--lora and --eval-prompts mean nothing" in refused(method, task=task, lora=2, eval_prompts=3)
    assert bool(refused(method, task=task, eval_episodes=9)) == (kind == "theory")
    assert refused(method, task=task, threads=2, seed=3, tensorboard=False, evaluations=2, device="cpu") == ""


def test_every_field_is_of_some_domain_or_of_all() -> None:
    everywhere = {"method", "label", "task", "seed", "budget", "hyperparameters", "device", "threads", "evaluations"}
    everywhere |= {"checkpoint_every", "keep_checkpoints", "tensorboard", "from_python", "eval_episodes"}
    assert everywhere | {*OF_LANGUAGE} == {f.name for f in dataclasses.fields(RunConfig)}
    assert {name for names in ELSEWHERE.values() for name in names} <= everywhere
    assert "--device means nothing on rock-paper-scissors" in refused("nash-mp", device="cuda")


def test_a_preference_that_nobody_asks_is_refused() -> None:
    said = refused("grpo", preference="x.py:f")
    assert said.startswith("--preference means nothing for grpo: no part asks for one; leave it away")
    assert refused("grpo", from_python=("preference",)) == said
    assert "for grpo and rloo" in refused("grpo", "rloo", task="reverse", preference="x.py:f")
    assert refused("ppo", task="learned-sort", preference="x.py:f")


def test_a_preference_that_labels_something_is_not(pairs: str, answers: str) -> None:
    for method, task in (
        ("online-dpo+preference-label", "reverse"),
        ("dpo", "reverse"),  # the pairs are made, and labelled by it
        ("dpo", "learned-sort"),
        ("reward-model", "reverse"),
        ("grpo", "sort-pairs"),  # the task's own pairs are, on which the run is judged
    ):
        assert refused(method, task=task, preference="x.py:f") == "", method
    assert refused("grpo", "online-dpo+preference-label", task="reverse", preference="x.py:f") == ""
    assert refused("dpo", task="dataset", dataset=answers, preference="x.py:f") == ""
    said = refused("dpo", task="dataset", dataset=pairs, preference="x.py:f")
    assert said.startswith("--preference means nothing for dpo: the data has its pairs;")
    assert refused("online-dpo+preference-label", task="dataset", dataset=pairs, preference="x.py:f") == ""


def test_a_part_of_somebody_elses_may_ask(tmp_path: Path) -> None:
    file = tmp_path / "asking.py"
    file.write_text(
        "from polyrl.methods.language.rloo import LeaveOneOut, recipe as rloo\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Asking(LeaveOneOut):\n    '''Asks.'''\n"
        "def recipe():\n    return rloo() + Asking()\n"
    )
    assert refused(str(file), task="reverse", preference="x.py:f") == ""


@pytest.mark.parametrize("option", ["rewards", "checker", "reward_timeout", "max_tokens", "eval_greedy"])
def test_a_reward_model_that_learns_from_the_datas_pairs_looks_at_nothing_else(option: str, pairs: str) -> None:
    said = refused("reward-model", task="dataset", dataset=pairs, **{option: OTHER[option]})
    assert "nothing for reward-model, which learns from the data's pairs; leave it away." in said
    assert refused("dpo", task="dataset", dataset=pairs, **{option: OTHER[option]}) == ""  # it is evaluated by them
    assert refused("reward-model", "dpo", task="dataset", dataset=pairs, **{option: OTHER[option]}) == ""


def test_a_reward_model_whose_pairs_are_made_looks_at_what_makes_them() -> None:
    assert refused("reward-model", task="reverse", rewards=("exact",), max_tokens=5, on_reward_error="drop") == ""
    assert "the task's pairs" in refused("reward-model", task="sort-pairs", rewards=("exact",))
    assert refused("reward-model", task="sort-pairs", max_tokens=5) == ""
    assert "--eval-sampled means nothing for reward-model" in refused("reward-model", task="reverse", eval_greedy=False)


def test_what_is_of_data_or_of_tasks_alone(answers: str) -> None:
    assert "--dataset too" in refused("grpo", test_dataset=answers)
    assert "--difficulty is of built-in tasks" in refused("grpo", task="dataset", dataset=answers, difficulty=3)
    assert "--eval-episodes means nothing on reverse" in refused("grpo", task="reverse", eval_episodes=3)
    assert refused("grpo", task="reverse", difficulty=3, lora=2, rewards=("exact",), reward_process="own") == ""


def test_every_claim_asks_only_for_what_its_runs_look_at() -> None:
    from polyrl.claims import claims

    for claim in (c for one in claims().values() for c in (one, shortened(one))):
        for task, budget in group_folders(claim, Path("x")):
            base = base_of(claim, task, budget)
            recipes = [catalogue.build(arm.method, domain=domain(base)) for arm in groups(claim)[task, budget]]
            refuse_unused(base, recipes, make_task(base), domain(base))


# ------------------------------------------------------------------------------------------------------ whole commands


def test_commands_refuse_before_anything_is_written(polyrl: Command, tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def shorter(prompts, completions_a, completions_b, **columns):\n    return [0.5] * len(prompts)\n"
    )
    out, asked = tmp_path / "run", ("--preference", f"{judge}:shorter", "--task", "reverse", "--budget", "samples=8")
    for words in (
        ("train", "grpo", *asked, "--out", out),
        ("compare", "grpo", "rloo", *asked, "--seeds", "1", "--out", out),
        ("trace", "grpo", *asked),
    ):
        told = polyrl(*words)
        assert told.code == 2 and "--preference means nothing for grpo" in told.err, told.err
        assert len(told.err.splitlines()) == 1 and not out.exists()


def test_a_run_of_before_goes_on_with_what_it_does_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**options: Any) -> Any:
        return package.train("nash-mp", budget="iterations=4", out=tmp_path / "run", quiet=True, options=options)

    with pytest.raises(UserError, match="--eval-prompts means nothing"):
        start(eval_prompts=3)
    monkeypatch.setattr("polyrl.runs.refuse_unused", lambda *_: None)
    start(eval_prompts=3, evaluations=1)
    monkeypatch.undo()
    (tmp_path / "run" / "summary.json").unlink()
    assert package.resume(tmp_path / "run", quiet=True).spent["iterations"] == 4


def test_eval_refuses_what_the_run_does_not_look_at(polyrl: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    package.train("nash-mp", budget="iterations=2", out=run, quiet=True)
    for option in (("--prompts", "4"), ("--sampled",), ("--episodes", "3")):
        told = polyrl("eval", run, *option)
        assert (
            told.code == 2 and told.err == f"polyrl: {option[0]} means nothing for {run}, which is a run of theory.\n"
        )
    assert polyrl("eval", run).code == 0
