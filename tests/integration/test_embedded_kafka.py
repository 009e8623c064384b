"""The embedded broker as Kafka: what differs from NATS; the sharing itself is tested there."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiokafka  # type: ignore[import-untyped]
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]

from tailrace._server_directory import ServerDirectory, ServerRecord, is_locked
from tailrace.embedded import EmbeddedError, EmbeddedOptions, attach, default_directory, read_record
from tailrace.kafka_local import jars, metadata

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "kafka"


def login(record: ServerRecord) -> dict[str, str]:
    return {
        "bootstrap_servers": f"127.0.0.1:{record.port}",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": record.user,
        "sasl_plain_password": record.password,
    }


@asynccontextmanager
async def producer(record: ServerRecord) -> AsyncIterator[aiokafka.AIOKafkaProducer]:
    one = aiokafka.AIOKafkaProducer(**login(record), enable_idempotence=True)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def kept(record: ServerRecord) -> list[bytes]:
    consumer = aiokafka.AIOKafkaConsumer("kept", **login(record), auto_offset_reset="earliest")
    await consumer.start()
    try:
        end = (await consumer.end_offsets(consumer.assignment()))[aiokafka.TopicPartition("kept", 0)]
        return [(await consumer.getone()).value for _ in range(end)]
    finally:
        await consumer.stop()


async def until_gone(home: Path) -> None:
    paths = ServerDirectory(home)
    while is_locked(paths.server_lock) or is_locked(paths.supervisor_lock):
        await asyncio.sleep(0.05)


async def next_server(home: Path, before: int) -> ServerRecord:
    while True:
        record = read_record(home)
        known = record.server_pid not in (None, before)
        if known and metadata.ask("127.0.0.1", record.port, login=(record.user, record.password)):
            return record
        await asyncio.sleep(0.05)


async def test_users_share_one_node_that_outlives_kills_and_keeps_what_was_acked(home: Path) -> None:
    async with await attach(home, EmbeddedOptions(sync_always=True), kind="kafka") as broker:
        record = read_record(home)
        assert broker.url == f"kafka://{record.user}:{record.password}@127.0.0.1:{record.port}"
        assert "log.flush.interval.messages=1" in (home / "server.properties").read_text()
        for name in ("server.json", "server.properties", "server.log"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        admin = AIOKafkaAdminClient(**login(record))
        await admin.start()
        await admin.create_topics([NewTopic("kept", 1, 1)])
        await admin.close()
        async with producer(record) as one:
            await one.send_and_wait("kept", b"first")
            async with await attach(home, kind="kafka") as another:
                assert another.url == broker.url
            assert record.server_pid is not None
            os.kill(record.server_pid, signal.SIGKILL)
            revived = await next_server(home, record.server_pid)
            assert revived.port == record.port
            await one.send_and_wait("kept", b"second")
        with pytest.raises(EmbeddedError, match="another kind: kafka, not nats") as caught:
            await attach(home)
        assert caught.value.code == "embedded-options"
    await until_gone(home)
    async with await attach(home, kind="kafka"):
        assert await kept(read_record(home)) == [b"first", b"second"]
    await until_gone(home)


async def test_a_stranger_is_refused(home: Path) -> None:
    async with await attach(home, kind="kafka"):
        record = read_record(home)
        assert metadata.ask("127.0.0.1", record.port) is None
        assert metadata.ask("127.0.0.1", record.port, login=(record.user, "guess")) is None
        assert metadata.ask("127.0.0.1", record.port, login=(record.user, record.password)) is not None


async def test_a_killed_supervisor_takes_its_node_along_and_a_user_replaces_both(home: Path) -> None:
    async with await attach(home, kind="kafka"):
        record = read_record(home)
        assert record.supervisor_pid is not None
        assert record.server_pid is not None
        os.kill(record.supervisor_pid, signal.SIGKILL)
        assert (await next_server(home, record.server_pid)).supervisor_pid != record.supervisor_pid


async def test_missing_jars_are_named_before_anything_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "default_cache", lambda: tmp_path / "none")
    with pytest.raises(jars.LocalKafkaError, match=r"33 of Kafka's 33 jars are not in") as caught:
        await attach(home, kind="kafka")
    assert (caught.value.code, caught.value.hint) == ("kafka-jars", "Run: tailrace kafka fetch")
    assert ServerDirectory(home).load() is None


def test_each_kind_has_a_folder_of_its_own() -> None:
    assert default_directory("kafka").name == "tailrace-kafka"
