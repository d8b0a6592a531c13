"""One starting model is one observation: seeds of a claim and of a comparison share none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from polyrl import comparison, comparison_starts
from polyrl.claims import claims
from polyrl.cli.main import polyrl
from polyrl.comparison import run_comparison
from polyrl.comparison_starts import about_start, with_starts
from polyrl.errors import UserError
from polyrl.pretrain.start import start_folder
from polyrl.pretrain.tiny import build_tiny
from polyrl.report.findings import cautions
from polyrl.report.runs import load_comparison
from polyrl.report.settings import own_starts
from polyrl.reproduction.claim import Claim
from polyrl.reproduction.running import base_of, groups
from polyrl.request import make_task
from polyrl.run_state import language
from polyrl.run_state.language import make_model, would_make
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.runtime.executor import Job, LocalProcesses
from polyrl.tasks import domain_of

NOTHING = PythonObjects()
SMALL = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 16}
OF_LANGUAGE = sorted(slug for slug, claim in claims().items() if domain_of(claim.task) == "language")


def configs(claim: Claim) -> list[RunConfig]:
    """Of every seed, those of tuning too, one for each task; a task of two budgets counts once."""
    tasks = {task: budget for task, budget in groups(claim)}
    seeds = (*claim.tuning_seeds, *claim.seeds)
    return [dataclasses.replace(base_of(claim, *of), seed=seed) for of in tasks.items() for seed in seeds]


@pytest.mark.parametrize("slug", OF_LANGUAGE)
def test_no_two_seeds_of_a_claim_share_a_start(slug: str) -> None:
    claim = claims()[slug]
    assert claim.start == "own"
    found: dict[str, set[int]] = {}
    for config in configs(claim):
        found.setdefault(would_make(config), set()).add(config.seed)
        model = start_folder(make_task(config), config.seed)
        found.setdefault(model.name, set()).add(config.seed)
    assert all(len(seeds) == 1 for seeds in found.values())


def test_seeds_that_share_a_start_are_seen() -> None:
    shared = RunConfig(method="grpo", task="addition", start="shared")
    assert would_make(shared) == would_make(dataclasses.replace(shared, seed=3))
    own = dataclasses.replace(shared, start="own")
    assert would_make(own) != would_make(dataclasses.replace(own, seed=3))
    # a start made before belongs to seed 0, and a run that says nothing has it still
    assert would_make(own) == would_make(shared) == would_make(RunConfig(method="grpo", task="addition", seed=5))


@pytest.mark.parametrize(("task", "setting"), [("learned-reverse", "reward_seed"), ("sort-pairs", "pair_seed")])
def test_labels_and_pairs_are_a_seeds_own_too(task: str, setting: str) -> None:
    def seed_of(**more: Any) -> int:
        return int(getattr(make_task(RunConfig(method="", task=task, **more)), setting))

    drawn = [seed_of(seed=seed, start="own") for seed in range(4)]
    assert len(set(drawn)) == 4 and drawn[0] == 0
    assert seed_of(seed=3) == seed_of(seed=3, start="shared") == 0
    two = [make_task(RunConfig(method="", task=f"{task}({setting}=2)", seed=s, start="own")) for s in (0, 1)]
    assert [getattr(t, setting) for t in two] == [2, 1002]
    assert two[0].fingerprint() == two[1].fingerprint()  # what is asked is the same


def test_a_starts_own_model_is_made_by_the_runs_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def start(task: Any, seed: int, say: Any) -> Path:
        asked.append(seed)
        return tmp_path

    monkeypatch.setattr(language, "start_model", start)
    for start_of in (None, "shared", "own"):
        config = RunConfig(method="grpo", task="addition", seed=7, start=start_of)  # type: ignore[arg-type]
        make_model(config, make_task(config))
    assert asked == [0, 0, 7]


def test_two_seeds_make_two_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one test here that pretrains: models of a few thousand weights, for three steps."""
    import torch
    from safetensors.torch import load_file

    from polyrl.pretrain import solutions

    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path))
    for name, value in {"STEPS": 3, "EXAMPLES": 40, "CHECKED_PROMPTS": 4, "GLANCED_PROMPTS": 4}.items():
        monkeypatch.setattr(solutions, name, value)
    whole = solutions.pretrain
    monkeypatch.setattr(solutions, "pretrain", lambda *a, **k: whole(*a, **{**k, **SMALL}))
    weights = []
    for seed in (20, 21):
        config = RunConfig(method="grpo", task="addition", seed=seed, start="own")
        folder = Path(make_model(config, make_task(config)))
        assert json.loads((folder / "polyrl.json").read_text())["seed"] == seed
        weights.append(load_file(folder / "model.safetensors"))
    same = [torch.equal(weights[0][k], weights[1][k]) for k in weights[0] if weights[0][k].dim() > 1]
    assert same and not any(same)


# ------------------------------------------------------------------------------------------------------ comparisons


