"""Standard input and output that never block the event loop: a blocked loop beats no heart.

Each end has a daemon thread of its own on the bare descriptor. The interpreter's executor threads would be waited for
at the end, and a read of a terminal, or a write to a stopped pager, may last for ever.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import deque

from tailrace.commands.output import OutputFailed, ReaderGone

BLOCK = 64 * 1024
WAITING = 32  # blocks read ahead


class Input:
    """The blocks of a descriptor, as they come, each of at most ``most`` bytes."""

    def __init__(self, descriptor: int = 0, most: int = BLOCK) -> None:
        self._descriptor = descriptor
        self._most = min(most, BLOCK)
        self._blocks: deque[bytes] = deque()
        self._failure: OSError | None = None
        self._ended = False
        self._wake = asyncio.Event()
        self._room = threading.Semaphore(WAITING)
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    async def take(self) -> list[bytes]:
        """Everything read since the last take, at least one block; nothing at the end. Raises `OSError`."""
        while not self._blocks and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        if not self._blocks and self._failure is not None:
            raise self._failure
        taken = list(self._blocks)
        self._blocks.clear()
        if taken:
            self._room.release(len(taken))
        return taken

    def _read(self) -> None:
        failure: OSError | None = None
        try:
            while True:
                self._room.acquire()
                if not (block := os.read(self._descriptor, self._most)):
                    break
                self._tell(block, None)
        except OSError as error:
            failure = error
        self._tell(None, failure)

    def _tell(self, block: bytes | None, failure: OSError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._told, block, failure)
        except RuntimeError:  # the loop is closed: nobody listens any more
            pass

    def _told(self, block: bytes | None, failure: OSError | None) -> None:
        if block is None:
            self._ended, self._failure = True, failure
        else:
            self._blocks.append(block)
        self._wake.set()


class Output:
    """Writes to a descriptor, in order."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._jobs: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._write, name="stdout", daemon=True).start()

    async def write(self, data: bytes) -> None:
        """Return once all of it is written. Raises `ReaderGone`, and `OutputFailed` where it cannot be written else."""
        written: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((data, written))
        try:
            await written
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise OutputFailed.of(error) from None

    def _write(self) -> None:
        while True:
            data, written = self._jobs.get()
            failure: OSError | None = None
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                failure = error
            try:
                self._loop.call_soon_threadsafe(_settle, written, failure)
            except RuntimeError:  # the loop is closed
                return


def _settle(written: asyncio.Future[None], failure: OSError | None) -> None:
    if written.done():
        return
    if failure is None:
        written.set_result(None)
    else:
        written.set_exception(failure)
