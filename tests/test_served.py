"""Generation servers: the tokens and log-probabilities of the run itself, whatever happens to the server."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Command, child_environment, hear_interrupts, read_records, timeless
from polyrl import evaluate
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.folders import LoraSettings
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout.generation_server import GenerationServer, Generator
from polyrl.rollout.language import Sampling, TransformersEngine
from polyrl.rollout.served import ServedEngine, Server
from polyrl.rollout.wire import packed, unpacked, version_of, weights_of
from test_docs import blocks

PROMPTS = [[5, 9, 11], [7, 8], [20, 21, 22, 23], [6, 6, 6], [30]]
SAMPLING = Sampling(max_tokens=7, temperature=0.9)
WORDS = ["train", "grpo", "--task", "reverse", "--difficulty", "4", "--budget", "iterations=3", "--evaluations", "1"]


@contextmanager
def served(model: Path, *, token: str = "", port: int = 0) -> Iterator[GenerationServer]:
    """A server in a thread of this process."""
    server = GenerationServer(Generator(LanguagePolicy.load(model)), "127.0.0.1", port, token=token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def place(server: GenerationServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def answered(engine: Any, seed: int = 3, **more: Any) -> Experience:
    stream = torch.Generator().manual_seed(seed)
    batch: Experience = engine.generate(PROMPTS, SAMPLING, completions_per_prompt=3, generator=stream, **more)
    return batch


def check_equal(one: Experience, other: Experience, **near: float) -> None:
    """Every field to the bit, but log-probabilities that other rows were computed beside."""
    assert sorted(one.fields()) == sorted(other.fields()) and one.columns == other.columns
    for name in one.fields():
        assert one[name].dtype == other[name].dtype
        if name == "behaviour_logprob" and near:
            torch.testing.assert_close(one[name], other[name], rtol=0, **near)
        else:
            assert torch.equal(one[name], other[name]), name


def moved(policy: LanguagePolicy) -> None:
    """Other weights, as an update leaves them."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def test_a_server_answers_as_the_run_itself(small_model: Path) -> None:
    policy = LanguagePolicy.load(small_model)
    with served(small_model) as server:
        engine = ServedEngine(policy, [place(server)])
        check_equal(answered(TransformersEngine(policy)), answered(engine))
        greedy = {"greedy_baseline": True}
        check_equal(answered(TransformersEngine(policy), **greedy), answered(engine, **greedy))
        moved(policy)
        before = server.generator.state()["version"]
        check_equal(answered(TransformersEngine(policy)), answered(engine))
        assert server.generator.state()["version"] == version_of(weights_of(policy)) != before


def test_servers_share_the_prompts(small_model: Path) -> None:
    policy = LanguagePolicy.load(small_model)
    with served(small_model) as one, served(small_model) as two:
        both = answered(ServedEngine(policy, [place(one), place(two)]), greedy_baseline=True)
    check_equal(answered(TransformersEngine(policy), greedy_baseline=True), both, atol=1e-5)


def test_adapters_are_added_in(small_model: Path) -> None:
    policy = LanguagePolicy.load(small_model, lora=LoraSettings(rank=2))
    moved(policy)
    with served(small_model) as server:
        check_equal(answered(TransformersEngine(policy)), answered(ServedEngine(policy, [place(server)])), atol=1e-5)


def test_weights_that_others_gave_are_not_answered_by(small_model: Path) -> None:
    policy, other = LanguagePolicy.load(small_model), LanguagePolicy.load(small_model)
    moved(other)
    with served(small_model) as server:
        engine = ServedEngine(policy, [place(server)])
        weights, version = weights_of(policy), version_of(weights_of(policy))
        server.generator.take(weights_of(other))
        status, said, _ = engine.servers[0].ask(
            "POST",
            "/generate",
            packed(
                {
                    "prompts": PROMPTS,
                    "version": version,
                    "sampling": {**vars(SAMPLING), "stop": []},
                    "completions_per_prompt": 1,
                    "greedy_baseline": False,
                    "seed": 0,
                    "skipped": 0,
                }
            ),
        )
        assert status == 409 and "not " + version in said["error"]
        check_equal(answered(TransformersEngine(policy)), answered(engine))  # it is given them again
        taking = server.generator.take

        def others_come_between(given: Any) -> str:
            taking(given)
            taking(weights_of(other))
            return version

        server.generator.take = others_come_between  # type: ignore[method-assign]
        server.generator.take(weights)
        with pytest.raises(UserError, match="belongs to one run at a time"):
            answered(engine)


