"""A broker and the stores on it, for tests of several "processes" in one: `MemoryWorld`, `JetStreamWorld`.

Each `store` is a new member with connections of its own; with a plan, its log and heartbeats are faulty. `records` asks
the broker itself: it is what the stores are judged by.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from tailrace.contracts import Capabilities, RunQueue
from tailrace.fold import State, fold
from tailrace.jetstream import JetStream, JetStreamOptions, open_jetstream
from tailrace.log import Beats, Broker, Log
from tailrace.members import Membership
from tailrace.memory import MemoryBeats, MemoryBroker, MemoryLog
from tailrace.model import Limits
from tailrace.records import Kind, Stored
from tailrace.store import LogStore
from tailrace.testing.faults import FaultPlan, FaultyBeats, FaultyLog

CAPABILITIES = Capabilities(shared=True, durable=False)


class World(Protocol):
    """``lease_ttl`` in seconds, for the stores made from now on."""

    lease_ttl: float

    async def store(self, plan: FaultPlan | None = None, *, limits: Limits | None = None) -> LogStore:
        """A new store, started."""

    async def records(self, stream_id: str) -> list[Stored]:
        """What the broker has of the stream."""

    async def close(self) -> None:
        """Close every store, and the rest."""


class WorldOfStores:
    """What the worlds share. `store` makes its store by `_start`."""

    def __init__(self, lease_ttl: float) -> None:
        self.lease_ttl = lease_ttl
        self.stores: list[LogStore] = []

    async def _start(
        self, log: Log, beats: Beats, runs: RunQueue, limits: Limits | None, broker: Broker | None
    ) -> LogStore:
        store = LogStore(
            log,
            Membership(beats, self.lease_ttl),
            runs,
            limits or Limits(),
            CAPABILITIES,
            linger=0.0,
            on_close=broker.close if broker is not None else None,
        )
        self.stores.append(store)
        return await store.start()

    async def close(self) -> None:
        for store in self.stores:
            log = store.log
            if isinstance(log, FaultyLog):
                log.plan.calm()
        for store in self.stores:
            await store.aclose()


class MemoryWorld(WorldOfStores):
    """Stores that share a `MemoryBroker`."""

    def __init__(self, lease_ttl: float = 0.5) -> None:
        super().__init__(lease_ttl)
        self.broker = MemoryBroker()

    async def store(self, plan: FaultPlan | None = None, *, limits: Limits | None = None) -> LogStore:
        log, beats = MemoryLog(self.broker), MemoryBeats(self.broker)
        if plan is None:
            return await self._start(log, beats, self.broker.runs, limits, None)
        return await self._start(FaultyLog(log, plan), FaultyBeats(beats, plan), self.broker.runs, limits, None)

    async def records(self, stream_id: str) -> list[Stored]:
        return await MemoryLog(self.broker).read(stream_id)


class BrokerWorld(WorldOfStores):
    """Stores on a real broker, each with connections of its own. A subclass's ``_open`` makes one's."""

    def __init__(self, lease_ttl: float) -> None:
        super().__init__(lease_ttl)
        self._observer: asyncio.Task[Broker] | None = None

    async def _open(self) -> Broker:
        raise NotImplementedError

    async def store(self, plan: FaultPlan | None = None, *, limits: Limits | None = None) -> LogStore:
        broker = await self._open()
        if plan is None:
            return await self._start(broker.log, broker.beats, broker.runs, limits, broker)
        log, beats = FaultyLog(broker.log, plan), FaultyBeats(broker.beats, plan)
        return await self._start(log, beats, broker.runs, limits, broker)

    async def records(self, stream_id: str) -> list[Stored]:
        if self._observer is None:
            self._observer = asyncio.create_task(self._open())
        return await (await self._observer).log.read(stream_id)

    async def close(self) -> None:
        await super().close()
        if self._observer is not None:
            await (await self._observer).close()


class JetStreamWorld(BrokerWorld):
    """Stores on the nats-server at ``url``. Ids must be the test's own: the server may serve others."""

    def __init__(self, url: str, lease_ttl: float = 0.5, options: JetStreamOptions | None = None) -> None:
        super().__init__(lease_ttl)
        self.url = url
        self.options = options or JetStreamOptions(shards=4)

    async def _open(self) -> JetStream:
        return await open_jetstream(self.url, options=self.options)


def replay(records: list[Stored]) -> tuple[State, list[bytes]]:
    """What records mean: the state, and the chunks of the last life, by the fold alone."""
    state, chunks = State(), list[bytes]()
    for stored in records:
        before, (state, verdict) = state, fold(state, stored)
        if stored.record.kind is Kind.CLAIM and before.incarnation != state.incarnation:
            chunks = []
        if before.entries < state.entries and verdict.name == "COUNTS":
            chunks.extend(stored.record.chunks)
    return state, chunks
