"""Feeds a runner from the memory store's queue, in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from tailrace.contracts import StreamStore
from tailrace.memory_runs import MemoryConsumer, MemoryRunQueue
from tailrace.worker.handlers import Handler
from tailrace.worker.runner import Runner


class MemorySource:
    """`tailrace.worker.app.Source` over `MemoryRunQueue`."""

    def __init__(self, queue: MemoryRunQueue, member_id: str, runner: Runner, handlers: Mapping[str, Handler]) -> None:
        self._queue, self._member_id, self._runner, self._handlers = queue, member_id, runner, tuple(handlers)
        self._consumer: MemoryConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._unhear: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self._consumer = self._queue.deliveries(self._handlers)
        self._unhear = self._queue.on_cancel(self._member_id, self._runner.cancel)
        self._task = asyncio.create_task(self._feed(self._consumer), name="worker commands")

    async def _feed(self, consumer: MemoryConsumer) -> None:
        await self._runner.room()
        async for delivery in consumer:
            await self._runner.handle(delivery)
            await self._runner.room()

    async def stop(self) -> None:
        if self._consumer is not None:
            self._consumer.stop()

    async def close(self) -> None:
        await self.stop()
        self._unhear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._consumer is not None:
            self._consumer.close()


def make(store: StreamStore, runner: Runner, handlers: Mapping[str, Handler]) -> MemorySource:
    """The source for a store whose queue declares the kind ``memory``."""
    return MemorySource(cast("MemoryRunQueue", store.runs), store.members.id, runner, handlers)
