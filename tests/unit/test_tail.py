"""The shared tail: however records arrive, every reader gets the same bytes, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import BrokerUnavailable, CursorGone, OffsetOutOfRange, SlowReader, StreamNotFound
from tailrace.fanout import Tail, TailReader
from tailrace.model import Claim, Ending, Incarnation, Limits, Mark, Offset, Status
from tailrace.records import Kind, Record, Stored

LIFE, NEXT = Incarnation(1, 7), Incarnation(2, 8)
DONE = Ending(Status.DONE)
CHUNKS = st.lists(st.lists(st.binary(max_size=4), min_size=1, max_size=3), max_size=8)


class History:
    """A stream's records as a broker keeps them, at positions that do not count by one."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []
        self.life = LIFE
        self.chunks: list[bytes] = []
        self.cursors = [""]
        self.epoch = 1

    def put(self, kind: Kind, chunks: tuple[bytes, ...] = (), **facts: object) -> Stored:
        before = self.stored[-1].position if self.stored else 0
        octets = sum(map(len, self.chunks))
        nonce = f"n{len(self.stored)}"
        record = Record(kind, "s", self.life, self.epoch, len(self.chunks), octets, nonce, chunks, **facts)  # type: ignore[arg-type]
        self.stored.append(Stored(before + 3, before, 1000 + before, record))
        for chunk in chunks:
            self.chunks.append(chunk)
            octets += len(chunk)
            self.cursors.append(Mark(self.life, self.epoch, len(self.chunks), octets).cursor("s"))
        return self.stored[-1]

    def claim(self) -> Stored:
        return self.put(Kind.CLAIM, claim=Claim("m", 60.0, 600.0))

    @property
    def bytes(self) -> bytes:
        return b"".join(self.chunks)

    @classmethod
    def of(cls, groups: list[list[bytes]], *, end: bool = True, takeover_at: int = -1) -> History:
        history = cls()
        history.claim()
        for number, group in enumerate(groups):
            if number == takeover_at:
                history.epoch += 1
                history.put(Kind.TAKEOVER)
            history.put(Kind.CHUNKS, tuple(group))
        if end:
            history.put(Kind.FINISH, ending=DONE)
        return history


def reader(tail: Tail, start: str | Offset = "", lag: int = 1 << 30) -> TailReader:
    return tail.reader(start, Limits(max_reader_lag_bytes=lag), lambda: None)


def loaded(history: History) -> Tail:
    tail = Tail("s")
    tail.load(history.stored)
    return tail


@given(CHUNKS, st.data())
def test_any_order_of_delivery_gives_the_same_bytes(groups: list[list[bytes]], data: st.DataObject) -> None:
    """Records come early, late, twice or not at all; at a gap, some time, the log is read."""
    history = History.of(groups, takeover_at=data.draw(st.integers(-1, 8)))
    loaded_first = data.draw(st.integers(1, len(history.stored)))
    tail = Tail("s")
    asked: list[int] = []
    tail.on_gap = lambda: asked.append(1)
    tail.load(history.stored[:loaded_first])
    early, got = reader(tail), b""
    numbers = st.integers(0, len(history.stored) - 1)
    for number in data.draw(st.lists(numbers, max_size=24)):
        had_gap, before = tail.has_gap, len(asked)
        tail.feed(history.stored[number])
        got += early.take_bytes()
        assert history.bytes.startswith(got)
        assert not tail.has_gap or had_gap or len(asked) > before
        if tail.has_gap and data.draw(st.booleans()):
            up_to = data.draw(st.integers(number, len(history.stored)))
            behind = [stored for stored in history.stored[:up_to] if stored.position > tail.state.position]
            tail.load(behind)
            got += b"".join(entry.chunk for entry in early.take())
    tail.load([stored for stored in history.stored if stored.position > tail.state.position])
    got += early.take_bytes(1 << 30)
    assert got == history.bytes
    assert early.ending == DONE
    assert not tail.has_gap
    assert [entry.chunk for entry in reader(tail).take()] == history.chunks


