"""Cancels from Kafka, through FastStream.

Theory. A cancel is a message to whoever hears it now: its key is a member, its value a stream. Every worker reads all
of them and takes its own.

Rules.

- The consumer has no group and commits nothing. It begins at the end that the topic has when `start` returns.
- It reconnects by itself, for ever, but only to nodes that it knows. While it is connected to none, those that are
  named are asked where the cluster is, as the store's own connection has them: an embedded node may come back on
  another port. It goes on at the offset where it was, so what it missed meanwhile is heard then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, TopicPartition
from faststream.kafka.annotations import KafkaMessage

from tailrace.errors import BrokerUnavailable
from tailrace.kafka.connection import find_again
from tailrace.kafka.runs import KafkaRunQueue
from tailrace.tasks import end

log = structlog.get_logger(__name__)

LOOK = 1.0  # seconds between two looks at whether it is connected
STOP_WAIT = 2.0


class CancelBroker(KafkaBroker):
    """A FastStream broker that only consumes, with the store's own servers, login and TLS."""

    def __init__(self, library: Mapping[str, Any]) -> None:
        super().__init__(
            list(library["bootstrap_servers"]),
            logger=None,
            graceful_timeout=1.0,
            consumer_only=True,
            allow_auto_create_topics=False,
        )
        self._library = library
        self._consumer: AIOKafkaConsumer | None = None

    async def _connect(self) -> Callable[..., AIOKafkaConsumer]:
        self.config.broker_config.builder = self._make
        return self._make

    def _make(self, **chosen: Any) -> AIOKafkaConsumer:
        self._consumer = AIOKafkaConsumer(**{**chosen, **self._library})
        return self._consumer

    async def hang_up(self) -> None:
        """Close the consumer's connections, also where `stop` did not come so far. A second call does nothing."""
        if self._consumer is not None:
            await self._consumer._client.close()


class Cancels:
    """Tells ``cancel`` the streams that are cancelled at ``member_id``; it answers whether they ran here."""

    def __init__(self, runs: KafkaRunQueue, member_id: str, cancel: Callable[[str], bool]) -> None:
        self._runs, self._member, self._cancel = runs, member_id.encode(), cancel
        self._broker: CancelBroker | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `BrokerUnavailable`."""
        connection = self._runs.connection
        options, servers = connection.options, connection.address.bootstrap  # where it is now, not where it was
        patience = int((options.fetch_wait + options.request_timeout) * 1000)
        library = connection.library | {"bootstrap_servers": servers, "request_timeout_ms": patience}
        self._broker = CancelBroker(library)
        subscriber = self._broker.subscriber(
            partitions=[TopicPartition(*self._runs.cancels)],
            auto_offset_reset="latest",
            fetch_max_wait_ms=int(options.fetch_wait * 1000),  # news end the wait at once
            ack_policy=AckPolicy.ACK_FIRST,
            decoder=_raw,
        )
        subscriber(self._take)
        try:
            async with asyncio.timeout(2 * options.request_timeout):
                await self._broker.start()
                # "latest" is only looked up here, and must not be later than the first run
                assert subscriber.consumer is not None
                await subscriber.consumer.position(subscriber.partitions[0])
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise BrokerUnavailable(f"Cancels cannot be heard from {connection}: {error!r}") from error
        self._keeping = asyncio.create_task(self._keep(subscriber.consumer._client), name="worker cancels")

    async def _take(self, message: KafkaMessage) -> None:
        if cast("Any", message.raw_message).key != self._member:
            return
        stream_id = message.body.decode(errors="replace")
        found = self._cancel(stream_id)
        log.info("run-cancelled" if found else "cancel-of-no-run", stream=stream_id)

    async def _keep(self, client: AIOKafkaClient) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if any(connection.connected() for connection in client._conns.values()):
                continue
            await find_again(client, self._runs.connection.address)  # the store's own tells that the broker is away

    async def close(self) -> None:
        """A second call does nothing."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            await end(keeping)
        broker, self._broker = self._broker, None
        if broker is not None:
            for goodbye in (broker.stop, broker.hang_up):  # a fetch that failed just now ends the first one too early
                try:
                    async with asyncio.timeout(STOP_WAIT):
                        await asyncio.create_task(goodbye())
                except (TimeoutError, KafkaError, OSError, ExceptionGroup) as error:  # the broker is away
                    log.info("unsubscribe-unheard", error=str(error))


async def _raw(message: KafkaMessage) -> bytes:
    """The body as it came."""
    return message.body
