"""Runs the tool calls of an answer while it streams, and puts their responses into it.

Theory: chunks pass through. A tool call that opens gets a `ToolCallReader`, which is fed its arguments; when these are
complete, ``execute`` is called, and what it gives becomes a `ResultChunk` at the call's path. Chunks of other parts
pass meanwhile; the call's own end waits for its response.

Rules:

- Whatever goes wrong in ``execute``, bad JSON for arguments included, becomes a response that is an error.
- A response that comes with the stream before the arguments end is the right one: nothing is executed.
- A call is executed once, however often its arguments end.
- The stream ends when the source has ended and all that was executed has answered. Readers then get ToolCallEnded for
  what never came; ``stream_call`` is not waited for.
- If the source fails, or nobody reads on, what runs is cancelled, and a source that is a generator is closed.
- At most AHEAD chunks are read that nobody has taken yet.
- Parts are not nested: another path raises InvalidUpdate, as does a chunk of a part that was never opened.

Following ToolExecutionStream of assistant-stream 0.3.44, where readers of a call that never ends wait for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any, Final, TypeAlias, TypeVar

from tailrace.message.chunks import (
    Chunk,
    Json,
    PartFinishChunk,
    PartInit,
    PartStartChunk,
    ResultChunk,
    TextDeltaChunk,
    ToolCallArgsTextFinishChunk,
    ToolCallInit,
    UnknownInit,
)
from tailrace.message.controller import describe
from tailrace.message.errors import InvalidToolArgs, InvalidUpdate, ToolCallEnded
from tailrace.message.merge import each
from tailrace.message.tool_call import NO_RESULT, ToolResponse
from tailrace.message.tool_reader import ToolCallReader
from tailrace.message.values import UNDEFINED
from tailrace.wire.errors import InvalidJson, JsonTooDeep
from tailrace.wire.jsjson import parse, stringify

AHEAD: Final = 64

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call whose arguments are complete."""

    tool_call_id: str
    tool_name: str
    args: Json


Executor: TypeAlias = Callable[[ToolCall], Awaitable[ToolResponse] | ToolResponse | None]
"""Runs a call. None means that somebody else does, and that the response comes with the stream or not at all."""

StreamCaller: TypeAlias = Callable[[ToolCallReader, ToolCallInit], Awaitable[None] | None]
"""Is told of a call as soon as it opens."""

Listener: TypeAlias = Callable[[str, str], object]
"""(tool call id, tool name). What it raises is logged."""


class ToolExecutionStream:
    """Executes the tool calls of answers; `run` takes one answer."""

    def __init__(
        self,
        execute: Executor,
        stream_call: StreamCaller | None = None,
        *,
        on_execution_start: Listener | None = None,
        on_execution_end: Listener | None = None,
    ) -> None:
        self.execute = execute
        self.stream_call = stream_call
        self.on_execution_start = on_execution_start
        self.on_execution_end = on_execution_end

    async def run(self, chunks: AsyncIterable[Chunk]) -> AsyncGenerator[Chunk]:
        """The answer with responses. Raises what ``chunks`` raises, and InvalidUpdate."""
        answer = _Answer(self)
        source = asyncio.create_task(answer.take(chunks))
        source.add_done_callback(answer.wake)
        complete = False
        try:
            while not complete:
                answer.woken.clear()
                while answer.out:
                    yield answer.out.popleft()
                answer.room.set()
                if source.done():
                    source.result()
                    complete = not answer.running and not answer.out
                if not complete:
                    await answer.woken.wait()
        finally:
            answer.end(cancel=not complete)
            source.add_done_callback(drop)
            if source.cancel():
                await asyncio.wait((source,))


@dataclass(slots=True)
class _Call:
    init: ToolCallInit
    reader: ToolCallReader = field(default_factory=ToolCallReader)
    answered: bool = False
    task: asyncio.Task[None] | None = None
    finish: PartFinishChunk | None = None  # came while the tool was running


