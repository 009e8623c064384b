"""Workers on a real Kafka: runs end to end, and end truly when a worker, or the broker, dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from pydantic import BaseModel

from tailrace.command_wire import encode_command
from tailrace.connect import StoreOptions, connect
from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable
from tailrace.kafka import KafkaOptions
from tailrace.model import Status, StreamInfo
from tailrace.store import LogStore
from tailrace.testing.kafka_server import KafkaServer
from tailrace.worker import Handler, Pace, RunContext, Worker, handler
from tailrace.worker.builtin import echo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.xdist_group("kafka")]

# a worker in a process of its own: argv is the URL, the prefix, the slots and the drain's time; it ends on SIGTERM
WORKER = """
import asyncio, signal, sys
from collections.abc import AsyncIterator
from pydantic import BaseModel
from tailrace.connect import StoreOptions, connect
from tailrace.kafka import KafkaOptions
from tailrace.worker import Worker, handler

class Nothing(BaseModel):
    pass

@handler("slow", input=Nothing)
async def slow(input: Nothing) -> AsyncIterator[str]:
    yield "begun"
    await asyncio.sleep(3600)

@handler("brief", input=Nothing)
async def brief(input: Nothing) -> AsyncIterator[str]:
    yield "begun"
    await asyncio.sleep(1)
    yield " and ended"

@handler("ticks", input=Nothing)
async def ticks(input: Nothing) -> AsyncIterator[str]:
    while True:
        yield "tick "
        await asyncio.sleep(0.1)

async def main() -> None:
    kafka = KafkaOptions(prefix=sys.argv[2], partitions=2, claims_partitions=2, connect_timeout=20)
    store = await connect(sys.argv[1], StoreOptions(lease_ttl=2.0, kafka=kafka))
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with store:
        worker = Worker(store, [slow, brief, ticks], slots=int(sys.argv[3]), drain_timeout=float(sys.argv[4]))
        async with worker:
            print(store.members.id, flush=True)
            await over.wait()

asyncio.run(main())
"""

_prefixes = (f"worker{number}" for number in itertools.count())


class Nothing(BaseModel):
    pass


@dataclass
class Site:
    """A deployment of its own on a server."""

    server: KafkaServer
    prefix: str

    @property
    def options(self) -> KafkaOptions:
        return KafkaOptions(prefix=self.prefix, partitions=2, claims_partitions=2, connect_timeout=20.0)

    @asynccontextmanager
    async def opened(self, lease_ttl: float = 2.0, linger: float = 5.0) -> AsyncIterator[LogStore]:
        options = StoreOptions(lease_ttl=lease_ttl, linger=linger, kafka=self.options)
        async with await connect(self.server.url, options) as store:
            yield store

    @asynccontextmanager
    async def worker(self, slots: int = 10, drain: float = 30) -> AsyncIterator[asyncio.subprocess.Process]:
        arguments = [sys.executable, "-c", WORKER, self.server.url, self.prefix, str(slots), str(drain)]
        process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        said = b""
        while len(said.strip()) != 16:  # log lines come before the member's id
            said = await process.stdout.readline()
            assert said, "the worker ended before it was ready"
        drained = asyncio.create_task(process.stdout.read())
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await drained


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def site(shared: KafkaServer) -> Site:
    return Site(shared, next(_prefixes))


@asynccontextmanager
async def working(store: LogStore, *handlers: Handler, **settings: Any) -> AsyncIterator[Worker]:
    worker = Worker(store, handlers, **{"pace": Pace(stop_timeout=0.2)} | settings)
    try:
        yield await worker.start()
    finally:
        await worker.aclose()


async def submit(store: LogStore, stream_id: str, name: str, **more: Any) -> Command:
    text = json.dumps(more.pop("input", {})).encode()
    return await store.runs.submit(Command(stream_id, name, text, "bytes", "digest", **more))


def runs_of(store: LogStore) -> Any:
    """The queue as Kafka's own, with its table."""
    return store.runs


