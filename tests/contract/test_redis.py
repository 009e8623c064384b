"""Redis, and Valkey, against the contract kit, in both layouts of npm's keys."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tailrace.connect import StoreOptions, connect
from tailrace.model import Limits
from tailrace.redis import CAPABILITIES, RedisOptions
from tailrace.store import LogStore
from tailrace.testing import MakeStore, StoreContract
from tailrace.testing.resolve import resolve

_prefixes = (f"kit{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def local_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("redis", tmp_path_factory.mktemp("redis"), os.environ, containers=False) as url:
        yield url


@pytest.fixture(scope="module")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("valkey", tmp_path_factory.mktemp("valkey"), os.environ) as url:
        yield url


@pytest.fixture(scope="module")
def docker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resolve("redis", tmp_path_factory.mktemp("redis"), os.environ) as url:
        yield url


class OnRedis(StoreContract):
    """One server for all tests, and a prefix for each."""

    capabilities = CAPABILITIES
    layout = "0.3.44"

    @pytest_asyncio.fixture
    async def make_store(self, server_url: str) -> AsyncIterator[MakeStore]:  # type: ignore[override]
        redis = RedisOptions(prefix=f"{next(_prefixes)}-{os.getpid()}", layout=self.layout)
        stores: list[LogStore] = []

        async def make(limits: Limits | None = None) -> LogStore:
            options = StoreOptions(limits=limits or Limits(), lease_ttl=2.0, linger=0.0, redis=redis)
            stores.append(await connect(server_url, options))
            return stores[-1]

        yield make
        for store in stores:
            await store.aclose()


class TestRedis(OnRedis):
    @pytest.fixture
    def server_url(self, local_url: str) -> str:
        return local_url


@pytest.mark.slow
class TestRedisInTheOldLayout(OnRedis):
    layout = "0.3.15"

    @pytest.fixture
    def server_url(self, local_url: str) -> str:
        return local_url


@pytest.mark.slow
class TestValkey(OnRedis):
    @pytest.fixture
    def server_url(self, valkey_url: str) -> str:
        return valkey_url


@pytest.mark.docker
class TestRedisInDocker(OnRedis):
    @pytest.fixture
    def server_url(self, docker_url: str) -> str:
        return docker_url
