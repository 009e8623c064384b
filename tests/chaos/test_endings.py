"""A hundred streams, each with a reader at one gateway, which is killed: every one comes to its own, true ending."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailrace.testing.clients import HttpReader, Reading, sample_text, start_run, status_of
from tailrace.testing.processes import Service, Services, until

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]

CHUNK, RATE, CHUNKS, TTL = 24, 5, 200, 8  # characters, a second, in all; seconds
LOST = 10
KINDS = {
    "producer-lost": LOST,
    "done": 50,
    "handler-error": 10,
    "cancelled": 10,
    "deleted": 10,
    "expired": 10,
}  # by code
FRAMED = ("deleted", "expired")  # nothing is left to ask for: only frames tell
HANDLERS = {"handler-error": "breaks", "expired": "stalls"}  # the others echo

_MODULE = """
import asyncio
from collections.abc import AsyncIterator

from tailrace.worker.builtin import EchoInput, echo
from tailrace.worker.handlers import handler

@handler("breaks")
async def breaks(input: EchoInput) -> AsyncIterator[str]:
    async for part in echo(input):
        yield part
    raise ConnectionError("the model hung up")

@handler("stalls")
async def stalls(input: EchoInput) -> AsyncIterator[str]:
    async for part in echo(input):
        yield part
    await asyncio.Event().wait()
"""


class Streams:
    """The runs by the ending that they are to have, and a reader of each at ``first``."""

    def __init__(self, client: httpx.AsyncClient, first: Service, second: Service, reading: Reading) -> None:
        self._client, self._first, self._second, self._reading = client, first, second, reading
        self.texts: dict[str, bytes] = {}
        self.readers: dict[str, HttpReader] = {}

    def of(self, kind: str) -> list[str]:
        return [f"{kind}-{number}" for number in range(KINDS[kind])]

    async def start(self, *kinds: str) -> None:
        """Have them accepted, and return when all have begun."""
        await asyncio.gather(*(self._start(kind, number) for kind in kinds for number in range(KINDS[kind])))
        await self._reading.begun()

    async def _start(self, kind: str, number: int) -> None:
        run_id, text = f"{kind}-{number}", sample_text(number, CHUNK * CHUNKS)
        self.texts[run_id] = text.encode()
        request, ttl = {"text": text, "rate": RATE, "chunk": CHUNK}, {"ttl": TTL} if kind == "expired" else {}
        await start_run(self._client, self._second.url, run_id, request, HANDLERS.get(kind, "echo"), **ttl)
        sse = kind in FRAMED or number % 2 == 1
        self.readers[run_id] = HttpReader(self._client, self._first.url, run_id, sse=sse)
        self._reading.add(self.readers[run_id])

    async def go_on(self, *kinds: str) -> None:
        """Return when each reader has more than it has now."""
        at = {run_id: len(self.readers[run_id].data) for kind in kinds for run_id in self.of(kind)}
        await self._reading.until(
            lambda: all(len(self.readers[run_id].data) > size for run_id, size in at.items()),
            "every reader has gone on",
        )

    async def cancel(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            answer = await self._client.post(f"{self._second.url}/v1/runs/{run_id}/cancel")
            assert answer.status_code in (200, 202), answer.text

    async def delete(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            answer = await self._client.delete(f"{self._second.url}/v1/runs/{run_id}")
            assert answer.is_success, answer.text


async def test_a_hundred_streams_survive_a_killed_gateway_with_every_ending_true(
    broker: Any, services: Services, client: httpx.AsyncClient, stack: AsyncExitStack, tmp_path: Path
) -> None:
    folder = tmp_path / "services"  # where the services run
    folder.mkdir()
    (folder / "answers.py").write_text(_MODULE)
    gateway, other = services.gateway(), services.gateway()
    small, large = services.worker("--slots", str(LOST)), services.worker("--handlers", "answers")
    await services.start(gateway, other, small)
    reading = await stack.enter_async_context(Reading())
    streams = Streams(client, gateway, other, reading)
    await streams.start("producer-lost")  # they fill the small worker
    await services.start(large)
    await streams.start("done", "handler-error", "cancelled", "deleted", "expired")
    assert len(streams.texts) == 100
    told = await asyncio.gather(*(status_of(client, other.url, run_id) for run_id in streams.texts))
    assert Counter(one["status"] for one in told) == {"streaming": 100}
    services.supervise(gateway)

    gateway.kill()
    small.kill()
    early, late = streams.of("cancelled")[:5], streams.of("cancelled")[5:]
    await streams.cancel(early)  # while nobody reads
    await until(lambda: gateway.starts == 2, "the gateway was replaced")
    await streams.go_on("done", "handler-error", "deleted", "expired")
    await streams.cancel(late)
    await streams.delete(streams.of("deleted"))
    await reading.over()

    endings = Counter(reader.ending for reader in streams.readers.values())
    assert endings == KINDS
    for run_id, reader in streams.readers.items():
        kind, text = run_id.rpartition("-")[0], streams.texts[run_id]
        assert reader.ending == kind, run_id
        assert reader.reconnects >= 1 or kind in ("cancelled", "producer-lost"), "its gateway was killed"
        if kind in ("done", "handler-error", "expired"):
            assert reader.data == text, run_id
        else:
            assert 0 < len(reader.data) < len(text), run_id
            assert text.startswith(reader.data), run_id
        await _assert_stored(client, other.url, reader)


async def _assert_stored(client: httpx.AsyncClient, base: str, reader: HttpReader) -> None:
    """Whoever comes later, elsewhere, is told the same."""
    if reader.ending in FRAMED:
        answer = await client.get(f"{base}/v1/runs/{reader.run_id}/status")
        assert answer.status_code == 404, answer.text
        return
    again = await HttpReader(client, base, reader.run_id).run()
    assert (again.ending, again.data) == (reader.ending, reader.data), reader.run_id
