"""Kafka against the contract kit, on a local node."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tailrace.kafka import CAPABILITIES, KafkaOptions, open_kafka
from tailrace.members import Membership
from tailrace.memory_runs import MemoryRunQueue
from tailrace.model import Limits
from tailrace.store import LogStore
from tailrace.testing import MakeStore, StoreContract
from tailrace.testing.kafka_server import KafkaServer

_prefixes = (f"kit{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server.url


class TestKafka(StoreContract):
    """One node for all tests, and topics of its own for each."""

    capabilities = CAPABILITIES

    @pytest_asyncio.fixture
    async def make_store(self, server_url: str) -> AsyncIterator[MakeStore]:  # type: ignore[override]
        options = KafkaOptions(prefix=next(_prefixes), partitions=2, claims_partitions=1)
        stores: list[LogStore] = []

        async def make(limits: Limits | None = None) -> LogStore:
            broker = await open_kafka(server_url, options=options)
            runs = MemoryRunQueue(broker.log.now_ms)
            store = LogStore(
                broker.log,
                Membership(broker.beats, 2.0),
                runs,
                limits or Limits(),
                CAPABILITIES,
                linger=0.0,
                on_close=broker.close,
            )
            stores.append(store)
            return await store.start()

        yield make
        for store in stores:
            await store.aclose()
