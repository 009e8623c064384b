"""The runner and the worker on the memory store: what becomes of a delivered command, whatever the handler does."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from tailrace.contracts import Command
from tailrace.errors import StreamCancelled, StreamErrored, TailraceError
from tailrace.memory import MemoryStore
from tailrace.memory_runs import MemoryDelivery
from tailrace.model import Ending, Limits, RunRef, Status, StreamInfo
from tailrace.worker import Handler, Pace, Worker, handler
from tailrace.worker.builtin import echo
from tailrace.worker.handlers import RunContext
from tailrace.worker.runner import Runner

PACE = Pace(stop_timeout=0.2)


class Nothing(BaseModel):
    pass


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with await MemoryStore(Limits(max_chunk_bytes=1000, max_entries=5000), lease_ttl=0.5).start() as opened:
        yield opened


@asynccontextmanager
async def working(store: MemoryStore, *handlers: Handler, **settings: Any) -> AsyncIterator[Worker]:
    worker = Worker(store, handlers, **{"lease_ttl": 0.2, "pace": PACE} | settings)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.aclose()


async def submit(store: MemoryStore, stream_id: str, name: str, **more: Any) -> Command:
    text = json.dumps(more.pop("input", {})).encode()
    return await store.runs.submit(Command(stream_id, name, text, "bytes", "digest", **more))


async def body(store: MemoryStore, stream_id: str) -> bytes:
    """The whole stream, to its ending."""
    reader = await store.open(stream_id, wait=10)
    parts = []
    while True:
        parts.append(reader.take_bytes())
        if reader.ending is not None:
            break
        await reader.wait()
    reader.close()
    return b"".join(parts)


async def ended(store: MemoryStore, stream_id: str) -> StreamInfo:
    """The ending, and then the command gone from the queue."""
    await body(store, stream_id)
    await until(lambda: stream_id not in queue_ids(store))
    return await store.status(stream_id)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def queue_ids(store: MemoryStore) -> set[str]:
    return set(store.broker.runs._jobs)


class Gate:
    """A handler that says when it began and waits to be let on."""

    def __init__(self, name: str = "gate") -> None:
        self.begun = 0
        self.open = asyncio.Event()

        @handler(name, input=Nothing)
        async def wait(input: Nothing, run: RunContext) -> AsyncIterator[str]:
            self.begun += 1
            yield "before "
            await self.open.wait()
            yield "after"

        self.handler = wait


# ---------------------------------------------------------------- the ordinary way


async def test_a_run_streams_what_its_handler_yields(store: MemoryStore) -> None:
    contexts: list[RunContext] = []

    @handler("report", headers={"x-kind": "report"})
    async def report(input: Nothing, run: RunContext) -> AsyncIterator[str]:
        contexts.append(run)
        for piece in ("α", "", "β" * 1200, "γ"):
            yield piece

    async with working(store, report):
        command = await submit(store, "a", "report", ttl=60)
        assert (await body(store, "a")).decode() == "α" + "β" * 1200 + "γ"
        info = await ended(store, "a")
    assert (info.status, info.content_type, info.headers) == (
        Status.DONE,
        "text/plain; charset=utf-8",
        (("x-kind", "report"),),
    )
    assert info.run == RunRef("report", "digest", command.id, "fail")
    assert info.expires_at is not None
    assert info.created_at is not None
    assert info.expires_at - info.created_at < 61_000
    assert contexts == [RunContext("a", "report", 1, "bytes", "text/plain; charset=utf-8", (("x-kind", "report"),))]


async def test_echo_end_to_end(store: MemoryStore) -> None:
    text = "Käse\r\n𝄞 \x00" * 100
    async with working(store, echo):
        await submit(store, "fast", "echo", input={"text": text, "chunk": 3})
        await submit(store, "paced", "echo", input={"text": text[:30], "chunk": 7, "rate": 1000})
        assert await body(store, "fast") == text.encode()
        assert await body(store, "paced") == text[:30].encode()


async def test_a_worker_advertises_its_handlers_and_its_room(store: MemoryStore) -> None:
    gate = Gate()
    async with working(store, gate.handler, echo, slots=3):
        await submit(store, "a", "gate")
        await until(lambda: gate.begun)
        await until(lambda: [member.free_slots for member in store.members.alive()] == [2])
        (member,) = store.members.alive()
        assert member.handlers == {"gate": gate.handler.schema(), "echo": echo.schema()}
        gate.open.set()
        await ended(store, "a")
    await until(lambda: all(member.handlers == {} for member in store.members.alive()))


async def test_back_pressure_reaches_the_handler(store: MemoryStore) -> None:
    yielded = 0

    @handler("flood", input=Nothing)
    async def flood(input: Nothing) -> AsyncIterator[bytes]:
        nonlocal yielded
        while True:
            yielded += 1
            yield b"x" * 100

    blocked = asyncio.Event()
    extend, calls = store.extend, []

    async def slow(stream_id: str, chunks: Any, lease: Any = None) -> str:
        calls.append(len(chunks))
        await blocked.wait()
        return await extend(stream_id, chunks, lease)

    store.extend = slow  # type: ignore[method-assign]
    async with working(store, flood, pace=Pace(pending_bytes=1000, stop_timeout=0.2)):
        await submit(store, "a", "flood")
        await until(lambda: calls)
        await asyncio.sleep(0.05)
        assert yielded <= 22
        blocked.set()
        await ended(store, "a")  # at the limit of entries
    assert max(calls) == 10


# ---------------------------------------------------------------- endings other than done


async def raising(error: BaseException) -> AsyncIterator[bytes]:
    yield b"kept"
    raise error


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no luck"), "no luck"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 10_000), "x" * 4096),
        (ValueError("\ud800"), "?"),
        (Unprintable(), "Unprintable"),
        (SystemExit(3), "3"),
        (GeneratorExit("early"), "early"),
        (StopAsyncIteration(), "async generator raised StopAsyncIteration"),
        (asyncio.CancelledError(), "The handler was cancelled"),
    ],
)
async def test_an_exception_is_the_streams_error(store: MemoryStore, error: BaseException, message: str) -> None:
    @handler("bad", input=Nothing)
    async def bad(input: Nothing) -> AsyncIterator[bytes]:
        async for chunk in raising(error):
            yield chunk

    async with working(store, bad, echo):
        await submit(store, "a", "bad")
        info = await ended(store, "a")
        assert (info.status, info.code, info.message) == (Status.ERROR, "handler-error", message)
        assert await body(store, "a") == b"kept"
        await submit(store, "b", "echo", input={"text": "still here"})
        assert await body(store, "b") == b"still here"


async def test_wrong_chunks_and_limits_end_the_stream(store: MemoryStore) -> None:
    @handler("wrong", input=Nothing)
    async def wrong(input: Nothing) -> AsyncIterator[Any]:
        yield b"ok"
        yield 7

    closed = asyncio.Event()

    @handler("many", input=Nothing)
    async def many(input: Nothing) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"."
        finally:
            closed.set()

    async with working(store, wrong, many):
        await submit(store, "a", "wrong")
        await submit(store, "b", "many")
        info = await ended(store, "a")
        assert (info.code, info.message) == ("handler-error", "The handler yielded int; yield bytes or str")
        info = await ended(store, "b")
        assert (info.status, info.code, info.entries) == (Status.ERROR, "too-many-entries", 5000)
        await closed.wait()


async def test_an_invalid_input_is_an_ending_with_its_paths(store: MemoryStore) -> None:
    async with working(store, echo):
        await submit(store, "a", "echo", input={"text": 1, "chunk": 0})
        info = await ended(store, "a")
    assert (info.status, info.code) == (Status.ERROR, "invalid-input")
    assert [found["path"] for found in json.loads(info.message or "")] == [["text"], ["chunk"]]
    with pytest.raises(StreamErrored):
        [entry async for entry in store.read("a")]


async def test_cancel_keeps_what_was_produced(store: MemoryStore) -> None:
    gate = Gate()
    async with working(store, gate.handler):
        await submit(store, "a", "gate")
        await until(lambda: gate.begun)
        await store.runs.cancel("somebody else", "a")
        await store.runs.cancel(store.members.id, "another")
        await store.runs.cancel(store.members.id, "a")
        info = await ended(store, "a")
        assert (info.status, info.code, info.bytes) == (Status.CANCELLED, "cancelled", len("before "))
        with pytest.raises(StreamCancelled):
            [entry async for entry in store.read("a")]


@pytest.mark.parametrize("stubborn", ["once", "always"])
async def test_a_handler_that_ignores_its_cancellation_is_left(store: MemoryStore, stubborn: str) -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    @handler("stubborn", input=Nothing)
    async def ignore(input: Nothing) -> AsyncIterator[bytes]:
        yield b"a"
        begun.set()
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                if stubborn == "once":
                    yield b"b"

    async with working(store, ignore) as worker:
        await submit(store, "a", "stubborn")
        await begun.wait()
        assert worker.runner.cancel("a")
        info = await ended(store, "a")
        assert (info.status, info.code) == (Status.CANCELLED, "cancelled")
        over.set()
        await asyncio.sleep(0)


async def test_drain_waits_and_then_ends_the_rest(store: MemoryStore) -> None:
    short, long = Gate("short"), Gate("long")
    async with working(store, short.handler, long.handler) as worker:
        await submit(store, "a", "short")
        await submit(store, "b", "long")
        await until(lambda: short.begun and long.begun)
        draining = asyncio.create_task(worker.drain(2.0))
        await asyncio.sleep(0)
        await submit(store, "late", "short")
        short.open.set()
        assert (await ended(store, "a")).status is Status.DONE
        assert not draining.done()
        await draining
        info = await ended(store, "b")
        assert (info.status, info.code) == (Status.ERROR, "worker-stopped")
        assert (await store.status("late")).status is Status.QUEUED
    async with working(store, short.handler):
        assert (await ended(store, "late")).status is Status.DONE


# ---------------------------------------------------------------- the table


class Hand:
    """A runner fed by hand."""

    def __init__(self, store: MemoryStore, *handlers: Handler, **settings: Any) -> None:
        named = {one.name: one for one in handlers}
        self.runner = Runner(store, named, **{"lease_ttl": 0.1, "pace": PACE} | settings)
        self.queue = store.broker.runs
        self.consumer = self.queue.deliveries([*named, "unknown"])

    async def next(self) -> MemoryDelivery:
        async with asyncio.timeout(20):
            return await anext(self.consumer)

    async def close(self) -> None:
        await self.runner.aclose()
        self.consumer.close()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def hand(store: MemoryStore, gate: Gate) -> AsyncIterator[Hand]:
    by_hand = Hand(store, gate.handler)
    yield by_hand
    gate.open.set()
    await by_hand.close()


async def claim(store: MemoryStore, stream_id: str, command: str, ending: Ending | None = None) -> int:
    acquired = await store.acquire(stream_id, run=RunRef("gate", "digest", command), ending=ending)
    return acquired.lease.epoch if acquired.lease else 0


async def test_a_stream_claimed_for_another_command_acks(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    await submit(store, "other", "gate")
    await claim(store, "other", "another command")
    await submit(store, "published", "gate")
    await store.acquire("published")
    for _ in range(2):
        await hand.runner.handle(await hand.next())
    assert queue_ids(store) == set()
    assert gate.begun == 0


async def test_a_run_that_has_ended_acks(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    command = await submit(store, "a", "gate")
    await claim(store, "a", command.id, Ending(Status.CANCELLED, "cancelled"))
    await hand.runner.handle(await hand.next())
    assert queue_ids(store) == set()
    assert gate.begun == 0


async def test_a_run_of_a_live_member_is_put_back(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    async with await MemoryStore(broker=store.broker, lease_ttl=0.5).start() as owner:
        command = await submit(store, "a", "gate")
        await claim(owner, "a", command.id)
        for attempt in range(1, 9):
            delivery = await hand.next()
            assert delivery.attempt == attempt
            await hand.runner.handle(delivery)
        assert (await store.status("a")).status is Status.STREAMING
        await owner.finalize("a", "done")
        await hand.runner.handle(await hand.next())
    assert queue_ids(store) == set()
    assert gate.begun == 0


async def test_a_run_of_a_lost_member_is_ended_in_its_stead(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    dead = MemoryStore(broker=store.broker)  # never beats
    command = await submit(store, "a", "gate")
    await claim(dead, "a", command.id)
    await dead.append("a", b"kept")
    async with asyncio.timeout(20):
        while "a" in queue_ids(store):
            await hand.runner.handle(await hand.next())
    info = await store.status("a")
    assert (info.status, info.code, info.bytes) == (Status.PRODUCER_LOST, "producer-lost", 4)
    assert gate.begun == 0
    with pytest.raises(TailraceError):
        await dead.append("a", b"fenced")
    await dead.aclose()


async def test_a_second_delivery_of_a_running_command_is_adopted(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    await submit(store, "a", "gate")
    first = await hand.next()
    await hand.runner.handle(first)
    await first.retry(0)  # as if the broker had lost patience
    second = await hand.next()
    await hand.runner.handle(second)
    assert second.attempt == 2
    gate.open.set()
    assert (await ended(store, "a")).status is Status.DONE
    assert gate.begun == 1


async def test_a_fenced_run_acks_nothing(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    await submit(store, "a", "gate")
    await hand.runner.handle(await hand.next())
    await until(lambda: gate.begun)
    info = await store.status("a")
    await store.takeover("a", info.epoch, Ending(Status.PRODUCER_LOST, "producer-lost"))
    gate.open.set()
    await until(lambda: hand.runner.free_slots == hand.runner.slots)
    assert queue_ids(store) == {"a"}
    hand.consumer.close()
    hand.consumer = hand.queue.deliveries(["gate"])
    await hand.runner.handle(await hand.next())
    assert queue_ids(store) == set()
    assert gate.begun == 1


async def test_a_deleted_run_is_acked_and_never_run_again(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    await submit(store, "a", "gate")
    await hand.runner.handle(await hand.next())
    await until(lambda: gate.begun)
    await store.delete("a")
    gate.open.set()
    await until(lambda: not queue_ids(store))
    assert (await store.status("a")).status is Status.MISSING
    await submit(store, "a", "gate")  # the id is free: a new command is a new run
    await hand.runner.handle(await hand.next())
    assert (await ended(store, "a")).status is Status.DONE
    assert gate.begun == 2


async def test_a_run_deleted_while_its_worker_was_gone_is_never_run(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    dead = MemoryStore(broker=store.broker)
    command = await submit(store, "a", "gate")
    delivery = await hand.next()
    await claim(dead, "a", command.id)
    await store.delete("a")
    await delivery.retry(0)
    await hand.runner.handle(await hand.next())
    assert gate.begun == 0
    assert queue_ids(store) == set()
    await dead.aclose()


async def test_a_fault_of_the_store_still_ends_the_stream(
    store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()  # as where this is embedded

    async def broken(*arguments: Any) -> str:
        local = "".join(("a ", "key"))
        raise ZeroDivisionError(f"of {len(local)}")

    async with working(store, echo):
        store.extend = broken  # type: ignore[method-assign]
        await submit(store, "a", "echo", input={"text": "a"})
        info = await ended(store, "a")
        assert (info.status, info.code) == (Status.ERROR, "internal")
    logged = capsys.readouterr().out
    assert "ZeroDivisionError: of 5" in logged
    assert "a key" not in logged


async def test_unknown_handlers_and_worn_out_commands_are_buried(store: MemoryStore, hand: Hand, gate: Gate) -> None:
    await submit(store, "a", "unknown")
    await hand.runner.handle(await hand.next())
    await submit(store, "b", "gate")
    for _ in range(5):
        await (await hand.next()).retry(0)
    worn = await hand.next()
    assert worn.attempt == 6
    await hand.runner.handle(worn)
    for stream_id in "ab":
        info = await store.status(stream_id)
        assert (info.status, info.code) == (Status.ERROR, "poison")
    assert [dead.command.stream_id for dead in hand.queue.dead_letters] == ["a", "b"]
    assert queue_ids(store) == set()
    assert gate.begun == 0


async def test_a_full_runner_puts_back_once_and_then_holds(store: MemoryStore, gate: Gate) -> None:
    hand = Hand(store, gate.handler, slots=1)
    await submit(store, "a", "gate")
    await submit(store, "b", "gate")
    await hand.runner.handle(await hand.next())
    assert hand.runner.free_slots == 0
    await hand.runner.handle(await hand.next())
    again = await hand.next()
    assert (again.command.stream_id, again.attempt) == ("b", 2)
    holding = asyncio.create_task(hand.runner.handle(again))
    await asyncio.sleep(0.01)
    assert not holding.done()
    gate.open.set()
    await holding
    assert (await ended(store, "b")).status is Status.DONE
    await hand.close()


async def test_no_room_for_streams_is_waited_for(gate: Gate) -> None:
    async with await MemoryStore(Limits(max_streams=1)).start() as store:
        hand = Hand(store, gate.handler, lease_ttl=0.02)
        gate.open.set()
        await store.acquire("in-the-way")
        await submit(store, "a", "gate")
        holding = asyncio.create_task(hand.runner.handle(await hand.next()))
        await asyncio.sleep(0.1)
        assert not holding.done()
        await store.delete("in-the-way")
        await holding
        assert (await ended(store, "a")).status is Status.DONE
        assert gate.begun == 1
        await hand.close()


# ---------------------------------------------------------------- many


async def test_a_full_worker_takes_no_more(store: MemoryStore) -> None:
    gate = Gate()
    async with working(store, gate.handler, slots=2):
        for number in range(5):
            await submit(store, f"run-{number}", "gate")
        await until(lambda: gate.begun == 2)
        await asyncio.sleep(0.05)
        assert gate.begun == 2
        assert len(store.broker.runs._lines["gate"]) == 3
        other = MemoryStore(broker=store.broker)
        async with other, working(other, gate.handler, slots=10):
            await until(lambda: gate.begun == 5)
            gate.open.set()
            for number in range(5):
                assert (await ended(store, f"run-{number}")).status is Status.DONE


async def test_1500_runs_at_once() -> None:
    gate = Gate()
    async with (
        await MemoryStore().start() as store,
        await MemoryStore(broker=store.broker).start() as other,
        working(store, gate.handler, slots=750, lease_ttl=10),
        working(other, gate.handler, slots=750, lease_ttl=10),
    ):
        for number in range(1500):
            await submit(store, f"run-{number}", "gate")
        await until(lambda: gate.begun == 1500)
        gate.open.set()
        for number in range(1500):
            assert await body(store, f"run-{number}") == b"before after"
        await until(lambda: not queue_ids(store))
