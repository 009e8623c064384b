"""The pending buffer between a handler and the store.

The handler puts chunk by chunk and waits while the buffer is full: that is its back-pressure. One that cannot wait in
the middle of a call pushes, and drains where it can. The writer takes everything pending at once: while one round trip
is under way the next one fills, so the slower the broker the more each carries. One producer, one writer, one event
loop.
"""

from __future__ import annotations

import asyncio


class OutletClosed(Exception):
    """The run is over; nothing is taken any more."""


class Outlet:
    """Holds at most ``max_bytes`` bytes (or one larger chunk) and ``max_chunks`` chunks."""

    def __init__(self, max_bytes: int, max_chunks: int) -> None:
        self._max_bytes, self._max_chunks = max_bytes, max_chunks
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._closed = False
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()

    @property
    def pending(self) -> int:
        """The bytes that were not taken yet."""
        return self._bytes

    async def put(self, chunk: bytes) -> None:
        """Add a chunk once there is room. Raises `OutletClosed`."""
        while not self._closed and self._is_full(len(chunk)):
            self._emptied.clear()
            await self._emptied.wait()
        if self._closed:
            raise OutletClosed
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        self._filled.set()

    def push(self, chunk: bytes) -> None:
        """Add a chunk, whether there is room or not; an empty one, or one that comes after the close, is dropped."""
        if chunk and not self._closed:
            self._chunks.append(chunk)
            self._bytes += len(chunk)
            self._filled.set()

    async def drain(self) -> None:
        """Give the writer its turn, and wait while the bytes are too many. Raises `OutletClosed`."""
        await asyncio.sleep(0)
        while not self._closed and self._bytes >= self._max_bytes:
            self._emptied.clear()
            await self._emptied.wait()
        if self._closed:
            raise OutletClosed

    def _is_full(self, size: int) -> bool:
        return bool(self._chunks) and (self._bytes + size > self._max_bytes or len(self._chunks) >= self._max_chunks)

    async def take(self) -> list[bytes]:
        """Everything pending, at least one chunk; empty once the outlet is closed and all was taken."""
        while not self._chunks and not self._closed:
            self._filled.clear()
            await self._filled.wait()
        taken, self._chunks, self._bytes = self._chunks, [], 0
        self._emptied.set()
        return taken

    def close(self) -> None:
        """Take nothing more; what is pending can still be taken. Idempotent."""
        self._closed = True
        self._filled.set()
        self._emptied.set()
