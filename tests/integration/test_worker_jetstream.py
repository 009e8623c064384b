"""Workers on a real JetStream: runs end to end, and end truly when a worker, or the broker, dies."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from pydantic import BaseModel

from tailrace.connect import StoreOptions, connect
from tailrace.contracts import Command
from tailrace.embedded import find_binary
from tailrace.jetstream import JetStreamOptions
from tailrace.model import Status, StreamInfo
from tailrace.records import Kind, Record
from tailrace.store import LogStore
from tailrace.worker import Handler, Pace, RunContext, Worker, handler
from tailrace.worker.builtin import echo

# a worker in a process of its own: argv is the URL, the slots and the drain's time; it ends on SIGTERM
WORKER = """
import asyncio, signal, sys
from collections.abc import AsyncIterator
from pydantic import BaseModel
from tailrace.connect import StoreOptions, connect
from tailrace.jetstream import JetStreamOptions
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

async def main() -> None:
    options = StoreOptions(lease_ttl=1.0, jetstream=JetStreamOptions(shards=2))
    store = await connect(sys.argv[1], options)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with store:
        worker = Worker(store, [slow, brief], slots=int(sys.argv[2]), drain_timeout=float(sys.argv[3]))
        async with worker:
            print(store.members.id, flush=True)
            await over.wait()

asyncio.run(main())
"""


class Nothing(BaseModel):
    pass


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass
class Server:
    """A real nats-server with a user and a password."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://me:s3cret@127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory)]
        login = ["--user", "me", "--pass", "s3cret"]
        log = self.directory / "log"
        self.process = subprocess.Popen([str(find_binary()), *arguments, *login, "-l", str(log)])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path, free_port())
    started.start()
    yield started
    started.kill()


@asynccontextmanager
async def opened(server: Server, lease_ttl: float = 1.0, linger: float = 5.0) -> AsyncIterator[LogStore]:
    options = StoreOptions(lease_ttl=lease_ttl, linger=linger, jetstream=JetStreamOptions(shards=2, connect_timeout=20))
    async with await connect(server.url, options) as store:
        yield store


@asynccontextmanager
async def working(store: LogStore, *handlers: Handler, **settings: Any) -> AsyncIterator[Worker]:
    worker = Worker(store, handlers, **{"pace": Pace(stop_timeout=0.2)} | settings)
    try:
        yield await worker.start()
    finally:
        await worker.aclose()


@asynccontextmanager
async def worker_process(
    server: Server, slots: int = 10, drain: float = 30
) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = [sys.executable, "-c", WORKER, server.url, str(slots), str(drain)]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    while len((await process.stdout.readline()).strip()) != 16:  # log lines come before the member's id
        assert process.returncode is None
    drained = asyncio.create_task(process.stdout.read())
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await drained


async def submit(store: LogStore, stream_id: str, name: str, **more: Any) -> Command:
    text = json.dumps(more.pop("input", {})).encode()
    return await store.runs.submit(Command(stream_id, name, text, "bytes", "digest", **more))


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


async def ended(store: LogStore, stream_id: str) -> StreamInfo:
    """The ending, and then the command gone from the queue."""
    await body(store, stream_id)
    async with asyncio.timeout(90):
        while await store.runs.find(stream_id) is not None:
            await asyncio.sleep(0.05)
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


async def test_a_run_end_to_end(server: Server) -> None:
    text = "Käse\r\n𝄞 \x00" * 1000
    async with opened(server) as store, opened(server) as gateway, working(store, echo):
        await submit(gateway, "a..b", "echo", input={"text": text, "chunk": 7})
        assert (await body(gateway, "a..b")).decode() == text
        info = await ended(gateway, "a..b")
        assert (info.status, info.owner, info.content_type) == (
            Status.DONE,
            store.members.id,
            "text/plain; charset=utf-8",
        )
        await submit(gateway, "b", "echo", input={"text": 1})
        assert (await ended(gateway, "b")).code == "invalid-input"
        await until(lambda: {"echo"} in [set(member.handlers) for member in gateway.members.alive()])


async def test_cancel_reaches_the_owner(server: Server) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as gateway, working(store, gate.handler):
        await submit(gateway, "a", "gate")
        await first_bytes(gateway, "a")
        owner = (await gateway.status("a")).owner
        assert owner == store.members.id
        await gateway.runs.cancel(owner, "never heard of")
        await gateway.runs.cancel(owner, "a")
        info = await ended(gateway, "a")
        assert (info.status, info.bytes) == (Status.CANCELLED, 2)


