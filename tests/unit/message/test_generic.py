"""Messages for a model, against the reference."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tailrace.message import AssistantMessageAccumulator, chunk_from_json, to_generic_messages
from tailrace.message.generic import image_media_type, normal_url
from tailrace.wire.jsjson import parse, stringify

GOLDEN = Path(__file__).parents[2] / "golden" / "tools.json.gz"
THREADS: list[Any] = parse(gzip.decompress(GOLDEN.read_bytes()).decode())["threads"]


def test_every_recorded_thread() -> None:
    assert len(THREADS) >= 300
    for messages, expected in THREADS:
        assert stringify(to_generic_messages(messages)) == expected, messages


def test_an_accumulated_message_is_an_assistants() -> None:
    accumulator = AssistantMessageAccumulator(clock=lambda: 0.0, new_id=lambda: "i")
    for chunk in (
        {"type": "part-start", "path": [], "part": {"type": "text"}},
        {"type": "text-delta", "path": [0], "textDelta": "Let me see."},
        {"type": "part-start", "path": [], "part": {"type": "tool-call", "toolName": "now", "toolCallId": "c"}},
        {"type": "text-delta", "path": [1], "textDelta": '{"zone":"UTC"}'},
        {"type": "result", "path": [1], "result": "12:00", "isError": False},
    ):
        accumulator.feed(chunk_from_json(chunk))
    call = {"toolCallId": "c", "toolName": "now"}
    assert to_generic_messages([accumulator.message]) == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool-call", **call, "args": {"zone": "UTC"}},
            ],
        },
        {"role": "tool", "content": [{"type": "tool-result", **call, "result": "12:00"}]},
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/constructor", "image/png"),  # in JavaScript, where every object has one, no string at all
        ("x.JPG", "image/jpeg"),
        ("data:image/WEBP", "image/webp"),
    ],
)
def test_image_types(text: str, expected: str) -> None:
    assert image_media_type(text) == expected


def test_a_url_with_half_a_character_is_written_as_the_reference_writes_it() -> None:
    assert normal_url("http://é.com/\ud83c") == "http://xn--9ca.com/%EF%BF%BD"
    assert normal_url("not a url: \ud83c") == "not a url: \ud83c"
