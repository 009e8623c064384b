"""The shared tail: one log in memory per followed stream, an index and a waker per reader.

Theory: however many readers a stream has in this process, it is followed once, folded once and kept once. A reader is a
number (how many entries it took) and a callback. What a slow reader costs is therefore nothing but its place; what it
holds up is bounded by its lag.

Rules:

- A tail serves one incarnation: the last in the history that it loads first, else the first that it sees. When that one
  goes (deleted, expired) the tail has its ending, and the next life gets a tail of its own.
- Records are applied in the log's order only. One that does not follow its predecessor waits until the records between
  have been read; after a doubt (a reconnect, an overflow) the tail reads.
- A record's chunks are visible when the fold counts it, and never again taken back.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from bisect import bisect_right
from collections.abc import Callable

from tailrace import decide
from tailrace.errors import BrokerUnavailable, SlowReader, StreamNotFound, TailraceError
from tailrace.fold import State, Verdict, fold
from tailrace.model import Ending, Entry, Incarnation, Limits, Mark, Offset, StreamInfo
from tailrace.records import Stored

logger = logging.getLogger("tailrace.fanout")


class Tail:
    """The stream ``stream_id`` as this process follows it. ``on_gap`` is called when records must be read."""

    def __init__(self, stream_id: str, on_gap: Callable[[], None] = lambda: None) -> None:
        self.stream_id = stream_id
        self.state = State()
        self.incarnation: Incarnation | None = None
        self.ending: Ending | None = None
        self.chunks: list[bytes] = []
        self.ends: list[int] = []
        self.readers: set[TailReader] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self.on_gap = on_gap
        self._told = 0  # how many chunks the readers have heard of
        self._ahead: dict[int, Stored] = {}
        self._is_fresh = True  # nothing was loaded yet

    def feed(self, stored: Stored) -> None:
        """Take a record as a subscription delivers it: possibly early, late or twice."""
        if stored.position <= self.state.position:
            return
        if stored.previous not in (-1, self.state.position):
            self._ahead[stored.position] = stored
            self.on_gap()
            return
        self._apply(stored)
        self._catch_up()
        self._tell()

    def load(self, records: list[Stored]) -> None:
        """Take records as the log's reader gives them: in order and without gaps."""
        for stored in records:
            if stored.position > self.state.position:
                self._apply(stored)
                if self._is_fresh and self.left_behind:
                    self._unbind()
        self._is_fresh = False
        self._catch_up()
        self._tell()

    def restore(self, state: State, chunks: list[bytes], ends: list[int]) -> None:
        """Take a sealed stream whole."""
        self.state, self.chunks, self.ends = state, chunks, ends
        self.incarnation, self.ending = state.incarnation, state.ending

    def _catch_up(self) -> None:
        """Apply what arrived early and now fits; forget what was read meanwhile."""
        for position in sorted(self._ahead):
            stored = self._ahead[position]
            if position <= self.state.position:
                del self._ahead[position]
            elif stored.previous == self.state.position:
                del self._ahead[position]
                self._apply(stored)

    @property
    def has_gap(self) -> bool:
        """Whether records are known that wait for others before them."""
        return bool(self._ahead)

    @property
    def is_live(self) -> bool:
        """Whether the tail has a life without an ending."""
        return self.incarnation is not None and self.ending is None

    @property
    def left_behind(self) -> bool:
        """Whether the stream went on to be gone, or to another life, after this tail's."""
        return self.incarnation is not None and not decide.follows(self.state, self.incarnation)

    def end(self, ending: Ending) -> None:
        """What comes behind cannot be had: this life ends here, for this process's readers."""
        if self.ending is None:
            self.ending = ending
            self._tell()

    def close_readers(self, why: TailraceError | None = None) -> None:
        """The process lets go of the stream: pending waits return, and a take raises ``why`` (`BrokerUnavailable`)."""
        for reader in tuple(self.readers):
            reader.abort(why or BrokerUnavailable(f"The store that read {self.stream_id} was closed"))

    def _apply(self, stored: Stored) -> None:
        before = self.state
        self.state, verdict = fold(before, stored)
        if self.ending is not None:
            return
        if verdict is Verdict.COUNTS and stored.record.chunks:
            self._grow(stored)
        elif self.incarnation is None:
            self._bind()
        elif not decide.follows(self.state, self.incarnation):
            self.ending = decide.end_of_life(self.state)
        elif self.state.ending is not None:
            self.ending = self.state.ending

    def _bind(self) -> None:
        if decide.is_there(self.state):
            self.incarnation = self.state.incarnation
            self.ending = self.state.ending

    def _unbind(self) -> None:
        """That was an earlier life, which nobody here has read."""
        self.incarnation = self.ending = None
        self.chunks, self.ends = [], []

    def _grow(self, stored: Stored) -> None:
        end = self.ends[-1] if self.ends else 0
        for chunk in stored.record.chunks:
            end += len(chunk)
            self.chunks.append(chunk)
            self.ends.append(end)

    def _tell(self) -> None:
        for waiter in tuple(self._waiters):
            if not waiter.done():
                waiter.set_result(None)
        start, end = self._told, len(self.chunks)
        self._told = end
        part = b""
        if start < end and self.ending is None and self.readers:  # joined once for all who are at its start
            part = self.chunks[start] if end - start == 1 else b"".join(self.chunks[start:end])
        for reader in tuple(self.readers):
            if not part or not reader.offer(start, end, part):
                reader.wake()

    async def bound(self) -> None:
        """Return once the tail has an incarnation."""
        while self.incarnation is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def require(self) -> None:
        """Raise `StreamNotFound` where the tail has no incarnation, or one that has gone."""
        if self.incarnation is None or self.left_behind:
            raise StreamNotFound(f"Stream not found: {self.stream_id}")

    def reader(self, start: str | Offset, limits: Limits, on_close: Callable[[], None]) -> TailReader:
        """A reader from ``start``. Raises what `decide.start_of` raises."""
        self.require()
        index, skip = decide.start_of(self.state, self.stream_id, start, self.ends)
        return TailReader(self, index, skip, limits.max_reader_lag_bytes, on_close)


