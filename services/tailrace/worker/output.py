"""What a run writes: the format that was asked for, as the handler serves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tailrace import formats
from tailrace.errors import UnknownFormat
from tailrace.wire import FORMATS, Format, find_format
from tailrace.wire.object_stream import NEW, OLD, STATES, StateFormat

DEFAULT: Final = "data-stream"
"""The format of a controller's answer where a run asks for none."""

Headers = tuple[tuple[str, str], ...]
_NOT_KEPT: Final = frozenset({"content-type", "connection"})  # the first is the claim's own, the other a connection's


@dataclass(frozen=True, slots=True)
class Output:
    """What the claim says about a stream. ``wire`` encodes a controller's chunks, or its states; None where a handler
    gives bytes."""

    format: str
    content_type: str
    headers: Headers
    wire: Format | StateFormat | None = None

    @property
    def text(self) -> bool:
        """Whether its chunks are text in UTF-8, which is not split inside a character."""
        return self.content_type.startswith("text/")


def of_bytes(name: str, format: str, content_type: str, headers: Headers) -> Output:
    """The output of the handler ``name``, which yields bytes. Raises `UnknownFormat`."""
    own = formats.TEXT if content_type.startswith("text/") else formats.BYTES
    if format and format not in formats.OPAQUE:
        raise _unserved(name, format, formats.OPAQUE)
    return Output(format or own, content_type, headers)


def of_chunks(name: str, format: str, headers: Headers) -> Output:
    """The output of the handler ``name``, which takes a controller; the format's headers are kept with the stream, so
    that whoever serves it needs no knowledge of the format. Raises `UnknownFormat`."""
    if format == formats.BYTES or format in STATES:
        raise _unserved(name, format, (formats.TEXT, *FORMATS))
    return _encoded(find_format(format or DEFAULT), headers)


def of_states(name: str, format: str, headers: Headers) -> Output:
    """The same of a handler that writes a state. Raises `UnknownFormat`."""
    if format and format not in STATES:
        raise _unserved(name, format, (NEW.name, OLD.name))
    return _encoded(STATES[format or NEW.name], headers)


def _encoded(wire: Format | StateFormat, headers: Headers) -> Output:
    given = {key.lower(): (key, value) for key, value in headers}
    own = {key.lower(): (key.lower(), value) for key, value in wire.headers.items()}
    kept = tuple(pair for key, pair in (given | own).items() if key not in _NOT_KEPT)
    return Output(wire.name, own["content-type"][1], kept, wire)


def _unserved(name: str, format: str, offered: tuple[str, ...]) -> UnknownFormat:
    return UnknownFormat(f"The handler {name} does not write {format}; it writes {', '.join(offered)}", known=offered)
