"""Kafka's topics in hostile hands and in bad times: no message stops anybody, and no trimmed head changes a verdict."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from tailrace._ports import choose_port
from tailrace.command_wire import encode_command
from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable, TailraceError
from tailrace.fold import TRIMMED, State, fold
from tailrace.kafka import KafkaOptions, refusals
from tailrace.kafka import claims as claims_module
from tailrace.kafka import feeds as feeds_module
from tailrace.kafka.broker import Kafka, open_kafka
from tailrace.kafka.claims import Entry
from tailrace.kafka.connection import FOLLOW, LOOK_UP, Connection, Fetched, Place
from tailrace.kafka.reading import TRIES, read
from tailrace.kafka.sender import parts
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation, Status
from tailrace.records import Stored
from tailrace.testing.kafka_server import KafkaCluster, KafkaServer
from tailrace.testing.kafka_world import KafkaWorld, opened, own_topics
from tailrace.testing.lives import Life
from tailrace.testing.worlds import replay

pytestmark = pytest.mark.slow

PATIENCE = 60.0
METADATA = 0  # the client library's own lane
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture
def options(request: pytest.FixtureRequest) -> KafkaOptions:
    return own_topics(request.node.name)


async def trim(broker: Kafka, place: Place, before: int) -> None:
    admin = AIOKafkaAdminClient(**broker.connection.library)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(*place): RecordsToDelete(before)})
    finally:
        await admin.close()


FOREIGN = {
    "deep": DEEP,
    "infinite": b'{"k":"open","start":Infinity,"base":0,"keep":1}',
    "huge": b'{"k":"open","start":1e999,"base":0,"keep":1}',
    "a seal": b'{"k":"seal","inc":"1-1","at":[Infinity]}',
    "digits": b"9" * 5000,
    "a list": b"[1]",
}


@pytest.mark.parametrize("value", FOREIGN.values(), ids=list(FOREIGN))
async def test_no_foreign_message_stops_who_reads_a_topic(
    server: KafkaServer, options: KafkaOptions, value: bytes
) -> None:
    async with opened(server.url, options) as broker:
        world = KafkaWorld(server.url, options=options)
        store = await world.store()
        await store.acquire("before")
        names = broker.names
        for place in (names.records("s"), *names.all_claims, *names.all_runs, names.members, names.cancels):
            for key in (b"before", b"\xff"):
                meta = [("Tailrace-Command", b"1"), ("Tailrace-Meta", value), ("Tailrace-Id", b"s")]
                for headers in ([], meta, [("Tailrace-Command", b"9" * 5000)]):
                    await broker.sender.send(place, key, value, headers)
        async with asyncio.timeout(PATIENCE):
            await store.append("before", b"a")
            await store.acquire("after")
            async with opened(server.url, options) as fresh:
                assert (await fresh.log.last("after")) is not None
            assert (await store.status("before")).entries == 1
        await world.close()


async def test_a_damaged_batch_is_counted_and_told_once_and_ends_its_stream(
    server: KafkaServer, options: KafkaOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.kafka")
    async with opened(server.url, options) as broker:
        await Life(broker, "other").begin(b"fine", owner=8)
        life = await Life(broker).begin(b"first", b"to be damaged", b"behind it")
        segment = next(server.directory.rglob(f"{options.prefix}.chunks-0/*.log"))
        with segment.open("r+b") as file:
            file.seek(segment.read_bytes().index(b"to be damaged"))
            file.write(b"TO")
        async with opened(server.url, options) as fresh:
            for _ in range(2):
                state = State()
                for stored in await fresh.log._read("s", fresh.claims.peek("s"), 0, life.state.position):
                    state, _ = fold(state, stored)
                assert state.ending is not None
                assert state.ending.status is Status.TRIMMED
            assert fresh.log.skipped > 0
            told = [record for record in caplog.records if "damaged" in record.message]
            assert len(told) == 1
            assert replay(await fresh.log.read("other"))[1] == [b"fine"]


HEADS = {
    "refused as corrupt": (8, b"\0\0\0\3"),  # a length that is none
    "answered with nothing": (8, b"\x40\0\0\0"),  # a length beyond the file
    "refused for a fault": (16, b"\0\1"),  # a version that was before there were batches, and a codec
    "answered with offsets that cannot be": (0, b"\0\1"),
}
PADDING = bytes(5000)  # what follows is in the broker's index: damage before it does not matter


def damage(server: KafkaServer, place: Place, content: bytes, at: int, by: bytes) -> None:
    """Write over the head of the batch that has this content, on the broker's disk."""
    segment = next(server.directory.rglob(f"{place}/*.log"))
    data, start = segment.read_bytes(), 0
    while content not in data[start : (end := start + 12 + struct.unpack_from(">i", data, start + 8)[0])]:
        start = end
    with segment.open("r+b") as file:
        file.seek(start + at)
        file.write(by)


