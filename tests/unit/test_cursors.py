"""Cursors and offsets: every position has one text, and nothing else is one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace import decide
from tailrace.errors import CursorGone, InvalidCursor, InvalidStreamId, OffsetOutOfRange
from tailrace.fold import EpochStart, Phase, State
from tailrace.model import STREAM_ID_PATTERN, Incarnation, Mark, Offset, validate_stream_id

IDS = st.from_regex(r"[A-Za-z0-9_.:-]{1,256}", fullmatch=True)
INCARNATIONS = st.builds(Incarnation, st.integers(1, 999_999_999), st.integers(0, 2**64 - 1))
EPOCHS = st.integers(1, 2**32 - 1)
COUNTS = st.integers(0, 2**40 - 1)
MARKS = st.builds(Mark, INCARNATIONS, EPOCHS, COUNTS, COUNTS)
LIFE = Incarnation(2, 77)


@given(IDS, MARKS)
def test_a_mark_survives_its_cursor(stream_id: str, mark: Mark) -> None:
    assert Mark.parse(stream_id, mark.cursor(stream_id)) == mark


@given(IDS, MARKS)
def test_a_cursor_needs_no_escaping_in_a_url(stream_id: str, mark: Mark) -> None:
    assert re.fullmatch(r"[0-9a-z]{49}", mark.cursor(stream_id))


@given(IDS, INCARNATIONS, st.lists(st.tuples(EPOCHS, COUNTS, COUNTS), min_size=2, max_size=2))
def test_cursors_sort_as_their_positions_do(
    stream_id: str, life: Incarnation, positions: list[tuple[int, int, int]]
) -> None:
    first, second = (Mark(life, *position) for position in sorted(positions))
    assert (first.cursor(stream_id) < second.cursor(stream_id)) == (first < second)
    assert (first.cursor(stream_id) == second.cursor(stream_id)) == (first == second)


@given(IDS, MARKS)
def test_a_later_generation_sorts_behind(stream_id: str, mark: Mark) -> None:
    later = mark._replace(incarnation=Incarnation(mark.incarnation.generation + 1, 0))
    assert mark.cursor(stream_id) < later.cursor(stream_id)


@given(IDS, IDS, MARKS)
def test_a_cursor_of_another_stream_is_refused(stream_id: str, other: str, mark: Mark) -> None:
    if stream_id == other:
        return
    with pytest.raises(InvalidCursor, match="another stream") as caught:
        Mark.parse(stream_id, mark.cursor(other))
    assert caught.value.code == "invalid-cursor"


GOOD = Mark(LIFE, 1, 5, 50).cursor("a")


@given(st.text() | st.from_regex(r"1[0-9a-v]{40,50}", fullmatch=True))
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor):
        Mark.parse("a", text)


@pytest.mark.parametrize(
    "text",
    [
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        " " + GOOD,
        "2" + GOOD[1:],
        GOOD.upper(),
        GOOD[:-1] + "w",
        GOOD[:-1] + "=",
        GOOD[:-6] + "======",
        GOOD[:-1] + "ı",  # upper() makes an ASCII letter of it
        GOOD[:-1] + "ſ",
        "0",
        "1",
        "-1",
    ],
)
def test_what_looks_like_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor):
        Mark.parse("a", text)


@given(INCARNATIONS)
def test_an_incarnation_survives_its_text(life: Incarnation) -> None:
    assert Incarnation.parse(str(life)) == life


@given(st.text())
def test_what_is_no_incarnation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an incarnation"):
        Incarnation.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1-", "0-0000000000000001", "01-0000000000000001", "1-000000000000000A", "1-1", "1-0000000000000001\n"],
)
def test_an_incarnation_has_one_text(text: str) -> None:
    with pytest.raises(ValueError, match="not an incarnation"):
        Incarnation.parse(text)


@given(IDS)
def test_an_id_is_given_back(stream_id: str) -> None:
    assert validate_stream_id(stream_id) is stream_id


@given(st.text())
def test_an_id_matches_the_pattern_or_is_refused(text: str) -> None:
    """The pattern is the seed's, where ``$`` means the very end."""
    if re.fullmatch(r"[A-Za-z0-9_.:-]{1,256}", text):
        assert validate_stream_id(text) == text
        return
    with pytest.raises(InvalidStreamId) as caught:
        validate_stream_id(text)
    assert str(caught.value) == f"Invalid streamId: {text} (must match /{STREAM_ID_PATTERN}/)"
    assert caught.value.code == "invalid-id"


