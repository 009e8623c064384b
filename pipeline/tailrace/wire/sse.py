"""Server-sent events: the frames of the assistant transport and of the UI message stream.

Theory: an event is some ``field: value`` lines and a blank one. Lines that begin with a colon are comments. Several
``data`` lines make one text, joined by LF; a block without data is no event.

Rules: 0.3.44 reads as the standard says (a lone CR ends a line, one space after the colon is dropped, a second BOM too,
a block that the stream cuts off is dropped); 0.3.15 differs, and a decoder made with ``legacy=True`` differs in the
same way (all white space after the colon is dropped, the block at the end counts, text after the last line is wrong).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tailrace.wire.codec import BaseDecoder
from tailrace.wire.errors import LineTooLong, StreamCut, shortened
from tailrace.wire.lines import MAX_LINE, LineDecoder, TextDecoder, size

HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "Connection": "keep-alive"}
)

DONE: Final = "[DONE]"
"""The data of the event that ends a stream."""

_JS_SPACE: Final = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def event_bytes(data: bytes) -> bytes:
    """The frame of one event without a name; ``data`` holds no line end (JSON never does)."""
    return b"data: " + data + b"\n\n"


@dataclass(slots=True)
class Event:
    """One event: its name (``message`` unless the sender says otherwise) and its data."""

    event: str
    data: str


class SseDecoder(BaseDecoder[Event]):
    """Bytes to events. ``max_line`` bounds a line and the data of one event, in bytes."""

    __slots__ = ("_data", "_data_size", "_legacy", "_lines", "_name", "_started", "_text", "max_line")

    def __init__(self, *, legacy: bool = False, max_line: int = MAX_LINE) -> None:
        super().__init__()
        self._legacy = legacy
        self._text = TextDecoder()
        self._lines = LineDecoder(lone_cr=not legacy, max_line=max_line)
        self._started = legacy
        self._data: list[str] = []
        self._data_size = 0
        self._name = ""
        self.max_line = max_line

    def _feed(self, data: bytes) -> None:
        self._read(self._text.feed(data))

    def _close(self) -> None:
        """The end of the bytes completes nothing, or with ``legacy`` the last block; StreamCut within a line."""
        self._read(self._text.close())
        rest = self._lines.close()
        if self._legacy:
            if rest:
                raise incomplete_line(rest)
            self._dispatch()

    def _read(self, text: str) -> None:
        if text and not self._started:
            self._started = True
            text = text.removeprefix("\ufeff")
        for line in self._lines.feed(text):
            if line:
                self._field(line)
            else:
                self._dispatch()

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.lstrip(_JS_SPACE) if self._legacy else value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._data_size += size(value) + 1
            if self._data_size > self.max_line + 1:
                raise LineTooLong(f"An event's data is longer than {self.max_line} bytes")
        elif name == "event":
            self._name = value

    def _dispatch(self) -> None:
        if self._data:
            self._out.append(Event(self._name or "message", "\n".join(self._data)))
        self._data = []
        self._data_size = 0
        self._name = ""


def incomplete_line(rest: str) -> StreamCut:
    """The error for bytes that end within a line; a very long one is shortened."""
    return StreamCut(f'Stream ended with an incomplete line: "{shortened(rest)}"')
