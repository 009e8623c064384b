"""The assistant transport: every chunk as it is, as JSON in a server-sent event, and ``[DONE]`` at the end.

Theory: nothing is lost, paths and key order included, so this is the format between programs that
share the chunk model.

Rules: 0.3.44 (the default) checks each chunk, gives a message-level one without a path the empty path, and leaves out
what is no chunk (`drops` says what); 0.3.15 fails instead. A stream without ``[DONE]`` was cut: an error, unless
``strict=False``. What follows ``[DONE]`` is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Final

from tailrace.message.chunks import UNDEFINED, Chunk, InvalidChunk, Json, TextDeltaChunk, chunk_from_json
from tailrace.wire.codec import BaseDecoder
from tailrace.wire.errors import InvalidJson, InvalidStream, StreamCut
from tailrace.wire.jsjson import parse, stringify, stringify_bytes
from tailrace.wire.lines import MAX_LINE
from tailrace.wire.sse import DONE, HEADERS, Event, SseDecoder, event_bytes

_PART_ADDRESSED: Final = frozenset(["part-finish", "tool-call-args-text-finish", "text-delta", "result"])
_REQUIRED: Final[dict[str, tuple[str, type]]] = {
    "part-start": ("part", dict),
    "text-delta": ("textDelta", str),
    "annotations": ("annotations", list),
    "data": ("data", list),
    "step-finish": ("finishReason", str),
    "message-finish": ("finishReason", str),
    "update-state": ("operations", list),
}
_TEXT_DELTA: Final = re.compile(r'\{"type":"text-delta","path":\[(0|[1-9][0-9]{0,8})\],"textDelta":"')
_FREE: Final = frozenset(["part-finish", "tool-call-args-text-finish", "step-start", "error", "result"])


class AssistantTransportEncoder:
    """Chunks to events; both dialects write the same."""

    headers: Mapping[str, str] = HEADERS

    def encode(self, chunk: Chunk) -> bytes:
        if type(chunk) is TextDeltaChunk and chunk.source is None and len(chunk.path) == 1:
            text = stringify(chunk.text_delta)  # nearly every chunk is one: a third of the way below
            return f'data: {{"type":"text-delta","path":[{chunk.path[0]}],"textDelta":{text}}}\n\n'.encode()
        return event_bytes(stringify_bytes(chunk.to_json()))

    def finish(self) -> bytes:
        return event_bytes(DONE.encode())


class AssistantTransportDecoder(BaseDecoder[Chunk]):
    """Events to chunks. ``legacy`` reads as 0.3.15 does; ``max_line`` is in bytes."""

    def __init__(self, *, strict: bool = True, legacy: bool = False, max_line: int = MAX_LINE) -> None:
        super().__init__()
        self._strict = strict
        self._legacy = legacy
        self._events = SseDecoder(legacy=legacy, max_line=max_line)
        self._done = False

    def _feed(self, data: bytes) -> None:
        if not self._done:
            self._read(self._events.feed(data))

    def _close(self) -> None:
        if not self._done:
            self._read(self._events.close())
        if not self._done:
            message = "Stream ended abruptly without receiving [DONE] marker"
            if self._strict:
                raise StreamCut(message)
            self._drop(message)

    def _read(self, events: list[Event]) -> None:
        for event in events:
            if event.event != "message":
                if self._strict:
                    raise InvalidStream(f"Unknown SSE event type: {event.event}")
                self._drop(f"Ignored unknown SSE event type: {event.event}")
            elif event.data == DONE:
                self._done = True
                return
            elif (delta := _text_delta(event.data)) is not None:
                self._out.append(delta)
            elif self._legacy:
                self._legacy_chunk(event.data)
            else:
                self._chunk(event.data)

    def _legacy_chunk(self, data: str) -> None:
        try:
            self._out.append(chunk_from_json(parse(data)))
        except InvalidChunk as error:
            raise InvalidStream(f"An event holds no chunk: {error}") from None

    def _chunk(self, data: str) -> None:
        try:
            value = parse(data, secure=True)
        except InvalidJson:
            reason: str | None = "unparseable"
        else:
            reason = _flaw(value)
        if reason is None:
            try:
                self._out.append(chunk_from_json(value))
                return
            except InvalidChunk:
                reason = "invalid-path"
        self._drop(f"Dropped invalid assistant-transport chunk ({reason}): {data[:200]}")


def _text_delta(data: str) -> TextDeltaChunk | None:
    """The chunk that nearly every event is, read in a third of the time; None where another way has to be taken."""
    match = _TEXT_DELTA.match(data)
    if match is None:
        return None
    try:
        text, end = scanstring(data, match.end(), True)
    except ValueError:
        return None
    return TextDeltaChunk(text, (int(match[1]),)) if data[end:] == "}" else None


def _flaw(value: Json) -> str | None:
    """Why this is no chunk, in upstream's word for it; the path's own shape is left to `chunk_from_json`."""
    if not isinstance(value, dict):
        return "not-an-object"
    kind = value.get("type")
    if not isinstance(kind, str) or (kind not in _REQUIRED and kind not in _FREE):
        return "unknown-type"
    key, required = _REQUIRED.get(kind, ("", object))
    if key and not isinstance(value.get(key), required):
        return f"invalid-fields:{kind}"
    if kind == "result" and not isinstance(value.get("isError", False), bool):
        return f"invalid-fields:{kind}"
    if kind in _PART_ADDRESSED and value.get("path", UNDEFINED) is UNDEFINED:
        return f"missing-path:{kind}"
    return None
