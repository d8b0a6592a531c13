"""What of a run a checkpoint holds: things that write themselves into its folder, and read themselves back.

A run state lists them (`RunState.stored`), and one way of saving, loading and listing parameters serves all domains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polyrl.errors import UserError

Named = Sequence[tuple[str, nn.Parameter]]
"""Parameters with their names."""


class Stored(ABC):
    """Something that a checkpoint holds."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write it into a folder that exists: safetensors and JSON."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place.

        Raises:
            OSError, RuntimeError, SafetensorError, KeyError, TypeError, ValueError: it is not there, or is another's.
        """

    def parameters(self) -> Named:
        """Parameters that are trained by gradient."""
        return ()


@dataclass(frozen=True)
class StoredModule(Stored):
    """A torch module, `NAME.safetensors`.

    Attributes:
        name: of the file.
        module: what is written.
        trained: its trained parameters.
    """

    name: str
    module: nn.Module
    trained: Named = ()

    def save(self, folder: Path) -> None:
        """Write parameters and buffers."""
        from safetensors.torch import save_file

        state = {key: value.contiguous() for key, value in self.module.state_dict().items()}
        save_file(state, folder / f"{self.name}.safetensors")

    def load(self, folder: Path) -> None:
        """Read them back."""
        from safetensors.torch import load_file

        self.module.load_state_dict(load_file(folder / f"{self.name}.safetensors"))

    def parameters(self) -> Named:
        """Those that are trained."""
        return self.trained


class FolderModel(Protocol):
    """A module that is written as a folder of its own."""

    def save(self, folder: Path) -> None:
        """Write the folder."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take parameters and buffers."""


@dataclass(frozen=True)
class StoredFolder(Stored):
    """A model of language, in the folder `NAME/`.

    Attributes:
        name: of the folder.
        model: what is written.
        read: gives the model that a folder holds.
        trained: its trained parameters.
    """

    name: str
    model: FolderModel
    read: Callable[[Path], nn.Module]
    trained: Named = ()

    def save(self, folder: Path) -> None:
        """Write an ordinary model or adapter folder."""
        self.model.save(folder / self.name)

    def load(self, folder: Path) -> None:
        """Read its weights back."""
        self.model.load_state_dict(self.read(folder / self.name).state_dict())

    def parameters(self) -> Named:
        """Those that are trained."""
        return self.trained


@dataclass(frozen=True)
class StoredTables(Stored):
    """Tensors by name, in one file of safetensors.

    Attributes:
        file: its name.
        tables: gives what is written.
        take: is given what was read.
        trained: trained parameters among them.
        of: what they are the state of, for errors.
    """

    file: str
    tables: Callable[[], Mapping[str, Tensor]]
    take: Callable[[dict[str, Tensor]], None]
    trained: Named = ()
    of: str = "such a run"

    def save(self, folder: Path) -> None:
        """Write every table."""
        from safetensors.torch import save_file

        save_file({n: t.detach().contiguous().clone() for n, t in self.tables().items()}, folder / self.file)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read them back.

        Raises:
            UserError: the file is not there or cannot be read, or its tables are of other shapes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            read = load_file(folder / self.file)
        except (OSError, SafetensorError):
            raise UserError(f"{folder} has no readable {self.file}; it is not the state of {self.of}.") from None
        for name, mine in self.tables().items():
            if name not in read or read[name].shape != mine.shape:
                raise UserError(f"The tables in {folder} are of another task: '{name}' does not fit.")
        self.take(read)

    def parameters(self) -> Named:
        """Those that are trained."""
        return self.trained


class FileContents(Protocol):
    """What is written as a file of its own."""

    def save(self, file: Path) -> None:
        """Write the file."""

    def load(self, file: Path) -> None:
        """Read it back."""


@dataclass(frozen=True)
class StoredFile(Stored):
    """What knows how to write itself to a file, such as a cache."""

    name: str
    contents: FileContents

    def save(self, folder: Path) -> None:
        """Write it."""
        self.contents.save(folder / self.name)

    def load(self, folder: Path) -> None:
        """Read it back."""
        self.contents.load(folder / self.name)


@dataclass(frozen=True)
class StoredBy(Stored):
    """What two functions write and read, such as the state of environments or a cache."""

    write: Callable[[Path], None]
    read: Callable[[Path], None]

    def save(self, folder: Path) -> None:
        """Write it."""
        self.write(folder)

    def load(self, folder: Path) -> None:
        """Read it back."""
        self.read(folder)
