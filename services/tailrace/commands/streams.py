"""Bytes in and out of streams: `publish` and `read`."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from tailrace.commands import options, output
from tailrace.commands.manage import show_status
from tailrace.commands.pipes import BLOCK, Input, Output
from tailrace.commands.runtime import Stop, Usage, opened, quiet_logs, run
from tailrace.decide import ending_error
from tailrace.errors import BrokerUnavailable, OffsetOutOfRange, SlowReader, StreamErrored, TailraceError
from tailrace.model import Ending, Incarnation, Offset, Status, validate_stream_id
from tailrace.settings import load

if TYPE_CHECKING:
    from tailrace.model import Lease
    from tailrace.store import LogStore


def publish(
    stream_id: options.StreamId,
    store: options.Store = None,
    content_type: Annotated[
        str, typer.Option("--content-type", help="What readers are told.")
    ] = "application/octet-stream",
    ttl: options.Ttl = None,
    json: options.Json = False,
) -> int:
    """Publish standard input as the stream ID, byte for byte, as it comes; done at its end."""
    validate_stream_id(stream_id)
    options.check_ttl(ttl)
    settings = load(store=store)
    quiet_logs(settings)

    async def command(stop: Stop) -> int:
        async with opened(settings) as opened_store:
            acquired = await opened_store.acquire(stream_id, ttl=ttl, content_type=content_type)
            if acquired.lease is None:
                raise Usage(f"{stream_id} is taken", hint=f"Use another id, or `tailrace delete {stream_id}` first.")
            await _publish(opened_store, acquired.lease)
            info = await opened_store.status(stream_id)
            if json:
                show_status(info, as_json=True)
            else:
                output.note(f"published {stream_id}: {info.bytes} bytes in {info.entries} chunks")
        return output.OK

    return run(command)


async def _publish(store: LogStore, lease: Lease) -> None:
    """Standard input into the stream, and its ending whatever comes: done, or an error that says what happened."""
    stream_id = lease.stream_id
    most = store.limits.max_chunk_bytes or BLOCK
    try:
        source = Input(most=most)
        while blocks := await source.take():
            await store.extend(stream_id, blocks, lease)
    except asyncio.CancelledError:
        await _fail(store, lease, "interrupted", "The producer was interrupted")
        raise
    except OSError as error:
        reason = f"Standard input cannot be read: {error.strerror}"
        await _fail(store, lease, "input-failed", reason)
        raise TailraceError(reason, code="input-failed") from error
    except TailraceError as error:
        await _fail(store, lease, error.code, error.message)
        raise StreamErrored(error.message, code=error.code, hint=error.hint) from error
    await store.finalize(stream_id, "done", lease=lease)


async def _fail(store: LogStore, lease: Lease, code: str, message: str) -> None:
    with contextlib.suppress(TailraceError):  # then it ends as its store's closing, or its liveness, ends it
        await store.finalize(lease.stream_id, "error", message, lease, code=code)


def read(
    stream_id: options.StreamId,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Continue behind this cursor.")] = None,
    offset: Annotated[int | None, typer.Option("--offset", min=0, help="Continue at this byte.")] = None,
    incarnation: Annotated[
        str | None, typer.Option("--incarnation", help="What the offset was counted in (Tailrace-Incarnation).")
    ] = None,
    store: options.Store = None,
    gateway: options.GatewayUrl = None,
    host: options.Host = None,
    port: options.Port = None,
) -> int:
    """Read the stream ID to standard output until it ends, unmodified; 0 if it is done, 1 if it ended otherwise.

    From the store (--store), or from a gateway (--gateway, --host, --port). It reconnects by itself.
    """
    validate_stream_id(stream_id)
    start = _start(cursor, offset, incarnation)
    where = options.where(store, gateway, host, port)
    quiet_logs(where.settings)

    async def command(stop: Stop) -> int:
        sink = Output()
        if where.url is not None:
            await _read_http(where.url, stream_id, start, sink)
        else:
            async with opened(where.settings) as opened_store:
                await read_store(opened_store, stream_id, start, sink)
        return output.OK

    return run(command)


def _start(cursor: str | None, offset: int | None, incarnation: str | None) -> str | Offset:
    if cursor is not None and offset is not None:
        raise Usage("--cursor and --offset are given", hint="Pass one of them.")
    if incarnation is not None and offset is None:
        raise Usage("--incarnation is given without --offset", hint="Pass the offset that was counted in it.")
    if offset is None:
        return cursor or ""
    try:
        return Offset(offset, Incarnation.parse(incarnation) if incarnation is not None else None)
    except ValueError:
        raise Usage(f"Not an incarnation: {incarnation!r}", hint="Pass Tailrace-Incarnation as received.") from None


async def _read_http(url: str, stream_id: str, start: str | Offset, sink: Output) -> None:
    from tailrace.client import AsyncClient

    async with AsyncClient(url) as client:
        if isinstance(start, Offset):
            known = str(start.incarnation) if start.incarnation else None
            answer = client.resume(stream_id, offset=start.bytes, incarnation=known)
        else:
            answer = client.resume(stream_id, cursor=start)
        async with aclosing(answer.bytes()) as parts:
            async for part in parts:
                await sink.write(part)


class Sink(Protocol):
    """Where a stream's bytes go."""

    async def write(self, data: bytes) -> None: ...


async def read_store(store: LogStore, stream_id: str, start: str | Offset, sink: Sink) -> None:
    """The stream's bytes into ``sink``, to its end.

    Raises the ending's error; a deleted stream's too, since a pipe's reader would take less for all.
    """
    began = False
    while True:
        try:
            ending, start = await _read_once(store, stream_id, start, sink)
        except BrokerUnavailable as error:
            if not began:
                raise
            await asyncio.sleep(error.retry_after)
            continue
        began = True
        if ending is None:  # too slow, and cut off: go on where it stopped
            continue
        if (error_of := ending_error(ending)) is not None:
            raise error_of
        return


async def _read_once(
    store: LogStore, stream_id: str, start: str | Offset, sink: Sink
) -> tuple[Ending | None, str | Offset]:
    """Write the stream from ``start`` on; its ending, or None and where to go on."""
    reader = await store.open(stream_id, start)
    written = False
    try:
        while True:
            if body := reader.take_bytes():
                await sink.write(body)
                written = True
            elif reader.ending is not None:
                length = reader.info.bytes
                if reader.ending.status is Status.DONE and isinstance(start, Offset) and start.bytes > length:
                    raise OffsetOutOfRange(f"{stream_id} ended at {length} bytes, below the offset {start.bytes}")
                return reader.ending, start
            else:
                await reader.wait()
    except SlowReader as error:
        # before anything was written an offset inside a chunk is the more exact position
        return None, error.cursor if written else start
    finally:
        reader.close()
