"""A tool call as it is written: its arguments' text, then its response.

Rules:

- Arguments that got no text are ``{}``.
- 0.3.44: the response settles the call, which closes; only the first one counts.
- 0.3.15: the response ends the arguments, and the call stays open until it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tailrace.message.chunks import (
    UNDEFINED,
    InvalidChunk,
    Json,
    Path,
    ResultChunk,
    TextDeltaChunk,
    ToolCallArgsTextFinishChunk,
    Undefined,
)
from tailrace.message.dialect import LEGACY, NEWEST, Dialect
from tailrace.message.text import Emit, TextWriter, finish_part

NO_RESULT: Final = "<no result>"
"""What stands for the result of a tool that gave none."""


@dataclass(frozen=True, slots=True)
class ToolResponse:
    """What a tool answers: the result, and apart from it what only the interface or only the model shall see."""

    result: Json = UNDEFINED
    artifact: Json = UNDEFINED
    is_error: bool = False
    model_content: list[Json] | Undefined = UNDEFINED
    messages: Json = UNDEFINED

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Self:
        """From an object with the keys result, artifact, isError, modelContent and messages."""
        return cls(
            value.get("result", UNDEFINED),
            value.get("artifact", UNDEFINED),
            value.get("isError") or False,
            value.get("modelContent", UNDEFINED),
            value.get("messages", UNDEFINED),
        )


class ToolCallWriter:
    """Writes one tool call. A context manager: leaving it closes the call. ``args`` takes the arguments' text."""

    __slots__ = ("_dialect", "_emit", "_on_close", "_path", "_written", "args", "closed", "tool_call_id")

    def __init__(
        self,
        emit: Emit,
        path: Path,
        tool_call_id: str,
        *,
        dialect: Dialect = NEWEST,
        strict: bool = True,
        on_close: Callable[[], None],
    ) -> None:
        self._emit = emit
        self._path = path
        self._dialect = dialect
        self._on_close = on_close
        self._written = False
        self.tool_call_id = tool_call_id
        self.args = TextWriter(self._emit_args, path, dialect=dialect, strict=strict, on_close=self._args_closed)
        self.closed = False

    def set_response(self, response: ToolResponse | Mapping[str, Json]) -> None:
        """The tool's response, or its JSON. One that comes when the call is closed is ignored. Raises InvalidChunk."""
        if self.closed:
            return
        if not isinstance(response, ToolResponse | Mapping):
            raise InvalidChunk(f"No response: {type(response).__name__}; a plain result is ToolResponse(result)")
        answer = response if isinstance(response, ToolResponse) else ToolResponse.from_json(response)
        result = answer.result
        if self._dialect == LEGACY:
            self.args.close()
        elif result is UNDEFINED:
            result = NO_RESULT
        self._emit(
            ResultChunk(result, answer.is_error, answer.artifact, answer.model_content, answer.messages, self._path)
        )
        if self._dialect != LEGACY:
            self.close()

    def close(self) -> None:
        """Ends the call, with or without a response; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self.args.close()
        finish_part(self._emit, self._path)
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def _emit_args(self, chunk: Any) -> None:
        self._written = True
        self._emit(chunk)

    def _args_closed(self) -> None:
        if not self._written:
            empty = TextDeltaChunk("{}", self._path)
            empty.source = {"type": "text-delta", "textDelta": "{}", "path": []}  # the reference's key order here
            self._emit(empty)
        self._emit(ToolCallArgsTextFinishChunk(self._path))
