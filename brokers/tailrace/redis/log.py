"""`Log` on Redis: records in streams that npm ``assistant-stream`` shares.

Theory. See `tailrace.redis.scripts` for what the server judges, `tailrace.redis.wire` for what an entry means. A read
gives the end of the life before (if one is known) and the records of the present life; npm's entries become records
here, by folding what came before them.

Rules. An append is one script, on the condition that the stream's last position is the expected one. An append
without an answer is unknown, never repeated here. Segments are not kept: a stream is one key, read at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from tailrace._clock import Clock
from tailrace.commit import insist
from tailrace.decide import begins_a_life
from tailrace.errors import BrokerUnavailable, InvalidStreamId, RecordError, TailraceError
from tailrace.fold import State, fold
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation, validate_stream_id
from tailrace.records import Record, Stored
from tailrace.redis.connection import Connection, Unanswered
from tailrace.redis.listening import Channel, Listener
from tailrace.redis.names import Names
from tailrace.redis.scripts import APPEND, LAST, READ, Script
from tailrace.redis.watching import Deliver, Watch
from tailrace.redis.wire import (
    Entry,
    NeedsWhole,
    View,
    entries_of,
    fields_of,
    id_of,
    last_record,
    position_of,
    status_of,
    translate,
    view_of,
)
from tailrace.tasks import end

MAX_RECORD = 8 * 1024 * 1024
PAGE = 1000  # entries in one answer
SWEEP = 500  # keys in one MGET


class RedisLog:
    """Made by `open_redis`; see `tailrace.log.Log` for what each call promises."""

    max_record_bytes = MAX_RECORD

    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._names = names
        self.clock = Clock()
        self._watches: dict[str, Watch] = {}
        self._states: dict[str, State] = {}  # of followed streams: what was folded from what was read last
        self._tasks: set[asyncio.Task[None]] = set()
        self._vacant: set[Watch] = set()
        self._claims: Channel | None = None
        self.listener = Listener(connection, names.prefix, self._sweep)

    def now_ms(self) -> int:
        return self.clock.now_ms

    def key(self, stream_id: str) -> str:
        return hashlib.blake2b(stream_id.encode(), digest_size=16).hexdigest()

    async def _ask(self, script: Script, stream_id: str, *arguments: Any) -> Any:
        names = self._names
        given = (names.data(stream_id), stream_id, names.index, names.keep_ms, *arguments)
        return await self._connection.run(script, (names.meta(stream_id), names.companion(stream_id)), *given)

    async def _look(self, script: Script, stream_id: str, *arguments: Any) -> tuple[View, list[Entry]]:
        try:
            reply = await self._ask(script, stream_id, *arguments)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        view = view_of(reply[0])
        self.clock.see(view.now)
        return view, entries_of(reply[1])

    # ---------------------------------------------------------------- writing

    async def append(self, record: Record, expected: int) -> int:
        names, stream_id = self._names, record.stream_id
        ttl, token = 0.0, ""
        if begins_a_life(record) and record.claim is not None:
            ttl, token = record.claim.ttl, names.token(record.incarnation)
        entries, head, facts = fields_of(record)
        flat: list[Any] = []
        for fields in entries:
            flat += [len(fields), *fields]
        try:
            now, position = await self._ask(
                APPEND,
                stream_id,
                names.claims,
                id_of(expected),
                str(record.kind),
                str(record.incarnation),
                status_of(record),
                int(ttl * 1000),
                token,
                head,
                facts,
                *flat,
            )
        except Unanswered as error:
            raise AppendUnknown(str(error)) from None
        self.clock.see(int(now))
        if not position:
            raise AppendRefused
        return position_of(position)

    # ---------------------------------------------------------------- reading

    async def last(self, stream_id: str) -> Stored | None:
        view, entries = await self._look(LAST, stream_id)
        return last_record(stream_id, view, entries)

    async def read(self, stream_id: str, after: int = 0) -> list[Stored]:
        view, entries = await self._entries(stream_id, after)
        known = self._states.get(stream_id)
        state = State() if after == 0 else known if known is not None and known.position == after else None
        try:
            found, state = translate(stream_id, view, entries, after, state)
        except NeedsWhole:
            view, entries = await self._entries(stream_id, 0)
            whole, state = translate(stream_id, view, entries, 0, State())
            found = [stored for stored in whole if stored.position > after]
        if stream_id in self._watches:
            if state is not None:
                self._states[stream_id] = state
            else:
                self._states.pop(stream_id, None)
        return found

    async def _entries(self, stream_id: str, after: int) -> tuple[View, list[Entry]]:
        """All entries behind ``after`` of one life, however many answers they take."""
        view, entries = await self._look(READ, stream_id, id_of(after), PAGE)
        page = entries
        while len(page) == PAGE:
            newer, page = await self._look(READ, stream_id, id_of(page[-1][0]), PAGE)
            if newer.incarnation != view.incarnation:  # another life began meanwhile
                return await self._entries(stream_id, after)
            view = newer
            entries += page
        return view, entries

    async def lasts(self) -> AsyncIterator[Stored]:
        async for stream_id in self._ids():
            try:
                stored = await self.last(stream_id)
                if stored is not None and stored.record.nonce.startswith("npm"):
                    stored = next(reversed(await self.read(stream_id)), None)
            except RecordError:  # of one stream: the others are asked for too
                continue
            if stored is not None:
                yield stored

    async def _ids(self) -> AsyncIterator[str]:
        """Every stream that has npm's meta, or is in the index; each once."""
        seen: set[str] = set()
        for command in (("SSCAN", self._names.index), ("SCAN",)):
            cursor = b"0"
            while True:
                extra = () if len(command) == 2 else ("MATCH", self._names.meta_pattern)
                cursor, found = await self._scan(*command, cursor, *extra, "COUNT", 500)
                for name in found:
                    stream_id = name.decode() if len(command) == 2 else self._names.id_of_meta(name.decode())
                    if stream_id not in seen and _is_id(stream_id):
                        seen.add(stream_id)
                        yield stream_id
                if cursor == b"0":
                    break

    async def _scan(self, *arguments: Any) -> Any:
        try:
            return await self._connection.call(*arguments)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None

    async def count(self, below: int) -> int:
        found: int = await self._scan("SCARD", self._names.index)
        return found

    # ---------------------------------------------------------------- following

    async def follow(self, stream_id: str, deliver: Deliver, uncertain: Callable[[], None]) -> Following:
        watch = self._watches.get(stream_id)
        if watch is None:
            view, entries = await self._look(LAST, stream_id)
            watch = self._watches.get(stream_id)  # somebody else may have been faster
            if watch is None:
                watch = self._watches[stream_id] = Watch(stream_id, self._moved)
                self._settle(watch, view, bool(entries))
        following = Following(self, watch)
        watch.followers[following] = (self._folding(stream_id, deliver), uncertain)
        return following

    def _folding(self, stream_id: str, deliver: Deliver) -> Deliver:
        """What is delivered is known here too, for entries of npm's that come behind it."""

        def take(stored: Stored) -> None:
            self.clock.see(stored.time_ms)
            state = self._states.get(stream_id)
            if state is not None and state.position == stored.previous:
                self._states[stream_id] = fold(state, stored)[0]
            deliver(stored)

        return take

    def _settle(self, watch: Watch, view: View, has_entries: bool) -> None:
        watch.settle(view, has_entries)
        if watch.channel is not None:
            self.listener.remove(watch.channel)
            watch.channel = None
        if view.incarnation is not None:
            key = self._names.data(watch.stream_id, view.token)
            watch.channel = self.listener.add(key, view.position, watch.take, lambda: self._moved(watch))
            self._no_longer_vacant(watch)
            return
        self._vacant.add(watch)
        if self._claims is None:
            self._claims = self.listener.add(self._names.claims, view.now << 24, self._claimed, self._doubt_vacant)

    def _no_longer_vacant(self, watch: Watch) -> None:
        self._vacant.discard(watch)
        if not self._vacant and self._claims is not None:
            self.listener.remove(self._claims)
            self._claims = None

    def _claimed(self, entries: list[Entry]) -> None:
        for _, fields in entries:
            watch = self._watches.get(fields.get(b"id", b"").decode())
            if watch is not None and watch in self._vacant:
                self._moved(watch)

    def _doubt_vacant(self) -> None:
        for watch in tuple(self._vacant):
            self._moved(watch)

    def _moved(self, watch: Watch) -> None:
        """Look again where the stream is, then let its followers read."""
        self._spawn(self._find(watch))

    async def _find(self, watch: Watch) -> None:
        try:
            view, entries = await insist(lambda: self._look(LAST, watch.stream_id))
        except TailraceError:
            watch.doubt()
            return
        if self._watches.get(watch.stream_id) is watch:
            self._settle(watch, view, bool(entries))
            watch.doubt()

    async def _sweep(self) -> None:
        watches = list(self._watches.values())
        for start in range(0, len(watches), SWEEP):
            some = watches[start : start + SWEEP]
            metas = await self._connection.call("MGET", *(self._names.meta(watch.stream_id) for watch in some))
            for watch, meta in zip(some, metas, strict=True):
                if self._watches.get(watch.stream_id) is watch:
                    watch.swept(meta)
            await self._look_for([watch for watch in some if watch.may_be_emptied])

    async def _look_for(self, watches: list[Watch]) -> None:
        """Whether the data keys of these are still there: one command where all are."""
        keys = [self._names.data(watch.stream_id) for watch in watches]
        if not keys or await self._connection.call("EXISTS", *keys) == len(keys):
            return
        for watch, key in zip(watches, keys, strict=True):
            if not await self._connection.call("EXISTS", key) and watch.may_be_emptied:
                watch.emptied()

    def forget(self, following: Following) -> None:
        watch = following.watch
        watch.followers.pop(following, None)
        if not watch.followers and self._watches.get(watch.stream_id) is watch:
            del self._watches[watch.stream_id]
            self._states.pop(watch.stream_id, None)
            self._no_longer_vacant(watch)
            if watch.channel is not None:
                self.listener.remove(watch.channel)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- segments, closing

    async def write_segments(self, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]) -> None:
        """Nothing: it would take the memory twice."""

    async def read_segments(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        return None

    async def drop_segments(self, stream_id: str, incarnation: Incarnation) -> None:
        """Nothing."""

    async def close(self) -> None:
        await end(*self._tasks)
        await self.listener.close()


class Following:
    """What `RedisLog.follow` made."""

    def __init__(self, log: RedisLog, watch: Watch) -> None:
        self._log = log
        self.watch = watch

    async def close(self) -> None:
        self._log.forget(self)


def _is_id(stream_id: str) -> bool:
    try:
        validate_stream_id(stream_id)
    except InvalidStreamId:
        return False
    return True
