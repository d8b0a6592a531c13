"""Runs on a Ray cluster: two nodes on one machine, processes that are killed, and a node that is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from polyrl import comparison
from polyrl.comparison_folder import asked_of
from polyrl.runtime.executor import Job, LocalProcesses
from test_docs import blocks
from test_executors import same

ray = pytest.importorskip("ray", reason="ray is in the extra `ray`")

from ray.cluster_utils import Cluster  # noqa: E402

from polyrl.runtime.ray_cluster import RayCluster  # noqa: E402

TRIES = 3
"""A node that does not come up within Ray's limit of 15 seconds is tried again: on a busy machine many do not."""
ASKED = ["nash-mp", "--task", "matrix-game(actions=3,beta=0.05)", "--budget", "iterations=3000", "--evaluations", "2"]
ASKED += ["--checkpoint-every", "100", "--seeds", "3,5", "--no-tensorboard", "--quiet"]
KEYS = ["nash-mp-seed3", "nash-mp-seed5"]


def started(start: Callable[[], Any]) -> Any:
    for left in reversed(range(TRIES)):
        try:
            return start()
        except Exception as error:  # of many kinds: a timeout, a node that died
            if not left:
                pytest.skip(f"Ray does not start here: {str(error).splitlines()[0]}")
            time.sleep(2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head that runs nothing, and a node with room for one run; tests may add others."""
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
    made = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    started(lambda: made.add_node(num_cpus=1, object_store_memory=100 << 20))
    started(lambda: ray.init(address=made.address, log_to_driver=False, logging_level="ERROR"))
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison as it is made here."""
    from polyrl.cli.main import polyrl

    folder = tmp_path_factory.mktemp("ray") / "local"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalProcesses, "work", lambda _, job: comparison.work(job.values, job.folder))
        polyrl.main(["compare", *ASKED, "--out", str(folder)], standalone_mode=False)
    return folder


def need_nodes() -> None:
    """Skip where Ray's own health checks have given up its nodes: that is no finding about runs."""
    if not any(node["Alive"] and node["Resources"].get("CPU") for node in ray.nodes()):
        pytest.skip("Ray has lost all its nodes here, as on a machine that is too busy for its health checks")


def meanwhile(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def holder(run: Path, least: int = 100) -> int:
    """The process that makes a run, once that has a checkpoint of so many iterations."""
    until = time.monotonic() + 600  # a busy machine takes minutes to start a process
    while time.monotonic() < until:
        saved = [int(p.name.rpartition("-")[2]) for p in run.glob("checkpoints/iteration-*")]
        try:
            if max(saved, default=0) >= least:
                return int(json.loads((run / ".polyrl.lock").read_text())["pid"])
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


def test_runs_of_a_cluster_are_those_made_here_though_one_is_killed(
    cluster: Cluster, local: Path, tmp_path: Path, polyrl: Command
) -> None:
    out = tmp_path / "ray"
    ended: list[int] = []

    def kill() -> None:
        ended.append(holder(out / KEYS[0]))
        os.kill(ended[0], signal.SIGKILL)

    thread = meanwhile(kill)
    told = polyrl("compare", *ASKED, "--out", out, "--executor", "ray")
    need_nodes()
    thread.join()
    assert told.code == 0 and ended and os.getpid() not in ended, told
    for key in KEYS:
        same(out / key, local / key)
    assert (out / "report.html").is_file()


def test_a_node_that_is_lost_loses_no_run(cluster: Cluster, local: Path, tmp_path: Path, polyrl: Command) -> None:
    """Each node has room for one run; the run of the one that goes is made to its end on the other."""
    node = started(lambda: cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
    out = tmp_path / "ray"
    pids: list[int] = []

    def lose() -> None:
        pids.extend(holder(out / key, least=1) for key in KEYS)
        cluster.remove_node(node, allow_graceful=False)

    thread = meanwhile(lose)
    told = polyrl("compare", *ASKED, "--out", out, "--executor", "ray")
    need_nodes()
    thread.join()
    assert told.code == 0 and len(set(pids)) == 2, told
    for key in KEYS:
        same(out / key, local / key)


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed"])
def test_without_a_shared_disk_the_folder_comes_home(
    killed: bool, cluster: Cluster, local: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node makes the run in a folder of its own; of one that is killed the last checkpoint is here by then."""
    monkeypatch.setattr("polyrl.runtime.ray_cluster.EVERY", 0.2)
    out = tmp_path / "ray"
    assert polyrl("compare", *ASKED, "--out", out, "--executor", "plan").code == 0
    config = asked_of(out / KEYS[1])
    assert config
    apart: list[Path] = []

    def there() -> list[Path]:
        return list(Path(tempfile.gettempdir()).glob(f"polyrl-*/{KEYS[1]}"))

    before = {*there()}

    def kill() -> None:
        holder(out / KEYS[1])  # what came home
        (found,) = {*there()} - before
        apart.append(found)
        os.kill(int(json.loads((found / ".polyrl.lock").read_text())["pid"]), signal.SIGKILL)

    thread = meanwhile(kill) if killed else None
    with RayCluster("", 1, None, share=False) as executor:
        said = executor.work(Job(config.as_dict(), str(out / KEYS[1])))
    need_nodes()
    assert said == ""
    if thread:
        thread.join()
        assert len(apart) == 1
    same(out / KEYS[1], local / KEYS[1])
    names = [{p.relative_to(f).as_posix() for p in (f / KEYS[1]).rglob("*") if p.is_file()} for f in (out, local)]
    assert names[0] == names[1]  # no checkpoint too many, and nothing hidden
    assert {*there()} == before


def test_what_a_run_fails_with_is_told(cluster: Cluster, tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "ray"
    assert polyrl("compare", *ASKED, "--out", out, "--executor", "plan").code == 0
    (out / KEYS[0]).mkdir()
    (out / KEYS[0] / "mine.txt").write_text("not polyrl's")
    config = asked_of(out / KEYS[0])
    assert config
    with RayCluster("", 1, None) as executor:
        said = executor.work(Job(config.as_dict(), str(out / KEYS[0])))
    need_nodes()
    assert "holds something else than a run (mine.txt)" in said


def test_the_command_of_the_page(cluster: Cluster, tmp_path: Path, polyrl: Command) -> None:
    (command,) = [line for block in blocks("scaling.md", "console") for line in block.split("$ ") if "r ray" in line]
    words = re.sub(r"iterations=\d+", "iterations=2", command.replace("--seeds 3", "--seeds 1")).split()
    told = polyrl(*words[1:-1], tmp_path / words[-1])
    need_nodes()
    assert words[0] == "polyrl" and told.code == 0 and "differ in KL to the Nash policy" in told.out, told
