"""What a language task is: prompts, worked completions, an exact checker and rewards.

A task is a stream of rows without state: row `i` of a seed is a pure function of (split, seed, i), so a resumed run
asks for the next rows and gets them. `GeneratedTask` does this for tasks that make their own problems, and keeps train
and test apart by a hash of the problem itself.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from polyrl.errors import UserError
from polyrl.runtime.chart import Chart
from polyrl.runtime.metric import Metric
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.chat import Chat
from polyrl.tasks.language.columns import check_reported_names
from polyrl.tasks.language.left_out import LeftOut
from polyrl.tasks.language.wanted import PreferenceSource, RewardModelsWanted, Wanted

Row = dict[str, Any]
"""`prompt` is a string or a list of `{"role", "content"}` messages; the other columns go to the reward functions."""

Split = Literal["train", "test"]


class Tool(Protocol):
    """Something that the policy calls by writing text, and that answers with text.

    When the text of a response ends with `stop`, the sampler calls `reply(response)` and inserts the returned text as
    tokens that are part of the sequence and masked from the loss.
    """

    stop: str

    def reply(self, response: str) -> str | None:
        """Return the text to insert after `response`, or None when there is no call here. Must not raise."""
        ...


@runtime_checkable
class Ending(Protocol):
    """A tool that may end a response."""

    @property
    def ended(self) -> bool:
        """Whether the last call ended the response: then its reply is not inserted, and nothing follows."""
        ...


@runtime_checkable
class Session(Tool, Ending, Protocol):
    """A tool that one response has to itself, with a state that its calls change.

    `LanguageTask.session` makes one for every response. Equal calls to equal sessions get equal replies, so a session
    can be brought to where a response left it by meeting the response's calls again (`replayed`).
    """

    def report(self) -> dict[str, Any]:
        """Return what rewards and checkers may see of the session: columns of the experience, always the same ones.

        Not `prompt` or `completion`, nor a name that the task's rows have.
        """
        ...


def has_ended(tool: Tool) -> bool:
    """Whether the tool's last call ended the response; one that keeps no session never does."""
    return isinstance(tool, Ending) and tool.ended


class Counted:
    """A session of a tool that keeps no state: it counts the calls, failed ones too, and reports them as `calls`."""

    ended = False

    def __init__(self, tool: Tool):
        self.tool, self.stop, self.calls = tool, tool.stop, 0

    def reply(self, response: str) -> str | None:
        """Return what the tool replies."""
        try:
            reply = self.tool.reply(response)
        except Exception:
            self.calls += 1
            raise
        self.calls += reply is not None
        return reply

    def report(self) -> dict[str, Any]:
        """Return the number of calls."""
        return {"calls": self.calls}


def tool_spans(tool: Tool, text: str) -> list[tuple[int, int]]:
    """Return where in `text` the tool has written, as (start, end) in characters, one for each call.

    Supervised training on a worked completion leaves these characters out of its loss, as the sampler does. A session
    meets every call on the way, up to the one that ends it.
    """
    spans: list[tuple[int, int]] = []
    end = text.find(tool.stop)
    while end >= 0:
        end += len(tool.stop)
        reply = tool.reply(text[:end])
        if has_ended(tool):
            break
        if reply is not None and text.startswith(reply, end):
            spans.append((end, end + len(reply)))
            end += len(reply)
        end = text.find(tool.stop, end)
    return spans


@dataclass(frozen=True)
class Reward:
    """A reward function with a name and a weight.

    `function(prompts=[...], completions=[...], **columns)` returns one number per completion, or None where the reward
    does not apply (TRL's signature).
    """

    name: str
    function: Callable[..., list[float | None]]
    weight: float = 1.0
    folder: str = ""
    """Of the reward model, where one gives the scores."""
    checker: str = ""
    """Name of the checker, where it is one of polyrl's own that compares with the data's answer."""


