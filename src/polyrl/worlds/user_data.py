"""What worlds of language tasks share where the data are the user's own: what is said of them before a run begins."""

from __future__ import annotations

from polyrl.tasks.language import LanguageTask
from polyrl.worlds.base import World


class UserDataWorld(World):
    """A world whose task may be the user's own data."""

    task: LanguageTask

    @property
    def rows_left_out(self) -> int:
        """How many rows of the user's data are not used."""
        return len(self.task.left_out)

    def notices(self) -> list[str]:
        """What is to be said of the user's data before a run begins: rows that are left out, odd answers."""
        return [*self.task.left_out.sentences(), *self.task.notices]
