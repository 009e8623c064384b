"""URLs of Kafka brokers: `kafka://user:pass@host:port,host2:port?replicas=3`; `kafka+ssl://` insists on TLS. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from tailrace import _urls
from tailrace.errors import BrokerUnsuitable
from tailrace.kafka.options import KafkaOptions

DEFAULT_PORT = 9092
SCHEMES = {"kafka": False, "kafka+ssl": True}
_TEXTS = ("prefix", "mechanism", "tls_ca", "tls_cert", "tls_key")
_NUMBERS = ("partitions", "claims_partitions", "replicas", "min_insync_replicas", "max_message_bytes")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect first. ``servers`` are host and port, free of secrets."""

    servers: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return ",".join(_urls.joined(host, port) for host, port in self.servers)

    @property
    def bootstrap(self) -> list[str]:
        """As the client library takes it."""
        return [_urls.joined(host, port) for host, port in self.servers]


def parse(url: str | Sequence[str], options: KafkaOptions) -> tuple[Address, KafkaOptions]:
    """The address that a URL (or several of one broker each) names, and ``options`` with what it says besides.
    Raises `BrokerUnsuitable`."""
    servers: list[tuple[str, int]] = []
    for each in [url] if isinstance(url, str) else list(url):
        found, options = _parse(each, options)
        servers.extend(found)
    return Address(tuple(servers)), options


def _parse(url: str, options: KafkaOptions) -> tuple[list[tuple[str, int]], KafkaOptions]:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        raise _wrong("it begins with none of " + ", ".join(f"{name}://" for name in SCHEMES))
    userinfo, hosts, path, query = _urls.split(rest, _wrong)
    _urls.no_path(path, _wrong)
    servers = [_urls.host_and_port(host, DEFAULT_PORT, _wrong) for host in hosts]
    if not servers:
        raise _wrong("it names no host")
    changes: dict[str, Any] = {}
    if SCHEMES[scheme.lower()]:
        changes["tls"] = True
    if userinfo:
        changes |= _login(userinfo, options)
    for name, text in _urls.options(query, _wrong).items():
        changes[name] = _option(name, text)
    try:
        return servers, replace(options, **changes)
    except ValueError as error:
        raise _wrong(str(error)) from None


def _login(userinfo: str, options: KafkaOptions) -> dict[str, str]:
    """User and password; a part that is left out is the options'. Raises where neither says it."""
    name, _, secret = userinfo.partition(":")
    user, password = unquote(name) or options.user, unquote(secret) or options.password
    if not user or not password:
        raise _wrong("what stands before the @ is user:password")
    return {"user": user, "password": password}


def _option(name: str, text: str) -> str | int:
    if name in _TEXTS:
        return text
    if name not in _NUMBERS:
        raise _wrong(f"the option {name!r} is not known: {', '.join(sorted((*_TEXTS, *_NUMBERS)))}")
    try:
        return int(text)
    except ValueError:
        raise _wrong(f"{name} is not a number: {text}") from None


def _wrong(what: str) -> BrokerUnsuitable:
    return BrokerUnsuitable(f"Wrong Kafka URL: {what}", hint="Write kafka://user:password@host:port,host2:port")
