"""Policies that stand beside the one that is trained, and are only asked for log-probabilities."""

from __future__ import annotations

from pathlib import Path

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.tables import load_policy


def trained_folder(folder: str) -> str:
    """Return the folder of a policy: itself, or `model` in that of the run that trained it; a hub id stays as it is.

    Raises:
        UserError: the folder holds no model.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        return folder
    found = [p for p in (path, path / "model") if any(p.glob("*config.json"))]
    if not found or (found[0] / "head.safetensors").is_file():
        raise UserError(f"The folder '{folder}' holds no policy; give a model's folder or that of a finished run.")
    return str(found[0])


def load_frozen(folder: str, like: LanguagePolicy) -> LanguagePolicy:
    """Load a policy that never trains, to the device of the policy `like` and in its precision.

    Raises:
        UserError: there is no model, or its tokens are not those of `like`.
    """
    policy = load_policy(trained_folder(folder), device=str(like.device), precision=like.precision)
    if policy.vocabulary != like.vocabulary:
        raise UserError(
            f"The model in '{folder}' has other tokens than the policy; give one that was trained from the same start."
        )
    return policy.requires_grad_(False)
