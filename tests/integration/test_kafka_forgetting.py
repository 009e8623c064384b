"""What Kafka's table of claims forgets by age, and what a power cut takes from it or from the records: still one owner,
and one story for all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tailrace import decide
from tailrace._ports import choose_port
from tailrace.errors import BrokerFailed, StreamEnded, StreamTrimmed, UnsupportedRecord
from tailrace.kafka import KafkaOptions
from tailrace.kafka import claims as claims_module
from tailrace.kafka.broker import Kafka
from tailrace.kafka.connection import Place
from tailrace.kafka.wire import message
from tailrace.log import AppendRefused
from tailrace.model import Incarnation, Role, Status
from tailrace.records import Stored
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import KafkaWorld, opened, own_topics
from tailrace.testing.kit import until_ending
from tailrace.testing.lives import Life, word
from tailrace.testing.worlds import replay

pytestmark = pytest.mark.slow

PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture
def options(request: pytest.FixtureRequest) -> KafkaOptions:
    return own_topics(request.node.name)


class Follower:
    """What a follower was told, and whether it is to read."""

    def __init__(self) -> None:
        self.got: list[Stored] = []
        self.uncertain = asyncio.Event()
        self._news = asyncio.Event()

    def deliver(self, stored: Stored) -> None:
        self.got.append(stored)
        self._news.set()

    async def until(self, chunk: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            while not any(chunk in stored.record.chunks for stored in self.got):
                self._news.clear()
                await self._news.wait()


# --- forgotten by age


async def old_life(broker: Kafka, keep_ms: int = 500) -> tuple[Life, Stored]:
    """A life of the stream "s" that is gone, and too old to be kept; and what freed the id."""
    broker.claims._keep_ms, usual = keep_ms, broker.claims._keep_ms
    life = await Life(broker).begin()
    tombstone = await life.delete()
    broker.claims._keep_ms = usual
    entry = broker.claims.peek("s")
    assert entry is not None
    while broker.connection.clock.now_ms <= entry.keep_ms:
        await asyncio.sleep(0.05)
        await broker.sender.send(broker.names.all_records[0], b"another", b"", [])
    return life, tombstone


async def sweep(*brokers: Kafka) -> None:
    """Somebody's claim tells the tables how late it is."""
    await Life(brokers[0], "another").begin()
    for broker in brokers:
        await broker.claims.refresh()
        assert broker.claims.peek("s") is None


async def test_what_the_table_forgets_a_track_that_is_followed_forgets_too(
    server: KafkaServer, options: KafkaOptions
) -> None:
    """Else it tells everybody of the old ending once more, and that would end the new life."""
    async with opened(server.url, options) as remembers, opened(server.url, options) as forgets:
        old, _ = await old_life(remembers)
        follower = Follower()
        following = await remembers.log.follow("s", follower.deliver, follower.uncertain.set)
        await sweep(forgets, remembers)
        new = await Life(forgets).begin(b"a", owner=8)
        last = await remembers.log.last("s")
        assert last is not None
        assert last.record.chunks == (b"a",)
        await forgets.claims.refresh()
        entry = forgets.claims.peek("s")
        assert entry is not None
        assert entry.gone is None
        async with opened(server.url, options) as fresh:
            for broker in (fresh, remembers):
                late = Life(broker)
                late.state = old.state
                with pytest.raises(AppendRefused):
                    await late.begin(owner=9)
            await new.word(b"b")
            for broker in (remembers, forgets, fresh):
                state, chunks = replay(await broker.log.read("s"))
                assert (state.incarnation, chunks) == (Incarnation(1, 8), [b"a", b"b"])
        assert follower.uncertain.is_set()
        await follower.until(b"b")
        await following.close()


