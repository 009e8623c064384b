"""The chunk model: the same JSON as upstream, key for key."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tailrace.message import (
    UNDEFINED,
    DataInit,
    ErrorChunk,
    InvalidChunk,
    PartStartChunk,
    ReasoningInit,
    ResultChunk,
    TextDeltaChunk,
    ToolCallInit,
    UnknownInit,
    chunk_from_json,
)
from tailrace.message.chunks import CHUNK_TYPES, PART_TYPES
from tailrace.message.schema import validate_chunk

GOLDEN = Path(__file__).parents[2] / "golden"


def recorded_chunks() -> list[dict[str, Any]]:
    chunks = []
    for version in ("0.3.15", "0.3.44"):
        for case in json.loads((GOLDEN / f"vectors-{version}.json").read_text())["cases"]:
            chunks += case["quiesced"]["chunks"]["out"] + case["burst"]["chunks"]["out"]
    return chunks


def test_recorded_chunks_come_back_key_for_key() -> None:
    seen = set()
    for recorded in recorded_chunks():
        for chunk in (chunk_from_json(recorded), validate_chunk(recorded)):
            assert json.dumps(chunk.to_json()) == json.dumps(recorded)
            moved = chunk.with_path((7, 8))
            assert json.dumps(moved.to_json()) == json.dumps({**recorded, "path": [7, 8]})
        seen.add(recorded["type"])
    assert seen == set(CHUNK_TYPES)


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (TextDeltaChunk("a", (0,)), '{"type":"text-delta","path":[0],"textDelta":"a"}'),
        (
            PartStartChunk(ReasoningInit("s")),
            '{"type":"part-start","part":{"type":"reasoning","unstable_summary":"s"},"path":[]}',
        ),
        (
            PartStartChunk(ToolCallInit("n", "t", "p")),
            '{"type":"part-start","part":{"type":"tool-call","toolName":"n","toolCallId":"t","parentId":"p"},"path":[]}',
        ),
        (
            PartStartChunk(DataInit("n", None)),
            '{"type":"part-start","part":{"type":"data","name":"n","data":null},"path":[]}',
        ),
        (ResultChunk(None, path=(1,)), '{"type":"result","path":[1],"result":null,"isError":false}'),
        (ResultChunk(UNDEFINED), '{"type":"result","path":[],"isError":false}'),
        (ErrorChunk("e", severity="info"), '{"type":"error","path":[],"error":"e","severity":"info"}'),
    ],
)
def test_made_chunks_have_upstreams_order(chunk: Any, text: str) -> None:
    assert json.dumps(chunk.to_json(), separators=(",", ":")) == text
    assert chunk_from_json(json.loads(text)) == chunk


def test_other_orders_and_unknown_keys_are_kept() -> None:
    value = {"z": 1, "textDelta": "a", "source": {"type": "x"}, "type": "text-delta", "path": [0]}
    chunk = chunk_from_json(value)
    assert json.dumps(chunk.to_json()) == json.dumps(value)
    part = {"type": "part-start", "path": [], "part": {"x": 1, "type": "hologram"}}
    start = chunk_from_json(part)
    assert isinstance(start, PartStartChunk)
    assert isinstance(start.part, UnknownInit)
    assert start.part.type == "hologram"
    assert json.dumps(start.to_json()) == json.dumps(part)


def test_an_absent_key_is_not_null() -> None:
    absent, null = (
        chunk_from_json({"type": "result", "path": [0]}),
        chunk_from_json({"type": "result", "path": [0], "result": None}),
    )
    assert isinstance(absent, ResultChunk)
    assert absent.result is UNDEFINED
    assert absent != null
    assert not UNDEFINED
    assert repr(UNDEFINED) == "UNDEFINED"


def test_a_missing_path_is_added_at_the_end() -> None:
    assert list(chunk_from_json({"type": "error", "error": "e"}).to_json()) == ["type", "error", "path"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"path": []},
        {"type": ["text-delta"]},
        {"type": "nothing", "path": []},
        {"type": "part-start", "path": []},
        {"type": "part-start", "path": [], "part": []},
        *({"type": "part-finish", "path": path} for path in ("0", [-1], [1.5], ["0"], [True], None, [float("inf")])),
    ],
)
def test_what_is_no_chunk_is_refused(value: object) -> None:
    with pytest.raises(InvalidChunk):
        chunk_from_json(value)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "text-delta", "path": [0]},
        {"type": "text-delta", "path": [0], "textDelta": 5},
        {"type": "text-delta", "path": ["a"], "textDelta": "x"},
        {"type": "text-delta", "path": [0], "text_delta": "x"},
        {"type": "part-start", "path": [], "part": {"type": "hologram"}},
        {"type": "part-start", "path": [], "part": {"fields": {}}},
        {"type": "result", "path": [0], "result": 1, "modelContent": "undefined"},
        {"type": "nothing"},
    ],
)
def test_the_edge_says_what_is_wrong(value: object) -> None:
    with pytest.raises(ValidationError):
        validate_chunk(value)


def test_every_type_is_in_its_table() -> None:
    for table in (CHUNK_TYPES, PART_TYPES):
        for name, cls in table.items():
            assert cls.__dataclass_fields__["type"].default == name
