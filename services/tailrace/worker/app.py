"""The worker: handlers, the runner, and the source that feeds it from the store's run queue.

Rules. It advertises what it runs before it takes the first command. It stops in the opposite order: take no more, say
so in the heartbeats, let the running ones end, and only then let go of what is left. The store is the caller's: it is
not closed here, and it must outlive the worker, because the endings of what is left are written through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Protocol, Self

import structlog

from tailrace.contracts import StreamStore
from tailrace.errors import BrokerUnsuitable
from tailrace.worker.handlers import Handler, by_name
from tailrace.worker.run import Pace
from tailrace.worker.runner import Runner

log = structlog.get_logger(__name__)


class Source(Protocol):
    """Feeds a runner: commands to `Runner.handle`, one at a time and only while there is room, cancels to
    `Runner.cancel`."""

    async def start(self) -> None:
        """Begin to take commands. Raises `tailrace.errors.BrokerError`."""

    async def stop(self) -> None:
        """Take no more commands; cancels are still heard, and what is out can still be acked. Idempotent."""

    async def close(self) -> None:
        """Let go: what was not acked is delivered again. Idempotent."""


_SOURCES = {
    "memory": "tailrace.worker.memory_source",
    "jetstream": "tailrace.worker.nats_source",
    "redis": "tailrace.worker.redis_source",
    "kafka": "tailrace.worker.kafka_source",
}


def source_of(store: StreamStore, runner: Runner, handlers: Mapping[str, Handler]) -> Source:
    """The source for the kind of queue that the store declares. Raises `BrokerUnsuitable`."""
    kind = getattr(store.runs, "kind", None)
    if kind not in _SOURCES:
        raise BrokerUnsuitable(
            f"A worker cannot take runs from a queue of kind {kind!r}",
            hint=f"Use a store with one of: {', '.join(sorted(_SOURCES))}.",
        )
    make: Callable[[StreamStore, Runner, Mapping[str, Handler]], Source] = import_module(_SOURCES[kind]).make
    return make(store, runner, handlers)


class Worker:
    """Takes the runs of ``handlers``, at most ``slots`` at a time. Durations in seconds; ``lease_ttl`` defaults to
    the store's own. An async context manager: leaving it drains for ``drain_timeout``."""

    def __init__(
        self,
        store: StreamStore,
        handlers: Iterable[Handler],
        *,
        slots: int = 100,
        lease_ttl: float | None = None,
        max_attempts: int = 5,
        drain_timeout: float = 30.0,
        pace: Pace | None = None,
    ) -> None:
        self.handlers = by_name(handlers)
        lease = lease_ttl if lease_ttl is not None else float(getattr(store.members, "lease_ttl", 10.0))
        self.runner = Runner(store, self.handlers, slots=slots, lease_ttl=lease, max_attempts=max_attempts, pace=pace)
        self._store = store
        self._drain_timeout = drain_timeout
        self._source = source_of(store, self.runner, self.handlers)

    async def start(self) -> Self:
        """Advertise the handlers, then take commands. Raises `tailrace.errors.BrokerError`."""
        schemas = {name: one.schema() for name, one in self.handlers.items()}
        self._store.members.advertise(schemas, lambda: self.runner.free_slots)
        await self._source.start()
        log.info("worker-started", handlers=sorted(schemas), slots=self.runner.slots, member=self._store.members.id)
        return self

    async def drain(self, timeout: float | None = None) -> None:
        """Take no more, give the running ones ``timeout`` seconds (default: the worker's), end the rest as
        ``worker-stopped``. Idempotent."""
        self._store.members.advertise({}, lambda: 0)
        self.runner.refuse()
        await self._source.stop()
        await self.runner.drain(self._drain_timeout if timeout is None else timeout)

    async def aclose(self) -> None:
        """End now: what still runs ends as ``worker-stopped``. Idempotent."""
        await self.drain(0)
        await self.runner.aclose()
        await self._source.close()
        log.info("worker-stopped", member=self._store.members.id)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.drain()
        await self.aclose()
