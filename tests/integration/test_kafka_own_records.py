"""What a process stored on Kafka itself: when it is known to count without being read back, and when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailrace import decide
from tailrace.kafka import KafkaOptions
from tailrace.kafka.broker import Kafka
from tailrace.kafka.connection import FOLLOW
from tailrace.kafka.reading import Batch
from tailrace.kafka.sender import Ack
from tailrace.kafka.wire import message
from tailrace.log import AppendRefused
from tailrace.records import Stored
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import opened
from tailrace.testing.lives import Life, claim

pytestmark = pytest.mark.slow

OPTIONS = KafkaOptions(prefix="own", partitions=1, claims_partitions=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


class Gate:
    """Holds back what a process would be told of the partitions that it follows."""

    def __init__(self, broker: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._request = broker.connection.request
        monkeypatch.setattr(broker.connection, "request", self._gated)

    async def _gated(self, node: int, request: Any, lane: int, timeout: float | None = None) -> Any:
        answer = await self._request(node, request, lane, timeout)
        if lane >= FOLLOW:
            await self.open.wait()
        return answer


async def texts(broker: Kafka, stream_id: str) -> list[bytes]:
    return [chunk for stored in await broker.log.read(stream_id) for chunk in stored.record.chunks]


async def test_a_lone_writer_does_not_wait_for_its_own_records(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, OPTIONS) as broker, opened(server.url, OPTIONS) as reader:
        gate = Gate(broker, monkeypatch)
        life = await Life(broker, "lone").begin()
        gate.open.clear()  # from now on it is told nothing
        for number in range(20):
            await life.word(b"%d " % number)
        told: list[Stored] = []
        following = await broker.log.follow("lone", told.append, lambda: None)
        await life.word(b"end")
        assert [stored.record.chunks for stored in told] == [(b"end",)]  # who follows here hears it at once
        await following.close()
        gate.open.set()
        assert await texts(broker, "lone") == await texts(reader, "lone") == [*(b"%d " % n for n in range(20)), b"end"]


async def test_behind_another_process_a_record_waits_until_it_is_read_back(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, OPTIONS) as broker, opened(server.url, OPTIONS) as other:
        gate = Gate(broker, monkeypatch)
        mine, theirs = await Life(broker, "mine").begin(), await Life(other, "theirs").begin()
        await mine.word(b"first ")
        assert await texts(broker, "theirs") == []  # all of theirs was seen
        gate.open.clear()
        await theirs.word(b"between")
        waiting = asyncio.create_task(mine.word(b"second"))
        assert (await asyncio.wait({waiting}, timeout=0.5))[0] == set()  # who knows what is before it?
        gate.open.set()
        await waiting
        assert await texts(other, "mine") == await texts(broker, "mine") == [b"first ", b"second"]


async def test_a_record_that_came_too_late_is_refused_while_nothing_is_read(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, OPTIONS) as broker:
        gate = Gate(broker, monkeypatch)
        life = await Life(broker, "late").begin()
        before = life.state
        await life.word(b"word")
        gate.open.clear()
        assert before.mark is not None
        late = decide.chunks(before.mark, "late", "late", [b"late"])
        place = broker.names.records("late")
        headers, payload = message(late, before.position)
        await broker.sender.send(place, b"late", payload, headers, (late, before.position))
        await life.word(b" and another")  # the late one is stored before it, and does not count
        with pytest.raises(AppendRefused):
            await broker.log.append(late, before.position)
        gate.open.set()
        assert await texts(broker, "late") == [b"word", b" and another"]


async def test_an_opening_of_which_a_stale_leader_did_not_tell_is_found_before_the_claim(
    server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a leader does that was cut off: it answers with an end before what others stored since."""
    async with opened(server.url, OPTIONS) as late, opened(server.url, OPTIONS) as first:
        claims = late.claims
        feed = claims._followed[0]
        held: list[Batch] = []
        take = feed.take
        monkeypatch.setattr(feed, "take", held.append)  # the table stays as it was, and seems current

        life = await Life(first, "stale").begin(owner=1)
        await life.word(b"hello")
        await late.log.last("other")  # it has seen what the partition holds by now
        assert await claims.current("stale") is None

        passed, write = feed.passed, claims._write
        opened_at: list[int] = []

        async def noted(*message: Any) -> Ack:
            ack = await write(*message)
            opened_at.append(ack.offset)
            return ack

        async def catch_up(offset: int) -> None:
            await passed(offset)
            if opened_at and offset > opened_at[0]:  # its own opening came back: so did all before it
                monkeypatch.setattr(feed, "take", take)
                while held:
                    take(held.pop(0))

        monkeypatch.setattr(claims, "_write", noted)
        monkeypatch.setattr(feed, "passed", catch_up)
        wanted = claim("stale", owner=2)
        with pytest.raises(AppendRefused):
            await late.log.append(wanted, 0)
        last = await late.log.last("stale")
        assert last is not None
        assert last.record.chunks == (b"hello",)
        assert await texts(late, "stale") == await texts(first, "stale") == [b"hello"]


async def test_after_a_lost_connection_an_own_record_is_known_again(
    server: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server.url, OPTIONS) as broker:
        life = await Life(broker, "again").begin()
        await life.word(b"one ")
        track = broker.log._tracks.peek("again")
        assert track is not None
        beginning = track.beginning
        for lane in broker.feeds._lanes:
            broker.connection.hang_up(lane.node, lane.number)
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            while not broker.feeds.away:
                await asyncio.sleep(0.001)
            while broker.feeds.away:
                await asyncio.sleep(0.01)
        await life.word(b"two")
        assert await texts(broker, "again") == [b"one ", b"two"]
        assert track.beginning == beginning  # nothing was lost, and nothing was read anew
        assert "lost records" not in caplog.text
