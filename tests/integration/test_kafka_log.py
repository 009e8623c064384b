"""The Kafka log against a real broker: conditions, one verdict in every process, what a trimmed or damaged log says."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from tailrace import decide
from tailrace.commit import new_nonce
from tailrace.errors import BrokerFailed, ChunkTooLarge, TailraceError, UnsupportedRecord
from tailrace.fold import DELETED, EXPIRED, State, fold
from tailrace.kafka import KafkaOptions
from tailrace.kafka.broker import Kafka
from tailrace.kafka.connection import Place
from tailrace.kafka.wire import message
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Ending, Incarnation, Role, Status
from tailrace.records import Record, Stored
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import KafkaWorld, opened
from tailrace.testing.lives import Life, claim, word
from tailrace.testing.worlds import replay
from tailrace.writer import MAX_CHUNKS_A_RECORD

pytestmark = pytest.mark.slow

PATIENCE = 60.0
OPTIONS = KafkaOptions(prefix="log", partitions=2, claims_partitions=1)
LOST = Ending(Status.PRODUCER_LOST, "producer-lost", "a test took it over")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", ".").replace("]", "")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as running:
        yield running


@pytest.fixture
async def broker(server: KafkaServer) -> AsyncIterator[Kafka]:
    async with opened(server.url, OPTIONS) as broker:
        yield broker


@pytest.fixture
async def other(server: KafkaServer) -> AsyncIterator[Kafka]:
    async with opened(server.url, OPTIONS) as broker:
        yield broker


def texts(records: list[Stored]) -> list[bytes]:
    return [chunk for stored in records for chunk in stored.record.chunks]


# --- conditions


async def test_an_append_counts_only_behind_what_it_names(broker: Kafka, other: Kafka, unique: str) -> None:
    life = await Life(broker, unique).begin(b"a")
    first = life.state.position
    late = word(life.state, unique, b"late")
    await life.put(word(life.state, unique, b"b"))
    for each in (broker, other):
        with pytest.raises(AppendRefused):
            await each.log.append(late, first)
        with pytest.raises(AppendRefused):
            await each.log.append(claim(unique), 0)
    for each in (broker, other):
        records = await each.log.read(unique)
        assert texts(records) == [b"a", b"b"]
        assert [stored.previous for stored in records] == [0, *(stored.position for stored in records[:-1])]
        assert (await each.log.last(unique)) == records[-1]
        assert await each.log.read(unique, first) == records[2:]


async def test_a_record_that_is_stored_twice_or_late_counts_once(broker: Kafka, other: Kafka, unique: str) -> None:
    """What a client that retries, or one that was paused in the middle of sending, leaves in the log."""
    life = await Life(broker, unique).begin(b"a")
    expected, record = life.state.position, word(life.state, unique, b"b")
    headers, payload = message(record, expected)
    place = broker.names.records(unique)
    sent = [other.sender.send(place, unique.encode(), payload, headers) for _ in range(3)]
    await asyncio.gather(*sent)
    assert (await life.log.last(unique)).record == record  # type: ignore[union-attr]
    await life.look()
    await life.put(word(life.state, unique, b"c"))
    await other.sender.send(place, unique.encode(), payload, headers)
    async with opened_fresh(broker) as fresh:
        for each in (broker, other, fresh):
            assert texts(await each.log.read(unique)) == [b"a", b"b", b"c"]


def opened_fresh(like: Kafka) -> AbstractAsyncContextManager[Kafka]:
    return opened(f"kafka://{like.connection}", like.options)


async def test_a_winner_that_wakes_after_delete_and_re_acquire_adds_nothing(
    broker: Kafka, other: Kafka, unique: str
) -> None:
    first = await Life(broker, unique).begin(b"a")
    asleep = word(first.state, unique, b"zombie")
    second = Life(other, unique)
    await second.look()
    await second.put(decide.tombstone(second.state, unique, new_nonce()))
    await second.begin(b"new", owner=8)
    with pytest.raises(AppendRefused):
        await broker.log.append(asleep, first.state.position)
    headers, payload = message(asleep, first.state.position)  # and what it had handed to the network before it slept
    await broker.sender.send(broker.names.records(unique), unique.encode(), payload, headers)
    await second.put(word(second.state, unique, b"er"))
    async with opened_fresh(broker) as fresh:
        for each in (broker, other, fresh):
            records = await each.log.read(unique, second.state.position - 10_000)
            state, chunks = replay(await each.log.read(unique))
            assert state.incarnation == Incarnation(2, 8)
            assert chunks == [b"new", b"er"]
            assert b"zombie" not in texts(records)


ENDINGS: dict[str, Callable[[State, str], Record | None]] = {
    "takeover": lambda state, stream_id: decide.takeover(state, stream_id, new_nonce(), None, LOST),
    "tombstone": lambda state, stream_id: decide.tombstone(state, stream_id, new_nonce()),
    "expiry": lambda state, stream_id: decide.expiry(state, stream_id, new_nonce(), 1 << 50),
}
ENDED = {"takeover": LOST, "tombstone": DELETED, "expiry": EXPIRED}


class Race(NamedTuple):
    """What a writer and whoever ended its stream were told: how many chunks were acknowledged, the position of the
    ending, how often each was refused, and what a third one followed behind the first chunk."""

    stream_id: str
    acked: int
    end: int
    writer_refused: int
    ender_refused: int
    followed: list[Stored]


async def race(broker: Kafka, other: Kafka, stream_id: str, what: str, rng: Random) -> Race:
    followed = Follower()
    writer = await Life(broker, stream_id).begin(b"a")
    ender = Life(other, stream_id)
    await ender.look()
    await other.log.follow(stream_id, followed.deliver, lambda: None)
    refused = Counter[str]()

    async def write() -> int:
        acked = 1
        try:
            for _ in range(30):
                await writer.put(word(writer.state, stream_id, b"%d" % acked))
                acked += 1
        except AppendRefused:
            refused["writer"] += 1
        return acked

    async def end() -> int:
        await asyncio.sleep(rng.random() * 0.03)
        while True:
            try:
                return (await ender.put(ENDINGS[what](ender.state, stream_id))).position
            except AppendRefused:
                refused["ender"] += 1
                await ender.look()

    async with asyncio.timeout(PATIENCE):
        acked, at = await asyncio.gather(write(), end())
        while not (followed.got and followed.got[-1].position >= at):
            await asyncio.sleep(0.01)
    return Race(stream_id, acked, at, refused["writer"], refused["ender"], followed.got)


def verdict(records: list[Stored]) -> list[str]:
    """What a stream's records mean, as a text that another process can tell."""
    state = replay(records)[0]
    return [repr(each) for each in (state.incarnation, state.ending, state.position, state.entries)]


