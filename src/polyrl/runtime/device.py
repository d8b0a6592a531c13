"""Which device a run computes on."""

from __future__ import annotations

import torch

from polyrl.errors import UserError


def make_device(name: str) -> str:
    """`auto` takes a GPU if there is one.

    Raises:
        UserError: the device cannot be used here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device '{name}' cannot be used: {str(error).splitlines()[0]}.") from None
    return name
