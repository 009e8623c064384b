"""Plain text: the text of the answer and nothing else.

Theory: for a terminal, a log, or a reader who wants only words. Decoding gives one text part, a delta a piece of bytes.

Rules: 0.3.44 (the default) writes text parts only and skips every other chunk; 0.3.15 writes each text delta, reasoning
and tool arguments too, and refuses the chunks that it cannot carry. The text is UTF-8: half of a surrogate pair waits
for its other half in the next delta, and becomes U+FFFD if that does not come.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tailrace.message.chunks import (
    AnnotationsChunk,
    Chunk,
    DataChunk,
    PartFinishChunk,
    PartStartChunk,
    ResultChunk,
    TextDeltaChunk,
    TextInit,
    ToolCallArgsTextFinishChunk,
    UpdateStateChunk,
)
from tailrace.wire.codec import BaseDecoder, PartTable, delta_text
from tailrace.wire.errors import UnsupportedChunk
from tailrace.wire.lines import MAX_LINE, TextDecoder
from tailrace.wire.parts import PartWriter

HEADERS: Final[Mapping[str, str]] = MappingProxyType({"Content-Type": "text/plain; charset=utf-8"})
LEGACY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {"Content-Type": "text/plain; charset=utf-8", "x-vercel-ai-data-stream": "v1"}
)

_REFUSED: Final = (ToolCallArgsTextFinishChunk, DataChunk, AnnotationsChunk, ResultChunk, UpdateStateChunk)


class TextEncoder:
    """Text to UTF-8 in pieces, as the web's TextEncoderStream: a pair cut in two is one character."""

    __slots__ = ("_high",)

    def __init__(self) -> None:
        self._high = ""

    def encode(self, text: str) -> bytes:
        if not self._high:
            try:
                return text.encode()
            except UnicodeEncodeError:
                pass
        if not text:
            return b""
        text = self._high + text
        self._high = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return _replaced(text[:-1] if self._high else text)

    def finish(self) -> bytes:
        rest, self._high = self._high, ""
        return _replaced(rest)


def _replaced(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


class PlainTextEncoder:
    """Chunks to text. ``legacy`` writes as 0.3.15 does."""

    def __init__(self, *, legacy: bool = False) -> None:
        self.headers = LEGACY_HEADERS if legacy else HEADERS
        self._legacy = legacy
        self._table = PartTable()
        self._text = TextEncoder()

    def encode(self, chunk: Chunk) -> bytes:
        """The text of the chunk, perhaps none. Raises UnsupportedChunk."""
        if self._legacy:
            if isinstance(chunk, _REFUSED):
                raise UnsupportedChunk(f"unsupported chunk type: {chunk.type}")
            return self._text.encode(delta_text(chunk)) if isinstance(chunk, TextDeltaChunk) else b""
        if isinstance(chunk, TextDeltaChunk):
            part = self._table.part_of(chunk)
            return self._text.encode(delta_text(chunk)) if isinstance(part, TextInit) else b""
        if isinstance(chunk, PartStartChunk):
            self._table.start(chunk)
        elif isinstance(chunk, ResultChunk | PartFinishChunk | ToolCallArgsTextFinishChunk):
            self._table.part_of(chunk)
        return b""

    def finish(self) -> bytes:
        return self._text.finish()


class PlainTextDecoder(BaseDecoder[Chunk]):
    """Text to one text part; each piece that holds text is a delta. Nothing waits for a line, so none is too long."""

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        super().__init__()
        self._text = TextDecoder()
        self._parts = PartWriter(self._out)

    def _feed(self, data: bytes) -> None:
        self._append(self._text.feed(data))

    def _close(self) -> None:
        self._append(self._text.close())
        self._parts.close()

    def _append(self, text: str) -> None:
        if text:
            self._parts.append("text", text)
