"""Sealed streams: what goes in comes out, whatever the cuts, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import CorruptRecord, UnsupportedRecord
from tailrace.fold import State, fold
from tailrace.model import Claim, Ending, Incarnation, RunRef, Status
from tailrace.records import Kind, Record, Stored
from tailrace.segments import HEAD_ROOM, seal, unseal

LIFE = Incarnation(3, 0xABCDEF)
ENDINGS = [Ending(Status.DONE), Ending(Status.ERROR, "boom", "it 💥"), Ending(Status.CANCELLED, "cancelled", None)]
CHUNK = st.binary(max_size=40) | st.just(b"x" * 3000) | st.just(b"\n{}\n")


def ended(chunks: list[bytes], ending: Ending, takeovers: set[int]) -> State:
    """The state of a stream of ``chunks``, taken over before those numbers."""
    claim = Claim("m", 60.0, 600.0, "text/plain", (("x-a", "b"),), RunRef("echo", "d", "c", "continue"), shared=False)
    state, position, octets, epoch = State(), 0, 0, 1

    def put(kind: Kind, entries: int, **facts: object) -> None:
        nonlocal state, position
        position += 3
        record = Record(kind, "s", LIFE, epoch, entries, octets, f"n{position}", **facts)  # type: ignore[arg-type]
        state, _ = fold(state, Stored(position, -1, position * 10, record))

    put(Kind.CLAIM, 0, claim=claim)
    for index, chunk in enumerate(chunks):
        if index in takeovers:
            epoch += 1
            put(Kind.TAKEOVER, index)
        put(Kind.CHUNKS, index, chunks=(chunk,))
        octets += len(chunk)
    put(Kind.FINISH, len(chunks), ending=ending)
    assert (state.entries, state.bytes) == (len(chunks), octets)
    return state


FACTS = ("incarnation", "epoch", "entries", "bytes", "claim", "owner", "ending", "epochs", "created_ms", "updated_ms")


@given(st.lists(CHUNK, max_size=60), st.sampled_from(ENDINGS), st.sets(st.integers(0, 60)), st.integers(3100, 200_000))
def test_a_sealed_stream_comes_back_whole(chunks: list[bytes], ending: Ending, takeovers: set[int], room: int) -> None:
    state = ended(chunks, ending, takeovers)
    segments = seal("s", state, chunks, HEAD_ROOM + room)
    assert all(len(segment) <= HEAD_ROOM + room for segment in segments)
    again, got, ends = unseal("s", segments)
    assert got == chunks
    assert ends == [sum(map(len, chunks[: index + 1])) for index in range(len(chunks))]
    for fact in (*FACTS, "position", "phase"):
        assert getattr(again, fact) == getattr(state, fact), fact


SEALED = seal("s", ended([b"a" * 50] * 100, ENDINGS[1], {5}), [b"a" * 50] * 100, HEAD_ROOM + 1000)


@given(st.permutations(range(len(SEALED))), st.integers(0, len(SEALED)))
def test_segments_missing_or_out_of_order_are_refused(order: list[int], count: int) -> None:
    chosen = [SEALED[number] for number in order[:count]]
    if chosen == SEALED:
        return
    with pytest.raises(CorruptRecord):
        unseal("s", chosen)


@given(st.integers(0, len(SEALED) - 1), st.data())
def test_a_damaged_segment_is_refused_or_harmless(number: int, data: st.DataObject) -> None:
    """Whatever octet is changed, cut or added: an error of ours, or the same number of octets."""
    segment = SEALED[number]
    at = data.draw(st.integers(0, len(segment)))
    damaged = segment[:at] + data.draw(st.binary(max_size=3)) + segment[at + data.draw(st.integers(0, 3)) :]
    segments = [*SEALED[:number], damaged, *SEALED[number + 1 :]]
    try:
        state, chunks, ends = unseal("s", segments)
    except (CorruptRecord, UnsupportedRecord):
        return
    assert state.bytes == sum(map(len, chunks)) == ends[-1]
    assert state.entries == len(chunks)


def changed(**facts: object) -> list[bytes]:
    line, _, body = seal("s", ended([b"ab", b"c"], ENDINGS[0], set()), [b"ab", b"c"], HEAD_ROOM + 1000)[0].partition(
        b"\n"
    )
    return [json.dumps(json.loads(line) | facts).encode() + b"\n" + body]


@pytest.mark.parametrize(
    "facts",
    [
        {"epochs": []},
        {"epochs": [[]]},
        {"epochs": 5},
        {"claim": {"run": 5}},
        {"claim": []},
        {"ending": None},
        {"incarnation": 7},
        {"incarnation": "1"},
        {"sizes": [4, -1]},
        {"sizes": [3]},
        {"sizes": ["2", "1"]},
        {"entries": 3},
        {"bytes": 4},
        {"n": 2},
        {"v": "1"},
        {"stream": "t"},
    ],
)
def test_facts_that_are_none_are_refused(facts: dict[str, object]) -> None:
    with pytest.raises(CorruptRecord):
        unseal("s", changed(**facts))


def test_a_newer_version_is_refused_by_its_number() -> None:
    with pytest.raises(UnsupportedRecord, match="version 2"):
        unseal("s", changed(v=2))
    assert unseal("s", changed())[1] == [b"ab", b"c"]


@pytest.mark.parametrize("segments", [[], [b""], [b"\n"], [b"[]\n"], [b"[" * 100_000 + b"\n"], [b"\xff\n"]])
def test_what_is_no_segment_is_refused(segments: list[bytes]) -> None:
    with pytest.raises(CorruptRecord):
        unseal("s", segments)
