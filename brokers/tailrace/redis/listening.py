"""The one blocked read of a process: every key that somebody listens to, at once, on a connection of its own.

Theory. ``XREAD BLOCK`` waits for entries behind a position in any number of keys, and names the position it goes on
from, so nothing falls between two reads, a lost connection included. It does not wake when a key is deleted or
expires, and takes no more keys while it waits. So it waits a second at most, and a key of this process's own is among
those read: who adds another key writes there. Idle, a process costs one blocked read and one ``MGET`` a second, however
many readers it has.

Rules.

- After a lost connection everybody who listens is told (`uncertain`): a server that came back may have lost entries.
- After a failover the blocked read follows the ordinary connection: it writes nothing, so no replica refuses it.
- ``sweep`` is called about once a second while somebody listens, busy or not: it looks at what wakes nobody.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

from tailrace.commit import backoff
from tailrace.errors import BrokerError, TailraceError
from tailrace.redis.connection import Connection, Unanswered
from tailrace.redis.wire import Entry, entries_of, id_of
from tailrace.tasks import end

logger = logging.getLogger(__name__)

BLOCK = 1.0
MOST_AT_ONCE = 1000  # entries of one key in one answer
FEW = 100  # keys that cost the server next to nothing
PAUSE_PER_KEY = 10e-6  # seconds; a read of a thousand keys costs the server some milliseconds

Take = Callable[[list[Entry]], None]


class Channel:
    """A key that is listened to, and the position read so far."""

    __slots__ = ("key", "position", "take", "uncertain")

    def __init__(self, key: str, position: int, take: Take, uncertain: Callable[[], None]) -> None:
        self.key = key
        self.position = position
        self.take = take
        self.uncertain = uncertain


class Listener:
    """``ask`` is the connection for ordinary requests; the blocked one is opened beside it."""

    def __init__(self, ask: Connection, prefix: str, sweep: Callable[[], Awaitable[None]]) -> None:
        self._ask = ask
        self._line = ask.another()
        self._sweep = sweep
        self._wake_key = f"{prefix}:tailrace:wake:{secrets.token_hex(8)}"
        self._channels: dict[str, Channel] = {}
        self._woken = 0  # the position in the key that wakes
        self._reading = False
        self._added = False
        self._waker: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, key: str, position: int, take: Take, uncertain: Callable[[], None]) -> Channel:
        """Listen to ``key`` behind ``position``. One channel a key."""
        channel = self._channels[key] = Channel(key, position, take, uncertain)
        self._added = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen(), name="redis listener")
        elif self._reading and (self._waker is None or self._waker.done()):
            self._waker = asyncio.create_task(self._wake(), name="redis waker")
        return channel

    def remove(self, channel: Channel) -> None:
        """Listen to it no more. Idempotent."""
        if self._channels.get(channel.key) is channel:
            del self._channels[channel.key]

    async def _wake(self) -> None:
        try:
            while self._added:  # what is added meanwhile may come too late for this one
                self._added = False
                await self._ask.call("XADD", self._wake_key, "MAXLEN", 1, "*", "w", "1")
                await self._ask.call("PEXPIRE", self._wake_key, 60_000)
        except (TailraceError, Unanswered) as error:  # the blocked read ends by itself
            logger.debug("the listener was not woken: %s", error)

    async def _listen(self) -> None:
        swept = asyncio.get_running_loop().time()
        lost = False
        while self._channels:
            async for _ in backoff():
                try:
                    await self._read()
                    if lost:
                        lost = False
                        for channel in tuple(self._channels.values()):
                            channel.uncertain()
                    break
                except (BrokerError, Unanswered) as error:
                    lost = True
                    logger.debug("listening was interrupted: %s", error)
            if None not in (self._ask.peer, self._line.peer) and self._ask.peer != self._line.peer:
                self._line.drop()  # what is listened to is no longer what is written to
            now = asyncio.get_running_loop().time()
            if now - swept >= BLOCK:
                swept = now
                try:
                    await self._sweep()
                except (TailraceError, Unanswered) as error:
                    logger.debug("a sweep failed: %s", error)

    async def _read(self) -> None:
        channels = {channel.key.encode(): channel for channel in tuple(self._channels.values())}
        keys = [*(channel.key for channel in channels.values()), self._wake_key]
        places = [*(id_of(channel.position) for channel in channels.values()), id_of(self._woken)]
        self._reading = True
        try:
            found = await self._line.call(
                "XREAD",
                "COUNT",
                MOST_AT_ONCE,
                "BLOCK",
                int(BLOCK * 1000),
                "STREAMS",
                *keys,
                *places,
                timeout=BLOCK + self._ask.options.request_timeout,
            )
        finally:
            self._reading = False
        for key, reply in found or ():
            entries = entries_of(reply)
            channel = channels.get(key)
            if channel is None:
                self._woken = entries[-1][0]
                continue
            channel.position = max(channel.position, entries[-1][0])
            if self._channels.get(channel.key) is channel:
                self._give(channel, entries)
        if len(keys) > FEW and found:  # let more come before the next read: its cost is by key, not by entry
            await asyncio.sleep(PAUSE_PER_KEY * len(keys))

    def _give(self, channel: Channel, entries: list[Entry]) -> None:
        try:
            channel.take(entries)
        except Exception:  # one listener's mishap is not the others'
            logger.exception("a listener failed", extra={"key": channel.key})

    async def close(self) -> None:
        """Idempotent."""
        self._channels.clear()
        await end(*(task for task in (self._task, self._waker) if task is not None))
        await self._line.close()
