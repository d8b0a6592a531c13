"""What a run is judged by, and the values that stand beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """The number that decides a comparison.

    Attributes:
        key: its name in metrics.jsonl.
        label, unit: how it is called where people see it.
        higher_is_better: its direction.
        scale: "log" where differences are factors (gaps, regrets).
        lines: values that stand beside every result, name -> value: an optimum, a classical heuristic, a threshold.
        target: which of the lines is the one to reach; empty if none is.
    """

    key: str = "eval/accuracy"
    label: str = "accuracy"
    unit: str = ""
    higher_is_better: bool = True
    scale: Literal["linear", "log"] = "linear"
    lines: dict[str, float] = field(default_factory=dict)
    target: str = ""

    def __post_init__(self) -> None:
        """Refuse a target that is no line."""
        if self.target and self.target not in self.lines:
            raise ValueError(f"the target '{self.target}' is none of the lines {', '.join(self.lines)}")

    def stated(self) -> dict[str, Any]:
        """As compare.yaml states it, where a comparison's own keys stand beside it."""
        values = dataclasses.asdict(self)
        return {
            "metric": values["key"],
            "metric_label": values["label"],
            **{k: values[k] for k in ("unit", "higher_is_better", "scale", "lines", "target")},
        }

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Metric:
        """Read back `stated`; what is not there keeps its default."""
        names = {"metric": "key", "metric_label": "label"}
        values = {names.get(k, k): v for k, v in stated.items()}
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if values.get(f.name) is not None})
