"""What polyrl did not write is never deleted: folders are filled with foreign files, and nothing of them may be lost.

The runs are of theory, which trains in milliseconds; every room's checkpoints go through the same code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Command, Told
from polyrl.errors import UserError
from polyrl.pretrain import start
from polyrl.runtime import ownership
from polyrl.runtime.checkpoint import save_checkpoint, tidy
from polyrl.runtime.run_folder import RunFolder

RUN = ["--task", "rock-paper-scissors", "--budget", "iterations=4", "--checkpoint-every", "2", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests work on copies of it."""
    from polyrl.cli.main import polyrl

    run = tmp_path_factory.mktemp("finished") / "run"
    polyrl.main(["train", "nash-mp", *RUN, "--out", str(run)], standalone_mode=False)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("five years of work")
    return path


def refused(told: Told, *words: str) -> None:
    """One sentence that names these, and exit code 2."""
    assert told.code == 2 and told.err.startswith("polyrl: ") and told.err.count("\n") == 1, told.err
    for word in words:
        assert word in told.err, (word, told.err)


def tree(folder: Path) -> dict[str, Any]:
    """Everything below a folder: links by their target, files by their bytes."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


# ------------------------------------------------------------------------------------------------------- overwriting


@pytest.mark.parametrize(
    "config", ["db: prod\n", "run: yes\n", "polyrl: 1\n", "[]", "\x00", "run: {method: 3}\npolyrl: 1\n"]
)
def test_a_config_of_somebody_else_proves_nothing(config: str, tmp_path: Path, polyrl: Command) -> None:
    folder = tmp_path / "p"
    put(folder / "thesis.tex")
    (folder / "config.yaml").write_text(config)
    before = tree(folder)
    refused(polyrl("train", "nash-mp", *RUN, "--out", folder, "--overwrite"), str(folder), "config.yaml", "thesis.tex")
    assert tree(folder) == before


@pytest.mark.parametrize("stated", ["x: 1\n", "question: 3\n", "question: {methods: [a]}\n", "[]", "\x00"])
def test_a_compare_yaml_of_somebody_else_proves_nothing(stated: str, tmp_path: Path, polyrl: Command) -> None:
    folder = tmp_path / "q"
    put(folder / "data.csv")
    (folder / "compare.yaml").write_text(stated)
    before = tree(folder)
    refused(polyrl("compare", "nash-mp", *RUN, "--seeds", "1", "--out", folder, "--overwrite"), str(folder))
    assert tree(folder) == before


FOREIGN = [
    "thesis.tex",
    ".hidden",
    "notes/deep/plan.md",
    "model/NOTES.md",
    "model/own/vocab.txt",
    "tensorboard/mine.log",
    "checkpoints/todo.txt",
    "checkpoints/best/weights.bin",
    "checkpoints/.ssh/id",
    "checkpoints/iteration-000004/remarks.txt",
    "checkpoints/iteration-000004/policy/model.bin",
    "checkpoints/.writing-000006-1/remarks.txt",
    "model.zip",
    "metrics.jsonl.bak",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_overwriting_a_run_refuses_a_foreign_file_and_names_it(
    name: str, run: Path, tmp_path: Path, polyrl: Command
) -> None:
    put(run / name)
    before = tree(run)
    line = ["train", "nash-mp", *RUN, "--out", run, "--overwrite"]
    refused(polyrl(*line), name if name.count("/") != 2 or "iteration" in name else name.partition("/")[0])
    assert tree(run) == before
    (run / name).rename(tmp_path / "moved")
    for above in list((run / name).parents)[: name.count("/")]:
        if above != run and not any(above.iterdir()):
            above.rmdir()
    assert polyrl(*line, "--seed", "1").code == 0  # polyrl's own files are no hindrance


@pytest.mark.parametrize("name", ["elsewhere", "checkpoints", "model", "tensorboard", "metrics.jsonl"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_symbolic_link_is_foreign_and_never_followed(
    name: str, dangling: bool, run: Path, tmp_path: Path, polyrl: Command
) -> None:
    """Somebody moved a part of the run to another disk."""
    other = tmp_path / "scratch"
    if (run / name).exists():
        (run / name).rename(other)
    else:
        put(other / "mine.txt")
    if other.is_dir():
        put(other / "beside.txt")
    (run / name).symlink_to(tmp_path / "gone" if dangling else other)
    before, there = tree(run), tree(other)
    refused(polyrl("train", "nash-mp", *RUN, "--out", run, "--overwrite"), name)
    assert tree(run) == before and tree(other) == there


def test_a_link_as_the_run_folder_itself(run: Path, tmp_path: Path, polyrl: Command) -> None:
    """It is where the user wants the run: the run in it is replaced, the link stays."""
    (tmp_path / "link").symlink_to(run)
    beside = put(tmp_path / "beside.txt")
    assert polyrl("train", "nash-mp", *RUN, "--seed", "3", "--out", tmp_path / "link", "--overwrite").code == 0
    assert (tmp_path / "link").is_symlink() and "seed: 3" in (run / "config.yaml").read_text() and beside.exists()


def test_overwriting_leaves_nothing_of_the_old_run(run: Path, finished: Path, polyrl: Command) -> None:
    put(run / "checkpoints" / ".removing-iteration-000002-77" / "tables.safetensors")
    put(run / ".model.old" / "tables.safetensors")
    put(run / ".metrics.jsonl.123.tmp")
    assert polyrl("report", run).code == 0
    assert polyrl("train", "nash-mp", *RUN, "--out", run, "--overwrite").code == 0
    assert {n for n in tree(run) if "tfevents" not in n} == {n for n in tree(finished) if "tfevents" not in n}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two arms, run in this process."""
    from polyrl.comparison import work
    from polyrl.comparison_folder import arm_folder, begin, write
    from polyrl.runtime.config import RunConfig

    folder = tmp_path_factory.mktemp("compared") / "c"
    base = RunConfig(method="", task="rock-paper-scissors", budget="iterations=4", tensorboard=False)
    stated = begin(folder, ["nash-mp", "nash-md"], base, [0], overwrite=False)
    folder.mkdir()
    write(folder, stated)
    for method in ("nash-mp", "nash-md"):
        assert work({**base.as_dict(), "method": method}, str(folder / arm_folder(method, 0))) == ""
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "data.csv",
        "nash-mp-seed0/remarks.txt",
        "nash-mp-seed0/checkpoints/iteration-000004/remarks.txt",
        "nash-mp-seed9/remarks.txt",
        "other/config.yaml",
    ],
)
def test_overwriting_a_comparison_refuses_a_foreign_file_and_names_it(
    name: str, compared: Path, tmp_path: Path
) -> None:
    """Without running it: `begin` decides before anything is done. The folder of `demo` is a comparison."""
    from polyrl.comparison_folder import begin, clear
    from polyrl.runtime.config import RunConfig

    folder = tmp_path / "c"
    shutil.copytree(compared, folder)
    put(folder / name)
    before = tree(folder)
    base = RunConfig(method="", task="rock-paper-scissors", budget="iterations=4")
    seen = name if name.startswith(("data", "nash-mp-seed0")) else name.partition("/")[0]
    with pytest.raises(UserError, match=seen):
        begin(folder, ["nash-mp"], base, [0], overwrite=True)
    assert tree(folder) == before
    clear(folder)  # and were it cleared all the same, the foreign file would stay
    assert (folder / name).read_text() == "five years of work"


