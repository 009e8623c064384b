"""Whether the process is up, and whether it is of use."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from tailrace.errors import BrokerError
from tailrace.gateway.live import Gateway
from tailrace.gateway.problems import Problem

PROBE = "tailrace.ready"  # an id that nobody is meant to use; asking for it makes the broker answer
_HINT = "Send the request again a little later, or to another gateway."
_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not of use now; the code says why"}}


def router(gateway: Gateway) -> APIRouter:
    """``/healthz`` and ``/readyz``."""
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", summary="Whether the process is up")
    async def healthz() -> Response:
        return JSONResponse({"status": "up"}, headers={"cache-control": "no-store"})

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", summary="Whether requests can be served", responses=_READY)
    async def readyz() -> Response:
        gateway.require_open()
        try:
            await gateway.bounded(gateway.store.status(PROBE))
        except BrokerError as error:
            raise Problem("not-ready", f"The broker is no use now: {error.message}", error.hint) from error
        try:
            async with asyncio.timeout(gateway.settings.request_timeout):
                await gateway.store.members.settled()
        except TimeoutError:
            raise Problem("not-ready", "The other processes have not been heard yet", _HINT) from None
        return JSONResponse({"status": "ready"}, headers={"cache-control": "no-store"})

    return routes
