"""A caller may give up anywhere: nothing hangs, nothing is spliced, and no lease is left without a task.

Each test gives up at many points, some steps of the event loop or some time after the call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tailrace.contracts import StreamStore
from tailrace.errors import StreamEnded, StreamNotFound
from tailrace.model import Role
from tailrace.testing.kit import StoreKit, chunks, content, lease_of, until_ending, within, write

T = TypeVar("T")

POINTS = range(24)


async def give_up(work: Coroutine[Any, Any, T], point: int) -> T | None:
    """Run ``work`` and cancel it at ``point``: its result, or None where the cancellation came first."""
    task = asyncio.create_task(work)
    if point % 2:
        await asyncio.sleep(point * 0.0001)
    else:
        for _ in range(point // 2):
            await asyncio.sleep(0)
    task.cancel()
    try:
        return await within(task)
    except asyncio.CancelledError:
        return None


class CancellingContract(StoreKit):
    async def test_a_cancelled_acquire_leaves_no_lease_without_a_task(
        self, store: StreamStore, other: StreamStore
    ) -> None:
        for point in POINTS:
            stream_id = f"a{point}"
            first = await give_up(store.acquire(stream_id), point)
            second = await within(other.acquire(stream_id))
            if first is not None:
                assert (first.role, second.role) == (Role.PRODUCER, Role.CONSUMER)
                await within(store.finalize(stream_id, "done", None, first.lease))
                assert await chunks(other, stream_id) == []
            elif second.role is Role.PRODUCER:
                await within(other.finalize(stream_id, "done", None, second.lease))
                assert await chunks(other, stream_id) == []
            else:
                got, error = await until_ending(other.read(stream_id))
                assert got == []
                assert isinstance(error, StreamEnded)
                assert error.code == "producer-lost"

    async def test_a_cancelled_append_is_stored_or_not(self, store: StreamStore, other: StreamStore) -> None:
        lease = await lease_of(store, "a")
        must, may = [], set()
        for point in POINTS:
            lost, kept = b"(%d)" % point, b"[%d]" % point
            if await give_up(store.append("a", lost, lease), point) is None:
                may.add(lost)
            must += [lost, kept]
            await within(store.append("a", kept, lease))
        await within(store.finalize("a", "done", None, lease))
        got = await chunks(other, "a")
        assert got == [chunk for chunk in must if chunk in got]
        assert set(must) - set(got) <= may

    async def test_a_cancelled_ending_is_stored_or_not(self, store: StreamStore, other: StreamStore) -> None:
        for point in POINTS:
            stream_id = f"a{point}"
            lease = await lease_of(store, stream_id)
            append = asyncio.create_task(store.append(stream_id, b"x", lease))
            await asyncio.sleep(0)
            await give_up(store.finalize(stream_id, "done", None, lease), point)
            await within(append)
            await within(store.finalize(stream_id, "done", None, lease))
            assert await chunks(other, stream_id) == [b"x"]

    async def test_a_cancelled_read_frees_what_it_held(self, store: StreamStore, other: StreamStore) -> None:
        await write(store, "ended", b"x" * 1000, b"y")
        lease = await lease_of(store, "live")
        await within(store.append("live", b"x", lease))
        for point in POINTS:
            for each in (store, other):
                for stream_id in ("ended", "live"):
                    reader = await give_up(each.open(stream_id), point)
                    if reader is not None:
                        reader.close()
                await give_up(until_ending(each.read("live")), point)
                assert await content(each, "ended") == b"x" * 1000 + b"y"
        await within(store.finalize("live", "done", None, lease))
        for each in (store, other):
            assert await content(each, "live") == b"x"

    async def test_a_cancelled_wait_for_a_stream(self, store: StreamStore, other: StreamStore) -> None:
        for point in POINTS:
            reader = await give_up(other.open(f"a{point}", wait=60), point)
            assert reader is None
            await write(store, f"a{point}", b"x")
            assert await content(other, f"a{point}") == b"x"

    async def test_a_cancelled_delete_is_done_or_not(self, store: StreamStore, other: StreamStore) -> None:
        for point in POINTS:
            stream_id = f"a{point}"
            await write(store, stream_id, b"old")
            await give_up(other.delete(stream_id), point)
            try:
                assert await content(store, stream_id) == b"old"
            except StreamNotFound:
                pass
            await within(store.delete(stream_id))
            lease = await lease_of(store, stream_id)
            assert lease.incarnation.generation == 2

    async def test_a_cancelled_takeover_fences_or_not(self, store: StreamStore, other: StreamStore) -> None:
        for point in POINTS:
            stream_id = f"a{point}"
            lease = await lease_of(store, stream_id)
            await within(store.append(stream_id, b"x", lease))
            await give_up(other.takeover(stream_id, lease.epoch), point)
            await within(store.delete(stream_id))
            assert (await lease_of(store, stream_id)).incarnation.generation == 2
