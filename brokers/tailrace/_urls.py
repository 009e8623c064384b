"""What the URLs of all brokers have in common: ``user:password@host:port,host2:port`` and a tail. Pure.

``wrong`` makes the error of a broker's URL from words that hold no secret.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

Wrong = Callable[[str], Exception]


class Parts(NamedTuple):
    """``tail``: path and query, without the slash before them; a slash may stand before the question mark."""

    userinfo: str
    hosts: list[str]
    tail: str


def split(rest: str, wrong: Wrong) -> Parts:
    """What stands behind the ``://``."""
    netloc, _, tail = rest.replace("?", "/?", 1).partition("/")
    if "@" in tail.partition("?")[0]:  # shown to nobody: it is a part of a password
        raise wrong("what stands before the @ holds a / or ?; write them as %2F and %3F")
    userinfo, _, hosts = netloc.rpartition("@")
    return Parts(userinfo, [host for host in hosts.split(",") if host], tail)


def host_and_port(text: str, default_port: int, wrong: Wrong) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port or default_port
    except ValueError:
        raise wrong(f"{text!r} is not host:port") from None
    if not parts.hostname:
        raise wrong(f"{text!r} is not host:port")
    return parts.hostname, port


def joined(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
