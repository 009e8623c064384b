"""`Beats` on Redis: one stream of heartbeats, cut by age, that every process's blocked read follows."""

from __future__ import annotations

from collections.abc import Callable

from tailrace.errors import BrokerUnavailable
from tailrace.redis.connection import Connection, Unanswered
from tailrace.redis.listening import Channel, Listener
from tailrace.redis.log import RedisLog
from tailrace.redis.names import Names
from tailrace.redis.scripts import BEAT
from tailrace.redis.wire import Entry, entries_of, time_of


class RedisBeats:
    """Made by `open_redis`; see `tailrace.log.Beats` for what each call promises."""

    def __init__(self, connection: Connection, names: Names, log: RedisLog, retention: float) -> None:
        self._connection = connection
        self._names = names
        self._log = log
        self._keep_ms = int(retention * 1000)

    async def send(self, member_id: str, payload: bytes) -> None:
        try:
            await self._connection.run(BEAT, (self._names.beats,), self._keep_ms, member_id, payload)
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None

    async def follow(self, deliver: Callable[[int, bytes], None], uncertain: Callable[[], None]) -> FollowingBeats:
        def take(entries: list[Entry]) -> None:
            for position, fields in entries:
                deliver(self._log.clock.see(time_of(position)), fields.get(b"beat", b""))

        try:
            seconds, micros = await self._connection.call("TIME")
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        now = self._log.clock.see(int(seconds) * 1000 + int(micros) // 1000)
        return FollowingBeats(self._log.listener, self._log.listener.add(self._names.beats, now << 24, take, uncertain))

    async def recent(self) -> list[tuple[int, bytes]]:
        try:
            reply = await self._connection.call("XRANGE", self._names.beats, "-", "+")
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        latest: dict[bytes, tuple[int, bytes]] = {}
        for position, fields in entries_of(reply):
            latest[fields.get(b"id", b"")] = (self._log.clock.see(time_of(position)), fields.get(b"beat", b""))
        return list(latest.values())


class FollowingBeats:
    """What `RedisBeats.follow` made."""

    def __init__(self, listener: Listener, channel: Channel) -> None:
        self._listener = listener
        self._channel = channel

    async def close(self) -> None:
        self._listener.remove(self._channel)
