"""Sealed streams: a few large records in a topic of their own, found by their offsets.

Theory. The segments are stored first, and then, among the claims, where they are: that makes the seal, and the first
one counts. A writer that dies before leaves records that nobody looks for. Age removes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tailrace.errors import BrokerUnavailable, ChunkTooLarge
from tailrace.kafka import refusals
from tailrace.kafka.claims import Claims
from tailrace.kafka.connection import Connection, Place
from tailrace.kafka.reading import batches_of
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.sender import Sender, size_of
from tailrace.kafka.topics import Names
from tailrace.model import Incarnation

SEGMENT = "Tailrace-Segment"  # <incarnation>;<number>
READ_BYTES = 64 * 1024  # a partition gives its first batch whole, however large, and nothing behind it


class Segments:
    """The sealed streams of one log."""

    def __init__(self, connection: Connection, names: Names, claims: Claims, sender: Sender) -> None:
        self._connection = connection
        self._names = names
        self._claims = claims
        self._sender = sender

    async def write(self, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]) -> None:
        """Store the seal, unless there is one. Raises `BrokerUnavailable`."""
        if await self.read_places(stream_id, incarnation) is not None:
            return
        place, offsets = self._names.sealed(stream_id), []
        for number, segment in enumerate(segments):
            headers = [(SEGMENT, f"{incarnation};{number}".encode())]
            key, most = stream_id.encode(), self._connection.options.max_message_bytes
            if (size := size_of(key, segment, headers)) > most:
                raise ChunkTooLarge(
                    f"A segment of {size} bytes: {place.topic} takes {most}",
                    hint="Write smaller segments, or raise the topic's max.message.bytes.",
                )
            try:
                async with asyncio.timeout(self._connection.options.request_timeout):
                    offsets.append((await self._sender.send(place, key, segment, headers)).offset)
            except (Unanswered, TimeoutError) as error:
                raise BrokerUnavailable(f"{place} at {self._connection} did not confirm a segment") from error
        await self._claims.seal(stream_id, incarnation, offsets)

    async def read_places(self, stream_id: str, incarnation: Incarnation) -> list[int] | None:
        """The offsets of the seal's segments, or None where there is no seal."""
        entry = await self._claims.current(stream_id)
        return (entry.seals or {}).get(str(incarnation)) if entry is not None else None

    async def read(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        """The segments, or None where the stream is not sealed, or one of them is gone. Raises `BrokerUnavailable`."""
        offsets = await self.read_places(stream_id, incarnation)
        if not offsets:
            return None
        place, found = self._names.sealed(stream_id), list[bytes]()
        for number, offset in enumerate(offsets):
            segment = await self._read(place, offset, stream_id.encode(), f"{incarnation};{number}".encode())
            if segment is None:
                return None
            found.append(segment)
        return found

    async def _read(self, place: Place, offset: int, key: bytes, label: bytes) -> bytes | None:
        fetched = await self._connection.fetch(place, offset, READ_BYTES)
        if fetched.error == refusals.OFFSET_OUT_OF_RANGE:
            return None
        for batch in batches_of(fetched.data, offset):
            for raw in batch.records:
                if raw.offset == offset and raw.key == key and (SEGMENT, label) in list(raw.headers):
                    return bytes(raw.value or b"")
            return None
        return None
