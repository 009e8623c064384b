"""Promise 3, as far as a store shows it: what an append stores, and who may append."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import LeaseRequired, StreamNotFound
from tailrace.testing.kit import StoreKit, chunks, entries, lease_of, within, write


class AppendContract(StoreKit):
    async def test_what_was_appended_is_read_in_order(self, store: StreamStore, other: StreamStore) -> None:
        cursors = await write(store, "a", b"one ", b"two ", b"three")
        for each in (store, other):
            got = await entries(each, "a")
            assert [entry.chunk for entry in got] == [b"one ", b"two ", b"three"]
            assert [entry.cursor for entry in got] == cursors

    async def test_chunks_are_octets(self, store: StreamStore, other: StreamStore) -> None:
        octets = [bytes(range(256)), b"\r\n\x00\xff", "schön\u2028".encode()]
        await write(store, "a", *octets)
        assert await chunks(other, "a") == octets

    async def test_an_empty_chunk_is_an_entry(self, store: StreamStore, other: StreamStore) -> None:
        cursors = await write(store, "a", b"", b"x", b"", b"")
        assert len(set(cursors)) == 4
        assert cursors == sorted(cursors)
        assert await chunks(other, "a") == [b"", b"x", b"", b""]
        assert await chunks(other, "a", cursors[0]) == [b"x", b"", b""]
        info = await within(other.status("a"))
        assert (info.entries, info.bytes, info.cursor) == (4, 1, cursors[-1])

    async def test_several_chunks_at_once(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"1", lease))
        last = await within(store.extend("a", [b"2", b"", b"3"], lease))
        await within(store.append("a", b"4", lease))
        await within(store.finalize("a", "done", None, lease))
        got = await entries(other, "a")
        assert [entry.chunk for entry in got] == [b"1", b"2", b"", b"3", b"4"]
        assert got[3].cursor == last

    async def test_appends_at_once_keep_the_order_of_their_calls(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        numbers = [b"%d;" % number for number in range(200)]
        cursors = await within(asyncio.gather(*(store.append("a", number, lease) for number in numbers)))
        await within(store.finalize("a", "done", None, lease))
        got = await entries(other, "a")
        assert [entry.chunk for entry in got] == numbers
        assert [entry.cursor for entry in got] == cursors

    async def test_without_a_lease_the_stores_own_is_used(self, store: StreamStore) -> None:
        await lease_of(store, "a")
        await within(store.append("a", b"x"))
        await within(store.extend("a", [b"y"]))
        await within(store.finalize("a", "done"))
        assert await chunks(store, "a") == [b"x", b"y"]

    async def test_without_any_lease_nothing_is_written(self, store: StreamStore, other: StreamStore) -> None:
        await lease_of(store, "a")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: other.append("a", b"x"),
            lambda: other.extend("a", [b"x"]),
            lambda: other.finalize("a", "done"),
        ]
        for call in calls:
            with pytest.raises(LeaseRequired) as caught:
                await within(call())
            assert caught.value.code == "lease-required"
        await within(store.finalize("a", "done"))
        assert await chunks(other, "a") == []

    async def test_a_lease_serves_in_another_process(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"here ", lease))
        await within(other.append("a", b"there", lease))
        await within(other.finalize("a", "done", None, lease))
        assert await chunks(store, "a") == [b"here ", b"there"]

    async def test_a_lease_serves_its_own_stream_only(self, store: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await lease_of(store, "b")
        with pytest.raises(LeaseRequired):
            await within(store.append("b", b"x", lease))
        assert (await within(store.status("b"))).entries == 0

    async def test_a_stream_that_is_not_there_is_not_found(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(other, "a")
        await within(other.delete("a"))

        async def read() -> None:
            async for _ in store.read("a"):
                pass

        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.append("a", b"x"),
            lambda: store.append("a", b"x", lease),
            lambda: store.extend("a", [b"x"], lease),
            lambda: store.finalize("a", "done"),
            lambda: store.finalize("a", "done", None, lease),
            lambda: store.open("a"),
            read,
        ]
        for call in calls:
            with pytest.raises(StreamNotFound) as caught:
                await within(call())
            assert (caught.value.code, str(caught.value)) == ("missing", "Stream not found: a")

    async def test_a_callers_buffer_is_not_the_streams(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        buffer = bytearray(b"abc")
        await within(store.append("a", buffer, lease))  # type: ignore[arg-type]
        buffer[:] = b"xyz"
        view = memoryview(bytearray(b"12345"))
        await within(store.extend("a", [view[1:3]], lease))  # type: ignore[list-item]
        view[:] = b"98765"
        await within(store.finalize("a", "done", None, lease))
        for each in (store, other):
            got = await chunks(each, "a")
            assert got == [b"abc", b"23"]
            assert {type(chunk) for chunk in got} == {bytes}  # which nobody can change

    @pytest.mark.parametrize("chunk", ["text", 5, None])
    async def test_what_is_not_bytes_is_refused_and_stores_nothing(self, store: StreamStore, chunk: object) -> None:
        lease = await lease_of(store, "a")
        with pytest.raises(TypeError):
            await within(store.append("a", chunk, lease))  # type: ignore[arg-type]
        await within(store.append("a", b"x", lease))
        await within(store.finalize("a", "done", None, lease))
        assert await chunks(store, "a") == [b"x"]

    async def test_status_tells_what_is_stored(self, store: StreamStore, other: StreamStore) -> None:
        assert (await within(other.status("a"))).status == "missing"
        lease = await lease_of(store, "a")
        info = await within(other.status("a"))
        assert (info.status, info.entries, info.bytes, info.incarnation) == ("streaming", 0, 0, lease.incarnation)
        cursor = await within(store.append("a", b"12345", lease))
        info = await within(other.status("a"))
        assert (info.status, info.entries, info.bytes, info.cursor) == ("streaming", 1, 5, cursor)
        assert (info.epoch, info.code, info.message) == (lease.epoch, None, None)
        assert info.created_at is not None
        assert info.expires_at is not None
        assert info.created_at < info.expires_at

    async def test_a_status_never_lags_behind_what_was_confirmed(self, store: StreamStore, other: StreamStore) -> None:
        """Though this store follows the stream, and what another stored may reach its tail, or a replica, later."""

        async def listed() -> dict[str, str]:
            return {info.stream_id: info.status async for info in store.streams()}

        for number in range(10):
            stream_id = f"s{number}"
            lease = await lease_of(other, stream_id)
            await within(other.append(stream_id, b"first", lease))
            reader = await within(store.open(stream_id))
            cursor = await within(other.append(stream_id, b"next", lease))
            assert (await within(store.status(stream_id))).cursor == cursor
            await within(other.finalize(stream_id, "done", None, lease))
            assert (await within(store.status(stream_id))).status == "done"
            assert (await within(listed()))[stream_id] == "done"
            await within(other.delete(stream_id))
            assert (await within(store.status(stream_id))).status == "missing"
            assert stream_id not in await within(listed())
            await within(other.acquire(stream_id))
            assert (await within(listed()))[stream_id] == "streaming"
            assert (await within(store.status(stream_id))).status == "streaming"
            reader.close()
