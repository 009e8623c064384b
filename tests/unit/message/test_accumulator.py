"""The accumulator against the reference: the message after every chunk of programs and of stray chunks."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import pytest

from tailrace.message.accumulator import MAX_DROPS, AssistantMessageAccumulator
from tailrace.message.chunks import Chunk, PartFinishChunk, TextDeltaChunk, UpdateStateChunk, chunk_from_json
from tailrace.message.dialect import Dialect
from tailrace.message.errors import InvalidUpdate
from tailrace.message.message import Message, TextPart, ToolCallPart
from tailrace.message.state import MAX_PATH
from tailrace.wire import find_format
from tailrace.wire.errors import InvalidStream
from tailrace.wire.jsjson import parse, stringify

GOLDEN = Path(__file__).parents[2] / "golden"
VECTORS: Any = parse(gzip.decompress((GOLDEN / "messages.json.gz").read_bytes()).decode())
DIALECTS: tuple[Dialect, ...] = ("0.3.44", "0.3.15")


class Clock:
    """The counter that the vectors were made with."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def accumulator(dialect: Dialect = "0.3.44", clock: Clock | None = None, **options: Any) -> AssistantMessageAccumulator:
    return AssistantMessageAccumulator(clock=clock or Clock(), new_id=lambda: "0000000", dialect=dialect, **options)


def accumulate(chunks: list[Any], dialect: Dialect) -> tuple[list[Message], str | None]:
    clock = Clock()
    acc = accumulator(dialect, clock)
    messages = []
    try:
        for number, chunk in enumerate(chunks):
            clock.now += 3 + number % 5
            messages.append(acc.feed(chunk_from_json(chunk)))
        clock.now += 10
        if (last := acc.close()) is not None:
            messages.append(last)
    except InvalidUpdate as error:
        return messages, f"Error: {error}"
    return messages, None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_program(dialect: Dialect) -> None:
    assert len(VECTORS["programs"]) > 250
    wrong = []
    for number, case in enumerate(VECTORS["programs"]):
        recorded = case[dialect]
        messages, failed = accumulate(recorded["chunks"], dialect)
        assert recorded["failed"] == failed
        for at, (message, expected) in enumerate(zip(messages, recorded["messages"], strict=True)):
            if stringify(message.to_json()) != stringify(expected):
                wrong.append((number, at, recorded["chunks"][: at + 1], message.to_json(), expected))
                break
    assert not wrong, (len(wrong), wrong[0])


def test_stray_chunks() -> None:
    for case in VECTORS["strays"]:
        recorded = case["0.3.44"]
        messages, failed = accumulate(case["chunks"], "0.3.44")
        assert failed == recorded["failed"], case["chunks"]
        assert [stringify(message.to_json()) for message in messages] == list(map(stringify, recorded["messages"]))


def differs_on_purpose(case: Any, ours: str) -> bool:
    """Where 0.3.15 reads a part that is not there (a TypeError, or a part that is nothing but a status), or writes to a
    prototype without a word, this project raises InvalidUpdate."""
    return ours.startswith("Error: No part at path [") or ours == "Error: Unsafe gorp path segment: __proto__"


def test_stray_chunks_as_0_3_15_reads_them() -> None:
    different = 0
    for case in VECTORS["strays"]:
        recorded = case["0.3.15"]
        messages, failed = accumulate(case["chunks"], "0.3.15")
        if failed != recorded["failed"]:
            assert failed is not None
            assert differs_on_purpose(case, failed), (failed, recorded["failed"])
            different += 1
        got = [stringify(message.to_json()) for message in messages]
        assert got == list(map(stringify, recorded["messages"][: len(got)]))
        assert len(got) == len(recorded["messages"]) or failed != recorded["failed"]
    assert 0 < different < 40


def chunk(kind: str, *path: int, **fields: Any) -> Any:
    return chunk_from_json({"type": kind, "path": list(path), **fields})


def start(kind: str, **fields: Any) -> Any:
    return chunk("part-start", part={"type": kind, **fields})


