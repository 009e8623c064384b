"""Where a request wants to read from, and how: pure.

One position a request: ``cursor``, ``offset`` (with ``incarnation``), or nothing for the beginning. With SSE frames a
``Last-Event-ID`` counts too. An `EventSource` repeats its first URL when it reconnects, so beside a position in the URL
the header is accepted where it names the same place or a later one, and then it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs

from tailrace.gateway.problems import Problem
from tailrace.model import Incarnation, Mark, Offset

_HINT = "Pass one of cursor, or offset with incarnation; nothing reads from the beginning."
_FRAMES = "frame is raw (the default) or sse; pass it once."
_KNOWN = ("cursor", "offset", "incarnation", "frame")
MAX_OFFSET = 2**40 - 1


@dataclass(frozen=True, slots=True)
class Position:
    """``start`` as a store takes it, and whether the answer is SSE frames."""

    start: str | Offset = ""
    sse: bool = False


def parse(stream_id: str, query: str, last_event_id: str | None) -> Position:
    """Read a query string and the ``Last-Event-ID`` header. Raises `Problem` (400) and `InvalidCursor`."""
    values = _values(query)
    frame = values.get("frame", "raw")
    if frame not in ("raw", "sse"):
        raise Problem("invalid-parameter", f"Unknown frame: {frame[:80]!r}", _FRAMES)
    start = _start(values)
    if isinstance(start, str) and start:
        Mark.parse(stream_id, start)
    if frame == "sse" and last_event_id:
        return Position(_resumed(stream_id, start, last_event_id), sse=True)
    return Position(start, frame == "sse")


def _values(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, given in parse_qs(query, keep_blank_values=True).items():
        if name in _KNOWN and len(given) > 1:
            code, hint = ("invalid-parameter", _FRAMES) if name == "frame" else ("invalid-position", _HINT)
            raise Problem(code, f"{name} is given {len(given)} times", hint)
        values[name] = given[0]
    return values


def _start(values: dict[str, str]) -> str | Offset:
    if "cursor" in values and "offset" in values:
        raise Problem("invalid-position", "A cursor and an offset are given", _HINT)
    if "offset" in values:
        return Offset(_offset(values["offset"]), _incarnation(values.get("incarnation")))
    if "incarnation" in values:
        raise Problem("invalid-position", "An incarnation is given without an offset", _HINT)
    return values.get("cursor", "")


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 13 or int(text) > MAX_OFFSET:
        hint = f"offset is a whole number of bytes, from 0 to {MAX_OFFSET}."
        raise Problem("invalid-position", f"Not an offset: {text[:80]!r}", hint)
    return int(text)


def _incarnation(text: str | None) -> Incarnation | None:
    if text is None:
        return None
    try:
        return Incarnation.parse(text)
    except ValueError:
        hint = "Pass the value of the Tailrace-Incarnation header."
        raise Problem("invalid-position", f"Not an incarnation: {text[:80]!r}", hint) from None


def _resumed(stream_id: str, start: str | Offset, last_event_id: str) -> str:
    reached = Mark.parse(stream_id, last_event_id)
    if isinstance(start, Offset):
        behind = reached.bytes >= start.bytes and start.incarnation in (None, reached.incarnation)
    else:
        asked = Mark.parse(stream_id, start) if start else None
        behind = asked is None or (asked.incarnation == reached.incarnation and reached >= asked)
    if not behind:
        raise Problem("invalid-position", "Last-Event-ID and the query name different positions", _HINT)
    return last_event_id
