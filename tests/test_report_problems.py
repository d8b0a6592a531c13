"""Runs of different problems are never compared: what was asked is compared by content, and not by a name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import polyrl
from polyrl import comparison
from polyrl.errors import UserError
from polyrl.problem import rows_digest
from polyrl.report.findings import gaps, headline, pairs, verdict
from polyrl.report.page import write_report
from polyrl.report.payload import build_payload
from polyrl.report.runs import load_comparison, load_folders
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.language.base import Preference, Reward
from polyrl.tasks.user_code import code_digest
from run_folders import write_run
from tiny_models import save_model

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
REWARD = "def length(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
PREFER = "def prefer(prompts, completions_a, completions_b, **columns):\n    return [0.5 for _ in prompts]\n"


def _data(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _file(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model: what it answers is of no account here."""
    return save_model(tmp_path_factory.mktemp("model"), "qwen3")


def facts(model: Path, given: PythonObjects | None = None, **asked: Any) -> dict[str, Any]:
    """The facts that a run of this config writes."""
    if asked.get("dataset") or (given and given.dataset):
        asked["task"] = "dataset"
    if not asked.get("task") or asked["task"] in ("dataset", "reverse"):
        asked = {"model": str(model), "method": "grpo", "max_tokens": 6, "eval_prompts": 4, **asked}
    return make_loop(RunConfig(budget="samples=64", **asked), given=given)[1]


def both(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], **run: Any) -> list[Path]:
    """Folders of three seeds of each: `a`, and the clearly better `b`."""
    folders = []
    for name, stated in (("a", first), ("b", second)):
        for seed in range(3):
            config = {**stated, "label": name, "seed": seed}
            scale = 1.0 if name == "a" else 2.0
            key = stated["metric"]["key"]
            place = tmp_path / f"{name}{seed}"
            folders.append(write_run(place, name, seed, 4, config=config, metric=key, scale=scale, **run))
    return folders


def kinds(tmp_path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any], str]]:
    """Two configs of each kind, and what the reader is told that they differ in."""
    train, other = _data(tmp_path / "a" / "d.jsonl"), _data(tmp_path / "b" / "d.jsonl", ROWS[:-1])
    test, second = _data(tmp_path / "a" / "t.jsonl", ROWS[:3]), _data(tmp_path / "b" / "t.jsonl", ROWS[1:4])
    paid = f"{_file(tmp_path / 'a' / 'r.py', REWARD)}:length"
    unlike = f"{_file(tmp_path / 'b' / 'r.py', REWARD.replace('len(c)', '-len(c)'))}:length"
    judge = f"{_file(tmp_path / 'a' / 'p.py', PREFER)}:prefer"
    harsh = f"{_file(tmp_path / 'b' / 'p.py', PREFER.replace('0.5', '0.4'))}:prefer"
    base: dict[str, Any] = {"dataset": train, "rewards": (paid,)}
    stores = {"method": "hdpo"}
    return {
        "training data": (base, {**base, "dataset": other}, "training data"),
        "test data": ({**base, "test_dataset": test}, {**base, "test_dataset": second}, "test data"),
        "reward's code": (base, {**base, "rewards": (unlike,)}, "rewards"),
        "reward's weight": (base, {**base, "rewards": (f"{paid}=2",)}, "rewards"),
        "rewards": (base, {**base, "rewards": ("exact",)}, "rewards"),
        "preference": (
            {**base, "method": "online-dpo+preference-label", "preference": judge},
            {**base, "method": "online-dpo+preference-label", "preference": harsh},
            "preference",
        ),
        "prompts of an evaluation": (base, {**base, "eval_prompts": 3}, "prompts"),
        "limit": (base, {**base, "max_tokens": 5}, "longest response"),
        "difficulty": ({"task": "reverse"}, {"task": "reverse", "difficulty": 4}, "difficulty"),
        "setting": (
            {**stores, "task": "lost-sales(lead_time=2)"},
            {**stores, "task": "lost-sales(lead_time=3)"},
            "lead time",
        ),
        "environment": (
            {"method": "ppo", "task": "CartPole-v1"},
            {"method": "ppo", "task": "Acrobot-v1"},
            "task",
        ),
        "argument of an environment": (
            {"method": "ppo", "task": "Pendulum-v1(g=9.81)"},
            {"method": "ppo", "task": "Pendulum-v1(g=1.6)"},
            "arguments",
        ),
    }


KINDS = [
    "training data",
    "test data",
    "reward's code",
    "reward's weight",
    "rewards",
    "preference",
    "prompts of an evaluation",
    "limit",
    "difficulty",
    "setting",
    "environment",
    "argument of an environment",
]


