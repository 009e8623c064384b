"""One Metadata request to a Kafka broker: who is there, and who leads what.

The whole of the protocol that starting a server needs, on the standard library (Kafka's protocol guide: Metadata
version 2, and SaslHandshake 1 with SaslAuthenticate 0 where there is a login). A broker answers with the brokers that
are in service, so a server that lists itself is ready.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

_METADATA = (3, 2)  # each API's key and version
_HANDSHAKE = (17, 1)
_AUTHENTICATE = (36, 0)
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Metadata:
    """``brokers``: port by node id; ``leaders``: node id by (topic, partition), for the topics asked for."""

    cluster_id: str
    brokers: dict[int, int] = field(default_factory=dict)
    leaders: dict[tuple[str, int], int] = field(default_factory=dict)


def ask(
    host: str, port: int, topics: Sequence[str] = (), *, login: tuple[str, str] | None = None, timeout: float = 2.0
) -> Metadata | None:
    """What the broker there answers within ``timeout`` seconds a step, or None where nothing of the kind does, or it
    refuses the ``login`` (user and password, by SASL PLAIN)."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            if login is not None:
                _accepted(_exchange(connection, _HANDSHAKE, _string("PLAIN")))
                token = "\0".join(("", *login)).encode()
                _accepted(_exchange(connection, _AUTHENTICATE, struct.pack(">i", len(token)) + token))
            names = b"".join(_string(topic) for topic in topics)
            return _metadata(_exchange(connection, _METADATA, struct.pack(">i", len(topics)) + names))
    except (OSError, ValueError, struct.error):
        return None


def _exchange(connection: socket.socket, api: tuple[int, int], body: bytes) -> _Reader:
    request = struct.pack(">hhi", *api, 1) + _string("tailrace") + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    size = struct.unpack(">i", _exactly(connection, 4))[0]
    if not 0 < size <= _MOST:
        raise ValueError("an answer of no size that a broker would give")
    reader = _Reader(_exactly(connection, size))
    reader.take("i")  # the correlation id
    return reader


def _accepted(reader: _Reader) -> None:
    if reader.take("h") != 0:
        raise ValueError("the login was refused")


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ValueError("the connection ended inside an answer")
        data += more
    return bytes(data)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _metadata(reader: _Reader) -> Metadata:
    brokers: dict[int, int] = {}
    for _ in range(reader.take("i")):
        node, _, port, _ = reader.take("i"), reader.text(), reader.take("i"), reader.text()
        brokers[node] = port
    found = Metadata(reader.text(), brokers)
    reader.take("i")  # the controller
    for _ in range(reader.take("i")):
        _, topic, _ = reader.take("h"), reader.text(), reader.take("b")
        for _ in range(reader.take("i")):
            _, partition, leader = reader.take("h"), reader.take("i"), reader.take("i")
            found.leaders[topic, partition] = leader
            for _ in ("replicas", "in sync"):
                for _ in range(reader.take("i")):
                    reader.take("i")
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, kind: str) -> int:
        value: int = struct.unpack_from(f">{kind}", self._data, self._at)[0]
        self._at += struct.calcsize(kind)
        return value

    def text(self) -> str:
        """A string; a null one is empty."""
        size = max(0, self.take("h"))
        if self._at + size > len(self._data):
            raise ValueError("a string goes beyond the answer")
        self._at += size
        return self._data[self._at - size : self._at].decode()
