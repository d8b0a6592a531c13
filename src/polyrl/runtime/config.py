"""Everything needed to run a run again, as one flat record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polyrl.errors import UserError, nearest


@dataclass(frozen=True)
class RunConfig:
    """What a person asked for. Every field is a command-line option of the same name."""

    method: str
    """Method, composition or method file."""
    label: str = ""
    """Name of this arm in a comparison; the method's own if empty."""
    task: str = "addition"
    """Built-in task; "dataset" where `dataset` is given."""
    difficulty: int | None = None
    """Difficulty of the built-in task; none takes the task's default."""
    dataset: str | None = None
    """Training rows: a jsonl, json, csv or parquet file, or a hub id."""
    test_dataset: str | None = None
    """Test rows; none holds out a share of `dataset`."""
    rewards: tuple[str, ...] = ()
    """Reward functions, `module:function` or `file.py:function`, each with an optional `=weight`."""
    model: str | None = None
    """Model folder or hub id; none makes the tiny model of the task."""
    lora: int | None = None
    """Rank of LoRA adapters; none trains all weights."""
    seed: int = 0
    budget: str = "samples=10000"
    hyperparameters: dict[str, str] = field(default_factory=dict)
    """Settings of the recipe's parts, as typed."""
    max_tokens: int | None = None
    """Longest response in training and evaluation; none takes the task's."""
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    micro_batch_tokens: int = 2048
    eval_prompts: int = 200
    eval_greedy: bool = True
    evaluations: int = 10
    """How many evaluations are spread over the budget, besides the one before training."""
    checkpoint_every: int = 25
    """Iterations between checkpoints."""
    keep_checkpoints: int = 2
    monitor_kl_every: int = 5
    """Iterations between KL measurements for methods that need none; 0 never loads the reference for it."""
    on_reward_error: Literal["stop", "drop", "zero"] = "stop"
    reward_timeout: float = 60.0
    """Seconds that one call of a reward function may take."""
    tensorboard: bool = True
    from_python: tuple[str, ...] = ()
    """What only Python could give and no config can hold: "method", "dataset", "reward"."""

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        for name in (
            "threads",
            "micro_batch_tokens",
            "eval_prompts",
            "evaluations",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not self.reward_timeout > 0:
            raise UserError(f"reward_timeout must be above 0 seconds, not {self.reward_timeout:g}.")
        for name in ("lora", "max_tokens"):
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
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Read back `as_dict`.

        Raises:
            UserError: a key is unknown.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"The run's config has an unknown key '{key}'.{nearest(key, known)}")
        tuples = {name: tuple(values.get(name, ())) for name in ("rewards", "from_python")}
        return cls(**{**values, **tuples})
