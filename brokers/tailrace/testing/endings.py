"""Promise 5: every ending is true. A clean end stands for ``done`` alone (and, by the seed contract, for a delete)."""

from __future__ import annotations

import asyncio

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import StreamCancelled, StreamErrored, StreamFinalized, StreamNotFound
from tailrace.model import Incarnation, Role
from tailrace.testing.kit import MakeStore, StoreKit, chunks, drain, lease_of, until_ending, within, write


class EndingContract(StoreKit):
    async def test_done_is_a_clean_end(self, store: StreamStore, other: StreamStore) -> None:
        reading = asyncio.create_task(self._read_when_there(other, "a"))
        await write(store, "a", b"x", b"y")
        assert await within(reading) == ([b"x", b"y"], None)
        assert await until_ending(other.read("a")) == ([b"x", b"y"], None)
        info = await within(other.status("a"))
        assert (info.status, info.status.seed, info.code, info.message) == ("done", "done", None, None)

    async def _read_when_there(self, store: StreamStore, stream_id: str) -> object:
        reader = await store.open(stream_id, wait=30)
        reader.close()
        return await until_ending(store.read(stream_id))

    @pytest.mark.parametrize(
        ("end", "message", "code", "shown", "told"),
        [
            ("error", "boom", None, "boom", "error"),
            ("error", None, None, "Stream errored", "error"),
            ("error", "over quota", "rate-limited", "over quota", "rate-limited"),
            ("error", "schön \U0001f30d\n\x00", None, "schön \U0001f30d\n\x00", "error"),
            ("error", "not a delete", "deleted", "not a delete", "deleted"),
            ("cancelled", "by the user", None, "by the user", "cancelled"),
        ],
    )
    async def test_a_failure_is_raised_behind_the_last_entry(
        self,
        store: StreamStore,
        other: StreamStore,
        end: str,
        message: str | None,
        code: str | None,
        shown: str,
        told: str,
    ) -> None:
        lease = await lease_of(store, "a")
        early = other.read("a")
        await within(store.append("a", b"partial", lease))
        assert (await within(anext(early))).chunk == b"partial"
        await within(store.finalize("a", end, message, lease, code=code))
        kind = StreamErrored if end == "error" else StreamCancelled
        rest, error = await until_ending(early)
        assert (rest, type(error), str(error)) == ([], kind, shown)
        for each in (store, other):
            got, error = await until_ending(each.read("a"))
            assert (got, type(error), str(error)) == ([b"partial"], kind, shown)
            assert error is not None
            assert error.code == told
            info = await within(each.status("a"))
            assert (info.status, info.status.seed, info.code, info.message) == (end, "error", told, message)

    async def test_the_first_ending_wins(self, store: StreamStore, other: StreamStore) -> None:
        for first, second in (("done", "error"), ("error", "done"), ("cancelled", "done"), ("done", "done")):
            stream_id = f"{first}-{second}"
            lease = await lease_of(store, stream_id)
            await within(store.finalize(stream_id, first, "first", lease))
            await within(store.finalize(stream_id, second, "second", lease))
            await within(other.finalize(stream_id, second, "third", lease))
            info = await within(other.status(stream_id))
            assert (info.status, info.message) == (first, None if first == "done" else "first")

    async def test_endings_at_once_are_one(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        calls = [each.finalize("a", "error", each.members.id, lease) for each in (store, other, store, other)]
        await within(asyncio.gather(*calls))
        message = (await within(store.status("a"))).message
        assert message in (store.members.id, other.members.id)
        for each in (store, other):
            assert str((await until_ending(each.read("a")))[1]) == message

    async def test_an_unknown_ending_is_refused(self, store: StreamStore) -> None:
        lease = await lease_of(store, "a")
        for status in ("", "missing", "streaming", "Done", "producer-lost"):
            with pytest.raises(ValueError, match="finalize"):
                await within(store.finalize("a", status, None, lease))
        assert (await within(store.status("a"))).status == "streaming"

    @pytest.mark.parametrize("end", ["done", "error", "cancelled"])
    async def test_nothing_is_appended_behind_an_ending(self, store: StreamStore, other: StreamStore, end: str) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"x", lease))
        await within(store.finalize("a", end, "why", lease))
        for each in (store, other):
            with pytest.raises(StreamFinalized) as caught:
                await within(each.append("a", b"late", lease))
            assert (caught.value.code, str(caught.value)) == ("finalized", "Stream already finalized: a")
            with pytest.raises(StreamFinalized):
                await within(each.extend("a", [b"late"], lease))
            assert (await until_ending(each.read("a")))[0] == [b"x"]

    async def test_a_store_needs_no_lease_to_tell_an_ending(self, store: StreamStore) -> None:
        await lease_of(store, "a")
        await within(store.finalize("a", "done"))
        with pytest.raises(StreamFinalized, match=r"^Stream already finalized: a$"):
            await within(store.append("a", b"late"))
        await within(store.finalize("a", "error", "late"))
        assert (await within(store.status("a"))).status == "done"

    async def test_an_ending_comes_behind_the_appends_before_it(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        numbers = [b"%d;" % number for number in range(100)]
        appends = [asyncio.create_task(store.append("a", number, lease)) for number in numbers]
        await asyncio.sleep(0)
        await within(store.finalize("a", "done", None, lease))
        await within(asyncio.gather(*appends))
        assert await chunks(other, "a") == numbers

    async def test_a_delete_ends_readers_cleanly(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"x", lease))
        readings = [each.read("a") for each in (store, other)]
        opened = [await within(each.open("a")) for each in (store, other)]
        for reading in readings:
            assert (await within(anext(reading))).chunk == b"x"
        assert await within(other.delete("a"))
        for reading in readings:
            assert await until_ending(reading) == ([], None)
        for reader in opened:
            assert [entry.chunk for entry in await drain(reader)] == [b"x"]
            assert reader.ending is not None
            assert (reader.ending.status, reader.ending.code) == ("missing", "deleted")
            reader.close()

    @pytest.mark.parametrize("end", [None, "done", "error"])
    async def test_a_deleted_stream_is_not_there(self, store: StreamStore, other: StreamStore, end: str | None) -> None:
        assert await within(other.delete("a")) is False
        await write(store, "a", b"x", end=end)
        assert await within(other.delete("a")) is True
        assert await within(store.delete("a")) is False
        for each in (store, other):
            assert (await within(each.status("a"))).status == "missing"
            with pytest.raises(StreamNotFound):
                await within(each.open("a"))
            assert [info async for info in each.streams()] == []

    async def test_a_delete_may_name_the_incarnation(self, store: StreamStore, other: StreamStore) -> None:
        first = await lease_of(store, "a")
        assert await within(other.delete("a", Incarnation(1, first.incarnation.nonce ^ 1))) is False
        assert await within(other.delete("a", first.incarnation)) is True
        second = await lease_of(store, "a")
        assert await within(other.delete("a", first.incarnation)) is False
        await within(store.append("a", b"x", second))
        assert (await within(other.acquire("a"))).role == Role.CONSUMER

    async def test_a_reader_never_runs_into_the_next_life(self, store: StreamStore, other: StreamStore) -> None:
        await write(store, "a", b"old", end=None)
        readers = [await within(each.open("a")) for each in (store, other)]
        await within(other.delete("a"))
        await write(other, "a", b"new", b"newer")
        for reader in readers:
            assert [entry.chunk for entry in await drain(reader)] == [b"old"]
            reader.close()
        for each in (store, other):
            assert await chunks(each, "a") == [b"new", b"newer"]

    async def test_closing_a_store_ends_what_it_produces(self, make_store: MakeStore, other: StreamStore) -> None:
        store = await make_store()
        kept = await lease_of(store, "kept")
        await within(store.append("kept", b"x", kept))
        await write(store, "whole", b"y")
        reading = other.read("kept")
        assert (await within(anext(reading))).chunk == b"x"
        await within(store.aclose())
        rest, error = await until_ending(reading)
        assert rest == []
        assert error is not None
        assert error.code == "producer-lost"
        info = await within(other.status("kept"))
        assert (info.code, info.status.seed) == ("producer-lost", "error")
        assert await chunks(other, "whole") == [b"y"]
        await within(store.aclose())
