"""The gateway's HTTP server: uvicorn with the edge's connections, and a stop that always ends.

**Theory.** uvicorn ends when its responses have ended, and a live reader's never does; so a stop is a *drain*: the app
is told first, ends its live readers with a cut (they go on at another gateway), and uvicorn's own shutdown follows.

**Rules.**

- A drain begins once, on the loop, never inside a signal handler, whichever way the stop was asked for.
- What the app left is aborted after ``drain_timeout_s``; a second signal does so at once.
- An orderly stop is no failure: no signal is raised again, no `SystemExit` leaves `GatewayServer.serve`.
- Whatever way ``serve`` ends, a cancellation too, nothing listens and no connection is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Literal, cast

import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.lifespan.on import LifespanOn

from tailrace import logs
from tailrace.errors import TailraceError
from tailrace.gateway.edge import ABORT, BUFFERED, CUT, EdgeConfig, EdgeProtocol, EdgeSettings, EdgeState

__all__ = [
    "ABORT",
    "BUFFERED",
    "CUT",
    "EdgeProtocol",
    "EdgeSettings",
    "GatewayServer",
    "make_server",
    "serve",
    "start",
]

_CANCEL_AFTER_S = 2  # between aborting what a drain left and cancelling its tasks

_log = logs.get("tailrace.gateway")


class GatewayServer(uvicorn.Server):
    """The server of one gateway, made by `make_server`. ``ready`` is set while it listens on ``bound_port``."""

    config: EdgeConfig
    server_state: EdgeState

    def __init__(
        self,
        config: EdgeConfig,
        on_drain: Callable[[], None],
        sockets: Sequence[socket.socket] = (),
        install_signals: bool = True,
    ) -> None:
        super().__init__(config)
        self.server_state = EdgeState()
        self.ready = asyncio.Event()
        self.bound_port = 0
        self.servers = []
        self._on_drain = on_drain
        self._given = tuple(sockets)
        self._install_signals = install_signals
        self._signalled = False
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve until a signal, `drain_and_stop` or a cancellation. Closes the sockets that it was given.

        Raises `TailraceError` ``cannot-listen`` if the address is taken or not ours, ``startup-failed`` if the app's
        own start failed.
        """
        self._loop = asyncio.get_running_loop()
        _route_logs()
        listeners: list[socket.socket] = []
        try:
            listeners += sockets or self._given or [_bind(self.config.host, self.config.port)]
            for listener in listeners:
                _listen(listener, self.config.edge)
            address = listeners[0].getsockname()
            self.bound_port = address[1] if isinstance(address, tuple) else 0
            await super().serve(listeners)
        except asyncio.CancelledError:
            if self.started:
                self.begin_drain()
                self._abort_all()
                await self.lifespan.shutdown()
            raise
        except SystemExit:  # uvicorn's way to say so; it would end every task of this process
            raise TailraceError(
                "The gateway's app failed to start", code="startup-failed", hint="The log says why."
            ) from None
        finally:
            self._let_go(listeners)

    def _let_go(self, listeners: Sequence[socket.socket]) -> None:
        """After an orderly end there is nothing left to do here; after a failure, a cancellation or a forced exit
        there is."""
        self.ready.clear()
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        self._abort_all()
        lifespan = getattr(self, "lifespan", None)
        if isinstance(lifespan, LifespanOn) and not lifespan.shutdown_event.is_set():
            lifespan.shutdown_failed = True  # its task ends with the loop; without this, as an error with a traceback
        self._stopped.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()
        _log.info("gateway-listens", host=self.config.host, port=self.bound_port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.begin_drain()
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self.config.edge.drain_timeout_s, self._abort_all)
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    def begin_drain(self) -> None:
        """Start to stop: the app hears of it, once, and no new connection is served. To be called on the loop."""
        self.should_exit = True
        if self.server_state.draining:
            return
        self.server_state.draining = True
        self.ready.clear()
        _log.info("gateway-drains", connections=len(self.server_state.connections))
        try:
            self._on_drain()
        except Exception as error:  # noqa: BLE001 - the stop goes on whatever the app does
            _log.error("on-drain-failed", **logs.traceback_of(error))

    async def drain_and_stop(self) -> None:
        """Drain, and return when `serve` has ended (at once if it never began)."""
        if self._loop is not None:
            self.begin_drain()
            await self._stopped.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the next forces the exit. Nothing is raised again: a drained process exits 0."""
        self.should_exit = True
        self.force_exit = self._signalled
        self._signalled = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._abort_all if self.force_exit else self.begin_drain)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals() if self._install_signals else contextlib.nullcontext():
            yield

    def _abort_all(self) -> None:
        for connection in list(self.server_state.connections):
            cast(EdgeProtocol, connection).abort()


def make_server(
    app: ASGI3Application,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    settings: EdgeSettings | None = None,
    on_drain: Callable[[], None],
    sockets: Sequence[socket.socket] = (),
    install_signals: bool = True,
    lifespan: Literal["auto", "on", "off"] = "on",
) -> GatewayServer:
    """A server for ``app``; nothing is bound before it serves. ``port`` 0 takes a free one, ``sockets`` (bound, e.g.
    ``socket.socket(fileno=3)``) are served instead of host and port. ``on_drain`` is called once, on the loop."""
    edge = settings or EdgeSettings()
    config = EdgeConfig(
        app,
        host=host,
        port=port,
        http=EdgeProtocol,
        ws="none",
        interface="asgi3",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        forwarded_allow_ips=[],  # None would read the environment
        workers=1,  # likewise
        server_header=False,
        backlog=edge.backlog,
        timeout_keep_alive=cast(int, edge.idle_timeout_s),  # only ever given to call_later
        timeout_graceful_shutdown=math.ceil(edge.drain_timeout_s) + _CANCEL_AFTER_S,
    )
    config.edge = edge
    return GatewayServer(config, on_drain, sockets, install_signals)


async def serve(server: GatewayServer) -> None:
    """Serve until it ends; see `GatewayServer.serve`."""
    await server.serve()


async def start(server: GatewayServer) -> asyncio.Task[None]:
    """Serve in a task beside the caller; returns once it listens. Raises what `GatewayServer.serve` raises."""
    task = asyncio.create_task(server.serve(), name="gateway-server")
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        ready.cancel()
    if task.done():
        await task
    return task


@asynccontextmanager
async def started(server: GatewayServer) -> AsyncIterator[GatewayServer]:
    """`start` it, and drain and stop it behind the block. Raises what `GatewayServer.serve` raises."""
    task = await start(server)
    try:
        yield server
    finally:
        await server.drain_and_stop()
        await task


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(f"{host} port {port}", error) from error
    return listener


def _listen(listener: socket.socket, edge: EdgeSettings) -> None:
    """Listen, with the options that connections inherit: the kernel sizes a window before one is accepted.

    It is done here, before the app starts, since uvloop's own ``create_server`` is silent where listening fails. Who
    connects meanwhile waits.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, edge.send_buffer_bytes)
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", edge.probe_idle_s),
            ("TCP_USER_TIMEOUT", round(edge.user_timeout_s * 1000)),
        ):
            option = getattr(socket, name, None)  # not every system has them
            if option is not None:
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        listener.listen(edge.backlog)
    except OSError as error:
        raise _cannot_listen(str(listener.getsockname()), error) from error


def _cannot_listen(address: str, error: OSError) -> TailraceError:
    return TailraceError(
        f"Cannot listen on {address}: {error.strerror or error}",
        code="cannot-listen",
        hint="Stop what listens there, or choose another port (--port, TAILRACE_PORT; 0 takes a free one).",
    )


def _forward(record: logging.LogRecord) -> bool:
    """A filter that takes uvicorn's records away to this project's logger."""
    target = logging.getLogger("tailrace.gateway")
    record.name = target.name
    if target.isEnabledFor(record.levelno):
        target.handle(record)
    return False


def _route_logs() -> None:
    source = logging.getLogger("uvicorn.error")
    source.addFilter(_forward)  # adds it once
    if source.level == logging.NOTSET:
        source.setLevel(logging.WARNING)  # starts and stops are said here, in lines of our own
