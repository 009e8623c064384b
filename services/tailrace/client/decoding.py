"""Bytes of one answer to chunks and messages, without I/O.

Theory. A decoder, and the accumulator behind it, are made for one stream from its beginning, and live as long as the
answer: so an iteration that was left is gone on with by the next one, at the very next chunk.

Rules. The format is the one that was asked for, else what the response's headers tell. Bytes that another reader of the
same answer took are missing here, so decoding refuses to go on behind them (`NotAtBeginning`); so do messages behind
chunks.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from tailrace.client.errors import NotAtBeginning
from tailrace.errors import UnknownFormat
from tailrace.message.accumulator import AssistantMessageAccumulator
from tailrace.message.chunks import Chunk
from tailrace.message.dialect import dialect_of
from tailrace.message.ids import id_maker
from tailrace.message.message import Message
from tailrace.wire import Decoder, Format, find_format, format_of

OWN: Final = "bytes"  # a handler's own bytes, which may be of any format: its headers tell
_HINT: Final = "Name the format in which it was written with format=…, or read its bytes."


def format_for(name: str | None, headers: Mapping[str, str]) -> Format:
    """The format ``name``, or the one that a response's headers tell. Raises `UnknownFormat`."""
    if name not in (None, OWN):
        return find_format(name)
    kind = headers.get("content-type")
    if (found := format_of(kind, headers)) is None:
        raise UnknownFormat(f"This answer is no message: its content type is {kind}", hint=_HINT)
    return found


class Decoding:
    """The decoder and the accumulator of one answer. ``message`` is the newest one."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._decoder: Decoder | None = None
        self._accumulator: AssistantMessageAccumulator | None = None
        self._chunks: deque[Chunk] = deque()
        self._bytes = self._given = self._accumulated = 0
        self._closed = False

    def require(self, offset: int, *, messages: bool = False) -> None:
        """Raises `NotAtBeginning` where something before ``offset``, or before the next chunk, was not seen here."""
        if self._bytes != offset:
            raise NotAtBeginning(f"Decoding stands at byte {self._bytes}, and the answer at {offset}")
        if messages and self._accumulated != self._given:
            raise NotAtBeginning("Some of this answer's chunks were read without their message")

    def feed(self, data: bytes, headers: Mapping[str, str]) -> None:
        """Raises `UnknownFormat`, `tailrace.wire.errors.WireError`."""
        self._bytes += len(data)
        self._chunks += self._decoder_of(headers).feed(data)

    def finish(self, headers: Mapping[str, str]) -> None:
        """The bytes have ended, and well. Raises as `feed` does."""
        if not self._closed:
            self._chunks += self._decoder_of(headers).close()
            self._closed = True

    def _decoder_of(self, headers: Mapping[str, str]) -> Decoder:
        if self._decoder is None:
            format = format_for(self._name, headers)
            dialect = dialect_of(format.name)
            self._decoder = format.decoder()
            self._accumulator = AssistantMessageAccumulator(
                clock=lambda: time.time() * 1000, new_id=id_maker(secrets.randbelow), dialect=dialect
            )
        return self._decoder

    def chunks(self) -> Iterator[Chunk]:
        """The chunks that are decoded, each once."""
        while self._chunks:
            self._given += 1
            yield self._chunks.popleft()

    def add(self, chunk: Chunk) -> Message:
        """The message with this chunk, which `chunks` gave."""
        assert self._accumulator is not None
        self._accumulated += 1
        return self._accumulator.feed(chunk)

    def settle(self) -> Message | None:
        """The message at the end of all, if that changes it."""
        return self._accumulator.close() if self._accumulator is not None else None

    @property
    def message(self) -> Message:
        return self._accumulator.message if self._accumulator is not None else Message()
