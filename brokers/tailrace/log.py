"""What a broker does for a stream, and all it does: the protocol that adapters implement.

A log keeps each stream's records in order, appends one on the condition that nothing came since, and tells followers of
new ones. It decides nothing: whether a record counts is the fold's business, what to store next is `decide`'s. The
store (`tailrace.store`) drives a log; adapters never import one another or the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from tailrace.contracts import RunQueue
from tailrace.model import Incarnation
from tailrace.records import Record, Stored


class AppendRefused(Exception):
    """The condition did not hold: nothing was stored."""


class AppendUnknown(Exception):
    """No answer came: the record may be stored, may be stored later, or never."""


class Following(Protocol):
    """A subscription that `Log.follow` or `Beats.follow` made."""

    async def close(self) -> None:
        """Stop delivering. Idempotent."""


class Log(Protocol):
    """Every call may raise `tailrace.errors.BrokerError` (`BrokerUnavailable`: it is away, nothing was stored).

    Positions are the broker's own (greater than 0, growing within a stream, not necessarily by one). They never leave
    the process: cursors are logical.
    """

    @property
    def max_record_bytes(self) -> int:
        """The largest payload of a record or segment that the broker takes, headers aside."""

    def now_ms(self) -> int:
        """Broker time as far as this process knows: the newest broker timestamp received, a lower bound."""

    def key(self, stream_id: str) -> str:
        """The short name of the stream in the broker (a hash): what heartbeats list."""

    async def append(self, record: Record, expected: int) -> int:
        """Store ``record`` if the last record of its stream is at position ``expected`` (0: there is none), and
        return its position. Raises `AppendRefused`, `AppendUnknown`."""

    async def last(self, stream_id: str) -> Stored | None:
        """The stream's last record, from the leader: what decisions rest on."""

    async def read(self, stream_id: str, after: int = 0) -> list[Stored]:
        """The stream's records behind ``after``, in order and without gaps, up to (at least) the leader's last at the
        time of the call."""

    async def follow(
        self, stream_id: str, deliver: Callable[[Stored], None], uncertain: Callable[[], None]
    ) -> Following:
        """Deliver every record stored from now on, in order. Active when this returns. A record may go missing: then
        the next one's ``previous`` names a position that was not delivered, or ``uncertain`` is called (after a
        reconnect or an overflow), and the follower reads. ``deliver`` must not block or raise."""

    def lasts(self) -> AsyncIterator[Stored]:
        """The last record of every stream."""

    async def count(self, below: int) -> int:
        """How many streams are there (not deleted, not expired), counted no further than ``below``."""

    async def write_segments(self, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]) -> None:
        """Store the sealed stream, once: a second writer changes nothing."""

    async def read_segments(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        """The sealed stream's segments, or None where it is not (completely) sealed."""

    async def drop_segments(self, stream_id: str, incarnation: Incarnation) -> None:
        """Remove them, if they are there."""

    async def close(self) -> None:
        """Close what this log opened."""


class Beats(Protocol):
    """Heartbeats: small stored messages, one subject or key a member, that every process follows."""

    async def send(self, member_id: str, payload: bytes) -> None:
        """Store one heartbeat; the one before may not be answered yet. Raises `BrokerUnavailable` where it may not be
        stored."""

    async def follow(self, deliver: Callable[[int, bytes], None], uncertain: Callable[[], None]) -> Following:
        """Deliver every heartbeat stored from now on as (broker time in ms, payload), this process's own included."""

    async def recent(self) -> list[tuple[int, bytes]]:
        """The last heartbeat of each member that the broker still holds, as (broker time in ms, payload)."""


class Broker(Protocol):
    """An opened broker, as each adapter's opener gives it back: what a store is made of."""

    @property
    def log(self) -> Log: ...

    @property
    def beats(self) -> Beats: ...

    @property
    def runs(self) -> RunQueue: ...

    async def close(self) -> None:
        """Close the connections, and what runs over them. Idempotent."""
