"""Reward functions: the built-in ones, the user's own, and the runner that survives them.

A reward function has TRL's signature: it is called as `f(prompts=[...], completions=[...], **columns)` and returns one
number per completion, or None where it does not apply. For a conversational prompt (a list of messages) the completion
is `[{"role": "assistant", "content": text}]`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import logging
import math
import numbers
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

from polyrl.errors import UserError, nearest
from polyrl.tasks.language.base import Reward, content

_log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# Built-in rewards
# ---------------------------------------------------------------------------------------------------------------------

TRUTH_COLUMNS = ("answer", "solution", "completion")
"""Columns that can hold the right answer; the first one that is there counts."""

# A minus is a sign unless something stands before it that it could be subtracted from.
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)])[-\u2212])? \$?
        (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)? | \d+(?:\.\d+)? | \.\d+)""",
    re.ASCII | re.VERBOSE,
)


def last_number(text: str) -> Decimal | None:
    """Return the last number of `text`, or None if there is none.

    Reads `1,234.50`, `$-5`, `-$5` and `18.`; after GSM8K's mark of the answer, `####`, only what follows counts.
    """
    found = list(_NUMBER.finditer(text.rpartition("####")[2]))
    if not found:
        return None
    value = Decimal(found[-1]["digits"].replace(",", ""))
    return -value if found[-1]["sign"] else value


def same_number(completion: str, answer: str) -> bool:
    """Return whether the last numbers of both texts are equal (`18`, `18.0` and `$18` are)."""
    truth, given = last_number(answer), last_number(completion)
    if truth is None:
        raise ValueError(f"the answer {_short(answer)} holds no number")
    return given is not None and given == truth


def same_text(completion: str, answer: str) -> bool:
    """Return whether both texts are equal but for the space around them."""
    return completion.strip() == answer.strip()


def contains_text(completion: str, answer: str) -> bool:
    """Return whether the answer stands somewhere in the completion."""
    return answer.strip() in completion


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "numeric": same_number,
    "exact": same_text,
    "contains": contains_text,
}
"""Ways to compare a completion with the right answer: `checker(completion, answer)`."""


def truth_column(columns: Sequence[str] | Mapping[str, Any]) -> str | None:
    """Return the name of the column that holds the right answer, or None."""
    return next((name for name in TRUTH_COLUMNS if name in columns), None)


def built_in(name: str, weight: float = 1.0) -> Reward:
    """Return the reward `numeric`, `exact` or `contains`: 1 where the completion agrees with the answer, else 0."""
    checker = CHECKERS[name]

    def function(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        where = truth_column(columns)
        if where is None:
            raise UserError(
                f"The reward '{name}' needs a column 'answer' (or 'solution') in the data; "
                f"it has {', '.join(sorted(columns)) or 'only the prompt'}."
            )
        return [
            None if truth is None else float(checker(content(completion), truth_text(truth)))
            for completion, truth in zip(completions, columns[where], strict=True)
        ]

    function.__name__ = name
    return Reward(name, function, weight)


def truth_text(truth: Any) -> str:
    """Return the right answer as text; it can come as a number, as text or as messages."""
    return content(truth) if isinstance(truth, list) else str(truth)


# ---------------------------------------------------------------------------------------------------------------------
# The user's own rewards
# ---------------------------------------------------------------------------------------------------------------------


def load_reward(spec: str) -> Reward:
    """Return the reward that `spec` names.

    `spec` is `numeric`, `exact` or `contains`, or `package.module:function`, or `path/to/file.py:function`; a weight
    can follow: `rewards.py:short=0.5`. The file is run as Python code. Raises `UserError` if the function cannot be
    imported, is not there, cannot be called or has another signature than TRL's.
    """
    name, weight = _split_weight(spec)
    if name in CHECKERS:
        return built_in(name, weight)
    place, colon, function_name = name.rpartition(":")
    if not colon or not place or not function_name:
        raise UserError(
            f"There is no reward '{name}'.{nearest(name, CHECKERS)} Give numeric, exact, contains, "
            "'package.module:function' or 'path/to/file.py:function'."
        )
    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    if not hasattr(module, function_name):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f"'{place}' has no function '{function_name}'.{nearest(function_name, names)} "
            f"It has {', '.join(sorted(names)) or 'no functions'}."
        )
    function = getattr(module, function_name)
    if not callable(function):
        raise UserError(f"The reward '{name}' is not a function but {_a(function)}.")
    check_signature(function_name, function)
    return Reward(function_name, function, weight)


