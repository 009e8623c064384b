"""The words of the OpenAPI description of ``/v1/runs``: arguments for the routes, no behaviour."""

from __future__ import annotations

from typing import Any

from tailrace.gateway.submission import RunRequest

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_TEXTS = {
    400: "The id, the position or the JSON is malformed",
    404: 'Nothing is there: {"error":"stream not found"}',
    409: "The id belongs to another request",
    410: "The position belongs to another incarnation; the problem names the current one",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    416: "The offset lies beyond the end",
    422: "The handler, the format or the input is refused; the problem says where",
    503: "No worker, too many readers, or the broker is away; Retry-After says when to come again",
    504: "Queued, and not claimed in time; Location is where to read it later",
}


def _query(name: str, about: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": about, "schema": {"type": kind}}


_FRAME = _query("frame", "raw (the default): the stored bytes. sse: an event an entry, ending in `end` or `error`")
_POSITION = [
    _query("cursor", "Continue behind this cursor"),
    _query("offset", "Continue at this byte; pass incarnation with it", "integer"),
    _query("incarnation", "The Tailrace-Incarnation of the response that the offset was counted in"),
    _FRAME,
    {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "description": "With frame=sse: the last event's id",
        "schema": {"type": "string"},
    },
]
_BODY = {
    "description": "The stream, from the position to its end, with the content type that it was started with. "
    "The connection closes without the final chunk where the stream ends as anything but done.",
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "text/event-stream": {},
    },
    "headers": {
        "x-resumable-stream-id": {"description": "The stream's id", "schema": {"type": "string"}},
        "Tailrace-Incarnation": {"description": "Pass it with an offset", "schema": {"type": "string"}},
    },
}
_STATE = {"description": "The stream's status", "content": {"application/json": {"schema": {"type": "object"}}}}


def _route(
    name: str, summary: str, answers: dict[int, Any], *statuses: int, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    responses = answers | {status: {"description": _TEXTS[status], "content": _PROBLEM} for status in statuses}
    return {"summary": summary, "operation_id": name, "openapi_extra": extra or {}} | _answers(responses)


def _answers(responses: dict[int, Any]) -> dict[str, Any]:
    first, *_ = responses
    return {"responses": responses, "status_code": first}


START = _route(
    "start",
    "Run a handler and stream its output; the same request again joins it",
    {200: _BODY, 202: {"description": "With Prefer: respond-async: accepted; Location is where to read it"}},
    *(400, 409, 413, 415, 422, 503, 504),
    extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": RunRequest.model_json_schema()}}},
        "parameters": [_FRAME],
    },
)
LIST = _route(
    "list",
    "The streams that are there, in no order",
    {200: {"description": "Their statuses", "content": {"application/json": {"schema": {"type": "object"}}}}},
    *(400, 503),
    extra={"parameters": [_query("limit", "The most to list, 100 by default", "integer")]},
)
READ = _route(
    "read",
    "Read or resume a stream; HEAD gives the headers alone",
    {200: _BODY, 304: {"description": "If-None-Match names the ended stream"}},
    *(400, 404, 410, 416, 503, 504),
    extra={"parameters": _POSITION},
)
STATUS = _route("status", "What the stream is now", {200: _STATE}, 400, 404, 503)
CANCEL = _route(
    "cancel",
    "Cancel a run",
    {202: {"description": "Its worker is told to stop"}, 200: {**_STATE, "description": "It has ended"}},
    *(400, 404, 503),
)
DELETE = _route("delete", "Delete a stream and free its id", {204: {"description": "Deleted"}}, 400, 404, 503)

PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "description": "about:blank: the code says more than a URL could"},
        "title": {"type": "string", "description": "The HTTP status in words"},
        "status": {"type": "integer", "description": "The HTTP status"},
        "code": {"type": "string", "description": "What a program compares"},
        "detail": {"type": "string", "description": "What happened"},
        "hint": {"type": "string", "description": "What to do"},
        "setting": {"type": "string", "description": "The setting that moves the limit"},
        "known": {"type": "array", "items": {"type": "string"}, "description": "The known handlers"},
        "errors": {"type": "array", "items": {"type": "object"}, "description": "path, message and type of each fault"},
        "incarnation": {"type": "string", "description": "The current incarnation"},
        "length": {"type": "integer", "description": "The stream's length in bytes"},
    },
}
