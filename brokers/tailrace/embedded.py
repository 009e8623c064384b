"""The embedded broker: a real server as a child process, shared by all processes that name its directory.

It is a NATS server with JetStream, or Kafka: what is said here holds for both (`tailrace._server_kinds`).

Theory. `attach` makes this process a *user* first (a shared lock, see `_server_directory`) and only then looks for
a server. A supervisor may quit only while there is no user, so what a user finds is either alive, or on its way
out with a lock about to fall free; whoever gets that lock starts the next one. Nobody waits for a message that a
dead process will not send: every wait is for a lock or for the server's greeting.

Rules. Exactly one process holds `server.lock`, and hands it over instead of freeing it, so of many that attach at
once one starts a supervisor. While attached, a user watches that lock, and replaces a supervisor that was killed.
The address may change then: read `Embedded.url` (or `read_url`) at every reconnect.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs

from tailrace._nats_kind import find_binary
from tailrace._server_directory import (
    EmbeddedError,
    EmbeddedOptions,
    ServerDirectory,
    ServerRecord,
    is_locked,
    try_lock,
)
from tailrace._server_kinds import kind_named
from tailrace.errors import BrokerError
from tailrace.tasks import end

__all__ = [
    "Embedded",
    "EmbeddedError",
    "EmbeddedOptions",
    "ServerRecord",
    "attach",
    "default_directory",
    "find_binary",
    "read_record",
    "read_url",
]

START_TIMEOUT = 60.0
LOOK_INTERVAL = 0.02
UNSUPERVISED = 12.0  # seconds that a supervisor may take to appear behind a lock that is held
# A lock that falls free again means that the supervisor ended: killed perhaps, so it gets a second chance.
MAX_LAUNCHES = 2
KEEP_INTERVAL = 0.5
KEEP_BACKOFF = 5.0

_log = logging.getLogger(__name__)


def default_directory(kind: str = "nats") -> Path:
    """`tailrace`, for Kafka `tailrace-kafka`, in the platform's folder for user data."""
    return platformdirs.user_data_path("tailrace" if kind == "nats" else f"tailrace-{kind}", appauthor=False)


def read_record(directory: Path) -> ServerRecord:
    """What `server.json` says now. Raises EmbeddedError (`embedded-not-running`) where there is none."""
    record = ServerDirectory(directory).load()
    if record is None:
        raise EmbeddedError(
            f"No embedded broker has been started in {directory}: it has no readable server.json",
            code="embedded-not-running",
            hint="Attach to the broker first; that starts it.",
        )
    return record


def read_url(directory: Path) -> str:
    """The server's URL with its credentials, as of now: call it at every reconnect. Raises as `read_record`."""
    return read_record(directory).url


class Embedded:
    """One use of an embedded broker; `attach` makes it, `close` ends it. Also an async context manager."""

    def __init__(self, directory: Path, users_lock: int, kind: str, options: EmbeddedOptions) -> None:
        self.directory = directory
        self._users_lock: int | None = users_lock
        self._keeper = asyncio.create_task(_keep(ServerDirectory(directory), kind, options), name="embedded-keeper")

    @property
    def url(self) -> str:
        """The server's URL with its credentials, read anew each time. Raises as `read_record`."""
        return read_url(self.directory)

    async def close(self) -> None:
        """Stop being a user; the last one's leaving ends the server. A second call does nothing."""
        try:
            await end(self._keeper)
        finally:
            if self._users_lock is not None:
                os.close(self._users_lock)
                self._users_lock = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def attach(
    directory: Path | None = None,
    options: EmbeddedOptions | None = None,
    *,
    kind: str = "nats",
    start_timeout: float = START_TIMEOUT,
) -> Embedded:
    """Use the broker of `directory` (default: `default_directory()`), starting it if nobody has.

    `options` are those of a server that this call starts; one that runs already must have what they ask for. `kind` is
    `nats` or `kafka`; a directory holds one kind. `start_timeout` is in seconds. Raises EmbeddedError:
    `embedded-directory`, `embedded-binary`, `embedded-start`, `embedded-timeout`, `embedded-options`, and for Kafka
    `tailrace.kafka_local.LocalKafkaError`.
    """
    wanted = options or EmbeddedOptions()
    home = _prepared(directory or default_directory(kind))
    try:
        async with asyncio.timeout(start_timeout):
            users_lock = await _become_user(home)
            try:
                _check_kind(kind, home)
                record = await _ensure_server(home, kind, wanted)
                _check_kind(kind, home)
                _check_options(wanted, record, home)
                # What runs is what a successor must offer: other users may rely on it.
                return Embedded(home.path, users_lock, kind, record.options)
            except BaseException:
                os.close(users_lock)
                raise
    except TimeoutError as error:
        raise EmbeddedError(
            f"The embedded broker in {home.path} was not ready within {start_timeout:g} s; "
            f"its log ends with:\n{home.log_tail()}",
            code="embedded-timeout",
            hint=f"Allow it more time, or see {home.log}.",
        ) from error


