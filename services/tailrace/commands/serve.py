"""The services: `up`, `gateway`, `worker`. Each prints one line when it is ready, and drains on SIGTERM or Ctrl-C.

A second signal does not wait for what still runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace import logs
from tailrace.commands import options, output
from tailrace.commands.runtime import Stop, opened, run
from tailrace.errors import MissingExtra
from tailrace.settings import Settings, load, shown

if TYPE_CHECKING:
    from tailrace.gateway.server import GatewayServer
    from tailrace.store import LogStore
    from tailrace.worker import Handler, Worker

Handlers = Annotated[
    list[str] | None,
    typer.Option("--handlers", metavar="MODULE[:ATTR]", help="Handlers beside those that ship. Repeatable."),
]
Slots = Annotated[int | None, typer.Option("--slots", min=1, help="Runs at once. [TAILRACE_SLOTS, 1000]")]


def up(
    store: options.Store = None,
    host: options.Host = None,
    port: options.Port = None,
    handlers: Handlers = None,
    slots: Slots = None,
) -> int:
    """Run everything in one process: the broker (embedded://, unless --store names one), a gateway and a worker."""
    settings = _load(store=store, host=host, port=port, slots=slots)
    found = handlers_of(settings, handlers or ())
    return run(lambda stop: _serve(settings, stop, found, with_gateway=True))


def gateway(store: options.Store = None, host: options.Host = None, port: options.Port = None) -> int:
    """Run a gateway: HTTP in front of the store. Any number of them serve the same streams."""
    settings = _load(store=store, host=host, port=port)
    return run(lambda stop: _serve(settings, stop, None, with_gateway=True))


def worker(store: options.Store = None, handlers: Handlers = None, slots: Slots = None) -> int:
    """Run a worker: it executes the runs that gateways accept."""
    settings = _load(store=store, slots=slots)
    found = handlers_of(settings, handlers or ())
    return run(lambda stop: _serve(settings, stop, found, with_gateway=False))


def _load(**arguments: Any) -> Settings:
    settings = load(**arguments)
    logs.configure(settings.log_level, settings.log_format)
    return settings


def handlers_of(settings: Settings, references: Sequence[str]) -> list[Handler]:
    """The named handlers, and those that ship where no named one has their name. Raises `InvalidHandler`."""
    from tailrace.worker import by_name, load
    from tailrace.worker.builtin import echo, openai, recite

    if references and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look here by itself
    named = by_name(handler for reference in references for handler in load(reference))
    shipped = [echo, recite]
    key = settings.openai_api_key
    try:
        shipped.append(openai(settings.openai_base_url, key.get_secret_value() if key else None, settings.openai_model))
    except MissingExtra:
        logs.get(__name__).debug("no openai handler: its package is not installed")
    return [*named.values(), *(handler for handler in shipped if handler.name not in named)]


class _Asked:
    """Signals as a service hears them: ``stop`` is set by the first, ``now`` by the next."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()

    def __call__(self, number: int) -> None:
        (self.now if self.stop.is_set() else self.stop).set()


async def _serve(settings: Settings, stop: Stop, handlers: list[Handler] | None, *, with_gateway: bool) -> int:
    """Serve a gateway, a worker (with handlers), or both on one store, until a signal comes or one of them fails."""
    alone = handlers is not None and with_gateway
    async with opened(settings, shared=not alone) as store:
        asked = _Asked()
        services = _servers(store, settings, with_gateway)
        workers = [] if handlers is None else [_worker(store, settings, handlers)]
        try:
            for one in workers:
                await one.start()
            serving = [await _listening(one) for one in services]
            stop.take_over(asked)
            output.data(_ready(settings, services, workers, with_gateway))
            waiting = asyncio.create_task(asked.stop.wait())
            await asyncio.wait([waiting, *serving], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await _drain(services, workers, asked)
            for task in serving:
                await task
        finally:
            for one in workers:
                await one.aclose()
    return stop.status


def _servers(store: LogStore, settings: Settings, with_gateway: bool) -> list[GatewayServer]:
    """What listens: the gateway, or a worker's health where it has a port of its own."""
    if not with_gateway and settings.worker_port is None:
        return []
    from tailrace.gateway.launch import gateway_server

    port = None if with_gateway else settings.worker_port
    return [gateway_server(store, settings, install_signals=False, runs=with_gateway, port=port)]


def _worker(store: LogStore, settings: Settings, handlers: list[Handler]) -> Worker:
    from tailrace.worker import Pace, Worker

    return Worker(
        store,
        handlers,
        slots=settings.slots,
        lease_ttl=settings.lease_ttl,
        drain_timeout=settings.drain_timeout,
        pace=Pace(max_pending_bytes=settings.max_pending_bytes),
    )


async def _listening(server: GatewayServer) -> asyncio.Task[None]:
    from tailrace.gateway.server import start

    return await start(server)


async def _drain(services: list[GatewayServer], workers: list[Worker], asked: _Asked) -> None:
    """Drain all at once; the next signal ends the wait."""
    drained = asyncio.gather(*(one.drain_and_stop() for one in services), *(one.drain() for one in workers))
    hurry = asyncio.ensure_future(asked.now.wait())
    waiting: set[asyncio.Future[Any]] = {drained, hurry}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        for server in services:
            server.handle_exit(0, None)  # the first call drains, which it does already; the next forces
            server.handle_exit(0, None)
        drained.cancel()
    hurry.cancel()
    await asyncio.gather(drained, return_exceptions=True)


def _ready(settings: Settings, services: list[GatewayServer], workers: list[Worker], with_gateway: bool) -> str:
    """The one line that says that this process is of use; a gateway's ends in its URL's own word."""
    what = "tailrace" if with_gateway and workers else "gateway" if with_gateway else "worker"
    parts = [f"{what} ready"]
    parts += [f"on {options.http_url(settings.host, one.bound_port)}" for one in services]
    parts += [f"with {', '.join(one.handlers)}, {settings.slots} slots" for one in workers]
    return " ".join([*parts, f"({shown(settings.store)})"])
