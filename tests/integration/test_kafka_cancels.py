"""What a worker hears cancels with, on a real Kafka: it leaves nothing behind, whatever its broker does meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import opened, own_topics
from tailrace.worker.kafka_cancels import Cancels

pytestmark = pytest.mark.slow


async def test_a_fetch_that_failed_just_now_leaves_no_connection_and_no_task_behind_a_close(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    with KafkaServer(tmp_path / "kafka") as server:
        async with opened(server.url, own_topics("cancels")) as broker:
            cancels = Cancels(broker.runs, "m", lambda stream_id: False)
            await cancels.start()
            assert cancels._broker is not None
            (subscriber,) = cancels._broker.subscribers
            client = subscriber.consumer._client  # type: ignore[attr-defined]
            failed = asyncio.Event()
            ready = client.ready

            async def ready_for(node: int, *, group: int = 0) -> bool:
                found: bool = await ready(node, group=group)
                if not found:
                    failed.set()
                return found

            client.ready = ready_for
            server.kill()
            async with asyncio.timeout(30):
                await failed.wait()
                await asyncio.sleep(0)  # it rests before it asks again
                await cancels.close()
            assert not any(connection.connected() for connection in client._conns.values())
            assert client._sync_task is None
    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)
