"""`inspect`: a stored or piped answer as the chunks that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from tailrace.commands import options, output
from tailrace.commands.convert import broken, standard_input, tell_drops
from tailrace.commands.pipes import Output
from tailrace.commands.runtime import Stop, Usage, opened, quiet_logs, run
from tailrace.commands.streams import read_store
from tailrace.model import validate_stream_id
from tailrace.settings import Settings, load

if TYPE_CHECKING:
    from tailrace.model import StreamInfo


class _Chunk(Protocol):
    def to_json(self) -> dict[str, Any]: ...


class _Decoder(Protocol):
    drops: list[str]

    def feed(self, data: bytes) -> Sequence[_Chunk]: ...

    def close(self) -> Sequence[_Chunk]: ...


def inspect(
    stream_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A stream; without it, standard input.")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", metavar="FORMAT", help="The format of the bytes.")] = None,
    store: options.Store = None,
    json: Annotated[bool, typer.Option("--json", help="Print each chunk as a line of JSON.")] = False,
) -> int:
    """Show the chunks of the stream ID (or of standard input, with --format): byte offset, path, type and content.

    A live stream is followed to its end. What was decoded is shown before an error.
    """
    from tailrace.wire.errors import WireError

    settings = load(store=store)
    quiet_logs(settings)
    if stream_id is not None:
        validate_stream_id(stream_id)
    elif format is None:
        raise Usage("Neither a stream nor a format is named", hint="Pass an ID, or --format for standard input.")
    decoders: list[_Decoder] = []

    def view(info: StreamInfo | None) -> View:
        decoder, is_events = decoder_of(settings, format, info)
        decoders.append(decoder)
        return View(decoder, Output(), is_events=is_events, render=_json_line if json else _Lines())

    async def command(stop: Stop) -> int:
        if stream_id is not None:
            async with opened(settings) as opened_store:
                shown = view(await opened_store.status(stream_id))
                await read_store(opened_store, stream_id, "", shown)
        else:
            shown = view(None)
            async for blocks in standard_input():
                for block in blocks:
                    await shown.write(block)
        await shown.close()
        return output.OK

    try:
        return run(command)
    except WireError as error:
        return broken(error)
    finally:
        for decoder in decoders:
            tell_drops(decoder.drops)


def decoder_of(settings: Settings, name: str | None, info: StreamInfo | None) -> tuple[_Decoder, bool]:
    """The decoder of the format asked for, or of a stored stream's own; and whether it reads server-sent events."""
    from tailrace.wire import find_format, format_of
    from tailrace.wire.object_stream import FORMAT_HEADER, STATES

    content_type, headers = (info.content_type, info.headers) if info is not None else (None, ())
    is_states = FORMAT_HEADER.lower() in (header.lower() for header, _ in headers)
    if (states := STATES.get(name or ("object-stream" if is_states else ""))) is not None:
        return states.decoder(max_line=settings.max_line_bytes), True
    found = find_format(name) if name is not None else format_of(content_type, headers)
    if found is None:
        raise Usage(f"A stream of {content_type or 'no content type'} names no format", hint="Pass --format.")
    return found.decoder(max_line=settings.max_line_bytes), "event-stream" in found.headers["Content-Type"]


class View:
    """Takes bytes, writes a line a chunk. A chunk's offset is the byte at which its line or event begins."""

    def __init__(
        self, decoder: _Decoder, sink: Output, *, is_events: bool, render: Callable[[int, _Chunk], str]
    ) -> None:
        self._decoder = decoder
        self._sink = sink
        self._is_events = is_events
        self._render = render
        self._begin = self._end = 0
        self._last = b"\n"

    async def write(self, data: bytes) -> None:
        """Raises WireError, after what was decoded before it."""
        lines: list[str] = []
        try:
            lines.extend(self._lines(data))
        finally:
            await self._print(lines)

    async def close(self) -> None:
        await self._print(self._rendered(self._decoder.close()))

    def _lines(self, data: bytes) -> Iterator[str]:
        for piece in data.splitlines(keepends=True):
            chunks = self._decoder.feed(piece)
            self._end += len(piece)
            yield from self._rendered(chunks)
            if chunks or self._ends_frame(piece):
                self._begin = self._end
            self._last = piece[-1:]

    def _ends_frame(self, piece: bytes) -> bool:
        if piece == b"\n" and self._last == b"\r":
            return not self._is_events  # the other half of a line end
        if self._is_events:
            return self._last in (b"\n", b"\r") and not piece.strip(b"\r\n")
        return piece[-1:] in (b"\n", b"\r")

    def _rendered(self, chunks: Iterable[_Chunk]) -> Iterator[str]:
        return (self._render(self._begin, chunk) for chunk in chunks)

    async def _print(self, lines: Iterable[str]) -> None:
        if text := "".join(line + "\n" for line in lines):
            await self._sink.write(text.encode())


def _json_line(offset: int, chunk: _Chunk) -> str:
    from tailrace.wire.jsjson import stringify

    return stringify(chunk.to_json())


class _Lines:
    """A chunk for people: offset, path, type, and the rest of its JSON; in colours on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(soft_wrap=True, highlight=False)

    def __call__(self, offset: int, chunk: _Chunk) -> str:
        from rich.text import Text

        from tailrace.wire.jsjson import stringify

        members = chunk.to_json()
        path, kind = members.pop("path", None), members.pop("type", "state")
        values = {name: stringify(value) for name, value in members.items()}
        rest = [value if len(values) == 1 else f"{name}={value}" for name, value in values.items()]
        line = Text.assemble(
            (f"{offset:>8}", "dim"),
            f"  {stringify(path) if path is not None else '':<6}  ",
            (f"{kind!s:<26}", "cyan"),
            "  " + output.visible(" ".join(rest)),  # JSON leaves some as they are
        )
        line.rstrip()
        with self._console.capture() as printed:
            self._console.print(line)
        return printed.get().removesuffix("\n")
