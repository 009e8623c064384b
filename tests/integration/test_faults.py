"""Injected at the broker client's edge, over memory and a real nats-server: acks lost, records that land late, refusals
while the own copy is on its way, live records lost, a broker away, callers cancelled anywhere.

What holds whatever happens: no byte lost, repeated or spliced, every acked chunk there, nothing acked after an error,
no lease without a task, no hang. A failing run names its seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tailrace.errors import (
    BrokerFailed,
    BrokerUnavailable,
    CursorGone,
    LeaseRequired,
    ProducerLost,
    StreamEnded,
    StreamErrored,
    StreamFinalized,
    StreamNotFound,
    StreamSuperseded,
    TailraceError,
)
from tailrace.model import Acquisition, Ending, Lease, Mark, Offset, Status
from tailrace.store import LogStore
from tailrace.testing.faults import FaultPlan, FaultyLog
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import KafkaWorld
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.redis_world import RedisWorld
from tailrace.testing.servers import NatsServer
from tailrace.testing.worlds import JetStreamWorld, MemoryWorld, World, replay

PATIENCE = 15.0
LOST = Ending(Status.PRODUCER_LOST, "producer-lost", "a test took it over")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(Path(tmp_path_factory.mktemp("nats"))) as server:
        yield server


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


SLOW = pytest.mark.slow


@pytest.fixture(params=["memory", "jetstream", pytest.param("kafka", marks=SLOW), pytest.param("redis", marks=SLOW)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World = MemoryWorld()
    if request.param == "jetstream":
        made = JetStreamWorld(request.getfixturevalue("server").url)
    if request.param == "kafka":
        made = KafkaWorld(request.getfixturevalue("kafka").url)
    if request.param == "redis":
        made = RedisWorld(request.getfixturevalue("redis").url)
    yield made
    async with asyncio.timeout(PATIENCE):
        await made.close()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", ".").replace("]", "")


def writer_plan(rng: Random) -> FaultPlan:
    rates = {"ack_lost": 0.15, "lands_late": 0.1, "refused_in_flight": 0.1, "append_unavailable": 0.1}
    chosen = {name: rate * rng.choice([0, 1, 2]) for name, rate in rates.items()}
    return FaultPlan(rng.getrandbits(32), **chosen, read_unavailable=0.1, live_lost=0.2, live_late=0.1)


def reader_plan(rng: Random) -> FaultPlan:
    rates = {"live_lost": 0.2, "live_late": 0.2, "live_twice": 0.2, "read_unavailable": 0.1}
    return FaultPlan(rng.getrandbits(32), **{name: rate * rng.choice([0, 1, 2]) for name, rate in rates.items()})


@dataclass
class Answer:
    """What a stream's producer knows of it."""

    stream_id: str
    lease: Lease | None = None
    acked: dict[int, str] = field(default_factory=dict)  # number of the chunk -> its cursor
    refused: dict[int, TailraceError] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)

    def chunk(self, number: int, rng: Random) -> bytes:
        return b"%s/%d;%s\n" % (self.stream_id.encode(), number, b"x" * rng.randrange(30))


def number_of(chunk: bytes) -> int:
    return int(chunk.partition(b";")[0].rpartition(b"/")[2])


async def now_and_then(rng: Random) -> None:
    match rng.randrange(4):
        case 0:
            await asyncio.sleep(rng.random() * 0.01)
        case 1:
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)


async def acquire(store: LogStore, stream_id: str, rng: Random, counts: Counter[str]) -> Lease:
    """Acquire, cancelled anywhere now and then, until this caller is the producer. A stream whose claim nobody serves
    must come to an ending by itself."""
    while True:
        task = asyncio.create_task(store.acquire(stream_id))
        if rng.random() < 0.5:
            await now_and_then(rng)
            task.cancel()
        try:
            acquisition: Acquisition = await task
        except asyncio.CancelledError:
            counts["acquire cancelled"] += 1
            continue
        except BrokerUnavailable:
            counts["acquire unavailable"] += 1
            continue
        if acquisition.lease is not None:
            return acquisition.lease
        counts["acquire orphaned"] += 1
        with pytest.raises(ProducerLost):
            assert await read_all(store, stream_id, rng) == b""
        while True:
            try:
                await store.delete(stream_id, acquisition.incarnation)
                break
            except BrokerUnavailable:
                continue


