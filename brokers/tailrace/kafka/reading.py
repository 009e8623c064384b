"""What brokers store, as records: batches taken apart, and reads from one offset to another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Protocol

from aiokafka.record.memory_records import MemoryRecords

from tailrace.errors import BrokerUnavailable
from tailrace.kafka import refusals
from tailrace.kafka.connection import Connection, Place
from tailrace.records import Record

READ_BYTES = 64 * 1024, 1024 * 1024  # asked for at once, at least and at most
A_RECORD = 1024  # bytes of a record, roughly


class Raw(Protocol):
    """A record as the client library gives it. ``timestamp`` is the broker's time in ms."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Sent(NamedTuple):
    """A record that this process stored: a `Raw`, and what it was made from."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    meant: tuple[Record, int] | None


class Batch(NamedTuple):
    """Records of one partition, in order; behind them comes ``next_offset``. ``unreadable``: the offsets from the first
    to before the second hold something that cannot be read. ``trimmed``: what came before is not kept any more."""

    records: list[Raw]
    next_offset: int
    unreadable: tuple[int, int] | None = None
    trimmed: bool = False


def batches_of(data: bytes, start: int) -> Iterator[Batch]:
    """The batches in a broker's answer, without what is before offset ``start``. A batch that is cut off at the end is
    left out; one that is damaged has no records."""
    found = MemoryRecords(data)
    while found.has_next():
        batch = found.next_batch()
        if batch is None:
            return
        next_offset = batch.next_offset
        if next_offset <= start:
            continue
        try:
            sound = batch.validate_crc()
            records = [] if batch.is_control_batch else [raw for raw in batch if raw.offset >= start]
        except Exception:  # noqa: BLE001 - whatever the library stumbles over: a length, a codec, a header's name
            sound = False
        if sound:
            yield Batch(records, next_offset)
        else:
            yield Batch([], next_offset, (max(start, batch.base_offset), next_offset))


async def read(connection: Connection, place: Place, start: int, end: int) -> AsyncIterator[Batch]:
    """The partition's batches from offset ``start`` to before ``end``. Where the broker no longer holds the beginning,
    the first batch is an empty one that says so. Raises `BrokerUnavailable`."""
    position = start
    while position < end:
        size = min(max((end - position) * A_RECORD, READ_BYTES[0]), READ_BYTES[1])
        fetched = await connection.fetch(place, position, size)
        if fetched.error == refusals.OFFSET_OUT_OF_RANGE:
            first = (await connection.offsets([place], -2))[place] if fetched.first <= position else fetched.first
            if first <= position:
                raise _shrunk(connection, place, end)
            position = first
            yield Batch([], first, trimmed=True)
            continue
        before = position
        for batch in batches_of(fetched.data, position):
            position = batch.next_offset
            connection.clock.see(batch.records[-1].timestamp if batch.records else 0)
            if batch.unreadable is not None:
                connection.damage(place, batch.unreadable)
            if position > end:
                batch = batch._replace(records=[raw for raw in batch.records if raw.offset < end])
            yield batch
            if position >= end:
                return
        if position == before:
            raise _shrunk(connection, place, end)


def _shrunk(connection: Connection, place: Place, end: int) -> BrokerUnavailable:
    return BrokerUnavailable(f"{place} at {connection} does not hold what it held up to {end}, or not yet")
