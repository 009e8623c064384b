"""Bytes to lines, however they are cut.

Theory: a line ends at LF, CRLF or (from 0.3.44 on) a lone CR, and nowhere else: U+2028 and form feed are text.
A CR ends its line at once; an LF right after it, perhaps in the next piece, belongs to it.

Rules: the text is decoded as TextDecoder does (one leading BOM dropped, bad UTF-8 becomes U+FFFD); the work is linear
in the bytes, whatever the pieces; a line longer than ``max_line`` bytes (of UTF-8) is refused, so that a sender who
never ends one costs no more than that. The lines before it are given first, and the next call raises.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

from tailrace.wire.errors import LineTooLong

MAX_LINE: Final = 16 * 1024 * 1024
"""The longest line that a decoder takes unless it is told otherwise, in bytes."""


def size(text: str) -> int:
    """The bytes of ``text`` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class TextDecoder:
    """UTF-8 to text in pieces, as the web's TextDecoder in its default mode."""

    __slots__ = ("_decoder", "_started")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False

    def feed(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        if b"\xed\xa0" <= self._decoder.getstate()[0] < b"\xee":
            # Python waits for the third byte of an encoded surrogate; the web knows already that there is no such thing
            self._decoder.reset()
            text += "\ufffd\ufffd"
        return self._begin(text)

    def close(self) -> str:
        """What an unfinished character at the end becomes."""
        return self._begin(self._decoder.decode(b"", final=True))

    def _begin(self, text: str) -> str:
        if text and not self._started:
            self._started = True
            return text.removeprefix("\ufeff")
        return text


class LineDecoder:
    """Text to lines. With ``lone_cr`` a CR alone ends a line; without, only LF does, and a CR before it is dropped."""

    __slots__ = ("_after_cr", "_error", "_lone_cr", "_pending", "_pending_size", "_split", "max_line")

    def __init__(self, *, lone_cr: bool = True, max_line: int = MAX_LINE) -> None:
        self._lone_cr = lone_cr
        self._split = re.compile(r"\r\n|\r|\n").split if lone_cr else re.compile(r"\n").split
        self._error: LineTooLong | None = None
        self._pending: list[str] = []
        self._pending_size = 0
        self._after_cr = False
        self.max_line = max_line

    def feed(self, text: str) -> list[str]:
        """The lines that ``text`` completes. Raises LineTooLong."""
        if self._error is not None:
            raise self._error
        if not text:
            return []
        if self._lone_cr:
            if self._after_cr and text[0] == "\n":
                text = text[1:]
            self._after_cr = text.endswith("\r")
        in_bounds = self._pending_size + 4 * len(text) <= self.max_line  # four bytes a character at most
        lines = self._split(text)
        rest = lines.pop()
        if lines and self._pending:
            lines[0] = "".join([*self._pending, lines[0]])
            self._pending = []
            self._pending_size = 0
        if rest:
            self._pending.append(rest)
            self._pending_size += size(rest)
        if not in_bounds:
            lines = self._checked(lines)
        return lines if self._lone_cr else [line.removesuffix("\r") for line in lines]

    def _checked(self, lines: list[str]) -> list[str]:
        """The lines before one that is too long. Raises LineTooLong where there are none."""
        long = next((at for at, line in enumerate(lines) if size(line) > self.max_line), None)
        if long is not None or self._pending_size > self.max_line:
            self._error = LineTooLong(f"A line is longer than {self.max_line} bytes")
            if not lines[:long]:
                raise self._error
        return lines[:long]

    def close(self) -> str:
        """The text after the last line's end, which is no line. Raises LineTooLong."""
        if self._error is not None:
            raise self._error
        rest = "".join(self._pending)
        self._pending = []
        self._pending_size = 0
        return rest