def test_another_run_within_a_comparison_is_not_its_own(compared: Path, run: Path, tmp_path: Path) -> None:
    from polyrl.comparison_folder import holding_of

    folder = tmp_path / "c"
    shutil.copytree(compared, folder)
    assert holding_of(folder).foreign == []
    run.rename(folder / "kept-run")
    assert holding_of(folder).foreign == ["kept-run/"]


def test_an_arm_whose_folder_is_somebody_elses(tmp_path: Path) -> None:
    """A worker touches nothing there, also not to say that it failed."""
    from polyrl.comparison import work
    from polyrl.runtime.config import RunConfig

    folder = tmp_path / "c" / "nash-mp-seed0"
    for name in ("config.yaml", "summary.json", "thesis.tex"):
        put(folder / name)
    before = tree(tmp_path)
    config = RunConfig(method="nash-mp", task="rock-paper-scissors", budget="iterations=2")
    assert "thesis.tex" in work(config.as_dict(), str(folder))
    assert tree(tmp_path) == before


# ------------------------------------------------------------------------------------ checkpoints: tidy, keep, resume


def test_resume_leaves_dot_folders_beside_checkpoints_alone(run: Path, tmp_path: Path, polyrl: Command) -> None:
    """The checkpoints were moved to a scratch folder behind a link, where other things lie, too."""
    scratch = tmp_path / "scratch"
    (run / "checkpoints").rename(scratch)
    (run / "checkpoints").symlink_to(scratch)
    mine = [put(scratch / n) for n in (".ssh/id", ".config/a/b", ".writing/x", ".writing-6/x", ".removing-all/x", "x")]
    put(scratch / ".writing-000006-12" / "tables.safetensors")  # polyrl's own, of a process that was killed
    put(scratch / ".writing-000006-12" / ".tmpR8MnPs")  # safetensors' own, before it has its name
    (scratch / ".writing-000007-12").symlink_to(tmp_path)  # not polyrl's: it makes no links
    shutil.rmtree(scratch / "iteration-000004")
    assert polyrl("resume", run, "--quiet").code == 0
    assert all(p.read_text() == "five years of work" for p in mine)
    assert not (scratch / ".writing-000006-12").exists() and (scratch / ".writing-000007-12").is_symlink()


