"""A gateway from settings: the app in its server."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, cast

from tailrace.contracts import StreamStore
from tailrace.gateway.app import create_app
from tailrace.gateway.edge import EdgeSettings
from tailrace.gateway.server import GatewayServer, make_server
from tailrace.settings import Settings


def edge_settings(settings: Settings) -> EdgeSettings:
    """The bounds of the HTTP edge."""
    return EdgeSettings(
        header_timeout_s=settings.header_timeout,
        body_timeout_s=settings.body_timeout,
        idle_timeout_s=settings.idle_timeout,
        user_timeout_s=settings.user_timeout,
        linger_s=settings.linger,
        drain_timeout_s=settings.drain_timeout,
        max_head_bytes=settings.max_head_bytes,
        send_buffer_bytes=settings.send_buffer,
        write_high_bytes=settings.write_buffer,
        write_low_bytes=settings.write_buffer // 4,
        backlog=settings.backlog,
    )


def gateway_server(
    store: StreamStore,
    settings: Settings,
    *,
    sockets: Sequence[socket.socket] = (),
    install_signals: bool = True,
    runs: bool = True,
    port: int | None = None,
) -> GatewayServer:
    """A server of a gateway on an open store, which stays the caller's to close; see `server.serve` and `start`.
    Without ``runs`` it answers ``/healthz`` and ``/readyz`` alone; ``port`` replaces the settings'."""
    app = create_app(store, settings, runs=runs)
    return make_server(
        cast(Any, app),  # uvicorn and Starlette type the same protocol differently
        host=settings.host,
        port=settings.port if port is None else port,
        settings=edge_settings(settings),
        on_drain=app.drain,
        sockets=sockets,
        install_signals=install_signals,
    )
