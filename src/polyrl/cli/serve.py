"""`polyrl serve`: a generation server until it is stopped."""

from __future__ import annotations

import os
from ipaddress import ip_address

import torch
from rich.text import Text

from polyrl.errors import UserError
from polyrl.models.language.policy import LanguagePolicy, Precision
from polyrl.rollout.generation_server import GenerationServer, Generator
from polyrl.rollout.served import TOKEN
from polyrl.runtime.config import RunConfig
from polyrl.runtime.device import apply, settings_of
from polyrl.runtime.terminal import Terminal


def run_server(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8600,
    device: str = "auto",
    precision: Precision | None = None,
    threads: int = 1,
    quiet: bool = False,
) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the model cannot be read, the address cannot be listened at, or anybody could give it weights.
    """
    token = os.environ.get(TOKEN, "")
    if not token and not _is_here(host):
        raise UserError(
            f"Whoever reaches {host} could give the server weights; set {TOKEN} to a secret, here and where the run is."
        )
    if threads < 1:
        raise UserError(f"--threads is {threads} but must be at least 1.")
    settings = settings_of(RunConfig(method="", device=device, precision=precision))
    apply(settings)
    torch.set_num_threads(threads)
    policy = LanguagePolicy.load(model, device=settings.device, precision=settings.precision)
    console = Terminal()

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(text, style="dim"), soft_wrap=True)

    try:
        server = GenerationServer(Generator(policy), host, port, token=token, say=say)
    except (OSError, OverflowError) as error:
        raise UserError(f"Nothing can listen at {host}:{port} ({error}); choose another --host or --port.") from None
    place = f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}"
    try:
        with server:
            console.print(f"serving {model} at {place}; polyrl train ... --engine {place}", soft_wrap=True)
            server.serve_forever()
    except KeyboardInterrupt:  # Ctrl-C is how a server ends
        console.print("stopped; a run that needs it waits a while for it to be started again", soft_wrap=True)


def _is_here(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
