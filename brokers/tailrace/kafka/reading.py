"""What brokers store, as records: batches taken apart, and reads from one offset to another.

Damage. A batch whose content does not fit its checksum is served, and is passed over by its length. Where the damage
is in its head, a broker that looks for a later offset fails there too, up to the next one that its index names (each 4
KB): it answers an error, or nothing at all, or something that is not what was asked for. Only trying tells from where
on it serves again (`served_from`).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple, Protocol

from aiokafka.record.memory_records import MemoryRecords

from tailrace.errors import BrokerUnavailable
from tailrace.kafka import refusals
from tailrace.kafka.connection import RETRY_PAUSE, Connection, Fetched, Place
from tailrace.records import Record

READ_BYTES = 64 * 1024, 1024 * 1024  # asked for at once, at least and at most
A_RECORD = 1024  # bytes of a record, roughly
TRIES = 5  # before a batch counts as damaged: after a change of the leader another copy is asked for
_HEAD = struct.Struct(">qi4xb6xi")  # of a batch: its first offset, length, version, and how many offsets follow
_BEFORE_LENGTH = 12  # bytes that a batch's length does not count
_LATE = 1 << 20  # offsets: a broker takes the end that it names before it reads, and more may come meanwhile


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


def _whole(data: bytes, high: int) -> bytes:
    """The batches up to the first that is cut off, or whose head cannot be."""
    position = 0
    while position + _HEAD.size <= len(data):
        first, length, version, more = _HEAD.unpack_from(data, position)
        behind = position + _BEFORE_LENGTH + length
        if not position + _HEAD.size <= behind <= len(data) or version != 2 or not 0 <= first + more < high + _LATE:
            break
        position = behind
    return data[:position]


def batches_of(data: bytes, start: int, high: int = 1 << 62) -> Iterator[Batch]:
    """The batches in a broker's answer, without what is before offset ``start``; the partition's records end before
    ``high``. What follows a batch that is cut off, or whose head is damaged, is left out; one that is damaged otherwise
    has no records."""
    found = MemoryRecords(_whole(data, high))
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


def refused(fetched: Fetched, offset: int) -> bool:
    """Whether there is something at the offset that was asked for, and the answer does not have it."""
    if fetched.error:
        return fetched.error in refusals.DAMAGED
    return offset < fetched.high and not _whole(fetched.data, fetched.high)


async def served_from(connection: Connection, place: Place, offset: int) -> int:
    """The first offset, from ``offset`` on, that is not refused: at last the partition's end. Raises `BrokerError`,
    also for a fault of the broker's that is not seen to be the batch's."""
    for _ in range(TRIES):
        fetched = await connection.fetch(place, offset, 1)
        if not refused(fetched, offset):
            return offset
        await asyncio.sleep(RETRY_PAUSE)
        await connection.relearn()
    below, found = offset, offset + 1
    while refused(await connection.fetch(place, found, 1), found):
        below, found = found, found + 2 * (found - offset)
    while found - below > 1:
        middle = (below + found) // 2
        if refused(await connection.fetch(place, middle, 1), middle):
            below = middle
        else:
            found = middle
    if fetched.error == refusals.UNKNOWN and not (await connection.fetch(place, found, 1)).data:
        raise refusals.of(fetched.error, f"read of {place} at {connection}")
    # what was served behind it may be so because a fault is over: then nothing is damaged
    return found if refused(await connection.fetch(place, offset, 1), offset) else offset


async def read(connection: Connection, place: Place, start: int, end: int) -> AsyncIterator[Batch]:
    """The partition's batches from offset ``start`` to before ``end``. Where the broker no longer holds the beginning,
    the first batch is an empty one that says so. Raises `BrokerError`."""
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
        if refused(fetched, position):
            if (found := await served_from(connection, place, position)) > position:
                connection.damage(place, (position, found))
                yield Batch([], found, (position, found))
                position = found
            continue
        before = position
        for batch in batches_of(fetched.data, position, fetched.high):
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


def first_of(fetched: Fetched, offset: int) -> Raw | None:
    """The first record of an answer from ``offset`` on."""
    for batch in batches_of(fetched.data, offset, fetched.high):
        for raw in batch.records:
            return raw
    return None


def is_same(one: Raw, other: Raw) -> bool:
    """Whether the two are one record."""
    return (one.offset, one.timestamp, one.key, one.value, one.headers) == (
        other.offset,
        other.timestamp,
        other.key,
        other.value,
        other.headers,
    )