class TailReader:
    """A reader on a tail (`tailrace.contracts.Reader`)."""

    __slots__ = (
        "_aborted",
        "_callback",
        "_closed",
        "_future",
        "_index",
        "_lag_from",
        "_max_lag",
        "_on_close",
        "_sink",
        "_skip",
        "_slow",
        "_tail",
    )

    def __init__(self, tail: Tail, index: int, skip: int, max_lag: int, on_close: Callable[[], None]) -> None:
        self._tail = tail
        self._index = index
        self._skip = skip
        self._max_lag = max_lag
        self._on_close = on_close
        self._callback: Callable[[], None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._future: asyncio.Future[None] | None = None
        self._closed = False
        self._slow = False
        self._aborted: TailraceError | None = None
        self._lag_from = tail.state.bytes  # what grows behind this while nothing is taken is the lag
        tail.readers.add(self)

    @property
    def info(self) -> StreamInfo:
        return decide.info(self._tail.state, self._tail.stream_id)

    @property
    def ending(self) -> Ending | None:
        return self._tail.ending if self._index >= len(self._tail.chunks) else None

    @property
    def cursor(self) -> str:
        return self._mark(self._index).cursor(self._tail.stream_id)

    def _mark(self, index: int) -> Mark:
        tail = self._tail
        assert tail.incarnation is not None
        octets = tail.ends[index - 1] if index else 0
        return Mark(tail.incarnation, decide.epoch_of(tail.state, index - 1), index, octets)

    def take(self, max_entries: int | None = None) -> list[Entry]:
        """The entries since the last take, at most ``max_entries``. Raises `SlowReader`."""
        tail, start = self._tail, self._advance(max_entries)
        entries = [Entry(tail.stream_id, tail.chunks[i], self._mark(i + 1)) for i in range(start, self._index)]
        while self._skip and entries:
            cut, entry = self._skip, entries[0]
            self._skip = max(0, cut - len(entry.chunk))
            if cut >= len(entry.chunk):
                del entries[0]
            else:
                entries[0] = Entry(entry.stream_id, entry.chunk[cut:], entry.mark)
        return entries

    def take_bytes(self, max_bytes: int = 256 * 1024) -> bytes:
        """The bytes since the last take as one body, whole chunks, about ``max_bytes`` at most. Raises `SlowReader`."""
        while True:
            body = self._take_part(max_bytes)
            if not self._skip:
                return body
            cut, self._skip = self._skip, max(0, self._skip - len(body))
            if cut < len(body) or self._index == len(self._tail.chunks):
                return body[cut:]

    def _take_part(self, max_bytes: int) -> bytes:
        ends, start = self._tail.ends, self._index
        before = ends[start - 1] if start else 0
        if start == len(ends):
            self._advance(0)
        elif ends[-1] - before <= max_bytes:
            self._advance(None)
        else:
            self._advance(max(1, bisect_right(ends, before + max_bytes) - start))
        chunks = self._tail.chunks
        return chunks[start] if self._index - start == 1 else b"".join(chunks[start : self._index])

    def _advance(self, max_entries: int | None) -> int:
        if self._aborted is not None:
            raise copy.copy(self._aborted)
        if self._slow:
            raise SlowReader(f"The reader of {self._tail.stream_id} fell too far behind", cursor=self.cursor)
        start, end = self._index, len(self._tail.chunks)
        self._index = end if max_entries is None else min(end, start + max_entries)
        self._lag_from = self._tail.ends[-1] if self._tail.ends else 0
        return start

    @property
    def pending(self) -> bool:
        """Whether `take` or `ending` has something to say."""
        return (
            self._slow
            or self._aborted is not None
            or self._index < len(self._tail.chunks)
            or self._tail.ending is not None
        )

    async def wait(self) -> None:
        if self.pending or self._closed:
            return
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def on_wake(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback

    def on_bytes(self, sink: Callable[[bytes], bool] | None) -> None:
        self._sink = sink

    def offer(self, start: int, end: int, part: bytes) -> bool:
        """Give the entries from ``start`` to ``end``, joined, to the sink; False where it has to be woken instead."""
        if self._sink is None or self._index != start or self._skip or self._slow or self._aborted is not None:
            return False
        if not self._sink(part):
            return False
        self._index = end
        self._lag_from = self._tail.ends[-1]
        return True

    def wake(self) -> None:
        """The tail has grown or ended."""
        ends = self._tail.ends
        if ends and ends[-1] - self._lag_from > self._max_lag and self._index < len(ends):
            self._slow = True
        if self._callback is not None:
            try:
                self._callback()
            except Exception:  # one reader's mishap is not the others'
                logger.exception("a reader's callback failed", extra={"stream": self._tail.stream_id})
        elif self._future is not None and not self._future.done():
            self._future.set_result(None)

    def abort(self, why: TailraceError) -> None:
        """Nothing more comes: whoever reads on is told why."""
        self._aborted = why
        self.wake()
        self.close()

    def close(self) -> None:
        """Leave the tail. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._tail.readers.discard(self)
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
        self._on_close()
