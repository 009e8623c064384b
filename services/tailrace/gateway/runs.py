"""The routes under ``/v1/runs``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from tailrace import logs
from tailrace.contracts import Reader
from tailrace.errors import ClaimTimeout, RunError, StreamDeleted, StreamNotFound, TailraceError
from tailrace.gateway import describe, problems
from tailrace.gateway.framing import EVENT_STREAM, Raw, Sse, is_text
from tailrace.gateway.live import Gateway
from tailrace.gateway.position import Position, parse
from tailrace.gateway.streaming import StreamResponse, raw_headers
from tailrace.gateway.submission import Submission, claimed, read_request
from tailrace.model import Ending, Mark, Offset, RunRef, Status, StreamInfo, validate_stream_id

_log = logs.get("tailrace.gateway")
CANCELLED = Ending(Status.CANCELLED, "cancelled", "The run was cancelled")
NO_STORE = {"cache-control": "no-store"}
# a stored header must not speak for this connection, nor for the body's length
_OURS = frozenset(
    """connection keep-alive transfer-encoding upgrade trailer te date server set-cookie content-type content-length
    content-encoding etag x-resumable-stream-id tailrace-incarnation""".split()  # noqa: SIM905 - a list of words reads best as words
)


def location(stream_id: str) -> str:
    """Where a run is read."""
    return f"/v1/runs/{stream_id}"


def _whereabouts(stream_id: str) -> dict[str, str]:
    return {"location": location(stream_id), "x-resumable-stream-id": stream_id}


def status_of(info: StreamInfo) -> dict[str, Any]:
    """A stream's status as JSON members; times are RFC 3339."""
    if info.status is Status.QUEUED:  # what else is known of the id belongs to a life that is over
        info = StreamInfo(info.stream_id, info.status)
    members: dict[str, Any] = {"id": info.stream_id, "status": info.status.value}
    if info.code is not None and info.status is not Status.DONE:
        members |= {"code": info.code, "message": info.message}
    return members | {
        "cursor": info.cursor,
        "bytes": info.bytes,
        "entries": info.entries,
        "incarnation": str(info.incarnation) if info.incarnation else None,
        "epoch": info.epoch,
        "content_type": info.content_type,
        "created_at": _time(info.created_at),
        "expires_at": _time(info.expires_at),
    }


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def router(gateway: Gateway) -> APIRouter:
    """The routes, on this gateway."""
    routes, handlers = APIRouter(tags=["runs"]), Runs(gateway)
    one = "/v1/runs/{id}"
    add = routes.add_api_route
    add("/v1/runs", handlers.start, methods=["POST"], **describe.START)
    add("/v1/runs", handlers.every, methods=["GET"], **describe.LIST)
    add(one + "/status", handlers.status, methods=["GET"], **describe.STATUS)
    add(one + "/cancel", handlers.cancel, methods=["POST"], **describe.CANCEL)
    add(one, handlers.read, methods=["GET"], **describe.READ)
    add(one, handlers.read, methods=["HEAD"], include_in_schema=False)
    add(one, handlers.delete, methods=["DELETE"], **describe.DELETE)
    add("/v1/runs", handlers.neither, methods=_ANY, include_in_schema=False)
    add("/v1/runs/{rest:path}", handlers.nothing, methods=_ANY, include_in_schema=False)
    return routes