async def read_all(store: LogStore, stream_id: str, rng: Random, start: str | Offset = "") -> bytes:
    """Read to the ending, now and then leaving and coming back by cursor or by offset."""
    got, base, cursor = b"", start.bytes if isinstance(start, Offset) else 0, start
    first = start
    while True:
        leave_after = rng.choice([1, 3, 10, 1000])
        reading = store.read(stream_id, cursor)
        try:
            async for entry in reading:
                got += entry.chunk
                if isinstance(first, Offset) and rng.random() < 0.5:
                    cursor = Offset(base + len(got), entry.mark.incarnation)
                else:
                    cursor = entry.cursor
                leave_after -= 1
                if leave_after == 0:
                    break
            else:
                return got
        except (BrokerUnavailable, StreamNotFound):
            await asyncio.sleep(0.002)
        except StreamEnded as error:
            error.got = got  # type: ignore[attr-defined]
            raise
        finally:
            await reading.aclose()  # type: ignore[attr-defined]


async def produce(store: LogStore, answer: Answer, rng: Random, chunks: int, counts: Counter[str]) -> None:
    """Append from a task a chunk, as many at once as come, some of them cancelled."""
    tasks: dict[asyncio.Task[str], int] = {}
    for number in range(chunks):
        chunk = answer.chunk(number, rng)
        lease = answer.lease if rng.random() < 0.5 else None
        tasks[asyncio.create_task(store.append(answer.stream_id, chunk, lease))] = number
        await now_and_then(rng)
        if rng.random() < 0.1:
            rng.choice(list(tasks)).cancel()
    for task, number in tasks.items():
        try:
            answer.acked[number] = await task
        except asyncio.CancelledError:
            answer.cancelled.add(number)
            counts["append cancelled"] += 1
        except TailraceError as error:
            answer.refused[number] = error


async def finish(store: LogStore, answer: Answer, rng: Random, status: str = "done") -> None:
    if rng.random() < 0.3:
        task = asyncio.create_task(store.finalize(answer.stream_id, status, None, answer.lease))
        await now_and_then(rng)
        task.cancel()
        await asyncio.wait([task])
    while True:
        try:
            await store.finalize(answer.stream_id, status, None, answer.lease)
            return
        except BrokerUnavailable:
            continue


def check_answer(answer: Answer, stored: list[bytes]) -> None:
    numbers = [number_of(chunk) for chunk in stored]
    assert numbers == sorted(set(numbers)), "repeated or out of order"
    assert set(answer.acked) <= set(numbers), "acked, and lost"
    places = {number: index for index, number in enumerate(numbers)}
    for number, cursor in answer.acked.items():
        mark = Mark.parse(answer.stream_id, cursor)
        assert mark.entries == places[number] + 1
        assert mark.bytes == sum(map(len, stored[: mark.entries]))
    if answer.refused:
        first = min(answer.refused)
        assert not [number for number in answer.acked if number > first], "acked after an error"


def check_idle(*stores: LogStore) -> None:
    for store in stores:
        assert not store._held.writers()
        assert not store.tails._attached
        assert store.tails._readers == 0


