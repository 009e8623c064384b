"""The AI SDK's UI message stream: one JSON object in a server-sent event, and ``[DONE]`` at the end.

Theory: what ``useChat`` reads. Text and reasoning have ids, a tool's input is complete at ``tool-input-available``, and
its output follows by the call's id. AI SDK 5 and 6 refuse an object with a key that they do not know, so what they have
no key for (finish reason, usage, artifact, parent) is not written.

Rules:

- A step-start that begins the stream is written as ``start``, which names the message, the others as ``start-step``:
  reading gives as many steps as were written. (AI SDK 6 forgets what came before a ``start`` with another id.)
- It also forgets the open texts at the end of a step. So they are closed before it, and opened again for what follows.
- What has no event of its own goes as a transient ``data-`` event, which clients may watch and no message keeps:
  annotations, state operations, and errors that do not end the message.
- Reading is in `tailrace.wire.ui_message_stream_decoder`.
"""

from __future__ import annotations

import re
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
from tailrace.wire import sse
from tailrace.wire.codec import PartTable, delta_text
from tailrace.wire.errors import InvalidJson, JsonTooDeep, UnsupportedChunk
from tailrace.wire.jsjson import parse, stringify, stringify_bytes

HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {**sse.HEADERS, "x-vercel-ai-ui-message-stream": "v1", "x-accel-buffering": "no"}
)

