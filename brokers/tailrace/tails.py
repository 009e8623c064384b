"""The tails of a process: attached once a stream, shared by its readers, dropped soon after the last one left.

Theory: a live stream is followed *before* its history is read, so nothing falls between the two. An ended stream is not
followed at all: its segments (or records) are read, and its last record is looked at again for every new reader.

Rules:

- An attach is shared and finishes whatever becomes of those who wait for it.
- A doubt (a gap, a reconnect, a beat that names a newer record) is resolved by reading, never by waiting for more.
- That a stream is missing, or a cursor gone, is a decision: a tail that may be behind reads before it says so.
- A log that is shorter than what was read from it has lost records: its readers end as trimmed.
- A tail has one timer, for the moment at which its stream's time passes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from tailrace import decide
from tailrace.commit import backoff, insist
from tailrace.errors import BrokerError, BrokerUnavailable, CursorGone, StreamNotFound, TailraceError, TooManyReaders
from tailrace.fanout import Tail, TailReader
from tailrace.fold import DELETED, TRIMMED, State
from tailrace.log import Following, Log
from tailrace.model import Limits, Offset
from tailrace.sealing import Sealer

logger = logging.getLogger("tailrace.tails")

MOST_IDLE = 1024
LONGEST_TIMER = 3600.0
READS_AT_ONCE = 16


class _Attached:
    """A tail with what keeps it current: a subscription (None for an ended stream), a timer, its users."""

    __slots__ = (
        "at_least",
        "doubted",
        "drop_timer",
        "due_timer",
        "filling",
        "following",
        "loaded",
        "ready",
        "tail",
        "users",
    )

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self.users = 0
        self.loaded = False
        self.doubted = False  # since the last read began
        self.at_least = 0  # the position of the newest record that this process wrote itself
        self.following: Following | None = None
        self.ready: asyncio.Task[None] | None = None
        self.filling: asyncio.Task[None] | None = None
        self.due_timer: asyncio.TimerHandle | None = None
        self.drop_timer: asyncio.TimerHandle | None = None


Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
Overdue = Callable[[str], "asyncio.Task[Any]"]


class Tails:
    """``overdue(stream_id)`` writes what is due where a stream's time has passed; ``linger`` in seconds."""

    def __init__(self, log: Log, limits: Limits, sealer: Sealer, overdue: Overdue, spawn: Spawn, linger: float) -> None:
        self._log = log
        self._limits = limits
        self._sealer = sealer
        self._overdue = overdue
        self._spawn = spawn
        self._linger = linger
        self._attached: dict[str, _Attached] = {}
        self._keys: dict[str, str] = {}
        self._readers = 0
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    # ---------------------------------------------------------------- opening

    async def open(self, stream_id: str, start: str | Offset, wait: float, timeout: float) -> TailReader:
        """A reader (see `StreamStore.open`). ``timeout`` bounds what the broker may take."""
        if (most := self._limits.max_readers) is not None and self._readers >= most:
            raise TooManyReaders(f"{self._readers} readers are open; the most is {most}")
        self._readers += 1
        try:
            return await self._open(stream_id, start, wait, timeout)
        except BaseException:
            self._readers -= 1
            raise

    async def _open(self, stream_id: str, start: str | Offset, wait: float, timeout: float) -> TailReader:
        attached = await self._ready(stream_id, timeout)
        try:
            if attached.tail.incarnation is None and wait > 0:
                await self._bound(attached.tail, wait)
            try:
                reader = attached.tail.reader(start, self._limits, lambda: self._close_reader(attached))
            except (CursorGone, StreamNotFound):
                if not await self._was_behind(attached):
                    raise
            else:
                if attached.due_timer is None:  # there was no stream when it was loaded
                    self._arm(attached)
                return reader
        except BaseException:
            self._leave(attached)
            raise
        self._leave(attached)
        return await self._open(stream_id, start, 0, timeout)

    async def _was_behind(self, attached: _Attached) -> bool:
        """Whether the broker has more of the stream than this tail had: then what the tail said is no decision."""
        tail = attached.tail
        if attached.following is None:
            return False
        before = tail.state.position
        await self._refresh(attached)
        return tail.state.position > before or (tail.left_behind and decide.is_there(tail.state))

    async def _refresh(self, attached: _Attached) -> None:
        tail = attached.tail
        tail.load(await self._log.read(tail.stream_id, tail.state.position))

    async def _bound(self, tail: Tail, wait: float) -> None:
        try:
            async with asyncio.timeout(wait):
                await tail.bound()
        except TimeoutError:
            raise StreamNotFound(f"Stream not found: {tail.stream_id}") from None

    def _close_reader(self, attached: _Attached) -> None:
        self._readers -= 1
        self._leave(attached)

    async def _ready(self, stream_id: str, timeout: float) -> _Attached:
        """The stream's tail, loaded and current, with this caller among its users."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    attached = self._attach(stream_id)
                    try:
                        await self._loaded(attached)
                        if await self._holds(attached):
                            return attached
                    except BaseException:
                        self._leave(attached)
                        raise
                    # a followed tail that is merely due stays: its readers wait for the record that says so
                    if attached.following is None or attached.tail.left_behind:
                        self._forget(attached)
                    self._leave(attached)
        except TimeoutError:
            raise BrokerUnavailable(f"The broker did not answer in {timeout:g} s") from None

    async def _loaded(self, attached: _Attached) -> None:
        assert attached.ready is not None
        try:
            await asyncio.shield(attached.ready)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if attached.ready.cancelled() and caller is not None and not caller.cancelling():
                raise BrokerUnavailable("The store was closed") from None
            raise

    def _attach(self, stream_id: str) -> _Attached:
        attached = self._attached.get(stream_id)
        if attached is None or attached.tail.left_behind:
            attached = _Attached(Tail(stream_id))
            attached.tail.on_gap = lambda: self._fill(attached)
            attached.ready = self._spawn(self._load(attached))
            attached.ready.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._attached[stream_id] = attached
            self._keys[self._log.key(stream_id)] = stream_id
        attached.users += 1
        if attached.drop_timer is not None:
            attached.drop_timer.cancel()
            attached.drop_timer = None
        return attached

    async def _load(self, attached: _Attached) -> None:
        tail, stream_id = attached.tail, attached.tail.stream_id
        try:
            last = await self._log.last(stream_id)
            if last is not None and decide.may_be_sealed(last):
                sealed = await self._sealer.load(stream_id, last.record.incarnation)
                if sealed is not None and sealed[0].position == last.position:
                    tail.restore(*sealed)
                    return
                tail.load(await self._log.read(stream_id))
                if tail.ending is not None and tail.state.position == last.position:
                    self._sealer.offer(stream_id, tail.state.entries)
                    return  # what ended is not followed
            attached.following = await self._log.follow(stream_id, tail.feed, lambda: self._fill(attached))
            attached.doubted = False
            tail.load(await self._log.read(stream_id))
            attached.loaded = True
            if attached.doubted:
                self._fill(attached)
            if tail.ending is not None:
                self._sealer.offer(stream_id, tail.state.entries)
            self._arm(attached)
        except BaseException:
            self._forget(attached)
            await self._release(attached)
            raise

    async def _holds(self, attached: _Attached) -> bool:
        """Whether the loaded tail is still the stream: its time has not passed, and nothing replaced what it read."""
        tail = attached.tail
        if self._is_due(tail):
            await asyncio.shield(self._overdue(tail.stream_id))
            if attached.following is not None:
                await self._refresh(attached)
            return False
        if attached.following is not None:
            if tail.state.position < attached.at_least:
                await self._refresh(attached)
            return not tail.left_behind
        last = await self._log.last(tail.stream_id)
        return last is not None and last.position == tail.state.position

    def _is_due(self, tail: Tail) -> bool:
        return decide.expiry(tail.state, tail.stream_id, "", self._log.now_ms()) is not None

    # ---------------------------------------------------------------- staying current

    def _fill(self, attached: _Attached) -> None:
        """Something may be missing: read it (again, where it is being read: that read may have come too early)."""
        attached.doubted = True
        if attached.loaded and attached.filling is None and attached.following is not None:
            attached.filling = self._spawn(self._refill(attached))

    async def _refill(self, attached: _Attached) -> None:
        tail = attached.tail
        try:
            async for _ in backoff(0.001):
                attached.doubted = False
                try:
                    async with self._reads:
                        await self._read_on(attached)
                except BrokerError as error:
                    attached.doubted = True
                    logger.debug("a tail could not be read: %s", error, extra={"stream": tail.stream_id})
                if not (tail.has_gap or attached.doubted):
                    return
        except TailraceError as error:  # a record of a newer version: nothing behind it can be read here
            logger.warning("a tail cannot be read: %s", error, extra={"stream": tail.stream_id})
            self._forget(attached)
            tail.close_readers(error)
        finally:
            attached.filling = None

    async def _read_on(self, attached: _Attached) -> None:
        tail, before = attached.tail, attached.tail.state  # live records go on coming in while the leader is asked
        last = await insist(lambda: self._log.last(tail.stream_id))
        if decide.rewound(before, last):
            self._forget(attached)  # who comes now reads what the log has now
            tail.end(TRIMMED)
        elif last is not None and last.position > tail.state.position:
            tail.load(await insist(lambda: self._log.read(tail.stream_id, tail.state.position)))
            if decide.outlived(tail.state, last):  # the log dropped how this life went
                self._forget(attached)
                tail.end(DELETED)

    def wrote(self, stream_id: str, position: int) -> None:
        """This process wrote a record: what it says of the stream from now on must know it."""
        attached = self._attached.get(stream_id)
        if attached is not None:
            attached.at_least = max(attached.at_least, position)

    def check(self, quiet: list[tuple[str, int]]) -> None:
        """A heartbeat named streams and their last records: read those of which this process knows less."""
        for key, position in quiet:
            attached = self._attached.get(self._keys.get(key, ""))
            if attached is not None and position > attached.tail.state.position:
                self._fill(attached)

    def doubt(self, member_id: str | None) -> None:
        """A beat of this member was missed (None: anything may have been): read what it writes."""
        for attached in tuple(self._attached.values()):
            if member_id is None or attached.tail.state.owner == member_id:
                self._fill(attached)

    def live(self) -> Iterator[Tail]:
        """The followed streams without an ending."""
        for attached in tuple(self._attached.values()):
            if attached.following is not None and attached.tail.is_live:
                yield attached.tail

    def state(self, stream_id: str) -> State | None:
        """The stream's state, if it is followed, live, and in no doubt."""
        attached = self._attached.get(stream_id)
        if attached is None or attached.following is None or attached.filling is not None or not attached.loaded:
            return None
        tail = attached.tail
        known = tail.is_live and tail.state.position >= attached.at_least and not self._is_due(tail)
        return tail.state if known else None

    def _arm(self, attached: _Attached) -> None:
        due = decide.due_ms(attached.tail.state)
        if due is None or attached.following is None:
            return
        delay = max(0.02, min((due - self._log.now_ms()) / 1000, LONGEST_TIMER))
        attached.due_timer = asyncio.get_running_loop().call_later(delay, self._due, attached)

    def _due(self, attached: _Attached) -> None:
        tail = attached.tail
        if self._is_due(tail):
            self._overdue(tail.stream_id)
        self._arm(attached)

    def glance(self) -> None:
        """The clock may have jumped: look at every tail's time now."""
        for attached in tuple(self._attached.values()):
            if attached.due_timer is not None:
                attached.due_timer.cancel()
                self._due(attached)

    # ---------------------------------------------------------------- leaving

    def _leave(self, attached: _Attached) -> None:
        attached.users -= 1
        if attached.users > 0:
            return
        if (
            self._linger <= 0
            or attached.tail.incarnation is None
            or self._attached.get(attached.tail.stream_id) is not attached
        ):
            self._drop(attached)
            return
        attached.drop_timer = asyncio.get_running_loop().call_later(self._linger, self._drop, attached)
        if len(self._attached) > MOST_IDLE:
            self._drop_idle()

    def _drop_idle(self) -> None:
        idle = next((one for one in self._attached.values() if one.users == 0), None)
        if idle is not None:
            self._drop(idle)

    def _forget(self, attached: _Attached) -> None:
        stream_id = attached.tail.stream_id
        if self._attached.get(stream_id) is attached:
            del self._attached[stream_id]
            self._keys.pop(self._log.key(stream_id), None)

    def _drop(self, attached: _Attached) -> None:
        if attached.users > 0:
            return
        self._forget(attached)
        if attached.drop_timer is not None:
            attached.drop_timer.cancel()
        self._spawn(self._release(attached))

    async def _release(self, attached: _Attached) -> None:
        if attached.due_timer is not None:
            attached.due_timer.cancel()
        if attached.ready is not None and attached.ready is not asyncio.current_task():
            attached.ready.cancel()  # nobody waits for it any more
        following, attached.following = attached.following, None
        if attached.filling is not None:
            attached.filling.cancel()
        if following is not None:
            await following.close()

    async def close(self) -> None:
        """End every reader and let go of every stream."""
        for attached in tuple(self._attached.values()):
            attached.tail.close_readers()
            self._forget(attached)
            if attached.drop_timer is not None:
                attached.drop_timer.cancel()
            await self._release(attached)
