"""One followed stream: its records are judged as they come, and whoever waits for them hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from tailrace.decide import begins_a_life, ends_a_life
from tailrace.errors import UnsupportedRecord
from tailrace.kafka.chain import Chain, Judged
from tailrace.kafka.reading import Raw
from tailrace.log import AppendRefused
from tailrace.records import Stored

if TYPE_CHECKING:
    from tailrace.kafka.tracks import Partition

HISTORY_BYTES = 4 * 1024 * 1024


class Track:
    """One stream as this process follows it. ``last``: its last record that counts."""

    def __init__(self, stream_id: str, key: bytes, partition: Partition) -> None:
        self.stream_id = stream_id
        self.key = key
        self.partition = partition
        self.last: Stored | None = None
        self.error: UnsupportedRecord | None = None
        self.history: list[Stored] | None = None
        self.followers: set[Callable[[Stored], None]] = set()
        self.uncertain: set[Callable[[], None]] = set()
        self.waiting: dict[str, asyncio.Future[int]] = {}
        self.ready: asyncio.Task[None] | None = None
        self.used = 0.0
        self.beginning = 0
        self.chain: Chain | None = None
        self.early: list[Raw | tuple[int, int]] = []
        self._history_bytes = 0

    @property
    def position(self) -> int:
        return self.last.position if self.last is not None else 0

    def begin(self, chain: Chain, read: list[Stored]) -> None:
        """What came before is read: take what came meanwhile."""
        self.chain = chain
        self.history = []
        for stored in read:
            self._keep(stored)
        if read:
            self.last = read[-1]
        early, self.early = self.early, []
        for item in early:
            if isinstance(item, tuple):
                chain.miss(*item)
            else:
                self.feed(item)

    def feed(self, raw: Raw) -> None:
        """The partition's next record of this stream."""
        if self.chain is None:
            self.early.append(raw)
            return
        try:
            judged = self.chain.take(raw)
        except UnsupportedRecord as error:
            self.error = error
            self.doubt()
            return
        if judged is not None:
            self._judged(judged)

    def miss(self, start: int, end: int) -> None:
        """The partition's next offsets cannot be read."""
        if self.chain is None:
            self.early.append((start, end))
        else:
            self.chain.miss(start, end)

    def _judged(self, judged: Judged) -> None:
        waiting = self.waiting.pop(judged.record.nonce, None) if self.waiting else None
        stored = judged.stored
        if stored is None:
            if waiting is not None and not waiting.done():
                waiting.set_exception(AppendRefused("another record came first"))
            return
        self.last = stored
        self._keep(stored)
        if waiting is not None and not waiting.done():
            waiting.set_result(stored.position)
        for deliver in tuple(self.followers):
            deliver(stored)
        if stored.record.ending is not None or ends_a_life(stored.record):
            self.partition.tracks.ended(stored)

    def _keep(self, stored: Stored) -> None:
        """Remember it, unless there was too much to remember already."""
        if self.history is None:
            return
        if begins_a_life(stored.record):
            del self.history[:-1]  # the last one freed the id; the life before it is told to nobody
            self._history_bytes = 0
        self.history.append(stored)
        self._history_bytes += sum(map(len, stored.record.chunks))
        if self._history_bytes > HISTORY_BYTES and len(self.history) > 1:
            self.forget_history()

    def forget_history(self) -> None:
        self.history = None
        self._history_bytes = 0

    def doubt(self) -> None:
        """Whoever follows must read."""
        for uncertain in tuple(self.uncertain):
            uncertain()

    @property
    def idle(self) -> bool:
        return not self.followers and not self.waiting and (self.ready is None or self.ready.done())
