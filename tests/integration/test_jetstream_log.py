"""The JetStream log against a real server: conditions, lost answers, reading, following, segments."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailrace.errors import BrokerUnavailable, ChunkTooLarge, CorruptRecord, UnsupportedRecord
from tailrace.jetstream import JetStream, JetStreamOptions, open_jetstream
from tailrace.jetstream.wire import Reply, header_block
from tailrace.log import AppendRefused, AppendUnknown
from tailrace.model import Incarnation
from tailrace.records import Kind, Record, Stored, encode
from tailrace.testing.servers import NatsServer
from tailrace.writer import MAX_CHUNKS_A_RECORD

LIFE = Incarnation(1, 7)
OPTIONS = JetStreamOptions(shards=2)


def record(stream_id: str, number: int, chunk: bytes = b"word ") -> Record:
    return Record(Kind.CHUNKS, stream_id, LIFE, 1, number, number * 5, f"n{number}", (chunk,))


@asynccontextmanager
async def opened(server: NatsServer, options: JetStreamOptions = OPTIONS) -> AsyncIterator[JetStream]:
    broker = await open_jetstream(server.url, options=options)
    try:
        yield broker
    finally:
        await broker.close()


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[JetStream]:
    async with opened(nats_server) as broker:
        yield broker


async def fill(broker: JetStream, stream_id: str, count: int, chunk: bytes = b"word ") -> list[int]:
    positions = [0]
    for number in range(count):
        positions.append(await broker.log.append(record(stream_id, number, chunk), positions[-1]))
    return positions[1:]


class Follower:
    """What a follower was told."""

    def __init__(self) -> None:
        self.got: list[Stored] = []
        self.uncertain = asyncio.Event()
        self._came = asyncio.Event()

    def deliver(self, stored: Stored) -> None:
        self.got.append(stored)
        self._came.set()

    async def until(self, count: int) -> list[Stored]:
        while len(self.got) < count:
            self._came.clear()
            await self._came.wait()
        return self.got


async def follow(broker: JetStream, stream_id: str) -> Follower:
    follower = Follower()
    await broker.log.follow(stream_id, follower.deliver, follower.uncertain.set)
    return follower


# --- appends


async def test_an_append_holds_only_at_the_expected_position(broker: JetStream) -> None:
    first = await broker.log.append(record("a..b", 0), 0)
    with pytest.raises(AppendRefused):
        await broker.log.append(record("a..b", 1), 0)
    with pytest.raises(AppendRefused):
        await broker.log.append(record("a..b", 1), first + 1)
    second = await broker.log.append(record("a..b", 1), first)
    assert [stored.position for stored in await broker.log.read("a..b")] == [first, second]


async def test_of_many_that_expect_nothing_one_wins(nats_server: NatsServer) -> None:
    async with opened(nats_server) as one, opened(nats_server) as other:
        outcomes = await asyncio.gather(
            *(log.append(record("s", 0), 0) for log in (one.log, other.log) * 20), return_exceptions=True
        )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AppendRefused) for outcome in outcomes) == 39


async def test_an_append_to_a_paused_server_is_unknown_and_lands_once_if_at_all(nats_server: NatsServer) -> None:
    hasty = JetStreamOptions(shards=1, request_timeout=1.0)
    async with opened(nats_server, replace(hasty, request_timeout=10.0)) as broker:
        async with opened(nats_server, hasty) as pressed:
            nats_server.pause()
            try:
                with pytest.raises(AppendUnknown):
                    await pressed.log.append(record("s", 0), 0)
            finally:
                nats_server.resume()
        while (last := await broker.log.last("s")) is None:  # the server stores and answers in queues of their own
            pass
        assert last.record == record("s", 0)
        with pytest.raises(AppendRefused):
            await broker.log.append(record("s", 0), 0)
        assert len(await broker.log.read("s")) == 1


@pytest.mark.chaos
async def test_kill_under_load_loses_nothing_that_was_acknowledged(nats_server: NatsServer) -> None:
    unknown = 0

    async def produce(broker: JetStream, stream_id: str) -> list[int]:
        nonlocal unknown
        positions = [0]
        try:
            while True:
                positions.append(await broker.log.append(record(stream_id, len(positions) - 1), positions[-1]))
        except AppendUnknown:
            unknown += 1
        except BrokerUnavailable:
            pass
        return positions[1:]

    async with opened(nats_server) as broker:
        follower = await follow(broker, "s0")
        producers = [asyncio.create_task(produce(broker, f"s{number}")) for number in range(20)]
        await follower.until(50)
        nats_server.kill()
        acked = await asyncio.gather(*producers)
        assert unknown > 0
        with pytest.raises(BrokerUnavailable):
            await broker.log.append(record("s0", 0), 0)
        nats_server.start()
        await broker.connection.connected.wait()
        for number, positions in enumerate(acked):
            stored = await broker.log.read(f"s{number}")
            assert [one.position for one in stored][: len(positions)] == positions
            assert len(stored) <= len(positions) + 1  # the unknown one
            last = await broker.log.last(f"s{number}")
            assert last is not None
            assert last.record == stored[-1].record


async def test_a_cancelled_append_leaves_nothing_behind(broker: JetStream) -> None:
    task = asyncio.create_task(broker.log.append(record("s", 0), 0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not broker.connection._waiters
    assert len(await broker.log.read("s")) <= 1


async def test_a_record_beyond_the_servers_limit_is_refused_by_name(nats_server: NatsServer) -> None:
    async with opened(nats_server) as broker:
        limit = broker.log.max_record_bytes
        await broker.log.append(record("s", 0, bytes(limit)), 0)
        with pytest.raises(ChunkTooLarge, match="1048576"):
            await broker.log.append(record("t", 0, bytes(limit + 40_000)), 0)
        assert broker.connection.connected.is_set()


async def test_the_sizes_of_as_many_chunks_as_a_record_may_have_fit_beside_them(broker: JetStream) -> None:
    most = broker.log.max_record_bytes
    long = (most - 100 * MAX_CHUNKS_A_RECORD) // 900  # so the list of sizes is as long as it can be
    chunks = (bytes(1000),) * long + (bytes(100),) * (MAX_CHUNKS_A_RECORD - long)
    sent = Record(Kind.CHUNKS, "s", LIFE, 1, 0, 0, "n", chunks)
    await broker.log.append(sent, 0)
    assert [one.record for one in await broker.log.read("s")] == [sent]


# --- reading


async def test_read_gives_what_follows_a_position_and_names_each_previous(broker: JetStream) -> None:
    assert await broker.log.read("none") == []
    assert await broker.log.last("none") is None
    streams = [f"s{number}" for number in range(5)]
    ends = dict.fromkeys(streams, 0)
    for number in range(10):  # interleaved
        for stream_id in streams:
            ends[stream_id] = await broker.log.append(record(stream_id, number), ends[stream_id])
    stored = await broker.log.read("s3")
    assert [one.record for one in stored] == [record("s3", number) for number in range(10)]
    assert [one.previous for one in stored] == [0, *(one.position for one in stored[:-1])]
    assert await broker.log.read("s3", stored[6].position) == stored[7:]
    assert await broker.log.read("s3", stored[-1].position) == []
    last = await broker.log.last("s3")
    assert last is not None
    assert last._replace(previous=stored[-1].previous) == stored[-1]
    assert broker.log.now_ms() >= stored[-1].time_ms > 1_600_000_000_000


@pytest.mark.parametrize(("count", "size"), [(2100, 5), (60, 200_000)], ids=["many", "large"])
async def test_read_goes_on_beyond_one_batch(broker: JetStream, count: int, size: int) -> None:
    positions = await fill(broker, "s", count, bytes(size))
    stored = await broker.log.read("s")
    assert [one.position for one in stored] == positions
    assert [one.previous for one in stored] == [0, *positions[:-1]]


async def test_the_leader_fills_in_what_a_replica_lacks(broker: JetStream, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(broker, "s", 5)
    whole = await broker.log.read("s")
    direct = broker.log._read_direct

    async def behind(stream_id: str, place: object, after: int) -> list[Stored]:
        return (await direct(stream_id, place, after))[:2]  # type: ignore[arg-type]

    monkeypatch.setattr(broker.log, "_replicated", True)
    monkeypatch.setattr(broker.log, "_read_direct", behind)
    assert await broker.log.read("s") == whole
    assert await broker.log.read("none") == []


async def test_lasts_gives_every_stream_beyond_what_one_answer_holds(nats_server: NatsServer) -> None:
    async with opened(nats_server, JetStreamOptions(shards=1)) as broker:
        ids = [f"stream-{number}" for number in range(2300)]
        await asyncio.gather(*(fill(broker, stream_id, 2) for stream_id in ids))
        lasts = [stored async for stored in broker.log.lasts()]
    assert sorted(one.record.stream_id for one in lasts) == sorted(ids)
    assert {one.record.entries for one in lasts} == {1}


async def test_a_lost_reply_is_asked_for_again(broker: JetStream, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"stream-{number}" for number in range(40)]
    await asyncio.gather(*(fill(broker, stream_id, 2) for stream_id in ids))
    whole, chance, lost = broker.connection.batch, random.Random(1), 0

    async def lossy(subject: bytes, body: Mapping[str, Any]) -> tuple[list[Reply], Reply]:
        nonlocal lost
        messages, end = await whole(subject, body)
        if len(messages) > 1 and lost < 4:
            lost += 1
            del messages[chance.randrange(len(messages) - 1)]
        return messages, end

    monkeypatch.setattr(broker.connection, "batch", lossy)
    assert sorted([one.record.stream_id async for one in broker.log.lasts()]) == sorted(ids)
    assert lost == 4


async def test_count_leaves_out_what_is_gone(broker: JetStream) -> None:
    assert await broker.log.count() == 0
    for stream_id in ("a", "b", "c"):
        (position,) = await fill(broker, stream_id, 1)
    await broker.log.append(Record(Kind.TOMBSTONE, "c", LIFE, 1, 1, 5, "gone"), position)
    assert await broker.log.count() == 2
    assert await broker.log.count(below=3) == 2
    assert await broker.log.count(below=4) == 3  # cheaply, and enough to know


# --- following


async def test_a_follower_gets_every_record_with_its_previous(broker: JetStream) -> None:
    await fill(broker, "s", 3)
    before = await broker.log.read("s")
    follower = await follow(broker, "s")
    end, other = before[-1].position, 0
    for number in range(20):
        end = await broker.log.append(record("s", 3 + number), end)
        other = await broker.log.append(record("t", number), other)
    got = await follower.until(20)
    assert got == (await broker.log.read("s"))[3:]
    assert [one.previous for one in got] == [before[-1].position, *(one.position for one in got[:-1])]


async def test_following_is_active_when_it_returns_and_ends_with_close(nats_server: NatsServer) -> None:
    async with opened(nats_server) as writer, opened(nats_server) as reader:
        for number in range(30):
            follower = Follower()
            following = await reader.log.follow(f"s{number}", follower.deliver, follower.uncertain.set)
            await writer.log.append(record(f"s{number}", 0), 0)
            await follower.until(1)
            await following.close()
            await following.close()
        assert not reader.connection._uncertain


@pytest.mark.chaos
async def test_followers_hear_of_a_reconnect_and_go_on(nats_server: NatsServer) -> None:
    async with opened(nats_server) as broker:
        follower = await follow(broker, "s")
        positions = await fill(broker, "s", 3)
        await follower.until(3)
        for _ in range(2):
            follower.uncertain.clear()
            nats_server.restart()
            await follower.uncertain.wait()
        position = await broker.log.append(record("s", 3), positions[-1])
        assert (await follower.until(4))[-1].position == position
        assert [one.position for one in await broker.log.read("s")] == [*positions, position]


async def test_a_gap_shows_in_previous(nats_server: NatsServer) -> None:
    async with opened(nats_server) as broker:
        follower = await follow(broker, "s")
        positions = await fill(broker, "s", 2)
        await follower.until(2)
        take = broker.log._followings.copy().pop()._take
        number = broker.log._followings.copy().pop()._number
        broker.connection._client._listeners[number] = lambda *_: None  # a lost message
        positions.append(await broker.log.append(record("s", 2), positions[-1]))
        await broker.connection.round_trip()
        broker.connection._client._listeners[number] = take
        await broker.log.append(record("s", 3), positions[-1])
        await follower.until(3)
        assert follower.got[-1].previous == positions[2] != follower.got[-2].position


async def test_strangers_are_skipped_by_readers_and_followers_alike(
    broker: JetStream, caplog: pytest.LogCaptureFixture
) -> None:
    follower = await follow(broker, "s")
    first = await broker.log.append(record("s", 0), 0)
    subject = broker.names.place("s").subject
    with caplog.at_level(logging.WARNING):
        await broker.connection.request(subject.encode(), b"not ours")
        headers, payload = encode(record("other", 0))
        await broker.connection.request(subject.encode(), payload, header_block(headers))
        third = await broker.log.append(record("s", 1), first + 2)
        got = await follower.until(2)
        assert [(one.position, one.previous) for one in got] == [(first, 0), (third, first)]
        assert await broker.log.read("s") == got
    assert broker.log.skipped == 4
    assert len([told for told in caplog.records if told.name.startswith("tailrace")]) == 1
    await broker.connection.request(subject.encode(), b"not ours")
    with pytest.raises(CorruptRecord):
        await broker.log.last("s")


async def test_streams_are_not_counted_without_a_shard_that_has_no_leader(
    broker: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster lists what answers, and names what does not."""
    await broker.log.append(record("s", 0), 0)
    assert await broker.log.count() == 1
    ask = broker.connection.api

    async def asked(call: str, *arguments: Any) -> dict[str, Any]:
        return await ask(call, *arguments) | {"streams": [], "missing": [broker.names.shard(0)]}

    monkeypatch.setattr(broker.connection, "api", asked)
    with pytest.raises(BrokerUnavailable, match=broker.names.shard(0)):
        await broker.log.count()


