"""The producer's side of one lease: coalescing, one record in flight, fencing.

Theory: a stream has one record in flight. What arrives meanwhile is joined into the next one, so a slow broker makes
records larger, not queues longer. A chunk's place in the stream is known as soon as it is queued; that it is *kept* is
known when its record is.

Rules:

- Chunks are stored in the order in which they were queued, whatever becomes of those who wait for them: a cancelled
  caller takes nothing back.
- A broker that is away is waited for, for as long as the lease holds. The queue is bounded; beyond it callers wait.
- The first error is final: it fails everything queued and everything later. Only an ending can still be written, where
  the lease holds: one that its caller asks for after it was told of the error.
- The ending is queued behind the chunks, and nothing behind the ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tailrace import decide
from tailrace.commit import Moved, Rewound, commit, insist, new_nonce
from tailrace.errors import (
    BrokerFailed,
    BrokerUnavailable,
    ChunkTooLarge,
    StreamFinalized,
    StreamNotFound,
    StreamSuperseded,
    StreamTrimmed,
    TailraceError,
)
from tailrace.fold import TRIMMED, State, fold
from tailrace.log import Log
from tailrace.model import Ending, Lease, Limits, Mark
from tailrace.records import Record, Stored
from tailrace.tasks import end

MAX_QUEUED_BYTES = 4 * 1024 * 1024
MAX_CHUNKS_A_RECORD = 4096  # their sizes are in the record's headers, for which the log keeps room

_OVER = (StreamNotFound, StreamSuperseded, StreamFinalized, StreamTrimmed)
Shift = tuple[int, int]  # entries and bytes that others wrote under the same lease meanwhile


class Writer:
    """Writes one stream under one lease. ``state`` is the stream as this writer knows it."""

    def __init__(self, log: Log, limits: Limits, lease: Lease, state: State, on_kept: Callable[[Writer], None]) -> None:
        self.log = log
        self.limits = limits
        self.lease = lease
        self.state = state
        self.failure: TailraceError | None = None
        self._on_kept = on_kept
        self._chunks: list[bytes] = []
        self._queued_bytes = 0
        self._entries, self._bytes = state.entries, state.bytes  # the stream's end, with all that is queued
        self._ending: Ending | None = None
        self._waiting: list[asyncio.Future[Shift]] = []  # those whose chunks are queued now
        self._ended: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing can be written under this lease any more, an ending neither."""
        return isinstance(self.failure, _OVER)

    async def extend(self, chunks: Sequence[bytes]) -> str:
        """Queue ``chunks``, wait until they are kept, return the cursor of the last."""
        await self._until_room()
        self._queue(chunks)
        entries, octets = self._entries, self._bytes
        waiter: asyncio.Future[Shift] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        shift = await waiter
        mark = Mark(self.lease.incarnation, self.lease.epoch, entries + shift[0], octets + shift[1])
        return mark.cursor(self.lease.stream_id)

    async def _until_room(self) -> None:
        while self._queued_bytes > MAX_QUEUED_BYTES and self.failure is None:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
                self._room.add_done_callback(_retrieve)
            await asyncio.shield(self._room)

    def _queue(self, chunks: Sequence[bytes]) -> None:
        if self.failure is not None:
            raise _again(self.failure)
        if self._ending is not None:
            raise StreamFinalized(f"Stream already finalized: {self.lease.stream_id}")
        taken = [chunk if type(chunk) is bytes else bytes(memoryview(chunk)) for chunk in chunks]
        refusal = self._admit(taken)
        self._start()
        if refusal is not None:
            raise refusal

    def _admit(self, chunks: list[bytes]) -> TailraceError | None:
        """Queue the chunks up to the first that a limit refuses."""
        most = self.limits.max_chunk_bytes
        room = self.log.max_record_bytes
        for chunk in chunks:
            size = len(chunk)
            if most is not None and size > most:
                return ChunkTooLarge(f"Chunk exceeds maxChunkBytes: {size}")
            if size > room:
                return ChunkTooLarge(
                    f"Chunk exceeds the broker's message size: {size} > {room}",
                    hint="Split the chunk, or raise the broker's own message limit.",
                )
            if refusal := decide.check_growth(self.limits, self.lease.stream_id, self._entries, self._bytes, size):
                return refusal
            self._chunks.append(chunk)
            self._entries += 1
            self._bytes += size
            self._queued_bytes += size
        return None

    async def finish(self, ending: Ending) -> None:
        """Queue the ending and wait until the stream has it. A no-op where it has one already."""
        if self._ended is None:
            if self.is_over:
                self._finish_of_failed()
                return
            self._ending = ending
            self._ended = asyncio.get_running_loop().create_future()
            self._ended.add_done_callback(_retrieve)
            self._start()
        await asyncio.shield(self._ended)

    def _finish_of_failed(self) -> None:
        """A superseded or ended stream takes no ending (the first wins); one that is not there says so."""
        if isinstance(self.failure, StreamNotFound):
            raise _again(self.failure)

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"tailrace-writer-{self.lease.stream_id[:40]}")

    async def _run(self) -> None:
        waiting: list[asyncio.Future[Shift]] = []
        try:
            while self._chunks or self._waiting or self._ending is not None:
                waiting, self._waiting = self._waiting, []
                chunks, self._chunks = self._chunks, []
                entries, octets = self._entries, self._bytes
                await self._store_chunks(chunks)
                shift = (self.state.entries - entries, self.state.bytes - octets)
                for waiter in waiting:
                    if not waiter.done():
                        waiter.set_result(shift)
                ending = self._ending
                if ending is not None and not self._chunks and not self._waiting:
                    await self._store(partial(_finish, self.lease.stream_id, ending))
                    self.failure = StreamFinalized(f"Stream already finalized: {self.lease.stream_id}")
                    _resolve(self._ended)
                    break
        except TailraceError as error:
            self._fail(error, waiting)
        except asyncio.CancelledError:
            self._close(waiting)
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, nobody may wait for ever
            self._fail(BrokerFailed(f"Writing {self.lease.stream_id} failed: {type(error).__name__}: {error}"), waiting)
        finally:
            self._task = None
            self._on_kept(self)

    async def _store_chunks(self, chunks: list[bytes]) -> None:
        start, most = 0, self.log.max_record_bytes
        while start < len(chunks):
            end, size = start, 0
            while end < len(chunks) and end - start < MAX_CHUNKS_A_RECORD:
                if end > start and size + len(chunks[end]) > most:
                    break
                size += len(chunks[end])
                end += 1
            data = chunks[start:end]
            await self._store(partial(_chunks, self.lease.stream_id, data))
            self._queued_bytes -= size
            if self._room is not None and self._queued_bytes <= MAX_QUEUED_BYTES:
                _resolve(self._room)
                self._room = None
            start = end

    async def _store(self, make: Callable[[Mark], Record]) -> None:
        """Store the record that ``make`` makes at the stream's end, or raise why this lease may not."""
        while True:
            decide.require_lease(self.state, self.lease)
            at = Mark(self.lease.incarnation, self.lease.epoch, self.state.entries, self.state.bytes)
            record = make(at)
            try:
                position = await commit(self.log, record, self.state.position, patient=True)
            except Moved:
                if await self._refold(record):
                    return
            except Rewound:
                await self._mourn()
            else:
                self.state, _ = fold(self.state, Stored(position, -1, self.log.now_ms(), record))
                self._on_kept(self)
                return

    async def _refold(self, sent: Record) -> bool:
        """Somebody else wrote: fold the stream anew, from its beginning (the log may have dropped this lease's life).
        True where ``sent`` came before the others: then only up to there."""
        records = await insist(lambda: self.log.read(self.lease.stream_id))
        self.state = State()
        for stored in records:
            self.state, _ = fold(self.state, stored)
            if stored.record.nonce == sent.nonce:
                return True
        return False

    async def _mourn(self) -> None:
        """The broker lost records that it had acknowledged: what follows cannot be told truthfully. End it."""
        state = State()
        for stored in await insist(lambda: self.log.read(self.lease.stream_id)):
            state, _ = fold(state, stored)
        record = decide.takeover(state, self.lease.stream_id, new_nonce(), None, TRIMMED)
        if record is not None and decide.owns(state, self.lease):
            try:
                await commit(self.log, record, state.position, patient=True)
            except (Moved, Rewound):
                pass  # somebody else is at it; whatever they wrote, this lease is over
        raise StreamTrimmed(f"The broker lost acknowledged records of {self.lease.stream_id}")

    def _fail(self, error: TailraceError, waiting: Sequence[asyncio.Future[Shift]]) -> None:
        self.failure = error
        for future in (*waiting, *self._waiting):
            if not future.done():
                future.set_exception(_again(error))
        if self._room is not None and not self._room.done():
            self._room.set_exception(_again(error))
        self._waiting, self._room = [], None
        self._chunks.clear()
        self._queued_bytes = 0
        if self._ended is not None and not self._ended.done() and not self.is_over:
            self._ended.set_exception(_again(error))  # what was asked for may not be true any more: ask again
            self._ended = self._ending = None
        elif self._ended is not None and not self._ended.done():
            try:
                self._finish_of_failed()
            except TailraceError as missing:
                self._ended.set_exception(missing)
            else:
                self._ended.set_result(None)

    def _close(self, waiting: Sequence[asyncio.Future[Shift]]) -> None:
        said = f"The store that produced {self.lease.stream_id} was closed"
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(BrokerUnavailable(f"{said} before its ending was confirmed"))
        self._fail(StreamFinalized(said), waiting)

    async def abandon(self) -> None:
        """Stop writing at once; what was in flight may or may not be stored."""
        if (task := self._task) is not None:
            await end(task)
            if self._task is task:  # it was cancelled before it began
                self._task = None
                self._close(())


def _chunks(stream_id: str, data: list[bytes], at: Mark) -> Record:
    return decide.chunks(at, stream_id, new_nonce(), data)


def _finish(stream_id: str, ending: Ending, at: Mark) -> Record:
    return decide.finish(at, stream_id, new_nonce(), ending)


def _again(error: TailraceError) -> TailraceError:
    """A fresh copy for each raiser, so that tracebacks do not pile up on a shared one."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    return copy


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark the outcome as seen: the caller may have gone."""
    if not future.cancelled():
        future.exception()
