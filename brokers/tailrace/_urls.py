"""What the URLs of all brokers have in common: ``user:password@host:port,host2:port`` and a tail. Pure.

``wrong`` makes the error of a broker's URL from words that hold no secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qsl

Wrong = Callable[[str], Exception]
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/?#@\[\]]+)(?::(?P<port>[0-9]{1,5}))?")


class Parts(NamedTuple):
    """``path`` is without the slash before it; ``query`` as it stands behind the question mark."""

    userinfo: str
    hosts: list[str]
    path: str
    query: str


def split(rest: str, wrong: Wrong) -> Parts:
    """What stands behind the ``://``."""
    place, _, query = rest.partition("?")
    netloc, _, path = place.partition("/")
    if "@" in path or ("?" in rest and "@" in query and "=" not in query.partition("@")[0]):
        # shown to nobody: it is a part of a password
        raise wrong("what stands before the @ holds a / or ?; write them as %2F and %3F")
    userinfo, _, hosts = netloc.rpartition("@")
    return Parts(userinfo, [host for host in hosts.split(",") if host], path, query)


def options(query: str, wrong: Wrong) -> dict[str, str]:
    """What a query says, each name once and with a value: an empty one is a variable that was not set."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if not value:
            raise wrong(f"the option {name!r} has no value")
        if found.setdefault(name, value) != value:
            raise wrong(f"the option {name!r} is given twice, and differs")
    return found


def no_path(path: str, wrong: Wrong) -> None:
    """Raise for what stands behind the hosts, where nothing is to stand there."""
    if path.strip("/"):
        raise wrong("something stands behind the hosts; options are written as ?name=value&name=value")


def host_and_port(text: str, default_port: int, wrong: Wrong) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or default_port) if found else 0
    if found is None or not 0 < port < 65536 or not _may_be_a_name(found["host"]):
        raise wrong(f"{text!r} is not host:port")
    return found["host"].strip("[]").lower(), port


def _may_be_a_name(host: str) -> bool:
    """Whether it can be looked up: no part of it is empty or longer than 63 (RFC 1035, 2.3.4)."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def joined(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
