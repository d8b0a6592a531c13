"""Trains for a minute with what is installed: each kind of method, and what each dependency is there for.

`make newest` and `make oldest` run it with the newest and the oldest versions that pyproject.toml allows. It uses the
installed package and needs nothing else; any error or traceback ends it with another exit code than 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")
ROOT = Path(__file__).resolve().parent.parent
QUICK: dict[str, Any] = {"max_tokens": 6, "eval_prompts": 4, "evaluations": 1}
"""Options of a language run that takes a second."""


def lengths(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """A reward: longer responses are better."""
    return [float(len(str(said))) for said in completions]


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def command(*arguments: str) -> str:
    """Run `polyrl` with these arguments in a process of its own; what it printed."""
    say(f"  polyrl {arguments[0]}")
    done = subprocess.run([sys.executable, "-m", "polyrl", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"polyrl {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def train(method: str, folder: Path, **more: Any) -> Any:
    """A short run; its result, with finite numbers of the policy that was trained."""
    import polyrl

    result = polyrl.train(method, out=folder / method.replace("+", "-"), quiet=True, overwrite=True, **more)
    lines = [json.loads(line) for line in (Path(result.folder) / "metrics.jsonl").read_text("utf-8").splitlines()]
    if not lines:
        sys.exit(f"{method} wrote no metrics")
    say(f"  {method}: {len(lines)} lines of metrics")
    return result


def language(folder: Path) -> None:
    """Sampling, training and checkpoints of language models; adapters, bfloat16, preferences, a comparison, files."""
    import polyrl
    from polyrl.pretrain.tiny import build_tiny

    model = build_tiny(folder / "model", 0, hidden=48, heads=2, kv_heads=1, head_dim=24, mlp=96, context=256)
    rows = [{"prompt": f"{i}+{i}="} for i in range(40)]
    small = {"model": model, "budget": "samples=32", "prompts_per_step": 4, "completions_per_prompt": 4}
    own = {"dataset": rows, "reward": lengths, **small}
    run = train("grpo+reference-kl", folder, options=QUICK, **own)
    before = (Path(run.folder) / "metrics.jsonl").read_bytes()
    polyrl.resume(run.folder, dataset=rows, reward=lengths, quiet=True)
    if before != (Path(run.folder) / "metrics.jsonl").read_bytes():
        sys.exit("a run that is finished changed when it was resumed")
    train("ppo", folder / "bfloat16", options=QUICK | {"precision": "bfloat16"}, **own)
    train("rloo", folder / "lora", options=QUICK | {"lora": 2}, **own)
    pairs = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"{i + 100}"} for i in range(40)]
    train("dpo", folder, dataset=pairs, model=model, budget="iterations=2", options=QUICK)
    halves = [{"prompt": f"{i}/{2 * i}=", "answer": r"\frac{1}{2}"} for i in range(1, 40)]
    train(
        "remax", folder / "math", dataset=halves, options=QUICK | {"checker": "math"}, model=model, budget="samples=16"
    )
    import pyarrow
    from pyarrow import parquet

    table = folder / "rows.parquet"

    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    (folder / "rewards.py").write_text("def size(prompts, completions, **columns): return [1.0] * len(completions)\n")
    command(
        *("compare", "grpo", "rloo", "--model", str(model), "--dataset", str(table), "--out", str(folder / "compare")),
        *("--reward", f"{folder / 'rewards.py'}:size", "--budget", "samples=16", "--seeds", "1", "--max-tokens", "4"),
        *("--eval-prompts", "4", "--evaluations", "1", "--workers", "1"),
    )
    if not list((folder / "compare").rglob("*.html")):
        sys.exit("the comparison wrote no page")


def control(folder: Path) -> None:
    """Environments, a video and the files of a trained policy, a body that walks, episodes that are recorded and imitated."""
    small = {"environments": 2, "steps_per_environment": 64, "budget": "steps=256"}
    quick = {"eval_episodes": 2, "evaluations": 1}
    run = train("ppo", folder / "control", task="CartPole-v1", options=quick, **small)
    command("play", str(run.folder), "--video", str(folder / "play.mp4"))
    command("export", str(run.folder), "--format", "numpy")
    command("export", str(run.folder), "--format", "onnx")
    command("record", str(run.folder), "--episodes", "2", "--out", str(folder / "data"))
    recorded = {"task": "CartPole-v1", "dataset": folder / "data", "budget": "iterations=2", "turns": 5}
    train("bc", folder / "offline", options=quick, **recorded)
    train("ppo", folder / "mujoco", task="InvertedPendulum-v5", options=quick, **small)


def others(folder: Path) -> None:
    """Operations and theory, and the picture of a verdict."""
    from polyrl.reproduction.picture import save_picture

    train("hdpo", folder, task="backlog", budget="iterations=5")
    train("dr-rpo", folder, budget="iterations=2")
    entries = sorted((ROOT / "ledger").glob("*.json"))
    save_picture(json.loads(entries[0].read_text("utf-8")), folder / "picture.png")
    say("  a picture")


def main() -> None:
    """Say what is installed, then train."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["control"], *extras["lora"], *extras["data"], *extras["math"]]
    asked += [*extras["figures"], *extras["offline"], *extras["export"]]
    names = sorted({a.replace("[", ">").split(">")[0] for a in asked})
    say(", ".join(f"{name} {version(name)}" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        say("polyrl list: " + command("list").splitlines()[0])
        for part in (language, control, others):
            part(Path(folder))
    say("trained")


if __name__ == "__main__":
    main()
