"""How plain questions are asked of a model that has a chat template, and which columns of the data are which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyrl.errors import UserError, nearest


@dataclass(frozen=True)
class Chat:
    """How prompts of the user's data are asked.

    Attributes:
        template: a plain text is a message of the user where the model has a chat template.
        system_prompt: first message of every conversation that has no system message of its own; empty is none.
    """

    template: bool = True
    system_prompt: str = ""

    def conversation(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The prompt as messages, with the system prompt."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if self.system_prompt and messages[0].get("role") not in ("system", "developer"):
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages


@dataclass(frozen=True)
class Columns:
    """Columns of the data that hold prompt and answer under other names; empty: `prompt` and `answer`."""

    prompt: str = ""
    answer: str = ""

    def named(self, where: str, row: dict[str, Any]) -> dict[str, Any]:
        """The row with both under the names that polyrl reads; rewards are told the columns under their own names too.

        Raises:
            UserError: the row has no such column.
        """
        for name, theirs in (("prompt", self.prompt), ("answer", self.answer)):
            if not theirs:
                continue
            if theirs not in row:
                raise UserError(
                    f"{where}: there is no column '{theirs}' (--{name}-column).{nearest(theirs, map(str, row))} It has "
                    f"{', '.join(map(str, row)) or 'no columns'}."
                )
            row = {**row, name: row[theirs]}
        return row


def transcript(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt for people to read: a text as it is, of messages a line with the role before each."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {_said(message)}" for message in prompt)


def _said(message: Mapping[str, Any]) -> str:
    calls = [str(call.get("function", call).get("name") or "") for call in message.get("tool_calls") or ()]
    return str(message.get("content") or "") + "".join(f" [calls {name}]" for name in calls)
