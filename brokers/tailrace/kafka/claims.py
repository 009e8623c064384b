"""The table of claims: where to begin to read a stream, and what became of those that ended.

Theory. The records' topic decides everything (`chain`), but nobody can read all of it. So whoever is about to claim a
stream stores an *opening* first: "from this offset on you see all of this stream's next life; its last record before is
at position ``base``". An opening is a fact, checked before it is written, so several of them for one life do no harm:
any of them leads to the same claim, and the first one is used. A claim is sent only when its opening is stored.

Copies of endings and of what freed an id follow, written by whoever sees that they are missing, and where a seal's
segments are. Every process reads this topic from its beginning before it is ready, and follows it.

    {"k":"open","start":OFFSET,"base":POSITION,"keep":MS}   nothing of the stream before; forget it after that time;
                                                            with a copy (below) of what is at ``base``
    {"k":"seal","inc":INCARNATION,"at":[OFFSET…]}           where its segments are
    (an ending's or a tombstone's own headers, and Tailrace-At: POSITION;MS)   a copy

Rules.

- Whether a stream is *not* here is asked of the leader: `current` reads up to the topic's end as it is at the call.
- Whoever stored an opening waits until it comes back: the first one for its life may be another's after all, if the
  leader that was asked did not know yet that it leads no more.
- The offset of an opening without a base is taken before the table is asked. A claim that was in the log by then had
  its opening stored before, and is seen. So even an opening that came too late tells the truth, and where the older
  ones are gone (the topic's head was trimmed) it leads to the same owner.
- Of two openings for one life the earlier place to begin at holds. What names a record at or before that place is of
  an earlier life, however late it comes, and changes nothing.
- The topic is never compacted: age alone removes what is so old that its stream is over. What is that old is forgotten
  here too, and a later opening replaces it. `outdated` hears of each stream that is not to be read as before.
- So an opening must not be much older than its life. One that nobody used at once is stored anew before a claim, and
  the young one counts. And it brings what freed the id along: that record may be as old as it likes.
- Where the broker lost the topic's end, what is known stays, and what is not found again is stored once more: to a
  process that begins then, the id of a living stream would be free.
- Whatever a stranger stores here is skipped.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from aiokafka.protocol.offset import OffsetResetStrategy

from tailrace.commit import insist
from tailrace.decide import ends_a_life
from tailrace.errors import BrokerUnavailable, CorruptRecord, RecordError
from tailrace.kafka.connection import Connection, Place
from tailrace.kafka.feed import Feed, Lost
from tailrace.kafka.feeds import Feeds
from tailrace.kafka.reading import Batch, Raw
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.sender import Ack, Headers, Sender
from tailrace.kafka.topics import Names
from tailrace.kafka.wire import texts
from tailrace.model import Incarnation
from tailrace.records import Stored, decode, encode
from tailrace.tasks import end

AT = "Tailrace-At"
FRESH_MS = 600_000  # how old an opening may be for a claim: far less than what retention leaves beyond the longest life
_FOREIGN = (RecordError, ValueError, KeyError, TypeError, OverflowError, RecursionError)

_log = logging.getLogger(__name__)


class Copy(NamedTuple):
    """A stored record as the table keeps it, in little room: taken apart only when it is asked for. A line a header;
    their values hold no line ends."""

    position: int
    time_ms: int
    lines: bytes

    def stored(self, previous: int = -1) -> Stored:
        parts = (line.partition(":") for line in self.lines.decode().split("\n"))
        record = decode({name: value for name, _, value in parts}, b"")
        return Stored(self.position, previous, self.time_ms, record)


class Entry:
    """What the table knows of a stream. ``start`` is the offset to read from, behind position ``base`` (None: it is
    not known). ``before``: what freed the id before this life."""

    __slots__ = ("base", "before", "end", "gone", "keep_ms", "seals", "start")

    def __init__(self, start: int, base: int | None, keep_ms: int) -> None:
        self.start = start
        self.base = base
        self.keep_ms = keep_ms
        self.before: Copy | None = None
        self.end: Copy | None = None
        self.gone: Copy | None = None
        self.seals: dict[str, list[int]] | None = None


class Claims:
    """The table of one deployment, kept current. `start` fills it."""

    def __init__(self, connection: Connection, names: Names, feeds: Feeds, sender: Sender) -> None:
        self._connection = connection
        self._names = names
        self._feeds = feeds
        self._sender = sender
        self._keep_ms = int(connection.options.retention * 1000)
        self._entries: dict[str, Entry] = {}
        self._followed: list[Feed] = []
        self._writing: dict[tuple[str, int], asyncio.Task[Ack]] = {}
        self._restoring: set[asyncio.Task[None]] = set()
        self._unsure: set[str] = set()  # whose opening was not seen since the topic lost its end
        self.outdated: Callable[[str], None] = lambda stream_id: None
        self.alive = 0
        self.skipped = 0

    async def start(self) -> None:
        """Read the topic from its beginning to its end, and follow it. Raises `BrokerUnavailable`."""
        places = self._names.all_claims
        first = await self._connection.offsets(places, OffsetResetStrategy.EARLIEST)
        for place in places:
            self._followed.append(await self._feeds.follow(place, self._take, self._restart_of(place), first[place]))
        ends = list(zip(self._followed, await self._connection.ends(places), strict=True))
        while True:  # it may be much: as long as it goes on, it is waited for
            before = [feed.position for feed in self._followed]
            try:
                await self._until(ends)
                return
            except BrokerUnavailable:
                if before == [feed.position for feed in self._followed]:
                    raise

    def _restart_of(self, place: Place) -> Lost:
        def restart(first: int, end: int) -> int:
            self._unsure.update(self._of(place, self._entries))
            task = asyncio.create_task(insist(lambda: self._restore(place, end)))
            self._restoring.add(task)
            task.add_done_callback(self._restored)
            return first

        return restart

    def _of(self, place: Place, stream_ids: Iterable[str]) -> list[str]:
        return [each for each in stream_ids if self._names.claims_partition(each) == place.partition]

    async def _restore(self, place: Place, end: int) -> None:
        """Store once more what is known and was not found up to ``end``, where the topic ended. Several processes may:
        it is as true a second time."""
        await self._followed[place.partition].passed(end)
        for stream_id in self._of(place, self._unsure):
            entry, now_ms = self._entries.get(stream_id), self._connection.clock.now_ms
            if entry is not None and entry.base is not None and entry.keep_ms - now_ms > FRESH_MS:
                before = entry.before.stored() if entry.before is not None else None
                await self._write(stream_id, *_opening(entry.start, entry.base, entry.keep_ms - now_ms, before))
                if (copy := entry.gone or entry.end) is not None:
                    await self._write(stream_id, b"", _copy(copy.stored()))
            self._unsure.discard(stream_id)

    def _restored(self, task: asyncio.Task[None]) -> None:
        self._restoring.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("openings that were lost could not be stored once more", exc_info=error)

    async def refresh(self) -> None:
        """Return when the table knows all that was stored when this call began. Raises `BrokerUnavailable`."""
        ends = await self._connection.ends([feed.place for feed in self._followed])
        await self._until(zip(self._followed, ends, strict=True))

    async def _until(self, ends: Iterable[tuple[Feed, int]]) -> None:
        try:
            async with asyncio.timeout(self._connection.options.request_timeout):
                for feed, end in ends:
                    await feed.passed(end)
        except TimeoutError:
            raise BrokerUnavailable(f"The claims at {self._connection} cannot be read") from None

    def peek(self, stream_id: str) -> Entry | None:
        """What the table knows now."""
        return self._entries.get(stream_id)

    async def current(self, stream_id: str) -> Entry | None:
        """What the table knows of all that was stored when this call began. Raises `BrokerUnavailable`."""
        feed = self._followed[self._names.claims_partition(stream_id)]
        await self._until([(feed, await self._connection.end(feed.place))])
        return self._entries.get(stream_id)

    def living(self) -> list[tuple[str, Entry]]:
        """Every stream that was not seen to go."""
        return [(stream_id, entry) for stream_id, entry in self._entries.items() if entry.gone is None]

    # --- what is written

    def is_open(self, stream_id: str, base: int, end: int) -> bool:
        """Whether there is an opening for a claim behind ``base`` that is stored now, at offset ``end`` or later. (One
        that begins behind that is of a time before the log lost its end.)"""
        entry = self._entries.get(stream_id)
        if entry is None or entry.gone is not None or entry.base != base or entry.start > end:
            return False
        return entry.keep_ms - self._keep_ms + FRESH_MS >= self._connection.clock.now_ms

    async def open(self, stream_id: str, start: int, before: Stored | None = None) -> None:
        """Store an opening for the life behind ``before``, the stream's last record, and return when the table has
        it, and so every opening before it. Raises `BrokerUnavailable`."""
        base = before.position if before is not None else 0
        ack = await self._write(stream_id, *_opening(start, base, self._keep_ms, before))
        await self._until([(self._followed[self._names.claims_partition(stream_id)], ack.offset + 1)])

    async def seal(self, stream_id: str, incarnation: Incarnation, offsets: Sequence[int]) -> None:
        """Store where a seal's segments are. Raises `BrokerUnavailable`."""
        await self._write(stream_id, _json({"k": "seal", "inc": str(incarnation), "at": list(offsets)}), [])

    def has(self, stored: Stored) -> bool:
        """Whether the copy of this record, an ending or what frees the id, is here (or a later one)."""
        entry = self._entries.get(stored.record.stream_id)
        if entry is None:
            return False
        copy = entry.gone if ends_a_life(stored.record) else entry.gone or entry.end
        return max(entry.start, copy.position if copy is not None else 0) >= stored.position

    async def copy(self, stored: Stored) -> None:
        """Store the copy, once however many ask. Raises `BrokerUnavailable`."""
        if self.has(stored):
            return
        key = (stored.record.stream_id, stored.position)
        task = self._writing.get(key)
        if task is None:
            task = asyncio.create_task(self._write(stored.record.stream_id, b"", _copy(stored)))
            self._writing[key] = task
            task.add_done_callback(lambda done: self._copied(key, done))
        await asyncio.shield(task)

    def _copied(self, key: tuple[str, int], task: asyncio.Task[Ack]) -> None:
        self._writing.pop(key, None)
        if not task.cancelled():
            task.exception()

    async def _write(self, stream_id: str, value: bytes, headers: Headers) -> Ack:
        place = self._followed[self._names.claims_partition(stream_id)].place
        try:
            async with asyncio.timeout(self._connection.options.request_timeout):
                return await self._sender.send(place, stream_id.encode(), value, headers)
        except (Unanswered, TimeoutError) as error:  # stored or not: what is written here is as true a second time
            raise BrokerUnavailable(f"{place} at {self._connection} did not confirm a claim") from error

    # --- what is read

    def _take(self, batch: Batch) -> None:
        for raw in batch.records:
            try:
                self._note(raw)
            except _FOREIGN as error:
                self.skipped += 1
                if self.skipped == 1:
                    _log.warning("Skipped a message among the claims, at %d: %s", raw.offset, error)
        if batch.records:
            self._forget_old(batch.records[-1].timestamp)

    def _forget_old(self, now_ms: int) -> None:
        """What the broker's retention removes soon, whose stream is long over. The oldest openings come first."""
        while self._entries:
            stream_id, entry = next(iter(self._entries.items()))
            if entry.keep_ms >= now_ms:
                return
            self._forget(stream_id, entry)
            self.outdated(stream_id)

    def _note(self, raw: Raw) -> None:
        stream_id = (raw.key or b"").decode()
        entry = self._entries.get(stream_id)
        if entry is not None and entry.keep_ms < raw.timestamp:
            self._forget(stream_id, entry)
            self.outdated(stream_id)
            entry = None
        copy = _copied(raw, stream_id)
        if raw.value:
            body = json.loads(raw.value)
            if body["k"] == "open":
                new = Entry(int(body["start"]), int(body["base"]), raw.timestamp + int(body["keep"]))
                new.before = copy if copy is not None and copy.position == new.base else None
                self._opened(stream_id, entry, new)
            elif body["k"] == "seal" and entry is not None and entry.gone is None:
                seals = entry.seals = entry.seals or {}
                seals.setdefault(str(body["inc"]), [int(offset) for offset in body["at"]])
        elif copy is not None:
            self._ended(stream_id, entry, copy, raw.timestamp + self._keep_ms)
        else:
            raise CorruptRecord(f"A message without a value and the header {AT}")

    def _opened(self, stream_id: str, entry: Entry | None, new: Entry) -> None:
        base = new.base or 0
        if entry is None or base >= (entry.base or 0):
            self._unsure.discard(stream_id)
        if entry is not None:
            if entry.base is not None and not _renews(new, entry) and (base == entry.base or base <= entry.start):
                if base == entry.base and new.start < entry.start:  # both are facts: from here on more is seen
                    entry.start = new.start
                    self.outdated(stream_id)
                return  # the same life, or an earlier one
            for copy in (entry.before, entry.gone):
                if copy is not None and copy.position == new.base:
                    new.before = copy
            self._forget(stream_id, entry)
        self._entries[stream_id] = new
        self.alive += 1

    def _ended(self, stream_id: str, entry: Entry | None, copy: Copy, keep_ms: int) -> None:
        record = copy.stored().record
        if entry is None:  # its opening is gone, or never came: what is left begins with this record
            entry = self._entries[stream_id] = Entry(copy.position - 1, None, keep_ms)
            self.alive += 1
        if copy.position == entry.base:
            entry.before = copy
        elif entry.base is not None and copy.position <= entry.start:
            return  # of an earlier life
        elif ends_a_life(record):
            if entry.gone is None or entry.gone.position < copy.position:
                self.alive -= entry.gone is None
                entry.gone, entry.end, entry.seals = copy, None, None
        elif record.ending is not None and entry.gone is None:
            entry.end = copy

    def _forget(self, stream_id: str, entry: Entry) -> None:
        self._entries.pop(stream_id, None)
        self.alive -= entry.gone is None

    async def close(self) -> None:
        """Stop writing. A second call does nothing."""
        await end(*self._writing.values(), *self._restoring)


