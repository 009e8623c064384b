"""JetStream against the contract kit: on a local nats-server, and (marked ``docker``) on one in a container."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator

import nats
import pytest
import pytest_asyncio

from tailrace.connect import StoreOptions, connect
from tailrace.jetstream import CAPABILITIES, JetStreamOptions, open_jetstream
from tailrace.model import Limits
from tailrace.store import LogStore
from tailrace.testing import MakeStore, StoreContract
from tailrace.testing.cluster import NatsCluster
from tailrace.testing.resolve import resolve

_prefixes = (f"kit{os.getpid()}-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def local_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("nats", tmp_path_factory.mktemp("nats"), os.environ, containers=False) as url:
        asyncio.run(_keep_a_stream(url))
        yield url


@pytest.fixture(scope="module")
def docker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("nats", tmp_path_factory.mktemp("nats"), os.environ) as url:
        asyncio.run(_keep_a_stream(url))
        yield url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as nodes:
        asyncio.run(_keep_a_stream(nodes.url, replicas=3))
        yield nodes


class OnJetStream(StoreContract):
    """One server for all tests, and a prefix (streams of its own) for each."""

    capabilities = CAPABILITIES
    replicas = 1

    @pytest_asyncio.fixture
    async def make_store(self, server_url: str) -> AsyncIterator[MakeStore]:  # type: ignore[override]
        jetstream = JetStreamOptions(prefix=next(_prefixes), shards=2, replicas=self.replicas)
        # with the longest retention that any test's limits ask for: a shorter one that exists would be refused
        await (await open_jetstream(server_url, options=jetstream)).close()
        stores: list[LogStore] = []

        async def make(limits: Limits | None = None) -> LogStore:
            options = StoreOptions(limits=limits or Limits(), lease_ttl=2.0, linger=0.0, jetstream=jetstream)
            stores.append(await connect(server_url, options))
            return stores[-1]

        yield make
        for store in stores:
            await store.aclose()
        await _drop_streams(server_url, jetstream.prefix)


class TestJetStream(OnJetStream):
    @pytest.fixture
    def server_url(self, local_url: str) -> str:
        return local_url


@pytest.mark.slow
@pytest.mark.xdist_group("r3")
class TestJetStreamR3(OnJetStream):
    """Three nodes, three replicas of everything."""

    replicas = 3

    @pytest.fixture
    def server_url(self, cluster: NatsCluster) -> str:
        return f"nats://{cluster.hosts}"


@pytest.mark.docker
class TestJetStreamInDocker(OnJetStream):
    @pytest.fixture
    def server_url(self, docker_url: str) -> str:
        return docker_url


async def _keep_a_stream(url: str, replicas: int = 1) -> None:
    """Behind its answer to the deletion of an account's last stream, a server removes the account's directory. On a
    cluster, a follower that is late may remove it from under the next test's, and then that stream is deleted."""
    options = JetStreamOptions(prefix="kept", shards=1, replicas=replicas, connect_timeout=30)
    await (await open_jetstream(url, options=options)).close()


async def _drop_streams(url: str, prefix: str) -> None:
    """What one test leaves behind costs the next ones: on a cluster, each stream is a group of its own."""
    client = await nats.connect(url.split(","))
    jetstream = client.jetstream()
    for info in await jetstream.streams_info():
        if str(info.config.name).startswith(f"{prefix.upper()}_"):
            await jetstream.delete_stream(str(info.config.name))
    await client.close()