def test_a_comparison_gives_each_seed_its_own_start_and_an_old_one_goes_on(tmp_path: Path) -> None:
    base = RunConfig(method="", task="addition")
    new = with_starts(base, NOTHING, tmp_path / "new", own=True, overwrite=False)
    assert new.start == "own"
    assert with_starts(
        dataclasses.replace(base, start="shared"), NOTHING, tmp_path, own=True, overwrite=False
    ).start == ("shared")
    assert with_starts(base, NOTHING, tmp_path, own=False, overwrite=False).start is None
    for other in (RunConfig(method="", task="CartPole-v1"), dataclasses.replace(base, model="m")):
        assert with_starts(other, NOTHING, tmp_path, own=True, overwrite=False) == other
    folder = tmp_path / "old"
    folder.mkdir()
    stated = {"question": {"methods": ["grpo"], "seeds": [0], "base": {"method": "", "task": "addition"}}}
    for began, goes_on in ((stated, None), ({"question": {**stated["question"], "base": new.as_dict()}}, "own")):
        (folder / "compare.yaml").write_text(yaml.safe_dump(began), encoding="utf-8")
        assert with_starts(base, NOTHING, folder, own=True, overwrite=False).start == goes_on
        assert with_starts(base, NOTHING, folder, own=True, overwrite=True).start == "own"


def test_the_page_says_where_seeds_are_not_independent_of_their_start() -> None:
    config = RunConfig(method="", task="addition")
    assert "All seeds share one starting model" in about_start(config, NOTHING)
    assert about_start(dataclasses.replace(config, start="own"), NOTHING) == ""
    assert "the result is of this model" in about_start(dataclasses.replace(config, model="m"), NOTHING)
    assert about_start(RunConfig(method="", task="CartPole-v1"), NOTHING) == ""


def test_every_seeds_start_is_made_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in place of each start: the runs begin as what was made for their seed."""
    models = {seed: str(build_tiny(tmp_path / f"m{seed}", seed, **SMALL)) for seed in (0, 1)}
    made: list[int] = []

    def start(task: Any, seed: int = 0, say: Any = None) -> Path:
        made.append(seed)
        return Path(models[seed])

    ran: list[int] = []

    def work(_: Any, job: Job) -> str:
        assert set(made) == {0, 1}
        ran.append(job.values["seed"])
        return comparison.work(job.values, job.folder)

    monkeypatch.setattr(language, "start_model", start)
    monkeypatch.setattr(LocalProcesses, "work", work)
    base = RunConfig(
        method="", task="addition", budget="iterations=1", max_tokens=4, eval_prompts=2, evaluations=1,
        tensorboard=False, hyperparameters={"prompts_per_step": "2", "completions_per_prompt": "2"},
    )  # fmt: skip
    folder = run_comparison(["rloo"], base, [0, 1], tmp_path / "c", workers=1, quiet=True)
    assert ran == [0, 1]
    stated = yaml.safe_load((folder / "compare.yaml").read_text())
    assert stated["question"]["base"]["start"] == "own" and "note" not in stated
    starts = [yaml.safe_load((folder / f"rloo-seed{s}" / "config.yaml").read_text())["start"] for s in (0, 1)]
    assert starts[0] != starts[1]
    runs = load_comparison(folder).runs
    assert own_starts(runs) == {"start": "each seed its own", "model": "each seed its own"}
    assert not any("starting fingerprints differ" in said for said in cautions(load_comparison(folder)))
    mixed = [*runs, dataclasses.replace(runs[0], config={**runs[0].config, "start": "another"})]
    assert own_starts(mixed) == {}  # two runs of one seed from two starts are told
    run_comparison(["rloo"], base, [0, 1], folder, workers=1, quiet=True)  # the same question goes on
    assert ran == [0, 1]
    shared = run_comparison(
        ["rloo"], dataclasses.replace(base, start="shared"), [0, 1], tmp_path / "s", workers=1, quiet=True
    )
    assert "share one starting model" in yaml.safe_load((shared / "compare.yaml").read_text())["note"]
    assert "share one starting model" in (shared / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--task", "CartPole-v1"], "--start means nothing on CartPole-v1, which is a task of control"),
        (["--task", "addition", "--model", "somewhere"], "--start is of the tiny models that polyrl makes"),
    ],
)
def test_a_start_without_effect_is_refused(more: list[str], said: str, tmp_path: Path) -> None:
    asked = ["compare", "ppo", "--start", "own", "--budget", "samples=64", "--seeds", "1", "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(polyrl, [*asked, *more], standalone_mode=False)
    assert isinstance(done.exception, UserError) and said in str(done.exception)


def test_starts_are_made_one_for_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    told: list[str] = []

    class Domain:
        @staticmethod
        def prepare(config: RunConfig, task: Any, say: Any) -> None:
            seen.append(config.seed)
            say("making it")

    monkeypatch.setattr(comparison_starts, "domain_module", lambda *_: Domain)
    monkeypatch.setattr(comparison_starts, "make_task", lambda *_: None)
    seeds = [RunConfig(method="", task="addition", seed=s, start="own") for s in (4, 9)]
    comparison_starts.make_starts(seeds, NOTHING, told.append)
    assert seen == [4, 9] and told == ["start 1 of 2, seed 4: making it", "start 2 of 2, seed 9: making it"]