@pytest.mark.parametrize("name", [".writing-000006-12", ".removing-iteration-000002-12"])
def test_a_foreign_file_in_an_unfinished_checkpoint_is_moved_to_where_it_is_seen(name: str, run: Path) -> None:
    root = run / "checkpoints"
    put(root / name / "tables.safetensors")
    put(root / name / "sub" / "remarks.txt")
    said: list[str] = []
    tidy(root, said.append)
    (kept,) = root.glob("kept-*")
    assert (kept / "sub" / "remarks.txt").read_text() == "five years of work"
    assert not (root / name).exists() and "remarks.txt" in said[0] and kept.name in said[0]


def save(root: Path, iteration: int, keep: int, said: list[str]) -> None:
    def models(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "model.safetensors").write_text("weights")

    save_checkpoint(root, iteration, {}, {}, {}, models, {}, keep=keep, say=said.append)


def test_old_checkpoints_go_without_the_files_of_others(tmp_path: Path) -> None:
    root, said = tmp_path / "checkpoints", []
    for iteration in range(6):
        save(root, iteration, 2, said)
        put(root / f"iteration-{iteration:06d}" / "policy" / f"remarks-{iteration}.txt")
    found = {p.name for p in root.iterdir()}
    assert found == {"iteration-000004", "iteration-000005", *(f"kept-iteration-{i:06d}" for i in range(4))}
    for i in range(4):
        assert [*tree(root / f"kept-iteration-{i:06d}")] == ["policy", f"policy/remarks-{i}.txt"]
    assert len(said) == 4 and "policy/remarks-0.txt" in said[0]


def test_a_link_among_the_checkpoints_is_kept(tmp_path: Path) -> None:
    root, other = tmp_path / "checkpoints", tmp_path / "archive"
    save(root, 1, 1, [])
    (root / "iteration-000001").rename(other)
    (root / "iteration-000001").symlink_to(other)
    before, said = tree(other), list[str]()
    save(root, 2, 1, said)
    save(root, 1, 1, said)  # a repeated iteration takes its place: the link steps aside
    assert tree(other) == before and not (root / "iteration-000001").is_symlink()
    assert os.readlink(root / "kept-iteration-000001" / "iteration-000001") == str(other) and len(said) == 1


# ---------------------------------------------------------------------------------------- model/, caches, pages


