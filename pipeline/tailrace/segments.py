"""Sealed streams: an ended stream rewritten as a few large segments, so that a replay costs one fetch.

A segment is one JSON line (UTF-8, ended by a newline) and the chunks' bytes, joined. The first segment's line carries
the stream's facts besides; every line says which segment it is, of how many.

::

    {"v":1,"i":0,"n":2,"sizes":[5,12,…],"stream":"…","incarnation":"1-…","epochs":[[1,0,0]],"claim":{…},"ending":{…},
     "entries":1000,"bytes":50000,"created_ms":…,"updated_ms":…,"position":…}\\n<bytes>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tailrace.errors import CorruptRecord, UnsupportedRecord
from tailrace.fold import EpochStart, Phase, State
from tailrace.model import Incarnation
from tailrace.records import dump_claim, dump_ending, load_claim, load_ending

VERSION = 1
HEAD_ROOM = 64 * 1024  # what a segment's first line may take beside its sizes


def seal(stream_id: str, state: State, chunks: Sequence[bytes], max_bytes: int) -> list[bytes]:
    """The segments of an ended stream, each at most ``max_bytes`` long."""
    groups = _group(chunks, max_bytes - HEAD_ROOM)
    segments = []
    for index, group in enumerate(groups):
        line: dict[str, Any] = {"v": VERSION, "i": index, "n": len(groups), "sizes": [len(chunk) for chunk in group]}
        if index == 0:
            line |= _facts(stream_id, state)
        segments.append(json.dumps(line, separators=(",", ":")).encode() + b"\n" + b"".join(group))
    return segments


def _group(chunks: Sequence[bytes], room: int) -> list[list[bytes]]:
    groups: list[list[bytes]] = [[]]
    size = 0
    for chunk in chunks:
        cost = len(chunk) + 8  # its length in the line
        if groups[-1] and size + cost > room:
            groups.append([])
            size = 0
        groups[-1].append(chunk)
        size += cost
    return groups


def _facts(stream_id: str, state: State) -> dict[str, Any]:
    assert state.ending is not None
    assert state.claim is not None
    return {
        "stream": stream_id,
        "incarnation": str(state.incarnation),
        "epochs": [[start.epoch, start.entries, start.bytes] for start in state.epochs],
        "claim": dump_claim(state.claim),
        "owner": state.owner,
        "ending": dump_ending(state.ending),
        "entries": state.entries,
        "bytes": state.bytes,
        "created_ms": state.created_ms,
        "updated_ms": state.updated_ms,
        "position": state.position,
    }


def unseal(stream_id: str, segments: Sequence[bytes]) -> tuple[State, list[bytes], list[int]]:
    """The state of the sealed stream, its chunks, and the byte position after each. Raises `CorruptRecord` for segments
    that are not all of ``stream_id``'s, `UnsupportedRecord` for those of a newer version."""
    chunks: list[bytes] = []
    facts: dict[str, Any] = {}
    try:
        for index, segment in enumerate(segments):
            newline = segment.index(b"\n")
            line = json.loads(segment[:newline])
            if line["v"] > VERSION:
                raise UnsupportedRecord(f"A segment of format version {line['v']}; this process reads up to {VERSION}")
            if (line["i"], line["n"]) != (index, len(segments)):
                raise ValueError("segments are missing")
            facts = line if index == 0 else facts
            at = newline + 1
            for size in line["sizes"]:
                chunks.append(segment[at : at + size])
                at += size
            if at != len(segment) or min(line["sizes"], default=0) < 0:
                raise ValueError("sizes do not add up to the segment")
        state = _state(stream_id, facts)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptRecord(f"Segments of {stream_id} that cannot be read: {error}") from error
    ends = list(accumulate(map(len, chunks)))
    if (state.entries, state.bytes) != (len(ends), ends[-1] if ends else 0):
        raise CorruptRecord(f"Segments of {stream_id} do not hold the whole stream")
    return state, chunks, ends


def _state(stream_id: str, facts: dict[str, Any]) -> State:
    if facts["stream"] != stream_id:
        raise ValueError("they belong to another stream")
    epochs = tuple(EpochStart(*start) for start in facts["epochs"])
    return State(
        phase=Phase.ENDED,
        incarnation=Incarnation.parse(facts["incarnation"]),
        epoch=epochs[-1].epoch,
        entries=facts["entries"],
        bytes=facts["bytes"],
        claim=load_claim(facts["claim"]),
        owner=facts["owner"],
        ending=load_ending(facts["ending"]),
        epochs=epochs,
        created_ms=facts["created_ms"],
        updated_ms=facts["updated_ms"],
        position=facts["position"],
    )
