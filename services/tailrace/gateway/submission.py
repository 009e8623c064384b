"""``POST /v1/runs``: from a request's bytes to a stream that a worker has claimed.

Rules:

- The same id with the same request joins; another request under the same id is a conflict, wherever the first one
  stands: streaming, ended or queued.
- A run that its worker turned down (its input or format) is answered with 422, and its id is freed again.
- The command of a run that is over and deleted stays queued until its worker's ack arrives: it is nothing to join, and
  no conflict, only in the way for a moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.types import Receive

from tailrace import formats, logs
from tailrace.commit import backoff
from tailrace.contracts import Command, Reader
from tailrace.errors import (
    BrokerUnavailable,
    ClaimTimeout,
    InvalidInput,
    NoWorkers,
    RunConflict,
    RunError,
    StreamNotFound,
    TtlTooLong,
    UnknownFormat,
    UnknownHandler,
)
from tailrace.gateway.live import Gateway
from tailrace.gateway.problems import Problem, RequestTooLarge
from tailrace.model import Offset, Status, StreamInfo, validate_stream_id

_log = logs.get("tailrace.gateway")
_JSON = 'Send {"handler": …, "input": …} in UTF-8.'
_HINT = "Send handler and input, and optionally id, format and ttl."
_MAX_DIGITS = 4000  # of an integer; Python itself refuses longer ones, in words for programmers
_FIRST_LOOK_S = 1.0
_ATTEMPTS = 4
_LOOKS, _PAUSE_S = 5, 0.1  # whether a run that is over has left the queue, and behind the first look
REFUSALS = frozenset({InvalidInput.code, UnknownFormat.code})


class RunRequest(BaseModel):
    """A run to start, or to join."""

    model_config = ConfigDict(extra="forbid", strict=True)

    handler: Annotated[str, Field(min_length=1, max_length=256, description="The handler that executes it")]
    id: Annotated[str | None, Field(description="The stream id, 1 to 256 of A-Z a-z 0-9 _ . : -")] = None
    input: Annotated[Any, Field(description="What the handler's input model takes")]
    format: Annotated[
        str | None,
        Field(
            max_length=64, description=f"The stream's format; the handler's own by default. {', '.join(formats.KNOWN)}"
        ),
    ] = None
    ttl: Annotated[float | None, Field(gt=0, description="Seconds to keep the stream after its last byte")] = None


async def read_request(request: Request, gateway: Gateway) -> tuple[Command, bool]:
    """The command that a request asks for, and whether its id is new (generated here). Raises what is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        told = f"The content type is {kind[:80]!r}" if kind else "There is no content type"
        raise Problem("unsupported-media-type", told, "Send JSON with Content-Type: application/json.")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Problem(
            "unsupported-media-type", f"The content encoding is {coding[:80]!r}", "Send the JSON as it is, not encoded."
        )
    limits = gateway.store.limits
    wanted = _validate(_parse(await _body(request, gateway.settings.max_request_bytes)))
    if wanted.ttl is not None and wanted.ttl > limits.max_ttl:
        raise TtlTooLong(f"A time to live of {wanted.ttl:g} s; the most is {limits.max_ttl:g} s")
    format = None if wanted.format is None else formats.canonical(wanted.format)
    canonical = _canonical({"handler": wanted.handler, "input": wanted.input, "format": format})
    command = Command(
        stream_id=wanted.id or secrets.token_urlsafe(18),
        handler=wanted.handler,
        input=_canonical(wanted.input),
        format=format or "",
        digest=hashlib.sha256(canonical).hexdigest(),
        ttl=wanted.ttl,
    )
    return command, wanted.id is None


