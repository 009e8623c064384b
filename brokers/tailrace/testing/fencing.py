"""Promise 4: after takeover, delete and re-acquire, the old producer changes nothing. (Expiry: `ExpiryContract`.)"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tailrace.contracts import StreamStore
from tailrace.errors import LeaseRequired, ProducerLost, StreamFinalized, StreamNotFound, StreamSuperseded
from tailrace.model import Ending, Lease, Status
from tailrace.testing.kit import StoreKit, chunks, content, drain, entries, lease_of, until_ending, within

LOST = Ending(Status.PRODUCER_LOST, "producer-lost", "its process died")


async def assert_fenced(store: StreamStore, lease: Lease | None) -> None:
    """The lease (None: the one that the store remembers) can neither append nor finalize."""
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.append("a", b"stale", lease),
        lambda: store.extend("a", [b"stale"], lease),
    ]
    for call in calls:
        with pytest.raises(StreamSuperseded) as caught:
            await within(call())
        assert (caught.value.code, str(caught.value)) == ("missing", "Stream superseded by a new acquisition: a")
    for status in ("done", "error", "cancelled"):
        await within(store.finalize("a", status, "stale", lease))


class FencingContract(StoreKit):
    async def test_after_a_delete_the_old_lease_writes_nothing(self, store: StreamStore, other: StreamStore) -> None:
        old = await lease_of(store, "a")
        await within(store.append("a", b"old", old))
        await within(other.delete("a"))
        for call in (lambda: store.append("a", b"late", old), lambda: store.finalize("a", "done", None, old)):
            with pytest.raises(StreamNotFound, match=r"^Stream not found: a$"):
                await within(call())
        new = await lease_of(other, "a")
        await assert_fenced(store, old)
        await assert_fenced(other, old)
        with pytest.raises((StreamSuperseded, LeaseRequired)):  # a store may forget the lease of what was deleted
            await within(store.append("a", b"stale"))
        await within(other.append("a", b"new", new))
        assert (await within(store.status("a"))).status == "streaming"
        await within(other.finalize("a", "done", None, new))
        with pytest.raises(StreamSuperseded):
            await within(store.append("a", b"late", old))
        assert await chunks(store, "a") == [b"new"]

    async def test_the_same_store_may_hold_both_leases(self, store: StreamStore) -> None:
        old = await lease_of(store, "a")
        await within(store.append("a", b"old", old))
        await within(store.delete("a"))
        new = await lease_of(store, "a")
        await assert_fenced(store, old)
        await within(store.append("a", b"new"))
        await within(store.finalize("a", "done", None, new))
        assert await chunks(store, "a") == [b"new"]

    async def test_a_takeover_goes_on_under_a_new_epoch(self, store: StreamStore, other: StreamStore) -> None:
        old = await lease_of(store, "a")
        await within(store.extend("a", [b"one ", b"two "], old))
        reader = await within(store.open("a"))
        new = await within(other.takeover("a", old.epoch))
        assert new is not None
        assert (new.stream_id, new.incarnation, new.epoch) == ("a", old.incarnation, old.epoch + 1)
        assert (await within(store.status("a"))).owner == other.members.id
        await assert_fenced(store, old)
        await assert_fenced(store, None)
        await within(other.append("a", b"three ", new))
        await within(other.append("a", b"four"))
        await within(other.finalize("a", "done"))
        with pytest.raises((StreamSuperseded, StreamFinalized)):
            await within(store.append("a", b"stale", old))
        assert b"".join(entry.chunk for entry in await drain(reader)) == b"one two three four"
        reader.close()
        for each in (store, other):
            assert await content(each, "a") == b"one two three four"
        info = await within(store.status("a"))
        assert (info.status, info.epoch, info.entries, info.bytes) == ("done", 2, 4, 18)

    async def test_cursors_survive_a_takeover(self, store: StreamStore, other: StreamStore) -> None:
        old = await lease_of(store, "a")
        cursors = [await within(store.append("a", chunk, old)) for chunk in (b"1", b"2")]
        new = await within(other.takeover("a", old.epoch))
        cursors += [await within(other.append("a", chunk, new)) for chunk in (b"3", b"4")]
        await within(other.finalize("a", "done", None, new))
        assert cursors == sorted(set(cursors))
        for each in (store, other):
            for index, cursor in enumerate(cursors, 1):
                assert await content(each, "a", cursor) == b"1234"[index:]
            assert [entry.cursor for entry in await entries(each, "a")] == cursors

    async def test_a_takeover_may_carry_the_ending(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        await within(store.append("a", b"x", lease))
        reading = store.read("a")
        assert (await within(anext(reading))).chunk == b"x"
        assert await within(other.takeover("a", lease.epoch, LOST)) is None
        rest, error = await until_ending(reading)
        assert (rest, type(error), str(error)) == ([], ProducerLost, "its process died")
        assert error is not None
        assert error.code == "producer-lost"
        info = await within(store.status("a"))
        assert (info.status, info.status.seed, info.code) == ("producer-lost", "error", "producer-lost")
        with pytest.raises((StreamSuperseded, StreamFinalized)):
            await within(store.append("a", b"late", lease))
        await within(store.finalize("a", "done", None, lease))
        for each in (store, other):
            got, error = await until_ending(each.read("a"))
            assert (got, type(error)) == ([b"x"], ProducerLost)

    async def test_only_the_epoch_that_holds_is_taken_over(self, store: StreamStore, other: StreamStore) -> None:
        assert await within(other.takeover("a", 1)) is None
        old = await lease_of(store, "a")
        assert await within(other.takeover("a", old.epoch + 1)) is None
        assert await within(other.takeover("a", 0)) is None
        new = await within(other.takeover("a", old.epoch))
        assert new is not None
        assert await within(other.takeover("a", old.epoch)) is None
        assert await within(other.takeover("a", old.epoch, LOST)) is None
        await within(other.finalize("a", "done", None, new))
        assert await within(store.takeover("a", new.epoch, LOST)) is None
        assert (await within(store.status("a"))).status == "done"

    async def test_of_many_takeovers_one_holds(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        calls = [each.takeover("a", lease.epoch) for each in (store, other) for _ in range(5)]
        leases = [one for one in await within(asyncio.gather(*calls)) if one is not None]
        assert [one.epoch for one in leases] == [2]

    async def test_appends_during_a_takeover_are_kept_or_refused(self, store: StreamStore, other: StreamStore) -> None:
        old = await lease_of(store, "a")
        appends = [asyncio.create_task(store.append("a", b"%d;" % number, old)) for number in range(50)]
        new = await within(other.takeover("a", old.epoch))
        assert new is not None
        outcomes = await within(asyncio.gather(*appends, return_exceptions=True))
        await within(other.append("a", b"new", new))
        await within(other.finalize("a", "done", None, new))
        kept = [outcome for outcome in outcomes if isinstance(outcome, str)]
        refused = outcomes[len(kept) :]
        assert all(isinstance(outcome, StreamSuperseded) for outcome in refused)
        got = await entries(store, "a")
        assert [entry.cursor for entry in got[:-1]] == kept
        assert [entry.chunk for entry in got] == [b"%d;" % number for number in range(len(kept))] + [b"new"]
