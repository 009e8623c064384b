"""What the cells run on: a broker, and the services beside it, each a process that ends with its block, by pid."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent import now_us
from backends import Broker

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
LOOK_INTERVAL = 0.01


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host_speed() -> int:
    """Loops per CPU millisecond: shared hosts change their speed twofold without showing it."""
    began, loops = time.thread_time(), 0
    for _ in range(300_000):
        loops += 1
    return round(loops / (time.thread_time() - began) / 1000)


class System:
    """A broker that runs, in ``work``, and the services on it."""

    def __init__(self, broker: Broker, work: Path) -> None:
        self.broker = broker
        self._work = work

    @contextmanager
    def process(self, name: str, port: int, *argv: object, path: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Started and ready: the port answers and, with a path, so does GET path."""
        log = self._work / f"{name}.log"
        with log.open("ab") as sink:
            child = subprocess.Popen([str(a) for a in argv], stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        try:
            self._await_ready(name, child, port, path, log)
            yield child
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _await_ready(self, name: str, child: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            with suppress(OSError, urllib.error.HTTPError):
                if path:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                else:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(LOOK_INTERVAL)
        raise RuntimeError(f"{name} is not ready: {log.read_text()[-1000:]}")

    @contextmanager
    def gateway(self) -> Iterator[tuple[int, int]]:
        """Yields (port, pid)."""
        port = free_port()
        argv = (BIN / "tailrace", "gateway", "--store", self.broker.url, "--host", "127.0.0.1", "--port", port)
        with self.process("gateway", port, *argv, path="/readyz") as child:
            yield port, child.pid

    @contextmanager
    def agent(self) -> Iterator[tuple[int, int]]:
        """Yields (port, pid)."""
        port = free_port()
        argv = (sys.executable, HERE / "agent.py", "--store", self.broker.url, "--port", port)
        with self.process("agent", port, *argv) as child:
            yield port, child.pid


@contextmanager
def system(kind: str, work: Path) -> Iterator[System]:
    """A system on a new broker of ``kind``, in a folder of its own in ``work``."""
    with Broker(kind, work / f"broker-{kind}") as broker:
        yield System(broker, work)


def open_reader(port: int, sid: str) -> tuple[socket.socket, bytes]:
    """A request sent and its headers read; returns the socket and the body bytes that came along."""
    link = socket.create_connection(("127.0.0.1", port), 30)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(f"GET /v1/runs/{sid} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    seen = b""
    while b"\r\n\r\n" not in seen:
        part = link.recv(65536)
        if not part:
            raise RuntimeError(f"{sid}: closed after {seen[:200]!r}")
        seen += part
    head, body = seen.split(b"\r\n\r\n", 1)
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"{sid}: {head[:60]!r} {body[:200]!r}")
    return link, body


def first_byte_us(port: int, sid: str) -> int:
    began = now_us()
    link, seen = open_reader(port, sid)
    with link:
        while b"@" not in seen:  # chunked framing has no @, every chunk begins with one
            part = link.recv(65536)
            if not part:
                raise RuntimeError(f"{sid}: ended before its first chunk")
            seen = part
        return now_us() - began
