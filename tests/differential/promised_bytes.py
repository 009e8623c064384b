"""What Tailrace promises instead of upstream's outcome, where bytes are decoded. See `differences`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any, Final

from compare import worded_by_the_engine
from promised import Ask, Job, Outcome, unsafe

from tailrace.errors import TailraceError
from tailrace.wire.jsjson import parse, stringify


def _cut(job: Job, ours: Outcome, theirs: Outcome) -> Outcome:
    """Upstream's chunks before the piece at which Tailrace stops, and Tailrace's error."""
    if theirs["error"] is not None and theirs["at"] == ours["at"] and worded_by_the_engine(theirs["error"]):
        return theirs  # both stop here
    counts = [0, *theirs["counts"]]
    before = counts[min(ours["at"], len(counts) - 1)]
    return {**theirs, "chunks": theirs["chunks"][:before], "error": ours["error"], "at": ours["at"]}


def _text_before(job: Job, at: int) -> str:
    """The stream's text up to the end of piece ``at``."""
    data = base64.b64decode(job["b64"])
    return data[: [*job["ends"], len(data)][at]].decode("utf-8", "replace").removeprefix("\ufeff")


def _lines(job: Job, at: int) -> list[str]:
    """The whole lines that end in piece ``at``."""
    ends = "\n" if job["version"] == "0.3.15" else r"\r\n|\r|\n"
    lines, before = (re.split(ends, _text_before(job, number)) if number >= 0 else [""] for number in (at, at - 1))
    return [line.removesuffix("\r") for line in lines[len(before) - 1 : -1]]


def _frames(job: Job, at: int) -> list[Any]:
    """The JSON values of the events that end in piece ``at``; a value that is none is left out."""
    ends = "\n" if job["version"] == "0.3.15" else r"\r\n|\r|\n"
    lines = re.split(ends, _text_before(job, at))
    if at < len(job["ends"]):
        lines.pop()
    known = len(re.split(ends, _text_before(job, at - 1))) - 1 if at else 0
    frames, data = [], []
    for number, line in enumerate([*lines, *([""] if at == len(job["ends"]) else [])]):
        line = line.removesuffix("\r")
        if line.startswith("data:"):
            data.append(line[5:].lstrip() if job["version"] == "0.3.15" else line[5:].removeprefix(" "))
        elif line == "data":
            data.append("")
        elif not line:
            if number >= known and data:
                frames.append("\n".join(data))
            data = []
    values = []
    for text in frames:
        try:
            values.append(parse(text))
        except TailraceError as error:
            values.append(error)
    return values


_NO_CHUNK: Final = "An event holds no chunk"
_CHUNK_TYPES: Final = frozenset(
    [
        "part-start",
        "part-finish",
        "tool-call-args-text-finish",
        "text-delta",
        "annotations",
        "data",
        "step-start",
        "step-finish",
        "message-finish",
        "result",
        "error",
        "update-state",
    ]
)


def _is_chunk(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str) or value["type"] not in _CHUNK_TYPES:
        return False
    path = value.get("path", [])
    indices = isinstance(path, list) and all(
        type(index) in (int, float) and index >= 0 and index == int(index) for index in path
    )
    return indices and (value["type"] != "part-start" or isinstance(value.get("part"), dict))