@pytest.mark.parametrize("kind", KINDS)
def test_different_problems_get_no_verdict(tmp_path: Path, model: Path, kind: str) -> None:
    assert sorted(KINDS) == sorted(kinds(tmp_path))
    one, other, word = kinds(tmp_path)[kind]
    found = [facts(model, **config) for config in (one, other)]
    comparison = load_folders(both(tmp_path, *found))
    assert [p.name for p in comparison.asked] == ["problem A", "problem B"]
    assert pairs(comparison) == []
    said = " ".join(verdict(comparison))
    assert said.startswith("No verdict between different problems: these runs are of problem A (a) and problem B (b).")
    assert f"They differ in {word} (" in said or f", {word} (" in said or f"and {word} (" in said, said
    assert not any(words in said for words in ("beats", "looks better", "shows no difference", "differ in accuracy by"))
    assert build_payload(comparison)["improvement"] == {"a": {}, "b": {}}
    same = load_folders(both(tmp_path / "same", found[0], found[0]))
    assert len(same.asked) == 1 and len(pairs(same)) == 1
    assert "different problems" not in " ".join(verdict(same))


def test_the_same_content_elsewhere_is_one_problem(tmp_path: Path, model: Path) -> None:
    found = [
        facts(
            model,
            dataset=_data(tmp_path / place / f"{place}.jsonl"),
            test_dataset=_data(tmp_path / place / "test.jsonl", ROWS[:3]),
            rewards=(f"{_file(tmp_path / place / 'r.py', REWARD)}:length",),
            method=method,
        )
        for place, method in (("here", "grpo"), ("there", "rloo"))
    ]
    assert found[0]["problem"] == found[1]["problem"]
    comparison = load_folders(both(tmp_path / "runs", *found))
    assert len(comparison.asked) == 1 and len(pairs(comparison)) == 1


