"""What a server must be, looked at once at the start. Warnings go to the log; what breaks a promise is refused."""

from __future__ import annotations

import logging

from tailrace.errors import BrokerFailed, BrokerRefused, BrokerUnavailable, BrokerUnsuitable
from tailrace.redis.connection import Connection, Unanswered

LEAST = (6, 2)

_log = logging.getLogger(__name__)


async def check(connection: Connection) -> bool:
    """Whether the server keeps what it acknowledges through a kill (it has an append-only file). Raises
    `BrokerUnsuitable`, `BrokerRefused`, `BrokerUnavailable`."""
    try:
        facts = _parse(await connection.call("INFO"))
    except Unanswered as error:
        raise BrokerUnavailable(str(error)) from None
    except BrokerFailed as error:
        if "unknown command" in error.message:
            raise BrokerUnsuitable(f"What answers at {connection} knows no INFO: is it a Redis?") from error
        raise
    check_server(facts, str(connection))
    durable = facts.get("aof_enabled") == "1"
    if not durable:
        _log.warning("no append-only file: Redis at %s loses acknowledged chunks when it is killed", connection)
    return durable


def check_server(facts: dict[str, str], where: str) -> None:
    """Raise `BrokerUnsuitable` where the INFO of the server at ``where`` says what a promise would break on."""
    name = "Valkey" if facts.get("server_name") == "valkey" else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version") or "0"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < LEAST:
        least = ".".join(map(str, LEAST))
        raise BrokerUnsuitable(f"{name} at {where} is {version}; {least} or newer is needed", hint="Upgrade it.")
    if facts.get("redis_mode") == "sentinel":
        raise BrokerUnsuitable(
            f"What answers at {where} is a Sentinel", hint="Write redis+sentinel://host:port/service."
        )
    if facts.get("redis_mode") == "cluster" or facts.get("cluster_enabled") == "1":
        raise BrokerUnsuitable(
            f"{name} at {where} is a cluster", hint="Use one server, or several with Sentinel: redis+sentinel://"
        )
    if facts.get("role") == "slave":
        raise BrokerUnsuitable(f"{name} at {where} is a read-only replica", hint="Name the master, or use Sentinel.")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        raise BrokerUnsuitable(
            f"{name} at {where} evicts keys when it is full (maxmemory-policy {policy}): acknowledged chunks too",
            hint="Set maxmemory-policy noeviction.",
        )


def _parse(text: bytes) -> dict[str, str]:
    if not isinstance(text, bytes):
        raise BrokerRefused("The answer to INFO cannot be read")
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}
