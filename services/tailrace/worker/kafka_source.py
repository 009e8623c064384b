"""Feeds a runner from Kafka: commands from the table that every process keeps, cancels through FastStream
(`tailrace.worker.kafka_cancels`).

Theory. The topic of runs is a table (`tailrace.kafka.runs`), and this process has it. A command is free when nobody
alive has taken it; a free one is delivered here when its turn comes (`tailrace.worker.turns`) and the runner has room.
So nothing is fetched ahead, a full worker takes nothing and the others come to it by themselves, and a command whose
worker died is free again as soon as the heartbeats say so: no session to time out, no partitions to hand over.

FastStream carries the cancels, which are messages to whoever hears them now. It does not carry commands: a consumer
group would make one member the owner of a partition that others must be asked to help with, commits count offsets
where runs end in any order, and a command that nobody can take now would have to be stored again.

Rules.

- That this worker has a command is stored before it judges it: a worker that dies of a command is seen to have had it,
  and after a few such deaths it is poison.
- A command is done when its stream has an ending. If the broker does not hear that, it is told again, and meanwhile
  the command is not looked at.
- Cancels are heard before the first run is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, cast

import structlog

from tailrace.contracts import Command, Members, StreamStore
from tailrace.errors import BrokerError
from tailrace.kafka.run_table import Queued
from tailrace.kafka.runs import KafkaRunQueue
from tailrace.tasks import end
from tailrace.worker.handlers import Handler
from tailrace.worker.kafka_cancels import Cancels
from tailrace.worker.runner import Runner
from tailrace.worker.turns import Turns, rank

log = structlog.get_logger(__name__)

STEP = 0.25  # seconds that a worker leaves to each one whose turn comes before its own
LOOK = 1.0  # seconds between two looks at who was lost
LEAST_DELAY = 0.05
STOP_WAIT = 2.0


class KafkaDelivery:
    """A command of the table as a `tailrace.worker.run.RunDelivery`."""

    def __init__(self, source: KafkaSource, queued: Queued, attempt: int) -> None:
        self._source, self.queued = source, queued
        self.attempt = attempt
        self.submitted_ms = queued.submitted_ms

    @property
    def command(self) -> Command:
        if self.queued.command is None:
            assert self.queued.unread is not None
            raise self.queued.unread
        return self.queued.command

    @property
    def stream_id(self) -> str | None:
        return self.queued.stream_id

    async def ack(self) -> None:
        await self._source.finish(self.queued)

    async def retry(self, delay: float) -> None:
        await self._source.put_back(self.queued, delay)

    async def working(self) -> None:
        """The heartbeats say so."""

    async def bury(self, reason: str) -> None:
        await self._source.bury(self.queued, reason)


class KafkaSource:
    """`tailrace.worker.app.Source` over `KafkaRunQueue`."""

    def __init__(self, runs: KafkaRunQueue, members: Members, runner: Runner, handlers: Mapping[str, Handler]) -> None:
        self._runs, self._members, self._runner, self._handlers = runs, members, runner, frozenset(handlers)
        self._turns = Turns()
        self._wake = asyncio.Event()
        self._stopping = False
        self._in_hand: dict[str, asyncio.Future[Any]] = {}  # by command: that it is taken, on its way to the broker
        self._delivering: str | None = None
        self._refused: dict[str, int] = {}
        self._undone: dict[str, Queued] = {}  # ended, and the broker has not heard so
        self._feeding: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._cancels = Cancels(runs, members.id, runner.cancel)

    async def start(self) -> None:
        await self._cancels.start()  # before the first run is taken
        self._runs.table.on_change = self._changed
        for queued in self._runs.table:
            self._consider(queued)
        self._feeding = asyncio.create_task(self._feed(), name="worker commands")
        self._watching = asyncio.create_task(self._watch(), name="worker commands of the lost")

    # --- which command, and when

    def _changed(self, queued: Queued) -> None:
        if queued.id in self._runs.table:
            self._consider(queued)
            return
        self._turns.drop(queued.id)
        self._in_hand.pop(queued.id, None)
        self._refused.pop(queued.id, None)
        self._undone.pop(queued.id, None)

    def _consider(self, queued: Queued) -> None:
        """Give the command a turn if it is free, and take it back if it is not."""
        handler = queued.command.handler if queued.command else None
        if handler is not None and handler not in self._handlers:
            return
        if not self._is_free(queued):
            self._turns.drop(queued.id)
        elif queued.id not in self._turns:
            before = rank(queued.id, handler, self._members.id, self._runner.free_slots, self._members.alive())
            self._give_turn(queued, before * STEP)

    def _is_free(self, queued: Queued) -> bool:
        if queued.id in self._in_hand or queued.id in self._undone:
            return False
        # that it was taken here before says nothing: here it is known better
        return all(taker == self._members.id or self._members.is_lost(taker) for taker in queued.takers)

    def _give_turn(self, queued: Queued, delay: float) -> None:
        self._turns.put(queued.id, asyncio.get_running_loop().time() + delay)
        self._wake.set()

    async def _feed(self) -> None:
        while not self._stopping:
            await self._runner.room()
            self._wake.clear()
            now = asyncio.get_running_loop().time()
            command_id = self._turns.take(now) if self._runner.free_slots > 0 else None
            if command_id is None:
                await self._pause(self._turns.wait(now))
                continue
            queued = self._runs.table.get(command_id)
            if queued is not None and self._is_free(queued):
                await self._deliver(queued)

    async def _pause(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else max(seconds, 0.01)):
                await self._wake.wait()

    async def _deliver(self, queued: Queued) -> None:
        lost = sum(taker != self._members.id for taker in queued.takers)
        delivery = KafkaDelivery(self, queued, 1 + lost + self._refused.get(queued.id, 0))
        self._in_hand[queued.id] = self._runs.take(queued, self._members.id)
        self._delivering = queued.id
        try:
            await self._runner.handle(delivery)
        except asyncio.CancelledError:
            self._in_hand.pop(queued.id, None)
            raise
        except Exception as error:  # noqa: BLE001 - one command must not end what feeds all
            log.error("command-failed", error=str(error), stream=queued.stream_id, attempt=delivery.attempt)
            with contextlib.suppress(BrokerError):
                await self.put_back(queued, LOOK)
        finally:
            self._delivering = None

    async def _watch(self) -> None:
        """Free what the lost had and what was dropped here, and tell again what the broker did not hear."""
        while True:
            await asyncio.sleep(LOOK)
            for command_id in [one for one in self._in_hand if one != self._delivering and not self._runner.holds(one)]:
                del self._in_hand[command_id]  # a run that was fenced or failed ends without a word: look again
                if (dropped := self._runs.table.get(command_id)) is not None:
                    self._consider(dropped)
            for member_id in self._runs.table.takers():
                if member_id != self._members.id and self._members.is_lost(member_id):
                    for queued in self._runs.table.taken_by(member_id):
                        self._consider(queued)
            for queued in tuple(self._undone.values()):
                await self._done(queued)

    # --- what became of a delivery

    async def finish(self, queued: Queued) -> None:
        """The stream has its ending."""
        taken = self._in_hand.pop(queued.id, None)
        if queued.id not in self._runs.table:  # somebody else has said so
            return
        self._undone[queued.id] = queued
        if taken is not None:
            await asyncio.wait({taken})  # else it might be stored behind its own removal, and stay
        await self._done(queued)

    async def _done(self, queued: Queued) -> None:
        try:
            await self._runs.done(queued, self._members.id)
        except BrokerError as error:
            log.info("ack-unheard", error=error.message, stream=queued.stream_id)

    async def put_back(self, queued: Queued, delay: float) -> None:
        """Let anybody have it, this worker in ``delay`` seconds. Raises `BrokerError`."""
        self._in_hand.pop(queued.id, None)
        self._refused[queued.id] = self._refused.get(queued.id, 0) + 1
        if not self._stopping:
            self._give_turn(queued, max(delay, LEAST_DELAY))
        await self._runs.let_go(queued, self._members.id)

    async def bury(self, queued: Queued, reason: str) -> None:
        """Raises `BrokerError`; then it is delivered again."""
        try:
            await self._runs.bury(queued, reason)
        except BrokerError:
            await self.put_back(queued, LOOK)
            raise
        await self.finish(queued)

    # --- the end

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._feeding is not None:
            await asyncio.wait({self._feeding}, timeout=STOP_WAIT)
            await end(self._feeding)
            self._feeding = None

    async def close(self) -> None:
        await self.stop()
        self._runs.table.on_change = lambda queued: None
        if self._watching is not None:
            await end(self._watching)
            self._watching = None
        mine = [queued for queued in self._runs.table.taken_by(self._members.id) if queued.id not in self._undone]
        self._in_hand.clear()
        await asyncio.gather(*(self._runs.let_go(one, self._members.id) for one in mine), return_exceptions=True)
        await self._cancels.close()


def make(store: StreamStore, runner: Runner, handlers: Mapping[str, Handler]) -> KafkaSource:
    """The source for a store whose queue declares the kind ``kafka``."""
    return KafkaSource(cast("KafkaRunQueue", store.runs), store.members, runner, handlers)
