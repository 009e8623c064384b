"""Fetch sessions (KIP-227): a broker remembers what a lane asked for, and is told only what changed.

Theory. A question names every followed partition and its offset, an answer every one of them with what it has: most of
both says nothing. In a session only the partitions whose offset moved are named, and only those with news answered. The
broker numbers the questions; one that it did not expect, or of a session that it forgot, it refuses as a whole, and the
next question names everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.protocol.api import Request
from aiokafka.protocol.fetch import FetchRequest_v11

from tailrace.kafka.connection import Fetched, Place, fetched_of

PARTITION_BYTES = 1024 * 1024
ANSWER_BYTES = 8 * 1024 * 1024
NO_SESSION, NEW = 0, 0
FORGOTTEN = frozenset({70, 71})  # errors: the broker knows nothing of the session, or not of this question in it


class _Question(Request[FetchRequest_v11]):  # type: ignore[misc]  # the library has no types
    API_KEY = 1

    def __init__(self, *values: Any) -> None:
        self._values = values

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(*self._values)


class Session:
    """One lane's session with one node."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew with the next question."""
        self._id, self._epoch = NO_SESSION, NEW
        self._asked: dict[Place, int] = {}

    def question(self, starts: Mapping[Place, int], wait_ms: int) -> Request[Any]:
        """What there is in each partition from its offset on, kept by the broker for at most ``wait_ms``."""
        topics: dict[str, list[tuple[int, int, int, int, int]]] = {}
        for place, start in starts.items():
            if self._asked.get(place) != start:
                self._asked[place] = start
                topics.setdefault(place.topic, []).append((place.partition, -1, start, -1, PARTITION_BYTES))
        forgotten: dict[str, list[int]] = {}
        for place in [place for place in self._asked if place not in starts]:
            del self._asked[place]
            forgotten.setdefault(place.topic, []).append(place.partition)
        head = (-1, wait_ms, 1, ANSWER_BYTES, 0, self._id, self._epoch)
        return _Question(*head, list(topics.items()), list(forgotten.items()) if self._id else [], "")

    def answered(self, answer: Any) -> dict[Place, Fetched] | None:
        """The partitions with news; None where the broker refused the question: the next one begins anew."""
        if answer.error_code:
            self.reset()
            return None
        if answer.session_id == NO_SESSION:  # it gives no sessions: every question is a whole one
            self.reset()
        else:
            self._id, self._epoch = answer.session_id, self._epoch % 0x7FFFFFFF + 1
        return fetched_of(answer)
