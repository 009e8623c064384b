"""The one shape of every format: an encoder takes chunks and gives bytes, a decoder takes bytes and gives chunks.

Theory: both are small state machines without I/O. One encoder and one decoder serve one stream, from its beginning.

Rules of a decoder:

- The pieces that ``feed`` gets may be cut anywhere; the chunks are the same (but plain text's deltas are the pieces).
- An error waits until all that was decoded before it has been handed out: if a piece holds good chunks and then a bad
  one, ``feed`` returns the good ones and the next call raises. After that every call raises it again.
- ``close`` says that the bytes have ended, and gives what follows from that.
- ``drops`` lists what a decoder left out where upstream warns instead of failing: at most MAX_DROPS messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, Protocol, TypeVar

from tailrace.errors import TailraceError
from tailrace.message.chunks import (
    Chunk,
    PartFinishChunk,
    PartInit,
    PartStartChunk,
    ResultChunk,
    TextDeltaChunk,
    ToolCallArgsTextFinishChunk,
    ToolCallInit,
    UnknownInit,
)
from tailrace.wire.errors import UnsupportedChunk, shortened

MAX_DROPS: Final = 20

_C = TypeVar("_C")


class Encoder(Protocol):
    """Chunks to bytes; ``headers`` are those of the HTTP response that carries them."""

    headers: Mapping[str, str]

    def encode(self, chunk: Chunk) -> bytes:
        """The bytes of one chunk, perhaps none. Raises UnsupportedChunk."""

    def finish(self) -> bytes:
        """The bytes that end the stream, perhaps none."""


class Decoder(Protocol):
    """Bytes to chunks."""

    drops: list[str]

    def feed(self, data: bytes) -> list[Chunk]:
        """The chunks that ``data`` completes. Raises WireError."""

    def close(self) -> list[Chunk]:
        """The chunks that the end of the bytes completes. Raises WireError, StreamCut if the end came too early."""


class BaseDecoder(Generic[_C]):
    """The rule about errors, once: a format gives ``_feed`` and ``_close``, which add to ``_out``."""

    __slots__ = ("_error", "_out", "drops")

    def __init__(self) -> None:
        self._error: TailraceError | None = None
        self._out: list[_C] = []
        self.drops: list[str] = []

    def feed(self, data: bytes) -> list[_C]:
        if self._error is not None:
            raise self._error
        try:
            self._feed(data)
        except TailraceError as error:
            self._error = error
            if not self._out:
                raise
        return self._take()

    def close(self) -> list[_C]:
        if self._error is not None:
            raise self._error
        try:
            self._close()
        except TailraceError as error:
            self._error = error
            raise
        return self._take()

    def _take(self) -> list[_C]:
        out = self._out.copy()
        self._out.clear()  # the list itself stays: part writers hold it
        return out

    def _drop(self, message: str) -> None:
        message = shortened(message)
        if len(self.drops) < MAX_DROPS and message not in self.drops:
            self.drops.append(message)

    def _feed(self, data: bytes) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


def delta_text(chunk: TextDeltaChunk) -> str:
    """The chunk's text, which a sender may have left out or mistyped. Raises UnsupportedChunk."""
    if not isinstance(chunk.text_delta, str):
        raise UnsupportedChunk("A text-delta chunk needs a textDelta, which is a string")
    return chunk.text_delta


class PartTable:
    """Which part a chunk belongs to, for the formats that know only a flat list of parts."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[PartInit | UnknownInit] = []

    def start(self, chunk: PartStartChunk) -> int:
        """The new part's index."""
        if chunk.path:
            raise UnsupportedChunk("Nested parts are not supported")
        if isinstance(chunk.part, ToolCallInit) and not isinstance(chunk.part.tool_call_id, str):
            raise UnsupportedChunk("A tool call needs an id, which is a string")
        self._parts.append(chunk.part)
        return len(self._parts) - 1

    def part_of(
        self, chunk: TextDeltaChunk | ResultChunk | PartFinishChunk | ToolCallArgsTextFinishChunk
    ) -> PartInit | UnknownInit:
        if len(chunk.path) != 1:
            raise UnsupportedChunk(f"{chunk.type} chunks must have a path of length 1")
        index = chunk.path[0]
        if not 0 <= index < len(self._parts):
            raise UnsupportedChunk(f"Invalid path index: {index}")
        return self._parts[index]