async def body(store: LogStore, stream_id: str) -> bytes:
    reader = await store.open(stream_id, wait=60)
    parts = [reader.take_bytes()]
    while reader.ending is None:
        await reader.wait()
        parts.append(reader.take_bytes())
    reader.close()
    return b"".join(parts)


async def first_bytes(store: LogStore, stream_id: str) -> None:
    """Return when the run's handler has begun."""
    reader = await store.open(stream_id, wait=60)
    while not reader.take_bytes():
        assert reader.ending is None, reader.ending
        await reader.wait()
    reader.close()


async def forgotten(store: LogStore, stream_id: str) -> None:
    """Return when no command of the stream is queued any more."""
    async with asyncio.timeout(90):
        while await store.runs.find(stream_id) is not None:
            await asyncio.sleep(0.05)


async def ended(store: LogStore, stream_id: str) -> StreamInfo:
    """The ending, and then the command gone from the queue."""
    await body(store, stream_id)
    await forgotten(store, stream_id)
    return await store.status(stream_id)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


class Gate:
    def __init__(self) -> None:
        self.begun = 0
        self.open = asyncio.Event()

        @handler("gate", input=Nothing)
        async def wait(input: Nothing, run: RunContext) -> AsyncIterator[str]:
            self.begun += 1
            yield f"{run.stream_id} "
            await self.open.wait()
            yield "after"

        self.handler = wait


async def test_a_run_end_to_end(site: Site) -> None:
    text = "Käse\r\n𝄞 \x00" * 1000
    async with site.opened() as store, site.opened() as gateway, working(store, echo):
        await submit(gateway, "a..b", "echo", input={"text": text, "chunk": 7})
        assert (await body(gateway, "a..b")).decode() == text
        info = await ended(gateway, "a..b")
        assert (info.status, info.owner) == (Status.DONE, store.members.id)
        await submit(gateway, "b", "echo", input={"text": 1})
        assert (await ended(gateway, "b")).code == "invalid-input"
        await until(lambda: {"echo"} in [set(member.handlers) for member in gateway.members.alive()])


async def test_a_run_that_is_accepted_while_no_worker_lives_runs_when_one_comes(site: Site) -> None:
    async with site.opened() as gateway:
        accepted = await submit(gateway, "a", "echo", input={"text": "late"})
        info = await gateway.status("a")
        assert info.status is Status.QUEUED
        assert info.run is not None
        assert info.run.command == accepted.id
    async with site.opened() as store, working(store, echo):
        assert await body(store, "a") == b"late"
        assert (await ended(store, "a")).status is Status.DONE


async def test_cancel_reaches_the_owner_and_nobody_else(site: Site) -> None:
    gate = Gate()
    async with (
        site.opened() as store,
        site.opened() as other,
        site.opened() as gateway,
        working(store, gate.handler),
        working(other, gate.handler),
    ):
        for name in ("a", "b"):
            await submit(gateway, name, "gate")
            await first_bytes(gateway, name)
        owner = (await gateway.status("a")).owner
        assert owner in (store.members.id, other.members.id)
        await gateway.runs.cancel(owner, "never heard of")
        await gateway.runs.cancel(next(i for i in (store.members.id, other.members.id) if i != owner), "a")
        await gateway.runs.cancel(owner, "a")
        info = await ended(gateway, "a")
        assert (info.status, info.bytes) == (Status.CANCELLED, 2)
        assert (await gateway.status("b")).status is Status.STREAMING


@pytest.mark.chaos
async def test_the_run_of_a_killed_worker_ends_through_another(site: Site) -> None:
    async with site.opened(linger=0) as gateway:  # it follows nothing: nobody but a worker can end the stream
        async with site.worker() as process:
            await submit(gateway, "a", "slow")
            await first_bytes(gateway, "a")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert (await gateway.status("a")).status is Status.STREAMING
        async with site.worker():
            await forgotten(gateway, "a")
            info = await gateway.status("a")
        assert (info.status, info.code, info.bytes) == (Status.PRODUCER_LOST, "producer-lost", 5)


