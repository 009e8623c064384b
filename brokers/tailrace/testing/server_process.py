"""A server as a process of its own, for tests: started, killed, paused and restarted by its process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
START_TIMEOUT = 60.0


@contextmanager
def unheard() -> Iterator[int]:
    """A port that nobody listens on, and nobody else can take."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield int(taken.getsockname()[1])


class Killed:
    """What ``with`` starts and kills."""

    def start(self) -> Self:
        """Run what does not run, and return when it takes connections."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL for all that runs."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class ServerProcess(Killed):
    """What all servers share: each has its data and its ``server.log`` in ``directory``. A subclass's ``_spawn`` sets
    ``_process``, and its ``_is_ready`` says whether that takes connections. It chooses its ``port`` at the first start
    and keeps it, so that clients find it again."""

    look_interval = 0.01

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self) -> None:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.running:
            if self._is_ready():
                return
            time.sleep(self.look_interval)
        self.kill()
        raise RuntimeError(f"{type(self).__name__} in {self.directory} did not start:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """What the server wrote, over all its starts."""
        path = self.directory / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended, by itself or otherwise."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Run the server, and return when it takes connections. Raises RuntimeError with its log where it does not."""
        assert self._process is None, "the server runs already"
        self._spawn()
        self._await_ready()
        return self

    def kill(self) -> None:
        """SIGKILL: no goodbye, no sync. Nothing happens if it does not run."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait. Nothing happens if it does not run."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            if how is not signal.SIGKILL:
                process.send_signal(signal.SIGCONT)
            process.send_signal(how)
        try:
            process.wait(timeout=START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> Self:
        """Start it again, on the same port and data; killed first if it runs."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay, answers stop."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # its threads stop a little later than the call

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