def check_signature(name: str, function: Callable[..., Any], columns: Sequence[str] | None = None) -> None:
    """Raise `UserError` unless `function` can be called as `f(prompts=..., completions=..., **columns)`.

    With `columns`, the columns of the data, every parameter without a default must be one of them.
    """
    if inspect.iscoroutinefunction(function):
        raise UserError(f"The reward '{name}' is async; write it as a plain function.")
    parameters = _parameters(function)
    if parameters is None:
        return
    kinds = inspect.Parameter
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_position = [p.name for p in required if p.kind is kinds.POSITIONAL_ONLY]
    if by_position:
        raise UserError(
            f"The reward '{name}' takes {_names(by_position)} by position only; rewards are called by keyword: "
            "f(prompts=..., completions=..., **columns)."
        )
    takes = {p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        missing = [n for n in ("prompts", "completions") if n not in takes]
        if missing:
            raise UserError(
                f"The reward '{name}' does not accept {_names(missing)}; its signature must be "
                "f(prompts, completions, **columns)."
            )
    if columns is None:
        return
    unknown = [p.name for p in required if p.name not in ("prompts", "completions", *columns)]
    if unknown:
        raise UserError(
            f"The reward '{name}' needs {_names(unknown)}, which the data does not have; its columns are "
            f"{', '.join(sorted(columns)) or 'only the prompt'}."
        )


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not tell; let the call decide
        return None


def _split_weight(spec: str) -> tuple[str, float]:
    name, equals, text = spec.rpartition("=")
    if not equals:
        return spec, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"The weight of the reward '{name}' must be a number, not '{text}'.")
    return name, weight


def _import_module(name: str) -> ModuleType:
    with _import_path(Path.cwd()), _import_errors(f"module '{name}'"):
        return importlib.import_module(name)