async def test_a_newer_version_is_never_skipped(broker: JetStream) -> None:
    follower = await follow(broker, "s")
    headers, payload = encode(record("s", 0))
    block = header_block(headers | {"Tailrace": "2;new"})
    await broker.connection.request(broker.names.place("s").subject_bytes, payload, block)
    await follower.uncertain.wait()
    with pytest.raises(UnsupportedRecord, match="version 2"):
        await broker.log.read("s")
    assert follower.got == []


# --- segments


async def test_segments_are_written_once(broker: JetStream) -> None:
    log, segments = broker.log, [b"first", b"", b"third" * 1000]
    assert await log.read_segments("s", LIFE) is None
    await log.write_segments("s", LIFE, segments)
    await log.write_segments("s", LIFE, segments)
    await log.write_segments("s", LIFE, [b"another"])
    assert await log.read_segments("s", LIFE) == segments
    assert await log.read_segments("s", Incarnation(2, 7)) is None
    assert await log.read_segments("t", LIFE) is None
    await log.drop_segments("s", LIFE)
    await log.drop_segments("s", LIFE)
    assert await log.read_segments("s", LIFE) is None


async def test_a_half_written_seal_reads_as_none_and_is_filled_in(broker: JetStream) -> None:
    segments = [b"%d" % number for number in range(5)]
    await broker.log.write_segments("s", LIFE, segments)
    for number in (1, 4):
        body = {"filter": broker.names.segment("s", LIFE, number)}
        await broker.connection.api(f"STREAM.PURGE.{broker.names.segments}", body)
    assert await broker.log.read_segments("s", LIFE) is None
    await broker.log.write_segments("s", LIFE, segments)
    assert await broker.log.read_segments("s", LIFE) == segments


