"""One answer inside another: the inner one's parts get the next free indices of the outer one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable

from tailrace.message.chunks import Chunk, PartStartChunk
from tailrace.message.errors import AnswerClosed, UnknownPart
from tailrace.message.text import Emit


class Merge:
    """Takes an inner answer's chunks, in order. Path ``(i, …)`` becomes ``(j, …)``, j being what part i was given."""

    __slots__ = ("_emit", "_mapping", "_on_close", "_take_index", "closed")

    def __init__(self, emit: Emit, take_index: Callable[[], int], on_close: Callable[[], None]) -> None:
        self._emit = emit
        self._take_index = take_index
        self._on_close = on_close
        self._mapping: list[int] = []
        self.closed = False

    def push(self, chunk: Chunk) -> None:
        """The inner answer's next chunk. Raises UnknownPart, and AnswerClosed after the outer answer's end."""
        if self.closed:
            raise AnswerClosed("Cannot add streams after the run callback has settled.")
        if not chunk.path:
            if isinstance(chunk, PartStartChunk):
                self._mapping.append(self._take_index())
            self._emit(chunk)
            return
        index, *rest = chunk.path
        if index >= len(self._mapping):
            raise UnknownPart("Path not found")
        self._emit(chunk.with_path((self._mapping[index], *rest)))

    def close(self) -> None:
        """The inner answer has ended; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._on_close()


async def each(chunks: AsyncIterable[Chunk] | Iterable[Chunk]) -> AsyncGenerator[Chunk]:
    """The chunks of an answer. To close this closes ``chunks``, if that is a generator: nobody else reads on."""
    if not isinstance(chunks, AsyncIterable):
        for chunk in chunks:
            yield chunk
        return
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