@pytest.mark.chaos
async def test_a_worker_that_slept_past_its_lease_forgets_the_run_that_it_lost(site: Site) -> None:
    """There is no other worker: a gateway ends the stream, and the only one who can say that the command is done is
    the one who lost it."""
    async with site.opened() as gateway, site.worker() as process:
        await submit(gateway, "a", "ticks")
        await first_bytes(gateway, "a")
        reading = asyncio.create_task(body(gateway, "a"))
        process.send_signal(signal.SIGSTOP)
        kept = await reading
        assert (await gateway.status("a")).status is Status.PRODUCER_LOST
        process.send_signal(signal.SIGCONT)
        await forgotten(gateway, "a")
        assert await body(gateway, "a") == kept
        await submit(gateway, "b", "brief")
        assert (await ended(gateway, "b")).status is Status.DONE


@pytest.mark.chaos
async def test_what_a_killed_worker_took_and_never_claimed_runs_elsewhere(site: Site) -> None:
    async with site.opened() as dead, site.opened() as gateway:
        await submit(gateway, "a", "echo", input={"text": "runs"})
        runs: Any = dead.runs
        await until(lambda: list(runs.table))
        (queued,) = runs.table
        await runs.take(queued, "a-member-that-never-was")
        async with site.opened() as store, working(store, echo):
            await until(lambda: list(runs_of(store).table))
            assert await body(gateway, "a") == b"runs"
            assert (await ended(gateway, "a")).owner == store.members.id


@pytest.mark.chaos
async def test_a_command_that_its_workers_die_of_is_poison(site: Site) -> None:
    async with site.opened() as gateway:
        await submit(gateway, "a", "echo", input={"text": "deadly"})
        runs = runs_of(gateway)
        await until(lambda: list(runs.table))
        (queued,) = runs.table
        for number in range(5):
            await runs.take(queued, f"died-{number}")
        async with site.opened() as store, working(store, echo):
            info = await ended(gateway, "a")
        assert (info.status, info.code) == (Status.ERROR, "poison")
        assert await dead_letters(site, 1) == [queued.id]


async def dead_letters(site: Site, count: int) -> list[str]:
    consumer = AIOKafkaConsumer(bootstrap_servers=site.server.bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(f"{site.prefix}.dead", 0)])
    await consumer.start()
    try:
        return [(await consumer.getone()).key.decode() for _ in range(count)]
    finally:
        await consumer.stop()


@pytest.mark.chaos
async def test_sigterm_drains(site: Site) -> None:
    async with site.opened() as gateway:
        async with site.worker() as process:
            await submit(gateway, "a", "brief")
            await first_bytes(gateway, "a")
            process.terminate()
            assert (await ended(gateway, "a")).status is Status.DONE
            assert await process.wait() == 0
        async with site.worker(drain=0.1) as process:
            await submit(gateway, "b", "slow")
            await first_bytes(gateway, "b")
            process.terminate()
            info = await ended(gateway, "b")
            assert (info.status, info.code) == (Status.ERROR, "worker-stopped")
            assert await process.wait() == 0