JUDGE = """
import asyncio, json, sys
from tailrace.fold import State, fold
from tailrace.kafka import KafkaOptions
from tailrace.kafka.broker import open_kafka

async def main(url, options, *ids):
    broker = await open_kafka(url, options=KafkaOptions(**json.loads(options)))
    told = []
    for stream_id in ids:
        state = State()
        for stored in await broker.log.read(stream_id):
            state, _ = fold(state, stored)
        told.append([repr(each) for each in (state.incarnation, state.ending, state.position, state.entries)])
    print(json.dumps(told))
    await broker.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def judged_by_another_process(server: KafkaServer, ids: list[str]) -> list[list[str]]:
    """The `verdict` on each stream of a process that begins now."""
    options = json.dumps({"prefix": OPTIONS.prefix, "partitions": OPTIONS.partitions, "claims_partitions": 1})
    command = [sys.executable, "-c", JUDGE, server.url, options, *ids]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(PATIENCE):
        told, _ = await process.communicate()
    verdicts: list[list[str]] = json.loads(told)
    return verdicts


@pytest.mark.parametrize("what", list(ENDINGS))
async def test_an_append_that_races_an_ending_has_one_verdict(
    server: KafkaServer, broker: Kafka, other: Kafka, unique: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.kafka.tracks.HISTORY", 600.0)  # for that long, the reads below tell how a stream went
    races = [await race(broker, other, f"{unique}.{seed}", what, Random(seed)) for seed in range(6)]
    assert sum(each.writer_refused for each in races) > 0, "the ending never came before an append"
    assert sum(each.ender_refused for each in races) > 0, "an append never came before the ending"
    elsewhere = await judged_by_another_process(server, [each.stream_id for each in races])
    for each, told in zip(races, elsewhere, strict=True):
        here, there = [verdict(await one.log.read(each.stream_id)) for one in (broker, other)]
        assert here == there
        *same, entries = here
        assert told[:-1] == same
        if what == "takeover":  # of a stream that is gone, a process that begins later reads how it went and no more
            assert told[-1] == entries == repr(each.acked)
        assert replay(each.followed)[0].position == each.end
        assert len(texts(each.followed)) == each.acked - 1  # it followed behind the first
        state = replay(await broker.log.read(each.stream_id))[0]
        assert (state.position, state.ending, state.entries) == (each.end, ENDED[what], each.acked)


class Follower:
    """What a follower was told."""

    def __init__(self) -> None:
        self.got: list[Stored] = []
        self.uncertain = asyncio.Event()

    def deliver(self, stored: Stored) -> None:
        self.got.append(stored)


# --- who owns a stream, on a log whose beginning is gone


async def trim(broker: Kafka, place: Place, before: int) -> None:
    admin = AIOKafkaAdminClient(**broker.connection.library)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(*place): RecordsToDelete(before)})
    finally:
        await admin.close()


async def test_claims_trimmed_between_a_winner_and_its_loser_elect_the_same_owner(
    server: KafkaServer, unique: str, stack: AsyncExitStack
) -> None:
    options = KafkaOptions(prefix="trim", partitions=1, claims_partitions=1)
    winner, loser = [await stack.enter_async_context(opened(server.url, options)) for _ in range(2)]
    for each in (winner, loser):  # both have looked, and found nobody
        assert await each.log.read(unique) == []
    start = (await loser.log._tracks.get(unique)).partition.feed.position  # type: ignore[union-attr]
    life = await Life(winner, unique).begin(b"a", b"b")
    place = winner.names.all_claims[0]
    before = await winner.connection.end(place)
    await loser.claims.open(unique, start)  # too late: it writes no claim
    await life.put(word(life.state, unique, b"c"))
    await trim(winner, place, before)
    fresh = await stack.enter_async_context(opened(server.url, options))
    assert fresh.claims.peek(unique) is not None
    with pytest.raises(AppendRefused):
        await fresh.log.append(claim(unique, owner=9), 0)
    for each in (winner, loser, fresh):
        records = await each.log.read(unique)
        assert replay(records)[0].incarnation == Incarnation(1, 7)
        assert texts(records) == [b"a", b"b", b"c"]
    await life.put(decide.tombstone(life.state, unique, new_nonce()))
    again = Life(fresh, unique)
    await again.look()
    await again.begin(b"new", owner=9)
    for each in (winner, loser, fresh):
        state, chunks = replay(await each.log.read(unique))
        assert (state.incarnation, chunks) == (Incarnation(2, 9), [b"new"])


async def test_an_ending_whose_opening_is_gone_is_trimmed_and_not_free(
    server: KafkaServer, unique: str, stack: AsyncExitStack
) -> None:
    options = KafkaOptions(prefix="end", partitions=1, claims_partitions=1)
    writer = await stack.enter_async_context(opened(server.url, options))
    life = await Life(writer, unique).begin(b"a")
    place = writer.names.all_claims[0]
    before = await writer.connection.end(place)
    stored = await life.put(decide.finish(life.state.mark, unique, new_nonce(), Ending(Status.DONE)))  # type: ignore[arg-type]
    await writer.claims.copy(stored)
    await trim(writer, place, before)
    fresh = await stack.enter_async_context(opened(server.url, options))
    with pytest.raises(AppendRefused):
        await fresh.log.append(claim(unique, owner=9), 0)
    state = replay(await fresh.log.read(unique))[0]
    assert state.ending is not None
    assert state.ending.status is Status.TRIMMED


async def test_records_without_their_claim_are_a_trimmed_stream(
    server: KafkaServer, unique: str, stack: AsyncExitStack
) -> None:
    options = KafkaOptions(prefix="headless", partitions=1, claims_partitions=1)
    writer = await stack.enter_async_context(opened(server.url, options))
    life = await Life(writer, unique).begin(b"a")
    headers, payload = message(claim(unique, owner=8), 0)  # of one that had lost
    await writer.sender.send(writer.names.records(unique), unique.encode(), payload, headers)
    await trim(writer, writer.names.records(unique), life.state.position)
    await life.put(word(life.state, unique, b"b"))
    fresh = await stack.enter_async_context(opened(server.url, options))
    state = replay(await fresh.log.read(unique))[0]
    assert state.ending is not None
    assert state.ending.status is Status.TRIMMED
    with pytest.raises(AppendRefused):
        await fresh.log.append(claim(unique, owner=9), 0)


async def test_a_process_that_died_before_its_claim_leaves_the_id_free(
    broker: Kafka, other: Kafka, unique: str
) -> None:
    await broker.claims.open(unique, (await broker.connection.ends([broker.names.records(unique)]))[0])
    await broker.close()
    assert await other.log.last(unique) is None
    life = await Life(other, unique).begin(b"a")
    assert life.state.incarnation == Incarnation(1, 7)


@pytest.mark.parametrize("claims", [1000, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_a_fresh_process_knows_every_claim(server: KafkaServer, unique: str, claims: int) -> None:
    options = KafkaOptions(prefix=f"many{claims}", partitions=4, claims_partitions=2)
    async with opened(server.url, options) as writer:

        async def one(number: int) -> None:
            async with at_once:
                life = await Life(writer, f"s{number}").begin(owner=number)
                if number % 3 == 0:
                    await life.put(decide.finish(life.state.mark, life.id, new_nonce(), Ending(Status.DONE)))  # type: ignore[arg-type]
                if number % 5 == 0:
                    await life.delete()
                if number % 10 == 0:
                    await life.begin(owner=number + 1)

        at_once = asyncio.Semaphore(64)
        await asyncio.gather(*(one(number) for number in range(claims)))
    async with opened(server.url, options) as fresh:
        assert await fresh.log.count() == claims - claims // 5 + claims // 10

        async def compare(number: int) -> None:
            async with at_once:
                state = replay(await fresh.log.read(f"s{number}"))[0]
            gone = number % 5 == 0 and number % 10 != 0
            assert decide.is_there(state) != gone
            again = number % 10 == 0
            assert state.incarnation == Incarnation(1 + again, number + again)

        await asyncio.gather(*(compare(number) for number in range(claims)))


# --- what is no record


async def test_the_sizes_of_as_many_chunks_as_a_record_may_have_fit_beside_them(broker: Kafka, unique: str) -> None:
    life = await Life(broker, unique).begin()
    most = broker.log.max_record_bytes
    long = (most - 100 * MAX_CHUNKS_A_RECORD) // 900  # so the list of sizes is as long as it can be
    chunks = [bytes(1000)] * long + [bytes(100)] * (MAX_CHUNKS_A_RECORD - long)
    assert life.state.mark is not None
    stored = await life.put(decide.chunks(life.state.mark, unique, new_nonce(), chunks))
    assert (await broker.log.read(unique))[-1].record == stored.record


async def test_an_oversize_record_is_refused_and_spoils_nothing(broker: Kafka, unique: str) -> None:
    life = await Life(broker, unique).begin(b"a")
    with pytest.raises(ChunkTooLarge, match=r"log\.chunks"):
        await life.put(word(life.state, unique, b"x" * broker.options.max_message_bytes))
    most = b"y" * (broker.log.max_record_bytes - 1024)
    await life.put(word(life.state, unique, most))
    # and one that is too large for the topic as it is now: an operator lowered the limit
    headers, payload = message(word(life.state, unique, b"z" * broker.options.max_message_bytes), life.state.position)
    broker.sender._max_batch *= 2
    small = [broker.sender.send(broker.names.records(unique), b"other", b"small", []) for _ in range(5)]
    large = broker.sender.send(broker.names.records(unique), unique.encode(), payload, headers)
    small += [broker.sender.send(broker.names.records(unique), b"other", b"small", []) for _ in range(5)]
    with pytest.raises(BrokerFailed, match="too large"):
        await large
    await asyncio.gather(*small)  # those that went with it in one batch are not lost with it
    await life.put(word(life.state, unique, b"b"))
    assert texts(await broker.log.read(unique)) == [b"a", most, b"b"]


async def test_strangers_are_skipped_counted_and_named_once(
    broker: Kafka, server: KafkaServer, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    life = await Life(broker, unique).begin(b"a")
    place = broker.names.records(unique)
    caplog.set_level(logging.WARNING, "tailrace.kafka")
    for headers in ([], [("Tailrace", b"1;chunks;x")], [("Tailrace", b"nonsense"), ("Tailrace-After", b"0")]):
        await broker.sender.send(place, unique.encode(), b"from a stranger", headers)
    await life.put(word(life.state, unique, b"b"))
    assert texts(await broker.log.read(unique)) == [b"a", b"b"]
    assert broker.log.skipped == 3
    assert len([each for each in caplog.records if "Skipped a message among the records" in each.message]) == 1
    async with opened(server.url, OPTIONS) as fresh:
        assert texts(await fresh.log.read(unique)) == [b"a", b"b"]
        assert fresh.log.skipped == 3
    await broker.sender.send(broker.names.all_claims[0], unique.encode(), b"from a stranger", [])
    await broker.claims.refresh()
    assert broker.claims.skipped == 1


async def test_a_stream_with_an_unreadable_record_ends_as_trimmed(server: KafkaServer, unique: str) -> None:
    """A record of the stream itself that nobody can read: those behind it count, and the fold sees the hole."""
    async with opened(server.url, OPTIONS) as broker:
        life = await Life(broker, unique).begin(b"a")
        record = word(life.state, unique, b"lost")
        headers, payload = message(record, life.state.position)
        damaged = [(name, b"1;chunks;damaged" if name == "Tailrace" else value) for name, value in headers]
        ack = await broker.sender.send(broker.names.records(unique), unique.encode(), payload, damaged)
        life.state, _ = fold(life.state, Stored(ack.offset + 1, -1, ack.time_ms, record))
        await life.put(word(life.state, unique, b"b"))
        async with opened(server.url, OPTIONS) as fresh:
            for each in (broker, fresh):
                state = replay(await each.log.read(unique))[0]
                assert state.ending is not None
                assert state.ending.status is Status.TRIMMED


async def test_a_newer_version_is_never_skipped(broker: Kafka, other: Kafka, unique: str) -> None:
    life = await Life(broker, unique).begin(b"a")
    followed = Follower()
    await other.log.follow(unique, followed.deliver, followed.uncertain.set)
    headers, payload = message(word(life.state, unique), life.state.position)
    newer = [(name, b"2" + value[1:] if name == "Tailrace" else value) for name, value in headers]
    await broker.sender.send(broker.names.records(unique), unique.encode(), payload, newer)
    async with asyncio.timeout(PATIENCE):
        await followed.uncertain.wait()
    for each in (broker, other):
        with pytest.raises(UnsupportedRecord, match="version 2"):
            await each.log.read(unique)
    async with opened_fresh(broker) as fresh:
        with pytest.raises(UnsupportedRecord, match="version 2"):
            await fresh.log.read(unique)


# --- the rest of the log


async def test_an_append_to_a_paused_broker_is_unknown_and_lands_once_if_at_all(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        options = KafkaOptions(partitions=1, claims_partitions=1, fetch_wait=1.0)
        async with opened(server.url, options) as broker:
            life = await Life(broker, "a").begin(b"a")
            record = word(life.state, "a", b"b")
            server.pause()
            broker.connection.options = replace(options, request_timeout=1.0)
            with pytest.raises(AppendUnknown):
                await broker.log.append(record, life.state.position)
            broker.connection.options = options
            server.resume()
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await broker.log.append(record, life.state.position)
                        break
                    except AppendRefused:
                        break
                    except (AppendUnknown, TailraceError):
                        await asyncio.sleep(0.05)
            assert texts(await broker.log.read("a")) == [b"a", b"b"]


async def test_reads_go_on_beyond_one_fetch(server: KafkaServer, unique: str) -> None:
    options = KafkaOptions(prefix="long", partitions=1, claims_partitions=1)
    words = [b"%d." % number * 20_000 for number in range(40)]
    async with opened(server.url, options) as writer:
        await Life(writer, unique).begin(*words)
        assert texts(await writer.log.read(unique)) == words
    async with opened(server.url, options) as fresh:
        records = await fresh.log.read(unique)
        assert texts(records) == words
        assert await fresh.log.read(unique, records[-2].position) == records[-1:]


async def test_segments_are_written_once_and_hidden_with_the_stream(broker: Kafka, other: Kafka, unique: str) -> None:
    life = await Life(broker, unique).begin(b"a")
    incarnation = Incarnation(1, 7)
    parts = [b"one" * 200_000, b"two", b"three"]
    assert await other.log.read_segments(unique, incarnation) is None
    await broker.log.write_segments(unique, incarnation, parts)
    await other.log.write_segments(unique, incarnation, [b"another"])
    for each in (broker, other):
        assert await each.log.read_segments(unique, incarnation) == parts
    assert await other.log.read_segments(unique, Incarnation(2, 7)) is None
    await life.put(decide.tombstone(life.state, unique, new_nonce()))
    for each in (broker, other):
        assert await each.log.read_segments(unique, incarnation) is None
        assert replay(await each.log.read(unique))[0].ending == DELETED


async def test_an_outage_says_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        world = KafkaWorld(server.url)
        store = await world.store()
        assert (await store.acquire("a")).role is Role.PRODUCER
        server.kill()
        appending = asyncio.create_task(store.append("a", b"x"))
        await asyncio.sleep(1.0)
        capfd.readouterr()
        server.start()
        async with asyncio.timeout(PATIENCE):
            await appending
        await world.close()
    _, err = capfd.readouterr()
    assert "aiokafka" not in err
    assert "Unable" not in err
