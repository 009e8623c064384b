"""Text that grows: a snapshot is a count into pieces that all of them share.

Rules:

- Adding text costs that text, however much there is already; reading joins what is there.
- Halves of a surrogate pair that come in two pieces are one character, as in UTF-16.
"""

from __future__ import annotations

from typing import Self

from tailrace.message.utf16 import join_surrogates


class Pieces:
    """Pieces in order, and the text of the first few of them, with their number, as it was read last."""

    __slots__ = ("pieces", "read")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.read = (0, "")

    def text(self, count: int) -> str:
        known, text = self.read
        if count < known:
            return _joined("", self.pieces[:count])
        if count > known:
            text = _joined(text, self.pieces[known:count])
            self.read = (count, text)
        return text

    def branch(self, count: int) -> Self:
        new = type(self)()
        new.pieces = self.pieces[:count]
        return new


def _joined(text: str, pieces: list[str]) -> str:
    more = "".join(pieces)
    if more.isascii():
        return text + more
    return text[:-1] + join_surrogates(text[-1:] + more)


class GrowingText:
    """A text as of some piece. Immutable."""

    __slots__ = ("_count", "_shared")
    _shared: Pieces

    def __init__(self) -> None:
        self._shared = Pieces()
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
        return self._shared.text(self._count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowingText) and str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"