@pytest.mark.parametrize("seed", range(12))
async def test_no_byte_is_lost_repeated_or_spliced(world: World, unique: str, seed: int) -> None:
    rng, counts = Random(seed), Counter[str]()
    plans = [writer_plan(rng), reader_plan(rng)]
    producer, consumer = await world.store(plans[0]), await world.store(plans[1])

    async def one(number: int) -> None:
        mine = Random(seed * 1000 + number)
        answer = Answer(f"{unique}.{number}")
        answer.lease = await acquire(producer, answer.stream_id, mine, counts)
        readers = [
            asyncio.create_task(read_all(mine.choice([producer, consumer]), answer.stream_id, Random(n)))
            for n in range(3)
        ]
        await produce(producer, answer, mine, 40, counts)
        starts: list[tuple[str | Offset, int]] = []
        for cursor in mine.sample(sorted(answer.acked.values()), 3):
            mark = Mark.parse(answer.stream_id, cursor)
            starts.append((cursor, mark.bytes))
            starts.append((Offset(max(0, mark.bytes - mine.randrange(9)), mark.incarnation), -1))
        late = [
            asyncio.create_task(read_all(mine.choice([producer, consumer]), answer.stream_id, Random(n), start))
            for n, (start, _) in enumerate(starts)
        ]
        await finish(producer, answer, mine)
        state, stored = replay(await world.records(answer.stream_id))
        assert state.ending == Ending(Status.DONE)
        assert state.incarnation == answer.lease.incarnation
        assert not answer.refused
        check_answer(answer, stored)
        whole = b"".join(stored)
        for got in await asyncio.gather(*readers):
            assert got == whole
        for (start, at), got in zip(starts, await asyncio.gather(*late), strict=True):
            assert got == whole[start.bytes if isinstance(start, Offset) else at :]

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(one(number) for number in range(5)))
        for store in (producer, consumer):
            assert isinstance(store.log, FaultyLog)
            await store.log.landed()
            await store._tasks.idle()
    check_idle(producer, consumer)


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_is_fenced_changes_nothing(world: World, unique: str, seed: int) -> None:
    """Deleted, or taken over, at a random moment by another process, which often writes on."""
    rng, counts = Random(seed), Counter[str]()
    old, new = await world.store(writer_plan(rng)), await world.store(writer_plan(rng))

    async def one(number: int) -> None:
        mine = Random(seed * 1000 + number)
        answer = Answer(f"{unique}.{number}")
        answer.lease = await acquire(old, answer.stream_id, mine, counts)
        reader = await open_reader(new, answer.stream_id)
        producing = asyncio.create_task(produce(old, answer, mine, 40, counts))
        await asyncio.sleep(mine.random() * 0.2)
        way = mine.choice(["delete", "end", "take"])
        mark = await fence(new, answer, way)
        second = Answer(answer.stream_id)
        if way == "delete":
            second.lease = await acquire(new, answer.stream_id, mine, counts)
        elif way == "take":
            second.lease = mark
        if second.lease is not None:
            await produce(new, second, mine, 10, counts)
            assert not second.refused, second.refused
        await producing
        late = asyncio.gather(
            old.append(answer.stream_id, b"late", answer.lease),
            old.finalize(answer.stream_id, "done", None, answer.lease),
            return_exceptions=True,
        )
        for outcome in await late:
            assert outcome is None or isinstance(
                outcome, StreamNotFound | StreamSuperseded | StreamFinalized | BrokerUnavailable
            ), (outcome, way, answer.stream_id, await world.records(answer.stream_id))
        if second.lease is not None:
            await finish(new, second, mine)
        state, stored = replay(await world.records(answer.stream_id))
        assert state.ending == (LOST if way == "end" else Ending(Status.DONE))
        assert b"late" not in stored
        for number, error in sorted(answer.refused.items()):
            known = (StreamNotFound, StreamSuperseded, StreamFinalized)
            later = (*known, BrokerUnavailable, LeaseRequired)  # the fenced writer is gone
            assert isinstance(error, later if number > min(answer.refused) else known), error
        if way == "delete":
            check_answer(second, stored)
            first = b"".join([chunk async for chunk in taken(reader)])
            numbers = [number_of(line) for line in first.splitlines()]
            assert numbers == sorted(set(numbers))
            # a deleted stream's rest may be gone before it was read: then what was read is its beginning
            assert {number for number in answer.acked if number <= max(numbers, default=-1)} <= set(numbers)
            assert reader.ending is not None
            assert reader.ending.code == "deleted"
        else:
            cut = state.epochs[1].entries
            check_answer(answer, stored[:cut])
            mended = stored[cut:]
            assert [number_of(chunk) for chunk in mended] == sorted({number_of(chunk) for chunk in mended})
            assert set(second.acked) <= {number_of(chunk) for chunk in mended}
            assert b"".join([chunk async for chunk in taken(reader)]) == b"".join(stored)
        reader.close()
        counts[way] += 1

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(one(number) for number in range(6)))