@pytest.mark.parametrize("late", ["copy", "opening"])
async def test_what_comes_late_of_a_life_that_the_table_forgot_changes_nothing(
    server: KafkaServer, options: KafkaOptions, late: str
) -> None:
    async with opened(server.url, options) as paused, opened(server.url, options) as forgets:
        old, tombstone = await old_life(paused)
        await sweep(forgets, paused)
        new = await Life(forgets).begin(b"a", owner=8)
        if late == "copy":
            headers = claims_module._copy(tombstone)
            await paused.sender.send(paused.names.all_claims[0], b"s", b"", headers)
        else:
            await paused.claims.open("s", new.state.position, tombstone)
        async with opened(server.url, options) as fresh:
            for broker in (paused, forgets, fresh):
                zombie = Life(broker)
                zombie.state = old.state
                with pytest.raises(AppendRefused):
                    await zombie.begin(owner=9)
                assert await broker.log.count() == 2
            await new.word(b"b")
            for broker in (paused, forgets, fresh):
                state, chunks = replay(await broker.log.read("s"))
                assert (state.incarnation, chunks) == (Incarnation(1, 8), [b"a", b"b"])


async def test_an_old_id_is_claimed_again_at_once(server: KafkaServer, options: KafkaOptions) -> None:
    """Its entry is too old to be kept, and nothing has swept it yet: the claim's own opening does."""
    async with opened(server.url, options) as broker:
        life, _ = await old_life(broker)
        assert broker.claims.peek("s") is not None
        await life.begin(b"a", owner=8)
        state, chunks = replay(await broker.log.read("s"))
        assert (state.incarnation, chunks) == (Incarnation(2, 8), [b"a"])


async def test_of_two_openings_the_one_that_sees_more_counts(server: KafkaServer, options: KafkaOptions) -> None:
    """The first was lost and stored once more; meanwhile a process that knew nothing of it stored its own."""
    async with opened(server.url, options) as owner, opened(server.url, options) as other:
        await owner.sender.send(owner.names.all_records[0], b"another", b"", [])
        life = await Life(owner).begin(b"a")
        entry = owner.claims.peek("s")
        assert entry is not None
        await other.claims.refresh()
        other.claims._forget_old(1 << 60)
        await other.log.last("another")
        second = await Life(other).begin(b"wrong", owner=8)
        await owner.claims.open("s", entry.start)
        await other.claims.refresh()
        with pytest.raises(AppendRefused):
            await second.word(b"wrong")
        await life.word(b"b")
        for broker in (owner, other):
            state, chunks = replay(await broker.log.read("s"))
            assert (state.incarnation, chunks) == (Incarnation(1, 7), [b"a", b"b"])


# --- a track that begins anew


async def test_a_track_that_begins_anew_outlives_a_broker_error(
    server: KafkaServer, options: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, options) as writer, opened(server.url, options) as reader:
        life = await Life(writer).begin(b"a")
        follower = Follower()
        following = await reader.log.follow("s", follower.deliver, follower.uncertain.set)
        tracks = reader.log._tracks
        track = await tracks.get("s")
        read = tracks.read

        async def fail(*_: Any) -> list[Stored]:
            monkeypatch.setattr(tracks, "read", read)
            raise BrokerFailed("It answered with an error of its own")

        monkeypatch.setattr(tracks, "read", fail)
        assert track.partition.feed is not None
        track.partition.lost(0, track.partition.feed.position)
        async with asyncio.timeout(PATIENCE):
            await follower.uncertain.wait()
        await life.word(b"b")
        await follower.until(b"b")
        assert replay(await reader.log.read("s"))[1] == [b"a", b"b"]
        await following.close()


async def test_a_track_that_begins_anew_with_a_newer_version_says_so(
    server: KafkaServer, options: KafkaOptions
) -> None:
    async with opened(server.url, options) as writer, opened(server.url, options) as reader:
        life = await Life(writer).begin(b"a")
        follower = Follower()
        following = await reader.log.follow("s", follower.deliver, follower.uncertain.set)
        headers, payload = message(word(life.state, "s"), life.state.position)
        newer = [(name, b"2" + value[1:] if name == "Tailrace" else value) for name, value in headers]
        await writer.sender.send(writer.names.all_records[0], b"s", payload, newer)
        async with asyncio.timeout(PATIENCE):
            await follower.uncertain.wait()
            follower.uncertain.clear()
            partition = (await reader.log._tracks.get("s")).partition
            assert partition.feed is not None
            partition.lost(0, partition.feed.position)
            await follower.uncertain.wait()
        for _ in range(2):
            with pytest.raises(UnsupportedRecord, match="version 2"):
                await reader.log.read("s")
        await following.close()


