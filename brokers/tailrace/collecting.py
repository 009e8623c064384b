"""Room for new streams: how many there are, and the end of those whose time passed while nobody looked.

Rules:

- A stream's time only moves on within one life, so what was not due before a moment is not read again before it.
- One look at a time: whoever asks while one is under way waits for that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tailrace import decide
from tailrace.fold import State
from tailrace.log import Log
from tailrace.model import Incarnation


class Collector:
    """``current(stream_id)`` writes what a stream's time has made due, and gives its state."""

    def __init__(
        self,
        log: Log,
        current: Callable[[str], Awaitable[State]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._log = log
        self._current = current
        self._spawn = spawn
        self._not_due: dict[str, tuple[Incarnation, int]] = {}  # a life, and the broker time before which it is not
        self._looking: asyncio.Task[None] | None = None

    async def is_full(self, most: int | None) -> bool:
        """Whether there are ``most`` streams whose time has not passed."""
        if most is None or await self._log.count(most) < most:
            return False
        await self.collect()
        return await self._log.count(most) >= most

    async def collect(self) -> None:
        """Write the expiry of every stream whose time has passed. Raises `tailrace.errors.BrokerError`."""
        if self._looking is None:
            self._looking = self._spawn(self._look())
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None

    async def _look(self) -> None:
        not_due: dict[str, tuple[Incarnation, int]] = {}
        async for stored in self._log.lasts():
            if decide.glance(stored) is None:
                continue
            stream_id, life = stored.record.stream_id, stored.record.incarnation
            known = self._not_due.get(stream_id)
            if known is None or known[0] != life or self._log.now_ms() >= known[1]:
                due = decide.due_ms(await self._current(stream_id))
                known = None if due is None else (life, due)
            if known is not None:
                not_due[stream_id] = known
        self._not_due = not_due
