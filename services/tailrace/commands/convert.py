"""`convert`: an answer from one format to another, as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tailrace.commands import output
from tailrace.commands.pipes import Input, Output
from tailrace.commands.runtime import Stop, quiet_logs, run
from tailrace.errors import TailraceError
from tailrace.settings import load

if TYPE_CHECKING:
    from tailrace.message.chunks import Chunk
    from tailrace.wire import Encoder

From = Annotated[str, typer.Option("--from", metavar="FORMAT", help="The format of standard input.")]
To = Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format of standard output.")]


def convert(source: From, target: To) -> int:
    """Convert standard input to standard output, chunk by chunk: --from data-stream --to ui-message-stream.

    A dialect is asked for as data-stream;v=0.3.15. docs/formats.md says what each format cannot carry.
    """
    from tailrace.wire import find_format
    from tailrace.wire.errors import UnsupportedChunk, WireError

    settings = load()
    quiet_logs(settings)
    decoder = find_format(source).decoder(max_line=settings.max_line_bytes)
    encoder = find_format(target).encoder()

    async def command(stop: Stop) -> int:
        sink = Output()
        async for blocks in standard_input():
            for block in blocks:
                await _write(sink, encoder, decoder.feed(block))
        await _write(sink, encoder, decoder.close())
        await sink.write(encoder.finish())
        return output.OK

    try:
        return run(command)
    except UnsupportedChunk:
        raise  # the input is well: it is the command that cannot do its work
    except WireError as error:
        return broken(error)
    finally:
        tell_drops(decoder.drops)


async def _write(sink: Output, encoder: Encoder, chunks: Sequence[Chunk]) -> None:
    """The chunks' bytes, all at once. Raises UnsupportedChunk, after those of the chunks before it."""
    parts: list[bytes] = []
    try:
        parts.extend(map(encoder.encode, chunks))
    finally:
        if any(parts):
            await sink.write(b"".join(parts))


async def standard_input() -> AsyncIterator[list[bytes]]:
    """The blocks of standard input as they come. Raises `TailraceError` where it cannot be read."""
    source = Input()
    try:
        while blocks := await source.take():
            yield blocks
    except OSError as error:
        raise TailraceError(f"Standard input cannot be read: {error.strerror}", code="input-failed") from error


def broken(error: TailraceError) -> int:
    """Say that the bytes are not an answer in their format, or not all of one; the exit status of that."""
    output.note(output.error_line(error))
    return output.BAD_ENDING


def tell_drops(drops: list[str]) -> None:
    """Say what a decoder left out."""
    for drop in drops:
        output.note(drop)
