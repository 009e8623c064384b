"""Sending records: what waits for a partition goes together, in few requests.

Theory. Each node has a pump: a request in flight, and behind it what came meanwhile, one batch a partition. A slow
broker makes batches larger, not queues longer. Batches are not numbered (no idempotent producer): a record that is
stored twice, or late, is one that does not count, since its condition does not hold any more (`chain`). So nothing has
to be retried under a number, and no refusal can spoil a partition for those who come behind.

Rules. A record ends in one of three ways: its offset, `Unanswered` (it may be stored, or be stored yet), or a
`BrokerError` (it is not). One that a broker refuses because it does not lead the partition is sent to whom leads it; a
broker that ceased to lead while it waited for the replicas says the same, so from then on it may be stored already.
A batch that is too large (somebody lowered the topic's limit) is halved until the record that is too large is alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from tailrace.errors import BrokerError, BrokerUnavailable
from tailrace.kafka import refusals
from tailrace.kafka.connection import RETRY_PAUSE, WRITE, Connection, Place
from tailrace.kafka.refusals import Unanswered
from tailrace.records import Record
from tailrace.tasks import end

Headers = list[tuple[str, bytes]]
BUSY, SPACING = 4, 0.001  # a request of so many records is followed by the next one after so many seconds at least
BATCH_OVERHEAD = 61  # bytes of a batch beside its records
REQUEST_BYTES = 16 * 1024 * 1024

_log = logging.getLogger(__name__)


class Ack(NamedTuple):
    """Where a record was stored, and the broker's time in ms."""

    offset: int
    time_ms: int


class Item(NamedTuple):
    """A message to send. ``meant``: the record that it is, and the position that it must follow. ``doubtful``: an
    earlier try may have stored it."""

    key: bytes
    value: bytes | None
    headers: Headers
    future: asyncio.Future[Ack]
    deadline: float
    meant: tuple[Record, int] | None
    doubtful: bool = False


def size_of(key: bytes, value: bytes | None, headers: Headers) -> int:
    """The most bytes that a batch of this record alone takes."""
    size: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)
    return size + BATCH_OVERHEAD