@pytest.mark.parametrize("text", ["", "a\n", "\n", "a" * 257, "a b", "ä", "a/b", "a" * 100_000, None, 5, b"a"])
def test_such_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidStreamId) as caught:
        validate_stream_id(text)
    assert len(str(caught.value)) < 400


# Where a reader starts

SIZES = st.lists(st.integers(0, 4), max_size=12)


def _stream(sizes: list[int], phase: Phase = Phase.ENDED) -> tuple[State, list[int]]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    state = State(phase, LIFE, 1, len(sizes), sum(sizes), epochs=(EpochStart(1, 0, 0),))
    return state, ends


def _rest(sizes: list[int], start: tuple[int, int]) -> bytes:
    """What a reader from ``start`` gets, where byte i of the stream has the value i."""
    index, skip = start
    begin = sum(sizes[:index])
    return bytes(range(begin, sum(sizes)))[skip:]


@given(SIZES)
def test_a_cursor_at_every_entry_resumes_behind_it(sizes: list[int]) -> None:
    state, ends = _stream(sizes)
    for entries in range(len(sizes) + 1):
        octets = ends[entries - 1] if entries else 0
        cursor = Mark(LIFE, 1, entries, octets).cursor("a")
        assert decide.start_of(state, "a", cursor, ends) == (entries, 0)
    assert decide.start_of(state, "a", "", ends) == (0, 0)


@given(SIZES, st.sampled_from([None, LIFE]))
def test_an_offset_at_every_byte_resumes_there(sizes: list[int], life: Incarnation | None) -> None:
    state, ends = _stream(sizes)
    for offset in range(sum(sizes) + 1):
        start = decide.start_of(state, "a", Offset(offset, life), ends)
        assert _rest(sizes, start) == bytes(range(offset, sum(sizes)))


@given(SIZES, st.integers(1, 100))
def test_an_offset_behind_the_end_is_refused_once_there_is_one(sizes: list[int], beyond: int) -> None:
    state, ends = _stream(sizes)
    with pytest.raises(OffsetOutOfRange) as caught:
        decide.start_of(state, "a", Offset(sum(sizes) + beyond), ends)
    assert (caught.value.code, caught.value.length) == ("offset-out-of-range", sum(sizes))
    live, ends = _stream(sizes, Phase.LIVE)
    index, skip = decide.start_of(live, "a", Offset(sum(sizes) + beyond), ends)
    assert (index, skip) == (len(sizes), beyond)


def test_a_negative_offset_is_no_position() -> None:
    state, ends = _stream([3])
    with pytest.raises(InvalidCursor):
        decide.start_of(state, "a", Offset(-1), ends)


@given(SIZES, INCARNATIONS)
def test_another_incarnations_position_is_gone(sizes: list[int], life: Incarnation) -> None:
    if life == LIFE:
        return
    state, ends = _stream(sizes)
    for start in (Mark(life, 1, 0, 0).cursor("a"), Offset(0, life)):
        with pytest.raises(CursorGone) as caught:
            decide.start_of(state, "a", start, ends)
        assert (caught.value.code, caught.value.incarnation) == ("cursor-gone", str(LIFE))


def test_a_position_that_the_log_lost_is_gone() -> None:
    """Five entries were read in epoch 1; the log lost two of them, and epoch 2 wrote others in their place."""
    state = State(Phase.LIVE, LIFE, 2, 6, 60, epochs=(EpochStart(1, 0, 0), EpochStart(2, 3, 30)))
    ends = [10, 20, 30, 40, 50, 60]
    with pytest.raises(CursorGone):
        decide.start_of(state, "a", Mark(LIFE, 1, 5, 50).cursor("a"), ends)
    assert decide.start_of(state, "a", Mark(LIFE, 1, 3, 30).cursor("a"), ends) == (3, 0)
    assert decide.start_of(state, "a", Mark(LIFE, 2, 5, 50).cursor("a"), ends) == (5, 0)


@pytest.mark.parametrize(("entries", "octets"), [(3, 30), (2, 21), (0, 1), (2**40 - 1, 2**40 - 1)])
def test_a_position_that_the_stream_never_had_is_gone(entries: int, octets: int) -> None:
    state, ends = _stream([10, 10])
    with pytest.raises(CursorGone):
        decide.start_of(state, "a", Mark(LIFE, 1, entries, octets).cursor("a"), ends)