def _import_file(path: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file '{path}' to load a reward from.")
    # The name is unique to the file: two files `rewards.py` in two folders are two modules.
    unique = hashlib.blake2b(str(file.resolve()).encode(), digest_size=4).hexdigest()
    name = f"polyrl_reward_{file.stem}_{unique}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise UserError(f"The file '{path}' cannot be loaded as Python code.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        with _import_path(file.resolve().parent), _import_errors(f"file '{path}'"):
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Let code import its neighbours, as `python file.py` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _import_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(f"The {what} cannot be imported: {_reason(error)}.") from error


# ---------------------------------------------------------------------------------------------------------------------
# Running rewards
# ---------------------------------------------------------------------------------------------------------------------


class RewardError(UserError):
    """A reward function failed on a sample, and the policy is to stop."""


@dataclass(frozen=True)
class RewardFailure:
    """One sample that could not be scored."""

    row: int
    """Number of the sample in the batch, from 0."""
    reward: str
    """Name of the reward; empty if no reward applied."""
    reason: str
    """What went wrong, in a phrase."""


@dataclass
class Scores:
    """What a batch of completions was worth."""

    total: list[float]
    """Weighted sum over the rewards that apply; NaN marks a dropped sample."""
    parts: dict[str, list[float]]
    """Each reward before its weight; NaN where it does not apply or failed."""
    calls: int
    """Samples scored: what a budget of reward calls is charged."""
    failures: list[RewardFailure] = field(default_factory=list)
    """Samples that a reward failed on."""


class _Over(BaseException):
    """Time is up. Not an `Exception`, so that a reward's own `except Exception` does not swallow it."""


class _Bad(Exception):
    """A reward raised, ran out of time or returned something else than one number per completion."""

    def __init__(self, reason: str, timed_out: bool = False, shape: bool = False):
        super().__init__(reason)
        self.timed_out = timed_out
        self.shape = shape


_MOST_TIMEOUTS = 3


class RewardRunner:
    """Calls reward functions on batches and finds the samples that they fail on.

    A function that raises or hangs on a batch is called again on one sample at a time. After three samples that run
    out of time the rest of the batch is given up, so that a dead service costs four time limits and not one a sample.

    on_error: "stop" raises `RewardError` at the first failing sample, "drop" gives it a total of NaN, which the loop
        leaves out, and "zero" gives it a total of 0.
    timeout: seconds that one call may take, on a batch or on one sample; None waits for ever. In the main thread
        a call is interrupted; in another thread it is abandoned and may go on in the background.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        on_error: Literal["stop", "drop", "zero"] = "stop",
        timeout: float | None = 60.0,
    ):
        """Check the rewards; raise `UserError` for one that cannot be called as a reward is."""
        if not rewards:
            raise UserError("There is no reward: name at least one, like numeric or rewards.py:function.")
        if on_error not in ("stop", "drop", "zero"):
            raise UserError(f"What to do on a reward's error must be stop, drop or zero, not '{on_error}'.")
        if timeout is not None and not timeout > 0:
            raise UserError(f"The time limit of rewards must be more than 0 seconds, not {timeout}.")
        names = [reward.name for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"There are two rewards named {_names(twice)}; each needs its own name.")
        for reward in rewards:
            check_signature(reward.name, reward.function)
        self.rewards = list(rewards)
        self.on_error = on_error
        self.timeout = timeout
        self._checked: frozenset[str] | None = None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: Sequence[Any]) -> Scores:
        """Score `completions`, plain texts, one for each of `prompts`; `columns` are the data's other columns.

        Raises `RewardError` when a sample fails and `on_error` is "stop", and `UserError` when a reward needs a column
        that is not there.
        """
        size = len(completions)
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != size:
                raise ValueError(f"'{name}' has {len(values)} values for {size} completions")
        if self._checked != frozenset(columns):
            for reward in self.rewards:
                check_signature(reward.name, reward.function, list(columns))
            self._checked = frozenset(columns)
        given = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        failures: list[RewardFailure] = []
        scored: dict[str, list[float | None]] = {}
        for reward in self.rewards:
            scored[reward.name], failed = self._run(reward, list(prompts), given, columns)
            failures += failed
        broken = {failure.row for failure in failures}
        for row in range(size):
            if row not in broken and all(part[row] is None for part in scored.values()):
                failures.append(RewardFailure(row, "", "no reward applied"))
                self._stop_at(failures[-1], prompts)
        failures.sort(key=lambda failure: failure.row)
        total = [
            math.fsum(r.weight * part for r in self.rewards if (part := scored[r.name][row]) is not None)
            for row in range(size)
        ]
        for failure in failures:
            total[failure.row] = math.nan if self.on_error == "drop" else 0.0
        parts = {name: [math.nan if v is None else v for v in part] for name, part in scored.items()}
        return Scores(total, parts, size, failures)

    def _run(
        self, reward: Reward, prompts: list[Any], completions: list[Any], columns: Mapping[str, Sequence[Any]]
    ) -> tuple[list[float | None], list[RewardFailure]]:
        """Return the reward of each sample, None where it failed, and the failures."""
        size = len(completions)

        def call(rows: slice) -> list[float | str | None]:
            some = {name: list(values[rows]) for name, values in columns.items()}
            # Fresh lists: a function that changes its arguments must not change what the next one sees.
            return self._call(reward, list(prompts[rows]), list(completions[rows]), some)

        if size == 0:
            return [], []
        try:
            answers = call(slice(0, size))
        except _Bad as bad:
            answers = self._one_by_one(reward, bad, call, prompts)
        values: list[float | None] = []
        failures: list[RewardFailure] = []
        for row, answer in enumerate(answers):
            if isinstance(answer, str):
                failures.append(RewardFailure(row, reward.name, answer))
                self._stop_at(failures[-1], prompts)
            values.append(None if isinstance(answer, str) else answer)
        return values, failures

    def _one_by_one(
        self, reward: Reward, bad: _Bad, call: Callable[[slice], list[float | str | None]], prompts: list[Any]
    ) -> list[float | str | None]:
        """Call again on each sample alone; a failed sample's answer is the reason, as text."""
        answers: list[float | str | None] = []
        timeouts = 0
        for row in range(len(prompts)):
            if timeouts >= _MOST_TIMEOUTS:
                answers.append(f"not tried, since {timeouts} samples before it ran out of time")
                continue
            try:
                answers += call(slice(row, row + 1))
            except _Bad as alone:
                answers.append(str(alone))
                timeouts += alone.timed_out
                self._stop_at(RewardFailure(row, reward.name, str(alone)), prompts)
        if not any(isinstance(answer, str) for answer in answers):
            if bad.shape:  # right for each one alone and wrong for all together: the function ignores its batch
                return [str(bad)] * len(answers)
            _log.warning("The reward '%s' %s on a batch, and not on its samples alone.", reward.name, bad)
        return answers

    def _stop_at(self, failure: RewardFailure, prompts: Sequence[Any]) -> None:
        if self.on_error == "stop":
            who = f"The reward '{failure.reward}'" if failure.reward else "Scoring"
            prompt = prompts[failure.row]
            text = _short(prompt if isinstance(prompt, str) else content(prompt[-1:]))
            place = f"row {failure.row + 1} of {len(prompts)} in the batch"
            raise RewardError(f"{who} failed on {place} (prompt {text}): {failure.reason}.")

    def _call(
        self, reward: Reward, prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]
    ) -> list[float | str | None]:
        """Return one number, None or reason of failure per completion; raise `_Bad` if the call fails as a whole."""
        size = len(completions)  # counted first: the function may empty its list
        parameters = _parameters(reward.function)
        if parameters is not None and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            takes = {p.name for p in parameters}
            columns = {name: values for name, values in columns.items() if name in takes}
        try:
            result = _limited(
                lambda: reward.function(prompts=prompts, completions=completions, **columns), self.timeout
            )
        except UserError:
            raise
        except _Over:
            raise _Bad(f"took longer than {self.timeout:g} seconds", timed_out=True) from None
        except (Exception, SystemExit) as error:
            raise _Bad(f"raised {_reason(error)}") from error
        if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Collection):
            raise _Bad(f"returned {_a(result)} where a list of numbers belongs, one for each completion", shape=True)
        answers = list(result)
        if len(answers) != size:
            counts = f"{_count(len(answers), 'value')} for {_count(size, 'completion')}"
            raise _Bad(f"returned {counts} where one for each belongs", shape=True)
        return [_number(answer) for answer in answers]