class _Answer:
    """One answer on its way through: its parts, its open tool calls, and the chunks that nobody has taken yet."""

    def __init__(self, stream: ToolExecutionStream) -> None:
        self.stream = stream
        self.parts: list[PartInit | UnknownInit] = []
        self.calls: dict[int, _Call] = {}
        self.out: deque[Chunk] = deque()
        self.woken = asyncio.Event()
        self.room = asyncio.Event()
        self.running: set[asyncio.Task[None]] = set()
        self.watching: set[asyncio.Task[None]] = set()

    def wake(self, _: object = None) -> None:
        self.woken.set()

    def emit(self, chunk: Chunk) -> None:
        self.out.append(chunk)
        self.wake()

    async def take(self, chunks: AsyncIterable[Chunk]) -> None:
        async with aclosing(each(chunks)) as incoming:
            async for chunk in incoming:
                self.feed(chunk)
                while len(self.out) >= AHEAD:
                    self.room.clear()
                    await self.room.wait()

    def end(self, *, cancel: bool) -> None:
        for call in self.calls.values():
            call.reader.end()
        if cancel:
            for task in (*self.running, *self.watching):
                task.cancel()

    # ── chunks ──

    def feed(self, chunk: Chunk) -> None:
        match chunk:
            case PartStartChunk():
                self._open(chunk)
            case TextDeltaChunk() | ResultChunk() | ToolCallArgsTextFinishChunk() | PartFinishChunk():
                if isinstance(self._part(chunk), ToolCallInit):
                    self._tool_call(chunk)
                else:
                    self.emit(chunk)
            case _:
                self.emit(chunk)

    def _part(self, chunk: Chunk) -> PartInit | UnknownInit:
        if len(chunk.path) != 1:
            raise InvalidUpdate(f"{chunk.type} chunks must have a path of length 1")
        index = chunk.path[0]
        if index >= len(self.parts):
            raise InvalidUpdate(f"Invalid path index: {index}")
        return self.parts[index]

    def _open(self, chunk: PartStartChunk) -> None:
        if chunk.path:
            raise InvalidUpdate("Nested parts are not supported")
        self.emit(chunk)
        if isinstance(chunk.part, ToolCallInit):
            call = self.calls[len(self.parts)] = _Call(chunk.part)
            self._watch(call)
        self.parts.append(chunk.part)

    def _tool_call(self, chunk: TextDeltaChunk | ResultChunk | ToolCallArgsTextFinishChunk | PartFinishChunk) -> None:
        index = chunk.path[0]
        call = self.calls.get(index)
        if isinstance(chunk, PartFinishChunk):
            if call is not None and call.task is not None:
                call.finish = chunk
            else:
                self._close(index, chunk)
            return
        self.emit(chunk)
        if call is None:
            raise InvalidUpdate("No controller found for tool call")
        match chunk:
            case TextDeltaChunk():
                call.reader.args.feed(chunk.text_delta)
            case ResultChunk():
                call.answered = True
                call.reader.response.settle(_settled(chunk))
            case ToolCallArgsTextFinishChunk() if not call.reader.args.finished:
                call.reader.args.finish()
                if not call.answered:
                    self._execute(index, call)

    def _close(self, index: int, chunk: PartFinishChunk) -> None:
        call = self.calls.pop(index, None)
        if call is not None:
            call.reader.end()
        self.emit(chunk)

    # ── tools ──

    def _watch(self, call: _Call) -> None:
        if self.stream.stream_call is None:
            return
        watching = self.stream.stream_call(call.reader, call.init)
        if isawaitable(watching):
            task = begin(_watched(watching, call.init.tool_name), watching)
            self.watching.add(task)
            task.add_done_callback(self.watching.discard)

    def _execute(self, index: int, call: _Call) -> None:
        init = call.init
        try:
            args = _arguments(call.reader.args.text)
            response = self.stream.execute(ToolCall(init.tool_call_id, init.tool_name, args))
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its response
            self._respond(index, call, _failed(error))
            return
        if response is None:
            return
        self._tell("on_execution_start", init)
        task = call.task = begin(self._answered(index, call, response), response)
        self.running.add(task)
        task.add_done_callback(partial(self._executed, index, call))

    async def _answered(self, index: int, call: _Call, response: Awaitable[ToolResponse] | ToolResponse) -> None:
        try:
            answer = await response if isawaitable(response) else response
        except Exception as error:  # noqa: BLE001 - as above
            answer = _failed(error)
        self._tell("on_execution_end", call.init)
        self._respond(index, call, answer)

    def _executed(self, index: int, call: _Call, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        call.task = None
        if call.finish is not None and not task.cancelled():
            self._close(index, call.finish)
        self.wake()

    def _respond(self, index: int, call: _Call, response: ToolResponse) -> None:
        result = NO_RESULT if response.result is UNDEFINED else response.result
        chunk = ResultChunk(
            result, response.is_error, response.artifact, response.model_content, response.messages, (index,)
        )
        call.reader.response.settle(_settled(chunk))
        self.emit(chunk)

    def _tell(self, name: str, init: ToolCallInit) -> None:
        listener: Listener | None = getattr(self.stream, name)
        try:
            if listener is not None:
                listener(init.tool_call_id, init.tool_name)
        except Exception:  # noqa: BLE001 - a listener only listens
            _log.exception("a listener of tool calls failed: %s", name)


def begin(work: Coroutine[Any, Any, T], given: object) -> asyncio.Task[T]:
    """A task for ``work``, which awaits ``given``. One that is cancelled before its first step never gets to that."""
    task = asyncio.create_task(work)
    if iscoroutine(given):
        task.add_done_callback(lambda _: given.close())
    return task


def drop(task: asyncio.Task[Any]) -> None:
    """A callback for a task whose outcome is nobody's any more: asyncio would log what it raised."""
    if not task.cancelled():
        task.exception()


def _arguments(text: str) -> Json:
    try:
        return parse(text, secure=True)
    except (InvalidJson, JsonTooDeep) as error:
        raise InvalidToolArgs(f"Function parameter parsing failed. {stringify(str(error))}") from None


def _failed(error: Exception) -> ToolResponse:
    return ToolResponse(describe(error), is_error=True)


def _settled(chunk: ResultChunk) -> ToolResponse:
    result = NO_RESULT if chunk.result is UNDEFINED else chunk.result
    return ToolResponse(result, chunk.artifact, bool(chunk.is_error), chunk.model_content, chunk.messages)


async def _watched(watching: Awaitable[Any], tool_name: str) -> None:
    try:
        try:
            await watching
        except* ToolCallEnded:  # it was told, perhaps in several tasks at once, and has nothing to add
            pass
    except Exception:  # noqa: BLE001 - the answer does not depend on who watches it
        _log.exception("stream_call of a tool failed: %s", tool_name)
