"""Which of a stream's stored records count. Pure.

Theory. Kafka stores whatever it is sent. So every record names the one that it must directly follow (the last one that
counted, as its writer knew it), and counts only if it does: the compare-and-set that other brokers do at the door, done
by every reader alike. The verdict depends on nothing but the partition's order, so all readers that began at or before
the stream's first record agree, whenever they read. A record that comes late (of a process that was paused, a retry, a
second copy) names a predecessor that has another successor by then, and is passed over for ever.

Rules. A record that cannot be read is passed over too. But if others follow it, it was one of the stream's: those
count, and the fold sees the hole. Where the log lost the beginning, the first record that is no claim counts (a claim
may be one that had lost), and the fold sees that the claim is missing. A record of a newer version raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tailrace.decide import begins_a_life
from tailrace.errors import CorruptRecord
from tailrace.kafka.reading import Raw
from tailrace.kafka.wire import record_of
from tailrace.records import Record, Stored


class Judged(NamedTuple):
    """A record, and where it stands in the stream (None: it does not count)."""

    record: Record
    stored: Stored | None


class Chain:
    """The end of a stream as far as it was read. ``last``: the position of its last record (0: it has none; None: what
    came before is not known). ``skip`` hears of what cannot be read."""

    __slots__ = ("_before", "_seen", "_skip", "_unreadable", "last")

    def __init__(self, last: int | None, skip: Callable[[Raw, CorruptRecord], None]) -> None:
        self.last = last
        self._skip = skip
        self._unreadable: list[tuple[int, int]] = []
        self._before: int | None = None
        self._seen = False

    def take(self, raw: Raw) -> Judged | None:
        """Judge the partition's next record of this stream; None where it cannot be read. Raises `UnsupportedRecord`
        for one of a newer version."""
        position = raw.offset + 1
        self._seen = True
        try:
            record, expected = record_of(raw)
        except CorruptRecord as error:
            self._skip(raw, error)
            self.miss(raw.offset, raw.offset + 1)
            return None
        if not self._follows(record, expected):
            return Judged(record, None)
        stored = Stored(position, -1 if self.last is None else self.last, raw.timestamp, record)
        self.last = position
        self._unreadable.clear()
        return Judged(record, stored)

    def trim(self) -> None:
        """What comes next is not kept any more."""
        self._before, self.last = self.last or 0, None
        self._seen = False

    def settle(self) -> None:
        """Everything was read: where nothing of the stream was found behind what was trimmed, nothing was there."""
        if self.last is None and self._before is not None and not self._seen:
            self.last = self._before

    def miss(self, start: int, end: int) -> None:
        """The offsets from ``start`` to before ``end`` cannot be read."""
        self._unreadable.append((start + 1, end + 1))

    def _follows(self, record: Record, expected: int) -> bool:
        if self.last is None:
            return not begins_a_life(record)
        return expected == self.last or any(start <= expected < end for start, end in self._unreadable)