# --- heartbeats


async def test_heartbeats_are_kept_and_heard(nats_server: NatsServer) -> None:
    async with opened(nats_server) as one, opened(nats_server) as other:
        heard: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        uncertain = asyncio.Event()
        following = await one.beats.follow(lambda *beat: heard.put_nowait(beat), uncertain.set)
        await one.beats.send("m1", b"1")
        await other.beats.send("member two!", b"2")
        await one.beats.send("m1", b"3")
        beats = [await heard.get() for _ in range(3)]
        assert [payload for _, payload in beats] == [b"1", b"2", b"3"]
        assert sorted(await other.beats.recent()) == sorted(beats[1:])
        assert one.log.now_ms() == beats[-1][0]
        nats_server.restart()
        await uncertain.wait()
        await following.close()
        assert sorted(await one.beats.recent()) == sorted(beats[1:])


# --- the connection


async def test_a_server_that_comes_back_elsewhere_is_found(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats") as server:
        broker = await open_jetstream(server.url, options=OPTIONS, url_source=lambda: server.url)
        try:
            position = await broker.log.append(record("s", 0), 0)
            follower = await follow(broker, "s")
            server.kill()
            server.port = 0
            server.start()
            await follower.uncertain.wait()
            await broker.log.append(record("s", 1), position)
            await follower.until(1)
        finally:
            await broker.close()


@pytest.mark.chaos
async def test_an_outage_says_nothing_on_stderr(nats_server: NatsServer, capfd: pytest.CaptureFixture[str]) -> None:
    async with opened(nats_server) as broker:
        nats_server.kill()
        with pytest.raises((BrokerUnavailable, AppendUnknown)):
            await broker.log.append(record("s", 0), 0)
        nats_server.start()
        await broker.connection.connected.wait()
        await broker.log.append(record("s", 0), 0)
    assert capfd.readouterr().err == ""


async def test_what_was_not_sent_before_an_outage_is_not_sent_after_it(nats_server: NatsServer) -> None:
    async with opened(nats_server) as broker:
        append = asyncio.create_task(broker.log.append(record("s", 0), 0))
        await asyncio.sleep(0)
        await broker.connection._client._process_op_err(OSError("cut"))  # before the turn's end, so before the write
        with pytest.raises(AppendUnknown):
            await append
        await broker.connection.connected.wait()
        assert await broker.log.read("s") == []


async def test_closing_twice_and_using_after_is_an_error_of_ours(nats_server: NatsServer) -> None:
    broker = await open_jetstream(nats_server.url, options=OPTIONS)
    await broker.close()
    await broker.close()
    with pytest.raises(BrokerUnavailable):
        await broker.log.read("s")
    with pytest.raises(BrokerUnavailable):
        await broker.log.follow("s", lambda _: None, lambda: None)
