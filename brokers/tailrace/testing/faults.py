"""A real log and real heartbeats that misbehave at the client's edge, as networks and brokers do.

Theory. What drives a log must bear whatever a log may do by its contract (`tailrace.log`): answers that never come,
records that land after their sender gave up, a refusal while the own copy is on its way, live records lost, late or
doubled, a broker that is away. `FaultyLog` wraps a log that works, and does these by a seeded plan; nothing is mocked,
and nothing happens that the contract forbids.

Rules. Every fault is counted by its name, so that a test can show that it happened. Each call pauses now and then, so
that its caller can be cancelled there. A plan that was told to `calm` does nothing any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from tailrace.errors import BrokerFailed, BrokerUnavailable, TailraceError
from tailrace.log import AppendRefused, AppendUnknown, Beats, Following, Log
from tailrace.model import Incarnation
from tailrace.records import Record, Stored

T = TypeVar("T")


@dataclass
class FaultPlan:
    """How often each thing goes wrong (0 to 1), by ``seed``. ``delay`` is the longest pause, in seconds."""

    seed: int
    ack_lost: float = 0.0  # appended, and AppendUnknown
    lands_late: float = 0.0  # AppendUnknown, and appended later
    refused_in_flight: float = 0.0  # AppendRefused, and appended later
    append_unavailable: float = 0.0  # BrokerUnavailable, and not appended
    append_failed: float = 0.0  # BrokerFailed, and not appended
    read_unavailable: float = 0.0
    live_lost: float = 0.0
    live_late: float = 0.0
    live_twice: float = 0.0
    pauses: float = 0.3
    delay: float = 0.02
    counts: Counter[str] = field(default_factory=Counter)
    is_away: bool = False

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        self._uncertain: set[Callable[[], None]] = set()

    def happens(self, fault: str) -> bool:
        """Whether ``fault`` (the name of a rate) is due; counted if so."""
        due: bool = self._random.random() < getattr(self, fault)
        self.counts[fault] += due
        return due

    def pause(self) -> float:
        """Seconds, at most ``delay``."""
        return self._random.random() * self.delay

    async def gate(self, fault: str) -> None:
        """Before a call: a pause perhaps, and `BrokerUnavailable` where the broker is away or ``fault`` is due."""
        if self.happens("pauses"):
            await asyncio.sleep(self.pause() if self._random.random() < 0.5 else 0)
        if self.is_away or self.happens(fault):
            raise BrokerUnavailable("The broker is away, by plan")

    def go_away(self) -> None:
        """From now on every call fails, and nothing live comes through."""
        self.is_away = True
        self.counts["away"] += 1

    def come_back(self) -> None:
        """The connection is there again; followers hear that they may have missed something."""
        self.is_away = False
        for uncertain in tuple(self._uncertain):
            uncertain()

    def calm(self) -> None:
        """No more faults."""
        for fault in self.__dataclass_fields__:
            if isinstance(getattr(self, fault), float):
                setattr(self, fault, 0.0)
        if self.is_away:
            self.come_back()

    def watch(self, uncertain: Callable[[], None]) -> Callable[[], None]:
        """Register a follower; call what is returned to let it go."""
        self._uncertain.add(uncertain)
        return lambda: self._uncertain.discard(uncertain)


class FaultyLog:
    """`tailrace.log.Log` over ``log``, with the faults of ``plan``."""

    def __init__(self, log: Log, plan: FaultPlan) -> None:
        self.log = log
        self.plan = plan
        self._late: set[asyncio.Task[None]] = set()

    @property
    def max_record_bytes(self) -> int:
        return self.log.max_record_bytes

    def now_ms(self) -> int:
        return self.log.now_ms()

    def key(self, stream_id: str) -> str:
        return self.log.key(stream_id)

    async def append(self, record: Record, expected: int) -> int:
        plan = self.plan
        await plan.gate("append_unavailable")
        if plan.happens("append_failed"):
            raise BrokerFailed("The broker refused this, by plan")
        if plan.happens("lands_late"):
            self._append_later(record, expected)
            raise AppendUnknown("no answer, by plan")
        if plan.happens("refused_in_flight"):
            self._append_later(record, expected)
            raise AppendRefused("the own copy is on its way, by plan")
        position = await self.log.append(record, expected)
        if plan.happens("ack_lost") or plan.is_away:
            raise AppendUnknown("the answer was lost, by plan")
        return position

    def _append_later(self, record: Record, expected: int) -> None:
        task = asyncio.create_task(self._append_in(self.plan.pause() * 3, record, expected))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _append_in(self, seconds: float, record: Record, expected: int) -> None:
        await asyncio.sleep(seconds)
        try:
            await self.log.append(record, expected)
        except (AppendRefused, AppendUnknown, TailraceError):
            self.plan.counts["late_refused"] += 1
        else:
            self.plan.counts["late_landed"] += 1

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        await self.plan.gate("read_unavailable")
        found = await call()
        await self.plan.gate("read_unavailable")  # the answer may take its time, or be lost
        return found

    async def last(self, stream_id: str) -> Stored | None:
        return await self._read(lambda: self.log.last(stream_id))

    async def read(self, stream_id: str, after: int = 0) -> list[Stored]:
        return await self._read(lambda: self.log.read(stream_id, after))

    async def follow(
        self, stream_id: str, deliver: Callable[[Stored], None], uncertain: Callable[[], None]
    ) -> Following:
        following = _FaultyFollowing(self.plan, deliver, uncertain)
        try:
            await self.plan.gate("read_unavailable")
            following.inner = await self.log.follow(stream_id, following.take, uncertain)
            await self.plan.gate("read_unavailable")
        except BaseException:
            await following.close()
            raise
        return following

    async def lasts(self) -> AsyncIterator[Stored]:
        await self.plan.gate("read_unavailable")
        async for stored in self.log.lasts():
            yield stored

    async def count(self, below: int) -> int:
        return await self._read(lambda: self.log.count(below))

    async def write_segments(self, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]) -> None:
        await self._read(lambda: self.log.write_segments(stream_id, incarnation, segments))

    async def read_segments(self, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
        return await self._read(lambda: self.log.read_segments(stream_id, incarnation))

    async def drop_segments(self, stream_id: str, incarnation: Incarnation) -> None:
        await self._read(lambda: self.log.drop_segments(stream_id, incarnation))

    async def landed(self) -> None:
        """Return once nothing is on its way any more."""
        while self._late:
            await asyncio.wait(tuple(self._late))

    async def close(self) -> None:
        await self.landed()
        await self.log.close()


class _FaultyFollowing:
    """Live records lost, late or twice: `uncertain`, the next record or a heartbeat shows what is missing."""

    def __init__(self, plan: FaultPlan, deliver: Callable[[Stored], None], uncertain: Callable[[], None]) -> None:
        self.inner: Following | None = None
        self._plan = plan
        self._deliver = deliver
        self._forget = plan.watch(uncertain)
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    def take(self, stored: Stored) -> None:
        plan = self._plan
        if plan.is_away or plan.happens("live_lost"):
            return
        if not plan.happens("live_late"):
            self._deliver(stored)
            if not plan.happens("live_twice"):
                return
        handle = asyncio.get_running_loop().call_later(plan.pause(), self._later, stored)
        self._timers.add(handle)

    def _later(self, stored: Stored) -> None:
        if not self._closed:
            self._deliver(stored)

    async def close(self) -> None:
        self._closed = True
        self._forget()
        for handle in self._timers:
            handle.cancel()
        if self.inner is not None:
            await self.inner.close()


class FaultyBeats:
    """`tailrace.log.Beats` over ``beats``: they share the plan's absences, and nothing else goes wrong with them."""

    def __init__(self, beats: Beats, plan: FaultPlan) -> None:
        self.beats = beats
        self.plan = plan

    async def send(self, member_id: str, payload: bytes) -> None:
        if self.plan.is_away:
            raise BrokerUnavailable("The broker is away, by plan")
        await self.beats.send(member_id, payload)

    async def follow(self, deliver: Callable[[int, bytes], None], uncertain: Callable[[], None]) -> Following:
        def take(time_ms: int, payload: bytes) -> None:
            if not self.plan.is_away:
                deliver(time_ms, payload)

        inner = await self.beats.follow(take, uncertain)
        return _FollowingBeats(inner, self.plan.watch(uncertain))

    async def recent(self) -> list[tuple[int, bytes]]:
        return await self.beats.recent()


class _FollowingBeats:
    def __init__(self, inner: Following, forget: Callable[[], None]) -> None:
        self._inner = inner
        self._forget = forget

    async def close(self) -> None:
        self._forget()
        await self._inner.close()
