"""The contracts, and the guarantees each gives. Read this first.

`StreamStore` keeps streams, `Members` says who is alive, `RunQueue` makes accepted runs run. Every store passes one
contract kit (`tailrace.testing`); what a store cannot promise it declares in its `Capabilities`, and no capability
switches off promises 2, 4 or 5.

The promises:

1. One producer: N concurrent acquires from N processes give one producer and N-1 consumers.
2. Byte identity: all readers see the same accepted bytes in the same order; a cursor resumes with no gap, no repeat.
3. Acked means kept, at the durability that the broker is configured for.
4. Fenced: after takeover, delete and re-acquire, or expiry and re-acquire, the old producer changes nothing.
5. Every ending is true: a clean end stands for ``done`` alone.
6. No polling: an idle reader costs the broker nothing.
7. Bounded: every limit is a setting with its own error; a slow reader is cut off with a cursor.
8. Any gateway, any time: nothing is kept in a process that the broker cannot give back.
9. An accepted run runs, at least once, and its stream reaches a true ending.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from tailrace.model import Acquisition, Ending, Entry, Incarnation, Lease, Limits, Offset, RunRef, StreamInfo


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store promises beyond one process. Listed in docs/stores.md; a test compares the two."""

    shared: bool  # other processes see the same streams
    durable: bool  # acked chunks survive a kill of the broker
    runs: bool = True  # has a run queue
    exclusive: bool = True  # nobody but Tailrace writes its streams; where others may, they are not fenced


