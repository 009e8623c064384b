"""Errors as ``application/problem+json`` (RFC 9457): what happened, its code, and what to do.

`STATUS` is the one table from a code to an HTTP status. Nothing but a `TailraceError`'s own words reaches a client; any
other exception becomes a 500 with an id, and the log line with that id has the traceback.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tailrace import logs
from tailrace.errors import LimitExceeded, StreamNotFound, TailraceError

_log = logs.get("tailrace.gateway")

STATUS: Mapping[str, int] = MappingProxyType(
    {
        # of the request itself
        "invalid-json": 400,
        "invalid-id": 400,
        "invalid-position": 400,
        "invalid-cursor": 400,
        "invalid-parameter": 400,
        "ttl-too-long": 400,
        "missing": 404,
        "not-found": 404,
        "method-not-allowed": 405,
        "run-conflict": 409,
        "finalized": 409,
        "cursor-gone": 410,
        "request-too-large": 413,
        "run-too-large": 413,
        "unsupported-media-type": 415,
        "offset-out-of-range": 416,
        "invalid-request": 422,
        "unknown-handler": 422,
        "unknown-format": 422,
        "invalid-input": 422,
        # of the service
        "broker-refused": 502,
        "broker-unsuitable": 502,
        "broker-failed": 502,
        "broker-unavailable": 503,
        "no-workers": 503,
        "too-many-readers": 503,
        "too-many-streams": 503,
        "storage-full": 507,
        "draining": 503,
        "not-ready": 503,
        "claim-timeout": 504,
    }
)
_EXTRAS = ("known", "errors", "incarnation", "cursor", "length")
_RETRY_AFTER = MappingProxyType(
    {"broker-unavailable": 1.0, "no-workers": 2.0, "too-many-readers": 2.0, "too-many-streams": 5.0, "draining": 1.0}
    | {"not-ready": 1.0, "claim-timeout": 1.0}
)
MISSING_BODY = b'{"error":"stream not found"}'  # the seed contract's own


class Problem(TailraceError):
    """A fault of the HTTP request or of this gateway, which only this layer knows."""

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.headers = dict(headers or {})
        self.errors = tuple(errors)


class RequestTooLarge(LimitExceeded):
    """The request's body is larger than the setting allows."""

    code = "request-too-large"
    setting = "TAILRACE_MAX_REQUEST_BYTES"
    hint = "Send a smaller body, or raise TAILRACE_MAX_REQUEST_BYTES."


class ProblemResponse(Response):
    """The response for ``error``, with ``headers`` added."""

    media_type = "application/problem+json"

    def __init__(self, error: TailraceError, headers: Mapping[str, str] | None = None) -> None:
        status = STATUS.get(error.code, 500)
        every = _headers(error, status) | dict(headers or {})
        super().__init__(json.dumps(body(error, status)).encode(), status_code=status, headers=every)


def body(error: TailraceError, status: int) -> dict[str, Any]:
    """The problem as JSON members. ``detail`` is what happened, ``hint`` what to do."""
    members: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": error.code,
        "detail": error.message,
        "hint": error.hint,
    }
    for name in _EXTRAS:
        value = getattr(error, name, None)
        if value or value == 0:
            members[name] = list(value) if isinstance(value, tuple) else value
    if isinstance(error, LimitExceeded) and error.setting:
        members["setting"] = error.setting
    return {name: value for name, value in members.items() if value != ""}


def _headers(error: TailraceError, status: int) -> dict[str, str]:
    headers = {"cache-control": "no-store", **getattr(error, "headers", {})}
    pause = getattr(error, "retry_after", _RETRY_AFTER.get(error.code))
    if pause is not None:
        headers["retry-after"] = str(max(1, math.ceil(pause)))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        headers["content-range"] = f"bytes */{getattr(error, 'length', 0)}"
    return headers


def response_to(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """The response for any exception; one that is not ours is logged and answered with an id alone."""
    if isinstance(error, StreamNotFound):
        return Response(MISSING_BODY, 404, {"cache-control": "no-store"}, "application/json")
    if isinstance(error, HTTPException):
        return ProblemResponse(_of_framework(error), error.headers)
    if isinstance(error, TailraceError) and error.code in STATUS:
        return ProblemResponse(error, headers)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    number = secrets.token_hex(8)
    _log.error("request-failed", error_id=number, **logs.traceback_of(error))
    text = f"The gateway failed; the operator finds the reason in the log under {number}"
    return ProblemResponse(Problem("internal", text, "Try again; report the id if it stays."), headers)


def _of_framework(error: HTTPException) -> Problem:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return Problem("not-found", "There is nothing at this path", "/docs lists what there is.")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return Problem("method-not-allowed", "This path does not take that method", "/docs lists what there is.")
    return Problem("invalid-request", str(error.detail))


async def handle(request: Request, error: Exception) -> Response:
    """The exception handler of the app."""
    return response_to(error)