@given(CHUNKS, st.integers(-1, 8), st.booleans(), st.booleans())
def test_every_byte_is_an_offset_and_every_cursor_a_start(
    groups: list[list[bytes]], takeover_at: int, end: bool, as_bytes: bool
) -> None:
    history = History.of(groups, end=end, takeover_at=takeover_at)
    tail = loaded(history)
    for start in range(len(history.bytes) + 1):
        for at in (Offset(start), Offset(start, LIFE)):
            each = reader(tail, at)
            body = each.take_bytes() if as_bytes else b"".join(entry.chunk for entry in each.take())
            assert body == history.bytes[start:]
            assert each.cursor == history.cursors[-1] or not history.chunks
    for index, cursor in enumerate(history.cursors):
        entries = reader(tail, cursor).take()
        assert [entry.chunk for entry in entries] == history.chunks[index:]
        assert [entry.cursor for entry in entries] == history.cursors[index + 1 :]
    with pytest.raises(CursorGone):
        reader(tail, Offset(0, NEXT))
    if end:
        with pytest.raises(OffsetOutOfRange):
            reader(tail, Offset(len(history.bytes) + 1))


@given(CHUNKS, st.data())
def test_an_offset_ahead_of_a_live_stream_skips_what_comes(groups: list[list[bytes]], data: st.DataObject) -> None:
    """The skip reaches across chunks and takes, in either way of taking."""
    history = History.of(groups)
    known = data.draw(st.integers(1, len(history.stored) - 1))
    tail = Tail("s")
    tail.load(history.stored[:known])
    start = data.draw(st.integers(0, len(history.bytes)))
    each, got = reader(tail, Offset(start)), b""
    for stored in history.stored[known:]:
        how = data.draw(st.integers(0, 3))
        if how == 0:
            got += each.take_bytes()
        elif how == 1:
            got += b"".join(entry.chunk for entry in each.take())
        elif how == 2:
            got += b"".join(entry.chunk for entry in each.take(1))
        tail.feed(stored)
    while each.ending is None:
        got += each.take_bytes(data.draw(st.integers(1, 9)))
    assert got == history.bytes[start:]


@given(CHUNKS, st.integers(1, 30))
def test_bodies_are_whole_chunks_of_about_the_size_asked_for(groups: list[list[bytes]], size: int) -> None:
    history = History.of(groups)
    each, bodies = reader(loaded(history)), []
    while each.ending is None:
        bodies.append(each.take_bytes(size))
        assert len(bodies[-1]) <= max(size, *map(len, history.chunks))
        assert each.cursor in history.cursors[1:]
    assert b"".join(bodies) == history.bytes


def grow(tail: Tail, history: History, *chunks: bytes) -> None:
    for chunk in chunks:
        tail.feed(history.put(Kind.CHUNKS, (chunk,)))


def test_a_reader_that_lags_is_cut_off_with_its_cursor() -> None:
    history = History.of([[b"12345"]], end=False)
    tail = loaded(history)
    quick, slow, late = (reader(tail, lag=10) for _ in range(3))
    assert slow.take()[-1].cursor == history.cursors[1]
    for _ in range(2):
        grow(tail, history, b"12345")
        assert quick.take_bytes()
    assert len(late.take()) == 3  # 10 bytes behind, and no more
    grow(tail, history, b"x")
    with pytest.raises(SlowReader) as cut:
        slow.take()
    assert cut.value.cursor == history.cursors[1]
    with pytest.raises(SlowReader):
        slow.take_bytes()
    assert quick.take_bytes() == late.take_bytes() == b"x"
    assert reader(tail, cut.value.cursor).take_bytes() == b"12345" * 2 + b"x"


def test_a_long_history_is_no_lag() -> None:
    history = History.of([[b"12345"]] * 100)
    each = reader(loaded(history), lag=10)
    assert sum(len(each.take(1)) for _ in range(200)) == 100
    assert each.ending == DONE


