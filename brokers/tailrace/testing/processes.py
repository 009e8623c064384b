"""The services as processes of their own, for tests: started, killed, paused and replaced by their process id."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tailrace._ports import choose_port

logger = logging.getLogger("tailrace.testing")

START_TIMEOUT = 60.0
LOOK_INTERVAL = 0.02


class Service:
    """A `tailrace` command with ``arguments``, in ``environment`` and ``folder``, where its output is kept.

    A gateway's port is chosen at its first start and kept, so that clients find its replacement.
    """

    def __init__(self, folder: Path, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.folder, self.name = folder, name
        self.url = ""
        self.starts = 0
        self._arguments, self._environment = arguments, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._starting, self._closed = threading.Lock(), False  # a supervisor starts it from a thread

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended, by itself or otherwise."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it logged, over all its starts."""
        path = self._path("log")
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _path(self, kind: str) -> Path:
        return self.folder / f"{self.name}.{kind}"

    def start(self) -> Self:
        """Run it, and return when it says that it is ready. Raises RuntimeError with its log where it does not."""
        assert not self.running, f"{self.name} runs already"
        self._run()
        self._await_ready()
        self.starts += 1
        return self

    def _run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tailrace.cli", *self._arguments]
        if self._arguments[0] == "gateway":
            command += ["--port", self.url.rpartition(":")[2] or str(choose_port(None, None))]
        with self._starting, self._path("out").open("wb") as out, self._path("log").open("ab") as log:
            if self._closed:
                raise RuntimeError(f"{self.name} was closed")
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=log
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.running:
            said = self._path("out").read_text("utf-8", "replace")
            if " ready" in said and said.endswith("\n"):
                self.url = next((word for word in said.split() if word.startswith("http://")), "")
                return
            time.sleep(LOOK_INTERVAL)
        self.kill()
        raise RuntimeError(f"{self.name} did not start:\n{self.log[-4000:]}")

    def kill(self) -> None:
        """SIGKILL: no goodbye. Nothing happens if it does not run."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait until it has drained. Nothing happens if it does not run."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """Kill it, for good."""
        with self._starting:
            self._closed = True
        self.kill()

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout=START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """SIGSTOP: its connections stay, it does nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # its threads stop a little later than the call

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def resident_bytes(self) -> int:
        """What it holds in memory now (Linux)."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Services:
    """Gateways and workers on one store; closing ends them all. They get ``environment`` without what is Tailrace's,
    and ``settings`` (``LEASE_TTL=2`` is ``TAILRACE_LEASE_TTL``)."""

    def __init__(self, folder: Path, store: str, environment: Mapping[str, str], **settings: object) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in environment.items() if not name.startswith("TAILRACE_")}
        self._settings = {"STORE": store} | settings
        self._all: list[Service] = []
        self._supervisors: list[asyncio.Task[None]] = []

    def gateway(self, **settings: object) -> Service:
        """A gateway on a free port, not started yet."""
        return self._service("gateway", **settings)

    def worker(self, *arguments: str, **settings: object) -> Service:
        """A worker, not started yet. ``arguments`` are those of the command."""
        return self._service("worker", *arguments, **settings)

    def _service(self, kind: str, *arguments: str, **settings: object) -> Service:
        chosen = {f"TAILRACE_{name}": str(value) for name, value in (self._settings | settings).items()}
        name = f"{kind}-{len(self._all)}"
        service = Service(self._folder, name, (kind, *arguments), self._environment | chosen)
        self._all.append(service)
        return service

    async def start(self, *services: Service) -> None:
        """Start them, all at once."""
        await asyncio.gather(*(asyncio.to_thread(service.start) for service in services))

    def supervise(self, *services: Service) -> None:
        """From now on, start each of them again whenever it ends, or does not come up because the broker is away."""
        self._supervisors += [asyncio.create_task(self._supervise(service)) for service in services]

    async def _supervise(self, service: Service) -> None:
        while True:
            if not service.running:
                try:
                    await asyncio.to_thread(service.start)
                except (RuntimeError, OSError) as error:
                    logger.warning("%s", error)
            await asyncio.sleep(LOOK_INTERVAL)

    async def close(self) -> None:
        """Kill what runs."""
        for task in self._supervisors:
            task.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        for service in self._all:
            service.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Return once the condition holds. Raises AssertionError after ``timeout`` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"after {timeout:g} s still not: {what}"
        await asyncio.sleep(LOOK_INTERVAL)
