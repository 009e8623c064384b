"""Real brokers that can be killed, and services on them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol, Self

import httpx
import pytest

from tailrace.testing.clients import new_client
from tailrace.testing.processes import Services
from tailrace.testing.servers import NatsServer

LEASE_TTL = 3  # seconds: short, so that the death of a process is soon noticed


class Broker(Protocol):
    """What these tests do with a broker. It comes back at the same URL, with its data."""

    @property
    def url(self) -> str: ...

    def start(self) -> Self: ...

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


BROKERS = {"jetstream": NatsServer}


@pytest.fixture(params=list(BROKERS))
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    running = BROKERS[request.param](tmp_path / "broker")
    running.start()
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture
async def services(broker: Broker, tmp_path: Path) -> AsyncIterator[Services]:
    async with Services(tmp_path / "services", broker.url, os.environ, LEASE_TTL=LEASE_TTL) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with new_client() as running:
        yield running


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as running:
        yield running
