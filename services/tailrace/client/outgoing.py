"""What both clients share besides the exchanges: where the gateway is, what a run's request is, how httpx is set up."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from pydantic import BaseModel

from tailrace.client.errors import InvalidGateway
from tailrace.client.exchange import Ask, Call, Head, Patience, run_path
from tailrace.client.following import Following, Notice, Position
from tailrace.errors import InvalidCursor, InvalidInput
from tailrace.model import Incarnation, validate_stream_id

Gateway = str | Callable[[], str]
"""The URL of a gateway, or a function that gives one, anew at every attempt: any gateway continues any stream."""

# a stream may be silent for long; what hides a dead peer behind silence is asked again after a minute
TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
OPTIONS: Final[dict[str, Any]] = {
    "trust_env": False,  # no proxy that the environment names
    "timeout": TIMEOUT,
    "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),  # each live answer holds one
}
IDENTITY: Final = {"accept-encoding": "identity"}  # offsets count the bytes of the stream


class Setup:
    """Where a client asks, what it adds to every request, and how patient it is."""

    def __init__(
        self,
        gateway: Gateway,
        headers: Mapping[str, str] | None,
        auth: Any,
        timeout: httpx.Timeout | float,
        patience: Patience,
        notice: Notice,
    ) -> None:
        self.patience, self.notice = patience, notice
        self._gateway, self._timeout, self._auth = gateway, timeout, auth
        self._headers = httpx.Headers({**httpx.Headers(headers), **IDENTITY})
        if isinstance(gateway, str):
            self.base()

    def base(self) -> str:
        """The gateway's URL now. Raises `InvalidGateway`."""
        base = self._gateway if isinstance(self._gateway, str) else self._gateway()
        try:
            url = httpx.URL(base)
        except httpx.InvalidURL as error:
            raise InvalidGateway(f"Not a URL: {base[:200]!r}: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidGateway(f"Not the URL of a gateway: {base[:200]!r}")
        return base.rstrip("/")

    def arguments(self, ask: Ask) -> dict[str, Any]:
        """The arguments of httpx's ``build_request`` for ``ask``."""
        headers = self._headers.copy()
        if ask.content is not None:
            headers["content-type"] = "application/json"
        return {
            "method": ask.method,
            "url": self.base() + ask.path,
            "params": dict(ask.params) or None,
            "content": ask.content,
            "headers": headers,
            "timeout": self._timeout,
        }

    @property
    def sending(self) -> dict[str, Any]:
        """The arguments of httpx's ``send``. A redirect is an answer that no gateway gives."""
        auth = {"auth": self._auth} if self._auth is not None else {}
        return {"stream": True, "follow_redirects": False, **auth}

    def lost(self, error: Exception) -> str:
        """An attempt's failure in words, without a password of the URL."""
        shown = httpx.URL(self.base()).copy_with(username=None, password=None)
        return f"No answer from {shown}: {error or type(error).__name__}"

    # ── the exchanges ──

    def started(self, request: Mapping[str, Any]) -> Following:
        start = encoded({name: value for name, value in request.items() if value is not None or name == "input"})
        return Following(Position(request["id"]), self.patience, start=start, notice=self.notice)

    def resumed(self, stream: str | Position, cursor: str, offset: int, incarnation: str | None) -> Following:
        """Raises `InvalidCursor` where two positions are named, or one that is none."""
        position = stream if isinstance(stream, Position) else Position(stream, offset, incarnation)
        if cursor and position[1:] != (0, None):
            raise InvalidCursor("A cursor and an offset are given", hint="Pass one of them.")
        if position.offset < 0:
            raise InvalidCursor(f"Not an offset: {position.offset}", hint="An offset is a number of bytes from 0.")
        if position.incarnation is not None:
            try:
                Incarnation.parse(position.incarnation)
            except ValueError:
                hint = "Pass the incarnation of a position, as received."
                raise InvalidCursor(f"Not an incarnation: {position.incarnation!r}", hint=hint) from None
        return Following(position, self.patience, cursor=cursor, notice=self.notice)

    def call(self, method: str, stream_id: str, what: str = "") -> Call:
        ask = Ask(method, run_path(validate_stream_id(stream_id), what))
        return Call(ask, self.patience, ends_missing=method == "DELETE")


def request(handler: str, input: object, id: str | None, format: str | None, ttl: float | None) -> dict[str, Any]:
    """A run's request, with an id: so it can be sent twice."""
    stream_id = validate_stream_id(id if id is not None else secrets.token_urlsafe(18))
    return {"id": stream_id, "handler": handler, "input": input, "format": format, "ttl": ttl}


def encoded(value: object) -> bytes:
    """JSON in UTF-8. Raises `InvalidInput` for what JSON cannot say."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The input is not JSON: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no JSON value")


def head_of(response: httpx.Response) -> Head:
    return Head(response.status_code, response.reason_phrase, response.headers, response.http_version)