def _number(answer: Any) -> float | str | None:
    """Return the answer as a finite number or None; a text says what is wrong with it."""
    if answer is None:
        return None
    if not isinstance(answer, numbers.Real) and hasattr(answer, "item"):
        with contextlib.suppress(Exception):  # scalars of NumPy and torch
            answer = answer.item()
    if not isinstance(answer, numbers.Real):
        return f"returned {_a(answer)} where a number or None belongs"
    try:
        value = float(answer)
    except OverflowError:
        value = math.inf
    return value if math.isfinite(value) else f"returned {value}"


def _limited(function: Callable[[], Any], seconds: float | None) -> Any:
    """Return `function()`, or raise `_Over` when it takes longer than `seconds`."""
    if seconds is None:
        return function()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _limited_by_alarm(function, seconds)
    return _limited_by_thread(function, seconds)


def _limited_by_alarm(function: Callable[[], Any], seconds: float) -> Any:
    armed = True

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if armed:
            raise _Over

    old_handler = signal.signal(signal.SIGALRM, on_alarm)
    started = time.monotonic()
    # The alarm rings again every second: a bare `except:` in the reward swallows one, and not the next.
    old_delay, old_interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            return function()
        finally:
            armed = False
    finally:  # apart from the line above, which an alarm can interrupt
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if old_handler is None else old_handler)
        if old_delay:  # somebody else's alarm was running: let it ring when it would have
            left = max(old_delay - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, old_interval)


def _limited_by_thread(function: Callable[[], Any], seconds: float) -> Any:
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="polyrl-reward")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _Over
    return results[0]


# ---------------------------------------------------------------------------------------------------------------------
# Words for error messages
# ---------------------------------------------------------------------------------------------------------------------


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def _reason(error: BaseException) -> str:
    message = " ".join(str(error).split())
    message = message if len(message) <= 200 else message[:197] + "..."
    return f"{type(error).__name__}: {message.rstrip('.')}" if message else type(error).__name__


def _names(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _a(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
