"""The peers' own environments, in build/: pinned, made when first needed, apart from polyrl's."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build"
REQUIREMENTS = {peer: HERE / f"requirements-{peer}.txt" for peer in ("trl", "sb3", "rl4co")}

SHARED = {"rl4co": ("torch", "numpy")}
"""What has polyrl's versions where not everything can: hydra asks for another antlr4 than math-verify."""


def constraints_of(peer: str, home: Path) -> Path:
    """The file of versions that the peer's packages take."""
    every = ROOT / "constraints.txt"
    if peer not in SHARED:
        return every
    lines = every.read_text(encoding="utf-8").splitlines()
    own = home / "constraints.txt"
    own.write_text("".join(f"{x}\n" for x in lines if x.partition("==")[0] in SHARED[peer]), encoding="utf-8")
    return own


def peer_python(peer: str) -> str:
    """The Python that has the peer "trl", "sb3" or "rl4co"; makes its environment from requirements-<peer>.txt."""
    home = BUILD / peer
    python, done = home / "bin" / "python", home / ".installed"
    wanted = REQUIREMENTS[peer].read_text(encoding="utf-8")
    if not done.is_file() or (done.read_text(encoding="utf-8") or wanted) != wanted:
        print(f"making the environment of {peer} in build/{peer} ...", flush=True)
        if not python.exists():
            venv.create(home, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # what both sides use, such as torch and gymnasium, has polyrl's own versions
        constraints = ["--constraint", str(constraints_of(peer, home))]
        subprocess.run([*pip, *constraints, "-r", str(REQUIREMENTS[peer])], check=True)
        done.write_text(wanted, encoding="utf-8")
    return str(python)