async def _body(request: Request, most: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    told = f"The body is larger than {most} bytes"
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise RequestTooLarge(told)
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > most:
            raise RequestTooLarge(told)
    return bytes(parts)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise Problem("invalid-json", "The body is nested too deeply", _JSON) from None
    except ValueError as error:
        raise Problem("invalid-json", f"The body is not JSON: {error}", _JSON) from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _canonical(value: Any) -> bytes:
    """One text for equal values, in UTF-8: escapes would make it up to twice as long as it came."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise Problem("invalid-json", "The body is nested too deeply", _JSON) from None
    except UnicodeEncodeError:
        fault = {"path": [], "message": "A string has half of a surrogate pair", "type": "string_unicode"}
        raise InvalidInput("The input holds what is no character", errors=[fault]) from None


def _validate(value: Any) -> RunRequest:
    if not isinstance(value, dict):
        fault = {"path": [], "message": "Input should be an object", "type": "dict_type"}
        raise Problem("invalid-request", "The body does not describe a run", _HINT, errors=[fault])
    if value.get("id") is not None:
        validate_stream_id(value["id"])
    try:
        return RunRequest.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        errors = [{"path": [*item["loc"]], "message": item["msg"], "type": item["type"]} for item in found]
        raise Problem("invalid-request", "The body does not describe a run", _HINT, errors=errors) from None


class Submission:
    """A command on its way to a stream."""

    def __init__(self, gateway: Gateway, command: Command, fresh: bool) -> None:
        self._gateway = gateway
        self._store = gateway.store
        self.command = command
        self._fresh = fresh  # its id is new: nothing can be under it
        self._over = ""  # the command of the id's life that is over

    async def accept(self) -> None:
        """Make sure that the run is accepted: streaming, ended or queued. Raises `RunConflict`, `UnknownHandler`,
        `NoWorkers`."""
        async for look in backoff(_PAUSE_S):
            if not self._fresh and await self._is_there():
                return
            await self._require_handler()
            queued = await self._gateway.bounded(self._store.runs.submit(self.command))
            if queued.id != self._over:
                self._compare(queued.digest)
                _log.info("run-accepted", stream=self.command.stream_id, handler=self.command.handler)
                return
            if look == _LOOKS:
                raise BrokerUnavailable(f"The broker still holds the run that {self.command.stream_id} was the id of")

    async def _is_there(self) -> bool:
        info = await self._gateway.bounded(self._store.status(self.command.stream_id))
        self._over = info.run.command if info.run else ""
        if info.status in (Status.MISSING, Status.EXPIRED):
            return False
        if info.code in REFUSALS:
            await self._free(info)
            return False
        self._compare(info.run.digest if info.run else None)
        return True

    def _compare(self, digest: str | None) -> None:
        if digest != self.command.digest:
            raise RunConflict(f"{self.command.stream_id} is the id of another request")

    async def _require_handler(self) -> None:
        members = self._store.members
        try:
            await self._gateway.bounded(members.settled(), self._gateway.settings.lease_ttl)
        except BrokerUnavailable:
            raise BrokerUnavailable("The other processes cannot be heard: the broker is away") from None
        known = {name for member in members.alive() for name in member.handlers}
        if not known:
            raise NoWorkers("No worker is alive")
        if self.command.handler not in known:
            raise UnknownHandler(f"Unknown handler: {self.command.handler}", known=sorted(known))

    async def claimed(self, start: str | Offset, receive: Receive) -> Reader:
        """A reader on the run's stream, once a worker has claimed it. Raises `ClaimTimeout`, `RunConflict`, and
        `InvalidInput` or `UnknownFormat` where the worker turned the run down."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._claimed(start, receive)
            except StreamNotFound:  # somebody else's, which this request had joined, is over and deleted
                await self.accept()
        return await self._claimed(start, receive)

    async def _claimed(self, start: str | Offset, receive: Receive) -> Reader:
        reader = await claimed(self._gateway, self.command.stream_id, start, receive)
        try:
            info = reader.info
            if info.code in REFUSALS:
                await self._free(info)
                raise _refusal(info)
            self._compare(info.run.digest if info.run else None)
        except BaseException:
            reader.close()
            raise
        return reader

    async def _free(self, info: StreamInfo) -> None:
        await self._gateway.bounded(self._store.delete(info.stream_id, info.incarnation))


async def claimed(gateway: Gateway, stream_id: str, start: str | Offset, receive: Receive) -> Reader:
    """A reader on a stream that is there or queued. Raises `ClaimTimeout` where no worker claims it in time,
    `StreamNotFound` where it is not even queued any more, and what `Gateway.patiently` raises.

    A stream may come, end and be deleted before this gateway follows it, and then nobody will ever claim it: so now and
    then, and ever more rarely, the queue is asked.
    """
    store, loop = gateway.store, asyncio.get_running_loop()
    until = loop.time() + gateway.settings.claim_timeout
    look = _FIRST_LOOK_S
    while True:
        wait = min(look, max(until - loop.time(), 0))
        try:
            return await gateway.patiently(gateway.bounded(store.open(stream_id, start, wait=wait), wait), receive)
        except StreamNotFound:
            if await gateway.bounded(store.runs.find(stream_id)) is None:
                return await gateway.bounded(store.open(stream_id, start))  # claimed in between, or gone
        if loop.time() >= until:
            raise ClaimTimeout(f"No worker claimed {stream_id} in {gateway.settings.claim_timeout:g} s")
        look *= 2


def _refusal(info: StreamInfo) -> RunError:
    """A worker's refusal as the error that it stands for: the message is the list of violations in JSON."""
    if info.code != InvalidInput.code:
        return UnknownFormat(info.message or "Unknown format", hint="Use a format that the handler offers.")
    try:
        errors = json.loads(info.message or "")
    except ValueError:
        return InvalidInput(info.message or "The handler turned the input down")
    return InvalidInput("The handler's model turned the input down", errors=errors)