ABORT: Final = b'data: {"type":"abort"}\n\ndata: [DONE]\n\n'
"""The end of an answer that somebody stopped."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def _event(**fields: Json) -> bytes:
    return sse.event_bytes(stringify_bytes(fields))


class UiMessageStreamEncoder:
    """Chunks to the events that AI SDK 5 and 6 read."""

    headers: Mapping[str, str] = HEADERS

    def __init__(self) -> None:
        self._table = PartTable()
        self._begun = False
        self._open: dict[str, str] = {}  # id of an open text or reasoning part -> its kind
        self._args: dict[str, list[str]] = {}  # tool call id -> argument text, until its input was written
        self._encoders: dict[type[Chunk], Callable[[Any], bytes]] = {
            TextDeltaChunk: self._text_delta,
            PartStartChunk: self._part_start,
            PartFinishChunk: self._part_finish,
            ToolCallArgsTextFinishChunk: self._args_finish,
            ResultChunk: self._result,
            StepStartChunk: self._step_start,
            StepFinishChunk: lambda chunk: self._close_texts() + _event(type="finish-step"),
            MessageFinishChunk: lambda chunk: self._close_texts() + _event(type="finish"),
            ErrorChunk: self._error,
            AnnotationsChunk: lambda chunk: _event(type="data-annotations", data=chunk.annotations, transient=True),
            DataChunk: self._data,
            UpdateStateChunk: lambda chunk: _event(type="data-state", data=chunk.operations, transient=True),
        }

    def encode(self, chunk: Chunk) -> bytes:
        """The events of one chunk, perhaps none. Raises UnsupportedChunk."""
        data = self._encoders[type(chunk)](chunk)
        self._begun = self._begun or bool(data)
        return data

    def finish(self) -> bytes:
        """Closes the texts that are open and writes ``[DONE]``."""
        return self._close_texts() + sse.event_bytes(sse.DONE.encode())

    def _step_start(self, chunk: StepStartChunk) -> bytes:
        return _event(type="start-step") if self._begun else _event(type="start", messageId=chunk.message_id)

    def _part_start(self, chunk: PartStartChunk) -> bytes:
        part_id = str(self._table.start(chunk))
        part = chunk.part
        if isinstance(part, TextInit | ReasoningInit):
            return self._open_text(part_id, part.type)
        if isinstance(part, ToolCallInit):
            self._args[part.tool_call_id] = []
            return _event(type="tool-input-start", toolCallId=part.tool_call_id, toolName=part.tool_name)
        if isinstance(part, SourceInit):
            return _event(type="source-url", sourceId=part.id, url=part.url, title=part.title)
        if isinstance(part, FileInit):
            plain = isinstance(part.data, str) and not _URL.match(part.data)
            url = f"data:{part.mime_type};base64,{part.data}" if plain else part.data
            return _event(type="file", url=url, mediaType=part.mime_type)
        if isinstance(part, DataInit):
            return _event(type=f"data-{part.name}", data=part.data)
        return b""

    def _text_delta(self, chunk: TextDeltaChunk) -> bytes:
        part = self._table.part_of(chunk)
        if isinstance(part, TextInit | ReasoningInit):
            part_id = str(chunk.path[0])
            before = b"" if part_id in self._open else self._open_text(part_id, part.type)
            return before + _event(type=f"{part.type}-delta", id=part_id, delta=chunk.text_delta)
        if not isinstance(part, ToolCallInit):
            raise UnsupportedChunk(f"Unsupported part type for text-delta: {part.type}")
        texts = self._args.get(part.tool_call_id)
        if texts is None:
            return b""
        texts.append(delta_text(chunk))
        return _event(type="tool-input-delta", toolCallId=part.tool_call_id, inputTextDelta=chunk.text_delta)

    def _part_finish(self, chunk: PartFinishChunk) -> bytes:
        part = self._table.part_of(chunk)
        part_id = str(chunk.path[0])
        if part_id in self._open:
            return _event(type=f"{self._open.pop(part_id)}-end", id=part_id)
        return self._input(part) if isinstance(part, ToolCallInit) else b""

    def _args_finish(self, chunk: ToolCallArgsTextFinishChunk) -> bytes:
        part = self._table.part_of(chunk)
        return self._input(part) if isinstance(part, ToolCallInit) else b""

    def _input(self, part: ToolCallInit) -> bytes:
        """The whole input, once: when the arguments end, or when the output comes first."""
        texts = self._args.pop(part.tool_call_id, None)
        if texts is None:
            return b""
        text = "".join(texts) or "{}"
        call = {"toolCallId": part.tool_call_id, "toolName": part.tool_name}
        try:
            return _event(type="tool-input-available", **call, input=parse(text))
        except (InvalidJson, JsonTooDeep) as error:
            return _event(type="tool-input-error", **call, input=text, errorText=error.message)

    def _result(self, chunk: ResultChunk) -> bytes:
        part = self._table.part_of(chunk)
        if not isinstance(part, ToolCallInit):
            raise UnsupportedChunk(f"Result chunk on non-tool-call part not supported: {part.type}")
        before = self._input(part)
        result = None if chunk.result is UNDEFINED else chunk.result
        if not chunk.is_error:
            return before + _event(type="tool-output-available", toolCallId=part.tool_call_id, output=result)
        text = result if isinstance(result, str) else stringify(result)
        return before + _event(type="tool-output-error", toolCallId=part.tool_call_id, errorText=text)

    def _error(self, chunk: ErrorChunk) -> bytes:
        if chunk.severity in ("warning", "info"):
            value = {"error": chunk.error, "code": chunk.code, "severity": chunk.severity}
            return _event(type="data-error", data=value, transient=True)
        return _event(type="error", errorText=chunk.error if isinstance(chunk.error, str) else stringify(chunk.error))

    def _data(self, chunk: DataChunk) -> bytes:
        """An item that names itself goes under its name, as reading makes them; another one under ``data``."""
        if not isinstance(chunk.data, list):
            raise UnsupportedChunk("A data chunk needs data, which is an array")
        events = []
        for item in chunk.data:
            named = isinstance(item, dict) and item.keys() == {"name", "data"} and isinstance(item["name"], str)
            name, value = (item["name"], item["data"]) if named else ("data", item)
            events.append(_event(type=f"data-{name}", data=value))
        return b"".join(events)

    def _open_text(self, part_id: str, kind: str) -> bytes:
        self._open[part_id] = kind
        return _event(type=f"{kind}-start", id=part_id)

    def _close_texts(self) -> bytes:
        ends = [_event(type=f"{kind}-end", id=part_id) for part_id, kind in self._open.items()]
        self._open.clear()
        return b"".join(ends)