@pytest.mark.chaos
async def test_a_killed_broker_delays_and_loses_nothing(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        site, gate = Site(server, "tailrace"), Gate()
        async with site.opened(10) as store, site.opened(10) as gateway, working(store, gate.handler):
            await submit(gateway, "a", "gate")
            await submit(gateway, "cancelled", "gate")
            await first_bytes(gateway, "a")
            await first_bytes(gateway, "cancelled")
            await asyncio.to_thread(server.kill)
            gate.open.set()
            await asyncio.to_thread(server.start)
            assert await body(gateway, "a") == b"a after"
            gate.open.clear()
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(BrokerUnavailable):
                        await submit(gateway, "b", "gate")
                        break
            await first_bytes(gateway, "b")
            while (await gateway.status("b")).status is Status.STREAMING:  # its consumer comes back in its own time
                await gateway.runs.cancel(store.members.id, "b")
                await asyncio.sleep(0.2)
            assert (await ended(gateway, "b")).status is Status.CANCELLED
            for name in ("a", "cancelled"):
                assert (await ended(gateway, name)).status is Status.DONE
            assert gate.begun == 3


@pytest.mark.chaos
async def test_a_worker_stops_while_the_broker_is_away_and_its_command_runs_later(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka") as server:
        site, gate = Site(server, "tailrace"), Gate()
        async with site.opened() as store:
            async with working(store, gate.handler):
                await submit(store, "a", "gate")
                await first_bytes(store, "a")
                before = {task for task in asyncio.all_tasks() if "worker" in task.get_name()}
                await asyncio.to_thread(server.kill)
            assert all(task.done() for task in before)
        await asyncio.to_thread(server.start)
        async with site.opened() as store, working(store, gate.handler):
            info = await ended(store, "a")
            assert info.status in (Status.ERROR, Status.PRODUCER_LOST)


async def test_a_login_is_used_for_runs_and_cancels_too(tmp_path: Path) -> None:
    gate = Gate()
    async with await connect(f"embedded+kafka://{tmp_path / 'kafka'}") as store, working(store, gate.handler):
        await submit(store, "a", "gate")
        await first_bytes(store, "a")
        await store.runs.cancel(store.members.id, "a")
        assert (await ended(store, "a")).status is Status.CANCELLED


async def test_what_cannot_be_run_is_a_dead_letter(site: Site) -> None:
    gate = Gate()
    async with site.opened() as store, site.opened() as gateway, working(store, gate.handler):
        names = runs_of(gateway)._names
        unreadable, _ = encode_command(Command("a", "gate", b"{}", "bytes", "x", id="broken"))
        unreadable["Tailrace-Meta"] = "{"
        producer = AIOKafkaProducer(bootstrap_servers=site.server.bootstrap)
        await producer.start()
        for key, headers in (("broken", unreadable), ("foreign", {})):
            place = names.runs("a")
            await producer.send_and_wait(
                place.topic,
                b"{}",
                key=key.encode(),
                partition=place.partition,
                headers=[(name, value.encode()) for name, value in headers.items()],
            )
        await producer.stop()
        await body(gateway, "a")
        info = await gateway.status("a")
        assert (info.status, info.code) == (Status.ERROR, "poison")
        assert sorted(await dead_letters(site, 2)) == ["broken", "foreign"]
        await until(lambda: not list(runs_of(gateway).table))
        gate.open.set()
        await submit(gateway, "c", "gate")
        assert (await ended(gateway, "c")).status is Status.DONE


async def test_a_command_for_a_handler_that_nobody_has_waits_for_one_who_has(site: Site) -> None:
    gate = Gate()
    gate.open.set()
    async with site.opened() as store, site.opened() as other, working(store, echo):
        await submit(store, "a", "gate")
        await submit(store, "b", "echo", input={"text": "b"})
        assert (await ended(store, "b")).status is Status.DONE
        assert (await store.status("a")).status is Status.QUEUED
        async with working(other, gate.handler):
            assert (await ended(store, "a")).owner == other.members.id


async def test_a_full_worker_takes_no_more_and_another_does(site: Site) -> None:
    gate = Gate()
    async with site.opened() as store, site.opened() as other, working(store, gate.handler, slots=2):
        for number in range(5):
            await submit(other, f"run-{number}", "gate")
        await until(lambda: gate.begun == 2)
        table = runs_of(other).table
        await until(lambda: len(table.taken_by(store.members.id)) == 2)
        assert len(list(table)) == 5
        async with working(other, gate.handler, slots=10):
            await until(lambda: gate.begun == 5)
            gate.open.set()
            for number in range(5):
                assert (await ended(other, f"run-{number}")).status is Status.DONE


async def test_300_runs_on_two_workers_run_once_each(site: Site) -> None:
    gate = Gate()
    async with (
        site.opened(10) as store,
        site.opened(10) as other,
        working(store, gate.handler, slots=150),
        working(other, gate.handler, slots=150),
    ):
        await asyncio.gather(*(submit(store, f"run-{number}", "gate") for number in range(300)))
        await until(lambda: gate.begun == 300)
        gate.open.set()
        for number in range(300):
            assert await body(store, f"run-{number}") == f"run-{number} after".encode()
        await until(lambda: not list(runs_of(store).table))
        assert gate.begun == 300
