"""A tool call's arguments while their text grows.

Rules:

- The arguments at a snapshot are those of the text so far or, while it is no object, those before its last piece, and
  so on. They are read when asked for. After TRIES pieces that were no object the search goes on by halves, so that a
  text that turned bad long ago costs a few readings; it can then miss a good piece among bad ones.
"""

from __future__ import annotations

from typing import Any, Final, Self

from tailrace.message.growing import GrowingText, Pieces
from tailrace.message.partial_json import PartialJson, PartialJsonScanner

TRIES: Final = 64


class _ArgsPieces(Pieces):
    __slots__ = ("known", "legacy", "scanned", "scanner")

    def __init__(self) -> None:
        super().__init__()
        self.legacy = False
        self.scanner: PartialJsonScanner | None = None
        self.scanned = 0
        self.known: tuple[int, PartialJson] = (0, PartialJson({}, "partial"))

    def branch(self, count: int) -> Self:
        new = super().branch(count)
        new.legacy = self.legacy
        return new

    def arguments(self, count: int) -> PartialJson:
        if count != self.known[0]:
            self.known = (count, self._last_good(count))
        return self.known[1]

    def _last_good(self, count: int) -> PartialJson:
        low, known = self.known if self.known[0] < count else (0, PartialJson({}, "partial"))
        high = count
        while high > low and count - high < TRIES:
            if (parsed := self._parse(high)) is not None:
                return parsed
            high -= 1
        while high > low:
            middle = (low + high + 1) // 2
            parsed = self._parse(middle)
            if parsed is None:
                high = middle - 1
            else:
                low, known = middle, parsed
        return known

    def _parse(self, count: int) -> PartialJson | None:
        if self.scanner is None or self.scanned > count:
            self.scanner, self.scanned = PartialJsonScanner(legacy=self.legacy), 0
        self.scanner.feed("".join(self.pieces[self.scanned : count]))
        self.scanned = count
        return self.scanner.parse()


class GrowingArgs(GrowingText):
    """A tool call's arguments as of some piece of their text. Immutable."""

    __slots__ = ()
    _shared: _ArgsPieces

    def __init__(self, *, legacy: bool = False) -> None:
        self._shared = _ArgsPieces()
        self._shared.legacy = legacy
        self._count = 0

    @property
    def parsed(self) -> PartialJson:
        """What the text says so far, and which of its fields are complete."""
        return self._shared.arguments(self._count)

    @property
    def value(self) -> Any:
        """The arguments' value: an object, or an array if the text is one; ``{}`` before any text."""
        return self.parsed.value
