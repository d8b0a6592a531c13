"""The engine of a run whose responses other processes sample (`polyrl serve`): on other machines, or other devices.

Before each request a server has the run's weights: their version is a hash of all their bits, so a server that was
started anew, or that somebody else gave other weights, is noticed and given them again. Requests say which random
numbers each row draws, so responses are those that the run would sample itself, whichever server samples them, and
however often one had to be asked.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.padding import pad_rows
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout.drawing import Sampling
from polyrl.rollout.generation_server import RESPONSES, STALE
from polyrl.rollout.language import TransformersEngine
from polyrl.rollout.wire import FORM, packed, reading_of, unpacked, version_of, weights_of
from polyrl.runtime.ranks import Ranks, all_ranks, present
from polyrl.tasks.language.base import Tool

TOKEN = "POLYRL_SERVE_TOKEN"
"""Variable of the environment with what servers ask requests to show."""
PATIENCE = 300.0
"""Seconds that a server may be away before the run ends."""
ATTEMPTS = 5
"""Times that a server is given weights which are not there when they are asked for: somebody else gives it others."""


class Server:
    """One server, as the run sees it."""

    def __init__(self, address: str, *, patience: float = PATIENCE):
        """`address` is like http://127.0.0.1:8600; raises `UserError` for another kind."""
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port or 80
        except ValueError:  # a port that is no number, or brackets of IPv6 that do not close
            parts, host, port = urlsplit(""), None, 0
        if parts.scheme != "http" or not host or parts.path.strip("/") or parts.query or "@" in parts.netloc:
            raise UserError(f"'{address}' is no address of a generation server; write it like http://127.0.0.1:8600.")
        self.address, self.patience = address.rstrip("/"), patience
        self.host, self.port = host, port

    def ask(self, how: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        """Status, values and tensors of any shape of the answer; a server that is away is waited for.

        Raises:
            UserError: it stays away.
        """
        until, pause, told = time.monotonic() + self.patience, 0.05, False
        while True:
            try:
                return self._ask_once(how, path, body)
            except (OSError, http.client.HTTPException) as error:
                error_text = str(error) or type(error).__name__
                if time.monotonic() > until:
                    raise UserError(
                        f"The generation server {self.address} does not answer ({error_text}); "
                        "start it again with `polyrl serve`, and go on with `polyrl resume`, which takes --engine "
                        "where its address is another now."
                    ) from None
            if not told and pause > 1:  # whoever mistyped a port is not to look at nothing for minutes
                told = True
                if all_ranks().first:
                    print(
                        f"polyrl: waiting up to {self.patience:.0f} s for the generation server {self.address} "
                        f"({error_text}).",
                        file=sys.stderr,
                    )
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _ask_once(self, how: str, path: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
        connection = http.client.HTTPConnection(self.host, self.port)
        try:
            token = os.environ.get(TOKEN, "")
            connection.request(how, path, body, {"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            said, tensors = unpacked(answer.read())
        finally:
            connection.close()
        if answer.status not in (200, STALE):
            raise UserError(f"{self.address}: {said.get('error', f'status {answer.status}')}")
        return answer.status, said, tensors

    def state(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self.ask("GET", "/state")[1]

    def generate(
        self, asked: dict[str, Any], weights: dict[str, Tensor], version: str
    ) -> tuple[list[str], dict[str, Tensor]]:
        """Texts and fields, `[B]` or `[B, T]`, of responses to what is asked, by these weights.

        Raises:
            UserError: the server cannot, or others give it weights of their own all the time.
        """
        for _ in range(ATTEMPTS):
            if self.state()["version"] != version:
                took = self.ask("PUT", "/weights", packed({}, weights))[1]["version"]
                if took != version:
                    raise UserError(
                        f"The generation server {self.address} has other weights than it was given; use the same "
                        "versions of polyrl, transformers and torch on both sides."
                    )
            status, said, tensors = self.ask("POST", "/generate", packed({**asked, "version": version}))
            if status != STALE and said["version"] == version:
                return said["completion"], tensors
        raise UserError(
            f"The generation server {self.address} had other weights than this run's {ATTEMPTS} times; a server "
            "belongs to one run at a time."
        )


class ServedEngine:
    """Implements `Engine`: prompts are shared out among servers."""

    def __init__(self, policy: LanguagePolicy, addresses: Sequence[str], *, patience: float = PATIENCE):
        """Meet the servers.

        Raises:
            UserError: an address is none, or a server reads or computes otherwise than the run.
        """
        self.policy = policy
        self.servers = [Server(address, patience=patience) for address in addresses]
        self._local = TransformersEngine(policy)
        mine = {"form": FORM, "reading": reading_of(policy), "precision": policy.precision}
        why = {"form": "is of another version of polyrl", "reading": "reads text otherwise: it has another tokenizer"}
        for server in self.servers:
            state = server.state()
            for name in (name for name, value in mine.items() if state.get(name) != value):
                told = why.get(name, f"computes in {state.get(name)} and the run in {mine[name]}")
                raise UserError(f"The generation server {server.address} {told}; start it as the run is started.")

    def check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """See `Engine.check`."""
        self._local.check(prompts, max_tokens)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        completions_per_prompt: int,
        generator: torch.Generator,
        greedy_baseline: bool = False,
        tools: Tool | Sequence[Tool | None] | None = None,
    ) -> Experience:
        """See `Engine.generate`; `generator` must be fresh, because its seed is what the servers are told.

        Raises:
            UserError: responses may call tools, which this process has and a server has not; or a server fails.
        """
        some = tools if isinstance(tools, Sequence) else [tools]
        if any(tool is not None for tool in some):
            raise UserError(
                "Tools answer where tokens are drawn, and a generation server does not have this task's; leave "
                "--engine away."
            )
        self.check(prompts, sampling.max_tokens)
        seed = generator.initial_seed()
        if not torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state()):
            raise ValueError("a generation server needs a fresh random stream")
        each = completions_per_prompt + int(greedy_baseline)
        asked = {
            "sampling": dataclasses.asdict(sampling),
            "completions_per_prompt": completions_per_prompt,
            "greedy_baseline": greedy_baseline,
            "seed": seed,
        }
        ranks = present()
        texts, found, error = list[str](), dict[str, Tensor](), None
        if ranks.first:
            try:
                texts, found = self._ask_all(prompts, each, asked)
            except UserError as raised:
                error = raised
        ranks.agree(error)
        found, texts = ranks.added(found), ranks.gathered(texts)[0]
        prompt_ids, prompt_mask = pad_rows(prompts, self.policy.pad_id, "left")
        return Experience(
            {
                "prompt_ids": prompt_ids.repeat_interleave(each, 0),
                "prompt_mask": prompt_mask.repeat_interleave(each, 0),
                **found,
                "group": torch.arange(len(prompts)).repeat_interleave(each),
            },
            {"completion": texts},
        )

    def _ask_all(
        self, prompts: Sequence[Sequence[int]], each: int, asked: dict[str, Any]
    ) -> tuple[list[str], dict[str, Tensor]]:
        """Texts and fields of the responses to all prompts, each server's share at the same time."""
        weights = weights_of(self.policy)
        version = version_of(weights)
        numbers = range(len(prompts))
        shares = [Ranks(k, len(self.servers)).share(numbers) for k in range(len(self.servers))]
        with ThreadPoolExecutor(len(self.servers)) as threads:
            waiting = [
                threads.submit(
                    server.generate,
                    {**asked, "prompts": [list(prompts[i]) for i in share], "skipped": share[0] * each},
                    weights,
                    version,
                )
                for server, share in zip(self.servers, shares, strict=True)
                if share
            ]
            parts = [one.result() for one in waiting]
        longest = max(tensors["action"].shape[1] for _, tensors in parts)

        def padded(name: str, x: Tensor) -> Tensor:
            fill = self.policy.pad_id if name == "action" else 0
            return torch.nn.functional.pad(x, (0, longest - x.shape[1]), value=fill) if x.dim() == 2 else x

        found = {name: torch.cat([padded(name, tensors[name]) for _, tensors in parts]) for name in RESPONSES}
        return [text for texts, _ in parts for text in texts], found
