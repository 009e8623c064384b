"""The run queue on a real Kafka: what is accepted stays until it is done, and every process knows the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]

from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable, BrokerUnsuitable, RunTooLarge
from tailrace.kafka import KafkaOptions
from tailrace.kafka.broker import Kafka, open_kafka
from tailrace.testing.kafka_server import KafkaCluster, KafkaServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("kafka")]

COMMAND = Command("a..b", "Chat with: ümlauts.*>", b'{"x":1}', "data-stream", "d1", 60.5, "continue")
_prefixes = (f"runs{number}" for number in itertools.count())

Open = Callable[[], Awaitable[Kafka]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture
def options() -> KafkaOptions:
    return KafkaOptions(prefix=next(_prefixes), partitions=2, claims_partitions=2, connect_timeout=20.0)


@pytest.fixture
async def opened(server: KafkaServer, options: KafkaOptions) -> AsyncIterator[Open]:
    brokers = []

    async def make() -> Kafka:
        brokers.append(await open_kafka(server.url, options=options))
        return brokers[-1]

    yield make
    for broker in brokers:
        await broker.close()


@pytest.fixture
async def broker(opened: Open) -> Kafka:
    return await opened()


def queued(broker: Kafka) -> list[str]:
    return [each.id for each in broker.runs.table]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_command_is_queued_once_until_it_is_done(broker: Kafka) -> None:
    assert await broker.runs.find("a..b") is None
    accepted = await broker.runs.submit(COMMAND)
    assert accepted == replace(COMMAND, id=accepted.id)
    assert accepted.id
    assert await broker.runs.submit(COMMAND) == accepted
    assert await broker.runs.find("a..b") == accepted
    (waiting,) = broker.runs.table
    assert waiting.command == accepted
    assert waiting.submitted_ms > 0
    await broker.runs.done(waiting, "m1")
    assert await broker.runs.find("a..b") is None
    again = await broker.runs.submit(COMMAND)
    assert again.id != accepted.id


async def test_many_submits_at_once_in_two_processes_accept_one(opened: Open) -> None:
    brokers = [await opened() for _ in range(2)]
    accepted = await asyncio.gather(*(each.runs.submit(COMMAND) for each in brokers * 10))
    (winner,) = {command.id for command in accepted}
    for each in brokers:
        await until(lambda each=each: queued(each) == [winner])
    fresh = await opened()  # which reads the losers and their tombstones too
    assert queued(fresh) == [winner]


async def test_handlers_and_streams_do_not_meet(broker: Kafka) -> None:
    commands = [await broker.runs.submit(replace(COMMAND, handler=name)) for name in ("chat", "Chat", "chat.*")]
    commands.append(await broker.runs.submit(replace(COMMAND, stream_id="other")))
    assert len({command.id for command in commands}) == 4
    assert sorted(queued(broker)) == sorted(command.id for command in commands)
    assert await broker.runs.find("other") == commands[-1]


async def test_every_process_knows_who_has_taken_what(opened: Open) -> None:
    here, there = await opened(), await opened()
    accepted = await here.runs.submit(COMMAND)
    await until(lambda: accepted.id in there.runs.table)
    waiting = there.runs.table.get(accepted.id)
    assert waiting is not None
    for member in ("m1", "m2"):
        await there.runs.take(waiting, member)
    seen = here.runs.table.get(accepted.id)
    assert seen is not None
    await until(lambda: seen.takers == {"m1", "m2"})
    assert here.runs.table.taken_by("m1") == [seen]
    fresh = await opened()
    assert [each.takers for each in fresh.runs.table] == [{"m1", "m2"}]
    await there.runs.let_go(waiting, "m1")
    await until(lambda: seen.takers == {"m2"})
    await there.runs.done(waiting, "m2")
    await until(lambda: accepted.id not in here.runs.table)
    assert here.runs.table.takers() == ()
    assert list((await opened()).runs.table) == []


async def test_a_command_that_is_stored_twice_is_one(broker: Kafka, server: KafkaServer) -> None:
    accepted = await broker.runs.submit(COMMAND)
    again = await broker.runs.submit(accepted)  # as after an answer that was lost
    assert again == accepted
    assert queued(broker) == [accepted.id]


async def test_a_submit_waits_out_a_broker_that_stalls(server: KafkaServer, opened: Open) -> None:
    broker = await opened()
    server.pause()
    submit = asyncio.create_task(broker.runs.submit(COMMAND))
    await asyncio.sleep(0.2)
    server.resume()
    accepted = await submit
    assert await broker.runs.find("a..b") == accepted
    assert queued(await opened()) == [accepted.id]


async def test_what_was_accepted_survives_the_brokers_death(server: KafkaServer, opened: Open) -> None:
    broker = await opened()
    accepted = [await broker.runs.submit(replace(COMMAND, stream_id=f"s-{number}")) for number in range(20)]
    server.kill()
    server.start()
    for command in accepted:
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await broker.runs.find(command.stream_id) == command
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.1)
    assert sorted(queued(await opened())) == sorted(command.id for command in accepted)


async def test_cancels_and_dead_letters_are_stored_where_they_are_read(broker: Kafka, server: KafkaServer) -> None:
    accepted = await broker.runs.submit(COMMAND)
    await broker.runs.cancel("m1", "a..b")
    (waiting,) = broker.runs.table
    await broker.runs.bury(waiting, "it broke\nthrice ü")
    places = [TopicPartition(*broker.names.cancels), TopicPartition(*broker.names.dead)]
    consumer = AIOKafkaConsumer(bootstrap_servers=server.bootstrap, auto_offset_reset="earliest")
    consumer.assign(places)
    await consumer.start()
    try:
        found = {message.topic: message for message in [await consumer.getone() for _ in places]}
    finally:
        await consumer.stop()
    cancel, dead = (found[place.topic] for place in places)
    assert (cancel.key, cancel.value) == (b"m1", b"a..b")
    assert (dead.key, dead.value) == (accepted.id.encode(), COMMAND.input)
    assert dict(dead.headers)["Tailrace-Reason"] == b'"it broke\\nthrice \\u00fc"'


async def test_what_no_message_holds_is_refused_and_harms_nobody(broker: Kafka) -> None:
    most = broker.options.max_message_bytes
    with pytest.raises(RunTooLarge, match="the broker's messages take"):
        await broker.runs.submit(replace(COMMAND, input=b"x" * most))
    largest = await broker.runs.submit(replace(COMMAND, input=b"x" * (most - 18 * 1024)))
    await broker.runs.bury(broker.runs.table.get(largest.id), "\U0001f4a5" * 2000)  # type: ignore[arg-type]
    await broker.runs.submit(replace(COMMAND, stream_id="next"))


async def test_foreign_messages_are_kept_apart(broker: Kafka, server: KafkaServer, opened: Open) -> None:
    place = broker.names.runs("a..b")
    producer = AIOKafkaProducer(bootstrap_servers=server.bootstrap)
    await producer.start()
    await producer.send_and_wait(place.topic, b"{}", key=b"foreign", partition=place.partition)
    await producer.send_and_wait(place.topic, b"{}", key=b"foreign/member", partition=place.partition)
    await producer.send_and_wait(place.topic, b"{}", key=b"\xff\xfe/\xff", partition=place.partition)
    await producer.stop()
    accepted = await broker.runs.submit(COMMAND)
    assert await broker.runs.find("a..b") == accepted
    foreign = broker.runs.table.get("foreign")
    assert foreign is not None
    assert (foreign.command, foreign.stream_id) == (None, None)
    assert foreign.unread is not None
    await broker.runs.done(foreign, "m1")
    assert queued(await opened()) == [accepted.id]


async def test_a_topic_of_runs_that_would_lose_them_is_refused(server: KafkaServer, options: KafkaOptions) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(f"{options.prefix}.runs", 2, 1, topic_configs={"cleanup.policy": "delete"})])
    await admin.close()
    with pytest.raises(BrokerUnsuitable, match=r"\.runs at .*: cleanup\.policy is delete, and must be compact"):
        await open_kafka(server.url, options=options)


async def test_compaction_leaves_what_is_not_done(server: KafkaServer, options: KafkaOptions, opened: Open) -> None:
    """What compaction may remove is removed, and a fresh process knows the same."""
    broker = await opened()
    topic = broker.names.all_runs[0].topic
    admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await admin.start()
    eager = {"segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0"}
    held = {
        name: value
        for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        for _, _, _, _, items in answer.resources
        for name, value, _, source, *_ in items
        if source == 1
    }
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=held | eager)])
    left = await broker.runs.submit(replace(COMMAND, stream_id="left"))
    place = broker.names.runs("left")
    names = [name for name in (f"s-{number}" for number in range(100)) if broker.names.runs(name) == place][:5]

    async def compacted() -> bool:
        consumer = AIOKafkaConsumer(bootstrap_servers=server.bootstrap, auto_offset_reset="earliest")
        partition = TopicPartition(*place)
        consumer.assign([partition])
        await consumer.start()
        try:
            end = (await consumer.end_offsets([partition]))[partition]
            seen = []
            while not seen or seen[-1].offset < end - 1:
                seen.append(await consumer.getone())
        finally:
            await consumer.stop()
        return len(seen) < end

    while True:  # each round closes a segment, and gives the cleaner something to do
        for name in names:
            accepted = await broker.runs.submit(replace(COMMAND, stream_id=name))
            waiting = broker.runs.table.get(accepted.id)
            assert waiting is not None
            await broker.runs.done(waiting, "m1")
        if await compacted():
            break
        await asyncio.sleep(0.5)
    await until(lambda: queued(broker) == [left.id])
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=held)])  # else it is refused
    await admin.close()
    async with asyncio.timeout(60):
        while True:
            try:
                fresh = await opened()
                break
            except BrokerUnsuitable:  # what was altered is not seen at once
                await asyncio.sleep(0.1)
    assert queued(fresh) == [left.id]


@pytest.mark.timeout(300)
async def test_the_death_of_a_leader_loses_no_run(tmp_path: Path) -> None:
    options = KafkaOptions(partitions=2, claims_partitions=2, connect_timeout=30.0)
    with KafkaCluster(tmp_path) as cluster:
        broker = await open_kafka(cluster.url, options=options)
        try:
            place = broker.names.runs(COMMAND.stream_id)
            accepted = [await broker.runs.submit(replace(COMMAND, handler=f"before-{number}")) for number in range(10)]
            killed = await asyncio.to_thread(cluster.kill_leader, place.topic, place.partition)
            while len(accepted) < 20:  # a submit is tried for a while, and an election may take longer
                try:
                    one = replace(COMMAND, handler=f"after-{len(accepted)}", id=f"id-{len(accepted)}")
                    accepted.append(await broker.runs.submit(one))
                except BrokerUnavailable:
                    await asyncio.sleep(0.1)
            assert (await asyncio.to_thread(cluster.leader, place.topic, place.partition)).id != killed.id
            assert sorted(queued(broker)) == sorted(command.id for command in accepted)
            await asyncio.to_thread(cluster.start)
            assert killed.running
            fresh = await open_kafka(cluster.url, options=options)
            assert sorted(queued(fresh)) == sorted(queued(broker))
            await fresh.close()
        finally:
            await broker.close()
