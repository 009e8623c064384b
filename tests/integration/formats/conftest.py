"""Workers and gateways over HTTP, for what a handler writes in a format: on memory, or on a real nats-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailrace.connect import StoreOptions, connect
from tailrace.gateway.launch import gateway_server
from tailrace.gateway.server import started
from tailrace.jetstream import JetStreamOptions
from tailrace.memory import MemoryBroker, MemoryStore
from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import Chunk
from tailrace.message.message import Message
from tailrace.settings import Settings, load
from tailrace.store import LogStore
from tailrace.testing.servers import NatsServer
from tailrace.worker import Handler, Pace, Worker

LEASE_TTL = 1.0


class Service:
    """A worker, and two gateways whose stores are processes of their own as far as the broker can tell."""

    def __init__(self, worker: Worker, store: LogStore, client: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
        self.worker, self.store, self.client, self.other = worker, store, client, other

    async def run(self, handler: str, input: object = None, **members: Any) -> httpx.Response:
        return await self.client.post("/v1/runs", json={"handler": handler, "input": input or {}, **members})

    async def accept(self, handler: str, input: object = None, **members: Any) -> None:
        """Start it in the background."""
        body = {"handler": handler, "input": input or {}, **members}
        response = await self.client.post("/v1/runs", json=body, headers={"prefer": "respond-async"})
        assert response.status_code == 202, response.text

    async def body(self, stream_id: str, **query: Any) -> tuple[bytes, dict[str, str]]:
        """All bytes of the stream at the other gateway, even of one that is cut, and its headers."""
        parts: list[bytes] = []
        async with self.other.stream("GET", f"/v1/runs/{stream_id}", params=query) as response:
            assert response.status_code == 200
            try:
                async for part in response.aiter_raw():
                    parts.append(part)
            except httpx.RemoteProtocolError:
                pass
        return b"".join(parts), dict(response.headers)

    async def status(self, stream_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.other.get(f"/v1/runs/{stream_id}/status")).json()
        return found


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
def kind() -> str:
    return "memory"


@pytest.fixture
async def serve(kind: str, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a `Service` for handlers; ``settings`` are of the store and gateways, ``pace`` of the worker."""
    async with AsyncExitStack() as stack:
        broker = MemoryBroker()
        nats = stack.enter_context(NatsServer(tmp_path / "nats")) if kind == "jetstream" else None

        async def opened(settings: Settings) -> LogStore:
            if nats is None:
                store = MemoryStore(settings.limits(), lease_ttl=LEASE_TTL, broker=broker)
                await store.start()
                return await stack.enter_async_context(store)
            options = StoreOptions(
                limits=settings.limits(), lease_ttl=LEASE_TTL, jetstream=JetStreamOptions(shards=2, connect_timeout=20)
            )
            return await stack.enter_async_context(await connect(nats.url, options))

        async def gateway(settings: Settings) -> httpx.AsyncClient:
            server = gateway_server(await opened(settings), settings, install_signals=False)
            await stack.enter_async_context(started(server))
            address = f"http://127.0.0.1:{server.bound_port}"
            return await stack.enter_async_context(httpx.AsyncClient(base_url=address, trust_env=False, timeout=30))

        async def serving(*handlers: Handler, pace: Pace | None = None, **arguments: Any) -> Service:
            settings = load(None, port=0, lease_ttl=LEASE_TTL, **arguments)
            store, client, other = await opened(settings), await gateway(settings), await gateway(settings)
            worker = Worker(store, handlers, lease_ttl=LEASE_TTL, pace=pace or Pace(stop_timeout=0.2))
            await worker.start()
            stack.push_async_callback(worker.aclose)
            return Service(worker, store, client, other)

        yield serving


def built(chunks: Iterable[Chunk]) -> Message:
    """The message that the chunks build."""
    accumulator = AssistantMessageAccumulator(clock=lambda: 0.0, new_id=lambda: "0000000")
    for chunk in chunks:
        accumulator.feed(chunk)
    accumulator.close()
    return accumulator.message


@pytest.fixture
def message() -> Callable[[Iterable[Chunk]], Message]:
    return built
