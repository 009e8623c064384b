"""Whether two outcomes of one job agree, and if not, where.

What is exact: bytes, chunks with their key order, messages, snapshots, the piece at which an error comes, and an
error's words unless a JavaScript engine chose them. What cannot be: where one line makes several chunks, upstream's
event loop mixes those of different parts, so decoded chunks are compared part by part; and an error overtakes the
chunks of its own piece, so that only those of the pieces before it have to be there.
"""

from __future__ import annotations

import json
import re
from typing import Any

Outcome = dict[str, Any]
ENGINE_WORDS = re.compile(
    r"Cannot (read|destructure|convert|set|use 'in')|is not (iterable|a function|an Object|valid JSON|defined)|"
    r"Unexpected|Expected .* JSON|Bad |Unterminated|No number after|Exponent part|JSON at position|"
    r"Invalid array length|must be of type|undefined|circular"
)


def agree(job: Outcome, ours: Outcome, theirs: Outcome) -> str | None:
    """None, or the first thing that differs, as a word and what both have."""
    if theirs.get("hung") or "threw" in theirs:
        return f"upstream: {theirs}"
    return _COMPARE[job["do"]](ours, theirs)


def by_part(chunks: list[str]) -> dict[str, list[str]]:
    """The chunks of each part, those that open parts, and those of the message."""
    parts: dict[str, list[str]] = {}
    for text in chunks:
        chunk = json.loads(text) if text != "undefined" else None
        if not isinstance(chunk, dict):
            key = "none"
        elif chunk.get("type") == "part-start":
            key = "starts"
        else:
            key = str(chunk.get("path", []))
        parts.setdefault(key, []).append(text)
    return parts


def same_error(ours: Outcome | None, theirs: Outcome | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return ours["message"] == theirs["message"] or worded_by_the_engine(theirs)


def worded_by_the_engine(error: Outcome) -> bool:
    return error["name"] in ("TypeError", "SyntaxError", "RangeError", "ReferenceError") and bool(
        ENGINE_WORDS.search(error["message"])
    )


def _program(ours: Outcome, theirs: Outcome) -> str | None:
    if not same_error(ours["error"], theirs["error"]):
        return f"error: {ours['error']} / {theirs['error']}"
    if not theirs["ended"]:
        return "ended: upstream waits"
    if theirs["error"] is not None:  # what was on its way is lost
        return None if ours["chunks"][: len(theirs["chunks"])] == theirs["chunks"] else first(ours, theirs, "chunks")
    return first(ours, theirs, "chunks")


def first(ours: Outcome, theirs: Outcome, key: str) -> str | None:
    mine, other = ours[key], theirs[key]
    if mine == other:
        return None
    for number, (one, two) in enumerate(zip(mine, other, strict=False)):
        if one != two:
            return f"{key}[{number}]: {one} / {two}"
    return f"{key}: {mine[len(other) :]} / {other[len(mine) :]}"


def _encode(ours: Outcome, theirs: Outcome) -> str | None:
    if not same_error(ours["error"], theirs["error"]) or ours["at"] != theirs["at"]:
        return f"error: {ours['error']} at {ours['at']} / {theirs['error']} at {theirs['at']}"
    return None if ours["b64"] == theirs["b64"] else f"bytes: {ours['b64']} / {theirs['b64']}"


def _accumulate(ours: Outcome, theirs: Outcome) -> str | None:
    if not same_error(ours["failed"], theirs["failed"]):
        return f"failed: {ours['failed']} / {theirs['failed']}"
    return first(ours, theirs, "messages")


def _decode(ours: Outcome, theirs: Outcome) -> str | None:
    if not same_error(ours["error"], theirs["error"]) or ours["at"] != theirs["at"]:
        return f"error: {ours['error']} at {ours['at']} / {theirs['error']} at {theirs['at']}"
    return chunks_differ(ours, theirs)


def chunks_differ(ours: Outcome, theirs: Outcome) -> str | None:
    mine, other = by_part(ours["chunks"]), by_part(theirs["chunks"])
    if theirs["error"] is None and ours["error"] is None:
        return None if mine == other else f"chunks: {mine} / {other}"
    if any(mine.get(key, [])[: len(chunks)] != chunks for key, chunks in other.items()):
        return f"chunks before the error: {mine} / {other}"
    for key, chunks in by_part(ours["chunks"][: ours["before"]]).items():
        if other.get(key, [])[: len(chunks)] != chunks:
            return f"chunks of the pieces before the error: {mine} / {other}"
    return None


def _object(ours: Outcome, theirs: Outcome) -> str | None:
    if not same_error(ours["error"], theirs["error"]):
        return f"error: {ours['error']} / {theirs['error']}"
    return first(ours, theirs, "snapshots") or first(ours, theirs, "b64")


def _value(ours: Outcome, theirs: Outcome) -> str | None:
    for key in ("value", "state", "path", "states"):
        if ours.get(key) != theirs.get(key):
            return f"{key}: {ours.get(key)} / {theirs.get(key)}"
    return None


_COMPARE = {
    "program": _program,
    "encode": _encode,
    "accumulate": _accumulate,
    "decode": _decode,
    "object": _object,
    "partial": _value,
    "json": _value,
}
