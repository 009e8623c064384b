"""`ResumableContext`: run a producer once, and read what it produces from anywhere, again and again.

Theory: the context owns no stream, only tasks. `run` elects; the winner's source is drained by a background task that
holds the lease, and every caller, the winner included, reads the stored stream. So a reader that leaves changes nothing
and the producer's own reader sees what everybody sees.

Rules:

- A task with a lease ends its stream, whatever becomes of it: ``done`` at the source's end, ``error`` with the text of
  what was raised, ``error`` with code ``producer-lost`` where the task is cancelled, even before its first step.
- Nothing is asked before it is done: `resume` opens the reader and learns from that whether there is a stream.
- A hook only watches. It is never awaited by the stream (an async hook runs as a task of its own), and one that raises
  is logged.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tailrace.contracts import Reader, StreamStore
from tailrace.decide import LOST, ending_error
from tailrace.errors import StreamNotFound, TailraceError
from tailrace.model import Entry, Lease, Offset, Status, StreamInfo

STREAM_ID_HEADER = "x-resumable-stream-id"
OCTETS = "application/octet-stream"

Headers = Sequence[tuple[str, str]]
Chunks = AsyncIterable[bytes]
Source = Chunks | Callable[[], Chunks | Awaitable[Chunks]]
Hook = Callable[..., object]

_log = logging.getLogger(__name__)


class ByteStream(AsyncIterator[bytes]):
    """The chunks of a stream, one by one, to its ending: returns after ``done`` or a delete, raises every other
    ending's error (see `StreamStore.read`). `aclose`, or dropping it, ends the read and nothing else."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._taken: deque[Entry] = deque()
        self._cursor = reader.cursor
        self._closed = False

    @property
    def info(self) -> StreamInfo:
        """The stream as known now: content type, headers, incarnation, …"""
        return self._reader.info

    @property
    def cursor(self) -> str:
        """The cursor after the last chunk given."""
        return self._cursor

    async def __anext__(self) -> bytes:
        while not self._closed:
            if self._taken:
                entry = self._taken.popleft()
                self._cursor = entry.cursor
                return entry.chunk
            self._taken.extend(self._reader.take())
            if self._taken:
                continue
            if (ending := self._reader.ending) is None:
                await self._reader.wait()
                continue
            await self.aclose()
            error = ending_error(ending)
            if error is not None and ending.status is not Status.MISSING:
                raise error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the read; a pending ``anext`` ends as at the stream's end. Idempotent."""
        self._closed = True
        self._reader.close()

    def __del__(self) -> None:  # ``async for … break`` drops it without aclose
        if not getattr(self, "_closed", True):
            self._reader.close()


class ResumableContext:
    """Producers and readers of resumable streams on one store, which stays the caller's to close.

    ``ttl`` in seconds for the streams that `run` starts. Hooks, sync or async: ``on_acquire(stream_id, role)``,
    ``on_append(stream_id, size)``, ``on_finalize(stream_id, status, error)``, ``on_error(stream_id, exception)``.
    ``spawn`` is given each producer's task, where a host must know what to wait for.
    """

    def __init__(
        self,
        store: StreamStore,
        *,
        ttl: float | None = None,
        on_acquire: Hook | None = None,
        on_append: Hook | None = None,
        on_finalize: Hook | None = None,
        on_error: Hook | None = None,
        spawn: Callable[[asyncio.Task[None]], object] | None = None,
    ) -> None:
        self._store = store
        self._ttl = ttl
        self._on_acquire, self._on_append = on_acquire, on_append
        self._on_finalize, self._on_error = on_finalize, on_error
        self._spawn = spawn
        self._producers: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(
        self, stream_id: str, make_stream: Source, *, content_type: str = OCTETS, headers: Headers = ()
    ) -> ByteStream:
        """Elect, produce if elected, and read from the beginning.

        ``make_stream`` is called by the producer alone: it gives an async iterator of bytes or an awaitable of one (an
        async iterator in place of the callable does too). Raises what `StreamStore.acquire` and `StreamStore.open` do.
        """
        if self._closed:
            raise RuntimeError("This context is closed")
        acquisition = await self._store.acquire(stream_id, ttl=self._ttl, content_type=content_type, headers=headers)
        if acquisition.lease is not None:
            self._start(acquisition.lease, make_stream)
        self._tell("on_acquire", self._on_acquire, stream_id, acquisition.role)
        return ByteStream(await self._store.open(stream_id))

    async def resume(self, stream_id: str, cursor: str | Offset = "") -> ByteStream | None:
        """Read an existing stream from behind ``cursor``; None where there is none."""
        try:
            return ByteStream(await self._store.open(stream_id, cursor))
        except StreamNotFound:
            return None

    async def require_resume(self, stream_id: str, cursor: str | Offset = "") -> ByteStream:
        """`resume`, but raises `StreamNotFound` (code ``missing``) where there is no stream."""
        stream = await self.resume(stream_id, cursor)
        if stream is None:
            raise StreamNotFound(f"resumable stream not found: {stream_id}")
        return stream

    async def status(self, stream_id: str) -> str:
        """``streaming``, ``done``, ``error`` or ``missing``."""
        return (await self._store.status(stream_id)).status.seed

    async def delete(self, stream_id: str) -> bool:
        """Delete the stream; its readers end. False if there was none."""
        return await self._store.delete(stream_id)

    async def aclose(self, grace: float = 0) -> None:
        """Let producers go on for ``grace`` seconds, cancel those that remain, and return once every stream that this
        context produced has its ending."""
        self._closed = True
        if grace > 0 and self._producers:
            await asyncio.wait(self._producers, timeout=grace)
        for producer in self._producers:
            producer.cancel()
        while tasks := self._producers | self._others:
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _start(self, lease: Lease, make_stream: Source) -> None:
        producer = _Producer(self, lease, make_stream)
        task = asyncio.create_task(producer.run(), name=f"produce {lease.stream_id}")
        _keep(self._producers, task)
        task.add_done_callback(producer.stopped)
        if self._closed:  # closed while it acquired
            task.cancel()
        self._tell("spawn", self._spawn, task)

    def _tell(self, name: str, hook: Hook | None, *args: object) -> None:
        """Call a hook; log what it raises."""
        if hook is None:
            return
        try:
            result = hook(*args)
            if name != "spawn" and inspect.isawaitable(result):
                self._background(_watch(name, result))
        except Exception:  # noqa: BLE001 - a hook may raise anything
            _log.exception("hook failed: %s", name)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return _keep(self._others, asyncio.create_task(work))


