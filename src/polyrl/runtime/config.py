"""Everything needed to run a run again, as one flat record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from polyrl.errors import UserError, nearest
from polyrl.runtime.files import shown

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.tasks.language import Preference, Reward, Row


@dataclass
class PythonObjects:
    """What only Python can give: objects that no config file can hold."""

    recipe: Recipe | None = None
    dataset: Sequence[Row] | None = None
    test_dataset: Sequence[Row] | None = None
    rewards: Sequence[Reward] = ()
    preference: Preference | None = None
    environment: Callable[[], Any] | None = None

    def names(self) -> tuple[str, ...]:
        """Which of them are there, by the argument that gives them."""
        found = {
            "method": self.recipe is not None,
            "dataset": self.dataset is not None,
            "test_dataset": self.test_dataset is not None,
            "reward": bool(self.rewards),
            "preference": self.preference is not None,
            "task": self.environment is not None,
        }
        return tuple(name for name, there in found.items() if there)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value that was read from a file is of an annotated type; lists are read where tuples were written."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if kind in (int, float):
        return isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)


@dataclass(frozen=True)
class RunConfig:
    """What a person asked for. Every field is a command-line option of the same name."""

    method: str
    """Method, composition or method file."""
    label: str = ""
    """Name of this arm in a comparison; the method's own if empty."""
    task: str = ""
    """Built-in task, Gymnasium environment, or "dataset" where `dataset` is prompts; the method's own if empty."""
    difficulty: int | None = None
    """Difficulty of the built-in task; none takes the task's default."""
    dataset: str | None = None
    """Training rows: a jsonl, json, csv or parquet file, or a hub id. Of control recorded transitions: the folder of a
    Minari data set, or an npz or safetensors file."""
    test_dataset: str | None = None
    """Test rows; none holds out a share of `dataset`."""
    checker: str | None = None
    """How answers of `dataset` are compared with completions: auto, numeric, exact, contains or math; none takes what
    fits each answer."""
    prompt_column: str | None = None
    """Column of `dataset` that holds the prompt; none is `prompt`."""
    answer_column: str | None = None
    """Column of `dataset` that holds the right answer; none is `answer`, `solution` or `completion`."""
    system_prompt: str | None = None
    """First message of every prompt of `dataset` that has no system message of its own."""
    chat_template: bool = True
    """Plain prompts of `dataset` are messages of the user, where the model has a chat template."""
    max_prompt_tokens: int | None = None
    """Rows of `dataset` with longer prompts are left out, and counted; none leaves none out."""
    skip_bad_rows: bool = False
    """Leave out, and count, rows of `dataset` that cannot be used; otherwise the first one is an error."""
    rewards: tuple[str, ...] = ()
    """Reward functions, `module:function` or `file.py:function`, or reward models' folders; `=weight` behind each."""
    preference: str | None = None
    """Preference function that compares two responses, `module:function` or `file.py:function`."""
    model: str | None = None
    """Model folder or hub id; none makes the tiny model of the task."""
    start: Literal["shared", "own"] | None = None
    """Whether a built-in task's starting model, its reward model and fixed pairs are the same for all seeds, or the
    seed's own; none is shared in a run, and own in a comparison."""
    lora: int | None = None
    """Rank of LoRA adapters; none trains all weights."""
    seed: int = 0
    budget: str = ""
    """What ends the run; the task's own if empty."""
    hyperparameters: dict[str, str] = field(default_factory=dict)
    """Settings of the recipe's parts, as typed."""
    max_tokens: int | None = None
    """Longest response in training and evaluation; none takes the task's."""
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] | None = None
    """Of forward passes; none takes float32, and bfloat16 on a CUDA device that multiplies it."""
    force: bool = False
    """Run in bfloat16 though a measurement at the start says that the processor is slow at it."""
    threads: int = 1
    micro_batch_tokens: int | None = None
    """Padded tokens of a forward pass; none takes 1,024, measured best on a CPU, and 32,768 on a CUDA device."""
    engine: str | None = None
    """Addresses of generation servers (`polyrl serve`) that sample the responses, commas between them; none: the run
    samples itself."""
    eval_prompts: int | None = None
    """Test prompts of an evaluation; none takes the task's."""
    eval_greedy: bool = True
    eval_episodes: int | None = None
    """Episodes or scenarios of an evaluation, outside language; none takes the task's."""
    evaluations: int = 10
    """How many evaluations are spread over the budget, besides the one before training."""
    checkpoint_every: int = 25
    """Iterations between checkpoints."""
    keep_checkpoints: int = 2
    monitor_kl_every: int = 5
    """Iterations between KL measurements for methods that need none; 0 never loads the reference for it."""
    on_reward_error: Literal["stop", "drop", "zero"] = "stop"
    reward_timeout: float = 60.0
    """Seconds that one call of a reward or preference function may take."""
    reward_process: Literal["auto", "own", "same"] = "auto"
    """Where your reward and preference functions run: in a process of their own that can be ended, or in the run's."""
    tensorboard: bool = True
    from_python: tuple[str, ...] = ()
    """What only Python could give and no config can hold: "method", "dataset", "reward", "preference", "task"."""

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        for name in (
            "threads",
            "evaluations",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not self.reward_timeout > 0:
            raise UserError(f"reward_timeout must be above 0 seconds, not {self.reward_timeout:g}.")
        asked = {
            "checker": self.checker,
            "prompt-column": self.prompt_column,
            "answer-column": self.answer_column,
            "system-prompt": self.system_prompt,
            "no-chat-template": not self.chat_template,
            "max-prompt-tokens": self.max_prompt_tokens,
            "skip-bad-rows": self.skip_bad_rows,
        }
        for option, value in asked.items():
            if value and not (self.dataset or "dataset" in self.from_python):
                raise UserError(f"--{option} is for data of your own; give --dataset too.")
        for name in ("lora", "max_tokens", "max_prompt_tokens", "eval_prompts", "eval_episodes", "micro_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")

    @property
    def arm(self) -> str:
        """The label, or the method; of a method file its name."""
        return self.label or (Path(self.method).stem if self.method.endswith(".py") else self.method)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        values = dataclasses.asdict(self)
        values["rewards"] = list(self.rewards)
        values["from_python"] = list(self.from_python)
        return values

    @classmethod
    def stated(cls, values: Mapping[str, Any], source: object) -> RunConfig:
        """The config of values by field; `source` is where they were said.

        Raises:
            UserError: a key is unknown or missing, or a value is of another type.
        """
        known = get_type_hints(cls)
        for key, value in values.items():
            if key not in known:
                raise UserError(f"{source} has an unknown key '{shown(key)}'.{nearest(str(key), known)}")
            if not _fits(value, known[key]):
                raise UserError(f"{source} says {key}: {shown(value, 80)}, which is of another type than it takes.")
        if "method" not in values:
            raise UserError(f"{source} does not name a method.")
        tuples = {name: tuple(values.get(name, ())) for name in ("rewards", "from_python")}
        return cls(**{**values, **tuples})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = "The run's config") -> RunConfig:
        """Read back `as_dict`; `source` is the file that the values come from.

        Raises:
            UserError: a key is unknown or missing, or a value is of another type.
        """
        if "chat_template" not in values and "monitor_kl_every" in values:
            values = {**values, "chat_template": False}  # a run of before it could be, which goes on as it began
        typed = values.get("hyperparameters")
        if isinstance(typed, dict):  # numbers that somebody wrote there by hand
            plain = {k: str(v) if isinstance(v, int | float) else v for k, v in typed.items()}
            values = {**values, "hyperparameters": plain}
        return cls.stated(values, source)


GIVEN = ("method", "dataset", "test_dataset", "reward", "preference", "task")
"""What Python can give and a folder cannot hold."""


def check_given(
    config: RunConfig,
    given: PythonObjects | None,
    run: Path,
    way: str = "resume",
    *,
    needs: Sequence[str] = GIVEN,
) -> None:
    """Refuse to go on with a run that needs Python objects which are not here.

    Raises:
        UserError: the run was started from Python with objects that its folder cannot hold.
    """
    missing = [n for n in config.from_python if n in needs and n not in (given or PythonObjects()).names()]
    if missing:
        raise UserError(
            f"The run {run} was started from Python with its own {' and '.join(missing)}, which a folder cannot hold; "
            f"go on in Python and give {'it' if len(missing) == 1 else 'them'} again, as "
            f"polyrl.{way}({'run' if way == 'resume' else 'methods'}, {', '.join(f'{name}=...' for name in missing)})."
        )
