"""A Kafka cluster, opened: one connection, and what runs over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tailrace.kafka import topics
from tailrace.kafka.address import parse
from tailrace.kafka.beats import KafkaBeats
from tailrace.kafka.claims import Claims
from tailrace.kafka.connection import Connection
from tailrace.kafka.feeds import Feeds
from tailrace.kafka.log import KafkaLog
from tailrace.kafka.options import KafkaOptions
from tailrace.kafka.runs import KafkaRunQueue
from tailrace.kafka.sender import Sender
from tailrace.kafka.topics import Names


class Kafka:
    """One connection, and what runs over it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.options = connection.options
        self.names = Names(connection.options)
        self.feeds = Feeds(connection)
        self.sender = Sender(connection, self.feeds.stored)
        self.claims = Claims(connection, self.names, self.feeds, self.sender)
        self.log = KafkaLog(connection, self.names, self.feeds, self.sender, self.claims)
        self.beats = KafkaBeats(connection, self.names, self.feeds, self.sender)
        self.runs = KafkaRunQueue(connection, self.names, self.feeds, self.sender)

    async def close(self) -> None:
        """Close what follows and the connection. A second call does nothing."""
        await self.log.close()
        await self.feeds.close()
        await self.sender.close()
        await self.connection.close()


async def open_kafka(
    url: str | Sequence[str], *, options: KafkaOptions | None = None, url_source: Callable[[], str] | None = None
) -> Kafka:
    """Connect, make or check the topics, and read the claims and the runs.

    The URL's query overrides ``options``. ``url_source`` is asked where the broker is when none of the nodes that it
    had answers any more, for one that comes back on another port. Raises `BrokerUnavailable`, `BrokerRefused` or
    `BrokerUnsuitable`, each one line; after that the connection is kept up for ever.
    """
    address, chosen = parse(url, options or KafkaOptions())
    source = None if url_source is None else lambda: parse(url_source(), chosen)[0]
    connection = await Connection.open(address, chosen, source)
    broker = Kafka(connection)
    try:
        await topics.check(connection, topics.wanted(broker.names, chosen))
        await broker.claims.start()
        await broker.runs.start()
    except BaseException:
        await broker.close()
        raise
    return broker