class Held:
    """A process that asks for nothing new in the partitions that it follows, until it is told to."""

    def __init__(self, broker: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = asyncio.Event()
        self._held: asyncio.Queue[int] = asyncio.Queue()
        self._lanes = broker.feeds._lanes
        self._request = broker.connection.request
        monkeypatch.setattr(broker.connection, "request", self._ask)

    async def _ask(self, node: int, request: Any, lane: int, timeout: float | None = None) -> Any:
        if lane >= FOLLOW:
            self._held.put_nowait(lane)
            await self.go_on.wait()
        return await self._request(node, request, lane, timeout)

    async def held(self, broker: Kafka, *places: Place) -> None:
        """Answer the questions that the broker has for these partitions, and wait for the next ones."""
        for place in places:
            await broker.sender.send(place, b"nobody", b"", [])
        held: set[int] = set()
        while not all(any(place in lane.feeds and lane.number in held for lane in self._lanes) for place in places):
            held.add(await self._held.get())


def told(caplog: pytest.LogCaptureFixture, what: str = "") -> list[str]:
    """What Tailrace told, not the client library: a node that stalls for a moment is away for another."""
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("tailrace")]
    return [message for message in ours if what in message]


@pytest.mark.parametrize(("at", "by"), HEADS.values(), ids=list(HEADS))
async def test_what_the_broker_cannot_serve_is_passed_over_and_ends_its_streams(
    server: KafkaServer,
    options: KafkaOptions,
    at: int,
    by: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.kafka")
    async with opened(server.url, options) as writer, opened(server.url, options) as watcher, asyncio.timeout(PATIENCE):
        place, behind_it = writer.names.all_records[0], asyncio.Event()
        live, ended = await Life(writer, "live").begin(b"a"), await Life(writer, "ended").begin(b"b", owner=8)
        heard = await watcher.log.read("live")

        def hear(stored: Stored) -> None:
            heard.append(stored)
            if b"behind it" in stored.record.chunks:
                behind_it.set()

        await watcher.log.follow("live", hear, lambda: None)
        hold = Held(watcher, monkeypatch)
        await hold.held(writer, place)
        await live.word(b"to be damaged")
        await ended.word(b"not served either")
        await writer.sender.send(place, b"nobody", PADDING, [])
        behind = await Life(writer, "behind").begin(b"c", owner=9)
        await live.word(b"behind it")
        await ended.end()
        damage(server, place, b"to be damaged", at, by)
        hold.go_on.set()
        await behind_it.wait()
        assert replay(heard)[0].ending == TRIMMED
        async with opened(server.url, options) as fresh:
            for stream_id in ("live", "ended"):
                found = await fresh.log._read(stream_id, fresh.claims.peek(stream_id), 0, ended.state.position)
                assert replay(found)[0].ending == TRIMMED
            await behind.word(b"d")
            await Life(fresh, "new").begin(b"e", owner=10)
            for broker in (writer, watcher, fresh):
                assert replay(await broker.log.read("behind"))[1] == [b"c", b"d"]
                assert replay(await broker.log.read("new"))[1] == [b"e"]
            assert watcher.log.skipped == 1
            assert fresh.log.skipped > 0
        assert len(told(caplog)) == len(told(caplog, "damaged")) == 2  # one a process that met it


async def test_an_ending_that_cannot_be_read_is_taken_from_its_copy(server: KafkaServer, options: KafkaOptions) -> None:
    async with opened(server.url, options) as writer, asyncio.timeout(PATIENCE):
        life = await Life(writer).begin(b"one ", b"two")
        await life.end()
        last = await writer.log.last("s")
        assert last is not None
        await writer.claims.copy(last)
        damage(server, writer.names.all_records[0], last.record.nonce.encode(), 17, b"\xff\xff\xff\xff")  # its checksum
        async with opened(server.url, options) as fresh:
            await fresh.log.follow("s", lambda stored: None, lambda: None)  # by a track, and
            found = await fresh.log.read("s")
            assert fresh.log.skipped == 1
            assert replay(found) == replay(await writer.log.read("s"))
            assert replay(found)[1] == [b"one ", b"two"]
            assert replay(found)[0].ending == last.record.ending
            assert (await fresh.log.last("s")) == last
        async with opened(server.url, options) as other:
            found = await other.log.read("s")  # by the table
            assert other.log.skipped == 1
            assert replay(found)[0].ending == last.record.ending


@pytest.mark.parametrize("topic", ["claims", "runs"])
async def test_a_table_survives_what_the_broker_cannot_serve(
    server: KafkaServer, options: KafkaOptions, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.kafka.connection")
    async with opened(server.url, options) as writer, asyncio.timeout(PATIENCE):
        place = Place(f"{options.prefix}.{topic}", 0)
        for stream_id in ("before", "damaged", "behind"):
            await Life(writer, stream_id).begin(b"a")
            await writer.runs.submit(Command(stream_id, "h", b"1", "bytes", "d"))
            await writer.sender.send(place, b"padding", PADDING, [])
        damage(server, place, b"damaged", *HEADS["refused as corrupt"])
        async with opened(server.url, options) as fresh:
            for stream_id in ("before", "behind"):
                assert replay(await fresh.log.read(stream_id))[1] == [b"a"]
                assert await fresh.runs.find(stream_id) is not None
            assert (await fresh.log.last("damaged") is None) == (topic == "claims")
            assert (await fresh.runs.find("damaged") is None) == (topic == "runs")
            await Life(fresh, "new").begin(b"b", owner=8)
            assert replay(await writer.log.read("new"))[1] == [b"b"]
        assert len(told(caplog, "damaged")) == 1


async def test_a_partition_that_cannot_be_read_is_told_once_and_holds_nobody_up(
    server: KafkaServer, options: KafkaOptions, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the broker's that is seen at the end of a partition may be anything: it is asked again."""
    caplog.set_level(logging.WARNING, "tailrace.kafka")
    options = replace(options, partitions=2)
    asked, served_from = asyncio.Semaphore(0), feeds_module.served_from

    async def counted(connection: Connection, place: Place, offset: int) -> int:
        try:
            return await served_from(connection, place, offset)
        finally:
            asked.release()

    monkeypatch.setattr(feeds_module, "served_from", counted)
    async with opened(server.url, options) as writer, opened(server.url, options) as watcher, asyncio.timeout(PATIENCE):
        ids = {writer.names.records(f"s{number}"): f"s{number}" for number in range(100)}
        bad, good = writer.names.all_records
        lives = {place: await Life(writer, ids[place]).begin(b"a") for place in (bad, good)}
        for place in (bad, good):
            await watcher.log.read(ids[place])
        hold = Held(watcher, monkeypatch)
        await hold.held(writer, bad, good)
        await lives[bad].word(b"to be damaged")
        damage(server, bad, b"to be damaged", *HEADS["refused for a fault"])
        hold.go_on.set()
        for _ in range(3):
            await asked.acquire()
            await lives[good].word(b"b")
            assert (await watcher.log._tracks.current(ids[good])).position == lives[good].state.position
        assert len(told(caplog)) == len(told(caplog, "cannot be read")) == 1
        await writer.sender.send(bad, b"nobody", PADDING, [])
        await lives[bad].word(b"behind it")
        feed = watcher.feeds._feeds[bad]
        await feed.passed(lives[bad].state.position)
        assert replay(await watcher.log._read(ids[bad], None, 0, lives[bad].state.position))[0].ending is not None


async def test_a_fault_of_the_brokers_that_is_over_damages_nothing(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers an error as long as a damaged batch is asked for again, and serves again what comes behind it."""
    async with opened(server.url, options) as writer, opened(server.url, options) as reader, asyncio.timeout(PATIENCE):
        life = await Life(writer).begin(b"a", b"b", b"c")
        fetch, faults = reader.connection.fetch, [Fetched(refusals.UNKNOWN, -1, -1, b"")] * (1 + TRIES)

        async def faulty(place: Place, offset: int, max_bytes: int) -> Fetched:
            return faults.pop() if faults else await fetch(place, offset, max_bytes)

        monkeypatch.setattr(reader.connection, "fetch", faulty)
        assert replay(await reader.log._read("s", None, 0, life.state.position))[1] == [b"a", b"b", b"c"]
        assert not faults
        assert reader.log.skipped == 0


async def test_what_freed_an_id_is_known_when_its_own_messages_are_too_old_to_be_kept(
    server: KafkaServer, options: KafkaOptions
) -> None:
    """The id's second life is young, and what ended the first is trimmed from both topics."""
    async with opened(server.url, options) as writer:
        life = await Life(writer).begin(b"old")
        await life.delete()
        until_copy = await writer.connection.end(writer.names.all_claims[0])
        gone = life.state.position
        await life.begin(b"new", owner=8)
        await trim(writer, writer.names.all_claims[0], until_copy)
        await trim(writer, writer.names.all_records[0], gone)
        await life.word(b"er")
        async with opened(server.url, options) as fresh:
            for broker in (writer, fresh):
                state, chunks = replay(await broker.log.read("s"))
                assert (state.incarnation, state.ending, chunks) == (Incarnation(2, 8), None, [b"new", b"er"])
            life.log = fresh.log
            await life.word(b"est")


async def test_an_old_opening_that_nobody_used_is_made_anew(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker removes an opening by its age: a life behind it must not be as young as it is."""
    async with opened(server.url, options) as dead:
        await dead.claims.open("s", 0)
    async with opened(server.url, options) as writer:
        await writer.sender.send(writer.names.all_records[0], b"filler", b"", [])
        until = await writer.connection.end(writer.names.all_claims[0])
        monkeypatch.setattr(claims_module, "FRESH_MS", -1)  # as if it were long ago
        life = await Life(writer).begin(b"a")
        await trim(writer, writer.names.all_claims[0], until)
        await trim(writer, writer.names.all_records[0], 1)
        async with opened(server.url, options) as fresh:
            with pytest.raises(AppendRefused):
                await Life(fresh).begin(owner=9)
            state, chunks = replay(await fresh.log.read("s"))
            assert (state.incarnation, chunks) == (Incarnation(1, 7), [b"a"])
        await life.word(b"b")


async def test_what_the_table_forgets_is_not_remembered_by_a_track(server: KafkaServer, options: KafkaOptions) -> None:
    """Else the process that remembers and one that does not would both find the id free, each behind another record."""
    async with opened(server.url, options) as remembers, opened(server.url, options) as forgets:
        life = await Life(remembers).begin()
        await life.delete()
        assert await remembers.log.last("s") is not None
        for broker in (remembers, forgets):
            await broker.claims.refresh()
            broker.claims._forget_old(1 << 60)
        first = await Life(forgets).begin(b"a", owner=8)
        late = Life(remembers)
        late.state = life.state
        with pytest.raises((AppendRefused, TailraceError)):
            await late.begin(owner=9)
        for broker in (remembers, forgets):
            state, chunks = replay(await broker.log.read("s"))
            assert (state.incarnation, chunks) == (Incarnation(1, 8), [b"a"])
        await first.word(b"b")


async def test_a_track_that_is_ahead_of_the_table_reads_from_the_right_place(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two topics may have different leaders, and one of them may be slow."""
    async with opened(server.url, options) as writer, opened(server.url, options) as reader:
        for _ in range(3):
            await writer.sender.send(writer.names.all_records[0], b"filler", b"", [])
        await trim(writer, writer.names.all_records[0], 2)
        track = await reader.log._tracks.get("s")
        await Life(writer).begin(b"a")
        await reader.log._tracks.current("s")
        track.forget_history()
        reader.claims._entries.pop("s", None)
        current = reader.claims.current

        async def late(stream_id: str) -> Entry | None:
            body = {"k": "open", "start": 3, "base": 0, "keep": 1 << 40}
            await writer.sender.send(writer.names.all_claims[0], b"s", json.dumps(body).encode(), [])
            return await current(stream_id)

        monkeypatch.setattr(reader.claims, "current", late)
        state, chunks = replay(await reader.log.read("s"))
        assert (state.incarnation, chunks) == (Incarnation(1, 7), [b"a"])


async def test_a_stream_whose_head_is_gone_is_listed(server: KafkaServer, options: KafkaOptions) -> None:
    async with opened(server.url, options) as writer:
        life = await Life(writer).begin(b"a", b"b")
        await trim(writer, writer.names.all_records[0], life.state.position - 1)
        async with opened(server.url, options) as fresh:
            found = [stored async for stored in fresh.log.lasts()]
            assert [stored.record.stream_id for stored in found] == ["s"]


async def test_a_broker_that_comes_back_on_another_port_is_found(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        small = KafkaOptions(partitions=1, claims_partitions=1)
        broker = await open_kafka(server.url, options=small, url_source=lambda: server.url)
        try:
            life = await Life(broker).begin(b"a")
            server.kill()
            server.port = choose_port(None, None)
            server.start()
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await life.word(b"b")
                        break
                    except (BrokerUnavailable, AppendUnknown):
                        await asyncio.sleep(0.05)
            assert str(broker.connection) == server.bootstrap
            assert replay(await broker.log.read("s"))[1] == [b"a", b"b"]
        finally:
            await broker.close()


async def test_a_command_that_came_second_does_not_outlive_the_first(
    server: KafkaServer, options: KafkaOptions
) -> None:
    """Its submitter died before it removed it, and compaction forgets the first."""
    async with opened(server.url, options) as broker:
        first = await broker.runs.submit(Command("s", "h", b"1", "bytes", "d"))
        headers, payload = encode_command(replace(first, id="second"))
        place = broker.names.runs("s")
        await broker.sender.send(place, b"second", payload, parts(list(headers.items())))
        assert await broker.runs.find("s") == first
        (queued,) = broker.runs.table
        await broker.runs.done(queued, "m")
        last: dict[bytes | None, bytes | None] = {}
        async for batch in read(broker.connection, place, 0, await broker.connection.end(place)):
            last |= {raw.key: raw.value for raw in batch.records}
        assert last == {first.id.encode(): None, b"second": None, f"{first.id}/m".encode(): None}


@pytest.mark.parametrize("how", ["but is connected", "and takes connections"])
async def test_a_node_that_says_nothing_holds_up_nobody_elses_streams(tmp_path: Path, how: str) -> None:
    with KafkaCluster(tmp_path / "kafka") as cluster:
        patient = KafkaOptions(partitions=6, claims_partitions=1, replicas=3, request_timeout=30.0)
        broker = await open_kafka(cluster.url.partition("/?")[0], options=patient)
        try:
            connection = broker.connection
            leaders = {place: connection.leader(place) for place in broker.names.all_records}
            needed = connection.leader(broker.names.all_claims[0])
            silent = next(node for node in cluster.nodes if node.id != needed and node.id in leaders.values())
            led = [place for place, leader in leaders.items() if leader == silent.id]
            others = [place for place in leaders if place not in led]
            for place in others:
                await broker.sender.send(place, b"nobody", b"", [])
            silent.pause()
            if how == "and takes connections":
                for lane in (LOOK_UP, METADATA):
                    connection.hang_up(silent.id, lane)
            stuck: list[asyncio.Task[Any]] = [asyncio.create_task(connection.end(place)) for place in led]
            stuck.append(asyncio.create_task(connection.relearn()))
            await asyncio.sleep(0)
            async with asyncio.timeout(patient.request_timeout / 2):
                await asyncio.gather(*(connection.end(place) for place in others))
                for place in others:  # each by a connection that has to be made
                    feed = await broker.feeds.follow(place, lambda batch: None, lambda first, end: end, 0)
                    await feed.passed(1)
            assert not any(task.done() for task in stuck[:-1])
            silent.resume()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*stuck)
        finally:
            await broker.close()
