"""What the processes that share one embedded broker find in its directory.

Theory. Processes that know nothing of each other share a directory and agree through three OS locks (`flock`),
which the kernel releases whatever way a holder ends. No pid is ever judged.

    server.lock      exclusive. Whoever runs, or is about to run, the server on the data. The user that takes
                     it hands the descriptor to a supervisor, and that one to the server, so it is free only
                     when all of them are gone: two servers never meet on one store.
    supervisor.lock  exclusive, the supervisor's alone: free while `server.lock` is taken means that what still
                     runs is an orphan about to end.
    users.lock       shared by every user; the supervisor that gets it exclusively knows that none is left.

    server.json      address, credentials and settings (0600), replaced by rename
    server.conf      what the server reads (0600); for Kafka server.properties
    server.log       what the server and its supervisor say
    jetstream/       the data; for Kafka data/

Rules. Lock files are never deleted, or two holders could each lock "the" file. A lock is released by closing its
descriptor, never by `LOCK_UN`, which would take it from everyone who shares the descriptor. Only the holder of
`server.lock` writes. A process forked from a user (without exec) is that user, too. The directory is on a local
disk: network file systems do not share a lock between copies of its descriptor.
"""

import json
import os
import secrets
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    raise ImportError("the embedded broker needs a POSIX system; run a server and use its nats:// or kafka:// URL")

import fcntl

from tailrace.errors import BrokerError

HOST = "127.0.0.1"


class EmbeddedError(BrokerError):
    """The embedded broker cannot be had; `code` says why, `hint` what to do."""

    code = "embedded-start"


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """Settings of the server; `None` and `False` ask for nothing.

    sync_always: fsync before every ack, so that an ack survives a power cut. max_payload: bytes of one message, or of
    one batch of Kafka's (the server's default is 1 MiB). port: listen on this one, instead of a free one chosen at the
    first start.
    """

    sync_always: bool = False
    max_payload: int | None = None
    port: int | None = None

    def unmet_by(self, running: "EmbeddedOptions") -> list[str]:
        """Names of the settings asked for here that the running server does not have."""
        have = asdict(running)
        return [name for name, wanted in asdict(self).items() if wanted and have[name] != wanted]


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The content of `server.json`. The pids are for people and for tests: nothing is decided by them."""

    port: int
    options: EmbeddedOptions = field(default_factory=EmbeddedOptions)
    user: str = field(default_factory=lambda: "tailrace-" + secrets.token_hex(4))
    password: str = field(default_factory=lambda: secrets.token_hex(24), repr=False)
    server_name: str = field(default_factory=lambda: "tailrace-" + secrets.token_hex(4))
    kind: str = "nats"
    supervisor_pid: int | None = None
    server_pid: int | None = None

    @property
    def url(self) -> str:
        """`nats://user:password@127.0.0.1:port`, or the same with `kafka://`."""
        return f"{self.kind}://{self.user}:{self.password}@{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerDirectory:
    """The paths of one embedded broker's directory, and how its files are read, written and locked."""

    path: Path

    @property
    def server_lock(self) -> Path:
        return self.path / "server.lock"

    @property
    def supervisor_lock(self) -> Path:
        return self.path / "supervisor.lock"

    @property
    def users_lock(self) -> Path:
        return self.path / "users.lock"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    def prepare(self) -> None:
        """Create the directory (0700) and its locks. Raises EmbeddedError when it cannot be written."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file in (self.server_lock, self.supervisor_lock, self.users_lock, self.log):
                os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        except OSError as error:
            raise EmbeddedError(
                f"The embedded broker's directory {self.path} cannot be written: {error.strerror}",
                code="embedded-directory",
                hint="Make it writable, or name another one: embedded:///path/to/directory",
            ) from error

    def load(self) -> ServerRecord | None:
        """The record, or None where there is none that can be read (a new one costs no data)."""
        try:
            fields: dict[str, Any] = json.loads((self.path / "server.json").read_bytes())
            return ServerRecord(**{**fields, "options": EmbeddedOptions(**fields["options"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, record: ServerRecord) -> None:
        """Replace `server.json`."""
        self.replace("server.json", json.dumps(asdict(record), indent=1) + "\n")

    def replace(self, name: str, text: str) -> None:
        """Replace a file, at once and readable by the owner only."""
        draft = self.path / (name + ".new")
        # A draft that a killed writer left may have another mode; an existing file would keep it.
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(self.path / name)

    def log_size(self) -> int:
        """Bytes in `server.log`: where what comes next begins."""
        return self.log.stat().st_size

    def log_tail(self, start: int = 0, lines: int = 12) -> str:
        """The last lines written to `server.log` behind byte `start`."""
        try:
            data = self.log.read_bytes()
        except OSError:
            return ""
        # A log shorter than `start` has been rotated.
        new = data[start:] if len(data) >= start else data
        return "\n".join(new.decode("utf-8", "replace").rstrip("\n").split("\n")[-lines:])


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock `path` now or not at all: a descriptor that holds the lock until closed, or None if another holds it."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def wait_lock(path: Path) -> int:
    """Lock `path` exclusively, waiting: for a lock that others only ever try for a moment."""
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether another process holds `path` exclusively."""
    descriptor = try_lock(path, shared=True)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False
