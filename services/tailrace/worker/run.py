"""One run: a handler's chunks on their way into its stream, and the stream's ending.

Theory. Two tasks: the producer drives the handler, whose chunks come into the outlet; the run itself takes them out,
stores them, and writes the ending behind the last one. What a handler yields stays a chunk; what it writes with a
controller is joined with all that is pending. Whoever wants the run to end says which ending (`stop`); the
first to say so wins, and what the handler produced before is kept.

Rules. A run ends its stream or was fenced: there is no third way out, short of the process's death. A handler that
ignores its cancellation is left behind after ``stop_timeout`` seconds: the ending does not wait for it. Nothing that a
handler raises leaves this module, and only the error's own message is stored, never a traceback.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from tailrace import logs
from tailrace.contracts import Command, Delivery, StreamStore
from tailrace.errors import (
    BrokerError,
    StorageFull,
    StreamFinalized,
    StreamNotFound,
    StreamSuperseded,
    TailraceError,
    TooMuchPending,
)
from tailrace.message.controller import describe
from tailrace.model import Ending, Lease, Status
from tailrace.worker.answer import Answer, StateAnswer, answer_in
from tailrace.worker.handlers import Handler, RunContext, pieces
from tailrace.worker.outlet import Outlet, OutletClosed
from tailrace.worker.output import Output

log = structlog.get_logger(__name__)

DONE = Ending(Status.DONE)
CANCELLED = Ending(Status.CANCELLED, "cancelled", "The run was cancelled")
WORKER_STOPPED = Ending(Status.ERROR, "worker-stopped", "The worker was stopped before the run ended")
MAX_MESSAGE = 4096


class RunDelivery(Delivery, Protocol):
    """A delivery as the runner needs it. ``command`` raises `tailrace.errors.RecordError` where it cannot be read."""

    @property
    def stream_id(self) -> str | None:
        """The stream that the command names, as far as even an unreadable one tells."""

    @property
    def submitted_ms(self) -> int:
        """When the broker took the command (ms, broker time)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a run moves. Bytes, chunks and seconds. At ``pending_bytes`` a handler waits where it can, above
    ``max_pending_bytes`` it is refused."""

    pending_bytes: int = 1 << 20
    pending_chunks: int = 1024
    max_pending_bytes: int = 16 << 20
    stop_timeout: float = 5.0


class Run:
    """A command that this worker took. ``delivery`` is the newest one of it."""

    def __init__(self, store: StreamStore, delivery: RunDelivery, command: Command, pace: Pace) -> None:
        self.delivery, self.command = delivery, command
        self.task: asyncio.Task[None] | None = None
        self._store, self._pace = store, pace
        self._outlet = Outlet(pace.pending_bytes, pace.pending_chunks)
        self._producer: asyncio.Task[None] | None = None
        self._stop: Ending | None = None
        self._ending: Ending | None = None
        self._answer: Answer | StateAnswer | None = None
        self._told = ""  # a handler's error, as its error chunk says it

    def stop(self, ending: Ending) -> None:
        """End the run with ``ending``, soon. The first ending said wins; a run that has ended already stays so."""
        if self._stop is not None:
            return
        self._stop = ending
        if self._producer is not None:
            self._cancel(self._producer)

    async def execute(self, handler: Handler, value: Any, lease: Lease, output: Output) -> bool:
        """Run the handler, and return whether the stream has an ending (False: this worker was fenced)."""
        if output.wire is not None:
            self._answer = answer_in(output.wire, self._outlet, self._pace.max_pending_bytes)
        self._producer = asyncio.create_task(self._produce(handler, value, output), name=f"handler {handler.name}")
        # not in the producer: one that is cancelled before its first step runs no line of its own
        self._producer.add_done_callback(lambda _: self._close())
        if self._stop is not None:
            self._cancel(self._producer)
        try:
            while batch := await self._outlet.take():
                await self._store.extend(self.command.stream_id, self._joined(batch, output), lease)
            ending = self._last()
        except StreamSuperseded:
            log.warning("run-fenced", **self.facts(lease))
            return False
        except (StreamNotFound, StreamFinalized):  # deleted, expired, or ended by somebody else
            return await self._has_ending()
        except TailraceError as error:
            ending = Ending(Status.ERROR, error.code, error.message)
        except Exception as error:  # noqa: BLE001 - a fault of ours: the stream must not stay live without anybody at it
            log.error("run-failed", **self.facts(lease), **logs.traceback_of(error))
            ending = Ending(Status.ERROR, "internal", f"The worker failed: {type(error).__name__}")
        finally:
            self._outlet.close()
            self._cancel(self._producer)
        await self._finalize(ending, lease)
        log.info("run-ended", status=str(ending.status), code=ending.code, **self.facts(lease))
        return await self._has_ending()

    def _joined(self, batch: list[bytes], output: Output) -> list[bytes]:
        """A controller's frames are small and many, and no reader tells where one chunk of the stream ends."""
        if output.wire is None:
            return batch
        return pieces(b"".join(batch), self._store.limits.max_chunk_bytes, text=output.text)

    async def _produce(self, handler: Handler, value: Any, output: Output) -> None:
        try:
            await self._drive(handler, value, output)
            self._ending = self._stop or DONE
        except OutletClosed:
            pass
        except asyncio.CancelledError:
            self._ending = self._stop or _error("The handler was cancelled")
        except KeyboardInterrupt:
            raise
        except TooMuchPending as error:
            self._ending = self._stop or Ending(Status.ERROR, error.code, error.message)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything; it ends its own run only
            self._told = _described(error)
            self._ending = self._stop or _error(message_of(error))

    async def _drive(self, handler: Handler, value: Any, output: Output) -> None:
        context, answer = self._context(handler, output), self._answer
        if answer is not None:
            await handler.answer(value, answer.controller, context)
            if answer.failure is not None:
                raise answer.failure
            return
        limit = self._store.limits.max_chunk_bytes
        async with aclosing(handler.start(value, context)) as chunks:
            async for chunk in chunks:
                for piece in pieces(chunk, limit, text=output.text):
                    await self._outlet.put(piece)
                if self._stop is not None:
                    break

    def _context(self, handler: Handler, output: Output) -> RunContext:
        stream_id, attempt = self.command.stream_id, self.delivery.attempt
        return RunContext(stream_id, handler.name, attempt, output.format, output.content_type, output.headers)

    def _last(self) -> Ending:
        return self._ending or self._stop or _error("The handler ended without a word")

    def _close(self) -> None:
        """No more chunks: an answer is ended in its format."""
        if self._answer is not None:
            ending = self._last()
            told = self._told if self._told and ending is not self._stop else ending.message or ""
            self._ending = self._answer.end(ending, told)
        self._outlet.close()

    def _cancel(self, producer: asyncio.Task[None]) -> None:
        if not producer.done() and not producer.cancelling():
            producer.cancel()
            timer = asyncio.get_running_loop().call_later(self._pace.stop_timeout, self._leave, producer)
            producer.add_done_callback(lambda _: timer.cancel())

    def _leave(self, producer: asyncio.Task[None]) -> None:
        log.warning("handler-ignores-cancellation", **self.facts())
        _stragglers.add(producer)
        producer.add_done_callback(_stragglers.discard)
        self._close()

    async def _finalize(self, ending: Ending, lease: Lease) -> None:
        while True:
            try:
                await self._store.finalize(
                    self.command.stream_id, str(ending.status), ending.message, lease, code=ending.code
                )
            except StreamNotFound:
                return
            except (BrokerError, StorageFull) as error:  # a lease that this process holds must not be left unended
                log.warning("ending-not-stored", error=error.message, **self.facts(lease))
                await asyncio.sleep(getattr(error, "retry_after", 1.0))
            else:
                return

    async def _has_ending(self) -> bool:
        """Whether our stream has ended or is gone: a finalize that came too late changes nothing and says nothing."""
        try:
            info = await self._store.status(self.command.stream_id)
        except BrokerError:
            return False  # the command comes again, and is judged then
        ours = info.run is not None and info.run.command == self.command.id
        return not (info.status is Status.STREAMING and ours)

    def facts(self, lease: Lease | None = None) -> dict[str, Any]:
        """What a log line says of this run."""
        facts: dict[str, Any] = {"stream": self.command.stream_id, "handler": self.command.handler}
        if lease is not None:
            facts |= {"incarnation": str(lease.incarnation), "epoch": lease.epoch}
        return facts


_stragglers: set[asyncio.Task[None]] = set()  # a task that nothing refers to may be collected while it runs


def _error(message: str) -> Ending:
    return Ending(Status.ERROR, "handler-error", message)


def _described(error: BaseException) -> str:
    """An error with its kind, bounded: what an error chunk tells."""
    try:
        return describe(error)[:MAX_MESSAGE]
    except Exception:  # noqa: BLE001 - the error is a handler's, and so is its __str__
        return type(error).__name__


def message_of(error: BaseException) -> str:
    """An error's own words, bounded: what a reader of the stream is told."""
    try:
        text = str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - the error is a handler's, and so is its __str__
        text = type(error).__name__
    return text[:MAX_MESSAGE].encode(errors="replace").decode()