class _Producer:
    """One lease's task: drain the source into the store, then the ending."""

    def __init__(self, context: ResumableContext, lease: Lease, make_stream: Source) -> None:
        self._context, self._store = context, context._store
        self._lease, self._stream_id = lease, lease.stream_id
        self._make_stream = make_stream
        self._started = False

    async def run(self) -> None:
        self._started = True
        try:
            await self._drain()
            await self._store.finalize(self._stream_id, "done", None, self._lease)
        except asyncio.CancelledError:
            await asyncio.shield(self._lose())
            raise
        except Exception as error:  # noqa: BLE001 - whatever a source raises is the stream's ending
            self._context._tell("on_error", self._context._on_error, self._stream_id, error)
            await self._fail(str(error), error.code if isinstance(error, TailraceError) else None)
        else:
            self._tell_ending("done", None)

    def stopped(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step never ran `run`: its stream still needs the ending."""
        if not self._started:
            self._lose()

    async def _drain(self) -> None:
        source = self._make_stream() if callable(self._make_stream) else self._make_stream
        chunks = await source if inspect.isawaitable(source) else source
        try:
            async for chunk in chunks:
                data = chunk if type(chunk) is bytes else bytes(memoryview(chunk))
                await self._store.append(self._stream_id, data, self._lease)
                self._context._tell("on_append", self._context._on_append, self._stream_id, len(data))
        finally:
            await _close(chunks)

    def _lose(self) -> asyncio.Task[None]:
        return self._context._background(self._fail(LOST.message, LOST.code))

    async def _fail(self, message: str | None, code: str | None) -> None:
        try:
            await self._store.finalize(self._stream_id, "error", message, self._lease, code=code)
        except Exception:  # noqa: BLE001 - nobody is left to tell
            _log.exception("finalize failed: %s %s", self._stream_id, self._lease.token)
        else:
            self._tell_ending("error", message)

    def _tell_ending(self, status: str, message: str | None) -> None:
        self._context._tell("on_finalize", self._context._on_finalize, self._stream_id, status, message)


def _keep(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> asyncio.Task[None]:
    """The loop holds tasks weakly: keep this one until it is done."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def _watch(name: str, result: Awaitable[object]) -> None:
    try:
        await result
    except Exception:  # noqa: BLE001 - a hook may raise anything
        _log.exception("hook failed: %s", name)


async def _close(chunks: object) -> None:
    """Close a source that can be closed, so that a producer that stops early releases what its source holds."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is None:
        return
    try:
        await aclose()
    except Exception:  # noqa: BLE001 - a source may raise anything, and its chunks are stored
        _log.exception("a source failed to close")


@dataclass(frozen=True, slots=True)
class StreamResponse:
    """An HTTP response as data. A body that raises must not look complete on the wire."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: AsyncIterator[bytes]


async def resumable_response(
    context: ResumableContext,
    stream_id: str,
    make_stream: Source,
    *,
    content_type: str = OCTETS,
    stream_headers: Headers = (),
    headers: Headers = (),
) -> StreamResponse:
    """Run or join ``stream_id``. ``content_type`` and ``stream_headers`` are stored with the stream, ``headers`` are
    this response's own."""
    stream = await context.run(stream_id, make_stream, content_type=content_type, headers=stream_headers)
    return _response(stream, stream_id, headers)


async def resume_response(
    context: ResumableContext,
    stream_id: str,
    cursor: str | Offset = "",
    *,
    headers: Headers = (),
    missing_response: Callable[[], StreamResponse] | None = None,
) -> StreamResponse:
    """Resume ``stream_id`` with the content type and headers that its claim stored; 404 where there is none."""
    stream = await context.resume(stream_id, cursor)
    if stream is not None:
        return _response(stream, stream_id, headers)
    if missing_response is not None:
        return missing_response()
    return StreamResponse(404, (("content-type", "application/json"),), _once(b'{"error":"stream not found"}'))


def _response(stream: ByteStream, stream_id: str, headers: Headers) -> StreamResponse:
    info = stream.info
    own = (("content-type", info.content_type or OCTETS),)
    return StreamResponse(200, _merge(own, info.headers, headers, ((STREAM_ID_HEADER, stream_id),)), stream)


def _merge(*layers: Headers) -> tuple[tuple[str, str], ...]:
    """All layers in order; a name in a later layer replaces it in the earlier ones."""
    merged: list[tuple[str, str]] = []
    for layer in layers:
        names = {name.lower() for name, _ in layer}
        merged = [pair for pair in merged if pair[0].lower() not in names] + list(layer)
    return tuple(merged)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
