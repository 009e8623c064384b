"""Stores on one Kafka broker, for tests of several "processes" in one (see `tailrace.testing.worlds`)."""

from __future__ import annotations

import asyncio

from tailrace.kafka import KafkaOptions
from tailrace.kafka.broker import Kafka, open_kafka
from tailrace.model import Limits
from tailrace.records import Stored
from tailrace.store import LogStore
from tailrace.testing.faults import FaultPlan, FaultyBeats, FaultyLog
from tailrace.testing.worlds import WorldOfStores


class KafkaWorld(WorldOfStores):
    """Stores on the broker at ``url``. Ids must be the test's own: the broker may serve others."""

    def __init__(self, url: str, lease_ttl: float = 0.5, options: KafkaOptions | None = None) -> None:
        super().__init__(lease_ttl)
        self.url = url
        self.options = options or KafkaOptions(partitions=4, claims_partitions=2)
        self._observer: asyncio.Task[Kafka] | None = None

    async def store(self, plan: FaultPlan | None = None, *, limits: Limits | None = None) -> LogStore:
        broker = await open_kafka(self.url, options=self.options)
        if plan is None:
            return await self._start(broker.log, broker.beats, broker.runs, limits, broker)
        log, beats = FaultyLog(broker.log, plan), FaultyBeats(broker.beats, plan)
        return await self._start(log, beats, broker.runs, limits, broker)

    async def records(self, stream_id: str) -> list[Stored]:
        if self._observer is None:
            self._observer = asyncio.create_task(open_kafka(self.url, options=self.options))
        return await (await self._observer).log.read(stream_id)

    async def close(self) -> None:
        await super().close()
        if self._observer is not None:
            await (await self._observer).close()
