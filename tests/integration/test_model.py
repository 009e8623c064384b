"""A store against a model of a few lines: whatever three processes do to two streams, memory, a real nats-server,
three of them as a cluster, a real Kafka broker and a real Redis give what the model says.

Each machine has an event loop of its own. Processes crash without a word; leases, cursors and endings of all lives are
tried again at any time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tailrace import decide
from tailrace.errors import (
    CursorGone,
    OffsetOutOfRange,
    StreamEnded,
    StreamErrored,
    StreamFinalized,
    StreamNotFound,
    StreamSuperseded,
)
from tailrace.jetstream import JetStreamOptions
from tailrace.memory import MemoryLog
from tailrace.model import Ending, Incarnation, Lease, Mark, Offset, Role, Status
from tailrace.redis import RedisOptions
from tailrace.store import LogStore
from tailrace.testing.cluster import NatsCluster
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.kafka_world import KafkaWorld
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.redis_world import RedisWorld
from tailrace.testing.servers import NatsServer
from tailrace.testing.worlds import JetStreamWorld, MemoryWorld, World, replay

T = TypeVar("T")
PATIENCE = 20.0
NAMES = "ab"
FENCED = (StreamNotFound, StreamSuperseded, StreamFinalized)
RUN = count()
LOST = Ending(Status.PRODUCER_LOST, "producer-lost", "by the model")


@dataclass
class Life:
    """One life of a stream as it must be."""

    incarnation: Incarnation
    lease: Lease
    holder: int | None
    chunks: list[bytes] = field(default_factory=list)
    cursors: list[str] = field(default_factory=lambda: [""])
    ending: Ending | None = None

    @property
    def bytes(self) -> bytes:
        return b"".join(self.chunks)


class Machine(RuleBasedStateMachine):
    make_world: ClassVar[Callable[[], World]]
    counts: ClassVar[Counter[str]]
    patience: ClassVar[float]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.prefix = f"model{next(RUN)}"
        self.lives: dict[str, Life | None] = dict.fromkeys(NAMES)
        self.generations = dict.fromkeys(NAMES, 0)
        self.old_leases: dict[str, list[Lease]] = {name: [] for name in NAMES}
        self.old_cursors: dict[str, list[str]] = {name: [] for name in NAMES}
        self.stores: list[LogStore] = []
        self.used: set[int] = set()  # which of them did anything yet
        self.run(self._begin())

    async def _begin(self) -> None:
        self.world = type(self).make_world()
        self.stores = [await self.world.store() for _ in range(3)]

    def run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(self.patience):
                return await work

        return self.runner.run(bounded())

    def store(self, number: int) -> LogStore:
        self.used.add(number)
        return self.stores[number]

    def did(self, what: str) -> None:
        self.counts[what] += 1

    def id(self, name: str) -> str:
        return f"{self.prefix}.{name}"

    def teardown(self) -> None:
        try:
            for name in NAMES:
                self.check_whole(name)
            self.run(self.world.close())
        finally:
            self.runner.close()

    def check_whole(self, name: str) -> None:
        state, chunks = replay(self.run(self.world.records(self.id(name))))
        life = self.lives[name]
        if life is None:
            assert not decide.is_there(state)
            return
        assert (state.incarnation, state.epoch, state.ending) == (life.incarnation, life.lease.epoch, life.ending)
        assert chunks == life.chunks

    # what is drawn

    names, stores_ = st.sampled_from(NAMES), st.integers(0, 2)
    chunk = st.binary(max_size=6)

    # the election

    @rule(name=names, by=stores_)
    def acquire(self, name: str, by: int) -> None:
        won = self.run(self.store(by).acquire(self.id(name)))
        life = self.lives[name]
        if life is not None:
            assert (won.role, won.lease, won.incarnation) == (Role.CONSUMER, None, life.incarnation)
            self.did("joined")
            return
        assert won.role is Role.PRODUCER
        assert won.lease is not None
        self.generations[name] += 1
        assert won.incarnation.generation == self.generations[name]
        self.lives[name] = Life(won.incarnation, won.lease, by)
        self.did("acquired")

    # the producer

    def _live(self, name: str) -> Life | None:
        life = self.lives[name]
        return life if life is not None and life.ending is None else None

    def _held(self, name: str) -> tuple[str, Life | None]:
        """``name``, or the other one if only that has a lease that a process serves."""
        for each in (name, *NAMES):
            if (life := self._live(each)) is not None and life.holder is not None:
                return each, life
        return name, None

    is_held = precondition(lambda self: self._held("a")[1] is not None)

    @is_held
    @rule(name=names, chunks=st.lists(chunk, min_size=1, max_size=4), by=stores_, how=st.integers(0, 2))
    def append(self, name: str, chunks: list[bytes], by: int, how: int) -> None:
        name, life = self._held(name)
        assert life is not None
        assert life.holder is not None
        holder = life.holder if how < 2 else by  # a lease is as good in another process
        store, lease = self.store(holder), None if how == 0 else life.lease
        if len(chunks) == 1:
            cursor = self.run(store.append(self.id(name), chunks[0], lease))
        else:
            cursor = self.run(store.extend(self.id(name), chunks, lease))
        for piece in chunks:
            life.chunks.append(piece)
            mark = Mark(life.incarnation, life.lease.epoch, len(life.chunks), len(life.bytes))
            life.cursors.append(mark.cursor(self.id(name)))
        assert cursor == life.cursors[-1]
        self.did("appended" if holder == life.holder else "appended elsewhere")

    @is_held
    @rule(name=names, sizes=st.lists(st.integers(0, 3), min_size=2, max_size=6))
    def append_at_once(self, name: str, sizes: list[int]) -> None:
        name, life = self._held(name)
        assert life is not None
        assert life.holder is not None
        store = self.store(life.holder)
        pieces = [b"%d" % number * size for number, size in enumerate(sizes)]

        async def all_at_once() -> list[str]:
            return await asyncio.gather(*(store.append(self.id(name), piece) for piece in pieces))

        cursors = self.run(all_at_once())
        for piece in pieces:
            life.chunks.append(piece)
            mark = Mark(life.incarnation, life.lease.epoch, len(life.chunks), len(life.bytes))
            life.cursors.append(mark.cursor(self.id(name)))
        assert cursors == life.cursors[-len(cursors) :]
        self.did("appended at once")

    @is_held
    @rule(name=names, status=st.sampled_from(["done", "error"]), named=st.booleans())
    def finalize(self, name: str, status: str, named: bool) -> None:
        name, life = self._held(name)
        assert life is not None
        assert life.holder is not None
        message = "boom" if status == "error" else None
        lease = life.lease if named else None
        self.run(self.store(life.holder).finalize(self.id(name), status, message, lease))
        life.ending = decide.ending(status, message, None)
        self.did("finalized")
        self.run(self.store(life.holder).finalize(self.id(name), "done", None, life.lease))  # the first wins

    @precondition(
        lambda self: any(self.old_leases.values()) or any(life and life.ending for life in self.lives.values())
    )
    @rule(name=names, by=stores_, pick=st.integers(0, 99), finish=st.booleans())
    def use_a_lease_that_is_over(self, name: str, by: int, pick: int, finish: bool) -> None:
        life = self.lives[name]
        leases = self.old_leases[name] + ([life.lease] if life is not None and life.ending is not None else [])
        if not leases:
            return
        lease, store = leases[pick % len(leases)], self.store(by)
        if finish:
            try:
                self.run(store.finalize(self.id(name), "error", "late", lease))
            except StreamNotFound:
                assert life is None
        else:
            with pytest.raises(FENCED):
                self.run(store.append(self.id(name), b"late", lease))
        self.check_whole(name)
        self.did("fenced")

    @precondition(lambda self: self.used)
    @rule(who=stores_)
    def crash(self, who: int) -> None:
        """The process is gone, without a word: its leases are served by nobody, until somebody takes them over."""
        who = who if who in self.used else min(self.used)  # one that did nothing has nothing to lose
        self.used.discard(who)
        store = self.stores[who]
        task = store.members._task
        assert task is not None
        task.cancel()
        for writer in store._held.writers():
            self.run(writer.abandon())
        store._held._writers.clear()
        self.run(store.tails.close())
        self.stores[who] = self.run(self.world.store())
        for life in self.lives.values():
            if life is not None and life.holder == who:
                life.holder = None
                self.did("crashed with a lease")

    # ending for others

    @rule(name=names, by=stores_, end=st.booleans(), wrong=st.integers(0, 4))
    def takeover(self, name: str, by: int, end: bool, wrong: int) -> None:
        life = self.lives[name]
        epoch = (life.lease.epoch if life is not None else 1) + (1 if wrong == 0 else 0)
        lease = self.run(self.store(by).takeover(self.id(name), epoch, LOST if end else None))
        if life is None or life.ending is not None or wrong == 0:
            assert lease is None
            self.did("nothing to take over")
            return
        self.old_leases[name].append(life.lease)
        life.lease = Lease(self.id(name), life.incarnation, life.lease.epoch + 1)
        if end:
            assert lease is None
            life.ending, life.holder = LOST, None
            self.did("ended for another")
        else:
            assert lease == life.lease
            life.holder = by
            self.did("taken over")

    def _over(self, name: str) -> None:
        life = self.lives[name]
        assert life is not None
        self.old_leases[name].append(life.lease)
        self.old_cursors[name].append(life.cursors[-1] or Mark(life.incarnation, 1, 0, 0).cursor(self.id(name)))
        self.lives[name] = None

    @rule(name=names, by=stores_, stale=st.integers(0, 5))
    def delete(self, name: str, by: int, stale: int) -> None:
        life = self.lives[name]
        if stale > 1 and life is not None and life.ending is None:  # let most of them live for a while
            return
        if stale == 0 and self.old_leases[name]:
            old = self.old_leases[name][0].incarnation
            if life is None or life.incarnation != old:
                assert not self.run(self.store(by).delete(self.id(name), old))
                self.check_whole(name)
                self.did("not deleted")
            return
        assert self.run(self.store(by).delete(self.id(name))) == (life is not None)
        if life is not None:
            self._over(name)
            self.did("deleted")

    @rule(name=names, pick=st.integers(0, 2))
    def expire(self, name: str, pick: int) -> None:
        """Somebody whose broker time is further writes what is due then."""
        if self.lives[name] is None or pick > 0:
            return
        stream_id = self.id(name)
        state, _ = replay(self.run(self.world.records(stream_id)))
        assert state.expires_ms is not None
        record = decide.expiry(state, stream_id, f"x{next(RUN)}", state.expires_ms)
        assert record is not None
        self.run(self.store(0).log.append(record, state.position))
        self._over(name)
        self.did("expired")

    # reading

    async def _drain(self, store: LogStore, name: str, start: str | Offset, octets: int, ended: bool) -> bytes:
        """What a reader gets: ``octets`` bytes, and the ending where there is one."""
        reader = await store.open(self.id(name), start)
        try:
            got = reader.take_bytes()
            while (reader.ending is None) if ended else len(got) < octets:
                await reader.wait()
                got += reader.take_bytes()
            if not ended:
                assert reader.ending is None
        finally:
            reader.close()
        return got

    @rule(name=names, by=stores_, pick=st.integers(0, 99), offset=st.booleans())
    def read_from_anywhere(self, name: str, by: int, pick: int, offset: bool) -> None:
        life, store = self.lives[name], self.store(by)
        if life is None:
            with pytest.raises(StreamNotFound):
                self.run(store.open(self.id(name)))
            self.did("missing")
            return
        start: str | Offset
        if offset:
            at = pick % (len(life.bytes) + 1)
            start, rest = Offset(at, life.incarnation), life.bytes[at:]
        else:
            index = pick % len(life.cursors)
            start, rest = life.cursors[index], b"".join(life.chunks[index:])
        assert self.run(self._drain(store, name, start, len(rest), life.ending is not None)) == rest
        self.did("read ended" if life.ending else "read live")

    @rule(name=names, by=stores_)
    def read_to_the_ending(self, name: str, by: int) -> None:
        life, store = self.lives[name], self.store(by)
        if life is None or life.ending is None:
            return

        async def read() -> list[tuple[bytes, str]]:
            return [(entry.chunk, entry.cursor) async for entry in store.read(self.id(name))]

        if life.ending.status is Status.DONE:
            assert self.run(read()) == list(zip(life.chunks, life.cursors[1:], strict=True))
        else:
            with pytest.raises(StreamEnded) as ended:
                self.run(read())
            assert ended.value.code == life.ending.code
            assert isinstance(ended.value, StreamErrored) == (life.ending.status is Status.ERROR)
        with pytest.raises(OffsetOutOfRange):
            self.run(store.open(self.id(name), Offset(len(life.bytes) + 1)))
        self.did("read to the ending")

    @rule(name=names, by=stores_, pick=st.integers(0, 99))
    def read_another_life(self, name: str, by: int, pick: int) -> None:
        old = self.old_cursors[name]
        if not old:
            return
        with pytest.raises((CursorGone, StreamNotFound)) as error:
            self.run(self.store(by).open(self.id(name), old[pick % len(old)]))
        assert isinstance(error.value, CursorGone) == (self.lives[name] is not None)
        self.did("cursor gone")

    @rule(name=names, by=stores_)
    def status(self, name: str, by: int) -> None:
        info, life = self.run(self.store(by).status(self.id(name))), self.lives[name]
        if life is None:
            assert info.status in (Status.MISSING, Status.EXPIRED)
        else:
            assert info.status == (life.ending.status if life.ending else Status.STREAMING)
            assert (info.entries, info.bytes) == (len(life.chunks), len(life.bytes))
            assert (info.incarnation, info.epoch) == (life.incarnation, life.lease.epoch)
        self.did("status")


FLOORS = {
    "acquired": 20,
    "joined": 5,
    "appended": 20,
    "appended elsewhere": 5,
    "appended at once": 10,
    "finalized": 5,
    "fenced": 10,
    "crashed with a lease": 5,
    "nothing to take over": 5,
    "taken over": 5,
    "ended for another": 5,
    "deleted": 10,
    "not deleted": 2,
    "expired": 10,
    "missing": 5,
    "read live": 10,
    "read ended": 5,
    "read to the ending": 5,
    "cursor gone": 5,
    "status": 10,
}


def check(
    make_world: Callable[[], World],
    examples: int,
    phases: Iterable[Phase] = tuple(Phase),
    floors: Mapping[str, int] = FLOORS,
    patience: float = PATIENCE,
) -> None:
    class Checked(Machine):
        pass

    Checked.counts, Checked.patience = Counter(), patience
    Checked.make_world = staticmethod(make_world)  # type: ignore[assignment]
    chosen = settings(
        max_examples=examples,
        phases=phases,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    for number in range(12):  # until each rule has really run
        if number > 0 and chosen.derandomize:  # else each pass were the first one
            seed(number)(Checked)
        run_state_machine_as_test(Checked, settings=chosen)
        few = {what: Checked.counts[what] for what, floor in floors.items() if Checked.counts[what] < floor}
        if not few:
            return
    pytest.fail(f"rarely done: {few} of {Checked.counts}")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(Path(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(Path(tmp_path_factory.mktemp("nats"))) as server:
        yield server


def test_memory_does_what_the_model_says() -> None:
    check(lambda: MemoryWorld(lease_ttl=600), settings().max_examples)


def test_jetstream_does_what_the_model_says_at_first_sight(server: NatsServer) -> None:
    """A few examples, without asking how often each rule ran: `test_jetstream_does_what_the_model_says` does."""
    check(lambda: JetStreamWorld(server.url, lease_ttl=600), 6, floors={})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jetstream_does_what_the_model_says(server: NatsServer) -> None:
    # in small passes: it ends with the pass in which every rule has run often enough
    check(lambda: JetStreamWorld(server.url, lease_ttl=600), max(20, settings().max_examples // 5))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jetstream_r3_does_what_the_model_says(tmp_path: Path) -> None:
    options = JetStreamOptions(shards=4, replicas=3)
    with NatsCluster(tmp_path) as cluster:
        url, examples = f"nats://{cluster.hosts}", max(20, settings().max_examples // 5)
        # patience: three nodes elect a leader for whatever is made
        check(lambda: JetStreamWorld(url, lease_ttl=600, options=options), examples, patience=60.0)


def test_kafka_does_what_the_model_says_at_first_sight(kafka: KafkaServer) -> None:
    check(lambda: KafkaWorld(kafka.url, lease_ttl=600), 6, floors={})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kafka_does_what_the_model_says(kafka: KafkaServer) -> None:
    check(lambda: KafkaWorld(kafka.url, lease_ttl=600), max(20, settings().max_examples // 5))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


def test_redis_does_what_the_model_says_at_first_sight(redis: RedisServer) -> None:
    check(lambda: RedisWorld(redis.url, lease_ttl=600), 6, floors={})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", ["0.3.44", "0.3.15"])
def test_redis_does_what_the_model_says(redis: RedisServer, layout: str) -> None:
    options = RedisOptions(prefix=layout, layout=layout)
    check(lambda: RedisWorld(redis.url, lease_ttl=600, options=options), max(20, settings().max_examples // 5))


def test_the_model_notices_a_wrong_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that forgets its condition now and then, and so lets a fenced producer in."""
    append = MemoryLog.append

    async def forgetful(self: MemoryLog, record: object, expected: int) -> int:
        last = await self.last(record.stream_id)  # type: ignore[attr-defined]
        return await append(self, record, last.position if last is not None else expected)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryLog, "append", forgetful)
    with pytest.raises((AssertionError, BaseExceptionGroup, StreamEnded, pytest.fail.Exception)):
        check(lambda: MemoryWorld(lease_ttl=600), 50, [Phase.generate])
