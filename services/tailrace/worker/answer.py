"""An answer that a handler writes with a controller: chunks to bytes, into the outlet, and what the format says last.

Theory: a chunk is encoded and put into the outlet in the call that writes it, so program order is the stream's order.
A call cannot wait. `Controller.drain` can: it lets the writer take what there is, and waits while the outlet is full.

Rules:

- Who writes ahead of the store by more than ``most`` bytes is refused, and stays so: the run ends with that error, even
  if the handler swallows it. The bound is looked at before a chunk is encoded: one chunk may exceed it, whole.
- `end` closes what is open and writes the ending as the format has it: an error is an error chunk, a cancel the
  format's abort frame. Nothing is taken after it.
- An error chunk comes only if the answer was not closed before, as in the reference.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Final

from tailrace.errors import TailraceError, TooMuchPending
from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import Chunk, ErrorChunk
from tailrace.message.controller import AssistantStreamController
from tailrace.message.dialect import NEWEST, Dialect, dialect_of
from tailrace.message.ids import NewId, id_maker
from tailrace.message.merge import each
from tailrace.message.message import Message
from tailrace.message.object_controller import ObjectChunk, ObjectStreamController
from tailrace.message.text import Emit
from tailrace.model import Ending, Status
from tailrace.wire import Format
from tailrace.wire.object_stream import StateFormat
from tailrace.worker.outlet import Outlet

NEW_ID: Final[NewId] = id_maker(secrets.randbelow)


def _now() -> float:
    return time.time() * 1000


async def _no_wait() -> None:
    """What an answer that goes nowhere slow waits for."""


class Controller(AssistantStreamController):
    """What a handler writes its answer with.

    A worker makes it. To call a handler without one, give ``emit`` a list's ``append``: it gets the chunks.
    """

    __slots__ = ("_drain",)

    def __init__(
        self, emit: Emit, drain: Callable[[], Awaitable[None]] = _no_wait, *, dialect: Dialect = NEWEST
    ) -> None:
        super().__init__(emit, new_id=NEW_ID, dialect=dialect)
        self._drain = drain

    async def drain(self) -> None:
        """Let what was written flow, and wait while too much of it is not stored yet."""
        await self._drain()

    async def merge(self, chunks: AsyncIterable[Chunk] | Iterable[Chunk]) -> None:
        """Adds all chunks of another answer as they come, and drains behind each.

        An asynchronous generator is closed, however this ends.
        """
        await super().merge(self._drained(chunks, lambda _: None))

    async def accumulate(self, chunks: AsyncIterable[Chunk] | Iterable[Chunk]) -> Message:
        """Adds another answer as `merge` does, and returns the message that it builds: with one step of a model, what
        the next one is told. Raises InvalidUpdate for chunks that build none, as for state that began elsewhere."""
        accumulator = AssistantMessageAccumulator(clock=_now, new_id=NEW_ID)
        await super().merge(self._drained(chunks, accumulator.feed))
        accumulator.close()
        return accumulator.message

    async def _drained(
        self, chunks: AsyncIterable[Chunk] | Iterable[Chunk], told: Callable[[Chunk], object]
    ) -> AsyncGenerator[Chunk]:
        async with aclosing(each(chunks)) as incoming:
            async for chunk in incoming:
                told(chunk)
                yield chunk
                await self._drain()


class StateController(ObjectStreamController):
    """What a handler writes a state with, for an object stream. A worker makes it; as `Controller`, it can be had
    without one."""

    def __init__(
        self,
        emit: Callable[[ObjectChunk], object],
        drain: Callable[[], Awaitable[None]] = _no_wait,
        *,
        dialect: Dialect = NEWEST,
    ) -> None:
        super().__init__(emit, dialect=dialect)
        self._drain = drain

    async def drain(self) -> None:
        """Let what was written flow, and wait while too much of it is not stored yet."""
        await self._drain()


class Written:
    """What a handler writes, on its way into the outlet. ``failure`` is why it takes no more, if so."""

    def __init__(self, outlet: Outlet, most: int) -> None:
        self.failure: TooMuchPending | None = None
        self._outlet = outlet
        self._most = most

    def _check(self) -> None:
        if self.failure is None and self._outlet.pending > self._most:
            self.failure = TooMuchPending(
                f"The handler wrote {self._outlet.pending} bytes ahead of the broker; the most is {self._most}"
            )
        if self.failure is not None:
            raise self.failure


class Answer(Written):
    """One run's answer in a wire format."""

    def __init__(self, outlet: Outlet, format: Format, most: int) -> None:
        super().__init__(outlet, most)
        self.controller = Controller(self._emit, outlet.drain, dialect=dialect_of(format.name))
        self._format = format
        self._encoder = format.encoder()
        self._ending = False

    def _emit(self, chunk: Chunk) -> None:
        if not self._ending:
            self._check()
        if data := self._encoder.encode(chunk):
            self._outlet.push(data)

    def end(self, ending: Ending, told: str) -> Ending:
        """Write the ending, with ``told`` as an error's words, and return it: another one if the format cannot carry
        what was left open. Idempotent."""
        if self._ending:
            return ending
        self._ending = True
        try:
            if ending.status is Status.ERROR and not self.controller.closed:
                self.controller.enqueue(ErrorChunk(told))
            self.controller.finish()
            cancelled = ending.status is Status.CANCELLED
            self._outlet.push(self._format.abort if cancelled else self._encoder.finish())
        except TailraceError as error:
            return Ending(Status.ERROR, error.code, error.message) if ending.status is Status.DONE else ending
        finally:
            self._outlet.close()
        return ending


class StateAnswer(Written):
    """One run's state in an object stream, which has no frame for an end of any kind."""

    def __init__(self, outlet: Outlet, format: StateFormat, most: int) -> None:
        super().__init__(outlet, most)
        self.controller = StateController(self._emit, outlet.drain, dialect=dialect_of(format.name))
        self._encoder = format.encoder()

    def _emit(self, chunk: ObjectChunk) -> None:
        self._check()
        self._outlet.push(self._encoder.encode(chunk))

    def end(self, ending: Ending, told: str) -> Ending:
        """Close the outlet. Idempotent."""
        self._outlet.close()
        return ending


def answer_in(format: Format | StateFormat, outlet: Outlet, most: int) -> Answer | StateAnswer:
    """What a handler writes in this format, at most ``most`` bytes ahead of the store."""
    if isinstance(format, StateFormat):
        return StateAnswer(outlet, format, most)
    return Answer(outlet, format, most)
