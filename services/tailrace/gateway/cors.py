"""Cross-origin access, as headers that are computed once a request.

Starlette's middleware wraps ``send`` and so costs every chunk of a stream; here the headers are a list that the
response start is given.
"""

from __future__ import annotations

from collections.abc import Collection

EXPOSED = (
    "x-resumable-stream-id",
    "Tailrace-Incarnation",
    "Location",
    "ETag",
    "Retry-After",
    "x-vercel-ai-data-stream",
    "x-vercel-ai-ui-message-stream",
    "Aui-Replay-Content-Length",
    "Assistant-Stream-Format",
)
METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
_MAX_AGE = "600"
Headers = list[tuple[bytes, bytes]]


class Cors:
    """Which origins may call; ``*`` among them is any. Credentials are never allowed."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = "*" in origins
        self._origins = {origin.encode() for origin in origins}
        self._exposed = (b"access-control-expose-headers", ", ".join(EXPOSED).encode())

    def headers(self, origin: bytes | None) -> Headers:
        """What a response to a request of this origin carries."""
        if not self._origins:
            return []
        if self._any:
            return [(b"access-control-allow-origin", b"*"), self._exposed]
        vary = (b"vary", b"Origin")
        if origin not in self._origins:
            return [vary]
        return [(b"access-control-allow-origin", origin), self._exposed, vary]

    def preflight(self, origin: bytes | None, wanted: bytes | None) -> tuple[int, Headers]:
        """The status and headers that answer a preflight; ``wanted`` are the headers that it asks for."""
        headers = self.headers(origin)
        if not any(name == b"access-control-allow-origin" for name, _ in headers):
            return 403, headers
        headers += [
            (b"access-control-allow-methods", METHODS.encode()),
            (b"access-control-allow-headers", wanted or b"content-type"),
            (b"access-control-max-age", _MAX_AGE.encode()),
            (b"vary", b"Access-Control-Request-Headers"),
        ]
        return 204, headers
