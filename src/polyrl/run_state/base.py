"""What a run holds besides its loop: task and models. A domain overrides what it can do; the rest refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.stored import Named, Stored
from polyrl.runtime.ranks import present

if TYPE_CHECKING:
    from polyrl.core.context import Context
    from polyrl.core.experience import Experience
    from polyrl.core.part import OwnModel
    from polyrl.models.base import NamedModels
    from polyrl.runtime.chart import Chart


class ClosedForm(Protocol):
    """Forward and backward passes that are written out, for networks so small that autograd costs more than they do.

    Attributes:
        reads: fields of the experience that `forward` needs.
    """

    reads: frozenset[str]

    def forward(self, batch: Experience, wants: frozenset[str]) -> dict[str, Tensor]:
        """What `RunState.outputs` gives of steps `[N, 1]`, detached; kept for `backward`."""
        ...

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """Write every parameter's gradient, given the loss's gradients `[N, 1]` by the latest outputs."""
        ...


class RunState(ABC):
    """A task joined to what acts in it: models, or tables.

    The loop and the optimizer know nothing of a domain but this. A domain has more, for the parts that ask for it,
    under the same names everywhere: `reference_logprob(experience)` [B, T], `value(experience)` [B, T],
    `score(experience)`, `measures(experience)`.
    """

    task: Any
    models: NamedModels | None = None
    """What the recipe's updates train, where it states its models."""
    own: Mapping[str, OwnModel] = MappingProxyType({})
    """Models that parts have brought (`Part.brings`), by name."""
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of forward passes."""
    reads: frozenset[str] = frozenset()
    """Fields of the experience that `outputs` needs; empty: not said, so it is given all of them."""

    @abstractmethod
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics (`eval/...`, the task's metric among them), and a few samples to be read by a person."""

    @abstractmethod
    def stored(self) -> Mapping[str, Stored]:
        """What a checkpoint holds, by name: models, tables, statistics, the state of environments."""

    def save(self, folder: Path) -> None:
        """Write what going on to the same numbers needs into a folder that does not exist yet or is empty."""
        folder.mkdir(parents=True, exist_ok=True)
        for held in self.stored().values():
            held.save(folder)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place.

        Raises:
            UserError: the folder does not hold the state of such a run.
        """
        from safetensors import SafetensorError

        self.check_readable(folder)
        try:
            for held in self.stored().values():
                held.load(folder)
        except (OSError, RuntimeError, SafetensorError, KeyError, TypeError, ValueError):  # other names or shapes
            raise UserError(f"The folder {folder} does not hold the models of this run.") from None

    def check_readable(self, folder: Path) -> None:  # noqa: B027 - nothing by default
        """Refuse a folder of an earlier version that `load` cannot read, by a sentence; raises `UserError`."""

    def parameters(self) -> dict[str, Named]:
        """Parameters that are trained by gradient, by model ("policy", "critic"); none for tables."""
        return {name: named for name, held in self.stored().items() if (named := held.parameters())}

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable "logprob", "entropy", "value", "cost" of the experience's steps, `[B, T]` each, as wanted."""
        raise NotImplementedError(f"{type(self).__name__} gives none of {', '.join(sorted(wants))}")

    @contextmanager
    def updating(self, batch: Experience, wants: Collection[str]) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
        """Forward passes of one minibatch: yield a function from row numbers of `batch` `[b]` to their `outputs`.

        What micro-batches share is computed once at entry, and its gradients flow when the block ends without an error.
        """
        yield lambda rows: self.outputs(batch.rows(rows), wants)

    @torch.no_grad()
    def measured_outputs(self, batch: Experience, wants: Collection[str], grouped_by: str = "") -> dict[str, Tensor]:
        """What `outputs` gives of all rows `[B, ...]`, without gradients and a micro-batch at a time."""
        found: dict[str, Tensor] = {}
        with self.updating(batch, wants) as forward:
            for index in present().share(self.micro_batches(batch, grouped_by)):
                for name, values in forward(index).items():
                    if name not in found:
                        found[name] = values.new_zeros((len(batch), *values.shape[1:]))
                    found[name][index] = values
        return present().added(found)

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """Passes without autograd that give these outputs of single steps; None where autograd must do it."""
        return None

    def zero_gradients(self) -> None:
        """Forget the gradients of all trained parameters."""
        for named in self.parameters().values():
            for _, parameter in named:
                parameter.grad = None

    def micro_batches(self, experience: Experience, grouped_by: str = "", *, shared: bool = True) -> list[Tensor]:
        """Row indices that fit in memory together; rows with equal `experience[grouped_by]` stay together.

        `shared`: they are for `updating`, where micro-batches share what they can; otherwise each is for `outputs`.
        """
        return [torch.arange(len(experience))]

    def monitor(self, experience: Experience, context: Context) -> None:  # noqa: B027 - nothing by default
        """Measure what reveals trouble, after selection and before the update; logs to the context."""

    def rewind(self) -> None:  # noqa: B027 - nothing by default
        """Forget the present iteration's experience, because it failed before its update and is not going to count."""

    def begin(self, context: Context) -> None:  # noqa: B027 - nothing by default
        """Know the run that this is the state of, before its first iteration."""

    def restarts_at_checkpoints(self) -> bool:
        """Whether a checkpoint out of turn would change what follows, because something starts anew at each."""
        return False

    def export(self, folder: Path) -> None:
        """Write the result of training, which `load` or the domain's own tools read."""
        self.save(folder)

    def start(self) -> str:
        """Fingerprint of what the run starts from; empty where that is nothing but the seed."""
        return ""

    @property
    def charts(self) -> Sequence[Chart]:
        """What the task asks to be drawn besides curves over time."""
        return ()

    def given_models(self) -> dict[str, dict[str, str]]:
        """The models that are of other runs, by name: that run's folder, the model's name in it, a fingerprint."""
        return {}

    @property
    def rows_left_out(self) -> int:
        """How many rows of the user's data are not used."""
        return 0

    def notices(self) -> list[str]:
        """What is to be said of the user's data before a run begins, a sentence each."""
        return []

    def evaluation_facts(self) -> dict[str, Any]:
        """How the run is judged, for config.yaml."""
        return {}
