"""Shared by the end-to-end tests: a small starting model, one thread, a cache of their own, commands in this process.

Runs start from `small_model`, a character model of 0.1 million parameters that answers a quarter of the words of
`reverse` at difficulty 4 greedily, so that an iteration takes a fraction of a second and there is room to learn.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the subprocesses of tests inherit it
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="polyrl-state-")  # what the user ran is of no account here
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the network

import pytest

import polyrl as package

SOURCE = Path(package.__file__).parents[1]
"""Folder of the package that is tested: what child processes have to run, whatever else is installed."""


def search_path(*folders: object) -> str:
    """PYTHONPATH of a child process: `folders`, the tested package, and what is on it here."""
    here = [f for f in os.environ.get("PYTHONPATH", "").split(os.pathsep) if f]
    return os.pathsep.join(dict.fromkeys([*map(str, folders), str(SOURCE), *here]))


def hear_interrupts() -> None:
    """For a child that is sent SIGINT: what runs in the background of a script ignores it, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def child_environment(*folders: object, **more: str) -> dict[str, str]:
    """Environment of a child process, with `folders` on its path before the tested package."""
    return {**os.environ, "PYTHONPATH": search_path(*folders), **more}


os.environ["PYTHONPATH"] = search_path()  # children that inherit the environment

SEED = int(os.environ.get("POLYRL_TEST_SEED", "0"))
"""The seed of learning tests: `make margins` runs them with several, and on plain instruction sets."""


