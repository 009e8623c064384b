"""Tailrace, run on the jobs that upstream is given; the outcomes have the same shape."""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

from player import Player, no_id

from tailrace.errors import TailraceError
from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import Chunk, chunk_from_json
from tailrace.message.partial_json import parse_partial_json
from tailrace.message.state import StateAccumulator
from tailrace.wire import find_format
from tailrace.wire.jsjson import parse, stringify
from tailrace.wire.object_stream import ObjectChunk, ObjectStreamDecoder, ObjectStreamEncoder

Outcome = dict[str, Any]


def told(error: BaseException) -> Outcome:
    message = error.message if isinstance(error, TailraceError) else str(error)
    return {"name": type(error).__name__, "message": message}


# ── controller programs ──


def program(job: Outcome) -> Outcome:
    out: list[Chunk] = []
    error = None
    try:
        Player(job["version"]).play(job["prog"], out)
    except TailraceError as raised:
        error = told(raised)
    return {"chunks": [stringify(chunk.to_json()) for chunk in out], "error": error, "ended": True}


# ── chunks: to bytes, to messages ──


def encode(job: Outcome) -> Outcome:
    encoder = find_format(f"{job['format']};v={job['version']}").encoder()
    out, error, at = b"", None, None
    fed = 0
    try:
        for chunk in job["chunks"]:
            out += encoder.encode(chunk_from_json(chunk))
            fed += 1
        out += encoder.finish()
    except TailraceError as raised:
        error, at = told(raised), fed
    return {"b64": base64.b64encode(out).decode(), "error": error, "at": at}


class Clock:
    """The counter that upstream runs with: see `accumulate` in upstream.mjs."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def accumulate(job: Outcome) -> Outcome:
    clock = Clock()
    accumulator = AssistantMessageAccumulator(clock=clock, new_id=no_id, dialect=job["version"])
    messages, failed = [], None
    try:
        for number, chunk in enumerate(job["chunks"]):
            clock.now += 3 + number % 5
            messages.append(stringify(accumulator.feed(chunk_from_json(chunk)).to_json()))
        clock.now += 10
        if (last := accumulator.close()) is not None:
            messages.append(stringify(last.to_json()))
    except TailraceError as raised:
        failed = told(raised)
    return {"messages": messages, "failed": failed, "logged": accumulator.drops}


# ── bytes to chunks ──


def decoder_of(job: Outcome) -> Any:
    legacy = job["version"] == "0.3.15"
    options: Outcome = {} if job["strict"] else {"strict": False}
    if job["format"] == "object-stream":
        return ObjectStreamDecoder(legacy=legacy, **options)
    if job["format"] == "ui-message-stream":
        options["new_id"] = no_id
        return find_format("ui-message-stream").decoder(**options)
    return find_format(f"{job['format']};v={job['version']}").decoder(**options)


def decode(job: Outcome) -> Outcome:
    """``before`` is how many of the chunks came from the pieces before the one with the error."""
    decoder = decoder_of(job)
    data = base64.b64decode(job["b64"])
    pieces = [data[start:end] for start, end in pairwise([0, *job["ends"]])]
    out: list[str] = []
    before = 0
    error, at = None, None
    for number, piece in enumerate([*pieces, None]):
        before = len(out)
        try:
            chunks = decoder.close() if piece is None else decoder.feed(piece)
            out += [show(chunk) for chunk in chunks]
            if decoder._error is not None:  # it waits until the good chunks before it are out
                raise decoder._error
        except TailraceError as raised:
            error, at = told(raised), number
            break
    return {"chunks": out, "error": error, "at": at, "before": before, "logged": decoder.drops}


def show(chunk: Any) -> str:
    if isinstance(chunk, ObjectChunk):
        return stringify({"snapshot": chunk.snapshot, "operations": chunk.operations})
    return stringify(chunk.to_json())


# ── object streams, partial JSON, JSON ──


def object_stream(job: Outcome) -> Outcome:
    legacy = job["version"] == "0.3.15"
    state = StateAccumulator(job.get("initial", {}), dialect=job["version"])
    encoder = ObjectStreamEncoder(legacy=legacy)
    out, snapshots, error = b"", [], None
    try:
        for operations in job["frames"]:
            state.append(operations)
            chunk = ObjectChunk(state.state, operations)
            snapshots.append(show(chunk))
            out += encoder.encode(chunk)
        out += encoder.finish()
    except TailraceError as raised:
        error = told(raised)
    return {"b64": base64.b64encode(out).decode(), "snapshots": snapshots, "error": error}


def partial_json(job: Outcome) -> Outcome:
    parsed = parse_partial_json(job["text"], legacy=job["version"] == "0.3.15")
    if parsed is None:
        return {"value": None}
    return {
        "value": stringify(parsed.value),
        "state": parsed.state,
        "path": list(parsed.path),
        "states": [parsed.field_state(field) for field in job["fields"]],
    }


def json(job: Outcome) -> Outcome:
    try:
        return {"value": stringify(parse(job["text"]))}
    except TailraceError as error:
        return {"value": None, "error": told(error)}


KINDS = {
    "program": program,
    "encode": encode,
    "accumulate": accumulate,
    "decode": decode,
    "object": object_stream,
    "partial": partial_json,
    "json": json,
}


def run(job: Outcome) -> Outcome:
    return KINDS[job["do"]](job)