def write(name: str = "tables.safetensors") -> Callable[[Path], None]:
    def into(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("weights")

    return into


def test_a_model_that_is_exported_again_keeps_the_files_of_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.write_folder("model", write()) == []
    put(tmp_path / "model" / "card" / "README.md")
    put(tmp_path / "model" / "vocab.txt")
    put(tmp_path / "model" / "config.json")  # a name that polyrl could write, but did not
    assert folder.write_folder("model", write()) == []  # they all fit beside the new files
    assert folder.write_folder("model", write("config.json")) != []  # this one does not: it is kept apart
    names = {n for n, content in tree(tmp_path).items() if content == b"five years of work"}
    assert names == {"model/card/README.md", "model/vocab.txt", "kept-model/config.json"}
    assert (tmp_path / "model" / "config.json").read_text() == "weights"


@pytest.mark.parametrize("made", ["link", "file"])
def test_what_stands_where_the_model_belongs_is_kept(made: str, tmp_path: Path) -> None:
    other = put(tmp_path / "other" / "mine.txt").parent
    (tmp_path / "model").symlink_to(other) if made == "link" else put(tmp_path / "model")
    said = RunFolder(tmp_path).write_folder("model", write())
    assert (other / "mine.txt").exists() and os.path.lexists(tmp_path / "kept-model" / ".model.old")
    assert "kept-model" in said[0] and (tmp_path / "model" / "tables.safetensors").is_file()


@pytest.mark.parametrize("new", [False, True], ids=["before", "after"])
def test_an_export_that_was_killed_between_its_renames(new: bool, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_folder("model", write())
    put(tmp_path / "model" / "mine.txt")
    (tmp_path / "model").rename(tmp_path / ".model.old")
    if new:
        write()(tmp_path / "model")
    folder.write_folder("model", write())
    assert (tmp_path / "model" / "mine.txt").read_text() == "five years of work"
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_a_cache_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    place = put(tmp_path / "models" / "reverse-4-abc" / "thesis.tex").parent

    def make(folder: Path) -> dict[str, Any]:
        raise AssertionError("it was made before the place was looked at")

    with pytest.raises(UserError, match="POLYRL_CACHE"):
        start.cached(place, make)
    assert (place / "thesis.tex").exists()
    mine = put(tmp_path / "models" / f".free.{os.getpid()}" / "mine")

    def write_it(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_text("weights")
        return {"task": "free"}

    made = start.cached(tmp_path / "models" / "free", write_it)
    assert {p.name for p in made.iterdir()} == {"model.safetensors", "polyrl.json"} and mine.exists()
    assert {p.name for p in made.parent.iterdir()} == {"reverse-4-abc", "free", mine.parent.name}


@pytest.mark.parametrize("name", ["page.html", "page.csv"])
def test_a_report_replaces_no_page_and_no_table_of_somebody_else(
    name: str, run: Path, tmp_path: Path, polyrl: Command
) -> None:
    mine = put(tmp_path / name)
    refused(polyrl("report", run, "--out", tmp_path / "page.html"), name)
    assert mine.read_text() == "five years of work" and len([*tmp_path.glob("page.*")]) == 1
    mine.unlink()
    for _ in range(2):  # its own page is written again
        assert polyrl("report", run, "--out", tmp_path / "page.html").code == 0


def test_a_ledger_entry_replaces_no_file_of_somebody_else(tmp_path: Path) -> None:
    from polyrl.reproduction import ledger

    mine = put(tmp_path / "grpo.json")
    with pytest.raises(UserError, match=r"grpo\.json"):
        ledger.write({"format": ledger.FORMAT, "slug": "grpo"}, tmp_path)
    assert mine.read_text() == "five years of work"
    mine.unlink()
    for date in ("2026-01-01", "2026-01-02"):
        ledger.write({"format": ledger.FORMAT, "slug": "grpo", "date": date}, tmp_path)
    assert json.loads(mine.read_text())["date"] == "2026-01-02"


# -------------------------------------------------------------------------------- the names that polyrl does write


@pytest.fixture
def control_run(tmp_path: Path) -> Path:
    """A run of control, whose models and environments are saved under names of their own."""
    from polyrl.cli.main import polyrl

    line = ["train", "ppo", "--task", "CartPole-v1", "--environments", "2", "--steps-per-environment", "8", "--quiet"]
    few = ["--budget", "iterations=2", "--checkpoint-every", "1", "--evaluations", "1", "--eval-episodes", "1"]
    polyrl.main([*line, *few, "--out", str(tmp_path / "ppo")], standalone_mode=False)
    # what operations and language write beside these
    names = (
        "kept.safetensors",
        "kept.json",
        "policy/tokenizer.json",
        "policy/model.safetensors",
        "reward/head.safetensors",
    )
    for name in (*names, "critic/head.safetensors", "reference-logprobs.safetensors", "parts.safetensors"):
        put(tmp_path / "ppo" / "checkpoints" / ".writing-000003-77" / name)
    return tmp_path / "ppo"


def test_everything_that_a_run_writes_is_known_as_its_own(control_run: Path, run: Path) -> None:
    for folder in (control_run, run):
        holding = ownership.run_holding(folder)
        assert holding.foreign == [] and len(holding.files) == sum(p.is_file() for p in folder.rglob("*"))
        # also where the lists are gone, as in runs of older versions
        for listed in folder.rglob(ownership.LISTED):
            listed.unlink()
        for state in folder.rglob("state.json"):
            state.write_text("{}")
        assert ownership.run_holding(folder).foreign == []
