"""An idle reader costs Kafka nothing: for 50 streams that are read a gateway asks as often as for one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tailrace._ports import choose_port
from tailrace.connect import StoreOptions, connect
from tailrace.kafka import KafkaOptions
from tailrace.testing.clients import HttpReader, Reading, begin_quiet, end_quiet, new_client
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.processes import Services, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

READERS, BEATS, LEASE_TTL = 50, 15, 2
PRODUCE, FETCH, METADATA = 0, 1, 3  # kinds of request, by their numbers in the protocol
HOST = "127.0.0.1"


class Tap:
    """A way to the broker that counts the requests on it, by their sender's name and their kind."""

    def __init__(self, broker_port: int) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self.connections: list[asyncio.Task[None]] = []
        self._broker_port = broker_port

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            answers, requests = await asyncio.open_connection(HOST, self._broker_port)
            answering = asyncio.create_task(self._answer(answers, writer))
            try:
                while True:  # until the client hangs up
                    head = await reader.readexactly(4)
                    request = await reader.readexactly(*struct.unpack(">i", head))
                    kind, _, _, length = struct.unpack_from(">hhih", request)
                    self.counts[request[10 : 10 + length].decode(), kind] += 1
                    requests.write(head + request)
                    await requests.drain()
            finally:
                requests.close()
                await answering
        writer.close()

    @staticmethod
    async def _answer(answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while part := await answers.read(65536):
                writer.write(part)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def tapped(folder: Path) -> AsyncIterator[tuple[Tap, str]]:
    """A node whose clients are told to come through the tap, and its URL there."""
    plain, controller, behind = (choose_port(None, None) for _ in range(3))
    tap = Tap(behind)
    async with await asyncio.start_server(tap.take, HOST, 0) as front:
        port = front.sockets[0].getsockname()[1]
        others = f"PLAINTEXT://{HOST}:{plain},CONTROLLER://{HOST}:{controller}"
        properties = {
            "listeners": f"{others},TAPPED://{HOST}:{behind}",
            "advertised.listeners": f"{others},TAPPED://{HOST}:{port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TAPPED:PLAINTEXT",
        }
        server = KafkaServer(folder, properties=properties, controllers={1: controller})
        server.port = plain
        with server:
            yield tap, f"kafka://{HOST}:{port}"
        await asyncio.gather(*tap.connections)


class Window(NamedTuple):
    """What went to the broker while the gateway beat some times. ``beats`` are everybody's."""

    kinds: set[int]
    fetches: int
    beats: int
    waits: float  # that a request which is kept for news could have been kept to its end

    @classmethod
    async def of(cls, tap: Tap, gateway: str, beats: int) -> Window:
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        tap.counts.clear()
        await until(lambda: tap.counts[gateway, PRODUCE] >= beats, "the gateway went on beating")
        waits = (loop.time() - began) / KafkaOptions().fetch_wait
        kinds = {kind for name, kind in tap.counts if name == gateway}
        everybodys = sum(count for (_, kind), count in tap.counts.items() if kind == PRODUCE)
        return cls(kinds, tap.counts[gateway, FETCH], everybodys, waits)

    @property
    def unasked(self) -> float:
        """Fetches that neither a beat nor the end of their wait explains."""
        return self.fetches - self.beats - self.waits


async def undisturbed(tap: Tap, gateway: str) -> Window:
    """A node that stalls is fenced for a moment, and who reads asks who leads: that window says nothing of readers."""
    for _ in range(2):
        window = await Window.of(tap, gateway, BEATS)
        if METADATA not in window.kinds:
            return window
    return await Window.of(tap, gateway, BEATS)


async def test_idle_readers_cost_nothing_but_the_one_fetch_that_is_kept(tmp_path: Path) -> None:
    options = StoreOptions(lease_ttl=LEASE_TTL, kafka=KafkaOptions(name="writer", connect_timeout=20))
    async with (
        tapped(tmp_path / "kafka") as (tap, url),
        Services(tmp_path / "services", url, os.environ, LEASE_TTL=LEASE_TTL) as services,
        new_client() as client,
        await connect(url, options) as store,
        AsyncExitStack() as stack,
    ):
        gateway, name = services.gateway(), KafkaOptions().name
        await services.start(gateway)
        ids = [f"quiet-{number}" for number in range(READERS)]
        await begin_quiet(store, ids)
        readers = [
            HttpReader(client, gateway.url, stream_id, sse=number % 2 == 0) for number, stream_id in enumerate(ids)
        ]
        reading = await stack.enter_async_context(Reading(readers[0]))
        windows = []
        for more in ([], readers[1:]):
            reading.add(*more)
            await reading.begun()
            await Window.of(tap, name, 4)  # what opening caused is over
            windows.append(await undisturbed(tap, name))

        for window in windows:
            assert window.kinds == {PRODUCE, FETCH}
            # as it opens a fetch is kept, and two beats may be under way; one fetch a reader would be 50 a wait
            assert window.unasked <= 3, windows

        await end_quiet(store, ids, reading)
