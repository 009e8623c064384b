"""The object stream: a state that grows, each frame a list of operations in a server-sent event.

Theory: a chunk is a snapshot of the state and the operations that led to it; the wire carries operations only, and the
reader builds the snapshots again. There is no terminator: the end of the bytes is the end.

Rules: the first frame of 0.3.44 (the default) only sets the snapshot; 0.3.15 sets it unless it is empty, then repeats
the operations. This carries states, not answers, so it stands beside the table of formats, in the same shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from tailrace.message.chunks import UNDEFINED, Json, Undefined
from tailrace.message.dialect import LEGACY, NEWEST
from tailrace.message.errors import InvalidUpdate
from tailrace.message.object_controller import ObjectChunk as ObjectChunk
from tailrace.message.object_controller import ObjectStreamController
from tailrace.message.state import StateAccumulator
from tailrace.wire import sse
from tailrace.wire.codec import BaseDecoder
from tailrace.wire.errors import InvalidJson, InvalidStream
from tailrace.wire.jsjson import parse, stringify_bytes
from tailrace.wire.lines import MAX_LINE

FORMAT_HEADER: Final = "Assistant-Stream-Format"
HEADERS: Final[Mapping[str, str]] = MappingProxyType({**sse.HEADERS, FORMAT_HEADER: "object-stream/v0"})


class ObjectStreamEncoder:
    """Chunks to events. ``legacy`` writes as 0.3.15 does."""

    headers: Mapping[str, str] = HEADERS

    def __init__(self, *, legacy: bool = False) -> None:
        self._legacy = legacy
        self._first = True

    def encode(self, chunk: ObjectChunk) -> bytes:
        operations = chunk.operations
        if self._first:
            self._first = False
            whole = {"type": "set", "path": [], "value": chunk.snapshot}
            if not self._legacy:
                operations = [whole]
            elif isinstance(chunk.snapshot, dict | list | str) and chunk.snapshot:
                operations = [whole, *operations]
        return sse.event_bytes(stringify_bytes(operations))

    def finish(self) -> bytes:
        return b""


async def object_stream(
    batches: AsyncIterable[Sequence[Mapping[str, Json]]],
    *,
    initial: Json | Undefined = UNDEFINED,
    legacy: bool = False,
) -> AsyncIterator[bytes]:
    """The frames of batches of operations, each as its batch comes: the body of a response with HEADERS.

    Raises InvalidUpdate at a batch that does not fit the state; `ObjectStreamController` says what a batch means.
    """
    made: list[ObjectChunk] = []
    controller = ObjectStreamController(made.append, initial=initial, dialect=LEGACY if legacy else NEWEST)
    encoder = ObjectStreamEncoder(legacy=legacy)
    async for batch in batches:
        controller.enqueue(batch)
        yield encoder.encode(made.pop())


class ObjectStreamDecoder(BaseDecoder[ObjectChunk]):
    """Events to chunks. ``strict=False`` (0.3.44) leaves out events with a name of their own."""

    def __init__(self, *, strict: bool = True, legacy: bool = False, max_line: int = MAX_LINE) -> None:
        super().__init__()
        self._strict = strict
        self._legacy = legacy
        self._events = sse.SseDecoder(legacy=legacy, max_line=max_line)
        self._state = StateAccumulator(dialect=LEGACY if legacy else NEWEST)

    def _feed(self, data: bytes) -> None:
        self._read(self._events.feed(data))

    def _close(self) -> None:
        self._read(self._events.close())

    def _read(self, events: list[sse.Event]) -> None:
        for event in events:
            if event.event == "message":
                self._frame(event.data)
            elif self._strict:
                raise InvalidStream(f"Unknown SSE event type: {event.event}")
            else:
                self._drop(f"Ignored unknown SSE event type: {event.event}")

    def _frame(self, data: str) -> None:
        try:
            operations = parse(data, secure=not self._legacy)
        except InvalidJson:
            if self._legacy:
                raise
            self._drop(f"Dropped invalid SSE message: {data[:200]}")
            return
        if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
            raise InvalidStream("A frame of an object stream is an array of operations")
        try:
            self._state.append(operations)
        except InvalidUpdate as error:
            raise InvalidStream(error.message) from error
        self._out.append(ObjectChunk(self._state.tree, operations))


@dataclass(frozen=True, slots=True)
class StateFormat:
    """The object stream in one dialect, as `tailrace.wire.Format` is a format of chunks."""

    name: str
    headers: Mapping[str, str]
    encoder: Callable[[], ObjectStreamEncoder]
    decoder: Callable[..., ObjectStreamDecoder]


NEW: Final = StateFormat("object-stream", HEADERS, ObjectStreamEncoder, ObjectStreamDecoder)
OLD: Final = StateFormat(
    f"object-stream;v={LEGACY}",
    HEADERS,
    partial(ObjectStreamEncoder, legacy=True),
    partial(ObjectStreamDecoder, legacy=True),
)
STATES: Final[Mapping[str, StateFormat]] = MappingProxyType(
    {NEW.name: NEW, f"{NEW.name};v={NEWEST}": NEW, OLD.name: OLD}
)
"""By name and dialect, as `tailrace.wire.FORMATS` has those of chunks."""
