"""The checker `math`: whether two expressions are the same mathematics, as math-verify sees it (the extra `math`).

Expressions that a model writes can keep a computer algebra system busy for ever (`9^{9^{9^9}}`), inside C code that
no exception interrupts. So they are compared in a process of its own, which is kept warm, has a limit of processor time
for each comparison and ends with its parent. Run as a program, this module is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import signal
import subprocess
import sys
import threading

from polyrl.errors import UserError
from polyrl.tasks.language.phrases import shortened

SECONDS = 10.0
"""Processor time of one comparison; it does not depend on what else the machine does."""
MEMORY = 4 << 30
"""Bytes of address space that the process may take."""

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def check_installed() -> None:
    """Raise `UserError` where math-verify is not there."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("The checker 'math' needs the extra 'math': pip install 'polyrl[math]'.")


def same_mathematics(completion: str, answer: str) -> bool:
    """Return whether the completion's last expression, or its boxed one, equals the answer: `\\frac12` is 0.5.

    Both may hold LaTeX or plain expressions. What takes longer than `SECONDS` of processor time to compare is wrong,
    with a warning. Raises `UserError` where math-verify is not there.
    """
    check_installed()
    with _lock:
        reply = _asked(json.dumps([answer, completion, SECONDS]))
    if reply is None:
        _log.warning("Comparing %s with the answer %s took too long: wrong.", shortened(completion), shortened(answer))
    return reply == "true"


def _asked(question: str) -> str | None:
    """Ask the process; None where it ended over the question."""
    global _process
    if _process is None or _process.poll() is not None:
        command = [sys.executable, "-m", __name__]
        pipe = subprocess.PIPE
        _process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert _process.stdin is not None and _process.stdout is not None
    reply = ""
    with contextlib.suppress(BrokenPipeError):
        _process.stdin.write(question + "\n")
        _process.stdin.flush()
        reply = _process.stdout.readline().strip()
    if not reply:
        _end()
    return reply or None


def _end() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


atexit.register(_end)


def _serve() -> None:
    """Answer questions, one JSON list a line, until nobody asks any more; the kernel ends what takes too long."""
    import resource

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        answer, completion, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            marked = answer if any(sign in answer for sign in ("$", "\\boxed", "\\(", "\\[")) else f"${answer}$"
            truths = parse(marked, parsing_timeout=None) or parse(answer, parsing_timeout=None)
            given = parse(completion, parsing_timeout=None)
            right = bool(verify(truths, given, timeout_seconds=None))
        except Exception:  # a computer algebra system fails in many ways on what is no mathematics
            right = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(right or completion.strip() == answer.strip()), flush=True)


if __name__ == "__main__":
    _serve()
