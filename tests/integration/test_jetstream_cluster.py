"""The JetStream log on three nodes, the leaders killed one after the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tailrace.errors import BrokerError, BrokerUnavailable
from tailrace.jetstream import JetStream, JetStreamOptions, open_jetstream
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation
from tailrace.records import Kind, Record
from tailrace.testing.servers import NatsServer

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[NatsServer]]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [taken.getsockname()[1] for taken in sockets]
        stack.pop_all().close()  # the routes need their ports beforehand
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        servers = [
            NatsServer(
                tmp_path / str(number),
                config=f'server_name: n{number}\ncluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{routes}] }}',
            )
            for number, port in enumerate(ports)
        ]
        with ExitStack() as running:
            yield [running.enter_context(server) for server in servers]


async def opened(servers: list[NatsServer]) -> JetStream:
    options = JetStreamOptions(shards=2, replicas=3, connect_timeout=10, request_timeout=3)
    while True:  # the nodes elect their leader first
        try:
            return await open_jetstream([server.url for server in servers], options=options)
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
async def test_killed_nodes_lose_nothing_and_repeat_nothing(cluster: list[NatsServer]) -> None:
    broker, reader = await opened(cluster), await opened(cluster)
    stop = asyncio.Event()

    async def produce(stream_id: str) -> list[int]:
        positions: list[int] = []
        while not stop.is_set():
            number = len(positions)
            record = Record(Kind.CHUNKS, stream_id, Incarnation(1, 7), 1, number, number, f"n{number}", (b"x",))
            positions.append(await append(broker, record, positions[-1] if positions else 0))
        return positions

    producers = [asyncio.create_task(produce(f"s{number}")) for number in range(10)]
    for server in cluster:
        before = broker.log.now_ms()
        server.kill()
        probe = Record(Kind.CHUNKS, f"probe-{server.port}", Incarnation(1, 7), 1, 0, 0, "p", (b"x",))
        await append(broker, probe, 0)
        server.start()
        await append(broker, Record(Kind.CHUNKS, f"after-{server.port}", Incarnation(1, 7), 1, 0, 0, "p"), 0)
        assert broker.log.now_ms() >= before
    stop.set()
    for number, positions in enumerate(await asyncio.gather(*producers)):
        while True:
            try:
                stored = await reader.log.read(f"s{number}")
                break
            except BrokerUnavailable:
                await asyncio.sleep(0.1)
        assert [one.position for one in stored] == positions
        assert [one.record.entries for one in stored] == list(range(len(positions)))
    await broker.close()
    await reader.close()
