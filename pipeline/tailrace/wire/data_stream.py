"""The data stream: one line a frame, ``CODE:JSON`` and LF.

Theory: a frame's code says what its JSON is. There are no paths: text goes on with the part before it, and the frames
of a tool call name its id. What a text part or a tool call is at any moment is the decoder's to know.

Rules:

- 0.3.44 (the default) keeps each tool call's arguments open until a frame says that they are final, so that several
  calls may stream at once; it carries files and summaries of reasoning; it leaves out frames that it cannot read.
- 0.3.15 has one open tool call, whose arguments the next part closes; it fails at the first frame that it cannot read.
- ``strict=False`` (0.3.44) leaves out the frames that name unknown tool calls, known ones again, or unknown codes.
- A payload of the wrong JSON type is an error here, where upstream goes on with ``undefined``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from tailrace.message.chunks import (
    UNDEFINED,
    AnnotationsChunk,
    Chunk,
    DataChunk,
    DataInit,
    ErrorChunk,
    FileInit,
    Json,
    MessageFinishChunk,
    PartFinishChunk,
    PartStartChunk,
    ReasoningInit,
    ResultChunk,
    SourceInit,
    StepFinishChunk,
    StepStartChunk,
    TextDeltaChunk,
    TextInit,
    ToolCallArgsTextFinishChunk,
    ToolCallInit,
    UpdateStateChunk,
)
from tailrace.wire.codec import PartTable
from tailrace.wire.errors import UnsupportedChunk
from tailrace.wire.jsjson import stringify_bytes

HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {"Content-Type": "text/plain; charset=utf-8", "x-vercel-ai-data-stream": "v1"}
)


def _frame(code: bytes, value: Json) -> bytes:
    return code + b":" + stringify_bytes(value) + b"\n"


def without(value: dict[str, Json], *keys: str) -> dict[str, Json]:
    return {key: item for key, item in value.items() if key not in keys}


class DataStreamEncoder:
    """Chunks to data stream frames. ``legacy`` writes as 0.3.15 does."""

    headers: Mapping[str, str] = HEADERS

    def __init__(self, *, legacy: bool = False) -> None:
        self._legacy = legacy
        self._table = PartTable()
        self._open_args: dict[str, bool] = {}  # tool call id -> whether any argument text was written
        self._encoders: dict[type[Chunk], Callable[[Any], bytes]] = {
            TextDeltaChunk: self._text_delta,
            PartStartChunk: self._part_start,
            PartFinishChunk: self._args_end,
            ToolCallArgsTextFinishChunk: self._args_end,
            ResultChunk: self._result,
            StepStartChunk: lambda chunk: _frame(b"f", without(chunk.to_json(), "type")),
            StepFinishChunk: lambda chunk: self._finish_all_args() + _frame(b"e", without(chunk.to_json(), "type")),
            MessageFinishChunk: lambda chunk: self._finish_all_args() + _frame(b"d", without(chunk.to_json(), "type")),
            ErrorChunk: self._error,
            AnnotationsChunk: lambda chunk: _frame(b"8", chunk.annotations),
            DataChunk: lambda chunk: _frame(b"2", chunk.data),
            UpdateStateChunk: lambda chunk: _frame(b"aui-state", chunk.operations),
        }

    def encode(self, chunk: Chunk) -> bytes:
        """The frames of one chunk, perhaps none. Raises UnsupportedChunk."""
        return self._encoders[type(chunk)](chunk)

    def finish(self) -> bytes:
        """The frames that close what is still open. The format has no terminator."""
        return self._finish_all_args()

    def _part_start(self, chunk: PartStartChunk) -> bytes:
        self._table.start(chunk)
        part = chunk.part
        if isinstance(part, ToolCallInit):
            self._open_args[part.tool_call_id] = False
            return _frame(b"b", without(part.to_json(), "type"))
        if isinstance(part, SourceInit):
            return _frame(b"h", without(part.to_json(), "type"))
        if isinstance(part, DataInit):
            return _frame(b"aui-data", without(part.to_json(), "type"))
        if self._legacy:
            return b""
        if isinstance(part, FileInit):
            return _frame(b"k", without(part.to_json(), "type"))
        if isinstance(part, ReasoningInit) and part.unstable_summary is not UNDEFINED:
            value = {"unstable_summary": part.unstable_summary, "parentId": part.parent_id}
            return _frame(b"aui-reasoning-part-start", value)
        return b""

    def _text_delta(self, chunk: TextDeltaChunk) -> bytes:
        part = self._table.part_of(chunk)
        if isinstance(part, TextInit):
            if part.parent_id:
                return _frame(b"aui-text-delta", {"textDelta": chunk.text_delta, "parentId": part.parent_id})
            return _frame(b"0", chunk.text_delta)
        if isinstance(part, ReasoningInit):
            if part.parent_id:
                return _frame(b"aui-reasoning-delta", {"reasoningDelta": chunk.text_delta, "parentId": part.parent_id})
            return _frame(b"g", chunk.text_delta)
        if isinstance(part, ToolCallInit):
            if not self._legacy:
                if part.tool_call_id not in self._open_args:
                    return b""
                self._open_args[part.tool_call_id] = True
            return _frame(b"c", {"toolCallId": part.tool_call_id, "argsTextDelta": chunk.text_delta})
        raise UnsupportedChunk(f"Unsupported part type for text-delta: {_type_name(part)}")

    def _result(self, chunk: ResultChunk) -> bytes:
        part = self._table.part_of(chunk)
        if not isinstance(part, ToolCallInit):
            raise UnsupportedChunk(f"Result chunk on non-tool-call part not supported: {_type_name(part)}")
        self._open_args.pop(part.tool_call_id, None)
        value = {"toolCallId": part.tool_call_id, "result": chunk.result, "artifact": chunk.artifact}
        if chunk.is_error:
            value["isError"] = chunk.is_error
        return _frame(b"a", value)

    def _args_end(self, chunk: PartFinishChunk | ToolCallArgsTextFinishChunk) -> bytes:
        part = self._table.part_of(chunk)
        return self._finish_args(part.tool_call_id) if isinstance(part, ToolCallInit) else b""

    def _error(self, chunk: ErrorChunk) -> bytes:
        """A warning does not end the message, so it leaves arguments open; the severity itself is not carried."""
        before = b"" if chunk.severity in ("warning", "info") else self._finish_all_args()
        return before + _frame(b"3", chunk.error)

    def _finish_args(self, tool_call_id: str) -> bytes:
        has_text = self._open_args.pop(tool_call_id, None)
        if has_text is None or self._legacy:
            return b""
        # A decoder that does not know isFinal must still see the empty object of a call without arguments.
        delta = "" if has_text else "{}"
        return _frame(b"c", {"toolCallId": tool_call_id, "argsTextDelta": delta, "isFinal": True})

    def _finish_all_args(self) -> bytes:
        return b"".join([self._finish_args(tool_call_id) for tool_call_id in list(self._open_args)])


def _type_name(part: Any) -> str:
    return "undefined" if part.type is UNDEFINED else str(part.type)