@pytest.mark.chaos
async def test_the_run_of_a_killed_worker_ends_through_another(server: Server) -> None:
    async with opened(server, linger=0) as gateway:  # it follows nothing: nobody but a worker can end the stream
        async with worker_process(server) as process:
            await submit(gateway, "a", "slow")
            await first_bytes(gateway, "a")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert (await gateway.status("a")).status is Status.STREAMING
        async with worker_process(server):
            async with asyncio.timeout(60):
                while await gateway.runs.find("a") is not None:
                    await asyncio.sleep(0.05)
            info = await gateway.status("a")
        assert (info.status, info.code, info.bytes) == (Status.PRODUCER_LOST, "producer-lost", 5)


@pytest.mark.chaos
async def test_sigterm_drains(server: Server) -> None:
    async with opened(server) as gateway:
        async with worker_process(server) as process:
            await submit(gateway, "a", "brief")
            await first_bytes(gateway, "a")
            process.terminate()
            assert (await ended(gateway, "a")).status is Status.DONE
            assert await process.wait() == 0
        async with worker_process(server, drain=0.1) as process:
            await submit(gateway, "b", "slow")
            await first_bytes(gateway, "b")
            process.terminate()
            info = await ended(gateway, "b")
            assert (info.status, info.code) == (Status.ERROR, "worker-stopped")
            assert await process.wait() == 0


@pytest.mark.chaos
async def test_a_claim_that_the_broker_answers_late_is_executed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker stops in the middle of a claim, for longer than a request waits: whoever gave up would have to end
    the run before it began."""
    options = StoreOptions(
        lease_ttl=10.0, request_timeout=0.5, jetstream=JetStreamOptions(shards=2, request_timeout=0.5)
    )
    async with await connect(server.url, options) as store, opened(server, 10) as gateway:
        inner, paused = store.log.append, []

        async def pausing(record: Record, expected: int) -> int:
            if record.kind is Kind.CLAIM and not paused:
                paused.append(record)
                server.signal(signal.SIGSTOP)
                asyncio.get_running_loop().call_later(2.0, server.signal, signal.SIGCONT)
            return await inner(record, expected)

        monkeypatch.setattr(store.log, "append", pausing)
        async with working(store, echo):
            await submit(gateway, "a", "echo", input={"text": "all of it"})
            assert await body(gateway, "a") == b"all of it"
            assert (await ended(gateway, "a")).status is Status.DONE
    assert paused


@pytest.mark.chaos
async def test_a_killed_broker_delays_and_loses_nothing(server: Server) -> None:
    gate = Gate()
    async with opened(server, 10) as store, opened(server, 10) as gateway, working(store, gate.handler):
        await submit(gateway, "a", "gate")
        await first_bytes(gateway, "a")
        await asyncio.to_thread(server.kill)
        gate.open.set()
        server.start()
        assert await body(gateway, "a") == b"a after"
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(Exception):
                    await submit(gateway, "b", "gate")
                    break
        assert await body(gateway, "b") == b"b after"
        assert (await ended(gateway, "b")).status is Status.DONE
        assert gate.begun == 2


async def test_a_deleted_consumer_comes_back(server: Server) -> None:
    gate = Gate()
    gate.open.set()
    async with opened(server) as store, working(store, gate.handler):
        runs: Any = store.runs
        client = await nats.connect(server.url)
        await client.jetstream().delete_consumer(runs.stream, runs.consumer_config("gate").durable_name)
        await client.close()
        await submit(store, "a", "gate")
        assert (await ended(store, "a")).status is Status.DONE


async def test_what_cannot_be_run_is_a_dead_letter(server: Server) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as gateway, working(store, gate.handler):
        client = await nats.connect(server.url)
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


async def test_a_full_worker_takes_no_more(server: Server) -> None:
    gate = Gate()
    async with opened(server) as store, opened(server) as other, working(store, gate.handler, slots=2):
        for number in range(5):
            await submit(other, f"run-{number}", "gate")
        await until(lambda: gate.begun == 2)
        client = await nats.connect(server.url)
        runs: Any = store.runs
        name = runs.consumer_config("gate").durable_name
        await asyncio.sleep(0.3)
        info = await client.jetstream().consumer_info(runs.stream, name)
        assert (info.num_pending, info.num_ack_pending) == (3, 2)
        await client.close()
        async with working(other, gate.handler, slots=10):
            await until(lambda: gate.begun == 5)
            gate.open.set()
            for number in range(5):
                assert (await ended(other, f"run-{number}")).status is Status.DONE


async def test_1500_runs_at_once(server: Server) -> None:
    gate = Gate()
    async with (
        opened(server, 10) as store,
        opened(server, 10) as other,
        working(store, gate.handler, slots=750),
        working(other, gate.handler, slots=750),
    ):
        for number in range(1500):
            await submit(store, f"run-{number}", "gate")
        await until(lambda: gate.begun == 1500)
        gate.open.set()
        for number in range(1500):
            assert await body(store, f"run-{number}") == f"run-{number} after".encode()
        async with asyncio.timeout(60):
            while await store.runs.find("run-1499") is not None:
                await asyncio.sleep(0.1)
