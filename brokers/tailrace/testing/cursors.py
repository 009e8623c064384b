"""Promise 2, resumed: cursors at every entry, offsets at every byte, and what is no position of this stream."""

from __future__ import annotations

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import CursorGone, InvalidCursor, OffsetOutOfRange, TailraceError
from tailrace.model import Incarnation, Offset
from tailrace.testing.kit import StoreKit, content, drain, drain_bytes, entries, lease_of, within, write

CHUNKS = [b"Lorem ", b"", b"ipsum", b" ", b"", b"", b"dolor sit", b"."]
WHOLE = b"".join(CHUNKS)


async def refusal(store: StreamStore, kind: type[TailraceError], cursor: str | Offset) -> TailraceError:
    """The error that both ways to read raise at their start."""
    with pytest.raises(kind):
        await entries(store, "a", cursor)
    with pytest.raises(kind) as caught:
        await within(store.open("a", cursor))
    return caught.value


class CursorContract(StoreKit):
    async def test_every_cursor_resumes_behind_its_entry(self, store: StreamStore, other: StreamStore) -> None:
        cursors = await write(store, "a", *CHUNKS)
        assert cursors == sorted(set(cursors))
        for each in (store, other):
            for index, cursor in enumerate(["", *cursors]):
                got = await entries(each, "a", cursor)
                assert [entry.chunk for entry in got] == CHUNKS[index:]
                assert [entry.cursor for entry in got] == cursors[index:]

    async def test_every_cursor_resumes_a_live_stream(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        cursors = ["", *[await within(store.append("a", chunk, lease)) for chunk in CHUNKS]]
        readers = [await within(each.open("a", cursor)) for each in (store, other) for cursor in cursors]
        assert [reader.cursor for reader in readers[1 : len(cursors)]] == cursors[1:]
        await within(store.append("a", b" Amet.", lease))
        await within(store.finalize("a", "done", None, lease))
        for reader, index in zip(readers, 2 * list(range(len(cursors))), strict=True):
            assert [entry.chunk for entry in await drain(reader)] == [*CHUNKS[index:], b" Amet."]
            reader.close()

    async def test_a_cursor_of_a_live_stream_serves_after_its_ending(
        self, store: StreamStore, other: StreamStore
    ) -> None:
        lease = await lease_of(store, "a")
        await within(store.extend("a", CHUNKS[:4], lease))
        reader = await within(other.open("a"))
        reader.take()
        cursor = reader.cursor
        reader.close()
        await within(store.extend("a", CHUNKS[4:], lease))
        await within(store.finalize("a", "done", None, lease))
        for _ in range(2):
            for each in (store, other):
                assert await content(each, "a", cursor) == b"".join(CHUNKS[4:])

    @pytest.mark.parametrize("live", [True, False])
    async def test_every_byte_is_an_offset(self, store: StreamStore, other: StreamStore, live: bool) -> None:
        lease = await lease_of(store, "a")
        cursors = [await within(store.append("a", chunk, lease)) for chunk in CHUNKS]
        if not live:
            await within(store.finalize("a", "done", None, lease))
        readers = []
        for each in (store, other):
            for offset in range(len(WHOLE) + 1):
                for incarnation in (None, lease.incarnation):
                    readers.append((offset, await within(each.open("a", Offset(offset, incarnation)))))
                    readers.append((offset, await within(each.open("a", Offset(offset, incarnation)))))
        if live:
            await within(store.finalize("a", "done", None, lease))
        for number, (offset, reader) in enumerate(readers):
            if number % 2:
                body = await drain_bytes(reader)
            else:
                got = await drain(reader)
                body = b"".join(entry.chunk for entry in got)
                assert [entry.cursor for entry in got] == cursors[len(cursors) - len(got) :]
            assert body == WHOLE[offset:], offset
            reader.close()

    async def test_read_takes_offsets_too(self, store: StreamStore, other: StreamStore) -> None:
        await write(store, "a", *CHUNKS)
        for offset in range(len(WHOLE) + 1):
            assert await content(other, "a", Offset(offset)) == WHOLE[offset:]

    async def test_an_offset_behind_the_end_waits_for_a_live_stream(
        self, store: StreamStore, other: StreamStore
    ) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"0123", lease))
        readers = [await within(each.open("a", Offset(6))) for each in (store, other)]
        for chunk in (b"4", b"", b"56", b"789"):
            await within(store.append("a", chunk, lease))
        await within(store.finalize("a", "done", None, lease))
        for reader in readers:
            assert b"".join(entry.chunk for entry in await drain(reader)) == b"6789"
            reader.close()

    async def test_an_offset_behind_the_end_of_an_ended_stream_is_out_of_range(
        self, store: StreamStore, other: StreamStore
    ) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"0123", lease))
        await within(store.finalize("a", "error", "boom", lease))
        for each in (store, other):
            for offset in (Offset(5), Offset(2**50, lease.incarnation)):
                error = await refusal(each, OffsetOutOfRange, offset)
                assert error.code == "offset-out-of-range"
                assert isinstance(error, OffsetOutOfRange)
                assert error.length == 4

    async def test_another_incarnations_position_is_gone(self, store: StreamStore, other: StreamStore) -> None:
        first = await lease_of(store, "a")
        cursor = await within(store.append("a", b"old", first))
        await within(store.delete("a"))
        second = await lease_of(store, "a")
        await within(store.append("a", b"new", second))
        for end in (False, True):
            if end:
                await within(store.finalize("a", "done", None, second))
            for each in (store, other):
                for position in (cursor, Offset(0, first.incarnation), Offset(3, first.incarnation)):
                    error = await refusal(each, CursorGone, position)
                    assert error.code == "cursor-gone"
                    assert isinstance(error, CursorGone)
                    assert error.incarnation == str(second.incarnation)
        assert await content(other, "a", Offset(1)) == b"ew"

    async def test_twins_are_told_apart_by_their_nonces(self, store: StreamStore) -> None:
        lease = await lease_of(store, "a")
        life = Incarnation(lease.incarnation.generation, lease.incarnation.nonce ^ 1)
        await refusal(store, CursorGone, Offset(0, life))

    async def test_what_is_no_cursor_of_this_stream_is_refused(self, store: StreamStore, other: StreamStore) -> None:
        (cursor,) = await write(store, "a", b"x")
        (foreign,) = await write(store, "b", b"x")
        garbage = [
            "0",
            "x",
            cursor[:-1],
            cursor + "0",
            cursor.upper(),
            " " + cursor,
            cursor + "\n",
            "ü" * 49,
            "0" * 9999,
        ]
        for each in (store, other):
            for text in (foreign, *garbage):
                error = await refusal(each, InvalidCursor, text)
                assert error.code == "invalid-cursor"
                assert len(str(error)) < 300
            await refusal(each, InvalidCursor, Offset(-1))
        assert await content(other, "a", cursor) == b""
