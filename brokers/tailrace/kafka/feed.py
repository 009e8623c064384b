"""One followed partition: where it stands, and who waits for it to move. `feeds` makes it move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tailrace.kafka.connection import Place
from tailrace.kafka.reading import Batch, Raw

Lost = Callable[[int, int], int]


class Feed:
    """One followed partition. ``position`` is the offset that comes next, ``wanted`` the highest that was waited for
    and may come; ``hurry`` is called where somebody begins to wait."""

    def __init__(
        self, place: Place, position: int, take: Callable[[Batch], None], lost: Lost, hurry: Callable[[], None]
    ) -> None:
        self.place = place
        self.position = position
        self.take = take
        self.lost = lost
        self.hurry = hurry
        self.wanted = 0
        self.high = 0  # the end that the broker told last, not earlier than what it gave
        self.doubted = False  # the broker does not answer
        self.unproven = False  # an append was not answered: the broker may have begun anew with less than it had
        self.on_back: Callable[[], None] | None = None  # hears that it goes on after a failure
        self.passed_over = False  # the last answer should have had something, and had not
        self.last: Raw | None = None
        self.unanchored = False  # it began behind records that it has not seen the last of
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def in_doubt(self) -> bool:
        """Whether the last record is to be seen again."""
        return self.doubted or self.unproven

    @property
    def asks_from(self) -> int:
        """The offset to ask from: before the position where the last record is to be seen, or seen again."""
        if self.last is not None and self.in_doubt:
            return self.last.offset
        return self.position - 1 if self.unanchored else self.position

    async def passed(self, offset: int) -> None:
        """Return when everything before ``offset`` was taken."""
        if self.position < offset:
            waiter = (offset, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            self.want(offset)
            try:
                await waiter[1]
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def want(self, offset: int) -> None:
        """There is something before ``offset`` that somebody waits for."""
        self.wanted = max(self.wanted, offset)
        self.hurry()

    def took(self, batch: Batch) -> None:
        """Take what comes next."""
        if batch.records:
            self.last = batch.records[-1]
        self.take(batch)
        self.moved(batch.next_offset)

    def moved(self, position: int) -> None:
        self.position = position
        if self._waiters:
            for waiter in [waiter for waiter in self._waiters if waiter[0] <= position]:
                self._waiters.remove(waiter)
                if not waiter[1].done():
                    waiter[1].set_result(None)
