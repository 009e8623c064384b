"""A worker's way to the groups of its handlers: commands are read, reclaimed from the silent, put back at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tailrace.errors import BrokerFailed, BrokerUnavailable
from tailrace.redis.connection import Unanswered
from tailrace.redis.runs import GROUP, RedisRunQueue, Taken

BLOCK = 5.0  # seconds that a read waits at most


class Consumer:
    """``name`` is the consumer's in the groups. `take` waits on a connection of its own."""

    def __init__(self, queue: RedisRunQueue, name: str, handlers: Sequence[str]) -> None:
        self._queue = queue
        self._name = name
        self._handlers = {queue.names.runs(handler): handler for handler in handlers}
        self._line = queue.connection.another()
        self._idle = max(1, int(queue.ack_wait * 1000))  # milliseconds
        self._looked = 0.0

    async def join(self) -> None:
        """Make the groups that are not there. Raises `BrokerError`."""
        for key in self._handlers:
            try:
                await self._queue.ask("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
            except BrokerFailed as error:
                if "BUSYGROUP" not in error.message:
                    raise

    async def take(self) -> list[Taken]:
        """The next commands, one of a handler at most, or none after some seconds. Those of silent consumers first,
        looked for four times within ``ack_wait``. Raises `BrokerError`."""
        now = asyncio.get_running_loop().time()
        if now - self._looked >= self._queue.ack_wait / 4:
            if reclaimed := await self._reclaim():
                return reclaimed
            self._looked = now
        wait = min(BLOCK, self._queue.ack_wait / 4)
        keys = list(self._handlers)
        try:
            reply = await self._line.call(
                *("XREADGROUP", "GROUP", GROUP, self._name, "COUNT", 1, "BLOCK", int(wait * 1000), "STREAMS"),
                *keys,
                *(">" for _ in keys),
                timeout=wait + self._line.options.request_timeout,
            )
        except Unanswered as error:
            raise BrokerUnavailable(str(error)) from None
        found: list[Taken] = []
        for key, some in reply or ():
            for at, flat in some:
                if (taken := await self._load(key.decode(), at, flat, 1)) is not None:
                    found.append(taken)
        return found

    async def _reclaim(self) -> list[Taken]:
        """The oldest command that fell silent, or none. (``XAUTOCLAIM`` looks at ten entries for each that it may
        claim: behind ten that are being worked on it finds nothing.)"""
        for key in self._handlers:
            while silent := await self._queue.ask("XPENDING", key, GROUP, "IDLE", self._idle, "-", "+", 1):
                at, _, _, deliveries = silent[0]
                claimed = await self._queue.ask("XCLAIM", key, GROUP, self._name, self._idle, at)
                if not claimed:  # somebody else was faster, or it was acked
                    continue
                fields = claimed[0][1] if claimed[0] else None
                taken = await self._load(key, at, fields, int(deliveries) + 1)
                if taken is not None:
                    return [taken]
        return []

    async def _load(self, key: str, at: bytes, flat: list[bytes] | None, deliveries: int) -> Taken | None:
        """The command of an entry that was taken, or None where it was acked already."""
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
        handler = self._handlers[key]
        stream_id = fields.get(b"id", b"").decode("utf-8", "replace")
        facts, data = await self._queue.ask("HMGET", self._queue.names.run(stream_id), f"m:{handler}", f"i:{handler}")
        taken = Taken(
            handler,
            at.decode(),
            stream_id,
            fields.get(b"command", b"").decode("utf-8", "replace"),
            int(fields.get(b"n", b"1")) + deliveries - 1,
            int(fields.get(b"at", b"0")),
            facts or b"",
            data or b"",
        )
        if facts:
            return taken
        await self._queue.ack(taken, self._name)
        return None

    async def leave(self) -> None:
        """Put back what is still in this consumer's hands, and forget the consumer. Raises `BrokerError`."""
        for key in self._handlers:
            while pending := await self._queue.part(key, self._name):
                for at, _, _, deliveries in pending:
                    entries = await self._queue.ask("XRANGE", key, at, at)
                    flat = entries[0][1] if entries else None
                    taken = await self._load(key, at, flat, int(deliveries))
                    if taken is not None:
                        await self._queue.retry(taken, self._name)

    async def close(self) -> None:
        """Close the connection: the server forgets a read that waits there. Idempotent."""
        await self._line.close()
