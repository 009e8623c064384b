"""JetStream: streams, heartbeats and runs on a NATS server 2.11 or newer.

::

    broker = await open_jetstream("nats://127.0.0.1:4222", options=JetStreamOptions())
    broker.log      tailrace.log.Log
    broker.beats    tailrace.log.Beats
    broker.runs     tailrace.contracts.RunQueue, and what workers need
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tailrace.command_wire import decode_command, encode_command
from tailrace.contracts import Capabilities
from tailrace.jetstream import setup
from tailrace.jetstream.address import options_of, parse
from tailrace.jetstream.beats import JetStreamBeats
from tailrace.jetstream.connection import Connection
from tailrace.jetstream.log import JetStreamLog
from tailrace.jetstream.names import Names
from tailrace.jetstream.options import JetStreamOptions
from tailrace.jetstream.runs import JetStreamRunQueue

__all__ = [
    "CAPABILITIES",
    "Connection",
    "JetStream",
    "JetStreamBeats",
    "JetStreamLog",
    "JetStreamOptions",
    "JetStreamRunQueue",
    "decode_command",
    "encode_command",
    "open_jetstream",
]

CAPABILITIES = Capabilities(shared=True, durable=True)


class JetStream:
    """One connection, and what runs over it."""

    def __init__(self, connection: Connection, options: JetStreamOptions) -> None:
        names = Names(options.prefix, options.shards)
        self.options = options
        self.names = names
        self.connection = connection
        self.log = JetStreamLog(connection, names)
        self.beats = JetStreamBeats(connection, names)
        self.runs = JetStreamRunQueue(connection, names)

    async def close(self) -> None:
        """Close the followings and the connection. A second call does nothing."""
        await self.log.close()
        await self.connection.close()


async def open_jetstream(
    url_or_urls: str | Sequence[str],
    *,
    options: JetStreamOptions | None = None,
    url_source: Callable[[], str] | None = None,
) -> JetStream:
    """Connect, and make or check the streams.

    Options in the URL's query override ``options``. ``url_source`` is asked again before every attempt to connect, for
    a server that comes back elsewhere. Raises `BrokerUnavailable`, `BrokerRefused` or `BrokerUnsuitable`, each one line
    and within a few seconds; after that the connection is kept up for ever.
    """
    address, query = parse(url_or_urls)
    options = options_of(query, options or JetStreamOptions())
    connection = await Connection.open(address, options, url_source)
    broker = JetStream(connection, options)
    try:
        await setup.check(connection, broker.names, options)
    except BaseException:
        await broker.close()
        raise
    return broker
