"""SSE frames of long histories: in parts, and every entry once."""

from __future__ import annotations

from base64 import b64decode

import pytest

from tailrace.fanout import Tail
from tailrace.gateway.framing import MAX_ENTRIES, MAX_FRAMES, Sse
from tailrace.model import Claim, Incarnation, Limits, Offset
from tailrace.records import Kind, Record, Stored

LIFE = Incarnation(1, 7)


def tail_of(*chunks: bytes) -> Tail:
    """A live stream that holds ``chunks``."""
    tail = Tail("s")
    tail.feed(Stored(1, 0, 1, Record(Kind.CLAIM, "s", LIFE, 1, 0, 0, "n1", claim=Claim("m", 60.0, 600.0))))
    grow(tail, *chunks)
    return tail


def grow(tail: Tail, *chunks: bytes) -> None:
    state, position = tail.state, tail.state.position
    record = Record(Kind.CHUNKS, "s", LIFE, 1, state.entries, state.bytes, f"n{position + 1}", chunks)
    tail.feed(Stored(position + 1, position, position, record))


def data_of(frames: bytes) -> list[bytes]:
    """The chunks of text or base64 frames."""
    chunks = []
    for one in frames.decode().split("\n\n")[:-1]:
        lines = one.split("\n")[1:]
        if lines[0] == "event: base64":
            chunks.append(b64decode(lines[1].removeprefix("data: ")))
        else:
            chunks.append("\n".join(line.removeprefix("data: ") for line in lines).encode())
    return chunks


@pytest.mark.parametrize("text", [True, False])
def test_a_long_history_comes_in_parts(text: bool) -> None:
    chunks = [b"%d\n" % number for number in range(5 * MAX_ENTRIES)]
    tail = tail_of(*chunks)
    reader, sse = tail.reader("", Limits(), lambda: None), Sse(text)
    first = sse.take(reader)
    assert len(data_of(first)) <= MAX_ENTRIES
    assert reader.cursor != tail.reader(Offset(tail.state.bytes), Limits(), lambda: None).cursor
    found = data_of(first)
    while part := sse.take(reader):
        assert len(part) < 2 * MAX_FRAMES
        found += data_of(part)
    assert found == chunks
    assert sse.take(reader) == b""


def test_an_offset_far_beyond_the_live_end_is_reached_by_many_entries() -> None:
    tail = tail_of(b"x")
    reader, sse = tail.reader(Offset(3 * MAX_ENTRIES), Limits(), lambda: None), Sse(True)
    assert sse.take(reader) == b""
    grow(tail, *(b"%d" % (number % 10) for number in range(3 * MAX_ENTRIES)))
    assert data_of(sse.take(reader)) == [b"%d" % ((3 * MAX_ENTRIES - 1) % 10)]
    assert sse.take(reader) == b""
