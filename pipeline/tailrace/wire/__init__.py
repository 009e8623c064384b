"""The formats that an answer can travel in: chunks to bytes and back.

One table, `FORMATS`, holds them by name. A name may ask for a dialect, the version of npm assistant-stream whose bytes
it means: ``data-stream`` is 0.3.44's, ``data-stream;v=0.3.15`` the older one. A new format is one module and one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from tailrace.errors import UnknownFormat
from tailrace.wire import data_stream as _data_stream
from tailrace.wire import plain_text, sse, ui_message_stream
from tailrace.wire.assistant_transport import AssistantTransportDecoder, AssistantTransportEncoder
from tailrace.wire.codec import Decoder, Encoder
from tailrace.wire.data_stream import DataStreamEncoder
from tailrace.wire.data_stream_decoder import DataStreamDecoder, LegacyDataStreamDecoder
from tailrace.wire.object_stream import FORMAT_HEADER
from tailrace.wire.plain_text import PlainTextDecoder, PlainTextEncoder
from tailrace.wire.ui_message_stream import UiMessageStreamEncoder
from tailrace.wire.ui_message_stream_decoder import UiMessageStreamDecoder

__all__ = ["DIALECTS", "FORMATS", "Decoder", "Encoder", "Format", "find_format", "format_of"]

DIALECTS: Final = ("0.3.44", "0.3.15")
"""The versions whose bytes can be asked for; the first is the default."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format in one dialect. ``encoder`` and ``decoder`` make one for one stream, ``headers`` are the response's.

    ``abort`` ends a stream that somebody stopped, instead of what ``finish`` gives; most formats cannot say so, and
    then the stream just lacks its end.

    Decoders take ``max_line`` (bytes), and ``strict`` where the dialect knows it.
    """

    name: str
    headers: Mapping[str, str]
    encoder: Callable[[], Encoder]
    decoder: Callable[..., Decoder]
    abort: bytes = b""


FORMATS: Final[dict[str, Format]] = {
    format.name: format
    for format in (
        Format("data-stream", _data_stream.HEADERS, DataStreamEncoder, DataStreamDecoder),
        Format(
            "data-stream;v=0.3.15",
            _data_stream.HEADERS,
            partial(DataStreamEncoder, legacy=True),
            LegacyDataStreamDecoder,
        ),
        Format("assistant-transport", sse.HEADERS, AssistantTransportEncoder, AssistantTransportDecoder),
        Format(
            "assistant-transport;v=0.3.15",
            sse.HEADERS,
            AssistantTransportEncoder,
            partial(AssistantTransportDecoder, legacy=True),
        ),
        Format(
            "ui-message-stream",
            ui_message_stream.HEADERS,
            UiMessageStreamEncoder,
            UiMessageStreamDecoder,
            ui_message_stream.ABORT,
        ),
        Format("plain-text", plain_text.HEADERS, PlainTextEncoder, PlainTextDecoder),
        Format(
            "plain-text;v=0.3.15", plain_text.LEGACY_HEADERS, partial(PlainTextEncoder, legacy=True), PlainTextDecoder
        ),
    )
}


def find_format(name: str) -> Format:
    """The format of a name such as ``data-stream`` or ``data-stream;v=0.3.15``; ``text`` is plain text too.

    Raises UnknownFormat.
    """
    base, _, version = name.replace(" ", "").partition(";v=")
    base = "plain-text" if base == "text" else base
    found = FORMATS.get(base if version in ("", DIALECTS[0]) else f"{base};v={version}")
    if found is None:
        raise UnknownFormat(f"Unknown format: {name}", hint="Known formats: " + ", ".join(FORMATS))
    return found


def format_of(content_type: str | None, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> Format | None:
    """The format of a response or a stored stream by its content type and headers, in the newest dialect.

    None where they name no format of chunks: bytes, an object stream, somebody's own events. The older dialect's plain
    text has the data stream's headers, and counts as one.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    given = headers.items() if isinstance(headers, Mapping) else headers
    marks = {name.lower(): value.strip().lower() for name, value in given}
    if media_type == "text/plain":
        return FORMATS["data-stream" if marks.get("x-vercel-ai-data-stream") == "v1" else "plain-text"]
    if media_type != "text/event-stream" or FORMAT_HEADER.lower() in marks:
        return None
    return FORMATS["ui-message-stream" if "x-vercel-ai-ui-message-stream" in marks else "assistant-transport"]
