"""A deployment on a real server: its stores and workers, in this process and in others, and what tests do with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tailrace.connect import StoreOptions, connect
from tailrace.contracts import Command, Reader
from tailrace.jetstream import JetStreamOptions
from tailrace.kafka import KafkaOptions
from tailrace.model import StreamInfo
from tailrace.store import LogStore
from tailrace.testing.server_process import ServerProcess
from tailrace.worker import Handler, Pace, RunContext, Worker, handler

PROCESS = Path(__file__).with_name("worker_process.py")


class Nothing(BaseModel):
    pass


def store_options(lease_ttl: float, linger: float = 5.0) -> StoreOptions:
    """The first connect to a server that has much to start has time."""
    return StoreOptions(
        lease_ttl=lease_ttl,
        linger=linger,
        jetstream=JetStreamOptions(connect_timeout=20.0),
        kafka=KafkaOptions(connect_timeout=20.0),
    )


@dataclass
class Deployment:
    """``url`` says all that differs from a broker's defaults; ``lease_ttl`` is in seconds."""

    server: ServerProcess
    url: str
    lease_ttl: float = 1.0

    @asynccontextmanager
    async def opened(self, lease_ttl: float | None = None, linger: float = 5.0) -> AsyncIterator[LogStore]:
        async with await connect(self.url, store_options(lease_ttl or self.lease_ttl, linger)) as store:
            yield store

    @asynccontextmanager
    async def worker(self, slots: int = 10, drain: float = 30) -> AsyncIterator[asyncio.subprocess.Process]:
        """A worker in a process of its own, ready; killed at the end."""
        arguments = [sys.executable, str(PROCESS), self.url, str(self.lease_ttl), str(slots), str(drain)]
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


async def body(store: LogStore, stream_id: str) -> bytes:
    return await rest(await store.open(stream_id, wait=60))


async def rest(reader: Reader) -> bytes:
    """What is left to read, to the end."""
    async with asyncio.timeout(90):
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
    """A handler ``gate`` that says its stream's id and waits until the gate is open."""

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
