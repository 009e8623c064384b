"""Promise 1: one producer. Who gets which role, when an id is free, and what a claim keeps."""

from __future__ import annotations

import asyncio

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import InvalidStreamId, StreamCancelled, StreamFinalized
from tailrace.model import STREAM_ID_PATTERN, Ending, Role, RunRef, Status
from tailrace.testing.kit import NO_IDS, ODD_IDS, MakeStore, StoreKit, chunks, lease_of, until_ending, within, write


class ElectionContract(StoreKit):
    async def test_it_declares_what_it_promises(self, store: StreamStore) -> None:
        assert store.capabilities == self.capabilities

    async def test_the_first_caller_is_the_producer(self, store: StreamStore, other: StreamStore) -> None:
        first = await within(store.acquire("a"))
        later = [await within(each.acquire("a")) for each in (store, other, store)]
        assert (first.role, first.incarnation.generation) == (Role.PRODUCER, 1)
        assert first.lease is not None
        assert (first.lease.stream_id, first.lease.incarnation) == ("a", first.incarnation)
        for one in later:
            assert (one.role, one.lease, one.incarnation) == (Role.CONSUMER, None, first.incarnation)

    async def test_ids_do_not_touch_each_other(self, store: StreamStore) -> None:
        await write(store, "a", b"1")
        await write(store, "b", b"2")
        await within(store.delete("a"))
        assert (await within(store.status("a"))).status == Status.MISSING
        assert await chunks(store, "b") == [b"2"]

    async def test_one_of_many_at_once_is_the_producer(self, make_store: MakeStore) -> None:
        stores = [await make_store() for _ in range(4)]
        for round_ in range(5):
            calls = [each.acquire(f"s{round_}") for each in stores for _ in range(8)]
            acquisitions = await within(asyncio.gather(*calls))
            assert [one.role for one in acquisitions].count(Role.PRODUCER) == 1
            assert len({one.incarnation for one in acquisitions}) == 1

    async def test_one_of_many_at_once_gets_a_deleted_id(self, make_store: MakeStore) -> None:
        stores = [await make_store() for _ in range(3)]
        await write(stores[0], "a", b"old")
        await within(stores[1].delete("a"))
        acquisitions = await within(asyncio.gather(*(each.acquire("a") for each in stores for _ in range(5))))
        assert [one.role for one in acquisitions].count(Role.PRODUCER) == 1
        assert {one.incarnation.generation for one in acquisitions} == {2}

    @pytest.mark.parametrize("end", ["done", "error", "cancelled"])
    async def test_after_the_ending_callers_are_consumers(
        self, store: StreamStore, other: StreamStore, end: str
    ) -> None:
        lease = await lease_of(store, "a")
        await within(store.finalize("a", end, "why", lease))
        for each in (store, other):
            again = await within(each.acquire("a"))
            assert (again.role, again.incarnation) == (Role.CONSUMER, lease.incarnation)

    async def test_after_a_delete_the_next_generation_begins(self, store: StreamStore, other: StreamStore) -> None:
        lives = []
        for each in (store, other, store):
            lease = await lease_of(each, "a")
            lives.append(lease.incarnation)
            await within(each.append("a", b"x", lease))
            assert await within(other.delete("a"))
        assert [life.generation for life in lives] == [1, 2, 3]
        assert len({life.nonce for life in lives}) == 3

    @pytest.mark.parametrize("stream_id", ODD_IDS, ids=lambda text: text[:8])
    async def test_odd_ids_are_ids(self, store: StreamStore, other: StreamStore, stream_id: str) -> None:
        await write(store, stream_id, b"x", b"y")
        assert await chunks(other, stream_id) == [b"x", b"y"]
        assert (await within(other.status(stream_id))).stream_id == stream_id
        assert [info.stream_id async for info in other.streams()] == [stream_id]
        assert await within(other.delete(stream_id))

    @pytest.mark.parametrize("stream_id", NO_IDS, ids=ascii)
    async def test_other_ids_are_refused_everywhere(self, store: StreamStore, stream_id: str) -> None:
        text = f"Invalid streamId: {stream_id} (must match /{STREAM_ID_PATTERN}/)"

        async def read() -> None:
            async for _ in store.read(stream_id):
                pass

        calls = [
            lambda: store.acquire(stream_id),
            lambda: store.append(stream_id, b"x"),
            lambda: store.extend(stream_id, [b"x"]),
            lambda: store.finalize(stream_id, "done"),
            lambda: store.open(stream_id),
            lambda: store.status(stream_id),
            lambda: store.delete(stream_id),
            lambda: store.takeover(stream_id, 1),
            read,
        ]
        for call in calls:
            with pytest.raises(InvalidStreamId) as caught:
                await within(call())
            assert (caught.value.code, str(caught.value)) == ("invalid-id", text)

    async def test_a_claim_keeps_what_any_gateway_needs(self, store: StreamStore, other: StreamStore) -> None:
        run = RunRef("echo", "digest", "7", "continue")
        headers = [("x-format", "v1"), ("X-Twice", "1"), ("X-Twice", "ü")]
        lease = await lease_of(store, "a", content_type="text/plain; charset=utf-8", headers=headers, run=run)
        for end in (False, True):
            if end:
                await within(store.finalize("a", "done", None, lease))
            info = await within(other.status("a"))
            assert (info.content_type, list(info.headers)) == ("text/plain; charset=utf-8", headers)
            assert (info.run, info.owner, info.incarnation) == (run, store.members.id, lease.incarnation)

    async def test_a_claim_may_be_ended_at_once(self, store: StreamStore, other: StreamStore) -> None:
        ending = Ending(Status.CANCELLED, "cancelled", "before it began")
        acquisition = await within(store.acquire("a", ending=ending))
        assert acquisition.role == Role.PRODUCER
        assert (await within(other.status("a"))).status == Status.CANCELLED
        got, error = await until_ending(other.read("a"))
        assert (got, type(error), str(error)) == ([], StreamCancelled, "before it began")
        assert (await within(other.acquire("a"))).role == Role.CONSUMER
        if acquisition.lease is not None:
            with pytest.raises(StreamFinalized):
                await within(store.append("a", b"x", acquisition.lease))