async def open_reader(store: LogStore, stream_id: str):
    while True:
        try:
            return await store.open(stream_id, wait=5)
        except BrokerUnavailable:
            continue


async def taken(reader) -> AsyncIterator[bytes]:
    while True:
        yield reader.take_bytes()
        if reader.ending is not None:
            return
        await reader.wait()


async def fence(store: LogStore, answer: Answer, way: str) -> Lease | None:
    assert answer.lease is not None
    while True:
        try:
            if way == "delete":
                await store.delete(answer.stream_id, answer.lease.incarnation)
                return None
            lease = await store.takeover(answer.stream_id, 1, LOST if way == "end" else None)
            assert (lease is None) == (way == "end")
            return lease
        except BrokerUnavailable:
            continue


async def test_an_error_of_the_broker_is_final_but_for_the_ending(world: World, unique: str) -> None:
    failed = 0
    for seed in range(12):
        rng = Random(seed)
        plan = FaultPlan(seed, append_failed=0.1, ack_lost=0.1, lands_late=0.1)
        store, other = await world.store(plan), await world.store()
        plan.append_failed = 0.0
        answer = Answer(f"{unique}.{seed}")
        answer.lease = await acquire(store, answer.stream_id, rng, Counter())
        plan.append_failed = 0.5
        async with asyncio.timeout(PATIENCE):
            await produce(store, answer, rng, 30, Counter())
            if not answer.refused:  # few records, all of them lucky
                continue
            failed += 1
            with pytest.raises(BrokerFailed):
                await store.append(answer.stream_id, b"later", answer.lease)
            while True:
                try:
                    await store.finalize(answer.stream_id, "error", "it failed", answer.lease)
                    break
                except BrokerFailed:
                    continue
            state, stored = replay(await world.records(answer.stream_id))
            check_answer(answer, stored)
            assert state.ending == Ending(Status.ERROR, "error", "it failed")
            with pytest.raises(StreamErrored) as ended:
                await read_all(other, answer.stream_id, rng)
            assert ended.value.got == b"".join(stored)  # type: ignore[attr-defined]
    assert failed >= 6


async def test_an_ending_queued_behind_a_failure_is_not_written(world: World, unique: str) -> None:
    plan = FaultPlan(0)
    store = await world.store(plan)
    lease = (await store.acquire(unique)).lease
    plan.append_failed = 1.0
    appending = asyncio.create_task(store.append(unique, b"x", lease))
    finishing = asyncio.create_task(store.finalize(unique, "done", None, lease))
    outcomes = await asyncio.gather(appending, finishing, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BrokerFailed, BrokerFailed]
    assert replay(await world.records(unique))[0].ending is None
    plan.calm()
    await store.finalize(unique, "error", "lost", lease)
    state, stored = replay(await world.records(unique))
    assert (state.ending, stored) == (Ending(Status.ERROR, "error", "lost"), [])


async def test_an_empty_extend_acknowledges_nothing_later(world: World, unique: str) -> None:
    plan = FaultPlan(0)
    store = await world.store(plan)
    lease = (await store.acquire(unique)).lease
    assert lease is not None
    begin = Mark(lease.incarnation, 1, 0, 0).cursor(unique)
    assert await store.extend(unique, [], lease) == begin
    plan.go_away()
    appending = asyncio.create_task(store.append(unique, b"x", lease))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not appending.done()
    plan.come_back()
    cursor = await appending
    assert Mark.parse(unique, cursor).entries == 1
    assert await store.extend(unique, [], lease) == cursor


