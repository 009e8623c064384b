"""`Beats` on Kafka: one partition, where age removes what is old, and everybody follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiokafka.protocol.offset import OffsetResetStrategy

from tailrace.errors import BrokerUnavailable
from tailrace.kafka.connection import Connection
from tailrace.kafka.feed import Feed
from tailrace.kafka.feeds import Feeds
from tailrace.kafka.reading import Batch, read
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.sender import Sender
from tailrace.kafka.topics import Names


class KafkaBeats:
    """Made by `open_kafka`; see `tailrace.log.Beats` for what each call promises."""

    def __init__(self, connection: Connection, names: Names, feeds: Feeds, sender: Sender) -> None:
        self._connection = connection
        self._place = names.members
        self._feeds = feeds
        self._sender = sender

    async def send(self, member_id: str, payload: bytes) -> None:
        try:
            async with asyncio.timeout(self._connection.options.request_timeout):
                await self._sender.send(self._place, member_id.encode(), payload, [])
        except (Unanswered, TimeoutError) as error:
            raise BrokerUnavailable(f"{self._connection} did not confirm a heartbeat") from error

    async def follow(self, deliver: Callable[[int, bytes], None], uncertain: Callable[[], None]) -> FollowingBeats:
        clock = self._connection.clock

        def take(batch: Batch) -> None:
            for raw in batch.records:
                deliver(clock.see(raw.timestamp), raw.value or b"")

        def lost(first: int, end: int) -> int:
            uncertain()
            return end

        feed = await self._feeds.follow(self._place, take, lost)
        # nothing is lost while the broker is away, but nothing is heard: nobody may be judged by that silence
        feed.on_back = uncertain
        return FollowingBeats(self._feeds, feed)

    async def recent(self) -> list[tuple[int, bytes]]:
        end = await self._connection.end(self._place)
        first = (await self._connection.offsets([self._place], OffsetResetStrategy.EARLIEST))[self._place]
        found: dict[bytes | None, tuple[int, bytes]] = {}
        async for batch in read(self._connection, self._place, first, end):
            for raw in batch.records:
                found[raw.key] = (raw.timestamp, raw.value or b"")
        return list(found.values())


class FollowingBeats:
    """What `KafkaBeats.follow` made."""

    def __init__(self, feeds: Feeds, feed: Feed) -> None:
        self._feeds = feeds
        self._feed = feed

    async def close(self) -> None:
        self._feeds.drop(self._feed)
