"""Sealing: whoever meets an ended stream that is not sealed may rewrite it as segments, in the background.

Rules: segments are written once and never change. A stream of few records stays as it is: reading them costs no more
than a segment. A seal that fails costs nothing but the next reader's time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from tailrace import decide
from tailrace.commit import insist
from tailrace.errors import RecordError, TailraceError
from tailrace.fanout import Tail
from tailrace.fold import State
from tailrace.log import Log
from tailrace.model import Incarnation
from tailrace.segments import seal, unseal

logger = logging.getLogger("tailrace.sealing")

MIN_RECORDS = 12
OTHER_RECORDS = 2  # at least: a claim, an ending
AT_ONCE = 2


class Sealer:
    """Seals ended streams of one log, ``AT_ONCE`` at a time."""

    def __init__(self, log: Log, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._log = log
        self._spawn = spawn
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._at_work: set[str] = set()

    def offer(self, stream_id: str, entries: int | None = None) -> None:
        """The stream has ended: seal it soon. ``entries``: how many it has, where that is known; each is one record at
        most, and with too few of them there is nothing to look at."""
        too_few = entries is not None and entries + OTHER_RECORDS < MIN_RECORDS
        if stream_id not in self._at_work and not too_few:
            self._at_work.add(stream_id)
            self._spawn(self._seal(stream_id))

    async def _seal(self, stream_id: str) -> None:
        try:
            async with self._slots:
                records = await insist(lambda: self._log.read(stream_id))
                tail = Tail(stream_id)
                tail.load(records)
                incarnation = tail.incarnation
                if incarnation is not None and len(records) >= MIN_RECORDS and decide.sealable(tail.state):
                    segments = seal(stream_id, tail.state, tail.chunks, self._log.max_record_bytes)
                    await insist(lambda: self._log.write_segments(stream_id, incarnation, segments))
        except TailraceError as error:
            logger.warning("a stream was not sealed: %s", error, extra={"stream": stream_id})
        finally:
            self._at_work.discard(stream_id)

    async def load(self, stream_id: str, incarnation: Incarnation) -> tuple[State, list[bytes], list[int]] | None:
        """The sealed stream, or None where it is not sealed (or not readably so: then its records are read)."""
        segments = await self._log.read_segments(stream_id, incarnation)
        if segments is None:
            return None
        try:
            return unseal(stream_id, segments)
        except RecordError as error:
            logger.warning("segments cannot be read: %s", error, extra={"stream": stream_id})
            return None

    async def drop(self, stream_id: str, incarnation: Incarnation) -> None:
        """The stream was deleted: its segments go too. What is missed here, age removes."""
        try:
            await self._log.drop_segments(stream_id, incarnation)
        except TailraceError as error:
            logger.warning("segments were not removed: %s", error, extra={"stream": stream_id})
