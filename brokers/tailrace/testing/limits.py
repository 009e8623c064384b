"""Promise 7: every limit has its own error, and what is behind a limit does no harm to what is within."""

from __future__ import annotations

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import (
    ChunkTooLarge,
    SlowReader,
    StreamTooLarge,
    TooManyEntries,
    TooManyReaders,
    TooManyStreams,
    TtlTooLong,
)
from tailrace.model import Limits, Role
from tailrace.testing.kit import MakeStore, StoreKit, chunks, content, drain, lease_of, within, write


class LimitContract(StoreKit):
    async def test_a_chunk_too_large_is_refused(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(max_chunk_bytes=4))
        lease = await lease_of(store, "a")
        for given in (lease, None):
            with pytest.raises(ChunkTooLarge, match=r"^Chunk exceeds maxChunkBytes: 5") as caught:
                await within(store.append("a", b"hello", given))
            assert (caught.value.code, caught.value.setting) == ("chunk-too-large", "TAILRACE_MAX_CHUNK_BYTES")
        await within(store.append("a", b"four", lease))
        await within(store.finalize("a", "done", None, lease))
        assert await chunks(store, "a") == [b"four"]

    async def test_entries_beyond_the_limit_are_refused(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(max_entries=2))
        lease = await lease_of(store, "a")
        await within(store.append("a", b"1", lease))
        await within(store.append("a", b"2", lease))
        for _ in range(2):
            with pytest.raises(TooManyEntries) as caught:
                await within(store.append("a", b"3", lease))
            assert (caught.value.code, str(caught.value)) == (
                "too-many-entries",
                "Stream exceeded maxEntriesPerStream: a",
            )
        await within(store.finalize("a", "done", None, lease))
        assert await chunks(store, "a") == [b"1", b"2"]

    async def test_bytes_beyond_the_limit_are_refused(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(max_stream_bytes=10))
        lease = await lease_of(store, "a")
        await within(store.append("a", b"12345678", lease))
        with pytest.raises(StreamTooLarge, match=r"^Stream exceeded maxStreamBytes: a") as caught:
            await within(store.append("a", b"901", lease))
        assert caught.value.code == "stream-too-large"
        await within(store.append("a", b"90", lease))
        await within(store.append("a", b"", lease))
        await within(store.finalize("a", "done", None, lease))
        assert await content(store, "a") == b"1234567890"

    async def test_of_several_chunks_those_before_the_limit_are_kept(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(max_entries=3))
        lease = await lease_of(store, "a")
        with pytest.raises(TooManyEntries):
            await within(store.extend("a", [b"%d" % number for number in range(6)], lease))
        await within(store.finalize("a", "done", None, lease))
        got = await content(store, "a")
        assert b"012".startswith(got)

    async def test_streams_beyond_the_limit_are_refused(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(max_streams=2))
        await lease_of(store, "a")
        await write(store, "b", b"x")
        for stream_id in ("c", "d"):
            with pytest.raises(TooManyStreams) as caught:
                await within(store.acquire(stream_id))
            assert (caught.value.code, str(caught.value)) == ("too-many-streams", "maxStreams exceeded")
        for stream_id in ("a", "b"):
            assert (await within(store.acquire(stream_id))).role == Role.CONSUMER
        await within(store.delete("b"))
        await lease_of(store, "c")

    async def test_a_time_to_live_beyond_the_limit_is_refused(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(default_ttl=5, max_ttl=10))
        with pytest.raises(TtlTooLong) as caught:
            await within(store.acquire("a", ttl=10.5))
        assert (caught.value.code, caught.value.setting) == ("ttl-too-long", "TAILRACE_MAX_TTL")
        assert (await within(store.acquire("a", ttl=10))).role == Role.PRODUCER

    async def test_readers_beyond_the_limit_are_refused(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(max_readers=2))
        await write(store, "a", b"x")
        await lease_of(store, "b")
        readers = [await within(store.open(stream_id)) for stream_id in ("a", "b")]
        for stream_id in ("a", "b"):
            with pytest.raises(TooManyReaders) as caught:
                await within(store.open(stream_id))
            assert caught.value.code == "too-many-readers"
        readers[0].close()
        readers[0].close()
        assert await chunks(store, "a") == [b"x"]
        readers[1].close()

    async def test_a_slow_reader_is_cut_off_and_resumes(self, make_store: MakeStore, other: StreamStore) -> None:
        store = await make_store(Limits(max_reader_lag_bytes=1000))
        lease = await lease_of(other, "a")
        await within(other.append("a", b"first", lease))
        slow, swift = await within(store.open("a")), await within(store.open("a"))
        assert [entry.chunk for entry in slow.take()] == [b"first"]
        got = b"".join(entry.chunk for entry in swift.take())
        numbers = [b"%099d;" % number for number in range(30)]
        for number in numbers:
            await within(other.append("a", number, lease))
            while not got.endswith(number):
                await within(swift.wait())
                got += swift.take_bytes()
        await within(slow.wait())
        with pytest.raises(SlowReader) as caught:
            slow.take()
        assert caught.value.code == "slow-reader"
        slow.close()
        await within(other.finalize("a", "done", None, lease))
        assert got == b"first" + b"".join(numbers)
        rest = await content(store, "a", caught.value.cursor)
        assert b"first" + rest == got
        assert await drain(swift) == []
        swift.close()

    async def test_a_reader_that_comes_late_is_not_slow(self, make_store: MakeStore) -> None:
        """History does not count as lag: only what grows while a reader takes nothing."""
        store = await make_store(Limits(max_reader_lag_bytes=1000))
        lease = await lease_of(store, "a")
        await within(store.extend("a", [b"x" * 500] * 10, lease))
        reader = await within(store.open("a"))
        await within(store.append("a", b"y", lease))
        await within(store.finalize("a", "done", None, lease))
        assert sum(len(entry.chunk) for entry in await drain(reader)) == 5001
        reader.close()
