"""Stores on one Redis, for tests of several "processes" in one (see `tailrace.testing.worlds`)."""

from __future__ import annotations

import asyncio

from tailrace.model import Limits
from tailrace.records import Stored
from tailrace.redis import RedisOptions
from tailrace.redis.broker import Redis, open_redis
from tailrace.store import LogStore
from tailrace.testing.faults import FaultPlan, FaultyBeats, FaultyLog
from tailrace.testing.worlds import WorldOfStores


class RedisWorld(WorldOfStores):
    """Stores on the server at ``url``. Ids must be the test's own: the server may serve others."""

    def __init__(self, url: str, lease_ttl: float = 0.5, options: RedisOptions | None = None) -> None:
        super().__init__(lease_ttl)
        self.url = url
        self.options = options or RedisOptions()
        self._observer: asyncio.Task[Redis] | None = None

    async def store(self, plan: FaultPlan | None = None, *, limits: Limits | None = None) -> LogStore:
        broker = await open_redis(self.url, self.options)
        if plan is None:
            return await self._start(broker.log, broker.beats, broker.runs, limits, broker)
        log, beats = FaultyLog(broker.log, plan), FaultyBeats(broker.beats, plan)
        return await self._start(log, beats, broker.runs, limits, broker)

    async def records(self, stream_id: str) -> list[Stored]:
        if self._observer is None:
            self._observer = asyncio.create_task(open_redis(self.url, self.options))
        return await (await self._observer).log.read(stream_id)

    async def close(self) -> None:
        await super().close()
        if self._observer is not None:
            await (await self._observer).close()
