"""Opens, feeds and closes parts for the decoders of formats that have no paths.

Theory: such a format says "text", "reasoning", "tool call t"; this keeps the running index and the one text or
reasoning part that further text goes on with, and writes the chunks in the order of the calls.

Rules: a new part closes the open text or reasoning part, never a tool call; a tool call without arguments gets ``{}``;
closing twice is nothing.
"""

from __future__ import annotations

from typing import Final

from tailrace.message.chunks import (
    UNDEFINED,
    Chunk,
    Json,
    PartFinishChunk,
    PartInit,
    PartStartChunk,
    Path,
    ReasoningInit,
    ResultChunk,
    TextDeltaChunk,
    TextInit,
    ToolCallArgsTextFinishChunk,
    ToolCallInit,
    UnknownInit,
    part_from_json,
)

_EMPTY_ARGS: Final = {"type": "text-delta", "textDelta": "{}", "path": []}
"""The key order of the arguments that upstream makes up, which is not that of other text deltas."""


class ToolCall:
    """One tool call that is being written."""

    __slots__ = ("_has_args", "_out", "args_closed", "closed", "path")

    def __init__(self, out: list[Chunk], path: Path) -> None:
        self._out = out
        self.path = path
        self._has_args = False
        self.args_closed = False
        self.closed = False

    def append_args(self, text: str) -> None:
        self._has_args = True
        self._out.append(TextDeltaChunk(text, self.path))

    def close_args(self) -> None:
        if self.args_closed:
            return
        self.args_closed = True
        if not self._has_args:
            empty = TextDeltaChunk("{}", self.path)
            empty.source = _EMPTY_ARGS
            self._out.append(empty)
        self._out.append(ToolCallArgsTextFinishChunk(self.path))

    def respond(self, result: Json, is_error: Json, artifact: Json = UNDEFINED, messages: Json = UNDEFINED) -> None:
        chunk = ResultChunk(result, is_error, artifact, messages=messages, path=self.path)
        self._out.append(chunk)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.close_args()
        self._out.append(PartFinishChunk(self.path))


class PartWriter:
    """Writes parts, one after the other, to ``out``."""

    __slots__ = ("_kind", "_next", "_out", "_parent", "_path")

    def __init__(self, out: list[Chunk]) -> None:
        self._out = out
        self._next = 0
        self._kind = ""  # of the open text or reasoning part
        self._parent: Json = UNDEFINED
        self._path: Path = ()

    def append(self, kind: str, text: str, parent: Json = UNDEFINED) -> None:
        """Adds to the open part if it is of this kind (``text`` or ``reasoning``) and parent, else opens one."""
        if self._kind != kind or (parent is not self._parent and not _same(self._parent, parent)):
            self.open(kind, parent)
        self._out.append(TextDeltaChunk(text, self._path))

    def open(self, kind: str, parent: Json = UNDEFINED, summary: Json = UNDEFINED) -> None:
        """Opens a text or reasoning part that further text goes on with."""
        shown = parent or UNDEFINED
        part = TextInit(shown) if kind == "text" else ReasoningInit(summary, shown)
        path = self._start(part)
        self._kind, self._parent, self._path = kind, parent, path

    def tool_call(self, tool_name: Json, tool_call_id: str, parent: Json = UNDEFINED) -> ToolCall:
        return ToolCall(self._out, self._start(ToolCallInit(tool_name, tool_call_id, parent or UNDEFINED)))

    def whole(self, part: dict[str, Json]) -> None:
        """A part that has all it needs in its start: a source, a file, data."""
        self._out.append(PartFinishChunk(self._start(part_from_json(part))))

    def close(self) -> None:
        """Closes the open text or reasoning part, if there is one."""
        if self._kind:
            self._kind = ""
            self._out.append(PartFinishChunk(self._path))

    def _start(self, part: PartInit | UnknownInit) -> Path:
        self.close()
        self._out.append(PartStartChunk(part))
        path = (self._next,)
        self._next += 1
        return path


def _same(one: Json, other: Json) -> bool:
    """Identity as JavaScript's ``===`` has it for what JSON can hold and a parent id can be."""
    return type(one) is type(other) and bool(one == other)
