"""What Tailrace promises instead of upstream's outcome: of programs, of chunks, of states. See `differences`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from programs import BOTH, RAW

from tailrace.wire.jsjson import parse, stringify

Job = dict[str, Any]
Outcome = dict[str, Any]
Ask = Callable[[Job], Outcome]
"""Runs another job on upstream."""


def program_order(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    chunks = [parse(text) for text in theirs["chunks"]]
    index = -1
    out = list(theirs["chunks"])
    for chunk in chunks:
        if chunk["type"] != "part-start" or chunk["path"]:
            continue
        index += 1
        part = chunk["part"]
        if part.get("toolName") == BOTH and part.get("parentId") != RAW:
            own = (at for at, other in enumerate(chunks) if other["path"] == [index] and other.get("from") != RAW)
            places = [at for at in own if chunks[at]["type"] in _BOTH_ORDER][: len(_BOTH_ORDER)]
            order = sorted(places, key=lambda at: _BOTH_ORDER.index(chunks[at]["type"]))
            for place, source in zip(places, order, strict=True):
                out[place] = theirs["chunks"][source]
    return {**theirs, "chunks": out}


_BOTH_ORDER: Final = ("text-delta", "tool-call-args-text-finish", "result")  # the part's first three, written at once


def left_open(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    """What closes each open part, at the places where Tailrace has it (or at the end, if it does not)."""
    failed = theirs["error"] is not None  # then only what closed before the error
    if theirs["ended"] and not failed:
        return theirs
    missing = _closers([parse(text) for text in theirs["chunks"]])
    theirs_left = list(theirs["chunks"])
    out = []
    for text in ours["chunks"]:
        path = str(parse(text).get("path"))
        if theirs_left and text == theirs_left[0]:
            out.append(theirs_left.pop(0))
        elif missing.get(path, [None])[0] == text:
            out.append(missing[path].pop(0))
            if not missing[path]:
                del missing[path]
        elif failed and not theirs_left:
            break
    rest = [] if failed else [text for texts in missing.values() for text in texts]
    return {**theirs, "chunks": [*out, *theirs_left, *rest], "ended": True}


def _closers(chunks: list[Any]) -> dict[str, list[str]]:
    index = -1
    open_parts: dict[str, Any] = {}
    for chunk in chunks:
        path = str(chunk["path"])
        if chunk.get("from") == RAW:
            continue
        if chunk["type"] == "part-start" and not chunk["path"]:
            index += 1
            part = chunk["part"]
            if part.get("parentId") != RAW:
                open_parts[str([index])] = {
                    "tool": part["type"] == "tool-call",
                    "args": True,
                    "empty": True,
                    "at": [index],
                }
        elif path in open_parts:
            if chunk["type"] == "part-finish":
                del open_parts[path]
            elif chunk["type"] == "tool-call-args-text-finish":
                open_parts[path]["args"] = False
            elif chunk["type"] == "text-delta":
                open_parts[path]["empty"] = False
    return {path: _closing(**state) for path, state in open_parts.items()}


def _closing(tool: bool, args: bool, empty: bool, at: list[int]) -> list[str]:
    chunks: list[Any] = []
    if tool and args:
        if empty:
            chunks.append({"type": "text-delta", "textDelta": "{}", "path": at})
        chunks.append({"type": "tool-call-args-text-finish", "path": at})
    chunks.append({"type": "part-finish", "path": at})
    return [stringify(chunk) for chunk in chunks]


def no_part(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    parts = 0
    for number, chunk in enumerate(job["chunks"]):
        if chunk["type"] == "part-start":
            parts += 1
        elif chunk["type"] in _AT_A_PART and parts and len(chunk["path"]) == 1 and chunk["path"][0] >= parts:
            if theirs["failed"] is not None and number >= len(theirs["messages"]):
                return theirs  # it fails, here or before
            error = {"name": "InvalidUpdate", "message": f"No part at path [{chunk['path'][0]}]"}
            return {**theirs, "messages": theirs["messages"][:number], "failed": error}
    return theirs


_AT_A_PART: Final = ("text-delta", "part-finish", "tool-call-args-text-finish", "result")


def unsafe_update(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    number = len(ours["messages"])
    if number >= len(job["chunks"]) or job["chunks"][number]["type"] != "update-state":
        return theirs
    failed = unsafe(
        ours["failed"], theirs["failed"], number, len(theirs["messages"]), job["chunks"][number]["operations"]
    )
    return {**theirs, "messages": theirs["messages"][:number], "failed": ours["failed"]} if failed else theirs


def unsafe_frame(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    number = len(ours["snapshots"])
    if number >= len(job["frames"]):
        return theirs
    if not unsafe(ours["error"], theirs["error"], number, len(theirs["snapshots"]), job["frames"][number]):
        return theirs
    return {**theirs, "snapshots": theirs["snapshots"][:number], "error": ours["error"], "b64": ours["b64"]}


def unsafe(ours: Outcome | None, theirs: Outcome | None, at: int, their_at: int, operations: list[Any]) -> bool:
    """Whether we refuse a segment of one of these operations, and upstream went on past that segment."""
    match = re.fullmatch(
        r"Unsafe gorp path segment: (__proto__|constructor|prototype)", (ours or {}).get("message", "")
    )
    paths = [operation.get("path", []) for operation in operations]
    refused = next((number for number, path in enumerate(paths) if match and match[1] in path), None)
    if match is None or refused is None or at > their_at:
        return False
    if theirs is None or their_at > at:
        return True
    stopped = re.search(r"^(?:Invalid path:|Expected array index at) \[(.*)\]$", theirs["message"])
    rest = stopped[1].split(", ") if stopped else []
    path = paths[refused]
    deeper = path[len(path) - len(rest) :] == rest and len(path) - len(rest) > path.index(match[1])
    return deeper or any(later[len(later) - len(rest) :] == rest for later in paths[refused + 1 :])
