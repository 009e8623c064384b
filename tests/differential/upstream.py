"""Upstream in one long-lived Node process: jobs in, outcomes out.

Rules: one batch of jobs a line, one batch of outcomes back. A job that does not end is reported by the process itself
(``hung``); a process that does not answer at all is killed and the batch is the error.
"""

from __future__ import annotations

import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

from tailrace.wire.jsjson import parse, stringify

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "node"))

import install  # noqa: E402

SILENCE = 60.0


class Upstream:
    """Runs both releases. A context manager: leaving it ends the process."""

    def __init__(self) -> None:
        modules = install.installed()
        self._process = subprocess.Popen(
            [install.node(), str(HERE / "upstream.mjs"), str(modules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._out, selectors.EVENT_READ)
        self.jobs = 0

    def run(self, *jobs: dict[str, Any]) -> list[Any]:
        """The outcome of each job. Raises RuntimeError if the process ends or stays silent."""
        self.jobs += len(jobs)
        self._in.write(stringify(list(jobs)).encode() + b"\n")
        self._in.flush()
        if not self._ready.select(SILENCE):
            self._process.kill()
            raise RuntimeError(f"Upstream does not answer: {stringify(list(jobs))}")
        line = self._out.readline()  # the process writes a line at once
        if not line:
            raise RuntimeError(f"Upstream ended ({self._process.wait()}): {stringify(list(jobs))}")
        outcomes: list[Any] = parse(line.decode())
        return outcomes

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.close()
        self._in.close()
        self._process.wait(timeout=10)
        self._out.close()
