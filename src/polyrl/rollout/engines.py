"""Which engine samples from a policy."""

from __future__ import annotations

from collections.abc import Sequence

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.tables import TablePolicy
from polyrl.rollout.language import Engine, TransformersEngine
from polyrl.rollout.served import ServedEngine
from polyrl.rollout.tables import TableEngine


def engine_of(policy: LanguagePolicy, servers: Sequence[str] = ()) -> Engine:
    """What samples from a policy: the training process, or generation servers at these addresses.

    Raises:
        UserError: the servers cannot.
    """
    if isinstance(policy, TablePolicy):
        if servers:
            raise UserError("The answers of this task are tables, which no server samples from; leave --engine away.")
        return TableEngine(policy)
    return ServedEngine(policy, servers) if servers else TransformersEngine(policy)
