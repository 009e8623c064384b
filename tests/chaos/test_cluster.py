"""Three nodes, three replicas: the leader of the shard in use is killed under load, and nobody is any the wiser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.connect import StoreOptions, connect
from tailrace.errors import BrokerUnsuitable
from tailrace.jetstream import JetStreamOptions
from tailrace.store import LogStore
from tailrace.testing.cluster import NAME, NatsCluster

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]
STREAMS, CHUNKS = 100, 60
SHARD = "TAILRACE_S_00"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path) as nodes:
        yield nodes


def _chunk(stream: str, number: int) -> bytes:
    return f"{stream}/{number};".encode()


def _expected(stream: str) -> bytes:
    return b"".join(_chunk(stream, number) for number in range(CHUNKS))


class Progress:
    """How many chunks were acknowledged; ``reached`` is set at ``mark``."""

    def __init__(self, mark: int) -> None:
        self.done, self.mark, self.reached = 0, mark, asyncio.Event()

    def add(self) -> None:
        self.done += 1
        if self.done >= self.mark:
            self.reached.set()


async def _write(store: LogStore, stream: str, progress: Progress, killed: asyncio.Event) -> None:
    lease = (await store.acquire(stream)).lease
    for number in range(CHUNKS):
        if number == CHUNKS - 1:
            await killed.wait()  # the leader dies under load, however fast this went
        await store.append(stream, _chunk(stream, number), lease)
        progress.add()
    await store.finalize(stream, "done", lease=lease)


async def _read(store: LogStore, stream: str) -> bytes:
    (await store.open(stream, wait=60)).close()  # it may not have been claimed yet
    return b"".join([entry.chunk async for entry in store.read(stream)])


async def test_the_leader_of_the_shard_in_use_is_killed(cluster: NatsCluster) -> None:
    url = f"nats://{cluster.hosts}/?replicas=3&shards=1"  # one shard, so that all streams are on it
    streams = [f"stream-{number}" for number in range(STREAMS)]
    progress, killed = Progress(STREAMS * CHUNKS // 3), asyncio.Event()
    async with await connect(url) as writer, await connect(url) as reader:
        reads = [asyncio.create_task(_read(reader, stream)) for stream in streams]
        writes = [asyncio.create_task(_write(writer, stream, progress, killed)) for stream in streams]
        await progress.reached.wait()
        leader = await asyncio.to_thread(cluster.leader, SHARD)
        assert SHARD in await asyncio.to_thread(cluster.led_by, leader), "by its own word"
        cluster.nodes[leader].kill()
        killed.set()
        successor = await asyncio.to_thread(cluster.leader, SHARD)
        assert successor != leader
        await asyncio.gather(*writes)
        live = dict(zip(streams, await asyncio.gather(*reads), strict=True))
        async with await connect(url) as fresh:
            stored = dict(zip(streams, await asyncio.gather(*(_read(fresh, one) for one in streams)), strict=True))
        assert (await asyncio.to_thread(cluster.leader, SHARD)) != leader
    for stream in streams:
        assert live[stream] == stored[stream] == _expected(stream), stream


async def test_copies_are_kept_where_they_were_wished(cluster: NatsCluster) -> None:
    here = StoreOptions(jetstream=JetStreamOptions(replicas=3, shards=1, placement_cluster=NAME))
    async with await connect(f"nats://{cluster.hosts}", here) as store:
        await store.acquire("a")
    other = StoreOptions(jetstream=JetStreamOptions(prefix="b", replicas=3, shards=1, placement_tags=("nowhere",)))
    with pytest.raises(BrokerUnsuitable, match="B_S_00"):
        await connect(f"nats://{cluster.hosts}", other)
    moved = StoreOptions(jetstream=JetStreamOptions(replicas=3, shards=1, placement_cluster="elsewhere"))
    with pytest.raises(BrokerUnsuitable, match=r"placement is .* must be"):
        await connect(f"nats://{cluster.hosts}", moved)
