"""The supervisor of an embedded broker: `python -m tailrace._supervisor DIR --lock-fd N …`, a process of its own.

Theory. It is born holding `server.lock` (a descriptor from the user that started it, who was a user before) and
keeps one server alive until no user is left. Everything happens in one thread that sleeps on a signal pipe.

Rules.
- The server inherits `server.lock`, and dies with the supervisor: by PR_SET_PDEATHSIG on Linux, which fires when
  the *thread* that forked ends, hence one thread; elsewhere by a watchdog that reads a pipe to its end.
- Getting `users.lock` exclusively is the decision to quit. It is kept to the end, so that whoever comes meanwhile
  waits for it, finds `server.lock` free and starts anew.
- A server that ends by itself again and again is given up, with the reason in the log; one that was killed never is.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tailrace._ports import choose_port
from tailrace._server_directory import (
    EmbeddedOptions,
    ServerDirectory,
    ServerRecord,
    try_lock,
    wait_lock,
)
from tailrace._server_kinds import kind_named
from tailrace._ties import tie_by_kernel, tie_by_watchdog
from tailrace.errors import BrokerError

USERS_INTERVAL = 0.5
STOP_LIMIT = 10.0
MAX_FAILURES = 5
MAX_BACKOFF = 1.0


class Signals:
    """SIGTERM and SIGINT ask to stop; these and a child's end wake `wait`."""

    def __init__(self) -> None:
        self.stop = False
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True

    def wait(self, seconds: float) -> None:
        """Sleep until a signal comes, at most `seconds`."""
        select.select([self._wake], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)


class Supervisor:
    """Keeps one server on `directory` alive; `run` returns the exit status."""

    def __init__(
        self, directory: ServerDirectory, kind: str, lock: int, options: EmbeddedOptions, tie: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._name = kind
        self._kind = kind_named(kind)
        self._lock = lock
        self._options = options
        self._tie = tie
        self._signals = Signals()
        self._users: int | None = None
        self._record: ServerRecord | None = None

    def run(self) -> int:
        held = wait_lock(self._directory.supervisor_lock)
        try:
            return self._keep_alive()
        finally:
            self._stop()
            os.close(held)

    def _keep_alive(self) -> int:
        failures = 0
        while not self._done():
            started = time.monotonic()
            server = self._start()
            self._watch(server)
            if server.poll() is None:
                break
            failures = failures + 1 if time.monotonic() - started < self._kind.steady_after else 1
            log(f"the server ended with status {server.returncode}")
            if failures >= MAX_FAILURES and server.returncode >= 0:
                log(f"giving up: the server ended {failures} times in a row right after its start")
                return 1
            self._pause(failures)
        return 0

    def _done(self) -> bool:
        if self._users is None:
            self._users = try_lock(self._directory.users_lock)
        return self._signals.stop or self._users is not None

    def _start(self) -> subprocess.Popen[bytes]:
        # The record never names a server that has ended: no pid before the new one is known.
        record = replace(self._next_record(), supervisor_pid=os.getpid(), server_pid=None)
        command = self._kind.prepare(self._directory, record)
        self._directory.save(record)
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(self._lock,),
            preexec_fn=self._tie,  # noqa: PLW1509 - this process has one thread
        )
        self._record = replace(record, server_pid=self._server.pid)
        self._directory.save(self._record)
        return self._server

    def _next_record(self) -> ServerRecord:
        """Who the server was before, on its old port if that can still be had."""
        before = self._record or self._directory.load()
        port = choose_port(self._options.port, before.port if before else None)
        return replace(before or ServerRecord(port), port=port, kind=self._name, options=self._options)

    def _watch(self, server: subprocess.Popen[bytes]) -> None:
        """Return when the server has ended or is no longer wanted."""
        while server.poll() is None and not self._done():
            self._signals.wait(USERS_INTERVAL)

    def _pause(self, failures: int) -> None:
        """The first restart follows at once; only failures in a row are worth a wait."""
        resume = time.monotonic() + (0.0 if failures < 2 else min(MAX_BACKOFF, 0.05 * 2**failures))
        while time.monotonic() < resume and not self._done():
            self._signals.wait(min(USERS_INTERVAL, resume - time.monotonic()))

    def _stop(self) -> None:
        if self._record is None:
            return
        self._server.terminate()
        limit = time.monotonic() + STOP_LIMIT
        while self._server.poll() is None and time.monotonic() < limit:
            self._signals.wait(limit - time.monotonic())
        if self._server.poll() is None:
            log(f"the server did not end within {STOP_LIMIT:g} s, killing it")
            self._server.kill()
            self._server.wait()
        self._directory.save(replace(self._record, supervisor_pid=None, server_pid=None))


def log(text: str) -> None:
    """One line to the process's output, which is `server.log`."""
    sys.stderr.write(f"[{os.getpid()}] {time.strftime('%Y/%m/%d %H:%M:%S')} [supervisor] {text}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Detach from the starter, which only waits for this, then supervise."""
    parser = argparse.ArgumentParser(prog="python -m tailrace._supervisor")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kind", default="nats")
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--watchdog", action="store_true", default=sys.platform != "linux")
    given = parser.parse_args(arguments)
    # As a grandchild it is the system's to reap, and leaves no zombie with a user that lives on.
    if os.fork() != 0:
        os._exit(0)
    os.umask(0o077)
    os.chdir(given.directory)
    os.set_inheritable(given.lock_fd, False)
    directory = ServerDirectory(given.directory)
    tie = tie_by_watchdog(directory, given.lock_fd) if given.watchdog else tie_by_kernel()
    try:
        return Supervisor(directory, given.kind, given.lock_fd, EmbeddedOptions(**given.options), tie).run()
    except (BrokerError, OSError) as error:
        log(f"giving up: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
