"""Workers on a real JetStream, with a login: the suite, and what they do with its consumers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from worker_deployment import Deployment, Gate, body, ended, submit, until, working
from worker_suite import WorkerSuite

from tailrace.connect import StoreOptions, connect
from tailrace.jetstream import JetStreamOptions
from tailrace.model import Status
from tailrace.records import Kind, Record
from tailrace.store import LogStore
from tailrace.testing.servers import NatsServer
from tailrace.worker.builtin import echo

LOGIN = "authorization { user: me, password: s3cret }"


def as_user(server: NatsServer) -> str:
    return server.url.replace("nats://", "nats://me:s3cret@")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats", config=LOGIN) as running:
        yield running


@pytest.fixture
def deployment(server: NatsServer) -> Deployment:
    return Deployment(server, f"{as_user(server)}?shards=2")


@pytest.fixture
def own(deployment: Deployment) -> Deployment:
    return deployment


class TestJetStreamWorkers(WorkerSuite):
    many = 1500

    async def assert_queued(self, deployment: Deployment, store: LogStore, *, taken: int, waiting: int) -> None:
        runs: Any = store.runs
        name = runs.consumer_config("gate").durable_name
        client = await nats.connect(as_user(deployment.server))
        await asyncio.sleep(0.3)
        info = await client.jetstream().consumer_info(runs.stream, name)
        assert (info.num_pending, info.num_ack_pending) == (waiting, taken)
        await client.close()


@pytest.mark.chaos
async def test_a_claim_that_the_broker_answers_late_is_executed(
    deployment: Deployment, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker stops in the middle of a claim, for longer than a request waits: whoever gave up would have to end
    the run before it began."""
    options = StoreOptions(
        lease_ttl=10.0, request_timeout=0.5, jetstream=JetStreamOptions(shards=2, request_timeout=0.5)
    )
    async with await connect(as_user(server), options) as store, deployment.opened(10) as gateway:
        inner, paused = store.log.append, []

        async def pausing(record: Record, expected: int) -> int:
            if record.kind is Kind.CLAIM and not paused:
                paused.append(record)
                server.pause()
                asyncio.get_running_loop().call_later(2.0, server.resume)
            return await inner(record, expected)

        monkeypatch.setattr(store.log, "append", pausing)
        async with working(store, echo):
            await submit(gateway, "a", "echo", input={"text": "all of it"})
            assert await body(gateway, "a") == b"all of it"
            assert (await ended(gateway, "a")).status is Status.DONE
    assert paused


async def test_a_deleted_consumer_comes_back(deployment: Deployment, server: NatsServer) -> None:
    gate = Gate()
    gate.open.set()
    async with deployment.opened() as store, working(store, gate.handler):
        runs: Any = store.runs
        client = await nats.connect(as_user(server))
        await client.jetstream().delete_consumer(runs.stream, runs.consumer_config("gate").durable_name)
        await client.close()
        await submit(store, "a", "gate")
        assert (await ended(store, "a")).status is Status.DONE


async def test_what_cannot_be_run_is_a_dead_letter(deployment: Deployment, server: NatsServer) -> None:
    gate = Gate()
    async with deployment.opened() as store, deployment.opened() as gateway, working(store, gate.handler):
        client = await nats.connect(as_user(server))
        runs: Any = gateway.runs
        names = runs._names
        subject = names.command("gate", "a")
        await client.jetstream().publish(subject, b"{}", headers={"Tailrace-Command": "1", "Tailrace-Id": "a"})
        await client.jetstream().publish(names.command("gate", "b"), b"{}")
        await body(gateway, "a")
        info = await gateway.status("a")
        assert (info.status, info.code) == (Status.ERROR, "poison")
        # a command for one handler under the subject of another
        await submit(gateway, "c", "gate")
        await until(lambda: gate.begun == 1)
        headers = {"Tailrace-Command": "1", "Tailrace-Id": "d"}
        meta = {"handler": "no-such", "format": "bytes", "digest": "x", "ttl": None, "policy": "fail", "id": "1"}
        headers["Tailrace-Meta"] = json.dumps(meta)
        await client.jetstream().publish(names.command("gate", "d"), b"{}", headers=headers)
        await body(gateway, "d")
        assert (await gateway.status("d")).code == "poison"
        dead = []
        subscription = await client.jetstream().subscribe(f"{names.prefix}.dead.>", ordered_consumer=True)
        for _ in range(3):
            message = await subscription.next_msg(timeout=30)
            dead.append((message.subject.split(".")[-1], json.loads((message.headers or {})["Tailrace-Reason"])))
        assert [key for key, _ in dead] == [names.place(stream_id).key for stream_id in "abd"]
        assert "no-such" in dead[2][1]
        state = await client.jetstream().stream_info(names.commands)
        assert state.state.messages == 1  # of the run that waits
        await client.close()
        gate.open.set()
        await ended(gateway, "c")
