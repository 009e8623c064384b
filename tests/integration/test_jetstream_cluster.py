"""The JetStream log on three nodes: whoever leads a shard in use is killed, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from tailrace.commit import insist
from tailrace.errors import BrokerError, BrokerUnavailable
from tailrace.jetstream import JetStream, JetStreamOptions, open_jetstream
from tailrace.jetstream.names import Names
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation
from tailrace.records import Kind, Record
from tailrace.testing.cluster import NatsCluster

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SHARDS = 2
NAMES = Names(JetStreamOptions().prefix, SHARDS)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path) as nodes:
        yield nodes


async def opened(cluster: NatsCluster) -> JetStream:
    options = JetStreamOptions(shards=SHARDS, replicas=3, connect_timeout=10, request_timeout=3)
    while True:  # the nodes elect their leader first
        try:
            return await open_jetstream(f"nats://{cluster.hosts}", options=options)
        except BrokerUnavailable:
            await asyncio.sleep(0.2)


async def append(broker: JetStream, record: Record, position: int) -> int:
    """What a writer does about an answer that did not come: read at the leader, and the same record again."""
    while True:
        try:
            return await broker.log.append(record, position)
        except (AppendUnknown, AppendRefused, BrokerError):
            await asyncio.sleep(0.05)
        try:
            last = await broker.log.last(record.stream_id)
        except BrokerError:
            continue
        if last is not None and last.record.nonce == record.nonce:
            return last.position
        assert (last.position if last else 0) == position, "a record that was acknowledged is lost"


@pytest.mark.timeout(180)
async def test_killed_leaders_lose_nothing_and_repeat_nothing(cluster: NatsCluster) -> None:
    broker, reader = await opened(cluster), await opened(cluster)
    stop = asyncio.Event()

    async def produce(stream_id: str) -> list[int]:
        positions: list[int] = []
        while not stop.is_set():
            number = len(positions)
            record = Record(Kind.CHUNKS, stream_id, Incarnation(1, 7), 1, number, number, f"n{number}", (b"x",))
            positions.append(await append(broker, record, positions[-1] if positions else 0))
        return positions

    streams = [f"s{number}" for number in range(10)]
    producers = [asyncio.create_task(produce(stream_id)) for stream_id in streams]
    assert {NAMES.place(stream_id).stream for stream_id in streams} == {NAMES.shard(0), NAMES.shard(1)}
    for turn in range(SHARDS + 1):
        shard = NAMES.shard(turn % SHARDS)
        before = broker.log.now_ms()
        leader = await asyncio.to_thread(cluster.leader, shard)
        cluster.nodes[leader].kill()
        probe = next(name for name in map(f"probe-{turn}-{{}}".format, count()) if NAMES.place(name).stream == shard)
        await append(broker, Record(Kind.CHUNKS, probe, Incarnation(1, 7), 1, 0, 0, "p", (b"x",)), 0)
        assert await asyncio.to_thread(cluster.leader, shard) != leader
        await asyncio.to_thread(cluster.start)
        await append(broker, Record(Kind.CHUNKS, f"after-{turn}", Incarnation(1, 7), 1, 0, 0, "p"), 0)
        assert broker.log.now_ms() >= before
    stop.set()
    for stream_id, positions in zip(streams, await asyncio.gather(*producers), strict=True):
        while True:
            try:
                stored = await reader.log.read(stream_id)
                break
            except BrokerUnavailable:
                await asyncio.sleep(0.1)
        assert [one.position for one in stored] == positions
        assert [one.record.entries for one in stored] == list(range(len(positions)))
    await broker.close()
    await reader.close()


async def listed(broker: JetStream) -> dict[str, int]:
    return {found.record.stream_id: found.position async for found in broker.log.lasts()}


async def test_a_list_has_what_was_confirmed_whichever_replica_answers(cluster: NatsCluster) -> None:
    """One answer in a hundred is of a replica that does not know yet what its leader confirmed."""
    await (await opened(cluster)).close()
    leader = await asyncio.to_thread(cluster.leader, NAMES.shard(0))
    options = JetStreamOptions(shards=SHARDS, replicas=3, connect_timeout=10, request_timeout=10)
    others = [node for name, node in cluster.nodes.items() if name != leader]
    writer, *readers = [await open_jetstream(node.url, options=options) for node in (cluster.nodes[leader], *others)]
    ids = [name for name in map("s{}".format, range(1200)) if NAMES.place(name).stream == NAMES.shard(0)]
    positions: dict[str, int] = {}

    async def begin(stream_id: str) -> None:
        record = Record(Kind.CHUNKS, stream_id, Incarnation(1, 7), 1, 0, 0, f"n{stream_id}", (b"x",))
        positions[stream_id] = await append(writer, record, 0)

    await asyncio.gather(*map(begin, ids[:250]))  # the longer the list, the busier the replicas
    for stream_id in ids[250:]:
        await begin(stream_id)
        for reader in readers:
            assert await insist(partial(listed, reader)) == positions
    for broker in (writer, *readers):
        await broker.close()
