"""The UI message stream: what AI SDK 5 and 6 were seen to read, and the way back."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tailrace.message import (
    DataChunk,
    DataInit,
    ErrorChunk,
    FileInit,
    MessageFinishChunk,
    PartFinishChunk,
    PartStartChunk,
    ResultChunk,
    SourceInit,
    StepFinishChunk,
    StepStartChunk,
    TextDeltaChunk,
    TextInit,
    ToolCallInit,
    chunk_from_json,
)
from tailrace.wire import FORMATS
from tailrace.wire.errors import StreamCut, UnsupportedChunk
from tailrace.wire.jsjson import MAX_DEPTH
from tailrace.wire.ui_message_stream_decoder import UiMessageStreamDecoder

RECORDED = json.loads((Path(__file__).parents[2] / "golden/ui-message-stream.json").read_text())
FORMAT = FORMATS["ui-message-stream"]


def encoded(chunks: list[Any]) -> bytes:
    encoder = FORMAT.encoder()
    return b"".join([*map(encoder.encode, chunks), encoder.finish()])


def events(data: bytes) -> list[Any]:
    frames = data.decode().split("\n\n")[:-2]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_the_bytes_are_those_that_the_ai_sdk_read(case: dict[str, Any]) -> None:
    assert encoded([chunk_from_json(chunk) for chunk in case["chunks"]]) == base64.b64decode(case["b64"])


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"])
def test_reading_gives_the_texts_and_calls_that_were_written(case: dict[str, Any]) -> None:
    """Text, reasoning, arguments and results of each part; the part numbers may differ, data parts become data."""
    decoder = FORMAT.decoder()
    chunks = [*decoder.feed(base64.b64decode(case["b64"])), *decoder.close()]
    parts = [chunk.part for chunk in chunks if isinstance(chunk, PartStartChunk)]
    calls = [part.tool_call_id for part in parts if isinstance(part, ToolCallInit)]
    written = [chunk["part"] for chunk in case["chunks"] if chunk["type"] == "part-start"]
    assert sorted(calls) == sorted(part["toolCallId"] for part in written if part["type"] == "tool-call")
    results = [chunk for chunk in chunks if isinstance(chunk, ResultChunk)]
    assert len(results) == sum(chunk["type"] == "result" for chunk in case["chunks"])
    starts = [chunk for chunk in chunks if isinstance(chunk, StepStartChunk)]
    assert len(starts) == sum(chunk["type"] == "step-start" for chunk in case["chunks"])


def test_steps_are_as_many_as_were_written() -> None:
    data = encoded([StepStartChunk("m"), StepStartChunk("n")])
    assert events(data) == [{"type": "start", "messageId": "m"}, {"type": "start-step"}]
    decoder = FORMAT.decoder()
    assert decoder.feed(data) == [StepStartChunk("m"), StepStartChunk("m")]


def test_missing_ids_are_counted_or_made() -> None:
    data = b'data: {"type":"start"}\n\n'
    assert UiMessageStreamDecoder().feed(data) == [StepStartChunk("0000001")]
    assert UiMessageStreamDecoder(new_id=lambda: "x").feed(data) == [StepStartChunk("x")]


def test_watchers_get_transient_data_and_messages_do_not() -> None:
    seen: list[Any] = []
    decoder = UiMessageStreamDecoder(on_data=seen.append)
    assert decoder.feed(b'data: {"type":"data-a","data":1,"transient":true}\n\ndata: {"type":"data-b"}\n\n') == [
        DataChunk([{"name": "b"}])
    ]
    assert seen == [{"type": "data-a", "name": "a", "data": 1, "transient": True}, {"type": "data-b", "name": "b"}]


def test_open_texts_are_closed_at_the_end() -> None:
    data = encoded([PartStartChunk(TextInit()), TextDeltaChunk("a", (0,))])
    assert [event["type"] for event in events(data)] == ["text-start", "text-delta", "text-end"]


def test_a_text_that_goes_on_behind_a_step_is_closed_before_it_and_opened_again() -> None:
    """AI SDK forgets the open texts at the end of a step, and refuses what comes for them later."""
    usage = {"inputTokens": 1, "outputTokens": 1}
    data = encoded(
        [
            PartStartChunk(TextInit()),
            TextDeltaChunk("a", (0,)),
            StepFinishChunk("stop", usage),
            TextDeltaChunk("b", (0,)),
            PartFinishChunk((0,)),
            MessageFinishChunk("stop", usage),
            TextDeltaChunk("c", (0,)),
        ]
    )
    text = ["text-start", "text-delta", "text-end"]
    assert [event["type"] for event in events(data)] == [*text, "finish-step", *text, "finish", *text]


def test_only_the_first_event_of_all_names_the_message() -> None:
    """AI SDK 6 begins a new message at a start with another id, and forgets what came before."""
    data = encoded([PartStartChunk(SourceInit("s", "u")), StepStartChunk("m"), StepStartChunk("n")])
    assert [event["type"] for event in events(data)] == ["source-url", "start-step", "start-step"]


def test_the_input_is_written_once_and_before_the_output() -> None:
    call = [PartStartChunk(ToolCallInit("n", "t")), TextDeltaChunk('{"a":', (0,)), TextDeltaChunk("1}", (0,))]
    data = encoded([*call, ResultChunk(None, path=(0,)), TextDeltaChunk("late", (0,)), PartFinishChunk((0,))])
    assert events(data)[-2:] == [
        {"type": "tool-input-available", "toolCallId": "t", "toolName": "n", "input": {"a": 1}},
        {"type": "tool-output-available", "toolCallId": "t", "output": None},
    ]


def test_arguments_that_are_no_json_become_an_input_error() -> None:
    for text in ("{bad", "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)):
        data = encoded([PartStartChunk(ToolCallInit("n", "t")), TextDeltaChunk(text, (0,)), PartFinishChunk((0,))])
        assert events(data)[-1]["type"] == "tool-input-error"
        assert events(data)[-1]["input"] == text


def test_files_become_urls_and_data_keeps_its_name() -> None:
    data = encoded(
        [
            PartStartChunk(FileInit("aGk=", "a/b")),
            PartStartChunk(FileInit("https://x.y/z", "a/b")),
            PartStartChunk(DataInit("n", 1)),
            DataChunk([{"name": "m", "data": 2}, 3]),
            ErrorChunk("careful", severity="warning"),
        ]
    )
    assert events(data) == [
        {"type": "file", "url": "data:a/b;base64,aGk=", "mediaType": "a/b"},
        {"type": "file", "url": "https://x.y/z", "mediaType": "a/b"},
        {"type": "data-n", "data": 1},
        {"type": "data-m", "data": 2},
        {"type": "data-data", "data": 3},
        {"type": "data-error", "data": {"error": "careful", "severity": "warning"}, "transient": True},
    ]


def test_a_stream_without_its_end_was_cut() -> None:
    decoder = FORMAT.decoder()
    decoder.feed(b'data: {"type":"text-delta","delta":"a"}\n\n')
    with pytest.raises(StreamCut, match="without receiving"):
        decoder.close()


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "part-start", "path": [], "part": {"type": "tool-call", "toolCallId": [], "toolName": "n"}},
        {"type": "part-start", "path": [], "part": {"type": "tool-call"}},
    ],
)
def test_a_tool_call_without_an_id_is_refused(chunk: dict[str, Any]) -> None:
    for name in ("data-stream", "ui-message-stream", "plain-text"):
        with pytest.raises(UnsupportedChunk, match="needs an id"):
            FORMATS[name].encoder().encode(chunk_from_json(chunk))


@pytest.mark.parametrize("name", ["plain-text", "plain-text;v=0.3.15"])
def test_a_delta_without_text_is_refused_where_text_is_needed(name: str) -> None:
    encoder = FORMATS[name].encoder()
    encoder.encode(PartStartChunk(TextInit()))
    with pytest.raises(UnsupportedChunk, match="needs a textDelta"):
        encoder.encode(chunk_from_json({"type": "text-delta", "path": [0]}))
