"""The gateway's ASGI app: FastAPI for routes and their description, and a thin layer around it for what streams.

A request passes the layer, FastAPI and its route. A route that streams gives back a `StreamResponse`, which only leaves
itself here; when FastAPI is through and its stack is gone, the layer runs it with the server's own ``send``.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from tailrace.contracts import StreamStore
from tailrace.errors import TailraceError
from tailrace.gateway import describe, health, pages, problems, runs
from tailrace.gateway.cors import Cors, Headers
from tailrace.gateway.live import Gateway
from tailrace.gateway.streaming import HANDOFF, ConnectionCut, StreamResponse
from tailrace.settings import Settings
from tailrace.version import __version__

_DESCRIPTION = "Streamed answers that survive: start a run, read its stream, resume it at the next byte."


class App:
    """The ASGI app. `drain` belongs to the server's stop signal. The store is the caller's to close. Without ``runs``
    it answers ``/healthz`` and ``/readyz`` alone, as a worker's own port does."""

    def __init__(self, store: StreamStore, settings: Settings, *, runs: bool = True) -> None:
        self.gateway = Gateway(store, settings)
        self.api = _api(self.gateway, runs)
        self._cors = Cors(settings.origins())

    def drain(self) -> None:
        """Stop following live streams, and take no new requests. Idempotent."""
        self.gateway.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        given = dict(scope["headers"])
        origin = given.get(b"origin")
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in given:
            status, headers = self._cors.preflight(origin, given.get(b"access-control-request-headers"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._answer(scope, receive, send, self._cors.headers(origin))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        responses: list[StreamResponse] = []
        scope[HANDOFF] = responses
        first = _Start(send, headers)
        try:
            await self._through(scope, receive, first)
            for response in responses:
                await response.run(scope, receive, send, headers)
        finally:
            for response in responses:
                response.close()

    async def _through(self, scope: Scope, receive: Receive, first: _Start) -> None:
        """FastAPI, which answers every error of ours itself; it raises the rest once more, after its answer."""
        try:
            await self.api(scope, receive, first)
        except ConnectionCut:
            raise
        except Exception as error:  # noqa: BLE001 - the last line: no traceback reaches a client
            if not first.started:
                await problems.response_to(error)(scope, receive, first)


class _Start:
    """``send`` for answers that do not stream: adds ``headers`` to the start."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        self._headers = headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)


def _api(gateway: Gateway, with_runs: bool) -> FastAPI:
    api = FastAPI(
        title="Tailrace",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if with_runs else None,
        redirect_slashes=False,
        telemetry={"auto_configure": False},  # only the settings read the environment
    )
    api.include_router(health.router(gateway))
    if with_runs:
        api.include_router(pages.router())
        api.include_router(runs.router(gateway))
    api.openapi = lambda: _described(api)  # type: ignore[method-assign]  # FastAPI's own way
    for kind in (TailraceError, HTTPException, RequestValidationError, Exception):
        api.add_exception_handler(kind, problems.handle)
    return api


def _described(api: FastAPI) -> dict[str, Any]:
    if api.openapi_schema is None:
        described = FastAPI.openapi(api)
        described.setdefault("components", {}).setdefault("schemas", {})["Problem"] = describe.PROBLEM_SCHEMA
    assert api.openapi_schema is not None
    return api.openapi_schema


def create_app(store: StreamStore, settings: Settings, *, runs: bool = True) -> App:
    """The gateway's ASGI app on an open store; without ``runs``, its health alone."""
    return App(store, settings, runs=runs)
