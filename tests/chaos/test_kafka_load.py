"""Kafka brokers killed under a hundred live streams: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailrace.kafka import KafkaOptions
from tailrace.testing.kafka_server import KafkaCluster, KafkaServer
from tailrace.testing.kafka_world import KafkaWorld
from tailrace.testing.worlds import replay

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE = 100.0
STREAMS, PAUSE, STEP = 100, 0.02, 3.0  # seconds


@asynccontextmanager
async def load(world: KafkaWorld) -> AsyncIterator[None]:
    """One process writes numbers into each stream and another reads them, during the block; both agree behind it."""
    writer, reader = await world.store(), await world.store()
    acked = dict.fromkeys((f"load{number}" for number in range(STREAMS)), 0)
    stop = asyncio.Event()

    async def write(stream_id: str) -> None:
        while not stop.is_set():
            await writer.append(stream_id, b"%d;" % acked[stream_id])
            acked[stream_id] += 1
            await asyncio.sleep(PAUSE)
        await writer.finalize(stream_id, "done")

    async def read(stream_id: str) -> bytes:
        return b"".join([entry.chunk async for entry in reader.read(stream_id)])

    for stream_id in acked:
        await writer.acquire(stream_id)
    reading = [asyncio.create_task(read(stream_id)) for stream_id in acked]
    writing = [asyncio.create_task(write(stream_id)) for stream_id in acked]
    async with asyncio.timeout(PATIENCE):
        while not all(acked.values()):
            await asyncio.sleep(PAUSE)
    await asyncio.sleep(STEP)
    before = dict(acked)
    yield
    await asyncio.sleep(STEP)
    stop.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*writing)
        for stream_id, text in zip(acked, await asyncio.gather(*reading), strict=True):
            whole = b"".join(b"%d;" % number for number in range(acked[stream_id]))
            assert text == whole
            assert b"".join(replay(await world.records(stream_id))[1]) == whole
    assert all(acked[stream_id] > count > 0 for stream_id, count in before.items())


async def test_a_broker_killed_and_restarted_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        world = KafkaWorld(server.url, lease_ttl=30)
        async with load(world):
            for away in (1.0, 5.0):
                server.kill()
                await asyncio.sleep(away)
                await asyncio.to_thread(server.start)
                await asyncio.sleep(STEP)
        await world.close()


async def test_a_leader_of_three_nodes_killed_loses_and_repeats_nothing(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path / "kafka") as cluster:
        options = KafkaOptions(partitions=4, claims_partitions=2, replicas=3, min_insync_replicas=2)
        world = KafkaWorld(cluster.url, lease_ttl=30, options=options)
        async with load(world):
            leader = await asyncio.to_thread(cluster.leader, "tailrace.chunks", 1)
            assert leader.leader("tailrace.chunks", 1) == leader.id
            leader.kill()
            await asyncio.sleep(2 * STEP)
            assert (await asyncio.to_thread(cluster.leader, "tailrace.chunks", 1)).id != leader.id
        await world.close()
