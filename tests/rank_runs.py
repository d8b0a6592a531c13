"""What a process of tests/test_ranks.py does: run methods for three iterations, and write what they came to.

python tests/rank_runs.py OUT JSON      JSON: {name: arguments of RunConfig}; several processes by torchrun's variables
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from polyrl.errors import UserError
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.runtime.ranks import join, leave


def run(arguments: dict[str, Any], out: Path) -> None:
    """Run one; the first process writes its records and the weights that it ends with."""
    ranks = join()
    records: list[dict[str, Any]] = []
    said: dict[str, Any] = {"records": records}
    try:
        loop, _ = ranks.in_turn(lambda: make_loop(RunConfig(**arguments)))
        told = loop._record

        def record(*, evaluate: bool) -> None:
            told(evaluate=evaluate)
            found = {**dataclasses.asdict(loop.context.spent), **loop.context.metrics, **loop.final}
            records.append({k: v for k, v in found.items() if "second" not in k})

        loop._record = record  # type: ignore[method-assign]
        loop.run()
        weights = {f"{m}.{n}": p.detach().cpu() for m, named in loop.run_state.parameters().items() for n, p in named}
    except UserError as error:
        said["error"] = str(error)
        weights = {}
    if ranks.first:
        save_file({name: p.clone().contiguous() for name, p in weights.items()}, out.with_suffix(".safetensors"))
        out.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, given in json.loads(sys.argv[2]).items():
        run(given, folder / name)
    leave()
