"""`make bench`: polyrl beside its peers on the same work, in alternation, as ratios with their spread.

    python benchmarks/run.py                               everything: about an hour on one core
    python benchmarks/run.py language --only grpo-tiny     one case
    python benchmarks/run.py control --quick               a look within minutes; writes no results
    python benchmarks/run.py language --instructions avx2  as on a processor without AVX-512

    language   TRL's trainers, and a plain loop for PPO
    control    Stable-Baselines3's PPO
    off_policy Stable-Baselines3's SAC, TD3 and DQN; what they learn: off_policy_learning.py
    start      commands until they answer, and until the first iteration
    learning   learning curves of GRPO, polyrl's and TRL's, from the same start

Peers live in environments of their own under build/, made from requirements-*.txt when first needed. Results go to
benchmarks/results/*.json; docs/speed.md and the README quote what stands there.
"""

from __future__ import annotations

import argparse
import importlib
import os

from language_work import CAPPED
from results import instructions

WHAT = ("language", "control", "off_policy", "start", "learning")
WITH_TWO_COLUMNS = ("language", "control", "off_policy")
"""What is measured again without AVX-512."""


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(WHAT)}  [all]")
    parser.add_argument("--only", nargs="+", default=[], help="names of cases")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of turns  [7]")
    parser.add_argument("--quick", action="store_true", help="few short rounds; nothing is written")
    parser.add_argument(
        "--instructions",
        choices=["all", "avx2", "both"],
        default="both",
        help="what the processor has, as if it had no AVX-512, or one after the other  [both]",
    )
    given = parser.parse_args()
    if wrong := [what for what in given.what if what not in WHAT]:
        parser.error(f"there is no benchmark {wrong[0]!r}; there are {', '.join(WHAT)}")
    for instruction_set in columns(given.instructions):
        if instruction_set == "avx2":
            os.environ.update(CAPPED)  # all sides inherit it
        for what in given.what or WHAT:
            if instruction_set == "avx2" and what not in WITH_TWO_COLUMNS:
                continue
            print(f"\n{what}, {instructions()}")
            importlib.import_module(what).main(given.only, 2 if given.quick else given.repeats, given.quick)


def columns(asked: str) -> list[str]:
    """What is measured: everything that the processor has, and again without AVX-512 where it has that."""
    if asked != "both":
        return [asked]
    return ["all", "avx2"] if instructions() == "AVX-512" else ["all"]


if __name__ == "__main__":
    main()
