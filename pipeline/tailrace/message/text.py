"""A part that takes text."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias

from tailrace.message.chunks import Chunk, InvalidChunk, PartFinishChunk, Path, TextDeltaChunk
from tailrace.message.dialect import LEGACY, NEWEST, Dialect
from tailrace.message.errors import PartClosed

Emit: TypeAlias = Callable[[Chunk], None]
"""Takes the next chunk of an answer. It is called in program order and must not block."""


class TextWriter:
    """Writes the text of one part, or of a tool call's arguments. A context manager: leaving it closes the part.

    With ``strict`` off, text that comes after the close is dropped; else it raises PartClosed, in the dialect's words.
    """

    __slots__ = ("_dialect", "_emit", "_on_close", "_path", "_strict", "closed")

    def __init__(
        self,
        emit: Emit,
        path: Path,
        *,
        dialect: Dialect = NEWEST,
        strict: bool = True,
        on_close: Callable[[], None],
    ) -> None:
        self._emit = emit
        self._path = path
        self._dialect = dialect
        self._strict = strict
        self._on_close = on_close
        self.closed = False

    def append(self, text: str) -> Self:
        """Adds text; an empty one makes a chunk too. Raises PartClosed after `close`, InvalidChunk for no str."""
        if not isinstance(text, str):
            raise InvalidChunk(f"Text is a string, not {type(text).__name__}")
        if not self.closed:
            self._emit(TextDeltaChunk(text, self._path))
        elif self._strict:
            raise _closed(self._dialect)
        return self

    def close(self) -> None:
        """Ends the text; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def finish_part(emit: Emit, path: Path) -> None:
    emit(PartFinishChunk(path))


def _closed(dialect: Dialect) -> PartClosed:
    if dialect != LEGACY:
        return PartClosed("Cannot append to a closed TextStreamController")
    error = PartClosed("Invalid state: Controller is already closed")  # Node's own words, which 0.3.15 lets through
    error.reported_as = "TypeError [ERR_INVALID_STATE]"
    return error
