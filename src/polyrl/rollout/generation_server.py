"""A generation server: it holds a policy, takes weights, and samples responses (`polyrl serve`).

    GET  /state      how it reads, what it computes in, and the version of its weights
    PUT  /weights    new weights; the answer has the version that they came to
    POST /generate   prompts, and the version that they are to be answered by

Every request is a message (`polyrl.rollout.wire`), and so is every answer. A request is answered by the weights whose
version it names or not at all. One request is answered at a time.
"""

from __future__ import annotations

import hmac
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout.drawing import Sampling
from polyrl.rollout.language import TransformersEngine
from polyrl.rollout.wire import FORM, packed, reading_of, unpacked, version_of, weights_of

MESSAGE = "application/x-polyrl"
PROMPTS_ROOM = 1 << 26
"""Bytes that a message may have beside weights."""
STALE = 409
"""Status of a request for weights that are not there."""
RESPONSES = ("action", "present", "mask", "behaviour_logprob", "ended", "temperature", "greedy")
"""Fields that come back: prompts are known where they came from."""


class Stale(UserError):
    """The server has other weights than those that a request names."""


class Generator:
    """A policy that answers requests, apart from how they come."""

    largest_message: int
    """Bytes; what says more is not read: twice the weights in float32, and room for prompts."""

    def __init__(self, policy: LanguagePolicy, engine: TransformersEngine | None = None):
        self.policy = policy.requires_grad_(False)
        self.engine = engine or TransformersEngine(policy)
        self._reading = reading_of(policy)
        size = sum(p.numel() * max(p.element_size(), 4) for p in policy.model.parameters())
        self.largest_message = 2 * size + PROMPTS_ROOM
        self._lock = threading.Lock()
        self._version = version_of(weights_of(policy))

    def state(self) -> dict[str, Any]:
        """How it reads, what it computes in, and the version of its weights."""
        return {
            "form": FORM,
            "reading": self._reading,
            "precision": self.policy.precision,
            "context": self.policy.context,
            "version": self._version,
        }

    def take(self, weights: Mapping[str, Tensor]) -> str:
        """Take new weights, of any shape, all of them or none; return their version.

        Raises:
            UserError: they are of another model.
        """
        with self._lock:
            mine = dict(self.policy.model.named_parameters())
            if {k: x.shape for k, x in mine.items()} != {k: x.shape for k, x in weights.items()}:
                odd = sorted(mine.keys() ^ weights.keys()) or [k for k in mine if mine[k].shape != weights[k].shape]
                raise UserError(
                    f"The weights are of another model than the server's: they differ in '{odd[0]}'; start the server "
                    "with the model that the run starts from."
                )
            with torch.no_grad():
                for name, parameter in mine.items():
                    parameter.copy_(weights[name])
            self._version = version_of(weights_of(self.policy))  # of what is there now, and not of what was sent
            return self._version

    def generate(self, asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Answer prompts: the version and texts, and the fields of `RESPONSES`, `[B]` or `[B, T]`.

        Raises:
            Stale: the weights are not of the version that is asked for.
            UserError: the prompts cannot be answered, or the request says nothing that is known.
        """
        try:
            prompts, version = [list(map(int, prompt)) for prompt in asked["prompts"]], asked["version"]
            sampling = Sampling(**{**asked["sampling"], "stop": tuple(asked["sampling"]["stop"])})
            count, greedy, seed = (
                int(asked["completions_per_prompt"]),
                bool(asked["greedy_baseline"]),
                int(asked["seed"]),
            )
            skipped = int(asked["skipped"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"The request cannot be read ({error}); use the same polyrl on both sides.") from None
        with self._lock:
            if version != self._version:
                raise Stale(f"The server's weights are of version {self._version}, not {version}.")
            stream = torch.Generator().manual_seed(seed)
            if skipped:  # rows that others answer: each row draws what it would draw among all of them
                torch.rand(skipped, sampling.max_tokens, dtype=torch.float64, generator=stream)
            batch = self.engine.generate(
                prompts, sampling, completions_per_prompt=count, generator=stream, greedy_baseline=greedy
            )
        told = {"completion": batch.columns["completion"], "version": version}
        return told, {name: batch[name].cpu() for name in RESPONSES}


class _Handler(BaseHTTPRequestHandler):
    """Turns requests into calls, and errors into sentences."""

    server: GenerationServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"/state": lambda _: packed(self.server.generator.state())})

    def do_PUT(self) -> None:
        def take(body: bytes) -> bytes:
            return packed({"version": self.server.generator.take(unpacked(body)[1])})

        self._answer({"/weights": take})

    def do_POST(self) -> None:
        def generate(body: bytes) -> bytes:
            return packed(*self.server.generator.generate(unpacked(body)[0]))

        self._answer({"/generate": generate})

    def _answer(self, known: Mapping[str, Callable[[bytes], bytes]]) -> None:
        status, said = 200, b""
        try:
            refused = self._refused(known)
            body = b"" if refused else self.rfile.read(self._size())
            if refused:
                status, said = refused[0], packed({"error": refused[1]})
                self.close_connection = True  # what was sent and not read is no request
            else:
                said = known[self.path](body)
        except ConnectionError:  # who asked is gone
            self.close_connection = True
            return
        except Stale as error:
            status, said = STALE, packed({"error": str(error)})
        except UserError as error:
            status, said = 400, packed({"error": str(error)})
        except Exception as error:  # the run is told, and the server goes on
            status, said = 500, packed({"error": f"The generation server failed: {type(error).__name__}: {error}"})
        self.server.say(f"{self.command} {self.path[:80]} {status}")
        try:
            self.send_response(status)
            self.send_header("Content-Type", MESSAGE)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
        except ConnectionError:  # who asked is gone
            self.close_connection = True

    def _size(self) -> int:
        """Bytes of the body; -1 where the request does not say it in digits."""
        size = self.headers.get("Content-Length", "0")
        return int(size) if size.isdecimal() and len(size) < 20 else -1

    def _refused(self, known: Collection[str]) -> tuple[int, str] | None:
        """Status and sentence of a request whose body is not even read."""
        given, token = self.headers.get("Authorization", ""), self.server.token
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return 401, "The server asks for a token; set POLYRL_SERVE_TOKEN to it."
        if self.path not in known:
            return 404, f"There is nothing at {self.path[:80]}."
        most = self.server.generator.largest_message
        if not 0 <= self._size() <= most:
            return 413, (
                f"A message is at most {most} bytes here, as the server's model has them, and this one has another "
                "size; start the server with the model that the run starts from."
            )
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `say` is told."""


class GenerationServer(ThreadingHTTPServer):
    """Answers requests at an address until it is shut down.

    Attributes:
        generator: what answers.
        token: what requests must show; empty asks for none.
        say: told of each request.
    """

    daemon_threads = True

    def __init__(
        self,
        generator: Generator,
        host: str,
        port: int,
        *,
        token: str = "",
        say: Callable[[str], None] = lambda _: None,
    ):
        self.generator, self.token, self.say = generator, token, say
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
