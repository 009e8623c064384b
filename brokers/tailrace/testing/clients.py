"""Readers over HTTP that never give up, for tests: they keep every byte, and believe only what the protocol says.

Theory. A plain body that ends cleanly is a stream that is ``done``; one that is cut says nothing, and the status tells
whether there is more. SSE frames say it themselves: ``end``, or ``error`` with a code. So a reader's ``ending`` is what
it was *told*, and a test compares it with what the store has.

Rules. Whatever says "not now" (no connection, 502, 503, 504, a body that is cut) is tried again at the position that
was reached. Everything else that is not expected fails the reader: another incarnation, a 4xx, an unknown frame.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from tailrace.contracts import StreamStore
from tailrace.testing.processes import until

BUSY = frozenset({502, 503, 504})
PASSING = frozenset({"draining", "slow-reader", "broker-unavailable"})  # errors of a gateway, not of the stream
PAUSE = 0.1


def new_client(**options: Any) -> httpx.AsyncClient:
    """A client for many readers that may be silent for long."""
    bounds = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    timeout = httpx.Timeout(None, connect=60.0)  # loopback refuses at once; else it stands for a stalled machine
    return httpx.AsyncClient(trust_env=False, timeout=timeout, limits=bounds, **options)


class Refused(Exception):
    """The gateway answers something that no reader expects."""


class HttpReader:
    """Reads the run ``run_id`` at the gateway ``base``: a plain body resumed by offset and incarnation, or with
    ``sse`` frames resumed by ``Last-Event-ID``. `run` reads to the ending."""

    def __init__(self, client: httpx.AsyncClient, base: str, run_id: str, *, sse: bool = False) -> None:
        self.run_id = run_id
        self.data = bytearray()
        self.ending: str | None = None  # "done", or the code of a bad ending
        self.reconnects = -1
        self.incarnation: str | None = None
        self._client, self._sse = client, sse
        self._url = f"{base}/v1/runs/{run_id}"
        self._last_id = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    async def run(self) -> Self:
        """Read to the ending, through whatever breaks. Raises `Refused`."""
        while self.ending is None:
            try:
                await self._connect()
            except httpx.TransportError:
                if not self._sse and self.incarnation is not None:
                    await self._ask()
            if self.ending is None:
                await asyncio.sleep(PAUSE)
        return self

    async def _connect(self) -> None:
        query = {"frame": "sse"} if self._sse else {"offset": str(len(self.data))}
        if not self._sse and self.incarnation is not None:
            query["incarnation"] = self.incarnation
        headers = {"last-event-id": self._last_id} if self._last_id else {}
        async with self._client.stream("GET", self._url, params=query, headers=headers) as response:
            if response.status_code in BUSY:
                await response.aread()
                return
            await self._check(response)
            self.reconnects += 1
            if self._sse:
                await self._frames(response)
            else:
                async for part in response.aiter_raw():
                    self.data += part
                self.ending = "done"

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise Refused(f"{response.request.url}: {response.status_code} {(await response.aread()).decode()}")
        found = response.headers["tailrace-incarnation"]
        if self.incarnation not in (None, found):
            raise Refused(f"{self.run_id} was {self.incarnation} and is {found}")
        self.incarnation = found

    async def _ask(self) -> None:
        """The body was cut: is there an ending behind what was received?"""
        try:
            response = await self._client.get(f"{self._url}/status")
        except httpx.TransportError:
            return
        if response.status_code in BUSY:
            return
        if response.status_code != 200:
            raise Refused(f"{response.request.url}: {response.status_code} {response.text}")
        told = response.json()
        if told["bytes"] < len(self.data):
            raise Refused(f"{self.run_id} has {told['bytes']} bytes, and {len(self.data)} were received")
        if told["status"] not in ("queued", "streaming", "done") and told["bytes"] == len(self.data):
            self.ending = told["code"]

    async def _frames(self, response: httpx.Response) -> None:
        """Take frames until the ending; a body that ends without one was cut."""
        async for event, identity, data in sse_events(response.aiter_raw()):
            if event == "end":
                self.ending = "done"
            elif event == "error":
                code = json.loads(data)["code"]
                if code not in PASSING:
                    self.ending = code
            elif event in ("", "base64"):
                self.data += base64.b64decode(data, validate=True) if event else data
                self._last_id = identity
            else:
                raise Refused(f"{self.run_id}: an event {event}")


class Reading:
    """Readers at work, each as a task. A reader that fails is raised where this is awaited next; leaving ends those
    that still read."""

    def __init__(self, *readers: HttpReader) -> None:
        self.readers: list[HttpReader] = []
        self._tasks: list[asyncio.Task[HttpReader]] = []
        self.add(*readers)

    def add(self, *readers: HttpReader) -> None:
        """Let more of them read."""
        self.readers += readers
        self._tasks += [asyncio.create_task(reader.run()) for reader in readers]

    @property
    def any_over(self) -> bool:
        """Whether one has come to an ending."""
        return any(task.done() for task in self._tasks)

    async def until(self, condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
        """Return once the condition holds. Raises what a reader met, and AssertionError after ``timeout`` seconds."""

        def holds() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return condition()

        await until(holds, what, timeout)

    async def begun(self) -> None:
        """Return once each has a byte or more."""
        await self.until(lambda: all(reader.data for reader in self.readers), "every reader has a first byte")

    async def over(self) -> None:
        """Return when all have come to an ending."""
        await asyncio.gather(*self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def sse_events(parts: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, str, bytes]]:
    """(event, id, data) of each event in a body of server-sent events; a last one that is not complete is dropped."""
    buffer = b""
    async for part in parts:
        *events, buffer = (buffer + part).split(b"\n\n")
        for event in events:
            fields: dict[bytes, list[bytes]] = {}
            for line in event.split(b"\n"):
                name, _, value = line.partition(b": ")
                fields.setdefault(name, []).append(value)
            if b"data" in fields:
                name, identity = fields.get(b"event", [b""])[-1], fields.get(b"id", [b""])[-1]
                yield name.decode(), identity.decode(), b"\n".join(fields[b"data"])


async def start_run(
    client: httpx.AsyncClient, base: str, run_id: str, input: object, handler: str = "echo", **more: object
) -> httpx.Response:
    """Have a run accepted, without reading it; ``more`` is the request's (``ttl=5``). Says "later" for as long as the
    gateway does."""
    body = {"id": run_id, "handler": handler, "input": input, **more}
    while True:
        response = await client.post(f"{base}/v1/runs", json=body, headers={"prefer": "respond-async"})
        if response.status_code not in BUSY:
            break
        await asyncio.sleep(PAUSE)
    if response.status_code != 202:
        raise Refused(f"{run_id}: {response.status_code} {response.text}")
    return response


async def status_of(client: httpx.AsyncClient, base: str, run_id: str) -> dict[str, Any]:
    """What ``/status`` tells. Asks again while the gateway is busy. Raises `Refused` for any other answer than 200."""
    while True:
        response = await client.get(f"{base}/v1/runs/{run_id}/status")
        if response.status_code not in BUSY:
            break
        await asyncio.sleep(PAUSE)
    if response.status_code != 200:
        raise Refused(f"{run_id}: {response.status_code} {response.text}")
    told: dict[str, Any] = response.json()
    return told


def sample_text(seed: int, length: int) -> str:
    """Text that is easy to break: characters of one to four bytes, line ends and what frames are made of."""
    alphabet = "abcdefghijklmnopqrstuvwxyz  \n\n\r:äßéЖ你好😀👩‍🚀data: "
    return "".join(random.Random(seed).choices(alphabet, k=length))


async def begin_quiet(store: StreamStore, ids: Sequence[str]) -> None:
    """Streams that begin, and then say nothing."""
    for stream_id in ids:
        await store.acquire(stream_id)
        await store.append(stream_id, b"first ")


async def end_quiet(store: StreamStore, ids: Sequence[str], reading: Reading) -> None:
    """They go on and end; every reader has waited for that, and got all of it on one connection."""
    assert not reading.any_over
    for stream_id in ids:
        await store.append(stream_id, b"second")
        await store.finalize(stream_id, "done")
    await reading.over()
    assert {bytes(reader.data) for reader in reading.readers} == {b"first second"}
    assert {reader.ending for reader in reading.readers} == {"done"}
    assert {reader.reconnects for reader in reading.readers} == {0}
