"""The object stream against what both versions recorded."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tailrace.errors import TailraceError
from tailrace.wire.errors import InvalidJson, InvalidStream
from tailrace.wire.jsjson import stringify
from tailrace.wire.object_stream import HEADERS, ObjectChunk, ObjectStreamDecoder, ObjectStreamEncoder

RECORDED = json.loads((Path(__file__).parents[2] / "golden/object-stream.json").read_text())


def name(case: dict[str, Any]) -> str:
    return f"{case['version']}-{case['name'].replace(' ', '_')}"


@pytest.mark.parametrize("case", [case for case in RECORDED if "source" in case], ids=name)
def test_encoding_gives_the_recorded_bytes(case: dict[str, Any]) -> None:
    encoder = ObjectStreamEncoder(legacy=case["version"] == "0.3.15")
    chunks = [ObjectChunk(chunk["snapshot"], chunk["operations"]) for chunk in case["source"]]
    assert b"".join([*map(encoder.encode, chunks), encoder.finish()]) == base64.b64decode(case["b64"])


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
