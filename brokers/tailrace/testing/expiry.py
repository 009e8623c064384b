"""Time to live: what renews it, what its passing does, and that no reader takes it for a clean end."""

from __future__ import annotations

import asyncio

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import (
    StreamErrored,
    StreamExpired,
    StreamNotFound,
    StreamSuperseded,
    TailraceError,
    TooManyStreams,
)
from tailrace.model import Limits
from tailrace.testing.kit import (
    PATIENCE,
    Clock,
    MakeStore,
    StoreKit,
    chunks,
    drain,
    entries,
    expire,
    lease_of,
    until_ending,
    until_gone,
    within,
    write,
)

A_WHILE = 0.02  # seconds: enough for the broker's milliseconds to move on


async def expires_at(store: StreamStore, stream_id: str) -> int:
    at = (await within(store.status(stream_id))).expires_at
    assert at is not None
    return at


class ExpiryContract(StoreKit):
    @pytest.mark.parametrize("ended", [False, True])
    async def test_an_expired_stream_is_free_for_the_next_generation(
        self, store: StreamStore, other: StreamStore, clock: Clock, ended: bool
    ) -> None:
        lease = await lease_of(store, "a", ttl=clock.ttl)
        await within(store.append("a", b"x", lease))
        if ended:
            await within(store.finalize("a", "done", None, lease))
            await clock.advance(clock.ttl)
        else:
            await expire(other, clock, "a")
        for each in (store, other):
            await until_gone(each, clock, "a")
            with pytest.raises(StreamNotFound):
                await within(each.open("a"))
        assert (await lease_of(other, "a")).incarnation.generation == 2

    async def test_a_reader_meets_the_expiry_behind_the_last_entry(
        self, store: StreamStore, other: StreamStore, clock: Clock
    ) -> None:
        lease = await lease_of(store, "a", ttl=clock.ttl)
        await within(store.append("a", b"x", lease))
        readings = [each.read("a") for each in (store, other)]
        for reading in readings:
            assert (await within(anext(reading))).chunk == b"x"
        await expire(store, clock, "a")
        for reading in readings:
            rest, error = await until_ending(reading)
            assert (rest, type(error), str(error)) == ([], StreamExpired, "Stream expired")
            assert error is not None
            assert error.code == "expired"

    async def test_the_producer_of_an_expired_stream_is_fenced(
        self, store: StreamStore, other: StreamStore, clock: Clock
    ) -> None:
        old = await lease_of(store, "a", ttl=clock.ttl)
        await within(store.append("a", b"old", old))
        await expire(other, clock, "a")
        for call in (lambda: store.append("a", b"late", old), lambda: store.finalize("a", "done", None, old)):
            with pytest.raises(StreamNotFound, match=r"^Stream not found: a$"):
                await within(call())
        new = await lease_of(other, "a")
        for each in (store, other):
            with pytest.raises(StreamSuperseded) as caught:
                await within(each.append("a", b"late", old))
            assert (caught.value.code, str(caught.value)) == (
                "missing",
                "Stream superseded by a new acquisition: a",
            )
            await within(each.finalize("a", "error", "late", old))
        await within(other.append("a", b"new", new))
        await within(other.finalize("a", "done", None, new))
        assert await chunks(store, "a") == [b"new"]

    async def test_append_and_ending_renew_the_time_to_live(
        self, store: StreamStore, other: StreamStore, clock: Clock
    ) -> None:
        lease = await lease_of(store, "a")
        before = await expires_at(other, "a")
        for change in (
            lambda: store.append("a", b"x", lease),
            lambda: store.extend("a", [b"y"], lease),
            lambda: store.finalize("a", "done", None, lease),
        ):
            await clock.advance(A_WHILE)
            await within(change())
            after = await expires_at(other, "a")
            assert after > before
            before = after

    async def test_reading_does_not(self, store: StreamStore, other: StreamStore, clock: Clock) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"x", lease))
        before = await expires_at(store, "a")
        await clock.advance(A_WHILE)
        for each in (store, other):
            reader = await within(each.open("a"))
            assert len(reader.take()) == 1
            reader.close()
            await within(each.acquire("a"))
            assert await expires_at(each, "a") == before
        await within(store.finalize("a", "done", None, lease))
        before = await expires_at(store, "a")
        await clock.advance(A_WHILE)
        for each in (store, other):
            await entries(each, "a")
            assert await expires_at(each, "a") == before

    async def test_a_renewed_stream_outlives_its_first_time(
        self, store: StreamStore, other: StreamStore, clock: Clock
    ) -> None:
        life = clock.ttl if clock.still else 3 * clock.ttl  # room for a machine that is slow between two appends
        lease = await lease_of(store, "a", ttl=life)
        reader = await within(other.open("a"))
        for _ in range(4):
            await clock.advance(life / 4)
            await within(store.append("a", b"x", lease))
        await within(store.finalize("a", "done", None, lease))
        assert len(await drain(reader)) == 4
        assert reader.ending is not None
        assert reader.ending.status == "done"
        reader.close()

    async def test_each_stream_has_its_own_time(self, make_store: MakeStore) -> None:
        store = await make_store(Limits(default_ttl=100, max_ttl=1000))
        for stream_id, ttl, seconds in (("default", None, 100), ("longer", 1000.0, 1000), ("short", 15.5, 15.5)):
            await lease_of(store, stream_id, ttl=ttl)
            info = await within(store.status(stream_id))
            assert info.created_at is not None
            assert info.expires_at is not None
            assert info.expires_at - info.created_at == seconds * 1000

    async def test_an_expired_stream_makes_room(self, make_store: MakeStore, clock: Clock) -> None:
        store = await make_store(Limits(max_streams=2))
        await lease_of(store, "long")
        await lease_of(store, "short", ttl=clock.ttl)
        await expire(store, clock, "short")
        await lease_of(store, "next")

    async def test_streams_of_all_sorts_make_room_one_by_one(self, make_store: MakeStore, clock: Clock) -> None:
        """What was looked at and was not due is looked at again when it is."""
        store = await make_store(Limits(max_streams=3, default_ttl=clock.ttl * 20, max_ttl=clock.ttl * 20))
        await write(store, "stays", b"x")
        await lease_of(store, "first", ttl=clock.ttl)
        renewed = await lease_of(store, "renewed")
        with pytest.raises(TooManyStreams):
            await within(store.acquire("more"))
        for _ in range(3):
            await clock.advance(clock.ttl / 2)
            await within(store.append("renewed", b"x", renewed))
        async with asyncio.timeout(PATIENCE):
            while not await self._finds_room(store, "more"):  # nobody asks for "first": a claim has to look
                await clock.advance(0.1)
        with pytest.raises(TooManyStreams):
            await within(store.acquire("again"))
        await within(store.delete("more"))
        await lease_of(store, "more")
        with pytest.raises(TooManyStreams):
            await within(store.acquire("again"))

    async def _finds_room(self, store: StreamStore, stream_id: str) -> bool:
        try:
            return (await store.acquire(stream_id)).lease is not None
        except TooManyStreams:
            return False

    async def test_a_stream_ends_at_its_longest_life(self, make_store: MakeStore, clock: Clock) -> None:
        """Which its producer cannot put off by appending."""
        store, other = await make_store(Limits(max_stream_age=clock.ttl)), await make_store()
        lease = await lease_of(store, "a")
        await within(store.append("a", b"x", lease))
        reading = other.read("a")
        assert (await within(anext(reading))).chunk == b"x"
        await clock.advance(clock.ttl)
        await clock.advance(A_WHILE)
        rest, error = await until_ending(reading)
        assert (rest, type(error)) == ([], StreamErrored)
        assert error is not None
        assert error.code == "stream-too-old"
        with pytest.raises(TailraceError):
            await within(store.append("a", b"late", lease))
        assert (await until_ending(store.read("a")))[0] == [b"x"]
