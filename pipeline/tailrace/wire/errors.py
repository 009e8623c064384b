"""What can be wrong with bytes that should be an answer, or with an answer that should become bytes.

Where upstream words an error, these words are the same, so that programs which compare them go on working.

::

    TailraceError
    └── WireError                    wire-error
        ├── InvalidJson              invalid-json           a text that JSON.parse refuses
        ├── JsonTooDeep              json-too-deep          nested deeper than MAX_DEPTH
        ├── NotJson                  not-json               a Python value that JSON cannot say
        ├── LineTooLong              line-too-long          a line or event longer than max_line (a LimitExceeded too)
        ├── InvalidStream            invalid-stream         bytes that are not of this format
        ├── StreamCut                stream-cut             the bytes end before the format's own end
        └── UnsupportedChunk         unsupported-chunk      a chunk that this format cannot carry
"""

from __future__ import annotations

from typing import Final

from tailrace.errors import LimitExceeded, TailraceError

QUOTED: Final = 1000
"""The most characters of a sender's bytes that a message quotes."""


def shortened(text: str, most: int = QUOTED) -> str:
    """The text, or its beginning and ``…``."""
    return text if len(text) <= most else text[:most] + "…"


class WireError(TailraceError):
    """``message`` is shortened: it may quote what a sender wrote."""

    code = "wire-error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(shortened(message, QUOTED + 100), code=code, hint=hint)


class InvalidJson(WireError):
    code = "invalid-json"
    hint = "Send what JSON.stringify writes."


class JsonTooDeep(WireError):
    code = "json-too-deep"
    hint = "Flatten the value."


class NotJson(WireError):
    code = "not-json"
    hint = "Pass None, bool, int, float, str, and lists and dicts with str keys of these."


class LineTooLong(WireError, LimitExceeded):
    code = "line-too-long"
    setting = "TAILRACE_MAX_LINE_BYTES"
    hint = "Send shorter lines, or raise TAILRACE_MAX_LINE_BYTES (a decoder's max_line)."


class InvalidStream(WireError):
    code = "invalid-stream"
    hint = "Check that the bytes are of this format and complete."


class StreamCut(WireError):
    code = "stream-cut"
    hint = "The sender stopped before the end; what was decoded is right. Resume the stream."


class UnsupportedChunk(WireError):
    code = "unsupported-chunk"
    hint = "Leave such chunks out, or choose a format that carries them."