def _renews(new: Entry, entry: Entry) -> bool:
    """Whether an opening takes the place of one for the same life, which nobody used as long as it was young."""
    return (
        new.base == entry.base and entry.end is None and entry.gone is None and new.keep_ms - entry.keep_ms > FRESH_MS
    )


def _opening(start: int, base: int, keep_ms: int, before: Stored | None) -> tuple[bytes, Headers]:
    value = _json({"k": "open", "start": start, "base": base, "keep": keep_ms})
    return value, _copy(before) if before is not None else []


def _copy(stored: Stored) -> Headers:
    headers, _ = encode(stored.record)
    found = [(name, value.encode()) for name, value in headers.items()]
    found.append((AT, b"%d;%d" % (stored.position, stored.time_ms)))
    return found


def _copied(raw: Raw, stream_id: str) -> Copy | None:
    """The copy that a message holds, if any. Raises `RecordError` or `ValueError` where it is none of this stream."""
    headers = texts(raw)
    at = headers.pop(AT, None)
    if at is None:
        return None
    position, _, time_ms = at.partition(";")
    lines = "\n".join([f"{name}:{value}" for name, value in headers.items()]).encode()
    copy = Copy(int(position), int(time_ms), lines)
    if (found := copy.stored().record.stream_id) != stream_id:
        raise CorruptRecord(f"A copy of {found} under the key of another stream")
    return copy


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
