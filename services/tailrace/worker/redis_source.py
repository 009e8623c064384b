"""Feeds a runner from Redis: one blocked read of all handlers' groups, on a connection of its own.

Theory. A command is read when there is room for it, and its run is a task of the runner's. What falls silent comes back
by ``XCLAIM``: every worker looks for it now and then between two reads.

Rules.

- A command that is put back with a delay stays in this worker's hands until then: should the worker die meanwhile, its
  silence brings the command back.
- A worker that leaves puts back what it still has.
- A group that is gone (a flush, a failover before the replica had it) is made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, cast

import structlog

from tailrace.commit import backoff, insist
from tailrace.contracts import Command, StreamStore
from tailrace.errors import BrokerError, InvalidStreamId
from tailrace.model import validate_stream_id
from tailrace.redis.consumer import Consumer
from tailrace.redis.runs import RedisRunQueue, Taken
from tailrace.worker.handlers import Handler
from tailrace.worker.runner import Runner

log = structlog.get_logger(__name__)


class RedisDelivery:
    """An entry of a group as a `tailrace.worker.run.RunDelivery`."""

    def __init__(self, source: RedisSource, taken: Taken) -> None:
        self._source, self._taken = source, taken
        self.attempt = taken.attempt
        self.submitted_ms = taken.submitted_ms
        self._command: Command | None = None

    @property
    def command(self) -> Command:
        if self._command is None:
            self._command = self._taken.command()
        return self._command

    @property
    def stream_id(self) -> str | None:
        try:
            return validate_stream_id(self._taken.stream_id)
        except InvalidStreamId:
            return None

    async def ack(self) -> None:
        await insist(lambda: self._source.queue.ack(self._taken, self._source.name))

    async def retry(self, delay: float) -> None:
        if delay <= 0:
            await self._source.queue.retry(self._taken, self._source.name)
        else:
            self._source.later(self._retry_later(delay))

    async def _retry_later(self, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self._source.queue.retry(self._taken, self._source.name)
        except BrokerError as error:  # its silence brings it back
            log.info("put-back-unheard", error=error.message, stream=self._taken.stream_id)

    async def working(self) -> None:
        await self._source.queue.working(self._taken, self._source.name)

    async def bury(self, reason: str) -> None:
        await self._source.queue.bury(self._taken, self._source.name, reason)


class RedisSource:
    """`tailrace.worker.app.Source` over `RedisRunQueue`; ``name`` is the consumer's in the groups."""

    def __init__(self, queue: RedisRunQueue, member_id: str, runner: Runner, handlers: Mapping[str, Handler]) -> None:
        self.queue, self.name = queue, member_id
        self._runner, self._handlers = runner, tuple(handlers)
        self._consumer: Consumer | None = None
        self._unhear: Callable[[], None] = lambda: None
        self._feeding: asyncio.Task[None] | None = None
        self._stopping = False
        self._later: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        consumer = self._consumer = Consumer(self.queue, self.name, self._handlers)
        await consumer.join()
        self._unhear = self.queue.on_cancel(self.name, self._cancel)  # heard before the first run is taken
        self._feeding = asyncio.create_task(self._feed(consumer), name="worker commands")

    async def _feed(self, consumer: Consumer) -> None:
        await self._runner.room()
        while self._handlers and not self._stopping:
            for taken in await self._take(consumer):
                await self._runner.handle(RedisDelivery(self, taken))
            await self._runner.room()

    async def _take(self, consumer: Consumer) -> list[Taken]:
        async for _ in backoff():
            try:
                return await consumer.take()
            except BrokerError as error:
                if self._stopping:
                    return []
                log.info("commands-not-read", error=error.message)
            with suppress(BrokerError):
                await consumer.join()
        raise AssertionError("backoff never ends")

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it as a task of this source."""
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def _cancel(self, stream_id: str) -> None:
        found = self._runner.cancel(stream_id)
        log.info("run-cancelled" if found else "cancel-of-no-run", stream=stream_id)

    async def stop(self) -> None:
        self._stopping = True
        if self._consumer is not None:
            await self._consumer.close()

    async def close(self) -> None:
        await self.stop()
        self._unhear()
        tasks = [*self._later, *([self._feeding] if self._feeding is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                await consumer.leave()
            except BrokerError as error:  # the broker is away: silence brings back what is left
                log.info("unsubscribe-unheard", error=error.message)


def make(store: StreamStore, runner: Runner, handlers: Mapping[str, Handler]) -> RedisSource:
    """The source for a store whose queue declares the kind ``redis``."""
    return RedisSource(cast("RedisRunQueue", store.runs), store.members.id, runner, handlers)
