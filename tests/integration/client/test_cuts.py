"""A network that cuts: a real proxy before a real gateway breaks each connection after so many bytes."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailrace.client import Patience
from tailrace.errors import StreamErrored
from tailrace.gateway.launch import gateway_server
from tailrace.gateway.server import started
from tailrace.memory import MemoryStore
from tailrace.settings import load
from tailrace.wire import find_format
from tailrace.worker.answer import Controller

QUICK = Patience(start=30, resume=60, first_pause=0.001, longest_pause=0.01)
PIECE = 40


class CuttingProxy:
    """Passes connections on to ``port``. Connection number n breaks after ``cuts[n]`` bytes of its answers, with a
    reset where ``resets[n]``; those behind the last one hold."""

    def __init__(self, port: int, cuts: list[int], resets: list[bool]) -> None:
        self.port, self.cuts, self.resets = port, list(cuts), list(resets)
        self.broken = 0
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.cuts.pop(0) if self.cuts else None
        reset = self.resets.pop(0) if self.resets else False
        onward, out = await asyncio.open_connection("127.0.0.1", self.port)
        asking = asyncio.create_task(self._pass_requests(reader, out))
        try:
            while left != 0 and (data := await onward.read(left if left is not None else 65536)):
                left = left - len(data) if left is not None else None
                writer.write(data)
                await writer.drain()
            self.broken += left == 0
            if reset and left == 0:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except ConnectionError:  # the client is faster
            pass
        finally:
            asking.cancel()
            for one in (writer, out):
                one.close()
            for one in (writer, out):
                with suppress(ConnectionError):
                    await one.wait_closed()

    async def _pass_requests(self, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                out.write(data)
                await out.drain()


@asynccontextmanager
async def gateway() -> AsyncIterator[Any]:
    options = load(None, port=0)
    async with MemoryStore(options.limits()) as store:
        await store.start()
        async with started(gateway_server(store, options, install_signals=False)) as server:
            yield store, server.bound_port


CUTS = st.lists(st.integers(0, 900), max_size=12)
RESETS = st.lists(st.booleans(), min_size=12, max_size=12)
PATIENT = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@PATIENT
@given(cuts=CUTS, resets=RESETS, size=st.integers(0, 1500), live=st.booleans(), good=st.booleans())
def test_wherever_connections_break_the_bytes_are_the_stream(
    speech: Any, cuts: list[int], resets: list[bool], size: int, live: bool, good: bool
) -> None:
    data = hashlib.shake_128(b"x").digest(size)

    async def write(store: MemoryStore) -> None:
        for at in range(0, size, PIECE):
            await store.append("s", data[at : at + PIECE])
            await asyncio.sleep(0)
        await store.finalize("s", "done" if good else "error", "it broke")

    async def scenario() -> None:
        async with gateway() as (store, port):
            await store.acquire("s")
            writing = asyncio.create_task(write(store))
            if not live:
                await writing
            proxy = CuttingProxy(port, cuts, resets)
            async with proxy.running(), speech.client(proxy.url, patience=QUICK) as client:
                answer, got, ending = client.resume("s"), bytearray(), None
                try:
                    async for part in speech.each(answer.bytes()):
                        got += part
                        assert answer.position.offset == len(got)
                except StreamErrored as error:
                    ending = error
            await writing
            assert bytes(got) == data
            assert (ending is None) is good

    asyncio.run(scenario())


@PATIENT
@given(cuts=CUTS, resets=RESETS)
def test_wherever_connections_break_the_message_is_the_same(speech: Any, cuts: list[int], resets: list[bool]) -> None:
    format = find_format("data-stream")
    chunks: list[Any] = []
    controller = Controller(chunks.append)
    for word in ["水は", "流れ", "続ける"] * 20:
        controller.append_text(word)
    controller.finish()
    encoder = format.encoder()

    async def scenario() -> None:
        async with gateway() as (store, port):
            kind = format.headers["Content-Type"]
            headers = (("x-vercel-ai-data-stream", "v1"),)
            await store.acquire("s", content_type=kind, headers=headers)
            for chunk in chunks:
                if data := encoder.encode(chunk):
                    await store.append("s", data)
            await store.finalize("s", "done")
            proxy = CuttingProxy(port, cuts, resets)
            async with proxy.running(), speech.client(proxy.url, patience=QUICK) as client:
                texts = [message.text async for message in speech.each(client.resume("s").messages())]
            assert texts[-1] == "水は流れ続ける" * 20
            assert all(len(later) >= len(earlier) for earlier, later in pairwise(texts))

    asyncio.run(scenario())


async def test_the_proxy_cuts(speech: Any) -> None:
    """The faults of these tests happen: each named connection is broken, and the client came back."""
    async with gateway() as (store, port):
        await store.acquire("s")
        await store.append("s", b"x" * 5000)
        await store.finalize("s", "done")
        proxy = CuttingProxy(port, [0, 700, 100, 900, 1500], [False, True, False, True, False])
        notices: list[str] = []
        async with proxy.running(), speech.client(proxy.url, patience=QUICK, notice=notices.append) as client:
            answer = client.resume("s")
            assert await speech.call(answer.read) == b"x" * 5000
        assert proxy.broken == 5
        assert answer.reconnects == notices.count("resumed") == notices.count("lost") > 0
