"""How a stream's entries become a body: as they are, or as SSE frames. Pure.

SSE frames:

- One event an entry; ``id:`` is the cursor after it, so `EventSource` resumes by itself.
- An event without a name carries text: its data is the chunk. An event named ``base64`` carries the chunk in base64.
  Text is used where the stream's content type is text and the chunk survives it: valid UTF-8 without CR. A chunk that
  is cut inside a character, or not text at all, goes as ``base64``; so decoding by name gives the exact bytes always.
- The last event is ``end`` (the stream is done), or ``error`` with ``code``, ``message``, ``hint`` and ``cursor``.
- Comments keep a silent connection open. They are never stored and carry no id.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import deque
from functools import lru_cache
from typing import Protocol

from tailrace import decide
from tailrace.contracts import Reader
from tailrace.errors import TailraceError
from tailrace.model import Ending, Entry, Mark

KEEPALIVE = b": keepalive\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"
MAX_FRAMES = 64 * 1024
MAX_ENTRIES = 1024  # taken at once: a million entries are not made into objects before the first is sent
_SMALL = 4 * 1024
_TEXTUAL = frozenset(
    {"application/json", "application/x-ndjson", "application/jsonl", "application/javascript", "application/xml"}
)


def is_text(content_type: str | None) -> bool:
    """Whether content of this type is text in UTF-8."""
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.strip().lower()
    charset = parameters.lower().partition("charset=")[2].strip().strip('"')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        return False
    return kind.startswith("text/") or kind in _TEXTUAL or kind.endswith(("+json", "+xml"))


class Framing(Protocol):
    """What a streaming response asks of the format of its body."""

    @property
    def raw(self) -> bool:
        """Whether the body is the stored bytes as they are."""

    @property
    def keepalive(self) -> bytes | None:
        """What may be sent in silence, None where nothing may."""

    def take(self, reader: Reader) -> bytes:
        """The body of everything since the last take. Raises `SlowReader`."""

    def end(self, reader: Reader, ending: Ending) -> bytes | None:
        """The last part of the body at this ending, None where the body cannot say it and must be cut."""

    def stop(self, reader: Reader, error: TailraceError) -> bytes | None:
        """The last part of the body where the gateway stops before the ending, or None as above."""


class Raw:
    """The stored bytes, unchanged. Only a ``done`` stream has a clean end."""

    raw = True
    keepalive = None

    def take(self, reader: Reader) -> bytes:
        return reader.take_bytes()

    def end(self, reader: Reader, ending: Ending) -> bytes | None:
        return b"" if decide.ending_error(ending) is None else None

    def stop(self, reader: Reader, error: TailraceError) -> bytes | None:
        return None


class Sse:
    """SSE frames. ``text``: whether the content is text. A take gives about 64 KiB, so that a long history neither
    delays its own first event nor holds up the process; what else it took waits here."""

    raw = False
    keepalive = KEEPALIVE

    def __init__(self, text: bool) -> None:
        self.text = text
        self._waiting: deque[Entry] = deque()
        self._last: Entry | None = None

    def take(self, reader: Reader) -> bytes:
        waiting = self._waiting
        if not waiting:
            waiting.extend(self._entries(reader))
        frames, size = [], 0
        while waiting and size < MAX_FRAMES:
            self._last = waiting.popleft()
            frames.append(frame(self._last, self.text))
            size += len(frames[-1])
        return b"".join(frames)

    def _entries(self, reader: Reader) -> list[Entry]:
        taken = reader.take(MAX_ENTRIES)
        while not taken and self._last is None:  # nothing is left, or an offset further on skipped all of them
            before = reader.cursor
            taken = reader.take(MAX_ENTRIES)
            if reader.cursor == before:
                break
        return taken

    def _cursor(self, reader: Reader) -> str:
        return self._last.cursor if self._waiting and self._last is not None else reader.cursor

    def end(self, reader: Reader, ending: Ending) -> bytes:
        error = decide.ending_error(ending)
        return end_frame(self._cursor(reader)) if error is None else error_frame(error, self._cursor(reader))

    def stop(self, reader: Reader, error: TailraceError) -> bytes:
        return b"retry: 1000\n" + error_frame(error, self._cursor(reader))


def frame(entry: Entry, text: bool) -> bytes:
    """The frame of an entry. Of small chunks it is remembered: many readers want it at about the same moment."""
    if len(entry.chunk) <= _SMALL:
        return _remembered(entry.stream_id, entry.mark, entry.chunk, text)
    return _frame(entry.stream_id, entry.mark, entry.chunk, text)


def _frame(stream_id: str, mark: Mark, chunk: bytes, text: bool) -> bytes:
    return b"id: %b\n%b\n" % (mark.cursor(stream_id).encode(), _data(chunk, text))


_remembered = lru_cache(maxsize=4096)(_frame)


def _data(chunk: bytes, text: bool) -> bytes:
    if text and b"\r" not in chunk and _is_utf8(chunk):
        return b"data: " + chunk.replace(b"\n", b"\ndata: ") + b"\n"
    return b"event: base64\ndata: " + b64encode(chunk) + b"\n"


def _is_utf8(chunk: bytes) -> bool:
    try:
        chunk.decode()
    except UnicodeDecodeError:
        return False
    return True


def end_frame(cursor: str) -> bytes:
    return b"event: end\ndata: %b\n\n" % json.dumps({"cursor": cursor}).encode()


def error_frame(error: TailraceError, cursor: str) -> bytes:
    told = {"code": error.code, "message": error.message, "hint": error.hint, "cursor": cursor}
    return b"event: error\ndata: %b\n\n" % json.dumps(told).encode()
