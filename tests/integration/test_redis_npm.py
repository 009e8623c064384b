"""npm assistant-stream 0.3.15 and 0.3.44 in Node, and Tailrace, on one Redis: each reads what the other writes, live
and afterwards, and both may write one stream."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tailrace.connect import StoreOptions, connect
from tailrace.errors import (
    StreamCancelled,
    StreamErrored,
    StreamExpired,
    StreamFinalized,
    StreamNotFound,
    StreamSuperseded,
)
from tailrace.model import Entry, Limits, Offset, Role, Status
from tailrace.redis import RedisOptions
from tailrace.store import LogStore
from tailrace.testing.redis_server import RedisServer

NODE = Path(__file__).parents[1] / "node"
sys.path.insert(0, str(NODE))
from install import NoNode, installed, node  # noqa: E402

pytestmark = [pytest.mark.node, pytest.mark.slow]
RELEASES = {"old": "0.3.15", "new": "0.3.44"}
PATIENCE = 30.0
_prefixes = (f"npm{number}" for number in itertools.count())

MakeStore = Callable[..., Awaitable[LogStore]]


class NpmError(Exception):
    def __init__(self, message: str, code: str | None) -> None:
        super().__init__(message)
        self.code = code


class Reading:
    """A read of npm's: its chunks so far; `whole` awaits the end."""

    def __init__(self, answer: asyncio.Future[Any]) -> None:
        self.chunks: list[bytes] = []
        self.grown = asyncio.Event()
        self._answer = answer

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.chunks) < count:
                self.grown.clear()
                await self.grown.wait()

    async def whole(self) -> list[bytes]:
        await asyncio.wait_for(self._answer, PATIENCE)
        return self.chunks


