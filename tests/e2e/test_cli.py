"""The commands, as processes on a real broker."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailrace._ports import choose_port
from tailrace.testing.server_process import unheard
from tailrace.testing.servers import NatsServer

Complaint = Callable[[Any], str]
VERY_SLOW = '{"text": "%s", "rate": 5, "chunk": 1}' % ("0123456789" * 60)
SLOW = '{"text": "0123456789abcdefghij", "rate": 3, "chunk": 1}'

HANDLERS = """
import asyncio
from collections.abc import AsyncIterator
from pydantic import BaseModel
from tailrace.worker import handler

class Count(BaseModel):
    to: int

@handler()
async def count(input: Count) -> AsyncIterator[str]:
    for number in range(input.to):
        yield f"{number} "

@handler()
async def breaks(input: Count) -> AsyncIterator[str]:
    yield "so far"
    raise ValueError("out of\\nnumbers")

@handler()
async def stays(input: Count) -> AsyncIterator[str]:
    yield "still here"
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
"""


def status(cli: Any, *arguments: str) -> dict[str, Any]:
    done = cli("status", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_published_is_read_byte_for_byte(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    data = random.Random(1).randbytes(700_001)
    at = ("--store", server.url)
    done = cli("publish", "a", "--content-type", "image/png", "--json", *at, input=data, MAX_CHUNK_BYTES="5000")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["bytes"], told["content_type"]) == ("done", len(data), "image/png")
    assert told["entries"] >= len(data) / 5000
    assert cli("read", "a", *at).stdout == data
    for offset in (0, 1, 4_999, 5_000, 700_000, 700_001):
        assert (
            cli("read", "a", "--offset", str(offset), "--incarnation", told["incarnation"], *at).stdout == data[offset:]
        )
    assert cli("read", "a", "--cursor", told["cursor"], *at).stdout == b""
    beyond = cli("read", "a", "--offset", "700002", *at)
    assert (beyond.returncode, beyond.stdout) == (2, b"")
    assert "[offset-out-of-range]" in complaint(beyond)
    taken = cli("publish", "a", *at, input=b"x")
    assert taken.returncode == 2
    assert "a is taken" in complaint(taken)


def test_streams_are_listed_told_and_deleted_on_a_store(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    at = ("--store", server.url)
    for name in ("b", "a"):
        assert cli("publish", name, *at, input=b"xyz").returncode == 0
    assert [row.split("\t")[:4] for row in cli("ls", *at).stdout.decode().splitlines()] == [
        ["a", "done", "3", "1"],
        ["b", "done", "3", "1"],
    ]
    assert {one["id"] for one in json.loads(cli("ls", "--json", *at).stdout)} == {"a", "b"}
    assert json.loads(cli("delete", "a", "--json", *at).stdout) == {"id": "a", "deleted": True}
    for command in ("read", "status", "cancel", "delete"):
        done = cli(command, "a", *at)
        assert (done.returncode, done.stdout) == (2, b"")
        assert "Stream not found: a [missing]" in complaint(done)
    assert b"status" in cli("status", "b", *at).stdout


def test_an_interrupted_publish_is_an_error_for_its_readers(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    for number, (how, code) in enumerate([(signal.SIGINT, 130), (signal.SIGTERM, 143)]):
        name = f"a{number}"
        publisher = cli.start("publish", name, "--store", server.url)
        publisher.stdin.write(b"so far")
        publisher.stdin.flush()
        reader = cli.start("read", name, "--store", server.url)
        while (got := reader.stdout.read(6)) == b"":  # it was there before the stream was
            assert reader.wait() == 2
            reader = cli.start("read", name, "--store", server.url)
        assert got == b"so far"
        publisher.send_signal(how)
        assert publisher.wait() == code
        assert reader.wait() == 1
        assert b"[interrupted]" in reader.stderr.read()


def test_publish_and_read_go_on_through_a_killed_broker(cli: Any, server: NatsServer) -> None:
    at = ("--store", server.url)
    publisher = cli.start("publish", "a", *at)
    publisher.stdin.write(b"before, ")
    publisher.stdin.flush()
    reader = cli.start("read", "a", *at)
    while (got := reader.stdout.read(8)) == b"":
        assert reader.wait() == 2
        reader = cli.start("read", "a", *at)
    server.kill()
    publisher.stdin.write(b"meanwhile, ")
    publisher.stdin.flush()
    server.restart()
    publisher.stdin.write(b"after")
    publisher.stdin.close()
    assert publisher.wait() == 0
    assert got + reader.stdout.read() == b"before, meanwhile, after"
    assert reader.wait() == 0
    assert reader.stderr.read() == b""
    assert re.fullmatch(rb"tailrace: published a: 24 bytes in [23] chunks\n", publisher.stderr.read())


def test_a_reader_that_leaves_ends_the_read_quietly(cli: Any, server: NatsServer) -> None:
    assert cli("publish", "a", "--store", server.url, input=b"x" * 2_000_000).returncode == 0
    reader = cli.start("read", "a", "--store", server.url)
    assert reader.stdout.read(10) == b"x" * 10
    reader.stdout.close()
    assert reader.wait() == 128 + signal.SIGPIPE
    assert reader.stderr.read() == b""


def test_standard_streams_that_are_closed_or_full_are_one_line(
    cli: Any, server: NatsServer, complaint: Complaint
) -> None:
    def run(redirected: str, *arguments: str) -> Any:
        command = cli._command((*arguments, "--store", server.url))
        shell = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command]
        environment = cli._environment({})
        return subprocess.run(shell, capture_output=True, timeout=60, cwd=cli.folder, env=environment)

    done = run("<&-", "publish", "a")
    assert (done.returncode, "[input-failed]" in complaint(done)) == (2, True)
    assert status(cli, "a", "--store", server.url)["code"] == "input-failed"  # and not an empty stream that is done
    assert cli("publish", "b", "--store", server.url, input=b"x").returncode == 0
    for redirected in (">&-", ">/dev/full"):
        for command in ("read", "status"):
            done = run(redirected, command, "b")
            assert (done.returncode, "[output-failed]" in complaint(done)) == (2, True)


def test_a_run_at_a_gateway_and_a_worker_of_their_own(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    (cli.folder / "mine.py").write_text(HANDLERS)
    cli.serve("worker", "--store", server.url, "--handlers", "mine", "--slots", "3")
    gateway = cli.serve("gateway", "--store", server.url, "--port", "0")
    at = ("--gateway", gateway.url)
    done = cli("run", "echo", "--input", '{"text": "naïve"}', "--id", "a", *at)
    assert (done.returncode, done.stdout, done.stderr) == (0, "naïve".encode(), b"tailrace: run a\n")
    port = gateway.url.rpartition(":")[2]
    assert cli("read", "a", "--offset", "4", "--port", port).stdout == b"ve"
    cursor = status(cli, "a", *at)["cursor"]
    assert cli("read", "a", "--cursor", cursor, *at).stdout == b""
    (cli.folder / "input.json").write_text('{"to": 4}')
    assert cli("run", "count", "--input", "@input.json", *at).stdout == b"0 1 2 3 "
    assert cli("run", "count", "--input", "@-", *at, input=b'{"to": 2}').stdout == b"0 1 "
    broken = cli("run", "breaks", "--input", '{"to": 1}', *at)
    assert (broken.returncode, broken.stdout) == (1, b"so far")
    assert broken.stderr.decode().splitlines()[1].startswith("tailrace: out of numbers [handler-error]")
    for arguments, said in (
        (("run", "echo", "--input", '{"text": "other"}', "--id", "a", *at), "run-conflict"),
        (("run", "nobody", "--input", "1", *at), "unknown-handler"),
        (("run", "count", "--input", '{"to": "many"}', *at), "to: "),
    ):
        refused = cli(*arguments)
        assert refused.returncode == 2
        assert said in refused.stderr.decode().splitlines()[1]
    beyond = cli("read", "a", "--offset", "9", *at)
    assert beyond.returncode == 2
    assert "[offset-out-of-range]" in complaint(beyond)


def test_a_run_is_cancelled_and_deleted_at_a_gateway_or_on_the_store(cli: Any, server: NatsServer) -> None:
    cli.serve("worker", "--store", server.url)
    gateway = cli.serve("gateway", "--store", server.url, "--port", "0")
    http, store = ("--gateway", gateway.url), ("--store", server.url)
    for name, at in (("a", http), ("b", store)):
        run = cli.start("run", "echo", "--input", VERY_SLOW, "--id", name, *http)
        assert run.stdout.read(2) == b"01"
        assert status(cli, name, *at)["status"] == "streaming"
        done = cli("cancel", name, *at)
        assert (done.returncode, done.stderr) == (0, f"tailrace: {name} is being cancelled\n".encode())
        assert run.wait() == 1
        assert b"[cancelled]" in run.stderr.read()
        assert status(cli, name, *at)["status"] == "cancelled"
        assert b"has ended: cancelled" in cli("cancel", name, *at).stderr
        assert cli("delete", name, *at).returncode == 0
    assert cli("ls", *http).stdout == b""


def test_a_run_is_followed_through_a_killed_gateway(cli: Any, server: NatsServer) -> None:
    port = str(choose_port(None, None))
    arguments = ("gateway", "--store", server.url, "--port", port)
    cli.serve("worker", "--store", server.url)
    gateway = cli.serve(*arguments)
    run = cli.start("run", "echo", "--input", SLOW, "--port", port)
    got = run.stdout.read(4)
    gateway.kill()
    gateway.wait()
    cli.serve(*arguments)
    assert got + run.stdout.read() == b"0123456789abcdefghij"
    assert run.wait() == 0
    assert b"reconnecting" in run.stderr.read()


def test_ctrl_c_leaves_a_run_and_says_how_to_go_on(cli: Any, server: NatsServer) -> None:
    cli.serve("worker", "--store", server.url)
    gateway = cli.serve("gateway", "--store", server.url, "--port", "0")
    run = cli.start("run", "echo", "--input", SLOW, "--id", "a", "--gateway", gateway.url)
    got = run.stdout.read(2)
    run.send_signal(signal.SIGINT)
    got += run.stdout.read()
    assert run.wait() == 130
    said = run.stderr.read().decode().splitlines()[1]
    again = said.partition("tailrace read ")[2].split()
    assert got + cli("read", *again).stdout == b"0123456789abcdefghij"


def test_sigterm_drains_a_gateway_and_a_worker(cli: Any, server: NatsServer) -> None:
    worker = cli.serve("worker", "--store", server.url)
    port = str(choose_port(None, None))
    first = cli.serve("gateway", "--store", server.url, "--port", port)
    run = cli.start("run", "echo", "--input", SLOW, "--port", port)
    got = run.stdout.read(2)
    first.terminate()
    assert first.wait() == 0
    cli.serve("gateway", "--store", server.url, "--port", port)
    worker.terminate()
    assert got + run.stdout.read() == b"0123456789abcdefghij"
    assert run.wait() == 0
    assert worker.wait() == 0


def test_a_worker_with_a_port_tells_its_health_there(cli: Any, server: NatsServer) -> None:
    worker = cli.serve("worker", "--store", server.url, WORKER_PORT="0")
    assert httpx.get(worker.url + "/healthz", trust_env=False, timeout=30).json() == {"status": "up"}
    while (told := httpx.get(worker.url + "/readyz", trust_env=False, timeout=30)).status_code == 503:
        assert told.json()["code"] == "not-ready"  # its own beat was not heard yet
    assert told.json() == {"status": "ready"}
    for path in ("/v1/runs/a", "/docs", "/openapi.json"):
        assert httpx.get(worker.url + path, trust_env=False, timeout=30).status_code == 404
    server.kill()
    assert httpx.get(worker.url + "/healthz", trust_env=False, timeout=30).status_code == 200
    told = httpx.get(worker.url + "/readyz", trust_env=False, timeout=30)
    assert (told.status_code, told.json()["code"]) == (503, "not-ready")


def test_a_handler_that_ignores_its_cancellation_does_not_hold_its_worker(cli: Any, server: NatsServer) -> None:
    (cli.folder / "mine.py").write_text(HANDLERS)
    worker = cli.serve("worker", "--store", server.url, "--handlers", "mine", DRAIN_TIMEOUT="0")
    gateway = cli.serve("gateway", "--store", server.url, "--port", "0")
    run = cli.start("run", "stays", "--input", '{"to": 1}', "--id", "r", "--gateway", gateway.url)
    assert run.stdout.read(10) == b"still here"
    worker.terminate()
    assert run.wait() == 1
    assert b"[worker-stopped]" in run.stderr.read()
    assert worker.wait() == 0


def test_a_second_signal_does_not_wait(cli: Any, server: NatsServer) -> None:
    worker = cli.serve("worker", "--store", server.url)
    gateway = cli.serve("gateway", "--store", server.url, "--port", "0")
    text = json.dumps({"text": "x" * 600, "rate": 1, "chunk": 1})
    run = cli.start("run", "echo", "--input", text, "--gateway", gateway.url)
    assert run.stdout.read(1) == b"x"
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=45) in (130, 0)
    assert run.wait() == 1
    assert b"worker-stopped" in run.stderr.read()


def test_up_is_everything_in_one_process(cli: Any, tmp_path: Path) -> None:
    store = f"embedded://{tmp_path / 'broker'}"
    for _ in range(2):
        up = cli.serve("up", "--store", store, "--port", "0")
        done = cli("run", "echo", "--input", '{"text": "hello"}', "--id", "a", "--gateway", up.url)
        assert (done.returncode, done.stdout) == (0, b"hello")
        assert cli("read", "a", "--store", store).stdout == b"hello"
        up.kill()  # what it stored is there for the next one
        up.wait()
    up = cli.serve("up", "--store", "memory://", "--port", "0")
    assert cli("run", "echo", "--input", '{"text": "hello"}', "--gateway", up.url).stdout == b"hello"
    up.send_signal(signal.SIGINT)
    assert up.wait() == 130


@pytest.mark.slow
def test_a_store_that_cannot_be_had_is_one_line(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, unheard() as nobody:
        hushed, nats = silent.getsockname()[1], server.port
        for store, code in (
            ("mysql://h", "unknown-scheme"),
            (f"embedded://{cli.folder}?replicas=3", "broker-unsuitable"),
            *((f"{scheme}://h:0", "broker-unsuitable") for scheme in ("nats", "kafka", "redis")),
            *((f"{scheme}://h?prefix=", "broker-unsuitable") for scheme in ("nats", "kafka", "redis")),
            *((f"{scheme}://127.0.0.1:{nobody}", "broker-unavailable") for scheme in ("nats", "kafka", "redis")),
            *((f"{scheme}://127.0.0.1:{hushed}", "broker-unavailable") for scheme in ("nats", "kafka", "redis")),
            (f"kafka://127.0.0.1:{nats}", "broker-unavailable"),
            (f"redis://127.0.0.1:{nats}", "broker-unsuitable"),
            (f"tls://127.0.0.1:{nats}", "broker-refused"),
            (f"rediss://127.0.0.1:{nats}", "broker-refused"),
            (f"kafka+ssl://127.0.0.1:{nats}?tls_ca=/nonexistent", "broker-refused"),
        ):
            wait = "0.5" if code == "broker-unavailable" else "10"
            times = {f"{name}_CONNECT_TIMEOUT": wait for name in ("NATS", "KAFKA", "REDIS")}
            done = cli("ls", "--store", store, **times)
            assert (done.returncode, done.stdout) == (2, b""), store
            assert f"[{code}]. " in complaint(done), store


class OldKafka(socketserver.BaseRequestHandler):
    """What a broker of Kafka 2.0 says of itself, and no more: it stands for one, which is not to be had any more. It
    answers ApiVersions alone (Kafka's protocol guide: a size, the correlation id, an error, then each API's first and
    last version), and a version of that which it does not know with error 35 and its own."""

    versions = struct.pack(">i" + "hhh" * 4, 4, *(0, 0, 6), *(1, 0, 8), *(3, 0, 6), *(18, 0, 2))  # 1 is Fetch

    def handle(self) -> None:
        stream = self.request.makefile("rb")
        while size := stream.read(4):
            api, version, correlation = struct.unpack(">hhi", stream.read(struct.unpack(">i", size)[0])[:8])
            if api != 18:
                return
            answer = struct.pack(">ih", correlation, 0 if version <= 2 else 35) + self.versions
            answer += struct.pack(">i", 0) if version in (1, 2) else b""
            self.request.sendall(struct.pack(">i", len(answer)) + answer)


def test_a_kafka_that_is_too_old_is_one_line(cli: Any, complaint: Complaint) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldKafka) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        at = f"127.0.0.1:{listening.server_address[1]}"
        for command in (("ls",), ("gateway", "--port", "0"), ("worker",)):
            done = cli(*command, "--store", f"kafka://{at}")
            assert (done.returncode, done.stdout) == (2, b"")
            assert f"The Kafka broker at {at} is too old [broker-unsuitable]. Use " in complaint(done)
        listening.shutdown()


def test_what_keeps_a_service_from_starting_is_one_line(cli: Any, server: NatsServer, complaint: Complaint) -> None:
    with socket.socket() as taken, unheard() as dead:
        nobody = f"nats://127.0.0.1:{dead}"
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, code in (
            (("gateway", "--store", server.url, "--port", port), "cannot-listen"),
            (("up", "--store", "memory://", "--port", port), "cannot-listen"),
            (("worker", "--store", nobody), "broker-unavailable"),
            (("worker", "--store", server.url, "--handlers", "not.there"), "invalid-handler"),
            (("publish", "a", "--store", nobody), "broker-unavailable"),
        ):
            done = cli(*arguments, LOG_LEVEL="error")
            assert (done.returncode, done.stdout) == (2, b"")
            assert f"[{code}]" in complaint(done)
    assert "TAILRACE_PORT" in complaint(cli("gateway", PORT="x"))