def _prepared(path: Path) -> ServerDirectory:
    home = ServerDirectory(path.expanduser().absolute())
    home.prepare()
    return home


async def _become_user(home: ServerDirectory) -> int:
    """The shared lock; taken exclusively only by a supervisor that is ending, and then soon free."""
    while True:
        lock = try_lock(home.users_lock, shared=True)
        if lock is not None:
            return lock
        await asyncio.sleep(LOOK_INTERVAL)


async def _ensure_server(home: ServerDirectory, kind: str, options: EmbeddedOptions) -> ServerRecord:
    """Return once a supervised server answers, starting a supervisor if the lock is free. The caller is a user."""
    launches, log_start = 0, home.log_size()
    alone = time.monotonic()  # when a supervisor was last seen, or the lock free
    while True:
        lock = try_lock(home.server_lock)
        if lock is not None and launches == MAX_LAUNCHES:
            os.close(lock)
            raise EmbeddedError(
                f"The embedded broker in {home.path} does not start; its log ends with:\n{home.log_tail(log_start)}",
                hint=f"Mend what the log names ({home.log}) and try again.",
            )
        if lock is not None:
            launches += 1
            # The thread owns the descriptor: this task may be cancelled while it is still needed.
            await asyncio.to_thread(_launch, home, lock, kind, options)
        if lock is not None or is_locked(home.supervisor_lock):
            alone = time.monotonic()
        elif time.monotonic() - alone > UNSUPERVISED:
            raise EmbeddedError(
                f"On {home.path} runs a server that is not an embedded one (`tailrace kafka run`?)",
                code="embedded-options",
                hint="Use its URL, end it, or name another directory.",
            )
        record = home.load()
        if record is not None and await _answers(home, record):
            return record
        await asyncio.sleep(LOOK_INTERVAL)


def _launch(home: ServerDirectory, lock: int, kind: str, options: EmbeddedOptions) -> None:
    """Start a supervisor in a session of its own (Ctrl-C here is not for it) that owns `lock` from now on."""
    try:
        kind_named(kind).check()
        # -P: modules never come from the directory that the user happens to be in.
        command = [sys.executable, "-P", "-m", "tailrace._supervisor", str(home.path), "--kind", kind]
        command += ["--lock-fd", str(lock), "--options", json.dumps(asdict(options))]
        with home.log.open("ab") as log:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedError(
            f"The embedded broker's supervisor does not start: {error}\n{home.log_tail()}",
            hint=f"Mend what the log names ({home.log}) and try again.",
        ) from error
    finally:
        os.close(lock)


async def _answers(home: ServerDirectory, record: ServerRecord) -> bool:
    """Whether the recorded server takes clients, and a supervisor stands behind it."""
    if record.server_pid is None or not await kind_named(record.kind).answers(record):
        return False
    # Asked last: a supervisor's lock falls free before its server is killed.
    return is_locked(home.supervisor_lock)


def _check_kind(wanted: str, home: ServerDirectory) -> None:
    record = home.load()
    if record is not None and record.kind != wanted:
        raise EmbeddedError(
            f"The directory {home.path} holds an embedded broker of another kind: {record.kind}, not {wanted}",
            code="embedded-options",
            hint="Name another directory.",
        )


def _check_options(wanted: EmbeddedOptions, record: ServerRecord, home: ServerDirectory) -> None:
    unmet = wanted.unmet_by(record.options)
    if unmet:
        raise EmbeddedError(
            f"The embedded broker in {home.path} already runs with other settings: {', '.join(unmet)}",
            code="embedded-options",
            hint="Use the same settings, end its users, or name another directory.",
        )


async def _keep(home: ServerDirectory, kind: str, options: EmbeddedOptions) -> None:
    """While attached, replace a supervisor that ended although there are users (killed, or told to)."""
    while True:
        await asyncio.sleep(KEEP_INTERVAL)
        try:
            if not is_locked(home.server_lock):
                _log.warning("the embedded broker in %s is gone, starting it again", home.path)
                await _ensure_server(home, kind, options)
        except (BrokerError, OSError) as error:
            _log.error("%s", error)
            await asyncio.sleep(KEEP_BACKOFF)