async def test_a_takeover_whose_caller_gave_up_leaves_no_lease(world: World, unique: str) -> None:
    for seed in range(20):
        plan = FaultPlan(seed, pauses=1.0)
        old, new = await world.store(), await world.store(plan)
        stream_id = f"{unique}.{seed}"
        lease = (await old.acquire(stream_id)).lease
        task = asyncio.create_task(new.takeover(stream_id, 1))
        await now_and_then(Random(seed))
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(PATIENCE):
            await new._tasks.idle()
        state, _ = replay(await world.records(stream_id))
        assert state.ending is not None or (state.epoch == 1 and task.cancelled())
        if state.ending is None:
            await old.finalize(stream_id, "done", None, lease)
        check_idle(new)


async def test_a_lease_that_two_stores_use_gives_right_cursors(world: World, unique: str) -> None:
    one, two = await world.store(), await world.store()
    lease = (await one.acquire(unique)).lease
    assert lease is not None
    octets = 0
    for turn in range(12):
        store = (one, two, two)[turn % 3]
        chunk = b"x" * (turn + 1)
        octets += len(chunk)
        mark = Mark.parse(unique, await store.append(unique, chunk, lease))
        assert (mark.entries, mark.bytes) == (turn + 1, octets)
    await two.finalize(unique, "done", None, lease)
    _, stored = replay(await world.records(unique))
    assert stored == [b"x" * (turn + 1) for turn in range(12)]


async def test_a_cursor_ahead_of_the_tail_is_not_gone(world: World, unique: str) -> None:
    """The live copies are lost on their way to the reader's process, which others read the stream in already."""
    producer, plan = await world.store(), FaultPlan(0, live_lost=1.0)
    consumer = await world.store(plan)
    lease = (await producer.acquire(unique)).lease
    first = await consumer.open(unique)
    cursors = [await producer.append(unique, b"%d" % number, lease) for number in range(5)]
    reader = await consumer.open(unique, cursors[2])
    assert reader.take_bytes() == b"34"
    await producer.delete(unique)
    await producer.acquire(unique)
    new = await producer.append(unique, b"new")
    assert (await consumer.open(unique, new)).take() == []
    with pytest.raises(CursorGone):
        await consumer.open(unique, cursors[2])
    async with asyncio.timeout(PATIENCE):
        while first.ending is None:
            await first.wait()
            first.take()
    assert first.ending.code == "deleted"


async def test_a_lost_producer_whose_last_record_was_not_heard(world: World, unique: str) -> None:
    """Its readers get the record, and then the ending, though no heartbeat ever named it."""
    producer, consumer = await world.store(), await world.store(FaultPlan(0, live_lost=1.0))
    lease = (await producer.acquire(unique)).lease
    reader = await consumer.open(unique)
    await producer.append(unique, b"last", lease)
    crash(producer)
    got = b""
    async with asyncio.timeout(PATIENCE):
        while reader.ending is None:
            await reader.wait()
            got += reader.take_bytes()
    assert got == b"last"
    assert reader.ending.status is Status.PRODUCER_LOST


def crash(store: LogStore) -> None:
    """What a killed process leaves: no more heartbeats, no more writing, no goodbye."""
    task = store.members._task
    assert task is not None
    task.cancel()
    for writer in store._held.writers():
        if writer._task is not None:
            writer._task.cancel()
    store._held._writers.clear()


async def test_whoever_waits_for_a_stream_sees_it_expire(world: World, unique: str) -> None:
    producer, consumer = await world.store(), await world.store()
    opening = asyncio.create_task(consumer.open(unique, wait=30))
    await asyncio.sleep(0.05)
    await producer.acquire(unique, ttl=0.3)
    reader = await opening
    async with asyncio.timeout(PATIENCE):
        while reader.ending is None:
            await reader.wait()
            reader.take()
    assert reader.ending.status is Status.EXPIRED


async def test_a_dropped_open_leaves_nothing_followed(world: World, unique: str) -> None:
    producer, plan = await world.store(), FaultPlan(0, pauses=1.0)
    consumer = await world.store(plan)
    await producer.acquire(unique)
    rng = Random(0)
    for _ in range(60):
        opening = asyncio.create_task(consumer.open(unique))
        await asyncio.sleep(rng.random() * 0.04)
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            opening.result().close()
    await consumer._tasks.idle()
    check_idle(consumer)
    assert len(plan._uncertain) == 1  # the heartbeats