def no_chunk(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    if job["format"] != "assistant-transport":
        return theirs
    for number, text in enumerate(theirs["chunks"]):
        if not _is_chunk(json.loads(text)):
            piece = next((at for at, count in enumerate(theirs["counts"]) if count > number), len(job["ends"]))
            worded = (ours["error"] or {}).get("message", "").startswith(_NO_CHUNK)
            error = ours["error"] if worded else {"name": "InvalidStream", "message": _NO_CHUNK}
            return {**theirs, "chunks": theirs["chunks"][:number], "error": error, "at": piece}
    return theirs


def cut_block(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    if job["format"] != "assistant-transport" or theirs["error"] is None or theirs["at"] != len(job["ends"]):
        return theirs
    if theirs["error"]["message"] != "Stream ended abruptly without receiving [DONE] marker":
        return theirs
    return {**theirs, "chunks": theirs["chunks"][: [0, *theirs["counts"]][-1]]}


def path_filled(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    if job["format"] != "assistant-transport":
        return theirs
    values = [json.loads(text) for text in theirs["chunks"]]
    filled = [
        stringify({**parse(text), "path": []}) if _is_chunk(value) and "path" not in value else text
        for value, text in zip(values, theirs["chunks"], strict=True)
    ]
    return {**theirs, "chunks": filled}


def _text_at(*keys: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _has_path(value: Any) -> bool:
    return isinstance(value, dict) and _is_chunk({"type": "data", "path": value.get("path", [])})


_PAYLOADS: Final[dict[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("0", "g"), _is(str)),
    **dict.fromkeys(("2", "8", "aui-state"), _is(list)),
    **dict.fromkeys(("h", "k", "aui-data", "aui-reasoning-part-start"), _is(dict)),
    **dict.fromkeys(("d", "e", "f"), lambda value: _has_path(value) and "type" not in value),
    **dict.fromkeys(("a", "b", "9"), _text_at("toolCallId")),
    "c": _text_at("toolCallId", "argsTextDelta"),
    "aui-text-delta": _text_at("textDelta"),
    "aui-reasoning-delta": _text_at("reasoningDelta"),
}
_WRONG_PAYLOAD: Final = re.compile(r"The payload of a \S+ frame does not hold|The [def] frame is no ")


def _wrong_payload_line(line: str) -> bool:
    code, _, text = line.partition(":")
    try:
        return code in _PAYLOADS and not _PAYLOADS[code](parse(text))
    except TailraceError:
        return False


def wrong_payload(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    if job["format"] != "data-stream":
        return theirs
    if not job["strict"]:
        return _without_wrong_payloads(job, theirs, ask)
    if ours["error"] is None or not _WRONG_PAYLOAD.match(ours["error"]["message"]):
        return theirs
    if (theirs["at"] is not None and theirs["at"] < ours["at"]) or not any(
        map(_wrong_payload_line, _lines(job, ours["at"]))
    ):
        return theirs
    return _cut(job, ours, theirs)


def _without_wrong_payloads(job: Job, theirs: Outcome, ask: Ask) -> Outcome:
    """What upstream makes of the stream when the lines with a wrong payload are lines that it ignores."""
    segments = re.split(rb"(\r\n|\r|\n)", base64.b64decode(job["b64"]))
    last = len(segments) - 1  # what follows the last line's end is no line
    replaced = [
        _IGNORED if at < last and _wrong_payload_line(line.decode("utf-8", "replace").removeprefix("\ufeff")) else line
        for at, line in enumerate(segments)
    ]
    if replaced == segments:
        return theirs
    ends, old, new = [], 0, 0
    for line, other in zip(segments, replaced, strict=True):  # a piece ends in the same line as before
        ends += [new + min(end - old, len(other)) for end in job["ends"] if old < end <= old + len(line)]
        old, new = old + len(line), new + len(other)
    return ask({**job, "b64": base64.b64encode(b"".join(replaced)).decode(), "ends": ends})


_IGNORED: Final = b"i:0"


def wrong_frame(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    """The same for events: of the UI message stream, and the operations of an object stream."""
    message = (ours["error"] or {}).get("message", "")
    if job["format"] == "object-stream":
        worded = message in (
            "A frame of an object stream is an array of operations",
            "An operation's path is a list of keys",
            "The value of append-text is a string",
        )
        wrong = _wrong_operations
    elif job["format"] == "ui-message-stream":
        worded = re.match(r"A \S+ event does not hold", message) is not None
        wrong = _wrong_event
    else:
        return theirs
    if not worded or (theirs["at"] is not None and theirs["at"] < ours["at"]):
        return theirs
    return _cut(job, ours, theirs) if any(map(wrong, _frames(job, ours["at"]))) else theirs


def _wrong_operations(frame: Any) -> bool:
    def right(operation: Any) -> bool:
        path = operation.get("path") if isinstance(operation, dict) else None
        segments = isinstance(path, list) and all(type(segment) in (str, int) for segment in path)
        return segments and (operation.get("type") != "append-text" or isinstance(operation.get("value"), str))

    return not isinstance(frame, list) or not all(map(right, frame))


_EVENT_TEXTS: Final = {
    "reasoning-delta": "delta",
    "tool-call-start": "toolCallId",
    "tool-call-delta": "argsText",
    "tool-result": "toolCallId",
}


def _wrong_event(event: Any) -> bool:
    kind = event.get("type") if isinstance(event, dict) else None
    if kind in _EVENT_TEXTS:
        return not isinstance(event.get(_EVENT_TEXTS[kind]), str)
    if kind == "text-delta":
        return not isinstance(event.get("textDelta", event.get("delta") or ""), str)
    return kind in ("source", "file") and not isinstance(event.get(kind), dict)


def too_deep(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    if ours["error"] is None or ours["error"]["name"] != "JsonTooDeep" or (theirs["at"] or 10**9) < ours["at"]:
        return theirs
    lines = _lines(job, ours["at"]) if job["format"] == "data-stream" else _text_before(job, ours["at"]).split("\n")
    return _cut(job, ours, theirs) if any(line.count("{") + line.count("[") > 256 for line in lines) else theirs


_INCOMPLETE: Final = re.compile(r'(Stream ended with an incomplete line: ".{1000}).+"', re.DOTALL)


def long_line(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    error = theirs["error"]
    if error is None or not _INCOMPLETE.fullmatch(error["message"]):
        return theirs
    return {**theirs, "error": {**error, "message": _INCOMPLETE.sub(r'\1…"', error["message"])}}


def unsafe_read(job: Job, ours: Outcome, theirs: Outcome, ask: Ask) -> Outcome:
    """The frame is in the piece that has the error; upstream has read as many chunks before it."""
    if job["format"] != "object-stream" or ours["error"] is None:
        return theirs
    frames = [frame for frame in _frames(job, ours["at"]) if isinstance(frame, list)]
    operations = [operation for frame in frames for operation in frame if isinstance(operation, dict)]
    stopped = len(job["ends"]) if theirs["at"] is None else theirs["at"]
    if not unsafe(ours["error"], theirs["error"], ours["at"], stopped, operations):
        return theirs
    return _cut(job, ours, theirs)
