"""Ports of this machine for servers that start here."""

import random
import socket

from tailrace._server_directory import HOST, EmbeddedError

# Below the ports that systems give to outgoing connections: a client that dials a dead port of that range can be
# given the same port as its own, connect to itself, and so keep the server from coming back.
PORTS = range(20_000, 32_000)
_given: set[int] = set()  # by this process: whoever got one may listen on it only later


def choose_port(fixed: int | None, before: int | None) -> int:
    """The port asked for, else the one used before, else a free one. Raises EmbeddedError when there is none."""
    if fixed is not None:
        if not is_free(fixed):
            raise EmbeddedError(f"port {fixed} is taken: ask for another one, or for none", code="embedded-port")
        return fixed
    if before is not None and is_free(before):
        return before
    for port in random.sample(PORTS, 200):
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise EmbeddedError(f"no free port between {PORTS.start} and {PORTS.stop - 1}", code="embedded-port")


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        # As the server does: connections of its predecessor that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
    return True