def test_weights_arrive_whole_or_not_at_all(small_model: Path) -> None:
    policy = LanguagePolicy.load(small_model)
    generator = Generator(LanguagePolicy.load(small_model))
    version = generator.state()["version"]
    moved(policy)
    weights = weights_of(policy)
    name = sorted(weights)[0]
    for wrong in ({k: x for k, x in weights.items() if k != name}, {**weights, name: weights[name][:1]}):
        with pytest.raises(UserError, match="of another model than the server's") as error:
            generator.take(wrong)
        assert name in str(error.value)
    assert generator.state()["version"] == version == version_of(weights_of(generator.policy))


def test_a_version_is_every_bit_of_the_weights(small_model: Path) -> None:
    weights = {k: x.clone() for k, x in weights_of(LanguagePolicy.load(small_model)).items()}
    version = version_of(weights)
    assert version_of(dict(reversed(weights.items()))) == version
    name = sorted(weights)[-1]
    weights[name].view(torch.int32).view(-1)[-1] ^= 1
    assert version_of(weights) != version


def test_what_the_server_cannot_do_is_said(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LanguagePolicy.load(small_model)
    with served(small_model, token="secret") as server:
        monkeypatch.delenv("POLYRL_SERVE_TOKEN", raising=False)
        with pytest.raises(UserError, match="asks for a token; set POLYRL_SERVE_TOKEN"):
            ServedEngine(policy, [place(server)])
        monkeypatch.setenv("POLYRL_SERVE_TOKEN", "secret")
        engine = ServedEngine(policy, [place(server)])
        with pytest.raises(UserError, match="There is nothing at /nowhere"):
            engine.servers[0].ask("GET", "/nowhere")
        with pytest.raises(UserError, match="cannot be read"):
            engine.servers[0].ask("POST", "/generate", packed({"prompts": [[1]]}))
        with pytest.raises(UserError, match="no message of polyrl"):
            engine.servers[0].ask("PUT", "/weights", b"\x01")
        with pytest.raises(UserError, match="leave --engine away"):
            answered(engine, tools=_Tool())
        stream = torch.Generator().manual_seed(0)
        torch.rand(1, generator=stream)
        with pytest.raises(ValueError, match="fresh"):
            engine.generate(PROMPTS, SAMPLING, completions_per_prompt=1, generator=stream)
    with pytest.raises(UserError, match=r"does not answer .*polyrl serve.*polyrl resume"):
        ServedEngine(policy, [place(server)], patience=0.1)
    wrong = (
        "https://127.0.0.1",
        "127.0.0.1:8600",
        "http://a/b",
        "http://",
        "http://a:86000",
        "http://a:b",
        "http://[::1",
    )
    for address in wrong:
        with pytest.raises(UserError, match="no address of a generation server"):
            ServedEngine(policy, [address])


def raw(server: GenerationServer, sent: bytes) -> bytes:
    """What comes back for these bytes, after which nothing more is sent."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:  # type: ignore[arg-type]
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(1 << 16):
            found += more
    return found


def test_what_is_too_large_or_not_allowed_is_not_read(small_model: Path) -> None:
    policy = LanguagePolicy.load(small_model)
    with served(small_model, token="secret") as server:
        put, allowed = "PUT /weights HTTP/1.1\r\n", "Authorization: Bearer secret\r\n"
        for size in ("99999999999999999999999", "99999999999999", "-1", "zz"):
            length = f"Content-Length: {size}\r\n\r\n"
            assert b" 413 " in raw(server, f"{put}{allowed}{length}abc".encode()).splitlines()[0]
            # of who may not ask nothing is read: neither the size is judged, nor what follows taken for a request
            told = raw(server, f"{put}{length}GET /state HTTP/1.1\r\n\r\n".encode())
            assert b" 401 " in told.splitlines()[0] and told.count(b"HTTP/1.1") == 1
        whole = len(packed({}, weights_of(policy)))
        assert whole < server.generator.largest_message < 10 * whole + 2**27


def test_who_goes_away_leaves_no_traceback(small_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(small_model) as server:
        for sent in (b"PUT /weights HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc", b"GET /state HTTP/1.1\r\n\r\n"):
            for _ in range(5):
                connection = socket.create_connection(server.server_address[:2])  # type: ignore[arg-type]
                connection.sendall(sent)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                connection.close()
        raw(server, b"\x16\x03\x01 garbage\r\n\r\n")
        assert raw(server, b"GET /state HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
        time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_a_server_of_ipv6(small_model: Path) -> None:
    policy = LanguagePolicy.load(small_model)
    try:
        server = GenerationServer(Generator(LanguagePolicy.load(small_model)), "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        check_equal(
            answered(TransformersEngine(policy)),
            answered(ServedEngine(policy, [f"http://[::1]:{server.server_address[1]}"])),
        )
        server.shutdown()
        thread.join()


class _Tool:
    stop = ")"

    def reply(self, response: str) -> str | None:
        return None


def test_a_server_that_reads_otherwise_is_refused(small_model: Path, taught: Path) -> None:
    policy = LanguagePolicy.load(small_model)
    with served(small_model) as server:
        policy.tokenizer.add_tokens(["new"])
        with pytest.raises(UserError, match="it has another tokenizer"):
            ServedEngine(policy, [place(server)])
        slow = LanguagePolicy.load(small_model, precision="bfloat16")
        with pytest.raises(UserError, match="computes in float32 and the run in bfloat16"):
            ServedEngine(slow, [place(server)])


def test_messages() -> None:
    said, tensors = {"a": [1, "ü"]}, {"x": torch.arange(6).view(2, 3), "y": torch.tensor([True])}
    found, back = unpacked(packed(said, tensors))
    assert found == said and torch.equal(back["x"], tensors["x"]) and torch.equal(back["y"], tensors["y"])
    for wrong in (b"", b"\xff" * 40, packed(said, tensors)[:-3], (2).to_bytes(8, "little") + b"[]"):
        with pytest.raises(UserError, match="no message of polyrl"):
            unpacked(wrong)


# ---------------------------------------------------------------------------------------------------------- whole runs


def start_server(model: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    """`polyrl serve` in a process of its own, and its address."""
    words = [sys.executable, "-m", "polyrl", "serve", str(model), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(
        words, env=child_environment(), stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    return process, said.split("--engine ")[1].strip()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that samples itself."""
    from polyrl import train

    out = tmp_path_factory.mktemp("alone") / "run"
    train(
        "grpo",
        task="reverse",
        difficulty=4,
        budget="iterations=3",
        evaluations=1,
        model=small_model,
        out=out,
        quiet=True,
    )
    return out


def test_a_run_comes_to_the_same_bits_though_its_server_is_killed(
    small_model: Path, alone: Path, tmp_path: Path, polyrl: Command
) -> None:
    process, address = start_server(small_model, 0)
    port, again = int(address.rpartition(":")[2]), list[subprocess.Popen[str]]()

    def kill_and_start() -> None:
        assert process.stdout is not None
        while "POST /generate" not in process.stdout.readline():
            pass
        process.kill()
        process.wait()
        time.sleep(0.3)
        again.append(start_server(small_model, port)[0])

    thread = threading.Thread(target=kill_and_start)
    thread.start()
    out = tmp_path / "run"
    done = polyrl(*WORDS, "--model", small_model, "--engine", address, "--out", out, "--quiet")
    thread.join()
    for server in again:
        server.terminate()
        server.communicate(timeout=30)
    assert done.code == 0, done.err
    assert timeless(read_records(out)) == timeless(read_records(alone))
    ours, theirs = weights(out), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert max(r.get("logprob_gap", 0.0) for r in read_records(out)) < 1e-4


def test_the_commands_of_the_page(small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    shown = [line[2:].split() for block in blocks("scaling.md", "console") for line in block.splitlines()]
    serving, training = (next(words for words in shown if word in words) for word in ("serve", "--engine"))
    assert serving[:2] == ["polyrl", "serve"] and serving[-2:] == ["--port", "8600"]
    assert training[-1] == "http://127.0.0.1:8600" and serving[2] in training
    process, address = start_server(small_model, 0)
    words = [str(small_model) if word == serving[2] else word for word in training[1:-1]]
    done = polyrl(
        *words, address, "--difficulty", 4, "--budget", "iterations=1", "--eval-prompts", 8, "--out", tmp_path / "run"
    )
    process.terminate()
    process.communicate(timeout=30)
    assert done.code == 0, done.err


def with_servers(alone: Path, out: Path, engine: str) -> Path:
    """A finished run that says it was sampled by these servers."""
    shutil.copytree(alone, out)
    config = out / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert text.count("  engine: null\n") == 1
    config.write_text(text.replace("  engine: null\n", f"  engine: {engine}\n"), encoding="utf-8")
    return out


def test_who_judges_a_run_needs_none_of_its_servers(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_servers(alone, tmp_path / "run", "http://127.0.0.1:1")
    monkeypatch.setattr(Server, "ask", lambda *_: pytest.fail("the server was asked"))
    assert evaluate(run, prompts=8) == evaluate(alone, prompts=8)


def test_a_run_whose_servers_have_moved_is_told_where_they_are(
    small_model: Path, alone: Path, tmp_path: Path, polyrl: Command
) -> None:
    plain, run, local = (tmp_path / name for name in ("plain", "run", "local"))
    shutil.copytree(alone, plain)
    for folder in (run, local):
        with_servers(alone, folder, "http://127.0.0.1:1")
    more = ("--budget", "iterations=4", "--quiet")
    with served(small_model) as server:
        done = polyrl("resume", run, "--engine", place(server), *more)
        assert done.code == 0 and server.generator.state()["version"] != version_of(
            weights_of(LanguagePolicy.load(small_model))
        ), done.err
        assert f"engine: {place(server)}" in (run / "config.yaml").read_text(encoding="utf-8")
    assert polyrl("resume", local, "--engine", "none", *more).code == 0
    done = polyrl("resume", plain, "--engine", "none", *more)
    assert done.code == 2 and "has no generation servers" in done.err
    assert polyrl("resume", plain, *more).code == 0
    for folder in (run, local):
        assert timeless(read_records(folder)) == timeless(read_records(plain))
        assert all(torch.equal(x, weights(plain)[name]) for name, x in weights(folder).items())


def test_waiting_for_a_server_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="takes --engine where its address is another now"):
        Server("http://127.0.0.1:1", patience=2.5).state()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "waiting up to 2 s for the generation server http://127.0.0.1:1" in told


def test_ctrl_c_is_how_a_server_ends(small_model: Path) -> None:
    process, address = start_server(small_model, 0)
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and said.splitlines()[-1].startswith("stopped") and "polyrl resume" not in said


def test_what_the_command_line_refuses(small_model: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYRL_SERVE_TOKEN", raising=False)
    done = polyrl("serve", small_model, "--host", "0.0.0.0")
    assert done.code == 2 and "set POLYRL_SERVE_TOKEN to a secret" in done.err
    done = polyrl("serve", small_model, "--port", 99999)
    assert done.code == 2 and "choose another --host or --port" in done.err
    done = polyrl("serve", small_model, "--threads", 0)
    assert done.code == 2 and "--threads is 0" in done.err
    done = polyrl("compare", "grpo", "--task", "reverse", "--engine", "http://127.0.0.1:1", "--out", "x")
    assert done.code == 2 and "one run at a time" in done.err
    done = polyrl("train", "ppo", "--task", "CartPole-v1", "--engine", "http://127.0.0.1:1")
    assert done.code == 2 and "--engine" in done.err
    done = polyrl("train", "hypo", "--task", "garbage-tail", "--engine", "http://127.0.0.1:1")
    assert done.code == 2 and "--engine" in done.err
