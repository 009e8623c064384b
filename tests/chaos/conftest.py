"""Real brokers that can be killed, and services on them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
import pytest

from tailrace.testing.clients import new_client
from tailrace.testing.cluster import NatsCluster
from tailrace.testing.kafka_server import KafkaServer
from tailrace.testing.processes import Services
from tailrace.testing.redis_server import RedisServer
from tailrace.testing.servers import NatsServer

LEASE_TTL = 4  # seconds: short, so that the death of a process is soon noticed


class Broker(Protocol):
    """What these tests do with a broker. It comes back at the same URL, with its data."""

    @property
    def url(self) -> str: ...

    def start(self) -> Self: ...

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


BROKERS = {"jetstream": NatsServer, "jetstream-r3": NatsCluster, "kafka": KafkaServer, "redis": RedisServer}


def one_is_fast(names: Iterable[str]) -> list[Any]:
    """The first is tried with every change, the others by the long suites."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.fixture(params=one_is_fast(BROKERS))
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    with BROKERS[request.param](tmp_path / "broker") as running:
        yield running


@pytest.fixture
def strike(broker: Broker) -> Callable[[], object]:
    """Kills what a broker that goes on must be able to lose: the leader of a cluster (and gives what it led), or all
    there is of a single server."""
    return broker.kill_leader if isinstance(broker, NatsCluster) else broker.kill


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
