"""The runner: what a worker does with a delivered command, whatever broker delivered it.

Theory. The stream is the truth about a run, the command only a reason to look: a delivery is judged by what its stream
says, and ``acquire`` elects who executes it.

=============================================  =====================================================
the stream                                     the delivery
=============================================  =====================================================
free, and the command is young                 acquire: the winner executes, the others look again
free, delivered too often                      ends as ``poison``, into the dead letters
was deleted or expired since the submit        acked, never run
has an ending                                  acked
claimed for another command                    acked
claimed for this command, here                 left to the run (which acks through the newest delivery)
… by a member that is lost                     takeover with the ending ``producer-lost``, then acked
… by a member that lives                       put back with a delay
=============================================  =====================================================

Rules. A command is acked only when its stream has an ending; a fenced worker acks nothing. Every delivery in hand is
kept alive (``working``) twice a lease. A run takes one of ``slots``; `handle` returns as soon as the run is a task of
its own, and `room` says when there is a slot for another. Where several subscriptions feed one runner, a command may
still meet a full one: it is put back at once the first time, so that a worker with room gets it, and held after that,
so that fullness never makes it look like poison.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import structlog

from tailrace.contracts import StreamStore
from tailrace.decide import LOST
from tailrace.errors import (
    BrokerUnavailable,
    InvalidInput,
    InvalidStreamId,
    RecordError,
    StorageFull,
    StreamDeleted,
    TailraceError,
    TooManyStreams,
    TtlTooLong,
    UnknownFormat,
    UnsupportedRecord,
)
from tailrace.model import Acquisition, Ending, Lease, RunRef, Status, StreamInfo
from tailrace.worker.handlers import Handler
from tailrace.worker.output import Output
from tailrace.worker.run import CANCELLED, WORKER_STOPPED, Pace, Run, RunDelivery, message_of

log = structlog.get_logger(__name__)

FREE = frozenset({Status.MISSING, Status.QUEUED, Status.EXPIRED})
PUT_BACK = 0.05


class Runner:
    """Executes commands on ``slots`` slots. Seconds; ``lease_ttl`` is the members' own."""

    def __init__(
        self,
        store: StreamStore,
        handlers: Mapping[str, Handler],
        *,
        slots: int = 100,
        lease_ttl: float = 10.0,
        max_attempts: int = 5,
        pace: Pace | None = None,
    ) -> None:
        self.slots = slots
        self._store, self._handlers = store, handlers
        self._interval = lease_ttl / 2
        self._max_attempts = max_attempts
        self._pace = pace or Pace()
        self._runs: dict[str, Run] = {}  # by command, from the moment it is in hand
        self._used = 0
        self._draining = False
        self._room, self._idle = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._idle.set()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def free_slots(self) -> int:
        return 0 if self._draining else self.slots - self._used

    async def room(self) -> None:
        """Return once there is a free slot, or the runner drains."""
        await self._room.wait()

    async def handle(self, delivery: RunDelivery) -> None:
        """Judge the delivery; if it is to be executed, wait for a slot, start it as its own task and return. Raises
        nothing that a command could cause."""
        try:
            command = delivery.command
        except RecordError as error:
            await self._unreadable(delivery, error)
            return
        if (held := self._runs.get(command.id)) is not None:
            held.delivery = delivery
            return
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_working(), name="worker deliveries")
        run = self._runs[command.id] = Run(self._store, delivery, command, self._pace)
        self._idle.clear()
        try:
            if await self._take_slot(run):
                try:
                    await self._begin(run)
                finally:
                    if run.task is None:
                        self._free_slot()
        finally:
            if run.task is None:
                self._forget(run)

    def cancel(self, stream_id: str) -> bool:
        """Stop this process's runs of the stream; each ends it as ``cancelled``. False if there is none."""
        runs = [run for run in self._runs.values() if run.command.stream_id == stream_id]
        for run in runs:
            run.stop(CANCELLED)
        return bool(runs)

    def holds(self, command_id: str) -> bool:
        """Whether the command is being judged here, or its run executed."""
        return command_id in self._runs

    def refuse(self) -> None:
        """From now on, put every new command back."""
        self._draining = True
        self._room.set()

    async def drain(self, timeout: float) -> None:
        """Refuse, give the running ones ``timeout`` seconds, then end the rest as ``worker-stopped``."""
        self.refuse()
        if await self._is_idle(timeout):
            return
        for run in self._runs.values():
            run.stop(WORKER_STOPPED)
        await self._is_idle(2 * self._pace.stop_timeout)

    async def aclose(self) -> None:
        """End at once. A run that does not end in time is left: its lease ends with this process's membership."""
        await self.drain(0)
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if self._keeper is not None:
            tasks.append(self._keeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _is_idle(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _take_slot(self, run: Run) -> bool:
        if self._used >= self.slots and run.delivery.attempt == 1 and not self._draining:
            await self._put_back(run, PUT_BACK)
            return False
        while self._used >= self.slots and not self._draining:
            await self._room.wait()
        if self._draining:
            await self._put_back(run, 0)
            return False
        self._used += 1
        if self._used >= self.slots:
            self._room.clear()
        return True

    def _free_slot(self) -> None:
        self._used -= 1
        self._room.set()

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.command.id, None)
        if not self._runs:
            self._idle.set()

    async def _begin(self, run: Run) -> None:
        """Judge until there is a judgement. What passes is waited for with the command in hand: putting it back would
        count as an attempt."""
        while True:
            try:
                return await self._judge(run)
            except (BrokerUnavailable, TooManyStreams, StorageFull) as error:  # it runs as soon as it can be claimed
                if self._draining:
                    return await self._put_back(run, 0)
                await asyncio.sleep(getattr(error, "retry_after", self._interval))
            except StreamDeleted:  # this command's run was here, and is gone
                return await run.delivery.ack()
            except InvalidStreamId as error:
                return await self._bury(run.delivery, error.message)
            except Exception as error:  # noqa: BLE001 - one command must not end the subscription that feeds all
                log.error("command-failed", error=message_of(error), attempt=run.delivery.attempt, **run.facts())
                if run.delivery.attempt > self._max_attempts:
                    return await self._bury(run.delivery, message_of(error))
                return await self._put_back(run, self._interval)

    async def _judge(self, run: Run) -> None:
        command, delivery = run.command, run.delivery
        info = await self._store.status(command.stream_id)
        if info.status not in FREE:
            return await self._judge_taken(run, info)
        if _gone_since(info, delivery):
            return await delivery.ack()
        handler = self._handlers.get(command.handler)
        if handler is None:
            return await self._poison(run, f"No handler is named {command.handler}")
        if delivery.attempt > self._max_attempts:
            return await self._poison(run, f"The command was delivered {delivery.attempt} times and never claimed")
        try:
            output = handler.output(command.format)
            value = handler.parse(command.input)
            acquired = await self._acquire(run, handler, output)
        except (InvalidInput, TtlTooLong, UnknownFormat) as error:
            return await self._end_unrun(run, Ending(Status.ERROR, error.code, error.message))
        if acquired.lease is None:
            return await self._judge_taken(run, await self._store.status(command.stream_id))
        log.info("run-started", attempt=delivery.attempt, **run.facts(acquired.lease))
        execution = self._execute(run, handler, value, acquired.lease, output)
        run.task = asyncio.create_task(execution, name=f"run {command.stream_id}")
        return None

    async def _acquire(
        self, run: Run, handler: Handler | None, output: Output | None, ending: Ending | None = None
    ) -> Acquisition:
        command = run.command
        policy = handler.policy if handler else command.policy
        too_long = command.ttl is not None and command.ttl > self._store.limits.max_ttl
        return await self._store.acquire(
            command.stream_id,
            ttl=None if ending and too_long else command.ttl,
            content_type=output.content_type if output else "application/octet-stream",
            headers=output.headers if output else (),
            run=RunRef(command.handler, command.digest, command.id, policy),
            ending=ending,
            patient=True,  # given up, the run would end without having run
        )

    async def _execute(self, run: Run, handler: Handler, value: object, lease: Lease, output: Output) -> None:
        try:
            if await run.execute(handler, value, lease, output):
                await run.delivery.ack()
        except Exception as error:  # noqa: BLE001 - a run's failure is its own; the command comes again
            log.error("run-failed", error=message_of(error), **run.facts(lease))
        finally:
            self._forget(run)
            self._free_slot()

    async def _judge_taken(self, run: Run, info: StreamInfo) -> None:
        command, members = run.command, self._store.members
        if info.status in FREE:  # it went away meanwhile
            return await self._judge(run)
        other = info.run is None or info.run.command != command.id
        if info.status is not Status.STREAMING or other:
            return await run.delivery.ack()
        if info.owner is None or info.owner == members.id or not members.is_lost(info.owner):
            return await self._put_back(run, self._interval)
        log.warning("producer-lost", owner=info.owner, **run.facts())
        await self._store.takeover(command.stream_id, info.epoch, LOST)
        after = await self._store.status(command.stream_id)
        if after.status is Status.STREAMING:  # its owner, or another worker, was faster: judge what it did
            return await self._put_back(run, self._interval)
        return await run.delivery.ack()

    async def _end_unrun(self, run: Run, ending: Ending) -> None:
        """Claim and end the stream in one record, and be done with the command."""
        acquired = await self._acquire(run, self._handlers.get(run.command.handler), None, ending)
        if acquired.lease is None:
            info = await self._store.status(run.command.stream_id)
            if info.status is Status.STREAMING:
                return await self._judge_taken(run, info)
        log.info("run-refused", code=ending.code, **run.facts())
        return await run.delivery.ack()

    async def _poison(self, run: Run, reason: str) -> None:
        """End the stream of a command that cannot be executed, and put the command into the dead letters."""
        acquired = await self._acquire(run, None, None, Ending(Status.ERROR, "poison", reason))
        if acquired.lease is None:
            info = await self._store.status(run.command.stream_id)
            if info.status is Status.STREAMING:
                return await self._judge_taken(run, info)
        return await self._bury(run.delivery, reason)

    async def _unreadable(self, delivery: RunDelivery, error: RecordError) -> None:
        if error.code == UnsupportedRecord.code:  # a newer worker reads it
            return await _tell(delivery.retry(self._interval), "put-back-unheard")
        try:
            if delivery.stream_id is not None:
                await self._store.acquire(delivery.stream_id, ending=Ending(Status.ERROR, "poison", error.message))
        except TailraceError as failure:
            log.error("poison-not-told", stream=delivery.stream_id, error=failure.message)
        return await self._bury(delivery, error.message)

    async def _bury(self, delivery: RunDelivery, reason: str) -> None:
        log.error("command-buried", reason=reason, attempt=delivery.attempt)
        await _tell(delivery.bury(reason), "burial-unheard")

    async def _put_back(self, run: Run, delay: float) -> None:
        log.info("command-put-back", delay=delay, attempt=run.delivery.attempt, **run.facts())
        await _tell(run.delivery.retry(delay), "put-back-unheard", **run.facts())

    async def _keep_working(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            for run in list(self._runs.values()):
                try:
                    await run.delivery.working()
                except Exception as error:  # noqa: BLE001 - the command may come again, and is adopted then
                    log.info("working-unheard", error=message_of(error), **run.facts())


async def _tell(message: Awaitable[None], event: str, **facts: Any) -> None:
    """Tell the broker about a delivery. If it does not hear, the command comes again and is judged again."""
    try:
        await message
    except TailraceError as error:
        log.info(event, error=error.message, **facts)


def _gone_since(info: StreamInfo, delivery: RunDelivery) -> bool:
    """Whether a life of this stream began after the command was accepted and is over: the run's own, deleted or
    expired. A life that began before belongs to an earlier run of the id, and the id is free again."""
    if info.incarnation is None or info.created_at is None:
        return False
    if info.created_at == delivery.submitted_ms:
        return delivery.attempt > 1  # the clock is too coarse to say: only a command that went out can have begun it
    return info.created_at > delivery.submitted_ms
