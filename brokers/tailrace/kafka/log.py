"""`Log` on Kafka: records that name what they follow, judged by every reader alike.

Theory. A stream's records are those of its key in one partition, their positions the offsets plus one. The broker
stores whatever it is sent; which records count is said by `chain`. So an append is sent, and its outcome is what the
partition says when it comes back: it directly follows the one that it names, or another came first. What is true for
its writer is true for all, and a writer that was paused, cut off or superseded adds nothing, whatever it sends later.

Rules.

- A claim is sent only behind an opening in the table of claims, so that every process finds it, now or later.
- A question about the present asks the partition's leader for its end, and reads up to there.
- An append without an outcome is unknown, never repeated here; a second copy would not count.
- What frees an id is told to nobody before its copy is among the claims: who reads there must not see the stream again.
- A message that is not a record is skipped, counted in `skipped`, and named once in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from tailrace.commit import insist
from tailrace.decide import begins_a_life, ends_a_life
from tailrace.errors import BrokerFailed, BrokerUnavailable, ChunkTooLarge, TailraceError
from tailrace.kafka import wire
from tailrace.kafka.claims import Claims, Entry
from tailrace.kafka.connection import Connection
from tailrace.kafka.feeds import Feeds
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.segments import Segments
from tailrace.kafka.sender import Ack, Headers, Sender, size_of
from tailrace.kafka.topics import Names
from tailrace.kafka.track import Track
from tailrace.kafka.tracks import Tracks, start_of
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation
from tailrace.records import Record, Stored
from tailrace.tasks import end

HEADER_ROOM = 32 * 1024  # of a message's size, kept for the headers (most for many chunks' sizes) and the batch's own
COPY_PATIENCE = 3.0  # seconds that the writer of an ending has for its copy, before others write it

_log = logging.getLogger(__name__)


class KafkaLog:
    """Made by `open_kafka`; see `tailrace.log.Log` for what each call promises."""

    def __init__(self, connection: Connection, names: Names, feeds: Feeds, sender: Sender, claims: Claims) -> None:
        self.clock = connection.clock
        self._connection = connection
        self._names = names
        self._feeds = feeds
        self._sender = sender
        self._claims = claims
        self._tasks: set[asyncio.Task[None]] = set()
        self._tracks = Tracks(connection, names, feeds, claims, self._spawn, self._ended)
        self._segments = Segments(connection, names, claims, sender)

    @property
    def max_record_bytes(self) -> int:
        return self._connection.options.max_message_bytes - HEADER_ROOM

    @property
    def skipped(self) -> int:
        """Messages that were no records, or not readable."""
        return self._tracks.skipped + self._claims.skipped + self._connection.damaged

    def now_ms(self) -> int:
        return self.clock.now_ms

    def key(self, stream_id: str) -> str:
        return self._names.key(stream_id)

    # --- appending

    async def append(self, record: Record, expected: int) -> int:
        headers, payload = wire.message(record, expected)
        key = record.stream_id.encode()
        if (size := size_of(key, payload, headers)) > self._connection.options.max_message_bytes:
            raise self._too_large(record, size, len(payload))
        track = await self._tracks.get(record.stream_id)
        if track.error is not None:
            raise track.error
        if track.partition.feed is not None and track.partition.feed.doubted:
            raise BrokerUnavailable(f"Who leads {track.partition.place} at {self._connection} does not answer")
        if track.position > expected:
            raise AppendRefused(f"the stream is at {track.position}")
        if begins_a_life(record):
            await self._open(track, expected)
            track = await self._tracks.get(record.stream_id)  # the opening may have shown that the table knows better
            if track.position != expected:
                raise AppendRefused(f"the stream is at {track.position}")
        position = await self._send(track, record, expected, key, payload, headers)
        try:
            await self._settle(track)
        except BrokerUnavailable as error:  # it is stored, but nobody may be told yet
            raise AppendUnknown(str(error)) from error
        return position

    async def _open(self, track: Track, base: int) -> None:
        """Make sure that there is an opening for the life behind ``base``, where the stream is now."""
        feed = track.partition.feed
        if track.chain is None or track.position != base or feed is None:
            raise AppendRefused(f"the stream is at {track.position}")
        if self._claims.is_open(track.stream_id, base, feed.position):
            return
        start, before = feed.position, track.last
        await self._settle(track)
        await self._claims.open(track.stream_id, start, before)
        entry = self._claims.peek(track.stream_id)
        if entry is not None and (entry.base != base or entry.start < start):  # another's: what it leads to comes first
            self._tracks.restart(track)
            raise AppendRefused("another process opened it first")

    async def _send(
        self, track: Track, record: Record, expected: int, key: bytes, payload: bytes, headers: Headers
    ) -> int:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[int] = loop.create_future()
        track.waiting[record.nonce] = outcome
        place = self._names.records(record.stream_id)
        sent = self._sender.send(place, key, payload, headers, (record, expected))
        sent.add_done_callback(lambda done: _failed(done, outcome))
        timer = loop.call_later(self._connection.options.request_timeout, _late, outcome)
        try:
            return await outcome
        finally:
            timer.cancel()
            if track.waiting.get(record.nonce) is outcome:
                del track.waiting[record.nonce]

    def _too_large(self, record: Record, size: int, payload: int) -> ChunkTooLarge | BrokerFailed:
        limit, where = self._connection.options.max_message_bytes, f"{self._names.chunks} at {self._connection}"
        if payload > limit - HEADER_ROOM:
            return ChunkTooLarge(
                f"A record of {size} bytes for {record.stream_id}: {where} takes {limit}, headers included",
                hint="Split the chunk, or raise the topics' max.message.bytes and TAILRACE_KAFKA_MAX_MESSAGE_BYTES.",
            )
        return BrokerFailed(
            f"A record of {record.stream_id} has {size - payload} bytes of headers, and {where} takes {limit} in all",
            hint="Give the stream fewer response headers, or store fewer chunks in one record.",
        )

    # --- reading

    async def last(self, stream_id: str) -> Stored | None:
        if self._tracks.peek(stream_id) is None:
            entry = await self._claims.current(stream_id)
            if entry is None and self._tracks.peek(stream_id) is None:
                return None
            if entry is not None and (copy := entry.gone or entry.end) is not None:
                return copy.stored()
        return (await self._current(stream_id)).last

    async def read(self, stream_id: str, after: int = 0) -> list[Stored]:
        if self._tracks.peek(stream_id) is None:
            entry = await self._claims.current(stream_id)
            if entry is None and self._tracks.peek(stream_id) is None:
                return []
            if entry is not None and (copy := entry.gone or entry.end) is not None:
                if copy.position <= after:
                    return []
                if entry.gone is not None:
                    return [copy.stored()]
                return await self._read(stream_id, entry, after, copy.position)
        track = await self._current(stream_id)
        if track.last is None or track.position <= after:
            return []
        if track.history is not None:
            return [stored for stored in track.history if stored.position > after]
        if ends_a_life(track.last.record):
            return [track.last]
        up_to = track.position  # the table may be behind the track
        return await self._read(stream_id, await self._claims.current(stream_id), after, up_to)

    async def _read(self, stream_id: str, entry: Entry | None, after: int, up_to: int) -> list[Stored]:
        """What counts behind ``after``, up to position ``up_to``."""
        chain, found = self._tracks.chain_of(entry)
        start = start_of(entry) if entry is not None else 0
        if after > start:
            chain.last, start, found = after, after, []
        found += await self._tracks.read(stream_id, chain, start, up_to, entry)
        return [stored for stored in found if stored.position > after]

    async def _current(self, stream_id: str) -> Track:
        track = await self._tracks.current(stream_id)
        await self._settle(track)
        return track

    async def follow(
        self, stream_id: str, deliver: Callable[[Stored], None], uncertain: Callable[[], None]
    ) -> Following:
        track = await self._tracks.get(stream_id)
        return Following(track, deliver, uncertain)

    async def lasts(self) -> AsyncIterator[Stored]:
        await self._claims.refresh()
        unknown: dict[str, Entry] = {}
        for stream_id, entry in self._claims.living():
            if entry.end is not None:
                yield entry.end.stored()
            elif self._tracks.peek(stream_id) is None:
                unknown[stream_id] = entry
            elif (found := (await self._current(stream_id)).last) is not None:
                yield found
        async for stored in self._tracks.scan(unknown):
            yield stored

    async def count(self, below: int | None = None) -> int:
        """The streams that are there, and those that were about to be claimed when their process died."""
        await self._claims.refresh()
        return self._claims.alive

    # --- endings

    def _ended(self, stored: Stored) -> None:
        """A record came that ended the stream, or freed its id."""
        asyncio.get_running_loop().call_later(COPY_PATIENCE, self._copy_missing, stored)

    def _copy_missing(self, stored: Stored) -> None:
        if not self._claims.has(stored) and not self._connection.closed:
            self._spawn(self._copy(stored))

    async def _copy(self, stored: Stored) -> None:
        await insist(lambda: self._claims.copy(stored))

    async def _settle(self, track: Track) -> None:
        """What is told of a stream that is gone must be among the claims."""
        last = track.last
        if last is not None and ends_a_life(last.record):
            await self._claims.copy(last)

    # --- segments

    async def write_segments(self, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]) -> None:
        await self._segments.write(stream_id, incarnation, segments)

    async def read_segments(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        return await self._segments.read(stream_id, incarnation)

    async def drop_segments(self, stream_id: str, incarnation: Incarnation) -> None:
        """Nothing to do: what frees the id hides them, and age removes them."""

    # --- tasks and closing

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, TailraceError):
            _log.error("a task of the log failed", exc_info=error)

    async def close(self) -> None:
        await end(*self._tasks)
        await self._tracks.close()
        await self._claims.close()


class Following:
    """One followed stream."""

    def __init__(self, track: Track, deliver: Callable[[Stored], None], uncertain: Callable[[], None]) -> None:
        self._track = track
        self._deliver = deliver
        self._uncertain = uncertain
        track.followers.add(deliver)
        track.uncertain.add(uncertain)

    async def close(self) -> None:
        self._track.followers.discard(self._deliver)
        self._track.uncertain.discard(self._uncertain)


def _failed(sent: asyncio.Future[Ack], outcome: asyncio.Future[int]) -> None:
    """A record that was not stored, or perhaps not, does not come back."""
    if sent.cancelled() or outcome.done() or (error := sent.exception()) is None:
        return
    outcome.set_exception(AppendUnknown(str(error)) if isinstance(error, Unanswered) else error)


def _late(outcome: asyncio.Future[int]) -> None:
    if not outcome.done():
        outcome.set_exception(AppendUnknown("the record did not come back in time"))
