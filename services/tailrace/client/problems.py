"""What a gateway says, as errors and values: ``application/problem+json``, statuses, ``Retry-After``.

A problem becomes the class of `tailrace.errors` that has its code, with that class's data; `GatewayError` stands for
the rest: faults of the request that only a gateway knows, and answers of something that is no gateway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from tailrace import errors
from tailrace.client.errors import GatewayError
from tailrace.decide import ending_error
from tailrace.errors import StreamEnded, StreamNotFound, TailraceError
from tailrace.model import Ending, Incarnation, Status, StreamInfo

_KINDS: Final[Mapping[str, type[TailraceError]]] = {
    kind.code: kind
    for kind in (
        *(errors.InvalidStreamId, errors.StreamNotFound, errors.StreamFinalized),
        *(errors.TooManyStreams, errors.StorageFull, errors.TooManyReaders, errors.TtlTooLong),
        *(errors.InvalidCursor, errors.CursorGone, errors.OffsetOutOfRange),
        *(errors.UnknownHandler, errors.InvalidInput, errors.RunTooLarge, errors.UnknownFormat, errors.RunConflict),
        *(errors.NoWorkers, errors.ClaimTimeout),
        *(errors.BrokerUnavailable, errors.BrokerRefused, errors.BrokerUnsuitable, errors.BrokerFailed),
    )
}
_DATA: Final[Mapping[str, tuple[str, type]]] = {  # what a class carries: the member's name, and its type
    "unknown-handler": ("known", list),
    "unknown-format": ("known", list),
    "invalid-input": ("errors", list),
    "cursor-gone": ("incarnation", str),
    "offset-out-of-range": ("length", int),
}
_MISSING: Final = {"error": "stream not found"}


def problem(status: int, reason: str, body: bytes) -> TailraceError:
    """The error that an answer other than success stands for."""
    told = _members(body)
    if status == 404 and told == _MISSING:
        return StreamNotFound("Stream not found")
    message = str(told.get("detail") or f"The gateway answered {status} {reason}".rstrip())
    faults = _faults(told.get("errors"))
    message = f"{message}: {'; '.join(faults)}" if faults else message
    code, hint = told.get("code"), told.get("hint")
    hint = hint if isinstance(hint, str) else None
    kind = _KINDS.get(code) if isinstance(code, str) else None
    if kind is None:
        return GatewayError(message, status=status, code=code if isinstance(code, str) else None, hint=hint)
    error = kind(message, **_data(kind, told))
    if hint is not None:
        error.hint = hint
    return error


def _data(kind: type[TailraceError], told: dict[str, Any]) -> dict[str, Any]:
    if kind.code not in _DATA:
        return {}
    name, type_ = _DATA[kind.code]
    return {name: told[name]} if isinstance(told.get(name), type_) else {}


def _members(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _faults(told: object) -> list[str]:
    """The violations that ``errors`` lists, each with its path."""
    every = told if isinstance(told, list) else []
    return [
        f"{'.'.join(map(str, one['path']))}: {one['message']}"
        for one in every
        if isinstance(one, dict) and isinstance(one.get("path"), list) and "message" in one
    ]


def status_of(body: bytes) -> StreamInfo:
    """What ``/status`` tells. Raises `GatewayError` where it is none."""
    told = _members(body)
    try:
        return StreamInfo(
            told["id"],
            Status(told["status"]),
            told.get("code"),
            told.get("message"),
            told.get("cursor", ""),
            int(told["bytes"]),
            told.get("entries", 0),
            Incarnation.parse(told["incarnation"]) if told["incarnation"] is not None else None,
            told.get("epoch", 0),
            content_type=told.get("content_type"),
            created_at=_milliseconds(told.get("created_at")),
            expires_at=_milliseconds(told.get("expires_at")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GatewayError(f"This is not a stream's status: {body[:200]!r}", status=200) from error


def _milliseconds(time: str | None) -> int | None:
    return round(datetime.fromisoformat(time).timestamp() * 1000) if time is not None else None


def bad_ending(info: StreamInfo) -> StreamEnded | None:
    """The ending that a status tells; None where it is ``done``, or no ending."""
    if info.status in (Status.QUEUED, Status.STREAMING, Status.MISSING):
        return None
    return ending_error(Ending(info.status, info.code, info.message))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; a date counts as nothing said, since it would be compared with a clock of this machine."""
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
