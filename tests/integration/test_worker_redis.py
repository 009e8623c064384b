"""Workers on a real Redis: runs end to end, and end truly when a worker, or the server, dies."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tailrace.connect import StoreOptions, connect
from tailrace.contracts import Command
from tailrace.model import Status, StreamInfo
from tailrace.redis import RedisOptions
from tailrace.redis.broker import Redis, open_redis
from tailrace.redis.consumer import Consumer
from tailrace.redis.runs import RedisRunQueue
from tailrace.store import LogStore
from tailrace.testing.redis_server import RedisServer
from tailrace.worker import Handler, Pace, RunContext, Worker, handler
from tailrace.worker.builtin import echo

# a worker in a process of its own: argv is the URL; it ends on SIGTERM
WORKER = """
import asyncio, signal, sys
from collections.abc import AsyncIterator
from pydantic import BaseModel
from tailrace.connect import StoreOptions, connect
from tailrace.worker import Worker, handler

class Nothing(BaseModel):
    pass

@handler("slow", input=Nothing)
async def slow(input: Nothing) -> AsyncIterator[str]:
    yield "begun"
    await asyncio.sleep(3600)

async def main() -> None:
    store = await connect(sys.argv[1], StoreOptions(lease_ttl=1.0))
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with store, Worker(store, [slow], slots=10, drain_timeout=0.1):
        print(store.members.id, flush=True)
        await over.wait()

asyncio.run(main())
"""


class Nothing(BaseModel):
    pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
async def broker(server: RedisServer) -> AsyncIterator[Redis]:
    opened = await open_redis(server.url, RedisOptions(ack_wait=0.5))
    yield opened
    await opened.close()


@asynccontextmanager
async def opened(server: RedisServer, lease_ttl: float = 1.0, linger: float = 5.0) -> AsyncIterator[LogStore]:
    async with await connect(server.url, StoreOptions(lease_ttl=lease_ttl, linger=linger)) as store:
        yield store


@asynccontextmanager
async def working(store: LogStore, *handlers: Handler, **settings: Any) -> AsyncIterator[Worker]:
    worker = Worker(store, handlers, **{"pace": Pace(stop_timeout=0.2)} | settings)
    try:
        yield await worker.start()
    finally:
        await worker.aclose()


@asynccontextmanager
async def worker_process(server: RedisServer) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = [sys.executable, "-c", WORKER, server.url]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    while len((await process.stdout.readline()).strip()) != 16:  # log lines come before the member's id
        assert process.returncode is None
    drained = asyncio.create_task(process.stdout.read())
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await drained


async def submit(store: LogStore, stream_id: str, name: str, **more: Any) -> Command:
    text = json.dumps(more.pop("input", {})).encode()
    return await store.runs.submit(Command(stream_id, name, text, "bytes", "digest", **more))


async def body(store: LogStore, stream_id: str) -> bytes:
    async with asyncio.timeout(90):
        reader = await store.open(stream_id, wait=60)
        parts = [reader.take_bytes()]
        while reader.ending is None:
            await reader.wait()
            parts.append(reader.take_bytes())
        reader.close()
    return b"".join(parts)


async def first_bytes(store: LogStore, stream_id: str) -> None:
    """Return when the run's handler has begun."""
    reader = await store.open(stream_id, wait=60)
    while not reader.take_bytes():
        assert reader.ending is None, reader.ending
        await reader.wait()
    reader.close()


async def ended(store: LogStore, stream_id: str) -> StreamInfo:
    """The ending, and then the command gone from the queue."""
    await body(store, stream_id)
    async with asyncio.timeout(90):
        while await store.runs.find(stream_id) is not None:
            await asyncio.sleep(0.05)
    return await store.status(stream_id)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


class Gate:
    def __init__(self) -> None:
        self.begun = 0
        self.open = asyncio.Event()

        @handler("gate", input=Nothing)
        async def wait(input: Nothing, run: RunContext) -> AsyncIterator[str]:
            self.begun += 1
            yield f"{run.stream_id} "
            await self.open.wait()
            yield "after"

        self.handler = wait