class Sender:
    """``stored`` hears what was stored: where, from which offset on, at which broker's time in ms, and what."""

    def __init__(self, connection: Connection, stored: Callable[[Place, int, int, Sequence[Item]], None]) -> None:
        self._connection = connection
        self._stored = stored
        self._max_batch = connection.options.max_message_bytes
        self._queues: dict[Place, deque[Item]] = {}
        self._lowered: dict[Place, int] = {}
        self._pumps: dict[int, asyncio.Task[None]] = {}  # by node
        self._waiting: asyncio.Task[None] | None = None
        self._woken = False
        self._closed = False

    def send(
        self,
        place: Place,
        key: bytes,
        value: bytes | None,
        headers: Headers,
        meant: tuple[Record, int] | None = None,
    ) -> asyncio.Future[Ack]:
        """Queue a message, without a value a tombstone; the future gives its `Ack`, or raises `Unanswered` or
        `BrokerError`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ack] = loop.create_future()
        if self._closed:
            future.set_exception(BrokerUnavailable("The store was closed"))
            return future
        queue = self._queues.get(place)
        if queue is None:
            queue = self._queues[place] = deque()
        deadline = loop.time() + self._connection.options.request_timeout
        queue.append(Item(key, value, headers, future, deadline, meant))
        if not self._woken:  # what one turn of the loop queues goes together
            self._woken = True
            loop.call_soon(self._wake)
        return future

    def _wake(self) -> None:
        """Give every node with something to send a pump, if it has none."""
        self._woken = False
        if self._closed:
            return
        homeless = False
        for place, queue in self._queues.items():
            if queue:
                node = self._connection.leader(place)
                if node is None:
                    homeless = True
                elif node not in self._pumps:
                    self._pumps[node] = asyncio.create_task(self._pump(node))
        if homeless and self._waiting is None:
            self._waiting = asyncio.create_task(self._find_leaders())

    async def _find_leaders(self) -> None:
        await asyncio.sleep(RETRY_PAUSE)
        await self._connection.relearn()
        self._waiting = None
        self._give_up()
        self._wake()

    def _give_up(self) -> None:
        """Fail what found no leader in its time."""
        now = asyncio.get_running_loop().time()
        for place, queue in self._queues.items():
            while queue and queue[0].deadline < now:
                _fail(queue.popleft(), BrokerUnavailable(f"Nobody leads {place} at {self._connection}"))

    async def _pump(self, node: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batches := self._collect(node):
                began, sent = loop.time(), sum(len(items) for _, items in batches.values())
                await self._send(node, batches)
                if sent >= BUSY:
                    await asyncio.sleep(max(0.0, began + SPACING - loop.time()))
        finally:
            del self._pumps[node]  # at once: who is woken now must not count on it
        if any(self._queues.values()):  # another node leads since these were queued
            self._wake()

    def _collect(self, node: int) -> dict[Place, tuple[bytes, list[Item]]]:
        """Take what waits for the partitions that the node leads, a batch each."""
        batches: dict[Place, tuple[bytes, list[Item]]] = {}
        room = REQUEST_BYTES
        for place, queue in self._queues.items():
            if queue and room > 0 and self._connection.leader(place) == node:
                batch, items = _batch(queue, self._lowered.get(place, self._max_batch))
                room -= len(batch)
                batches[place] = (batch, items)
        return batches

    async def _send(self, node: int, batches: dict[Place, tuple[bytes, list[Item]]]) -> None:
        """Send these batches; what is not answered for is not known to be stored."""
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for place, (batch, _) in batches.items():
            topics.setdefault(place.topic, []).append((place.partition, batch))
        timeout = self._connection.options.request_timeout
        request = ProduceRequest(None, -1, int(timeout * 1000), list(topics.items()))
        failure: Exception | None = None
        try:
            self._answered(await self._connection.request(node, request, WRITE), batches)
        except BrokerError as error:
            failure = error
        except Unanswered as error:
            failure = error
            self._connection.unconfirmed(node)
        except Exception:  # noqa: BLE001  # whoever waits for these would wait for ever
            _log.exception("an append's answer was not understood")
        finally:
            for place, (_, items) in batches.items():
                for item in items:
                    _fail(item, failure or Unanswered(f"{self._connection} did not say whether {place} has a record"))
        if batches:
            await self._connection.relearn()

    def _answered(self, answer: object, batches: dict[Place, tuple[bytes, list[Item]]]) -> None:
        """Tell what became of each batch, and leave those of which nothing is said."""
        moved = False
        for topic, partitions in answer.topics:  # type: ignore[attr-defined]
            for partition, code, base, time_ms, *_ in partitions:
                place = Place(topic, partition)
                batch, items = batches[place]
                if code == 0:
                    self._connection.clock.see(time_ms)
                    self._stored(place, base, time_ms, items)
                    for number, item in enumerate(items):
                        if not item.future.done():
                            item.future.set_result(Ack(base + number, time_ms))
                elif code in refusals.MOVED:
                    moved = True
                    self._queues[place].extendleft(item._replace(doubtful=True) for item in reversed(items))
                elif code in refusals.TOO_LARGE and len(items) > 1:  # one may be: the others are not to suffer
                    self._lowered[place] = len(batch) // 2
                    self._queues[place].extendleft(reversed(items))
                else:
                    error = self._refusal(code, place)
                    for item in items:
                        _fail(item, error)
                del batches[place]
        if moved:
            self._give_up()
            if self._waiting is None:
                self._waiting = asyncio.create_task(self._find_leaders())

    def _refusal(self, code: int, place: Place) -> Exception:
        error = refusals.of(code, f"append to {place} at {self._connection}")
        if code in refusals.DAMAGED or (isinstance(error, BrokerUnavailable) and code != refusals.TOO_FEW_IN_SYNC):
            return Unanswered(str(error))  # too few replicas confirmed, it took too long, …: it may be stored
        return error

    async def close(self) -> None:
        """Stop at once; what waits fails. A second call does nothing."""
        self._closed = True
        tasks = [*self._pumps.values()]
        if self._waiting is not None:
            tasks.append(self._waiting)
        await end(*tasks)
        for queue in self._queues.values():
            while queue:
                _fail(queue.popleft(), BrokerUnavailable("The store was closed"))


def _batch(queue: deque[Item], most: int) -> tuple[bytes, list[Item]]:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, most)
    items: list[Item] = []
    now = int(time.time() * 1000)  # the broker writes its own time over it
    while queue and builder.append(len(items), now, queue[0].key, queue[0].value, queue[0].headers) is not None:
        items.append(queue.popleft())
    return bytes(builder.build()), items


def _fail(item: Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(Unanswered(str(error)) if item.doubtful else error)
        item.future.exception()  # whoever waits sees it; nobody has to


def parts(headers: Sequence[tuple[str, str]]) -> Headers:
    """Text headers as the broker takes them."""
    return [(name, value.encode()) for name, value in headers]
