"""What rows say while they are decoded, as text: stop strings end a row, tools answer it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.tasks.language.base import Tool, has_ended


class StopStringTracker:
    """Follows what rows say, as text: stop strings and tools. Rows are numbered over the whole batch."""

    def __init__(self, policy: LanguagePolicy, stop: tuple[str, ...], tools: list[Tool | None]):
        self.policy = policy
        self.stop = stop
        self.tools = tools
        self.replies: dict[int, list[int]] = {}
        """Tokens of a tool's reply that a row has still to take, last one first."""
        self.generated: list[list[int]] = [[] for _ in tools]
        """The policy's tokens since the tool last spoke, those left out that no text shows."""
        self.hidden = policy.hidden_ids
        strings = {*stop, *(tool.stop for tool in tools if tool is not None)}
        if not all(strings):
            raise UserError("A tool's stop string is empty; give the text that calls the tool.")
        # every token says at least one byte; some more so that decoders that treat a first token apart do no harm
        self.window = max(len(s.encode()) for s in strings) + 8
        self.closing = {s[-1] for s in strings}
        special = set(policy.tokenizer.all_special_ids)
        self.anchor = next(i for i in range(len(policy.tokenizer)) if i not in special)
        self.pieces: dict[int, bool] = {}

    def begin(self, number: int, tokens: Sequence[int]) -> None:
        """Let a row begin with `tokens`, said before and heard by no tool."""
        self.generated[number] = [token for token in tokens if token not in self.hidden][-self.window :]

    def force_tokens(self, rows: list[int], token: Tensor, alive: Tensor) -> Tensor:
        """Replace tokens [n] of rows inside a tool's reply, in place; return which the policy chose [n]."""
        chosen = alive.clone()
        for i, row in enumerate(rows):
            if row in self.replies:
                token[i] = self.replies[row].pop()
                chosen[i] = False
                if not self.replies[row]:
                    del self.replies[row]
        return chosen

    def on_token(self, row: Tensor, token: Tensor, chosen: Tensor, action: Tensor, step: int) -> Tensor:
        """Take in one token a row [n]; return which said a stop string [n], and ask the tools that were called."""
        ended = torch.zeros_like(chosen)
        tokens = zip(row.tolist(), token.tolist(), chosen.tolist(), strict=True)
        for i, (number, word, mine) in enumerate(tokens):
            if not mine or word in self.hidden:
                continue
            generated = self.generated[number]
            generated.append(word)
            if not self._may_close(word):
                continue
            text = self.policy.decode(generated[-self.window :])
            tool = self.tools[number]
            if tool is not None and text.endswith(tool.stop):
                self._ask(tool, number, self.policy.decode(action[number, : step + 1].tolist()))
                if has_ended(tool):
                    ended[i] = True
                    self.replies.pop(number, None)
            elif any(s in text for s in self.stop):
                ended[i] = True
        return ended

    def _ask(self, tool: Tool, number: int, text: str) -> None:
        try:
            reply = tool.reply(text)
        except Exception:  # a broken tool is something that a policy meets in the run state, not the end of the run
            reply = "error"
        ids = self.policy.encode(reply) if reply else []
        if ids:
            self.replies[number] = ids[::-1]
        if reply is not None:
            self.generated[number] = []

    def _may_close(self, word: int) -> bool:
        """Whether this token can complete one of the strings: decoding is needed only then."""
        known = self.pieces.get(word)
        if known is None:
            alone, both = self.policy.decode([self.anchor]), self.policy.decode([self.anchor, word])
            piece = both.removeprefix(alone)
            unsure = not both.startswith(alone) or "\ufffd" in both
            known = self.pieces[word] = unsure or not self.closing.isdisjoint(piece)
        return known