# A broker that is away for three lease times

LiveAnswer = tuple[LogStore, Answer, asyncio.Task[bytes]]


async def live_answers(world: World, unique: str, plans: list[FaultPlan | None]) -> list[LiveAnswer]:
    found = []
    stores = [await world.store(plan) for plan in plans]
    for store in stores:
        for other in stores:
            answer = Answer(f"{unique}.{len(found)}")
            answer.lease = (await store.acquire(answer.stream_id)).lease
            answer.acked[0] = await store.append(answer.stream_id, answer.chunk(0, Random(0)), answer.lease)
            found.append((store, answer, asyncio.create_task(read_all(other, answer.stream_id, Random(0)))))
    for store in stores:
        await store.members.settled()
    return found


async def check_live(world: World, answers: list[LiveAnswer]) -> None:
    async with asyncio.timeout(PATIENCE * 2):
        for store, answer, _ in answers:  # appended while it was away, kept now
            await store.append(answer.stream_id, b"z", answer.lease)
        await asyncio.sleep(world.lease_ttl * 2)  # whoever judges wrongly has had the time to
        for store, answer, reading in answers:
            assert not reading.done()
            await store.finalize(answer.stream_id, "done", None, answer.lease)
            whole = b"".join(replay(await world.records(answer.stream_id))[1])
            assert await reading == whole
            assert whole.endswith(b"z")


async def test_a_broker_away_for_three_lease_times_ends_no_answer(world: World, unique: str) -> None:
    plans = [FaultPlan(0), FaultPlan(1)]
    answers = await live_answers(world, unique, list(plans))
    for plan in plans:
        plan.go_away()
    waiting = [asyncio.create_task(store.append(each.stream_id, b"y", each.lease)) for store, each, _ in answers]
    await asyncio.sleep(world.lease_ttl * 3)
    for plan in plans:
        plan.come_back()
        await asyncio.sleep(world.lease_ttl * 0.3)
    await asyncio.gather(*waiting)
    await check_live(world, answers)


async def test_an_ending_that_is_not_confirmed_when_the_store_closes_is_not_told(world: World, unique: str) -> None:
    plan = FaultPlan(0)
    store = await world.store(plan)
    lease = (await store.acquire(unique)).lease
    await store.append(unique, b"x", lease)
    plan.is_away = True
    finishing = asyncio.create_task(store.finalize(unique, "done", None, lease))
    await asyncio.sleep(0)
    store._timeout = 0.1  # that closing waits for endings
    await store.aclose()
    with pytest.raises(BrokerUnavailable, match="was closed before its ending was confirmed"):
        await finishing
    assert [stored.record.ending for stored in await world.records(unique)] == [None, None]


@pytest.mark.parametrize("how", ["paused", "killed"])
@pytest.mark.parametrize(
    ("kind", "world_of"),
    [
        (NatsServer, JetStreamWorld),
        pytest.param(KafkaServer, KafkaWorld, marks=SLOW),
        pytest.param(RedisServer, RedisWorld, marks=SLOW),
    ],
)
async def test_a_server_away_for_three_lease_times_ends_no_answer(
    tmp_path: Path,
    kind: type[NatsServer] | type[KafkaServer] | type[RedisServer],
    world_of: type[JetStreamWorld] | type[KafkaWorld] | type[RedisWorld],
    how: str,
) -> None:
    unique = f"away.{how}"
    with kind(tmp_path / "broker") as server:
        world = world_of(server.url, lease_ttl=1.0)
        answers = await live_answers(world, unique, [None, None])
        if how == "paused":
            server.pause()
        else:
            server.kill()
        waiting = [asyncio.create_task(store.append(each.stream_id, b"y", each.lease)) for store, each, _ in answers]
        await asyncio.sleep(3 * world.lease_ttl)
        if how == "paused":
            server.resume()
        else:
            server.start()
        async with asyncio.timeout(PATIENCE * 2):
            await asyncio.gather(*waiting)
        await check_live(world, answers)
        await world.close()