async def test_a_run_end_to_end(server: RedisServer) -> None:
    text = "Käse\r\n𝄞 \x00" * 1000
    async with opened(server) as store, opened(server) as gateway, working(store, echo):
        await submit(gateway, "a..b", "echo", input={"text": text, "chunk": 7})
        assert (await body(gateway, "a..b")).decode() == text
        info = await ended(gateway, "a..b")
        assert (info.status, info.owner, info.content_type) == (
            Status.DONE,
            store.members.id,
            "text/plain; charset=utf-8",
        )
        await submit(gateway, "b", "echo", input={"text": 1})
        assert (await ended(gateway, "b")).code == "invalid-input"


async def test_cancel_reaches_the_owner(server: RedisServer) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as gateway, working(store, gate.handler):
        await submit(gateway, "a", "gate")
        await first_bytes(gateway, "a")
        owner = (await gateway.status("a")).owner
        assert owner == store.members.id
        await gateway.runs.cancel(owner, "never heard of")
        await gateway.runs.cancel(owner, "a")
        info = await ended(gateway, "a")
        assert (info.status, info.bytes) == (Status.CANCELLED, 2)


async def test_the_run_of_a_killed_worker_ends_through_another(server: RedisServer) -> None:
    async with opened(server, linger=0) as gateway:  # it follows nothing: nobody but a worker can end the stream
        async with worker_process(server) as process:
            await submit(gateway, "a", "slow")
            await first_bytes(gateway, "a")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert (await gateway.status("a")).status is Status.STREAMING
        async with worker_process(server):
            async with asyncio.timeout(60):
                while await gateway.runs.find("a") is not None:
                    await asyncio.sleep(0.05)
            info = await gateway.status("a")
        assert (info.status, info.code, info.bytes) == (Status.PRODUCER_LOST, "producer-lost", 5)


async def test_sigterm_ends_what_runs_and_leaves_nothing(server: RedisServer) -> None:
    async with opened(server) as gateway:
        async with worker_process(server) as process:
            await submit(gateway, "b", "slow")
            await first_bytes(gateway, "b")
            process.terminate()
            assert (await ended(gateway, "b")).code == "worker-stopped"
            assert await process.wait() == 0
        runs = gateway.runs
        assert isinstance(runs, RedisRunQueue)
        assert await runs.ask("XINFO", "CONSUMERS", runs.names.runs("slow"), "workers") == []
        assert await runs.ask("XLEN", runs.names.runs("slow")) == 0


async def test_a_killed_server_delays_and_loses_nothing(server: RedisServer) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as gateway, working(store, gate.handler):
        await submit(gateway, "a", "gate")
        await until(lambda: gate.begun == 1)
        await submit(gateway, "b", "gate")
        await until(lambda: gate.begun == 2)
        reader = await gateway.open("a", wait=60)
        server.kill()
        gate.open.set()
        await asyncio.sleep(0.5)
        assert reader.ending is None
        server.start()
        got = b""
        async with asyncio.timeout(90):
            while reader.ending is None:
                got += reader.take_bytes()
                await reader.wait()
        assert got + reader.take_bytes() == b"a after"
        reader.close()
        assert (await ended(gateway, "b")).status is Status.DONE
        await submit(gateway, "c", "gate")
        assert (await ended(gateway, "c")).status is Status.DONE


async def test_a_flushed_group_comes_back(server: RedisServer) -> None:
    gate = Gate()
    gate.open.set()
    async with opened(server) as store, working(store, gate.handler):
        await submit(store, "before", "gate")
        assert (await ended(store, "before")).status is Status.DONE
        runs = store.runs
        assert isinstance(runs, RedisRunQueue)
        await runs.ask("XGROUP", "DESTROY", runs.names.runs("gate"), "workers")
        await submit(store, "a", "gate")
        assert (await ended(store, "a")).status is Status.DONE


