"""Whose turn it is: which of the workers that see a free command tries first, and when the others do.

Every worker orders the live ones by itself, by a hash of command and member, those with room first, and waits a step
for each one before it. So usually one tries; where it is dead, full or deaf, the next one does a moment later. It is
courtesy: whoever tries must still be elected.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from zlib import crc32

from tailrace.contracts import MemberInfo


def rank(command_id: str, handler: str | None, me: str, free_slots: int, members: Iterable[MemberInfo]) -> int:
    """How many of ``members`` come before this one (``me``, with so many ``free_slots``) for a command of ``handler``
    (None: of one that nobody knows)."""

    def place(member_id: str, slots: int) -> tuple[bool, int]:
        return slots <= 0, crc32(f"{command_id} {member_id}".encode())

    mine = place(me, free_slots)
    others = (one for one in members if one.id != me and (handler is None or handler in one.handlers))
    return sum(place(one.id, one.free_slots) < mine for one in others)


class Turns:
    """Commands by the time at which this worker tries them; the loop's time, in seconds."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = 0

    def __contains__(self, command_id: str) -> bool:
        return command_id in self._due

    def put(self, command_id: str, at: float) -> None:
        self._due[command_id] = at
        self._count += 1  # those of one moment in the order in which they came
        heapq.heappush(self._heap, (at, self._count, command_id))

    def drop(self, command_id: str) -> None:
        self._due.pop(command_id, None)

    def take(self, now: float) -> str | None:
        """The command that is due for longest, taken out; None where none is due."""
        self._clean()
        if not self._heap or self._heap[0][0] > now:
            return None
        command_id = heapq.heappop(self._heap)[2]
        del self._due[command_id]
        return command_id

    def wait(self, now: float) -> float | None:
        """Seconds until the next one is due; None where there is none."""
        self._clean()
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    def _clean(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