def test_a_message_shares_what_did_not_change_with_the_one_before() -> None:
    acc = accumulator()
    for _ in range(100):
        acc.feed(start("text"))
    acc.feed(chunk("text-delta", 7, textDelta="a"))
    before = acc.feed(chunk("data", data=[{"x": 1}]))
    after = acc.feed(chunk("text-delta", 7, textDelta="b"))
    assert after.metadata is before.metadata
    assert [at for at in range(100) if after.parts[at] is not before.parts[at]] == [7]
    assert (before.text, after.text) == ("a", "ab")
    assert after.parts._tail is before.parts._tail


def test_a_text_chunk_keeps_only_itself() -> None:
    """The cost is linear: a chunk adds its own piece to a list that all messages share, and one part, not a copy."""
    acc = accumulator()
    acc.feed(start("text"))
    messages = [acc.feed(chunk("text-delta", 0, textDelta=f"{number} ")) for number in range(2000)]
    texts = [message.parts[0] for message in messages]
    assert len({id(part.growing._shared) for part in texts if isinstance(part, TextPart)}) == 1
    assert messages[999].text == "".join(f"{number} " for number in range(1000))
    assert messages[-1].text == "".join(f"{number} " for number in range(2000))
    assert messages[0].text == "0 "


def test_halves_of_a_surrogate_pair_meet() -> None:
    acc = accumulator()
    acc.feed(start("text"))
    first = acc.feed(chunk("text-delta", 0, textDelta="\ud83c"))
    both = acc.feed(chunk("text-delta", 0, textDelta="\udf0d"))
    assert (first.text, both.text) == ("\ud83c", "🌍")


def test_arguments_are_those_of_the_last_piece_that_made_sense() -> None:
    acc = accumulator()
    acc.feed(start("tool-call", toolCallId="t", toolName="n"))
    pieces = ['{"a":', "1", ',"b":"x', '\\q"', "}", "more"]
    parts = [acc.feed(chunk("text-delta", 0, textDelta=piece)).parts[0] for piece in pieces]
    seen = [part.args for part in parts if isinstance(part, ToolCallPart)]
    assert seen == [{}, {"a": 1}, {"a": 1, "b": "x"}, *[{"a": 1, "b": "x"}] * 3]
    assert isinstance(parts[1], ToolCallPart)
    assert parts[1].args == {"a": 1}
    assert parts[1].growing.parsed.field_state(["a"]) == "partial"


def test_bad_arguments_of_any_length_end_in_an_answer() -> None:
    acc = accumulator()
    acc.feed(start("tool-call", toolCallId="t", toolName="n"))
    acc.feed(chunk("text-delta", 0, textDelta='{"a":1,"b":"\\q",'))
    acc.feed(chunk("text-delta", 0, textDelta='"c":"'))
    for _ in range(5000):
        acc.feed(chunk("text-delta", 0, textDelta="word "))
    part = acc.message.parts[0]
    assert isinstance(part, ToolCallPart)
    assert part.args == {}


def test_what_fits_nothing_is_left_out_and_said_once() -> None:
    acc = accumulator()
    for number in range(40):
        acc.feed(chunk("part-finish", number))
        acc.feed(start(f"new-{number}"))
    assert len(acc.drops) == MAX_DROPS
    assert acc.drops[0] == "Dropped part-finish chunk: no part at path [0]"
    assert len(acc.message.parts) == 40


def test_the_path_of_an_update_is_bounded() -> None:
    acc = accumulator()
    path = ["a"] * MAX_PATH
    acc.feed(UpdateStateChunk([{"type": "set", "path": path, "value": 1}]))
    stringify(acc.message.metadata.unstable_state)
    with pytest.raises(InvalidUpdate, match=str(MAX_PATH)):
        acc.feed(UpdateStateChunk([{"type": "set", "path": [*path, "a"], "value": 1}]))


