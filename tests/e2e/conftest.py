"""The command line as a user has it: real processes, each ended by its own id."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tailrace.testing.servers import NatsServer

TIMEOUT = 100  # seconds: a command that hangs fails its test


class Cli:
    """Runs `tailrace` in a folder of its own, without settings but those given (``PORT="1"`` for ``TAILRACE_PORT``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __call__(
        self, *arguments: str, input: bytes = b"", timeout: float = TIMEOUT, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return subprocess.run(
            self._command(arguments),
            input=input,
            capture_output=True,
            timeout=timeout,
            cwd=self.folder,
            env=self._environment(settings),
        )

    def start(self, *arguments: str, stderr: IO[bytes] | int = subprocess.PIPE, **settings: str) -> Any:
        """Start it, with pipes at all ends."""
        process = subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=self.folder,
            env=self._environment(settings),
        )
        self._processes.append(process)
        return process

    def serve(self, *arguments: str, **settings: str) -> Any:
        """Start a service, and return when it said that it is ready; ``url`` is where it listens."""
        with (self.folder / f"service-{len(self._processes)}.log").open("wb") as log:
            process = self.start(*arguments, stderr=log, **settings)
        line = process.stdout.readline().decode()
        assert " ready" in line, Path(log.name).read_text()
        process.url = next((word for word in line.split() if word.startswith("http://")), None)
        process.log = Path(log.name)
        return process

    @staticmethod
    def _command(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "tailrace.cli", *arguments]

    @staticmethod
    def _environment(settings: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
        return kept | {f"TAILRACE_{name}": value for name, value in settings.items()}

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:  # what it was still to be told
                        pass


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    folder = tmp_path / "cwd"
    folder.mkdir()
    runner = Cli(folder)
    try:
        yield runner
    finally:
        runner.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server with JetStream."""
    with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def complaint() -> Callable[[subprocess.CompletedProcess[bytes]], str]:
    """The one line that a failed command left on stderr."""

    def line(done: subprocess.CompletedProcess[bytes]) -> str:
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("tailrace: ")
        return lines[0]

    return line
