"""The options that commands share, and what they mean together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import typer

from tailrace.commands.runtime import Usage
from tailrace.settings import Settings, load

StreamId = Annotated[str, typer.Argument(metavar="ID", help="The stream's id.", show_default=False)]
Store = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Where streams live: embedded://[DIR], nats://… [TAILRACE_STORE]"),
]
Host = Annotated[str | None, typer.Option("--host", help="The gateway's address. [TAILRACE_HOST, 127.0.0.1]")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="The gateway's port. [TAILRACE_PORT, 8080]")]
GatewayUrl = Annotated[str | None, typer.Option("--gateway", metavar="URL", help="A gateway, as http://host:port.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ttl = Annotated[float | None, typer.Option("--ttl", help="Seconds to keep the stream after its last byte.")]

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # a gateway may listen everywhere; a client has to go somewhere


@dataclass(frozen=True, slots=True)
class Where:
    """Where a command finds its stream: at a gateway (``url`` without a trailing slash), or in the settings' store."""

    settings: Settings
    url: str | None = None


def where(store: str | None, gateway: str | None, host: str | None, port: int | None) -> Where:
    """The store unless a gateway is named. Raises `Usage` where both are."""
    if gateway is None and host is None and port is None:
        return Where(load(store=store))
    if store is not None:
        raise Usage("A store and a gateway are named", hint="Pass --store, or one of --gateway, --host and --port.")
    return at_gateway(gateway, host, port)


def at_gateway(gateway: str | None, host: str | None, port: int | None) -> Where:
    """A gateway: the URL, or what the settings and options say. Raises `Usage`."""
    settings = load(host=host, port=port)
    if gateway is None:
        return Where(settings, http_url(_ANY.get(settings.host, settings.host), settings.port))
    if host is not None or port is not None:
        raise Usage("--gateway and --host or --port are given", hint="The URL says both; pass it alone.")
    if not _is_url(gateway):
        raise Usage(f"Not a gateway's URL: {gateway!r}", hint="Write it as http://127.0.0.1:8080")
    return Where(settings, gateway.rstrip("/"))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that does not close, a port that is none
        return False


def check_ttl(ttl: float | None) -> None:
    """Raise `Usage` for a time to live that is none."""
    if ttl is not None and not 0 < ttl < math.inf:
        raise Usage(f"Not a time to live: {ttl:g}", hint="Pass --ttl with a number of seconds above 0.")


def http_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
