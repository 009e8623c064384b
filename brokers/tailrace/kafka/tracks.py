"""Streams that this process has to do with: each one's end, as the followed partition tells it.

Theory. A track judges its stream's records as they come (`chain`), from the beginning that the claims name. Through it
an append learns whether it counted, a follower gets what counts, and a question for the last record is answered without
a read. It is made by following the partition first and reading what came before then; what comes meanwhile waits.

Rules.

- A track has seen all of its stream up to its feed's position. Who needs the present asks the leader for the
  partition's end, and waits until the feed has passed it (`Tracks.current`).
- What reads gave is kept for a moment (`history`), since whoever asks for the last record often wants the others next.
- A track that nobody uses is forgotten, and a partition without tracks is followed no more. What the table of claims
  forgets is forgotten here too: all processes must find the id free behind the same record.
- Where the broker lost records, every track of the partition begins anew, and its followers hear that they must read.
  So does one that is in use when the table forgets its stream, or hears of an earlier place to begin at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from tailrace.commit import backoff
from tailrace.errors import BrokerError, BrokerUnavailable, CorruptRecord
from tailrace.kafka.chain import Chain
from tailrace.kafka.claims import Claims, Entry
from tailrace.kafka.connection import Connection, Place
from tailrace.kafka.feed import Feed
from tailrace.kafka.feeds import Feeds
from tailrace.kafka.reading import Batch, Raw, read
from tailrace.kafka.topics import Names
from tailrace.kafka.track import Track
from tailrace.log import AppendUnknown
from tailrace.records import Stored
from tailrace.tasks import end

IDLE = 300.0  # seconds that an unused track is kept
SWEEP = 30.0
HISTORY = 2.0  # seconds that what was read is kept

_log = logging.getLogger(__name__)
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Partition:
    """A followed partition and the tracks in it."""

    def __init__(self, place: Place, tracks: Tracks) -> None:
        self.place = place
        self.tracks = tracks
        self.by_key: dict[bytes, Track] = {}
        self.feed: Feed | None = None
        self.starting: asyncio.Task[Feed] | None = None

    def take(self, batch: Batch) -> None:
        by_key = self.by_key
        for raw in batch.records:
            track = by_key.get(raw.key)  # type: ignore[arg-type]  # None is nobody's key
            if track is not None:
                track.feed(raw)
        if batch.unreadable is not None:
            for track in by_key.values():
                track.miss(*batch.unreadable)

    def lost(self, first: int, end: int) -> int:
        for track in tuple(self.by_key.values()):
            self.tracks.restart(track)
        return end


class Tracks:
    """All tracks of one log. ``ended`` hears of endings, and of what frees an id."""

    def __init__(
        self,
        connection: Connection,
        names: Names,
        feeds: Feeds,
        claims: Claims,
        spawn: Spawn,
        ended: Callable[[Stored], None],
    ) -> None:
        self._connection = connection
        self._names = names
        self._feeds = feeds
        self._claims = claims
        self._spawn = spawn
        self.ended = ended
        self._partitions: dict[Place, Partition] = {}
        self._tracks: dict[str, Track] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self.skipped = 0
        claims.outdated = self._outdated

    def peek(self, stream_id: str) -> Track | None:
        """The stream's track, if there is one that is ready."""
        track = self._tracks.get(stream_id)
        return track if track is not None and track.chain is not None else None

    async def get(self, stream_id: str) -> Track:
        """The stream's track. Raises `BrokerUnavailable`."""
        track = self._tracks.get(stream_id)
        if track is None:
            place = self._names.records(stream_id)
            partition = self._partitions.get(place)
            if partition is None:
                partition = self._partitions[place] = Partition(place, self)
            track = self._tracks[stream_id] = Track(stream_id, stream_id.encode(), partition)
            partition.by_key[track.key] = track
            track.ready = self._spawn(self._load(track))
            if self._sweeping is None:
                self._sweeping = asyncio.get_running_loop().call_later(SWEEP, self._sweep)
        track.used = asyncio.get_running_loop().time()
        if track.chain is None and track.ready is not None:
            await self._ready(track.ready)
        return track

    async def _ready(self, ready: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(ready)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if ready.cancelled() and caller is not None and not caller.cancelling():
                raise BrokerUnavailable("The store was closed") from None
            raise

    async def current(self, stream_id: str) -> Track:
        """The track, with all that was stored when this call began. Raises `BrokerUnavailable`, `UnsupportedRecord`."""
        end, track = await asyncio.gather(self._connection.end(self._names.records(stream_id)), self.get(stream_id))
        await self._passed(track, end)
        if track.error is not None:
            raise track.error
        return track

    async def _passed(self, track: Track, end: int) -> None:
        feed = track.partition.feed
        assert feed is not None
        if feed.position < end:
            try:
                async with asyncio.timeout(self._connection.options.request_timeout):
                    await feed.passed(end)
            except TimeoutError:
                raise BrokerUnavailable(f"{feed.place} at {self._connection} cannot be followed") from None
        if track.chain is None and track.ready is not None:  # it began anew meanwhile
            await self._ready(track.ready)

    # --- loading

    async def _load(self, track: Track) -> None:
        try:
            await self._begin(track)
        except BaseException:
            self._drop(track)
            raise

    async def _begin(self, track: Track) -> None:
        while True:
            beginning = track.beginning
            feed = await self._feed(track.partition)
            track.early.clear()
            position = feed.position  # what comes from here on is the feed's; taken before the claims are asked
            entry = await self._claims.current(track.stream_id)
            chain, found = self.chain_of(entry)
            if entry is not None and entry.gone is None:
                found += await self.read(track.stream_id, chain, start_of(entry), position, entry)
            if track.beginning == beginning:
                break
        track.begin(chain, found)
        asyncio.get_running_loop().call_later(HISTORY, track.forget_history)

    async def _feed(self, partition: Partition) -> Feed:
        if partition.feed is not None:
            return partition.feed
        if partition.starting is None:
            partition.starting = asyncio.create_task(
                self._feeds.follow(partition.place, partition.take, partition.lost), name="tailrace-follow"
            )
            partition.starting.add_done_callback(lambda task: self._started(partition, task))
        return await asyncio.shield(partition.starting)

    def _started(self, partition: Partition, task: asyncio.Task[Feed]) -> None:
        partition.starting = None
        if not task.cancelled() and task.exception() is None:
            partition.feed = task.result()

    def chain_of(self, entry: Entry | None) -> tuple[Chain, list[Stored]]:
        """The chain to read a stream with, and what comes before what there is to read."""
        if entry is None:
            return Chain(0, self.skip), []
        if entry.gone is not None:  # who claimed it since would have stored an opening
            return Chain(entry.gone.position, self.skip), [entry.gone.stored()]
        if entry.before is not None and entry.before.position == entry.base:
            return Chain(entry.base, self.skip), [entry.before.stored()]
        return Chain(0 if entry.base == 0 else None, self.skip), []

    async def read(
        self, stream_id: str, chain: Chain, start: int, end: int, entry: Entry | None = None
    ) -> list[Stored]:
        """What counts of the stream from offset ``start`` to before ``end``; an ending that cannot be read, or that
        the log lost, is taken from its copy in ``entry``. Raises `BrokerError`, `UnsupportedRecord`."""
        key, found = stream_id.encode(), []
        place = self._names.records(stream_id)
        copy = entry.end if entry is not None else None
        held = end if copy is None or copy.position < end else await self._end(place, copy.position)
        async for batch in read(self._connection, place, start, min(end, held)):
            if batch.trimmed:
                chain.trim()
            for raw in batch.records:
                if raw.key == key and (judged := chain.take(raw)) is not None and judged.stored is not None:
                    found.append(judged.stored)
            if batch.unreadable is not None:
                chain.miss(*batch.unreadable)
        chain.settle()
        if copy is not None and (chain.last or 0) < copy.position and not end < copy.position <= held:
            found.append(copy.stored(-1 if chain.last is None else chain.last))
            chain.last = copy.position
        return found

    async def _end(self, place: Place, position: int) -> int:
        """The partition's end; where that is before ``position``, as whoever leads it now says once more: one that led
        before may not know that it does no more."""
        end = await self._connection.end(place)
        if end >= position:
            return end
        await self._connection.relearn()
        return await self._connection.end(place)

    async def scan(self, entries: Mapping[str, Entry]) -> AsyncIterator[Stored]:
        """The last record of each of these streams that has one, with one read a partition. Raises
        `BrokerUnavailable`."""
        places: dict[Place, dict[bytes, Entry]] = {}
        for stream_id, entry in entries.items():
            places.setdefault(self._names.records(stream_id), {})[stream_id.encode()] = entry
        for place, wanted in places.items():
            chains = {key: self.chain_of(entry) for key, entry in wanted.items()}
            starts = {key: start_of(entry) for key, entry in wanted.items()}
            async for batch in read(self._connection, place, min(starts.values()), await self._connection.end(place)):
                for key in wanted if batch.trimmed or batch.unreadable else ():
                    if batch.trimmed and starts[key] < batch.next_offset:
                        chains[key][0].trim()
                    elif batch.unreadable is not None:
                        chains[key][0].miss(*batch.unreadable)
                for raw in batch.records:
                    found = chains.get(raw.key or b"")
                    if found is None or raw.offset < starts[raw.key or b""]:
                        continue
                    judged = found[0].take(raw)
                    if judged is not None and judged.stored is not None:
                        found[1][:] = [judged.stored]
            for _, lasts in chains.values():
                for stored in lasts[-1:]:
                    yield stored

    def skip(self, raw: Raw, error: CorruptRecord) -> None:
        """Count a message that is not a record, and tell the first."""
        self.skipped += 1
        if self.skipped == 1:
            _log.warning("Skipped a message among the records, at %d: %s. %s", raw.offset, error, error.hint)

    # --- beginning anew, and leaving

    def restart(self, track: Track) -> None:
        """What is known of the stream may not hold."""
        track.chain, track.last, track.error = None, None, None
        track.beginning += 1
        track.forget_history()
        track.early.clear()
        for waiting in track.waiting.values():
            if not waiting.done():
                waiting.set_exception(AppendUnknown("what was known of the stream may not hold"))
        track.waiting.clear()
        if track.ready is None or track.ready.done():
            track.ready = self._spawn(self._begin_anew(track))

    async def _begin_anew(self, track: Track) -> None:
        async for _ in backoff():
            try:
                await self._begin(track)
                break
            except BrokerError:  # of any kind: whoever follows would wait for ever
                continue
            except Exception:
                self._drop(track)  # whoever reads meets it again
                track.doubt()
                raise
        track.doubt()

    def _drop(self, track: Track) -> None:
        if self._tracks.get(track.stream_id) is track:
            del self._tracks[track.stream_id]
            del track.partition.by_key[track.key]

    def _outdated(self, stream_id: str) -> None:
        track = self._tracks.get(stream_id)
        if track is not None and track.idle:
            self._drop(track)
        elif track is not None:
            self.restart(track)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._sweeping = loop.time(), None
        for track in tuple(self._tracks.values()):
            if track.idle and now - track.used > IDLE:
                self._drop(track)
        for place, partition in tuple(self._partitions.items()):
            if not partition.by_key and partition.starting is None:
                if partition.feed is not None:
                    self._feeds.drop(partition.feed)
                del self._partitions[place]
        if self._tracks and not self._closed:
            self._sweeping = loop.call_later(SWEEP, self._sweep)

    async def close(self) -> None:
        """Stop. A second call does nothing."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        await end(*(each.starting for each in self._partitions.values() if each.starting is not None))


def start_of(entry: Entry) -> int:
    """The offset at which reading begins."""
    if entry.base and entry.before is None:
        return entry.base - 1  # with what freed the id: the table does not have it
    return entry.start