class Reader(Protocol):
    """One reader at the shared tail of a stream: an index and a waker of its own.

    Entries are in order, without gap or repeat. ``take`` never blocks; after it gave everything, ``ending`` is set as
    soon as the stream has one. A reader that lags by more than `Limits.max_reader_lag_bytes` is cut off: ``wait`` and
    ``take`` raise `SlowReader` with the cursor that resumes.
    """

    @property
    def info(self) -> StreamInfo:
        """The stream as known now (content type, headers, incarnation …)."""

    @property
    def ending(self) -> Ending | None:
        """The stream's ending, once every entry before it was taken; until then None."""

    @property
    def cursor(self) -> str:
        """The cursor after the last entry taken."""

    def take(self, max_entries: int | None = None) -> list[Entry]:
        """Everything since the last take (or at most ``max_entries``), possibly nothing."""

    def take_bytes(self, max_bytes: int = 256 * 1024) -> bytes:
        """The same as one body: the joined bytes since the last take, about ``max_bytes`` at most (a leading part
        skipped for an `Offset`); empty where there is nothing."""

    async def wait(self) -> None:
        """Return when there may be something to take, or an ending."""

    def on_wake(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` (synchronously, never re-entrantly from take) each time there is something to take, in
        place of `wait`: the gateway's fast path."""

    def on_bytes(self, sink: Callable[[bytes], bool] | None) -> None:
        """Offer new bytes to ``sink`` as they come, whenever everything before them was taken. Where it says True they
        count as taken; where it says False the reader is woken as without it."""

    def close(self) -> None:
        """Leave. Idempotent; ends a pending wait."""


class StreamStore(Protocol):
    """Streams on a broker. Every call validates the id first (`InvalidStreamId`).

    Every call may raise `BrokerUnavailable` for a *new* request while the broker is away; appends of a live lease and
    live readers wait for it instead. Safe to cancel anywhere: a cancelled acquire never leaves a lease that nobody
    serves, a cancelled append may or may not be stored, and what follows it is in order either way.
    """

    limits: Limits
    capabilities: Capabilities

    @property
    def members(self) -> Members: ...

    @property
    def runs(self) -> RunQueue: ...

    async def acquire(
        self,
        stream_id: str,
        *,
        ttl: float | None = None,
        content_type: str = "application/octet-stream",
        headers: Sequence[tuple[str, str]] = (),
        run: RunRef | None = None,
        ending: Ending | None = None,
        patient: bool = False,
    ) -> Acquisition:
        """Atomic election: the first caller is the producer and has a lease, every later one a consumer, after the
        ending too; after delete or expiry the next caller is a producer again, in the next generation.

        ``ttl`` in seconds (default `Limits.default_ttl`) counts from the last append or the ending. With ``ending``
        the stream is claimed and ended in one record (a run that is cancelled before it starts). An election whose
        outcome is unknown is given up, and its stream ended, after a request's time; with ``patient`` only when this
        call is cancelled: a worker that waits may still run what it was accepted for.
        Raises `TooManyStreams`, `TtlTooLong`.
        """

    async def append(self, stream_id: str, chunk: bytes, lease: Lease | None = None) -> str:
        """Store one chunk, and return its cursor once it is kept. Without ``lease`` the one that this store object
        acquired is used. Waits while the broker is away.

        Raises `StreamNotFound`, `StreamSuperseded` (fenced), `StreamFinalized`, `LeaseRequired`, `ChunkTooLarge`,
        `TooManyEntries`, `StreamTooLarge`, `StreamTrimmed` (the broker lost acknowledged records).
        """

    async def extend(self, stream_id: str, chunks: Sequence[bytes], lease: Lease | None = None) -> str:
        """`append` for several chunks at once: one acknowledgement, the cursor of the last. All or a prefix is stored
        when it raises."""

    async def finalize(
        self,
        stream_id: str,
        status: str,
        error: str | None = None,
        lease: Lease | None = None,
        *,
        code: str | None = None,
    ) -> None:
        """End the stream: ``done``, ``error`` or ``cancelled``, after everything appended before. A second finalize
        is a no-op (the first wins), so is a superseded producer's. Raises `StreamNotFound`, `LeaseRequired`."""

    def read(self, stream_id: str, cursor: str | Offset = "") -> AsyncIterator[Entry]:
        """All entries after ``cursor`` (``""``: from the beginning), then live, to the ending.

        Ends cleanly after ``done`` and where the stream is deleted meanwhile (the seed contract); raises the ending's
        error after the last entry else: `StreamErrored`, `StreamCancelled`, `StreamExpired`, `ProducerLost`,
        `StreamTrimmed`. Raises `StreamNotFound`, `InvalidCursor`, `CursorGone`, `OffsetOutOfRange`,
        `TooManyReaders`, `SlowReader`. Closing the iterator ends the read without an error.
        """

    async def open(self, stream_id: str, cursor: str | Offset = "", *, wait: float = 0) -> Reader:
        """A reader on the stream, as ``read`` uses one. With ``wait`` (seconds) a stream that is not there yet is
        awaited that long. Raises what ``read`` raises at its start."""

    async def status(self, stream_id: str) -> StreamInfo:
        """What the stream is now; ``missing`` where there is none (``queued`` for an accepted run without a claim).
        Whatever any process was told is stored is in it."""

    async def delete(self, stream_id: str, incarnation: Incarnation | None = None) -> bool:
        """End this incarnation (or only that one) and free the id; readers end. False if there was nothing."""

    async def takeover(self, stream_id: str, lost_epoch: int, ending: Ending | None = None) -> Lease | None:
        """Fence ``lost_epoch`` of the current incarnation: every older lease is superseded. With ``ending`` the
        stream ends with it, in the same record, and there is no lease. None too if that epoch no longer holds."""

    def streams(self) -> AsyncIterator[StreamInfo]:
        """Every stream that is there, in no order; as new as a `status`."""

    async def aclose(self) -> None:
        """Close what this store opened. Leases it still holds end their streams as ``producer-lost``."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """A live process as its heartbeats tell. ``handlers``: name -> JSON schema of its input (or {})."""

    id: str
    handlers: Mapping[str, Any] = field(default_factory=dict)
    free_slots: int = 0
    host: str = ""


class Members(Protocol):
    """Who is alive, by stored heartbeats. Silence counts only while this process hears its own beats come back."""

    @property
    def id(self) -> str:
        """This process's member id, new at every start."""

    def advertise(self, handlers: Mapping[str, Any], free_slots: Callable[[], int]) -> None:
        """What this process's heartbeats say of it; a worker calls this once, before it takes runs."""

    def alive(self) -> Sequence[MemberInfo]:
        """The members believed alive, this one included."""

    def is_lost(self, member_id: str) -> bool:
        """Whether the member has been silent for a lease's time while this process heard its own beats."""

    async def settled(self) -> None:
        """Return once one beat interval was heard, so that ``alive`` is worth asking."""


@dataclass(frozen=True, slots=True)
class Command:
    """An accepted run: what a worker needs to execute it. ``input`` is JSON text as the client sent it."""

    stream_id: str
    handler: str
    input: bytes
    format: str
    digest: str
    ttl: float | None = None
    policy: str = "fail"
    id: str = ""  # set by submit: names this command among others of the same stream id


class Delivery(Protocol):
    """A command in a worker's hands. It is delivered again unless it is acked."""

    @property
    def command(self) -> Command: ...

    @property
    def attempt(self) -> int:
        """1 at the first delivery."""

    async def ack(self) -> None:
        """The run has its ending: forget the command."""

    async def retry(self, delay: float) -> None:
        """Deliver it again, here or elsewhere, in ``delay`` seconds."""

    async def working(self) -> None:
        """Still at it: do not deliver it elsewhere yet."""

    async def bury(self, reason: str) -> None:
        """Put it into the dead letters and forget it."""


class RunQueue(Protocol):
    """Promises one thing: a run whose worker is lost is delivered again."""

    async def submit(self, command: Command) -> Command:
        """Store the command durably; that is the acceptance. Gives it back with its ``id``; a command that is queued
        under the same stream id and handler already is given back instead of a second one. Raises `RunTooLarge`."""

    async def find(self, stream_id: str) -> Command | None:
        """The command that is queued for this stream and has no ending yet."""

    async def cancel(self, member_id: str, stream_id: str) -> None:
        """Tell the member that owns the run to stop it (a message: the owner writes the ending)."""
