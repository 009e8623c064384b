"""Nothing stays behind: tasks, sockets, subscriptions, tails, readers and futures after a thousand reads that were
opened and dropped at random points. The census that says so is itself shown to notice each kind of leak."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import psutil
import pytest

from tailrace.errors import StreamNotFound, TailraceError
from tailrace.fanout import Tail, TailReader
from tailrace.jetstream import JetStreamLog
from tailrace.jetstream.log import Following
from tailrace.model import Ending, Offset, Status
from tailrace.redis.log import Following as RedisFollowing
from tailrace.redis.log import RedisLog
from tailrace.redis.watching import Watch
from tailrace.store import LogStore
from tailrace.tails import _Attached
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.redis_world import RedisWorld
from tailrace.testing.servers import NatsServer
from tailrace.testing.worlds import JetStreamWorld, MemoryWorld, World
from tailrace.writer import Writer

PATIENCE = 30.0
COUNTED = (Tail, TailReader, _Attached, Writer, Following, RedisFollowing, Watch)


class Census:
    """Counts what a store may hold. `settled` waits until it holds no more than at the `take` before."""

    def __init__(self, stores: list[LogStore], server: NatsServer | None) -> None:
        self.stores = stores
        self.server = server
        self.before = Counter[str]()

    def count(self) -> Counter[str]:
        found = Counter[str]()
        found["tasks"] = len(asyncio.all_tasks())
        found["descriptors"] = psutil.Process().num_fds()
        for store in self.stores:
            found["readers open"] += store.tails._readers
            found["tails"] += len(store.tails._attached) + len(store.tails._keys)
            found["leases"] += len(store._held)
            found["tasks of stores"] += len(store._tasks)
            if isinstance(store.log, JetStreamLog):
                client = store.log._connection._client
                found["subscriptions"] += len(client._subs) + len(client._listeners)
                found["requests"] += len(store.log._connection._waiters)
            if isinstance(store.log, RedisLog):
                found["listened to"] += len(store.log.listener._channels) + len(store.log._watches)
                found["states"] += len(store.log._states) + len(store.log._vacant)
        gc.collect()
        things = gc.get_objects()
        for kind in COUNTED:
            found[f"{kind.__name__} objects"] = sum(type(thing) is kind for thing in things)
        found["futures"] = sum(type(thing) is asyncio.Future and not thing.done() for thing in things)
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        found["timers"] = sum(not timer.cancelled() for timer in timers)
        if self.server is not None:
            found["subscriptions at the server"] = server_subscriptions(self.server)
        return found

    async def take(self) -> None:
        """The least of each in a few counts: a heartbeat may be on its way."""
        self.before = self.count()
        for _ in range(3):
            await asyncio.sleep(0.05)
            self.before &= self.count()

    async def settled(self, patience: float = PATIENCE) -> Counter[str]:
        """What is there beyond the count before: nothing, or still something after ``patience`` seconds."""
        until = asyncio.get_running_loop().time() + patience  # a count alone takes a while where a process is large
        while (more := self.count() - self.before) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.1)
        return more


def server_subscriptions(server: NatsServer) -> int:
    ports = json.loads((server.directory / f"nats-server_{server.pid}.ports").read_text())
    with urllib.request.urlopen(f"{ports['monitoring'][0]}/connz?subs=1") as answer:
        return sum(connection["subscriptions"] for connection in json.load(answer)["connections"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(Path(tmp_path_factory.mktemp("nats")), config='http: "127.0.0.1:-1"') as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture(params=["memory", "jetstream", pytest.param("redis", marks=pytest.mark.slow)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World = MemoryWorld(lease_ttl=600)
    if request.param == "jetstream":
        made = JetStreamWorld(request.getfixturevalue("server").url, lease_ttl=600)
    if request.param == "redis":
        made = RedisWorld(request.getfixturevalue("redis").url, lease_ttl=600)
    yield made
    await made.close()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", ".").replace("]", "")


@pytest.fixture
async def stores(world: World) -> list[LogStore]:
    stores = [await world.store() for _ in range(2)]
    for store in stores:
        await store.members.settled()
    return stores


@pytest.fixture
def census(request: pytest.FixtureRequest, stores: list[LogStore], world: World) -> Census:
    return Census(stores, request.getfixturevalue("server") if isinstance(world, JetStreamWorld) else None)


async def use_up(store: LogStore, name: str, rng: Random, counts: Counter[str]) -> None:
    """One read, dropped somewhere: while it opens, between two entries, while it waits, at its end."""
    start: str | Offset = rng.choice(["", Offset(rng.randrange(30))])

    async def read() -> None:
        left = rng.choice([0, 1, 5, 10_000])
        async for _ in store.read(name, start):
            left -= 1
            if left <= 0:
                counts["left"] += 1
                return
        counts["ended"] += 1

    async def watch() -> None:
        reader = await store.open(name, start, wait=rng.choice([0, 1]))
        try:
            while reader.ending is None:
                await reader.wait()
                reader.take_bytes()
        finally:
            reader.close()
        counts["ended"] += 1

    task = asyncio.create_task(rng.choice([read, watch])())
    for _ in range(rng.choice([0, 1, 2, 5, 20])):
        await asyncio.sleep(0)
    if rng.random() < 0.5:
        await asyncio.sleep(rng.random() * 0.02)
    task.cancel()
    await asyncio.wait([task])
    counts["cancelled"] += task.cancelled()
    if not task.cancelled() and (error := task.exception()) is not None:
        assert isinstance(error, StreamNotFound), error
        counts["missing"] += 1
    gc.collect(0)


async def test_a_thousand_reads_leave_nothing_behind(stores: list[LogStore], census: Census, unique: str) -> None:
    producer, consumer = stores
    rng, counts = Random(1), Counter[str]()
    for number, status in enumerate(["done", "error", None, None]):
        await producer.acquire(f"{unique}.{number}")
        for part in range(20):
            await producer.append(f"{unique}.{number}", b"%d" % part)
        if status is not None:
            await producer.finalize(f"{unique}.{number}", status)
    await census.take()
    for _ in range(100):
        names = [f"{unique}.{rng.choice([0, 2, 3, 'missing'])}" for _ in range(10)]
        uses = (use_up(rng.choice([producer, consumer, consumer]), name, rng, counts) for name in names)
        await asyncio.gather(*uses)
        await producer.append(f"{unique}.3", b"more")
    assert not await census.settled()
    # how often each way comes up depends on how fast the broker is; it must come up
    assert all(counts[what] for what in ("left", "ended", "cancelled", "missing")), counts


async def test_two_hundred_streams_leave_nothing_behind(stores: list[LogStore], census: Census, unique: str) -> None:
    producer, consumer = stores
    rng = Random(2)
    await census.take()

    async def one(number: int) -> None:
        name = f"{unique}.{number}"
        task = asyncio.create_task(producer.acquire(name))
        if number % 4 == 0:
            await asyncio.sleep(rng.random() * 0.003)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                return
        await task
        reader = await consumer.open(name, wait=5)
        for part in range(rng.randrange(20)):
            await producer.append(name, b"%d" % part)
        match rng.randrange(3):
            case 0:
                await producer.finalize(name, "done")
            case 1:
                await consumer.delete(name)
            case 2:
                await consumer.takeover(name, 1, Ending(Status.CANCELLED, "cancelled"))
        async with asyncio.timeout(10):
            while reader.ending is None:
                await reader.wait()
                reader.take()
        reader.close()
        try:
            await producer.finalize(name, "error")  # a producer always says when it is through
        except TailraceError:
            pass

    for first in range(0, 200, 20):
        await asyncio.gather(*(one(number) for number in range(first, first + 20)))
    assert not await census.settled()


# Each kind of leak, planted


async def leak_a_reader(store: LogStore, name: str) -> object:
    return await store.open(name)


async def leak_a_task(store: LogStore, name: str) -> object:
    return asyncio.create_task(asyncio.sleep(3600))


async def leak_a_future(store: LogStore, name: str) -> object:
    return asyncio.get_running_loop().create_future()


async def leak_a_timer(store: LogStore, name: str) -> object:
    return asyncio.get_running_loop().call_later(3600, print)


async def leak_a_socket(store: LogStore, name: str) -> object:
    return socket.socket()


async def leak_a_lease(store: LogStore, name: str) -> object:
    return await store.acquire(name + ".leaked")


async def leak_a_subscription(store: LogStore, name: str) -> object:
    assert isinstance(store.log, JetStreamLog)
    return await store.log._connection.follow("leaked", lambda *message: None)


def tidy(store: LogStore, leaked: object) -> None:
    if isinstance(leaked, asyncio.Future | asyncio.TimerHandle):
        leaked.cancel()
    elif isinstance(leaked, socket.socket | TailReader):
        leaked.close()


@pytest.mark.slow
@pytest.mark.parametrize("world", ["jetstream"], indirect=True)
@pytest.mark.parametrize(
    "leak",
    [leak_a_reader, leak_a_task, leak_a_future, leak_a_timer, leak_a_socket, leak_a_lease, leak_a_subscription],
    ids=lambda leak: leak.__name__.removeprefix("leak_a_"),
)
async def test_the_census_notices_a_leak(
    stores: list[LogStore], census: Census, unique: str, leak: Callable[[LogStore, str], Awaitable[object]]
) -> None:
    await stores[0].acquire(unique)
    await census.take()
    assert not await census.settled()
    leaked = await leak(stores[0], unique)
    assert await census.settled(patience=0.5)
    tidy(stores[0], leaked)
