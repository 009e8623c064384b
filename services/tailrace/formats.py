"""What a run's ``format`` may say: read by the gateway that accepts the run and by the worker that serves it.

``bytes`` and ``text`` are a handler's own bytes, as they are. The others are wire formats, which a controller's chunks
are encoded in (``text`` is plain text there), or its states, in an object stream. Which of them a handler can serve,
only its worker knows.
"""

from __future__ import annotations

from typing import Final

from tailrace.errors import UnknownFormat
from tailrace.wire import FORMATS, find_format
from tailrace.wire.object_stream import NEW, OLD, STATES

BYTES: Final = "bytes"
TEXT: Final = "text"
OPAQUE: Final = (BYTES, TEXT)
KNOWN: Final = (*OPAQUE, *FORMATS, NEW.name, OLD.name)


def canonical(name: str) -> str:
    """The one name of a format that has several. Raises `UnknownFormat`, which lists the known ones."""
    if name in OPAQUE:
        return name
    if (states := STATES.get(name.replace(" ", ""))) is not None:
        return states.name
    try:
        return find_format(name).name
    except UnknownFormat:
        raise UnknownFormat(f"Unknown format: {name}", hint="Use a known one, or none.", known=KNOWN) from None
