"""UI message stream events to chunks, as upstream's 0.3.44 reads both its own older events and the AI SDK's.

Theory: an AI SDK tool call is held back until its input is complete, then written at once, and its output after it;
upstream's own ``tool-call-*`` events stream, one call at a time. Events of unknown types are not for this reader.

Rules: a stream without ``[DONE]`` was cut, an error; what is no event is left out (`drops`); tool calls whose input
never became complete are written at ``[DONE]`` with what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from tailrace.message.chunks import (
    UNDEFINED,
    Chunk,
    DataChunk,
    ErrorChunk,
    Json,
    MessageFinishChunk,
    StepFinishChunk,
    StepStartChunk,
)
from tailrace.message.ids import NewId
from tailrace.message.tool_call import NO_RESULT
from tailrace.wire.codec import BaseDecoder
from tailrace.wire.errors import InvalidJson, InvalidStream, StreamCut
from tailrace.wire.jsjson import parse, stringify
from tailrace.wire.lines import MAX_LINE
from tailrace.wire.parts import PartWriter, ToolCall
from tailrace.wire.sse import DONE, SseDecoder

Fields = dict[str, Json]


@dataclass(slots=True)
class _Pending:
    """An AI SDK tool call whose input is not complete, or whose output is not there."""

    name: str
    deltas: list[str] = field(default_factory=list)
    written: bool = False
    answered: bool = False
    response: tuple[Json, bool] | None = None


class UiMessageStreamDecoder(BaseDecoder[Chunk]):
    """Events to chunks. ``on_data`` gets every ``data-`` event, ``new_id`` makes the ids of steps that have none.

    Without it they are counted, so that the same bytes give the same chunks.
    """

    def __init__(
        self,
        *,
        on_data: Callable[[Fields], None] | None = None,
        new_id: NewId | None = None,
        max_line: int = MAX_LINE,
    ) -> None:
        super().__init__()
        self._on_data = on_data
        self._new_id = new_id or map("{:07d}".format, count(1)).__next__
        self._events = SseDecoder(max_line=max_line)
        self._parts = PartWriter(self._out)
        self._calls: dict[str, ToolCall] = {}
        self._pending: dict[str, _Pending] = {}
        self._active: str | None = None
        self._message_id: Json = UNDEFINED
        self._done = False
        self._handlers: dict[str, Callable[[Fields], None]] = {
            "start": self._start,
            "start-step": self._start_step,
            "text-delta": self._text,
            "reasoning-delta": lambda event: self._parts.append("reasoning", _text(event, "delta")),
            "source": self._source,
            "source-url": self._source_url,
            "file": self._file,
            "tool-call-start": lambda event: self._call_start(
                _text(event, "toolCallId"), event.get("toolName", UNDEFINED)
            ),
            "tool-call-delta": lambda event: self._call_delta(_text(event, "argsText")),
            "tool-call-end": lambda event: self._call_end(),
            "tool-result": self._tool_result,
            "tool-input-start": self._input_start,
            "tool-input-delta": self._input_delta,
            "tool-input-available": self._input_complete,
            "tool-input-error": self._input_complete,
            "tool-output-available": self._output,
            "tool-output-error": self._output,
            "finish-step": self._finish_step,
            "finish": self._finish,
            "error": lambda event: self._out.append(ErrorChunk(event.get("errorText", UNDEFINED))),
        }

    def _feed(self, data: bytes) -> None:
        if self._done:
            return
        for event in self._events.feed(data):
            if event.event != "message":
                raise InvalidStream(f"Unknown SSE event type: {event.event}")
            if event.data == DONE:
                self._end()
                return
            self._event(event.data)

    def _close(self) -> None:
        if not self._done:
            self._events.close()
            raise StreamCut("Stream ended abruptly without receiving [DONE] marker")

    def _end(self) -> None:
        self._done = True
        for call_id, tool in self._pending.items():
            self._write_pending(call_id, tool)
        self._call_end()
        for call in self._calls.values():
            call.close()
        self._parts.close()

    def _event(self, data: str) -> None:
        try:
            event = parse(data, secure=True)
        except InvalidJson:
            event = None
        kind = event.get("type") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(kind, str):
            self._drop(f"Dropped invalid UIMessageStream chunk: {data[:200]}")
        elif kind.startswith("data-"):
            self._data(kind, event)
        elif (handler := self._handlers.get(kind)) is not None:
            handler(event)

    # ── the message ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, event: Fields) -> None:
        self._message_id = _or(event.get("messageId"), self._new_id)
        self._out.append(StepStartChunk(self._message_id))

    def _start_step(self, event: Fields) -> None:
        known = None if self._message_id is UNDEFINED else self._message_id
        self._out.append(StepStartChunk(_or(event.get("messageId"), lambda: _or(known, self._new_id))))

    def _finish_step(self, event: Fields) -> None:
        continued = _or(event.get("isContinued"), lambda: False)
        self._out.append(StepFinishChunk(_reason(event), _usage(event), continued))

    def _finish(self, event: Fields) -> None:
        self._out.append(MessageFinishChunk(_reason(event), _usage(event)))

    def _data(self, kind: str, event: Fields) -> None:
        name = kind[5:]
        value = {"data": event["data"]} if "data" in event else {}
        transient = {"transient": event["transient"]} if "transient" in event else {}
        if self._on_data is not None:
            self._on_data({"type": kind, "name": name, **value, **transient})
        if not event.get("transient"):
            self._out.append(DataChunk([{"name": name, **value}]))

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _text(self, event: Fields) -> None:
        if "textDelta" in event:
            self._parts.append("text", _text(event, "textDelta"))
        else:
            self._parts.append("text", "" if event.get("delta") is None else _text(event, "delta"))

    def _source(self, event: Fields) -> None:
        source = event.get("source")
        if source is not None:
            self._write_source(_object(source, "source"), "id", _object(source, "source").get("sourceType", UNDEFINED))

    def _source_url(self, event: Fields) -> None:
        self._write_source(event, "sourceId", "url")

    def _write_source(self, fields: Fields, id_key: str, source_type: Json) -> None:
        part = {"type": "source", "sourceType": source_type}
        part["id"] = fields.get(id_key, UNDEFINED)
        part["url"] = fields.get("url", UNDEFINED)
        if fields.get("title"):
            part["title"] = fields["title"]
        self._parts.whole(_defined(part))

    def _file(self, event: Fields) -> None:
        file = event.get("file")
        if file is None:
            if "url" not in event:
                return
            file = {"mimeType": event.get("mediaType", UNDEFINED), "data": event["url"]}
        fields = _object(file, "file")
        mime_type, data = fields.get("mimeType", UNDEFINED), fields.get("data", UNDEFINED)
        self._parts.whole(_defined({"type": "file", "mimeType": mime_type, "data": data}))

    # ── tool calls that stream ───────────────────────────────────────────────────────────────────────────────────────

    def _call_start(self, call_id: str, name: Json) -> None:
        self._call_end()
        if call_id in self._calls:
            raise InvalidStream(f"Encountered duplicate tool call id: {call_id}")
        self._calls[call_id] = self._parts.tool_call(name, call_id)
        self._active = call_id

    def _call_delta(self, text: str) -> None:
        if self._active is not None:
            self._calls[self._active].append_args(text)

    def _call_end(self) -> None:
        if self._active is not None:
            self._calls[self._active].close_args()
            self._active = None

    def _tool_result(self, event: Fields) -> None:
        is_error = _or(event.get("isError"), lambda: False)
        self._respond(_text(event, "toolCallId"), event.get("result", NO_RESULT), is_error, event)

    def _respond(self, call_id: str, result: Json, is_error: Json, event: Fields) -> None:
        if call_id == self._active:
            self._active = None
        call = self._calls.get(call_id)
        if call is None:
            raise InvalidStream(f"Encountered tool result with unknown id: {call_id}")
        if not call.closed:
            call.respond(result, is_error, messages=event.get("messages", UNDEFINED))
            call.close()

    # ── tool calls that wait ─────────────────────────────────────────────────────────────────────────────────────────

    def _input_start(self, event: Fields) -> None:
        call_id = event.get("toolCallId")
        if isinstance(call_id, str) and call_id not in self._pending:
            self._pending[call_id] = _Pending(_name(event))

    def _input_delta(self, event: Fields) -> None:
        tool = self._pending_of(event)
        if tool is not None and not tool.written and isinstance(event.get("inputTextDelta"), str):
            tool.deltas.append(event["inputTextDelta"])

    def _input_complete(self, event: Fields) -> None:
        call_id = event.get("toolCallId")
        if not isinstance(call_id, str):
            return
        tool = self._pending.setdefault(call_id, _Pending(_name(event)))
        if tool.written:
            return
        failed = event["type"] == "tool-input-error"
        if "input" in event:
            unparsed = failed and isinstance(event["input"], str)
            tool.deltas = [event["input"] if unparsed else stringify(event["input"])]
        if failed:
            tool.response = (_error_text(event), True)
        self._write_pending(call_id, tool)

    def _output(self, event: Fields) -> None:
        available = event["type"] == "tool-output-available"
        tool = self._pending_of(event)
        if tool is None or tool.answered or (available and event.get("preliminary")):
            return
        tool.response = (event.get("output", NO_RESULT), False) if available else (_error_text(event), True)
        if tool.written:
            self._write_pending(event["toolCallId"], tool)

    def _pending_of(self, event: Fields) -> _Pending | None:
        call_id = event.get("toolCallId")
        return self._pending.get(call_id) if isinstance(call_id, str) else None

    def _write_pending(self, call_id: str, tool: _Pending) -> None:
        if not tool.written:
            tool.written = True
            self._call_start(call_id, tool.name)
            for text in tool.deltas:
                self._call_delta(text)
            self._call_end()
        if tool.response is not None and not tool.answered:
            tool.answered = True
            self._respond(call_id, *tool.response, {})


def _or(value: Json, other: Callable[[], Json]) -> Json:
    return other() if value is None else value


def _text(event: Fields, key: str) -> str:
    value = event.get(key)
    if not isinstance(value, str):
        raise InvalidStream(f"A {event['type']} event does not hold a string as {key}")
    return value


def _object(value: Json, name: str) -> Fields:
    if not isinstance(value, dict):
        raise InvalidStream(f"A {name} event does not hold an object")
    return value


def _defined(part: Fields) -> Fields:
    return {key: value for key, value in part.items() if value is not UNDEFINED}


def _name(event: Fields) -> str:
    name = event.get("toolName")
    return name if isinstance(name, str) else ""


def _error_text(event: Fields) -> str:
    text = event.get("errorText")
    return text if isinstance(text, str) else ""


def _reason(event: Fields) -> Json:
    return _or(event.get("finishReason"), lambda: "unknown")


def _usage(event: Fields) -> Json:
    return _or(event.get("usage"), lambda: {"inputTokens": 0, "outputTokens": 0})
