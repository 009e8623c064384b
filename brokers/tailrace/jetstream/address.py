"""URLs of NATS servers: `nats://user:pass@host:port,host2/?creds=FILE&replicas=3`.

Credentials are taken out of the URL, because the servers that a cluster announces come without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from tailrace import _urls
from tailrace.errors import BrokerUnsuitable
from tailrace.jetstream.options import JetStreamOptions

DEFAULT_PORT = 4222
_TEXTS = {
    "prefix": "prefix",
    "creds": "creds_file",
    "nkey": "nkey_seed",
    "tls_ca": "tls_ca",
    "tls_cert": "tls_cert",
    "tls_key": "tls_key",
    "tls_hostname": "tls_hostname",
}
_NEXT_URL = re.compile(r",(?=[A-Za-z]+://)")  # the other way to list servers: each a URL of its own
_NUMBERS = {"replicas": "replicas", "shards": "shards"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect. ``servers`` are `nats://host:port`, free of secrets; a lone user is a token."""

    servers: tuple[str, ...]
    tls: bool = False
    user: str | None = None
    password: str | None = None
    token: str | None = None

    def __str__(self) -> str:
        return ",".join(self.servers)

    def __repr__(self) -> str:
        return f"Address({self})"


def parse(urls: str | Sequence[str]) -> tuple[Address, dict[str, str]]:
    """The address that one URL or several name, and the query's options. Raises `BrokerUnsuitable`."""
    several = _NEXT_URL.split(urls) if isinstance(urls, str) else list(urls)
    servers: list[str] = []
    tls, userinfo = False, ""
    query: dict[str, str] = {}
    for url in several:
        rest = url if "://" in url else f"nats://{url}"
        scheme, _, rest = rest.partition("://")
        scheme = scheme.lower()
        if scheme not in ("nats", "tls"):
            raise _wrong(f"{scheme}:// is not a scheme of NATS")
        tls = tls or scheme == "tls"
        found, hosts, path, text = _urls.split(rest, _wrong)
        _urls.no_path(path, _wrong)
        userinfo = userinfo or found
        servers.extend(_server(host) for host in hosts)
        query.update(_urls.options(text, _wrong))
    if not servers:
        raise _wrong("the URL names no host")
    name, colon, secret = userinfo.partition(":")
    user, password = (unquote(name), unquote(secret)) if colon else (None, None)
    token = unquote(name) if name and not colon else None
    return Address(tuple(servers), tls, user, password, token), query


def options_of(query: dict[str, str], options: JetStreamOptions) -> JetStreamOptions:
    """``options`` with what a URL's query says instead. Raises `BrokerUnsuitable` for what it does not know."""
    for name, text in query.items():
        try:
            if name in _TEXTS:
                options = _with(options, _TEXTS[name], text)
            elif name in _NUMBERS:
                options = _with(options, _NUMBERS[name], int(text))
            else:
                raise _wrong(f"the option {name!r} is not known: {', '.join(sorted(_TEXTS | _NUMBERS))}")
        except ValueError as error:
            raise _wrong(f"{name}={text}: {error}") from None
    return options


def _with(options: JetStreamOptions, field: str, value: Any) -> JetStreamOptions:
    return replace(options, **{field: value})


def _server(text: str) -> str:
    return f"nats://{_urls.joined(*_urls.host_and_port(text, DEFAULT_PORT, _wrong))}"


def _wrong(what: str) -> BrokerUnsuitable:
    return BrokerUnsuitable(f"Wrong NATS URL: {what}", hint="Write nats://user:password@host:port,host2:port")