def test_what_is_said_of_a_stray_chunk_is_bounded() -> None:
    acc = accumulator()
    acc.feed(TextDeltaChunk("x", (0,) * 100_000))
    acc.feed(start("text"))
    acc.feed(PartFinishChunk((-1,)))
    assert [len(text) < 1100 for text in acc.drops] == [True, True]


def test_an_error_stays() -> None:
    acc = accumulator("0.3.15")
    with pytest.raises(InvalidUpdate):
        acc.feed(chunk("part-finish", 0))
    with pytest.raises(InvalidUpdate):
        acc.feed(start("text"))
    with pytest.raises(InvalidUpdate):
        acc.close()


def test_going_on_from_a_message() -> None:
    first = accumulator()
    first.feed(start("text"))
    half = first.feed(chunk("text-delta", 0, textDelta="abcd"))
    first.feed(chunk("text-delta", 0, textDelta=" one way"))
    acc = accumulator(initial=half)
    acc.feed(chunk("text-delta", 0, textDelta="efgh"))
    last = acc.close()
    assert last is not None
    assert (last.text, first.message.text) == ("abcdefgh", "abcd one way")
    assert last.to_json()["metadata"]["timing"]["tokenCount"] == 2
    assert acc.close() is None


def test_not_strict_leaves_out_what_does_not_fit_the_state() -> None:
    acc = accumulator(strict=False)
    wrong = [{"type": "append-text", "path": ["x"], "value": "y"}, {"type": "set", "path": ["l", "9"], "value": 2}]
    acc.feed(chunk("update-state", operations=[{"type": "set", "path": ["l"], "value": [1]}, *wrong]))
    assert acc.message.metadata.unstable_state == {"l": [1, 2]}
    assert len(acc.drops) == 2
    with pytest.raises(InvalidUpdate, match="out of bounds"):
        accumulator(initial=acc.message).feed(chunk("update-state", operations=wrong[1:]))


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        ([], {"type": "complete", "reason": "unknown"}),
        ([start("tool-call", toolCallId="t", toolName="n")], {"type": "requires-action", "reason": "tool-calls"}),
        ([chunk("message-finish", finishReason="stop", usage={})], {"type": "complete", "reason": "stop"}),
        ([chunk("message-finish", finishReason="length", usage={})], {"type": "incomplete", "reason": "length"}),
        (
            [chunk("error", error="e"), chunk("message-finish", finishReason="stop", usage={})],
            {"type": "incomplete", "reason": "error", "error": {"code": "unknown", "message": "e"}},
        ),
    ],
)
def test_every_ending(chunks: list[Any], status: Any) -> None:
    acc = accumulator()
    for each in chunks:
        acc.feed(each)
    acc.close()
    assert acc.message.status.to_json() == status
    assert "timing" in acc.message.to_json()["metadata"]


def decode(data: bytes, name: str) -> tuple[list[Chunk], bool]:
    decoder = find_format(name).decoder()
    chunks = decoder.feed(data)
    try:
        return chunks + decoder.close(), False
    except InvalidStream:
        return chunks, True


@pytest.mark.parametrize("run", ["quiesced", "burst"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_golden_messages(dialect: Dialect, run: str) -> None:
    """The message after the data stream and back, but for its timing."""
    cases = parse((GOLDEN / f"vectors-{dialect}.json").read_text())["cases"]
    assert len(cases) == 15
    for case in cases:
        recorded = case[run]
        chunks, failed = decode(base64.b64decode(recorded["dataStream"]["b64"]), f"data-stream;v={dialect}")
        assert failed == (recorded["dataStreamRoundTrip"]["error"] is not None)
        if failed:  # how far the reference's reader came before its error is a race
            assert dialect == "0.3.15"
            continue
        acc = accumulator(dialect)
        for each in chunks:
            acc.feed(each)
        acc.close()
        expected, got = recorded["dataStreamRoundTrip"]["message"], acc.message.to_json()
        for message in (expected, got):
            message["metadata"].pop("timing", None)
            for part in message["parts"]:
                part.pop("timing", None)
        assert stringify(got) == stringify(expected), case["name"]
