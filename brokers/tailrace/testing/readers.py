"""Promise 2: all readers see the same bytes in the same order, whenever they come and however they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import pytest

from tailrace.contracts import Reader, StreamStore
from tailrace.errors import StreamNotFound
from tailrace.model import Entry
from tailrace.testing.kit import StoreKit, chunks, drain, drain_bytes, entries, lease_of, until_ending, within, write


def _ended(reader: Reader) -> bool:
    return reader.ending is not None


class ReaderContract(StoreKit):
    async def test_readers_of_any_time_see_the_same(self, store: StreamStore, other: StreamStore) -> None:
        numbers = [b"%d;" % number for number in range(60)]
        lease = await lease_of(store, "a")
        readings = []
        for index, number in enumerate(numbers):
            if index % 6 == 0:
                readings += [asyncio.create_task(entries(each, "a")) for each in (store, other)]
            await within(store.append("a", number, lease))
        await within(store.finalize("a", "done", None, lease))
        readings += [asyncio.create_task(entries(each, "a")) for each in (store, other)]
        results = await within(asyncio.gather(*readings))
        assert [entry.chunk for entry in results[0]] == numbers
        seen = {tuple((entry.chunk, entry.cursor) for entry in result) for result in results}
        assert len(seen) == 1

    async def test_a_stream_of_many_megabytes_is_read_whole(self, store: StreamStore, other: StreamStore) -> None:
        parts = [b"%03d" % number * 60_000 for number in range(50)]
        lease = await lease_of(store, "a")
        for part in parts[:40]:
            await within(store.append("a", part, lease))
        reading = asyncio.create_task(chunks(other, "a"))  # it comes when much is there, and follows
        for part in parts[40:]:
            await within(store.append("a", part, lease))
        await within(store.finalize("a", "done", None, lease))
        assert await within(reading) == parts
        for each in (store, other):
            assert await chunks(each, "a") == parts

    async def test_closing_a_read_early_is_no_error(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.extend("a", [b"1", b"2", b"3"], lease))
        for each in (store, other):
            reading = cast("AsyncGenerator[Entry, None]", each.read("a"))
            async with aclosing(reading):
                async for entry in reading:
                    assert entry.chunk == b"1"
                    break
            await within(cast("AsyncGenerator[Entry, None]", each.read("a")).aclose())
        await within(store.append("a", b"4", lease))
        await within(store.finalize("a", "done", None, lease))
        assert await chunks(other, "a") == [b"1", b"2", b"3", b"4"]

    async def test_closing_a_read_before_a_failure_hides_it(self, store: StreamStore) -> None:
        await write(store, "a", b"partial", end="error")
        reading = cast("AsyncGenerator[Entry, None]", store.read("a"))
        async with aclosing(reading):
            assert (await within(anext(reading))).chunk == b"partial"

    async def test_one_reader_leaving_does_not_touch_the_others(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        stay, leave = await within(other.open("a")), await within(other.open("a"))
        waiting = asyncio.create_task(leave.wait())
        await asyncio.sleep(0)
        leave.close()
        leave.close()
        await within(waiting)
        await within(store.append("a", b"x", lease))
        await within(store.finalize("a", "done", None, lease))
        assert [entry.chunk for entry in await drain(stay)] == [b"x"]
        stay.close()

    async def test_a_cancelled_read_leaves_the_stream_as_it_was(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"x", lease))
        reading = other.read("a")
        assert (await within(anext(reading))).chunk == b"x"
        waiting = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(waiting)
        await within(store.append("a", b"y", lease))
        await within(store.finalize("a", "done", None, lease))
        assert await chunks(other, "a") == [b"x", b"y"]

    async def test_a_reader_tells_where_it_is(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a", content_type="text/plain", headers=[("x-a", "1")])
        first = await within(store.append("a", b"one", lease))
        reader = await within(other.open("a"))
        assert not _ended(reader)
        assert (reader.info.content_type, list(reader.info.headers)) == ("text/plain", [("x-a", "1")])
        assert reader.info.incarnation == lease.incarnation
        await within(reader.wait())
        assert [entry.cursor for entry in reader.take()] == [first]
        assert reader.cursor == first
        assert reader.take() == []
        last = await within(store.append("a", b"two", lease))
        await within(store.finalize("a", "error", "boom", lease))
        got = await drain(reader)
        assert [(entry.chunk, entry.cursor) for entry in got] == [(b"two", last)]
        assert reader.cursor == last
        assert reader.ending is not None
        assert (reader.ending.status, reader.ending.code, reader.ending.message) == ("error", "error", "boom")
        await within(reader.wait())  # an ended reader never blocks
        assert reader.take() == []
        reader.close()

    async def test_the_ending_comes_behind_the_last_entry(self, store: StreamStore, other: StreamStore) -> None:
        await write(store, "a", b"x")
        for each in (store, other):
            reader = await within(each.open("a"))
            assert not _ended(reader)
            reader.take()
            assert _ended(reader)
            reader.close()

    async def test_a_body_may_be_taken_whole(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.extend("a", [b"1", b"", b"23"], lease))
        reader = await within(other.open("a"))
        body = reader.take_bytes()
        await within(store.extend("a", [b"4", b"56"], lease))
        await within(store.finalize("a", "done", None, lease))
        body += await drain_bytes(reader)
        assert body == b"123456"
        assert reader.take_bytes() == b""
        reader.close()

    async def test_a_callback_wakes_instead_of_wait(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        reader = await within(other.open("a"))
        woken = asyncio.Event()
        reader.on_wake(woken.set)
        got = reader.take_bytes()
        for chunk in (b"x", b"y"):
            await within(store.append("a", chunk, lease))
            while not got.endswith(chunk):
                await within(woken.wait())
                woken.clear()
                got += reader.take_bytes()
        await within(store.finalize("a", "done", None, lease))
        while not _ended(reader):
            await within(woken.wait())
            woken.clear()
            assert reader.take_bytes() == b""
        assert got == b"xy"
        reader.close()

    async def test_a_stream_may_be_awaited(self, store: StreamStore, other: StreamStore) -> None:
        with pytest.raises(StreamNotFound, match=r"^Stream not found: a$"):
            await within(other.open("a"))
        with pytest.raises(StreamNotFound, match=r"^Stream not found: a$"):
            await within(other.open("a", wait=0.01))
        opening = [asyncio.create_task(each.open("a", wait=60)) for each in (store, other)]
        await asyncio.sleep(0)
        await write(store, "a", b"x")
        for task in opening:
            reader = await within(task)
            assert [entry.chunk for entry in await drain(reader)] == [b"x"]
            reader.close()

    async def test_a_deleted_stream_may_be_awaited_again(self, store: StreamStore, other: StreamStore) -> None:
        await write(store, "a", b"old")
        await within(store.delete("a"))
        opening = [asyncio.create_task(each.open("a", wait=60)) for each in (store, other)]
        await asyncio.sleep(0)
        await write(other, "a", b"new")
        for task in opening:
            reader = await within(task)
            assert [entry.chunk for entry in await drain(reader)] == [b"new"]
            reader.close()

    async def test_every_stream_is_listed(self, store: StreamStore, other: StreamStore) -> None:
        assert [info async for info in other.streams()] == []
        lease = await lease_of(store, "live")
        await within(store.append("live", b"x", lease))
        await write(store, "done", b"xyz")
        await write(store, "error", end="error")
        await write(store, "deleted", b"x")
        await within(store.delete("deleted"))
        for each in (store, other):
            listed = {info.stream_id: (info.status, info.bytes) async for info in each.streams()}
            assert listed == {"live": ("streaming", 1), "done": ("done", 3), "error": ("error", 0)}

    async def test_a_replay_is_the_same_again_and_again(self, store: StreamStore, other: StreamStore) -> None:
        numbers = [b"%d;" % number * (number % 50) for number in range(500)]
        lease = await lease_of(store, "a")
        await within(store.extend("a", numbers, lease))
        await within(store.finalize("a", "error", "boom", lease))
        for _ in range(3):
            for each in (store, other):
                got, error = await until_ending(each.read("a"))
                assert (got, str(error)) == (numbers, "boom")
