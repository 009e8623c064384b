"""Gateway, worker and broker killed one after another under many live streams: no byte lost, every ending true."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tailrace.connect import connect
from tailrace.errors import StreamEnded
from tailrace.testing.clients import HttpReader, sample_text, start_run, status_of
from tailrace.testing.processes import Service, Services, until

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]

STREAMS, LOST, LEAST_LIVE = 60, 5, 0.9
CHUNK, RATE, CHUNKS = 24, 5, 250  # characters, a second, in all


class Answers:
    """The runs of this test, and three readers of each: two at one gateway, of which one reads SSE, one at another."""

    def __init__(self, client: httpx.AsyncClient, first: Service, second: Service) -> None:
        self.client, self._first, self._second = client, first, second
        self.texts = {f"answer-{number}": sample_text(number, CHUNK * CHUNKS) for number in range(STREAMS)}
        self.readers: list[HttpReader] = []
        self.reading: list[asyncio.Task[HttpReader]] = []

    async def start(self, run_ids: Sequence[str]) -> None:
        """Have runs accepted, and return when each was claimed and is read by its three readers."""
        echo = {"rate": RATE, "chunk": CHUNK}
        for run_id in run_ids:
            await start_run(self.client, self._first.url, run_id, {"text": self.texts[run_id], **echo})
        readers = [reader for run_id in run_ids for reader in self._readers_of(run_id)]
        self.readers += readers
        self.reading += [asyncio.create_task(reader.run()) for reader in readers]
        await self.until(lambda: all(reader.data for reader in readers), "every reader has a first byte")

    def _readers_of(self, run_id: str) -> list[HttpReader]:
        first, second = self._first.url, self._second.url
        return [
            HttpReader(self.client, first, run_id),
            HttpReader(self.client, first, run_id, sse=True),
            HttpReader(self.client, second, run_id),
        ]

    async def until(self, condition: Any, what: str) -> None:
        def holds() -> bool:
            for task in self.reading:
                if task.done() and task.exception() is not None:
                    task.result()  # a reader that failed fails the test at once
            return bool(condition())

        await until(holds, what, timeout=120)

    async def assert_live(self) -> None:
        """At least nine of ten streams have no ending now."""
        told = await asyncio.gather(*(status_of(self.client, self._second.url, run_id) for run_id in self.texts))
        states = Counter(one["status"] for one in told)
        assert states["streaming"] >= LEAST_LIVE * STREAMS, states

    async def go_on(self, but: Sequence[str] = ()) -> None:
        """Return when each reader of a stream that goes on has more than it has now."""
        at = {reader: len(reader.data) for reader in self.readers if reader.run_id not in but}
        await self.until(
            lambda: all(len(reader.data) > size or reader.ending for reader, size in at.items()),
            "every reader has gone on",
        )


async def stored_of(url: str, run_ids: Sequence[str]) -> dict[str, tuple[bytes, str]]:
    """What the broker has of each stream: its bytes and its ending's code."""
    found = {}
    async with await connect(url) as store:
        for run_id in run_ids:
            data, ending = bytearray(), "done"
            try:
                async for entry in store.read(run_id):
                    data += entry.chunk
            except StreamEnded as error:
                ending = error.code
            found[run_id] = bytes(data), ending
    return found


async def test_gateway_worker_and_broker_are_killed_under_live_streams(
    broker: Any, services: Services, client: httpx.AsyncClient
) -> None:
    gateway, other, small, large = (
        services.gateway(),
        services.gateway(),
        services.worker("--slots", str(LOST)),
        services.worker(),
    )
    await services.start(gateway, other, small)
    answers = Answers(client, gateway, other)
    lost, kept = list(answers.texts)[:LOST], list(answers.texts)[LOST:]
    await answers.start(lost)  # they fill the small worker
    await services.start(large)
    await answers.start(kept)
    services.supervise(gateway, small, large)

    await answers.assert_live()
    gateway.kill()
    await answers.go_on()
    assert gateway.starts == 2

    await answers.assert_live()
    small.kill()
    await answers.go_on(but=lost)

    await answers.assert_live()
    broker.kill()
    await asyncio.to_thread(broker.start)
    await answers.go_on(but=lost)

    await asyncio.gather(*answers.reading)
    stored = await stored_of(broker.url, list(answers.texts))
    for reader in answers.readers:
        expected = answers.texts[reader.run_id].encode()
        data, ending = stored[reader.run_id]
        assert bytes(reader.data) == data, reader.run_id
        assert reader.ending == ending == ("producer-lost" if reader.run_id in lost else "done"), reader.run_id
        if reader.run_id in lost:
            assert data
            assert len(data) < len(expected)
            assert expected.startswith(data)
        else:
            assert reader.sha256 == hashlib.sha256(expected).hexdigest()
        assert reader.reconnects > 0 or reader in answers.readers[2::3], "only the other gateway was never away"

    again = HttpReader(client, gateway.url, "afterwards")
    await start_run(client, gateway.url, "afterwards", {"text": answers.texts[kept[0]]})
    assert (await again.run()).data == answers.texts[kept[0]].encode()
