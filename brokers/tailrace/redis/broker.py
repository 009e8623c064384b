"""One deployment: its connection, and what runs over it."""

from __future__ import annotations

from dataclasses import replace

from tailrace.redis import CAPABILITIES, setup
from tailrace.redis.address import parse
from tailrace.redis.beats import RedisBeats
from tailrace.redis.connection import Connection
from tailrace.redis.log import RedisLog
from tailrace.redis.names import Names
from tailrace.redis.options import RedisOptions
from tailrace.redis.runs import RedisRunQueue


class Redis:
    """The connections to one deployment, and what runs over them. ``capabilities``: what this server promises."""

    def __init__(self, connection: Connection, options: RedisOptions) -> None:
        names = Names.of(options)
        self.options = options
        self.names = names
        self.connection = connection
        self.capabilities = CAPABILITIES
        self.log = RedisLog(connection, names)
        self.beats = RedisBeats(connection, names, self.log, options.member_retention)
        self.runs = RedisRunQueue(connection, names, options, self.log.listener)

    async def close(self) -> None:
        """Close the followings and the connections. A second call does nothing."""
        await self.log.close()
        await self.connection.close()


async def open_redis(url: str, options: RedisOptions | None = None) -> Redis:
    """Connect, and look at what answers.

    What the URL says wins over ``options``. Raises `BrokerUnavailable`, `BrokerRefused` or `BrokerUnsuitable`, each one
    line and within a few seconds; after that a lost connection is made again by whoever needs it.
    """
    address, chosen = parse(url, options or RedisOptions())
    broker = Redis(Connection(address, chosen), chosen)
    try:
        durable = await setup.check(broker.connection, broker.names)
    except BaseException:
        await broker.close()
        raise
    broker.capabilities = replace(CAPABILITIES, durable=durable)
    return broker
