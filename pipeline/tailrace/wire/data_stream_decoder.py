"""Data stream frames to chunks: the reading half of `tailrace.wire.data_stream`, whose docstring has the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from tailrace.message.chunks import (
    UNDEFINED,
    AnnotationsChunk,
    Chunk,
    DataChunk,
    ErrorChunk,
    InvalidChunk,
    Json,
    UpdateStateChunk,
    chunk_from_json,
)
from tailrace.message.tool_call import NO_RESULT
from tailrace.wire.codec import BaseDecoder
from tailrace.wire.data_stream import without
from tailrace.wire.errors import InvalidJson, InvalidStream
from tailrace.wire.jsjson import parse, stringify
from tailrace.wire.lines import MAX_LINE, LineDecoder, TextDecoder
from tailrace.wire.parts import PartWriter, ToolCall
from tailrace.wire.sse import incomplete_line

_T = TypeVar("_T")


class _FrameDecoder(BaseDecoder[Chunk]):
    """What both dialects share: lines, frames, and the frames that mean the same in both."""

    def __init__(self, *, max_line: int, lone_cr: bool) -> None:
        super().__init__()
        self._text = TextDecoder()
        self._lines = LineDecoder(lone_cr=lone_cr, max_line=max_line)
        self._parts = PartWriter(self._out)
        self._calls: dict[str, ToolCall] = {}
        self._handlers: dict[str, Callable[[Any], None]] = {
            "0": lambda value: self._parts.append("text", _checked("0", value, str)),
            "g": lambda value: self._parts.append("reasoning", _checked("g", value, str)),
            "2": lambda value: self._out.append(DataChunk(_checked("2", value, list))),
            "8": lambda value: self._out.append(AnnotationsChunk(_checked("8", value, list))),
            "3": lambda value: self._out.append(ErrorChunk(value)),
            "b": self._start_call,
            "c": self._args_delta,
            "a": self._call_result,
            "9": self._whole_call,
            "d": lambda value: self._boundary("d", "message-finish", value),
            "e": lambda value: self._boundary("e", "step-finish", value),
            "f": lambda value: self._boundary("f", "step-start", value),
            "h": lambda value: self._child("h", "source", value),
            "k": self._file,
            "i": lambda value: None,
            "j": lambda value: None,
            "aui-state": lambda value: self._out.append(UpdateStateChunk(_checked("aui-state", value, list))),
            "aui-data": lambda value: self._parts.whole({"type": "data", **_checked("aui-data", value, dict)}),
        }

    def _feed(self, data: bytes) -> None:
        for line in self._lines.feed(self._text.feed(data)):
            self._line(line)

    def _close(self) -> None:
        for line in self._lines.feed(self._text.close()):
            self._line(line)
        if rest := self._lines.close():
            raise incomplete_line(rest)
        self._end_calls()
        self._parts.close()

    def _line(self, line: str) -> None:
        raise NotImplementedError

    def _end_calls(self) -> None:
        for call in self._calls.values():
            call.close()
        self._calls.clear()

    def _start_call(self, value: Json) -> None:
        raise NotImplementedError

    def _args_delta(self, value: Json) -> None:
        raise NotImplementedError

    def _call_result(self, value: Json) -> None:
        raise NotImplementedError

    def _whole_call(self, value: Json) -> None:
        raise NotImplementedError

    def _file(self, value: Json) -> None:
        raise NotImplementedError

    def _boundary(self, code: str, kind: str, value: Json) -> None:
        try:
            self._out.append(chunk_from_json({"type": kind, "path": [], **_checked(code, value, dict)}))
        except InvalidChunk as error:
            raise InvalidStream(f"The {code} frame is no {kind}: {error}") from None

    def _child(self, code: str, kind: str, value: Json) -> None:
        fields = _checked(code, value, dict)
        parent = fields.get("parentId")
        part = {"type": kind, **without(fields, "parentId")}
        self._parts.whole({**part, "parentId": parent} if parent else part)


class DataStreamDecoder(_FrameDecoder):
    """Data stream frames to chunks, as 0.3.44 reads them. ``max_line`` is in bytes."""

    def __init__(self, *, strict: bool = True, max_line: int = MAX_LINE) -> None:
        super().__init__(max_line=max_line, lone_cr=True)
        self._strict = strict
        self._open: list[ToolCall] = []  # those that may have open arguments
        self._handlers["aui-text-delta"] = self._text_delta
        self._handlers["aui-reasoning-delta"] = self._reasoning_delta
        self._handlers["aui-reasoning-part-start"] = self._reasoning_start

    def _line(self, line: str) -> None:
        code, colon, payload = line.partition(":")
        if not colon:
            if line.strip():
                self._drop(f"Dropped invalid data-stream chunk: {line[:200]}")
            return
        try:
            value = parse(payload, secure=True)
        except InvalidJson:
            self._drop(f"Dropped invalid data-stream chunk: {line[:200]}")
            return
        handler = self._handlers.get(code)
        if handler is None:
            self._refuse(f"unsupported chunk type: {code}", f"Dropped unsupported chunk type: {code}")
            return
        try:
            handler(value)
        except InvalidStream as error:
            self._refuse(error.message, f"Dropped invalid data-stream chunk: {line[:200]}")

    def _refuse(self, error: str, drop: str) -> None:
        if self._strict:
            raise InvalidStream(error)
        self._drop(drop)

    def _text_delta(self, value: Json) -> None:
        fields = _checked("aui-text-delta", value, dict)
        text = _checked("aui-text-delta", fields.get("textDelta"), str)
        self._parts.append("text", text, fields.get("parentId", UNDEFINED))

    def _reasoning_delta(self, value: Json) -> None:
        fields = _checked("aui-reasoning-delta", value, dict)
        text = _checked("aui-reasoning-delta", fields.get("reasoningDelta"), str)
        self._parts.append("reasoning", text, fields.get("parentId", UNDEFINED))

    def _reasoning_start(self, value: Json) -> None:
        fields = _checked("aui-reasoning-part-start", value, dict)
        self._parts.open("reasoning", fields.get("parentId") or UNDEFINED, fields.get("unstable_summary", UNDEFINED))

    def _start_call(self, value: Json) -> None:
        fields, call_id = _call_fields("b", value)
        if call_id in self._calls:
            self._refuse(
                f"Encountered duplicate tool call id: {call_id}", f"Dropped duplicate tool call start: {call_id}"
            )
            return
        call = self._parts.tool_call(fields.get("toolName", UNDEFINED), call_id, fields.get("parentId", UNDEFINED))
        self._calls[call_id] = call
        self._open.append(call)

    def _args_delta(self, value: Json) -> None:
        fields, call_id = _call_fields("c", value)
        call = self._calls.get(call_id)
        if call is None:
            self._refuse(
                f"Encountered tool call with unknown id: {call_id}",
                f"Dropped args delta for unknown tool call: {call_id}",
            )
            return
        if call.args_closed:
            self._drop(f"Dropped tool-call args delta for closed args stream: {call_id}")
            return
        if delta := _checked("c", fields.get("argsTextDelta"), str):
            call.append_args(delta)
        if fields.get("isFinal") is True:
            call.close_args()

    def _call_result(self, value: Json) -> None:
        fields, call_id = _call_fields("a", value)
        call = self._calls.get(call_id)
        if call is None:
            self._refuse(
                f"Encountered tool call result with unknown id: {call_id}",
                f"Dropped result for unknown tool call: {call_id}",
            )
            return
        if not call.closed:
            is_error = fields.get("isError")
            call.respond(fields.get("result", NO_RESULT), False if is_error is None else is_error, _artifact(fields))
            call.close()

    def _whole_call(self, value: Json) -> None:
        fields, call_id = _call_fields("9", value)
        call = self._calls.get(call_id)
        if call is None:
            call = self._calls[call_id] = self._parts.tool_call(fields.get("toolName", UNDEFINED), call_id)
            if "args" in fields:
                call.append_args(stringify(fields["args"]))
        call.close_args()

    def _boundary(self, code: str, kind: str, value: Json) -> None:
        if code != "f":
            self._close_all_args()
        super()._boundary(code, kind, value)

    def _file(self, value: Json) -> None:
        self._child("k", "file", value)

    def _end_calls(self) -> None:
        self._close_all_args()
        super()._end_calls()

    def _close_all_args(self) -> None:
        for call in self._open:
            call.close_args()
        self._open.clear()


_CLOSES_ARGS: Final = frozenset(
    ["b", "9", "0", "g", "h", "3", "e", "d", "aui-text-delta", "aui-reasoning-delta", "aui-data"]
)


class LegacyDataStreamDecoder(_FrameDecoder):
    """Data stream frames to chunks, as 0.3.15 reads them: one tool call at a time has open arguments."""

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        super().__init__(max_line=max_line, lone_cr=False)
        self._active: ToolCall | None = None
        self._handlers["aui-text-delta"] = lambda value: self._delta("aui-text-delta", "text", "textDelta", value)
        self._handlers["aui-reasoning-delta"] = lambda value: self._delta(
            "aui-reasoning-delta", "reasoning", "reasoningDelta", value
        )

    def _line(self, line: str) -> None:
        code, colon, payload = line.partition(":")
        if not colon:
            raise InvalidStream("Invalid stream part")
        value = parse(payload)
        if code in _CLOSES_ARGS:
            self._close_active()
        handler = self._handlers.get(code)
        if handler is None:
            raise InvalidStream(f"unsupported chunk type: {code}")
        handler(value)

    def _close_active(self) -> None:
        if self._active is not None:
            self._active.close_args()
            self._active = None

    def _delta(self, code: str, kind: str, key: str, value: Json) -> None:
        # The parent is not kept: 0.3.15 gives parents to tool calls, sources, files and data only.
        self._parts.append(kind, _checked(code, _checked(code, value, dict).get(key), str))

    def _start_call(self, value: Json) -> None:
        fields, call_id = _call_fields("b", value)
        if call_id in self._calls:
            raise InvalidStream(f"Encountered duplicate tool call id: {call_id}")
        call = self._parts.tool_call(fields.get("toolName", UNDEFINED), call_id, fields.get("parentId", UNDEFINED))
        self._calls[call_id] = self._active = call

    def _args_delta(self, value: Json) -> None:
        fields, call_id = _call_fields("c", value)
        call = self._calls.get(call_id)
        if call is None:
            raise InvalidStream(f"Encountered tool call with unknown id: {call_id}")
        if call.args_closed:
            raise InvalidStream("Invalid state: Controller is already closed")
        call.append_args(_checked("c", fields.get("argsTextDelta"), str))

    def _call_result(self, value: Json) -> None:
        fields, call_id = _call_fields("a", value)
        call = self._calls.get(call_id)
        if call is None:
            raise InvalidStream(f"Encountered tool call result with unknown id: {call_id}")
        call.close_args()
        is_error = fields.get("isError")
        call.respond(fields.get("result", UNDEFINED), False if is_error is None else is_error, _artifact(fields))

    def _whole_call(self, value: Json) -> None:
        fields, call_id = _call_fields("9", value)
        call = self._calls.get(call_id)
        if call is not None:
            call.close_args()
            return
        call = self._calls[call_id] = self._parts.tool_call(fields.get("toolName", UNDEFINED), call_id)
        if "args" in fields:
            call.append_args(stringify(fields["args"]))
            call.close_args()

    def _file(self, value: Json) -> None:
        self._parts.whole({"type": "file", **_checked("k", value, dict)})

    def _end_calls(self) -> None:
        self._close_active()
        super()._end_calls()


def _checked(code: str, value: Json, kind: type[_T]) -> _T:
    if isinstance(value, kind):
        return value
    name = {"str": "a string", "list": "an array"}.get(kind.__name__, "an object")
    raise InvalidStream(f"The payload of a {code} frame does not hold {name} where it must")


def _call_fields(code: str, value: Json) -> tuple[dict[str, Json], str]:
    fields = _checked(code, value, dict)
    return fields, _checked(code, fields.get("toolCallId"), str)


def _artifact(fields: dict[str, Json]) -> Json:
    return fields.get("artifact", UNDEFINED)
