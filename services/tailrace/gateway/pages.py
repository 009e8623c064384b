"""``/docs``: the OpenAPI description as one page that needs no other address."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

# Nothing on the page may call out: no script, style or font from elsewhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def router() -> APIRouter:
    """``/docs``."""
    routes = APIRouter(include_in_schema=False)
    page = files("tailrace.gateway").joinpath("docs.html").read_text(encoding="utf-8")

    @routes.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    return routes
