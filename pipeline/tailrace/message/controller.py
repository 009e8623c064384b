"""The controller: what a handler writes an answer with.

Theory: the controller turns calls into chunks and gives each one to ``emit`` at once, in program order. It holds which
parts are open, the part that appended text goes to, and the next part's index.

Rules:

- `append_text` and `append_reasoning` go on with the part that the last of them opened, if kind and parent are
  the same; any new part closes that one first. Parts that were asked for by name stay open beside others.
- `close` ends the appended part and takes no new parts; parts and merged answers that are open may still write.
- `finish` closes whatever is open, in the order in which it was opened. `drive` does it when the handler ends.
- An exception of the handler becomes an error chunk, unless the answer was closed before.
- Arguments and a response that are given with a tool call keep that order. (The reference writes such a response
  first, and its 0.3.44 data stream then loses the arguments.)
- Dialect 0.3.15: text and reasoning have no parent, and a tool call's response does not close it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from copy import copy
from functools import partial
from inspect import isawaitable
from typing import Final, Protocol, Self, TypeAlias

from tailrace.message.chunks import (
    UNDEFINED,
    Chunk,
    DataInit,
    ErrorChunk,
    FileInit,
    InvalidChunk,
    Json,
    PartInit,
    PartStartChunk,
    Path,
    ReasoningInit,
    SourceInit,
    TextInit,
    ToolCallInit,
    Undefined,
    UnknownInit,
)
from tailrace.message.dialect import LEGACY, NEWEST, Dialect
from tailrace.message.errors import AnswerClosed
from tailrace.message.ids import NewId
from tailrace.message.merge import Merge, each
from tailrace.message.text import Emit, TextWriter, finish_part
from tailrace.message.tool_call import ToolCallWriter, ToolResponse
from tailrace.message.values import JsonObject
from tailrace.wire.jsjson import stringify

_SETTLED: Final = "Cannot add streams after the run callback has settled."


class _Closable(Protocol):
    def close(self) -> None: ...


class _State:
    """What a controller shares with its copies under another parent."""

    __slots__ = ("appending", "dialect", "emit", "finished", "new_id", "next_index", "open", "sealed", "strict")

    def __init__(self, emit: Emit, new_id: NewId, dialect: Dialect, strict: bool) -> None:
        self.emit = emit
        self.new_id = new_id
        self.dialect = dialect
        self.strict = strict
        self.next_index = 0
        self.sealed = False
        self.finished = False
        self.open: dict[int, _Closable] = {}
        self.appending: tuple[str, str | None, TextWriter] | None = None

    def take_index(self) -> int:
        self.next_index += 1
        return self.next_index - 1

    def forget(self, key: int) -> None:
        del self.open[key]


class AssistantStreamController:
    """Writes one answer. Every method raises AnswerClosed when it comes after the answer's `close`.

    ``emit`` gets each chunk, ``new_id`` names the tool calls that were given no id, and ``strict`` is whether text for
    a closed part raises PartClosed or is dropped.
    """

    __slots__ = ("_parent_id", "_state")

    def __init__(self, emit: Emit, *, new_id: NewId, dialect: Dialect = NEWEST, strict: bool = True) -> None:
        self._state = _State(emit, new_id, dialect, strict)
        self._parent_id: str | None = None

    @property
    def closed(self) -> bool:
        """Whether the answer takes no new parts."""
        return self._state.sealed

    @property
    def finished(self) -> bool:
        """Whether no chunk can follow: closed, and nothing is open."""
        return self._state.finished or (self._state.sealed and not self._state.open)

    def with_parent_id(self, parent_id: str) -> Self:
        """A controller of the same answer whose parts belong to ``parent_id``."""
        child = copy(self)
        child._parent_id = parent_id
        return child

    # ── text ──

    def append_text(self, text: str) -> None:
        """Adds to the open text part, or opens one."""
        self._appending("text", self.add_text_part).append(text)

    def append_reasoning(self, text: str, *, summary: str | Undefined | None = None) -> None:
        """Adds to the open reasoning part, or opens one. A summary always opens one, and may come without text."""
        if summary is None:
            self._appending("reasoning", self.add_reasoning_part).append(text)
            return
        part = self.add_reasoning_part(summary)
        self._state.appending = ("reasoning", self._parent_id, part)
        if text:
            part.append(text)

    def add_text_part(self) -> TextWriter:
        """Opens a text part, which stays open beside others until it is closed."""
        return self._text_part(TextInit())

    def add_reasoning_part(self, summary: str | Undefined | None = None) -> TextWriter:
        """Opens a reasoning part, perhaps with the application's summary."""
        return self._text_part(ReasoningInit(UNDEFINED if summary is None else summary))

    def _text_part(self, init: TextInit | ReasoningInit) -> TextWriter:
        state = self._state
        path = self._start(init if state.dialect == LEGACY else self._owned(init))
        part = TextWriter(
            state.emit, path, dialect=state.dialect, strict=state.strict, on_close=lambda: self._close_text(path)
        )
        state.open[path[0]] = part
        return part

    def _close_text(self, path: Path) -> None:
        finish_part(self._state.emit, path)
        self._state.forget(path[0])

    def _appending(self, kind: str, add: Callable[[], TextWriter]) -> TextWriter:
        state = self._state
        appending = state.appending
        if appending is None or appending[0] != kind or (appending[1] != self._parent_id and state.dialect != LEGACY):
            appending = state.appending = (kind, self._parent_id, add())
        return appending[2]

    # ── other parts ──

    def add_tool_call_part(
        self,
        tool_name: str,
        *,
        tool_call_id: str | None = None,
        args: Json = UNDEFINED,
        args_text: str | None = None,
        response: ToolResponse | Mapping[str, Json] | None = None,
    ) -> ToolCallWriter:
        """Opens a tool call; arguments that are given, as text or as an object, are complete."""
        state = self._state
        call_id = state.new_id() if tool_call_id is None else tool_call_id
        path = self._start(self._owned(ToolCallInit(tool_name, call_id)))
        index = path[0]
        call = ToolCallWriter(
            state.emit,
            path,
            call_id,
            dialect=state.dialect,
            strict=state.strict,
            on_close=partial(state.forget, index),
        )
        state.open[index] = call
        for text in (args_text, None if args is UNDEFINED else stringify(args)):
            if text is not None:
                call.args.append(text).close()
        if response is not None:
            call.set_response(response)
        return call

    def append_source(self, source: SourceInit) -> None:
        """Adds a cited source."""
        self._whole(source)

    def append_file(self, file: FileInit) -> None:
        """Adds a file."""
        self._whole(file)

    def append_data(self, data: DataInit) -> None:
        """Adds a part of the application's own data."""
        self._whole(data)

    def _whole(self, init: PartInit) -> None:
        if not isinstance(init, JsonObject | UnknownInit):
            raise InvalidChunk(f"No part: {type(init).__name__}; part_from_json makes one of JSON")
        finish_part(self._state.emit, self._start(self._owned(init)))

    def _owned(self, init: PartInit) -> PartInit:
        if not self._parent_id:
            return init
        owned = init.copy()
        owned.parent_id = self._parent_id
        return owned

    def _start(self, init: PartInit | UnknownInit) -> Path:
        state = self._state
        if state.appending is not None:
            state.appending[2].close()
            state.appending = None
        self.enqueue(PartStartChunk(init))
        return (state.next_index - 1,)

    # ── chunks and whole answers ──

    def enqueue(self, chunk: Chunk) -> None:
        """Adds any chunk as it is. Raises InvalidChunk for what is none, such as its JSON."""
        state = self._state
        if state.sealed:
            raise AnswerClosed(_SETTLED)
        if not isinstance(chunk, JsonObject):
            raise InvalidChunk(f"No chunk: {type(chunk).__name__}; chunk_from_json makes one of JSON")
        state.emit(chunk)
        if isinstance(chunk, PartStartChunk) and not chunk.path:
            state.next_index += 1

    def merging(self) -> Merge:
        """Where another answer's chunks go, one by one; its parts follow the ones that are there when they open."""
        state = self._state
        if state.sealed:
            raise AnswerClosed(_SETTLED)
        key = min([0, *state.open]) - 1  # parts have the numbers from 0
        merge = Merge(state.emit, state.take_index, partial(state.forget, key))
        state.open[key] = merge
        return merge

    async def merge(self, chunks: AsyncIterable[Chunk] | Iterable[Chunk]) -> None:
        """Adds all chunks of another answer as they come. Other writers may write meanwhile, if this runs as a task.

        An asynchronous generator is closed, however this ends.
        """
        merge = self.merging()
        try:
            async with aclosing(each(chunks)) as incoming:
                async for chunk in incoming:
                    merge.push(chunk)
        finally:
            merge.close()

    # ── the end ──

    def close(self) -> None:
        """Ends the appended part and takes no new ones; a second call does nothing."""
        if self._state.appending is not None:
            self._state.appending[2].close()
        self._state.sealed = True

    def finish(self) -> None:
        """Closes the answer and all that is open in it."""
        self.close()
        for part in list(self._state.open.values()):
            part.close()
        self._state.finished = True


Handler: TypeAlias = Callable[[AssistantStreamController], Awaitable[None] | None]


def describe(error: BaseException) -> str:
    """``Type: message``, as an error chunk gives it."""
    name = getattr(error, "reported_as", type(error).__name__)
    return f"{name}: {error}" if str(error) else str(name)


async def drive(
    handler: Handler,
    controller: AssistantStreamController,
    *,
    describe: Callable[[BaseException], str] = describe,
) -> Exception | None:
    """Runs a handler to its end and finishes the answer.

    An exception becomes an error chunk, in the words of ``describe``, and is returned; after the answer's `close` it is
    only returned. A cancellation finishes the answer and goes on.
    """
    try:
        outcome = handler(controller)
        if isawaitable(outcome):
            await outcome
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is the answer's error
        if not controller.closed:
            controller.enqueue(ErrorChunk(describe(error)))
        return error
    finally:
        controller.finish()
    return None