def test_each_problem_keeps_its_lines(tmp_path: Path, model: Path) -> None:
    """The optimum of one setting stands beside its own runs, and beside no others."""
    found = [facts(model, method="hdpo", task=f"lost-sales(lead_time={n})") for n in (2, 3)]
    first, second = (f["metric"]["lines"] for f in found)
    line = next(iter(first))
    assert first[line] != second[line]
    comparison = load_folders(both(tmp_path, *found))
    assert comparison.metric.lines[f"{line}, problem A"] == first[line]
    assert comparison.metric.lines[f"{line}, problem B"] == second[line]
    values = {(gap.method, gap.line): gap.value for gap in gaps(comparison)}
    assert values[("a", f"{line}, problem A")] == first[line]
    assert values[("b", f"{line}, problem B")] == second[line]
    assert ("a", f"{line}, problem B") not in values
    page = write_report([*sorted(tmp_path.glob("[ab]?"))], tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"{line}, problem A" in page and "No verdict between different problems" in page


def test_one_method_on_two_problems_is_two_rows(tmp_path: Path, model: Path) -> None:
    """Seeds of one method that were given different data are not averaged."""
    found = [facts(model, dataset=_data(tmp_path / f"{n}.jsonl", ROWS[n:])) for n in (0, 1)]
    folders = [
        write_run(
            tmp_path / f"{n}{seed}", "grpo", 2 * n + seed, 4, config={**found[n], "label": "grpo", "seed": 2 * n + seed}
        )
        for n in (0, 1)
        for seed in (0, 1)
    ]
    comparison = load_folders(folders)
    assert comparison.methods == ["grpo (problem A)", "grpo (problem B)"]
    assert sorted(comparison.finals["grpo (problem A)"]) == [0, 1]
    assert sorted(comparison.finals["grpo (problem B)"]) == [2, 3]


def test_problems_are_compared_within_themselves(tmp_path: Path, model: Path) -> None:
    found = [facts(model, dataset=_data(tmp_path / f"{n}.jsonl", ROWS[n:])) for n in (0, 1)]
    folders = both(tmp_path / "one", found[0], found[0]) + both(tmp_path / "two", found[1], found[1])
    comparison = load_folders(folders)
    compared = {(pair.first, pair.second) for pair in pairs(comparison)}
    assert compared == {("b (problem A)", "a (problem A)"), ("b (problem B)", "a (problem B)")}
    assert any("b (problem A) beats a (problem A)" in sentence for sentence in headline(comparison))


@pytest.mark.parametrize(
    "key, values",
    [
        ("dataset", ("a.jsonl", "b.jsonl")),
        ("test_dataset", ("a.jsonl", "b.jsonl")),
        ("rewards", (["a.py:f"], ["b.py:f"])),
        ("preference", ("a.py:f", "b.py:f")),
        ("task", ("lost-sales", "lost-sales(lead_time=3)")),
    ],
)
def test_old_folders_are_told_apart_by_their_config(tmp_path: Path, key: str, values: tuple[Any, Any]) -> None:
    folders = [
        write_run(tmp_path / f"{n}{seed}", name, seed, 4, config={"run": {"task": "dataset", key: value}})
        for n, (name, value) in enumerate(zip(("grpo", "remax"), values, strict=True))
        for seed in (0, 1, 2)
    ]
    comparison = load_folders(folders)
    assert len(comparison.asked) == 2 and not pairs(comparison)
    alike = load_folders(folders[:3])
    assert len(alike.asked) == 1


@pytest.mark.parametrize("name", ["pair_seed", "reward_seed"])
def test_pairs_and_labels_of_each_seeds_own_start_are_no_other_problem(tmp_path: Path, name: str) -> None:
    """They follow the run's seed. Where the task was named with them, runs of others are of another problem."""

    def runs(where: Path, task: str, pairs: int = 10) -> list[Path]:
        asked = [
            {"task": "sort-pairs", "settings": {"pairs": pairs, name: 1000 * seed}, "metric": {"key": "eval/accuracy"}}
            for seed in (0, 1, 2)
        ]
        configs = [{"run": {"task": task.format(1000 * seed)}, "problem": asked[seed]} for seed in (0, 1, 2)]
        return [write_run(where / f"{seed}", "dpo", seed, 4, config=configs[seed]) for seed in (0, 1, 2)]

    alike = load_folders(runs(tmp_path / "a", "sort-pairs"))
    assert len(alike.asked) == 1 and alike.methods == ["dpo"]
    assert len(load_folders(runs(tmp_path / "b", f"sort-pairs({name}={{}})")).asked) == 3
    other = [*runs(tmp_path / "c", "sort-pairs"), *runs(tmp_path / "d", "sort-pairs(pairs=20)", pairs=20)]
    assert len(load_folders(other).asked) == 2


def test_an_old_folder_stands_with_a_new_one_of_the_same_config(tmp_path: Path, model: Path) -> None:
    new = facts(model, dataset=_data(tmp_path / "d.jsonl"))
    old = {key: value for key, value in new.items() if key != "problem"}
    assert len(load_folders(both(tmp_path, new, old)).asked) == 1


def test_a_comparison_on_other_data_is_not_gone_on_with(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(todo: Sequence[Any], *_: Any) -> None:
        assert [comparison.work(arm.config.as_dict(), str(arm.folder)) for arm in todo] == [""] * len(todo)

    monkeypatch.setattr(comparison, "_run_all", here)  # a process of their own takes seconds to start
    data = Path(_data(tmp_path / "d.jsonl"))
    options = dict(max_tokens=4, eval_prompts=2, evaluations=1, tensorboard=False)
    small = dict(prompts_per_step=2, completions_per_prompt=2)
    asked: dict[str, Any] = dict(dataset=str(data), model=model, budget="samples=4", options=options, **small)
    place = polyrl.compare(["grpo"], seeds=1, out=tmp_path / "c", workers=1, quiet=True, **asked)
    assert load_comparison(place).runs[0].config["problem"]["data"]
    _data(data, ROWS[:-2])
    with pytest.raises(UserError, match=r"training data of .* is not what the comparison began with"):
        polyrl.compare(["grpo"], seeds=1, out=tmp_path / "c", workers=1, quiet=True, **asked)


def test_a_run_on_other_data_is_not_resumed(tmp_path: Path, model: Path) -> None:
    options = dict(max_tokens=4, eval_prompts=2, evaluations=1, tensorboard=False)
    small: dict[str, Any] = dict(prompts_per_step=2, completions_per_prompt=2)
    asked: dict[str, Any] = dict(model=model, quiet=True, options=options, out=tmp_path / "run", **small)
    polyrl.train("grpo", dataset=ROWS, budget="samples=4", **asked)
    with pytest.raises(UserError, match=r"training data and the test data of .* are not what the run began with"):
        polyrl.resume(tmp_path / "run", dataset=[*ROWS[:-3], {"prompt": "9+9=", "answer": "1"}], quiet=True)


# -------------------------------------------------------------------------------------------- content, not names


def _closure(scale: float) -> Callable[..., list[float]]:
    def paid(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [scale for _ in completions]

    return paid


class Paid:
    """A reward that is an object."""

    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [self.scale for _ in completions]

    def method(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """The same as a bound method."""
        return self(prompts, completions)


def _scaled(prompts: list[str], completions: list[str], scale: float, **columns: Any) -> list[float]:
    return [scale for _ in completions]


@pytest.mark.parametrize(
    "make",
    [_closure, Paid, lambda scale: Paid(scale).method, lambda scale: functools.partial(_scaled, scale=scale)],
    ids=["closure", "object", "method", "partial"],
)
def test_functions_are_told_apart_by_what_they_hold(make: Callable[[float], Callable[..., Any]]) -> None:
    assert code_digest(make(1.0)) == code_digest(make(1.0))
    assert code_digest(make(1.0)) != code_digest(make(2.0))


def test_given_rewards_and_preferences_are_stated(model: Path) -> None:
    def asked(scale: float) -> dict[str, Any]:
        given = PythonObjects(rewards=[Reward("paid", _closure(scale))], preference=Preference("judge", Paid(scale)))
        return dict(facts(model, given, task="reverse")["problem"])

    assert asked(1.0) == asked(1.0)
    one, other = asked(1.0), asked(2.0)
    assert one["rewards"] != other["rewards"] and one["preference"] != other["preference"]


def test_rows_are_identified_by_content_and_order() -> None:
    class Opaque:
        pass

    assert rows_digest(ROWS) == rows_digest([dict(reversed(row.items())) for row in ROWS])
    assert rows_digest(ROWS) != rows_digest(ROWS[::-1])
    assert rows_digest([{"prompt": "a", "image": Opaque()}]) == rows_digest([{"prompt": "a", "image": Opaque()}])