async def test_wait_returns_for_what_comes_and_for_the_end() -> None:
    history = History.of([[b"a"]], end=False)
    tail = loaded(history)
    each = reader(tail)
    await each.wait()
    assert each.take_bytes() == b"a"
    waiting = asyncio.ensure_future(each.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    grow(tail, history, b"b")
    await waiting
    assert each.take_bytes() == b"b"
    waiting = asyncio.ensure_future(each.wait())
    await asyncio.sleep(0)
    tail.feed(history.put(Kind.FINISH, ending=DONE))
    await waiting
    assert each.ending == DONE
    await each.wait()


async def test_closing_ends_a_wait_and_tells_once() -> None:
    closed: list[int] = []
    tail = loaded(History.of([], end=False))
    each = tail.reader("", Limits(), lambda: closed.append(1))
    waiting = asyncio.ensure_future(each.wait())
    await asyncio.sleep(0)
    each.close()
    each.close()
    await waiting
    assert closed == [1]
    assert not tail.readers


async def test_a_store_that_closes_tells_its_readers() -> None:
    tail = loaded(History.of([[b"a"]], end=False))
    each = reader(tail)
    assert each.take_bytes() == b"a"
    waiting = asyncio.ensure_future(each.wait())
    await asyncio.sleep(0)
    tail.close_readers()
    await waiting
    for take in (each.take, each.take_bytes):
        with pytest.raises(BrokerUnavailable):
            take()


def test_a_callback_that_fails_is_not_the_others_loss(caplog: pytest.LogCaptureFixture) -> None:
    history = History.of([], end=False)
    tail = loaded(history)
    woken: list[bytes] = []

    def fail() -> None:
        raise RuntimeError("mishap")

    def take_of(each: TailReader) -> Callable[[], None]:
        return lambda: woken.append(each.take_bytes())

    readers = [reader(tail) for _ in range(5)]
    for index, each in enumerate(readers):
        each.on_wake(fail if index % 2 else take_of(each))
    grow(tail, history, b"a")
    assert woken == [b"a"] * 3
    assert "callback failed" in caplog.text


@pytest.mark.parametrize(
    ("kind", "code"), [(Kind.TOMBSTONE, "deleted"), (Kind.EXPIRY, "expired")], ids=["deleted", "expired"]
)
def test_a_life_that_goes_is_ended_and_the_next_is_not_read(kind: Kind, code: str) -> None:
    history = History.of([[b"old"]], end=False)
    tail = loaded(history)
    each = reader(tail)
    tail.feed(history.put(kind))
    history.life, history.chunks = NEXT, []
    tail.feed(history.claim())
    tail.feed(history.put(Kind.CHUNKS, (b"new",)))
    assert each.take_bytes() == b"old"
    assert each.ending is not None
    assert each.ending.code == code
    assert tail.left_behind
    with pytest.raises(StreamNotFound):
        reader(tail)
    again = loaded(history)
    assert reader(again).take_bytes() == b"new"
    with pytest.raises(CursorGone):
        reader(again, each.cursor)


def test_an_ending_stays_when_the_stream_goes() -> None:
    history = History.of([[b"a"]])
    tail = loaded(history)
    each = reader(tail)
    tail.feed(history.put(Kind.TOMBSTONE))
    assert (each.take_bytes(), each.ending) == (b"a", DONE)


def test_records_without_their_claim_are_trimmed() -> None:
    history = History.of([[b"lost"], [b"rest"]])
    tail = Tail("s")
    tail.load(history.stored[2:])
    each = reader(tail)
    assert each.take_bytes() == b""
    assert each.ending is not None
    assert each.ending.code == "trimmed"


def test_a_hole_ends_as_trimmed_and_shows_nothing_behind_it() -> None:
    history = History.of([[b"a"], [b"lost"], [b"b"]])
    tail = Tail("s")
    tail.load([*history.stored[:2], *history.stored[3:]])
    each = reader(tail)
    assert each.take_bytes() == b"a"
    assert each.ending is not None
    assert each.ending.code == "trimmed"


async def test_one_that_waits_for_the_stream_is_told_of_its_claim() -> None:
    tail, history = Tail("s"), History()
    with pytest.raises(StreamNotFound):
        reader(tail)
    waiting = asyncio.ensure_future(tail.bound())
    await asyncio.sleep(0)
    assert not waiting.done()
    tail.feed(history.claim())
    await waiting
    assert reader(tail).ending is None
