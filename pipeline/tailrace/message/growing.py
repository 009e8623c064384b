"""Text that grows, and the arguments that it says: a snapshot of either is a count into pieces that all of them share.

Rules:

- Adding text costs that text, however much there is already; reading joins what is there.
- Halves of a surrogate pair that come in two pieces are one character, as in UTF-16.
- The arguments at a snapshot are those of the text so far or, while it is no object, those before its last piece, and
  so on. They are read when asked for. After TRIES pieces that were no object the search goes on by halves, so that a
  text that turned bad long ago costs a few readings; it can then miss a good piece among bad ones.
"""

from __future__ import annotations

from typing import Any, Final, Self

from tailrace.message.partial_json import PartialJson, PartialJsonScanner
from tailrace.wire.jsjson import join_surrogates

TRIES: Final = 64


class _Pieces:
    """Pieces in order, and the text of the first ``joined_count`` of them."""

    __slots__ = ("joined", "joined_count", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.joined_count = 0
        self.joined = ""

    def text(self, count: int) -> str:
        if count < self.joined_count:
            return "".join(self.pieces[:count])
        if count > self.joined_count:
            self.joined += "".join(self.pieces[self.joined_count : count])
            self.joined_count = count
        return self.joined

    def branch(self, count: int) -> Self:
        new = type(self)()
        new.pieces = self.pieces[:count]
        return new


class GrowingText:
    """A text as of some piece. Immutable."""

    __slots__ = ("_count", "_shared")
    _shared: _Pieces

    def __init__(self) -> None:
        self._shared = _Pieces()
        self._count = 0

    def append(self, text: str) -> Self:
        """This text and more."""
        shared = self._shared
        if self._count != len(shared.pieces):
            shared = shared.branch(self._count)
        shared.pieces.append(text)
        new = object.__new__(type(self))
        new._shared = shared
        new._count = self._count + 1
        return new

    def __str__(self) -> str:
        text = self._shared.text(self._count)
        return text if text.isascii() else join_surrogates(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowingText) and str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class _ArgsPieces(_Pieces):
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
