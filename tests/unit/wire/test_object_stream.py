"""The object stream against what both versions recorded."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tailrace.errors import TailraceError
from tailrace.message.errors import InvalidUpdate
from tailrace.message.object_controller import ObjectStreamController
from tailrace.wire.errors import InvalidJson, InvalidStream
from tailrace.wire.jsjson import stringify
from tailrace.wire.object_stream import HEADERS, ObjectChunk, ObjectStreamDecoder, ObjectStreamEncoder, object_stream

RECORDED = json.loads((Path(__file__).parents[2] / "golden/object-stream.json").read_text())


def name(case: dict[str, Any]) -> str:
    return f"{case['version']}-{case['name'].replace(' ', '_')}"


@pytest.mark.parametrize("case", [case for case in RECORDED if "source" in case], ids=name)
def test_encoding_gives_the_recorded_bytes(case: dict[str, Any]) -> None:
    encoder = ObjectStreamEncoder(legacy=case["version"] == "0.3.15")
    chunks = [ObjectChunk(chunk["snapshot"], chunk["operations"]) for chunk in case["source"]]
    assert b"".join([*map(encoder.encode, chunks), encoder.finish()]) == base64.b64decode(case["b64"])


@pytest.mark.parametrize("case", [case for case in RECORDED if "batches" in case], ids=name)
async def test_producing_gives_the_recorded_chunks_and_bytes(case: dict[str, Any]) -> None:
    async def batches() -> AsyncIterator[list[Any]]:
        for batch in case["batches"]:
            yield batch

    legacy = case["version"] == "0.3.15"
    made: list[ObjectChunk] = []
    controller = ObjectStreamController(made.append, initial=case["initial"], dialect=case["version"])
    for batch in case["batches"]:
        controller.enqueue(batch)
    assert [stringify(chunk.to_json()) for chunk in made] == [stringify(chunk) for chunk in case["source"]]
    frames = [frame async for frame in object_stream(batches(), initial=case["initial"], legacy=legacy)]
    assert len(frames) == len(made)
    assert b"".join(frames) == base64.b64decode(case["b64"])


def test_a_state_is_written_call_by_call_and_read_again() -> None:
    made: list[ObjectChunk] = []
    controller = ObjectStreamController(made.append)
    assert controller.state == {}
    controller.set(["title"], "A")
    controller.append_text(["title"], " day")
    controller.set(["days", "mon"], [1])
    controller.set(["days", "mon", "1"], 2)
    with pytest.raises(InvalidUpdate, match="out of bounds"):
        controller.enqueue(
            [{"type": "set", "path": ["x"], "value": 1}, {"type": "set", "path": ["days", "mon", "9"], "value": 1}]
        )
    assert controller.state == {"title": "A day", "days": {"mon": [1, 2]}}
    assert len(made) == 4
    assert made[1].snapshot == {"title": "A day"}
    encoder, decoder = ObjectStreamEncoder(), ObjectStreamDecoder()
    read = decoder.feed(b"".join(map(encoder.encode, made)))
    assert [chunk.snapshot for chunk in read] == [chunk.snapshot for chunk in made]
    assert [chunk.operations for chunk in read[1:]] == [chunk.operations for chunk in made[1:]]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("case", RECORDED, ids=name)
def test_decoding_gives_the_recorded_snapshots(case: dict[str, Any], size: int) -> None:
    decoder = ObjectStreamDecoder(legacy=case["version"] == "0.3.15")
    data = base64.b64decode(case["b64"])
    chunks: list[ObjectChunk] = []
    error: TailraceError | None = None
    try:
        for at in range(0, len(data), size):
            chunks += decoder.feed(data[at : at + size])
        chunks += decoder.close()
    except TailraceError as raised:
        error = raised
    assert [stringify({"snapshot": c.snapshot, "operations": c.operations}) for c in chunks] == case["chunks"]
    assert (error is None) == (case["error"] is None)
    assert error is None or isinstance(error, InvalidJson) or error.message == case["error"]


@pytest.mark.parametrize("frame", ["null", "5", "{}", "[1]"])
def test_a_frame_that_is_no_list_of_operations_is_refused(frame: str) -> None:
    with pytest.raises(InvalidStream):
        ObjectStreamDecoder().feed(f"data: {frame}\n\n".encode())


def test_other_events_are_left_out_when_not_strict() -> None:
    decoder = ObjectStreamDecoder(strict=False)
    assert decoder.feed(b"event: foo\ndata: []\n\ndata: []\n\n") == [ObjectChunk(None, [])]
    assert decoder.drops == ["Ignored unknown SSE event type: foo"]


def test_headers_name_the_format() -> None:
    assert HEADERS["Assistant-Stream-Format"] == "object-stream/v0"
    assert HEADERS["Content-Type"] == "text/event-stream"
