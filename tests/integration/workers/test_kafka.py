"""Workers on a real Kafka: the suite, and what they do with its topics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from worker_deployment import Deployment, Gate, body, ended, first_bytes, store_options, submit, until, working
from worker_suite import WorkerSuite

from tailrace._ports import is_free
from tailrace.command_wire import encode_command
from tailrace.connect import connect
from tailrace.contracts import Command
from tailrace.embedded import read_record
from tailrace.errors import BrokerUnavailable
from tailrace.model import Status
from tailrace.store import LogStore
from tailrace.testing.kafka_server import KafkaServer
from tailrace.worker.builtin import echo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.xdist_group("kafka")]

LEASE = 2.0

_prefixes = (f"worker{number}" for number in itertools.count())


def on(server: KafkaServer, prefix: str) -> Deployment:
    return Deployment(server, f"{server.url}?prefix={prefix}&partitions=2&claims_partitions=2", LEASE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return next(_prefixes)


@pytest.fixture
def deployment(shared: KafkaServer, prefix: str) -> Deployment:
    return on(shared, prefix)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Deployment]:
    with KafkaServer(tmp_path / "kafka") as server:
        yield on(server, "tailrace")


def runs_of(store: LogStore) -> Any:
    """The queue as Kafka's own, with its table."""
    return store.runs


async def dead_letters(server: KafkaServer, prefix: str, count: int) -> list[str]:
    consumer = AIOKafkaConsumer(bootstrap_servers=server.bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(f"{prefix}.dead", 0)])
    await consumer.start()
    try:
        return [(await consumer.getone()).key.decode() for _ in range(count)]
    finally:
        await consumer.stop()


class TestKafkaWorkers(WorkerSuite):
    async def assert_queued(self, deployment: Deployment, store: LogStore, *, taken: int, waiting: int) -> None:
        table = runs_of(store).table
        await until(lambda: len(table.taken_by(store.members.id)) == taken)
        await until(lambda: len(list(table)) == taken + waiting)


@pytest.mark.chaos
async def test_what_a_killed_worker_took_and_never_claimed_runs_elsewhere(deployment: Deployment) -> None:
    async with deployment.opened() as dead, deployment.opened() as gateway:
        await submit(gateway, "a", "echo", input={"text": "runs"})
        runs: Any = dead.runs
        await until(lambda: list(runs.table))
        (queued,) = runs.table
        await runs.take(queued, "a-member-that-never-was")
        async with deployment.opened() as store, working(store, echo):
            await until(lambda: list(runs_of(store).table))
            assert await body(gateway, "a") == b"runs"
            assert (await ended(gateway, "a")).owner == store.members.id


@pytest.mark.chaos
async def test_a_command_that_its_workers_die_of_is_poison(
    deployment: Deployment, shared: KafkaServer, prefix: str
) -> None:
    async with deployment.opened() as gateway:
        await submit(gateway, "a", "echo", input={"text": "deadly"})
        runs = runs_of(gateway)
        await until(lambda: list(runs.table))
        (queued,) = runs.table
        for number in range(5):
            await runs.take(queued, f"died-{number}")
        async with deployment.opened() as store, working(store, echo):
            info = await ended(gateway, "a")
        assert (info.status, info.code) == (Status.ERROR, "poison")
        assert await dead_letters(shared, prefix, 1) == [queued.id]


async def test_a_login_is_used_for_runs_and_cancels_too(tmp_path: Path) -> None:
    gate = Gate()
    async with await connect(f"embedded+kafka://{tmp_path / 'kafka'}") as store, working(store, gate.handler):
        await submit(store, "a", "gate")
        await first_bytes(store, "a")
        await store.runs.cancel(store.members.id, "a")
        assert (await ended(store, "a")).status is Status.CANCELLED


@asynccontextmanager
async def moved(home: Path) -> AsyncIterator[None]:
    """The embedded node of ``home`` killed, and its port taken by somebody else before its supervisor looks."""
    before = read_record(home)
    assert before.supervisor_pid is not None
    assert before.server_pid is not None
    os.kill(before.supervisor_pid, signal.SIGSTOP)
    try:
        os.kill(before.server_pid, signal.SIGKILL)
        await until(lambda: is_free(before.port))
        stranger = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", before.port)
    finally:
        os.kill(before.supervisor_pid, signal.SIGCONT)
    async with stranger:
        await until(lambda: read_record(home).port != before.port)
        yield


@pytest.mark.chaos
async def test_cancels_are_heard_from_an_embedded_node_that_came_back_on_another_port(tmp_path: Path) -> None:
    gate, home = Gate(), tmp_path / "kafka"
    async with await connect(f"embedded+kafka://{home}", store_options(60)) as store, working(store, gate.handler):
        await submit(store, "a", "gate")
        await first_bytes(store, "a")
        async with moved(home):
            heard = False
            while not heard:  # one cancel that the broker has is enough
                with contextlib.suppress(BrokerUnavailable):
                    await store.runs.cancel(store.members.id, "a")
                    heard = True
            assert (await ended(store, "a")).status is Status.CANCELLED
            await submit(store, "b", "gate")
            await first_bytes(store, "b")
            await store.runs.cancel(store.members.id, "b")
            assert (await ended(store, "b")).status is Status.CANCELLED


async def test_what_cannot_be_run_is_a_dead_letter(deployment: Deployment, shared: KafkaServer, prefix: str) -> None:
    gate = Gate()
    async with deployment.opened() as store, deployment.opened() as gateway, working(store, gate.handler):
        names = runs_of(gateway)._names
        unreadable, _ = encode_command(Command("a", "gate", b"{}", "bytes", "x", id="broken"))
        unreadable["Tailrace-Meta"] = "{"
        producer = AIOKafkaProducer(bootstrap_servers=shared.bootstrap)
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
        assert sorted(await dead_letters(shared, prefix, 2)) == ["broken", "foreign"]
        await until(lambda: not list(runs_of(gateway).table))
        gate.open.set()
        await submit(gateway, "c", "gate")
        assert (await ended(gateway, "c")).status is Status.DONE
