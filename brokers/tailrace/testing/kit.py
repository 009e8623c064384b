"""What a store supplies to the contract kit, and what the kit's classes share.

A store supplies the fixture ``make_store``: an async callable that gives a *new* store object, started, on the broker
of this test, so that two of them are to each other what two processes are. It takes `Limits` (None: the defaults) and
is torn down with every store it made. The broker, or the store's part of it, is empty when a test begins.

A store on a broker whose time a test can move supplies the fixture ``clock`` too; on others time passes by itself, and
the tests that need it wait for the endings that it brings. ``capabilities`` is what the store declares to promise.

Nothing here asserts a duration. `within` bounds what must not hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, ClassVar, Protocol, TypeVar

import pytest
import pytest_asyncio

from tailrace.contracts import Capabilities, Reader, StreamStore
from tailrace.errors import StreamEnded
from tailrace.model import Acquisition, Entry, Lease, Limits, Offset

T = TypeVar("T")

PATIENCE = 30.0  # seconds after which something hangs
ODD_IDS = ("a..b", ":", ".", "..", "-", "_", "a" * 256, ":." * 128)
NO_IDS = ("", "a\n", "\n", "a" * 257, "a b", "a/b", "ä", "a*", ">", "a\x00")


class Clock(Protocol):
    """The broker's time. ``ttl``: seconds, a time to live that a test can wait out; ``still``: time passes by
    `advance` alone."""

    ttl: float
    still: bool

    async def advance(self, seconds: float) -> None:
        """Return when ``seconds`` of broker time have passed."""


class WallClock:
    """A broker whose time nobody can move."""

    ttl = 3.0
    still = False

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MakeStore(Protocol):
    async def __call__(self, limits: Limits | None = None) -> StreamStore: ...


async def within(work: Awaitable[T]) -> T:
    """``work``, or a failure where it hangs."""
    return await asyncio.wait_for(work, PATIENCE)


async def lease_of(store: StreamStore, stream_id: str, **options: Any) -> Lease:
    """Acquire a stream that must be free."""
    return producer(await within(store.acquire(stream_id, **options)))


def producer(acquisition: Acquisition) -> Lease:
    assert acquisition.role == "producer"
    assert acquisition.lease is not None
    assert acquisition.lease.incarnation == acquisition.incarnation
    return acquisition.lease


async def write(store: StreamStore, stream_id: str, *chunks: bytes, end: str | None = "done") -> list[str]:
    """Acquire, append, finalize; the cursors."""
    lease = await lease_of(store, stream_id)
    cursors = [await within(store.append(stream_id, chunk, lease)) for chunk in chunks]
    if end is not None:
        await within(store.finalize(stream_id, end, None, lease))
    return cursors


async def entries(store: StreamStore, stream_id: str, cursor: str | Offset = "") -> list[Entry]:
    """Read to a clean end."""
    return await within(_all(store.read(stream_id, cursor)))


async def _all(reading: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in reading]


async def chunks(store: StreamStore, stream_id: str, cursor: str | Offset = "") -> list[bytes]:
    return [entry.chunk for entry in await entries(store, stream_id, cursor)]


async def content(store: StreamStore, stream_id: str, cursor: str | Offset = "") -> bytes:
    return b"".join(await chunks(store, stream_id, cursor))


async def until_ending(reading: AsyncIterator[Entry]) -> tuple[list[bytes], StreamEnded | None]:
    """What a read gives, and the ending it raises (None: a clean end)."""
    got: list[bytes] = []

    async def drain() -> None:
        async for entry in reading:
            got.append(entry.chunk)

    try:
        await within(drain())
    except StreamEnded as error:
        return got, error
    return got, None


async def drain(reader: Reader) -> list[Entry]:
    """Everything up to the reader's ending."""
    got = list(reader.take())
    while reader.ending is None:
        await within(reader.wait())
        got += reader.take()
    return got


async def drain_bytes(reader: Reader) -> bytes:
    """The same as one body."""
    body = reader.take_bytes()
    while reader.ending is None:
        await within(reader.wait())
        body += reader.take_bytes()
    return body


async def expire(store: StreamStore, clock: Clock, stream_id: str) -> None:
    """Let the stream's time to live (``clock.ttl``) pass, and return once it has expired."""
    reader = await within(store.open(stream_id))
    await clock.advance(clock.ttl)
    await clock.advance(0.01)
    await drain(reader)
    reader.close()
    assert reader.ending is not None
    assert reader.ending.status == "expired"


async def until_gone(store: StreamStore, clock: Clock, stream_id: str) -> None:
    """Let time pass until the stream, which nobody reads, has expired."""
    async with asyncio.timeout(PATIENCE):
        while (await store.status(stream_id)).status.seed != "missing":
            await clock.advance(0.1)


class StoreKit:
    """The base of the kit's classes."""

    pytestmark: ClassVar[Any] = pytest.mark.asyncio
    capabilities: ClassVar[Capabilities]

    @pytest.fixture
    def make_store(self) -> MakeStore:
        raise NotImplementedError("A store supplies the fixture make_store: see tailrace.testing.kit")

    @pytest.fixture
    def clock(self) -> Clock:
        return WallClock()

    @pytest_asyncio.fixture
    async def store(self, make_store: MakeStore) -> StreamStore:
        return await make_store()

    @pytest_asyncio.fixture
    async def other(self, make_store: MakeStore) -> StreamStore:
        """Another process's store."""
        return await make_store()
