"""Stores on one Kafka broker, for tests of several "processes" in one (see `tailrace.testing.worlds`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tailrace.kafka import KafkaOptions
from tailrace.kafka.broker import Kafka, open_kafka
from tailrace.testing.worlds import BrokerWorld


class KafkaWorld(BrokerWorld):
    """Stores on the broker at ``url``. Ids must be the test's own: the broker may serve others."""

    def __init__(self, url: str, lease_ttl: float = 0.5, options: KafkaOptions | None = None) -> None:
        super().__init__(lease_ttl)
        self.url = url
        self.options = options or KafkaOptions(partitions=4, claims_partitions=2)

    async def _open(self) -> Kafka:
        return await open_kafka(self.url, options=self.options)


@asynccontextmanager
async def opened(url: str, options: KafkaOptions) -> AsyncIterator[Kafka]:
    """One process's side of the broker at ``url``, closed behind the block."""
    broker = await open_kafka(url, options=options)
    try:
        yield broker
    finally:
        await broker.close()


def own_topics(test: str) -> KafkaOptions:
    """Topics of the test's own, of one partition each."""
    return KafkaOptions(prefix=f"t{abs(hash(test)) % 10**9}", partitions=1, claims_partitions=1)
