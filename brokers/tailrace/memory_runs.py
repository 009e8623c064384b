"""The run queue of the memory store: commands, their deliveries and dead letters in one process.

Theory. A command is in one of three places: *ready* (in its handler's line), *out* (with a consumer), or *delayed* (a
timer will make it ready again). It leaves only by an ack or a burial. A consumer that is closed gives back what is out
with it: in one process that is what losing a worker means.

Rules. All calls happen on one event loop, so nothing here locks. A settled delivery (acked, put back, buried, or of a
consumer that was closed) is void: its later calls change nothing, so a worker that lost a command cannot take it away
from the next one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from tailrace.contracts import Command
from tailrace.model import validate_stream_id


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A command that could not be run, and why."""

    command: Command
    reason: str


class _Job:
    """An accepted command: how often it went out, and with whom it is now."""

    __slots__ = ("attempts", "command", "consumer", "submitted_ms", "timer")

    def __init__(self, command: Command, submitted_ms: int) -> None:
        self.command = command
        self.submitted_ms = submitted_ms
        self.attempts = 0
        self.consumer: MemoryConsumer | None = None
        self.timer: asyncio.TimerHandle | None = None


class MemoryDelivery:
    """A command in a worker's hands (`tailrace.contracts.Delivery`); ``submitted_ms`` is when it was accepted."""

    def __init__(self, queue: MemoryRunQueue, consumer: MemoryConsumer, job: _Job) -> None:
        self._queue, self._consumer, self._job = queue, consumer, job
        self.command = job.command
        self.stream_id: str | None = job.command.stream_id
        self.attempt = job.attempts
        self.submitted_ms = job.submitted_ms

    async def ack(self) -> None:
        if self._settle():
            self._queue._forget(self._job)

    async def retry(self, delay: float) -> None:
        if self._settle():
            self._queue._delay(self._job, delay)

    async def working(self) -> None:
        """Nothing to do: only a closed consumer loses its commands here."""

    async def bury(self, reason: str) -> None:
        if self._settle():
            self._queue._forget(self._job)
            self._queue.dead_letters.append(DeadLetter(self._job.command, reason))

    def _settle(self) -> bool:
        """Take the command out of the consumer's hands, if this delivery is still the one that it is out with."""
        if self._job.consumer is not self._consumer or self._job.attempts != self.attempt:
            return False
        self._job.consumer = None
        self._consumer._out.discard(self._job)
        return True


class MemoryConsumer(AsyncIterator[MemoryDelivery]):
    """A worker at the queue: iterate to take commands of its handlers, one at a time.

    `stop` ends the iteration and leaves what is out with the consumer; `close` also gives that back.
    """

    def __init__(self, queue: MemoryRunQueue, handlers: Sequence[str]) -> None:
        self._queue = queue
        self._handlers = tuple(handlers)
        self._out: set[_Job] = set()
        self._wake = asyncio.Event()
        self._stopped = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MemoryDelivery:
        while not self._stopped:
            self._wake.clear()
            job = self._queue._take(self._handlers)
            if job is not None:
                job.attempts += 1
                job.consumer = self
                self._out.add(job)
                return MemoryDelivery(self._queue, self, job)
            await self._wake.wait()
        raise StopAsyncIteration

    def stop(self) -> None:
        """Take no more. Idempotent."""
        self._stopped = True
        self._wake.set()
        self._queue._consumers.discard(self)

    def close(self) -> None:
        """Stop, and give back what was not acked. Idempotent."""
        self.stop()
        jobs, self._out = self._out, set()
        for job in sorted(jobs, key=lambda job: job.submitted_ms):
            job.consumer = None
            self._queue._ready(job)


class MemoryRunQueue:
    """`tailrace.contracts.RunQueue` in one process. ``now_ms`` is the store's clock."""

    kind = "memory"

    def __init__(self, now_ms: Callable[[], int] | None = None) -> None:
        self.dead_letters: list[DeadLetter] = []
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._jobs: dict[str, dict[str, _Job]] = {}  # by stream id, by handler
        self._lines: dict[str, deque[_Job]] = {}
        self._consumers: set[MemoryConsumer] = set()
        self._cancels: dict[str, list[Callable[[str], object]]] = {}  # by member

    async def submit(self, command: Command) -> Command:
        validate_stream_id(command.stream_id)
        jobs = self._jobs.setdefault(command.stream_id, {})
        if (queued := jobs.get(command.handler)) is not None:
            return queued.command
        job = jobs[command.handler] = _Job(replace(command, id=secrets.token_hex(8)), self._now_ms())
        self._ready(job)
        return job.command

    async def find(self, stream_id: str) -> Command | None:
        validate_stream_id(stream_id)
        return next((job.command for job in self._jobs.get(stream_id, {}).values()), None)

    async def cancel(self, member_id: str, stream_id: str) -> None:
        for stop in tuple(self._cancels.get(member_id, ())):
            stop(stream_id)

    def on_cancel(self, member_id: str, stop: Callable[[str], object]) -> Callable[[], None]:
        """Call ``stop`` with the stream id of each cancel for this member; calling what this returns ends that."""
        self._cancels.setdefault(member_id, []).append(stop)

        def leave() -> None:
            stops = self._cancels.get(member_id, [])
            if stop in stops:
                stops.remove(stop)
            if not stops:
                self._cancels.pop(member_id, None)

        return leave

    def deliveries(self, handlers: Sequence[str]) -> MemoryConsumer:
        """A consumer of the commands for ``handlers``."""
        consumer = MemoryConsumer(self, handlers)
        self._consumers.add(consumer)
        return consumer

    def _ready(self, job: _Job) -> None:
        job.timer = None
        self._lines.setdefault(job.command.handler, deque()).append(job)
        for consumer in self._consumers:
            if job.command.handler in consumer._handlers:
                consumer._wake.set()

    def _take(self, handlers: Sequence[str]) -> _Job | None:
        lines = [line for handler in handlers if (line := self._lines.get(handler))]
        oldest = min(lines, key=lambda line: line[0].submitted_ms, default=None)
        return oldest.popleft() if oldest else None

    def _delay(self, job: _Job, delay: float) -> None:
        job.timer = asyncio.get_running_loop().call_later(delay, self._ready, job)

    def _forget(self, job: _Job) -> None:
        jobs = self._jobs.get(job.command.stream_id, {})
        jobs.pop(job.command.handler, None)
        if not jobs:
            self._jobs.pop(job.command.stream_id, None)

    def close(self) -> None:
        """End all consumers and timers."""
        for consumer in tuple(self._consumers):
            consumer.stop()
        for jobs in self._jobs.values():
            for job in jobs.values():
                if job.timer is not None:
                    job.timer.cancel()
