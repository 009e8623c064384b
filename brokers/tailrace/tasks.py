"""Work that must come to its end whatever becomes of who asked for it.

A caller may give up (a time-out, a cancelled request); the work goes on as a task of its store, which knows all of them
and ends them when it closes. What fails with an error of ours was told to whoever asked; anything else is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tailrace.errors import BrokerUnavailable, TailraceError

logger = logging.getLogger("tailrace.store")
T = TypeVar("T")
_AGAIN = 1.0  # seconds until a task that goes on is cancelled once more


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks``, and wait until they have ended. Cancelling once may not do: in Python 3.11, a `wait_for` whose
    work is done at that moment returns as if nobody had cancelled (python/cpython#86296), and libraries use it."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN)


class Tasks:
    """The tasks of one store. ``timeout`` (seconds) is how long a caller waits for the broker."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work``, and keep it until it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, TailraceError):
            logger.error("a task of the store failed", exc_info=error)

    async def bounded(
        self,
        work: Coroutine[Any, Any, T],
        given_up: Callable[[asyncio.Task[T]], Coroutine[Any, Any, None]] | None = None,
        *,
        patient: bool = False,
    ) -> T:
        """Run ``work`` to its end whatever becomes of the caller, but let the caller wait only so long (a ``patient``
        one as long as it likes). Where the caller goes before it ends, ``given_up`` is run with its task.

        Raises `BrokerUnavailable` when the time is over, or these tasks are closed.
        """
        task = self.spawn(work)
        try:
            async with asyncio.timeout(None if patient else self.timeout):
                return await asyncio.shield(task)
        except BaseException as error:
            if task.cancelled() and not isinstance(error, TimeoutError) and not _is_cancelled():
                raise BrokerUnavailable("The store was closed") from None
            if isinstance(error, TimeoutError | asyncio.CancelledError) and given_up is not None and not self._closing:
                self.spawn(given_up(task))
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable(f"The broker did not answer in {self.timeout:g} s") from None
            raise

    def close(self) -> None:
        """Begin no more work for those who give up."""
        self._closing = True

    async def aclose(self) -> None:
        """Cancel what is left, and wait until it has ended."""
        self.close()
        for task in tuple(self._tasks):
            task.cancel()
        await self.idle()

    async def idle(self) -> None:
        """Wait until nothing is left to do."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def __len__(self) -> int:
        return len(self._tasks)


def _is_cancelled() -> bool:
    """Whether somebody asked the current task to stop."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