# --- a power cut


def log_of(server: KafkaServer, place: Place) -> Path:
    return next(server.directory.rglob(f"{place}/*.log"))


def cut(server: KafkaServer, place: Place, size: int) -> None:
    """What a power cut does to one node that is killed: what was written behind ``size`` was not on the disk yet."""
    segment = log_of(server, place)
    with segment.open("r+b") as file:
        file.truncate(size)
    for name in ("*.index", "*.timeindex", "*.snapshot"):
        for path in segment.parent.glob(name):
            path.unlink()


@pytest.mark.chaos
@pytest.mark.parametrize("then", ["shorter", "with others' records"])
async def test_a_broker_that_lost_its_unsynced_end_is_noticed(tmp_path: Path, then: str) -> None:
    """What a power cut does to one node: acknowledged records are gone, and others take their offsets."""
    with KafkaServer(tmp_path / "kafka") as server:
        options = KafkaOptions(partitions=1, claims_partitions=1)
        world = KafkaWorld(server.url, lease_ttl=30, options=options)
        writer, reader = await world.store(), await world.store()
        await writer.acquire("cut")
        for number in range(20):
            await writer.append("cut", b"%d;" % number)
        reading = asyncio.create_task(until_ending(reader.read("cut")))
        while not (reader.tails.state("cut") is not None and reader.tails.state("cut").entries == 20):  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        server.kill()
        chunks = Place("tailrace.chunks", 0)
        cut(server, chunks, log_of(server, chunks).stat().st_size * 2 // 3)
        if then != "shorter":
            await fill_elsewhere(server, options)
        server.start()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises((StreamTrimmed, StreamEnded)):
                await writer.append("cut", b"more")
            got, ending = await reading
        assert isinstance(ending, StreamTrimmed)
        assert b"".join(got) == b"".join(b"%d;" % number for number in range(20))
        assert (await reader.status("cut")).status is Status.TRIMMED
        await world.close()


async def fill_elsewhere(server: KafkaServer, options: KafkaOptions) -> None:
    """Let a stranger, whom alone the broker is reachable for, write more than was lost."""
    port, server.port = server.port, choose_port(None, None)
    server.start()
    async with opened(server.url, options) as stranger:
        for _ in range(60):
            await stranger.sender.send(stranger.names.all_records[0], b"another", b"of a stranger", [])
    server.kill()
    server.port = port


@pytest.mark.chaos
async def test_an_ending_whose_record_was_lost_ends_its_stream_as_trimmed(tmp_path: Path) -> None:
    """The copy among the claims survived, the records behind the first chunk did not; the claim of another stream was
    lost as well, and its opening survived."""
    options = KafkaOptions(partitions=1, claims_partitions=1)
    with KafkaServer(tmp_path / "kafka") as server:
        async with opened(server.url, options) as writer:
            (chunks,) = writer.names.all_records
            life = await Life(writer, "cut").begin(b"a")
            left = log_of(server, chunks).stat().st_size
            await life.word(b"b")
            await writer.claims.copy(await life.end())
            for number in range(8):
                await writer.sender.send(chunks, b"another", b"%d" % number, [])
            await Life(writer, "young").begin()
        server.kill()
        cut(server, chunks, left)
        server.start()
        world = KafkaWorld(server.url, lease_ttl=30, options=options)
        async with AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
            stack.push_async_callback(world.close)
            first, second = await world.store(), await world.store()
            assert (await first.status("cut")).status is Status.TRIMMED
            got, ending = await until_ending(second.read("cut"))
            assert isinstance(ending, StreamTrimmed)
            assert got == [b"a"]
            assert (await first.acquire("cut")).role is Role.CONSUMER
            assert {info.stream_id async for info in first.streams()} >= {"cut"}
            assert (await first.acquire("young")).role is Role.PRODUCER
            assert (await second.acquire("young")).role is Role.CONSUMER
            assert await first.delete("cut")
            third = await world.store()
            for store in (first, second, third):
                assert (await store.status("cut")).status is Status.MISSING
            assert (await third.acquire("cut")).role is Role.PRODUCER
            await third.append("cut", b"new")
            assert (await second.acquire("cut")).role is Role.CONSUMER
            await third.finalize("cut", "done")
            assert (await until_ending(first.read("cut")))[0] == [b"new"]


@pytest.mark.chaos
@pytest.mark.parametrize("gone", [False, True], ids=["alive", "gone"])
async def test_an_opening_that_was_lost_is_stored_once_more(tmp_path: Path, gone: bool) -> None:
    """The claims lost their end, the records kept theirs."""
    options = KafkaOptions(partitions=1, claims_partitions=1)
    with KafkaServer(tmp_path / "kafka") as server:
        async with opened(server.url, options) as owner:
            (place,) = owner.names.all_claims
            await Life(owner, "before").begin()
            left = log_of(server, place).stat().st_size
            life = await Life(owner).begin(b"a")
            if gone:
                await life.delete()
            server.kill()
            cut(server, place, left)
            server.start()
            async with asyncio.timeout(PATIENCE):
                async with opened(server.url, options) as fresh:
                    while (entry := await fresh.claims.current("s")) is None or (entry.gone is not None) != gone:
                        await asyncio.sleep(0.05)  # until it was stored once more
            async with opened(server.url, options) as fresh:
                other = Life(fresh)
                state = await other.look()
                if gone:
                    assert state.position == life.state.position
                else:
                    assert state.incarnation == Incarnation(1, 7)
                    await life.word(b"b")
                    assert replay(await fresh.log.read("s"))[1] == [b"a", b"b"]


@pytest.mark.chaos
async def test_a_delete_that_was_lost_from_both_topics_holds_where_it_is_known(tmp_path: Path) -> None:
    """And the next life, at positions that were used before, is one to all."""
    options = KafkaOptions(partitions=1, claims_partitions=1)
    with KafkaServer(tmp_path / "kafka") as server:
        async with opened(server.url, options) as owner, asyncio.timeout(PATIENCE):
            places = *owner.names.all_claims, *owner.names.all_records
            await Life(owner, "before").begin()
            left = {place: log_of(server, place).stat().st_size for place in places}
            life = await Life(owner).begin(b"a", b"b", b"c", b"d")
            await life.delete()
            server.kill()
            for place in places:
                cut(server, place, left[place])
            server.start()
            async with opened(server.url, options) as fresh:
                while (entry := await fresh.claims.current("s")) is None or entry.gone is None:
                    await asyncio.sleep(0.05)  # until it was stored once more
                other = Life(fresh)
                assert (await other.look()).position == life.state.position
                await other.begin(b"new", owner=8)
                late = Life(owner)
                late.state = life.state
                with pytest.raises(AppendRefused):
                    await late.begin(owner=9)
                async with opened(server.url, options) as third:
                    for broker in (owner, fresh, third):
                        state, chunks = replay(await broker.log.read("s"))
                        assert (state.incarnation, chunks) == (Incarnation(2, 8), [b"new"])
                    await other.delete()
                    for broker in (owner, fresh, third):
                        assert not decide.is_there(await Life(broker, "s").look())
                    again = Life(third)
                    await again.look()
                    await again.begin(b"again", owner=10)
                    for broker in (owner, fresh, third):
                        state, chunks = replay(await broker.log.read("s"))
                        assert (state.incarnation, chunks) == (Incarnation(3, 10), [b"again"])