class Npm:
    """A process of one release of the package."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._readings: dict[int, Reading] = {}
        self._count = 0
        self._task = asyncio.create_task(self._answers())

    @classmethod
    async def start(cls, modules: Path, port: int, prefix: str, release: str) -> Self:
        agent = modules.parent / "redis_agent.mjs"  # beside the packages, so that Node finds them
        ours = agent.with_suffix(f".{os.getpid()}")
        ours.write_bytes((NODE / "redis_agent.mjs").read_bytes())
        ours.replace(agent)  # at once: another process's Node may be about to read it
        process = await asyncio.create_subprocess_exec(
            node(),
            str(agent),
            str(port),
            prefix,
            release,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,  # a chunk is one line
        )
        npm = cls(process)
        npm._calls[0] = asyncio.get_running_loop().create_future()
        await asyncio.wait_for(npm._calls[0], PATIENCE)
        return npm

    async def _answers(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "chunk" in told:
                reading = self._readings[told["n"]]
                reading.chunks.append(base64.b64decode(told["chunk"]))
                reading.grown.set()
                continue
            answer = self._calls.pop(told["n"])
            if "error" in told:
                answer.set_exception(NpmError(told["error"], told["code"]))
                answer.exception()
            else:
                answer.set_result(told.get("result"))
        for answer in self._calls.values():  # it ended
            if not answer.done():
                answer.set_exception(NpmError("the process ended", None))
                answer.exception()

    def _send(self, op: str, stream_id: str, **given: Any) -> int:
        assert self._process.stdin is not None
        self._count += 1
        self._calls[self._count] = asyncio.get_running_loop().create_future()
        call = {"n": self._count, "op": op, "id": stream_id, **given}
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        return self._count

    async def call(self, op: str, stream_id: str, **given: Any) -> Any:
        return await asyncio.wait_for(self._calls[self._send(op, stream_id, **given)], PATIENCE)

    async def append(self, stream_id: str, *chunks: bytes, **given: Any) -> None:
        for chunk in chunks:
            await self.call("append", stream_id, chunk=base64.b64encode(chunk).decode(), **given)

    async def acquire(self, stream_id: str, **given: Any) -> str:
        won = await self.call("acquire", stream_id, **given)
        return won if isinstance(won, str) else won["role"]

    def read(self, stream_id: str) -> Reading:
        number = self._send("read", stream_id)
        reading = self._readings[number] = Reading(self._calls[number])
        return reading

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._task


@pytest.fixture(scope="module")
def modules() -> Path:
    try:
        return installed()
    except NoNode as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return next(_prefixes)


@pytest.fixture(params=list(RELEASES))
def release(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
async def npm(modules: Path, server: RedisServer, prefix: str, release: str) -> AsyncIterator[Npm]:
    process = await Npm.start(modules, server.port, prefix, release)
    yield process
    await process.close()


@pytest.fixture
async def make_store(server: RedisServer, prefix: str, release: str) -> AsyncIterator[MakeStore]:
    """Stores that write the layout of the release under test."""
    stores: list[LogStore] = []

    async def make(limits: Limits | None = None) -> LogStore:
        redis = RedisOptions(prefix=prefix, layout=RELEASES[release])
        stores.append(
            await connect(server.url, StoreOptions(limits=limits or Limits(), lease_ttl=1.0, linger=0.0, redis=redis))
        )
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


@pytest.fixture
async def store(make_store: MakeStore) -> LogStore:
    return await make_store()


@pytest.fixture
async def other(make_store: MakeStore) -> LogStore:
    return await make_store()


async def chunks(store: LogStore, stream_id: str, cursor: str | Offset = "", patience: float = PATIENCE) -> list[bytes]:
    async with asyncio.timeout(patience):
        return [entry.chunk async for entry in store.read(stream_id, cursor)]


CHUNKS = [b"one", b"", bytes(range(256)), "zwölf 😀".encode(), b"x" * 100_000]


async def test_npm_writes_and_tailrace_reads_afterwards(npm: Npm, store: LogStore) -> None:
    assert await npm.acquire("a") == "producer"
    await npm.append("a", *CHUNKS)
    await npm.call("finalize", "a", status="done")
    assert await chunks(store, "a") == CHUNKS
    info = await store.status("a")
    assert (info.status, info.entries, info.bytes) == (Status.DONE, len(CHUNKS), sum(map(len, CHUNKS)))
    assert (await store.acquire("a")).role is Role.CONSUMER
    assert [found.stream_id async for found in store.streams()] == ["a"]


async def test_npm_writes_and_tailrace_reads_live(npm: Npm, store: LogStore, other: LogStore) -> None:
    await npm.acquire("a")
    readings = [asyncio.create_task(chunks(each, "a")) for each in (store, other)]
    reader = await store.open("a")
    for number, chunk in enumerate(CHUNKS):
        await npm.append("a", chunk)
        async with asyncio.timeout(PATIENCE):
            got = reader.take()
            while not got:
                await reader.wait()
                got = reader.take()
        assert [entry.chunk for entry in got] == [chunk]
        assert (await store.status("a")).entries == number + 1
    assert (await store.status("a")).status is Status.STREAMING
    await npm.call("finalize", "a", status="error", error="böse")
    for reading in readings:
        with pytest.raises(StreamErrored, match=r"^böse$"):
            await reading
    reader.close()


async def test_a_cursor_of_npms_stream_resumes_in_any_process(npm: Npm, store: LogStore, other: LogStore) -> None:
    await npm.acquire("a")
    await npm.append("a", *CHUNKS)
    await npm.call("finalize", "a", status="done")
    async with asyncio.timeout(PATIENCE):
        cursors = [entry.cursor async for entry in store.read("a")]
    for index, cursor in enumerate(cursors, 1):
        assert await chunks(other, "a", cursor) == CHUNKS[index:]
    assert b"".join(await chunks(other, "a", Offset(3 + 200))) == b"".join(CHUNKS)[203:]


async def test_tailrace_writes_and_npm_reads_afterwards(npm: Npm, store: LogStore) -> None:
    assert (await store.acquire("a")).role is Role.PRODUCER
    assert await npm.acquire("a") == "consumer"
    await store.extend("a", CHUNKS)
    await store.append("a", b"last")
    await store.finalize("a", "done")
    assert await npm.read("a").whole() == [*CHUNKS, b"last"]
    assert await npm.call("status", "a") == "done"
    with pytest.raises(NpmError, match=r"^Stream already finalized: a$") as caught:
        await npm.append("a", b"late")
    assert caught.value.code == "finalized"


async def test_tailrace_writes_and_npm_reads_live(npm: Npm, store: LogStore) -> None:
    await store.acquire("a")
    reading = npm.read("a")
    for number, chunk in enumerate(CHUNKS, 1):
        await store.append("a", chunk)
        await reading.until(number)
    assert await npm.call("status", "a") == "streaming"
    await store.finalize("a", "error", 'böse "quote" \\ \u2028')
    with pytest.raises(NpmError, match=r'^böse "quote" \\ \u2028$'):
        await reading.whole()
    assert reading.chunks == CHUNKS
    assert await npm.call("status", "a") == "error"


async def test_other_endings_are_errors_to_npm(npm: Npm, store: LogStore, other: LogStore) -> None:
    await store.acquire("a")
    await store.finalize("a", "cancelled")
    lease = (await store.acquire("b")).lease
    assert lease is not None
    await other.delete("b")
    with pytest.raises(NpmError, match=r"^Stream errored$"):
        await npm.read("a").whole()
    assert await npm.call("status", "a") == "error"
    assert await npm.call("status", "b") == "missing"
    with pytest.raises(StreamCancelled):
        await chunks(other, "a")


async def test_both_write_one_stream(npm: Npm, store: LogStore, other: LogStore) -> None:
    """An npm process without a lease appends to whatever stream it finds; what it stored counts where it stands."""
    lease = (await store.acquire("a")).lease
    assert lease is not None
    reading, live = npm.read("a"), asyncio.create_task(chunks(other, "a"))
    wanted = []
    for number in range(10):
        await store.append("a", b"ours %d" % number, lease)
        await npm.append("a", b"theirs %d" % number)
        wanted += [b"ours %d" % number, b"theirs %d" % number]
    await store.finalize("a", "done")
    assert await live == wanted
    assert await reading.whole() == wanted
    assert await chunks(store, "a") == wanted


async def test_npm_ends_a_stream_of_ours(npm: Npm, store: LogStore, other: LogStore) -> None:
    lease = (await store.acquire("a")).lease
    live = asyncio.create_task(chunks(other, "a"))
    await store.append("a", b"x", lease)
    await npm.call("finalize", "a", status="done")
    assert await live == [b"x"]
    with pytest.raises(StreamFinalized):
        await store.append("a", b"late", lease)
    assert (await other.status("a")).status is Status.DONE


async def test_npm_deletes_a_stream_of_ours(npm: Npm, store: LogStore, other: LogStore) -> None:
    first = (await store.acquire("a")).lease
    assert first is not None
    await store.append("a", b"x", first)
    live = asyncio.create_task(chunks(other, "a"))
    reader = await other.open("a")
    await npm.call("delete", "a")
    assert await live == [b"x"]  # the contract of a delete: a clean end, and the reader's ending says why
    async with asyncio.timeout(PATIENCE):
        while reader.ending is None:
            reader.take()
            await reader.wait()
    assert reader.ending.status is Status.MISSING
    reader.close()
    with pytest.raises(StreamNotFound):
        await store.append("a", b"late", first)
    assert await npm.acquire("a") == "producer"
    await npm.append("a", b"new")
    with pytest.raises(StreamSuperseded):
        await store.append("a", b"late", first)
    await npm.call("finalize", "a", status="done")
    assert await chunks(other, "a") == [b"new"]
    info = await store.status("a")
    assert info.incarnation is not None
    assert info.incarnation.generation == first.incarnation.generation + 1


async def test_tailrace_deletes_a_stream_of_npms(npm: Npm, store: LogStore, other: LogStore) -> None:
    await npm.acquire("a")
    await npm.append("a", b"x")
    reading, live = npm.read("a"), other.read("a")
    await reading.until(1)
    assert (await asyncio.wait_for(anext(live), PATIENCE)).chunk == b"x"
    assert await store.delete("a")
    assert await reading.whole() == [b"x"]
    async with asyncio.timeout(PATIENCE):
        assert [entry.chunk async for entry in live] == []
    assert await npm.call("status", "a") == "missing"
    assert (await store.acquire("a")).role is Role.PRODUCER
    await store.append("a", b"ours")
    await store.finalize("a", "done")
    assert await npm.read("a").whole() == [b"ours"]


async def read_of_a_life_that_npm_replaces(npm: Npm, store: LogStore) -> AsyncIterator[Entry]:
    """A reader that has read what there is, as npm deletes the stream and acquires it again."""
    await npm.acquire("a")
    await npm.append("a", b"old")
    reading = store.read("a")
    assert (await asyncio.wait_for(anext(reading), PATIENCE)).chunk == b"old"
    await npm.call("delete", "a")
    assert await npm.acquire("a") == "producer"
    return reading


async def test_npm_deletes_and_acquires_again_under_a_reader(npm: Npm, store: LogStore) -> None:
    reading = await read_of_a_life_that_npm_replaces(npm, store)
    await npm.append("a", b"new")
    async with asyncio.timeout(PATIENCE):
        assert [entry.chunk async for entry in reading] == []
    await npm.call("finalize", "a", status="done")
    assert await chunks(store, "a") == [b"new"]


async def test_npm_acquires_again_without_a_chunk_under_a_reader(npm: Npm, store: LogStore) -> None:
    reading = await read_of_a_life_that_npm_replaces(npm, store)
    async with asyncio.timeout(PATIENCE):
        assert [entry.chunk async for entry in reading] == []
    live = store.read("a")
    await npm.append("a", b"new")
    assert (await asyncio.wait_for(anext(live), PATIENCE)).chunk == b"new"
    await npm.call("finalize", "a", status="done")
    async with asyncio.timeout(PATIENCE):
        assert [entry.chunk async for entry in live] == []


async def test_half_a_surrogate_pair_in_a_message(npm: Npm, store: LogStore) -> None:
    await npm.acquire("a")
    await npm.append("a", b"x")
    live = asyncio.create_task(chunks(store, "a"))
    assert (await store.status("a")).entries == 1
    await npm.call("finalize", "a", status="error", error="half \ud83d")
    with pytest.raises(StreamErrored, match=re.escape("half \ufffd")):
        await live
    info = await store.status("a")
    assert (info.status, info.entries) == (Status.ERROR, 1)
    await store.acquire("b")
    await store.finalize("b", "error", "half \ud83d")
    with pytest.raises(NpmError, match=re.escape("half \ufffd")):
        await npm.read("b").whole()
    assert await npm.call("status", "b") == "error"


async def test_a_stream_of_npms_expires(npm: Npm, store: LogStore, other: LogStore) -> None:
    await npm.acquire("a", ttlMs=4000)
    await npm.append("a", b"x")
    reading = store.read("a")
    assert (await asyncio.wait_for(anext(reading), PATIENCE)).chunk == b"x"
    with pytest.raises(StreamExpired):
        await asyncio.wait_for(anext(reading), PATIENCE)
    assert await npm.call("status", "a") == "missing"
    assert (await other.acquire("a")).role is Role.PRODUCER


async def test_an_unwatched_stream_of_npms_expires(npm: Npm, store: LogStore) -> None:
    await npm.acquire("a", ttlMs=3000)
    assert (await store.status("a")).status is Status.STREAMING
    async with asyncio.timeout(PATIENCE):
        while await npm.call("status", "a") != "missing":
            await asyncio.sleep(0.05)
    async with asyncio.timeout(PATIENCE):
        while (await store.status("a")).status.seed != "missing":
            await asyncio.sleep(0.05)
    assert await npm.acquire("a") == "producer"
    assert (await store.status("a")).status is Status.STREAMING


async def test_a_reader_that_waits_is_there_when_npm_claims(npm: Npm, store: LogStore) -> None:
    opening = asyncio.create_task(store.open("a", wait=PATIENCE))
    with pytest.raises(StreamNotFound):
        await store.open("a")
    await npm.acquire("a")
    reader = await opening
    await npm.append("a", b"x")
    async with asyncio.timeout(PATIENCE):
        while not (got := reader.take()):
            await reader.wait()
    assert [entry.chunk for entry in got] == [b"x"]
    reader.close()


async def test_no_stream_of_npms_is_ended_because_nobody_beats_for_it(npm: Npm, make_store: MakeStore) -> None:
    await npm.acquire("a")
    await npm.append("a", b"x")
    store = await make_store()
    reader = await store.open("a")
    ticks = 0
    async with asyncio.timeout(PATIENCE):
        on_tick = store.members.on_tick

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            on_tick()

        store.members.on_tick = tick
        while ticks < 15:  # three times the lease, heard
            await asyncio.sleep(0.05)
    reader.take()
    assert reader.ending is None
    assert (await store.status("a")).status is Status.STREAMING
    reader.close()


async def test_one_of_many_is_the_producer(npm: Npm, store: LogStore, other: LogStore) -> None:
    for round_ in range(10):
        stream_id = f"s{round_}"
        ours = [each.acquire(stream_id) for each in (store, other) for _ in range(3)]
        theirs = [npm.acquire(stream_id) for _ in range(3)]
        roles = await asyncio.gather(*theirs, *ours)
        said = [role if isinstance(role, str) else str(role.role) for role in roles]
        assert said.count("producer") == 1


# --- npm's leases, which 0.3.44 brought

with_leases = pytest.mark.parametrize("release", ["new"])


async def leased(npm: Npm, stream_id: str) -> Any:
    won = await npm.call("acquire", stream_id)
    assert won["role"] == "producer"
    return won["lease"]


@with_leases
async def test_npm_writes_with_its_lease_and_tailrace_reads_live(npm: Npm, store: LogStore, other: LogStore) -> None:
    lease = await leased(npm, "a")
    readings = [asyncio.create_task(chunks(each, "a")) for each in (store, other)]
    reader = await store.open("a")
    for chunk in CHUNKS:
        await npm.append("a", chunk, lease=lease)
        async with asyncio.timeout(PATIENCE):
            while not (got := reader.take()):
                await reader.wait()
        assert [entry.chunk for entry in got] == [chunk]
    assert (await store.acquire("a")).role is Role.CONSUMER
    await npm.call("finalize", "a", status="done", lease=lease)
    assert [await reading for reading in readings] == [CHUNKS, CHUNKS]
    assert (await store.status("a")).status is Status.DONE
    reader.close()


@with_leases
async def test_a_lease_of_npms_is_fenced_by_our_delete_and_acquire(npm: Npm, store: LogStore, other: LogStore) -> None:
    lease = await leased(npm, "a")
    await npm.append("a", b"old", lease=lease)
    assert await store.delete("a")
    ours = (await store.acquire("a")).lease
    assert ours is not None
    await store.append("a", b"new", ours)
    live = asyncio.create_task(chunks(other, "a"))
    with pytest.raises(NpmError, match=r"^Stream superseded by a new acquisition: a$"):
        await npm.append("a", b"late", lease=lease)
    await npm.call("finalize", "a", status="error", error="late", lease=lease)  # it says nothing, and does nothing
    assert (await other.status("a")).status is Status.STREAMING
    await store.append("a", b"er", ours)
    await store.finalize("a", "done", lease=ours)
    assert await live == [b"new", b"er"]
    assert await npm.read("a").whole() == [b"new", b"er"]


EACH = 200


async def test_both_write_one_stream_at_once(npm: Npm, store: LogStore, other: LogStore) -> None:
    lease = (await store.acquire("a")).lease
    assert lease is not None
    readings = [npm.read("a"), npm.read("a")]
    live = [asyncio.create_task(chunks(each, "a", patience=3 * PATIENCE)) for each in (store, other)]
    ours, theirs = [[b"%s %d;" % (who, number) for number in range(EACH)] for who in (b"ours", b"theirs")]

    begun = asyncio.Event()  # neither is done before the other began

    async def write() -> None:
        for number, chunk in enumerate(ours):
            if number == EACH // 2:
                await begun.wait()
            await store.append("a", chunk, lease)

    async def write_theirs() -> None:
        await npm.append("a", theirs[0])
        begun.set()
        await npm.append("a", *theirs[1:])

    await asyncio.gather(write(), write_theirs())
    await store.finalize("a", "done", lease=lease)
    whole, *rest = [await reading for reading in live] + [await reading.whole() for reading in readings]
    assert all(got == whole for got in rest)
    for wrote in (ours, theirs):
        assert [chunk for chunk in whole if chunk in set(wrote)] == wrote
    assert len(whole) == 2 * EACH
    turns = sum(one[:4] != next_[:4] for one, next_ in itertools.pairwise(whole))
    assert turns > 1, "one came after the other"


async def test_the_old_release_ends_a_stream_of_the_new_layout(modules: Path, server: RedisServer, prefix: str) -> None:
    """0.3.15 forgets the generation when it finalizes: whoever of ours sees it first puts it right."""
    old = await Npm.start(modules, server.port, prefix, "old")
    new = await Npm.start(modules, server.port, prefix, "new")
    redis = RedisOptions(prefix=prefix)
    async with await connect(server.url, StoreOptions(lease_ttl=1.0, linger=0.0, redis=redis)) as store:
        for stream_id, ending in (("a", "done"), ("b", "error")):
            lease = (await store.acquire(stream_id)).lease
            await store.append(stream_id, b"x", lease)
            await old.call("finalize", stream_id, status=ending, error="boom")
        assert await chunks(store, "a") == [b"x"]
        with pytest.raises(StreamErrored, match=r"^boom$"):
            await chunks(store, "b")
        assert await new.read("a").whole() == [b"x"]
    await old.close()
    await new.close()


async def test_the_old_release_deletes_a_stream_of_the_new_layout(
    modules: Path, server: RedisServer, prefix: str
) -> None:
    """0.3.15 does not know where the data is, and deletes npm's meta alone."""
    old = await Npm.start(modules, server.port, prefix, "old")
    redis = RedisOptions(prefix=prefix)
    async with await connect(server.url, StoreOptions(lease_ttl=1.0, linger=0.0, redis=redis)) as store:
        lease = (await store.acquire("a")).lease
        await store.append("a", b"x", lease)
        reading = store.read("a")
        assert (await asyncio.wait_for(anext(reading), PATIENCE)).chunk == b"x"
        await old.call("delete", "a")
        async with asyncio.timeout(PATIENCE):
            assert [entry.chunk async for entry in reading] == []
        with pytest.raises(StreamNotFound):
            await store.append("a", b"late", lease)
        assert await old.call("status", "a") == "missing"
        assert (await store.acquire("a")).role is Role.PRODUCER
    await old.close()