class Runs:
    """The route functions. Each raises a `TailraceError`, which `problems` turns into the answer."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._store = gateway.store

    async def start(self, request: Request) -> Response:
        gateway = self._gateway
        gateway.require_open()
        submission = Submission(gateway, *await read_request(request, gateway))
        stream_id = submission.command.stream_id
        position = parse(stream_id, request.url.query, request.headers.get("last-event-id"))
        await submission.accept()
        if _prefers_async(request):
            headers = _whereabouts(stream_id) | NO_STORE | {"preference-applied": "respond-async"}
            return JSONResponse({"id": stream_id, "location": location(stream_id)}, 202, headers)
        try:
            reader = await submission.claimed(position.start, request.receive)
        except RunError as error:
            if not isinstance(error, ClaimTimeout):
                raise
            return problems.response_to(error, _whereabouts(stream_id))
        except TailraceError as error:  # the run is accepted all the same
            return problems.response_to(error, _whereabouts(stream_id))
        return self._stream(request, reader, stream_id, position)

    async def read(self, request: Request, id: str) -> Response:
        validate_stream_id(id)
        position = parse(id, request.url.query, request.headers.get("last-event-id"))
        self._gateway.require_open()
        try:
            reader = await self._open(id, position, request.receive)
        except ClaimTimeout as error:
            return problems.response_to(error, {"location": location(id)})
        return self._stream(request, reader, id, position)

    async def _open(self, stream_id: str, position: Position, receive: Receive) -> Reader:
        try:
            return await self._gateway.bounded(self._store.open(stream_id, position.start))
        except StreamNotFound:
            if await self._gateway.bounded(self._store.runs.find(stream_id)) is None:  # gone, or run in between
                return await self._gateway.bounded(self._store.open(stream_id, position.start))
        return await claimed(self._gateway, stream_id, position.start, receive)

    def _stream(self, request: Request, reader: Reader, stream_id: str, position: Position) -> Response:
        info = reader.info
        headers = _headers(info, position)
        ended = info.status is Status.DONE and not position.sse
        if ended:
            tag = f'"{info.incarnation}-{info.epoch}-{info.bytes}"'
            headers.append(("etag", tag))
            if _matches(request.headers.get("if-none-match"), tag):
                reader.close()
                return _bare(304, headers)
            headers.append(("content-length", str(info.bytes - _start_of(stream_id, position))))
        framing = Sse(is_text(info.content_type)) if position.sse else Raw()
        return StreamResponse(
            self._gateway,
            reader,
            framing,
            raw_headers(headers),
            finite=ended,
            with_body=request.method != "HEAD",
            offset=position.start.bytes if isinstance(position.start, Offset) else 0,
        )

    async def status(self, id: str) -> Response:
        return JSONResponse(status_of(await self._require(id)), headers=NO_STORE)

    async def every(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 6):
            raise problems.Problem("invalid-parameter", f"Not a limit: {limit[:80]!r}", "limit is from 0 to 99999.")
        return JSONResponse({"runs": await self._gateway.bounded(self._listed(int(limit)))}, headers=NO_STORE)

    async def _listed(self, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        streams = self._store.streams()
        try:
            while len(found) < limit:
                found.append(status_of(await anext(streams)))
        except StopAsyncIteration:
            pass
        finally:
            if isinstance(streams, AsyncGenerator):
                await streams.aclose()
        return found

    async def cancel(self, id: str) -> Response:
        """A live owner is told, and ends the stream itself; for a run without one, the gateway writes the ending."""
        for _ in range(4):
            info = await self._require(id)
            if info.status is Status.STREAMING and self._is_served(info):
                assert info.owner is not None
                await self._gateway.bounded(self._store.runs.cancel(info.owner, id))
                return JSONResponse(status_of(info), 202, NO_STORE)
            if info.status not in (Status.STREAMING, Status.QUEUED):
                return JSONResponse(status_of(info), 200, NO_STORE)
            await self._end(info)
        return JSONResponse(status_of(await self._require(id)), 202, NO_STORE)

    def _is_served(self, info: StreamInfo) -> bool:
        return info.run is not None and info.owner is not None and not self._store.members.is_lost(info.owner)

    async def _end(self, info: StreamInfo) -> None:
        """Write the ending of a run that nobody serves. Whoever moved it meanwhile wins: the caller looks again."""
        if info.status is Status.QUEUED:
            ending = self._store.acquire(info.stream_id, run=info.run or _NO_RUN, ending=CANCELLED)
            try:
                await self._gateway.bounded(ending)
            except StreamDeleted:  # what is queued still is the command of a run that ended and was deleted
                raise StreamNotFound(f"Stream not found: {info.stream_id}") from None
        else:
            await self._gateway.bounded(self._store.takeover(info.stream_id, info.epoch, CANCELLED))
        _log.info("cancel-accepted", **logs.of(info))

    async def delete(self, id: str) -> Response:
        info = await self._require(id)
        if info.status is Status.QUEUED:
            await self._end(info)  # the ending tells the queue that the command is settled
            info = await self._require(id)
        if not await self._gateway.bounded(self._store.delete(id, info.incarnation)):
            raise StreamNotFound(f"Stream not found: {id}")
        _log.info("stream-deleted", **logs.of(info))
        if info.status is Status.STREAMING and info.owner is not None and self._is_served(info):
            await self._gateway.bounded(self._store.runs.cancel(info.owner, id))
        return Response(status_code=204, headers=NO_STORE)

    async def neither(self) -> Response:
        raise HTTPException(405, headers={"allow": "GET, POST"})

    async def nothing(self, rest: str) -> Response:
        """Whatever else stands where an id is expected: mostly an id with a character that ids do not have."""
        stream_id, _, what = rest.partition("/")
        validate_stream_id(stream_id if what in _ALLOWED else rest)
        raise HTTPException(405, headers={"allow": _ALLOWED.get(what, "GET, HEAD, DELETE")})

    async def _require(self, stream_id: str) -> StreamInfo:
        validate_stream_id(stream_id)
        self._gateway.require_open()
        info = await self._gateway.bounded(self._store.status(stream_id))
        if info.status in (Status.MISSING, Status.EXPIRED):
            raise StreamNotFound(f"Stream not found: {stream_id}")
        return info


_NO_RUN = RunRef("", "", "")
_ALLOWED = {"status": "GET", "cancel": "POST"}
_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def _headers(info: StreamInfo, position: Position) -> list[tuple[str, str]]:
    kept = [(name, value) for name, value in info.headers if name.lower() not in _OURS and _is_clean(name + value)]
    told = {name.lower() for name, _ in kept}
    added = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
    stored = info.content_type or ""
    content_type = stored if stored and _is_clean(stored) else "application/octet-stream"
    return [
        ("content-type", EVENT_STREAM if position.sse else content_type),
        *kept,
        *((name, value) for name, value in added.items() if name not in told),
        ("x-resumable-stream-id", info.stream_id),
        ("tailrace-incarnation", str(info.incarnation)),
    ]


def _prefers_async(request: Request) -> bool:
    """Whether ``respond-async`` is among the preferences (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(one.partition(";")[0].strip() == "respond-async" for one in preferences)


def _is_clean(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _matches(if_none_match: str | None, tag: str) -> bool:
    tags = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return tag in tags or "*" in tags


def _start_of(stream_id: str, position: Position) -> int:
    if isinstance(position.start, Offset):
        return position.start.bytes
    return Mark.parse(stream_id, position.start).bytes if position.start else 0


def _bare(status: int, headers: list[tuple[str, str]]) -> Response:
    response = Response(status_code=status)
    response.raw_headers = raw_headers(headers)
    return response
