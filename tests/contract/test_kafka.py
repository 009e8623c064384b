"""Kafka against the contract kit, on a local node, and (marked ``docker``) on one in a container."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tailrace.connect import StoreOptions, connect
from tailrace.kafka import CAPABILITIES, KafkaOptions
from tailrace.kafka.broker import open_kafka
from tailrace.model import Limits
from tailrace.store import LogStore
from tailrace.testing import MakeStore, StoreContract
from tailrace.testing.resolve import resolve

_prefixes = (f"kit{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def local_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("kafka", tmp_path_factory.mktemp("kafka"), os.environ, containers=False) as url:
        yield url


@pytest.fixture(scope="module")
def docker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("kafka", tmp_path_factory.mktemp("kafka"), os.environ) as url:
        yield url


class OnKafka(StoreContract):
    """One node for all tests, and topics of its own for each."""

    capabilities = CAPABILITIES

    @pytest_asyncio.fixture
    async def make_store(self, server_url: str) -> AsyncIterator[MakeStore]:  # type: ignore[override]
        kafka = KafkaOptions(prefix=next(_prefixes), partitions=2, claims_partitions=1)
        # with the longest retention that any test's limits ask for: a shorter one that exists would be refused
        await (await open_kafka(server_url, options=kafka)).close()
        stores: list[LogStore] = []

        async def make(limits: Limits | None = None) -> LogStore:
            options = StoreOptions(limits=limits or Limits(), lease_ttl=2.0, linger=0.0, kafka=kafka)
            stores.append(await connect(server_url, options))
            return stores[-1]

        yield make
        for store in stores:
            await store.aclose()


@pytest.mark.xdist_group("kafka")
class TestKafka(OnKafka):
    @pytest.fixture
    def server_url(self, local_url: str) -> str:
        return local_url


@pytest.mark.docker
@pytest.mark.xdist_group("kafka-docker")
class TestKafkaInDocker(OnKafka):
    @pytest.fixture
    def server_url(self, docker_url: str) -> str:
        return docker_url
