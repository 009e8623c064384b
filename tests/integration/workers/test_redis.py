"""Workers on a real Redis: the suite, what they do with its keys, and the queue by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worker_deployment import Deployment, Gate, body, ended, first_bytes, submit, working
from worker_suite import WorkerSuite

from tailrace.contracts import Command
from tailrace.model import Status
from tailrace.redis import RedisOptions
from tailrace.redis.broker import Redis, open_redis
from tailrace.redis.consumer import Consumer
from tailrace.redis.runs import RedisRunQueue
from tailrace.store import LogStore
from tailrace.testing.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def deployment(server: RedisServer) -> Deployment:
    return Deployment(server, server.url)


@pytest.fixture
def own(deployment: Deployment) -> Deployment:
    return deployment


@pytest.fixture
async def broker(server: RedisServer) -> AsyncIterator[Redis]:
    opened = await open_redis(server.url, RedisOptions(ack_wait=0.5))
    yield opened
    await opened.close()


class TestRedisWorkers(WorkerSuite):
    outage_lease = 1.0

    async def assert_queued(self, deployment: Deployment, store: LogStore, *, taken: int, waiting: int) -> None:
        runs = store.runs
        assert isinstance(runs, RedisRunQueue)
        await asyncio.sleep(0.3)
        pending = await runs.ask("XPENDING", runs.names.runs("gate"), "workers")
        assert pending[0] == taken
        assert await runs.ask("XLEN", runs.names.runs("gate")) == taken + waiting


async def test_sigterm_ends_what_runs_and_leaves_nothing(deployment: Deployment) -> None:
    deployment = replace(deployment, lease_ttl=10.0)  # a worker that stalls is not dead
    async with deployment.opened() as gateway:
        async with deployment.worker(drain=0.1) as process:
            await submit(gateway, "b", "slow")
            await first_bytes(gateway, "b")
            process.terminate()
            assert (await ended(gateway, "b")).code == "worker-stopped"
            assert await process.wait() == 0
        runs = gateway.runs
        assert isinstance(runs, RedisRunQueue)
        assert await runs.ask("XINFO", "CONSUMERS", runs.names.runs("slow"), "workers") == []
        assert await runs.ask("XLEN", runs.names.runs("slow")) == 0


async def test_a_flushed_group_comes_back(deployment: Deployment) -> None:
    gate = Gate()
    gate.open.set()
    async with deployment.opened() as store, working(store, gate.handler):
        await submit(store, "before", "gate")
        assert (await ended(store, "before")).status is Status.DONE
        runs = store.runs
        assert isinstance(runs, RedisRunQueue)
        await runs.ask("XGROUP", "DESTROY", runs.names.runs("gate"), "workers")
        await submit(store, "a", "gate")
        assert (await ended(store, "a")).status is Status.DONE


async def test_what_cannot_be_run_is_a_dead_letter(deployment: Deployment) -> None:
    gate = Gate()
    async with deployment.opened() as store, deployment.opened() as gateway, working(store, gate.handler):
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


async def test_a_silent_command_is_found_behind_many_that_are_worked_on(broker: Redis) -> None:
    busy, silent, next_one = (Consumer(broker.runs, name, ["gate"]) for name in ("busy", "silent", "next"))
    await busy.join()
    held: list[Any] = []
    for number in range(25):
        await broker.runs.submit(command(f"s{number}"))
        held += await busy.take()
    await broker.runs.submit(command("lost"))
    await silent.take()

    async def work() -> None:
        while True:
            for taken in held:
                await broker.runs.working(taken, "busy")

    working_on = asyncio.create_task(work())
    found: list[Any] = []
    async with asyncio.timeout(60):
        while "lost" not in [taken.stream_id for taken in found]:
            found += await next_one.take()
    working_on.cancel()
    for consumer in (busy, silent, next_one):
        await consumer.close()


async def test_a_consumer_that_leaves_takes_nothing_with_it(broker: Redis) -> None:
    """A read of its that still waits may bring a command between a look at what it holds and its end."""
    leaving, next_one = Consumer(broker.runs, "leaving", ["gate"]), Consumer(broker.runs, "next", ["gate"])
    await leaving.join()
    for round_ in range(10):
        reading = asyncio.create_task(leaving.take())
        async with asyncio.timeout(60):
            while b"blocked_clients:1" not in await broker.runs.ask("INFO", "clients"):
                if reading.done():
                    reading = asyncio.create_task(leaving.take())
        await asyncio.gather(leaving.leave(), broker.runs.submit(command(f"s{round_}")))
        await reading
    await leaving.leave()
    await leaving.close()
    taken: set[str] = set()
    async with asyncio.timeout(60):
        while len(taken) < 10:
            for one in await next_one.take():
                taken.add(one.stream_id)
                await broker.runs.ack(one, "next")
    await next_one.close()