def pytest_unconfigure() -> None:
    """Leave no folder behind, in workers of xdist either."""
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names of tests that hold an address: two processes collect different tests then, and none of them runs."""
    named = [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]+", item.nodeid)]
    if named:
        raise pytest.UsageError(f"Tests whose names change with each process; give them ids: {', '.join(named[:5])}.")


def reached(found: float, least: float) -> None:
    """Fail unless what a learning test measured is at least `least`; `make margins` has both written down.

    The least must be what every seed and instruction set reaches with room to spare: see the comments beside them.
    """
    file = os.environ.get("POLYRL_MARGINS")
    if file:
        test = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps({"test": test, "seed": SEED, "found": found, "least": least}) + "\n")
    assert found >= least, f"{found:.4g} where at least {least:.4g} is learned"


TASK, DIFFICULTY = "reverse", 4
SMALL = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 2, "mlp": 128, "context": 64}
"""Size of the small model."""
TIMES = ("seconds", "tokens_per_second", "steps_per_second", "updates_per_second")
"""Fields of a metrics record that measure wall time; every other field is the same in every repetition."""


def shared(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of this run of the tests, the same for all of its worker processes."""
    return factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` that `make` fills, whichever worker process comes first."""
    folder = shared(factory) / name
    with (shared(factory) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = shared(factory) / f"{name}.made"
        if not made.is_file():
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Starting models that tests make go to a temporary cache, never to the user's."""
    folder = shared(tmp_path_factory) / "cache"
    folder.mkdir(exist_ok=True)
    before = os.environ.get("POLYRL_CACHE")
    os.environ["POLYRL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["POLYRL_CACHE"]
    else:
        os.environ["POLYRL_CACHE"] = before


def run_code(code: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with `words` as its arguments; what it printed is in `stderr`.

    The process is a fork of this one, which saves the imports; where a GPU is in use, which a fork cannot share, it is
    a fresh one.
    """
    import torch

    if torch.cuda.is_available():
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            ended = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.argv = ["-c", *words]
                exec(compile(code, "<child>", "exec"), {"__name__": "__main__"})
                ended = 0
            except SystemExit as end:
                ended = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(ended)
        code_of = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return subprocess.CompletedProcess(words, code_of, "", said.read())


def check_child(command: Any, environment: Mapping[str, str]) -> None:
    """Refuse a child process of this interpreter that would import another polyrl."""
    words = [command] if isinstance(command, str | os.PathLike) else [*command]
    if str(words[0]) != sys.executable:
        return
    folders = map(Path, filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
    found = next((f for f in folders if (f / "polyrl" / "__init__.py").is_file()), None)
    assert found == SOURCE, f"{words[:4]} would run the polyrl of {found or 'the environment'}, not of {SOURCE}"


@pytest.fixture(scope="session", autouse=True)
def children_run_what_is_tested() -> Iterator[None]:
    """No test starts a Python that runs an installed polyrl instead of this one."""
    original = subprocess.Popen.__init__

    def checked(self: Any, args: Any, *more: Any, env: Mapping[str, str] | None = None, **how: Any) -> None:
        check_child(args, os.environ if env is None else env)
        original(self, args, *more, env=env, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", checked)
        yield


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small model that reverses words and has been unsettled; the same weights every time.

    It first learns to reverse, then that half of the words are copied: so right answers are sampled often, greedy
    ones are right about one time in four, and a method that works finds the way back within a few iterations.
    """
    return made_once(tmp_path_factory, "small", make_small_model)


def make_small_model(folder: Path) -> None:
    import torch

    from polyrl.models.language.policy import LanguagePolicy
    from polyrl.pretrain.solutions import demonstration, greedy_accuracy
    from polyrl.pretrain.supervised import supervised
    from polyrl.pretrain.tiny import build_tiny
    from polyrl.run_state.language import EVALUATION_SEED
    from polyrl.runtime.seeding import generator
    from polyrl.tasks.language import task

    torch.set_num_threads(1)
    build_tiny(folder, 0, **SMALL)
    words = task(TASK, difficulty=DIFFICULTY)
    rows = words.rows("train", 99, 0, 4000)
    mixed = [{**r, "answer": r["answer"][::-1]} if i % 2 else r for i, r in enumerate(rows)]
    policy = LanguagePolicy.load(folder)

    def teach(taught: list[dict[str, Any]], steps: int, lr: float, **more: Any) -> None:
        examples = [demonstration(policy, words, row) for row in taught]
        stream = generator(0, "small-model")
        supervised(policy, examples, steps=steps, batch_size=48, lr=lr, generator=stream, **more)

    def unsettled(step: int, loss: float) -> bool:
        return 0.2 <= greedy_accuracy(policy, words, words.rows("test", EVALUATION_SEED, 0, 200)) <= 0.35

    teach(rows, 400, 4e-3)
    teach(mixed, 100, 1e-3, every=1, callback=unsettled)
    policy.save(folder)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small model that imitates the corrupted demonstrations of `sort-pairs`; always the same weights."""
    return made_once(tmp_path_factory, "taught", make_taught)


def make_taught(folder: Path) -> None:
    import torch

    from polyrl.models.language.policy import LanguagePolicy
    from polyrl.pretrain.solutions import demonstration
    from polyrl.pretrain.supervised import supervised
    from polyrl.pretrain.tiny import build_tiny
    from polyrl.runtime.seeding import generator
    from polyrl.tasks.language import task

    torch.set_num_threads(1)
    build_tiny(folder, 0, **SMALL)
    pairs, policy = task("sort-pairs"), LanguagePolicy.load(folder)
    examples = [demonstration(policy, pairs, row) for row in pairs.rows("train", 99, 0, 6000)]
    supervised(policy, examples, steps=400, batch_size=32, lr=4e-3, generator=generator(0, "taught"))
    policy.save(folder)


@dataclass
class Told:
    """What a command said: its exit code and streams."""

    code: int
    out: str
    err: str


Command = Callable[..., Told]


@pytest.fixture
def polyrl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command of the command line in this process."""

    def run(*words: object) -> Told:
        from polyrl.cli.main import main

        monkeypatch.setattr(sys, "argv", ["polyrl", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return Told(int(code or 0), said.out, said.err)

    return run


def read_records(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Every line of a run's metrics.jsonl or samples.jsonl, strictly."""
    return [json.loads(line) for line in (run / name).read_bytes().decode().split("\n")[:-1]]


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without their wall times: what must not differ by a bit between repetitions."""
    return [{k: v for k, v in r.items() if k not in TIMES and not k.startswith("seconds/")} for r in records]


def stopped_after(loop: Any, iterations: int) -> None:
    """Run a loop that is stopped as by Ctrl-C when so many iterations are done."""
    iterate, done = loop.iterate, iter(range(iterations + 1))

    def stops(*given: Any) -> Any:
        if next(done) == iterations:
            raise KeyboardInterrupt
        return iterate(*given)

    loop.iterate = stops
    with pytest.raises(KeyboardInterrupt):
        loop.run()
