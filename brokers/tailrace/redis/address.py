"""URLs of Redis: ``redis://user:pass@host:port/db?layout=0.3.15``, ``rediss://…`` with TLS, and by Sentinel
``redis+sentinel://user:pass@host:port,host2:port/service/db`` (``rediss+sentinel``: TLS to the sentinels and to the
servers). Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from tailrace import _urls
from tailrace.errors import BrokerUnsuitable
from tailrace.redis.options import RedisOptions

PORT, SENTINEL_PORT = 6379, 26379
SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
_TEXTS = ("prefix", "layout", "sentinel_user", "sentinel_password", "tls_ca", "tls_cert", "tls_key")
_HINT = "Write redis://user:password@host:port/0 or redis+sentinel://host:port,host2:port/service/0"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect. With a ``service`` the hosts are sentinels, asked for the master of that name."""

    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    service: str = ""
    database: int = 0

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.service}" if self.service else hosts


def parse(url: str, options: RedisOptions) -> tuple[Address, RedisOptions]:
    """The address, and ``options`` with what the URL says instead. Raises `BrokerUnsuitable`; its text holds no
    secret."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise _wrong(f"{scheme}:// is not a scheme of Redis")
    userinfo, hosts, path, query = _urls.split(rest, _wrong)
    options = _with_query(_with_user(options, userinfo), query)
    sentinel = scheme.endswith("+sentinel")
    port = SENTINEL_PORT if sentinel else PORT
    found = tuple(_urls.host_and_port(host, port, _wrong) for host in hosts)
    if not found:
        raise _wrong("the URL names no host")
    if not sentinel and len(found) > 1:
        raise _wrong("several hosts are for redis+sentinel://")
    parts = [unquote(part) for part in path.split("/") if part]
    service = parts.pop(0) if sentinel and parts else ""
    if sentinel and not service:
        raise _wrong("the URL names no service after the sentinels")
    if len(parts) > 1 or (parts and not parts[0].isdecimal()):
        raise _wrong(f"{'/'.join(parts)!r} is not the number of a database")
    tls = scheme.startswith("rediss")
    if not tls and (options.tls_ca or options.tls_cert):  # what is to be secret must not go out in the clear
        raise _wrong(
            f"tls_ca or tls_cert is given, and {scheme}:// is without TLS: write {scheme.replace('redis', 'rediss')}://"
        )
    return Address(found, tls, service, int(parts[0]) if parts else 0), options


def _with_user(options: RedisOptions, userinfo: str) -> RedisOptions:
    if not userinfo:
        return options
    user, colon, password = userinfo.partition(":")
    if not colon:  # a lone name is a password's place in no client; refuse rather than log in as nobody
        raise _wrong("what stands before the @ is user:password, or :password")
    return replace(options, user=unquote(user) or options.user, password=unquote(password))


def _with_query(options: RedisOptions, query: str) -> RedisOptions:
    for name, text in _urls.options(query, _wrong).items():
        if name not in _TEXTS:
            raise _wrong(f"the option {name!r} is not known: {', '.join(sorted(_TEXTS))}")
        try:
            options = _with(options, name, text)
        except ValueError as error:
            raise _wrong(str(error)) from None
    return options


def _with(options: RedisOptions, field: str, value: Any) -> RedisOptions:
    return replace(options, **{field: value})


def _wrong(what: str) -> BrokerUnsuitable:
    return BrokerUnsuitable(f"Wrong Redis URL: {what}", hint=_HINT)
