"""The demo's processes: gateway and workers as own processes of this program, and the broker that they share.

Rules. A process is ended by its pid and waited for. Each is a session of its own, so that Ctrl-C reaches the demo
alone, which then ends the others; where the demo itself is killed, the kernel kills them (on Linux). What they log goes
into files of the demo's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from tailrace._server_directory import ServerDirectory, is_locked
from tailrace._ties import tie_where_possible
from tailrace.commands.runtime import Usage
from tailrace.embedded import Embedded, EmbeddedError, attach, default_directory, read_record
from tailrace.errors import TailraceError

GRACE = 3.0  # seconds that a process gets to end after SIGTERM
START_TIMEOUT = 60.0
FOLDER_TIMEOUT = 15.0
LOOK = 0.02
EMBEDDED = {"embedded": "nats", "embedded+kafka": "kafka"}  # what is ours to kill, by scheme


class Process:
    """One `tailrace NAME …`, running. ``ready`` is the line that it printed when it was."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.ready = ""
        self._process = process
        self._log = log

    @classmethod
    async def spawn(cls, name: str, arguments: list[str], log: Path) -> Process:
        command = [sys.executable, "-P", "-m", "tailrace.cli", *arguments]
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                preexec_fn=tie_where_possible(),
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ready(self) -> str:
        """Its ready line. Raises `TailraceError` where it ends instead, or takes too long."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                self.ready = (await self._process.stdout.readline()).decode().strip()
        except TimeoutError:
            self.ready = ""
        if not self.ready:
            raise TailraceError(f"The {self.name} did not start: {self._last_words()}", code="demo-failed")
        return self.ready

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("tailrace: ") if lines else "it said nothing"

    def kill(self) -> None:
        """SIGKILL, which no process can answer."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not do. Idempotent."""
        try:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
            async with asyncio.timeout(GRACE):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await self._process.wait()


class Broker:
    """The demo's broker: an embedded one of ``kind`` in ``directory``, or one that is not ours to kill (None)."""

    def __init__(self, url: str, directory: Path | None, kind: str = "nats") -> None:
        self.url = url
        self.directory = directory
        self._kind = kind
        self._embedded: Embedded | None = None

    async def start(self) -> None:
        if self.directory is not None:
            self._embedded = await attach(self.directory, kind=self._kind)

    def kill(self) -> int:
        """SIGKILL the server; its pid."""
        assert self.directory is not None
        pid = read_record(self.directory).server_pid
        if pid is None:
            raise TailraceError("The broker has no server just now", code="demo-failed")
        os.kill(pid, signal.SIGKILL)
        return pid

    async def back(self, killed: int) -> int:
        """The pid of the server that took the killed one's place."""
        assert self.directory is not None
        while True:
            with contextlib.suppress(EmbeddedError):
                pid = read_record(self.directory).server_pid
                if pid not in (None, killed):
                    return pid
            await asyncio.sleep(LOOK)

    async def stop(self) -> None:
        """Stop using it: with its last user the server ends. Idempotent."""
        if self._embedded is not None:
            await self._embedded.close()
            self._embedded = None


class Scene:
    """Everything that a demo starts. An async context manager: whatever happens, leaving it ends all of that."""

    def __init__(self, store: str | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tailrace-demo-"))
        try:
            self.broker = _broker(store, self.folder)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._processes: list[Process] = []

    async def __aenter__(self) -> Self:
        try:
            await self.broker.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def spawn(self, name: str, *arguments: str) -> Process:
        """Start one; it may not be ready yet."""
        log = self.folder / f"{len(self._processes)}-{name}.log"
        command = [arguments[0], "--store", self.broker.url, *arguments[1:]]
        process = await Process.spawn(name, command, log)
        self._processes.append(process)
        return process

    async def close(self) -> None:
        """End every process, then the broker if it is ours, and remove the folder."""
        try:
            await asyncio.gather(*(process.stop() for process in self._processes))
            await self.broker.stop()
            await self._folder_free()
        finally:
            for process in self._processes:  # a second Ctrl-C cut the orderly way short
                process.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _folder_free(self) -> None:
        """Wait until the server is gone from our own folder: it would write into what is being removed."""
        lock = ServerDirectory(self.folder / "broker").server_lock
        for _ in range(int(FOLDER_TIMEOUT / LOOK)):
            if not (lock.exists() and is_locked(lock)):
                return
            await asyncio.sleep(LOOK)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _broker(store: str | None, folder: Path) -> Broker:
    """The broker for ``--store``. Raises `Usage`."""
    if store is None:
        directory = folder / "broker"
        return Broker(f"embedded://{directory}", directory)
    scheme, separator, rest = store.partition("://")
    if scheme == "memory":
        raise Usage(
            "memory:// lives in one process, and the demo kills processes",
            hint="Leave --store out for an embedded broker in a temporary folder.",
        )
    if not separator:
        raise Usage(
            f"Not a store's URL: {store!r}",
            hint="Use embedded://DIR, embedded+kafka://DIR, or nats://, kafka:// or redis:// with HOST:PORT.",
        )
    if (kind := EMBEDDED.get(scheme)) is None:
        return Broker(store, None)
    return Broker(store, Path(unquote(rest)).expanduser().absolute() if rest else default_directory(kind), kind)