async def test_what_cannot_be_run_is_a_dead_letter(server: RedisServer) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as gateway, working(store, gate.handler):
        runs = gateway.runs
        assert isinstance(runs, RedisRunQueue)
        facts = json.dumps({"Tailrace-Command": "1", "Tailrace-Id": "a"})
        await runs.ask("HSET", runs.names.run("a"), "m:gate", facts, "i:gate", "{}", "c:gate", "7")
        await runs.ask("XADD", runs.names.runs("gate"), "*", "id", "a", "command", "7", "n", "1", "at", "0")
        await body(gateway, "a")
        info = await gateway.status("a")
        assert (info.status, info.code) == (Status.ERROR, "poison")
        async with asyncio.timeout(60):
            while not (dead := await runs.ask("XRANGE", runs.names.dead, "-", "+")):
                await asyncio.sleep(0.02)
        fields = dict(zip(dead[0][1][::2], dead[0][1][1::2], strict=True))
        assert (fields[b"id"], fields[b"handler"], fields[b"facts"]) == (b"a", b"gate", facts.encode())
        assert await runs.find("a") is None


async def test_a_full_worker_takes_no_more(server: RedisServer) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as other, working(store, gate.handler, slots=2):
        for number in range(5):
            await submit(other, f"run-{number}", "gate")
        await until(lambda: gate.begun == 2)
        runs = store.runs
        assert isinstance(runs, RedisRunQueue)
        await asyncio.sleep(0.3)
        pending = await runs.ask("XPENDING", runs.names.runs("gate"), "workers")
        assert pending[0] == 2
        async with working(other, gate.handler, slots=10):
            await until(lambda: gate.begun == 5)
            gate.open.set()
            for number in range(5):
                assert (await ended(other, f"run-{number}")).status is Status.DONE


async def test_300_runs_at_once(server: RedisServer) -> None:
    gate = Gate()
    async with (
        opened(server, 10) as store,
        opened(server, 10) as other,
        working(store, gate.handler, slots=150),
        working(other, gate.handler, slots=150),
    ):
        for number in range(300):
            await submit(store, f"run-{number}", "gate")
        await until(lambda: gate.begun == 300)
        gate.open.set()
        for number in range(300):
            assert await body(store, f"run-{number}") == f"run-{number} after".encode()
            await ended(store, f"run-{number}")


# ---------------------------------------------------------------- the queue by itself


def command(stream_id: str = "a", name: str = "gate", digest: str = "digest") -> Command:
    return Command(stream_id, name, b'{"x": "\xc3\xa4"}', "bytes", digest, ttl=5.0)


async def test_a_command_is_queued_once_until_it_is_acknowledged(broker: Redis) -> None:
    first = await broker.runs.submit(command())
    assert first.id
    assert await broker.runs.submit(command(digest="another")) == first
    assert (await broker.runs.submit(command(name="other"))).handler == "other"
    assert await broker.runs.find("b") is None
    found = await broker.runs.find("a")
    assert found is not None
    worker = Consumer(broker.runs, "w", ["gate"])
    await worker.join()
    (taken,) = await worker.take()
    assert (taken.command(), taken.attempt) == (first, 1)
    await broker.runs.ack(taken, "w")
    assert (await broker.runs.submit(command())).id != first.id
    await worker.close()


async def test_many_submits_at_once_accept_one(broker: Redis) -> None:
    accepted = await asyncio.gather(*(broker.runs.submit(command()) for _ in range(50)))
    assert len({one.id for one in accepted}) == 1


async def test_a_silent_consumer_loses_its_command_and_changes_nothing_afterwards(broker: Redis) -> None:
    sent = await broker.runs.submit(command())
    silent, next_one = Consumer(broker.runs, "silent", ["gate"]), Consumer(broker.runs, "next", ["gate"])
    await silent.join()
    (lost,) = await silent.take()
    taken: list[Any] = []
    async with asyncio.timeout(60):
        while not taken:
            taken = await next_one.take()
    assert (taken[0].command(), taken[0].attempt, taken[0].submitted_ms) == (sent, 2, lost.submitted_ms)
    for call in (broker.runs.ack, broker.runs.retry, broker.runs.working):
        await call(lost, "silent")
    await broker.runs.bury(lost, "silent", "late")
    assert await broker.runs.find("a") == sent
    await broker.runs.retry(taken[0], "next")
    again = []
    async with asyncio.timeout(60):
        while not again:
            again = await silent.take()
    assert again[0].attempt == 3
    await silent.leave()
    async with asyncio.timeout(60):
        while not (after := await next_one.take()):
            pass
    await broker.runs.ack(after[0], "next")
    assert await broker.runs.find("a") is None
    await silent.close()
    await next_one.close()
