"""A real NATS server for tests: started on a free loopback port, killed, paused and restarted by their process id."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tailrace._ports import choose_port
from tailrace.embedded import find_binary
from tailrace.testing.server_process import HOST, ServerProcess

__all__ = ["HOST", "NatsServer"]


class NatsServer(ServerProcess):
    """One nats-server with its data in ``directory``; `start` (or ``with``) runs it.

    ``config`` is added to its configuration file (``authorization {…}``, ``max_payload: …``); with ``jetstream=False``
    it has no JetStream. The port is chosen at the first start and kept, so that clients find it again.
    """

    def __init__(self, directory: Path, *, config: str = "", jetstream: bool = True, arguments: Sequence[str] = ()):
        super().__init__(directory)
        self._config = config
        self._jetstream = jetstream
        self._arguments = arguments

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:port`, without credentials."""
        return f"nats://{HOST}:{self.port}"

    def _spawn(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        store = 'jetstream { store_dir: "data" }\n' if self._jetstream else ""
        (self.directory / "server.conf").write_text(f"{store}{self._config}\n")
        self.port = self.port or choose_port(None, None)
        command = [str(find_binary()), "-a", HOST, "-p", str(self.port), "-c", "server.conf", "-l", "server.log"]
        command += ["--ports_file_dir", ".", *self._arguments]
        self._process = subprocess.Popen(command, cwd=self.directory, stdin=subprocess.DEVNULL)

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as client:
                return client.recv(5).startswith(b"INFO")
        except OSError:
            return False
