"""The store: `tailrace.contracts.StreamStore` over any `Log`.

Theory: every change is the same loop. Fold what the broker has, let `tailrace.decide` say which record to write, commit
it on the condition that nothing came since, and begin again if something did. Every read is the same tail.

Rules:

- Nothing kept here is needed to go on: tails, writers and states are rebuilt from the log.
- What must be done whatever becomes of the caller (resolving a claim, ending a lost stream, sealing) is a task of the
  store, never of a request.
- Closing the store closes what it opened: its writers end their streams, its tails end their readers.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from tailrace import decide
from tailrace.collecting import Collector
from tailrace.commit import Moved, Rewound, backoff, commit, insist, new_nonce
from tailrace.contracts import Capabilities, Reader, RunQueue
from tailrace.errors import LeaseRequired, StreamFinalized, StreamSuperseded, TooManyStreams, TtlTooLong
from tailrace.fold import State, fold
from tailrace.held import Held
from tailrace.log import Log
from tailrace.lost import Coroner
from tailrace.members import Membership, QuietStreams
from tailrace.model import (
    Acquisition,
    Claim,
    Ending,
    Entry,
    Incarnation,
    Lease,
    Limits,
    Offset,
    RunRef,
    Status,
    StreamInfo,
    validate_stream_id,
)
from tailrace.records import Record, Stored
from tailrace.sealing import Sealer
from tailrace.tails import Tails
from tailrace.tasks import Tasks
from tailrace.writer import Writer


class LogStore:
    """Streams on a log. ``request_timeout`` (seconds) bounds what a new request waits for the broker."""

    def __init__(
        self,
        log: Log,
        membership: Membership,
        runs: RunQueue,
        limits: Limits,
        capabilities: Capabilities,
        *,
        linger: float = 5.0,
        request_timeout: float = 10.0,
        on_close: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.limits = limits
        self.capabilities = capabilities
        self.log = log
        self._members = membership
        self._runs = runs
        self._on_close = on_close
        self._timeout = request_timeout
        self._held = Held()
        self._due: dict[str, asyncio.Task[State]] = {}
        self._quiet = QuietStreams()
        self._closed = False
        self._tasks = Tasks(request_timeout)
        self._bounded, spawn = self._tasks.bounded, self._tasks.spawn
        self.sealer = Sealer(log, spawn)
        self._collector = Collector(log, self._current, spawn)
        self.tails = Tails(log, limits, self.sealer, self._overdue, spawn, linger)
        self._coroner = Coroner(log, membership, self.tails, self.sealer, self._act, spawn)
        membership.quiet = self._quiet
        membership.on_tick = self._coroner.look
        membership.on_quiet = self.tails.check
        membership.on_missed = self.tails.doubt

    @property
    def members(self) -> Membership:
        return self._members

    @property
    def runs(self) -> RunQueue:
        return self._runs

    async def start(self) -> Self:
        """Begin to beat. The store can be used before; it cannot judge who is lost."""
        await self._members.start()
        return self

    # ---------------------------------------------------------------- the election

    async def acquire(
        self,
        stream_id: str,
        *,
        ttl: float | None = None,
        content_type: str = "application/octet-stream",
        headers: Sequence[tuple[str, str]] = (),
        run: RunRef | None = None,
        ending: Ending | None = None,
        patient: bool = False,
    ) -> Acquisition:
        validate_stream_id(stream_id)
        life = self.limits.default_ttl if ttl is None else ttl
        if life > self.limits.max_ttl:
            raise TtlTooLong(f"A time to live of {life:g} s; the most is {self.limits.max_ttl:g} s")
        wanted = Claim(self._members.id, life, self.limits.max_stream_age, content_type, tuple(headers), run)
        return await self._bounded(self._claim(stream_id, wanted, ending), self._disown, patient=patient)

    async def _claim(self, stream_id: str, wanted: Claim, ending: Ending | None) -> Acquisition:
        nonce = secrets.randbits(64)
        state: State = State()  # most ids are new: claim first, look only when refused
        while True:
            record = decide.claim(state, stream_id, nonce, wanted, ending)
            if record is None:
                return decide.acquired(state, stream_id, None)
            if await self._collector.is_full(self.limits.max_streams):
                state = await self._current(stream_id)
                if decide.claim(state, stream_id, nonce, wanted, ending) is None:
                    continue
                raise TooManyStreams("maxStreams exceeded")
            try:
                position = await commit(self.log, record, state.position, patient=False)
            except (Moved, Rewound):
                state = await insist(partial(self._current, stream_id))  # ours may have come before what came
                if state.incarnation != record.incarnation:
                    continue
            else:
                state, _ = fold(state, Stored(position, -1, self.log.now_ms(), record))
            return self._won(stream_id, state, record)

    async def collect(self) -> None:
        """Write the expiry of every stream whose time has passed; where nobody reads or asks, nobody else does."""
        self.tails.glance()
        await self._collector.collect()

    def _won(self, stream_id: str, state: State, record: Record) -> Acquisition:
        acquisition = decide.acquired(state, stream_id, record)
        lease = acquisition.lease
        if lease is not None:
            self.tails.wrote(stream_id, state.position)
            self._take_up(lease, state)
        return acquisition

    def _take_up(self, lease: Lease, state: State) -> None:
        """Serve a lease that was won, unless its stream was ended or taken over before that was known."""
        if decide.owns(state, lease):
            self._held.acquired(self._writer(lease, state))

    async def _disown(self, election: asyncio.Task[Acquisition | Lease | None]) -> None:
        """Who asked for a lease gave up: if there proves to be one, nobody serves it. End its stream."""
        won = await election
        lease = won.lease if isinstance(won, Acquisition) else won
        if lease is not None:
            gone = Ending(Status.PRODUCER_LOST, "producer-lost", "The caller of acquire gave up")
            writer = await insist(partial(self._writer_of, lease.stream_id, lease))
            await writer.finish(gone)

    # ---------------------------------------------------------------- writing

    async def append(self, stream_id: str, chunk: bytes, lease: Lease | None = None) -> str:
        return await self.extend(stream_id, (chunk,), lease)

    async def extend(self, stream_id: str, chunks: Sequence[bytes], lease: Lease | None = None) -> str:
        writer = self._held.writer(stream_id, lease)
        if writer is None:
            validate_stream_id(stream_id)
            writer = await self._writer_of(stream_id, lease)
        return await writer.extend(chunks)

    async def _writer_of(self, stream_id: str, lease: Lease | None) -> Writer:
        """A writer for a lease that came from elsewhere, or whose writer is through. Raises why there is none."""
        held = lease or self._held.lease(stream_id)
        state = await self._bounded(self._current(stream_id))
        if held is None:
            decide.require_stream(state, stream_id)
            raise LeaseRequired(f"This store did not acquire {stream_id}, and no lease was given")
        if held.stream_id != stream_id:
            raise LeaseRequired(f"The lease is of {held.stream_id}, not of {stream_id}")
        decide.require_lease(state, held)
        writer = self._held.writer(stream_id, held)
        if writer is None:  # no other call made it meanwhile
            writer = self._writer(held, state)
            self._held.serve(writer)
        return writer

    def _writer(self, lease: Lease, state: State) -> Writer:
        return Writer(self.log, self.limits, lease, state, self._kept)

    def _kept(self, writer: Writer) -> None:
        """A writer stored something, or is through."""
        self._quiet.wrote(self.log.key(writer.lease.stream_id), writer.state.position)
        self.tails.wrote(writer.lease.stream_id, writer.state.position)
        if writer.is_over and not writer.busy:
            self._held.release(writer)
            self.sealer.offer(writer.lease.stream_id, writer.state.entries)

    async def finalize(
        self,
        stream_id: str,
        status: str,
        error: str | None = None,
        lease: Lease | None = None,
        *,
        code: str | None = None,
    ) -> None:
        validate_stream_id(stream_id)
        ending = decide.ending(status, error, code)
        writer = self._held.writer(stream_id, lease)
        if writer is None:
            try:
                writer = await self._writer_of(stream_id, lease)
            except (StreamFinalized, StreamSuperseded):
                return  # the first ending wins
        await writer.finish(ending)

    # ---------------------------------------------------------------- reading

    def read(self, stream_id: str, cursor: str | Offset = "") -> AsyncIterator[Entry]:
        validate_stream_id(stream_id)
        return self._read(stream_id, cursor)

    async def _read(self, stream_id: str, cursor: str | Offset) -> AsyncGenerator[Entry, None]:
        reader = await self.open(stream_id, cursor)
        try:
            while True:
                for entry in reader.take():
                    yield entry
                if (ending := reader.ending) is not None:
                    break
                await reader.wait()
        finally:
            reader.close()
        if ending.status is not Status.MISSING and (error := decide.ending_error(ending)) is not None:
            raise error

    async def open(self, stream_id: str, cursor: str | Offset = "", *, wait: float = 0) -> Reader:
        validate_stream_id(stream_id)
        return await self.tails.open(stream_id, cursor, wait, self._timeout)

    async def status(self, stream_id: str) -> StreamInfo:
        validate_stream_id(stream_id)
        info = await self._info(stream_id)
        if info.status not in (Status.MISSING, Status.EXPIRED):
            return info
        command = await self._runs.find(stream_id)
        if command is None:  # nothing waits; but what did may have been run, and been forgotten, since the first look
            return await self._info(stream_id)
        if info.run is not None and info.run.command == command.id:
            return info  # the command of the life that is gone, still to be forgotten
        run = RunRef(command.handler, command.digest, command.id, command.policy)
        return replace(info, status=Status.QUEUED, code=None, message=None, run=run)

    async def _info(self, stream_id: str) -> StreamInfo:
        state = await self._bounded(self._newest(stream_id))
        self._coroner.judge(stream_id, state)  # nobody may be reading it: then this is who notices
        return decide.info(state, stream_id)

    async def streams(self) -> AsyncIterator[StreamInfo]:
        async for stored in self.log.lasts():
            if (info := decide.glance(stored)) is not None:
                yield info

    # ---------------------------------------------------------------- ending for others

    async def delete(self, stream_id: str, incarnation: Incarnation | None = None) -> bool:
        validate_stream_id(stream_id)
        nonce, life = new_nonce(), incarnation

        def decision(state: State) -> Record | None:
            nonlocal life
            life = life or state.incarnation  # a second look never deletes the next life
            return decide.tombstone(state, stream_id, nonce, life)

        record = await self._bounded(self._act(stream_id, decision))
        if record is None:
            return False
        self._tasks.spawn(self.sealer.drop(stream_id, record.incarnation))
        return True

    async def takeover(self, stream_id: str, lost_epoch: int, ending: Ending | None = None) -> Lease | None:
        validate_stream_id(stream_id)
        return await self._bounded(self._take_over(stream_id, lost_epoch, ending), self._disown)

    async def _take_over(self, stream_id: str, lost_epoch: int, ending: Ending | None) -> Lease | None:
        nonce, life = new_nonce(), None

        def decision(state: State) -> Record | None:
            nonlocal life
            life = life or state.incarnation  # a second look never takes over the next life
            if state.incarnation != life:
                return None
            return decide.takeover_of(state, stream_id, nonce, lost_epoch, ending, self._members.id)

        record = await self._act(stream_id, decision)
        if record is None:
            return None
        if ending is not None:
            self.sealer.offer(stream_id)
            return None
        lease = Lease(stream_id, record.incarnation, record.epoch)
        # its writer is made now: appends that are called at once must not race to make it
        self._take_up(lease, await insist(partial(self._state, stream_id)))
        return lease

    async def _act(self, stream_id: str, decision: Callable[[State], Record | None]) -> Record | None:
        """Fold, decide, commit, until the record is stored (and returned) or there is none to store."""
        async for _ in backoff(0.001):
            state = await self._state(stream_id)
            record = decision(state)
            if record is None:
                return None
            try:
                self.tails.wrote(stream_id, await commit(self.log, record, state.position, patient=False))
                return record
            except Moved:
                since = await insist(partial(self.log.read, stream_id, state.position))
                if any(stored.record.nonce == record.nonce for stored in since):
                    return record
            except Rewound:
                continue
        raise AssertionError("backoff never ends")

    # ---------------------------------------------------------------- states

    async def _state(self, stream_id: str) -> State:
        """The stream as the broker's leader has it."""
        state = State()
        for stored in await self.log.read(stream_id):
            state, _ = fold(state, stored)
        return state

    async def _newest(self, stream_id: str) -> State:
        """The same as `_current`, by one record where a tail has all that the leader has."""
        before = self.tails.state(stream_id)
        if before is not None:
            last = await self.log.last(stream_id)
            known = self.tails.state(stream_id)  # it went on meanwhile
            if known is not None and last is not None and known.position >= last.position >= before.position:
                return known
        return await self._current(stream_id)

    async def _current(self, stream_id: str) -> State:
        """The same, with the record written that its time has made due."""
        while True:
            state = await self._state(stream_id)
            record = decide.expiry(state, stream_id, new_nonce(), self.log.now_ms())
            if record is None:
                return state
            try:
                self.tails.wrote(stream_id, await commit(self.log, record, state.position, patient=False))
            except (Moved, Rewound):
                continue

    def _overdue(self, stream_id: str) -> asyncio.Task[State]:
        """A tail's time has passed: write what is due, once however many ask."""
        task = self._due.get(stream_id)
        if task is None:
            task = self._due[stream_id] = self._tasks.spawn(insist(partial(self._current, stream_id)))
            task.add_done_callback(lambda _: self._due.pop(stream_id, None))
        return task

    # ---------------------------------------------------------------- closing

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._tasks.close()
        ending = Ending(Status.PRODUCER_LOST, "producer-lost", "The process that produced this stream was stopped")
        await self._end_own(ending)
        await self.tails.close()
        await self._tasks.aclose()
        await self._members.close()
        await self.log.close()
        if self._on_close is not None:
            await self._on_close()

    async def _end_own(self, ending: Ending) -> None:
        """End what this store still produces, as far as the broker lets it within a request's time."""
        writers = self._held.writers()
        finishing = [asyncio.ensure_future(writer.finish(ending)) for writer in writers]
        if finishing:
            await asyncio.wait(finishing, timeout=self._timeout)
        for work in finishing:
            work.cancel()
        await asyncio.gather(*finishing, return_exceptions=True)
        for writer in writers:
            await writer.abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