@dataclass(frozen=True)
class Preference:
    """A preference function with a name.

    `function(prompts=[...], completions_a=[...], completions_b=[...], **columns)` returns for each prompt the
    probability, from 0 to 1, that the first completion beats the second.
    """

    name: str
    function: Callable[..., list[float]]


class LanguageTask(ABC):
    """Prompts to answer, and how an answer is judged."""

    name: str
    """Name in the catalogue."""
    difficulty: int
    """How hard the problems are; what it counts is said by each task. 0 where it means nothing."""
    max_tokens: int
    """Limit of a completion in tokens, the end token included."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion besides the end token."""
    step_end: str = ";"
    """Text that ends a step of a completion, for methods that judge step by step."""
    step_tokens: int = 0
    """Tokens of a step where no text ends one; 0: `step_end` does."""
    thinking_tags: tuple[str, str] = ("<think>", "</think>")
    """Texts that open and close a thought, for methods that read it."""
    tool: Tool | None = None
    """Tool that completions may call."""
    rewards: list[Reward]
    """What completions are rewarded for."""
    access: frozenset[str] = frozenset({"episodes", "reset-to-state"})
    """What it grants (`polyrl.core.access`): a state is a text, so going on from one costs nothing but reading."""
    metric: Metric = Metric(label="test accuracy")
    """What comparisons are decided by."""
    budget: str = "samples=3000"
    """What ends a run when nothing else is said."""
    charts: tuple[Chart, ...] = ()
    """What a comparison's page draws beside the curves over time."""
    preference: Preference | None = None
    """Which of two completions is better, where the task can say so."""
    token_gold: Callable[[Row, Sequence[str]], list[float]] | None = None
    """What each token of a completion (their texts) adds to the gold, where the task knows."""
    calls: CallPolicy | None = None
    """How rewards and preference are called where they are the user's own; none takes the usual time limit."""
    fixed_pairs: Mapping[Split, list[Row]] = MappingProxyType({})
    """Preference pairs by split: rows with the columns prompt, chosen and rejected; empty if there are none."""
    labelled: Mapping[Split, list[Row]] = MappingProxyType({})
    """Labelled responses by split: rows with the columns prompt, completion and label; empty if there are none."""
    completions: Mapping[Split, list[Row]] = MappingProxyType({})
    """Rows whose responses are imitated by split, where a method wants some (`polyrl.pretrain.demonstrations`)."""
    pairs_by_preference: bool = False
    """Whether its fixed pairs are made of answers that `preference` labels."""
    evaluation_prompts: int = 200
    """Test prompts of an evaluation when nothing else is said."""
    evaluation_greedy: bool = True
    """Whether an evaluation decodes greedily when nothing else is said; otherwise it samples at temperature 1."""
    start_size: Mapping[str, int] = MappingProxyType({})
    """Size of the tiny model, where the task needs another than the usual one (`polyrl.pretrain.tiny.tiny_config`)."""
    start_accuracy: float | None = 0.4
    """Accuracy at which supervised pretraining of a tiny model stops, so that there is room to learn."""
    left_out: LeftOut = LeftOut()
    """Rows of the user's data that are not used."""
    chat: Chat | None = None
    """How plain prompts are asked of a model that has a chat template; None: as they are."""
    notices: Sequence[str] = ()
    """What else is to be said of the data before a run begins, a sentence each."""

    @abstractmethod
    def rows(self, split: Split, seed: int, start: int, count: int) -> list[Row]:
        """Return rows `start` to `start + count - 1` of the endless stream of `seed`: a pure function of these."""

    @abstractmethod
    def worked(self, row: Row) -> str:
        """Return a right completion with its trace, without the end token, to pretrain on."""

    def demonstrated(self, row: Row) -> str:
        """Return what the starting model imitates: the worked completion, unless a task teaches badly on purpose."""
        return self.worked(row)

    @abstractmethod
    def correct(self, row: Row, completion: str) -> bool:
        """Return whether the completion is right. This defines accuracy."""

    def judged(self, row: Row, completion: str, earned: Mapping[str, float]) -> bool:
        """Return whether the completion is right, where its rewards (by name, NaN: none) are known already."""
        return self.correct(row, completion)

    @abstractmethod
    def expected(self, row: Row) -> str | None:
        """Return the answer for people to read, or None where there is none."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short hash that changes when the rows or the worked completions would."""

    def session(self, row: Row) -> Tool | None:
        """Return the tool of one response to `row`, called once for each: a `Session` shares nothing that changes."""
        return self.tool

    @property
    def wanted(self) -> Wanted | None:
        """What rewards or pairs still need that only a model can make, kept in the cache (`Wanted`); None: nothing."""
        return None

    @property
    def needs_model(self) -> bool:
        """Whether something is still to be made by a model."""
        return self.wanted is not None

    def scoring_folder(self, model: str) -> str:
        """Return the folder of the reward model that scores answers, the first of several.

        Raises:
            UserError: no reward model scores them.
        """
        folder = next((reward.folder for reward in self.rewards if reward.folder), "")
        if not folder:
            raise UserError(
                f"--critic-start reward-model needs a reward model that scores the task '{self.name}': give its folder "
                "with --reward, or leave --critic-start policy."
            )
        return folder

    def ensemble(self, members: int) -> list[Reward]:
        """Return rewards that are to be judged together as an ensemble; those that a task makes itself are `members`.

        Raises:
            UserError: the task has not several rewards.
        """
        if len(self.rewards) < 2:
            raise UserError(
                f"An ensemble needs several reward models, and the task '{self.name}' has {len(self.rewards)}: give "
                "--reward more than once, or take the task learned-reverse."
            )
        return self.rewards

    def ensemble_wanted(self, members: int) -> RewardModelsWanted | None:
        """What `ensemble` needs and only a model can make; None: nothing. Raises `UserError` without an ensemble."""
        self.ensemble(members)
        return None

    def preference_source(self) -> PreferenceSource:
        """Return where labelled pairs come from for what learns from them beside the policy.

        Raises:
            UserError: the task has none.
        """
        rows = self.fixed_pairs.get("train")
        if not rows:
            raise UserError(
                f"The task '{self.name}' has no preference pairs to train a DPO policy on: give --dpo-model with the "
                "folder of one, or take the task learned-sort."
            )
        return PreferenceSource(digest(rows), lambda _: rows)

    def size(self, split: Split) -> int | None:
        """Number of distinct rows of a split, or None where the task makes them without end."""
        return None

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return numbers to log beside the reward, never to train on; every completion has the same ones."""
        return {}

    def summary(self, rows: Sequence[Row], completions: Sequence[str]) -> dict[str, float]:
        """Return numbers of an evaluation as a whole that are no means over completions, such as a precision."""
        return {}

    def draw_anew(self, seed: int) -> None:  # noqa: B027  # most tasks make their start and nothing else
        """Let labels and models that are made for rewards and fixed pairs be a seed's own, as its start is."""

    def drawn_from(self) -> list[int]:
        """Return the seeds that those are made with."""
        return []

    def starting(self) -> LanguageTask:
        """Return the task whose demonstrations the starting model imitates: this one, unless settings share one."""
        return self


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of `text` that is the same in every process, on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def content(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a completion, plain or conversational."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def table_rows(prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Turn the arguments of a reward function back into rows."""
    return [{**{k: v[i] for k, v in columns.items()}, "prompt": prompt} for i, prompt in enumerate(prompts)]


def sessions(task: LanguageTask, rows: Sequence[Row], each: int = 1) -> list[Tool | None] | None:
    """Return a new session for each of `each` responses to each row, row by row; None where the task has no tool."""
    made = [task.session(row) for row in rows for _ in range(each)]
    return None if all(session is None for session in made) else made


def reports(made: Sequence[Tool | None] | None) -> dict[str, list[Any]]:
    """Return what sessions report, as columns; nothing where the tools are no sessions."""
    found = [session.report() for session in made or () if isinstance(session, Session)]
    if not found or len(found) < len(made or ()):
        return {}
    check_reported_names(found[0])
    return {name: [report[name] for report in found] for name in found[0]}


def replayed(task: LanguageTask, row: Row, completion: str) -> Tool | None:
    """Return a new session that has met the calls of `completion`; a tool that is no session, as it is."""
    session = task.session(row)
    if isinstance(session, Session):
        tool_spans(session, completion)
    return session


@dataclass
class GeneratedTask(LanguageTask):
    """A task that makes its own problems, in a given range of difficulty.

    A subclass writes `problem`, `canonical`, `longest`, `worked`, `correct` and `expected`. About one problem in five
    is a test problem. The split looks at the canonical problem and at nothing else, so no seed, no difficulty and no
    other way to write a problem can carry it from test to train.
    """

    difficulty: int
    start_accuracy: float | None = 0.4
    """Accuracy at which supervised pretraining of a tiny model stops; None trains to the end."""

    family: ClassVar[str]
    """Tasks of one family that make the same problems share their split."""
    difficulties: ClassVar[range]
    """Difficulties that the task can make."""

    def __post_init__(self) -> None:
        """Check the settings; raise `UserError` for a difficulty out of range."""
        allowed = self.difficulties
        if isinstance(self.difficulty, bool) or not isinstance(self.difficulty, int) or self.difficulty not in allowed:
            raise UserError(
                f"The difficulty of the task '{self.name}' must be a whole number from {allowed.start} to "
                f"{allowed.stop - 1}, not {self.difficulty!r}."
            )
        accuracy = self.start_accuracy
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise UserError(f"The start_accuracy of the task '{self.name}' must be from 0 to 1, not {accuracy!r}.")
        # One token a character, the end token, and a little room so that a clumsy trace is not cut off.
        self.max_tokens = self.longest() + 5
        self.rewards = [Reward("correct", self.correct_reward)]

    @abstractmethod
    def problem(self, rng: random.Random) -> Row:
        """Draw a problem of either split."""

    @abstractmethod
    def canonical(self, row: Row) -> str:
        """Return the text that is equal for two rows exactly when they pose the same problem."""

    @abstractmethod
    def longest(self) -> int:
        """Return the length of the longest worked completion, in characters."""

    def split_of(self, row: Row) -> Split:
        """Return the split that the row's problem belongs to."""
        return "test" if stable_hash(f"{self.family}:{self.canonical(row)}") % 5 == 0 else "train"

    def rows(self, split: Split, seed: int, start: int, count: int) -> list[Row]:
        """Return rows `start` to `start + count - 1` of the stream of (split, seed)."""
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', not {split!r}")
        return [self._row(split, seed, i) for i in range(start, start + count)]

    def _row(self, split: Split, seed: int, i: int) -> Row:
        for attempt in range(1000):
            row = self.problem(random.Random(f"{self.name}-{split}-{seed}-{i}-{attempt}"))
            if self.split_of(row) == split:
                return row
        raise RuntimeError(f"the task '{self.name}' at difficulty {self.difficulty} has no {split} problems")

    def correct_reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return 1 for each right completion and 0 for the others."""
        rows = table_rows(prompts, columns)
        return [float(self.correct(row, content(c))) for row, c in zip(rows, completions, strict=True)]

    def fingerprint(self) -> str:
        """Return a hash of the name, the settings and some rows with their worked completions."""
        return digest([self.name, self.start_settings(), self.max_tokens, self._some_problems()])

    def problems(self) -> str:
        """Return a hash of some rows with their demonstrations and of how far the start is taught: what runs face."""
        return digest([self.start_accuracy, self.max_tokens, self._some_problems()])

    def _some_problems(self) -> list[tuple[Row, str]]:
        rows = self.rows("train", 0, 0, 8) + self.rows("test", 0, 0, 8)
        return [(row, self.demonstrated(row)) for row in rows]

    def start_settings(self) -> dict[str, Any]:
        """Return the settings that a starting model depends on: all of them, unless a task knows better."""
        return asdict(self)
