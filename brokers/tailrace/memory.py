"""The memory store: streams in one process, for programs that have one and for tests.

It is a log like any other, with the same fold, the same store above it and the same kit of tests; it is not shared with
other processes and keeps nothing when its own ends. Several stores may share a `MemoryBroker`: each is then what a
process is on a real broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from tailrace.contracts import Capabilities
from tailrace.decide import ends_a_life
from tailrace.errors import StorageFull
from tailrace.log import AppendRefused
from tailrace.members import Membership
from tailrace.memory_runs import MemoryRunQueue
from tailrace.model import Incarnation, Limits
from tailrace.records import Record, Stored
from tailrace.store import LogStore

CAPABILITIES = Capabilities(shared=False, durable=False)


class MemoryBroker:
    """What memory stores share: the logs, the heartbeats, the queue. ``now`` gives ms since the Unix epoch."""

    def __init__(self, now: Callable[[], int] | None = None, max_total_bytes: int | None = None) -> None:
        self.now = now or (lambda: time.time_ns() // 1_000_000)
        self.logs: dict[str, list[Stored]] = {}
        self.segments: dict[tuple[str, Incarnation], list[bytes]] = {}
        self.followers: dict[str, set[_Following]] = {}
        self.beats: dict[str, tuple[int, bytes]] = {}
        self.beat_followers: set[_BeatFollowing] = set()
        self.runs = MemoryRunQueue(self.now)
        self.max_total_bytes = max_total_bytes
        self.total_bytes = 0
        self._position = 0

    def next_position(self) -> int:
        self._position += 1
        return self._position


class _Following:
    def __init__(self, followers: set[_Following], deliver: Callable[[Stored], None]) -> None:
        self.deliver = deliver
        self._followers = followers
        followers.add(self)

    async def close(self) -> None:
        self._followers.discard(self)


class _BeatFollowing:
    def __init__(self, followers: set[_BeatFollowing], deliver: Callable[[int, bytes], None]) -> None:
        self.deliver = deliver
        self._followers = followers
        followers.add(self)

    async def close(self) -> None:
        self._followers.discard(self)


class MemoryLog:
    """`tailrace.log.Log` in memory."""

    max_record_bytes = 64 * 1024 * 1024

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def now_ms(self) -> int:
        return self._broker.now()

    def key(self, stream_id: str) -> str:
        return stream_id

    async def append(self, record: Record, expected: int) -> int:
        broker, log = self._broker, self._broker.logs.get(record.stream_id, [])
        previous = log[-1].position if log else 0
        if previous != expected:
            raise AppendRefused
        size = sum(map(len, record.chunks))
        if broker.max_total_bytes is not None and broker.total_bytes + size > broker.max_total_bytes:
            raise StorageFull(f"The memory store is full: {broker.total_bytes} of {broker.max_total_bytes} bytes")
        stored = Stored(broker.next_position(), previous, broker.now(), record)
        if ends_a_life(record):
            broker.total_bytes -= sum(len(chunk) for old in log for chunk in old.record.chunks)
            broker.logs[record.stream_id] = [stored]  # nobody reads what is gone; the next life counts on from here
        else:
            broker.logs.setdefault(record.stream_id, []).append(stored)
            broker.total_bytes += size
        for follower in tuple(broker.followers.get(record.stream_id, ())):
            follower.deliver(stored)
        return stored.position

    async def last(self, stream_id: str) -> Stored | None:
        log = self._broker.logs.get(stream_id)
        return log[-1] if log else None

    async def read(self, stream_id: str, after: int = 0) -> list[Stored]:
        return [stored for stored in self._broker.logs.get(stream_id, ()) if stored.position > after]

    async def follow(
        self, stream_id: str, deliver: Callable[[Stored], None], uncertain: Callable[[], None]
    ) -> _Following:
        return _Following(self._broker.followers.setdefault(stream_id, set()), deliver)

    async def lasts(self) -> AsyncIterator[Stored]:
        for log in tuple(self._broker.logs.values()):
            if log:
                yield log[-1]

    async def count(self, below: int) -> int:
        return sum(1 for log in self._broker.logs.values() if log and not ends_a_life(log[-1].record))

    async def write_segments(self, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]) -> None:
        self._broker.segments.setdefault((stream_id, incarnation), list(segments))

    async def read_segments(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        return self._broker.segments.get((stream_id, incarnation))

    async def drop_segments(self, stream_id: str, incarnation: Incarnation) -> None:
        self._broker.segments.pop((stream_id, incarnation), None)

    async def close(self) -> None:
        for stream_id in [stream_id for stream_id, followers in self._broker.followers.items() if not followers]:
            del self._broker.followers[stream_id]


class MemoryBeats:
    """`tailrace.log.Beats` in memory."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def send(self, member_id: str, payload: bytes) -> None:
        beat = (self._broker.now(), payload)
        self._broker.beats[member_id] = beat
        for follower in tuple(self._broker.beat_followers):
            follower.deliver(*beat)

    async def follow(self, deliver: Callable[[int, bytes], None], uncertain: Callable[[], None]) -> _BeatFollowing:
        return _BeatFollowing(self._broker.beat_followers, deliver)

    async def recent(self) -> list[tuple[int, bytes]]:
        return list(self._broker.beats.values())


class MemoryStore(LogStore):
    """A store in memory. It can be used at once; `start` makes it a member too (gateways and workers need that).

    ``now``: a clock in ms since the Unix epoch, for tests; after it jumped, `collect` lets waiting readers see it.
    ``gc_interval``: seconds between looks for streams that expired while nobody read them (None: only when asked).
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        now: Callable[[], int] | None = None,
        gc_interval: float | None = None,
        lease_ttl: float = 10.0,
        linger: float = 0.0,
        broker: MemoryBroker | None = None,
    ) -> None:
        chosen = limits or Limits()
        self.broker = broker or MemoryBroker(now, chosen.max_total_bytes)
        beats = MemoryBeats(self.broker)
        super().__init__(
            MemoryLog(self.broker),
            Membership(beats, lease_ttl),
            self.broker.runs,
            chosen,
            CAPABILITIES,
            linger=linger,
        )
        self._gc_interval = gc_interval
        self._gc: asyncio.Task[None] | None = None

    async def start(self) -> MemoryStore:
        await super().start()
        if self._gc_interval is not None:
            self._gc = self._tasks.spawn(self._collect_for_ever(self._gc_interval))
        return self

    async def _collect_for_ever(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self.collect()
