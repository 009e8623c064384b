"""Gateway, worker and broker killed one after another under many live streams: no byte lost, every ending true."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tailrace.connect import connect
from tailrace.errors import StreamEnded
from tailrace.jetstream import JetStreamOptions
from tailrace.jetstream.names import Names
from tailrace.testing.clients import HttpReader, Reading, sample_text, start_run, status_of
from tailrace.testing.cluster import SHARDS, NatsCluster
from tailrace.testing.processes import Service, Services, until

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]

STREAMS, LOST, LEAST_LIVE = 60, 5, 0.9
CHUNK, RATE, CHUNKS = 24, 5, 200  # characters, a second, in all


class Answers:
    """The runs of this test, and three readers of each: two at one gateway, of which one reads SSE, one at another."""

    def __init__(self, client: httpx.AsyncClient, first: Service, second: Service, reading: Reading) -> None:
        self._client, self._first, self._second, self.reading = client, first, second, reading
        self.texts = {f"answer-{number}": sample_text(number, CHUNK * CHUNKS) for number in range(STREAMS)}

    async def start(self, run_ids: Sequence[str]) -> None:
        """Have runs accepted, and return when each was claimed and is read by its three readers."""
        client, first, second = self._client, self._first.url, self._second.url
        for run_id in run_ids:
            await start_run(client, first, run_id, {"text": self.texts[run_id], "rate": RATE, "chunk": CHUNK})
            self.reading.add(
                HttpReader(client, first, run_id),
                HttpReader(client, first, run_id, sse=True),
                HttpReader(client, second, run_id),
            )
        await self.reading.begun()

    async def assert_live(self) -> None:
        """At least nine of ten streams have no ending now."""
        told = await asyncio.gather(*(status_of(self._client, self._second.url, run_id) for run_id in self.texts))
        states = Counter(one["status"] for one in told)
        assert states["streaming"] >= LEAST_LIVE * STREAMS, states

    async def go_on(self, but: Sequence[str]) -> None:
        """Return when each reader has more than it has now, but those of some runs."""
        at = {reader: len(reader.data) for reader in self.reading.readers if reader.run_id not in but}
        await self.reading.until(
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


def shards_of(run_ids: Sequence[str]) -> set[str]:
    """The shards that hold the records of these streams, on a cluster."""
    names = Names(JetStreamOptions().prefix, SHARDS)
    return {names.place(run_id).stream for run_id in run_ids}


@pytest.mark.parametrize("how", ["one after another", "all at once"])
async def test_gateway_worker_and_broker_are_killed_under_live_streams(
    broker: Any, services: Services, client: httpx.AsyncClient, stack: AsyncExitStack, how: str, strike: Any
) -> None:
    gateway, other = services.gateway(), services.gateway()
    small, large = services.worker("--slots", str(LOST)), services.worker()
    await services.start(gateway, other, small)
    answers = Answers(client, gateway, other, await stack.enter_async_context(Reading()))
    lost, kept = list(answers.texts)[:LOST], list(answers.texts)[LOST:]
    await answers.start(lost)  # they fill the small worker
    await services.start(large)
    await answers.start(kept)
    services.supervise(gateway, small, large)

    for kill in (gateway.kill, small.kill, strike):
        await answers.assert_live()
        killed = kill()
        if kill is strike:
            if isinstance(broker, NatsCluster):
                _, led = killed
                assert led & shards_of(kept), f"the leader of {led} was killed, and no stream in use is there"
            await asyncio.to_thread(broker.start)
        if kill is strike or how == "one after another":
            await answers.go_on(but=() if kill == gateway.kill else lost)

    await answers.reading.over()
    await until(lambda: gateway.starts == small.starts == 2, "both were replaced", 100)
    stored = await stored_of(broker.url, list(answers.texts))
    for reader in answers.reading.readers:
        expected, (data, ending) = answers.texts[reader.run_id].encode(), stored[reader.run_id]
        assert bytes(reader.data) == data, reader.run_id
        assert reader.ending == ending == ("producer-lost" if reader.run_id in lost else "done"), reader.run_id
        if reader.run_id in lost:
            assert 0 < len(data) < len(expected)
            assert expected.startswith(data)
        else:
            assert reader.sha256 == hashlib.sha256(expected).hexdigest()
    at_the_killed = [reader for reader in answers.reading.readers[0::3] if reader.run_id not in lost]
    assert all(reader.reconnects for reader in at_the_killed)  # a lost one may have been over before it was back

    again = HttpReader(client, gateway.url, "afterwards")
    await start_run(client, gateway.url, "afterwards", {"text": answers.texts[kept[0]]})
    assert (await again.run()).data == answers.texts[kept[0]].encode()
