"""How long an answer took, and how fast it came. All times are milliseconds; the clock comes from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tailrace.message.chunks import Json

Clock: TypeAlias = Callable[[], float]
"""Gives the milliseconds since the epoch."""


class TimingTracker:
    """Counts from the moment when it is made."""

    __slots__ = ("_chunks", "_clock", "_first", "_start", "_tool_calls")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._chunks = 0
        self._tool_calls: set[Json] = set()

    def chunk(self) -> None:
        """A chunk came."""
        self._chunks += 1

    def text(self) -> None:
        """Text came."""
        if self._first is None:
            self._first = self._clock()

    def tool_call(self, tool_call_id: Json) -> None:
        """A tool call began."""
        self._tool_calls.add(tool_call_id)

    def timing(self, output_tokens: float, text_length: int) -> dict[str, Json]:
        """The timing now. Without ``output_tokens`` they are a quarter of ``text_length``, in UTF-16 units."""
        total = self._clock() - self._start
        tokens = output_tokens if output_tokens > 0 else -(-text_length // 4)
        timing: dict[str, Json] = {"streamStartTime": self._start}
        if self._first is not None:
            timing["firstTokenTime"] = self._first - self._start
        timing["totalStreamTime"] = total
        if tokens > 0:
            timing["tokenCount"] = tokens
            if total > 0:
                timing["tokensPerSecond"] = tokens / total * 1000
        timing["totalChunks"] = self._chunks
        timing["toolCallCount"] = len(self._tool_calls)
        return timing
