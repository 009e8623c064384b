"""`ResumableContext` on the memory store: the seed contract's behaviours, and none of its weaknesses."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tailrace.context import (
    STREAM_ID_HEADER,
    ResumableContext,
    StreamResponse,
    resumable_response,
    resume_response,
)
from tailrace.errors import InvalidStreamId, StreamErrored, StreamNotFound, StreamSuperseded, TailraceError
from tailrace.memory import MemoryBroker, MemoryStore
from tailrace.model import Limits, Offset, Role


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore() as store:
        yield store


@pytest.fixture
async def context(store: MemoryStore) -> AsyncIterator[ResumableContext]:
    async with ResumableContext(store) as context:
        yield context


async def source(*parts: bytes | Exception) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part
        await asyncio.sleep(0)


def gated(gate: asyncio.Event, *parts: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """A source that waits for ``gate`` before its last part."""

    async def make() -> AsyncIterator[bytes]:
        for part in parts[:-1]:
            yield part
        await gate.wait()
        yield parts[-1]

    return make


async def body(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


def never() -> AsyncIterator[bytes]:
    raise AssertionError("a consumer must not make a stream")


async def test_a_producer_reads_what_it_produces(context: ResumableContext) -> None:
    stream = await context.run("a", lambda: source(b"hello ", b"", b"world"))
    assert [chunk async for chunk in stream] == [b"hello ", b"", b"world"]
    assert await context.status("a") == "done"


async def test_a_consumer_reads_the_same_and_makes_nothing(context: ResumableContext) -> None:
    first = await context.run("a", lambda: source(b"one ", b"two"))
    second = await context.run("a", never)
    assert await asyncio.gather(body(first), body(second)) == [b"one two", b"one two"]


async def test_contexts_share_what_stores_share() -> None:
    broker = MemoryBroker()
    async with MemoryStore(broker=broker) as here, MemoryStore(broker=broker) as there:
        first = await ResumableContext(here).run("a", lambda: source(b"x", b"y"))
        second = await ResumableContext(there).run("a", never)
        assert await asyncio.gather(body(first), body(second)) == [b"xy", b"xy"]


async def test_a_source_may_be_given_in_several_ways(context: ResumableContext) -> None:
    async def awaited() -> AsyncIterator[bytes]:
        return source(b"awaited")

    class Views:
        """An async iterator of views that has no aclose."""

        def __init__(self) -> None:
            self.views = iter([memoryview(bytearray(b"ab")), bytearray(b"c")])

        def __aiter__(self) -> Views:
            return self

        async def __anext__(self) -> Any:
            try:
                return next(self.views)
            except StopIteration:
                raise StopAsyncIteration from None

    assert await body(await context.run("callable", lambda: source(b"callable"))) == b"callable"
    assert await body(await context.run("awaited", awaited)) == b"awaited"
    assert await body(await context.run("iterator", source(b"iterator"))) == b"iterator"
    assert await body(await context.run("views", Views)) == b"abc"


async def test_resume_replays_and_goes_on(context: ResumableContext) -> None:
    gate = asyncio.Event()
    first = await context.run("a", gated(gate, b"one ", b"two ", b"three"))
    assert await anext(first) == b"one "
    cursor = first.cursor
    readers = [await context.resume("a"), await context.resume("a", cursor), await context.resume("a", Offset(6))]
    gate.set()
    bodies = [await body(reader) for reader in readers if reader is not None]
    assert bodies == [b"one two three", b"two three", b"o three"]
    late = await context.require_resume("a")
    assert await body(late) == b"one two three"
    assert late.cursor == (await context.require_resume("a", late.cursor)).cursor


async def test_what_is_missing_is_none_or_an_error(context: ResumableContext) -> None:
    assert await context.resume("x") is None
    assert await context.status("x") == "missing"
    assert await context.delete("x") is False
    with pytest.raises(StreamNotFound) as caught:
        await context.require_resume("x")
    assert (caught.value.code, str(caught.value)) == ("missing", "resumable stream not found: x")


async def test_an_id_that_is_none_is_refused(context: ResumableContext) -> None:
    for call in (context.run("a b", never), context.resume("a b"), context.status("a b"), context.delete("a b")):
        with pytest.raises(InvalidStreamId):
            await call


async def test_status_uses_the_seeds_words(context: ResumableContext, store: MemoryStore) -> None:
    gate = asyncio.Event()
    stream = await context.run("a", gated(gate, b"x"))
    assert await context.status("a") == "streaming"
    gate.set()
    await body(stream)
    assert await context.status("a") == "done"
    assert await context.delete("a") is True
    assert await context.status("a") == "missing"
    await store.acquire("b")
    await store.finalize("b", "cancelled")
    assert await context.status("b") == "error"


async def test_the_time_to_live_is_the_contexts(store: MemoryStore) -> None:
    async with ResumableContext(store, ttl=7) as context:
        await body(await context.run("a", lambda: source(b"x")))
    info = await store.status("a")
    assert info.created_at is not None
    assert info.expires_at is not None
    assert info.expires_at - info.created_at >= 7000
    assert info.expires_at - info.created_at < 600_000


async def test_a_reader_that_leaves_does_not_stop_the_producer(context: ResumableContext) -> None:
    gate = asyncio.Event()
    stream = await context.run("a", gated(gate, b"0", b"1", b"2"))
    assert await anext(stream) == b"0"
    await stream.aclose()
    assert [chunk async for chunk in stream] == []
    waiting = asyncio.ensure_future(body(await context.require_resume("a")))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    assert await body(await context.require_resume("a")) == b"012"


async def test_closing_a_parked_reader_ends_it(context: ResumableContext) -> None:
    gate = asyncio.Event()
    stream = await context.run("a", gated(gate, b"x"))
    parked = asyncio.ensure_future(anext(stream, b"end"))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await parked == b"end"
    gate.set()


async def test_a_dropped_reader_frees_its_place() -> None:
    async with MemoryStore(Limits(max_readers=1)) as store, ResumableContext(store) as context:
        async for _ in await context.run("a", lambda: source(b"x", b"y")):
            break
        gc.collect()
        assert await body(await context.require_resume("a")) == b"xy"


async def test_a_failing_source_ends_the_stream_with_its_text(store: MemoryStore) -> None:
    seen: list[Any] = []
    async with ResumableContext(
        store,
        on_error=lambda stream_id, error: seen.append((stream_id, str(error))),
        on_finalize=lambda *call: seen.append(call),
    ) as context:
        stream = await context.run("a", lambda: source(b"partial", ValueError("oops")))
        assert await anext(stream) == b"partial"
        with pytest.raises(StreamErrored, match=r"^oops$"):
            await anext(stream)
        assert [chunk async for chunk in stream] == []
        assert await context.status("a") == "error"
    assert seen == [("a", "oops"), ("a", "error", "oops")]


@pytest.mark.parametrize("make", [lambda: source("text"), lambda: 5, never], ids=["text", "no-iterator", "raises"])  # type: ignore[arg-type]
async def test_a_source_that_is_none_ends_the_stream_too(context: ResumableContext, make: Any) -> None:
    stream = await context.run("a", make)
    with pytest.raises(StreamErrored):
        await body(stream)


async def test_a_limit_ends_the_stream_under_its_code() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    async with MemoryStore(Limits(max_entries=3)) as store, ResumableContext(store) as context:
        stream = await context.run("a", endless)
        with pytest.raises(StreamErrored, match=r"^Stream exceeded maxEntriesPerStream: a$") as caught:
            await body(stream)
        assert caught.value.code == "too-many-entries"
        assert closed.is_set()


async def test_a_source_that_fails_to_close_is_logged(
    context: ResumableContext, caplog: pytest.LogCaptureFixture
) -> None:
    async def grumpy() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            yield "no bytes"  # type: ignore[misc]
        finally:
            raise RuntimeError("will not close")

    with pytest.raises(StreamErrored, match="bytes-like"):
        await body(await context.run("a", grumpy))
    assert "a source failed to close" in caplog.text


async def test_a_superseded_producer_is_told_and_changes_nothing(store: MemoryStore) -> None:
    errors: list[Exception] = []
    gate = asyncio.Event()
    async with ResumableContext(store, on_error=lambda _, error: errors.append(error)) as context:
        old = await context.run("a", gated(gate, b"old", b"late"))
        assert await anext(old) == b"old"
        await context.delete("a")
        assert await body(old) == b""
        new = await context.run("a", lambda: source(b"new"))
        gate.set()
        assert await body(new) == b"new"
        await context.aclose(grace=30)
        assert await body(await ResumableContext(store).require_resume("a")) == b"new"
    (error,) = errors
    assert isinstance(error, StreamSuperseded)
    assert error.code == "missing"


class Hooks:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def all(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        names = ("on_acquire", "on_append", "on_finalize", "on_error")
        return {name: wrap(lambda *args, name=name: self.calls.append((name, *args))) for name in names}


def as_async(hook: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapped(*args: Any) -> None:
        await asyncio.sleep(0)
        hook(*args)

    return wrapped


@pytest.mark.parametrize("wrap", [lambda hook: hook, as_async], ids=["sync", "async"])
async def test_hooks_see_everything_in_order(store: MemoryStore, wrap: Any) -> None:
    hooks = Hooks()
    context = ResumableContext(store, **hooks.all(wrap))
    streams = [await context.run("a", lambda: source(b"ab", b"cde")), await context.run("a", never)]
    for stream in streams:
        await body(stream)
    await context.aclose(grace=30)
    assert sorted(call for call in hooks.calls if call[0] == "on_acquire") == [
        ("on_acquire", "a", Role.CONSUMER),
        ("on_acquire", "a", Role.PRODUCER),
    ]
    assert [call for call in hooks.calls if call[0] != "on_acquire"] == [
        ("on_append", "a", 2),
        ("on_append", "a", 3),
        ("on_finalize", "a", "done", None),
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_hook_that_raises_is_logged_and_breaks_nothing(
    store: MemoryStore, caplog: pytest.LogCaptureFixture, kind: str, fails: bool
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("an observer failed")

    hook = as_async(broken) if kind == "async" else broken
    names = ("on_acquire", "on_append", "on_finalize", "on_error")
    async with ResumableContext(store, spawn=broken, **dict.fromkeys(names, hook)) as context:
        stream = await context.run("a", lambda: source(b"x", *([ValueError("boom")] if fails else [])))
        assert await anext(stream) == b"x"
        if fails:
            with pytest.raises(StreamErrored, match="boom"):
                await anext(stream)
        else:
            assert await body(stream) == b""
        assert await context.status("a") == ("error" if fails else "done")
        await context.aclose(grace=30)
    logged = {record.getMessage() for record in caplog.records if record.name == "tailrace.context"}
    expected = {"on_acquire", "on_append", "on_finalize", "spawn"} | ({"on_error"} if fails else set())
    assert logged == {f"hook failed: {name}" for name in expected}


async def test_an_async_hook_never_holds_up_the_stream(store: MemoryStore) -> None:
    release = asyncio.Event()

    async def slow(*args: object) -> None:
        await release.wait()

    async with ResumableContext(store, on_acquire=slow, on_append=slow, on_finalize=slow) as context:
        assert await body(await context.run("a", lambda: source(b"x", b"y"))) == b"xy"
        release.set()


async def test_spawn_is_given_the_producers_task(store: MemoryStore) -> None:
    tasks: list[asyncio.Task[None]] = []
    async with ResumableContext(store, spawn=tasks.append) as context:
        await context.run("a", lambda: source(b"x"))
        await context.run("a", never)
        (task,) = tasks
        await task
        assert await context.status("a") == "done"


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8])
async def test_a_cancelled_producer_never_leaves_its_stream_live(store: MemoryStore, steps: int) -> None:
    tasks: list[asyncio.Task[None]] = []
    ended: list[Any] = []
    async with ResumableContext(store, spawn=tasks.append, on_finalize=lambda *call: ended.append(call)) as context:
        gate = asyncio.Event()
        running = asyncio.ensure_future(context.run("a", gated(gate, b"x", b"y")))
        while not tasks:
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(StreamErrored) as caught:
            await body(await running)
        assert caught.value.code == "producer-lost"
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
    assert [call[:2] for call in ended] == [("a", "error")]


async def test_closing_cancels_what_still_produces(store: MemoryStore) -> None:
    context = ResumableContext(store)
    gate = asyncio.Event()
    streams = [await context.run(f"s{number}", gated(gate, b"x", b"y")) for number in range(3)]
    await context.aclose()
    for stream in streams:
        with pytest.raises(StreamErrored) as caught:
            await body(stream)
        assert caught.value.code == "producer-lost"
    await context.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await context.run("late", never)


async def test_closing_may_wait_for_producers(store: MemoryStore) -> None:
    context = ResumableContext(store)
    gate = asyncio.Event()
    stream = await context.run("a", gated(gate, b"x", b"y"))
    closing = asyncio.ensure_future(context.aclose(grace=30))
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert await body(stream) == b"xy"


async def test_closing_during_an_election_leaves_nothing_live(store: MemoryStore) -> None:
    context = ResumableContext(store)
    running = asyncio.ensure_future(context.run("a", lambda: source(b"x")))
    await asyncio.sleep(0)
    await context.aclose()
    with pytest.raises(TailraceError):
        await body(await running)
    assert (await store.status("a")).code == "producer-lost"


# Responses


async def test_a_response_carries_what_the_claim_stores(context: ResumableContext) -> None:
    response = await resumable_response(
        context,
        "a",
        lambda: source(b"hi"),
        content_type="text/event-stream",
        stream_headers=[("x-format", "v1"), ("Cache-Control", "no-cache")],
        headers=[
            ("cache-control", "private"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("X-Resumable-Stream-Id", "spoofed"),
        ],
    )
    assert response.status == 200
    assert response.headers == (
        ("content-type", "text/event-stream"),
        ("x-format", "v1"),
        ("cache-control", "private"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        (STREAM_ID_HEADER, "a"),
    )
    assert await body(response.body) == b"hi"


async def test_a_resumed_or_joined_response_needs_no_encoder(context: ResumableContext) -> None:
    made = await resumable_response(
        context,
        "a",
        lambda: source(b"hi"),
        content_type="text/plain",
        stream_headers=[("x-vercel-ai-data-stream", "v1")],
    )
    joined = await resumable_response(context, "a", never, content_type="other/type")
    resumed = await resume_response(context, "a")
    assert made.headers == joined.headers == resumed.headers
    assert made.headers == (("content-type", "text/plain"), ("x-vercel-ai-data-stream", "v1"), (STREAM_ID_HEADER, "a"))
    bodies = [await body(response.body) for response in (made, joined, resumed)]
    assert bodies == [b"hi"] * 3
    rest = await resume_response(context, "a", Offset(1), headers=[("content-type", "text/html")])
    assert rest.headers[-2:] == (("content-type", "text/html"), (STREAM_ID_HEADER, "a"))
    assert await body(rest.body) == b"i"


async def test_what_is_missing_is_404(context: ResumableContext) -> None:
    response = await resume_response(context, "x")
    assert (response.status, response.headers) == (404, (("content-type", "application/json"),))
    assert await body(response.body) == b'{"error":"stream not found"}'
    own = StreamResponse(204, (), source())
    assert await resume_response(context, "x", missing_response=lambda: own) is own
